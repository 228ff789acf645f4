//! JPEG files: baseline, with colours of full resolution (4:4:4), and settings in application segments.

use super::metadata::Texts;
use super::{Image, exif, xmp};
use jpeg_encoder::{ColorType, Encoder, EncodingError, SamplingFactor};
use std::io::{self, Write};

/// Most bytes of a segment behind its length.
pub(super) const MOST_SEGMENT: usize = 0xffff - 2;

/// The application segments (APP1) that hold the settings, without their lengths.
pub(super) fn segments(texts: &Texts) -> io::Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    if let Some(text) = &texts.parameters {
        parts.push([b"Exif\0\0", exif::with_user_comment(text)?.as_slice()].concat());
    }
    if let Some(json) = &texts.recipe {
        parts.push([b"http://ns.adobe.com/xap/1.0/\0", xmp::with_recipe(json).as_bytes()].concat());
    }
    Ok(parts)
}

/// Writes the picture with application segments.
pub(super) fn encode(image: &Image, quality: u8, parts: Vec<Vec<u8>>, out: &mut dyn Write) -> io::Result<()> {
    let whole = image.is_whole();
    let side = |n: usize| u16::try_from(n).ok().filter(|n| whole && *n > 0);
    let (Some(width), Some(height)) = (side(image.width), side(image.height)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a JPEG has 1 to 65535 pixels a side"));
    };
    let failed = |error| match error {
        EncodingError::IoError(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidInput, other.to_string()),
    };
    let mut encoder = Encoder::new(out, quality);
    // Half the resolution, which the encoder would choose below 90, blurs the coloured edges of small pictures.
    encoder.set_sampling_factor(SamplingFactor::R_4_4_4);
    parts.into_iter().try_for_each(|part| encoder.add_app_segment(1, part)).map_err(failed)?;
    encoder.encode(&image.pixels, width, height, ColorType::Rgb).map_err(failed)
}
