//! A baseline JPEG writer: colours of full resolution (4:4:4), the quantisation tables of the standard scaled as libjpeg
//! scales them, one pair of its Huffman tables for all colours. Source: ITU-T T.81, with its annexes F and K.

use super::metadata::Texts;
use super::{Image, exif, xmp};
use std::f32::consts::PI;
use std::io::{self, Write};

/// Most bytes of a segment behind its length.
pub(super) const MOST_SEGMENT: usize = 0xffff - 2;

/// The place of each coefficient of a block in the order in which they are stored.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Annex K.1, brightness, row by row.
const BRIGHTNESS: [u16; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
];

/// The first rows of annex K.1 for colour; everything else in it is 99.
const COLOUR: [[u16; 4]; 4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]];

/// Annex K.3: how many codes have each length from 1 on, of sizes of differences and of runs.
const DC_LENGTHS: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const AC_LENGTHS: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125];
/// The commonest runs in the order of their codes; all others follow in the order of their numbers.
const AC_FIRST: [u8; 37] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14,
    0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82,
];
/// Symbols of runs: the block is zero from here on, and sixteen zeros.
const END: u8 = 0x00;
const SIXTEEN: u8 = 0xf0;

/// The two application segments that hold the settings, without their lengths.
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

/// Writes the picture with application segments (APP1).
pub(super) fn encode(image: &Image, quality: u8, parts: &[Vec<u8>], out: &mut dyn Write) -> io::Result<()> {
    let whole = image.width.checked_mul(image.height).and_then(|n| n.checked_mul(3)) == Some(image.pixels.len());
    let side = |n: usize| u16::try_from(n).ok().filter(|n| whole && *n > 0);
    let (Some(width), Some(height)) = (side(image.width), side(image.height)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a JPEG has 1 to 65535 pixels a side"));
    };
    let tables = [brightness(quality), colour(quality)];
    let ac_symbols = ac_symbols();
    let dc_symbols: Vec<u8> = (0..12).collect();
    out.write_all(b"\xff\xd8")?;
    segment(out, 0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")?;
    for part in parts {
        segment(out, 0xe1, part)?;
    }
    for (number, table) in (0..).zip(&tables) {
        let stored: Vec<u8> = ZIGZAG.iter().map(|at| table[usize::from(*at)] as u8).collect();
        segment(out, 0xdb, &[&[number], stored.as_slice()].concat())?;
    }
    let [[h0, h1], [w0, w1]] = [height.to_be_bytes(), width.to_be_bytes()];
    segment(out, 0xc0, &[8, h0, h1, w0, w1, 3, 1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1])?;
    segment(out, 0xc4, &[&[0x00], &DC_LENGTHS[..], &dc_symbols].concat())?;
    segment(out, 0xc4, &[&[0x10], &AC_LENGTHS[..], &ac_symbols].concat())?;
    segment(out, 0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0])?;
    let [dc, ac] = [codes(&DC_LENGTHS, &dc_symbols), codes(&AC_LENGTHS, &ac_symbols)];
    let mut bits = Bits { out, held: 0, count: 0 };
    let cosines = cosines();
    let mut last = [0; 3];
    for top in (0..image.height).step_by(8) {
        for left in (0..image.width).step_by(8) {
            for (k, block) in blocks(image, left, top).iter().enumerate() {
                let stored = transformed(block, &cosines, &tables[k.min(1)]);
                entropy(&stored, &mut last[k], &dc, &ac, &mut bits)?;
            }
        }
    }
    bits.finish()?;
    out.write_all(b"\xff\xd9")
}

fn segment(out: &mut dyn Write, marker: u8, bytes: &[u8]) -> io::Result<()> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the settings are too long for a JPEG");
    let length = u16::try_from(bytes.len() + 2).map_err(|_| too_long())?;
    out.write_all(&[0xff, marker])?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(bytes)
}

/// An entry of a table at a quality from 1 to 100.
fn scaled(entry: u16, quality: u8) -> u16 {
    let quality = u32::from(quality.clamp(1, 100));
    let percent = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    ((u32::from(entry) * percent + 50) / 100).clamp(1, 255) as u16
}

fn brightness(quality: u8) -> [u16; 64] {
    BRIGHTNESS.map(|entry| scaled(entry, quality))
}

fn colour(quality: u8) -> [u16; 64] {
    std::array::from_fn(|at| {
        let entry = COLOUR.get(at / 8).and_then(|row| row.get(at % 8)).copied().unwrap_or(99);
        scaled(entry, quality)
    })
}

fn ac_symbols() -> Vec<u8> {
    let others = (0..=u8::MAX).filter(|symbol| (1..=10).contains(&(symbol & 15)) && !AC_FIRST.contains(symbol));
    AC_FIRST.into_iter().chain(others).collect()
}

/// Code and length of each symbol: codes of one length follow each other.
fn codes(lengths: &[u8; 16], symbols: &[u8]) -> [(u16, u8); 256] {
    let mut codes = [(0, 0); 256];
    let mut symbols = symbols.iter();
    let mut code = 0;
    for (length, count) in (1..).zip(lengths) {
        for symbol in symbols.by_ref().take(usize::from(*count)) {
            codes[usize::from(*symbol)] = (code, length);
            code += 1;
        }
        code <<= 1;
    }
    codes
}

/// Brightness and two colour differences of 8x8 pixels around 0. Beyond its edge the picture goes on as it ends.
fn blocks(image: &Image, left: usize, top: usize) -> [[f32; 64]; 3] {
    let pixel = |at: usize| {
        let (x, y) = ((left + at % 8).min(image.width - 1), (top + at / 8).min(image.height - 1));
        let start = 3 * (y * image.width + x);
        [0, 1, 2].map(|k| f32::from(image.pixels[start + k]))
    };
    let pixels: [[f32; 3]; 64] = std::array::from_fn(pixel);
    [
        pixels.map(|[r, g, b]| 0.299 * r + 0.587 * g + 0.114 * b - 128.0),
        pixels.map(|[r, g, b]| -0.168_735_9 * r - 0.331_264_1 * g + 0.5 * b),
        pixels.map(|[r, g, b]| 0.5 * r - 0.418_687_6 * g - 0.081_312_4 * b),
    ]
}

/// The cosine transform of eight values as a matrix.
fn cosines() -> [[f32; 8]; 8] {
    let scale = |u: usize| if u == 0 { 0.125f32.sqrt() } else { 0.5 };
    std::array::from_fn(|u| std::array::from_fn(|x| scale(u) * ((2 * x + 1) as f32 * u as f32 * PI / 16.0).cos()))
}

/// Coefficients of a block, divided by the table and rounded, in the order in which they are stored.
fn transformed(block: &[f32; 64], cosines: &[[f32; 8]; 8], table: &[u16; 64]) -> [i32; 64] {
    let mut rows = [0.0; 64];
    for (y, u) in (0..8).flat_map(|y| (0..8).map(move |u| (y, u))) {
        rows[8 * y + u] = (0..8).map(|x| block[8 * y + x] * cosines[u][x]).sum();
    }
    ZIGZAG.map(|at| {
        let at = usize::from(at);
        let sum: f32 = (0..8).map(|y| rows[8 * y + at % 8] * cosines[at / 8][y]).sum();
        (sum / f32::from(table[at])).round_ties_even() as i32
    })
}

type Codes = [(u16, u8); 256];

/// A block as runs of zeros and the numbers between them.
fn entropy(stored: &[i32; 64], last: &mut i32, dc: &Codes, ac: &Codes, bits: &mut Bits<'_>) -> io::Result<()> {
    let difference = stored[0] - *last;
    *last = stored[0];
    let size = size(difference);
    bits.code(dc[usize::from(size)])?;
    bits.number(difference, size)?;
    let mut zeros = 0;
    for value in &stored[1..] {
        if *value == 0 {
            zeros += 1;
            continue;
        }
        while zeros > 15 {
            bits.code(ac[usize::from(SIXTEEN)])?;
            zeros -= 16;
        }
        let size = self::size(*value);
        bits.code(ac[usize::from(zeros << 4 | size)])?;
        bits.number(*value, size)?;
        zeros = 0;
    }
    if zeros > 0 { bits.code(ac[usize::from(END)]) } else { Ok(()) }
}

/// Bits that a number needs without its sign.
fn size(value: i32) -> u8 {
    (32 - value.unsigned_abs().leading_zeros()) as u8
}

/// Bits on their way to bytes.
struct Bits<'a> {
    out: &'a mut dyn Write,
    held: u32,
    count: u8,
}

impl Bits<'_> {
    fn code(&mut self, (code, length): (u16, u8)) -> io::Result<()> {
        self.put(u32::from(code), length)
    }

    /// A negative number is stored as what it is more than the least of its size.
    fn number(&mut self, value: i32, size: u8) -> io::Result<()> {
        let value = if value < 0 { value - 1 } else { value };
        self.put(value as u32 & ((1 << size) - 1), size)
    }

    fn put(&mut self, value: u32, length: u8) -> io::Result<()> {
        self.held = self.held << length | value;
        self.count += length;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.held >> self.count) as u8;
            // After 255 a zero, so that it is no marker.
            self.out.write_all(if byte == 0xff { &[0xff, 0] } else { std::slice::from_ref(&byte) })?;
        }
        self.held &= (1 << self.count) - 1;
        Ok(())
    }

    /// Ones up to a whole byte.
    fn finish(mut self) -> io::Result<()> {
        self.put((1 << 7) - 1, 7)
    }
}
