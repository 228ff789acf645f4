//! JSON as checkpoints have it: read with errors that name file and key, and with the numbers that Python alone writes.

use crate::error::{Error, Result};
use crate::sniff::{self, Kind};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

/// An object whose keys appear once each; JSON readers differ in which of two they keep.
pub struct Unique<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique<V>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, V>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("{key:?} appears twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Unique(map))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Parses a JSON file. Errors name the file and the key, or what the file is if it is no JSON at all.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let bytes = &*quoted(bytes);
    serde_json::from_slice(bytes).map_err(|e| {
        let something_else = e.is_syntax() || e.is_eof();
        if something_else
            && Kind::of(bytes) != Some(Kind::Json)
            && let Some(reason) = sniff::instead_of("a JSON text", bytes)
        {
            return Error::config(path, reason);
        }
        let reason = match key_before(bytes, e.line(), e.column()) {
            // A missing or repeated field names itself; where the parser stood then says nothing.
            Some(key) if e.is_data() && !e.to_string().contains("field `") => format!("{key}: {e}"),
            _ => e.to_string(),
        };
        Error::config(path, reason)
    })
}

/// What Python writes as numbers and JSON does not have.
const NOT_FINITE: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The text with numbers that are not finite as strings: legal where a key has no effect, and named elsewhere.
fn quoted(bytes: &[u8]) -> Cow<'_, [u8]> {
    let (mut text, mut at, mut is_string) = (Vec::new(), 0, false);
    let mut copied = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => is_string = !is_string,
            b'\\' if is_string => at += 1,
            b'-' | b'I' | b'N' if !is_string => {
                if let Some(number) = NOT_FINITE.iter().find(|number| bytes[at..].starts_with(number)) {
                    text.extend_from_slice(&bytes[copied..at]);
                    text.push(b'"');
                    text.extend_from_slice(number);
                    text.push(b'"');
                    at += number.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    text.extend_from_slice(&bytes[copied..]);
    Cow::Owned(text)
}

/// The last `"key":` before a position in a JSON text, with which a wrong value can be named.
fn key_before(bytes: &[u8], line: usize, column: usize) -> Option<&str> {
    let start: usize = bytes.split_inclusive(|b| *b == b'\n').take(line.checked_sub(1)?).map(<[u8]>::len).sum();
    // A character cut in two at the position does not matter: the key is complete before it.
    let text = bytes.get(..start + column)?.utf8_chunks().next()?.valid();
    text.match_indices(':').rev().find_map(|(colon, _)| {
        let before = text[..colon].trim_end().strip_suffix('"')?;
        let key = &before[before.rfind('"')? + 1..];
        (!key.is_empty()).then_some(key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_wrong_value_of_an_unchecked_file_is_reported_with_its_key() {
        #[derive(serde::Deserialize, Debug)]
        #[allow(dead_code)]
        struct Config {
            width: usize,
            list: Vec<usize>,
        }
        let parse = |text: &str| parse_json::<Config>(Path::new("c.json"), text.as_bytes()).unwrap_err().to_string();
        let wrong = parse("{\n  \"list\": [1],\n  \"width\": \"a: b\"\n}");
        assert!(wrong.starts_with("c.json: width: invalid type: string"), "{wrong}");
        let wrong = parse("{\"width\": 3, \"list\": [1, -2]}");
        assert!(wrong.starts_with("c.json: list: invalid value: integer `-2`"), "{wrong}");
        let missing = parse("{\"list\": []}");
        assert!(missing.starts_with("c.json: missing field `width`"), "{missing}");
    }

    #[test]
    fn numbers_that_are_not_finite_become_strings_and_strings_stay() {
        let text = br#"{"a": [NaN, -Infinity], "\"NaN": "Infinity, \" NaN", "b": -1}"#;
        let value: Value = parse_json(Path::new("c.json"), text).unwrap();
        let want = serde_json::json!({"a": ["NaN", "-Infinity"], "\"NaN": "Infinity, \" NaN", "b": -1});
        assert_eq!(value, want);
        assert!(matches!(quoted(b"{\"a\": \"NaN\"}"), Cow::Borrowed(_)));
    }
}
