//! Pictures as bytes, and picture files that are either complete or not there.
//!
//! The models give `f32` in [-1, 1], channels last; an [`Image`] holds the `u8` that the original pipeline makes of
//! them. A file carries its settings, so that a picture can be made again; what is read may be any picture.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `read.rs` | from a file of any kind to an [`Image`]: what it is, limits, upright |
//! | `write.rs` | which [`Format`] a name stands for, and writing |
//! | `png.rs` | PNG in both directions, with text chunks |
//! | `formats.rs`, `bmp.rs` | JPEG, WebP, GIF, TIFF, QOI, and BMP to samples (feature `formats`) |
//! | `jpeg.rs` | JPEG files with settings (feature `formats`) |
//! | `animation.rs` | several pictures as one GIF (feature `formats`) |
//! | `samples.rs` | decoded samples to colours: grey, transparency |
//! | `orientation.rs` | which way is up |
//! | `metadata.rs`, `exif.rs`, `xmp.rs` | what a file says beside its pixels: orientation and settings |
//! | `mask.rs`, `canvas.rs` | which part of a picture is made anew, and how it comes back |
//! | `noise_level.rs` | how much noise a picture has |
//! | `resize.rs` | other sizes, as Pillow makes them |
//! | `parameters.rs` | settings as the text that image tools show |

#[cfg(feature = "formats")]
mod animation;
#[cfg(feature = "formats")]
mod bmp;
mod canvas;
#[cfg(feature = "png")]
mod exif;
#[cfg(feature = "formats")]
mod formats;
#[cfg(feature = "formats")]
mod jpeg;
mod mask;
#[cfg(feature = "png")]
mod metadata;
mod noise_level;
#[cfg(feature = "png")]
mod orientation;
mod parameters;
#[cfg(feature = "png")]
mod png;
#[cfg(feature = "png")]
mod read;
mod resize;
#[cfg(feature = "png")]
mod samples;
#[cfg(feature = "png")]
mod write;
#[cfg(feature = "png")]
mod xmp;

use crate::error::{Error, Result};
pub use canvas::{Canvas, Window};
pub use mask::Mask;
#[cfg(feature = "png")]
pub use metadata::Texts;
pub use parameters::Parameters;
#[cfg(feature = "png")]
pub use read::{ReadOptions, is_picture, read_texts};
pub(crate) use resize::{Axis, Span, resize_both};
use serde::{Deserialize, Serialize};
#[cfg(feature = "png")]
pub use write::Format;

/// A colour picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// `[height, width, 3]`: red, green, blue.
    pub pixels: Vec<u8>,
}

/// What becomes of the transparency of a picture that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alpha {
    /// The picture is laid over white, as transformers does it from version 5.
    #[default]
    White,
    /// The colours are taken as they are stored, as earlier versions and diffusers' `load_image` do it.
    Drop,
}

impl Image {
    /// Pixels from model values `x` `[height, width, 3]` in [-1, 1]: `clamp(x / 2 + 1/2, 0, 1) * 255`, rounded half to
    /// even, all in f32 as the original does it. NaN gives 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another length.
    pub fn from_unit_range(width: usize, height: usize, x: &[f32]) -> Result<Image> {
        if width.checked_mul(height).and_then(|n| n.checked_mul(3)) != Some(x.len()) {
            return Err(Error::Shape {
                at: "image".into(),
                reason: format!("expected [{height}, {width}, 3] values, found {}", x.len()),
            });
        }
        let byte = |x: &f32| ((x * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        Ok(Image { width, height, pixels: x.iter().map(byte).collect() })
    }

    /// The colours of a pixel.
    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Model values `[height, width, 3]` in [-1, 1]: the inverse of [`Image::from_unit_range`].
    pub(crate) fn unit_range(&self) -> Vec<f32> {
        self.pixels.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect()
    }

    /// Whether there are as many bytes as the sides say.
    fn is_whole(&self) -> bool {
        self.width.checked_mul(self.height).and_then(|n| n.checked_mul(3)) == Some(self.pixels.len())
    }

    /// Refuses a picture without pixels, or with another number of them than its sides say.
    pub(crate) fn check(&self) -> Result<()> {
        let (width, height, found) = (self.width, self.height, self.pixels.len());
        if found > 0 && self.is_whole() {
            return Ok(());
        }
        Err(Error::request(
            "image",
            format!("{width}x{height} with {found} bytes; it needs 3 for each pixel, and a pixel"),
        ))
    }

    /// The picture with its right and lower border going on to this width and height.
    pub(crate) fn extended(&self, width: usize, height: usize) -> Image {
        let positions = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let pixels = positions.flat_map(|(x, y)| self.pixel(x.min(self.width - 1), y.min(self.height - 1)));
        Image { width, height, pixels: pixels.collect() }
    }

    /// A part of the picture, by its left and upper side, and its width and height.
    ///
    /// # Panics
    /// The picture has no such part.
    #[must_use]
    pub fn cropped(&self, [x, y]: [usize; 2], [width, height]: [usize; 2]) -> Image {
        let rows = self.pixels.chunks_exact(3 * self.width).skip(y).take(height);
        let pixels: Vec<u8> = rows.flat_map(|row| &row[3 * x..3 * (x + width)]).copied().collect();
        assert_eq!(pixels.len(), 3 * width * height, "{width}x{height} at {x},{y} of {}x{}", self.width, self.height);
        Image { width, height, pixels }
    }

    /// Width and height of the sheet of `count` pictures of this width and height.
    pub fn grid_size(count: usize, [width, height]: [usize; 2]) -> [usize; 2] {
        let columns = (1..).find(|c| c * c >= count).expect("some square is large enough");
        [columns * width, count.div_ceil(columns) * height]
    }

    /// Pictures of one size on a sheet that is about as wide as it is high, row by row; places left over are white.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no picture, or when they differ in size.
    pub fn grid(images: &[Image]) -> Result<Image> {
        let size = |i: &Image| [i.width, i.height];
        let first = images.first().filter(|first| images.iter().all(|i| size(i) == size(first)));
        let first = first.ok_or_else(|| Error::Shape {
            at: "grid".into(),
            reason: format!("expected pictures of one size, found {:?}", images.iter().map(size).collect::<Vec<_>>()),
        })?;
        let [width, height] = Image::grid_size(images.len(), size(first));
        let columns = width / first.width.max(1);
        let mut pixels = vec![255; 3 * width * height];
        for (k, image) in images.iter().enumerate() {
            let corner = (k / columns * first.height * width + k % columns * first.width) * 3;
            for (y, row) in image.pixels.chunks_exact(3 * image.width).enumerate() {
                pixels[corner + y * 3 * width..][..row.len()].copy_from_slice(row);
            }
        }
        Ok(Image { width, height, pixels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_half_to_even_and_stay_in_range() {
        let x = [-1.0, 1.0, -7.0, 7.0, f32::NAN, 0.0, 2.0 * 2.5 / 255.0 - 1.0, f32::INFINITY, f32::NEG_INFINITY];
        let image = Image::from_unit_range(3, 1, &x).unwrap();
        // 0 is 127.5, which goes to the even 128.
        assert_eq!(image.pixels, [0, 255, 0, 255, 0, 128, 2, 255, 0]);
    }

    #[test]
    fn every_byte_comes_back_from_its_model_value() {
        let x: Vec<f32> = (0..=255).flat_map(|b| [b as f32 / 127.5 - 1.0; 3]).collect();
        let image = Image::from_unit_range(16, 16, &x).unwrap();
        let want: Vec<u8> = (0..=255).flat_map(|b| [b; 3]).collect();
        assert_eq!(image.pixels, want);
    }

    #[test]
    fn a_wrong_number_of_values_is_refused() {
        assert!(matches!(Image::from_unit_range(2, 2, &[0.0; 11]), Err(Error::Shape { .. })));
        assert!(matches!(Image::from_unit_range(usize::MAX, 2, &[0.0; 12]), Err(Error::Shape { .. })));
    }

    #[test]
    fn a_grid_has_its_pictures_row_by_row_and_white_at_the_end() {
        let plain = |value| Image { width: 2, height: 1, pixels: vec![value; 6] };
        let grid = Image::grid(&[plain(1), plain(2), plain(3)]).unwrap();
        assert_eq!([grid.width, grid.height], [4, 2]);
        let row = |values: [u8; 2]| values.into_iter().flat_map(|v| [v; 6]).collect::<Vec<u8>>();
        assert_eq!(grid.pixels, [row([1, 2]), row([3, 255])].concat());
        assert!(Image::grid(&[]).is_err());
        assert!(Image::grid(&[plain(1), Image { width: 1, height: 2, pixels: vec![0; 6] }]).is_err());
    }
}
