//! The fields of a request, of JSON or of a form alike.
//!
//! Each is taken by its name and kind; what is left in the end is unknown, and named. In a form all values are texts, in JSON
//! numbers are numbers. A field that is `null` is not there.

use super::errors::ApiError;
use axum::body::Bytes;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Longest text of a field, in characters.
const LONGEST: usize = 32_000;

/// What a request says.
#[derive(Default)]
pub struct Fields {
    values: Map<String, Value>,
    /// Whether values were texts to begin with.
    is_form: bool,
    files: Vec<(String, Upload)>,
}

/// A file of a form.
pub struct Upload {
    /// Its name, which says nothing but what a picture's settings call it.
    pub name: String,
    pub bytes: Bytes,
}

impl Fields {
    /// # Errors
    /// The body is no JSON, or no object.
    pub fn of_json(bytes: &[u8]) -> Result<Fields, ApiError> {
        let value = serde_json::from_slice(bytes)
            .map_err(|e| ApiError::body("invalid_json", format!("the body is no JSON that can be read: {e}")))?;
        match value {
            Value::Object(values) => Ok(Fields { values, ..Fields::default() }),
            _ => Err(ApiError::body("invalid_json", "the body is JSON, but no object")),
        }
    }

    /// Adds a part of a form. Lists are parts of one name with brackets behind it.
    ///
    /// # Errors
    /// A text is not UTF-8, or a field is there twice.
    pub fn add(&mut self, name: String, file: Option<String>, bytes: Bytes) -> Result<(), ApiError> {
        self.is_form = true;
        if let Some(file) = file {
            // Its folder, which some clients send, is nobody's business.
            let last = file.rsplit(['/', '\\']).next().unwrap_or_default();
            let upload = Upload { name: last.chars().filter(|c| !c.is_control()).take(200).collect(), bytes };
            self.files.push((name.trim_end_matches("[]").to_owned(), upload));
            return Ok(());
        }
        let text = String::from_utf8(bytes.to_vec())
            .map_err(|_| ApiError::value(&name, "the text is not UTF-8, and a file needs a filename"))?;
        match name.strip_suffix("[]") {
            Some(list) => {
                let all = self.values.entry(list).or_insert_with(|| Value::Array(Vec::new()));
                all.as_array_mut().ok_or_else(|| twice(list))?.push(text.into());
            }
            None => {
                if self.values.insert(name.clone(), text.into()).is_some() {
                    return Err(twice(&name));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// A text.
    ///
    /// # Errors
    /// It is none, or too long.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() > LONGEST => {
                let message = format!("more than {LONGEST} characters");
                Err(ApiError::field(name, "string_above_max_length", message))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(kind(name, "a text", &other)),
        }
    }

    /// Texts: one, or a list of them.
    ///
    /// # Errors
    /// They are none, or one is too long.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let Some(Value::Array(all)) = self.values.get(name) else {
            return Ok(self.text(name)?.into_iter().collect());
        };
        let texts = all.clone().into_iter().map(|value| match value {
            Value::String(text) if text.chars().count() <= LONGEST => Ok(text),
            other => Err(kind(name, &format!("texts of at most {LONGEST} characters"), &other)),
        });
        let texts = texts.collect();
        self.values.remove(name);
        texts
    }

    /// An integer within a range.
    ///
    /// # Errors
    /// It is none, or out of range.
    pub fn integer<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, ApiError>
    where
        T: FromStr + PartialOrd + Display + TryFrom<u64>,
    {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_u64().and_then(|number| T::try_from(number).ok()),
            Value::String(text) if self.is_form => text.trim().parse().ok(),
            Value::String(_) | Value::Array(_) | Value::Object(_) | Value::Bool(_) | Value::Null => {
                return Err(kind(name, &expected(), &value));
            }
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::value(name, format!("{}; expected {}", shown(&value), expected()))),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// It is none, or not finite in 32 bits.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_f64().map(|number| number as f32),
            Value::String(text) if self.is_form => text.trim().parse().ok(),
            other => return Err(kind(name, "a number", other)),
        };
        let number = number.filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| ApiError::value(name, format!("{}; expected a number", shown(&value))))
    }

    /// Numbers: a list, or in a form one text with commas between them.
    ///
    /// # Errors
    /// They are none, or not finite in 32 bits.
    pub fn numbers(&mut self, name: &str) -> Result<Option<Vec<f32>>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let refused = || ApiError::value(name, format!("{}; expected a list of numbers", shown(&value)));
        let parts: Vec<Option<f32>> = match &value {
            Value::String(text) => text.split(',').map(|part| part.trim().parse().ok()).collect(),
            Value::Array(all) => all.iter().map(|number| number.as_f64().map(|number| number as f32)).collect(),
            _ => return Err(refused()),
        };
        let parts = parts.into_iter().map(|part| part.filter(|number| number.is_finite()));
        parts.collect::<Option<Vec<f32>>>().map(Some).ok_or_else(refused)
    }

    /// Whether a field says yes.
    ///
    /// # Errors
    /// It says neither.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(Value::String(text)) if self.is_form && ["true", "false"].contains(&text.as_str()) => {
                Ok(text == "true")
            }
            Some(other) => Err(kind(name, "true or false", &other)),
        }
    }

    /// One of several words; the first one if nothing is said.
    ///
    /// # Errors
    /// It is another.
    pub fn choice<'w>(&mut self, name: &str, words: &[&'w str]) -> Result<&'w str, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(words[0]) };
        let found = words.iter().find(|word| **word == text);
        found.copied().ok_or_else(|| ApiError::value(name, format!("{text:?}; expected one of {}", words.join(", "))))
    }

    /// Anything that is written as a word.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let text = self.text(name)?;
        text.map(|text| text.parse().map_err(|e: T::Err| ApiError::value(name, e.to_string()))).transpose()
    }

    /// The files of a field.
    pub fn files(&mut self, name: &str) -> Vec<Upload> {
        let (found, others) = std::mem::take(&mut self.files).into_iter().partition(|(field, _)| field == name);
        self.files = others;
        let found: Vec<(String, Upload)> = found;
        found.into_iter().map(|(_, upload)| upload).collect()
    }

    /// Refuses what nobody took.
    ///
    /// # Errors
    /// There is a field that this request does not have.
    pub fn end(self) -> Result<(), ApiError> {
        let value = self.values.into_iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name);
        match value.or(self.files.into_iter().next().map(|(name, _)| name)) {
            Some(name) => Err(ApiError::field(&name, "unknown_parameter", "this request has no such field")),
            None => Ok(()),
        }
    }
}

fn twice(name: &str) -> ApiError {
    ApiError::value(name, "given twice")
}

/// A value as messages show it.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

fn kind(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ApiError::field(name, "invalid_type", format!("expected {expected}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Fields {
        Fields::of_json(text.as_bytes()).unwrap()
    }

    fn form(parts: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, text) in parts {
            fields.add((*name).to_owned(), None, Bytes::copy_from_slice(text.as_bytes())).unwrap();
        }
        fields
    }

    #[test]
    fn numbers_are_numbers_in_json_and_texts_in_forms() {
        assert_eq!(json(r#"{"n": 3}"#).integer("n", 1..=10).unwrap(), Some(3));
        assert_eq!(form(&[("n", "3")]).integer("n", 1..=10).unwrap(), Some(3));
        assert_eq!(json(r#"{"n": null}"#).integer("n", 1..=10).unwrap(), None);
        for text in [r#"{"n": "3"}"#, r#"{"n": 11}"#, r#"{"n": 0}"#, r#"{"n": 1.5}"#, r#"{"n": -1}"#, r#"{"n": [1]}"#] {
            let error = json(text).integer("n", 1..=10).unwrap_err();
            assert!(error.message().contains("an integer from 1 to 10"), "{text}: {}", error.message());
        }
        assert_eq!(json(r#"{"seed": 18446744073709551615}"#).integer("seed", 0..=u64::MAX).unwrap(), Some(u64::MAX));
        assert_eq!(form(&[("guidance", "2.5")]).number("guidance").unwrap(), Some(2.5));
        assert!(json(r#"{"guidance": 1e39}"#).number("guidance").is_err());
        assert!(form(&[("guidance", "nan")]).number("guidance").is_err());
        assert!(form(&[("stream", "true")]).flag("stream").unwrap() && !json("{}").flag("stream").unwrap());
        assert!(json(r#"{"stream": "true"}"#).flag("stream").is_err());
    }

    #[test]
    fn what_nobody_took_is_unknown_by_name() {
        let mut fields = json(r#"{"prompt": "a", "promt": "b", "none": null}"#);
        fields.text("prompt").unwrap();
        assert_eq!(fields.end().unwrap_err().message(), "promt: this request has no such field");
        let mut fields = Fields::default();
        fields.add("image[]".into(), Some("../../a\n.png".into()), Bytes::new()).unwrap();
        assert_eq!(fields.files("image")[0].name, "a.png");
        assert!(fields.end().is_ok());
    }

    #[test]
    fn lists_are_lists_or_parts_with_brackets() {
        assert_eq!(json(r#"{"labels": ["a", "b"]}"#).texts("labels").unwrap(), ["a", "b"]);
        assert_eq!(form(&[("labels[]", "a"), ("labels[]", "b")]).texts("labels").unwrap(), ["a", "b"]);
        assert_eq!(json(r#"{"labels": "a"}"#).texts("labels").unwrap(), ["a"]);
        assert!(json(r#"{"labels": ["a", 1]}"#).texts("labels").is_err());
        let mut fields = form(&[("n", "1")]);
        assert!(fields.add("n".into(), None, Bytes::from_static(b"2")).is_err());
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for text in ["", "{", "[]", "1", "\u{0}", "{\"a\":1}x", &"[".repeat(100_000)] {
            assert!(Fields::of_json(text.as_bytes()).is_err());
        }
    }
}
