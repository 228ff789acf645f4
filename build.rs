//! Renders the PTX kernels' variants, and builds the default model into the library, each where its feature asks for it.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const MODEL: &str = "models/default";
/// The parts of a checkpoint that `Pipeline` opens.
const PARTS: [&str; 13] = [
    "model_index.json",
    "decoder",
    "decoder_scheduler",
    "feature_extractor",
    "image_encoder",
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
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    #[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
    kernels::render(&root.join("kernels"), &out);
    // A table of paths and contents, aligned so that weights are used in place like those of a mapped file. Only what
    // makes pictures goes in: no model card, no sheet of pictures.
    if env::var_os("CARGO_FEATURE_DEFAULT_MODEL").is_some() {
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

/// Rust source: `FILES`, pairs of a path relative to the checkpoint and the file's bytes; and `NAME`, which has a hash of
/// all bytes, so that a picture's settings say which model drew it.
fn table(root: &Path, files: &[PathBuf]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let bytes = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // FNV-1a, eight bytes at a time.
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let mut source = format!("pub static NAME: &str = \"built-in model {:08x}\";\n", hash >> 32);
    source += "pub static FILES: &[(&str, &[u8])] = &[\n";
    for file in files {
        let relative = file.strip_prefix(root).expect("it was found there");
        let relative = relative.to_str().expect("ASCII names").replace('\\', "/");
        let absolute = file.to_str().expect("a path in UTF-8");
        writeln!(source, "    ({relative:?}, &Aligned(*include_bytes!({absolute:?})).0),").expect("to a string");
    }
    source + "];\n"
}

/// Kernels are templates whose directives are comments in PTX: `//% for`, `//% if`, and `${...}` for a value. A kernel's
/// header lists its axes, `Variants  source: f32 f16; elem: f32 source`, and every combination becomes a text of its own;
/// an `elem` of `source` is the same type again. `stored` is a source of any type that a file may have, whatever the type
/// of the plan. `//% import "x.ptx" as x` takes macros from `kernels/shared/x.ptx`.
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
mod kernels {
    use super::{Path, PathBuf, Write, fs};
    use minijinja::syntax::SyntaxConfig;
    use minijinja::{Environment, UndefinedBehavior, path_loader};
    use std::collections::BTreeMap;

    type Variant = BTreeMap<String, String>;

    /// Writes all texts, and `kernels.rs`, which lists them.
    pub fn render(folder: &Path, out: &Path) {
        println!("cargo::rerun-if-changed={}", folder.display());
        let environment = environment(&folder.join("shared"));
        let mut table = String::from("/// All variants of all kernels, by stem.\npub static KERNELS: &[Kernel] = &[\n");
        let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "ptx"));
        files.sort();
        for file in files {
            println!("cargo::rerun-if-changed={}", file.display());
            let stem = file.file_stem().and_then(|s| s.to_str()).expect("ASCII names");
            let template = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            for variant in variants(stem, &template) {
                let text = environment.render_named_str(&file.display().to_string(), &template, &variant);
                // The message has the file and the line.
                let text = text.unwrap_or_else(|e| panic!("{e:#}"));
                let values: Vec<&str> = variant.values().map(String::as_str).collect();
                let path = out.join(format!("{stem}.{}.ptx", values.join(".")));
                fs::write(&path, text + "\n").expect("OUT_DIR can be written");
                let element = |axis: &str| match variant.get(axis).map(String::as_str) {
                    None => "None",
                    Some("f32") => "Some(Dtype::F32)",
                    Some("f16") => "Some(Dtype::F16)",
                    Some("bf16") => "Some(Dtype::Bf16)",
                    Some(other) => panic!("{stem}: {other} is not a tensor type"),
                };
                let source = if variant.contains_key("stored") { "stored" } else { "source" };
                let (source, elem, path) = (element(source), element("elem"), path.to_str().expect("UTF-8"));
                let row = format!("source: {source}, elem: {elem}, text: include_str!({path:?})");
                writeln!(table, "    Kernel {{ stem: {stem:?}, {row} }},").expect("to a string");
            }
        }
        fs::write(out.join("kernels.rs"), table + "];\n").expect("OUT_DIR can be written");
    }

    /// All combinations of the axes that the header names.
    fn variants(stem: &str, template: &str) -> Vec<Variant> {
        let line = template.lines().find_map(|l| l.strip_prefix("// Variants"));
        let line = line.unwrap_or_else(|| panic!("{stem}: the header has no Variants"));
        let mut all = vec![Variant::new()];
        for (axis, values) in line.split(';').filter_map(|part| part.split_once(':')) {
            let longer = |variant: &Variant| {
                let mut many = Vec::new();
                for value in values.split_whitespace() {
                    let value = variant.get(value).map_or(value, String::as_str);
                    let mut variant = variant.clone();
                    variant.insert(axis.trim().to_owned(), value.to_owned());
                    // A plan has at most one half-precision type.
                    let is = |a: &str, b: &str| {
                        let value = |axis: &str| variant.get(axis).map(String::as_str);
                        value("source") == Some(a) && value("elem") == Some(b)
                    };
                    if !is("f16", "bf16") && !is("bf16", "f16") {
                        many.push(variant);
                    }
                }
                many
            };
            all = all.iter().flat_map(longer).collect();
        }
        all.sort();
        all.dedup();
        all
    }

    fn environment(shared: &Path) -> Environment<'static> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .line_statement_prefix("//%")
            .variable_delimiters("${", "}")
            // The default, `{%`, begins a vector of registers.
            .block_delimiters("//%{", "}%")
            .build();
        environment.set_syntax(syntax.expect("the delimiters differ"));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_loader(path_loader(shared));
        environment.add_function("bytes", |kind: &str| if kind == "f32" { 4 } else { 2 });
        environment.add_function("list", list);
        environment.add_function("float", |value: f32| format!("0f{:08X}", value.to_bits()));
        environment
    }

    /// Names of numbered registers, with commas between.
    fn list(name: &str, from: usize, count: usize) -> String {
        (from..from + count).map(|n| format!("%{name}{n}")).collect::<Vec<_>>().join(", ")
    }
}
