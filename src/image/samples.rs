//! Decoded samples to the colours that the image encoder is shown.

use super::{Alpha, Image};
use std::io;

/// Samples of a pixel. All are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
}

impl Layout {
    pub(super) fn samples(self) -> usize {
        match self {
            Layout::Grey => 1,
            Layout::GreyAlpha => 2,
            Layout::Rgb => 3,
            Layout::Rgba => 4,
        }
    }
}

/// A decoded picture: `[height, width, samples]`.
pub(super) struct Samples {
    pub width: u32,
    pub height: u32,
    pub layout: Layout,
    pub bytes: Vec<u8>,
}

impl Samples {
    /// Transparency as a grey picture, white where nothing is seen; `None` if all is opaque.
    pub(super) fn transparency(&self) -> Option<Image> {
        let samples = match self.layout {
            Layout::Grey | Layout::Rgb => return None,
            Layout::GreyAlpha | Layout::Rgba => self.layout.samples(),
        };
        let clear: Vec<u8> = self.bytes.chunks_exact(samples).map(|pixel| 255 - pixel[samples - 1]).collect();
        let has_clear = clear.iter().any(|clear| *clear > 0);
        let pixels = clear.into_iter().flat_map(|clear| [clear; 3]).collect();
        has_clear.then_some(Image { width: self.width as usize, height: self.height as usize, pixels })
    }

    /// The colours. What had three samples or more is changed in its place, so that nothing is held twice.
    pub(super) fn into_image(self, alpha: Alpha) -> io::Result<Image> {
        let (width, height) = (self.width as usize, self.height as usize);
        let pixels = width * height;
        if pixels == 0 || self.bytes.len() != pixels * self.layout.samples() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{width}x{height} without all its pixels")));
        }
        let colour = match alpha {
            // To the byte what Pillow's `alpha_composite` gives on an opaque background.
            Alpha::White => |colour: u8, alpha: u8| {
                let (colour, alpha) = (u32::from(colour), u32::from(alpha));
                ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
            },
            Alpha::Drop => |colour: u8, _: u8| colour,
        };
        let mut bytes = self.bytes;
        let pixels = match self.layout {
            Layout::Grey => bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
            Layout::GreyAlpha => bytes.as_chunks::<2>().0.iter().flat_map(|[grey, a]| [colour(*grey, *a); 3]).collect(),
            Layout::Rgb => bytes,
            Layout::Rgba => {
                for pixel in 0..pixels {
                    for k in 0..3 {
                        bytes[3 * pixel + k] = colour(bytes[4 * pixel + k], bytes[4 * pixel + 3]);
                    }
                }
                bytes.truncate(3 * pixels);
                bytes
            }
        };
        Ok(Image { width, height, pixels })
    }
}
