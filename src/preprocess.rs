//! A picture as CLIP's image tower wants it: its middle square, resized, as numbers about zero.
//!
//! The numbers equal those of transformers' `CLIPImageProcessor` with Pillow to the bit: the shorter side is resized to
//! a fixed length by Pillow's bicubic filter, which works on bytes with weights in fixed point and rounds after each of
//! the two directions; the middle is cut out; bytes become floats and are normalised. Only what the cut keeps is
//! computed, so that a long thin picture needs no more memory than a square one.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::ops::cubic_window;
use crate::weights::Checkpoint;
use serde::Deserialize;
use std::ops::Range;
use std::path::Path;

/// The file in a checkpoint.
const FILE: &str = "feature_extractor/preprocessor_config.json";

/// How a picture is prepared: `feature_extractor/preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    /// Length of the shorter side after resizing.
    shortest_edge: usize,
    /// Side of the square that is cut out.
    crop: usize,
    /// What a byte is multiplied by.
    rescale: f64,
    /// Of each colour, subtracted.
    mean: [f32; 3],
    /// Of each colour, divided by.
    std: [f32; 3],
}

/// The file as it is written; old ones have plain numbers for sizes.
#[derive(Deserialize)]
struct Config {
    size: Size,
    crop_size: Size,
    #[serde(default = "bicubic")]
    resample: u32,
    #[serde(default = "per_byte")]
    rescale_factor: f64,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Shortest { shortest_edge: usize },
    Both { height: usize, width: usize },
}

/// Pillow's number of the filter.
fn bicubic() -> u32 {
    3
}

fn per_byte() -> f64 {
    1.0 / 255.0
}

fn yes() -> bool {
    true
}

impl Preprocessor {
    /// Reads the checkpoint's settings.
    ///
    /// # Errors
    /// [`Error::Config`] when the file is missing or damaged, or asks for what is not implemented.
    pub fn read(checkpoint: &Checkpoint) -> Result<Preprocessor> {
        Preprocessor::new(&checkpoint.path().join(FILE), checkpoint.json(FILE)?)
    }

    fn new(path: &Path, config: Config) -> Result<Preprocessor> {
        let refused = |reason: String| Err(Error::config(path, reason));
        let steps = [
            ("do_resize", config.do_resize),
            ("do_center_crop", config.do_center_crop),
            ("do_rescale", config.do_rescale),
            ("do_normalize", config.do_normalize),
        ];
        if let Some((key, _)) = steps.into_iter().find(|(_, wanted)| !wanted) {
            return refused(format!("{key} is false; this engine knows true"));
        }
        if config.resample != bicubic() {
            return refused(format!("resample is {}; this engine knows 3, bicubic", config.resample));
        }
        let (Size::Side(shortest_edge) | Size::Shortest { shortest_edge }) = config.size else {
            return refused("size has height and width; this engine knows a number or shortest_edge".to_owned());
        };
        let crop = match config.crop_size {
            Size::Side(side) => side,
            Size::Both { height, width } if height == width => height,
            _ => {
                return refused(
                    "crop_size is no square; this engine knows a number, or one as height and width".into(),
                );
            }
        };
        if crop == 0 || shortest_edge < crop {
            return refused(format!("a square of {crop} cannot be cut from a picture with a side of {shortest_edge}"));
        }
        // Pictures and windows are measured in numbers of this order, so that none of them overflows.
        if shortest_edge > 1 << 14 {
            return refused(format!("size is {shortest_edge}; this engine knows up to {}", 1 << 14));
        }
        let (mean, std, rescale) = (config.image_mean, config.image_std, config.rescale_factor);
        if !mean.iter().chain(&std).all(|x| x.is_finite()) || std.contains(&0.0) || !rescale.is_finite() {
            return refused("image_mean, image_std and rescale_factor must be finite, and image_std not 0".to_owned());
        }
        Ok(Preprocessor { shortest_edge, crop, rescale, mean, std })
    }

    /// Side of the prepared picture.
    pub fn size(&self) -> usize {
        self.crop
    }

    /// The picture's numbers, `[size, size, 3]`.
    ///
    /// *Formula* `(byte * rescale_factor - mean) / std` of the resized and cut picture.
    ///
    /// # Errors
    /// [`Error::Request`] when the picture is empty, or its pixels are not as many as its sides say.
    pub fn prepare(&self, image: &Image) -> Result<Vec<f32>> {
        let bytes = self.square(image)?;
        let number =
            |(i, &byte): (usize, &u8)| ((f64::from(byte) * self.rescale) as f32 - self.mean[i % 3]) / self.std[i % 3];
        Ok(bytes.iter().enumerate().map(number).collect())
    }

    /// The middle square of the resized picture, `[size, size, 3]`.
    fn square(&self, image: &Image) -> Result<Vec<u8>> {
        image.check()?;
        let (width, height) = (image.width, image.height);
        let short = width.min(height);
        let (wide, high) = (self.resized(width, short), self.resized(height, short));
        let across = Axis::new(width, wide, self.crop);
        let down = Axis::new(height, high, self.crop);
        let columns = across.reach.len();
        let rows = image.pixels.chunks_exact(3 * width).skip(down.reach.start).take(down.reach.len());
        let part: Vec<u8> = rows.flat_map(|row| &row[3 * across.reach.start..3 * across.reach.end]).copied().collect();
        // Pillow 13 begins with the height where it loses more than twice as many pixels as the width does.
        Ok(if high < height && height - high > 2 * width.saturating_sub(wide) {
            across.rows(&down.columns(&part, columns), columns)
        } else {
            down.columns(&across.rows(&part, columns), self.crop)
        })
    }

    /// Length of a side after resizing.
    fn resized(&self, side: usize, short: usize) -> usize {
        (self.shortest_edge as u128 * side as u128 / short as u128) as usize
    }
}

/// Bits behind the point of a weight.
const FRACTION: u32 = 22;

/// One direction of the resize: for each position that the cut keeps, which pixels it is made of and how much of each.
struct Axis {
    /// The pixels that any window reads.
    reach: Range<usize>,
    windows: Vec<Window>,
}

struct Window {
    /// Counted from the start of the reach.
    first: usize,
    weights: Vec<i32>,
}

impl Axis {
    /// From `length` pixels to `resized`, of which the middle `kept` are wanted.
    ///
    /// *Source* Pillow's `Resample.c`, whose weights are whole numbers. A side that does not change has the weights 1 and is thereby left alone.
    fn new(length: usize, resized: usize, kept: usize) -> Axis {
        let window = |i: usize| {
            let (first, weights) = cubic_window(length, resized, i);
            let fixed = |w: f64| {
                let w = w * f64::from(1 << FRACTION);
                (w + 0.5f64.copysign(w)) as i32
            };
            Window { first, weights: weights.into_iter().map(fixed).collect() }
        };
        let start = (resized - kept) / 2;
        let mut windows: Vec<Window> = (start..start + kept).map(window).collect();
        let first = windows[0].first;
        windows.iter_mut().for_each(|window| window.first -= first);
        let last = &windows[kept - 1];
        Axis { reach: first..first + last.first + last.weights.len(), windows }
    }

    /// Each row of `pixels [.., width, 3]`, which is as wide as the reach, resized: `[.., kept, 3]`.
    fn rows(&self, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(pixels.len() / width * self.windows.len());
        for row in pixels.chunks_exact(3 * width) {
            for window in &self.windows {
                out.extend((0..3).map(|c| window.sum(row[3 * window.first + c..].iter().step_by(3))));
            }
        }
        out
    }

    /// Each column of `pixels [.., width, 3]`, which is as high as the reach, resized: `[kept, width, 3]`.
    fn columns(&self, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(3 * width * self.windows.len());
        for window in &self.windows {
            let seen = &pixels[3 * width * window.first..];
            out.extend((0..3 * width).map(|at| window.sum(seen[at..].iter().step_by(3 * width))));
        }
        out
    }
}

impl Window {
    /// The weighted sum, rounded to a byte.
    fn sum<'a>(&self, pixels: impl Iterator<Item = &'a u8>) -> u8 {
        let terms = self.weights.iter().zip(pixels).map(|(&weight, &byte)| weight * i32::from(byte));
        let sum = terms.fold(1 << (FRACTION - 1), i32::wrapping_add);
        (sum >> FRACTION).clamp(0, 255) as u8
    }
}
