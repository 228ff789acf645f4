//! Each network by itself against the original: given the inputs that diffusers' networks received, it answers what
//! they answered. Errors of one step cannot hide in those of the steps before it.
#![cfg(feature = "tokenizer")]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use support::golden::{MODEL, Recording, channels_last};
use unclip::backend::cpu::Cpu;
use unclip::backend::{Backend, Executable};
use unclip::cases::Tensors;
use unclip::diffusion::sampler::time_features;
use unclip::model::{Sizes, decoder, image_encoder, text_encoder, unet};
use unclip::ops::{Noise, Prediction, SamplerStep, Variance};
use unclip::pipeline::{Pipeline, Request, Shapes, Task};
use unclip::plan::{Graph, Plan, TensorData, ValueId, WeightSource};
use unclip::weights::config::{self, Configured};
use unclip::weights::{Checkpoint, Component, LoadOptions};
use unclip::{Dtype, Result, StoredDtype};

/// Pictures in the recording.
const PICTURES: usize = 2;
/// Largest error of an element relative to the tensor's root mean square.
const TOLERANCE: f64 = 1e-4;

/// A stage of the tiny checkpoint as the recorded run had it, all its inputs zero.
fn compile(stage: &str) -> Box<dyn Executable> {
    let open = || Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(open(), Box::new(Cpu::new(2).unwrap())).unwrap();
    let component = open().component(stage).unwrap();
    let route = pipeline.route(&Request::of(Task::Prompts(vec!["".into(); PICTURES]))).unwrap();
    let (stage, shapes) = route.into_iter().find(|(of, _)| of.name() == stage).unwrap();
    Cpu::new(2).unwrap().prepare(pipeline.plan(stage, &shapes).unwrap(), &component).unwrap()
}

fn write(executable: &mut dyn Executable, input: &str, recorded: (Vec<usize>, Vec<f32>)) {
    executable.write(input, &channels_last(&recorded.0, &recorded.1)).unwrap();
}

#[track_caller]
fn assert_close(got: &[f32], recorded: (Vec<usize>, Vec<f32>), name: &str) {
    let want = channels_last(&recorded.0, &recorded.1);
    assert_eq!(got.len(), want.len(), "{name}");
    let rms = (want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let errors = got.iter().zip(&want).map(|(g, w)| f64::from(g - w).abs() / rms);
    let worst = errors.fold(0.0, |worst, e| if e.is_nan() || e > worst { e } else { worst });
    println!("{name}: {worst:.2e}");
    assert!(worst <= TOLERANCE, "{name}: off by {worst:.2e} of the tensor's size");
}

/// Runs the recorded steps of a sampling loop with the original's own pictures as inputs.
fn check_steps(stage: &str, loop_name: &str, steps: Range<usize>, features: (usize, bool, f32), channels: usize) {
    let recording = Recording::read();
    let mut executable = compile(stage);
    match stage {
        "prior" => {
            write(&mut *executable, "text_embeds", recording.get("prior/text_embeds"));
            write(&mut *executable, "hidden", recording.get("prior/text_hidden_states"));
            executable.write("mask", &recording.mask("prior/text_mask")).unwrap();
        }
        "decoder" => {
            write(&mut *executable, "context", recording.get("text_proj/encoder_hidden_states"));
            write(&mut *executable, "added", recording.get("text_proj/additive_time_embeds"));
            executable.write("mask", &recording.mask("decoder/attention_mask")).unwrap();
        }
        _ => write(&mut *executable, "small", recording.get("decoder/step_24/latents")),
    }
    let timesteps = recording.ids(&format!("{loop_name}/timesteps"));
    // The plan's tables have room for more steps than were recorded.
    let room = executable.plan().shape(executable.plan().input("time").unwrap())[0];
    let (width, flip, shift) = features;
    let mut time = time_features(&timesteps[steps.clone()], width, flip, shift);
    time.resize(room * width, 0.0);
    executable.write("time", &time).unwrap();
    executable.run_once().unwrap();
    let mut compared = 0;
    for step in steps.clone() {
        let name = format!("{loop_name}/step_{step:02}/model_input");
        if recording.tensors().tensor(&name).is_err() {
            continue; // only some steps were recorded
        }
        let (shape, input) = recording.get(&name);
        let input = channels_last(&shape, &input);
        // Of a doubled batch one half, of noisy and enlarged picture the noisy one.
        let pixels = input.chunks_exact(*shape.get(1).unwrap());
        let x_t: Vec<f32> = pixels.flat_map(|pixel| &pixel[..channels]).copied().collect();
        let length = executable.plan().input("x_t").map(|id| executable.plan().shape(id).iter().product()).unwrap();
        executable.write("x_t", &x_t[..length]).unwrap();
        executable.run_step((step - steps.start) as u32).unwrap();
        let name = format!("{loop_name}/step_{step:02}/model_output");
        assert_close(&executable.read("model_output").unwrap(), recording.get(&name), &name);
        compared += 1;
    }
    assert!(compared > 0, "no step of {loop_name} is in the recording");
}

#[test]
fn the_text_encoder_answers_as_the_original() {
    let recording = Recording::read();
    // Two prompts and the empty one: the plan's three texts.
    let mut executable = compile("text_encoder");
    assert_eq!(executable.plan().values[executable.plan().input("ids").unwrap().0].dtype, Dtype::U32);
    let mut ids = recording.ids("text/input_ids");
    let length = ids.len() / PICTURES;
    ids.extend(&recording.ids("uncond/input_ids")[..length]);
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let config = checkpoint.config::<unclip::model::text_encoder::Config>("text_encoder/config.json").unwrap();
    let pooled: Vec<u32> = ids.chunks_exact(length).map(|ids| config.pooled_position(ids)).collect();
    executable.write_u32("ids", &ids).unwrap();
    executable.write_u32("pooled", &pooled).unwrap();
    executable.run_once().unwrap();
    for (output, name) in [("text_embeds", "text_embeds"), ("hidden", "last_hidden_state")] {
        let (shape, mut want) = recording.get(&format!("text/{name}"));
        let (_, uncond) = recording.get(&format!("uncond/{name}"));
        want.extend(&uncond[..uncond.len() / PICTURES]);
        assert_close(&executable.read(output).unwrap(), (shape, want), name);
    }
}

/// The same numbers under other names.
struct Renamed {
    component: Component,
    names: BTreeMap<String, String>,
}

impl Renamed {
    fn new(component: Component, rename: impl Fn(&str) -> String) -> Renamed {
        let names = component.tensors().map(|(name, _)| (rename(name), name.to_owned())).collect();
        Renamed { component, names }
    }
}

impl WeightSource for Renamed {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.component.find(self.names.get(tensor)?)
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        self.component.load(&self.names[tensor])
    }

    fn path(&self, tensor: &str) -> &Path {
        WeightSource::path(&self.component, tensor)
    }
}

/// That a plan over the renamed tensors of a component takes the same ones in the same places.
#[track_caller]
fn assert_same_tensors(
    component: &str,
    plan: impl Fn(&dyn WeightSource) -> Result<Plan>,
    rename: impl Fn(&str) -> String,
) {
    let open = || Checkpoint::open(MODEL, LoadOptions::default()).unwrap().component(component).unwrap();
    let renamed = Renamed::new(open(), rename);
    let (want, got) = (plan(&open()).unwrap(), plan(&renamed).unwrap());
    let wanted: Vec<(&str, ValueId)> = want.weights().collect();
    let found: Vec<(&str, ValueId)> = got.weights().map(|(name, id)| (renamed.names[name].as_str(), id)).collect();
    assert_eq!(found, wanted);
    assert!(wanted.len() > 10);
    Cpu::new(1).unwrap().prepare(got, &renamed).unwrap();
}

/// transformers 5.23 loads all of these with the same result.
#[test]
fn towers_are_found_without_their_prefix_and_with_it_twice() {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let text = checkpoint.config::<text_encoder::Config>("text_encoder/config.json").unwrap();
    let vision = checkpoint.config::<image_encoder::Config>("image_encoder/config.json").unwrap();
    for (component, prefix) in [("text_encoder", "text_model."), ("image_encoder", "vision_model.")] {
        let plan = |source: &dyn WeightSource| match component {
            "text_encoder" => text_encoder::plan(&text, source, 1, true),
            _ => image_encoder::plan(&vision, source, 1),
        };
        let twice = prefix.repeat(2);
        assert_same_tensors(component, plan, |name| name.replacen(prefix, "", 1));
        assert_same_tensors(component, plan, |name| name.replacen(prefix, &twice, 1));
        // The projection's name may have it, too.
        assert_same_tensors(component, plan, |name| format!("{prefix}{name}"));
    }
}

#[test]
fn attention_is_found_under_the_names_of_old_files() {
    const NAMES: [[&str; 2]; 4] =
        [["to_q.", "query."], ["to_k.", "key."], ["to_v.", "value."], ["to_out.0.", "proj_attn."]];
    let pipeline =
        Pipeline::open(Checkpoint::open(MODEL, LoadOptions::default()).unwrap(), Box::new(Cpu::new(1).unwrap()))
            .unwrap();
    let config = pipeline.checkpoint().config::<unet::Config>("decoder/config.json").unwrap();
    let rule = SamplerStep {
        guided: false,
        variance: Variance::LearnedRange,
        prediction: Prediction::Epsilon,
        clip: Some(1.0),
        noise: Noise::Given,
    };
    let sizes = Sizes { pictures: 1, steps: 1, rule: rule.into() };
    let plan = |source: &dyn WeightSource| decoder::plan(&config, source, &sizes, 81);
    let old = |name: &str| NAMES.iter().fold(name.to_owned(), |name, [new, old]| name.replace(new, old));
    assert_same_tensors("decoder", plan, old);
}

/// diffusers reads the heads of the way up from the front of the list, which only unequal entries show.
#[test]
fn lists_of_one_entry_for_each_level_mean_what_they_mean_to_the_original() {
    let recording = Recording::configurations();
    let config: Configured<unet::Config> =
        config::read(Path::new("config.json"), &recording.text("unet/config")).unwrap();
    assert_eq!((config.warnings().len(), config.sample_size, config.cross_attention_dim), (0, Some(4), Some(6)));
    let mut weights = Tensors::default();
    for (name, _) in recording.tensors().tensors() {
        if let Some(tensor) = name.strip_prefix("unet/weights/") {
            let (shape, values) = recording.get(&name);
            weights.insert(tensor, &shape, values, Dtype::F32);
        }
    }
    let graph = Graph::new("unet", &weights);
    let conditions = unet::Conditions {
        time: graph.input("time", &[1, config.time_features()]),
        step: Some(graph.step_number()),
        added: Some(graph.input("added", &[2, config.time_embedding()])),
        context: Some((graph.input("context", &[2, 5, 6]), Some(graph.input("mask", &[2, 5])))),
    };
    let sample = graph.input("sample", &[2, 4, 4, 3]);
    graph.output("output", unet::forward(&graph.weights(), &config, sample, &conditions));
    let mut executable = Cpu::new(2).unwrap().prepare(graph.finish().unwrap(), &weights).unwrap();
    for name in ["sample", "context", "mask", "added"] {
        write(&mut *executable, name, recording.get(&format!("unet/{name}")));
    }
    let timestep = recording.get("unet/timestep").1[0] as u32;
    executable.write("time", &time_features(&[timestep], config.time_features(), true, 0.0)).unwrap();
    executable.run_once().unwrap();
    executable.run_step(0).unwrap();
    assert_close(&executable.read("output").unwrap(), recording.get("unet/output"), "output");
}

#[test]
fn the_image_encoder_answers_as_the_original() {
    let recording = Recording::variation();
    let open = || Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(open(), Box::new(Cpu::new(2).unwrap())).unwrap();
    let component = open().component("image_encoder").unwrap();
    // Of several pictures each by itself.
    let stage = pipeline.stage("image_encoder").unwrap();
    let plan = pipeline.plan(stage, &Shapes::batch(2, false)).unwrap();
    let mut executable = Cpu::new(2).unwrap().prepare(plan, &component).unwrap();
    let (shape, pixels) = recording.get("image_encoder/pixel_values");
    let pixels = channels_last(&shape, &pixels);
    executable.write("pixel_values", &[vec![0.0; pixels.len()], pixels].concat()).unwrap();
    executable.run_once().unwrap();
    let (shape, want) = recording.get("image_encoder/image_embeds");
    let got = executable.read("image_embeds").unwrap();
    assert_close(&got[want.len()..], (shape, want), "image_embeds");
    assert!(pipeline.unused_tensors(stage).unwrap().is_empty());
}

#[test]
fn the_text_projection_answers_as_the_original() {
    let recording = Recording::read();
    let mut executable = compile("text_proj");
    // Recorded after the learned vector of the unconditional half had been put before them, or not.
    let (shape, images) = recording.get("image_embeds");
    let images = images[images.len() - PICTURES * shape[1]..].to_vec();
    executable.write("image_embeds", &images).unwrap();
    write(&mut *executable, "text_embeds", recording.get("prior/text_embeds"));
    write(&mut *executable, "hidden", recording.get("prior/text_hidden_states"));
    executable.run_once().unwrap();
    for (output, name) in [("context", "encoder_hidden_states"), ("added", "additive_time_embeds")] {
        assert_close(&executable.read(output).unwrap(), recording.get(&format!("text_proj/{name}")), name);
    }
}

#[test]
fn the_prior_answers_as_the_original() {
    check_steps("prior", "prior", 0..25, (48, true, 0.0), 16);
}

#[test]
fn the_decoder_answers_as_the_original() {
    check_steps("decoder", "decoder", 0..25, (8, true, 0.0), 3);
}

#[test]
fn the_first_super_resolution_answers_as_the_original() {
    check_steps("super_res_first", "super_res", 0..6, (4, true, 0.0), 3);
}

#[test]
fn the_last_super_resolution_answers_as_the_original() {
    check_steps("super_res_last", "super_res", 6..7, (4, true, 0.0), 3);
}
