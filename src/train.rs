//! Training: optimisation steps of a network whose plan [`differentiate`](crate::plan::differentiate()) made.
//!
//! A [`Trainer`] owns the compiled plan. [`Trainer::run`] adds the gradients of a batch to those before it, and
//! [`Trainer::step`] changes the trained tensors by their mean. Networks with their losses are recorded by
//! [`model::prior::training_plan`](crate::model::prior::training_plan),
//! [`model::decoder::training_plan`](crate::model::decoder::training_plan) and
//! [`model::super_res::training_plan`](crate::model::super_res::training_plan).

use crate::backend::{Backend, Executable, TrainedPart, Update};
use crate::error::Result;
use crate::plan::{Plan, WeightSource};

/// What an optimisation step is told, the same in all steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Learning rate after the warm-up.
    pub rate: f64,
    /// Steps over which the rate grows from nothing, by equal amounts.
    pub warm_up: u32,
    /// Decay of AdamW's two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second.
    pub epsilon: f64,
    /// Weight decay.
    pub decay: f64,
    /// Norm of all gradients to which larger ones are scaled down.
    pub max_norm: Option<f64>,
    /// Decay of the running average of what is trained. In step `k`, from 0, it is at most `(1 + k) / (10 + k)`.
    pub average: Option<f64>,
}

impl Default for Settings {
    /// As diffusers' scripts set them: no warm-up, no decay and no average.
    fn default() -> Settings {
        Settings {
            rate: 1e-4,
            warm_up: 0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            decay: 0.0,
            max_norm: Some(1.0),
            average: None,
        }
    }
}

impl Settings {
    /// What step `k`, from 0, is told after so many batches.
    fn update(&self, k: u32, batches: u32) -> Update {
        let Settings { rate, warm_up, betas, epsilon, decay, max_norm, average } = *self;
        let grown = if k < warm_up { f64::from(k + 1) / f64::from(warm_up) } else { 1.0 };
        let average = average.map(|most| most.min((1.0 + f64::from(k)) / (10.0 + f64::from(k))));
        Update { number: k + 1, batches, rate: rate * grown, betas, epsilon, decay, max_norm, average }
    }
}

/// A network in training.
pub struct Trainer {
    executable: Box<dyn Executable>,
    settings: Settings,
    steps: u32,
    batches: u32,
}

impl Trainer {
    /// Compiles a plan with its frozen weights from `weights`; trained tensors begin as they are in `starts`.
    ///
    /// # Errors
    /// As for [`Backend::prepare`]; or a tensor is missing from `starts` or has another number of elements.
    pub fn new(
        backend: &dyn Backend,
        plan: Plan,
        weights: &dyn WeightSource,
        starts: &dyn WeightSource,
        settings: Settings,
    ) -> Result<Trainer> {
        let mut executable = backend.prepare(plan, weights)?;
        let names: Vec<String> = executable.plan().trained().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let start = starts.load(&name)?.to_f32();
            executable.write_trained(&name, TrainedPart::Value, &start)?;
        }
        Ok(Trainer { executable, settings, steps: 0, batches: 0 })
    }

    /// Runs the network on a batch of its inputs and adds its gradients to those since the last step. Returns what its plan
    /// names `losses`.
    ///
    /// # Errors
    /// The plan has no such input, or not of this length.
    pub fn run(&mut self, inputs: &[(&str, &[f32])]) -> Result<Vec<f32>> {
        for (name, data) in inputs {
            self.executable.write(name, data)?;
        }
        self.executable.run_once()?;
        self.executable.run_step(0)?;
        self.batches += 1;
        self.executable.read("losses")
    }

    /// One optimisation step; returns the norm of the gradients before clipping.
    ///
    /// # Errors
    /// The back end does not train.
    pub fn step(&mut self) -> Result<f32> {
        let norm = self.executable.update(&self.settings.update(self.steps, self.batches.max(1)))?;
        self.steps += 1;
        self.batches = 0;
        Ok(norm)
    }

    /// Goes on where another training stopped after `steps` steps: the next is numbered accordingly. What was trained,
    /// its moments and average are the caller's to [write](Trainer::write).
    pub fn resume(&mut self, steps: u32) {
        self.steps = steps;
    }

    /// Sets a part of a trained tensor.
    ///
    /// # Errors
    /// Nothing of this name is trained, or it has another number of elements.
    pub fn write(&mut self, name: &str, part: TrainedPart, data: &[f32]) -> Result<()> {
        self.executable.write_trained(name, part, data)
    }

    /// A part of a trained tensor.
    ///
    /// # Errors
    /// Nothing of this name is trained.
    pub fn read(&mut self, name: &str, part: TrainedPart) -> Result<Vec<f32>> {
        self.executable.read_trained(name, part)
    }

    /// The plan in training.
    pub fn plan(&self) -> &Plan {
        self.executable.plan()
    }
}
