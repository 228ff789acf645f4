//! Text to pictures, and pictures to variations.
//!
//! A [`Pipeline`] is a checkpoint, its family and a back end. [`Pipeline::run`] takes a [`Request`] through the stages
//! of the family: texts and given pictures are encoded; then groups of pictures pass through the sampling stages, and
//! each group's pictures are reported when they are finished. What a stage loaded and compiled [stays](Keep) for the
//! next group and the next run, within a memory limit.
//!
//! Pictures do not influence one another: each has a noise source of its own (picture `k` of a request has seed
//! `seed + k`, or its share of the draws of one generator), and back ends compute each row of a batch as if it were
//! alone. So a group is as large as memory allows, and its size shows in nothing but time.
//!
//! The way can be left and entered between its parts: [`Pipeline::embed`] gives image embeddings, [`Pipeline::paint`]
//! makes small pictures of such, [`Pipeline::enlarge`] finishes them. The encoders serve by themselves, too:
//! [`Pipeline::classify`] tells which label fits a picture, [`Pipeline::embed_texts`] and [`Pipeline::embed_pictures`] give
//! embeddings to compare.

mod ahead;
mod blend;
mod classify;
mod clip;
mod edit;
mod embeddings;
mod enlarge;
mod event;
mod family;
mod invert;
mod kandinsky_21;
mod kandinsky_22;
mod parts;
mod prior_folder;
mod recipe;
mod request;
mod resident;
mod sampling;
mod session;
mod stable_unclip;
mod tiles;
mod together;
mod trace;
mod unclip;

pub use blend::{Blend, Ingredient, Mix, Shift};
pub use classify::{CLIP_SCALE, Classifier, Classify, Label, Score, TEMPLATE};
pub use edit::Edit;
pub use embeddings::{cosine, mean_direction, unit};
pub use enlarge::Enlarge;
pub use event::{Event, Latents, Observer, Stage};
pub use family::{Embedding, EncodedText, Painting, Shapes, inspect};
pub use invert::Inversion;
pub use prior_folder::{is_prior, is_prior_of, lacks_prior, with_prior};
pub use recipe::{Blended, Edited, Recipe, Subject, UsedAdapter};
pub use request::{Prompt, Request, Settings, Task};
pub use resident::{Counts, Keep};
pub use trace::Trace;

use crate::backend::Backend;
use crate::backend::cpu::machine_memory_bytes;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::ops::Noise;
use crate::plan::Plan;
use crate::weights::{Adapter, Adapters, Checkpoint};
use family::Family;
use resident::Residents;
use session::{Progress, Session};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes of intermediate values that a group of pictures may need, unless the caller says otherwise.
const MEMORY: u64 = 2 << 30;
/// Steps of an inversion, unless the caller says otherwise.
const INVERSION_STEPS: usize = 50;
/// Bytes of stages that stay, unless the caller says otherwise and where the machine does not say what it has.
const KEPT: u64 = 4 << 30;

/// A checkpoint that is ready to make pictures. It can be shared between threads: runs at the same time share the
/// weights of each stage.
pub struct Pipeline {
    checkpoint: Arc<Checkpoint>,
    adapters: Adapters,
    backend: Box<dyn Backend>,
    family: Box<dyn Family>,
    residents: Residents,
    memory: u64,
    previews: Option<usize>,
    /// Whether the limit of what stays is that of the device.
    limit_is_default: bool,
}

impl Pipeline {
    /// Reads a checkpoint's configurations and tokenizer; weights are opened when a run needs them.
    ///
    /// # Errors
    /// A component is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn open(checkpoint: Checkpoint, backend: Box<dyn Backend>) -> Result<Pipeline> {
        let checkpoint = Arc::new(checkpoint);
        let family = family::open(&checkpoint)?;
        let residents = Residents::new(Keep::default(), kept_by_default(&*backend));
        let adapters = Adapters::default();
        let (memory, previews, limit_is_default) = (MEMORY, None, true);
        Ok(Pipeline { checkpoint, adapters, backend, family, residents, memory, previews, limit_is_default })
    }

    /// Puts adapters in front of the checkpoint's weights, each with a scale that multiplies its own, in place of those that
    /// were there.
    ///
    /// # Errors
    /// An adapter does not fit the checkpoint or was made for another family, or a scale cannot be used; see
    /// [`Adapters::new`].
    pub fn with_adapters(mut self, given: Vec<(Adapter, f32)>) -> Result<Pipeline> {
        let adapters = Adapters::new(&self.checkpoint, given)?;
        let all = |adapters: &Adapters| -> Vec<(String, BTreeSet<String>)> {
            let owned =
                adapters.changed().map(|(part, tensors)| (part.to_owned(), tensors.map(str::to_owned).collect()));
            owned.collect()
        };
        let mut stale: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (component, tensors) in all(&self.adapters).into_iter().chain(all(&adapters)) {
            stale.entry(component).or_default().extend(tensors);
        }
        self.residents.forget(&stale);
        self.family.forget();
        self.adapters = adapters;
        Ok(self)
    }

    /// The adapters with their scales.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Sets the adapters' scales for the runs that follow. Of what stays in memory only tensors that become others are loaded
    /// again, and no other tensor of the checkpoint is read.
    ///
    /// # Errors
    /// [`Error::Request`] for another number of scales than there are adapters, and for a scale that cannot be used.
    pub fn set_adapter_scales(&mut self, scales: &[f32]) -> Result<()> {
        self.residents.forget(&self.adapters.set_scales(scales)?);
        self.family.forget();
        Ok(())
    }

    /// The same checkpoint on another device, where nothing is loaded yet.
    pub fn with_backend(self, backend: Box<dyn Backend>) -> Pipeline {
        let limit = if self.limit_is_default { kept_by_default(&*backend) } else { self.residents.limit };
        let residents = Residents::new(self.residents.keep, limit);
        self.family.forget();
        Pipeline { backend, residents, ..self }
    }

    /// Limits the memory for intermediate values of pictures that are computed together. One picture is always
    /// possible.
    pub fn memory_limit(mut self, bytes: u64) -> Pipeline {
        self.memory = bytes;
        self
    }

    /// Keeps what [`Latents::guess`] needs after every so many steps of each stage; without it no step has a guess. That is a copy
    /// of the samples, for which the device is waited for.
    pub fn previews(mut self, every: usize) -> Pipeline {
        self.previews = Some(every.max(1));
        self
    }

    /// What stays in memory between runs, and how many bytes of it at most: if no limit is given, all that the device has
    /// free now, or half of the machine's memory where it does not say or has no memory of its own. What was used longest
    /// ago goes first, also where a stage finds too little memory before the limit is reached.
    pub fn keep(mut self, keep: Keep, limit: Option<u64>) -> Pipeline {
        self.limit_is_default = limit.is_none();
        self.residents = Residents::new(keep, limit.unwrap_or_else(|| kept_by_default(&*self.backend)));
        self
    }

    /// Drops what stays in memory between runs; the next one loads it anew.
    pub fn release(&self) {
        self.residents.trim(0);
    }

    /// Bytes that stay in memory at present.
    pub fn kept_bytes(&self) -> u64 {
        self.residents.size_bytes()
    }

    /// The most bytes that may stay.
    pub fn kept_limit(&self) -> u64 {
        self.residents.limit
    }

    /// How often something was recorded, compiled and loaded so far.
    pub fn counts(&self) -> Counts {
        self.residents.counts()
    }

    /// The settings that the checkpoint asks for, where a request leaves them open.
    pub fn defaults(&self) -> &Settings {
        self.family.defaults()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// All stages of the checkpoint's family in the order in which they run.
    pub fn stages(&self) -> Vec<Stage> {
        self.family.stages()
    }

    /// What a user should know about the checkpoint and its configurations, one line each; runs report them, too.
    pub fn warnings(&self) -> Vec<&str> {
        let own = self.checkpoint.warnings().iter().map(String::as_str);
        own.chain(self.family.warnings()).chain(self.adapters.warnings()).collect()
    }

    /// The precision in which most bytes of the networks' weights are stored; f32 for f64. Bytes and not elements decide,
    /// so that a network in f32 is not rounded for the sake of others unless it is the small part. A component that
    /// cannot be opened counts for nothing here; a run that needs it says why.
    pub fn stored_precision(&self) -> Precision {
        // The first of equals, which is the widest.
        let bytes = self.stored_bytes().into_iter().rev();
        bytes.max_by_key(|(_, bytes)| *bytes).map_or(Precision::F32, |(precision, _)| precision)
    }

    /// The bytes of the networks' weights by the precision in which they are stored, f32 standing for f64, too.
    pub fn stored_bytes(&self) -> [(Precision, u64); 3] {
        let mut bytes = [(Precision::F32, 0), (Precision::F16, 0), (Precision::Bf16, 0)];
        let stages = self.stages();
        let mut names: Vec<&str> = stages.iter().map(|stage| stage.component()).collect();
        names.dedup();
        for component in names.into_iter().filter_map(|name| self.checkpoint.component(name).ok()) {
            for (_, info) in component.tensors().filter(|(_, info)| info.dtype.is_float()) {
                let narrow = bytes.iter().position(|(precision, _)| info.dtype == precision.storage().into());
                bytes[narrow.unwrap_or(0)].1 += info.size_bytes as u64;
            }
        }
        bytes
    }

    /// Whether it makes pictures: a CLIP alone does not.
    pub fn makes_pictures(&self) -> bool {
        self.family.makes_pictures()
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// [`Error::Request`] with the names that there are.
    pub fn stage(&self, name: &str) -> Result<Stage> {
        let stages = self.stages();
        stages.iter().copied().find(|stage| stage.name() == name).ok_or_else(|| {
            let names: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
            Error::request("stage", format!("{name}: expected one of {}", names.join(", ")))
        })
    }

    /// Requests may choose the size of pictures, in multiples of this; `None` if the checkpoint has one size.
    pub fn size_unit(&self) -> Option<usize> {
        self.family.size_unit()
    }

    /// Width and height in pixels of a request's pictures.
    pub fn picture_size(&self, request: &Request) -> [usize; 2] {
        self.family.picture_size(request)
    }

    /// Makes the request's pictures, prompts or given pictures outer and pictures per prompt inner.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn pictures(&self, request: &Request) -> Result<Vec<Image>> {
        self.run(request, &mut |_| ControlFlow::Continue(()))
    }

    /// Makes the request's pictures and reports to `observer`, which can end the run by answering
    /// [`ControlFlow::Break`].
    ///
    /// # Errors
    /// [`Error::Request`] for settings out of range, [`Error::Cancelled`] if the observer asked to stop, and
    /// whatever is wrong with the checkpoint's weights or the device.
    pub fn run(&self, request: &Request, observer: &mut Observer<'_>) -> Result<Vec<Image>> {
        self.run_traced(request, observer, &mut Trace::off())
    }

    /// As [`Pipeline::run`], and keeps the intermediate tensors that `trace` asks for. With a trace that is on, all
    /// pictures are computed together, whatever memory that takes.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn run_traced(&self, request: &Request, observer: &mut Observer<'_>, trace: &mut Trace) -> Result<Vec<Image>> {
        let mut session = self.session(request, observer, trace)?;
        self.run_session(&mut session, std::slice::from_ref(request))
    }

    /// Requests that [can be computed together](Pipeline::can_join).
    fn run_session(&self, session: &mut Session<'_, '_>, requests: &[Request]) -> Result<Vec<Image>> {
        let images = self.run_stages(session, requests);
        if self.residents.keep == Keep::Nothing {
            self.residents.trim(0);
        }
        images
    }

    fn run_stages(&self, session: &mut Session<'_, '_>, requests: &[Request]) -> Result<Vec<Image>> {
        let mut route = Vec::new();
        for request in requests {
            route = self.family.route(request, &session.settings)?;
            session.check(&route)?;
        }
        self.warnings().into_iter().try_for_each(|warning| session.warn(warning))?;
        let passes = session.passes(&route, requests.iter().map(Request::pictures).sum());
        let later = session.later(&route);
        let base = (&*self.checkpoint, &self.adapters);
        ahead::loading(&later, &self.residents, &*self.backend, base, || {
            let mut drafts = Vec::new();
            for request in requests {
                let Settings { prior_guidance, decoder_guidance, .. } = request.settings(self.defaults());
                let own = (requests.len() > 1).then_some([prior_guidance, decoder_guidance]);
                let encoded = self.family.encode(session, request)?;
                drafts.extend(encoded.into_iter().map(|draft| Embedding { guidance: own, ..draft }));
            }
            let mut images = Vec::with_capacity(drafts.len());
            for group in passes {
                session.pass = group.start;
                let drafts = &mut drafts[group];
                self.family.embed(session, drafts)?;
                let mut small = self.family.paint(session, drafts)?;
                images.extend(self.family.enlarge(session, &mut small, images.len())?);
            }
            Ok(images)
        })
    }

    /// The image embeddings of a request's pictures, which [`Pipeline::paint`] makes pictures of.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn embed(&self, request: &Request, observer: &mut Observer<'_>) -> Result<Vec<Embedding>> {
        let mut trace = Trace::off();
        let mut session = self.session(request, observer, &mut trace)?;
        let mut drafts = self.family.encode(&mut session, request)?;
        self.family.embed(&mut session, &mut drafts)?;
        Ok(drafts)
    }

    /// Small pictures of image embeddings, with the request's settings; its task is of no account.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn paint(
        &self,
        mut embeddings: Vec<Embedding>,
        request: &Request,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Painting>> {
        if embeddings.is_empty() {
            return Ok(Vec::new());
        }
        let mut trace = Trace::off();
        self.family.paint(&mut self.session(request, observer, &mut trace)?, &mut embeddings)
    }

    /// Finished pictures of small ones, with the request's settings; its task is of no account.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn enlarge(
        &self,
        mut small: Vec<Painting>,
        request: &Request,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Image>> {
        if small.is_empty() {
            return Ok(Vec::new());
        }
        let mut trace = Trace::off();
        self.family.enlarge(&mut self.session(request, observer, &mut trace)?, &mut small, 0)
    }

    /// The noise of which the decoder makes a picture, in as many steps as the request says, 50 unless it does. The request
    /// says what the decoder sees beside it, by the picture itself or a prompt; guidance is off.
    ///
    /// # Errors
    /// As for [`Pipeline::run`], and a family whose decoder makes no pixels.
    pub fn invert(&self, image: &Image, request: &Request, observer: &mut Observer<'_>) -> Result<Inversion> {
        image.check()?;
        let steps = Some(request.decoder_steps.unwrap_or(INVERSION_STEPS));
        let request = Request { decoder_steps: steps, decoder_guidance: Some(1.0), ..request.clone() };
        let mut trace = Trace::off();
        let mut session = self.session(&request, observer, &mut trace)?;
        let mut drafts = self.family.encode(&mut session, &request)?;
        self.family.embed(&mut session, &mut drafts)?;
        self.family.invert(&mut session, drafts.swap_remove(0), image)
    }

    /// A picture of any size with less noise. `sigma` is the standard deviation of the noise, 1 from black to white; see
    /// [`Image::noise_level`]. The networks take the picture as the step whose noise is as strong and estimate what is behind
    /// it, in overlapping tiles of the size that the checkpoint makes. The request says what is to be seen, or, if it is of
    /// variations, each tile itself; guidance is off.
    ///
    /// # Errors
    /// As for [`Pipeline::run`], a `sigma` that is not above 0 and below 1, and a family without networks that work on pixels.
    pub fn denoise(&self, image: &Image, sigma: f32, request: &Request, observer: &mut Observer<'_>) -> Result<Image> {
        image.check()?;
        if !(sigma > 0.0 && sigma < 1.0) {
            return Err(Error::value("sigma", sigma, "must be above 0 and below 1"));
        }
        let [side, _] = self.picture_size(request);
        let size = [image.height, image.width];
        let wide = image.extended(image.width.max(side), image.height.max(side));
        let axes = [wide.height, wide.width].map(|length| tiles::Axis::new(length, side, side / 4, 1, 1));
        let mut sum = vec![0.0; wide.pixels.len()];
        let mut trace = Trace::off();
        // Of a prompt all tiles have one embedding.
        let mut shared: Option<Embedding> = None;
        for at in (0..axes[0].count()).flat_map(|row| (0..axes[1].count()).map(move |column| [row, column])) {
            let (rows, columns) = (axes[0].span(at[0]), axes[1].span(at[1]));
            let tile = wide.cropped([columns.start, rows.start], [side; 2]);
            let task = match &request.task {
                Task::Variations(_) => Task::Variations(vec![tile.clone()]),
                task => task.clone(),
            };
            let guidance = Some(1.0);
            let prior_guidance = request.prior_guidance.filter(|_| request.has_prior());
            let request = Request { task, prior_guidance, decoder_guidance: guidance, ..request.clone() };
            let mut session = self.session(&request, observer, &mut trace)?;
            let draft = match &shared {
                Some(draft) => draft.clone(),
                None => {
                    let mut drafts = self.family.encode(&mut session, &request)?;
                    self.family.embed(&mut session, &mut drafts)?;
                    drafts.swap_remove(0)
                }
            };
            if !matches!(request.task, Task::Variations(_)) {
                shared = Some(draft.clone());
            }
            let clean = self.family.clean(&mut session, draft, &tile, sigma)?;
            tiles::add(&mut sum, wide.width, 3, [&axes[0], &axes[1]], at, &clean);
        }
        let clean = Image::from_unit_range(wide.width, wide.height, &sum)?;
        Ok(clean.cropped([0, 0], [size[1], size[0]]))
    }

    fn session<'a, 'o>(
        &'a self,
        request: &Request,
        observer: &'a mut Observer<'o>,
        trace: &'a mut Trace,
    ) -> Result<Session<'a, 'o>> {
        request.check()?;
        let settings = request.settings(self.defaults());
        settings.check()?;
        Ok(self.session_with(settings, observer, trace))
    }

    fn session_with<'a, 'o>(
        &'a self,
        settings: Settings,
        observer: &'a mut Observer<'o>,
        trace: &'a mut Trace,
    ) -> Session<'a, 'o> {
        Session {
            checkpoint: &self.checkpoint,
            adapters: &self.adapters,
            backend: &*self.backend,
            family: &*self.family,
            residents: &self.residents,
            keep: self.residents.keep,
            memory: self.memory,
            settings,
            observer,
            trace,
            previews: self.previews,
            recorded: HashMap::new(),
            progress: Progress::default(),
            pass: 0,
        }
    }

    /// The stages of a request, with the shapes for all of its pictures or texts together. Nothing is loaded for it.
    ///
    /// # Errors
    /// [`Error::Request`] for settings out of range, [`Error::Config`] for a component that the request needs and the
    /// checkpoint lacks.
    pub fn route(&self, request: &Request) -> Result<Vec<(Stage, Shapes)>> {
        request.check()?;
        let settings = request.settings(self.defaults());
        settings.check()?;
        self.family.route(request, &settings)
    }

    /// The plan of a stage as a run records it.
    ///
    /// # Errors
    /// The family has no such stage, or the component lacks a tensor or has it in another shape.
    pub fn plan(&self, stage: Stage, shapes: &Shapes) -> Result<Plan> {
        self.family.record(stage, shapes, &self.checkpoint.component(stage.component())?)
    }

    /// The component's tensors that the stage's plan does not ask for, by name. Position numbers that old exports store
    /// are known and left out.
    ///
    /// # Errors
    /// As for [`Pipeline::plan`].
    pub fn unused_tensors(&self, stage: Stage) -> Result<Vec<String>> {
        let component = self.checkpoint.component(stage.component())?;
        let plan = self.family.record(stage, &Shapes::sampling(1, 1, true, Noise::Given), &component)?;
        Ok(session::unused(&component, &plan, self.family.of_others(stage)))
    }
}

/// The device's own memory as far as it is free, or half of the machine's.
fn kept_by_default(backend: &dyn Backend) -> u64 {
    let half = || machine_memory_bytes().map_or(KEPT, |bytes| bytes / 2);
    backend.free_memory_bytes().unwrap_or_else(half)
}

/// Refuses a component's size that is another than that of what it works with.
fn agree(checkpoint: &Checkpoint, component: &str, key: &str, found: usize, other: &str, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let path = checkpoint.path_of(&format!("{component}/config.json"));
    Err(Error::config(path, format!("{key} is {found}, but {other} is {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cuda-emulator")]
    #[test]
    fn stages_may_stay_in_all_free_memory_of_a_device_and_in_half_of_the_machines() {
        use crate::backend::cpu::Cpu;
        use crate::backend::cuda::Cuda;
        assert_eq!(kept_by_default(&Cuda::emulator_with_memory(1000)), 1000);
        let machine = machine_memory_bytes().map_or(KEPT, |bytes| bytes / 2);
        assert_eq!(kept_by_default(&Cpu::new(1).unwrap()), machine);
    }

    #[test]
    fn pipelines_and_requests_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Pipeline>();
        shared::<Request>();
        shared::<Embedding>();
    }
}
