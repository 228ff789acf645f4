//! Intermediate tensors of a run, for comparison with the original.
//!
//! Names, shapes and layouts are those of the recordings that the project keeps of diffusers' pipeline (see
//! `tests/golden/make.py`): `decoder/step_03/latents` and the like, pictures with channels first.

use super::sampling::{Draws, Loop};
use super::stages::{Session, Text, TextRow};
use crate::backend::Executable;
use crate::error::{Error, Result};
use crate::model::text_encoder::Tokens;
use crate::ops::elements;
use crate::output::Beside;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Collects tensors by name, or nothing at all.
#[derive(Debug, Default)]
pub struct Trace {
    on: bool,
    tensors: BTreeMap<String, Recorded>,
}

#[derive(Debug)]
struct Recorded {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Trace {
    /// Keeps nothing.
    pub fn off() -> Trace {
        Trace::default()
    }

    /// Keeps everything.
    pub fn on() -> Trace {
        Trace { on: true, tensors: BTreeMap::new() }
    }

    /// Whether tensors are kept.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// A tensor's shape and numbers, if it is one of f32.
    pub fn get(&self, name: &str) -> Option<(&[usize], Vec<f32>)> {
        let recorded = self.tensors.get(name).filter(|r| r.dtype == Dtype::F32)?;
        Some((&recorded.shape, bytemuck::allocation::pod_collect_to_vec(&recorded.bytes)))
    }

    /// A tensor's type, shape and bytes.
    pub fn tensor(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        self.tensors.get(name).map(|r| (r.dtype, &r.shape[..], &r.bytes[..]))
    }

    /// Names of all tensors kept.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn put(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[f32]) {
        self.insert(name, Dtype::F32, shape, |bytes| bytes.extend_from_slice(bytemuck::cast_slice(data)));
    }

    /// Pictures `[N, H, W, C]`, kept as `[N, C, H, W]`; other shapes as they are.
    pub(super) fn put_pictures(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[f32]) {
        match *shape {
            _ if !self.on => {}
            [n, h, w, c] => self.put(name, &[n, c, h, w], &channels_first(data, h * w, c)),
            _ => self.put(name, shape, data),
        }
    }

    pub(super) fn put_ids(&mut self, name: impl FnOnce() -> String, shape: &[usize], ids: &[u32]) {
        self.insert(name, Dtype::I64, shape, |bytes| {
            ids.iter().for_each(|&id| bytes.extend_from_slice(&i64::from(id).to_le_bytes()));
        });
    }

    pub(super) fn put_bytes(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[u8]) {
        self.insert(name, Dtype::U8, shape, |bytes| bytes.extend_from_slice(data));
    }

    fn insert(
        &mut self,
        name: impl FnOnce() -> String,
        dtype: Dtype,
        shape: &[usize],
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.on {
            let mut bytes = Vec::new();
            fill(&mut bytes);
            self.tensors.insert(name(), Recorded { dtype, shape: shape.to_vec(), bytes });
        }
    }

    /// Writes all tensors to a safetensors file, which is complete or not there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: safetensors::SafeTensorError| Error::io(path, "write", std::io::Error::other(e.to_string()));
        let views = self.tensors.iter().map(|(name, r)| {
            let view = TensorView::new(r.dtype, r.shape.clone(), &r.bytes).expect("shape and bytes were put together");
            (name.as_str(), view)
        });
        let mut file = Beside::create(path)?;
        let bytes = safetensors::serialize(views, None).map_err(failed)?;
        file.file.write_all(&bytes).map_err(|e| Error::io(path, "write", e))?;
        file.replace()
    }
}

/// What of a run is kept, stage by stage.
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

/// `[N, P, C]` to `[N, C, P]`.
pub(super) fn channels_first(data: &[f32], positions: usize, channels: usize) -> Vec<f32> {
    permute(data, positions, channels)
}

/// `[N, C, P]` to `[N, P, C]`.
pub(super) fn channels_last(data: &[f32], positions: usize, channels: usize) -> Vec<f32> {
    permute(data, channels, positions)
}

/// `[N, A, B]` to `[N, B, A]`.
fn permute(data: &[f32], a: usize, b: usize) -> Vec<f32> {
    let mut out = vec![0.0; data.len()];
    for (from, to) in data.chunks_exact(a * b).zip(out.chunks_exact_mut(a * b)) {
        for i in 0..a {
            for j in 0..b {
                to[j * a + i] = from[i * b + j];
            }
        }
    }
    out
}
