//! Pictures that are edited in part: the window that networks see, and how what they make comes back.
//!
//! Networks make pictures of their own size. What is edited may be larger and of other proportions, so they are given a
//! window of it, resized, and what they make is resized back. Only what the mask says changes, and a seam beside it in
//! which old and new are mixed.

use super::{Image, Mask};
use crate::error::{Error, Result};

/// Longest side of a canvas.
const LONGEST: usize = 1 << 15;

/// A picture that is edited, perhaps with room around it.
#[derive(Clone, Debug)]
pub struct Canvas {
    image: Image,
    mask: Mask,
}

/// A part of a canvas. It may reach beyond, where all is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Column of its left side on the canvas.
    pub x: isize,
    /// Row of its upper side on the canvas.
    pub y: isize,
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

impl Canvas {
    /// A picture with `room` pixels more to the left, above, to the right and below. The room is new, and what the mask says.
    ///
    /// # Errors
    /// [`Error::Request`] if the mask has another size than the picture, or if all of the canvas is new, or nothing.
    pub fn new(image: &Image, mask: &Mask, room: [usize; 4]) -> Result<Canvas> {
        image.check()?;
        mask.check_size(image)?;
        let [left, top, right, bottom] = room;
        let sum = |parts: [usize; 3]| parts.into_iter().try_fold(0, usize::checked_add).filter(|sum| *sum <= LONGEST);
        let (width, height) =
            sum([left, image.width, right]).zip(sum([top, image.height, bottom])).ok_or_else(|| {
                Error::request("extend", format!("the picture would have a side of more than {LONGEST} pixels"))
            })?;
        let inside = |x: usize, y: usize| {
            let (x, y) = (x.checked_sub(left)?, y.checked_sub(top)?);
            (x < image.width && y < image.height).then_some((x, y))
        };
        let mask = Mask::from_fn(width, height, |x, y| inside(x, y).is_none_or(|(x, y)| mask.is_new(x, y)));
        let whole = Image { width, height, pixels: Vec::with_capacity(3 * width * height) };
        let image = (0..height).fold(whole, |mut whole, y| {
            for x in 0..width {
                let at = |at: usize, room: usize, side: usize| at.saturating_sub(room).min(side - 1);
                whole.pixels.extend(image.pixel(at(x, left, image.width), at(y, top, image.height)));
            }
            whole
        });
        mask.check(&image)?;
        Ok(Canvas { image, mask })
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        [self.image.width, self.image.height]
    }

    /// All of the canvas.
    #[must_use]
    pub fn whole(&self) -> Window {
        Window { x: 0, y: 0, width: self.image.width, height: self.image.height }
    }

    /// A square around all that is new, for networks whose pictures have sides of `side` pixels: as large as that or twice as
    /// large as what is new, as far as the canvas is.
    #[must_use]
    pub fn square(&self, side: usize) -> Window {
        let [width, height] = self.size();
        let [left, top, right, bottom] = self.mask.bounds().unwrap_or([0, 0, width, height]);
        let new = (right - left).max(bottom - top);
        let (short, long) = (width.min(height), width.max(height));
        // What is new should leave a part of the window alone; it may be as long as the canvas.
        let most = if new + new / 2 <= short { short } else { long };
        let side = side.max(2 * new).min(most);
        let place = |from: usize, to: usize, of: usize| {
            let (side, of) = (side.cast_signed(), of.cast_signed());
            if side > of { (of - side) / 2 } else { ((from + to).cast_signed() / 2 - side / 2).clamp(0, of - side) }
        };
        Window { x: place(left, right, width), y: place(top, bottom, height), width: side, height: side }
    }

    /// The picture and the mask of a window. Beyond the canvas its border goes on.
    #[must_use]
    pub fn cut(&self, window: &Window) -> (Image, Mask) {
        let at = |x: usize, y: usize| {
            let (x, y) = (window.x + x.cast_signed(), window.y + y.cast_signed());
            let [width, height] = self.size().map(|side| side.cast_signed() - 1);
            let inside = (0..=width).contains(&x) && (0..=height).contains(&y);
            let nearest = |at: isize, last: isize| at.clamp(0, last).cast_unsigned();
            (nearest(x, width), nearest(y, height), inside)
        };
        let Window { width, height, .. } = *window;
        let mask = Mask::from_fn(width, height, |x, y| {
            let (x, y, inside) = at(x, y);
            !inside || self.mask.is_new(x, y)
        });
        let positions = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let pixels = positions.flat_map(|(x, y)| {
            let (x, y, _) = at(x, y);
            self.image.pixel(x, y)
        });
        (Image { width, height, pixels: pixels.collect() }, mask)
    }

    /// The canvas with what was made of a window. Within `seam` pixels beside what is new, both are mixed, the more of the
    /// new the nearer it is; beyond, all bytes are those of the canvas.
    #[must_use]
    pub fn paste(&self, window: &Window, made: &Image, seam: usize) -> Image {
        let made = made.resized(window.width, window.height);
        let share = self.shares(seam);
        let mut image = self.image.clone();
        for (at, made) in made.pixels.chunks_exact(3).enumerate() {
            let x = window.x + (at % window.width).cast_signed();
            let y = window.y + (at / window.width).cast_signed();
            let [width, height] = self.size();
            let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { continue };
            if x >= width || y >= height {
                continue;
            }
            let share = share[y * width + x];
            for (old, new) in image.pixels[(y * width + x) * 3..][..3].iter_mut().zip(made) {
                *old = (share * f32::from(*new) + (1.0 - share) * f32::from(*old)).round_ties_even() as u8;
            }
        }
        image
    }

    /// How much of each pixel is new: 1 inside the mask, and beside it less with the distance, 0 beyond the seam.
    fn shares(&self, seam: usize) -> Vec<f32> {
        let [width, height] = self.size();
        let mut nearest: Vec<f32> = vec![f32::INFINITY; width * height];
        let reach = seam.cast_signed();
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).filter(|&(x, y)| self.mask.is_new(x, y))
        {
            nearest[y * width + x] = 0.0;
            let beside = [(0, -1), (-1, 0), (1, 0), (0, 1)].map(|(dx, dy)| self.moved(x, y, dx, dy));
            // What lies inside is nearest to nothing outside.
            if beside.into_iter().flatten().all(|(x, y)| self.mask.is_new(x, y)) {
                continue;
            }
            for (dx, dy) in (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dx, dy))) {
                if let Some((x, y)) = self.moved(x, y, dx, dy) {
                    let distance = (dx as f32).hypot(dy as f32);
                    let nearest = &mut nearest[y * width + x];
                    *nearest = nearest.min(distance);
                }
            }
        }
        nearest.into_iter().map(|distance| (1.0 - distance / (seam + 1) as f32).max(0.0)).collect()
    }

    /// A position so far beside another, if the canvas has it.
    fn moved(&self, x: usize, y: usize, dx: isize, dy: isize) -> Option<(usize, usize)> {
        let [width, height] = self.size();
        let (x, y) = (x.checked_add_signed(dx)?, y.checked_add_signed(dy)?);
        (x < width && y < height).then_some((x, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize) -> Image {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7]));
        Image { width, height, pixels: pixels.collect() }
    }

    fn hole(width: usize, height: usize, [left, top, right, bottom]: [usize; 4]) -> Mask {
        Mask::from_fn(width, height, |x, y| (left..right).contains(&x) && (top..bottom).contains(&y))
    }

    fn canvas(size: [usize; 2], new: [usize; 4]) -> Canvas {
        let [width, height] = size;
        Canvas::new(&plain(width, height), &hole(width, height, new), [0; 4]).unwrap()
    }

    #[test]
    fn windows_hold_what_is_new_and_something_beside_it() {
        for (size, new, side, wanted) in [
            // As large as the network's picture, shifted inside.
            ([200, 100], [0, 0, 10, 10], 64, [0, 0, 64]),
            ([200, 100], [190, 40, 200, 60], 64, [136, 18, 64]),
            // Twice what is new.
            ([200, 100], [80, 30, 120, 70], 64, [60, 10, 80]),
            // As large as the canvas allows.
            ([60, 50], [10, 10, 20, 20], 64, [0, 0, 50]),
            // What is new takes nearly all of the shorter side, so that the window reaches beyond it.
            ([200, 100], [50, 0, 150, 100], 64, [0, -50, 200]),
        ] {
            let window = canvas(size, new).square(side);
            let [x, y, side] = wanted;
            assert_eq!(window, Window { x, y, width: side as usize, height: side as usize }, "{size:?} {new:?}");
            let (image, mask) = canvas(size, new).cut(&window);
            mask.check(&image).unwrap();
            let [left, top, right, bottom] = mask.bounds().unwrap();
            assert!(right - left >= new[2] - new[0] && bottom - top >= new[3] - new[1], "{size:?} {new:?}");
        }
    }

    #[test]
    fn bytes_beyond_the_seam_stay_and_the_mask_is_replaced() {
        let canvas = canvas([40, 30], [10, 10, 20, 20]);
        let window = canvas.square(16);
        let made = Image { width: 16, height: 16, pixels: vec![200; 3 * 256] };
        for seam in [0, 3] {
            let pasted = canvas.paste(&window, &made, seam);
            for y in 0..30 {
                for x in 0..40 {
                    let beside = |at: usize| (10usize.saturating_sub(at) + at.saturating_sub(19)) as f32;
                    let distance = beside(x).hypot(beside(y));
                    let (got, given) = (pasted.pixel(x, y), canvas.image.pixel(x, y));
                    if distance == 0.0 {
                        assert_eq!(got, [200; 3], "{x} {y}");
                    } else if distance > seam as f32 + 0.99 {
                        assert_eq!(got, given, "{x} {y}");
                    } else {
                        assert!(got[2] > given[2] && got[2] < 200, "{x} {y} {got:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn room_around_a_picture_is_new_and_goes_on_as_its_border() {
        let image = plain(4, 3);
        let nothing = Mask::from_fn(4, 3, |_, _| false);
        let canvas = Canvas::new(&image, &nothing, [2, 0, 0, 1]).unwrap();
        assert_eq!(canvas.size(), [6, 4]);
        assert_eq!((canvas.image.pixel(0, 1), canvas.image.pixel(5, 3)), ([0, 1, 7], [3, 2, 7]));
        let new: Vec<bool> = (0..24).map(|at| canvas.mask.is_new(at % 6, at / 6)).collect();
        assert_eq!(new, (0..24).map(|at| at % 6 < 2 || at / 6 == 3).collect::<Vec<_>>());
        let refused = |room| Canvas::new(&image, &nothing, room).unwrap_err().to_string();
        assert!(refused([0; 4]).contains("nothing is white"));
        assert!(refused([usize::MAX, 0, 0, 0]).contains("a side of more than"));
    }
}
