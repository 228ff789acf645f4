//! A tiny Kandinsky 2.1 against diffusers: tokens, each network and each step on what the original was given, and pictures,
//! as `tests/golden/make_kandinsky_21.py` recorded them.

use super::kandinsky_pictures::{Opened, assembled, assert_recorded, prompts, refused};
use crate::support::golden::{Recording, channels_last};
use crate::{assert_close, on_every_backend, write};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::diffusion::sampler::time_features;
use unclip::diffusion::{Run, SchedulerConfig};
use unclip::image::Mask;
use unclip::model::kandinsky::{self, Beside};
use unclip::model::multilingual;
use unclip::model::text_encoder::Tokens;
use unclip::model::{Sizes, unet};
use unclip::ops::{HISTORY, Noise};
use unclip::pipeline::{Edit, Pipeline, Prompt, Request, Task, with_prior};
use unclip::tokenizer::Tokenizer;
use unclip::weights::config::Configured;
use unclip::weights::{Checkpoint, LoadOptions};

const FOLDER: &str = "tests/golden/kandinsky-2-1";
const GUIDANCE: f32 = 4.0;

fn open(part: &str) -> Checkpoint {
    Checkpoint::open(format!("{FOLDER}/{part}"), LoadOptions::default()).unwrap()
}

fn pipeline(decoder: &str, backend: impl Backend + 'static) -> Opened {
    let part = |of: &str, part: &str| format!("{FOLDER}/{of}/{part}");
    let own = ["unet", "scheduler"].map(|name| part(decoder, name));
    let shared = ["text_encoder", "tokenizer"].map(|name| part("decoder", name));
    let movq = "tests/golden/kandinsky-2-2/decoder/movq".to_owned();
    let parts: Vec<String> = own.into_iter().chain(shared).chain([movq]).collect();
    let folder = assembled(&part(decoder, "model_index.json"), &parts);
    let checkpoint = Checkpoint::open(folder.path(), LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(with_prior(checkpoint, open("prior")).unwrap(), Box::new(backend)).unwrap();
    Opened { pipeline, folder }
}

#[test]
fn tokens_are_those_of_the_original() {
    let recording = Recording::kandinsky_21();
    let tokenizer = Tokenizer::multilingual(&open("decoder"), "tokenizer", multilingual::TOKENS).unwrap();
    let texts: Vec<String> = serde_json::from_slice(&recording.text("tokens/texts")).unwrap();
    let (ids, mask) = (recording.ids("tokens/ids"), recording.mask("tokens/mask"));
    for (i, text) in texts.iter().enumerate() {
        let row = i * multilingual::TOKENS..(i + 1) * multilingual::TOKENS;
        let found = tokenizer.encode(text).unwrap();
        assert_eq!(found.ids, ids[row.clone()], "{text:?}");
        let seen: Vec<f32> = found.mask.iter().map(|&seen| f32::from(u8::from(seen))).collect();
        assert_eq!(seen, mask[row], "{text:?}");
        assert_eq!(found.cut.is_some(), i + 1 == texts.len(), "{text:?}: {:?}", found.cut);
    }
}

fn texts_are_encoded_as_in_the_original(backend: &dyn Backend) {
    let recording = Recording::kandinsky_21();
    let checkpoint = open("decoder");
    let config: Configured<multilingual::Config> = checkpoint.config("text_encoder/config.json").unwrap();
    assert_eq!(config.warnings(), [""; 0]);
    let weights = checkpoint.component("text_encoder").unwrap();
    let plan = multilingual::plan(&config, &weights, 2).unwrap();
    let mut executable = backend.prepare(plan, &weights).unwrap();
    let ids = recording.ids("words/ids");
    let positions: Vec<u32> = ids.chunks_exact(multilingual::TOKENS).flat_map(|ids| config.positions(ids)).collect();
    executable.write_u32("ids", &ids).unwrap();
    executable.write_u32("positions", &positions).unwrap();
    executable.write("mask", &recording.mask("words/mask")).unwrap();
    executable.run_once().unwrap();
    for (output, name) in [("text_embeds", "words/embeds"), ("hidden", "words/hidden")] {
        let got = executable.read(output).unwrap();
        assert_close(&got, &recording.get(name).1, &format!("{}: {name}", backend.name()));
    }
}

/// The network and DDIM's step behind it, from the latents that the original had before each step.
fn steps_are_those_of_the_original(backend: &dyn Backend) {
    let recording = Recording::kandinsky_21();
    for (name, decoder, steps, taken) in
        [("prompt", "decoder", 3, 3), ("redraw", "decoder", 4, 2), ("inpaint", "inpaint", 3, 3)]
    {
        let checkpoint = open(decoder);
        let config: Configured<unet::Config> = checkpoint.config("unet/config.json").unwrap();
        let scheduler: Configured<SchedulerConfig> = checkpoint.config("scheduler/scheduler_config.json").unwrap();
        let beside = Beside::of(&config).unwrap();
        assert_eq!(beside == Beside::Known, decoder == "inpaint");
        let run = Run::new(&scheduler, ("steps", steps), GUIDANCE).unwrap();
        let first = steps - taken;
        assert_eq!(run.timesteps[first..], recording.get(&format!("{name}/timesteps")).1);

        let (shape, _) = recording.get(&format!("{name}/step_0/x_t"));
        let sizes = Sizes { pictures: 1, steps: taken, rule: scheduler.rule(true, Noise::Given) };
        let weights = checkpoint.component("unet").unwrap();
        let text = Some(multilingual::TOKENS);
        let plan = kandinsky::plan(&config, &weights, &sizes, text, [shape[2], shape[3]]).unwrap();
        let mut executable = backend.prepare(plan, &weights).unwrap();
        for input in ["image_embeds", "text_embeds", "hidden"] {
            write(&mut *executable, input, &recording, &format!("{name}/{input}"));
        }
        if beside == Beside::Known {
            write(&mut *executable, "known", &recording, &format!("{name}/known"));
        }
        executable.write("time", &time_features(&run.timesteps[first..], config.time_features(), true, 0.0)).unwrap();
        executable.write("coefficients", run.coefficients[first..].as_flattened()).unwrap();
        executable.write("history", &vec![0.0; HISTORY * shape.iter().product::<usize>()]).unwrap();
        executable.run_once().unwrap();
        for step in 0..taken {
            write(&mut *executable, "x_t", &recording, &format!("{name}/step_{step}/x_t"));
            executable.run_step(step as u32).unwrap();
            for (output, recorded) in [("model_output", "output"), ("x", "x")] {
                let recorded = format!("{name}/step_{step}/{recorded}");
                let (shape, want) = recording.get(&recorded);
                let got = executable.read(output).unwrap();
                assert_close(&got, &channels_last(&shape, &want), &format!("{}: {recorded}", backend.name()));
            }
        }
    }
}

mod texts {
    use super::*;
    on_every_backend!(texts_are_encoded_as_in_the_original);
}

mod steps {
    use super::*;
    on_every_backend!(steps_are_those_of_the_original);
}

fn request(text: &str, seed: u64, size: [usize; 2]) -> Request {
    Request { decoder_steps: Some(3), ..prompts(&[text], seed, size) }
}

fn said(recording: &Recording) -> Request {
    let task = Task::Variations(vec![recording.image("given/photo")]);
    let (text, negative) = (Some("two hats".into()), Some("a dog".into()));
    Request { task, text, negative, prior_steps: None, ..request("", 8, [64; 2]) }
}

fn inpaint(recording: &Recording) -> Request {
    let edit = Some(Edit::inpaint(recording.image("given/wide"), recording.mask_image("given/mask")));
    Request { edit, ..request("a hat", 6, [128, 64]) }
}

#[test]
fn pictures_are_those_of_the_original() {
    let recording = Recording::kandinsky_21();
    let cpu = || Cpu::new(2).unwrap();
    let plain = pipeline("decoder", cpu());
    assert_recorded(&plain, &request("a red fox", 3, [128, 64]), &recording, "prompt");
    let negative = Some("blurry".into());
    assert_recorded(&plain, &Request { negative, ..request("a red fox", 4, [64; 2]) }, &recording, "negative");
    let varied = Request { text: None, negative: None, seed: 7, ..said(&recording) };
    assert_recorded(&plain, &varied, &recording, "variation");
    assert_recorded(&plain, &said(&recording), &recording, "said");
    // Beside a schedule of its own for the start: seven tenths of four steps are two.
    let edit = Some(Edit::redraw(recording.image("given/photo"), Some(0.7)));
    let redraw = Request { edit, decoder_steps: Some(4), ..request("a dog", 5, [64; 2]) };
    assert_recorded(&plain, &redraw, &recording, "redraw");
    assert_recorded(&pipeline("inpaint", cpu()), &inpaint(&recording), &recording, "inpaint");
}

#[cfg(feature = "wgpu")]
#[test]
fn pictures_on_wgpu_are_those_of_the_original() {
    if let Some(adapter) = crate::support::adapters::storing(unclip::Dtype::F32) {
        let recording = Recording::kandinsky_21();
        assert_recorded(&pipeline("inpaint", adapter), &inpaint(&recording), &recording, "inpaint");
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn pictures_on_the_emulator_are_those_of_the_original() {
    let recording = Recording::kandinsky_21();
    let pipeline = pipeline("decoder", unclip::backend::cuda::Cuda::emulator());
    assert_recorded(&pipeline, &said(&recording), &recording, "said");
}

/// A decoder that does not see what stays keeps it all the same.
#[test]
fn any_decoder_keeps_what_a_mask_leaves_alone() {
    let recording = Recording::kandinsky_21();
    let pipeline = pipeline("decoder", Cpu::new(2).unwrap());
    let image = recording.image("given/photo");
    let mask = Mask::from_fn(image.width, image.height, |x, _| x >= 60);
    let made = |seed| {
        let edit = Some(Edit::inpaint(image.clone(), mask.clone()));
        let mut trace = unclip::pipeline::Trace::on();
        let observer = &mut |_: unclip::pipeline::Event<'_>| std::ops::ControlFlow::Continue(());
        pipeline.run_traced(&Request { edit, ..request("a hat", seed, [64; 2]) }, observer, &mut trace).unwrap();
        trace.get("decoder/latents").unwrap().1
    };
    let (first, second) = (made(1), made(2));
    let differ = |side| (0..256).filter(|at| (at % 8 < 4) == side && first[*at] != second[*at]).count();
    assert_eq!((differ(true), differ(false) > 60), (0, true));
}

#[test]
fn what_does_not_fit_is_refused_before_any_work() {
    let recording = Recording::kandinsky_21();
    let cpu = || Box::new(Cpu::new(1).unwrap());
    let plain = pipeline("decoder", Cpu::new(1).unwrap());
    let tokens = Tokens { ids: vec![0; 77], mask: vec![true; 77], cut: None };
    let strength = Request { prior_strength: Some(0.3), ..said(&recording) };
    for (request, reason) in [
        (
            Request::new(Prompt::Tokens(tokens)),
            "prompt: token ids are given; this checkpoint reads each prompt with two",
        ),
        (strength, "prior strength: the prior of this checkpoint does not see pictures"),
        (Request { prior_steps: Some(9), ..said(&recording) }, "prior steps: the prior of this checkpoint does not"),
        (Request { decoder_steps: Some(1000), ..request("a", 0, [64; 2]) }, "decoder steps 1000: must be 1 to 999"),
    ] {
        let message = refused(plain.route(&request));
        assert!(message.contains(reason), "{message}: {reason}");
    }
    // The other family's prior, by the class and, in one folder, by what the configurations say.
    let later =
        |part: &str| Checkpoint::open(format!("tests/golden/kandinsky-2-2/{part}"), LoadOptions::default()).unwrap();
    let error = refused(with_prior(open("decoder"), later("prior")));
    assert!(
        error.contains(r#"expected KandinskyPriorPipeline beside KandinskyPipeline, found "KandinskyV22Prior"#),
        "{error}"
    );
    let changed = |file: &str, from: &str, to: &str| {
        let opened = pipeline("decoder", Cpu::new(1).unwrap());
        let file = opened.folder.path().join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let checkpoint = Checkpoint::open(opened.folder.path(), LoadOptions::default()).unwrap();
        refused(Pipeline::open(with_prior(checkpoint, open("prior")).unwrap(), cpu()))
    };
    let unet = "unet/config.json";
    for (file, from, to, reason) in [
        (unet, r#""cross_attention_dim": 16"#, r#""cross_attention_dim": 24"#, "the prior's embedding_dim is 16"),
        (unet, r#""encoder_hid_dim": 20"#, r#""encoder_hid_dim": 24"#, "the text encoder's hidden_size is 20"),
        (unet, r#""text_image""#, r#""image""#, r#"addition_embed_type is "image"; Kandinsky 2.1's decoder has"#),
        (
            "text_encoder/config.json",
            r#""numDims": 16"#,
            r#""numDims": 24"#,
            "numDims is 24, but the prior's embedding",
        ),
        ("text_encoder/config.json", r#"Dimensions": 20"#, r#"Dimensions": 24"#, "but hidden_size is 20"),
        ("tokenizer/tokenizer.json", r#""type": "Unigram""#, r#""type": "BPE""#, r#"expected "Unigram""#),
        ("tokenizer/tokenizer.json", r#"charsmap": "A"#, r#"charsmap": "//"#, "precompiled_charsmap: expected base64"),
        ("tokenizer/tokenizer.json", "<pad>", "<pod>", "<pad> is not in the vocabulary"),
        ("model_index.json", r#"KandinskyPipeline"#, r#"KandinskyPriorPipeline"#, "this folder is Kandinsky's prior"),
    ] {
        let error = match file {
            "model_index.json" => refused(Pipeline::open(open("prior"), cpu())),
            _ => changed(file, from, to),
        };
        assert!(error.contains(reason), "{error}: {reason}");
    }
}
