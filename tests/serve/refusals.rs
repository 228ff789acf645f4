//! Bad input: OpenAI's error object with all four keys, the right status, and a server that goes on.

use crate::client::{Answer, Part, Server, form};
use crate::support::golden::MODEL;
use crate::{pictures, short};
use serde_json::{Value, json};
use std::io::{Read, Write};
use unclip::image::{Format, Image, Texts};

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, param: Option<&str>, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let error = &answer.json()["error"];
    let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert_eq!(error["param"].as_str(), param, "{error}");
    assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    assert!(answer.header("x-request-id").is_some());
}

/// A PNG that says it is this large, and has next to no pixels.
fn bomb(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn fields_that_are_wrong_are_named_with_what_was_expected() {
    let server = Server::start(&["-m", MODEL]);
    let refused = |fields: Value, status, param: &str, words: &str| {
        assert_refused(&server.post("/v1/images/generations", &fields), status, Some(param), words);
    };
    refused(json!({}), 400, "prompt", "missing");
    refused(json!({ "prompt": "  " }), 400, "prompt", "missing");
    refused(json!({ "prompt": 3 }), 400, "prompt", "expected a text, found a number");
    refused(json!({ "prompt": "a".repeat(32_001) }), 400, "prompt", "more than 32000 characters");
    refused(json!({ "prompt": "a", "model": "dall-e-9" }), 404, "model", "\"dall-e-9\"; this server has tiny");
    for n in [json!(0), json!(11), json!("2"), json!(1.5), json!([1])] {
        refused(json!({ "prompt": "a", "n": n }), 400, "n", "an integer from 1 to 10");
    }
    for size in ["256", "0x0", "9999x9999", "256x-1", "large"] {
        refused(json!({ "prompt": "a", "size": size }), 400, "size", "such as 512x512");
    }
    refused(json!({ "prompt": "a", "size": "512x256" }), 400, "size", "the picture's own shape");
    refused(json!({ "prompt": "a", "response_format": "file" }), 400, "response_format", "url, b64_json");
    refused(json!({ "prompt": "a", "output_format": "gif" }), 400, "output_format", "png, jpeg, webp");
    refused(json!({ "prompt": "a", "partial_images": 4, "stream": true }), 400, "partial_images", "from 0 to 3");
    refused(json!({ "prompt": "a", "partial_images": 2 }), 400, "partial_images", "stream");
    refused(json!({ "prompt": "a", "steps": 1 }), 400, "steps", "must be 2 to");
    refused(json!({ "prompt": "a", "guidance": "much" }), 400, "guidance", "expected a number");
    refused(json!({ "prompt": "a", "noise": "white" }), 400, "noise", "torch");
    refused(json!({ "prompt": "a", "promt": "b" }), 400, "promt", "no such field");
    refused(json!({ "prompt": "a", "noise_level": 3 }), 422, "noise_level", "no noise is added");
    let none =
        server.post("/v1/images/generations", &json!({ "prompt": "a", "seed": null, "steps": 2, "prior_steps": 2 }));
    assert_eq!(none.status, 200);
}

#[test]
fn bodies_that_are_broken_too_large_or_of_another_type_are_refused() {
    let server = Server::start(&["-m", MODEL, "--max-body", "1"]);
    let path = "/v1/images/generations";
    let json = [("Content-Type", "application/json")];
    for body in [&b"{"[..], b"", b"[]", b"nonsense", b"{\"prompt\": \"\xff\"}", "[".repeat(50_000).as_bytes()] {
        assert_refused(&server.send("POST", path, &json, body).finish(), 400, None, "JSON");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let answer = server.send("POST", path, &[("Content-Type", kind)], b"{}").finish();
        assert_refused(&answer, 415, None, "expected application/json");
    }
    let large = vec![b' '; (1 << 20) + 1];
    assert_refused(&server.send("POST", path, &json, &large).finish(), 413, None, "more than 1048576 bytes");
    let (kind, body) = form(&[Part::text("prompt", "a")]);
    let kind = [("Content-Type", kind.as_str())];
    for cut in [0, 10, body.len() / 2, body.len() - 10] {
        assert_refused(&server.send("POST", path, &kind, &body[..cut]).finish(), 400, None, "form is broken");
    }
    let answer = server.send("POST", path, &[("Content-Type", "multipart/form-data")], &body).finish();
    assert_refused(&answer, 400, None, "form is broken");
    let many: Vec<Part> = (0..65).map(|k| Part::text(&format!("a{k}"), "b")).collect();
    assert_refused(&server.form(path, &many), 400, None, "more than 64 parts");
    assert_refused(&server.form(path, &[Part::text("n", "1"), Part::text("n", "2")]), 400, Some("n"), "given twice");

    // A body whose length nobody said.
    let mut stream = server.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..20 {
        stream.write_all(format!("{:x}\r\n{}\r\n", 100_000, " ".repeat(100_000)).as_bytes()).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_refused(&crate::client::Pending(stream).finish(), 413, None, "more than 1048576 bytes");

    for (method, path, status) in
        [("GET", path, 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/none", 404), ("POST", "/", 405)]
    {
        assert_refused(&server.send(method, path, &[], b"").finish(), status, None, "address");
    }
    // Too many headers: the connection's own answer.
    let flood: Vec<(String, String)> = (0..200).map(|k| (format!("x-{k}"), "a".repeat(100))).collect();
    let flood: Vec<(&str, &str)> = flood.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(server.send("GET", "/healthz", &flood, b"").finish().status, 431);
    assert_eq!(server.post(path, &short(json!({ "prompt": "still here" }))).status, 200);
}

#[test]
fn given_pictures_that_cannot_be_used_are_refused_before_they_are_decoded() {
    let server = Server::start(&["-m", MODEL, "--max-megapixels", "1"]);
    let (clear, plain) = pictures(96);
    let variation = |bytes: &[u8]| server.form("/v1/images/variations", &[Part::file("image", "a.png", bytes)]);
    assert_refused(&server.form("/v1/images/variations", &[]), 400, Some("image"), "missing");
    assert_refused(&variation(b""), 400, Some("image"), "expected a picture");
    assert_refused(&variation(b"no picture at all"), 400, Some("image"), "expected a picture");
    assert_refused(&variation(&plain[..plain.len() / 2]), 400, Some("image"), "");
    assert_refused(
        &variation(&bomb(60_000)),
        400,
        Some("image"),
        "60000x60000 is too large: 3600 megapixels, at most 1",
    );
    let two = [Part::file("image[]", "a.png", &plain), Part::file("image[]", "b.png", &plain)];
    assert_refused(&server.form("/v1/images/variations", &two), 400, Some("image"), "2 pictures; expected one");
    let json = server.post("/v1/images/variations", &json!({ "image": "a.png" }));
    assert_refused(&json, 400, Some("image"), "missing");

    let edit = |mask: &[u8]| {
        let parts =
            [Part::file("image", "a.png", &plain), Part::file("mask", "m.png", mask), Part::text("prompt", "a")];
        server.form("/v1/images/edits", &parts)
    };
    let (small, _) = pictures(48);
    assert_refused(&edit(&small), 400, Some("mask"), "48x48 pixels; expected the picture's 96x96");
    assert_refused(&edit(&plain), 400, Some("mask"), "nothing of it is transparent");
    assert_refused(&edit(b"x"), 400, Some("mask"), "expected a picture");
    assert_refused(&edit(&bomb(60_000)), 400, Some("mask"), "too large");
    let strength = [Part::file("image", "a.png", &plain), Part::text("prompt", "a"), Part::text("strength", "2")];
    assert_refused(&server.form("/v1/images/edits", &strength), 400, Some("strength"), "at most 1");
    drop(clear);

    let labels = [Part::file("image", "a.png", &plain), Part::text("labels", "cat")];
    assert_refused(&server.form("/v1/engine/classify", &labels), 422, Some("labels"), "at least two");
    assert_refused(&server.post("/v1/engine/embeddings", &json!({})), 400, Some("input"), "expected 1 to 256");
    assert_refused(
        &server.post("/v1/engine/blends", &json!({ "prompt": ["a"] })),
        400,
        Some("image"),
        "expected 2 to 10",
    );
    let times = [Part::file("image", "a.png", &plain), Part::text("times", "3")];
    assert_refused(&server.form("/v1/engine/enlarge", &times), 400, Some("times"), "this checkpoint enlarges");
}

#[test]
fn hundreds_of_damaged_forms_leave_the_server_as_it_was() {
    let server = Server::start(&["-m", MODEL]);
    let mut small = Vec::new();
    let image = Image { width: 8, height: 8, pixels: vec![9; 192] };
    image.encode(&mut small, Format::Png, &Texts::default()).unwrap();
    let (kind, body) = form(&[Part::file("image", "a.png", &small), Part::text("n", "1")]);
    let mut state: u32 = 1;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    // One connection for many: what is tested is what is done with a body.
    let mut stream = server.connect();
    for _ in 0..300 {
        let mut broken = body.clone();
        for _ in 0..1 + random(8) {
            let at = random(broken.len());
            broken[at] = random(256) as u8;
        }
        broken.truncate(broken.len() - random(40));
        let head = format!(
            "POST /v1/images/variations HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            server.address,
            broken.len()
        );
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&broken)).is_err() {
            stream = server.connect();
            continue;
        }
        let mut some = [0; 4096];
        let got = stream.read(&mut some).unwrap_or(0);
        let line = String::from_utf8_lossy(&some[..got]).lines().next().unwrap_or_default().to_owned();
        assert!(!line.starts_with("HTTP/1.1 5"), "{line}\n{}", server.log());
        stream = server.connect();
    }
    assert_eq!(server.post("/v1/images/generations", &short(json!({ "prompt": "a" }))).status, 200);
}
