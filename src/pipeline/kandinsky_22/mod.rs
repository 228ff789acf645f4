//! Kandinsky 2.2: unCLIP on the latents of an autoencoder (Razzhigaev et al. 2023).
//!
//! | stage | what it makes |
//! | --- | --- |
//! | text encoder | an embedding and a state per token of each text |
//! | prior, or image encoder | an image embedding of the text, or of a picture |
//! | image encoder | the unconditional image embedding: that of CLIP's mean colour |
//! | autoencoder's encoder | latents of a picture that is edited |
//! | decoder | latents, from the image embedding alone: the decoder sees no text |
//! | autoencoder | the finished picture, of any size in steps of 64 pixels |
//!
//! Some decoders see more than noisy latents: what stays of an edited picture, or a hint of what is where.
//!
//! Prior and decoder are two checkpoint folders; the prior's components have names with `prior_` here, as diffusers'
//! combined pipelines save them.

mod edits;

use super::agree;
use super::blend::{self, Blend, Mix};
use super::edit::{self, Edit, KnownNoise};
use super::event::Stage;
use super::family::{Embedding, EncodedText, Family, Kind, Painting, Shapes};
use super::parts::{self, Prior, Texts, Vision, recording, time_table};
use super::request::{Request, Settings, Task};
use super::sampling::{Loop, drawn_by};
use super::session::Session;
use crate::diffusion::{Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::{Sizes, autoencoder, kandinsky, unet};
use crate::ops::Noise;
use crate::plan::{Plan, WeightSource};
use crate::weights::config::Configured;
use crate::weights::{Checkpoint, LoadOptions};
use std::path::Path;
use std::sync::Arc;

/// How the family's checkpoints are recognised. The last class is that of a prior's folder, which makes no pictures alone.
pub const KIND: Kind = Kind {
    classes: &[
        "KandinskyV22Pipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22ControlnetPipeline",
        "KandinskyV22ControlnetImg2ImgPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        OF_PRIOR,
    ],
    components,
    open,
};

/// What stands before the names of the prior's components.
const PRIOR_PREFIX: &str = "prior_";
/// The class of a prior's folder.
const OF_PRIOR: &str = "KandinskyV22PriorPipeline";
const COMPONENTS: [&str; 9] = [
    "movq",
    "prior_image_encoder",
    "prior_image_processor",
    "prior_prior",
    "prior_scheduler",
    "prior_text_encoder",
    "prior_tokenizer",
    "scheduler",
    "unet",
];

/// The components of a folder of this class.
fn components(class: &str) -> [&'static [&'static str]; 2] {
    const ALONE: &[&str] = &["image_encoder", "image_processor", "prior", "scheduler", "text_encoder", "tokenizer"];
    [if class == OF_PRIOR { ALONE } else { &COMPONENTS }, &[]]
}

const TEXT_ENCODER: Stage = Stage::new("prior_text_encoder", "text encoder");
const PRIOR: Stage = Stage::new("prior_prior", "prior");
const IMAGE_ENCODER: Stage = Stage::new("prior_image_encoder", "image encoder");
const ENCODER: Stage = Stage::new("movq_encoder", "autoencoder's encoder").of("movq");
const DECODER: Stage = Stage::new("unet", "decoder");
const AUTOENCODER: Stage = Stage::new("movq", "autoencoder");

/// Whether a checkpoint of this family has its prior in another folder.
pub fn lacks_prior(checkpoint: &Checkpoint) -> bool {
    let class = checkpoint.class_name();
    class != OF_PRIOR && KIND.classes.contains(&class) && !checkpoint.has(PRIOR.name())
}

/// Whether a folder is the checkpoint of a prior of this family.
pub fn is_prior(folder: &Path) -> bool {
    Checkpoint::open(folder, LoadOptions::default()).is_ok_and(|checkpoint| checkpoint.class_name() == OF_PRIOR)
}

/// The checkpoint with the prior of another folder.
///
/// # Errors
/// [`Error::Config`] if that is the folder of something else.
pub fn with_prior(checkpoint: Checkpoint, prior: Checkpoint) -> Result<Checkpoint> {
    if prior.class_name() == OF_PRIOR {
        return Ok(checkpoint.beside(PRIOR_PREFIX, prior));
    }
    let reason = format!("_class_name: expected {OF_PRIOR}, found {:?}", prior.class_name());
    Err(Error::config(prior.path().join("model_index.json"), reason))
}

/// A side is rounded up to a multiple of this, as the original does: the decoder halves latents of an eighth of it three
/// times.
const UNIT: usize = 64;
/// Side of a picture where a request does not say.
const SIDE: usize = 512;
/// Longest side.
const MOST: usize = 8192;

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
struct Kandinsky {
    checkpoint: Arc<Checkpoint>,
    defaults: Settings,
    texts: Texts,
    prior: Prior,
    vision: Vision,
    decoder: Configured<unet::Config>,
    scheduler: Configured<SchedulerConfig>,
    autoencoder: Configured<autoencoder::Config>,
}

/// Reads and checks a checkpoint's configurations.
fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    if checkpoint.class_name() == OF_PRIOR {
        let reason = "this folder is Kandinsky's prior; --model names the decoder's folder, --prior this one";
        return Err(Error::config(checkpoint.path().join("model_index.json"), reason));
    }
    let of_decoder = COMPONENTS.iter().copied().filter(|name| !name.starts_with(PRIOR_PREFIX));
    checkpoint.require(&of_decoder.collect::<Vec<_>>())?;
    let of_prior = COMPONENTS.iter().copied().filter(|name| name.starts_with(PRIOR_PREFIX));
    checkpoint
        .require_for("pictures; name the folder of Kandinsky's prior with --prior", &of_prior.collect::<Vec<_>>())?;
    let prior = Prior::read(checkpoint, PRIOR, "prior_scheduler")?;
    let dim = ("the prior's embedding_dim", prior.config.embedding_dim);
    let karlo = Settings::default();
    let family = Kandinsky {
        texts: Texts::read(checkpoint, TEXT_ENCODER, "prior_tokenizer")?,
        vision: Vision::read(checkpoint, IMAGE_ENCODER, "prior_image_processor", dim)?,
        prior,
        decoder: checkpoint.config("unet/config.json")?,
        scheduler: checkpoint.config("scheduler/scheduler_config.json")?,
        autoencoder: checkpoint.config("movq/config.json")?,
        defaults: Settings::read(checkpoint, Settings { decoder_steps: 100, decoder_guidance: 4.0, ..karlo })?,
        checkpoint: checkpoint.clone(),
    };
    family.check()?;
    Ok(Box::new(family))
}

impl Family for Kandinsky {
    fn stages(&self) -> Vec<Stage> {
        vec![TEXT_ENCODER, PRIOR, IMAGE_ENCODER, ENCODER, DECODER, AUTOENCODER]
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        let all = [
            self.texts.config.warnings(),
            self.prior.config.warnings(),
            self.prior.scheduler.warnings(),
            self.decoder.warnings(),
            self.scheduler.warnings(),
            self.autoencoder.warnings(),
        ];
        all.into_iter().flatten().chain(self.vision.warnings()).map(String::as_str).collect()
    }

    fn picture_size(&self, request: &Request) -> [usize; 2] {
        request.size.unwrap_or([SIDE; 2]).map(|side| side.next_multiple_of(UNIT))
    }

    fn size_unit(&self) -> Option<usize> {
        Some(UNIT)
    }

    fn has_super_resolution(&self) -> bool {
        false
    }

    fn text_tower(&self) -> Result<&Texts> {
        Ok(&self.texts)
    }

    fn image_tower(&self) -> Result<&Vision> {
        Ok(&self.vision)
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        let size = if shapes.size == [0; 2] { self.latents([SIDE; 2]) } else { shapes.size };
        match stage {
            TEXT_ENCODER => self.texts.record(source, shapes.batch),
            PRIOR => self.prior.record(source, shapes),
            IMAGE_ENCODER => self.vision.record(source, shapes.batch),
            ENCODER => autoencoder::encoder(&self.autoencoder, source, shapes.batch, size),
            DECODER => {
                let rule = self.scheduler.rule(shapes.guided, shapes.noise);
                let sizes = Sizes { pictures: shapes.batch, steps: shapes.steps, rule };
                kandinsky::plan(&self.decoder, source, &sizes, size)
            }
            AUTOENCODER => autoencoder::decoder(&self.autoencoder, source, shapes.batch, size),
            _ => Err(Error::request("stage", format!("Kandinsky has no stage {stage}"))),
        }
    }

    fn of_others(&self, stage: Stage) -> &'static [&'static str] {
        // The original never quantises.
        match stage {
            ENCODER => &["decoder.", "post_quant_conv.", "quantize."],
            AUTOENCODER => &["encoder.", "quant_conv.", "quantize."],
            _ => &[],
        }
    }

    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        request.check_decoder_settings(&[])?;
        if request.super_res_steps.is_some() {
            return Err(Error::request("super-resolution steps", "this checkpoint has no super-resolution"));
        }
        if let Some(size) = request.size
            && let Some(side) = size.into_iter().find(|side| !(1..=MOST).contains(side))
        {
            return Err(Error::value("size", side, format!("a side must be 1 to {MOST} pixels")));
        }
        Schedule::new(&self.scheduler).timesteps("decoder steps", settings.decoder_steps)?;
        self.check_given(request)?;
        let noise = Noise::from(&request.noise_of(0));
        let (subjects, pictures) = (request.subjects(), request.pictures());
        let guided = settings.decoder_guidance > 1.0;
        let mut route = Vec::new();
        let mut given = usize::from(guided && request.negative.is_none());
        match &request.task {
            Task::Prompts(_) => {}
            Task::Variations(_) if request.negative.is_some() => {
                return Err(Error::request("negative", "variations of a picture see no text with this checkpoint"));
            }
            Task::Variations(_) => given += subjects,
            Task::Blend(blend) => {
                blend.mix(Mix::Sum)?;
                given += blend.pictures();
            }
        }
        if !matches!(request.task, Task::Variations(_)) {
            Schedule::new(&self.prior.scheduler).timesteps("prior steps", settings.prior_steps)?;
            let prior_guided = settings.prior_guidance > 1.0;
            route.push((TEXT_ENCODER, Shapes::batch(subjects + 1, false)));
            route.push((PRIOR, Shapes::sampling(pictures, settings.prior_steps, prior_guided, noise)));
        }
        if given > 0 {
            route.push((IMAGE_ENCODER, Shapes::batch(given, false)));
        }
        let size = self.latents(request.size.unwrap_or([SIDE; 2]));
        if let Some(edit) = &request.edit {
            Edit::first(edits::strength(edit), settings.decoder_steps)?;
            let pixels = size.map(|side| side * self.autoencoder.factor());
            route.push((ENCODER, Shapes::batch(1, false).at(pixels)));
        }
        route.push((DECODER, Shapes::sampling(pictures, settings.decoder_steps, guided, noise).at(size)));
        route.push((AUTOENCODER, Shapes::batch(pictures, false).at(size)));
        Ok(route)
    }

    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        let size = request.size.unwrap_or([SIDE; 2]);
        let [width, height] = self.picture_size(request);
        if size != [width, height] {
            session.warn(&format!("{}x{} pixels are rounded up to {width}x{height}", size[0], size[1]))?;
        }
        let (texts, images) = match &request.task {
            Task::Prompts(prompts) => {
                let mut tokens =
                    prompts.iter().map(|prompt| self.texts.tokens(session, prompt)).collect::<Result<Vec<_>>>()?;
                tokens.push(match &request.negative {
                    Some(negative) => self.texts.tokens(session, negative)?,
                    None => self.texts.empty(session, request)?,
                });
                let texts = self.texts.encode(session, &tokens)?;
                recording::texts(session.trace, &texts, &tokens, true);
                (texts, vec![Vec::new(); prompts.len()])
            }
            Task::Variations(images) => (Vec::new(), self.vision.encode(session, images)?),
            Task::Blend(blend) => {
                let texts = self.texts_of(session, request, blend)?;
                (texts, self.vision.encode(session, &blend.images())?)
            }
        };
        let mixtures = match &request.task {
            Task::Blend(blend) => {
                let ends = blend.shift.as_ref().map(|_| [&*texts[texts.len() - 4], &*texts[texts.len() - 3]]);
                blend.mixtures(blend.mix(Mix::Sum)?, &texts, images.clone(), ends)
            }
            _ => Vec::new(),
        };
        // Of a blend the negative prompt, or the empty one again, comes before it.
        let unconditional = texts.last().filter(|_| session.settings.prior_guidance > 1.0);
        // A negative prompt gets its embedding from the prior.
        let has_mean_colour = session.settings.decoder_guidance > 1.0 && request.negative.is_none();
        let mean_colour = has_mean_colour.then(|| self.vision.encode_mean_colour(session).map(Arc::new)).transpose()?;
        let edit = request.edit.as_ref().map(|edit| self.prepare(session, edit, [width, height]).map(Arc::new));
        let edit = edit.transpose()?;
        let hint = request.hint.as_ref().map(|hint| {
            let pixels = hint.resized(width, height).pixels;
            Arc::new(pixels.into_iter().map(|byte| f32::from(byte) / 255.0).collect())
        });
        let draft = |k: usize| {
            let of = k / request.pictures_per_prompt;
            Embedding {
                image: if mixtures.is_empty() { images[of].clone() } else { Vec::new() },
                text: texts.get(of).cloned().unwrap_or_default(),
                negative: if mixtures.is_empty() {
                    texts.last().cloned().filter(|_| request.negative.is_some())
                } else {
                    texts.get(texts.len() - 2).cloned()
                },
                mixture: mixtures.get(of).cloned(),
                seed: request.seed_of(k),
                unconditional: unconditional.cloned(),
                unconditional_image: mean_colour.clone(),
                size: [width, height],
                edit: edit.clone(),
                inversion: None,
                hint: hint.clone(),
                seen: None,
                guidance: None,
                shares_noise: false,
                noise: request.noise_of(k),
            }
        };
        Ok((0..request.pictures()).map(draft).collect())
    }

    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        if drafts.iter().all(|draft| !draft.image.is_empty()) {
            return Ok(());
        }
        if drafts.iter().all(|draft| draft.mixture.is_some()) {
            // As the original does it: the prior runs once more for the negative prompt, also for the empty one, of which
            // nothing but the draws is used.
            let negative = drafts.first().and_then(|draft| draft.negative.clone());
            let negatives = blend::resolve(Some(&self.prior), session, drafts, negative.as_ref())?;
            for (draft, negative) in
                drafts.iter_mut().zip(negatives).filter(|(draft, _)| draft.unconditional_image.is_none())
            {
                draft.unconditional_image = Some(Arc::new(negative));
            }
            return Ok(());
        }
        if !drafts.iter().all(|draft| draft.negative.is_some()) {
            return self.prior.sample(session, drafts);
        }
        // As the original does it: one run for the prompts and for their negative prompts, which guide both.
        let halves = |which: usize| {
            drafts.iter().map(move |draft| {
                let [positive, negative] = draft.noise.clone().halves();
                let noise = if which == 0 { positive } else { negative };
                let text = if which == 0 { &draft.text } else { draft.negative.as_ref().unwrap_or(&draft.text) };
                Embedding { text: text.clone(), noise, ..draft.clone() }
            })
        };
        let mut both: Vec<Embedding> = halves(0).chain(halves(1)).collect();
        self.prior.sample(session, &mut both)?;
        let negatives = both.split_off(drafts.len());
        for ((draft, positive), negative) in drafts.iter_mut().zip(both).zip(negatives) {
            draft.image = positive.image;
            draft.unconditional_image = Some(Arc::new(negative.image));
            draft.noise = positive.noise.whole();
        }
        Ok(())
    }

    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>> {
        let latents = self.sample_decoder(session, embeddings)?;
        let size = self.latents(embeddings[0].size);
        let shape = [embeddings.len(), size[0], size[1], self.autoencoder.latent_channels];
        session.trace.put_pictures(|| "decoder/latents".to_owned(), &shape, &latents);
        parts::decode(session, AUTOENCODER, size, embeddings, &latents)
    }

    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>> {
        parts::finish(session, small, first)
    }
}

impl Kandinsky {
    /// Height and width of the latents of a picture of so many pixels in width and height.
    fn latents(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        [height, width].map(|side| side.next_multiple_of(UNIT) / self.autoencoder.factor())
    }

    /// A blend's prompts, the texts of its shift, its negative prompt, and the empty text, encoded.
    fn texts_of(
        &self,
        session: &mut Session<'_, '_>,
        request: &Request,
        blend: &Blend,
    ) -> Result<Vec<Arc<EncodedText>>> {
        let empty = self.texts.empty(session, request)?;
        let mut tokens = Vec::new();
        for prompt in blend.texts() {
            tokens.push(self.texts.tokens(session, prompt)?);
        }
        tokens.push(request.negative.as_ref().map_or(Ok(empty.clone()), |text| self.texts.tokens(session, text))?);
        tokens.push(empty);
        self.texts.encode(session, &tokens)
    }

    /// Embeddings to latents `[B, h, w, C]`.
    fn sample_decoder(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<Vec<f32>> {
        let dim = self.prior.config.embedding_dim;
        let is_guided = session.settings.decoder_guidance > 1.0;
        let unconditional = |draft: &Embedding| draft.unconditional_image.as_deref().cloned();
        for draft in drafts.iter() {
            let image = draft.image.len();
            let other = draft.unconditional_image.as_ref().map_or(0, |image| image.len());
            if image != dim || is_guided && other != dim {
                let reason = format!(
                    "{image} and {other} elements of the image and the unconditional one; expected {dim} of each"
                );
                return Err(Error::request("embedding", reason));
            }
        }
        let [height, width] = self.latents(drafts[0].size);
        let shape = vec![height, width, self.autoencoder.latent_channels];
        let noise = drawn_by(drafts.iter().map(|draft| &draft.noise));
        let (steps, scale) = (session.settings.decoder_steps, session.settings.decoder_guidance);
        let guidance = is_guided.then_some(scale);
        let sampling = Loop::new("decoder", &self.scheduler, ("decoder steps", steps), shape, guidance, noise)?;
        let edit = edit::shared(drafts.iter().map(|draft| &draft.edit))?;
        let hint = drafts[0].hint.clone();
        let sampling = edit.iter().try_fold(sampling, |sampling, edit| edit.sampling(sampling))?;
        let beside = kandinsky::Beside::of(&self.decoder)?;
        let time = time_table(&sampling, &self.decoder);
        // As many as the whole loop has, so that edits of any strength share a plan.
        let shapes = Shapes::sampling(1, steps, is_guided, noise).at([height, width]);
        let steps = sampling.steps();
        let mut all = Vec::new();
        session.stage(DECODER, shapes, drafts.len(), steps, |session, executable, group| {
            let drafts = &mut drafts[group];
            let images: Vec<f32> = drafts.iter().flat_map(|draft| &draft.image).copied().collect();
            let mut rows: Vec<f32> = drafts.iter().filter(|_| is_guided).filter_map(unconditional).flatten().collect();
            rows.extend(&images);
            executable.write("image_embeds", &rows)?;
            session.trace.put(|| "image_embeds".to_owned(), &[drafts.len(), dim], &images);
            let mut draws = sampling.draw(drafts.iter_mut().map(|draft| &mut draft.noise)).guided_by(drafts, 1);
            let noise = KnownNoise::OfStart(draws.latents.clone());
            if let Some(edit) = &edit {
                edit.begin(&sampling, &mut draws);
            }
            if let (kandinsky::Beside::Known, Some(edit)) = (beside, &edit) {
                executable.write("known", &edits::known(&edit.small).repeat(drafts.len()))?;
            }
            if let (kandinsky::Beside::Hint, Some(hint)) = (beside, &hint) {
                executable.write("hint", &hint.repeat(drafts.len()))?;
            }
            sampling.trace_start(&draws, session.trace);
            let mut known = edit.as_ref().and_then(|edit| edit.small.known(noise));
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

    /// Sizes that two components must agree on, and settings that no schedule has steps for.
    fn check(&self) -> Result<()> {
        let agree = |component: &str, key: &str, found: usize, other: &str, wanted: usize| {
            agree(&self.checkpoint, component, key, found, other, wanted)
        };
        let (dim, of_dim) = (self.prior.config.embedding_dim, "the prior's embedding_dim");
        let of_tokens = "the text encoder's max_position_embeddings";
        agree("prior_prior", "num_embeddings", self.prior.config.num_embeddings, of_tokens, self.texts.length())?;
        agree("prior_text_encoder", "projection_dim", self.texts.config.projection_dim, of_dim, dim)?;
        agree("unet", "encoder_hid_dim", self.decoder.encoder_hid_dim.unwrap_or(dim), of_dim, dim)?;
        let channels = self.autoencoder.latent_channels;
        kandinsky::Beside::of(&self.decoder)?;
        agree("unet", "out_channels", self.decoder.out_channels, "twice the latents' channels", 2 * channels)?;
        agree("movq", "out_channels", self.autoencoder.out_channels, "the number of colours", 3)?;
        let factor = self.autoencoder.factor();
        agree("movq", "block_out_channels gives a factor that", factor, "Kandinsky's", UNIT / 8)?;
        let Settings { prior_steps, decoder_steps, .. } = self.defaults;
        Schedule::new(&self.prior.scheduler)
            .timesteps("prior steps", prior_steps)
            .and_then(|_| Schedule::new(&self.scheduler).timesteps("decoder steps", decoder_steps))
            .and_then(|_| self.defaults.check())
            .map_err(|error| {
                Error::config(self.checkpoint.path().join("model_index.json"), format!("_engine_defaults: {error}"))
            })
    }
}
