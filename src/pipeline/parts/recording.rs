//! What of a run goes into its trace, stage by stage, in the shapes that diffusers' networks see.

use crate::backend::Executable;
use crate::error::Result;
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::pipeline::family::{EncodedText, Painting};
use crate::pipeline::trace::Trace;
use std::sync::Arc;

/// Names of texts and of unconditional ones.
pub const TEXTS: [&str; 2] = ["text", "uncond"];
/// Those of texts that a decoder sees beside what the prior makes of them.
pub const WORDS: [&str; 2] = ["words", "uncond_words"];

/// Texts as the encoder saw them; diffusers encodes the unconditional text once for every prompt.
pub fn texts(trace: &mut Trace, names: [&str; 2], texts: &[Arc<EncodedText>], tokens: &[Tokens], guided: bool) {
    if !trace.is_on() {
        return;
    }
    let prompts = tokens.len() - usize::from(guided);
    let conditional: Vec<usize> = (0..prompts).collect();
    let unconditional = vec![prompts; if guided { prompts } else { 0 }];
    for (name, which) in names.into_iter().zip([conditional, unconditional]) {
        if which.is_empty() {
            continue;
        }
        let (n, length) = (which.len(), tokens[0].ids.len());
        let ids: Vec<u32> = which.iter().flat_map(|&i| &tokens[i].ids).copied().collect();
        let mask: Vec<u32> = which.iter().flat_map(|&i| &tokens[i].mask).map(|&seen| u32::from(seen)).collect();
        let collect = |part: fn(&EncodedText) -> &Vec<f32>| -> Vec<f32> {
            which.iter().flat_map(|&i| part(&texts[i])).copied().collect()
        };
        let (embeds, hidden) = (collect(|t| &t.embeds), collect(|t| &t.hidden));
        trace.put_ids(|| format!("{name}/input_ids"), &[n, length], &ids);
        if name == names[0] {
            trace.put_ids(|| format!("{name}/attention_mask"), &[n, length], &mask);
        }
        trace.put(|| format!("{name}/text_embeds"), &[n, embeds.len() / n], &embeds);
        let width = hidden.len() / n / length;
        trace.put(|| format!("{name}/last_hidden_state"), &[n, length, width], &hidden);
    }
}

/// Given pictures as the image encoder saw them, and their embeddings.
pub fn images(trace: &mut Trace, pixels: &[f32], size: usize, embeds: &[Vec<f32>]) {
    let n = embeds.len();
    trace.put_pictures(|| "image_encoder/pixel_values".to_owned(), &[n, size, size, 3], pixels);
    let embeds = embeds.concat();
    trace.put(|| "image_encoder/image_embeds".to_owned(), &[n, embeds.len() / n], &embeds);
}

/// The prior's inputs, as they were written.
pub fn prior_inputs(trace: &mut Trace, executable: &mut dyn Executable) -> Result<()> {
    if trace.is_on() {
        for (input, name) in [("text_embeds", "text_embeds"), ("hidden", "text_hidden_states")] {
            let (shape, data) = contents(executable, input)?;
            trace.put(|| format!("prior/{name}"), &shape, &data);
        }
    }
    mask(trace, executable, "prior/text_mask")
}

/// The input `mask`, which traces keep in bytes.
pub fn mask(trace: &mut Trace, executable: &mut dyn Executable, name: &str) -> Result<()> {
    if trace.is_on() {
        let (shape, mask) = contents(executable, "mask")?;
        let mask: Vec<u8> = mask.iter().map(|&seen| u8::from(seen > 0.0)).collect();
        trace.put_bytes(|| name.to_owned(), &shape, &mask);
    }
    Ok(())
}

/// What the decoder is given.
pub fn conditions(trace: &mut Trace, context: &[f32], added: &[f32], rows: usize, tokens: usize) {
    let width = context.len() / rows / tokens;
    trace.put(|| "text_proj/encoder_hidden_states".to_owned(), &[rows, tokens, width], context);
    trace.put(|| "text_proj/additive_time_embeds".to_owned(), &[rows, added.len() / rows], added);
}

/// The decoder's pictures.
pub fn small(trace: &mut Trace, small: &[Painting]) {
    if trace.is_on() {
        let [width, height] = [small[0].width, small[0].height];
        let pixels: Vec<f32> = small.iter().flat_map(|painting| &painting.pixels).copied().collect();
        trace.put_pictures(|| "decoder/image_small".to_owned(), &[small.len(), height, width, 3], &pixels);
    }
}

/// The small pictures, enlarged for super-resolution.
pub fn upscaled(trace: &mut Trace, executable: &mut dyn Executable) -> Result<()> {
    if trace.is_on() {
        let (shape, upscaled) = contents(executable, "upscaled")?;
        trace.put_pictures(|| "super_res/image_upscaled".to_owned(), &shape, &upscaled);
    }
    Ok(())
}

/// The pictures, as bytes and before they were rounded to such.
pub fn finished(trace: &mut Trace, images: &[Image], finished: &[f32]) {
    if trace.is_on() {
        let shape = [images.len(), images[0].height, images[0].width, 3];
        let pixels: Vec<u8> = images.iter().flat_map(|image| &image.pixels).copied().collect();
        trace.put(|| "image/float".to_owned(), &shape, finished);
        trace.put_bytes(|| "image/u8".to_owned(), &shape, &pixels);
    }
}

/// An input or output with its shape.
fn contents(executable: &mut dyn Executable, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let data = executable.read(name)?;
    let plan = executable.plan();
    let id = plan.output(name).or_else(|| plan.input(name)).expect("it was just read");
    Ok((plan.shape(id).to_vec(), data))
}
