//! `engine serve` over plain HTTP: what clients of OpenAI's images API find, and what happens when they ask for something else.
//! `tests/serve/openai_client.py` does the same with the `openai` package, by hand.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "serve/client.rs"]
mod client;
#[path = "serve/operations.rs"]
mod operations;
#[path = "serve/refusals.rs"]
mod refusals;
#[path = "serve/streams.rs"]
mod streams;
mod support;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::{Part, Server};
use serde_json::{Value, json};
use std::time::Duration;
use support::golden::MODEL;
use unclip::backend::cpu::Cpu;
use unclip::image::{Format, Image, ReadOptions, Texts};
use unclip::pipeline::{Classify, Pipeline, Request};
use unclip::weights::{Checkpoint, LoadOptions};

/// Few steps: what is tested here does not depend on the picture.
fn short(mut fields: Value) -> Value {
    let all = fields.as_object_mut().unwrap();
    for (name, value) in [("prior_steps", 2), ("steps", 2), ("super_res_steps", 2)] {
        all.entry(name).or_insert(value.into());
    }
    fields
}

fn library() -> Pipeline {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap()
}

fn decoded(base64: &Value) -> Image {
    let bytes = BASE64_STANDARD.decode(base64.as_str().unwrap()).unwrap();
    Image::decode(&bytes, &ReadOptions::default()).unwrap()
}

/// A picture with a clear square in its middle, as a PNG with alpha; and the same without.
fn pictures(side: usize) -> (Vec<u8>, Vec<u8>) {
    let mut clear = Vec::new();
    let mut encoder = png::Encoder::new(&mut clear, side as u32, side as u32);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    let middle = side / 4..3 * side / 4;
    let positions = || (0..side).flat_map(|y| (0..side).map(move |x| (x, y)));
    let colour = |(x, y): (usize, usize)| [(x * 7) as u8, (y * 5) as u8, 90];
    let alpha = |(x, y): (usize, usize)| if middle.contains(&x) && middle.contains(&y) { 0 } else { 255 };
    let pixels: Vec<u8> = positions().flat_map(|at| [&colour(at)[..], &[alpha(at)]].concat()).collect();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    let plain = Image { width: side, height: side, pixels: positions().flat_map(colour).collect() };
    let mut bytes = Vec::new();
    plain.encode(&mut bytes, Format::Png, &Texts::default()).unwrap();
    (clear, bytes)
}

#[test]
fn pictures_that_wait_together_are_made_together_and_are_those_of_the_library_alone() {
    let server = Server::start(&["-m", MODEL]);
    // Something to wait for.
    let busy = server.begin("/v1/images/generations", &short(json!({ "prompt": "a", "steps": 300 })));
    server.wait_until(|metrics| metrics.contains("engine_batch_pictures_count 1"));
    let asked: Vec<Value> = (0..5)
        .map(|k| {
            let n = 1 + k % 2;
            short(json!({
                "prompt": format!("a {k}"), "seed": 10 * k, "n": n, "guidance": 1.5 + k as f64,
                "response_format": "b64_json",
            }))
        })
        .collect();
    let all: Vec<_> = asked.iter().map(|fields| server.begin("/v1/images/generations", fields)).collect();
    assert_eq!(busy.finish().status, 200);
    let library = library();
    for (fields, answer) in asked.iter().zip(all) {
        let answer = answer.finish();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let request = Request {
            seed: fields["seed"].as_u64().unwrap(),
            pictures_per_prompt: fields["n"].as_u64().unwrap() as usize,
            prior_steps: Some(2),
            decoder_steps: Some(2),
            super_res_steps: Some(2),
            decoder_guidance: Some(fields["guidance"].as_f64().unwrap() as f32),
            ..Request::new(fields["prompt"].as_str().unwrap())
        };
        let data = answer["data"].as_array().unwrap();
        let wanted = library.pictures(&request).unwrap();
        assert_eq!(data.len(), wanted.len());
        for (k, (got, want)) in data.iter().zip(&wanted).enumerate() {
            assert!(decoded(&got["b64_json"]) == *want, "{fields}");
            assert_eq!(got["seed"], request.seed + k as u64);
        }
    }
    let metrics = server.metrics();
    assert!(metrics.contains("engine_batch_pictures_count 2\n"), "one batch for five requests: {metrics}");
    assert!(metrics.contains("engine_images_total 8\n"), "{metrics}");
}

#[test]
fn urls_are_the_default_and_hold_the_picture_with_its_settings() {
    let server = Server::start(&["-m", MODEL]);
    let fields = short(json!({ "prompt": "a red apple", "model": "dall-e-2", "size": "256x256", "seed": 7 }));
    let answer = server.post("/v1/images/generations", &fields).json();
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let url = answer["data"][0]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&format!("http://{}", server.address)).expect("a URL of this server");
    let file = server.get(path);
    assert_eq!((file.status, file.header("content-type")), (200, Some("image/png")));
    let image = Image::decode(&file.body, &ReadOptions::default()).unwrap();
    assert_eq!((image.width, image.height), (256, 256));
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("a.png");
    std::fs::write(&saved, &file.body).unwrap();
    let recipe = unclip::pipeline::Recipe::read(&saved).unwrap().remove(0);
    assert_eq!((recipe.subject.text(), recipe.seed, recipe.decoder_steps), ("a red apple", 7, 2));
    for path in ["/files/", "/files/..%2F..%2Fetc%2Fpasswd", "/files/../Cargo.toml", "/files/%00.png"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let jpeg = short(json!({ "prompt": "a", "output_format": "jpeg", "response_format": "b64_json" }));
    let answer = server.post("/v1/images/generations", &jpeg).json();
    let bytes = BASE64_STANDARD.decode(answer["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    assert!(bytes.starts_with(&[0xff, 0xd8]) && answer["output_format"] == "jpeg");
}

#[test]
fn variations_are_those_of_the_library_and_edits_leave_what_is_not_clear_alone() {
    let server = Server::start(&["-m", MODEL]);
    let (clear, plain) = pictures(96);
    let form = |image: &[u8], more: &[(&str, &str)]| {
        let mut parts = vec![Part::file("image", "../a.png", image)];
        for (name, value) in [("steps", "2"), ("super_res_steps", "2"), ("seed", "3"), ("response_format", "b64_json")]
        {
            parts.push(Part::text(name, value));
        }
        parts.extend(more.iter().map(|(name, value)| Part::text(name, value)));
        parts
    };
    let varied = server.form("/v1/images/variations", &form(&plain, &[("n", "2")])).json();
    let image = Image::decode(&plain, &ReadOptions::default()).unwrap();
    let steps = Some(2);
    let request = Request {
        seed: 3,
        pictures_per_prompt: 2,
        decoder_steps: steps,
        super_res_steps: steps,
        ..Request::variation(image.clone())
    };
    for (got, want) in varied["data"].as_array().unwrap().iter().zip(library().pictures(&request).unwrap()) {
        assert!(decoded(&got["b64_json"]) == want);
    }

    // By the picture's own alpha, and by a mask.
    let prompt = [("prompt", "a frog"), ("prior_steps", "2")];
    let by_alpha = server.form("/v1/images/edits", &form(&clear, &prompt));
    assert_eq!(by_alpha.status, 200, "{}", by_alpha.text());
    let mut parts = form(&plain, &prompt);
    parts.push(Part::file("mask", "mask.png", &clear));
    let by_mask = server.form("/v1/images/edits", &parts).json();
    let edited = decoded(&by_mask["data"][0]["b64_json"]);
    assert_eq!([edited.width, edited.height], [96, 96]);
    let at = |image: &Image, x: usize, y: usize| image.pixels[(y * 96 + x) * 3..][..3].to_vec();
    // The seam is a 32nd of the window's width.
    let outside = (0..96).flat_map(|y| (0..96).map(move |x| (x, y))).filter(|(x, y)| *x.min(y) < 20 || *x.max(y) > 75);
    assert!(outside.clone().count() > 5000 && outside.clone().all(|(x, y)| at(&edited, x, y) == at(&image, x, y)));
    assert!(at(&edited, 48, 48) != at(&image, 48, 48));
    // Without a mask all of it is redrawn, in the checkpoint's size.
    let redrawn = server.form("/v1/images/edits", &form(&plain, &prompt)).json();
    assert!(decoded(&redrawn["data"][0]["b64_json"]) != edited);
}

#[test]
fn blends_enlargements_labels_and_embeddings_are_those_of_the_library() {
    let server = Server::start(&["-m", MODEL]);
    let (_, plain) = pictures(32);
    let image = Image::decode(&plain, &ReadOptions::default()).unwrap();
    let library = library();

    let labels = ["a cat", "a dog", "a red car"];
    let parts = [Part::file("image", "a.png", &plain), Part::text("labels", "a cat, a dog, a red car")];
    let got = server.form("/v1/engine/classify", &parts).json();
    let quiet = &mut |_: unclip::pipeline::Event<'_>| std::ops::ControlFlow::Continue(());
    let classifier = library.classifier(&Classify::new(labels), quiet).unwrap();
    let want = library.classify(&classifier, std::slice::from_ref(&image), quiet).unwrap();
    for (got, want) in got["data"][0]["scores"].as_array().unwrap().iter().zip(&want[0]) {
        assert_eq!(got["label"], labels[want.label]);
        assert_eq!(got["probability"].as_f64().unwrap() as f32, want.probability);
    }

    let want = library.embed_texts(&["a cat".into(), "a dog".into()], quiet).unwrap();
    let asked = json!({ "input": ["a cat", "a dog"], "encoding_format": "base64" });
    let got = server.post("/v1/engine/embeddings", &asked).json();
    for (got, want) in got["data"].as_array().unwrap().iter().zip(&want) {
        let bytes = BASE64_STANDARD.decode(got["embedding"].as_str().unwrap()).unwrap();
        let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(&floats, want);
    }
    let got = server.form("/v1/engine/embeddings", &[Part::file("image", "a.png", &plain)]).json();
    let want = library.embed_pictures(std::slice::from_ref(&image), quiet).unwrap();
    assert_eq!(got["data"][0]["embedding"].as_array().unwrap().len(), want[0].len());

    let parts =
        [Part::file("image", "a.png", &plain), Part::text("steps", "2"), Part::text("response_format", "b64_json")];
    let got = server.form("/v1/engine/enlarge", &parts);
    assert_eq!(got.status, 200, "{}", got.text());
    let enlarged = decoded(&got.json()["data"][0]["b64_json"]);
    let want = library.enlarge_alone(&unclip::pipeline::Enlarge::new(image).steps(2), quiet).unwrap();
    assert!(enlarged == want && enlarged.width > 32);

    let asked = short(json!({ "prompt": ["a cat", "a dog"], "frames": 3, "response_format": "b64_json" }));
    let got = server.post("/v1/engine/blends", &asked);
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.json()["data"].as_array().unwrap().len(), 3);
}

#[test]
fn requests_name_models_and_the_least_recently_used_ones_are_loaded_again() {
    let server = Server::start(&["-m", MODEL, "-m", &format!("other={MODEL}")]);
    let models = server.get("/v1/models").json();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((models["object"].as_str(), names), (Some("list"), vec!["tiny", "other"]));
    assert_eq!(server.get("/v1/models/other").json()["object"], "model");
    assert_eq!(server.get("/v1/models/none").status, 404);
    let of = |model: &str| {
        let asked = short(json!({ "prompt": "a", "seed": 1, "model": model, "response_format": "b64_json" }));
        server.post("/v1/images/generations", &asked).json()["data"][0]["b64_json"].clone()
    };
    assert_eq!(decoded(&of("other")), decoded(&of("tiny")));
    assert!(server.wait(Duration::ZERO).is_none());
}
