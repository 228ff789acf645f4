//! Pictures one after the other in one file.

use super::Image;
use crate::error::{Error, Result};
use crate::output::Output;
use gif::{Encoder, Frame, Repeat};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Hundredths of a second for which each picture of an animation is seen.
const DELAY: u16 = 10;
/// How well the 256 colours of a frame are chosen: 1 is best, 30 quickest.
const SPEED: i32 = 10;

impl Image {
    /// Writes pictures as a GIF that goes forth and back without end, each for a tenth of a second in its own 256 colours. The
    /// file is there when it is complete.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no picture, or if they differ in size; [`Error::Io`] if the file cannot be written.
    pub fn write_animation(images: &[Image], path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let size = |image: &Image| [image.width, image.height];
        let sides = images.first().filter(|first| images.iter().all(|image| size(image) == size(first)));
        let sides = sides.and_then(|first| {
            let [width, height] = size(first).map(u16::try_from);
            Some([width.ok()?, height.ok()?])
        });
        let sides = sides.ok_or_else(|| Error::Shape {
            at: "animation".into(),
            reason: format!("expected pictures of one size, found {:?}", images.iter().map(size).collect::<Vec<_>>()),
        })?;
        let failed = |e| Error::io(path, "write", e);
        let mut output = Output::create(path)?;
        encode(images, sides, &mut output).map_err(failed)?;
        output.finish()
    }
}

fn encode(images: &[Image], [width, height]: [u16; 2], output: &mut impl Write) -> io::Result<()> {
    let failed = |e: gif::EncodingError| io::Error::other(e.to_string());
    let mut buffered = BufWriter::new(output);
    let mut encoder = Encoder::new(&mut buffered, width, height, &[]).map_err(failed)?;
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    // The ends are seen once, not twice.
    let back = (1..images.len().saturating_sub(1)).rev();
    for at in (0..images.len()).chain(back) {
        let mut frame = Frame::from_rgb_speed(width, height, &images[at].pixels, SPEED);
        frame.delay = DELAY;
        encoder.write_frame(&frame).map_err(failed)?;
    }
    drop(encoder);
    buffered.flush()
}
