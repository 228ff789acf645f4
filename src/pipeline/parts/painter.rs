//! From image embeddings to pictures, as Kandinsky's decoder pipelines go: a U-Net samples latents, which MoVQ decodes.

use super::{Embedder, decode, edits, time_table};
use crate::backend::Executable;
use crate::diffusion::{Run, Sampler, Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::model::kandinsky::{self, Beside};
use crate::model::{Sizes, autoencoder, unet};
use crate::ops::Noise;
use crate::pipeline::agree;
use crate::pipeline::edit::{KnownNoise, Prepared, first_step, shared};
use crate::pipeline::event::Stage;
use crate::pipeline::family::{Embedding, Painting, Shapes};
use crate::pipeline::request::{Request, Settings};
use crate::pipeline::sampling::{Loop, drawn_by};
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use crate::weights::config::Configured;
use std::sync::Arc;

pub const ENCODER: Stage = Stage::new("movq_encoder", "autoencoder's encoder").of("movq");
const DECODER: Stage = Stage::new("unet", "decoder");
const AUTOENCODER: Stage = Stage::new("movq", "autoencoder");

/// A side is rounded up to a multiple of this, as the original does: the decoder halves latents of an eighth of it three
/// times.
const UNIT: usize = 64;
/// Side of a picture where a request does not say.
const SIDE: usize = 512;
/// Longest side.
const MOST: usize = 8192;

/// The U-Net and the autoencoder.
pub struct Painter {
    pub decoder: Configured<unet::Config>,
    pub scheduler: Configured<SchedulerConfig>,
    pub autoencoder: Configured<autoencoder::Config>,
    /// Tokens of a text that the U-Net sees; `None` if it sees none.
    text: Option<usize>,
    editing: Editing,
}

/// How a picture that is edited enters the sampling loop.
pub struct Editing {
    /// Share of the picture's variance in what the loop begins from, at a strength.
    pub share: fn(&Loop, strength: f32) -> f32,
    /// Whether what stays is put back after every step also if the U-Net sees it.
    pub puts_back: bool,
}

impl Painter {
    /// The components that a checkpoint needs.
    pub const COMPONENTS: [&'static str; 3] = ["movq", "scheduler", "unet"];
    /// In the order in which they run.
    pub const STAGES: [Stage; 3] = [ENCODER, DECODER, AUTOENCODER];

    /// Reads and checks the configurations.
    ///
    /// # Errors
    /// A component is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn read(checkpoint: &Checkpoint, text: Option<usize>, editing: Editing) -> Result<Painter> {
        checkpoint.require(&Painter::COMPONENTS)?;
        let painter = Painter {
            decoder: checkpoint.config("unet/config.json")?,
            scheduler: checkpoint.config("scheduler/scheduler_config.json")?,
            autoencoder: checkpoint.config("movq/config.json")?,
            text,
            editing,
        };
        let agree = |component: &str, key: &str, found: usize, other: &str, wanted: usize| {
            agree(checkpoint, component, key, found, other, wanted)
        };
        kandinsky::check(&painter.decoder, text.is_some())?;
        let channels = painter.autoencoder.latent_channels;
        agree("unet", "out_channels", painter.decoder.out_channels, "twice the latents' channels", 2 * channels)?;
        agree("movq", "out_channels", painter.autoencoder.out_channels, "the number of colours", 3)?;
        let factor = painter.autoencoder.factor();
        agree("movq", "block_out_channels gives a factor that", factor, "Kandinsky's", UNIT / 8)?;
        if painter.scheduler.sampler == Sampler::UnClip {
            return Err(painter.scheduler.refused("this is unCLIP's scheduler; expected one of latents"));
        }
        Ok(painter)
    }

    /// Steps and guidance scales of a run that says nothing else.
    ///
    /// # Errors
    /// Those that the checkpoint names have no steps.
    pub fn defaults(&self, checkpoint: &Checkpoint, embedder: &Embedder) -> Result<Settings> {
        let own = Settings { decoder_steps: 100, decoder_guidance: 4.0, ..Settings::default() };
        let defaults = Settings::read(checkpoint, own)?;
        let steps = Schedule::new(&embedder.prior.scheduler).timesteps("prior steps", defaults.prior_steps);
        let checked = steps.and_then(|_| self.calls(defaults.decoder_steps)).and_then(|_| defaults.check());
        checked.map(|()| defaults).map_err(|error| {
            Error::config(checkpoint.path().join("model_index.json"), format!("_engine_defaults: {error}"))
        })
    }

    /// Warnings about the configurations.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        [self.decoder.warnings(), self.scheduler.warnings(), self.autoencoder.warnings()].into_iter().flatten()
    }

    /// Records one of its stages; `None` for a stage of others.
    pub fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Option<Result<Plan>> {
        let size = if shapes.size == [0; 2] { self.latents([SIDE; 2]) } else { shapes.size };
        match stage {
            ENCODER => Some(autoencoder::encoder(&self.autoencoder, source, shapes.batch, size)),
            DECODER => {
                let rule = self.scheduler.rule(shapes.guided, shapes.noise);
                let sizes = Sizes { pictures: shapes.batch, steps: shapes.steps, rule };
                Some(kandinsky::plan(&self.decoder, source, &sizes, self.text, size))
            }
            AUTOENCODER => Some(autoencoder::decoder(&self.autoencoder, source, shapes.batch, size)),
            _ => None,
        }
    }

    /// Beginnings of the names of tensors that a stage does not read and others may. The original never quantises.
    pub fn of_others(stage: Stage) -> &'static [&'static str] {
        match stage {
            ENCODER => &["decoder.", "post_quant_conv.", "quantize."],
            AUTOENCODER => &["encoder.", "quant_conv.", "quantize."],
            _ => &[],
        }
    }

    /// What sides of pictures are multiples of.
    pub const fn size_unit() -> usize {
        UNIT
    }

    /// Width and height in pixels of a request's pictures.
    pub fn picture_size(request: &Request) -> [usize; 2] {
        request.size.unwrap_or([SIDE; 2]).map(|side| side.next_multiple_of(UNIT))
    }

    /// Height and width of the latents of a picture of so many pixels in width and height.
    pub fn latents(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        [height, width].map(|side| side.next_multiple_of(UNIT) / self.autoencoder.factor())
    }

    /// Calls of the U-Net that so many steps take.
    ///
    /// # Errors
    /// The schedule does not have them.
    pub fn calls(&self, steps: usize) -> Result<usize> {
        Ok(Run::new(&self.scheduler, ("decoder steps", steps), 1.0)?.timesteps.len())
    }

    /// The stages that a request passes through.
    ///
    /// # Errors
    /// The decoder cannot do what is asked for.
    pub fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        if request.super_res_steps.is_some() {
            return Err(Error::request("super-resolution steps", "this checkpoint has no super-resolution"));
        }
        if let Some(size) = request.size
            && let Some(side) = size.into_iter().find(|side| !(1..=MOST).contains(side))
        {
            return Err(Error::value("size", side, format!("a side must be 1 to {MOST} pixels")));
        }
        let calls = self.calls(settings.decoder_steps)?;
        self.check_given(request)?;
        first_step(("strength", request.edit.as_ref().and_then(edits::strength)), ("decoder steps", calls))?;
        let noise = Noise::from(&request.noise_of(0));
        let pictures = request.pictures();
        let size = self.latents(request.size.unwrap_or([SIDE; 2]));
        let pixels = size.map(|side| side * self.autoencoder.factor());
        let encoder = request.edit.as_ref().map(|_| (ENCODER, Shapes::batch(1, false).at(pixels)));
        let sampling = Shapes::sampling(pictures, calls, settings.decoder_guidance > 1.0, noise);
        let others = [(DECODER, sampling.at(size)), (AUTOENCODER, Shapes::batch(pictures, false).at(size))];
        Ok(encoder.into_iter().chain(others).collect())
    }

    /// Gives the drafts of a request what the decoder sees beside embeddings: a picture that is edited, and a hint. A run is
    /// told if its size is rounded up.
    pub fn encode(&self, session: &mut Session<'_, '_>, request: &Request, drafts: &mut [Embedding]) -> Result<()> {
        let size = request.size.unwrap_or([SIDE; 2]);
        let [width, height] = Painter::picture_size(request);
        if size != [width, height] {
            session.warn(&format!("{}x{} pixels are rounded up to {width}x{height}", size[0], size[1]))?;
        }
        let edit = request.edit.as_ref().map(|edit| self.prepare(session, edit, [width, height]).map(Arc::new));
        let edit = edit.transpose()?;
        let hint = request.hint.as_ref().map(|hint| {
            let pixels = hint.resized(width, height).pixels;
            Arc::new(pixels.into_iter().map(|byte| f32::from(byte) / 255.0).collect())
        });
        for draft in drafts {
            (draft.edit, draft.hint) = (edit.clone(), hint.clone());
        }
        Ok(())
    }

    /// Pictures of embeddings; `conditions` writes what the U-Net sees beside them.
    ///
    /// # Errors
    /// Embeddings of another width than the embedder's, or of several edits; and the device's.
    pub fn paint(
        &self,
        session: &mut Session<'_, '_>,
        embedder: &Embedder,
        drafts: &mut [Embedding],
        conditions: impl Fn(&mut dyn Executable, &[Embedding]) -> Result<()>,
    ) -> Result<Vec<Painting>> {
        embedder.check_embeddings(drafts, session.settings.decoder_guidance > 1.0)?;
        let latents = self.sample(session, drafts, embedder.dim(), conditions)?;
        let size = self.latents(drafts[0].size);
        let shape = [drafts.len(), size[0], size[1], self.autoencoder.latent_channels];
        session.trace.put_pictures(|| "decoder/latents".to_owned(), &shape, &latents);
        decode(session, AUTOENCODER, size, drafts, &latents)
    }

    /// Embeddings of this width to latents `[B, h, w, C]`.
    fn sample(
        &self,
        session: &mut Session<'_, '_>,
        drafts: &mut [Embedding],
        dim: usize,
        conditions: impl Fn(&mut dyn Executable, &[Embedding]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let is_guided = session.settings.decoder_guidance > 1.0;
        let unconditional = |draft: &Embedding| draft.unconditional_image.as_deref().cloned();
        let [height, width] = self.latents(drafts[0].size);
        let shape = vec![height, width, self.autoencoder.latent_channels];
        let noise = drawn_by(drafts.iter().map(|draft| &draft.noise));
        let (steps, scale) = (session.settings.decoder_steps, session.settings.decoder_guidance);
        let guidance = is_guided.then_some(scale);
        let sampling = Loop::new("decoder", &self.scheduler, ("decoder steps", steps), shape, guidance, noise)?;
        // As many as the whole loop has, so that edits of any strength share a plan.
        let shapes = Shapes::sampling(1, sampling.steps(), is_guided, noise).at([height, width]);
        let edit = shared(drafts.iter().map(|draft| &draft.edit))?;
        let hint = drafts[0].hint.clone();
        let sampling = edit.iter().try_fold(sampling, |sampling, edit| edit.sampling(sampling))?;
        let beside = Beside::of(&self.decoder)?;
        let time = time_table(&sampling, &self.decoder);
        let steps = sampling.steps();
        let mut all = Vec::new();
        session.stage(DECODER, shapes, drafts.len(), steps, |session, executable, group| {
            let drafts = &mut drafts[group];
            let images: Vec<f32> = drafts.iter().flat_map(|draft| &draft.image).copied().collect();
            let mut rows: Vec<f32> = drafts.iter().filter(|_| is_guided).filter_map(unconditional).flatten().collect();
            rows.extend(&images);
            executable.write("image_embeds", &rows)?;
            session.trace.put(|| "image_embeds".to_owned(), &[drafts.len(), dim], &images);
            conditions(executable, drafts)?;
            let mut draws = sampling.draw(drafts.iter_mut().map(|draft| &mut draft.noise)).guided_by(drafts, 1);
            let noise = KnownNoise::OfStart(draws.latents.clone());
            if let Some(edit) = &edit {
                let share = edit.strength.map_or(1.0, |strength| (self.editing.share)(&sampling, strength));
                edit.begin(&sampling, share, &mut draws);
            }
            if let (Beside::Known, Some(edit)) = (beside, &edit) {
                executable.write("known", &edits::known(&edit.small).repeat(drafts.len()))?;
            }
            if let (Beside::Hint, Some(hint)) = (beside, &hint) {
                executable.write("hint", &hint.repeat(drafts.len()))?;
            }
            sampling.trace_start(&draws, session.trace);
            let puts_back = self.editing.puts_back || beside != Beside::Known;
            let stays = edit.as_ref().filter(|_| puts_back).map(|edit: &Arc<Prepared>| &edit.small);
            let mut known = stays.and_then(|small| small.known(noise));
            session.sample(
                DECODER,
                &sampling,
                executable,
                0..steps,
                &time,
                &mut draws,
                known.as_mut().map(|known| known as _),
            )?;
            all.extend(draws.latents);
            Ok(())
        })?;
        Ok(all)
    }
}
