//! What of a run goes into its trace, stage by stage, in the shapes that diffusers' networks see.

use super::sampling::{Draws, Loop};
use super::stages::{Session, Text, TextRow};
use crate::backend::Executable;
use crate::error::Result;
use crate::model::text_encoder::Tokens;
use crate::ops::elements;

impl Session<'_, '_> {
    /// Texts as the encoder saw them; diffusers encodes the unconditional text once for every prompt.
    pub(super) fn trace_text(&mut self, text: &Text, tokens: &[Tokens]) {
        if !self.trace.is_on() {
            return;
        }
        let prompts = tokens.len() - usize::from(text.guided());
        let conditional: Vec<usize> = (0..prompts).collect();
        let unconditional = vec![prompts; if text.guided() { prompts } else { 0 }];
        for (name, which) in [("text", conditional), ("uncond", unconditional)] {
            if which.is_empty() {
                continue;
            }
            let (n, length) = (which.len(), tokens[0].ids.len());
            let ids: Vec<u32> = which.iter().flat_map(|&i| &tokens[i].ids).copied().collect();
            let mask: Vec<u32> = which.iter().flat_map(|&i| &tokens[i].mask).map(|&seen| u32::from(seen)).collect();
            let collect = |part: fn(&TextRow) -> &Vec<f32>| -> Vec<f32> {
                which.iter().flat_map(|&i| part(&text.rows[i])).copied().collect()
            };
            let (embeds, hidden) = (collect(|r| &r.embeds), collect(|r| &r.hidden));
            self.trace.put_ids(|| format!("{name}/input_ids"), &[n, length], &ids);
            if name == "text" {
                self.trace.put_ids(|| "text/attention_mask".to_owned(), &[n, length], &mask);
            }
            self.trace.put(|| format!("{name}/text_embeds"), &[n, embeds.len() / n], &embeds);
            let width = hidden.len() / n / length;
            self.trace.put(|| format!("{name}/last_hidden_state"), &[n, length, width], &hidden);
        }
    }

    /// Given pictures as the image encoder saw them, and what it made of them.
    pub(super) fn trace_images(&mut self, pixels: &[f32], size: usize, embeds: &[Vec<f32>]) {
        let n = embeds.len();
        self.trace.put_pictures(|| "image_encoder/pixel_values".to_owned(), &[n, size, size, 3], pixels);
        let embeds = embeds.concat();
        self.trace.put(|| "image_encoder/image_embeds".to_owned(), &[n, embeds.len() / n], &embeds);
    }

    /// The prior's inputs, as they were written.
    pub(super) fn trace_prior(&mut self, executable: &mut dyn Executable) -> Result<()> {
        if self.trace.is_on() {
            for (input, name) in [("text_embeds", "text_embeds"), ("hidden", "text_hidden_states")] {
                let (shape, data) = contents(executable, input)?;
                self.trace.put(|| format!("prior/{name}"), &shape, &data);
            }
        }
        self.trace_mask(executable, "mask", "prior/text_mask")
    }

    /// A mask is kept in bytes.
    pub(super) fn trace_mask(&mut self, executable: &mut dyn Executable, input: &str, name: &str) -> Result<()> {
        if self.trace.is_on() {
            let (shape, mask) = contents(executable, input)?;
            let mask: Vec<u8> = mask.iter().map(|&seen| u8::from(seen > 0.0)).collect();
            self.trace.put_bytes(|| name.to_owned(), &shape, &mask);
        }
        Ok(())
    }

    /// What a loop starts from.
    pub(super) fn trace_loop(&mut self, sampling: &Loop, draws: &Draws) {
        let name = sampling.name;
        let mut shape = vec![draws.latents.len() / elements(&sampling.shape)];
        shape.extend_from_slice(&sampling.shape);
        self.trace.put_ids(|| format!("{name}/timesteps"), &[sampling.steps()], &sampling.timesteps);
        self.trace.put_pictures(|| format!("{name}/initial_latents"), &shape, &draws.latents);
    }

    /// What the decoder is told.
    pub(super) fn trace_conditions(&mut self, context: &[f32], added: &[f32], rows: usize, tokens: usize) {
        let width = context.len() / rows / tokens;
        self.trace.put(|| "text_proj/encoder_hidden_states".to_owned(), &[rows, tokens, width], context);
        self.trace.put(|| "text_proj/additive_time_embeds".to_owned(), &[rows, added.len() / rows], added);
    }

    /// The small pictures, enlarged.
    pub(super) fn trace_upscaled(&mut self, executable: &mut dyn Executable) -> Result<()> {
        if self.trace.is_on() {
            let (shape, upscaled) = contents(executable, "upscaled")?;
            self.trace.put_pictures(|| "super_res/image_upscaled".to_owned(), &shape, &upscaled);
        }
        Ok(())
    }
}

/// An input or output with its shape.
pub(super) fn contents(executable: &mut dyn Executable, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let data = executable.read(name)?;
    let plan = executable.plan();
    let id = plan.output(name).or_else(|| plan.input(name)).expect("it was just read");
    Ok((plan.shape(id).to_vec(), data))
}
