//! One run: its stages, each opened, run group by group, and ended.

use super::ahead::Later;
use super::event::{Event, Latents, Observer, Stage, report};
use super::family::{Family, Shapes};
use super::request::Settings;
use super::resident::{Keep, Needs, Residents};
use super::sampling::{AfterStep, Draws, Loop, StepNoise};
use super::trace::Trace;
use crate::backend::{Backend, Executable};
use crate::error::{Error, Result};
use crate::ops::{HISTORY, elements};
use crate::plan::{Plan, assign};
use crate::weights::{Adapters, Checkpoint, Component, few};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// One run of a pipeline.
pub(super) struct Session<'a, 'o> {
    pub checkpoint: &'a Checkpoint,
    pub adapters: &'a Adapters,
    pub backend: &'a dyn Backend,
    pub family: &'a dyn Family,
    pub residents: &'a Residents,
    /// What stays after each stage.
    pub keep: Keep,
    /// Bytes of intermediate values that pictures computed together may need.
    pub memory: u64,
    pub settings: Settings,
    pub observer: &'a mut Observer<'o>,
    pub trace: &'a mut Trace,
    /// After every so many steps of a stage its guess is kept.
    pub previews: Option<usize>,
    /// Plans that were recorded to check the route, for the stages that begin with them.
    pub recorded: HashMap<(Stage, Shapes), Plan>,
    pub progress: Progress,
    /// The first picture of the pass at hand.
    pub pass: usize,
}

/// Where the present stage stands.
#[derive(Default)]
pub(super) struct Progress {
    done: usize,
    steps: usize,
    sampling: Duration,
    /// The first picture of the group at hand, among those of the pass.
    group: usize,
}

impl Session<'_, '_> {
    /// Opens every stage of a route and records its plan for one picture, so that whatever is wrong with any of them
    /// comes to light before the first one has done its work. Stages that stay were checked when they were loaded.
    pub fn check(&mut self, route: &[(Stage, Shapes)]) -> Result<()> {
        for &(stage, shapes) in route {
            if self.residents.needs(stage, shapes).is_none() || !self.residents.is_loaded(stage) {
                self.check_stage(stage, shapes)?;
            }
        }
        Ok(())
    }

    fn check_stage(&mut self, stage: Stage, shapes: Shapes) -> Result<Needs> {
        let component = self.checkpoint.component(stage.component())?;
        let shapes = shapes.of(1);
        let plan = self.record(stage, &shapes, &component)?;
        component.warnings().iter().try_for_each(|warning| self.warn(warning))?;
        self.warn_of_unused(stage, &component, &plan)?;
        let needs = Needs { weights: component.total_bytes(), picture: assign(&plan).bytes() };
        self.residents.learn(stage, shapes, needs);
        self.recorded.insert((stage, shapes), plan);
        Ok(needs)
    }

    fn record(&self, stage: Stage, shapes: &Shapes, component: &Component) -> Result<Plan> {
        self.residents.count_recording();
        self.family.record(stage, shapes, component)
    }

    fn warn_of_unused(&mut self, stage: Stage, component: &Component, plan: &Plan) -> Result<()> {
        let unused = unused(component, plan, self.family.of_others(stage));
        if unused.is_empty() {
            return Ok(());
        }
        self.warn(&format!("{}: unused tensors: {}", component.path().display(), few(&unused)))
    }

    pub fn warn(&mut self, warning: &str) -> Result<()> {
        report(self.observer, Event::Warning(warning))
    }

    /// Groups of pictures that go through all stages before the next group begins: as large as the largest stage allows,
    /// so that pictures are finished early. Stages then stay in memory until the last group. Where they cannot, all
    /// pictures are one group, because every group would load all weights anew.
    pub fn passes(&mut self, route: &[(Stage, Shapes)], pictures: usize) -> Vec<Range<usize>> {
        let needs = || route.iter().filter_map(|&(stage, shapes)| self.residents.needs(stage, shapes));
        let weights: u64 = needs().map(|needs| needs.weights).sum();
        if self.trace.is_on() || weights > self.residents.limit {
            return groups(pictures, pictures);
        }
        let passes = groups(pictures, self.most(needs().map(|needs| needs.picture).max().unwrap_or(1)));
        if passes.len() > 1 && self.keep == Keep::Nothing {
            self.keep = Keep::Everything;
        }
        passes
    }

    /// The stages after the first whose weights are to be loaded while earlier ones run: none where that does not pay, or
    /// where nothing may stay.
    pub fn later(&self, route: &[(Stage, Shapes)]) -> Vec<Later> {
        if self.keep == Keep::Nothing || !self.backend.loads_ahead() {
            return Vec::new();
        }
        let later = |&(stage, shapes): &(Stage, Shapes)| {
            // Stages that stay were not recorded.
            let plan = self.recorded.get(&(stage, shapes.of(1)))?.clone();
            Some(Later { stage, plan, bytes: self.residents.needs(stage, shapes)?.weights })
        };
        route.iter().skip(1).filter_map(later).collect()
    }

    /// Pictures that may be computed together if one needs so many bytes.
    fn most(&self, picture: u64) -> usize {
        usize::try_from(self.memory / picture.max(1)).unwrap_or(usize::MAX).max(1)
    }

    /// Runs a stage over `count` pictures or texts, in groups as large as memory allows. `run` is given an executable for
    /// each group; `steps` is how many steps it reports for it.
    pub fn stage(
        &mut self,
        stage: Stage,
        shapes: Shapes,
        count: usize,
        steps: usize,
        mut run: impl FnMut(&mut Self, &mut dyn Executable, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let needs = match self.residents.needs(stage, shapes) {
            Some(needs) => needs,
            None => self.check_stage(stage, shapes)?,
        };
        let most = if self.trace.is_on() { count } else { self.most(needs.picture) };
        let groups = groups(count, most);
        self.progress = Progress { steps: steps * groups.len(), ..Progress::default() };
        report(self.observer, Event::Begin { stage, steps: self.progress.steps })?;
        let began = Instant::now();
        let (mut lease, changed) = self.residents.lease(stage, self.keep);
        if changed {
            self.warn(&format!("{stage}: the weights changed on disk; they are loaded again"))?;
        }
        let over = || {
            for (number, group) in groups.into_iter().enumerate() {
                let shapes = shapes.of(group.len());
                let recorded = self.recorded.remove(&(stage, shapes));
                let record = |component: &Component| match recorded {
                    Some(plan) => Ok(plan),
                    None => self.record(stage, &shapes, component),
                };
                let executable = lease.executable(shapes, self.backend, (self.checkpoint, self.adapters), record)?;
                if number == 0 {
                    report(self.observer, Event::Loaded { stage, elapsed: began.elapsed() })?;
                }
                self.progress.group = group.start;
                run(self, executable, group)?;
            }
            Ok(())
        };
        let result = over();
        // A run that was cancelled leaves a sound executable behind; one that failed may not.
        if matches!(result, Ok(()) | Err(Error::Cancelled)) {
            lease.end();
        }
        result?;
        report(self.observer, Event::End { stage, elapsed: began.elapsed(), sampling: self.progress.sampling })
    }

    /// Writes a loop's tables, runs the part that does not vary, and then the steps `range`, from the latents to the
    /// latents. `after` may change them after every step.
    pub fn sample(
        &mut self,
        stage: Stage,
        sampling: &Loop,
        executable: &mut dyn Executable,
        range: Range<usize>,
        time: &[f32],
        draws: &mut Draws,
        mut after: Option<&mut dyn AfterStep>,
    ) -> Result<()> {
        let room = executable.plan().input("time").map_or(0, |time| executable.plan().shape(time)[0]);
        // Tables have room for more steps than the loop may have; the rest is never read.
        let mut table = |name: &str, rows: &[f32]| {
            let row = rows.len() / sampling.steps();
            let mut padded = rows[range.start * row..range.end * row].to_vec();
            padded.resize(room * row, 0.0);
            executable.write(name, &padded)
        };
        table("time", time)?;
        table("coefficients", &sampling.table(draws.pictures(sampling), &draws.scales))?;
        match &draws.noise {
            StepNoise::Given(noise) => table("noise", noise)?,
            StepNoise::None => {
                if let Some(noise) = executable.plan().input("noise") {
                    let zeros = vec![0.0; elements(executable.plan().shape(noise))];
                    executable.write("noise", &zeros)?;
                }
                let words = sampling.seed_words() * draws.pictures(sampling);
                if words > 0 {
                    executable.write_u32("seeds", &vec![0; words])?;
                }
            }
            StepNoise::Seeds(seeds) => {
                // The executable counts its steps from 0.
                let words = seeds.iter().flat_map(|seeds| seeds.from_step(range.start as u64).words());
                executable.write_u32("seeds", &words.collect::<Vec<u32>>())?;
            }
        }
        executable.run_once()?;
        executable.finish()?;

        let began = Instant::now();
        executable.write("x_t", &draws.latents)?;
        if executable.plan().input("history").is_some() {
            executable.write("history", &vec![0.0; HISTORY * draws.latents.len()])?;
        }
        let executable = RefCell::new(executable);
        let previews = self.previews;
        let is_due = |done: usize| previews.is_some_and(|every| done.is_multiple_of(every));
        // What a step that is previewed begins from.
        let mut x_t = if is_due(self.progress.done + 1) { draws.latents.clone() } else { Vec::new() };
        for (i, step) in range.enumerate() {
            executable.borrow_mut().run_step(i as u32)?;
            if self.trace.is_on() {
                sampling.record(*executable.borrow_mut(), step, draws, self.trace)?;
            }
            if let Some(after) = &mut after {
                let executable = &mut **executable.borrow_mut();
                draws.latents = self.finite(stage, after.after(sampling, step, executable)?)?;
                executable.write("x_t", &draws.latents)?;
            }
            let read = || executable.borrow_mut().read("x");
            let guess = || sampling.guess(&mut **executable.borrow_mut(), step, &x_t, &draws.scales);
            let latents = Latents::new(&read, &sampling.shape).from(self.pass + self.progress.group);
            self.step_done(stage, if x_t.is_empty() { latents } else { latents.with_guess(Some(&guess)) })?;
            x_t = match is_due(self.progress.done + 1) {
                true if after.is_some() => draws.latents.clone(),
                true => read()?,
                false => Vec::new(),
            };
        }
        if after.is_none() {
            draws.latents = self.read(stage, executable.into_inner(), "x")?;
        }
        self.progress.sampling += began.elapsed();
        Ok(())
    }

    /// Reports a step of the present stage.
    pub fn step_done(&mut self, stage: Stage, latents: Latents<'_>) -> Result<()> {
        self.progress.done += 1;
        let Progress { done, steps, .. } = self.progress;
        report(self.observer, Event::Step { stage, done, steps, latents })
    }

    /// Reads what a stage gives to the next ones. NaN and infinity end here, where it is known which component they
    /// arose in.
    pub fn read(&self, stage: Stage, executable: &mut dyn Executable, output: &str) -> Result<Vec<f32>> {
        self.finite(stage, executable.read(output)?)
    }

    fn finite(&self, stage: Stage, values: Vec<f32>) -> Result<Vec<f32>> {
        if values.iter().all(|x| x.is_finite()) {
            return Ok(values);
        }
        Err(Error::NotFinite { stage: stage.to_string(), precision: self.backend.precision() })
    }
}

/// Consecutive groups of nearly one size, none larger than `most`; the larger ones come first, so that no more than two
/// sizes are compiled, each once.
fn groups(count: usize, most: usize) -> Vec<Range<usize>> {
    let groups = count.div_ceil(most.clamp(1, count.max(1))).max(1);
    let (size, larger) = (count / groups, count % groups);
    let end = |group: usize| group * size + group.min(larger);
    (0..groups).map(|group| end(group)..end(group + 1)).collect()
}

/// Tensors of the component that the plan does not use, without those of other stages, by the beginnings of their names.
/// Position numbers that old exports store are known and left out.
pub(super) fn unused(component: &Component, plan: &Plan, of_others: &[&str]) -> Vec<String> {
    let used: std::collections::HashSet<&str> = plan.weights().map(|(name, _)| name).collect();
    let is_of_others = |name: &str| of_others.iter().any(|start| name.starts_with(start));
    let idle = |name: &&str| !used.contains(name) && !is_of_others(name) && !name.ends_with("embeddings.position_ids");
    component.tensors().map(|(name, _)| name).filter(idle).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_all_pictures_in_at_most_two_sizes_the_larger_first() {
        for count in 1..40 {
            for most in 1..12 {
                let groups = groups(count, most);
                assert_eq!(groups.concat_range(), 0..count);
                let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();
                assert!(sizes.iter().all(|&size| (1..=most).contains(&size)), "{count} by {most}: {sizes:?}");
                assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] - sizes[sizes.len() - 1] <= 1, "{sizes:?}");
            }
        }
        assert_eq!(groups(10, 3), [0..3, 3..6, 6..8, 8..10]);
    }

    trait Concat {
        fn concat_range(&self) -> Range<usize>;
    }

    impl Concat for Vec<Range<usize>> {
        fn concat_range(&self) -> Range<usize> {
            assert!(self.windows(2).all(|pair| pair[0].end == pair[1].start));
            self[0].start..self[self.len() - 1].end
        }
    }
}
