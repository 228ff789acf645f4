//! Streams: OpenAI's events in their order, and what becomes of work whose client leaves.

use crate::client::Server;
use crate::support::golden::MODEL;
use crate::{decoded, library, short};
use serde_json::{Value, json};
use std::io::Read;
use std::time::{Duration, Instant};
use unclip::pipeline::Request;

/// Names and data of a stream's events.
fn events(text: &str) -> Vec<(Option<String>, String)> {
    let event = |part: &str| {
        let line = |name: &str| part.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some((line("event: "), line("data: ")?))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[test]
fn partial_pictures_come_before_the_finished_one_in_openais_form() {
    let server = Server::start(&["-m", MODEL]);
    let fields = short(json!({
        "prompt": "a fox", "seed": 4, "n": 2, "steps": 6, "stream": true, "partial_images": 2, "progress": true,
    }));
    let answer = server.post("/v1/images/generations", &fields);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
    let mut all = events(&answer.text());
    assert_eq!(all.pop(), Some((None, "[DONE]".to_owned())));
    let all: Vec<(String, Value)> =
        all.into_iter().map(|(name, data)| (name.unwrap(), serde_json::from_str(&data).unwrap())).collect();
    assert!(all.iter().all(|(name, event)| event["type"] == *name));
    let of = |kind: &str| all.iter().filter(|(name, _)| name == kind).map(|(_, event)| event).collect::<Vec<_>>();
    let (partial, completed) = (of("image_generation.partial_image"), of("image_generation.completed"));
    let numbers: Vec<(u64, u64)> = partial
        .iter()
        .map(|event| (event["partial_image_index"].as_u64().unwrap(), event["index"].as_u64().unwrap()))
        .collect();
    assert_eq!(numbers, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    let first_completed = all.iter().position(|(name, _)| name == "image_generation.completed").unwrap();
    let last_partial = all.iter().rposition(|(name, _)| name == "image_generation.partial_image").unwrap();
    assert!(last_partial < first_completed);
    for event in partial.iter().chain(&completed) {
        for key in ["b64_json", "created_at", "size", "quality", "background", "output_format"] {
            assert!(!event[key].is_null(), "{key} of {}", event["type"]);
        }
    }
    let request = Request {
        seed: 4,
        pictures_per_prompt: 2,
        prior_steps: Some(2),
        decoder_steps: Some(6),
        super_res_steps: Some(2),
        ..Request::new("a fox")
    };
    for (event, want) in completed.iter().zip(library().pictures(&request).unwrap()) {
        assert!(decoded(&event["b64_json"]) == want);
        assert_eq!(event["usage"]["input_tokens_details"]["image_tokens"], 0);
    }
    assert_eq!(completed.len(), 2);
    assert!(of("engine.progress").iter().any(|event| event["stage"] == "decoder" && event["steps"] == 6));
}

#[test]
fn a_client_that_leaves_ends_its_work_within_a_step() {
    let server = Server::start(&["-m", MODEL]);
    let long = |stream: bool| json!({ "prompt": "a", "steps": 1000, "prior_steps": 2, "super_res_steps": 2, "stream": stream });
    for stream in [false, true] {
        let taken =
            server.metrics().lines().find_map(|l| l.strip_prefix("engine_batch_pictures_count ")?.parse::<u64>().ok());
        let mut leaving = server.begin("/v1/images/generations", &long(stream)).0;
        let next = format!("engine_batch_pictures_count {}\n", taken.unwrap_or(0) + 1);
        server.wait_until(|metrics| metrics.contains(&next));
        if stream {
            let mut some = [0; 16];
            leaving.read_exact(&mut some).unwrap();
        }
        drop(leaving);
        // The device is free for the next one long before a thousand steps are over.
        let began = Instant::now();
        let answer = server.post("/v1/images/generations", &short(json!({ "prompt": "b" })));
        assert_eq!(answer.status, 200);
        let elapsed = began.elapsed();
        assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    }
    assert!(server.metrics().contains("engine_images_total 2\n"), "{}", server.metrics());
}

#[test]
fn a_client_that_leaves_the_queue_leaves_room_in_it() {
    let server = Server::start(&["-m", MODEL, "--queue", "1"]);
    let long = json!({ "prompt": "a", "steps": 1000, "prior_steps": 2, "super_res_steps": 2 });
    let running = server.begin("/v1/images/generations", &long);
    server.wait_until(|metrics| metrics.contains("engine_batch_pictures_count 1\n"));
    let waiting = server.begin("/v1/images/generations", &short(json!({ "prompt": "b" })));
    server.wait_until(|metrics| metrics.contains("engine_queue_depth 1\n"));
    let refused = server.post("/v1/images/generations", &short(json!({ "prompt": "c" })));
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds));
    let error = &refused.json()["error"];
    assert_eq!((error["type"].as_str(), error["param"].is_null()), (Some("rate_limit_error"), true));
    drop(waiting);
    server.wait_until(|metrics| metrics.contains("engine_queue_depth 0\n"));
    let waiting = server.begin("/v1/images/generations", &short(json!({ "prompt": "d" })));
    server.wait_until(|metrics| metrics.contains("engine_queue_depth 1\n"));
    drop(running);
    assert_eq!(waiting.finish().status, 200);
    assert!(server.metrics().contains("engine_rejected_total{reason=\"queue\"} 1\n"));
}
