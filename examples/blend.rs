//! Nine pictures on the way from a cat to a dog, as an animation.
//!
//!     cargo run --release --example blend

use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Blend, Ingredient, Pipeline, Request, Task};
use unclip::weights;

fn main() -> unclip::Result<()> {
    let pipeline = Pipeline::open(weights::default_model()?, Box::new(Cpu::new(0)?))?;
    let ends = ["a cat", "a dog"].map(|text| Ingredient::Prompt(text.into()));
    let frames = pipeline.pictures(&Request::of(Task::Blend(Box::new(Blend::path(ends.to_vec(), 9)))))?;
    Image::write_animation(&frames, "blend.gif")
}
