//! SentencePiece's compiled table of normalised characters, checked before it is used: `tokenizers` follows its offsets as
//! they are.
//!
//! Little-endian: the length of a trie in bytes, the trie, a double array of 32-bit units (Aoe 1989) in which leaves
//! hold offsets, and at those the replacements, each up to a zero byte.

use tokenizers::normalizers::Precompiled;

/// Bits of a unit below its offset.
const OFFSET: u32 = 10;

/// Reads a table from base64.
pub fn read(text: &str) -> Result<Precompiled, String> {
    let bytes = base64(text).ok_or("precompiled_charsmap: expected base64")?;
    check(&bytes).ok_or("precompiled_charsmap: damaged")?;
    Precompiled::from(&bytes).map_err(|error| format!("precompiled_charsmap: {error}"))
}

/// `None` if a search can leave the trie or the replacements.
fn check(bytes: &[u8]) -> Option<()> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (trie, replacements) = rest.split_at_checked(u32::from_le_bytes(*length) as usize / 4 * 4)?;
    let replacements = std::str::from_utf8(replacements).ok()?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let unit = |at: usize| units.get(at).copied();
    let offset = |unit: u32| ((unit >> OFFSET) as usize) << ((unit & (1 << 9)) >> 6);
    let mut seen = vec![false; units.len()];
    let mut nodes = vec![offset(unit(0)?)];
    while let Some(node) = nodes.pop() {
        if std::mem::replace(seen.get_mut(node)?, true) {
            continue;
        }
        for label in 1..=255usize {
            let child = unit(node ^ label)?;
            if child & (1 << 31 | 0xff) != label as u32 {
                continue;
            }
            let next = node ^ label ^ offset(child);
            if child >> 8 & 1 == 1 {
                let start = (unit(next)? & !(1 << 31)) as usize;
                let length = replacements.as_bytes().get(start..)?.iter().position(|byte| *byte == 0)?;
                replacements.get(start..start + length)?;
            }
            nodes.push(next);
        }
    }
    Some(())
}

/// The bytes of a text in base64 with its padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |byte: u8| {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(u32::from(value))
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.as_bytes().chunks(4) {
        let digits = group.iter().take_while(|byte| **byte != b'=').count();
        if group.len() != 4 || digits < 2 {
            return None;
        }
        let bits = group[..digits].iter().try_fold(0, |bits, &byte| Some(bits << 6 | value(byte)?))?;
        let bits = bits << (6 * (4 - digits));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that makes "a" of "A".
    fn table() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        // The root leads to 256; its child there to a leaf at 256 ^ 'A' ^ 1.
        units[0] = 256 << OFFSET;
        units[256 ^ 0x41] = 1 << OFFSET | 1 << 8 | 0x41;
        units[256 ^ 0x41 ^ 1] = 1 << 31;
        let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"a\0");
        bytes
    }

    #[test]
    fn a_whole_table_is_read_and_one_whose_offsets_lead_out_is_not() {
        let bytes = table();
        assert_eq!(check(&bytes), Some(()));
        assert_eq!(Precompiled::from(&bytes).unwrap().normalize_string("AbA"), "aba");
        for cut in [0, 3, 4, 1000, bytes.len() - 2] {
            assert_eq!(check(&bytes[..cut]), None, "{cut}");
        }
        // Wherever a bit flips, the table is refused or safe to use.
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if check(&damaged).is_some() {
                Precompiled::from(&damaged).unwrap().normalize_string("AbA\u{1}\u{7f}\u{ff}");
            }
        }
    }

    #[test]
    fn base64_has_whole_groups() {
        assert_eq!(base64("TWFu").unwrap(), b"Man");
        assert_eq!(base64("TWE=").unwrap(), b"Ma");
        assert_eq!(base64("TQ==").unwrap(), b"M");
        for damaged in ["TWF", "T===", "TW*u", "=WFu"] {
            assert_eq!(base64(damaged), None, "{damaged}");
        }
        assert!(read("AAAA").unwrap_err().contains("damaged"));
    }
}
