//! A picture four times as large, with the library alone: `cargo run --release --example enlarge -- small.png big.png`.
//!
//! `ENGINE_MODEL` names the folder of another checkpoint of Karlo's kind.

use std::ops::ControlFlow;
use unclip::backend::cpu::Cpu;
use unclip::image::{Format, Image, ReadOptions, Texts};
use unclip::pipeline::{Enlarge, Event, Pipeline};
use unclip::weights::{self, Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [small, big] = &arguments[..] else { return Err(Error::request("usage", "enlarge SMALL BIG")) };
    let checkpoint = match std::env::var_os("ENGINE_MODEL") {
        Some(folder) => Checkpoint::open(folder, LoadOptions::default())?,
        None => weights::default_model()?,
    };
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(0)?))?;
    let enlarge = Enlarge::new(Image::read(small, &ReadOptions::default())?).seed(7);
    let [width, height] = pipeline.enlarged_size(&enlarge)?;
    println!("{width} x {height}");
    let image = pipeline.enlarge_alone(&enlarge, &mut |event| {
        if let Event::Step { stage, done, steps, .. } = event {
            println!("{stage}: tile {done} of {steps}");
        }
        ControlFlow::Continue(())
    })?;
    image.write(big, Format::Png, &Texts::default())
}
