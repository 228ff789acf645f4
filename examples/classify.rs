//! What a picture shows, with the library alone: `cargo run --release --example classify -- picture.png cat dog "a red car"`.
//!
//! `ENGINE_MODEL` names the folder of another checkpoint: one of Karlo's kind, or a CLIP of transformers.

use std::ops::ControlFlow;
use unclip::backend::cpu::Cpu;
use unclip::image::{Image, ReadOptions};
use unclip::pipeline::{Classify, Pipeline};
use unclip::weights::{self, Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| Error::request("usage", "classify PICTURE LABEL LABEL .."))?;
    let checkpoint = match std::env::var_os("ENGINE_MODEL") {
        Some(folder) => Checkpoint::open(folder, LoadOptions::default())?,
        None => weights::default_model()?,
    };
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(0)?))?;
    let classify = Classify::new(arguments).templates(["a photo of a {}", "a drawing of a {}"]);
    let observer = &mut |_: unclip::pipeline::Event<'_>| ControlFlow::Continue(());
    // Labels are encoded once, for any number of pictures.
    let classifier = pipeline.classifier(&classify, observer)?;
    let image = Image::read(&path, &ReadOptions::default())?;
    for score in &pipeline.classify(&classifier, &[image], observer)?[0] {
        println!("{:6.2} %  {}", 100.0 * score.probability, classifier.labels()[score.label]);
    }
    Ok(())
}
