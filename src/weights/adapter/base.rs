//! Whether an adapter was made for a checkpoint. Shapes do not tell: the attention of Karlo's prior and of both Kandinskys'
//! has the same sizes, and an adapter of one spoils the others.

use super::Adapter;
use super::peft::PeftConfig;
use crate::error::Result;

/// Words in the names of families' published models, and how the classes of their pipelines begin. The first that fits.
const FAMILIES: &[(&[&str], &[&str])] = &[
    (&["kandinsky-2-2", "kandinsky-v2-2", "kandinsky2-2"], &["KandinskyV22"]),
    (&["kandinsky-2-1", "kandinsky-v2-1", "kandinsky2-1"], &["Kandinsky"]),
    // Karlo's prior serves Stable unCLIP, too.
    (&["karlo"], &["UnCLIP", "StableUnCLIP"]),
    (&["stable-diffusion-2-1-unclip", "stable-unclip"], &["StableUnCLIP"]),
    (&["sdxl", "stable-diffusion-xl"], &["StableDiffusionXL"]),
    (&["sd-v1", "stable-diffusion-v1"], &["StableDiffusion"]),
    (&["flux"], &["Flux"]),
];

/// Keys of metadata that name the base.
const KEYS: [&str; 2] = ["ss_sd_model_name", "ss_base_model_version"];

/// What the file says that it was made for.
pub(super) fn named(adapter: &Adapter, config: Option<&PeftConfig>) -> Option<String> {
    let metadata = adapter.file.metadata();
    let of_metadata = || KEYS.iter().find_map(|key| metadata.get(*key)).cloned();
    config.and_then(|config| config.base.clone()).or_else(of_metadata).filter(|name| !name.trim().is_empty())
}

/// A warning if it cannot be known that the adapter is for a checkpoint of these names and this class.
///
/// # Errors
/// It is known that it is for another family.
pub(super) fn compare(adapter: &Adapter, base: Option<&str>, names: &[String], class: &str) -> Result<Option<String>> {
    let name = adapter.name();
    let own = names.first().map_or("the checkpoint", String::as_str);
    let Some(base) = base else {
        return Ok(Some(format!(
            "{name}: nothing in it names the checkpoint that it was made for; shapes alone prove no match"
        )));
    };
    // Classes of Kandinsky 2.1 have no number.
    let is_of =
        |start: &&str| class.starts_with(*start) && (*start != "Kandinsky" || !class.starts_with("KandinskyV22"));
    let family = FAMILIES.iter().find(|(words, _)| words.iter().any(|word| plain(base).contains(word)));
    if family.is_some_and(|(_, starts)| !class.is_empty() && !starts.iter().any(is_of)) {
        return Err(adapter.refused(format!("made for {base}; {own} is another network, a {class}")));
    }
    let is_same = names.iter().any(|own| last(base) == last(own));
    let warning = || format!("{name}: made for {base}; shapes alone do not prove that {own} is the same");
    Ok((!is_same).then(warning))
}

/// In small letters, with one kind of hyphen.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['_', ' ', '.'], "-")
}

/// The last part of a path or name, without the ending of a file.
fn last(name: &str) -> String {
    let name = name.trim_end_matches(['/', '\\']);
    let part = name.rsplit(['/', '\\']).next().unwrap_or(name);
    plain(part.strip_suffix(".safetensors").unwrap_or(part))
}
