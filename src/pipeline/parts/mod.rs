//! Stages that several families have: texts, the prior, given pictures.
//!
//! A part knows its stage and its configuration, takes part in a run, and says what it is given and hands on. Families
//! put parts together.

mod edits;
mod embedder;
mod painter;
mod pictures;
mod prior;
pub mod recording;
mod texts;
mod vision;

pub use embedder::Embedder;
pub use painter::{Editing, Painter};
pub use pictures::{decode, finish};
pub use prior::Prior;
pub use texts::Texts;
pub use vision::Vision;

use super::family::{Embedding, EncodedText};
use super::sampling::Loop;
use crate::diffusion::sampler::time_features;
use crate::error::{Error, Result};
use crate::model::unet;

/// The components of several parts as one list, of so many in all.
pub const fn components<const N: usize>(parts: &[&[&'static str]]) -> [&'static str; N] {
    let (mut all, mut count, mut part) = ([""; N], 0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[count] = parts[part][i];
            (count, i) = (count + 1, i + 1);
        }
        part += 1;
    }
    assert!(count == N);
    all
}

/// One part of the texts of a group's rows, the unconditional half first.
pub fn of_texts(drafts: &[Embedding], part: impl Fn(&EncodedText) -> &[f32]) -> Vec<f32> {
    let unconditional = drafts.iter().filter_map(|draft| draft.unconditional.as_deref());
    let texts = unconditional.chain(drafts.iter().map(|draft| &*draft.text));
    texts.flat_map(part).copied().collect()
}

/// One part of the texts that a decoder sees for a group's rows, the unconditional half first.
///
/// # Errors
/// A draft lacks the text of a half.
pub fn of_seen(drafts: &[Embedding], is_guided: bool, part: impl Fn(&EncodedText) -> &[f32]) -> Result<Vec<f32>> {
    let mut rows = Vec::new();
    for half in [true, false].into_iter().skip(usize::from(!is_guided)) {
        for draft in drafts {
            let seen = draft.seen.as_ref();
            let text = seen.and_then(|seen| if half { seen.unconditional.as_ref() } else { Some(&seen.text) });
            let text = text.ok_or_else(|| Error::request("embedding", "it has no texts for guidance"))?;
            rows.extend_from_slice(part(text));
        }
    }
    Ok(rows)
}

/// Whether all drafts have an unconditional text.
pub fn guided(drafts: &[Embedding]) -> bool {
    drafts.iter().all(|draft| draft.unconditional.is_some())
}

/// Row `i` of a matrix of so many rows.
pub fn row(data: &[f32], i: usize, rows: usize) -> &[f32] {
    &data[i * data.len() / rows..(i + 1) * data.len() / rows]
}

/// A U-Net's time features for all steps of a loop.
pub fn time_table(sampling: &Loop, config: &unet::Config) -> Vec<f32> {
    time_features(&sampling.timesteps, config.time_features(), config.flip_sin_to_cos, config.freq_shift)
}
