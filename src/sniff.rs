//! What a file is, by its first bytes.
//!
//! A file is often not what its name says: a download that brought a web page, a pointer of Git LFS in place of the
//! file, weights or a picture in another format. Whoever reads a file and finds it damaged asks here, so that the error
//! names what is there and what to do. Nothing is decoded: [`Kind::of`] compares signatures.
//!
//! A signature of four bytes may be a chance: ask only after the expected format was not found.

use std::fmt;

/// Bytes from the start of a file that are enough for [`Kind::of`].
pub const FIRST_BYTES: usize = 512;
/// Longest piece of a text that [`describe`] quotes, in characters.
const QUOTED: usize = 60;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the meaning
#[non_exhaustive]
pub enum Kind {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Qoi,
    Avif,
    Heic,
    JpegXl,
    Jpeg2000,
    Photoshop,
    OpenExr,
    Icon,
    Svg,
    Video,
    Pdf,
    LfsPointer,
    Html,
    Xml,
    Json,
    TorchZip,
    Zip,
    Pickle,
    Gguf,
    Hdf5,
    NumPy,
    Gzip,
    SevenZip,
    Empty,
    /// Text of no kind that is known.
    Text,
}

/// A kind, and bytes with their offsets, all of which must be there.
type Signature = (Kind, &'static [(usize, &'static [u8])]);

const SIGNATURES: &[Signature] = &[
    (Kind::Png, &[(0, b"\x89PNG\r\n\x1a\n")]),
    (Kind::Jpeg, &[(0, b"\xff\xd8\xff")]),
    (Kind::WebP, &[(0, b"RIFF"), (8, b"WEBP")]),
    (Kind::Gif, &[(0, b"GIF87a")]),
    (Kind::Gif, &[(0, b"GIF89a")]),
    // Two reserved fields of zeros follow the length.
    (Kind::Bmp, &[(0, b"BM"), (6, &[0; 4])]),
    (Kind::Tiff, &[(0, b"II*\0")]),
    (Kind::Tiff, &[(0, b"MM\0*")]),
    (Kind::Tiff, &[(0, b"II+\0")]),
    (Kind::Tiff, &[(0, b"MM\0+")]),
    (Kind::Qoi, &[(0, b"qoif")]),
    (Kind::JpegXl, &[(0, b"\xff\x0a")]),
    (Kind::JpegXl, &[(0, b"\0\0\0\x0cJXL ")]),
    (Kind::Jpeg2000, &[(0, b"\0\0\0\x0cjP  ")]),
    (Kind::Jpeg2000, &[(0, b"\xff\x4f\xff\x51")]),
    (Kind::Photoshop, &[(0, b"8BPS")]),
    (Kind::OpenExr, &[(0, b"\x76\x2f\x31\x01")]),
    (Kind::Icon, &[(0, &[0, 0, 1, 0])]),
    (Kind::Pdf, &[(0, b"%PDF-")]),
    (Kind::Video, &[(0, b"\x1a\x45\xdf\xa3")]),
    (Kind::LfsPointer, &[(0, b"version https://git-lfs.github.com/spec/")]),
    (Kind::LfsPointer, &[(0, b"version https://hawser.github.com/spec/")]),
    (Kind::Zip, &[(0, b"PK\x03\x04")]),
    (Kind::Zip, &[(0, b"PK\x05\x06")]),
    (Kind::Gguf, &[(0, b"GGUF")]),
    (Kind::Hdf5, &[(0, b"\x89HDF\r\n\x1a\n")]),
    (Kind::NumPy, &[(0, b"\x93NUMPY")]),
    (Kind::Gzip, &[(0, b"\x1f\x8b\x08")]),
    (Kind::SevenZip, &[(0, b"7z\xbc\xaf\x27\x1c")]),
    // Protocols 2 to 5; a file of torch.save before 1.6 is one.
    (Kind::Pickle, &[(0, b"\x80\x02")]),
    (Kind::Pickle, &[(0, b"\x80\x03")]),
    (Kind::Pickle, &[(0, b"\x80\x04\x95")]),
    (Kind::Pickle, &[(0, b"\x80\x05\x95")]),
];

/// Brands of files in the ISO base media format: pictures first, because their files name brands of video as well.
const BRANDS: &[(Kind, &[&[u8; 4]])] = &[
    (Kind::Avif, &[b"avif", b"avis"]),
    (Kind::Heic, &[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]),
    (Kind::Video, &[b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"avc1", b"M4V ", b"3gp4", b"3gp5"]),
];

/// How texts begin, after white space, in lower case.
const TEXTS: &[(Kind, &str)] = &[
    (Kind::Svg, "<svg"),
    (Kind::Html, "<!doctype html"),
    (Kind::Html, "<html"),
    (Kind::Html, "<head"),
    (Kind::Html, "<!--"),
    (Kind::Xml, "<"),
    (Kind::Json, "{"),
    (Kind::Json, "["),
];

impl Kind {
    /// The kind of a file that begins with `first`, of which [`FIRST_BYTES`] are looked at; `None` if it is not known.
    pub fn of(first: &[u8]) -> Option<Kind> {
        let first = &first[..first.len().min(FIRST_BYTES)];
        if first.is_empty() {
            return Some(Kind::Empty);
        }
        let has = |(at, bytes): &(usize, &[u8])| first.get(*at..).is_some_and(|rest| rest.starts_with(bytes));
        let signed = SIGNATURES.iter().find(|(_, parts)| parts.iter().all(has)).map(|(kind, _)| *kind);
        match signed {
            // The zip of torch.save begins with its pickle.
            Some(Kind::Zip) if contains(first, b"data.pkl") => Some(Kind::TorchZip),
            Some(kind) => Some(kind),
            None => brand(first).or_else(|| text(first).map(of_text)),
        }
    }

    /// The kind with its article, for a message.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Png => "a PNG picture",
            Kind::Jpeg => "a JPEG picture",
            Kind::WebP => "a WebP picture",
            Kind::Gif => "a GIF picture",
            Kind::Bmp => "a BMP picture",
            Kind::Tiff => "a TIFF picture",
            Kind::Qoi => "a QOI picture",
            Kind::Avif => "an AVIF picture",
            Kind::Heic => "a HEIC picture",
            Kind::JpegXl => "a JPEG XL picture",
            Kind::Jpeg2000 => "a JPEG 2000 picture",
            Kind::Photoshop => "a Photoshop picture",
            Kind::OpenExr => "an OpenEXR picture",
            Kind::Icon => "an icon (ICO)",
            Kind::Svg => "an SVG drawing",
            Kind::Video => "a video",
            Kind::Pdf => "a PDF document",
            Kind::LfsPointer => "a Git LFS pointer",
            Kind::Html => "a web page (HTML)",
            Kind::Xml => "an XML text",
            Kind::Json => "a JSON text",
            Kind::TorchZip => "a PyTorch checkpoint (zip of a pickle)",
            Kind::Zip => "a zip archive",
            Kind::Pickle => "a Python pickle",
            Kind::Gguf => "a GGUF file",
            Kind::Hdf5 => "an HDF5 file",
            Kind::NumPy => "a NumPy array",
            Kind::Gzip => "a gzip archive",
            Kind::SevenZip => "a 7z archive",
            Kind::Empty => "an empty file",
            Kind::Text => "a text",
        }
    }

    /// What to do about a file of this kind, whatever was expected in its place.
    pub fn remedy(self) -> Option<&'static str> {
        match self {
            Kind::LfsPointer => Some("the file itself was not fetched: run `git lfs pull` in its repository"),
            Kind::Html | Kind::Xml | Kind::Json | Kind::Text => {
                Some("the download brought an answer of the server in place of the file: download it again")
            }
            Kind::Empty => Some("the download brought nothing: download it again"),
            Kind::TorchZip | Kind::Zip | Kind::Pickle => {
                Some("weights that torch.save wrote have to be converted with safetensors.torch.save_file")
            }
            Kind::Gguf => Some("take the model's safetensors files, which are not quantised"),
            _ => None,
        }
    }

    /// Whether a person can read the file, so that its beginning says more than its kind.
    fn is_text(self) -> bool {
        matches!(self, Kind::Html | Kind::Xml | Kind::Json | Kind::Text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file is that begins with `first`, in one line: its kind and, of a text, how it begins. `None` if it is not
/// known.
pub fn describe(first: &[u8]) -> Option<String> {
    let kind = Kind::of(first)?;
    let beginning = text(first).filter(|_| kind.is_text()).map(|text| {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(QUOTED) {
            Some((end, _)) => format!("{:?}...", &line[..end]),
            None => format!("{line:?}"),
        }
    });
    Some(beginning.map_or_else(|| kind.to_string(), |beginning| format!("{kind} that begins {beginning}")))
}

/// That something else was found than what was `expected`, and what to do; `None` if the file is of no known kind.
pub fn instead_of(expected: &str, first: &[u8]) -> Option<String> {
    let remedy = Kind::of(first)?.remedy().map_or_else(String::new, |remedy| format!("; {remedy}"));
    Some(format!("expected {expected}, found {}{remedy}", describe(first)?))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The kind that the brands of an ISO base media file name: `ftyp` with its own brand and compatible ones.
fn brand(first: &[u8]) -> Option<Kind> {
    let length = u32::from_be_bytes(*first.first_chunk()?) as usize;
    let list = first.get(4..length.min(first.len()))?.strip_prefix(b"ftyp")?;
    let brands = list.as_chunks::<4>().0;
    // HEIC's general brands are those of AVIF, too.
    BRANDS.iter().find(|(_, known)| known.iter().any(|brand| brands.contains(brand))).map(|(kind, _)| *kind)
}

/// The bytes as text, if they are printable throughout. The last character may be cut.
fn text(first: &[u8]) -> Option<&str> {
    let first = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    let first = &first[..first.len().min(FIRST_BYTES)];
    let text = match std::str::from_utf8(first) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&first[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let printable = text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'));
    (printable && !text.trim().is_empty()).then_some(text)
}

fn of_text(text: &str) -> Kind {
    let lower = text.trim_start().to_ascii_lowercase();
    let mut after = lower.as_str();
    // An XML declaration may stand before anything that is written in it.
    if let Some((_, rest)) = lower.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")) {
        after = rest.trim_start();
    }
    TEXTS.iter().find(|(_, beginning)| after.starts_with(beginning)).map_or(Kind::Text, |(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_known_by_its_first_bytes() {
        for (first, kind) in [
            (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], Kind::Png),
            (b"\xff\xd8\xff\xe0\0\x10JFIF\0", Kind::Jpeg),
            (b"\xff\xd8\xff\xe1\0\x10Exif\0", Kind::Jpeg),
            (b"RIFF\x24\0\0\0WEBPVP8 ", Kind::WebP),
            (b"GIF89a\x01\0\x01\0", Kind::Gif),
            (b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0", Kind::Bmp),
            (b"II*\0\x08\0\0\0", Kind::Tiff),
            (b"MM\0*\0\0\0\x08", Kind::Tiff),
            (b"qoif\0\0\0\x01", Kind::Qoi),
            (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", Kind::Avif),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", Kind::Avif),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Kind::Heic),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Kind::Heic),
            (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", Kind::Video),
            (b"\0\0\0\x0cJXL \r\n\x87\n", Kind::JpegXl),
            (b"\xff\x0a\x7f\0", Kind::JpegXl),
            (b"\0\0\0\x0cjP  \r\n\x87\n", Kind::Jpeg2000),
            (b"8BPS\0\x01", Kind::Photoshop),
            (b"<?xml version=\"1.0\"?>\n<svg width=\"3\">", Kind::Svg),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", Kind::LfsPointer),
            (b"\xef\xbb\xbf\n<!DOCTYPE HTML>\n<title>401</title>", Kind::Html),
            (b"<html lang=\"en\">", Kind::Html),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", Kind::Xml),
            (b"{\"error\": \"Repository not found\"}", Kind::Json),
            (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pkl", Kind::TorchZip),
            (b"PK\x03\x04\x14\0\0\0mimetype", Kind::Zip),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", Kind::Pickle),
            (b"GGUF\x03\0\0\0", Kind::Gguf),
            (b"Entry not found", Kind::Text),
            (b"", Kind::Empty),
        ] {
            assert_eq!(Kind::of(first), Some(kind), "{first:?}");
            assert!(describe(first).is_some_and(|text| text.starts_with(kind.name()) && !text.contains('\n')));
        }
    }

    #[test]
    fn what_has_no_signature_is_not_guessed() {
        for first in [
            &b"\0\0\0\0\0\0\0\0"[..],
            b"\0\0\0\x18ftypabcd\0\0\0\0",
            b"BM and text\x01",
            b"\xfe\xfe",
            b"  \n",
            b"\0\0\0\0",
            b"\0\0\0\x02ftypavif",
        ] {
            assert_eq!(Kind::of(first), None, "{first:?}");
        }
        // The beginning of safetensors files: a length and a header.
        for length in [2u64, 8, 0x7b, 0x5089, 0x0280, 0x0480, 0x003c, 65_000] {
            let first = [&length.to_le_bytes()[..], b"{\"__metadata__\":{\"format\":\"pt\"},"].concat();
            assert!(!matches!(Kind::of(&first), Some(kind) if kind != Kind::Pickle), "{length}");
        }
    }

    #[test]
    fn a_text_is_quoted_on_one_line_up_to_a_length() {
        let page = instead_of("a PNG picture", b"<html>\n").expect("a web page");
        assert!(page.starts_with("expected a PNG picture, found a web page (HTML) that begins \"<html>\"; "), "{page}");
        assert_eq!(
            instead_of("a PNG picture", b"GIF89a").as_deref(),
            Some("expected a PNG picture, found a GIF picture")
        );
        assert_eq!(describe(b"Entry not\n  found").as_deref(), Some("a text that begins \"Entry not found\""));
        let long = format!("{{\"error\": \"{}\"}}", "\u{e9}".repeat(400));
        let said = describe(long.as_bytes()).expect("a JSON text");
        assert!(said.starts_with("a JSON text that begins ") && said.chars().count() < 110, "{said}");
    }
}
