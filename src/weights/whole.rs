//! A CLIP as transformers saves it: both towers, the tokenizer and the pictures' preparation side by side in one folder.
//!
//! ```text
//! config.json                    of both towers, in `text_config` and `vision_config`
//! model.safetensors              text_model.*, vision_model.*, text_projection, visual_projection, logit_scale
//! preprocessor_config.json       or `image_processor` of processor_config.json
//! tokenizer.json                 or vocab.json and merges.txt
//! ```
//!
//! It is read as a checkpoint in diffusers' layout whose components all are this folder.

use std::path::Path;

use serde_json::Value;

/// What diffusers' `model_index.json` would be.
pub const INDEX: &[u8] = br#"{
  "_class_name": "CLIPModel",
  "feature_extractor": ["transformers", "CLIPImageProcessor"],
  "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
  "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
  "tokenizer": ["transformers", "CLIPTokenizer"]
}"#;

/// Components, and the files of which one must be there.
const COMPONENTS: [(&str, &[&str]); 4] = [
    ("feature_extractor", &["preprocessor_config.json", "processor_config.json"]),
    ("image_encoder", &["config.json"]),
    ("text_encoder", &["config.json"]),
    ("tokenizer", &["tokenizer.json", "vocab.json"]),
];

/// Whether the folder's own `config.json` is that of a whole CLIP.
pub fn is_whole(dir: &Path) -> bool {
    let bytes = std::fs::read(dir.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    config["model_type"] == "clip" && config["text_config"].is_object() && config["vision_config"].is_object()
}

/// The path inside the folder of a component's file; of a component alone, that of a file that makes it up.
pub fn inside<'a>(dir: &Path, relative: &'a str) -> &'a str {
    let (component, file) = relative.split_once('/').unwrap_or((relative, ""));
    let there = |files: &[&'static str]| files.iter().copied().find(|file| dir.join(file).exists());
    match COMPONENTS.iter().find(|(name, _)| *name == component) {
        None => relative,
        Some((_, files)) if file.is_empty() || files.contains(&file) && component == "feature_extractor" => {
            there(files).unwrap_or(files[0])
        }
        Some(_) => file,
    }
}
