//! `engine bench --profile`: which kernels and which steps of a plan take the time.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use unclip::backend::{Executable, LaunchTime};
use unclip::ops::Operation;
use unclip::plan::{Origin, Plan, Step};

/// Runs whose medians are taken.
pub const REPEATS: usize = 7;

/// What is said of the times of GPUs.
pub const REMARK: &str = "\
Launches are measured one by one. On CUDA an event stands before and after each, and what a pair of events takes with nothing between them is subtracted; about a microsecond of each launch remains. So short kernels seem longer than in the whole step, which `time` gives.";

/// The times of one step of the sampling loop.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Profile {
    pub launches: usize,
    /// Of all launches.
    pub seconds: f64,
    /// Longest first.
    pub kernels: Vec<KernelRow>,
    /// In the plan's order.
    pub steps: Vec<StepRow>,
}

/// All launches of a kernel.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KernelRow {
    pub kernel: String,
    pub launches: usize,
    pub seconds: f64,
}

/// All launches of a step of the plan.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StepRow {
    pub op: String,
    pub label: String,
    /// Of what it reads, without weights, and writes.
    pub shapes: String,
    pub kernels: Vec<String>,
    pub seconds: f64,
    pub flops: u64,
    pub bytes: u64,
}

impl Profile {
    pub fn new(executable: &dyn Executable, launches: &[LaunchTime]) -> Profile {
        let plan = executable.plan();
        let mut kernels: HashMap<&str, (usize, f64)> = HashMap::new();
        for launch in launches {
            let sum = kernels.entry(launch.kernel).or_default();
            *sum = (sum.0 + 1, sum.1 + launch.seconds);
        }
        let row = |(kernel, (launches, seconds)): (&str, _)| KernelRow { kernel: kernel.to_owned(), launches, seconds };
        let mut kernels: Vec<KernelRow> = kernels.into_iter().map(row).collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.kernel.cmp(&b.kernel)));
        let steps = launches.chunk_by(|a, b| a.step == b.step);
        let steps = steps.filter_map(|of_step| Some(StepRow::new(plan, &plan.steps[of_step[0].step?], of_step)));
        Profile {
            launches: launches.len(),
            seconds: launches.iter().map(|launch| launch.seconds).sum(),
            kernels,
            steps: steps.collect(),
        }
    }

    /// Two tables.
    pub fn text(&self) -> String {
        let mut text = format!("\n{} launches, {} in all\n\n", self.launches, super::bench::duration(self.seconds));
        text += &format!("{:44} {:>8} {:>10} {:>7}\n", "kernel", "launches", "us", "share");
        for KernelRow { kernel, launches, seconds } in &self.kernels {
            let share = 100.0 * seconds / self.seconds.max(f64::MIN_POSITIVE);
            text += &format!("{kernel:44} {launches:>8} {:>10.1} {share:>5.1} %\n", 1e6 * seconds);
        }
        text += &format!("\n{:>10} {:>8} {:>8}  {}\n", "us", "TFLOP/s", "GB/s", "step");
        self.steps.iter().map(StepRow::line).for_each(|line| text += &line);
        text + "\n"
    }
}

impl StepRow {
    fn new(plan: &Plan, step: &Step, launches: &[LaunchTime]) -> StepRow {
        let cost = plan.cost(std::slice::from_ref(step));
        let is_read = |id: &&unclip::plan::ValueId| !matches!(plan.values[plan.root(**id).0].origin, Origin::Weight(_));
        let shapes = |ids: &mut dyn Iterator<Item = &unclip::plan::ValueId>| {
            ids.map(|&id| format!("{:?}", plan.shape(id))).collect::<Vec<_>>().join(" ")
        };
        let read = shapes(&mut step.inputs.iter().filter(is_read));
        let written = shapes(&mut step.outputs.iter());
        StepRow {
            op: step.op.name().to_owned(),
            label: step.label.clone(),
            shapes: format!("{read} -> {written}"),
            kernels: launches.iter().map(|launch| launch.kernel.to_owned()).collect(),
            seconds: launches.iter().map(|launch| launch.seconds).sum(),
            flops: cost.flops,
            bytes: cost.bytes,
        }
    }

    fn line(&self) -> String {
        let rate = |amount: u64, unit: f64| match self.seconds > 0.0 && amount > 0 {
            true => format!("{:.1}", amount as f64 / self.seconds / unit),
            false => String::new(),
        };
        let (us, tera, giga) = (1e6 * self.seconds, rate(self.flops, 1e12), rate(self.bytes, 1e9));
        let StepRow { op, label, shapes, kernels, .. } = self;
        format!("{us:>10.1} {tera:>8} {giga:>8}  {op} {label} {shapes}: {}\n", kernels.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unclip::Dtype;
    use unclip::backend::cpu::Cpu;
    use unclip::cases::{profile, workloads};

    #[test]
    fn every_step_and_every_launch_is_in_the_tables() {
        let cpu = Cpu::new(1).unwrap();
        let tiny = workloads().into_iter().find(|w| w.name() == "decoder/tiny").unwrap();
        let mut executable = tiny.prepare(&cpu, Dtype::F32).unwrap();
        let launches = profile(executable.as_mut(), 1).unwrap();
        let profile = Profile::new(executable.as_ref(), &launches);
        let plan = executable.plan();
        assert_eq!((profile.launches, profile.steps.len()), (launches.len(), plan.parts().1.len()));
        assert_eq!(profile.kernels.iter().map(|k| k.launches).sum::<usize>(), profile.launches);
        let sum = |seconds: &mut dyn Iterator<Item = f64>| seconds.sum::<f64>();
        let (kernels, steps) =
            (sum(&mut profile.kernels.iter().map(|k| k.seconds)), sum(&mut profile.steps.iter().map(|s| s.seconds)));
        assert!((kernels - profile.seconds).abs() < 1e-9 && (steps - profile.seconds).abs() < 1e-9);
        let cost = plan.cost(plan.parts().1);
        assert_eq!(profile.steps.iter().map(|s| s.flops).sum::<u64>(), cost.flops);
        let text = profile.text();
        assert!(text.contains("conv_in") && profile.kernels[0].seconds > 0.0, "{text}");
    }
}
