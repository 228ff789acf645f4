//! From a file of any kind to an upright picture.
//!
//! A file is what its first bytes say, whatever its name is. Its size is compared with the limit before anything is
//! allocated for it. Files are read as a stream; of a picture no more is held at once than its samples, the colours made
//! of them, and what its decoder needs.

use super::metadata::{Metadata, Texts};
use super::samples::Samples;
use super::{Alpha, Image, Mask, png};
use crate::error::{Error, Result};
use crate::sniff::{self, Kind};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

/// How a picture is read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// What becomes of transparency; by default the picture is laid over white.
    pub alpha: Alpha,
    /// Most pixels of a picture, by default a hundred million. A small file may say that it holds any number.
    pub most_pixels: u64,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions { alpha: Alpha::default(), most_pixels: 100_000_000 }
    }
}

/// What decoders read from.
pub(super) trait Source: BufRead + Seek {}

impl<T: BufRead + Seek> Source for T {}

/// What a decoder gives.
pub(super) struct Decoded {
    pub samples: Samples,
    pub metadata: Metadata,
}

/// Most pixels, for decoders to ask before they allocate.
#[derive(Clone, Copy)]
pub(super) struct Limit(u64);

impl Limit {
    /// The number of pixels, if it is allowed.
    pub(super) fn check(self, width: u32, height: u32) -> io::Result<usize> {
        let pixels = u64::from(width) * u64::from(height);
        // Eight bytes a pixel are the most that a decoder holds.
        let fits = usize::try_from(pixels).ok().filter(|n| n.checked_mul(8).is_some());
        fits.filter(|_| pixels <= self.0).ok_or_else(|| {
            let megapixels = |pixels: u64| pixels as f64 / 1e6;
            refused(format!(
                "{width}x{height} is too large: {} megapixels, at most {}",
                megapixels(pixels),
                megapixels(self.0)
            ))
        })
    }

    /// The most bytes of decoded samples, and of a file: eight a pixel.
    pub(super) fn bytes(self) -> u64 {
        self.0.saturating_mul(8).max(1 << 20)
    }
}

/// Something about the file that no other reading of it would change.
pub(super) fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl Image {
    /// Reads a picture: PNG, with the feature `formats` also JPEG, WebP, GIF (its first frame), BMP, TIFF and QOI.
    ///
    /// It is upright, as diffusers' `load_image` gives it, with the colours that transformers' `CLIPImageProcessor` makes of
    /// it: a palette is looked up, grey becomes three equal colours, and 16 bits are cut to their upper 8. That holds of
    /// grey, too, where Pillow makes everything above 255 white. Colour profiles are not applied.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, is no picture of these kinds, is damaged, or is larger than
    /// [`ReadOptions::most_pixels`].
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Image> {
        let path = path.as_ref();
        let limit = Limit(options.most_pixels);
        let mut source = open(path, limit)?;
        decode(&mut *source, options).map_err(|e| Error::io(path, "read", e))
    }

    /// A picture from the bytes of a file; see [`Image::read`].
    ///
    /// # Errors
    /// [`Error::Request`] when the bytes are no picture, are damaged, or are larger than the options allow.
    pub fn decode(bytes: &[u8], options: &ReadOptions) -> Result<Image> {
        decode(&mut Cursor::new(bytes), options).map_err(|e| Error::request("image", e.to_string()))
    }
}

/// The settings that a picture file carries: PNG, with the feature `formats` also JPEG and WebP. None of other pictures.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, is no picture, or is damaged.
pub fn read_texts(path: impl AsRef<Path>) -> Result<Texts> {
    let path = path.as_ref();
    let broken = |e| Error::io(path, "read", e);
    let limit = Limit(u64::MAX);
    let mut source = open(path, limit)?;
    let first = beginning(&mut *source).map_err(broken)?;
    let texts = match Kind::of(&first) {
        Some(Kind::Png) => png::texts(&mut *source),
        #[cfg(feature = "formats")]
        Some(kind) if super::formats::reads(kind) => super::formats::texts(kind, &mut *source),
        _ => Err(not_a_picture(&first)),
    };
    texts.map_err(broken)
}

/// Whether the file is one that [`Image::read`] reads, by its first bytes.
pub fn is_picture(path: impl AsRef<Path>) -> bool {
    let first = File::open(path).map(BufReader::new).and_then(|mut file| beginning(&mut file));
    let kind = first.ok().and_then(|first| Kind::of(&first));
    kind.is_some_and(is_read)
}

fn is_read(kind: Kind) -> bool {
    #[cfg(feature = "formats")]
    if super::formats::reads(kind) {
        return true;
    }
    kind == Kind::Png
}

/// The file as a stream; what is none, a pipe for one, is read into memory first.
fn open(path: &Path, limit: Limit) -> Result<Box<dyn Source>> {
    let failed = |e| Error::io(path, "open", e);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        return Ok(Box::new(BufReader::new(file)));
    }
    let mut bytes = Vec::new();
    file.take(limit.bytes()).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    Ok(Box::new(Cursor::new(bytes)))
}

impl Mask {
    /// What is transparent in a picture file is made anew; `None` if the picture has no transparency.
    ///
    /// # Errors
    /// As for [`Image::read`].
    pub fn read_transparency(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Option<Mask>> {
        let path = path.as_ref();
        let mut source = open(path, Limit(options.most_pixels))?;
        transparency(&mut *source, options).map_err(|e| Error::io(path, "read", e))
    }

    /// The same from the bytes of a file.
    ///
    /// # Errors
    /// As for [`Image::decode`].
    pub fn decode_transparency(bytes: &[u8], options: &ReadOptions) -> Result<Option<Mask>> {
        transparency(&mut Cursor::new(bytes), options).map_err(|e| Error::request("image", e.to_string()))
    }
}

fn transparency(source: &mut dyn Source, options: &ReadOptions) -> io::Result<Option<Mask>> {
    let decoded = decode_samples(source, options)?;
    let orientation = decoded.metadata.orientation();
    Ok(decoded.samples.transparency().map(|image| Mask::from_image(&orientation.upright(image))))
}

fn decode(source: &mut dyn Source, options: &ReadOptions) -> io::Result<Image> {
    let decoded = decode_samples(source, options)?;
    let orientation = decoded.metadata.orientation();
    Ok(orientation.upright(decoded.samples.into_image(options.alpha)?))
}

fn decode_samples(source: &mut dyn Source, options: &ReadOptions) -> io::Result<Decoded> {
    let limit = Limit(options.most_pixels);
    let first = beginning(source)?;
    match Kind::of(&first) {
        Some(Kind::Png) => png::decode(source, limit),
        #[cfg(feature = "formats")]
        Some(kind) if super::formats::reads(kind) => super::formats::decode(kind, source, limit),
        _ => Err(not_a_picture(&first)),
    }
}

/// The first bytes; the source is then at its beginning again.
fn beginning(source: &mut dyn Source) -> io::Result<Vec<u8>> {
    let mut first = Vec::new();
    (&mut *source).take(sniff::FIRST_BYTES as u64).read_to_end(&mut first)?;
    source.rewind()?;
    Ok(first)
}

/// Names what is there instead of a picture, and what can be done about it.
fn not_a_picture(first: &[u8]) -> io::Error {
    let known = if cfg!(feature = "formats") { "PNG, JPEG, WebP, GIF, BMP, TIFF or QOI" } else { "PNG" };
    let expected = format!("a picture ({known})");
    let remedy = match Kind::of(first) {
        #[cfg(not(feature = "formats"))]
        Some(Kind::Jpeg | Kind::WebP | Kind::Gif | Kind::Bmp | Kind::Tiff | Kind::Qoi) => {
            "; a build with the feature formats reads it"
        }
        Some(
            Kind::Avif
            | Kind::Heic
            | Kind::JpegXl
            | Kind::Jpeg2000
            | Kind::Photoshop
            | Kind::OpenExr
            | Kind::Icon
            | Kind::Svg
            | Kind::Pdf,
        ) => "; convert it first, with ImageMagick for one: magick NAME picture.png",
        _ => "",
    };
    refused(match sniff::instead_of(&expected, first) {
        Some(found) => found + remedy,
        None => format!("expected {expected}"),
    })
}
