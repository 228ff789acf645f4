//! What holds of all PTX kernels: headers that say what the code says, launches that fit, and NVIDIA's assembler takes
//! them for every architecture without spilling.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cases;
use support::header::{Header, Parameter};
use unclip::backend::cuda::emulator::{Kernel, parse};
use unclip::backend::cuda::kernels::KERNELS;
use unclip::ops::{Launch, Operand, Operation, Scalar};

/// The back end's own kernel, which no operation lowers to.
const NO_OPERATION: &str = "advance";

fn headers() -> BTreeMap<&'static str, Header> {
    let header = |(stem, text): &(&'static str, &str)| {
        (*stem, Header::parse(stem, text).unwrap_or_else(|e| panic!("{stem}.ptx: {e}")))
    };
    KERNELS.iter().map(header).collect()
}

fn kernels(stem: &str, text: &str) -> Vec<Kernel> {
    parse(text).unwrap_or_else(|e| panic!("{stem}.ptx: {e}"))
}

/// Names and types of the parameters as the text declares them.
fn parameters(text: &str) -> Vec<Parameter> {
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix(".param ."));
    lines
        .map(|line| {
            let (kind, name) = line.trim_end_matches(',').split_once(' ').unwrap();
            Parameter::new(name, kind)
        })
        .collect()
}

#[test]
fn every_kernel_file_is_in_the_back_end_and_every_operation_has_one() {
    let stems = |folder: &str, ending: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let names = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        names.filter_map(|n| n.strip_suffix(ending).map(str::to_owned)).collect()
    };
    let files = stems("kernels", ".ptx");
    assert_eq!(files, KERNELS.iter().map(|(stem, _)| (*stem).to_owned()).collect());
    let mut operations = stems("src/ops", ".rs");
    operations.retain(|s| s != "mod" && s != "launch");
    operations.insert(NO_OPERATION.to_owned());
    assert_eq!(files, operations);
    for (stem, text) in KERNELS {
        assert!(text.lines().count() <= 600, "{stem}.ptx is too long");
    }
}

#[test]
fn headers_say_what_the_kernels_declare() {
    let headers = headers();
    for (stem, text) in KERNELS {
        let header = &headers[stem];
        let kernels = kernels(stem, text);
        let declared = parameters(text);
        let (tensors, scalars) = declared.split_at(header.tensors.len());
        assert!(tensors.iter().all(|p| p.kind == "u64"), "{stem}: {tensors:?}");
        let names = |of: &[Parameter]| of.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(tensors), names(&header.tensors), "{stem}");
        assert_eq!(scalars, header.scalars, "{stem}");
        assert_eq!(kernels.len(), header.launches.len(), "{stem}");
        for (kernel, launch) in kernels.iter().zip(&header.launches) {
            assert_eq!(kernel.name(), launch.entry);
            assert_eq!(kernel.threads(), launch.threads, "{stem}");
            assert_eq!(f64::from(kernel.shared_bytes()) / 1024.0, launch.shared_kib, "{stem}");
        }
    }
}

/// The launches of all cases, heavy ones included.
fn launches() -> Vec<(String, Launch)> {
    let mut all = Vec::new();
    for case in cases::all() {
        let shapes: Vec<&[usize]> = case.inputs.iter().map(|i| i.shape.as_slice()).collect();
        let output = case.op.shape(&shapes).unwrap();
        all.extend(case.op.ptx(&shapes, &output).into_iter().map(|l| (case.name.clone(), l)));
    }
    all
}

#[test]
fn launches_give_kernels_what_their_headers_ask_for() {
    let headers = headers();
    let mut entries = BTreeSet::new();
    for (case, launch) in launches() {
        let header = &headers[launch.stem];
        let entry = header.launches.iter().find(|l| l.entry == launch.entry).expect("the entry is in the header");
        assert_eq!(launch.threads, entry.threads, "{case}");
        assert_eq!(launch.tensors.len(), header.tensors.len(), "{case}");
        assert_eq!(launch.tensors.last(), Some(&Operand::Output), "{case}");
        let kinds = launch.scalars.iter().map(|s| if matches!(s, Scalar::U32(_)) { "u32" } else { "f32" });
        assert!(kinds.eq(header.scalars.iter().map(|p| p.kind.as_str())), "{case}");
        assert!(launch.grid[1..].iter().all(|&n| (1..=65_535).contains(&n)), "{case}: {:?}", launch.grid);
        entries.insert(launch.entry);
    }
    entries.insert(NO_OPERATION);
    let all: BTreeSet<&str> = headers.values().flat_map(|h| &h.launches).map(|l| l.entry.as_str()).collect();
    assert_eq!(entries, all, "every entry is launched by some case");
}

/// NVIDIA's assembler: what the variable `PTXAS` names, or one on the path.
fn assembler() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PTXAS").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "PTXAS names {}, which is no file", path.display());
        return Some(path);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|p| p.is_file())
}

/// The number before a word in the assembler's report.
fn number_before(report: &str, word: &str) -> Option<u32> {
    report.split(word).next().filter(|b| b.len() < report.len())?.split_whitespace().last()?.parse().ok()
}

#[test]
fn the_assembler_takes_every_kernel_for_every_architecture_without_spilling() {
    let Some(ptxas) = assembler() else {
        println!("skipped: no ptxas; the wheel nvidia-cuda-nvcc has one, which PTXAS may name");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (stem, text) in KERNELS {
        let source = folder.path().join(format!("{stem}.ptx"));
        std::fs::write(&source, text).unwrap();
        let limit = text.lines().find_map(|l| number_before(l.strip_prefix("// Memory")?, " registers"));
        let limit = limit.unwrap_or_else(|| panic!("{stem}: the header says nothing of registers"));
        let mut most = 0;
        for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
            let output = Command::new(&ptxas)
                .args(["-v", "-arch", target, "-o"])
                .arg(folder.path().join("out"))
                .arg(&source)
                .output()
                .unwrap();
            let report =
                String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            let spills = ["bytes spill stores", "bytes spill loads", "bytes stack frame"];
            let clean = spills.iter().all(|what| number_before(&report, what) == Some(0));
            if !output.status.success() || !clean {
                failures.push(format!("{stem} for {target}:\n{report}"));
            }
            most = most.max(number_before(&report, " registers,").unwrap_or(u32::MAX));
        }
        println!("{stem:<14} {most:>3} registers");
        if most > limit {
            failures.push(format!("{stem}: {most} registers, its header says at most {limit}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
