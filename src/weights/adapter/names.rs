//! What the names in adapter files mean. A name is the path of a module, mangled by the program that wrote it, and a
//! suffix that says which factor it is.
//!
//! | written by | path | suffixes |
//! | --- | --- | --- |
//! | diffusers 0.13 to 0.29, processors | `attn1.processor.to_q` for `attn1.to_q`, `to_out` for `to_out.0` | `_lora.down.weight` |
//! | the same, text encoders | `self_attn.to_q` for `self_attn.q_proj` | `_lora.down.weight` |
//! | diffusers without processors | as it is | `.lora.down.weight` |
//! | diffusers, text encoders | as it is | `.lora_linear_layer.down.weight` |
//! | peft, diffusers since 0.22 | as it is | `.lora_A.weight` |
//! | sd-scripts, LyCORIS | `_` for every `.` | `.lora_down.weight`, `.hada_w1_a` and others |
//!
//! In front there may be what says which network is meant. Nobody can tell where `to_out_0` had a point: paths are
//! looked up in a table of the network's own names, never taken apart.

/// Which factor of a module's difference a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Leaf {
    Down,
    Up,
    Mid,
    UpBias,
    Alpha,
    Scale,
    Magnitude,
    DoraScale,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Diff,
    DiffBias,
    NormWeight,
    NormBias,
}

/// Who wrote a file, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Naming {
    Processors,
    Diffusers,
    LinearLayer,
    Peft,
    Kohya,
}

impl Naming {
    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Naming::Processors => "attention processors of diffusers before 0.30",
            Naming::Diffusers => "diffusers, lora.down and lora.up",
            Naming::LinearLayer => "diffusers, lora_linear_layer",
            Naming::Peft => "peft",
            Naming::Kohya => "kohya and LyCORIS",
        }
    }
}

/// Suffixes. The first that fits is taken.
const SUFFIXES: &[(&str, Leaf, Naming)] = &[
    ("_lora.down.weight", Leaf::Down, Naming::Processors),
    ("_lora.up.weight", Leaf::Up, Naming::Processors),
    ("_lora.alpha", Leaf::Alpha, Naming::Processors),
    (".lora.down.weight", Leaf::Down, Naming::Diffusers),
    (".lora.up.weight", Leaf::Up, Naming::Diffusers),
    (".lora.alpha", Leaf::Alpha, Naming::Diffusers),
    (".lora_linear_layer.down.weight", Leaf::Down, Naming::LinearLayer),
    (".lora_linear_layer.up.weight", Leaf::Up, Naming::LinearLayer),
    (".lora_linear_layer.alpha", Leaf::Alpha, Naming::LinearLayer),
    (".lora_A.weight", Leaf::Down, Naming::Peft),
    (".lora_B.weight", Leaf::Up, Naming::Peft),
    (".lora_A.default.weight", Leaf::Down, Naming::Peft),
    (".lora_B.default.weight", Leaf::Up, Naming::Peft),
    (".lora_A", Leaf::Down, Naming::Peft),
    (".lora_B", Leaf::Up, Naming::Peft),
    (".lora_B.bias", Leaf::UpBias, Naming::Peft),
    (".lora_B.default.bias", Leaf::UpBias, Naming::Peft),
    (".lora_magnitude_vector", Leaf::Magnitude, Naming::Peft),
    (".lora_magnitude_vector.weight", Leaf::Magnitude, Naming::Peft),
    (".lora_magnitude_vector.default.weight", Leaf::Magnitude, Naming::Peft),
    (".lora_down.weight", Leaf::Down, Naming::Kohya),
    (".lora_up.weight", Leaf::Up, Naming::Kohya),
    (".lora_mid.weight", Leaf::Mid, Naming::Kohya),
    (".dora_scale", Leaf::DoraScale, Naming::Kohya),
    (".alpha", Leaf::Alpha, Naming::Kohya),
    (".scale", Leaf::Scale, Naming::Kohya),
    (".hada_w1_a", Leaf::HadaW1A, Naming::Kohya),
    (".hada_w1_b", Leaf::HadaW1B, Naming::Kohya),
    (".hada_w2_a", Leaf::HadaW2A, Naming::Kohya),
    (".hada_w2_b", Leaf::HadaW2B, Naming::Kohya),
    (".hada_t1", Leaf::HadaT1, Naming::Kohya),
    (".hada_t2", Leaf::HadaT2, Naming::Kohya),
    (".lokr_w1", Leaf::LokrW1, Naming::Kohya),
    (".lokr_w1_a", Leaf::LokrW1A, Naming::Kohya),
    (".lokr_w1_b", Leaf::LokrW1B, Naming::Kohya),
    (".lokr_w2", Leaf::LokrW2, Naming::Kohya),
    (".lokr_w2_a", Leaf::LokrW2A, Naming::Kohya),
    (".lokr_w2_b", Leaf::LokrW2B, Naming::Kohya),
    (".lokr_t2", Leaf::LokrT2, Naming::Kohya),
    (".diff", Leaf::Diff, Naming::Kohya),
    (".diff_b", Leaf::DiffBias, Naming::Kohya),
    (".w_norm", Leaf::NormWeight, Naming::Kohya),
    (".b_norm", Leaf::NormBias, Naming::Kohya),
];

/// Parts of names of kinds that are known and not read.
const REFUSED: &[(&str, &str)] = &[
    (".boft_", "BOFT"),
    (".oft_", "OFT"),
    (".oft_diag", "OFT"),
    (".ia3_", "IA3"),
    (".on_input", "IA3"),
    (".a1.weight", "GLoRA"),
    (".a2.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".b2.weight", "GLoRA"),
    (".bm1.weight", "GLoRA"),
    (".bm2.weight", "GLoRA"),
    (".down_list.", "DyLoRA"),
    (".up_list.", "DyLoRA"),
    (".vera_lambda_", "VeRA"),
    (".lora_E", "AdaLoRA"),
    (".lora_embedding_", "LoRA of embeddings"),
    (".hra_", "HRA"),
    ("fourierft_", "FourierFT"),
];

/// The path and the factor that a key names.
pub(super) fn parse(key: &str) -> Option<(&str, Leaf, Naming)> {
    SUFFIXES.iter().find_map(|(suffix, leaf, naming)| Some((key.strip_suffix(suffix)?, *leaf, *naming)))
}

/// The kind of adapter that a key belongs to, if it is one that is not read.
pub(super) fn refused(key: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(part, _)| key.contains(part)).map(|(_, kind)| *kind)
}

/// Components that a prefix may mean, the likelier first.
const UNETS: &[&str] = &["decoder", "unet", "prior", "prior_prior", "super_res_first", "super_res_last"];
const PRIORS: &[&str] = &["prior", "prior_prior"];
const TEXTS: &[&str] = &["text_encoder", "prior_text_encoder"];
/// The order in which components are tried for names without a prefix.
const ALL: &[&str] = &[
    "prior",
    "prior_prior",
    "decoder",
    "unet",
    "text_encoder",
    "prior_text_encoder",
    "super_res_first",
    "super_res_last",
    "image_encoder",
    "prior_image_encoder",
];

/// What stands in front of paths, and what it means.
const PREFIXES: &[(&str, &[&str])] = &[
    ("lora_unet_", UNETS),
    ("lora_prior_", PRIORS),
    ("lora_te_", TEXTS),
    ("lora_te1_", TEXTS),
    ("lora_te2_", &["text_encoder_2"]),
    ("lycoris_", ALL),
    ("unet.", UNETS),
    ("diffusion_model.", UNETS),
    ("text_encoder.", TEXTS),
    ("text_encoder_2.", &["text_encoder_2"]),
    ("prior.", PRIORS),
    ("transformer.", ALL),
];

/// What peft's folders have in front of everything.
const WRAPPED: &str = "base_model.model.";

/// A path with what says which network it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// What stood in front; empty for nothing.
    pub prefix: String,
    /// The path behind it.
    pub path: String,
}

impl Target {
    /// Takes a path apart, given the components of the checkpoint.
    pub fn of(stem: &str, components: &[&str]) -> Target {
        let stem = stem.strip_prefix(WRAPPED).unwrap_or(stem);
        let named = components.iter().flat_map(|name| [format!("{name}."), format!("lora_{name}_")]);
        let known = PREFIXES.iter().map(|(prefix, _)| (*prefix).to_owned());
        // The longest: `text_encoder_2.` is not `text_encoder`.
        let prefix = known.chain(named).filter(|prefix| stem.starts_with(prefix.as_str())).max_by_key(String::len);
        let prefix = prefix.unwrap_or_default();
        let path = stem[prefix.len()..].to_owned();
        Target { prefix, path }
    }

    /// The components of a checkpoint that it may belong to, the likelier first.
    pub fn candidates<'a>(&self, components: &[&'a str]) -> Vec<&'a str> {
        let of_prefix = PREFIXES.iter().find(|(prefix, _)| *prefix == self.prefix).map(|(_, names)| *names);
        let own = |name: &&str| format!("{name}.") == self.prefix || format!("lora_{name}_") == self.prefix;
        let there = |name: &&str| components.iter().copied().find(|component| component == name);
        let listed = of_prefix.or(self.prefix.is_empty().then_some(ALL)).unwrap_or_default().iter().filter_map(there);
        let mut all: Vec<&str> = components.iter().copied().filter(own).chain(listed).collect();
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|name| seen.insert(*name));
        all
    }

    /// How the path may be spelled in a component, with `_` for every point, the likelier first.
    pub fn spellings(&self, naming: Naming, component: &str) -> Vec<String> {
        let plain = flat(&self.path, component);
        if naming != Naming::Processors {
            return vec![plain];
        }
        let plain = plain.replace("_processor_", "_");
        let renamed = |from: &str, to: &str| plain.strip_suffix(from).map(|owner| format!("{owner}{to}"));
        let text = [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")];
        let texts = text.iter().filter_map(|(from, to)| renamed(from, to));
        let mut all: Vec<String> = renamed("to_out", "to_out_0").into_iter().chain(texts).collect();
        all.push(plain);
        all
    }
}

/// A path with `_` for every point, without the tower's name that text and image encoders may have in front, once or twice.
/// The other tower's stays: a whole CLIP has both in one file.
pub(super) fn flat(path: &str, component: &str) -> String {
    let tower = if component.contains("image") { "vision_model_" } else { "text_model_" };
    let flat = path.replace('.', "_");
    let mut rest = flat.as_str();
    while let Some(behind) = rest.strip_prefix(tower) {
        rest = behind;
    }
    rest.to_owned()
}

/// The name among `known` that takes the fewest changes to become `name`.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|other| distance(name, other))
}

/// Levenshtein's distance: letters put in, taken out or exchanged.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let exchanged = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = exchanged.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_which_network_is_meant() {
        let components = ["decoder", "prior", "super_res_first", "text_encoder"];
        for (stem, prefix, path, first) in [
            ("lora_unet_mid_block_x", "lora_unet_", "mid_block_x", Some("decoder")),
            ("base_model.model.mid_block.x", "", "mid_block.x", Some("prior")),
            ("base_model.model.decoder.x", "decoder.", "x", Some("decoder")),
            ("lora_super_res_first_x", "lora_super_res_first_", "x", Some("super_res_first")),
            ("text_encoder_2.x", "text_encoder_2.", "x", None),
            ("text_encoder.text_model.x", "text_encoder.", "text_model.x", Some("text_encoder")),
        ] {
            let target = Target::of(stem, &components);
            assert_eq!((target.prefix.as_str(), target.path.as_str()), (prefix, path), "{stem}");
            assert_eq!(target.candidates(&components).first().copied(), first, "{stem}");
        }
    }

    #[test]
    fn no_suffix_hides_another() {
        for (suffix, leaf, naming) in SUFFIXES {
            assert_eq!(parse(&format!("a.b{suffix}")), Some(("a.b", *leaf, *naming)));
        }
        assert_eq!((parse("a.weight"), refused("lora_unet_x.oft_blocks")), (None, Some("OFT")));
    }

    #[test]
    fn the_nearest_name_takes_the_fewest_changes() {
        assert_eq!([distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")], [3, 3, 0]);
        assert_eq!(nearest("to_w", ["add_k_proj", "to_q", "conv1"].into_iter()), Some("to_q"));
    }
}
