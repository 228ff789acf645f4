//! Masks: which part of a picture is made anew.

use super::Image;
use super::resize::resized_grey;
use crate::error::{Error, Result};

/// Which pixels of a picture are made anew, and which stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// `[height, width]`: from 128 on a pixel is made anew, below it stays.
    pub pixels: Vec<u8>,
}

impl Mask {
    /// From this value on a pixel is new: half of white.
    const NEW: u8 = 128;

    /// White is new, black stays; colours count by their luma.
    ///
    /// *Formula* `(19595 R + 38470 G + 7471 B + 32768) / 65536`, Pillow's mode "L".
    #[must_use]
    pub fn from_image(image: &Image) -> Mask {
        let luma = |p: &[u8]| {
            let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
            ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8
        };
        Mask { width: image.width, height: image.height, pixels: image.pixels.chunks_exact(3).map(luma).collect() }
    }

    /// A mask from a function of column and row that says what is new.
    #[must_use]
    pub fn from_fn(width: usize, height: usize, is_new: impl Fn(usize, usize) -> bool) -> Mask {
        let value = |(x, y)| if is_new(x, y) { 255 } else { 0 };
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(value).collect();
        Mask { width, height, pixels }
    }

    /// Whether a pixel is made anew.
    #[must_use]
    pub fn is_new(&self, x: usize, y: usize) -> bool {
        self.pixels[y * self.width + x] >= Mask::NEW
    }

    /// The smallest rectangle that holds all that is new: left, top, right, bottom, the latter two excluded. `None` if all
    /// stays.
    #[must_use]
    pub fn bounds(&self) -> Option<[usize; 4]> {
        let mut bounds: Option<[usize; 4]> = None;
        for (at, _) in self.pixels.iter().enumerate().filter(|(_, value)| **value >= Mask::NEW) {
            let [x, y] = [at % self.width, at / self.width];
            let [left, top, right, bottom] = bounds.unwrap_or([x, y, x + 1, y + 1]);
            bounds = Some([left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)]);
        }
        bounds
    }

    /// Refuses a mask that is not for this picture, or that leaves nothing to do, or nothing to keep.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub(crate) fn check(&self, image: &Image) -> Result<()> {
        self.check_size(image)?;
        let new = self.pixels.iter().filter(|value| **value >= Mask::NEW).count();
        match new {
            0 => Err(Error::request("mask", "nothing is white, so nothing would be made anew")),
            _ if new == self.pixels.len() => Err(Error::request("mask", "all is white, so nothing would stay")),
            _ => Ok(()),
        }
    }

    /// Refuses a mask that has not the picture's size.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub(super) fn check_size(&self, image: &Image) -> Result<()> {
        let (w, h) = (image.width, image.height);
        match [self.width, self.height] == [w, h] && self.pixels.len() == w * h {
            true => Ok(()),
            false => {
                let reason = format!("{}x{} pixels; expected the picture's {w}x{h}", self.width, self.height);
                Err(Error::request("mask", reason))
            }
        }
    }

    /// In another size, as Kandinsky's pipelines do it: by Lanczos' filter.
    ///
    /// *Source* Pillow's `Image.resize`.
    ///
    /// # Panics
    /// If a side is 0, or the mask has not as many values as its sides say.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize) -> Mask {
        Mask { width, height, pixels: resized_grey(&self.pixels, [self.width, self.height], [width, height]) }
    }

    /// In another size, where a pixel is new if any part of what it covers is.
    pub(crate) fn covering(&self, width: usize, height: usize) -> Mask {
        let seen = |at: usize, from: usize, to: usize| at * from / to..((at + 1) * from).div_ceil(to);
        Mask::from_fn(width, height, |x, y| {
            let [columns, rows] = [seen(x, self.width, width), seen(y, self.height, height)];
            rows.into_iter().any(|y| columns.clone().any(|x| self.is_new(x, y)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_mask_covers_all_that_is_new() {
        let mask = Mask::from_fn(8, 8, |x, y| (x, y) == (3, 5));
        let small = mask.covering(3, 2);
        let new: Vec<usize> = (0..6).filter(|at| small.is_new(at % 3, at / 3)).collect();
        assert_eq!(new, [4], "column 3 of 8 lies in the second of 3, row 5 in the second of 2");
        assert_eq!(mask.bounds(), Some([3, 5, 4, 6]));
        assert_eq!(Mask::from_fn(4, 4, |_, _| false).bounds(), None);
    }

    #[test]
    fn masks_without_effect_or_of_another_size_are_refused() {
        let image = Image { width: 2, height: 1, pixels: vec![0; 6] };
        let refused = |mask: Mask| mask.check(&image).unwrap_err().to_string();
        assert!(refused(Mask::from_fn(1, 2, |_, _| true)).contains("1x2 pixels; expected the picture's 2x1"));
        assert!(refused(Mask::from_fn(2, 1, |_, _| false)).contains("nothing is white"));
        assert!(refused(Mask::from_fn(2, 1, |_, _| true)).contains("all is white"));
        assert!(Mask::from_fn(2, 1, |x, _| x == 1).check(&image).is_ok());
    }

    #[test]
    fn colours_count_by_their_luma() {
        let image = Image { width: 3, height: 1, pixels: vec![0, 255, 0, 255, 0, 0, 128, 128, 128] };
        assert_eq!(Mask::from_image(&image).pixels, [150, 76, 128]);
    }
}
