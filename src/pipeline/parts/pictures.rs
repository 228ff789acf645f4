//! How families that sample latents end: the autoencoder, and finished pictures.

use super::recording;
use crate::error::Result;
use crate::image::Image;
use crate::ops::elements;
use crate::pipeline::event::{Event, Stage, report};
use crate::pipeline::family::{Embedding, Painting, Shapes};
use crate::pipeline::session::Session;

/// Latents to pictures, by a stage that runs an autoencoder's decoder; `size` is the latents' height and width.
pub fn decode(
    session: &mut Session<'_, '_>,
    stage: Stage,
    size: [usize; 2],
    drafts: &[Embedding],
    latents: &[f32],
) -> Result<Vec<Painting>> {
    let [width, height] = drafts[0].size;
    let each = latents.len() / drafts.len();
    let mut pictures = Vec::with_capacity(drafts.len());
    session.stage(stage, Shapes::batch(1, false).at(size), drafts.len(), 0, |session, executable, group| {
        executable.write("latents", &latents[group.start * each..group.end * each])?;
        executable.run_once()?;
        let pixels = session.read(stage, executable, "picture")?;
        let each = pixels.chunks_exact(elements(&[height, width, 3]));
        pictures.extend(drafts[group].iter().zip(each).map(|(draft, pixels)| Painting {
            width,
            height,
            pixels: pixels.to_vec(),
            edit: draft.edit.clone(),
            noise: draft.noise.clone(),
        }));
        Ok(())
    })?;
    Ok(pictures)
}

/// Pictures of floats as pictures of bytes; each is reported, numbered from `first` on.
pub fn finish(session: &mut Session<'_, '_>, paintings: &[Painting], first: usize) -> Result<Vec<Image>> {
    let mut images = Vec::with_capacity(paintings.len());
    for painting in paintings {
        let image = Image::from_unit_range(painting.width, painting.height, &painting.pixels)?;
        report(session.observer, Event::Picture { index: first + images.len(), image: &image })?;
        images.push(image);
    }
    let unit = paintings.iter().flat_map(|painting| &painting.pixels).map(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0));
    if session.trace.is_on() {
        recording::finished(session.trace, &images, &unit.collect::<Vec<f32>>());
    }
    Ok(images)
}
