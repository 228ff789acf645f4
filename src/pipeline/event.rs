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

/// The samples of a step, for previews. They stay on the device unless they are asked for.
#[derive(Clone, Copy)]
pub struct Latents<'a> {
    read: &'a dyn Fn() -> Result<Vec<f32>>,
    shape: &'a [usize],
}

impl<'a> Latents<'a> {
    pub(super) fn new(read: &'a dyn Fn() -> Result<Vec<f32>>, shape: &'a [usize]) -> Latents<'a> {
        Latents { read, shape }
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
}

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
