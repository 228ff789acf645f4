//! `engine inspect style.safetensors`: what an adapter changes and how strongly; with a checkpoint, what of it would not
//! apply, and why.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use unclip::weights::adapter::{Fit, Module};
use unclip::weights::{Adapter, Checkpoint};
use unclip::{Error, Result};

/// Most characters of a line of metadata.
const MOST: usize = 100;
/// Tags that are shown of those that pictures had.
const TAGS: usize = 10;

/// Prints what the file holds.
///
/// # Errors
/// It is no adapter, cannot be read, or does not fit the checkpoint; that after everything has been printed.
pub fn inspect(path: &Path, base: Option<&Checkpoint>, as_json: bool) -> Result<()> {
    let adapter = Adapter::open(path)?;
    let fit = base.map(|base| adapter.fit(base)).transpose()?;
    let modules =
        fit.as_ref().filter(|fit| !fit.modules.is_empty()).map_or_else(|| adapter.modules(), |fit| fit.modules.clone());
    super::print(&if as_json {
        format!("{}\n", report(&adapter, &modules, fit.as_ref()))
    } else {
        table(&adapter, &modules, fit.as_ref(), base)
    })?;
    match (&fit, base) {
        (Some(fit), Some(base)) if !fit.problems.is_empty() => {
            let count = fit.problems.len();
            let reason = format!("does not fit {}: {count} {}", base.name(), plural(count, "problem"));
            Err(Error::WeightFile { path: path.to_path_buf(), reason })
        }
        _ => Ok(()),
    }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

/// How often each value occurs.
fn counted<K: Ord>(values: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0) += 1);
    counts
}

/// `LoRA (12), LoCon (3)`; a value that all have stands alone.
fn listed<K: std::fmt::Display>(counts: &BTreeMap<K, usize>) -> String {
    match counts.len() {
        1 => counts.keys().map(ToString::to_string).collect(),
        _ => counts.iter().map(|(key, count)| format!("{key} ({count})")).collect::<Vec<_>>().join(", "),
    }
}

/// What a module is called in its block: numbers say which of several equal ones it is.
fn target(module: &Module) -> String {
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let separators = ['.', '_'];
    match module.path.contains('.') {
        // `attn1.to_out.0` is `to_out.0`.
        true => {
            let parts: Vec<&str> = module.path.split('.').collect();
            let named = parts.iter().rposition(|part| !is_number(part)).unwrap_or(0);
            parts[named..].join(".")
        }
        // Of a name without points nobody knows where the last part begins.
        false => module.path.trim_matches(separators).to_owned(),
    }
}

/// A scale in as few digits as tell it from others.
fn scales(modules: &[Module]) -> BTreeMap<String, usize> {
    counted(modules.iter().map(|module| module.scale.to_string()))
}

fn table(adapter: &Adapter, modules: &[Module], fit: Option<&Fit>, base: Option<&Checkpoint>) -> String {
    let mut text = format!("{}\n", adapter.path().display());
    let mut line = |name: &str, what: &str| _ = writeln!(text, "{name:<11} {what}");
    let tensors = adapter.tensors();
    let dtypes = counted(tensors.values().map(|info| info.dtype.to_string()));
    line("layout", &adapter.layouts().join(", "));
    line("kind", &listed(&counted(modules.iter().map(|module| module.kind))));
    line("tensors", &format!("{}, {}", tensors.len(), listed(&dtypes)));
    let ranks = counted(modules.iter().filter_map(|module| module.rank));
    line("rank", &if ranks.is_empty() { "none".to_owned() } else { listed(&ranks) });
    line("scale", &listed(&scales(modules)));
    line("base", adapter.base().as_deref().unwrap_or("not named"));
    line("sha256", adapter.digest());
    let mut by_component: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for module in modules {
        by_component.entry(&module.component).or_default().push(target(module));
    }
    for (component, targets) in by_component {
        let shown = counted(targets.into_iter());
        let shown: Vec<String> = shown.iter().map(|(name, count)| format!("{name} x{count}")).collect();
        let what = if shown.len() > 12 { format!("{} modules", shown.len()) } else { shown.join(", ") };
        line(if component.is_empty() { "targets" } else { component }, &what);
    }
    for (key, value) in adapter.notes() {
        line("", &format!("{key}: {}", shortened(&note(key, value))));
    }
    let Some((fit, base)) = fit.zip(base) else { return text };
    let (good, problems) = (fit.modules.len(), fit.problems.len());
    let rest = if problems == 0 { String::new() } else { format!(", {problems} {}", plural(problems, "problem")) };
    line("fits", &format!("{}: {good} {}{rest}", base.name(), plural(good, "tensor")));
    fit.problems.iter().for_each(|problem| line("", &format!("would not apply: {problem}")));
    fit.warnings.iter().for_each(|warning| line("", &format!("warning: {warning}")));
    text
}

/// A value of the metadata; of tags the most frequent.
fn note(key: &str, value: &str) -> String {
    let parsed: Option<Value> =
        Some(value).filter(|_| key == "ss_tag_frequency").and_then(|v| serde_json::from_str(v).ok());
    let Some(folders) = parsed.as_ref().and_then(Value::as_object) else { return value.to_owned() };
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (tag, count) in folders.values().filter_map(Value::as_object).flatten() {
        *sums.entry(tag.trim()).or_default() += count.as_u64().unwrap_or(0);
    }
    let mut tags: Vec<(&str, u64)> = sums.into_iter().collect();
    tags.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    tags.truncate(TAGS);
    tags.iter().map(|(tag, count)| format!("{tag} ({count})")).collect::<Vec<_>>().join(", ")
}

/// In one line that fits.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn report(adapter: &Adapter, modules: &[Module], fit: Option<&Fit>) -> Value {
    let module = |m: &Module| json!({ "component": m.component, "path": m.path, "kind": m.kind, "rank": m.rank, "scale": m.scale });
    json!({
        "path": adapter.path().display().to_string(), "name": adapter.name(), "sha256": adapter.digest(),
        "layouts": adapter.layouts(), "base": adapter.base(), "tensors": adapter.tensors().len(),
        "metadata": adapter.notes().into_iter().collect::<BTreeMap<_, _>>(),
        "modules": modules.iter().map(module).collect::<Vec<_>>(),
        "problems": fit.map(|fit| &fit.problems), "warnings": fit.map(|fit| &fit.warnings),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_what_modules_are_called_in_their_block() {
        let module =
            |path: &str| Module { component: String::new(), path: path.into(), kind: "LoRA", rank: None, scale: 1.0 };
        let names = ["a.0.attn1.to_out.0", "mid.conv_in", "lora_x", "ff.net.2"].map(|path| target(&module(path)));
        assert_eq!(names, ["to_out.0", "conv_in", "lora_x", "net.2"]);
    }

    #[test]
    fn notes_fit_a_line_and_tags_come_by_their_number() {
        let tags = r#"{"a": {"cat": 2, "dog ": 5}, "b": {"cat": 4}}"#;
        assert_eq!(note("ss_tag_frequency", tags), "cat (6), dog (5)");
        assert_eq!(note("ss_training_comment", tags), tags);
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"x".repeat(101)), "x".repeat(100) + "...");
    }
}
