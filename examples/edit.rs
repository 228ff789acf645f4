//! A part of a picture made anew: a frog where the middle of an apple was.
//!
//!     cargo run --release --example edit

use unclip::backend::cpu::Cpu;
use unclip::image::{Canvas, Format, Mask, Texts};
use unclip::pipeline::{Edit, Pipeline, Request};
use unclip::weights;

fn main() -> unclip::Result<()> {
    let pipeline = Pipeline::open(weights::default_model()?, Box::new(Cpu::new(0)?))?;
    let apple = pipeline.pictures(&Request::new("a red apple"))?.swap_remove(0);

    // The networks see a square around what is new; what they make of it is put back with a seam of four pixels.
    let mask = Mask::from_fn(apple.width, apple.height, |x, y| (32..96).contains(&x) && (32..96).contains(&y));
    let canvas = Canvas::new(&apple, &mask, [0; 4])?;
    let window = canvas.square(apple.width);
    let (image, mask) = canvas.cut(&window);
    let request = Request { edit: Some(Edit::inpaint(image, mask).resampled(5)), ..Request::new("a frog") };
    let made = pipeline.pictures(&request)?;
    canvas.paste(&window, &made[0], 4).write("edit.png", Format::Png, &Texts::default())
}
