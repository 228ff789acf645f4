//! The stages, one after the other: what each is given, and what it hands on.

use super::request::{Defaults, Event, Observer, Prompt, Request, Stage, report};
use super::sampling::{Draws, Loop, StepNoise};
use super::trace::Trace;
use super::vision::Vision;
use super::{Pipeline, Prior};
use crate::backend::Executable;
use crate::diffusion::sampler::time_features;
use crate::error::Result;
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::model::{Sizes, decoder, image_encoder, prior, super_res, text_encoder, text_proj, unet};
use crate::noise::{NoiseKind, NoiseSource};
use crate::ops::{Noise, SamplerStep, elements};
use crate::plan::{Plan, assign};
use crate::weights::Component;
use std::ops::Range;
use std::time::Instant;

/// Most texts that are encoded together.
const TEXTS: usize = 32;

/// One run of a pipeline.
pub struct Session<'a, 'o> {
    pub pipeline: &'a Pipeline,
    pub settings: Defaults,
    /// Whether the networks see an unconditional half.
    pub guided: bool,
    pub observer: &'a mut Observer<'o>,
    pub trace: &'a mut Trace,
    /// One source for each picture.
    pub noise: Vec<NoiseSource>,
    /// Who draws the noise of the sampling steps.
    pub noise_source: Noise,
}

/// Encoded prompts.
pub struct Text {
    pub(super) rows: Vec<TextRow>,
    /// The text of each picture.
    of: Vec<usize>,
    /// The text of the unconditional half, with guidance.
    unconditional: Option<usize>,
}

pub(super) struct TextRow {
    /// `[D]`
    pub(super) embeds: Vec<f32>,
    /// `[T, D]`
    pub(super) hidden: Vec<f32>,
    /// `[T]`, 1 for tokens that may be seen.
    mask: Vec<f32>,
}

impl Text {
    pub(super) fn guided(&self) -> bool {
        self.unconditional.is_some()
    }

    /// One part of the texts of a group's rows, the unconditional half first.
    fn rows(&self, pictures: &Range<usize>, part: impl Fn(&TextRow) -> &[f32]) -> Vec<f32> {
        let mut all = Vec::new();
        for text in self.unconditional.iter().flat_map(|&u| std::iter::repeat_n(u, pictures.len())) {
            all.extend_from_slice(part(&self.rows[text]));
        }
        for &text in &self.of[pictures.clone()] {
            all.extend_from_slice(part(&self.rows[text]));
        }
        all
    }
}

/// What the decoder is given for each row of each picture.
pub struct Conditions {
    /// For each picture its rows (unconditional first): context `[T', cross]`, added `[E]`, mask `[T']`.
    rows: Vec<Vec<[Vec<f32>; 3]>>,
}

impl Conditions {
    /// One part for a group: all unconditional rows, then all conditional ones.
    fn part(&self, pictures: &Range<usize>, which: usize) -> Vec<f32> {
        let halves = self.rows[0].len();
        let parts = (0..halves).flat_map(|half| self.rows[pictures.clone()].iter().map(move |rows| &rows[half][which]));
        parts.flatten().copied().collect()
    }

    fn guided(&self) -> bool {
        self.rows[0].len() == 2
    }
}

/// A stage at work: its component and the time it began.
pub(super) struct Open {
    stage: Stage,
    pub(super) component: Component,
    began: Instant,
    loaded: bool,
}

impl Session<'_, '_> {
    pub(super) fn open(&mut self, stage: Stage, steps: usize) -> Result<Open> {
        report(self.observer, Event::Begin { stage, steps })?;
        let began = Instant::now();
        let component = self.pipeline.checkpoint.component(stage.name())?;
        Ok(Open { stage, component, began, loaded: false })
    }

    /// Compiles a plan with the component's weights.
    pub(super) fn compile(&mut self, open: &mut Open, plan: Plan) -> Result<Box<dyn Executable>> {
        let unused = if open.loaded { Vec::new() } else { unused(&open.component, &plan) };
        if !unused.is_empty() {
            let more = if unused.len() > 5 { format!(" and {} more", unused.len() - 5) } else { String::new() };
            let shown = unused[..unused.len().min(5)].join(", ");
            let warning = format!("{}: unused tensors: {shown}{more}", open.component.path().display());
            report(self.observer, Event::Warning(&warning))?;
        }
        let executable = self.pipeline.backend.prepare(plan, &open.component)?;
        open.component.check_unchanged()?;
        if !open.loaded {
            open.loaded = true;
            report(self.observer, Event::Loaded { stage: open.stage, elapsed: open.began.elapsed() })?;
        }
        Ok(executable)
    }

    pub(super) fn close(&mut self, open: Open) -> Result<()> {
        report(self.observer, Event::End { stage: open.stage, elapsed: open.began.elapsed() })
    }

    /// Pictures that are worked on together: as many as the memory limit allows, in groups of nearly one size.
    fn groups(&self, plan: impl Fn(usize) -> Result<Plan>) -> Result<Vec<Range<usize>>> {
        let pictures = self.noise.len();
        if pictures == 1 || self.trace.is_on() {
            return Ok(std::iter::once(0..pictures).collect());
        }
        let one = assign(&plan(1)?).bytes().max(1);
        let most = usize::try_from(self.pipeline.memory / one).unwrap_or(usize::MAX).clamp(1, pictures);
        let count = pictures.div_ceil(most);
        Ok((0..count).map(|g| g * pictures / count..(g + 1) * pictures / count).collect())
    }

    /// Encodes every prompt, or for every given picture the empty one, and, with guidance, the negative or empty one.
    pub fn text(&mut self, request: &Request) -> Result<Text> {
        let mut tokens = Vec::new();
        for prompt in &request.prompts {
            tokens.push(self.tokens(prompt)?);
        }
        for _ in &request.images {
            tokens.push(self.empty(request)?);
        }
        let unconditional = self.guided.then_some(tokens.len());
        if unconditional.is_some() {
            tokens.push(match &request.negative {
                Some(negative) => self.tokens(negative)?,
                None => self.empty(request)?,
            });
        }
        let config = &self.pipeline.configs.text_encoder;
        let mut open = self.open(Stage::TextEncoder, 0)?;
        let texts = tokens.len().min(TEXTS);
        let plan = text_encoder::plan(config, &open.component, texts)?;
        let mut executable = self.compile(&mut open, plan)?;
        let mut rows = Vec::new();
        for chunk in tokens.chunks(texts) {
            // A last chunk that is not full repeats its last text.
            let padded: Vec<&Tokens> = (0..texts).map(|i| &chunk[i.min(chunk.len() - 1)]).collect();
            let ids: Vec<u32> = padded.iter().flat_map(|t| &t.ids).copied().collect();
            let pooled: Vec<u32> = padded.iter().map(|t| config.pooled_position(&t.ids)).collect();
            executable.write_u32("ids", &ids)?;
            executable.write_u32("pooled", &pooled)?;
            executable.run_once()?;
            let (embeds, hidden) = (executable.read("text_embeds")?, executable.read("hidden")?);
            for (i, tokens) in chunk.iter().enumerate() {
                let of = |all: &[f32]| all[i * all.len() / texts..(i + 1) * all.len() / texts].to_vec();
                let mask = tokens.mask.iter().map(|&seen| f32::from(u8::from(seen))).collect();
                rows.push(TextRow { embeds: of(&embeds), hidden: of(&hidden), mask });
            }
        }
        self.close(open)?;
        let of = (0..self.noise.len()).map(|k| k / request.pictures_per_prompt).collect();
        let text = Text { rows, of, unconditional };
        self.trace_text(&text, &tokens);
        Ok(text)
    }

    fn tokens(&mut self, prompt: &Prompt) -> Result<Tokens> {
        let tokens = self.pipeline.tokens(prompt)?;
        if let Some(cut) = &tokens.cut {
            let warning = format!("the prompt is too long for {} tokens; left out: {cut}", tokens.ids.len());
            report(self.observer, Event::Warning(&warning))?;
        }
        Ok(tokens)
    }

    /// The tokens of no text.
    #[cfg(feature = "tokenizer")]
    fn empty(&mut self, _: &Request) -> Result<Tokens> {
        self.tokens(&Prompt::Text(String::new()))
    }

    /// Without a tokenizer the caller has to give them.
    #[cfg(not(feature = "tokenizer"))]
    fn empty(&mut self, request: &Request) -> Result<Tokens> {
        let reason = "missing; without a tokenizer guidance and variations need the tokens of the empty prompt";
        self.tokens(request.negative.as_ref().ok_or_else(|| crate::Error::request("negative", reason))?)
    }

    /// Text to image embeddings `[D]`, one for each picture.
    pub fn prior(&mut self, prior: &Prior, text: &Text) -> Result<Vec<Vec<f32>>> {
        let Prior { config, scheduler } = prior;
        let dim = config.embedding_dim;
        let steps = self.settings.prior_steps;
        let sampling = Loop::new("prior", scheduler, "prior steps", steps, vec![dim])?;
        let rule = scheduler.step(text.guided().then_some(self.settings.prior_guidance), self.noise_source);
        let groups_of = |pictures| Sizes { pictures, steps, rule };
        let mut open = self.open(Stage::Prior, steps)?;
        let groups = self.groups(|n| prior::plan(config, &open.component, &groups_of(n)))?;
        let time = time_features(&sampling.timesteps, config.inner(), true, 0.0);
        let mut found = Vec::new();
        let mut compiled: Option<(usize, Box<dyn Executable>)> = None;
        for (number, group) in groups.iter().enumerate() {
            if compiled.as_ref().is_none_or(|(size, _)| *size != group.len()) {
                let plan = prior::plan(config, &open.component, &groups_of(group.len()))?;
                compiled = Some((group.len(), self.compile(&mut open, plan)?));
            }
            let (_, executable) = compiled.as_mut().expect("compiled above");
            let mut draws = sampling.draw(&mut self.noise[group.clone()]);
            executable.write("text_embeds", &text.rows(group, |r| &r.embeds))?;
            executable.write("hidden", &text.rows(group, |r| &r.hidden))?;
            executable.write("mask", &text.rows(group, |r| &r.mask))?;
            self.trace_loop(&sampling, &draws);
            self.trace_prior(executable.as_mut())?;
            self.sample(&sampling, executable.as_mut(), 0..steps, &time, &rule, &mut draws, (&open, number, &groups))?;
            found.extend(executable.read("image_embeds")?.chunks_exact(dim).map(<[f32]>::to_vec));
        }
        self.close(open)?;
        Ok(found)
    }

    /// Writes the tables, runs the part that does not vary and the steps `range` of a loop.
    fn sample(
        &mut self,
        sampling: &Loop,
        executable: &mut dyn Executable,
        range: Range<usize>,
        time: &[f32],
        rule: &SamplerStep,
        draws: &mut Draws,
        (open, number, groups): (&Open, usize, &[Range<usize>]),
    ) -> Result<()> {
        let per_step = |table: &[f32], steps: usize| table.len() / steps;
        let table = sampling.table();
        let all = sampling.steps();
        let mut tables = vec![("time", time), ("coefficients", &table[..])];
        match &draws.noise {
            StepNoise::Given(noise) => tables.push(("noise", noise)),
            StepNoise::Philox(seeds) => {
                // The executable counts its steps from 0.
                let numbers = seeds.iter().flat_map(|&(seed, first)| [seed, first + range.start as u64]);
                let words: Vec<u32> = numbers.flat_map(|n| [n as u32, (n >> 32) as u32]).collect();
                executable.write_u32("seeds", &words)?;
            }
        }
        for (name, data) in tables {
            let row = per_step(data, all);
            executable.write(name, &data[range.start * row..range.end * row])?;
        }
        executable.run_once()?;
        let progress = (open.stage, number * range.len(), groups.len() * range.len());
        sampling.run(executable, range, rule, draws, progress, self.observer, self.trace)
    }

    /// Embeddings to the decoder's conditions.
    pub fn text_proj(&mut self, text: &Text, image_embeds: &[Vec<f32>]) -> Result<Conditions> {
        let config = &self.pipeline.configs.text_proj;
        let tokens = self.pipeline.configs.tokens();
        let total = tokens + config.clip_extra_context_tokens;
        let pictures = image_embeds.len();
        let dim = config.clip_embeddings_dim;
        self.trace.put(|| "image_embeds".to_owned(), &[pictures, dim], &image_embeds.concat());
        let mut open = self.open(Stage::TextProj, 0)?;
        let together = if self.trace.is_on() { pictures } else { 1 };
        let plan = text_proj::plan(config, &open.component, together, tokens, text.guided())?;
        let mut executable = self.compile(&mut open, plan)?;
        let mut rows: Vec<Vec<[Vec<f32>; 3]>> = Vec::new();
        for first in (0..pictures).step_by(together) {
            let group = first..first + together;
            executable.write("image_embeds", &image_embeds[group.clone()].concat())?;
            executable.write("text_embeds", &text.rows(&group, |r| &r.embeds))?;
            executable.write("hidden", &text.rows(&group, |r| &r.hidden))?;
            executable.run_once()?;
            let (context, added) = (executable.read("context")?, executable.read("added")?);
            let masks = text.rows(&group, |r| &r.mask);
            let halves = if text.guided() { 2 } else { 1 };
            let count = halves * together;
            self.trace_conditions(&context, &added, count, total);
            let row = |data: &[f32], i: usize| data[i * data.len() / count..(i + 1) * data.len() / count].to_vec();
            for k in 0..together {
                let of_picture = (0..halves).map(|half| {
                    let i = half * together + k;
                    let mut mask = vec![1.0; config.clip_extra_context_tokens];
                    mask.extend(row(&masks, i));
                    [row(&context, i), row(&added, i), mask]
                });
                rows.push(of_picture.collect());
            }
        }
        self.close(open)?;
        Ok(Conditions { rows })
    }

    /// Conditions to small pictures `[h, w, C]` in -1..1.
    pub fn decoder(&mut self, conditions: &Conditions) -> Result<Vec<Vec<f32>>> {
        let configs = &self.pipeline.configs;
        let config = &configs.decoder;
        let size = config.sample_size.unwrap_or(0);
        let shape = vec![size, size, config.in_channels];
        let steps = self.settings.decoder_steps;
        let sampling = Loop::new("decoder", &configs.decoder_scheduler, "decoder steps", steps, shape)?;
        let rule = configs
            .decoder_scheduler
            .step(conditions.guided().then_some(self.settings.decoder_guidance), self.noise_source);
        let run = |pictures| Sizes { pictures, steps, rule };
        let tokens = configs.tokens() + configs.text_proj.clip_extra_context_tokens;
        let mut open = self.open(Stage::Decoder, steps)?;
        let groups = self.groups(|n| decoder::plan(config, &open.component, &run(n), tokens))?;
        let time = time_table(&sampling, config);
        let mut small = Vec::new();
        let mut compiled: Option<(usize, Box<dyn Executable>)> = None;
        for (number, group) in groups.iter().enumerate() {
            if compiled.as_ref().is_none_or(|(size, _)| *size != group.len()) {
                let plan = decoder::plan(config, &open.component, &run(group.len()), tokens)?;
                compiled = Some((group.len(), self.compile(&mut open, plan)?));
            }
            let (_, executable) = compiled.as_mut().expect("compiled above");
            let mut draws = sampling.draw(&mut self.noise[group.clone()]);
            for (which, name) in ["context", "added", "mask"].into_iter().enumerate() {
                executable.write(name, &conditions.part(group, which))?;
            }
            self.trace_mask(executable.as_mut(), "mask", "decoder/attention_mask")?;
            self.trace_loop(&sampling, &draws);
            self.sample(&sampling, executable.as_mut(), 0..steps, &time, &rule, &mut draws, (&open, number, &groups))?;
            draws.latents.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
            let clamped = draws.latents.chunks_exact(elements(&sampling.shape));
            small.extend(clamped.map(<[f32]>::to_vec));
        }
        let [h, w, c] = [size, size, config.in_channels];
        self.trace.put_pictures(|| "decoder/image_small".to_owned(), &[small.len(), h, w, c], &small.concat());
        self.close(open)?;
        Ok(small)
    }

    /// Small pictures to finished ones.
    pub fn super_res(&mut self, small: &[Vec<f32>]) -> Result<Vec<Image>> {
        let configs = &self.pipeline.configs;
        let size = configs.super_res_first.sample_size.unwrap_or(0);
        let small_size = configs.decoder.sample_size.unwrap_or(0);
        let shape = vec![size, size, configs.super_res_first.out_channels];
        let steps = self.settings.super_res_steps;
        let sampling = Loop::new("super_res", &configs.super_res_scheduler, "super-resolution steps", steps, shape)?;
        let rule = configs.super_res_scheduler.step(None, self.noise_source);
        let mut drawn: Vec<Draws> = Vec::new();
        let mut groups = Vec::new();
        let parts = [
            (Stage::SuperResFirst, &configs.super_res_first, 0..steps - 1),
            (Stage::SuperResLast, &configs.super_res_last, steps - 1..steps),
        ];
        for (stage, config, range) in parts {
            let run = |pictures| Sizes { pictures, steps: range.len(), rule };
            let mut open = self.open(stage, range.len())?;
            let record = |component: &Component, n| {
                super_res::plan(stage.name(), config, component, &run(n), small_size, Some(size))
            };
            if drawn.is_empty() {
                groups = self.groups(|n| record(&open.component, n))?;
                drawn = groups.iter().map(|g: &Range<usize>| sampling.draw(&mut self.noise[g.clone()])).collect();
                self.trace_loop(&sampling, &drawn[0]);
            }
            let time = time_table(&sampling, config);
            let mut compiled: Option<(usize, Box<dyn Executable>)> = None;
            for (number, group) in groups.iter().enumerate() {
                if compiled.as_ref().is_none_or(|(size, _)| *size != group.len()) {
                    let plan = record(&open.component, group.len())?;
                    compiled = Some((group.len(), self.compile(&mut open, plan)?));
                }
                let (_, executable) = compiled.as_mut().expect("compiled above");
                executable.write("small", &small[group.clone()].concat())?;
                let draws = &mut drawn[number];
                self.sample(
                    &sampling,
                    executable.as_mut(),
                    range.clone(),
                    &time,
                    &rule,
                    draws,
                    (&open, number, &groups),
                )?;
                if stage == Stage::SuperResFirst {
                    self.trace_upscaled(executable.as_mut())?;
                }
            }
            self.close(open)?;
        }
        let pictures = drawn.iter().flat_map(|d| d.latents.chunks_exact(elements(&sampling.shape)));
        let images = pictures.clone().map(|x| Image::from_unit_range(size, size, x)).collect::<Result<Vec<Image>>>()?;
        let finished: Vec<f32> = pictures.flatten().map(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0)).collect();
        let pixels: Vec<u8> = images.iter().flat_map(|i| &i.pixels).copied().collect();
        let shape = [images.len(), size, size, 3];
        self.trace.put(|| "image/float".to_owned(), &shape, &finished);
        self.trace.put_bytes(|| "image/u8".to_owned(), &shape, &pixels);
        Ok(images)
    }
}

fn time_table(sampling: &Loop, config: &unet::Config) -> Vec<f32> {
    time_features(&sampling.timesteps, config.time_features(), config.flip_sin_to_cos, config.freq_shift)
}

/// Tensors of the component that the plan does not use; see [`Pipeline::unused_tensors`].
pub fn unused(component: &Component, plan: &Plan) -> Vec<String> {
    let used: std::collections::HashSet<&str> = plan.weights().map(|(name, _)| name).collect();
    let idle = |name: &&str| !used.contains(name) && !name.ends_with("embeddings.position_ids");
    component.tensors().map(|(name, _)| name).filter(idle).map(str::to_owned).collect()
}

/// The plan of one stage; see [`Pipeline::plan`].
pub fn plan(pipeline: &Pipeline, stage: Stage, pictures: usize, guided: bool) -> Result<Plan> {
    let (configs, defaults) = (&pipeline.configs, &pipeline.defaults);
    let component = pipeline.checkpoint.component(stage.name())?;
    let guidance = |scale: f32| guided.then_some(scale);
    let noise = NoiseKind::default().into();
    let tokens = configs.tokens();
    let super_res = |config: &unet::Config, steps| {
        let rule = configs.super_res_scheduler.step(None, noise);
        let small = configs.decoder.sample_size.unwrap_or(0);
        let run = Sizes { pictures, steps, rule };
        super_res::plan(stage.name(), config, &component, &run, small, configs.super_res_first.sample_size)
    };
    match stage {
        Stage::TextEncoder => {
            text_encoder::plan(&configs.text_encoder, &component, if guided { pictures + 1 } else { pictures })
        }
        Stage::Prior => {
            let Prior { config, scheduler } = configs.prior(&pipeline.checkpoint)?;
            let rule = scheduler.step(guidance(defaults.prior_guidance), noise);
            prior::plan(config, &component, &Sizes { pictures, steps: defaults.prior_steps, rule })
        }
        Stage::ImageEncoder => image_encoder::plan(&Vision::read(pipeline)?.config, &component, pictures),
        Stage::TextProj => text_proj::plan(&configs.text_proj, &component, pictures, tokens, guided),
        Stage::Decoder => {
            let rule = configs.decoder_scheduler.step(guidance(defaults.decoder_guidance), noise);
            let run = Sizes { pictures, steps: defaults.decoder_steps, rule };
            decoder::plan(&configs.decoder, &component, &run, tokens + configs.text_proj.clip_extra_context_tokens)
        }
        Stage::SuperResFirst => super_res(&configs.super_res_first, defaults.super_res_steps - 1),
        Stage::SuperResLast => super_res(&configs.super_res_last, 1),
    }
}
