//! The sampling loop: what prior, decoder and super-resolution have in common.

use super::family::Embedding;
use super::trace::{Trace, channels_last};
use crate::backend::Executable;
use crate::diffusion::{Jump, Run, Schedule, SchedulerConfig};
use crate::error::Result;
use crate::noise::{NoiseSource, Seeds};
use crate::ops::{COEFFICIENTS, HISTORY, Noise, Rule, combined, element, elements};
use std::iter::repeat_n;

/// One stage's schedule and the shape of what it samples.
pub struct Loop {
    /// Name in traces.
    pub name: &'static str,
    /// From the noisiest on.
    pub timesteps: Vec<f32>,
    /// One row per step.
    coefficients: Vec<[f32; COEFFICIENTS]>,
    /// Where each step leads from and to.
    jumps: Vec<Jump>,
    /// Of one sample: `[H, W, C]` or `[D]`.
    pub shape: Vec<usize>,
    /// Formula of a step.
    rule: Rule,
    /// Standard deviation of the noise that the loop begins with.
    start: f32,
}

/// What is done to the latents after every step of a loop.
pub trait AfterStep {
    /// The latents `[B, ..]` with which the next step begins.
    ///
    /// # Errors
    /// The device failed.
    fn after(&mut self, sampling: &Loop, step: usize, executable: &mut dyn Executable) -> Result<Vec<f32>>;
}

/// Latents and noise of some pictures, channels last.
pub struct Draws {
    /// `[B, ..]`: what the loop starts from, and after each step what it has come to.
    pub latents: Vec<f32>,
    /// What its steps add.
    pub noise: StepNoise,
    /// Guidance scales, one for each picture; empty if all have the loop's.
    pub scales: Vec<f32>,
}

/// The noise of all steps of a loop.
pub enum StepNoise {
    /// Values `[S, B, ..]`; zeros at timestep 0, where none is added.
    Given(Vec<f32>),
    /// There is none: for the last step alone, and for samplers without noise.
    None,
    /// Of each picture where its draw of the first step lies, for kernels that draw by themselves.
    Seeds(Vec<Seeds>),
}

impl Draws {
    /// Of pictures that all have the loop's guidance scale.
    pub fn new(latents: Vec<f32>, noise: StepNoise) -> Draws {
        Draws { latents, noise, scales: Vec::new() }
    }

    /// With the guidance scales of these pictures, the prior's (0) or the decoder's (1), if they have scales of their own.
    pub fn guided_by(self, drafts: &[Embedding], which: usize) -> Draws {
        Draws { scales: drafts.iter().filter_map(|draft| Some(draft.guidance?[which])).collect(), ..self }
    }

    /// Number of pictures.
    pub fn pictures(&self, sampling: &Loop) -> usize {
        self.latents.len() / elements(&sampling.shape)
    }
}

/// Factors of a sample and of noise at this share of the sample's variance.
fn shares(alpha_bar: f32) -> [f32; 2] {
    [alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()]
}

/// Draws `[C, ..]`, permuted to channels last.
pub fn drawn(source: &mut NoiseSource, size: usize, c: usize) -> Vec<f32> {
    let mut drawn = vec![0.0; size];
    source.fill_normal(&mut drawn);
    channels_last(&drawn, size / c, c)
}

/// Who draws the steps' noise of these pictures: kernels, where all of them have it from generators of one kind.
pub fn drawn_by<'s>(mut sources: impl Iterator<Item = &'s NoiseSource>) -> Noise {
    let first = sources.next().map_or(Noise::Given, Noise::from);
    if sources.all(|source| Noise::from(source) == first) { first } else { Noise::Given }
}

impl Loop {
    /// The schedule of `steps` steps, with the guidance scale of a batch that holds both halves.
    ///
    /// # Errors
    /// The number of steps is out of range; `setting` names it.
    pub fn new(
        name: &'static str,
        config: &SchedulerConfig,
        (setting, steps): (&str, usize),
        shape: Vec<usize>,
        guidance: Option<f32>,
        noise: Noise,
    ) -> Result<Loop> {
        let Run { timesteps, coefficients, jumps, start } =
            Run::new(config, (setting, steps), guidance.unwrap_or(1.0))?;
        let rule = config.rule(guidance.is_some(), noise);
        Ok(Loop { name, coefficients, timesteps, jumps, shape, rule, start })
    }

    /// One step from the timestep whose noise is of this [level](Schedule::timestep_of) to the network's estimate of the clean
    /// sample, with its factor at that timestep.
    pub fn estimating(name: &'static str, config: &SchedulerConfig, level: f32, shape: Vec<usize>) -> (Loop, f32) {
        let schedule = Schedule::new(config);
        let t = schedule.timestep_of(level);
        let alpha_bar = schedule.alpha_bar[t as usize];
        let mut row = [0.0; COEFFICIENTS];
        // Nothing of x_t and no noise beside the estimate.
        row[..3].copy_from_slice(&[(1.0 - alpha_bar).sqrt(), alpha_bar.sqrt(), 1.0]);
        let jumps = vec![Jump { alpha_bar: [alpha_bar, 1.0], beta: [1.0 - alpha_bar, alpha_bar] }];
        let rule = config.rule(false, Noise::Given);
        let timesteps = vec![t as f32];
        (Loop { name, coefficients: vec![row], timesteps, jumps, shape, rule, start: 1.0 }, alpha_bar.sqrt())
    }

    /// Steps at these timesteps whose results are [made after them](AfterStep), in the order given.
    pub fn through(
        name: &'static str,
        config: &SchedulerConfig,
        timesteps: Vec<u32>,
        shape: Vec<usize>,
        guided: bool,
    ) -> Loop {
        let clean = Jump { alpha_bar: [1.0; 2], beta: [0.0, 1.0] };
        // What the device makes of a step is not used; it must be finite.
        let mut row = [0.0; COEFFICIENTS];
        row[1] = 1.0;
        let (coefficients, jumps) = (vec![row; timesteps.len()], vec![clean; timesteps.len()]);
        let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
        Loop { name, coefficients, timesteps, jumps, shape, rule: config.rule(guided, Noise::Given), start: 1.0 }
    }

    /// The same from step `first` on.
    pub fn starting_at(self, first: usize) -> Loop {
        self.of_steps(|steps| (first..steps).collect())
    }

    /// The same with every step but the last taken so many times.
    pub fn resampled(self, times: usize) -> Loop {
        self.of_steps(|steps| {
            (0..steps).flat_map(|step| repeat_n(step, if step + 1 < steps { times } else { 1 })).collect()
        })
    }

    /// The same with these of its steps.
    fn of_steps(self, which: impl FnOnce(usize) -> Vec<usize>) -> Loop {
        let which = which(self.steps());
        Loop {
            timesteps: which.iter().map(|&step| self.timesteps[step]).collect(),
            coefficients: which.iter().map(|&step| self.coefficients[step]).collect(),
            jumps: which.iter().map(|&step| self.jumps[step]).collect(),
            ..self
        }
    }

    /// What a given sample and noise are multiplied with to stand where a step leads; no noise is left after the last.
    pub fn shares_after(&self, step: usize) -> [f32; 2] {
        if step + 1 == self.steps() { [1.0, 0.0] } else { shares(self.jumps[step].alpha_bar[1]) }
    }

    /// What the result of a step and noise are multiplied with to stand where it began; `None` unless it is taken again.
    pub fn shares_back(&self, step: usize) -> Option<[f32; 2]> {
        let again = self.timesteps.get(step + 1) == Some(&self.timesteps[step]);
        let [beta, alpha] = self.jumps[step].beta;
        again.then_some([alpha.sqrt(), beta.sqrt()])
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Words of a picture's row of seeds; 0 where noise is given.
    pub fn seed_words(&self) -> usize {
        self.rule.noise().and_then(Noise::words).unwrap_or(0)
    }

    /// The coefficients `[S, B, 9]` of all steps for so many pictures, with their scales as [`Draws`] has them.
    pub fn table(&self, pictures: usize, scales: &[f32]) -> Vec<f32> {
        let rows = (0..self.steps()).flat_map(|step| (0..pictures).map(move |k| self.row(step, scales.get(k))));
        rows.flatten().collect()
    }

    /// The coefficients of a step for a picture, with its own guidance scale if it has one.
    fn row(&self, step: usize, scale: Option<&f32>) -> [f32; COEFFICIENTS] {
        let mut row = self.coefficients[step];
        if let Some(scale) = scale {
            row[COEFFICIENTS - 1] = *scale;
        }
        row
    }

    /// Draws latents, then the noise of every step but that at timestep 0, each picture from its own source in the order in
    /// which diffusers draws them: `[C, H, W]`, then permuted to channels last. Noise that kernels draw is left to them.
    pub fn draw<'s>(&self, sources: impl Iterator<Item = &'s mut NoiseSource>) -> Draws {
        let mut sources: Vec<&mut NoiseSource> = sources.collect();
        let (size, c) = (elements(&self.shape), self.shape[self.shape.len() - 1]);
        let pictures = sources.len();
        let next = |source: &mut NoiseSource, target: &mut [f32]| target.copy_from_slice(&drawn(source, size, c));
        let mut latents = vec![0.0; pictures * size];
        for (source, target) in sources.iter_mut().zip(latents.chunks_exact_mut(size)) {
            next(source, target);
            target.iter_mut().for_each(|x| *x *= self.start);
        }
        let Some(drawn_by) = self.rule.noise() else { return Draws::new(latents, StepNoise::None) };
        let noisy = self.timesteps.iter().filter(|&&t| t > 0.0).count();
        if drawn_by != Noise::Given {
            let seeds = sources.iter_mut().map(|source| source.leave(noisy as u64, size));
            let seeds = seeds.map(|seeds| seeds.expect("the rule was made for these sources")).collect();
            return Draws::new(latents, StepNoise::Seeds(seeds));
        }
        let mut noise = vec![0.0; self.steps() * pictures * size];
        for (k, source) in sources.iter_mut().enumerate() {
            for step in 0..noisy {
                next(source, &mut noise[(step * pictures + k) * size..][..size]);
            }
        }
        Draws::new(latents, StepNoise::Given(noise))
    }

    /// The share of a sample's variance where the loop begins: `alpha_bar` of its first timestep.
    pub fn share(&self) -> f32 {
        self.jumps[0].alpha_bar[0]
    }

    /// Lets each picture begin from a given sample, `[.., C]`, with the noise that was drawn for the beginning; `share` is
    /// that of the sample's variance.
    pub fn begin_from<'g>(&self, share: f32, given: impl Iterator<Item = &'g [f32]>, draws: &mut Draws) {
        let [share, rest] = shares(share);
        for (latents, given) in draws.latents.chunks_exact_mut(elements(&self.shape)).zip(given) {
            latents.iter_mut().zip(given).for_each(|(x, given)| *x = share * given + rest * *x);
        }
    }

    /// The noise of one step, `[B, ..]`, channels last, whoever draws it in the end.
    fn noise_of(&self, draws: &Draws, step: usize) -> Vec<f32> {
        let (size, c) = (elements(&self.shape), self.shape[self.shape.len() - 1]);
        match &draws.noise {
            StepNoise::None => vec![0.0; draws.latents.len()],
            StepNoise::Given(noise) => noise[step * draws.latents.len()..][..draws.latents.len()].to_vec(),
            StepNoise::Seeds(seeds) => {
                let mut drawn = vec![0.0; seeds.len() * size];
                for (seeds, out) in seeds.iter().zip(drawn.chunks_exact_mut(size)) {
                    seeds.fill_normal(step as u64, 0, out);
                }
                channels_last(&drawn, size / c, c)
            }
        }
    }

    /// The finished samples x0 `[B, ..]` as the network's answer in a step from `x_t` would have them.
    pub fn guess(&self, executable: &mut dyn Executable, step: usize, x_t: &[f32], scales: &[f32]) -> Result<Vec<f32>> {
        let output = executable.read("model_output")?;
        Ok(self.guided_and_original(&output, step, x_t, &vec![0.0; x_t.len()], scales).1)
    }

    /// The network's output after guidance, with the conditional half's variance channels behind it as the scheduler receives
    /// them, and x0.
    fn guided_and_original(
        &self,
        output: &[f32],
        step: usize,
        x_t: &[f32],
        noise: &[f32],
        scales: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let c = self.shape[self.shape.len() - 1];
        let rule = &self.rule;
        let rows = x_t.len() / elements(&self.shape) * if rule.guided() { 2 } else { 1 };
        let wide = output.len() / (rows * elements(&self.shape)) * c;
        let half = if rule.guided() { output.len() / 2 } else { 0 };
        let (mut guided, mut original) = (Vec::new(), Vec::with_capacity(x_t.len()));
        for (position, x_t) in x_t.chunks_exact(c).enumerate() {
            let unconditional = &output[position * wide..][..wide];
            let conditional = &output[half + position * wide..][..wide];
            let row = &self.row(step, scales.get(position * c / elements(&self.shape)));
            for k in 0..c {
                match rule {
                    Rule::Ancestral(rule) => {
                        let variance = if self.rule.learns_variance() { conditional[c + k] } else { 0.0 };
                        let noise = noise[position * c + k];
                        let e = element(rule, row, unconditional[k], conditional[k], variance, x_t[k], noise);
                        guided.push(e.guided);
                        original.push(e.x0);
                    }
                    Rule::Multistep(rule) => {
                        let halves = [unconditional[k], conditional[k]];
                        guided.push(combined(*rule, row, halves, x_t[k], [0.0; HISTORY])[0]);
                        // These rows do not hold what leads to x0.
                        original.push(x_t[k]);
                    }
                }
            }
            guided.extend_from_slice(&conditional[c..]);
        }
        (guided, original)
    }

    /// Puts what the loop starts from into the trace.
    pub fn trace_start(&self, draws: &Draws, trace: &mut Trace) {
        let name = self.name;
        let mut shape = vec![draws.pictures(self)];
        shape.extend_from_slice(&self.shape);
        let key = || format!("{name}/timesteps");
        match self.timesteps.iter().all(|t| t.fract() == 0.0) {
            true => trace.put_ids(key, &[self.steps()], &self.timesteps.iter().map(|&t| t as u32).collect::<Vec<_>>()),
            false => trace.put(key, &[self.steps()], &self.timesteps),
        }
        trace.put_pictures(|| format!("{name}/initial_latents"), &shape, &draws.latents);
    }

    /// Puts one step into the trace; `draws.latents` is advanced with it.
    pub fn record(
        &self,
        executable: &mut dyn Executable,
        step: usize,
        draws: &mut Draws,
        trace: &mut Trace,
    ) -> Result<()> {
        let c = self.shape[self.shape.len() - 1];
        let pictures = draws.pictures(self);
        let shaped = |rows: usize, channels: usize| {
            let mut shape = vec![rows];
            shape.extend_from_slice(&self.shape);
            *shape.last_mut().expect("a batch dimension was just put in") = channels;
            shape
        };
        let key = |what: &'static str| move || format!("{}/step_{step:02}/{what}", self.name);
        let output = executable.read("model_output")?;
        let next = executable.read("x")?;
        let rows = pictures * if self.rule.guided() { 2 } else { 1 };
        let wide = output.len() / (rows * elements(&self.shape)) * c;

        let noise = self.noise_of(draws, step);
        let (guided, original) = self.guided_and_original(&output, step, &draws.latents, &noise, &draws.scales);
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
        if self.rule.noise().is_some() {
            trace.put_pictures(key("pred_original"), &shaped(pictures, c), &original);
            if self.timesteps[step] > 0.0 {
                trace.put_pictures(key("noise"), &shaped(pictures, c), &noise);
            }
        }
        trace.put_pictures(key("latents"), &shaped(pictures, c), &next);
        draws.latents = next;
        Ok(())
    }
}
