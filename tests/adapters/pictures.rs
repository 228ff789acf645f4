//! Pictures with adapters.

use super::{open, path};
use crate::support::golden::MODEL;
use std::path::Path;
use unclip::Error;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Pipeline, Request};
use unclip::weights::{Adapters, Checkpoint, LoadOptions};

/// An adapter for each network of the tiny checkpoint that golden ones are of.
const ALL: [&str; 2] = ["peft-model", "kohya"];

fn request() -> Request {
    let steps = Some(2);
    Request { prior_steps: steps, decoder_steps: steps, super_res_steps: steps, ..Request::new("a red apple") }
}

fn opened(model: &Path, backend: Box<dyn Backend>) -> Pipeline {
    Pipeline::open(Checkpoint::open(model, LoadOptions::default()).unwrap(), backend).unwrap()
}

fn adapted(backend: Box<dyn Backend>, scale: f32) -> Pipeline {
    opened(MODEL.as_ref(), backend).with_adapters(ALL.map(|name| (open(name), scale)).into()).unwrap()
}

fn cpu() -> Box<dyn Backend> {
    Box::new(Cpu::new(1).unwrap())
}

fn picture(pipeline: &Pipeline) -> Image {
    pipeline.pictures(&request()).unwrap().swap_remove(0)
}

/// How far two pictures are apart at most.
fn apart(a: &Image, b: &Image) -> u8 {
    a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn an_adapted_picture_is_that_of_the_merged_checkpoint_and_scale_0_that_of_the_base() {
    let base = picture(&opened(MODEL.as_ref(), cpu()));
    let with = adapted(cpu(), 0.75);
    let picture_with = picture(&with);
    assert!(apart(&base, &picture_with) > 8, "{}", apart(&base, &picture_with));
    assert_eq!(picture(&adapted(cpu(), 0.0)), base);

    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("merged");
    let merged = with.adapters().merge(with.checkpoint(), &folder, &mut |_| Ok(())).unwrap();
    assert_eq!(merged.tensors, 3 + 11);
    assert_eq!(picture(&opened(&folder, cpu())), picture_with);
}

#[test]
fn new_scales_load_adapted_tensors_alone_and_make_the_picture_of_a_fresh_pipeline() {
    let mut pipeline = adapted(cpu(), 1.0);
    picture(&pipeline);
    let (before, kept) = (pipeline.counts(), pipeline.kept_bytes());
    pipeline.set_adapter_scales(&[-0.5, 0.0]).unwrap();
    assert!(pipeline.kept_bytes() < kept);
    let changed = picture(&pipeline);
    let after = pipeline.counts();
    // Prior, text encoder and decoder have adapted tensors; text projection and super-resolution stay as they are.
    assert_eq!([after.loads - before.loads, after.compilations - before.compilations], [3, 3]);
    assert_eq!(pipeline.kept_bytes(), kept);
    let fresh = opened(MODEL.as_ref(), cpu()).with_adapters(vec![(open("peft-model"), -0.5)]).unwrap();
    assert_eq!(picture(&fresh), changed);
    // The same scales again are no change.
    pipeline.set_adapter_scales(&[-0.5, 0.0]).unwrap();
    picture(&pipeline);
    assert_eq!(pipeline.counts(), after);
}

#[test]
fn a_recipe_names_the_adapters_that_a_picture_was_made_with() {
    let pipeline = adapted(cpu(), 0.75);
    let recipe = pipeline.recipe(&request(), 0);
    let names: Vec<(&str, f32)> = recipe.adapters.iter().map(|used| (used.name.as_str(), used.scale)).collect();
    assert_eq!(names, [("peft-model.safetensors", 0.75), ("kohya.safetensors", 0.75)]);
    assert_eq!(recipe.adapters[0].sha256, open("peft-model").digest());
    assert!(opened(MODEL.as_ref(), cpu()).recipe(&request(), 0).adapters.is_empty());
}

#[test]
fn a_merged_checkpoint_keeps_types_and_other_files_and_is_there_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    crate::support::files::copy_folder(MODEL.as_ref(), &base);
    for (file, text) in
        [("README.md", "about"), ("prior/diffusion_pytorch_model.fp16.safetensors", "other"), (".cache", "x")]
    {
        std::fs::write(base.join(file), text).unwrap();
    }
    let checkpoint = Checkpoint::open(&base, LoadOptions::default()).unwrap();
    let adapters = Adapters::new(&checkpoint, vec![(open("peft-model"), 1.0)]).unwrap();
    let to = dir.path().join("to");
    let stopped = adapters.merge(&checkpoint, &to, &mut |file| {
        if file.starts_with("super") { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let names = || std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names(), 1);

    let merged = adapters.merge(&checkpoint, &to, &mut |_| Ok(())).unwrap();
    assert_eq!(merged.left_out, ["prior/diffusion_pytorch_model.fp16.safetensors"]);
    assert_eq!(std::fs::read_to_string(to.join("README.md")).unwrap(), "about");
    assert!(!to.join(".cache").exists() && names() == 2);
    let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap();
    let same = |file: &str| read(&base, file) == read(&to, file);
    assert!(
        same("decoder/diffusion_pytorch_model.safetensors") && same("prior/config.json") && same("model_index.json")
    );
    let file = "prior/diffusion_pytorch_model.safetensors";
    let (old, new) = (read(&base, file), read(&to, file));
    let header = 8 + u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    assert!(old.len() == new.len() && old[..header] == new[..header] && old != new);

    let again = adapters.merge(&checkpoint, &to, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");
    let network =
        Adapters::new(&checkpoint, Vec::new()).unwrap().merge(&checkpoint, &dir.path().join("x"), &mut |_| Ok(()));
    assert!(network.unwrap_err().to_string().contains("nothing to merge"));
    assert!(path("kohya").is_file());
}

#[cfg(feature = "wgpu")]
#[test]
fn an_adapted_picture_on_wgpu_is_that_on_the_cpu_within_2() {
    let options = unclip::backend::wgpu::Options::default();
    let Some(backend) = crate::support::adapters::open(options) else { return };
    let (cpu, gpu) = (picture(&adapted(cpu(), 0.75)), picture(&adapted(Box::new(backend), 0.75)));
    assert!(apart(&cpu, &gpu) <= 2, "{}", apart(&cpu, &gpu));
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn the_emulator_loads_adapted_weights_and_new_scales_as_the_cpu_does() {
    let embed = |backend: Box<dyn Backend>| {
        let mut pipeline = adapted(backend, 1.0);
        pipeline.set_adapter_scales(&[0.5, 0.5]).unwrap();
        let first = pipeline.embed(&request(), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        pipeline.set_adapter_scales(&[-0.5, 0.5]).unwrap();
        let second = pipeline.embed(&request(), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        [first, second].map(|made| made[0].image.clone())
    };
    let (want, got) = (embed(cpu()), embed(Box::new(unclip::backend::cuda::Cuda::emulator())));
    assert_ne!(want[0], want[1]);
    for (want, got) in want.iter().flatten().zip(got.iter().flatten()) {
        assert!((want - got).abs() <= 1e-4 * want.abs().max(1.0), "{want} {got}");
    }
}
