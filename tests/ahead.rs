//! Loading ahead on the emulator: later stages' weights come while earlier stages run, each once, and none after the run.
#![cfg(all(feature = "cuda-emulator", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use support::files::copy_folder;
use support::golden::MODEL;
use unclip::backend::cuda::Cuda;
use unclip::backend::{Backend, Executable, Weights};
use unclip::image::Image;
use unclip::pipeline::{Event, Keep, Pipeline, Request};
use unclip::plan::{Plan, WeightSource};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

/// What happens while a stage's weights are loaded: the plan's name, and where its weights come from.
type During = Box<dyn Fn(&str, &dyn WeightSource) + Send + Sync>;

/// An emulator whose loads are watched.
struct Watched {
    cuda: Arc<Cuda>,
    ahead: bool,
    loads: Arc<Loads>,
    during: During,
}

/// The names of plans whose weights were asked for, in order.
#[derive(Default)]
struct Loads {
    begun: Mutex<Vec<String>>,
    more: Condvar,
}

impl Loads {
    /// Waits until a load of this plan has begun; false after a time in which it would have.
    fn wait_for(&self, name: &str) -> bool {
        let missing = |begun: &mut Vec<String>| !begun.iter().any(|begun| begun == name);
        let begun = self.begun.lock().unwrap();
        !self.more.wait_timeout_while(begun, Duration::from_secs(20), missing).unwrap().1.timed_out()
    }
}

impl Backend for Watched {
    fn name(&self) -> String {
        self.cuda.name()
    }

    fn loads_ahead(&self) -> bool {
        self.ahead && self.cuda.loads_ahead()
    }

    fn load(
        &self,
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&Arc<dyn Weights>>,
    ) -> Result<Arc<dyn Weights>> {
        self.loads.begun.lock().unwrap().push(plan.name.clone());
        self.loads.more.notify_all();
        (self.during)(&plan.name, source);
        self.cuda.load(plan, source, held)
    }

    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>> {
        self.cuda.compile(plan, weights)
    }
}

fn open(model: &str, ahead: bool, during: During) -> (Pipeline, Arc<Cuda>, Arc<Loads>) {
    let (cuda, loads) = (Arc::new(Cuda::emulator()), Arc::new(Loads::default()));
    let backend = Watched { cuda: cuda.clone(), ahead, loads: loads.clone(), during };
    let checkpoint = Checkpoint::open(model, LoadOptions::default()).unwrap();
    (Pipeline::open(checkpoint, Box::new(backend)).unwrap(), cuda, loads)
}

fn short() -> Request {
    Request { prior_steps: Some(2), decoder_steps: Some(2), super_res_steps: Some(2), ..Request::new("a frog") }
}

/// Runs a request; at the prior's first step it waits for a load of `awaited` and goes on or not. With the pictures it
/// gives whether the load came.
fn run(pipeline: &Pipeline, loads: &Loads, awaited: &str, then: ControlFlow<()>) -> Result<(Vec<Image>, bool)> {
    let (mut came, mut asked) = (true, false);
    let result = pipeline.run(&short(), &mut |event| match event {
        Event::Step { stage, .. } if stage.name() == "prior" && !asked => {
            (came, asked) = (loads.wait_for(awaited), true);
            then
        }
        _ => ControlFlow::Continue(()),
    });
    result.map(|images| (images, came))
}

#[test]
fn the_decoder_is_loaded_while_the_prior_samples_and_every_stage_once() {
    let (alone, ..) = open(MODEL, false, Box::new(|_, _| ()));
    let want = alone.pictures(&short()).unwrap();
    let (pipeline, _, loads) = open(MODEL, true, Box::new(|_, _| ()));
    let (got, came) = run(&pipeline, &loads, "decoder", ControlFlow::Continue(())).unwrap();
    assert!(came, "the prior waited in vain");
    assert_eq!(got, want);
    assert_eq!(pipeline.counts(), alone.counts());
    assert_eq!(pipeline.kept_bytes(), alone.kept_bytes());
}

#[test]
fn stages_that_may_not_stay_are_not_loaded_ahead() {
    for keep in [(Keep::Nothing, None), (Keep::Everything, Some(1))] {
        let (pipeline, _, loads) = open(MODEL, true, Box::new(|_, _| ()));
        let pipeline = pipeline.keep(keep.0, keep.1);
        let mut begun = Vec::new();
        let result = pipeline.run(&short(), &mut |event| match event {
            Event::Begin { stage, .. } => {
                begun.push((stage.name().to_owned(), loads.begun.lock().unwrap().clone()));
                if stage.name() == "decoder" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(begun.len(), 4);
        for (stage, loaded) in begun {
            assert!(!loaded.contains(&stage), "{keep:?}: {stage} was loaded before it began");
        }
    }
}

#[test]
fn a_run_cancelled_while_a_stage_is_loaded_ahead_leaves_nothing_running_and_nothing_allocated() {
    // A load that lasts until its source refuses.
    let (refused, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (refuses, ended) = (refused.clone(), over.clone());
    let (pipeline, cuda, loads) = open(
        MODEL,
        true,
        Box::new(move |name, source| {
            if name == "decoder" && !ended.load(Ordering::Relaxed) {
                let is_refused = || matches!(source.open("conv_in.bias"), Err(Error::Cancelled));
                for _ in 0..2000 {
                    if is_refused() {
                        refuses.store(true, Ordering::Relaxed);
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                ended.store(true, Ordering::Relaxed);
            }
        }),
    );
    let before = pipeline.counts().loads;
    let result = run(&pipeline, &loads, "decoder", ControlFlow::Break(()));
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(refused.load(Ordering::Relaxed) && over.load(Ordering::Relaxed), "the run ended after its thread");
    // Text encoder, prior, and text projection, which was loaded before the decoder.
    assert_eq!(pipeline.counts().loads - before, 3);
    // What stays is what was loaded whole, and it serves the next run.
    pipeline.pictures(&short()).unwrap();
    assert_eq!(pipeline.counts().loads - before, 6);
    drop(pipeline);
    assert_eq!(cuda.allocations(), 0);
}

#[test]
fn a_file_that_changes_while_it_is_loaded_is_an_error_and_leaves_nothing_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(MODEL.as_ref(), &model);
    let file = model.join("decoder/diffusion_pytorch_model.safetensors");
    let meddle: During = Box::new(move |name, _| {
        if name == "decoder" {
            let file = std::fs::File::options().write(true).open(&file).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.set_modified(before + Duration::from_secs(5)).unwrap();
        }
    });
    let (pipeline, cuda, _) = open(model.to_str().unwrap(), true, meddle);
    let error = pipeline.pictures(&short()).unwrap_err();
    assert!(
        matches!(&error, Error::Changed { path } if path.ends_with("diffusion_pytorch_model.safetensors")),
        "{error}"
    );
    drop(pipeline);
    assert_eq!(cuda.allocations(), 0);
}
