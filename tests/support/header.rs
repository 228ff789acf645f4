//! Reads the comment at the top of a kernel: ten fields in a fixed order, of which four say what the code says again.

use std::collections::BTreeMap;

/// A tensor or scalar: name and type, the type as the header spells it (`elem`, `vec4 source`, `u32`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub kind: String,
}

impl Parameter {
    pub fn new(name: &str, kind: &str) -> Parameter {
        Parameter { name: name.to_owned(), kind: kind.to_owned() }
    }
}

/// One entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub entry: String,
    pub threads: u32,
    /// What it shares at most.
    pub shared_kib: f64,
}

/// A kernel's header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Inputs, then the output.
    pub tensors: Vec<Parameter>,
    pub scalars: Vec<Parameter>,
    pub launches: Vec<Entry>,
    /// Values by axis.
    pub variants: BTreeMap<String, Vec<String>>,
}

const FIELDS: [&str; 9] =
    ["Math", "Source", "Tensors", "Scalars", "Launch", "Memory", "Numerics", "Variants", "Limits"];

impl Header {
    /// Takes the header apart.
    ///
    /// # Errors
    /// A field is missing, out of order, or not spelled as the others are.
    pub fn parse(stem: &str, text: &str) -> Result<Header, String> {
        let mut lines = text.lines().map_while(|l| l.strip_prefix("//"));
        let title = lines.next().unwrap_or_default();
        if !title.starts_with(&format!(" {stem} - ")) {
            return Err(format!("the first line is {title:?}"));
        }
        let mut fields: Vec<(&str, Vec<&str>)> = Vec::new();
        for line in lines.filter(|l| !l.trim().is_empty()) {
            match FIELDS.iter().find(|f| line.trim_start().starts_with(&format!("{f} ")) && line.starts_with(' ')) {
                Some(field) if !line.starts_with("  ") => {
                    fields.push((field, vec![line.trim_start()[field.len()..].trim()]));
                }
                // A variant says why it is there before its fields.
                _ => _ = fields.last_mut().map(|(_, lines)| lines.push(line.trim())),
            }
        }
        let names: Vec<&str> = fields.iter().map(|(f, _)| *f).collect();
        if names != FIELDS {
            return Err(format!("the fields are {names:?}"));
        }
        let lines = |field: &str| &fields[FIELDS.iter().position(|f| *f == field).expect("it is a field")].1;
        let joined = |field: &str| lines(field).join(" ");

        let tensors = joined("Tensors");
        let (inputs, outputs) = tensors.split_once("->").ok_or("Tensors: no arrow")?;
        let tensors =
            split_outside(inputs).into_iter().chain(split_outside(outputs)).map(tensor).collect::<Result<_, _>>()?;
        let variants = joined("Variants");
        let axes = variants.split(';').filter_map(|axis| axis.split_once(':'));
        let variants = axes.map(|(axis, values)| {
            (axis.trim().to_owned(), values.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        });
        Ok(Header {
            tensors,
            scalars: scalars(&joined("Scalars"))?,
            launches: launches(stem, lines("Launch"), &joined("Memory"))?,
            variants: variants.collect(),
        })
    }
}

/// Parts between commas that are in no brackets.
fn split_outside(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

/// `x [N, H, W, C] vec4 elem`
fn tensor(text: &str) -> Result<Parameter, String> {
    let name = text.split_whitespace().next().ok_or("Tensors: an empty entry")?;
    let kind = text.rsplit(']').next().unwrap_or_default().trim();
    if kind.is_empty() || !text.contains('[') {
        return Err(format!("Tensors: {text:?} has no shape or type"));
    }
    Ok(Parameter::new(name, kind))
}

/// `a, b u32; c f32`
fn scalars(text: &str) -> Result<Vec<Parameter>, String> {
    let mut all = Vec::new();
    for group in text.split(';') {
        let (names, kind) = group.trim().rsplit_once(' ').ok_or_else(|| format!("Scalars: {group:?}"))?;
        all.extend(names.split(',').map(|name| Parameter::new(name.trim(), kind)));
    }
    Ok(all)
}

/// `[entry:] grid .., N threads[: what an invocation owns]`, and of the memory `[entry:] X KiB shared ..`.
fn launches(stem: &str, lines: &[&str], memory: &str) -> Result<Vec<Entry>, String> {
    let memory_of = |entry: &str| {
        let own = memory.split("; ").find_map(|part| part.strip_prefix(&format!("{entry}: "))).unwrap_or(memory);
        if own.starts_with("none") { Some(0.0) } else { own.split(" KiB").next()?.parse::<f64>().ok() }
    };
    let mut all = Vec::new();
    for line in lines {
        let before = line.split(" threads").next().filter(|b| b.len() < line.len());
        let threads = before.and_then(|b| b.rsplit(' ').next()?.parse().ok());
        let threads = threads.ok_or_else(|| format!("Launch: {line:?} has no number of threads"))?;
        let entry = match line.split_once(": grid") {
            Some((entry, _)) => entry,
            None => stem,
        };
        let shared_kib = memory_of(entry).ok_or_else(|| format!("Memory: nothing for {entry} in {memory:?}"))?;
        all.push(Entry { entry: entry.to_owned(), threads, shared_kib });
    }
    Ok(all)
}
