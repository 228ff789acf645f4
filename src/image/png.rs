//! PNG in both directions.

use super::Image;
use super::metadata::{Metadata, Texts};
use super::read::{Decoded, Limit, Source, refused};
use super::samples::{Layout, Samples};
use png::{BitDepth, ColorType, Decoder, DecodingError, EncodingError, Transformations};
use std::io::{self, Write};

/// Keywords of the text chunks with settings.
const PARAMETERS: &str = "parameters";
const RECIPE: &str = "unclip";
/// The chunk of XMP.
const XMP: &str = "XML:com.adobe.xmp";
/// Where ImageMagick keeps EXIF, in hexadecimal digits.
const RAW_EXIF: &str = "Raw profile type exif";

fn failed(error: DecodingError) -> io::Error {
    match error {
        DecodingError::IoError(e) if e.kind() != io::ErrorKind::UnexpectedEof => e,
        other => refused(format!("a damaged PNG: {other}")),
    }
}

pub(super) fn decode(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut decoder = Decoder::new(source);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = (reader.info().width, reader.info().height);
    limit.check(width, height)?;
    let length = reader.output_buffer_size().ok_or_else(|| refused(format!("{width}x{height} is too large")))?;
    let mut bytes = vec![0; length];
    let layout = match reader.next_frame(&mut bytes).map_err(failed)?.color_type {
        ColorType::Grayscale | ColorType::Indexed => Layout::Grey,
        ColorType::GrayscaleAlpha => Layout::GreyAlpha,
        ColorType::Rgb => Layout::Rgb,
        ColorType::Rgba => Layout::Rgba,
    };
    // What comes behind the pixels may be missing, or damaged: they are complete.
    _ = reader.finish();
    let info = reader.info();
    if let Some(key) = &info.trns {
        key_as_pillow(info.color_type, info.bit_depth, key, &mut bytes);
    }
    let metadata = metadata(info);
    Ok(Decoded { samples: Samples { width, height, layout, bytes }, metadata })
}

fn metadata(info: &png::Info<'_>) -> Metadata {
    let text = |keyword| texts_of(info).find(|(key, _)| *key == keyword).and_then(|(_, text)| text.ok());
    let exif = info.exif_metadata.as_deref().map(<[u8]>::to_vec);
    Metadata {
        exif: exif.or_else(|| text(RAW_EXIF).and_then(|text| raw_profile(&text))),
        xmp: text(XMP).map(String::into_bytes),
    }
}

/// Sets transparency from the one colour that the file names for it. The format compares samples as they are stored, Pillow
/// what it made bytes of, with the lower byte of the number in the file: not the same for grey of 2 and 4 bits, and colours
/// of 16.
fn key_as_pillow(colour: ColorType, depth: BitDepth, key: &[u8], bytes: &mut [u8]) {
    let samples = match (colour, depth) {
        // Pillow cannot tell colours of 16-bit grey apart.
        (ColorType::Grayscale, BitDepth::Sixteen) => return,
        (ColorType::Grayscale, _) => 2,
        (ColorType::Rgb, _) => 4,
        _ => return,
    };
    let key: Vec<u8> = match depth {
        BitDepth::Sixteen => key.iter().skip(1).step_by(2).copied().collect(),
        BitDepth::One => key.iter().map(|bit| if *bit == 0 { 0 } else { 255 }).collect(),
        _ => key.to_vec(),
    };
    for pixel in bytes.chunks_exact_mut(samples) {
        pixel[samples - 1] = if pixel[..samples - 1] == key { 0 } else { 255 };
    }
}

/// The bytes of ImageMagick's profile: a blank line, its name, its length, and lines of digits.
fn raw_profile(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.lines().skip(3).flat_map(str::bytes).filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Keyword and text of all text chunks.
fn texts_of<'a>(info: &'a png::Info<'_>) -> impl Iterator<Item = (&'a str, Result<String, DecodingError>)> {
    let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.as_str(), Ok(t.text.clone())));
    let packed = info.compressed_latin1_text.iter().map(|t| (t.keyword.as_str(), t.get_text()));
    let utf8 = info.utf8_text.iter().map(|t| (t.keyword.as_str(), t.get_text()));
    latin.chain(packed).chain(utf8)
}

/// The settings, also from chunks behind the pixels, and from what converters keep of a JPEG or WebP.
pub(super) fn texts(source: &mut dyn Source) -> io::Result<Texts> {
    let mut reader = Decoder::new(source).read_info().map_err(failed)?;
    reader.finish().map_err(failed)?;
    let text = |keyword| {
        let found = texts_of(reader.info()).find(|(key, _)| *key == keyword);
        found.map(|(_, text)| text.map_err(failed)).transpose()
    };
    let kept = metadata(reader.info()).texts();
    Ok(Texts { parameters: text(PARAMETERS)?.or(kept.parameters), recipe: text(RECIPE)?.or(kept.recipe) })
}

/// The picture with its settings in text chunks.
pub(super) fn encode(image: &Image, out: impl Write, texts: &Texts) -> io::Result<()> {
    encode_texts(image, out, texts).map_err(io::Error::from)
}

fn encode_texts(image: &Image, out: impl Write, texts: &Texts) -> Result<(), EncodingError> {
    let side = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut encoder = png::Encoder::new(out, side(image.width)?, side(image.height)?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in [(PARAMETERS, &texts.parameters), (RECIPE, &texts.recipe)] {
        let Some(text) = text else { continue };
        // NUL ends a text in the format.
        let (keyword, text) = (keyword.to_owned(), text.replace('\0', "\u{fffd}"));
        // Latin-1 where it is enough, because every reader knows that chunk.
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.pixels)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::image::{Format, ReadOptions};
    use std::fs;
    use std::path::Path;

    fn gradient() -> Image {
        Image { width: 5, height: 3, pixels: (0..45).map(|i| i * 5).collect() }
    }

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn with_parameters(text: &str) -> Texts {
        Texts { parameters: Some(text.to_owned()), recipe: Some("猫".to_owned()) }
    }

    #[test]
    fn a_written_png_reads_back_with_its_texts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let image = gradient();
        for (text, is_latin) in [("é\nx", true), ("猫\0", false)] {
            image.write(&path, Format::Png, &with_parameters(text)).unwrap();
            assert_eq!(names(dir.path()), ["a.png"]);
            let file = std::io::BufReader::new(fs::File::open(&path).unwrap());
            let mut reader = Decoder::new(file).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let frame = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((frame.width, frame.height, frame.color_type), (5, 3, ColorType::Rgb));
            assert_eq!(pixels, image.pixels);
            let info = reader.info();
            assert_eq!(info.uncompressed_latin1_text.len(), usize::from(is_latin));
            let found: Vec<(&str, String)> = texts_of(info).map(|(key, text)| (key, text.unwrap())).collect();
            let text = text.replace('\0', "\u{fffd}");
            assert_eq!(found, [("parameters", text), ("unclip", "猫".to_owned())]);
        }
    }

    #[test]
    fn grey_of_sixteen_bits_is_read_by_its_upper_byte() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Sixteen);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0x00, 0xff, 0x12, 0x34, 0xff, 0x00]).unwrap();
        writer.finish().unwrap();
        let image = Image::decode(&bytes, &ReadOptions::default()).unwrap();
        assert_eq!((image.width, image.height), (3, 1));
        assert_eq!(image.pixels, [[0; 3], [0x12; 3], [0xff; 3]].concat());
    }

    #[test]
    fn a_failed_write_leaves_the_target_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, "old").unwrap();
        let mut short = gradient();
        short.pixels.pop();
        let texts = Texts::default();
        assert!(matches!(short.write(&path, Format::Png, &texts), Err(Error::Io { path: p, .. }) if p == path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.png"]);
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        assert!(gradient().write(&folder, Format::Png, &texts).is_err());
        assert_eq!(names(dir.path()).len(), 2);
    }
}
