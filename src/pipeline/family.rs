//! What a family of checkpoints is to the pipeline.
//!
//! A family is a kind of checkpoint: which stages it has, how each records its network, and how a request passes
//! through them. Families live in files of their own; [`FAMILIES`] is the only list of them. Everything else of the
//! pipeline, loading, grouping, sampling, keeping stages, is the same for all.

use super::blend::Mixture;
use super::edit::Prepared;
use super::enlarge::Enlarge;
use super::event::Stage;
use super::invert::Inversion;
use super::parts::{Texts, Vision};
use super::request::{Request, Settings};
use super::session::Session;
use crate::diffusion::Sampler;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::noise::NoiseSource;
use crate::ops::Noise;
use crate::plan::{Plan, WeightSource};
use crate::weights::{Checkpoint, ComponentReport};
use std::sync::Arc;

/// All families.
const FAMILIES: &[&Kind] = &[
    &super::unclip::KIND,
    &super::kandinsky_22::KIND,
    &super::kandinsky_21::KIND,
    &super::stable_unclip::KIND,
    &super::clip::KIND,
];

/// How checkpoints of a family are recognised and opened.
pub(super) struct Kind {
    /// Pipeline classes of `model_index.json`.
    pub classes: &'static [&'static str],
    /// That of them which is a prior alone, where others have theirs in another folder.
    pub of_prior: Option<&'static str>,
    /// The components that a checkpoint of a class needs, and those that it may have.
    pub components: fn(class: &str) -> [&'static [&'static str]; 2],
    /// Reads and checks a checkpoint's configurations; no weight is touched.
    pub open: fn(&Arc<Checkpoint>) -> Result<Box<dyn Family>>,
}

/// Looks at every component of a checkpoint; see [`weights::inspect`](crate::weights::inspect).
///
/// # Errors
/// No family has checkpoints of this class.
pub fn inspect(checkpoint: &Checkpoint) -> Result<Vec<ComponentReport>> {
    let [needed, optional] = (kind(checkpoint)?.components)(checkpoint.class_name());
    Ok(crate::weights::inspect(checkpoint, needed, optional))
}

/// Opens a checkpoint's family.
///
/// # Errors
/// No family has checkpoints of this class, or a configuration is damaged, not implemented, or contradicts another.
pub(super) fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    let kind = kind(checkpoint)?;
    if kind.of_prior == Some(checkpoint.class_name()) {
        let reason = "this folder is Kandinsky's prior; --model names the decoder's folder, --prior this one";
        return Err(Error::config(checkpoint.path().join("model_index.json"), reason));
    }
    (kind.open)(checkpoint)
}

/// The family of a checkpoint.
pub(super) fn kind(checkpoint: &Checkpoint) -> Result<&'static Kind> {
    let class = checkpoint.class_name();
    FAMILIES.iter().find(|kind| kind.classes.contains(&class)).copied().ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|kind| kind.classes).copied().collect();
        let found = if class.is_empty() { "none".to_owned() } else { format!("{class:?}") };
        let path = checkpoint.path().join("model_index.json");
        Error::config(path, format!("_class_name: expected one of {}, found {found}", known.join(", ")))
    })
}

/// What a stage's plan depends on, beside the checkpoint. Guidance scales and timesteps are data, not part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shapes {
    /// Pictures or texts computed together.
    pub batch: usize,
    /// Steps of the sampling loop that the tables have room for; 0 for a stage without a loop.
    pub steps: usize,
    /// Whether the batch holds an unconditional half.
    pub guided: bool,
    /// Who draws the noise of the steps.
    pub noise: Noise,
    /// Height and width of what is sampled or decoded, where requests choose it; else 0.
    pub size: [usize; 2],
    /// Whether the steps are without noise and from the last ones, where requests choose the sampler.
    pub multistep: bool,
}

impl Shapes {
    /// Of a stage without a loop.
    pub fn batch(batch: usize, guided: bool) -> Shapes {
        Shapes { batch, guided, ..Shapes::default() }
    }

    /// Of a sampling loop. Tables have room for a power of two, so that loops of similar length share a plan.
    pub fn sampling(batch: usize, steps: usize, guided: bool, noise: Noise) -> Shapes {
        Shapes { batch, steps: steps.next_power_of_two(), guided, noise, ..Shapes::default() }
    }

    /// The same for this height and width.
    pub fn at(self, size: [usize; 2]) -> Shapes {
        Shapes { size, ..self }
    }

    /// The same for another batch.
    pub fn of(self, batch: usize) -> Shapes {
        Shapes { batch, ..self }
    }
}

/// A kind of checkpoint.
pub(super) trait Family: Send + Sync {
    /// All stages in the order in which they run.
    fn stages(&self) -> Vec<Stage>;

    /// The settings that the checkpoint asks for, where a request leaves them open.
    fn defaults(&self) -> &Settings;

    /// What a user should know about the configurations, one line each.
    fn warnings(&self) -> Vec<&str>;

    /// Width and height in pixels of a request's pictures.
    fn picture_size(&self, request: &Request) -> [usize; 2];

    /// What sides of pictures are multiples of, where requests choose them.
    fn size_unit(&self) -> Option<usize> {
        None
    }

    /// Whether the family makes pictures at all.
    fn makes_pictures(&self) -> bool {
        true
    }

    /// Whether pictures are enlarged by steps of their own.
    fn has_super_resolution(&self) -> bool;

    /// What encodes texts into the space of pictures' embeddings.
    ///
    /// # Errors
    /// The checkpoint has none such.
    fn text_tower(&self) -> Result<&Texts> {
        Err(Error::Unsupported {
            what: "texts beside pictures: this checkpoint's text encoder has no projection".into(),
        })
    }

    /// What encodes pictures.
    ///
    /// # Errors
    /// The checkpoint has none such.
    fn image_tower(&self) -> Result<&Vision> {
        Err(Error::Unsupported { what: "embeddings of pictures: this checkpoint has no image encoder".into() })
    }

    /// Noise level and sampler of the decoder, where requests choose them.
    fn decoder_settings(&self, _: &Settings) -> (Option<usize>, Option<Sampler>) {
        (None, None)
    }

    /// Whether the prior makes the image embeddings of a request.
    fn has_prior(&self, request: &Request) -> bool {
        request.has_prior()
    }

    /// Share of the prior's steps that is taken from a picture, if the prior begins from one.
    fn prior_strength(&self, _: &Request) -> Option<f32> {
        None
    }

    /// Drops what was computed of the weights, because they become others, or the device does.
    fn forget(&self) {}

    /// Records the plan of a stage. Both runs and listings take their plans from here.
    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan>;

    /// Beginnings of the names of tensors of a stage's component that the stage does not read and others may.
    fn of_others(&self, _: Stage) -> &'static [&'static str] {
        &[]
    }

    /// The stages that a request passes through, with the shapes for all of its pictures or texts together.
    ///
    /// # Errors
    /// The checkpoint lacks what the request needs, or a setting is out of range.
    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>>;

    /// Encodes a request's texts and pictures: a draft for each picture asked for.
    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>>;

    /// Fills in the image embeddings that are missing.
    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()>;

    /// Samples small pictures from their embeddings.
    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>>;

    /// The noise of which the decoder makes a picture.
    ///
    /// # Errors
    /// The family's decoder makes no pixels.
    fn invert(&self, _: &mut Session<'_, '_>, _: Embedding, _: &Image) -> Result<Inversion> {
        Err(Error::request(
            "image",
            "the decoder of this checkpoint makes no pixels, so none can be inverted; Karlo's does",
        ))
    }

    /// A picture of the family's size with less noise, whose standard deviation is `sigma`, 1 from black to white:
    /// `[H, W, 3]` in -1..1.
    ///
    /// # Errors
    /// The family has no networks that work on pixels.
    fn clean(&self, _: &mut Session<'_, '_>, _: Embedding, _: &Image, _: f32) -> Result<Vec<f32>> {
        Err(Error::request("image", "the networks of this checkpoint do not work on pixels; Karlo's do"))
    }

    /// Width and height of a picture that super-resolution alone enlarges.
    ///
    /// # Errors
    /// The family has none, or a setting is out of range.
    fn enlarged_size(&self, _: &Enlarge, _: &Settings) -> Result<[usize; 2]> {
        Err(Error::Unsupported { what: "enlarging pictures: this checkpoint has no super-resolution".into() })
    }

    /// Enlarges a picture whose [size](Family::enlarged_size) was checked.
    ///
    /// # Errors
    /// As for [`Family::enlarged_size`], and what is wrong with weights or device.
    fn enlarge_alone(&self, session: &mut Session<'_, '_>, enlarge: &Enlarge) -> Result<Image> {
        self.enlarged_size(enlarge, &session.settings)?;
        unreachable!("a family that enlarges says how")
    }

    /// Enlarges small pictures; each is reported when it is finished, numbered from `first` on.
    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>>;
}

/// An encoded text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedText {
    /// The text's embedding `[D]`.
    pub embeds: Vec<f32>,
    /// A state for each token `[T, width]`.
    pub hidden: Vec<f32>,
    /// 1 for tokens that may be seen, `[T]`.
    pub mask: Vec<f32>,
}

/// What a picture is painted from, and the noise that is left of its seed.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The image embedding in CLIP's space, `[D]`. Change it to blend or move pictures.
    pub image: Vec<f32>,
    /// What the prior begins from instead of noise alone.
    pub(super) start: Option<Arc<Start>>,
    /// The text that the picture is guided by.
    pub text: Arc<EncodedText>,
    /// With guidance, the text of the unconditional half.
    pub unconditional: Option<Arc<EncodedText>>,
    /// With guidance, the image embedding of the unconditional half, for decoders that see no text; `[D]`.
    pub unconditional_image: Option<Arc<Vec<f32>>>,
    /// A negative prompt whose image embedding the prior has yet to make.
    pub(super) negative: Option<Arc<EncodedText>>,
    /// Width and height of the picture in pixels.
    pub(super) size: [usize; 2],
    /// What the image embedding is mixed of, until it is.
    pub(super) mixture: Option<Mixture>,
    /// The seed of its noise.
    pub(super) seed: u64,
    /// A picture that this one is made from.
    pub(super) edit: Option<Arc<Prepared>>,
    /// The latents that the decoder begins from, and the way that leads down from them.
    pub(super) inversion: Option<Arc<Inversion>>,
    /// A picture of what is where, for decoders that see one: `[H, W, 3]` in 0..1.
    pub(super) hint: Option<Arc<Vec<f32>>>,
    /// What the decoder sees of texts, where it has a text encoder of its own.
    pub(super) seen: Option<Seen>,
    /// Guidance scales of prior and decoder, where they may be others than those of the run.
    pub(super) guidance: Option<[f32; 2]>,
    /// Whether the image embedding is that of a given picture, all of whose variations share the noise that is added to it.
    pub(super) shares_noise: bool,
    pub(super) noise: NoiseSource,
}

/// An image embedding that the prior begins from.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// `[D]`
    pub image: Vec<f32>,
    /// Share of the prior's steps that are taken.
    pub strength: f32,
}

/// Texts that a decoder sees.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The prompt, or what is said of a variation.
    pub text: Arc<EncodedText>,
    /// With guidance, the text of the unconditional half.
    pub unconditional: Option<Arc<EncodedText>>,
}

/// A picture, small where the family has super-resolution and not yet enlarged, and the noise that is left of its seed.
#[derive(Clone, Debug)]
pub struct Painting {
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// `[height, width, 3]` in -1..1.
    pub pixels: Vec<f32>,
    /// A picture that this one was made from.
    pub(super) edit: Option<Arc<Prepared>>,
    pub(super) noise: NoiseSource,
}

impl Painting {
    /// A picture from elsewhere, to be enlarged with this noise.
    ///
    /// # Errors
    /// [`Error::Request`] if the number of its pixels does not fit its sides.
    pub fn new(image: &Image, noise: NoiseSource) -> Result<Painting> {
        image.check()?;
        Ok(Painting { width: image.width, height: image.height, pixels: image.unit_range(), edit: None, noise })
    }
}
