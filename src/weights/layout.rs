//! Which files of a component's folder are its weights.
//!
//! A component is one file, or shards with an index. Names begin with `diffusion_pytorch_model` (diffusers classes) or
//! `model` (transformers classes); files are plain or of a named variant such as `fp16`. The spellings:
//!
//! | | plain | variant |
//! | --- | --- | --- |
//! | one file | `stem.safetensors` | `stem.fp16.safetensors` |
//! | index | `stem.safetensors.index.json` | `stem.safetensors.index.fp16.json`, older `stem.fp16.safetensors.index.json` and `stem.safetensors.fp16.index.json` |
//! | shard | `stem-00001-of-00002.safetensors` | `stem.fp16-00001-of-00002.safetensors`, older `stem-00001-of-00002.fp16.safetensors` |
//!
//! Only names are looked at; no file is opened.

use std::collections::BTreeMap;

const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const PICKLES: [&str; 2] = ["diffusion_pytorch_model", "pytorch_model"];

/// The files to open for a component, as names within its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The files' variant; `None` for plain ones.
    pub variant: Option<String>,
    /// The one weight file, or the index that names the shards.
    pub files: Files,
}

/// One file or an index of shards.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Files {
    Single(String),
    Sharded { index: String },
}

/// Why no file could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are weights, but only in a format that is not supported.
    Unsupported(String),
    /// What was expected and what is there.
    Missing(String),
}

/// Chooses the weight files among the `names` in a folder.
///
/// With a `variant`, its files, or else the plain ones. Without one, the plain files, or else the only variant.
///
/// # Errors
/// A [`Refusal`] that says what was expected and what is there.
pub fn choose(names: &[String], variant: Option<&str>) -> Result<Choice, Refusal> {
    let mut shards_alone = None;
    for stem in STEMS {
        let mut found: BTreeMap<Option<String>, Files> = BTreeMap::new();
        for name in names {
            let Some((variant, kind)) = classify(name, stem) else { continue };
            match kind {
                Kind::Single => _ = found.insert(variant, Files::Single(name.clone())),
                // A single file is preferred to an index: both have the same weights.
                Kind::Index => _ = found.entry(variant).or_insert_with(|| Files::Sharded { index: name.clone() }),
                Kind::Shard => _ = shards_alone.get_or_insert_with(|| (name.clone(), stem)),
            }
        }
        if found.is_empty() {
            continue;
        }
        let wanted = match variant {
            Some(v) => Some(v.to_string()),
            None if found.contains_key(&None) || found.len() > 1 => None,
            None => found.keys().next().cloned().flatten(),
        };
        for wanted in [wanted, None] {
            if let Some(files) = found.get(&wanted) {
                return Ok(Choice { variant: wanted, files: files.clone() });
            }
        }
        let there: Vec<&str> = found.keys().map(|v| v.as_deref().unwrap_or("the plain files")).collect();
        let there = there.join(", ");
        return Err(Refusal::Missing(match variant {
            Some(v) => format!("expected weights of variant {v}, found {there}"),
            None => format!("found only the variants {there}: choose one of them"),
        }));
    }
    if let Some((shard, stem)) = shards_alone {
        return Err(Refusal::Missing(format!("found {shard} without its index {stem}.safetensors.index.json")));
    }
    let pickle = names.iter().find(|name| name.ends_with(".bin") && PICKLES.iter().any(|stem| name.starts_with(stem)));
    Err(match pickle {
        Some(name) => Refusal::Unsupported(format!(
            "only {name} (a pickle) is there; convert the weights to {}.safetensors",
            if name.starts_with(STEMS[0]) { STEMS[0] } else { STEMS[1] }
        )),
        None => Refusal::Missing(format!("expected weights in {}.safetensors or {}.safetensors", STEMS[0], STEMS[1])),
    })
}

/// The variants of which there are weights among the `names` in a folder.
pub fn variants(names: &[String]) -> Vec<String> {
    let of_name = |name: &String| {
        let (variant, kind) = STEMS.iter().find_map(|stem| classify(name, stem))?;
        variant.filter(|_| kind != Kind::Shard)
    };
    names.iter().filter_map(of_name).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Single,
    Index,
    Shard,
}

/// Parses a file name; `None` if it is not a weight file of this stem.
fn classify(name: &str, stem: &str) -> Option<(Option<String>, Kind)> {
    let rest = name.strip_prefix(stem)?;
    let plain = |kind| Some((None, kind));
    let variant = |v: &str, kind| is_variant(v).then(|| (Some(v.to_string()), kind));
    if let Some(rest) = rest.strip_suffix(".json") {
        if let Some(v) = rest.strip_prefix(".safetensors.index.") {
            return variant(v, Kind::Index);
        }
        let rest = rest.strip_suffix(".index")?;
        if rest == ".safetensors" {
            return plain(Kind::Index);
        }
        let v = rest.strip_prefix(".safetensors.").or_else(|| rest.strip_suffix(".safetensors")?.strip_prefix('.'))?;
        return variant(v, Kind::Index);
    }
    let rest = rest.strip_suffix(".safetensors")?;
    if rest.is_empty() {
        return plain(Kind::Single);
    }
    if let Some(numbered) = rest.strip_prefix('-') {
        // "00001-of-00002", or the older "00001-of-00002.fp16"
        return match numbered.split_once('.') {
            None => is_numbering(numbered).then_some((None, Kind::Shard)),
            Some((n, v)) => is_numbering(n).then(|| variant(v, Kind::Shard)).flatten(),
        };
    }
    let v = rest.strip_prefix('.')?;
    match v.split_once('-') {
        Some((v, n)) if is_numbering(n) => variant(v, Kind::Shard),
        _ => variant(v, Kind::Single),
    }
}

/// `00001-of-00002`
fn is_numbering(s: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    s.split_once("-of-").is_some_and(|(k, n)| digits(k) && digits(n))
}

fn is_variant(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    fn single(variant: Option<&str>, file: &str) -> Result<Choice, Refusal> {
        Ok(Choice { variant: variant.map(str::to_string), files: Files::Single(file.into()) })
    }

    fn sharded(variant: Option<&str>, index: &str) -> Result<Choice, Refusal> {
        Ok(Choice { variant: variant.map(str::to_string), files: Files::Sharded { index: index.into() } })
    }

    #[test]
    fn plain_files_win_without_a_requested_variant() {
        let all = names(&["config.json", "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin"]);
        assert_eq!(choose(&all, None), single(None, "model.safetensors"));
        assert_eq!(choose(&all, Some("fp16")), single(Some("fp16"), "model.fp16.safetensors"));
    }

    #[test]
    fn an_only_variant_is_taken_unasked() {
        let one = names(&["diffusion_pytorch_model.fp16.safetensors"]);
        assert_eq!(choose(&one, None), single(Some("fp16"), "diffusion_pytorch_model.fp16.safetensors"));
    }

    #[test]
    fn several_variants_without_plain_files_are_named() {
        let two = names(&["model.fp16.safetensors", "model.bf16.safetensors"]);
        let Err(Refusal::Missing(text)) = choose(&two, None) else { panic!("chose one") };
        assert!(text.contains("bf16, fp16"), "{text}");
    }

    #[test]
    fn without_the_requested_variant_the_plain_files_are_taken_but_no_other_variant() {
        let plain = names(&["model.safetensors", "model.bf16.safetensors"]);
        assert_eq!(choose(&plain, Some("fp16")), single(None, "model.safetensors"));
        let Err(Refusal::Missing(text)) = choose(&plain[1..], Some("fp16")) else { panic!("chose one") };
        assert!(text.contains("fp16") && text.contains("found bf16"), "{text}");
        let shard = names(&["model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"]);
        assert_eq!(variants(&shard), ["fp16"]);
        assert_eq!(variants(&plain), ["bf16"]);
    }

    #[test]
    fn every_spelling_of_an_index_is_known() {
        let shards = ["model-00001-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors"];
        for (index, variant) in [
            ("model.safetensors.index.json", None),
            ("model.safetensors.index.fp16.json", Some("fp16")),
            ("model.fp16.safetensors.index.json", Some("fp16")),
            ("model.safetensors.fp16.index.json", Some("fp16")),
        ] {
            let all = names(&[&shards[..], &[index]].concat());
            assert_eq!(choose(&all, None), sharded(variant, index), "{index}");
            assert_eq!(choose(&all, variant), sharded(variant, index), "{index}");
        }
    }

    #[test]
    fn shards_are_not_mistaken_for_variants() {
        for shard in [
            "model-00001-of-00002.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "model-00001-of-00002.fp16.safetensors",
        ] {
            let Err(Refusal::Missing(text)) = choose(&names(&[shard]), None) else { panic!("chose {shard}") };
            assert!(text.contains("without its index"), "{text}");
        }
    }

    #[test]
    fn pickles_alone_are_refused_by_name() {
        for (bin, target) in [
            ("pytorch_model.bin", " model.safetensors"),
            ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
            ("pytorch_model-00001-of-00002.bin", " model.safetensors"),
        ] {
            let Err(Refusal::Unsupported(text)) = choose(&names(&[bin]), None) else { panic!("chose {bin}") };
            assert!(text.contains(bin) && text.contains(target), "{text}");
        }
    }

    #[test]
    fn other_files_are_not_weights() {
        for other in ["config.json", "model.safetensors.bak", "modelling.safetensors", "model..safetensors", "x.txt"] {
            let Err(Refusal::Missing(text)) = choose(&names(&[other]), None) else { panic!("chose {other}") };
            assert!(text.starts_with("expected weights in"), "{other}: {text}");
        }
    }
}
