//! The stages, one after the other: what each is given, and what it hands on.

use super::{DECODER, SUPER_RES_FIRST, SUPER_RES_LAST, TEXT_PROJ, UnClip};
use crate::backend::Executable;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::ops::{Noise, elements};
use crate::pipeline::blend::{Blend, Mix};
use crate::pipeline::edit::{self, Edit, Given, KnownNoise, Prepared};
use crate::pipeline::event::{Event, report};
use crate::pipeline::family::{Embedding, Family, Painting, Shapes};
use crate::pipeline::invert::Down;
use crate::pipeline::parts::{guided, of_texts, recording, row, time_table};
use crate::pipeline::request::{Request, Task};
use crate::pipeline::sampling::{Draws, Loop, StepNoise, drawn_by};
use crate::pipeline::session::Session;
use std::ops::Range;
use std::sync::Arc;

/// Share of the decoder's steps in which a picture without a mask is redrawn, where a request does not say.
const STRENGTH: f32 = 0.5;

/// The strength of an edit: with a mask all steps, unless it says otherwise.
pub fn strength(edit: &Edit) -> Option<f32> {
    edit.strength.or(edit.mask.is_none().then_some(STRENGTH))
}

/// What the decoder is given for a row of a picture.
pub struct Condition {
    /// `[T', cross]`
    context: Vec<f32>,
    /// `[E]`
    added: Vec<f32>,
    /// `[T']`, 1 for tokens that may be seen.
    mask: Vec<f32>,
}

impl Condition {
    /// Writes rows as the decoder's inputs.
    pub fn write<'c>(rows: impl Iterator<Item = &'c Condition>, executable: &mut dyn Executable) -> Result<()> {
        let rows: Vec<&Condition> = rows.collect();
        let of =
            |part: fn(&Condition) -> &Vec<f32>| rows.iter().flat_map(|row| part(row)).copied().collect::<Vec<f32>>();
        executable.write("context", &of(|row| &row.context))?;
        executable.write("added", &of(|row| &row.added))?;
        executable.write("mask", &of(|row| &row.mask))
    }
}

impl UnClip {
    /// A request's texts and given pictures to a draft for each picture asked for. Prompts have no image embedding yet.
    pub fn encode_request(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        let mut tokens = match &request.task {
            Task::Prompts(prompts) => {
                prompts.iter().map(|p| self.texts.tokens(session, p)).collect::<Result<Vec<_>>>()?
            }
            Task::Variations(images) => vec![self.texts.empty(session, request)?; images.len()],
            Task::Blend(blend) => self.tokens_of(session, request, blend)?,
        };
        let guided = request.guided(&session.settings);
        if guided {
            tokens.push(match &request.negative {
                Some(negative) => self.texts.tokens(session, negative)?,
                None => self.texts.empty(session, request)?,
            });
        }
        let mut texts = self.texts.encode(session, &tokens)?;
        recording::texts(session.trace, recording::TEXTS, &texts, &tokens, guided);
        let unconditional = if guided { texts.pop() } else { None };
        let images = match &request.task {
            Task::Prompts(prompts) => vec![Vec::new(); prompts.len()],
            Task::Variations(images) => self.vision()?.encode(session, images)?,
            Task::Blend(blend) if blend.pictures() == 0 => Vec::new(),
            Task::Blend(blend) => self.vision()?.encode(session, &blend.images())?,
        };
        // A blend's pictures see no text, as variations; those of its own come behind that.
        let mixtures = match &request.task {
            Task::Blend(blend) => {
                let mix = blend.mix(Mix::Sphere)?;
                blend.remark(mix).iter().try_for_each(|remark| session.warn(remark))?;
                let ends = blend.shift.as_ref().map(|_| [&*texts[texts.len() - 2], &*texts[texts.len() - 1]]);
                blend.mixtures(mix, &texts[1..], images.clone(), ends)
            }
            _ => Vec::new(),
        };
        let edit = request.edit.as_ref().map(|edit| Arc::new(self.prepare(edit)));
        let draft = |k: usize| {
            let of = k / request.pictures_per_prompt;
            let (image, text) = match mixtures.is_empty() {
                true => (images[of].clone(), texts[of].clone()),
                false => (Vec::new(), texts[0].clone()),
            };
            Embedding {
                image,
                start: None,
                text,
                mixture: mixtures.get(of).cloned(),
                seed: request.seed_of(k),
                unconditional: unconditional.clone(),
                unconditional_image: None,
                negative: None,
                size: self.picture_size(request),
                edit: edit.clone(),
                inversion: request.inversion.clone(),
                hint: None,
                seen: None,
                guidance: None,
                shares_noise: false,
                noise: request.noise_of(k),
            }
        };
        Ok((0..request.pictures()).map(draft).collect())
    }

    /// The empty text, a blend's prompts, and the texts of its shift.
    fn tokens_of(&self, session: &mut Session<'_, '_>, request: &Request, blend: &Blend) -> Result<Vec<Tokens>> {
        let mut tokens = vec![self.texts.empty(session, request)?];
        for prompt in blend.texts() {
            tokens.push(self.texts.tokens(session, prompt)?);
        }
        Ok(tokens)
    }

    /// A picture that is edited, in the sizes of decoder and super-resolution, and what of it stays in each.
    fn prepare(&self, edit: &Edit) -> Prepared {
        let given = |size: Option<usize>| {
            let size = size.unwrap_or(0);
            let stays = edit.mask.as_ref().map(|mask| {
                let mask = mask.covering(size, size);
                (0..size * size).map(|at| if mask.is_new(at % size, at / size) { 0.0 } else { 1.0 }).collect()
            });
            Given { sample: edit.image.resized(size, size).unit_range(), stays }
        };
        Prepared {
            small: given(self.decoder.sample_size),
            large: edit.mask.is_some().then(|| given(self.super_res_first.sample_size)),
            strength: strength(edit),
            resample: edit.resample,
        }
    }

    /// Embeddings to what the decoder is given: for each picture its rows, the unconditional one first.
    pub fn project(&self, session: &mut Session<'_, '_>, drafts: &[Embedding]) -> Result<Vec<Vec<Condition>>> {
        let extra = self.text_proj.clip_extra_context_tokens;
        let dim = self.text_proj.clip_embeddings_dim;
        if let Some(draft) = drafts.iter().find(|draft| draft.image.len() != dim) {
            return Err(Error::request("embedding", format!("{} elements; expected {dim}", draft.image.len())));
        }
        let images = |drafts: &[Embedding]| drafts.iter().flat_map(|draft| &draft.image).copied().collect::<Vec<f32>>();
        session.trace.put(|| "image_embeds".to_owned(), &[drafts.len(), dim], &images(drafts));
        let halves = if guided(drafts) { 2 } else { 1 };
        let shapes = Shapes::batch(1, guided(drafts));
        let mut conditions: Vec<Vec<Condition>> = Vec::new();
        session.stage(TEXT_PROJ, shapes, drafts.len(), 0, |session, executable, group| {
            let drafts = &drafts[group];
            executable.write("image_embeds", &images(drafts))?;
            executable.write("text_embeds", &of_texts(drafts, |text| &text.embeds))?;
            executable.write("hidden", &of_texts(drafts, |text| &text.hidden))?;
            executable.run_once()?;
            let mut read = |output| session.read(TEXT_PROJ, executable, output);
            let (context, added) = (read("context")?, read("added")?);
            let masks = of_texts(drafts, |text| &text.mask);
            let rows = halves * drafts.len();
            recording::conditions(session.trace, &context, &added, rows, self.tokens() + extra);
            conditions.extend((0..drafts.len()).map(|k| {
                let condition = |half: usize| {
                    let of = |data: &[f32]| row(data, half * drafts.len() + k, rows).to_vec();
                    let mask = [vec![1.0; extra], of(&masks)].concat();
                    Condition { context: of(&context), added: of(&added), mask }
                };
                (0..halves).map(condition).collect()
            }));
            Ok(())
        })?;
        Ok(conditions)
    }

    /// Conditions to small pictures.
    pub fn decode(
        &self,
        session: &mut Session<'_, '_>,
        drafts: &mut [Embedding],
        conditions: &[Vec<Condition>],
    ) -> Result<Vec<Painting>> {
        let size = self.decoder.sample_size.unwrap_or(0);
        let shape = vec![size, size, self.decoder.in_channels];
        let (guided, noise) = (guided(drafts), drawn_by(drafts.iter().map(|draft| &draft.noise)));
        let (steps, scale) = (session.settings.decoder_steps, session.settings.decoder_guidance);
        let setting = ("decoder steps", steps);
        let sampling = Loop::new("decoder", &self.decoder_scheduler, setting, shape, guided.then_some(scale), noise)?;
        let edit = edit::shared(drafts.iter().map(|draft| &draft.edit))?;
        let inversion = drafts[0].inversion.clone();
        let down: Option<Vec<u32>> = inversion.as_ref().map(|found| found.timesteps.iter().rev().copied().collect());
        let sampling = match &down {
            Some(levels) => {
                Loop::through("decoder", &self.decoder_scheduler, levels.clone(), sampling.shape.clone(), guided)
            }
            None => edit.iter().try_fold(sampling, |sampling, edit| edit.sampling(sampling))?,
        };
        let noise = if down.is_some() { Noise::Given } else { noise };
        let time = time_table(&sampling, &self.decoder);
        let steps = sampling.steps();
        let shapes = Shapes::sampling(1, steps, guided, noise);
        let mut small = Vec::new();
        session.stage(DECODER, shapes, drafts.len(), steps, |session, executable, group| {
            let (drafts, conditions) = (&mut drafts[group.clone()], &conditions[group]);
            let mut draws = match &inversion {
                Some(found) => Draws::new(found.latents.repeat(drafts.len()), StepNoise::None),
                None => sampling.draw(drafts.iter_mut().map(|draft| &mut draft.noise)).guided_by(drafts, 1),
            };
            // All unconditional rows, then all conditional ones.
            let rows = (0..conditions[0].len()).flat_map(|half| conditions.iter().map(move |rows| &rows[half]));
            Condition::write(rows, executable)?;
            recording::mask(session.trace, executable, "decoder/attention_mask")?;
            if let Some(edit) = &edit {
                edit.begin(&sampling, sampling.share(), &mut draws);
            }
            sampling.trace_start(&draws, session.trace);
            let sources = KnownNoise::Drawn(drafts.iter_mut().map(|draft| &mut draft.noise).collect());
            let mut known = edit.as_ref().and_then(|edit| edit.small.known(sources));
            let c = self.decoder.in_channels;
            let mut down = down.as_ref().map(|levels| {
                let (x, scheduler) = (draws.latents.clone(), &self.decoder_scheduler);
                Down::new(scheduler, levels, guided.then_some(scale), x, c)
            });
            let after = down.as_mut().map(|down| down as _).or(known.as_mut().map(|known| known as _));
            session.sample(DECODER, &sampling, executable, 0..steps, &time, &mut draws, after)?;
            for (draft, latents) in drafts.iter().zip(draws.latents.chunks_exact(elements(&sampling.shape))) {
                let pixels = latents.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
                let (edit, noise) = (draft.edit.clone(), draft.noise.clone());
                small.push(Painting { width: size, height: size, pixels, edit, noise });
            }
            Ok(())
        })?;
        recording::small(session.trace, &small);
        Ok(small)
    }

    /// Small pictures to finished ones: the first network takes all steps but the last, the second takes that.
    pub fn super_resolve(
        &self,
        session: &mut Session<'_, '_>,
        small: &mut [Painting],
        first: usize,
    ) -> Result<Vec<Image>> {
        let (size, small_size) = (self.super_res_first.sample_size.unwrap_or(0), self.decoder.sample_size.unwrap_or(0));
        if let Some(other) = small.iter().find(|painting| [painting.width, painting.height] != [small_size; 2]) {
            let reason = format!("{}x{} pixels; expected {small_size}x{small_size}", other.width, other.height);
            return Err(Error::request("small picture", reason));
        }
        let shape = vec![size, size, self.super_res_first.out_channels];
        let noise = drawn_by(small.iter().map(|painting| &painting.noise));
        let steps = session.settings.super_res_steps;
        let setting = ("super-resolution steps", steps);
        let sampling = Loop::new("super_res", &self.super_res_scheduler, setting, shape, None, noise)?;
        let edit = edit::shared(small.iter().map(|painting| &painting.edit))?.filter(|edit| edit.large.is_some());
        let sampling = sampling.resampled(edit.as_ref().map_or(1, |edit| edit.resample));
        let steps = sampling.steps();
        let of_group = |small: &[Painting], group: Range<usize>| -> Vec<f32> {
            small[group].iter().flat_map(|painting| &painting.pixels).copied().collect()
        };

        let time = time_table(&sampling, &self.super_res_first);
        let shapes = |steps| Shapes::sampling(1, steps, false, noise);
        let mut latents = Vec::new();
        session.stage(SUPER_RES_FIRST, shapes(steps - 1), small.len(), steps - 1, |session, executable, group| {
            let mut draws = sampling.draw(small[group.clone()].iter_mut().map(|painting| &mut painting.noise));
            sampling.trace_start(&draws, session.trace);
            executable.write("small", &of_group(small, group.clone()))?;
            let sources = KnownNoise::Drawn(small[group].iter_mut().map(|painting| &mut painting.noise).collect());
            let large = edit.as_ref().and_then(|edit| edit.large.as_ref());
            let mut known = large.and_then(|large| large.known(sources));
            session.sample(
                SUPER_RES_FIRST,
                &sampling,
                executable,
                0..steps - 1,
                &time,
                &mut draws,
                known.as_mut().map(|known| known as _),
            )?;
            recording::upscaled(session.trace, executable)?;
            latents.extend(draws.latents);
            Ok(())
        })?;

        let time = time_table(&sampling, &self.super_res_last);
        let mut images = Vec::new();
        let mut finished = Vec::new();
        let count = small.len();
        session.stage(SUPER_RES_LAST, shapes(1), count, 1, |session, executable, group| {
            // No noise is added in the last step.
            let own = group.start * elements(&sampling.shape)..group.end * elements(&sampling.shape);
            let mut draws = Draws::new(latents[own].to_vec(), StepNoise::None);
            executable.write("small", &of_group(small, group))?;
            let large = edit.as_ref().and_then(|edit| edit.large.as_ref());
            let mut known = large.and_then(|large| large.known(KnownNoise::Drawn(Vec::new())));
            let last = steps - 1..steps;
            session.sample(
                SUPER_RES_LAST,
                &sampling,
                executable,
                last,
                &time,
                &mut draws,
                known.as_mut().map(|known| known as _),
            )?;
            for latents in draws.latents.chunks_exact(elements(&sampling.shape)) {
                let image = Image::from_unit_range(size, size, latents)?;
                report(session.observer, Event::Picture { index: first + images.len(), image: &image })?;
                images.push(image);
                if session.trace.is_on() {
                    finished.extend(latents.iter().map(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0)));
                }
            }
            Ok(())
        })?;
        recording::finished(session.trace, &images, &finished);
        Ok(images)
    }
}
