//! How much noise a picture has.
//!
//! Noise is told from what is seen by differences that plain and evenly changing areas do not have, and by their median,
//! which edges hardly move. Bytes end at black and white, where noise is cut off, so blocks in which that happens are judged
//! by the side that is left.

use super::Image;

/// Side of the blocks that are judged.
const BLOCK: usize = 8;
/// Standard deviation of Gaussian noise over the median of its absolute values, which is also its third quartile.
const DEVIATION: f64 = 1.0 / 0.674_489_75;
/// Least numbers of differences, and of values in blocks that are cut off, to judge by.
const LEAST: [usize; 2] = [256, 1024];
/// With fewer differences than this, what is cut off counts as well.
const FEW: usize = 1024;
/// The two must not differ by more than this factor to count together.
const ALIKE: f64 = 1.5;

impl Image {
    /// An estimate of the standard deviation of Gaussian noise in the picture, where 1 is the difference of black and white. 0
    /// if the picture is too small to tell.
    ///
    /// # Formula
    /// In blocks of 8x8 in which at most 2 % of the bytes are black or white: the median of
    /// `|a - b - c + d| / 2` over the squares `a b / c d`, over 0.6745. In blocks in which 30 to 70 % are: the third quartile of
    /// the distance from black or white, over 0.6745. The first, or the mean of both where it has few values.
    ///
    /// # Source
    /// Donoho & Johnstone 1994, section 4.1, with Haar's wavelet.
    #[must_use]
    pub fn noise_level(&self) -> f32 {
        let (mut differences, mut distances) = (Vec::new(), Vec::new());
        let (columns, rows) = (self.width / BLOCK, self.height / BLOCK);
        for (row, column, c) in (0..rows * columns * 3).map(|i| (i / 3 / columns, i / 3 % columns, i % 3)) {
            let byte = |y: usize, x: usize| {
                f64::from(self.pixels[((row * BLOCK + y) * self.width + column * BLOCK + x) * 3 + c])
            };
            let all = || (0..BLOCK * BLOCK).map(|i| byte(i / BLOCK, i % BLOCK));
            let share = |end: f64| all().filter(|byte| *byte == end).count() as f64 / (BLOCK * BLOCK) as f64;
            let [black, white] = [share(0.0), share(255.0)];
            if black < 0.02 && white < 0.02 {
                let square = |i: usize| {
                    let (y, x) = (i / (BLOCK / 2) * 2, i % (BLOCK / 2) * 2);
                    (byte(y, x) - byte(y, x + 1) - byte(y + 1, x) + byte(y + 1, x + 1)).abs() / 2.0
                };
                differences.extend((0..BLOCK * BLOCK / 4).map(square));
            }
            if (0.3..0.7).contains(&white) {
                distances.extend(all().map(|byte| 255.0 - byte));
            }
            if (0.3..0.7).contains(&black) {
                distances.extend(all());
            }
        }
        let [few, cut] = [differences.len() < FEW, distances.len() >= LEAST[1]];
        let inside = (differences.len() >= LEAST[0]).then(|| quantile(&mut differences, 0.5) * DEVIATION);
        let at_ends = cut.then(|| quantile(&mut distances, 0.75) * DEVIATION);
        let level = match (inside, at_ends) {
            (Some(inside), Some(at_ends)) if few && at_ends < ALIKE * inside => (inside + at_ends) / 2.0,
            (inside, at_ends) => inside.or(at_ends).unwrap_or(0.0),
        };
        (level / 255.0) as f32
    }
}

/// The value below which this share of the values lie.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let at = ((values.len() - 1) as f64 * share) as usize;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseKind, NoiseSource};

    /// A disc on white, with noise.
    fn noisy(sigma: f32, seed: u64) -> Image {
        let mut noise = vec![0.0; 128 * 128 * 3];
        NoiseSource::new(NoiseKind::Philox, seed).fill_normal(&mut noise);
        let pixel = |(at, noise): (usize, f32)| {
            let (x, y, c) = ((at / 3 % 128) as f32, (at / 384) as f32, at % 3);
            let inside = (x - 60.0).hypot(y - 70.0) < 42.0;
            let clean = if inside { [200.0, 90.0 + y, 60.0][c] } else { 255.0 };
            (clean + noise * sigma * 255.0).round().clamp(0.0, 255.0) as u8
        };
        let pixels = noise.into_iter().enumerate().map(pixel).collect();
        Image { width: 128, height: 128, pixels }
    }

    #[test]
    fn the_noise_of_a_drawing_is_told_within_15_percent_also_where_white_cuts_it_off() {
        for sigma in [0.02, 0.05, 0.1, 0.2, 0.3] {
            for seed in 0..4 {
                let found = noisy(sigma, seed).noise_level();
                assert!((found / sigma - 1.0).abs() < 0.15, "{sigma}: {found}");
            }
        }
        assert!(noisy(0.0, 0).noise_level() < 0.005);
        assert_eq!(Image { width: 3, height: 3, pixels: vec![9; 27] }.noise_level(), 0.0);
    }
}
