//! Traffic, memory and errors of the WGSL back end.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::adapters;
use support::available::{available, whether};
use support::golden::MODEL;
use support::{Random, Tensors, cases, inputs};
use unclip::Dtype;
use unclip::Error;
use unclip::backend::cpu::Cpu;
use unclip::backend::wgpu::{Choice, Options, Wgpu, adapters};
use unclip::backend::{Backend, Executable};
use unclip::cases::models::{Drawn, ModelCase, Network, Size};
use unclip::model::{Sizes, decoder};
use unclip::ops::{Noise, Prediction, SamplerStep, Tiles, Variance};
use unclip::plan::{Graph, Plan, assign, narrow};
use unclip::weights::{Checkpoint, Component, LoadOptions};

/// The tiny decoder for one picture with guidance, four steps.
fn tiny_decoder(noise: Noise) -> (Plan, Component) {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let config = checkpoint.config::<unclip::model::unet::Config>("decoder/config.json").unwrap();
    let component = checkpoint.component("decoder").unwrap();
    let rule = SamplerStep {
        prediction: Prediction::Epsilon,
        variance: Variance::LearnedRange,
        clip: Some(1.0),
        guided: true,
        noise,
    };
    let plan = decoder::plan(&config, &component, &Sizes { pictures: 1, steps: 4, rule: rule.into() }, 9).unwrap();
    (plan, component)
}

fn write_inputs(executable: &mut dyn Executable) {
    for (name, data) in inputs(&executable.plan().clone(), 1) {
        let data: Vec<f32> = if name == "mask" { vec![1.0; data.len()] } else { data };
        executable.write(&name, &data).unwrap();
    }
    if executable.plan().input("seeds").is_some() {
        executable.write_u32("seeds", &[1, 2, 3, 0]).unwrap();
    }
}

#[test]
fn a_step_is_one_submission_and_the_four_bytes_of_its_number() {
    for (storage, noise) in [(Dtype::F32, Noise::Given), (Dtype::F32, Noise::Philox), (Dtype::F16, Noise::Given)] {
        let Some(backend) = adapters::storing(storage) else { return };
        let (plan, weights) = tiny_decoder(noise);
        let mut executable = backend.prepare(plan, &weights).unwrap();
        write_inputs(executable.as_mut());
        executable.run_once().unwrap();
        let before = backend.traffic();
        for step in 0..4 {
            executable.run_step(step).unwrap();
        }
        let after = backend.traffic();
        assert_eq!(after.submits - before.submits, 4);
        assert_eq!(after.bytes_written - before.bytes_written, 16);
        assert_eq!(after.bytes_read, before.bytes_read);
    }
}

#[test]
fn slots_take_the_memory_that_the_plan_states_and_half_precision_nearly_halves_it() {
    let mut bytes = Vec::new();
    for storage in [Dtype::F32, Dtype::F16] {
        let Some(backend) = adapters::storing(storage) else { return };
        let (plan, weights) = tiny_decoder(Noise::Given);
        let stated = narrow(plan.clone(), storage);
        backend.prepare(plan, &weights).unwrap();
        assert_eq!(backend.traffic().slot_bytes, assign(&stated).bytes());
        bytes.push((backend.traffic().slot_bytes, backend.traffic().weight_bytes));
    }
    println!("slots and weights in f32 and f16: {bytes:?}");
    assert!(bytes[1].1 < bytes[0].1 * 6 / 10, "{bytes:?}");
    assert!(bytes[1].0 < bytes[0].0 * 3 / 4, "{bytes:?}");
}

/// Karlo's size with random weights.
#[test]
fn karlos_decoder_for_two_pictures_takes_the_memory_that_its_plan_states() {
    let Some(backend) = adapters::storing(Dtype::F16) else { return };
    let case = ModelCase { network: Network::Decoder, size: Size::Karlo };
    let weights = Drawn::new(Dtype::F16);
    let plan = case.plan(2, &weights).unwrap();
    let stated = assign(&narrow(plan.clone(), Dtype::F16)).bytes();
    let executable = backend.prepare(plan, &weights).unwrap();
    let traffic = backend.traffic();
    println!("slots {} bytes, weights {} bytes", traffic.slot_bytes, traffic.weight_bytes);
    assert_eq!(traffic.slot_bytes, stated);
    assert!((50 << 20..200 << 20).contains(&stated), "{stated}");
    drop(executable);
}

#[test]
fn replaying_a_loop_gives_what_the_cpu_gives_and_the_same_bits_again() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let run = |backend: &dyn Backend, noise: Noise| {
        let (plan, weights) = tiny_decoder(noise);
        let mut executable = backend.prepare(plan, &weights).unwrap();
        let once = |executable: &mut dyn Executable| {
            write_inputs(executable);
            executable.run_once().unwrap();
            (0..4).for_each(|step| executable.run_step(step).unwrap());
            executable.read("x").unwrap()
        };
        let first = once(executable.as_mut());
        assert_eq!(first, once(executable.as_mut()), "{}", backend.name());
        first
    };
    for noise in [Noise::Given, Noise::Philox] {
        let (got, want) = (run(&backend, noise), run(&Cpu::new(2).unwrap(), noise));
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("largest difference after four steps, noise {noise:?}: {worst:e}");
        assert!(worst < 2e-3, "{worst}");
    }
}

/// An adapter limited to bindings of one MiB.
fn open_small() -> Option<Wgpu> {
    adapters::open(Options { largest_tensor: Some(1 << 20), ..Options::default() })
}

/// Checks that the plan is refused with an error that names the adapter, the tensor and the limit.
fn assert_too_large(backend: &Wgpu, graph: Graph<'_>, weights: &Tensors, tensor: &str) {
    let error = backend.prepare(graph.finish().unwrap(), weights).err().unwrap();
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    let text = error.to_string();
    let parts = [&backend.adapter().name, tensor, "max_storage_buffer_binding_size is 1048576"];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn an_input_too_large_for_the_adapter_is_refused_with_its_name_and_the_limit() {
    let Some(backend) = open_small() else { return };
    assert_eq!(backend.adapter().largest_tensor, 1 << 20);
    let weights = Tensors::default();
    let graph = Graph::new("large", &weights);
    graph.output("y", graph.input("picture", &[1, (1 << 18) + 1]).slice(1, 0, 1));
    assert_too_large(&backend, graph, &weights, "input picture [1, 262145]");
}

#[test]
fn a_weight_too_large_for_the_adapter_that_cannot_be_divided_is_refused_with_its_name_and_the_limit() {
    let Some(backend) = open_small() else { return };
    let mut weights = Tensors::default();
    // 64 columns of this many rows are more than a MiB.
    let depth = (1 << 12) + 1;
    weights.insert("deep.weight", &[96, depth], vec![0.0; 96 * depth], Dtype::F32);
    let graph = Graph::new("large", &weights);
    graph.output("y", graph.input("x", &[1, depth]).project(graph.weights().at("deep"), 96));
    assert_too_large(&backend, graph, &weights, "a part of 64 rows of tensor deep.weight [96, 4097]");
    // A matmul can read its weight in parts, an output cannot.
    let graph = Graph::new("output", &weights);
    graph.output("w", graph.weights().tensor("deep.weight", &[96, depth]));
    assert_too_large(&backend, graph, &weights, "tensor deep.weight [96, 4097]");
}

#[test]
fn an_adapter_that_is_not_there_is_refused_with_the_number_of_those_that_are() {
    if adapters::adapter().is_none() {
        return;
    }
    let error = Wgpu::new(Options { adapter: Choice::Number(99), ..Options::default() }).err().unwrap();
    assert!(matches!(error, Error::Device { .. }) && error.to_string().contains("99"), "{error}");
    let count = adapters().len();
    assert!(error.to_string().contains(&count.to_string()), "{error}");
}

#[test]
fn cooperative_matrices_are_refused_without_the_feature_or_without_halves() {
    let Some(any) = adapters::storing(Dtype::F32) else { return };
    let matrices = |storage| Wgpu::new(Options { storage, tiles: Some(Tiles::Matrices), ..Options::default() });
    let error = matrices(Dtype::F32).err().unwrap();
    assert!(matches!(error, Error::Device { .. }) && error.to_string().contains(&any.adapter().name), "{error}");
    assert!(error.to_string().contains("cooperative matrices"), "{error}");
    match any.adapter().matrices {
        Some(_) => assert!(error.to_string().contains("multiply f16") && matrices(Dtype::F16).is_ok()),
        None => assert!(error.to_string().contains("lacks") && matrices(Dtype::F16).is_err()),
    }
}

#[test]
fn adapters_are_listed_in_one_line_each() {
    for (i, adapter) in adapters().iter().enumerate() {
        println!("{adapter}");
        assert_eq!(adapter.number, i);
        let line = adapter.to_string();
        assert!(line.starts_with(&format!("wgpu:{i}  ")) && line.contains(&adapter.name) && !line.contains('\n'));
    }
}

#[test]
fn automatic_choice_never_takes_a_software_adapter() {
    let gpus = adapters().iter().filter(|a| a.kind != unclip::backend::wgpu::Kind::Software).count();
    let chosen = Wgpu::new(Options { adapter: Choice::Gpu, ..Options::default() });
    assert_eq!(chosen.is_ok(), gpus > 0);
    if let Err(error) = chosen {
        assert!(matches!(error, Error::Device { .. }), "{error:?}");
    }
}

/// Runs itself in a process of its own, in which no driver can be found.
#[test]
fn without_a_driver_there_is_an_error_and_no_panic() {
    const ALONE: &str = "UNCLIP_TEST_WITHOUT_DRIVER";
    if std::env::var_os(ALONE).is_some() {
        assert!(adapters().is_empty());
        let error = Wgpu::new(Options::default()).err().unwrap();
        assert!(matches!(error, Error::Device { .. }) && error.to_string().contains("no adapter"), "{error}");
        return;
    }
    let loader = whether(cfg!(target_os = "linux"), "only Vulkan's loader can be told to find no driver");
    if available("wgpu-without-driver", loader).is_none() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_driver_there_is_an_error_and_no_panic", "--nocapture"])
        .env(ALONE, "1")
        .env("VK_DRIVER_FILES", "/nowhere/driver.json")
        .env("VK_ICD_FILENAMES", "/nowhere/driver.json")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn unknown_names_wrong_lengths_and_wrong_types_are_errors() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let mut executable = cases::named("pointwise/clamp").problem().prepare(&backend).expect("the case compiles");
    assert!(executable.write("no such input", &[0.0]).is_err());
    assert!(executable.write("in0", &[0.0]).is_err());
    assert!(executable.write_u32("in0", &[0; 210]).is_err());
    assert!(executable.read("no such output").is_err());
}

#[test]
fn a_nan_in_the_model_output_reaches_the_sample() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let mut problem = cases::named("sampler_step/eps-learned-guided-clipped").problem();
    problem.tensors[0].floats_mut()[0] = f32::NAN;
    let got = problem.run(&backend).expect("the device works");
    assert!(got[0].is_nan() && got.iter().filter(|v| v.is_nan()).count() == 1);
}

#[test]
fn weights_of_a_random_plan_can_be_outputs_as_they_are_stored() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let mut weights = Tensors::default();
    weights.insert_random("w", &[3, 5], &mut Random(1));
    let graph = Graph::new("weight", &weights);
    graph.output("w", graph.weights().tensor("w", &[3, 5]));
    let plan = graph.finish().unwrap();
    let read = |backend: &dyn Backend| {
        let mut executable = backend.prepare(plan.clone(), &weights).unwrap();
        executable.run_once().unwrap();
        executable.read("w").unwrap()
    };
    assert_eq!(read(&backend), read(&Cpu::new(1).unwrap()));
}

/// Why the tests of a cache are left out.
const KEPT_NOTHING: &str = "the adapter's driver does not tell what it has compiled";

#[test]
fn kernels_are_kept_on_disk_and_a_damaged_file_is_replaced() {
    if adapters::adapter().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    let run = || {
        let backend = Wgpu::new(Options::default()).unwrap().cache_kernels(&cache);
        cases::named("linear/rows-7").problem().run(&backend).expect("the device works")
    };
    let first = run();
    let file = std::fs::read_dir(&cache).ok().and_then(|mut files| files.next());
    let Some(file) = available("wgpu-kernel-cache", file.ok_or(KEPT_NOTHING)) else { return };
    let file = file.unwrap().path();
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(run(), first);
    let mut one_byte = kept.clone();
    one_byte[kept.len() / 2] ^= 1;
    for damaged in [one_byte, kept[..kept.len() / 2].to_vec(), vec![7; 100], Vec::new()] {
        std::fs::write(&file, &damaged).unwrap();
        assert_eq!(run(), first);
        assert_ne!(std::fs::read(&file).unwrap(), damaged, "the damaged file is replaced");
    }
    assert!(std::fs::read_dir(&cache).unwrap().all(|f| f.unwrap().path() == file), "something was left behind");
}

/// The name of a cache's file keeps the drivers of an adapter apart.
#[cfg(feature = "cli")]
#[test]
fn the_command_keeps_kernels_in_the_users_cache_and_does_without_where_it_cannot() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let folder = tempfile::tempdir().unwrap();
    let picture = |cache: &std::path::Path| {
        let (file, steps) = (folder.path().join("out.png"), ["--prior-steps", "--decoder-steps", "--super-res-steps"]);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_engine"))
            .args(["run", "-m", MODEL, "-p", "a", "--device", "wgpu", "-o"])
            .arg(&file)
            .args(steps.iter().flat_map(|flag| [flag, "2"]))
            .env("XDG_CACHE_HOME", cache)
            .env("HOME", cache)
            .env("LOCALAPPDATA", cache)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let picture = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        picture
    };
    let no_folder = folder.path().join("no folder");
    std::fs::write(&no_folder, "").unwrap();
    let first = picture(&no_folder);
    let cache = folder.path().join("cache");
    assert_eq!(picture(&cache), first);
    let kernels = if cfg!(target_os = "macos") { "Library/Caches/unclip/kernels" } else { "unclip/kernels" };
    let kept = std::fs::read_dir(cache.join(kernels));
    let Some(mut kept) = available("wgpu-kernel-cache", kept.map_err(|_| KEPT_NOTHING)) else { return };
    let name = kept.next().unwrap().unwrap().file_name().into_string().unwrap();
    let release = backend.adapter().driver.split_whitespace().last().unwrap_or_default();
    assert!(kept.next().is_none() && name.ends_with(&release.replace(['(', ')'], "_")), "{name}, {release}");
    assert_eq!(picture(&cache), first);
}
