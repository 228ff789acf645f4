//! Adapters: every layout's merged weights and adapted layers against those of the original libraries, what is refused, and
//! pictures. `tests/golden/make_adapters.py` made the files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "adapters/layouts.rs"]
mod layouts;
#[cfg(feature = "tokenizer")]
#[path = "adapters/pictures.rs"]
mod pictures;
#[path = "adapters/refusals.rs"]
mod refusals;
mod support;

use std::path::PathBuf;
use support::golden::MODEL;
use unclip::weights::{Adapter, Adapters, Checkpoint, LoadOptions};

/// An adapter of `tests/golden/adapters`: a file, or a folder of peft.
fn path(name: &str) -> PathBuf {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/adapters"));
    let file = folder.join(format!("{name}.safetensors"));
    if file.is_file() { file } else { folder.join(name) }
}

fn open(name: &str) -> Adapter {
    Adapter::open(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn tiny() -> Checkpoint {
    Checkpoint::open(MODEL, LoadOptions::default()).unwrap()
}

/// One adapter on the tiny checkpoint.
fn on_tiny(name: &str, scale: f32) -> Adapters {
    Adapters::new(&tiny(), vec![(open(name), scale)]).unwrap_or_else(|e| panic!("{name}: {e}"))
}
