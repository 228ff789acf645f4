//! What a run reports.

use crate::error::{Error, Result};
use crate::image::Image;
use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

/// One network of a checkpoint.
///
/// A family names its stages as constants; there is no list of all stages of all families.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stage {
    name: &'static str,
    title: &'static str,
    component: &'static str,
}

impl Stage {
    /// A stage that runs the checkpoint folder `name`; `title` is what people call it.
    pub const fn new(name: &'static str, title: &'static str) -> Stage {
        Stage { name, title, component: name }
    }

    /// The same for another checkpoint folder, of which another stage may run another part.
    pub const fn of(self, component: &'static str) -> Stage {
        Stage { component, ..self }
    }

    /// Its name, which most stages share with their checkpoint folder.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The checkpoint folder that the stage runs.
    pub fn component(self) -> &'static str {
        self.component
    }

    /// What people call it: `super-resolution`.
    pub fn title(self) -> &'static str {
        self.title
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What happens during a run, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Something that the user should know, in one line.
    Warning(&'a str),
    /// A stage begins to load its weights.
    Begin {
        /// Which one.
        stage: Stage,
        /// How many steps it will report until its end; 0 for a stage without a loop.
        steps: usize,
    },
    /// The weights are loaded, and the first step begins.
    Loaded {
        /// Which one.
        stage: Stage,
        /// Since the stage began.
        elapsed: Duration,
    },
    /// One step is done.
    Step {
        /// Which one.
        stage: Stage,
        /// Steps done so far.
        done: usize,
        /// Steps in all.
        steps: usize,
        /// The samples after this step.
        latents: Latents<'a>,
    },
    /// A stage is done.
    End {
        /// Which one.
        stage: Stage,
        /// Since the stage began.
        elapsed: Duration,
        /// Spent in its steps alone.
        sampling: Duration,
    },
    /// A picture is finished. Pictures of one request come in order.
    Picture {
        /// Its number within the request.
        index: usize,
        /// The picture.
        image: &'a Image,
    },
}

/// The samples of a step. They stay on the device unless they are asked for.
#[derive(Clone, Copy)]
pub struct Latents<'a> {
    read: Read<'a>,
    guess: Option<Read<'a>>,
    shape: &'a [usize],
    first: usize,
}

/// Reads samples back.
type Read<'a> = &'a dyn Fn() -> Result<Vec<f32>>;

impl<'a> Latents<'a> {
    pub(super) fn new(read: Read<'a>, shape: &'a [usize]) -> Latents<'a> {
        Latents { read, guess: None, shape, first: 0 }
    }

    /// The same of the pictures from this one on.
    pub(super) fn from(self, first: usize) -> Latents<'a> {
        Latents { first, ..self }
    }

    pub(super) fn with_guess(self, guess: Option<Read<'a>>) -> Latents<'a> {
        Latents { guess, ..self }
    }

    /// Which of the run's pictures the first sample belongs to. Pictures that do not fit memory together are sampled one group
    /// after the other.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Of one sample: `[H, W, C]`, or `[D]` for an embedding.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// Reads the samples back, `[B, ..]`, channels last. The device is waited for.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self) -> Result<Vec<f32>> {
        (self.read)()
    }

    /// What the step takes the finished samples for: x0 of its formula, `[B, ..]`. `None` after steps of which the pipeline
    /// keeps no [previews](super::Pipeline::previews).
    ///
    /// # Errors
    /// The device failed.
    pub fn guess(&self) -> Result<Option<Vec<f32>>> {
        self.guess.map(|guess| guess()).transpose()
    }

    /// The guess as pictures of the samples' size: colours of what is sampled in colours, and of latents the first three
    /// channels, which show shapes in wrong colours. `None` where there is no guess, and for embeddings.
    ///
    /// # Errors
    /// The device failed.
    pub fn previews(&self) -> Result<Option<Vec<Image>>> {
        let &[height, width, channels] = self.shape else { return Ok(None) };
        let Some(guess) = self.guess().map(|guess| guess.filter(|_| channels >= 3))? else { return Ok(None) };
        let scale = if channels == 3 { 1.0 } else { 1.0 / LATENTS };
        let image = |sample: &[f32]| {
            let colours = sample.chunks_exact(channels).flat_map(|pixel| &pixel[..3]).map(|x| x * scale);
            Image::from_unit_range(width, height, &colours.collect::<Vec<f32>>())
        };
        guess.chunks_exact(height * width * channels).map(image).collect::<Result<_>>().map(Some)
    }
}

/// Magnitude that few elements of latents exceed.
const LATENTS: f32 = 3.0;

impl fmt::Debug for Latents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latents").field(&self.shape).finish()
    }
}

/// What a caller of a pipeline sees; see [`Event`]. [`ControlFlow::Break`] ends the run.
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + Send + 'a;

/// Passes an event on; the observer's wish to stop becomes an error.
pub(super) fn report(observer: &mut Observer<'_>, event: Event<'_>) -> Result<()> {
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
