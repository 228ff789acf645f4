//! Configuration files, checked against the keys of the classes that wrote them.
//!
//! A configuration file holds the constructor arguments of a diffusers or transformers class. For each class that the
//! engine reads, a table of [`Key`]s covers every argument: read by the model, without effect on the result, or legal
//! with certain values only. [`read`] applies the table. A missing key gets the class's default. A value of the wrong
//! type, or one that is not implemented, is an error that names file, key, value and the known values. A key that the
//! class does not have is a warning: the original library ignores it as well.
//!
//! A new class is a struct for the keys that its model reads, a table, and an implementation of [`Schema`].

use std::collections::BTreeMap;
use std::ops::{Deref, RangeInclusive};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

use super::json::{Unique, parse_json};
use crate::error::{Error, Result};

/// Largest size in a configuration. Real ones are far below; the sizes of a tensor multiply without overflow.
const MAX_SIZE: u64 = 1 << 20;
/// Longest value that an error quotes, in characters.
const MAX_QUOTED: usize = 60;

/// A configuration that is read from a file.
pub trait Schema: DeserializeOwned {
    /// The original classes; `_class_name` tells several apart.
    const CLASSES: &'static [Class];
    /// The class of a file that names none, where there are several.
    const UNNAMED: Option<&'static str> = None;
    /// Key under which files of an enclosing class hold this one, such as `text_config` of a whole CLIP.
    const NESTED: Option<&'static str> = None;
    /// Keys that the enclosing class has, too, and decides: a whole CLIP makes both projections by its own size.
    const ENCLOSING: &'static [&'static str] = &[];

    /// Conditions on several keys together.
    ///
    /// # Errors
    /// The key, its value and what it must be.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// An original class and all its keys.
#[derive(Debug)]
pub struct Class {
    /// Its name in diffusers or transformers.
    pub name: &'static str,
    /// Tables of keys, its own and those that it shares with other classes.
    pub keys: &'static [&'static [Key]],
}

/// Keys of a class that the engine treats alike.
#[derive(Clone, Debug)]
pub struct Key {
    /// Separated by spaces.
    names: &'static str,
    rule: Rule,
    /// What a missing key means; without one the key must be given.
    default: Option<Literal>,
    nullable: bool,
}

#[derive(Clone, Debug)]
enum Rule {
    NoEffect,
    Only(&'static [Literal]),
    OnlyPerLevel(&'static [Literal]),
    Each(&'static [&'static str]),
    Integer(RangeInclusive<u64>),
    Sizes,
    SizePerLevel,
    SameSize,
    Float,
    Floats,
    Flag,
    Value,
}

/// A JSON value in a table.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // JSON's own types
pub enum Literal {
    Null,
    Bool(bool),
    Number(f64),
    Text(&'static str),
    Numbers(&'static [f64]),
}

impl Key {
    const fn new(names: &'static str, rule: Rule) -> Key {
        Key { names, rule, default: None, nullable: false }
    }

    /// Keys that do not change what the model computes from its weights; any value is legal.
    pub const fn no_effect(names: &'static str) -> Key {
        Key { default: Some(Literal::Null), ..Key::new(names, Rule::NoEffect) }
    }

    /// Keys with these legal values. The first is the class's default, unless [`Key::or`] names another.
    pub const fn only(names: &'static str, legal: &'static [Literal]) -> Key {
        Key { default: Some(legal[0]), ..Key::new(names, Rule::Only(legal)) }
    }

    /// As [`Key::only`]; also lists of legal values, one for each level.
    pub const fn only_per_level(names: &'static str, legal: &'static [Literal]) -> Key {
        Key { default: Some(legal[0]), ..Key::new(names, Rule::OnlyPerLevel(legal)) }
    }

    /// Lists of names, each of which must be one of these.
    pub const fn each(names: &'static str, legal: &'static [&'static str]) -> Key {
        Key::new(names, Rule::Each(legal))
    }

    /// Integers from 1: widths, counts, lengths.
    pub const fn size(names: &'static str) -> Key {
        Key::integer(names, 1..=MAX_SIZE)
    }

    /// Integers of a range.
    pub const fn integer(names: &'static str, range: RangeInclusive<u64>) -> Key {
        Key::new(names, Rule::Integer(range))
    }

    /// Lists of integers from 1.
    pub const fn sizes(names: &'static str) -> Key {
        Key::new(names, Rule::Sizes)
    }

    /// Integers from 1, or a list of one for each level.
    pub const fn size_per_level(names: &'static str) -> Key {
        Key::new(names, Rule::SizePerLevel)
    }

    /// Integers from 1, or a list that repeats one, of which the model reads that one.
    pub const fn same_size(names: &'static str) -> Key {
        Key::new(names, Rule::SameSize)
    }

    /// Finite numbers in the range of f32.
    pub const fn float(names: &'static str) -> Key {
        Key::new(names, Rule::Float)
    }

    /// Lists of finite numbers in the range of f32.
    pub const fn floats(names: &'static str) -> Key {
        Key::new(names, Rule::Floats)
    }

    /// true or false.
    pub const fn flag(names: &'static str) -> Key {
        Key::new(names, Rule::Flag)
    }

    /// Anything; the configuration checks it itself.
    pub const fn value(names: &'static str) -> Key {
        Key { default: Some(Literal::Null), ..Key::new(names, Rule::Value) }
    }

    /// Sets the class's default.
    pub const fn or(mut self, default: Literal) -> Key {
        self.default = Some(default);
        self
    }

    /// Allows null, which is also the default.
    pub const fn nullable(mut self) -> Key {
        self.nullable = true;
        self.or(Literal::Null)
    }

    /// Checks a value, given in the file or the default.
    fn check(&self, name: &str, found: &Value, given: bool) -> Result<(), String> {
        let refused = |found: &Value, expected: String| {
            let found = shortened(found);
            Err(match given {
                true => format!("{name} is {found}; {expected}"),
                false => format!("{name} is missing, which means {found}; {expected}"),
            })
        };
        let known = |legal: &mut dyn Iterator<Item = Value>| {
            format!("this engine knows {}", legal.map(|value| value.to_string()).collect::<Vec<_>>().join(", "))
        };
        let (fits, expected) = match &self.rule {
            Rule::NoEffect | Rule::Value => return Ok(()),
            _ if self.nullable && found.is_null() => return Ok(()),
            Rule::Only(legal) | Rule::OnlyPerLevel(legal) if legal.iter().any(|l| l.equals(found)) => return Ok(()),
            Rule::OnlyPerLevel(legal) if entries(found, |v| legal.iter().any(|l| l.equals(v))) => return Ok(()),
            Rule::Only(legal) | Rule::OnlyPerLevel(legal) => {
                return refused(found, known(&mut legal.iter().map(Literal::json)));
            }
            Rule::Each(legal) => {
                let unknown = |entry: &&Value| entry.as_str().is_none_or(|entry| !legal.contains(&entry));
                match found.as_array().map(|entries| entries.iter().find(unknown)) {
                    Some(None) => return Ok(()),
                    Some(Some(entry)) => {
                        let known = known(&mut legal.iter().map(|&l| l.into()));
                        return Err(format!("{name} has {}; {known}", shortened(entry)));
                    }
                    None => (false, "a list of names".to_owned()),
                }
            }
            Rule::Integer(range) => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                (is_integer(found, range), expected)
            }
            Rule::Sizes => (entries(found, is_size), format!("a list of integers from 1 to {MAX_SIZE}")),
            Rule::SizePerLevel => {
                let fits = is_size(found) || entries(found, is_size);
                (fits, format!("an integer from 1 to {MAX_SIZE}, or a list of such"))
            }
            Rule::SameSize => {
                let same = found.as_array().is_some_and(|all| all.iter().all(|entry| *entry == all[0]));
                let fits = is_size(found) || same && entries(found, is_size);
                (fits, format!("an integer from 1 to {MAX_SIZE}, or a list that repeats one"))
            }
            Rule::Float => (is_f32(found), "a number in the range of f32".to_owned()),
            Rule::Floats => (entries(found, is_f32), "a list of numbers in the range of f32".to_owned()),
            Rule::Flag => (found.is_boolean(), "true or false".to_owned()),
        };
        let or_null = if self.nullable { ", or null" } else { "" };
        if fits { Ok(()) } else { refused(found, format!("expected {expected}{or_null}")) }
    }
}

fn is_integer(value: &Value, range: &RangeInclusive<u64>) -> bool {
    value.as_u64().is_some_and(|value| range.contains(&value))
}

fn is_size(value: &Value) -> bool {
    is_integer(value, &(1..=MAX_SIZE))
}

fn is_f32(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| (value as f32).is_finite())
}

/// Whether a value is a list with entries, all of which fit.
fn entries(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|entries| !entries.is_empty() && entries.iter().all(fits))
}

impl Literal {
    fn json(&self) -> Value {
        let number = |x: f64| match x.fract() == 0.0 && x.abs() < MAX_SIZE as f64 {
            true => Value::from(x as i64),
            false => Number::from_f64(x).map_or(Value::Null, Value::Number),
        };
        match *self {
            Literal::Null => Value::Null,
            Literal::Bool(x) => x.into(),
            Literal::Number(x) => number(x),
            Literal::Text(x) => x.into(),
            Literal::Numbers(list) => list.iter().map(|x| number(*x)).collect(),
        }
    }

    /// Equality as in Python: 1 is 1.0.
    fn equals(&self, value: &Value) -> bool {
        match self {
            Literal::Number(x) => value.as_f64() == Some(*x),
            other => other.json() == *value,
        }
    }
}

/// A value that holds for all levels of a network, or one for each.
#[derive(Clone, Debug, serde::Deserialize, PartialEq, Eq)]
#[serde(untagged)]
#[allow(missing_docs)] // the names are the meaning
pub enum PerLevel<T> {
    All(T),
    Each(Vec<T>),
}

impl<T: Copy> PerLevel<T> {
    /// The value of a level, counted from the first of the list.
    pub fn at(&self, level: usize) -> T {
        match self {
            PerLevel::All(value) => *value,
            PerLevel::Each(values) => values[level],
        }
    }

    /// Entries of the list, if it is one.
    pub fn entries(&self) -> Option<usize> {
        match self {
            PerLevel::All(_) => None,
            PerLevel::Each(values) => Some(values.len()),
        }
    }
}

/// A value for one line of a message.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_QUOTED) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// A checked configuration, with the file that it was read from.
#[derive(Clone, Debug)]
pub struct Configured<T> {
    value: T,
    path: PathBuf,
    warnings: Vec<String>,
}

impl<T> Configured<T> {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a user should know about the file, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// An error about a value that the rest of the checkpoint contradicts.
    pub fn refused(&self, reason: impl Into<String>) -> Error {
        Error::config(&self.path, reason)
    }
}

impl<T> Deref for Configured<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Reads the text of a configuration file; `path` is for messages.
///
/// # Errors
/// [`Error::Config`] when the text is not a JSON object, when a key is missing, repeated or of the wrong type, or when a
/// value is not implemented.
pub fn read<T: Schema>(path: &Path, text: &[u8]) -> Result<Configured<T>> {
    let (value, warnings) = apply(parse_json::<Unique<Value>>(path, text)?.0).map_err(|r| Error::config(path, r))?;
    let warnings = warnings.map(|warning| format!("{}: {warning}", path.display()));
    Ok(Configured { value, path: path.to_path_buf(), warnings: warnings.into_iter().collect() })
}

fn apply<T: Schema>(mut values: BTreeMap<String, Value>) -> Result<(T, Option<String>), String> {
    if let Some(Value::Object(nested)) = T::NESTED.and_then(|key| values.remove(key)) {
        let own = T::ENCLOSING.iter().filter_map(|key| values.remove_entry(*key)).collect::<Vec<_>>();
        values = nested.into_iter().chain(own).collect();
    }
    let class = class_of(T::CLASSES, values.get("_class_name"), T::UNNAMED)?;
    let (mut known, mut read) = (Vec::new(), Vec::new());
    for key in class.keys.iter().copied().flatten() {
        for name in key.names.split(' ') {
            known.push(name);
            if let Rule::NoEffect = key.rule {
                continue;
            }
            read.push(name);
            let given = values.contains_key(name);
            if !given {
                let default = key.default.ok_or_else(|| format!("{name} is missing"))?;
                values.insert(name.to_owned(), default.json());
            }
            key.check(name, &values[name], given)?;
            if let (Rule::SameSize, Value::Array(all)) = (&key.rule, &values[name]) {
                let one = all[0].clone();
                values.insert(name.to_owned(), one);
            }
        }
    }
    let unknown = |name: &&str| !name.starts_with('_') && !known.contains(name);
    let unknown: Vec<&str> = values.keys().map(String::as_str).filter(unknown).collect();
    let warning = (!unknown.is_empty())
        .then(|| format!("ignored keys that {} does not have: {}", class.name, unknown.join(", ")));
    // A key without effect has none, whatever its value.
    values.retain(|name, _| name.starts_with('_') || read.contains(&name.as_str()));
    let value: T = serde_json::from_value(values.into_iter().collect()).map_err(|e| e.to_string())?;
    value.check()?;
    Ok((value, warning))
}

/// The class that the file names. A file need not name the only one.
fn class_of(classes: &'static [Class], name: Option<&Value>, unnamed: Option<&str>) -> Result<&'static Class, String> {
    match (name, classes) {
        (None, [class]) => Ok(class),
        _ => {
            let found = name.map_or("missing".to_owned(), shortened);
            let wanted = name.map_or(unnamed, Value::as_str);
            let class = classes.iter().find(|class| wanted == Some(class.name));
            class.ok_or_else(|| {
                let known: Vec<String> = classes.iter().map(|class| format!("{:?}", class.name)).collect();
                format!("_class_name is {found}; this engine knows {}", known.join(", "))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Literal::{Bool, Null, Number, Text};
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug)]
    struct Config {
        width: usize,
        widths: Vec<usize>,
        side: Option<usize>,
        eps: f32,
        #[serde(rename = "_class_name")]
        class: String,
    }

    const SHARED: &[Key] = &[
        Key::size("width"),
        Key::sizes("widths"),
        Key::size("side").nullable(),
        Key::float("eps").or(Number(1e-5)),
        Key::no_effect("dropout init"),
        Key::only("act", &[Text("silu"), Text("swish")]),
        Key::only("scale post", &[Number(1.0), Null]),
        Key::each("blocks", &["Down", "Up"]),
    ];

    impl Schema for Config {
        const CLASSES: &'static [Class] = &[
            Class { name: "A", keys: &[SHARED, &[Key::only("center", &[Bool(false)])]] },
            Class { name: "B", keys: &[SHARED, &[Key::only("kind", &[Text("new")]).or(Text("old"))]] },
        ];
        const NESTED: Option<&'static str> = Some("inner");

        fn check(&self) -> Result<(), String> {
            if self.widths.len() > 2 { Err("widths has too many".to_owned()) } else { Ok(()) }
        }
    }

    fn parse(text: &str) -> Result<Configured<Config>> {
        read(Path::new("m/config.json"), text.as_bytes())
    }

    const GOOD: &str = r#""_class_name": "A", "width": 3, "widths": [1, 2], "blocks": ["Up"]"#;

    #[test]
    fn missing_keys_have_the_defaults_of_the_class() {
        let config = parse(&format!("{{{GOOD}}}")).unwrap();
        assert_eq!((config.width, &config.widths[..], config.side, config.eps), (3, &[1, 2][..], None, 1e-5));
        assert_eq!((config.class.as_str(), config.warnings()), ("A", &[][..]));
        assert_eq!(config.path(), Path::new("m/config.json"));
    }

    #[test]
    fn keys_without_effect_and_private_keys_may_have_any_value() {
        let more = r#""dropout": [{}], "init": "x", "_name_or_path": 3, "act": "swish", "scale": 1, "post": null"#;
        assert_eq!(parse(&format!("{{{GOOD}, {more}}}")).unwrap().warnings(), &[] as &[String]);
    }

    #[test]
    fn unknown_keys_are_one_warning_that_names_them() {
        let config = parse(&format!(r#"{{{GOOD}, "zeta": 1, "alpha": 2}}"#)).unwrap();
        assert_eq!(config.warnings(), ["m/config.json: ignored keys that A does not have: alpha, zeta"]);
    }

    #[test]
    fn numbers_that_python_alone_writes_are_read_where_they_have_no_effect_and_named_elsewhere() {
        let with = |change: &str| parse(&format!("{{{GOOD}, {change}}}"));
        let config = with(r#""dropout": -Infinity, "init": [NaN, "\"Infinity", Infinity], "act": "silu""#).unwrap();
        assert_eq!(config.warnings(), &[] as &[String]);
        for number in ["-Infinity", "Infinity", "NaN"] {
            let error = with(&format!(r#""eps": {number}"#)).unwrap_err().to_string();
            assert!(error.contains(&format!("eps is {number:?}; expected a number in the range of f32")), "{error}");
        }
        let error = with(r#""eps": -Infinite"#).unwrap_err().to_string();
        assert!(error.starts_with("m/config.json: invalid number at line 1"), "{error}");
    }

    #[test]
    fn a_nested_configuration_is_the_one_that_counts() {
        let config = parse(&format!(r#"{{"width": 9, "other": 1, "inner": {{{GOOD}}}}}"#)).unwrap();
        assert_eq!((config.width, config.warnings().len()), (3, 0));
    }

    #[test]
    fn every_refusal_names_file_key_value_and_what_is_known() {
        let with = |change: &str| format!("{{{GOOD}, {change}}}");
        let without = |part: &str| format!("{{{}}}", GOOD.replace(part, ""));
        for (text, expected) in [
            (with(r#""act": "mish""#), r#"act is "mish"; this engine knows "silu", "swish""#),
            (with(r#""post": 2"#), "post is 2; this engine knows 1, null"),
            (with(r#""center": true"#), "center is true; this engine knows false"),
            (with(r#""side": 0"#), "side is 0; expected an integer from 1 to 1048576, or null"),
            (with(r#""side": 1e12"#), "side is 1000000000000.0; expected an integer"),
            (with(r#""eps": 1e300"#), "eps is 1e+300; expected a number in the range of f32"),
            (with(r#""width": 4"#), r#""width" appears twice"#),
            (without(r#""width": 3, "#), "width is missing"),
            (GOOD.replace("[1, 2]", "[]"), "widths is []; expected a list of integers from 1"),
            (GOOD.replace("[1, 2]", "[1, -2]"), "widths is [1,-2]; expected a list"),
            (GOOD.replace("[1, 2]", "[1, 2, 3]"), "widths has too many"),
            (GOOD.replace("\"Up\"", "\"Up\", \"Mid\""), r#"blocks has "Mid"; this engine knows "Down", "Up""#),
            (GOOD.replace("[\"Up\"]", "3"), "blocks is 3; expected a list of names"),
            (GOOD.replace("\"A\"", "\"C\""), r#"_class_name is "C"; this engine knows "A", "B""#),
            (without(r#""_class_name": "A", "#), "_class_name is missing; this engine knows"),
            (GOOD.replace("\"A\"", "\"B\""), r#"kind is missing, which means "old"; this engine knows "new""#),
            ("[]".to_owned(), "expected an object"),
            (r#"{"width": tr"#.to_owned(), "EOF"),
        ] {
            let text = if text.starts_with(['{', '[']) { text } else { format!("{{{text}}}") };
            let error = parse(&text).expect_err(&text);
            let message = error.to_string();
            assert!(matches!(error, Error::Config { .. }) && message.starts_with("m/config.json: "), "{message}");
            assert!(message.contains(expected) && !message.contains('\n'), "{expected:?} in {message:?}");
        }
    }

    #[test]
    fn long_values_are_quoted_in_part() {
        let text = format!(r#"{{{GOOD}, "act": "{}"}}"#, "é".repeat(500));
        let message = parse(&text).expect_err("refused").to_string();
        assert!(message.chars().count() < 150, "{message}");
    }
}
