//! What `tests/gpu.sh` leaves, on recorded reports: one collection, and the comparison of two.

#[allow(dead_code, reason = "this test skips in one way only")]
#[path = "support/available.rs"]
mod available;

use std::fs;
use std::path::Path;
use std::process::Command;

/// A report as `engine bench --json` prints it; `profiled` adds the kernels of its last case.
fn report(times: [f64; 2], profiled: Option<[f64; 2]>) -> String {
    let profile = profiled.map_or(String::new(), |[matmul, norm]| {
        format!(
            r#", "profile": {{"launches": 2, "seconds": 0, "steps": [], "kernels": [
                {{"kernel": "matmul_sm90", "launches": 1, "seconds": {matmul}}},
                {{"kernel": "group_norm", "launches": 1, "seconds": {norm}}}]}}"#
        )
    });
    let [linear, decoder] = times;
    format!(
        r#"{{"engine": "0.1.0", "device": "cuda:0 (H200, sm_90) in f16", "dtype": "f16", "cases": [
            {{"name": "linear/one", "median_s": {linear}, "flops": 1}},
            {{"name": "decoder/karlo", "median_s": {decoder}, "flops": 1{profile}}}]}}"#
    )
}

#[test]
fn two_collections_are_set_side_by_side_with_ratios_and_the_kernels_that_changed() {
    let python = Command::new("python3").arg("--version").output().map_err(|e| format!("python3: {e}"));
    if available::available("python3", python).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/gpu_report.py");
    let run = |arguments: &[&str]| {
        let output = Command::new("python3").arg(&script).args(arguments).current_dir(dir.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    for (name, report) in [
        ("old.json", report([2e-6, 6e-3], Some([5e-3, 1e-3]))),
        // What was timed and what was profiled are two runs.
        ("timed.json", report([1e-6, 3e-3], None)),
        ("profiled.json", report([1e-6, 3e-3], Some([2e-3, 1.01e-3]))),
        ("other.json", r#"{"device": "cpu"}"#.to_owned()),
    ] {
        fs::write(dir.path().join(name), report).unwrap();
    }
    assert!(run(&["collect", "before", "old.json"]).0);
    assert!(run(&["collect", "now", "profiled.json", "timed.json"]).0);
    let (done, table, error) = run(&["compare", "before", "now"]);
    assert!(done, "{error}");
    for line in [
        "| linear/one | 2.0 us | 1.0 us | 2.00 |",
        "| decoder/karlo | 6000.0 us | 3000.0 us | 2.00 |",
        "| decoder/karlo: matmul_sm90 | 5000.0 us | 2000.0 us | 3000.0 us |",
    ] {
        assert!(table.lines().any(|found| found == line), "{line} is not in\n{table}");
    }
    assert!(!table.contains("group_norm"), "it changed by one hundredth:\n{table}");
    for (arguments, part) in [
        (&["collect", "x", "other.json"][..], "other.json: not what engine bench --json prints"),
        (&["collect", "x", "none.json"], "none.json"),
        (&["compare", "before"], "compare OLD.json NEW.json"),
    ] {
        let (done, _, error) = run(arguments);
        assert!(!done && error.contains(part) && !error.contains("Traceback"), "{error}");
    }
    assert!(!dir.path().join("x").exists());
}
