//! EXIF: a TIFF directory without pixels, of which two tags matter here.

#[cfg(feature = "formats")]
use std::io;

/// Tags: in the first directory, and in that of the camera.
const ORIENTATION: u16 = 0x0112;
const CAMERA: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
/// Before EXIF in a JPEG, and out of habit elsewhere.
const PREFIX: &[u8] = b"Exif\0\0";
/// Says how a comment is encoded.
const UNICODE: &[u8; 8] = b"UNICODE\0";
const ASCII: &[u8; 8] = b"ASCII\0\0\0";

/// The bytes of an EXIF block.
pub(super) struct Exif<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

/// A value of a directory.
#[derive(Clone, Copy)]
struct Entry {
    kind: u16,
    count: u32,
    /// Where its four bytes are: the value, or where that is.
    at: usize,
}

impl<'a> Exif<'a> {
    /// `None` where the block does not begin as TIFF does.
    pub(super) fn new(mut bytes: &'a [u8]) -> Option<Exif<'a>> {
        while let Some(rest) = bytes.strip_prefix(PREFIX) {
            bytes = rest;
        }
        let is_little = match bytes.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        Some(Exif { bytes, is_little })
    }

    /// The number of tag 0x0112.
    pub(super) fn orientation(&self) -> Option<u32> {
        self.number(self.entry(self.u32(4)?, ORIENTATION)?)
    }

    /// Tag 0x9286 as text.
    pub(super) fn user_comment(&self) -> Option<String> {
        let camera = self.number(self.entry(self.u32(4)?, CAMERA)?)?;
        let entry = self.entry(camera, USER_COMMENT)?;
        let start = if entry.count > 4 { self.u32(entry.at)? as usize } else { entry.at };
        let bytes = self.bytes.get(start..start.checked_add(entry.count as usize)?)?;
        let (code, text) = bytes.split_first_chunk::<8>()?;
        match code {
            UNICODE => Some(utf16(text)),
            ASCII | [0, 0, 0, 0, 0, 0, 0, 0] => Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()),
            _ => None,
        }
    }

    fn entry(&self, directory: u32, tag: u16) -> Option<Entry> {
        let start = directory as usize;
        let first = start.checked_add(2)?;
        let mut places = (0..usize::from(self.u16(start)?)).map(|k| first.saturating_add(12 * k));
        let at = places.find(|at| self.u16(*at) == Some(tag))?;
        Some(Entry { kind: self.u16(at + 2)?, count: self.u32(at + 4)?, at: at + 8 })
    }

    /// The first number of a value of bytes, shorts or longs.
    fn number(&self, entry: Entry) -> Option<u32> {
        match (entry.kind, entry.count) {
            (_, 0) => None,
            (1 | 7, _) => self.bytes.get(entry.at).copied().map(u32::from),
            (3, _) => self.u16(entry.at).map(u32::from),
            (4, _) => self.u32(entry.at),
            _ => None,
        }
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }
}

/// UTF-16 with its high bytes first, as web interfaces write it whatever the block's own order is; some programs follow
/// that. Settings are mostly Latin, which shows in the zeros.
fn utf16(bytes: &[u8]) -> String {
    let pairs = bytes.as_chunks::<2>().0;
    let is_little = 2 * pairs.iter().filter(|pair| pair[1] == 0).count() > pairs.len();
    let decode = if is_little { u16::from_le_bytes } else { u16::from_be_bytes };
    let units = pairs.iter().map(|pair| decode(*pair));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// A block that holds a comment and nothing else, without the prefix of a JPEG.
///
/// # Errors
/// The comment is longer than four gigabytes.
#[cfg(feature = "formats")]
pub(super) fn with_user_comment(text: &str) -> io::Result<Vec<u8>> {
    let comment: Vec<u8> = UNICODE.iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let length = u32::try_from(comment.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut block = b"MM\0*\0\0\0\x08".to_vec();
    // One directory behind the other, each of one entry and followed by none.
    let mut directory = |tag: u16, kind: u16, count: u32, value: u32| {
        block.extend([0, 1]);
        block.extend(tag.to_be_bytes());
        block.extend(kind.to_be_bytes());
        block.extend(count.to_be_bytes());
        block.extend(value.to_be_bytes());
        block.extend([0; 4]);
    };
    directory(CAMERA, 4, 1, 26);
    directory(USER_COMMENT, 7, length, 44);
    block.extend(comment);
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One directory with one entry.
    fn block(order: &[u8; 4], tag: u16, kind: u16, value: u32) -> Vec<u8> {
        let is_little = order[0] == b'I';
        let two = |n: u16| if is_little { n.to_le_bytes() } else { n.to_be_bytes() };
        let four = |n: u32| if is_little { n.to_le_bytes() } else { n.to_be_bytes() };
        let value = if kind == 3 { [two(value as u16), [0; 2]].concat() } else { four(value).to_vec() };
        [&order[..], &four(8), &two(1), &two(tag), &two(kind), &four(1), &value, &[0; 4]].concat()
    }

    #[test]
    fn orientations_of_both_byte_orders_and_with_a_prefix_are_read() {
        for (order, kind) in [(b"II*\0", 3), (b"MM\0*", 3), (b"II*\0", 4), (b"MM\0*", 4)] {
            let bytes = block(order, ORIENTATION, kind, 6);
            assert_eq!(Exif::new(&bytes).unwrap().orientation(), Some(6));
            let prefixed = [PREFIX, PREFIX, &bytes].concat();
            assert_eq!(Exif::new(&prefixed).unwrap().orientation(), Some(6));
            assert_eq!(Exif::new(&block(order, 0x0110, kind, 6)).unwrap().orientation(), None);
            for length in 0..bytes.len() {
                _ = Exif::new(&bytes[..length]).map(|exif| (exif.orientation(), exif.user_comment()));
            }
        }
    }

    #[cfg(feature = "formats")]
    #[test]
    fn a_comment_comes_back_in_any_script() {
        for text in ["", "a cat", "猫が一匹", "naïve 🦊\nSteps: 2"] {
            let bytes = with_user_comment(text).unwrap();
            assert_eq!(Exif::new(&bytes).unwrap().user_comment().as_deref(), Some(text));
        }
        let mut little = with_user_comment("a cat").unwrap();
        let start = little.len() - 10;
        little[start..].chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        assert_eq!(Exif::new(&little).unwrap().user_comment().as_deref(), Some("a cat"));
    }
}
