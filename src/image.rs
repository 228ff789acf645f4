//! Pictures as bytes, and PNG files that are either complete or not there.
//!
//! The models give `f32` in [-1, 1], channels last; an [`Image`] holds the `u8` that the original pipeline makes of
//! them. A PNG carries its settings in text chunks, so that a picture can be made again; what is read may be any PNG.

#[cfg(feature = "png")]
use std::io::{BufRead, BufReader, Cursor, Seek};
#[cfg(feature = "png")]
use std::path::Path;

use crate::error::{Error, Result};
#[cfg(feature = "png")]
use crate::output::Output;

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

    /// Refuses a picture without pixels, or with another number of them than its sides say.
    pub(crate) fn check(&self) -> Result<()> {
        let (width, height, found) = (self.width, self.height, self.pixels.len());
        if found > 0 && width.checked_mul(height).and_then(|n| n.checked_mul(3)) == Some(found) {
            return Ok(());
        }
        Err(Error::request(
            "image",
            format!("{width}x{height} with {found} bytes; it needs 3 for each pixel, and a pixel"),
        ))
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
        let columns = (1..).find(|c| c * c >= images.len()).expect("some square is large enough");
        let rows = images.len().div_ceil(columns);
        let [width, height] = [columns * first.width, rows * first.height];
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

#[cfg(feature = "png")]
/// Most pixels of a picture that is read: as many as Pillow opens before it suspects a bomb.
const MOST_PIXELS: u64 = 178_956_970;

/// The settings of a picture as image tools expect them, in a text chunk with the keyword `parameters`.
///
/// Prompt, a line `Negative prompt: ...`, and a line of `Key: value` pairs, which readers recognise by three or more
/// pairs; customary keys are Steps, Sampler, CFG scale, Seed, Size, Model and Version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What was asked for; may have several lines.
    pub prompt: String,
    /// What was asked not to be there; left out when empty.
    pub negative_prompt: String,
    /// Keys and values of the last line, in order.
    pub fields: Vec<(String, String)>,
}

impl Parameters {
    /// The text of the chunk. A value with a comma, a colon, a quote or a line break is written as a JSON string.
    pub fn text(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text += "\nNegative prompt: ";
            text += &self.negative_prompt;
        }
        let quoted = |value: &str| match value.contains([',', ':', '"', '\n', '\r']) {
            true => serde_json::Value::from(value).to_string(),
            false => value.to_string(),
        };
        let fields: Vec<String> = self.fields.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        if !fields.is_empty() {
            text += "\n";
            text += &fields.join(", ");
        }
        text
    }
}

#[cfg(feature = "png")]
impl Image {
    /// Reads a PNG of any kind, interlaced or not.
    ///
    /// Colours come out as Pillow's `convert("RGB")` has them: transparency is dropped and not blended with anything,
    /// a palette is looked up, grey becomes three equal colours, and 16 bits are cut to their upper 8. That holds of
    /// grey, too, where Pillow makes everything above 255 white.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, is no PNG, is damaged, or has more than 179 million pixels.
    pub fn read_png(path: impl AsRef<Path>) -> Result<Image> {
        let path = path.as_ref();
        decode(open(path)?).map_err(|e| Error::io(path, "read", e))
    }

    /// A picture from the bytes of a PNG; see [`Image::read_png`].
    ///
    /// # Errors
    /// [`Error::Request`] when the bytes are no PNG, are damaged, or have more than 179 million pixels.
    pub fn decode_png(bytes: &[u8]) -> Result<Image> {
        decode(Cursor::new(bytes)).map_err(|e| Error::request("image", e.to_string()))
    }

    /// Writes the picture to `path` as a PNG with text chunks of (keyword, text).
    ///
    /// The file is written beside `path`, flushed to the disk, and renamed over it.
    ///
    /// # Errors
    /// [`Error::Io`]; `path` is then as it was, and nothing is left beside it.
    pub fn write_png(&self, path: impl AsRef<Path>, texts: &[(&str, &str)]) -> Result<()> {
        let path = path.as_ref();
        let failed = |e: std::io::Error| Error::io(path, "write", e);
        let mut output = Output::create(path)?;
        let mut buffered = std::io::BufWriter::new(&mut output);
        self.encode_png(&mut buffered, texts).map_err(|e| failed(e.into()))?;
        buffered.into_inner().map_err(|e| failed(e.into_error()))?;
        output.finish()
    }

    /// The PNG as bytes go to `out`; see [`Image::write_png`].
    ///
    /// # Errors
    /// What `out` reports, and an error for a keyword that PNG does not allow (1 to 79 Latin-1 characters).
    pub fn encode_png(&self, out: impl std::io::Write, texts: &[(&str, &str)]) -> Result<(), png::EncodingError> {
        let side = |n: usize| u32::try_from(n).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput));
        let mut encoder = png::Encoder::new(out, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in texts {
            // NUL ends a text in the format.
            let (keyword, text) = (keyword.to_string(), text.replace('\0', "\u{fffd}"));
            // Latin-1 where it is enough, because every reader knows that chunk.
            if text.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword, text)?;
            } else {
                encoder.add_itxt_chunk(keyword, text)?;
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()
    }
}

#[cfg(feature = "png")]
fn open(path: &Path) -> Result<BufReader<std::fs::File>> {
    std::fs::File::open(path).map(BufReader::new).map_err(|e| Error::io(path, "open", e))
}

/// Something about the file that no other reading of it would change.
#[cfg(feature = "png")]
fn refused(why: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

#[cfg(feature = "png")]
fn failed(error: png::DecodingError) -> std::io::Error {
    match error {
        png::DecodingError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => e,
        other => refused(format!("expected a PNG picture: {other}")),
    }
}

#[cfg(feature = "png")]
fn decode(source: impl BufRead + Seek) -> std::io::Result<Image> {
    let mut decoder = png::Decoder::new(source);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = (reader.info().width, reader.info().height);
    let length = reader.output_buffer_size().filter(|_| u64::from(width) * u64::from(height) <= MOST_PIXELS);
    let length = length.ok_or_else(|| refused(format!("{width}x{height} is too large for a picture")))?;
    let mut samples = vec![0; length];
    let frame = reader.next_frame(&mut samples).map_err(failed)?;
    let colours = |pixel: &[u8]| match *pixel {
        [red, green, blue] | [red, green, blue, _] => [red, green, blue],
        _ => [pixel[0]; 3],
    };
    let pixels = samples.chunks_exact(frame.color_type.samples()).flat_map(colours).collect();
    Ok(Image { width: width as usize, height: height as usize, pixels })
}

/// The text chunks of a PNG as pairs of keyword and text, those behind the pixels included.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, is no PNG, or is damaged.
#[cfg(feature = "png")]
pub(crate) fn read_texts(path: &Path) -> Result<Vec<(String, String)>> {
    let broken = |e| Error::io(path, "read", failed(e));
    let mut reader = png::Decoder::new(open(path)?).read_info().map_err(broken)?;
    reader.finish().map_err(broken)?;
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|t| (&t.keyword, Ok(t.text.clone())));
    let packed = info.compressed_latin1_text.iter().map(|t| (&t.keyword, t.get_text()));
    let utf8 = info.utf8_text.iter().map(|t| (&t.keyword, t.get_text()));
    let all = latin.chain(packed).chain(utf8);
    all.map(|(keyword, text)| Ok((keyword.clone(), text.map_err(|e| Error::io(path, "read", e.into()))?))).collect()
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

    #[test]
    fn parameters_quote_what_would_end_a_value() {
        let pairs = [("Steps", "25"), ("Model", "a, b: \"c\"\nd"), ("Size", "256x256"), ("Note", "é")];
        let parameters = Parameters {
            prompt: "a cat\non a mat".into(),
            negative_prompt: "dog".into(),
            fields: pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let want = "a cat\non a mat\nNegative prompt: dog\n\
                    Steps: 25, Model: \"a, b: \\\"c\\\"\\nd\", Size: 256x256, Note: é";
        assert_eq!(parameters.text(), want);
        let bare = Parameters { prompt: "a cat".into(), ..Default::default() };
        assert_eq!(bare.text(), "a cat");
    }

    #[cfg(feature = "png")]
    mod png_files {
        use super::*;
        use std::fs;

        fn gradient() -> Image {
            Image { width: 5, height: 3, pixels: (0..45).map(|i| i * 5).collect() }
        }

        fn names(dir: &Path) -> Vec<String> {
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        }

        #[test]
        fn a_png_in_memory_is_read_and_what_is_none_is_refused() {
            let mut bytes = Vec::new();
            gradient().encode_png(&mut bytes, &[]).unwrap();
            assert_eq!(Image::decode_png(&bytes).unwrap(), gradient());
            let error = Image::decode_png(&bytes[..bytes.len() / 2]).unwrap_err();
            assert!(matches!(&error, Error::Request { what, .. } if what == "image"), "{error}");
            assert!(Image::decode_png(b"GIF89a").unwrap_err().to_string().contains("expected a PNG"));
        }

        #[test]
        fn a_written_png_reads_back_with_its_texts() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.png");
            fs::write(&path, "old").unwrap();
            let image = gradient();
            image.write_png(&path, &[("parameters", "café\0"), ("engine", "猫"), ("latin", "é\nx")]).unwrap();
            assert_eq!(names(dir.path()), ["a.png"]);

            let file = std::io::BufReader::new(fs::File::open(&path).unwrap());
            let mut reader = png::Decoder::new(file).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let frame = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((frame.width, frame.height, frame.color_type), (5, 3, png::ColorType::Rgb));
            assert_eq!(pixels, image.pixels);
            let info = reader.info();
            let latin = &info.uncompressed_latin1_text;
            assert_eq!((latin.len(), latin[0].keyword.as_str(), latin[0].text.as_str()), (1, "latin", "é\nx"));
            let utf8: Vec<_> = info.utf8_text.iter().map(|t| (t.keyword.as_str(), t.get_text().unwrap())).collect();
            assert_eq!(utf8, [("parameters", "café\u{fffd}".to_string()), ("engine", "猫".to_string())]);
        }

        #[test]
        fn grey_of_sixteen_bits_is_read_by_its_upper_byte() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("grey.png");
            let mut encoder = png::Encoder::new(fs::File::create(&path).unwrap(), 3, 1);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Sixteen);
            let mut writer = encoder.write_header().unwrap();
            writer.write_image_data(&[0x00, 0xff, 0x12, 0x34, 0xff, 0x00]).unwrap();
            writer.finish().unwrap();
            let image = Image::read_png(&path).unwrap();
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
            assert!(matches!(short.write_png(&path, &[]), Err(Error::Io { path: p, .. }) if p == path));
            assert!(gradient().write_png(&path, &[("", "no keyword")]).is_err());
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(names(dir.path()), ["a.png"]);

            let folder = dir.path().join("folder");
            fs::create_dir(&folder).unwrap();
            assert!(gradient().write_png(&folder, &[]).is_err());
            assert_eq!(names(dir.path()).len(), 2);
        }
    }
}
