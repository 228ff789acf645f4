//! Operations and networks as workloads, and their timing.

use super::models::{self, ModelCase};
use super::ops::{self, Case};
use crate::backend::{Backend, Executable, LaunchTime};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::plan::Cost;
use std::time::{Duration, Instant};

/// An operation or one sampling step of a network.
#[derive(Clone, Debug)]
pub enum Workload {
    /// One operation.
    Op(Case),
    /// One sampling step, for one picture.
    Model(ModelCase),
}

/// All operations, then all networks.
pub fn workloads() -> Vec<Workload> {
    let models = models::all().into_iter().map(Workload::Model);
    ops::all().into_iter().map(Workload::Op).chain(models).collect()
}

impl Workload {
    /// `linear/prior-up`, `decoder/karlo`.
    pub fn name(&self) -> String {
        match self {
            Workload::Op(case) => case.name.clone(),
            Workload::Model(case) => case.name(),
        }
    }

    /// Whether it needs a fast device.
    pub fn heavy(&self) -> bool {
        match self {
            Workload::Op(case) => case.heavy,
            Workload::Model(case) => case.heavy(),
        }
    }

    /// Compiled, with every input filled: ready for [`time`]. A network's weights are stored as `stored`, an operation's
    /// as its case says.
    ///
    /// # Errors
    /// The back end cannot do it.
    pub fn prepare(&self, backend: &dyn Backend, stored: Dtype) -> Result<Box<dyn Executable>> {
        match self {
            Workload::Op(case) => case.problem().prepare(backend),
            Workload::Model(case) => case.prepare(1, stored, backend),
        }
    }
}

/// What one step of an executable costs.
pub fn cost(executable: &dyn Executable) -> Cost {
    let plan = executable.plan();
    plan.cost(plan.parts().1)
}

/// Seconds of one step, from several samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// In ascending order; never empty.
    samples: Vec<f64>,
}

impl Timing {
    /// The median.
    pub fn median(&self) -> f64 {
        self.samples[self.samples.len() / 2]
    }

    /// First and third quartile.
    pub fn quartiles(&self) -> [f64; 2] {
        let last = self.samples.len() - 1;
        [self.samples[last / 4], self.samples[last - last / 4]]
    }

    /// The shortest.
    pub fn least(&self) -> f64 {
        self.samples[0]
    }

    /// The longest.
    pub fn most(&self) -> f64 {
        self.samples[self.samples.len() - 1]
    }

    /// How many there are.
    pub fn samples(&self) -> usize {
        self.samples.len()
    }
}

/// Samples that are taken in any case.
const LEAST_SAMPLES: usize = 5;
/// Seconds of a sample: long against the clock's resolution and the cost of submitting work.
const SAMPLE: f64 = 4e-3;

/// Times the varying part of an executable for about `budget`, after a warm-up run; at least five samples.
///
/// # Errors
/// The device failed.
pub fn time(executable: &mut dyn Executable, budget: Duration) -> Result<Timing> {
    let first = rounds(executable, 1)?.max(1e-9);
    let many = (SAMPLE / first).ceil().max(1.0) as u64;
    if many > 1 {
        // The first run may have compiled something; another one shows the real time.
        rounds(executable, many)?;
    }
    let started = Instant::now();
    let mut samples = Vec::new();
    while samples.len() < LEAST_SAMPLES || started.elapsed() < budget {
        samples.push(rounds(executable, many)? / many as f64);
    }
    samples.sort_by(f64::total_cmp);
    Ok(Timing { samples })
}

/// Seconds of `count` steps in a row, from the first call until the device is idle.
///
/// # Errors
/// The device failed.
pub fn rounds(executable: &mut dyn Executable, count: u64) -> Result<f64> {
    let started = Instant::now();
    (0..count).try_for_each(|_| executable.run_step(0))?;
    executable.finish()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Measures every launch of the varying part: medians of `repeats` runs, after one more to warm up.
///
/// # Errors
/// The device has no clock, or failed.
pub fn profile(executable: &mut dyn Executable, repeats: usize) -> Result<Vec<LaunchTime>> {
    let mut median = executable.profile_step(0)?;
    let runs = (0..repeats.max(1)).map(|_| executable.profile_step(0)).collect::<Result<Vec<_>>>()?;
    for (i, launch) in median.iter_mut().enumerate() {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run[i].seconds).collect();
        seconds.sort_by(f64::total_cmp);
        launch.seconds = seconds[seconds.len() / 2];
    }
    Ok(median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn names_are_unique_and_begin_with_the_stem() {
        let stem = |workload: &Workload| match workload {
            Workload::Op(case) => case.name.split('/').next().unwrap_or_default().to_owned(),
            Workload::Model(case) => case.network.name().to_owned(),
        };
        let mut names: Vec<String> = workloads().iter().map(Workload::name).collect();
        assert!(workloads().iter().all(|w| w.name().starts_with(&format!("{}/", stem(w)))));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_tiny_network_is_timed() {
        let cpu = Cpu::new(1).unwrap();
        let tiny = workloads().into_iter().find(|w| w.name() == "prior/tiny").unwrap();
        let mut executable = tiny.prepare(&cpu, Dtype::F32).unwrap();
        let timing = time(executable.as_mut(), Duration::ZERO).unwrap();
        assert_eq!(timing.samples(), LEAST_SAMPLES);
        assert!(0.0 < timing.least() && timing.least() <= timing.median() && timing.median() <= timing.most());
        assert!(cost(executable.as_ref()).flops > 100_000);
    }
}
