//! What runs a server: keys, health, counts, its description, its page, its log, and its end.

use crate::client::Server;
use crate::short;
use crate::support::golden::MODEL;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const GENERATIONS: &str = "/v1/images/generations";

#[test]
fn without_one_of_the_keys_nothing_under_v1_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "sk-first\nsk-second\n").unwrap();
    let server = Server::start(&["-m", MODEL, "--api-key-file", keys.to_str().unwrap()]);
    let ask = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"").finish();
    for headers in [&[][..], &[("Authorization", "Bearer sk-third")]] {
        let refused = ask(headers);
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
        let error = &refused.json()["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
    }
    assert_eq!(ask(&[("Authorization", "Bearer sk-second")]).status, 200);
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
}

#[test]
fn pages_of_other_origins_are_not_answered() {
    let server = Server::start(&["-m", MODEL]);
    let from = |origin: &str| server.send("GET", "/v1/models", &[("Origin", origin)], b"").finish().status;
    assert_eq!(from(&format!("http://{}", server.address)), 200);
    assert_eq!((from("https://elsewhere.example"), from("null")), (403, 403));
}

#[test]
fn ids_of_requests_come_back_and_the_log_names_them_and_no_prompt() {
    for (flags, is_logged) in [(&["-m", MODEL][..], false), (&["-m", MODEL, "--log-prompts"], true)] {
        let server = Server::start(flags);
        let fields = short(json!({ "prompt": "a secret \n apple" })).to_string();
        let headers = [("Content-Type", "application/json"), ("X-Request-Id", "mine-1")];
        let answer = server.send("POST", GENERATIONS, &headers, fields.as_bytes()).finish();
        assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("mine-1")));
        let wrong = short(json!({ "prompt": "a", "model": "a secret model" }));
        assert_eq!(server.post(GENERATIONS, &wrong).status, 404);
        let own = server.send("GET", "/v1/models", &[("X-Request-Id", "a b")], b"").finish();
        assert!(own.header("x-request-id").unwrap().starts_with("req_"));
        let log = server.log_with("GET /v1/models 200");
        assert!(log.contains("request=mine-1 POST /v1/images/generations 200"), "{log}");
        assert_eq!(log.contains("secret"), is_logged, "{log}");
    }
}

#[test]
fn the_description_names_every_route_and_counts_are_those_of_what_was_asked() {
    let server = Server::start(&["-m", MODEL]);
    let described = server.get("/openapi.json").json();
    let paths: Vec<&String> = described["paths"].as_object().unwrap().keys().collect();
    let source = include_str!("../../src/serve/routes.rs");
    for path in &paths {
        let route = path.replace("/v1/models/{name}", "/v1/models/{*name}");
        assert!(source.contains(&format!("\"{route}\"")), "{path} is no route");
    }
    let routes = source.match_indices("\"/").map(|(at, _)| source[at + 1..].split('"').next().unwrap());
    for route in routes.filter(|route| *route != "/v1/") {
        let path = route.replace("{*name}", "{name}");
        assert!(paths.iter().any(|known| **known == path), "{route} is not described");
    }
    for reference in described.to_string().split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(described["components"]["schemas"].get(name).is_some(), "{name}");
    }

    let fields = short(json!({ "prompt": "a", "n": 2 }));
    assert_eq!(server.post(GENERATIONS, &fields).status, 200);
    assert_eq!(server.post(GENERATIONS, &json!({})).status, 400);
    let metrics = server.metrics();
    for line in [
        "engine_requests_total{route=\"/v1/images/generations\",status=\"200\"} 1\n",
        "engine_requests_total{route=\"/v1/images/generations\",status=\"400\"} 1\n",
        "engine_request_duration_seconds_count{route=\"/v1/images/generations\"} 2\n",
        "engine_images_total 2\n",
        "engine_queue_depth 0\n",
        "engine_queue_wait_seconds_count 1\n",
        "engine_stage_duration_seconds_count{stage=\"decoder\"} 1\n",
        "engine_build_info{version=\"",
        "kind=\"kept\"",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn the_page_is_one_small_file_that_asks_nobody_else() {
    let server = Server::start(&["-m", MODEL]);
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.body.len() < 60 << 10);
    assert!(page.header("content-security-policy").unwrap().contains("connect-src 'self'"));
    let text = page.text();
    for outside in ["http:", "https:", "//cdn", "@import", "src=\"", "url("] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert!(text.contains("<html lang=\"en\">") && text.contains("prefers-color-scheme: dark"));
    // Every field has a label.
    for id in text
        .match_indices("<input id=\"")
        .chain(text.match_indices("<select id=\""))
        .chain(text.match_indices("<textarea id=\""))
    {
        let rest = &text[id.0..];
        let (tag, name) = (rest.split('>').next().unwrap(), id.0 + id.1.len());
        let name = text[name..].split('"').next().unwrap();
        assert!(tag.contains("aria-label") || text.contains(&format!("for=\"{name}\"")), "{tag}");
    }
}

#[test]
fn sigterm_ends_the_server_after_what_it_accepted() {
    let server = Server::start(&["-m", MODEL]);
    let long = json!({ "prompt": "a", "steps": 200, "prior_steps": 2, "super_res_steps": 2 });
    let running = server.begin(GENERATIONS, &long);
    server.wait_until(|metrics| metrics.contains("engine_batch_pictures_count 1\n"));
    let waiting = server.begin(GENERATIONS, &short(json!({ "prompt": "b", "response_format": "b64_json" })));
    server.wait_until(|metrics| metrics.contains("engine_queue_depth 1\n"));
    server.signal("TERM");
    let refused = loop {
        // The signal takes a moment to arrive.
        let ready = server.get("/readyz");
        if ready.status != 200 {
            break server.post(GENERATIONS, &short(json!({ "prompt": "too late" })));
        }
    };
    assert_eq!(
        (refused.status, refused.header("retry-after"), refused.header("connection")),
        (503, Some("1"), Some("close"))
    );
    assert_eq!((running.finish().status, waiting.finish().status), (200, 200));
    assert_eq!(server.wait(Duration::from_secs(10)).and_then(|status| status.code()), Some(0), "{}", server.log());
    assert!(std::net::TcpStream::connect(&server.address).is_err());
}

#[test]
fn what_is_not_done_within_the_grace_is_given_up_and_answered() {
    let server = Server::start(&["-m", MODEL, "--grace", "0"]);
    let long = json!({ "prompt": "a", "steps": 1000, "prior_steps": 2, "super_res_steps": 2 });
    let running = server.begin(GENERATIONS, &long);
    server.wait_until(|metrics| metrics.contains("engine_batch_pictures_count 1\n"));
    server.signal("TERM");
    let answer = running.finish();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(server.wait(Duration::from_secs(5)).and_then(|status| status.code()), Some(0), "{}", server.log());
}

#[test]
fn a_model_that_does_not_open_ends_the_command_with_its_exit_code() {
    let engine = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_engine")).arg("serve").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = engine(&["-m", "no/such/folder", "--port", "0"]);
    assert!(code == Some(3) && text.contains("no/such/folder"), "{text}");
    let (code, text) = engine(&["-m", MODEL, "-m", MODEL, "--port", "0"]);
    assert!(code == Some(2) && text.contains("two models of one name"), "{text}");
    let (code, text) = engine(&["-m", MODEL, "--port", "0", "--api-key-file", "none.txt"]);
    assert!(code == Some(5) && text.contains("none.txt"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, text) = engine(&["-m", MODEL, "--port", &port]);
    assert!(code == Some(5) && text.contains("cannot listen at 127.0.0.1"), "{text}");
}

#[test]
fn it_lives_while_it_loads_and_says_that_it_is_not_ready() {
    let server = Server::start_loading(&["-m", MODEL]);
    assert_eq!(server.get("/healthz").status, 200);
    let early = server.get("/readyz");
    assert!(early.status == 200 || early.status == 503 && early.header("retry-after") == Some("1"));
    let answer: Value = early.json();
    assert!(answer["status"] == "ready" || answer["error"]["code"] == "unavailable");
}
