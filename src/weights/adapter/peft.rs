//! What peft says of an adapter beside its tensors: `adapter_config.json` of a folder, or the same as JSON in a file's
//! metadata under `lora_adapter_metadata`, where keys may have the prefix of the tensors' names in front.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;

/// What decides an adapter's scale, and what it was made for.
#[derive(Debug)]
pub(super) struct PeftConfig {
    rank: f64,
    alpha: f64,
    /// Whether the scale is `alpha / sqrt(r)` (Kalajdzievski 2023).
    root: bool,
    ranks: Vec<Pattern>,
    alphas: Vec<Pattern>,
    /// Whether it is peft's own LoKr, whose scale is `alpha / r` even where both factors are whole.
    is_lokr: bool,
    /// The base that it names.
    pub base: Option<String>,
}

/// A number for modules whose paths match.
#[derive(Debug)]
struct Pattern {
    expression: regex_lite::Regex,
    value: f64,
}

/// Training methods that change the base as well, so that the adapter alone is not what was trained.
const CHANGED_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl PeftConfig {
    /// Reads the object; `prefix` is what its keys may have in front.
    ///
    /// # Errors
    /// The key and what it must be.
    pub fn read(json: &str, prefix: &str) -> Result<PeftConfig, String> {
        let malformed = |e: serde_json::Error| format!("expected an object: {e}");
        let entries: BTreeMap<String, &RawValue> = serde_json::from_str(json).map_err(malformed)?;
        // Of a model's own file nothing has a prefix.
        let find = |key: &str| entries.get(&format!("{prefix}{key}")).or_else(|| entries.get(key)).copied();
        let plain = |key: &str| {
            let value: Option<Value> = find(key).and_then(|raw| serde_json::from_str(raw.get()).ok());
            value.filter(|value| !value.is_null())
        };
        let number = |key: &str| match plain(key) {
            None => Ok(None),
            Some(value) => {
                let number = value.as_f64().filter(|n| n.is_finite());
                number.map(Some).ok_or_else(|| format!("{key}: expected a number, found {value}"))
            }
        };
        let text = |key: &str| plain(key).and_then(|value| value.as_str().map(str::to_owned));
        let flag = |key: &str| plain(key).and_then(|value| value.as_bool()).unwrap_or(false);
        let kind = text("peft_type").unwrap_or_else(|| "LORA".to_owned());
        if !["LORA", "LOHA", "LOKR"].contains(&kind.as_str()) {
            return Err(format!("peft_type: expected LORA, LOHA or LOKR, found {kind}"));
        }
        if flag("fan_in_fan_out") {
            return Err("fan_in_fan_out: expected false, no layer here is stored turned".into());
        }
        let start = text("init_lora_weights").unwrap_or_default().to_lowercase();
        if CHANGED_BASE.iter().any(|method| start.starts_with(method)) {
            return Err(format!(
                "init_lora_weights: {start} changes the base, too; convert it to a plain LoRA in peft"
            ));
        }
        let is_lora = kind == "LORA";
        let alpha = if is_lora { number("lora_alpha")? } else { number("alpha")? };
        let rank = number("r")?.unwrap_or(8.0);
        let patterns = |key: &str| {
            let Some(raw) = find(key).filter(|raw| raw.get() != "null") else { return Ok(Vec::new()) };
            let InOrder(entries) = serde_json::from_str(raw.get()).map_err(|e| format!("{key}: {}", malformed(e)))?;
            entries.iter().map(|(path, value)| pattern(key, path, value)).collect::<Result<_, String>>()
        };
        Ok(PeftConfig {
            rank,
            // What is not said is 1, as for every other layout.
            alpha: alpha.unwrap_or(rank),
            root: flag("use_rslora"),
            ranks: patterns("rank_pattern")?,
            alphas: patterns("alpha_pattern")?,
            is_lokr: kind == "LOKR",
            base: text("base_model_name_or_path"),
        })
    }

    /// The scale of the module at `path`, whose tensors have this rank, if any.
    pub fn scale(&self, path: &str, rank: Option<usize>) -> f32 {
        let named = |patterns: &[Pattern]| patterns.iter().find(|p| p.expression.is_match(path)).map(|p| p.value);
        let alpha = named(&self.alphas).unwrap_or(self.alpha);
        let rank = match rank {
            Some(rank) => rank as f64,
            None if self.is_lokr => named(&self.ranks).unwrap_or(self.rank),
            None => return 1.0,
        };
        (alpha / if self.root { rank.sqrt() } else { rank }) as f32
    }
}

/// peft matches a key against the end of a path, behind a point or all of it.
fn pattern(of: &str, path: &str, value: &Value) -> Result<Pattern, String> {
    let expression = regex_lite::Regex::new(&format!(r"^(?:.*\.)?(?:{path})$"))
        .map_err(|e| format!("{of}: {path:?} is no regular expression that is known here: {e}"))?;
    let value = value.as_f64().ok_or_else(|| format!("{of}: {path:?}: expected a number, found {value}"))?;
    Ok(Pattern { expression, value })
}

/// An object's entries in their order, which decides between patterns.
struct InOrder(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> PeftConfig {
        PeftConfig::read(json, "unet.").unwrap()
    }

    #[test]
    fn the_first_pattern_that_matches_the_end_of_a_path_decides() {
        let json =
            r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"z.to_q": 2, "to_[qk]": 6.0, "to_q": 1, "0.to_v|b": 3}}"#;
        let config = config(json);
        let scales =
            ["a.to_q", "z.to_q", "to_k", "ato_k", "a.0.to_v", "a.b", "a.10.to_v"].map(|p| config.scale(p, Some(2)));
        assert_eq!(scales, [3.0, 1.0, 3.0, 4.0, 1.5, 1.5, 4.0]);
    }

    #[test]
    fn keys_may_have_the_prefix_of_the_tensors() {
        for json in [
            r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": true}"#,
            r#"{"r": 4, "lora_alpha": 8, "use_rslora": true}"#,
        ] {
            assert_eq!(config(json).scale("x", Some(4)), 4.0);
        }
        assert_eq!(config(r#"{"r": 16}"#).scale("x", Some(16)), 1.0);
    }

    #[test]
    fn whole_factors_have_a_scale_in_pefts_lokr_alone() {
        let scale = |kind: &str| config(&format!(r#"{{"peft_type": "{kind}", "r": 4, "alpha": 8}}"#)).scale("x", None);
        assert_eq!([scale("LOKR"), scale("LOHA")], [2.0, 1.0]);
    }

    #[test]
    fn what_changes_more_than_the_adapter_is_refused() {
        for (json, part) in [
            (r#"{"peft_type": "OFT"}"#, "found OFT"),
            (r#"{"fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"init_lora_weights": "pissa_niter_4"}"#, "changes the base"),
            (r#"{"lora_alpha": "8"}"#, "lora_alpha: expected a number"),
            (r#"{"alpha_pattern": {"(": 8}}"#, "no regular expression"),
            ("[]", "expected an object"),
        ] {
            let error = PeftConfig::read(json, "").unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
