//! A picture from a prompt, with the library alone: `cargo run --release --example picture -- "a red apple"`.
//!
//! A second argument names the folder of another checkpoint. Reports each step, stops after a minute, and writes
//! `picture.png` with its settings.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use unclip::Result;
use unclip::backend::cpu::Cpu;
use unclip::image::Format;
use unclip::pipeline::{Event, Pipeline, Recipe, Request};
use unclip::weights::{self, Checkpoint, LoadOptions};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(prompt) = arguments.next() else {
        eprintln!("usage: picture PROMPT [CHECKPOINT]");
        std::process::exit(2);
    };
    let checkpoint = match arguments.next() {
        Some(folder) => Checkpoint::open(folder, LoadOptions::default())?,
        None => weights::default_model()?,
    };
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(0)?))?;
    let request = Request { seed: 7, ..Request::new(prompt.as_str()) };
    let began = Instant::now();
    let images = pipeline.run(&request, &mut |event| {
        if let Event::Step { stage, done, steps, .. } = event {
            println!("{stage}: {done} of {steps}");
        }
        if began.elapsed() > Duration::from_secs(60) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let image = &images[0];
    println!("{} x {} pixels, the first is {:?}", image.width, image.height, &image.pixels[..3]);
    Recipe::write(&[pipeline.recipe(&request, 0)], image, "picture.png", Format::Png)
}
