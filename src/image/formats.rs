//! JPEG, WebP, GIF, TIFF and QOI to samples of bytes, each by the decoder that the crate `image` has for it. That crate itself is
//! not used: its management of colours, which nothing here needs, takes four times as long to build as the decoders.
//!
//! Colours follow Pillow's conversions. What is rare in pictures that people have is refused by name: CMYK and 12 bits in a
//! JPEG, floats and planes in a TIFF.

use super::bmp;
use super::metadata::{Metadata, Texts};
use super::read::{Decoded, Limit, Source, refused};
use super::samples::{Layout, Samples};
use crate::sniff::Kind;
use std::io;
use std::num::NonZeroU64;
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult, Limits};
use tiff::tags::Tag;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

type Decode = fn(&mut dyn Source, Limit) -> io::Result<Decoded>;

/// What is read, and by what.
const DECODERS: [(Kind, Decode); 6] = [
    (Kind::Jpeg, jpeg),
    (Kind::WebP, webp),
    (Kind::Gif, gif),
    (Kind::Bmp, bmp::decode),
    (Kind::Tiff, tiff),
    (Kind::Qoi, qoi),
];

/// Whether files of this kind are read here.
pub(super) fn reads(kind: Kind) -> bool {
    DECODERS.iter().any(|(known, _)| *known == kind)
}

/// Decodes a picture of a kind that [`reads`] knows.
pub(super) fn decode(kind: Kind, source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let (_, decode) = DECODERS.iter().find(|(known, _)| *known == kind).expect("a kind that is read");
    // Decoders name what they met, not what they are.
    decode(source, limit).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => refused(format!("{kind}, cut short: {e}")),
        io::ErrorKind::InvalidData => refused(format!("{kind}: {e}")),
        _ => e,
    })
}

/// The settings in a JPEG or WebP; in files of other kinds there are none.
pub(super) fn texts(kind: Kind, source: &mut dyn Source) -> io::Result<Texts> {
    let metadata = match kind {
        Kind::Jpeg => jpeg_metadata(&jpeg_headers(source)?),
        Kind::WebP => webp_metadata(&mut image_webp::WebPDecoder::new(source).map_err(broken)?),
        _ => Metadata::default(),
    };
    Ok(metadata.texts())
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    refused(error.to_string())
}

fn options() -> DecoderOptions {
    let most = usize::from(u16::MAX);
    DecoderOptions::default().set_max_width(most).set_max_height(most)
}

type JpegDecoder<'a> = zune_jpeg::JpegDecoder<&'a mut dyn Source>;

fn jpeg_headers(source: &mut dyn Source) -> io::Result<JpegDecoder<'_>> {
    let mut decoder = JpegDecoder::new_with_options(source, options());
    decoder.decode_headers().map_err(broken)?;
    Ok(decoder)
}

fn jpeg_metadata(decoder: &JpegDecoder<'_>) -> Metadata {
    Metadata { exif: decoder.exif().cloned(), xmp: decoder.xmp().cloned() }
}

fn jpeg(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut decoder = jpeg_headers(source)?;
    let info = decoder.info().ok_or_else(|| refused("no picture in it"))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    limit.check(width, height)?;
    let (colours, layout) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => (ColorSpace::Luma, Layout::Grey),
        Some(ColorSpace::RGB | ColorSpace::YCbCr) => (ColorSpace::RGB, Layout::Rgb),
        _ => return Err(refused("its colours are those of print (CMYK); convert it to RGB first")),
    };
    // Strict where the pixels are: of a file that is cut short the rest would be grey.
    decoder.set_options(options().set_strict_mode(true).jpeg_set_out_colorspace(colours));
    let bytes = decoder.decode().map_err(broken)?;
    Ok(Decoded { samples: Samples { width, height, layout, bytes }, metadata: jpeg_metadata(&decoder) })
}

type WebpDecoder<'a> = image_webp::WebPDecoder<&'a mut dyn Source>;

/// Damaged blocks are as good as none.
fn webp_metadata(decoder: &mut WebpDecoder<'_>) -> Metadata {
    Metadata { exif: decoder.exif_metadata().ok().flatten(), xmp: decoder.xmp_metadata().ok().flatten() }
}

fn webp(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut decoder = image_webp::WebPDecoder::new(source).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    limit.check(width, height)?;
    decoder.set_memory_limit(usize::try_from(limit.bytes()).unwrap_or(usize::MAX));
    let layout = if decoder.has_alpha() { Layout::Rgba } else { Layout::Rgb };
    let length = decoder.output_buffer_size().ok_or_else(|| refused("too large"))?;
    let mut bytes = vec![0; length];
    decoder.read_image(&mut bytes).map_err(broken)?;
    let metadata = webp_metadata(&mut decoder);
    Ok(Decoded { samples: Samples { width, height, layout, bytes }, metadata })
}

/// The first frame on its canvas. What it leaves free is transparent, or of the palette's first colour.
fn gif(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options
        .set_memory_limit(NonZeroU64::new(limit.bytes()).map_or(gif::MemoryLimit::Unlimited, gif::MemoryLimit::Bytes));
    let mut decoder = options.read_info(source).map_err(broken)?;
    let canvas = [decoder.width(), decoder.height()];
    let frame = decoder.next_frame_info().map_err(broken)?.cloned().ok_or_else(|| refused("no picture in it"))?;
    let [left, top, columns, rows] = [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    // A frame may reach beyond the canvas, which then grows.
    let (width, height) = (u32::from(canvas[0]).max(left + columns), u32::from(canvas[1]).max(top + rows));
    limit.check(width, height)?;
    let mut indices = vec![0; columns as usize * rows as usize];
    decoder.read_into_buffer(&mut indices).map_err(broken)?;
    let palette = match &frame.palette {
        Some(palette) => palette.as_slice(),
        None => decoder.global_palette().ok_or_else(|| refused("no palette in it"))?,
    };
    let colour = |index: u8| {
        let at = 3 * usize::from(index);
        let rgb = palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]]);
        [rgb[0], rgb[1], rgb[2], if frame.transparent == Some(index) { 0 } else { 255 }]
    };
    let free = colour(frame.transparent.unwrap_or(0));
    let mut bytes = free.repeat(width as usize * height as usize);
    for (y, row) in indices.chunks_exact(columns.max(1) as usize).enumerate() {
        let start = 4 * ((top as usize + y) * width as usize + left as usize);
        for (pixel, index) in bytes[start..].chunks_exact_mut(4).zip(row) {
            pixel.copy_from_slice(&colour(*index));
        }
    }
    let metadata = Metadata { exif: None, xmp: decoder.xmp_metadata().map(<[u8]>::to_vec) };
    Ok(Decoded { samples: Samples { width, height, layout: Layout::Rgba, bytes }, metadata })
}

fn qoi(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut decoder = qoi::Decoder::from_stream(source).map_err(broken)?;
    let header = *decoder.header();
    limit.check(header.width, header.height)?;
    let layout = if header.channels.is_rgba() { Layout::Rgba } else { Layout::Rgb };
    let bytes = decoder.decode_to_vec().map_err(broken)?;
    let samples = Samples { width: header.width, height: header.height, layout, bytes };
    Ok(Decoded { samples, metadata: Metadata::default() })
}

/// The first picture of a TIFF.
fn tiff(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = usize::try_from(limit.bytes()).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    let mut decoder = TiffDecoder::new(source).map_err(broken)?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(broken)?;
    let pixels = limit.check(width, height)?;
    const PALETTE: u16 = 3;
    if decoder.find_tag_unsigned(Tag::PhotometricInterpretation).map_err(broken)? == Some(PALETTE) {
        return Err(refused("its colours are a palette; convert it to RGB first"));
    }
    let colours = decoder.colortype().map_err(broken)?;
    // The decoder turns brightness and colour differences into colours only where JPEG compressed them.
    const JPEG: u16 = 7;
    let compression: Option<u16> = decoder.find_tag_unsigned(Tag::Compression).map_err(broken)?;
    if matches!(colours, tiff::ColorType::YCbCr(_)) && compression != Some(JPEG) {
        return Err(refused("its colours are YCbCr without JPEG; convert it to RGB first"));
    }
    if decoder.image_buffer_layout().map_err(broken)?.planes != 1 {
        return Err(refused("its colours are stored in planes; convert it first"));
    }
    let mut samples = DecodingResult::U8(Vec::new());
    decoder.read_image_to_buffer(&mut samples).map_err(broken)?;
    let mut bytes: Vec<u8> = match samples {
        DecodingResult::U8(bytes) => bytes,
        DecodingResult::U16(words) => words.into_iter().map(|word| (word >> 8) as u8).collect(),
        _ => return Err(refused("its samples are neither of 8 nor of 16 bits; convert it first")),
    };
    use tiff::ColorType::{CMYK, Gray, GrayA, Multiband, RGB, RGBA, YCbCr};
    let layout = match colours {
        Gray(1 | 2 | 4) => {
            bytes = unpacked(&bytes, width as usize, colours.bit_depth());
            Layout::Grey
        }
        Gray(8 | 16) => Layout::Grey,
        GrayA(8 | 16) | Multiband { bit_depth: 8 | 16, num_samples: 2 } => Layout::GreyAlpha,
        RGB(8 | 16) | YCbCr(8) => Layout::Rgb,
        RGBA(8 | 16) => Layout::Rgba,
        CMYK(8 | 16) => {
            bytes = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|[c, m, y, k]| [c, m, y].map(|ink| without(*ink, *k)))
                .collect();
            Layout::Rgb
        }
        other => return Err(refused(format!("its colours are {other:?}; convert it to RGB first"))),
    };
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).ok().flatten().unwrap_or_default();
    settle_alpha(layout, extra.first().copied(), &mut bytes);
    bytes.truncate(pixels * layout.samples());
    let number = decoder.find_tag_unsigned::<u32>(Tag::Orientation).ok().flatten();
    let metadata = Metadata { exif: None, xmp: decoder.get_tag_u8_vec(Tag::Unknown(700)).ok() };
    let metadata = match number {
        Some(number) => Metadata { xmp: Some(format!("tiff:Orientation=\"{number}\"").into_bytes()), ..metadata },
        None => metadata,
    };
    Ok(Decoded { samples: Samples { width, height, layout, bytes }, metadata })
}

/// What is left of white without ink and black.
fn without(ink: u8, black: u8) -> u8 {
    let light = 255 - u32::from(black);
    // Rounded as Pillow does it.
    let taken = u32::from(ink) * light + 128;
    (light - (((taken >> 8) + taken) >> 8).min(light)) as u8
}

/// A byte for each grey of rows that are packed to whole bytes.
fn unpacked(bytes: &[u8], width: usize, depth: u8) -> Vec<u8> {
    let most = (1u16 << depth) - 1;
    let per_byte = usize::from(8 / depth);
    let grey =
        |row: &[u8], x: usize| u16::from(row[x / per_byte]) >> (8 - usize::from(depth) * (x % per_byte + 1)) & most;
    let row = |row| (0..width).map(move |x| (grey(row, x) * (255 / most)) as u8);
    bytes.chunks_exact(width.div_ceil(per_byte).max(1)).flat_map(row).collect()
}

/// The meaning of a fourth sample: 0 says nothing of transparency, and 1 that the colours were multiplied by it.
fn settle_alpha(layout: Layout, meaning: Option<u16>, bytes: &mut [u8]) {
    let samples = match layout {
        Layout::GreyAlpha | Layout::Rgba => layout.samples(),
        Layout::Grey | Layout::Rgb => return,
    };
    for pixel in bytes.chunks_exact_mut(samples) {
        let (colours, alpha) = pixel.split_at_mut(samples - 1);
        match (meaning, alpha[0]) {
            (Some(0), _) => alpha[0] = 255,
            (Some(1), 1..) => {
                let whole = |colour: u8| (255 * u32::from(colour) / u32::from(alpha[0])).min(255) as u8;
                colours.iter_mut().for_each(|colour| *colour = whole(*colour));
            }
            _ => {}
        }
    }
}
