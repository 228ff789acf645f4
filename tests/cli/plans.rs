//! `engine plan`: what a stage computes, and with which kernels.

use super::{MODEL, engine, text};
use serde_json::Value;
use std::path::Path;

/// The listing of the tiny checkpoint's decoder.
fn plan(arguments: &[&str]) -> String {
    let output = engine(Path::new("."), &[&["plan", "-m", MODEL, "--stage", "decoder"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A listing without the lines of source files, which move with every edit.
fn without_lines(listing: &str) -> String {
    let word = |word: &str| word.split_once(".rs:").map_or(word.to_owned(), |(file, _)| format!("{file}.rs"));
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    listing.lines().map(|l| line(l) + "\n").collect()
}

/// What a fusion, a shape or the planner of memory changes shows in this file's difference.
#[test]
fn the_plan_of_the_tiny_decoder_is_the_stored_one() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plans/decoder.txt");
    let found = without_lines(&plan(&[]));
    if std::env::var_os("RENEW_PLANS").is_some() {
        std::fs::create_dir_all(stored.parent().unwrap()).unwrap();
        std::fs::write(&stored, &found).unwrap();
    }
    let wanted = std::fs::read_to_string(&stored).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    let renew = "if the new plan is meant: RENEW_PLANS=1 cargo test --all-features --test cli stored_one";
    assert!(differs.is_none(), "{differs:?}; {renew}");
    assert_eq!(found.lines().count(), wanted.lines().count(), "{renew}");
}

#[test]
fn a_plan_as_json_gives_every_step_its_values_slots_and_cost() {
    let plan: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    let values = plan["values"].as_array().unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let slots = plan["slot_bytes"].as_array().unwrap();
    assert!(steps.len() > 20 && plan["outputs"][0]["value"].is_u64(), "{plan}");
    for step in steps {
        let ids = [&step["inputs"], &step["outputs"]].map(|ids| ids.as_array().unwrap());
        assert!(ids.into_iter().flatten().all(|id| (id.as_u64().unwrap() as usize) < values.len()), "{step}");
        let written = &values[step["outputs"][0].as_u64().unwrap() as usize];
        let slot = written["slot"].as_u64().unwrap() as usize;
        assert!(slots[slot].as_u64() >= written["bytes"].as_u64(), "{step} writes {written}");
        assert!(step["bytes"].as_u64().unwrap() > 0 && step.get("kernels").is_none(), "{step}");
    }
    let sum: u64 = steps.iter().map(|step| step["flops"].as_u64().unwrap()).sum();
    let parts = ["cost_once", "cost_every_step"].map(|part| plan[part]["flops"].as_u64().unwrap());
    assert_eq!(parts.iter().sum::<u64>(), sum);
}

#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
#[test]
fn a_plan_for_cuda_needs_no_card_and_says_why_each_kernel_was_chosen() {
    let kernels = |arch: &str| -> Vec<Value> {
        let json = plan(&["--json", "--device", "cuda", "--dtype", "f16", "--arch", arch]);
        let plan: Value = serde_json::from_str(&json).unwrap();
        let steps = plan["steps"].as_array().unwrap().clone();
        assert!(steps.iter().all(|step| step["kernels"][0]["entry"].is_string()), "a step without a kernel");
        steps.iter().flat_map(|step| step["kernels"].as_array().unwrap().clone()).collect()
    };
    let count = |kernels: &[Value], stem: &str| {
        kernels.iter().filter(|kernel| kernel["entry"].as_str().unwrap().starts_with(stem)).count()
    };
    let [ampere, hopper] = ["sm_80", "sm_90"].map(kernels);
    assert!(count(&ampere, "conv2d_mma_") > 0 && count(&ampere, "matmul_sm90") == 0, "{ampere:?}");
    assert!(count(&hopper, "matmul_sm90") > 0, "{hopper:?}");
    for kernel in ampere.iter().chain(&hopper) {
        assert!(!kernel["reason"].as_str().unwrap().is_empty(), "{kernel}");
        assert!(kernel["grid"].as_array().unwrap().iter().all(|n| n.as_u64().unwrap() > 0), "{kernel}");
    }
    let listing = plan(&["--device", "cuda", "--dtype", "f16", "--arch", "sm_80"]);
    assert!(listing.contains(" tile 64x80, grid ") && listing.contains("multiprocessors"), "{listing}");
    assert!(listing.contains("legend:"), "{listing}");
}

#[test]
fn an_architecture_without_cuda_and_a_device_without_a_name_are_refused() {
    for (arguments, parts) in [
        (&["--arch", "sm_90"][..], ["--arch", "cuda"]),
        (&["--device", "auto"], ["--device", "expected cpu"]),
        (&["--device", "cuda", "--arch", "sm_75"], ["--arch", "sm_80"]),
    ] {
        let output = engine(Path::new("."), &[&["plan", "-m", MODEL, "--stage", "decoder"], arguments].concat());
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(2) && parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn plan_prints_both_parts_and_the_totals() {
    let dir = tempfile::tempdir().unwrap();
    let output = engine(dir.path(), &["plan", "-m", MODEL, "--stage", "decoder"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listing = text(&output.stdout);
    for part in ["193,454 parameters", "once per picture:", "every step:", "sampler_step", "memory "] {
        assert!(listing.contains(part), "{part} is not in\n{listing}");
    }
    let summary = engine(dir.path(), &["plan", "-m", MODEL, "--stage", "decoder", "--summary"]);
    let summary = text(&summary.stdout);
    assert!(summary.lines().count() == 3 && listing.ends_with(&summary), "{summary}");
}

#[test]
fn plan_in_half_precision_needs_half_the_weights_and_names_the_type() {
    let dir = tempfile::tempdir().unwrap();
    // The totals end with "weights SIZE MiB as TYPE".
    let weights = |dtype: &str| -> (f64, String) {
        let arguments = ["plan", "-m", MODEL, "--stage", "decoder", "--summary", "--dtype", dtype];
        let text = text(&engine(dir.path(), &arguments).stdout);
        let words: Vec<&str> = text.split("weights ").nth(1).unwrap().split_whitespace().collect();
        (words[0].parse().unwrap(), words[3].to_owned())
    };
    let (single, named) = weights("f32");
    assert_eq!(named, "f32");
    for dtype in ["f16", "bf16"] {
        let (half, named) = weights(dtype);
        assert_eq!(named, dtype);
        assert!(half < 0.6 * single, "{half} of {single} MiB");
    }
}
