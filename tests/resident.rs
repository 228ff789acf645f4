//! Stages that stay: what a later run does again and what it finds, groups of uneven sizes, runs at the same time.
#![cfg(feature = "tokenizer")]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::files::copy_folder;
use support::golden::MODEL;
use unclip::backend::cpu::Cpu;
use unclip::backend::{Backend, Executable, LaunchTime, Weights};
use unclip::image::Image;
use unclip::noise::NoiseKind;
use unclip::pipeline::{Event, Keep, Pipeline, Request, Task};
use unclip::plan::{Plan, WeightSource};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

/// What a back end was asked to do.
#[derive(Debug, Default)]
struct Calls {
    loads: AtomicU64,
    compilations: AtomicU64,
    /// Tensors that were read from the checkpoint.
    tensors: AtomicU64,
    /// Executables alive, and the most there were at once.
    alive: AtomicU64,
    most: AtomicU64,
}

impl Calls {
    fn all(&self) -> [u64; 3] {
        [&self.loads, &self.compilations, &self.tensors].map(|n| n.load(Ordering::Relaxed))
    }
}

/// A back end, counted.
struct Counted {
    backend: Box<dyn Backend>,
    calls: Arc<Calls>,
    /// Whether plans are computed; without it their outputs are zeros, for tests of memory alone.
    computes: bool,
}

struct CountedSource<'a>(&'a dyn WeightSource, &'a Calls);

impl WeightSource for CountedSource<'_> {
    fn find(&self, tensor: &str) -> Option<(unclip::StoredDtype, Vec<usize>)> {
        self.0.find(tensor)
    }

    fn load(&self, tensor: &str) -> Result<unclip::plan::TensorData<'_>> {
        self.1.tensors.fetch_add(1, Ordering::Relaxed);
        self.0.load(tensor)
    }

    fn path(&self, tensor: &str) -> &std::path::Path {
        self.0.path(tensor)
    }
}

struct CountedExecutable(Box<dyn Executable>, Arc<Calls>, bool);

impl Drop for CountedExecutable {
    fn drop(&mut self) {
        self.1.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Executable for CountedExecutable {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn write(&mut self, input: &str, data: &[f32]) -> Result<()> {
        self.0.write(input, data)
    }

    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()> {
        self.0.write_u32(input, data)
    }

    fn run_once(&mut self) -> Result<()> {
        if self.2 { self.0.run_once() } else { Ok(()) }
    }

    fn run_step(&mut self, step: u32) -> Result<()> {
        if self.2 { self.0.run_step(step) } else { Ok(()) }
    }

    fn profile_step(&mut self, step: u32) -> Result<Vec<LaunchTime>> {
        self.0.profile_step(step)
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let id = self.0.plan().output(name).filter(|_| !self.2);
        match id {
            Some(id) => Ok(vec![0.0; self.0.plan().shape(id).iter().product()]),
            None => self.0.read(name),
        }
    }
}

impl Backend for Counted {
    fn name(&self) -> String {
        self.backend.name()
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        self.backend.free_memory_bytes()
    }

    fn load(
        &self,
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&Arc<dyn Weights>>,
    ) -> Result<Arc<dyn Weights>> {
        self.calls.loads.fetch_add(1, Ordering::Relaxed);
        self.backend.load(plan, &CountedSource(source, &self.calls), held)
    }

    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>> {
        self.calls.compilations.fetch_add(1, Ordering::Relaxed);
        let executable = self.backend.compile(plan, weights)?;
        let alive = self.calls.alive.fetch_add(1, Ordering::Relaxed) + 1;
        self.calls.most.fetch_max(alive, Ordering::Relaxed);
        Ok(Box::new(CountedExecutable(executable, self.calls.clone(), self.computes)))
    }
}

fn open(model: &str) -> (Pipeline, Arc<Calls>) {
    open_on(Box::new(Cpu::new(2).unwrap()), true, model)
}

fn open_on(backend: Box<dyn Backend>, computes: bool, model: &str) -> (Pipeline, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let backend = Counted { backend, calls: calls.clone(), computes };
    let checkpoint = Checkpoint::open(model, LoadOptions::default()).unwrap();
    (Pipeline::open(checkpoint, Box::new(backend)).unwrap(), calls)
}

fn short(pictures: usize) -> Request {
    Request {
        pictures_per_prompt: pictures,
        prior_steps: Some(3),
        decoder_steps: Some(3),
        super_res_steps: Some(3),
        ..Request::new("a frog")
    }
}

/// Bytes of intermediate values with which this many pictures are computed together, whatever the stage.
fn room_for(pictures: u64) -> u64 {
    let (pipeline, _) = open(MODEL);
    let request = short(1);
    let bytes = |(stage, shapes)| unclip::plan::assign(&pipeline.plan(stage, &shapes).unwrap()).bytes();
    pictures * pipeline.route(&request).unwrap().into_iter().map(bytes).max().unwrap()
}

/// What a run gave and reported.
struct Observed {
    images: Vec<Image>,
    /// What happened, steps done, and steps in all.
    events: Vec<(String, usize, usize)>,
    pictures: Vec<(usize, Image)>,
}

fn observed(pipeline: &Pipeline, request: &Request) -> Observed {
    let (mut events, mut pictures) = (Vec::new(), Vec::new());
    let images = pipeline.run(request, &mut |event| {
        match event {
            Event::Begin { stage, steps } => events.push((format!("begin {stage}"), 0, steps)),
            Event::Step { stage, done, steps, .. } => events.push((stage.to_string(), done, steps)),
            Event::End { stage, .. } => events.push((format!("end {stage}"), 0, 0)),
            Event::Picture { index, image } => pictures.push((index, image.clone())),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    Observed { images: images.unwrap(), events, pictures }
}

#[test]
fn a_second_run_of_the_same_shapes_records_compiles_and_loads_nothing() {
    let (pipeline, calls) = open(MODEL);
    for pictures in [1, 3] {
        let first = pipeline.pictures(&short(pictures)).unwrap();
        let (before, counted) = (calls.all(), pipeline.counts());
        // Guidance scales, seeds and nearly the same number of steps are the same shapes.
        let other = Request { seed: 9, decoder_guidance: Some(3.0), prior_steps: Some(4), ..short(pictures) };
        assert_ne!(pipeline.pictures(&other).unwrap(), first);
        assert_eq!(pipeline.pictures(&short(pictures)).unwrap(), first);
        assert_eq!((calls.all(), pipeline.counts()), (before, counted), "{pictures} pictures");
    }
}

/// Ends a run at its event of that number, counted from 0; false if it has not so many.
fn cancelled_at(pipeline: &Pipeline, request: &Request, number: usize) -> bool {
    let mut events = 0;
    let run = pipeline.run(request, &mut |_| {
        events += 1;
        if events > number { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(matches!(run, Err(Error::Cancelled)), events > number, "{run:?}");
    events > number
}

#[test]
fn a_run_that_is_cancelled_leaves_nothing_where_nothing_stays_and_sound_stages_elsewhere() {
    let request = short(2);
    let (pipeline, calls) = open(MODEL);
    let pipeline = pipeline.memory_limit(room_for(1)).keep(Keep::Nothing, None);
    let mut number = 0;
    while cancelled_at(&pipeline, &request, number) {
        assert_eq!((pipeline.kept_bytes(), calls.alive.load(Ordering::Relaxed)), (0, 0), "cancelled at event {number}");
        number += 5;
    }
    assert!(number > 30, "{number} events");
    let (pipeline, _) = open(MODEL);
    let want = open(MODEL).0.pictures(&request).unwrap();
    for number in [3, 8, 17] {
        assert!(cancelled_at(&pipeline, &request, number));
        assert_eq!(pipeline.pictures(&request).unwrap(), want, "cancelled at event {number}");
    }
}

#[cfg(feature = "cuda-emulator")]
mod on_the_emulator {
    use super::*;
    use unclip::backend::cuda::Cuda;

    /// Bytes in which all stages have room.
    const ENOUGH: u64 = 1 << 30;

    /// As few steps as the networks allow.
    fn shortest() -> Request {
        Request { prior_steps: Some(2), decoder_steps: Some(2), super_res_steps: Some(2), ..short(1) }
    }

    /// Runs, and gives the bytes that stay at the end of each stage.
    fn kept_by_stage(pipeline: &Pipeline) -> Vec<u64> {
        let mut kept = Vec::new();
        let run = pipeline.run(&shortest(), &mut |event| {
            if let Event::End { .. } = event {
                kept.push(pipeline.kept_bytes());
            }
            ControlFlow::Continue(())
        });
        run.unwrap();
        kept
    }

    /// A pipeline on a device with so many bytes of memory.
    fn open(bytes: u64, computes: bool) -> (Pipeline, Arc<Calls>) {
        open_on(Box::new(Cuda::emulator_with_memory(bytes)), computes, MODEL)
    }

    #[test]
    fn a_second_run_of_the_same_shapes_records_compiles_and_uploads_nothing() {
        let (pipeline, calls) = open(ENOUGH, false);
        pipeline.pictures(&shortest()).unwrap();
        let done = || (calls.all(), pipeline.counts(), pipeline.backend().free_memory_bytes());
        let before = done();
        pipeline.pictures(&shortest()).unwrap();
        assert_eq!(done(), before);

        let (pipeline, calls) = open(ENOUGH, true);
        let embed = || pipeline.embed(&shortest(), &mut |_| ControlFlow::Continue(())).unwrap().remove(0).image;
        let first = embed();
        let before = calls.all();
        assert_eq!((embed(), calls.all()), (first, before));
    }

    #[test]
    fn a_stage_that_finds_too_little_memory_takes_the_place_of_those_used_longest_ago() {
        let (pipeline, _) = open(ENOUGH, false);
        let all = kept_by_stage(&pipeline);
        let total = all[all.len() - 1];
        assert_eq!(pipeline.backend().free_memory_bytes(), Some(ENOUGH - total));

        let (small, calls) = open(total - 1, false);
        let kept = *kept_by_stage(&small).last().unwrap();
        // One after the other, and no more than had to leave.
        let left = all.iter().position(|before| total - before == kept);
        assert!(left.is_some_and(|stages| stages < all.len() / 2), "{kept} bytes stay, of {all:?}");
        // Everything is found again or loaded again.
        let loads = calls.all()[0];
        small.pictures(&shortest()).unwrap();
        assert!(calls.all()[0] > loads);
    }

    #[test]
    fn a_stage_that_no_room_can_be_made_for_is_an_error_of_its_own_and_leaves_nothing() {
        let (pipeline, _) = open(ENOUGH, false);
        let all = kept_by_stage(&pipeline);
        let largest = all.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        let memory = largest - 1;
        for keep in [Keep::Nothing, Keep::Everything] {
            let (pipeline, calls) = open(memory, false);
            let pipeline = pipeline.keep(keep, None);
            let error = pipeline.pictures(&shortest()).unwrap_err();
            assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
            assert!(error.to_string().contains("out of memory: "), "{error}");
            assert_eq!(calls.alive.load(Ordering::Relaxed), 0, "{keep:?}");
            let held = memory - pipeline.backend().free_memory_bytes().unwrap();
            assert_eq!(held, pipeline.kept_bytes(), "{keep:?}");
            assert!(keep == Keep::Everything || held == 0, "{held} bytes are left");
        }
    }
}

#[test]
fn another_batch_compiles_and_reads_no_weight_again() {
    let (pipeline, calls) = open(MODEL);
    pipeline.pictures(&short(1)).unwrap();
    let [_, compilations, tensors] = calls.all();
    assert_eq!(compilations, 6);
    pipeline.pictures(&short(2)).unwrap();
    // Texts are as many as before.
    assert_eq!(calls.all()[1..], [compilations + 5, tensors]);
}

#[test]
fn uneven_groups_compile_each_stage_twice_and_report_every_step_and_picture_once() {
    let request = short(10);
    let (whole, _) = open(MODEL);
    let want = whole.pictures(&request).unwrap();
    for (keep, passes) in [(Keep::Nothing, 4), (Keep::Weights, 4), (Keep::Everything, 4)] {
        let (pipeline, calls) = open(MODEL);
        let pipeline = pipeline.memory_limit(room_for(3)).keep(keep, None);
        let Observed { images, events, pictures } = observed(&pipeline, &request);
        assert_eq!(images, want, "{keep:?}");
        let reported: Vec<(usize, Image)> = want.iter().cloned().enumerate().collect();
        assert!(pictures == reported, "{keep:?}: pictures in order");
        // Groups of 3, 3, 2 and 2 pictures, each through all stages.
        let begun: Vec<&str> = events.iter().filter_map(|(name, ..)| name.strip_prefix("begin ")).collect();
        let of_group = ["prior", "text_proj", "decoder", "super_res_first", "super_res_last"];
        assert_eq!(begun[0], "text_encoder");
        assert_eq!(begun[1..], of_group.repeat(passes), "{keep:?}");
        let mut announced = 0;
        let mut taken = 0;
        for (name, done, steps) in &events {
            if name.starts_with("begin ") {
                (announced, taken) = (*steps, 0);
            } else if name.starts_with("end ") {
                assert_eq!(taken, announced, "{keep:?}: {name}");
            } else {
                taken += 1;
                assert_eq!((*done, *steps), (taken, announced), "{keep:?}: {name}");
            }
        }
        let [_, compilations, tensors] = calls.all();
        let (single, of_one) = open(MODEL);
        single.pictures(&short(1)).unwrap();
        let [_, _, once] = of_one.all();
        assert_eq!(tensors, once, "{keep:?}: every weight is read once");
        let expected = if keep == Keep::Weights { 1 + 5 * 4 } else { 1 + 5 * 2 };
        assert_eq!(compilations, expected, "{keep:?}");
    }
}

#[test]
fn stages_that_do_not_fit_take_all_pictures_through_one_stage_after_the_other() {
    let (pipeline, calls) = open(MODEL);
    let pipeline = pipeline.memory_limit(room_for(3)).keep(Keep::Everything, Some(1));
    let Observed { images, events, pictures } = observed(&pipeline, &short(10));
    assert_eq!(images, open(MODEL).0.pictures(&short(10)).unwrap());
    assert_eq!(pictures.len(), 10);
    let begun: Vec<&(String, usize, usize)> = events.iter().filter(|(name, ..)| name.starts_with("begin ")).collect();
    assert_eq!(begun.len(), 6, "{begun:?}");
    let steps = |stage: &str| events.iter().filter(|(name, ..)| name == stage).count();
    for (name, _, announced) in begun {
        assert_eq!(steps(name.strip_prefix("begin ").unwrap()), *announced, "{name}");
    }
    assert_eq!(pipeline.kept_bytes(), 0);
    // One at a time: the one of the larger groups is gone before that of the smaller ones is made.
    assert_eq!(calls.most.load(Ordering::Relaxed), 1);
    assert_eq!(calls.alive.load(Ordering::Relaxed), 0);
}

#[test]
fn nothing_stays_where_nothing_is_to_stay() {
    for pictures in [1, 5] {
        let (pipeline, calls) = open(MODEL);
        let pipeline = pipeline.memory_limit(room_for(2)).keep(Keep::Nothing, None);
        pipeline.pictures(&short(pictures)).unwrap();
        assert_eq!(pipeline.kept_bytes(), 0);
        assert_eq!(calls.alive.load(Ordering::Relaxed), 0, "{pictures} pictures");
    }
}

#[test]
fn the_stage_used_longest_ago_leaves_first() {
    let (pipeline, calls) = open(MODEL);
    let all = {
        let (pipeline, _) = open(MODEL);
        pipeline.pictures(&short(1)).unwrap();
        pipeline.kept_bytes()
    };
    let pipeline = pipeline.keep(Keep::Everything, Some(all - 1));
    pipeline.pictures(&short(1)).unwrap();
    assert!((1..all).contains(&pipeline.kept_bytes()));
    let before = calls.all()[1];
    pipeline.pictures(&short(1)).unwrap();
    let again = calls.all()[1] - before;
    assert!((1..=6).contains(&again), "{again} stages were compiled again");
}

#[test]
fn two_runs_at_once_share_weights_and_make_the_pictures_of_runs_alone() {
    let (pipeline, calls) = open(MODEL);
    let requests = [short(1), Request { seed: 77, noise: NoiseKind::Philox, ..short(2) }];
    let want: Vec<Vec<Image>> = requests.iter().map(|request| open(MODEL).0.pictures(request).unwrap()).collect();
    for round in 0..3 {
        std::thread::scope(|scope| {
            let runs: Vec<_> = requests.iter().map(|request| scope.spawn(|| pipeline.pictures(request))).collect();
            for (run, want) in runs.into_iter().zip(&want) {
                assert_eq!(&run.join().unwrap().unwrap(), want, "round {round}");
            }
        });
    }
    let tensors = calls.all()[2];
    pipeline.pictures(&short(3)).unwrap();
    assert_eq!(calls.all()[2], tensors);
}

#[test]
fn weights_that_change_on_disk_are_loaded_again_with_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(MODEL.as_ref(), &model);
    let (pipeline, calls) = open(model.to_str().unwrap());
    let first = pipeline.pictures(&short(1)).unwrap();
    let file = model.join("decoder/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let later = std::fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::from_secs(5);
    std::fs::write(&file, bytes).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    let before = calls.all()[0];
    let mut warnings = Vec::new();
    let again = pipeline.run(&short(1), &mut |event| {
        if let Event::Warning(text) = event {
            warnings.push(text.to_owned());
        }
        ControlFlow::Continue(())
    });
    assert_eq!(again.unwrap(), first);
    assert_eq!(calls.all()[0], before + 1);
    assert!(warnings.len() == 1 && warnings[0].starts_with("decoder: the weights changed"), "{warnings:?}");
}

#[test]
fn a_fault_of_the_last_stage_is_found_before_the_first_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(MODEL.as_ref(), &model);
    std::fs::write(model.join("super_res_last/diffusion_pytorch_model.safetensors"), b"not weights").unwrap();
    let (pipeline, calls) = open(model.to_str().unwrap());
    let error = pipeline.run(&short(1), &mut |event| panic!("{event:?}")).unwrap_err();
    assert!(error.to_string().contains("super_res_last"), "{error}");
    assert_eq!(calls.all(), [0; 3]);
}

#[test]
fn the_parts_of_the_way_make_the_pictures_of_the_whole() {
    let (pipeline, _) = open(MODEL);
    let prompts = Task::Prompts(vec!["a frog".into(), "a leaf".into()]);
    let request = Request { task: prompts, seed: 5, ..short(2) };
    let observer = &mut |_: Event<'_>| ControlFlow::Continue(());
    let embeddings = pipeline.embed(&request, observer).unwrap();
    let small = pipeline.paint(embeddings.clone(), &request, observer).unwrap();
    let images = pipeline.enlarge(small, &request, observer).unwrap();
    assert_eq!(images, pipeline.pictures(&request).unwrap());
    assert!(pipeline.paint(Vec::new(), &request, observer).unwrap().is_empty());
    let mut wrong = embeddings;
    wrong[0].image.pop();
    let error = pipeline.paint(wrong, &request, observer).unwrap_err();
    assert!(matches!(error, Error::Request { .. }), "{error}");
}

#[test]
fn a_preview_reads_the_samples_of_the_present_step() {
    let (pipeline, _) = open(MODEL);
    let mut seen = Vec::new();
    let run = pipeline.run(&short(2), &mut |event| {
        if let Event::Step { stage, latents, .. } = event {
            let size: usize = latents.shape().iter().product();
            let samples = latents.read().unwrap();
            assert_eq!(samples.len(), 2 * size, "{stage}");
            seen.push((stage.name(), samples));
        }
        ControlFlow::Continue(())
    });
    let images = run.unwrap();
    let (stage, last) = seen.last().unwrap();
    assert_eq!(*stage, "super_res_last");
    let size = images[0].width;
    let of_first = Image::from_unit_range(size, size, &last[..last.len() / 2]).unwrap();
    assert_eq!(of_first, images[0]);
}
