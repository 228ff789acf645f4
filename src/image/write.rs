//! Which format a name stands for, and writing it.

use super::metadata::Texts;
use super::{Image, png};
use crate::error::{Error, Result};
use crate::output::Output;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A format in which pictures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Without loss.
    Png,
    /// With loss; colours have the full resolution.
    #[cfg(feature = "formats")]
    Jpeg {
        /// 1 to 100; [`Format::QUALITY`] where nothing is said.
        quality: u8,
    },
    /// Without loss.
    #[cfg(feature = "formats")]
    WebP,
}

impl Format {
    /// The quality of a JPEG of which nothing else is said.
    #[cfg(feature = "formats")]
    pub const QUALITY: u8 = 95;

    /// All formats.
    #[cfg(feature = "formats")]
    pub const ALL: [Format; 3] = [Format::Png, Format::Jpeg { quality: Format::QUALITY }, Format::WebP];
    /// All formats.
    #[cfg(not(feature = "formats"))]
    pub const ALL: [Format; 1] = [Format::Png];

    /// The endings of its files, the usual one first.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Format::Png => &["png"],
            #[cfg(feature = "formats")]
            Format::Jpeg { .. } => &["jpg", "jpeg", "jpe", "jfif"],
            #[cfg(feature = "formats")]
            Format::WebP => &["webp"],
        }
    }

    /// The format that a file's name ends in, in letters of any size.
    pub fn of(path: impl AsRef<Path>) -> Option<Format> {
        // A name may be nothing but an ending, and need not be UTF-8 before it.
        let name = path.as_ref().file_name()?.as_encoded_bytes();
        let ending = name.rsplit(|byte| *byte == b'.').next().filter(|ending| ending.len() < name.len())?;
        let ends = |format: &Format| format.endings().iter().any(|known| ending.eq_ignore_ascii_case(known.as_bytes()));
        Format::ALL.into_iter().find(ends)
    }

    /// Says before the long work whether a picture of this size with these texts can be written.
    ///
    /// # Errors
    /// [`Error::Request`] when a JPEG or WebP has no room for them.
    pub fn check(self, width: usize, height: usize, texts: &Texts) -> Result<()> {
        #[cfg(feature = "formats")]
        {
            let most = match self {
                Format::Png => return Ok(()),
                Format::Jpeg { .. } => usize::from(u16::MAX),
                Format::WebP => 1 << 14,
            };
            let name = self.endings()[0];
            if width.max(height) > most {
                return Err(Error::request("format", format!("{name} has at most {most} pixels a side; write png")));
            }
            if let Format::Jpeg { .. } = self {
                let parts = super::jpeg::segments(texts).map_err(|e| Error::request("format", e.to_string()))?;
                if parts.iter().any(|part| part.len() > super::jpeg::MOST_SEGMENT) {
                    let reason = "the settings are too long for a JPEG (about 32000 characters); write png or webp";
                    return Err(Error::request("format", reason));
                }
            }
        }
        _ = (width, height, texts);
        Ok(())
    }
}

impl Image {
    /// Writes the picture to `path` with what it carries.
    ///
    /// The file is written beside `path`, flushed to the disk, and renamed over it.
    ///
    /// # Errors
    /// [`Error::Io`]; `path` is then as it was, and nothing is left beside it.
    pub fn write(&self, path: impl AsRef<Path>, format: Format, texts: &Texts) -> Result<()> {
        let path = path.as_ref();
        let failed = |e: io::Error| Error::io(path, "write", e);
        let mut output = Output::create(path)?;
        let mut buffered = BufWriter::new(&mut output);
        self.encode(&mut buffered, format, texts).map_err(failed)?;
        buffered.into_inner().map_err(|e| failed(e.into_error()))?;
        output.finish()
    }

    /// The file as bytes go to `out`; see [`Image::write`].
    ///
    /// # Errors
    /// What `out` reports, and a picture that is too large for the format.
    pub fn encode(&self, mut out: impl Write, format: Format, texts: &Texts) -> io::Result<()> {
        match format {
            Format::Png => png::encode(self, &mut out, texts),
            #[cfg(feature = "formats")]
            Format::Jpeg { quality } => super::jpeg::encode(self, quality, super::jpeg::segments(texts)?, &mut out),
            #[cfg(feature = "formats")]
            Format::WebP => webp(self, texts, &mut out),
        }
    }
}

/// Without loss: pictures as the model made them.
#[cfg(feature = "formats")]
fn webp(image: &Image, texts: &Texts, out: &mut dyn Write) -> io::Result<()> {
    use super::{exif, xmp};
    let whole = image.is_whole();
    let side = |n: usize| u32::try_from(n).ok().filter(|n| whole && (1..=1 << 14).contains(n));
    let (Some(width), Some(height)) = (side(image.width), side(image.height)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a WebP has 1 to 16384 pixels a side"));
    };
    let mut encoder = image_webp::WebPEncoder::new(out);
    if let Some(text) = &texts.parameters {
        encoder.set_exif_metadata(exif::with_user_comment(text)?);
    }
    if let Some(json) = &texts.recipe {
        encoder.set_xmp_metadata(xmp::with_recipe(json).into_bytes());
    }
    encoder.encode(&image.pixels, width, height, image_webp::ColorType::Rgb8).map_err(|e| match e {
        image_webp::EncodingError::IoError(e) => e,
        other => io::Error::other(other.to_string()),
    })
}
