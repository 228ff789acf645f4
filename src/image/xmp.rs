//! XMP: an XML packet, of which the orientation and this program's settings matter here. It is searched, not parsed, as
//! Pillow does it.

/// What is written as `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
pub(super) fn orientation(packet: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut rest = packet;
    while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY) {
        rest = &rest[at + KEY.len()..];
        let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">")).and_then(<[u8]>::first);
        if let Some(digit) = value.filter(|digit| digit.is_ascii_digit()) {
            return Some(u32::from(digit - b'0'));
        }
    }
    None
}

/// This program's settings, which `with_recipe` wrote.
pub(super) fn recipe(packet: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(packet);
    let (_, rest) = text.split_once("<unclip:recipe>")?;
    let (value, _) = rest.split_once("</unclip:recipe>")?;
    Some(ESCAPES.iter().rev().fold(value.to_owned(), |text, (plain, escaped)| text.replace(escaped, plain)))
}

/// What XML has its own signs for, the ampersand first.
const ESCAPES: [(&str, &str); 3] = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")];

/// A packet that holds settings as JSON.
#[cfg(feature = "formats")]
pub(super) fn with_recipe(json: &str) -> String {
    let json = ESCAPES.iter().fold(json.to_owned(), |text, (plain, escaped)| text.replace(plain, escaped));
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
         <rdf:Description rdf:about=\"\" xmlns:unclip=\"urn:unclip\"><unclip:recipe>{json}</unclip:recipe>\
         </rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"w\"?>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orientation_is_found_in_both_spellings() {
        assert_eq!(orientation(b"<a tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(orientation(b"tiff:OrientationX <tiff:Orientation>3</tiff:Orientation>"), Some(3));
        for none in [&b"tiff:Orientation"[..], b"tiff:Orientation=\"x\"", b"", b"tiff:Orientation='6'"] {
            assert_eq!(orientation(none), None);
        }
    }

    #[cfg(feature = "formats")]
    #[test]
    fn a_recipe_comes_back_with_its_signs() {
        let json = r#"{"prompt":"a < b && \"c\" &lt; 猫 </unclip:recipe>"}"#;
        assert_eq!(recipe(with_recipe(json).as_bytes()).as_deref(), Some(json));
        assert_eq!(recipe(b"<unclip:recipe>"), None);
    }
}
