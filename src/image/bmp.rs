//! BMP: all that Windows has written since version 2, but for pictures that hold a JPEG or PNG.
//!
//! Rows are bottom up unless the height is negative, and padded to four bytes. Pixels of up to 8 bits are numbers in a
//! palette; of 16 and 32 bits masks say where the colours are. Runs (RLE) leave out what is of colour 0.

use super::metadata::Metadata;
use super::read::{Decoded, Limit, Source, refused};
use super::samples::{Layout, Samples};
use std::io::{self, Read, SeekFrom};

/// Kinds of compression.
const NONE: u32 = 0;
const RUNS_8: u32 = 1;
const RUNS_4: u32 = 2;
const MASKS: u32 = 3;
const MASKS_ALPHA: u32 = 6;

/// What the headers say.
struct Header {
    width: usize,
    height: usize,
    bits: usize,
    from_top: bool,
    compression: u32,
    /// Of red, green, blue and transparency.
    masks: [u32; 4],
    /// Red, green, blue.
    palette: Vec<[u8; 3]>,
}

pub(super) fn decode(source: &mut dyn Source, limit: Limit) -> io::Result<Decoded> {
    let header = header(source, limit)?;
    let pixels = header.width * header.height;
    let samples = |layout: Layout, bytes| Decoded {
        samples: Samples { width: header.width as u32, height: header.height as u32, layout, bytes },
        metadata: Metadata::default(),
    };
    if [RUNS_8, RUNS_4].contains(&header.compression) {
        let indices = runs(source, &header)?;
        return Ok(samples(Layout::Rgb, indices.into_iter().flat_map(|index| header.colour(index)).collect()));
    }
    let has_alpha = header.masks[3] != 0;
    let layout = if has_alpha { Layout::Rgba } else { Layout::Rgb };
    let length = layout.samples() * header.width;
    let mut bytes = vec![0; pixels * layout.samples()];
    let mut row = vec![0; (header.width * header.bits).div_ceil(32) * 4];
    for y in 0..header.height {
        source.read_exact(&mut row)?;
        let at = header.row(y) * length;
        for (x, pixel) in bytes[at..at + length].chunks_exact_mut(layout.samples()).enumerate() {
            pixel.copy_from_slice(&header.pixel(&row, x)[..layout.samples()]);
        }
    }
    Ok(samples(layout, bytes))
}

fn header(source: &mut dyn Source, limit: Limit) -> io::Result<Header> {
    let mut bytes = [0; 14 + 124];
    source.read_exact(&mut bytes[..18])?;
    let four = |bytes: &[u8], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let two = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (start, size) = (four(&bytes, 10), four(&bytes, 14) as usize);
    if ![12, 16, 40, 52, 56, 64, 108, 124].contains(&size) {
        return Err(refused(format!("a header of {size} bytes, of a kind that is not known")));
    }
    source.read_exact(&mut bytes[18..14 + size])?;
    let is_old = size == 12;
    let (width, height, bits) = match is_old {
        true => (i32::from(two(&bytes, 18)), i32::from(two(&bytes, 20)), two(&bytes, 24)),
        false => (four(&bytes, 18) as i32, four(&bytes, 22) as i32, two(&bytes, 28)),
    };
    let compression = if size >= 40 { four(&bytes, 30) } else { NONE };
    let masked = [MASKS, MASKS_ALPHA].contains(&compression);
    match (bits, compression) {
        (1 | 2 | 4 | 8 | 16 | 24 | 32, NONE) | (8, RUNS_8) | (4, RUNS_4) | (16 | 32, MASKS | MASKS_ALPHA) => {}
        _ => return Err(refused(format!("{bits} bits a pixel with compression {compression} are not known"))),
    }
    limit.check(u32::try_from(width).unwrap_or(u32::MAX), height.unsigned_abs())?;
    // Old headers have the masks behind them.
    if masked && size == 40 {
        let count = if compression == MASKS { 12 } else { 16 };
        source.read_exact(&mut bytes[54..54 + count])?;
    }
    let masks = match (bits, masked) {
        (_, true) => [0, 1, 2, 3].map(|k| four(&bytes, 54 + 4 * k)),
        (16, false) => [0x7c00, 0x03e0, 0x001f, 0],
        _ => [0x00ff_0000, 0xff00, 0xff, 0],
    };
    let named = if size >= 40 { four(&bytes, 46) as usize } else { 0 };
    let colours = if bits > 8 {
        0
    } else if named == 0 {
        1 << bits
    } else {
        named.min(256)
    };
    let mut palette = vec![0; colours * if is_old { 3 } else { 4 }];
    source.read_exact(&mut palette)?;
    let palette =
        palette.chunks_exact(if is_old { 3 } else { 4 }).map(|entry| [entry[2], entry[1], entry[0]]).collect();
    source.seek(SeekFrom::Start(u64::from(start)))?;
    let (width, rows) = (width as usize, height.unsigned_abs() as usize);
    Ok(Header { width, height: rows, bits: usize::from(bits), from_top: height < 0, compression, masks, palette })
}

impl Header {
    /// Where the stored row `y` belongs.
    fn row(&self, y: usize) -> usize {
        if self.from_top { y } else { self.height - 1 - y }
    }

    fn colour(&self, index: u8) -> [u8; 3] {
        self.palette.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Red, green, blue and transparency.
    fn pixel(&self, row: &[u8], x: usize) -> [u8; 4] {
        let at = x * self.bits / 8;
        match self.bits {
            24 => [row[at + 2], row[at + 1], row[at], 255],
            16 => self.masked(u32::from(u16::from_le_bytes([row[at], row[at + 1]]))),
            32 => self.masked(u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])),
            bits => {
                let shift = 8 - bits - x * bits % 8;
                let [red, green, blue] = self.colour(row[at] >> shift & (((1u16 << bits) - 1) as u8));
                [red, green, blue, 255]
            }
        }
    }

    fn masked(&self, pixel: u32) -> [u8; 4] {
        self.masks.map(|mask| match mask {
            0 => 0,
            mask => {
                let most = u64::from(mask >> mask.trailing_zeros());
                (u64::from((pixel & mask) >> mask.trailing_zeros()) * 255 / most) as u8
            }
        })
    }
}

/// Numbers of colours from pairs: a count and what is repeated, or 0 and a command.
fn runs(source: &mut dyn Source, header: &Header) -> io::Result<Vec<u8>> {
    let (width, height) = (header.width, header.height);
    let mut indices = vec![0; width * height];
    let [mut x, mut y] = [0, 0];
    let mut put = |x: usize, y: usize, index: u8| {
        if x < width && y < height {
            indices[header.row(y) * width + x] = index;
        }
    };
    let mut pairs = source.bytes();
    let mut next = || pairs.next().unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()));
    // Of runs of four bits the two halves of a byte alternate.
    let halves = |byte: u8, k: usize| if header.bits == 8 { byte } else { byte >> (4 - 4 * (k % 2)) & 15 };
    while y < height {
        match (next()?, next()?) {
            (0, 0) => [x, y] = [0, y + 1],
            (0, 1) => break,
            (0, 2) => [x, y] = [x + usize::from(next()?), y + usize::from(next()?)],
            (0, count) => {
                let count = usize::from(count);
                let length = (count * header.bits).div_ceil(8);
                for at in 0..length.next_multiple_of(2) {
                    let byte = next()?;
                    let pixels = 8 / header.bits;
                    (at * pixels..(at * pixels + pixels).min(count)).for_each(|k| put(x + k, y, halves(byte, k)));
                }
                x += count;
            }
            (count, byte) => {
                (0..usize::from(count)).for_each(|k| put(x + k, y, halves(byte, k)));
                x += usize::from(count);
            }
        }
    }
    Ok(indices)
}
