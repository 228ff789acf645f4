//! The sampling loop: what prior, decoder and super-resolution have in common.

use super::request::{Event, Observer, Stage, report};
use super::trace::{Trace, channels_last};
use crate::backend::Executable;
use crate::diffusion::sampler::coefficients;
use crate::diffusion::{Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::noise::{NoiseSource, Philox};
use crate::ops::{SamplerStep, Variance, element, elements};

/// One stage's schedule and the shape of what it samples.
pub struct Loop {
    /// Name in traces.
    pub name: &'static str,
    /// From the noisiest to 0.
    pub timesteps: Vec<u32>,
    /// One row per step.
    pub coefficients: Vec<[f32; 8]>,
    /// Of one picture: `[H, W, C]` or `[D]`.
    pub shape: Vec<usize>,
}

/// Latents and noise of some pictures, channels last.
pub struct Draws {
    /// `[B, ..]`: what the loop starts from, and after each step what it has come to.
    pub latents: Vec<f32>,
    /// What its steps add.
    pub noise: StepNoise,
}

/// The noise of all steps of a loop.
pub enum StepNoise {
    /// Numbers, `[S, B, ..]`; zeros in the last step, which has no noise.
    Given(Vec<f32>),
    /// Of each picture the seed and the number of the first step's draw, for kernels that draw by themselves.
    Philox(Vec<(u64, u64)>),
}

impl Loop {
    /// The schedule of `steps` steps.
    ///
    /// # Errors
    /// The number of steps is out of range; `setting` names it.
    pub fn new(
        name: &'static str,
        config: &SchedulerConfig,
        setting: &str,
        steps: usize,
        shape: Vec<usize>,
    ) -> Result<Loop> {
        let schedule = Schedule::new(config);
        let timesteps = schedule.timesteps(setting, steps)?;
        Ok(Loop { name, coefficients: coefficients(&schedule, &timesteps), timesteps, shape })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The coefficients of all steps in one row after the other.
    pub fn table(&self) -> Vec<f32> {
        self.coefficients.concat()
    }

    /// Draws latents, then the noise of every step but the last, each picture from its own source in the order in
    /// which diffusers draws them: `[C, H, W]`, brought to channels last. Sources that can leave the noise to kernels.
    pub fn draw(&self, sources: &mut [NoiseSource]) -> Draws {
        let (size, c) = (elements(&self.shape), self.shape[self.shape.len() - 1]);
        let pictures = sources.len();
        let mut drawn = vec![0.0; size];
        let mut next = |source: &mut NoiseSource, target: &mut [f32]| {
            source.fill_normal(&mut drawn);
            target.copy_from_slice(&channels_last(&drawn, size / c, c));
        };
        let mut latents = vec![0.0; pictures * size];
        for (source, target) in sources.iter_mut().zip(latents.chunks_exact_mut(size)) {
            next(source, target);
        }
        // All pictures of a request have the same kind of source.
        let left = sources.iter_mut().map(|source| source.leave(self.steps() as u64 - 1)).collect();
        if let Some(seeds) = left {
            return Draws { latents, noise: StepNoise::Philox(seeds) };
        }
        let mut noise = vec![0.0; self.steps() * pictures * size];
        for (k, source) in sources.iter_mut().enumerate() {
            for step in 0..self.steps() - 1 {
                next(source, &mut noise[(step * pictures + k) * size..][..size]);
            }
        }
        Draws { latents, noise: StepNoise::Given(noise) }
    }

    /// The noise of one step, `[B, ..]`, channels last, whoever draws it in the end.
    fn noise_of(&self, draws: &Draws, step: usize) -> Vec<f32> {
        let (size, c) = (elements(&self.shape), self.shape[self.shape.len() - 1]);
        match &draws.noise {
            StepNoise::Given(noise) => noise[step * draws.latents.len()..][..draws.latents.len()].to_vec(),
            StepNoise::Philox(seeds) => {
                let mut drawn = vec![0.0; seeds.len() * size];
                for (&(seed, first), out) in seeds.iter().zip(drawn.chunks_exact_mut(size)) {
                    Philox::new(seed).fill_normal(first + step as u64, 0, out);
                }
                channels_last(&drawn, size / c, c)
            }
        }
    }

    /// Runs steps `range` with an executable whose inputs are all written, starting from the latents and leaving the
    /// result there. The executable counts its steps from 0. Reports each step as one of `total`, `done` of which
    /// were before.
    pub fn run(
        &self,
        executable: &mut dyn Executable,
        range: std::ops::Range<usize>,
        rule: &SamplerStep,
        draws: &mut Draws,
        (stage, done, total): (Stage, usize, usize),
        observer: &mut Observer<'_>,
        trace: &mut Trace,
    ) -> Result<()> {
        executable.write("x_t", &draws.latents)?;
        for (i, step) in range.enumerate() {
            executable.run_step(i as u32)?;
            if trace.is_on() {
                self.record(executable, step, rule, draws, trace)?;
            }
            report(observer, Event::Step { stage, done: done + i + 1, steps: total })?;
        }
        draws.latents = executable.read("x")?;
        if draws.latents.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        Err(Error::NotFinite { stage: stage.to_string() })
    }

    /// Puts one step into the trace; `draws.latents` is advanced with it.
    fn record(
        &self,
        executable: &mut dyn Executable,
        step: usize,
        rule: &SamplerStep,
        draws: &mut Draws,
        trace: &mut Trace,
    ) -> Result<()> {
        let c = self.shape[self.shape.len() - 1];
        let pictures = draws.latents.len() / elements(&self.shape);
        let shaped = |rows: usize, channels: usize| {
            let mut shape = vec![rows];
            shape.extend_from_slice(&self.shape);
            *shape.last_mut().expect("a batch dimension was just put in") = channels;
            shape
        };
        let key = |what: &'static str| move || format!("{}/step_{step:02}/{what}", self.name);
        let output = executable.read("model_output")?;
        let next = executable.read("x")?;
        let rows = pictures * if rule.guidance.is_some() { 2 } else { 1 };
        let wide = output.len() / (rows * elements(&self.shape)) * c;

        let noise = self.noise_of(draws, step);
        let half = output.len() / rows * (rows - pictures);
        let (mut guided, mut original) = (Vec::new(), Vec::new());
        for (position, x_t) in draws.latents.chunks_exact(c).enumerate() {
            let unconditional = &output[position * wide..][..wide];
            let conditional = &output[half + position * wide..][..wide];
            for k in 0..c {
                let variance = if rule.variance == Variance::LearnedRange { conditional[c + k] } else { 0.0 };
                let row = &self.coefficients[step];
                let at = position * c + k;
                let e = element(rule, row, unconditional[k], conditional[k], variance, x_t[k], noise[at]);
                guided.push(e.guided);
                original.push(e.x0);
            }
            // What the scheduler receives has the conditional half's variance channels behind the guided ones.
            guided.extend_from_slice(&conditional[c..]);
        }
        // The network sees the pictures once for each half; super-resolution sees the enlarged one beside them.
        let mut input = draws.latents.repeat(rows / pictures);
        let mut seen = c;
        if executable.plan().output("upscaled").is_some() {
            let upscaled = executable.read("upscaled")?;
            seen += upscaled.len() / draws.latents.len() * c;
            let pixels = input.chunks_exact(c).zip(upscaled.chunks_exact(seen - c));
            input = pixels.flat_map(|(x_t, up)| x_t.iter().chain(up)).copied().collect();
        }
        trace.put_pictures(key("model_input"), &shaped(rows, seen), &input);
        trace.put_pictures(key("model_output"), &shaped(rows, wide), &output);
        trace.put_pictures(key("guided"), &shaped(pictures, wide), &guided);
        trace.put_pictures(key("pred_original"), &shaped(pictures, c), &original);
        if self.timesteps[step] > 0 {
            trace.put_pictures(key("noise"), &shaped(pictures, c), &noise);
        }
        trace.put_pictures(key("latents"), &shaped(pictures, c), &next);
        draws.latents = next;
        Ok(())
    }
}
