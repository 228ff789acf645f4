//! Builds the default model into the library, where the feature asks for it.
//!
//! Writes a table of paths and contents of `models/default`, aligned so that weights are used in place like those of a
//! mapped file. Only what makes text into pictures goes in: no model card, no sheet of pictures, no image encoder.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const MODEL: &str = "models/default";
/// The parts of a checkpoint that `Pipeline` opens.
const PARTS: [&str; 11] = [
    "model_index.json",
    "decoder",
    "decoder_scheduler",
    "prior",
    "prior_scheduler",
    "super_res_first",
    "super_res_last",
    "super_res_scheduler",
    "text_encoder",
    "text_proj",
    "tokenizer",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DEFAULT_MODEL").is_some() {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        let mut files = Vec::new();
        for part in PARTS {
            collect(&root.join(MODEL).join(part), &mut files);
        }
        let table = table(&root.join(MODEL), &files);
        fs::write(out.join("default_model.rs"), table).expect("OUT_DIR can be written");
    }
}

/// The files at or below a path, sorted.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", path.display());
    if path.is_file() {
        return files.push(path.to_path_buf());
    }
    let entries = fs::read_dir(path);
    let entries = entries.unwrap_or_else(|e| panic!("{}: {e}; the feature default-model needs it", path.display()));
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    entries.sort();
    entries.iter().for_each(|entry| collect(entry, files));
}

/// Rust source: `FILES`, pairs of a path relative to the checkpoint and the file's bytes.
fn table(root: &Path, files: &[PathBuf]) -> String {
    let mut source = String::from("pub static FILES: &[(&str, &[u8])] = &[\n");
    for file in files {
        let relative = file.strip_prefix(root).expect("it was found there");
        let relative = relative.to_str().expect("ASCII names").replace('\\', "/");
        let absolute = file.to_str().expect("a path in UTF-8");
        writeln!(source, "    ({relative:?}, &Aligned(*include_bytes!({absolute:?})).0),").expect("to a string");
    }
    source + "];\n"
}
