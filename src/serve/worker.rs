//! The thread of a device: it loads the models, takes batches from the queue, and tells each request of its pictures.

use super::Server;
use super::errors::ApiError;
use super::queue::{Answer, Job, Other, Update, Work};
use crate::cli::devices::{self, Chosen};
use crate::cli::flags::DeviceArguments;
use crate::cli::make::stored;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use unclip::image::Image;
use unclip::pipeline::{Event, Observer, Pipeline, Prompt, Request, Stage, Task};
use unclip::{Error, Result};

/// A device with all models.
pub struct Worker<'a> {
    server: &'a Server,
    /// What computes.
    pub device: String,
    pipelines: Vec<Pipeline>,
    /// When each model was last used, in batches.
    used: Vec<u64>,
    batches: u64,
}

impl<'a> Worker<'a> {
    /// Opens the device and loads the models, as far as memory allows.
    ///
    /// # Errors
    /// There is no such device, or a model does not load.
    pub fn open(server: &'a Server, arguments: &DeviceArguments) -> Result<Worker<'a>> {
        let count = server.models.all.len();
        let mut worker =
            Worker { server, device: String::new(), pipelines: Vec::new(), used: vec![0; count], batches: 0 };
        for model in 0..count {
            let pipeline = server.models.pipeline(model)?;
            let Chosen { backend, remark } = devices::open(arguments, &|| stored(&pipeline))?;
            worker.device = backend.name();
            let remark = remark.map_or(String::new(), |remark| format!("; {remark}"));
            server.log.note(&format!("{} on {}{remark}", server.models.all[model].name, backend.name()));
            let pipeline = pipeline.with_backend(backend);
            server.stopping().map_or(Ok(()), Err)?;
            warm_up(&pipeline, &mut |_| continue_unless(server.is_aborting()))?;
            worker.pipelines.push(pipeline);
            worker.make_room(model);
        }
        worker.measure();
        Ok(worker)
    }

    /// Works until the queue is closed and empty.
    pub fn run(&mut self) {
        let most = self.server.limits.batch;
        while let Some(batch) = self.server.queue.take(most, |first, other| joins(self.server, first, other)) {
            let began = Instant::now();
            let (model, pictures) = (batch[0].model, batch.iter().map(Job::pictures).sum());
            self.server.metrics.taken(pictures, batch.iter().map(|job| job.entered.elapsed()));
            let is_whole = self.work(model, batch);
            self.server.queue.done(pictures, is_whole.then(|| began.elapsed().as_secs_f64()));
            self.batches += 1;
            self.used[model] = self.batches;
            self.make_room(model);
            self.measure();
        }
    }

    /// Does a batch; whether it was finished.
    fn work(&self, model: usize, mut batch: Vec<Job>) -> bool {
        if batch.len() == 1 && matches!(batch[0].work, Work::Other(_)) {
            let Job { work: Work::Other(other), left, updates, .. } = batch.remove(0) else {
                unreachable!("just looked at")
            };
            let gone = || self.server.is_aborting() || left.load(std::sync::atomic::Ordering::Relaxed);
            let result = self.do_alone(model, other, &mut |event| self.observe(&event, gone()));
            let is_whole = result.is_ok();
            // Whoever asked may have left.
            _ = updates.send(Update::Finished(result.map(Some)));
            return is_whole;
        }
        self.draw(model, &batch)
    }

    fn do_alone(&self, model: usize, other: Box<Other>, observer: &mut Observer<'_>) -> Result<Answer, ApiError> {
        let run = catch_unwind(AssertUnwindSafe(|| other(&self.pipelines[model], observer)));
        run.map_err(|_| ApiError::internal("the work ended in a fault of the program"))?
            .map_err(|error| self.fault(error))
    }

    /// Makes the pictures of a batch; whether all were finished.
    fn draw(&self, model: usize, batch: &[Job]) -> bool {
        let pipeline = &self.pipelines[model];
        let mut batch = Batch::new(pipeline, batch);
        let requests: Vec<Request> = batch.requests.iter().map(|request| (*request).clone()).collect();
        let previews = batch.jobs.iter().any(|job| batch.previews_of(job) > 0).then_some(1);
        let run = catch_unwind(AssertUnwindSafe(|| {
            pipeline.run_together(&requests, previews, &mut |event| {
                batch.event(&event);
                if let Event::Picture { .. } = event {
                    self.server.metrics.pictures.inc();
                }
                self.observe(&event, self.server.is_aborting() || batch.jobs.iter().all(Job::has_left))
            })
        }));
        let result = match run {
            Ok(result) => result.map(drop).map_err(|error| self.fault(error)),
            Err(_) => Err(ApiError::internal("the work ended in a fault of the program")),
        };
        let jobs = batch.jobs;
        if result.is_err() && jobs.len() > 1 && batch.sent == 0 && !self.server.is_aborting() {
            // What is wrong with one request is no business of the others.
            let wholes: Vec<bool> = jobs.iter().map(|job| self.draw(model, std::slice::from_ref(job))).collect();
            return wholes.into_iter().all(|is_whole| is_whole);
        }
        let is_whole = result.is_ok();
        for job in jobs {
            _ = job.updates.send(Update::Finished(result.clone().map(|()| None)));
        }
        is_whole
    }

    /// What is counted and logged of an event, and whether the work goes on.
    fn observe(&self, event: &Event<'_>, ends: bool) -> ControlFlow<()> {
        match event {
            Event::End { stage, elapsed, .. } => self.server.metrics.stage(stage.name(), *elapsed),
            Event::Warning(warning) if !self.server.log.has_prompts() && warning.contains("prompt") => {}
            Event::Warning(warning) => self.server.log.note(warning),
            _ => {}
        }
        continue_unless(ends)
    }

    /// What a client is told of an error; the log has all of it.
    fn fault(&self, error: Error) -> ApiError {
        let text = error.to_string();
        let answer = ApiError::from(error);
        if answer.status.is_server_error() {
            self.server.log.error(&text);
        }
        answer
    }

    /// Lets the least recently used models go until the rest fits what one may keep.
    fn make_room(&self, current: usize) {
        let most = self.pipelines.first().map_or(u64::MAX, Pipeline::kept_limit);
        let mut others: Vec<usize> = (0..self.pipelines.len()).filter(|&model| model != current).collect();
        others.sort_by_key(|&model| self.used[model]);
        for model in others {
            if self.pipelines.iter().map(Pipeline::kept_bytes).sum::<u64>() <= most {
                return;
            }
            self.pipelines[model].release();
        }
    }

    fn measure(&self) {
        let kept = self.pipelines.iter().map(Pipeline::kept_bytes).sum();
        self.server.metrics.memory_of(&self.device, "kept", kept);
        if let Some(free) = self.pipelines.first().and_then(|pipeline| pipeline.backend().free_memory_bytes()) {
            self.server.metrics.memory_of(&self.device, "free", free);
        }
    }
}

fn continue_unless(ends: bool) -> ControlFlow<()> {
    if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Whether a job's pictures can be computed with another's.
fn joins(server: &Server, first: &Job, other: &Job) -> bool {
    match (&first.work, &other.work) {
        (Work::Pictures { request: a, .. }, Work::Pictures { request: b, .. }) if first.model == other.model => {
            server.models.all[first.model].checked.can_join(a, b)
        }
        _ => false,
    }
}

/// Loads what a first request would load, in as few steps as there can be.
fn warm_up(pipeline: &Pipeline, observer: &mut Observer<'_>) -> Result<()> {
    if !pipeline.makes_pictures() {
        return pipeline.embed_texts(&[Prompt::from("")], observer).map(drop);
    }
    let white = Image { width: 8, height: 8, pixels: vec![255; 3 * 64] };
    let short = |task| Request { decoder_steps: Some(2), ..Request::of(task) };
    let of_prompt = Request { prior_steps: Some(2), ..short(Task::Prompts(vec!["".into()])) };
    // Checkpoints for variations alone have no prior; super-resolution is not for all.
    let kinds = [of_prompt, short(Task::Variations(vec![white]))];
    let kinds = kinds
        .into_iter()
        .flat_map(|request| [Some(2), None].map(|steps| Request { super_res_steps: steps, ..request.clone() }));
    match kinds.into_iter().find(|request| pipeline.route(request).is_ok()) {
        Some(request) => pipeline.run(&request, observer).map(drop),
        None => Ok(()),
    }
}

/// Jobs whose pictures are computed together, and what was told of them.
struct Batch<'b> {
    jobs: &'b [Job],
    requests: Vec<&'b Request>,
    pipeline: &'b Pipeline,
    /// The stage that samples what pictures are made of: the first whose samples have a height and a width.
    sampling: Option<Stage>,
    /// First picture and first step of the group that is sampled.
    group: (usize, usize),
    /// Pictures that were sent.
    sent: usize,
}

impl<'b> Batch<'b> {
    fn new(pipeline: &'b Pipeline, jobs: &'b [Job]) -> Batch<'b> {
        let request = |job: &'b Job| match &job.work {
            Work::Pictures { request, .. } => Some(&**request),
            Work::Other(_) => None,
        };
        let requests = jobs.iter().filter_map(request).collect();
        Batch { jobs, requests, pipeline, sampling: None, group: (0, 0), sent: 0 }
    }

    fn previews_of(&self, job: &Job) -> usize {
        if let Work::Pictures { previews, .. } = job.work { previews } else { 0 }
    }

    /// The job of a picture of the batch, and its number there.
    fn of(&self, picture: usize) -> Option<(&'b Job, &'b Request, usize)> {
        let mut first = 0;
        for (job, request) in self.jobs.iter().zip(&self.requests) {
            let pictures = request.pictures();
            if picture < first + pictures {
                return Some((job, request, picture - first));
            }
            first += pictures;
        }
        None
    }

    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin { stage, .. } if Some(*stage) == self.sampling => self.group = (usize::MAX, 0),
            Event::Step { stage, done, steps, latents } => {
                for job in self.jobs.iter().filter(|job| matches!(job.work, Work::Pictures { progress: true, .. })) {
                    _ = job.updates.send(Update::Step { stage: stage.name(), done: *done, steps: *steps });
                }
                if latents.shape().len() != 3 || *self.sampling.get_or_insert(*stage) != *stage {
                    return;
                }
                if self.group.0 != latents.first() {
                    self.group = (latents.first(), done - 1);
                }
                self.preview(done - self.group.1, *steps, latents);
            }
            Event::Picture { index, image } => {
                let Some((job, request, picture)) = self.of(*index) else { return };
                let recipe = Box::new(self.pipeline.recipe(request, picture));
                self.sent += 1;
                _ = job.updates.send(Update::Picture { picture, image: (*image).clone(), recipe });
            }
            _ => {}
        }
    }

    /// Sends the previews that are due after so many steps.
    fn preview(&self, done: usize, steps: usize, latents: &unclip::pipeline::Latents<'_>) {
        let number = |job: &Job| due(self.previews_of(job), done, steps);
        if !self.jobs.iter().any(|job| number(job).is_some()) {
            return;
        }
        // A device that fails says so in its next step.
        let Ok(Some(images)) = latents.previews() else { return };
        for (row, image) in images.into_iter().enumerate() {
            let Some((job, _, picture)) = self.of(latents.first() + row) else { return };
            if let Some(number) = number(job) {
                _ = job.updates.send(Update::Preview { picture, number, image });
            }
        }
    }
}

/// Which of so many previews is due after a step: they lie evenly between the first step and the last.
fn due(previews: usize, done: usize, steps: usize) -> Option<usize> {
    (0..previews).find(|number| (steps * (number + 1)).div_ceil(previews + 1).max(number + 1) == done && done < steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_lie_evenly_before_the_last_step() {
        let of = |previews, steps| {
            (1..=steps).filter_map(move |done| due(previews, done, steps).map(|number| (number, done)))
        };
        assert_eq!(of(3, 12).collect::<Vec<_>>(), [(0, 3), (1, 6), (2, 9)]);
        assert_eq!(of(1, 2).collect::<Vec<_>>(), [(0, 1)]);
        assert_eq!(of(3, 4).collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(of(0, 9).count(), 0);
        for (previews, steps) in (0..=3).flat_map(|previews| (2..60).map(move |steps| (previews, steps))) {
            assert_eq!(of(previews, steps).count(), previews.min(steps - 1), "{previews} of {steps}");
        }
    }
}
