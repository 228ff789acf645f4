//! Checks of all PTX kernels: headers match the code, launches match the headers, and ptxas compiles the kernels for
//! every architecture without spilling.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cases;
use support::files::{folder, operations, stems};
use support::header::{Header, Parameter};
use support::ptx;
use unclip::backend::cuda::emulator::{Kernel, parse};
use unclip::backend::cuda::kernels::{KERNELS, Kernel as Text};
use unclip::ops::{Launch, MatmulUnit, Operand, Operation, Scalar};

/// The back end's own kernels, to which no operation lowers.
const NO_OPERATION: [&str; 2] = ["advance", "unpack_weight"];
/// Kernels to which several operations lower.
const SHARED: [&str; 3] = ["matmul_mma", "matmul_sm90", "matmul_sum"];
/// Kernels of an operation that has several, for inputs that do not fit into shared memory or would be read twice.
const PARTS: [&str; 5] =
    ["group_norm_apply", "group_norm_merge", "group_norm_statistics", "resize_bicubic", "resize_by_two"];

fn header(kernel: &Text) -> Header {
    let Text { stem, text, .. } = kernel;
    Header::parse(stem, text).unwrap_or_else(|e| panic!("{stem}.ptx: {e}"))
}

/// The headers of all files; variants have the same header.
fn headers() -> BTreeMap<&'static str, Header> {
    KERNELS.iter().map(|kernel| (kernel.stem, header(kernel))).collect()
}

fn kernels(kernel: &Text) -> Vec<Kernel> {
    parse(kernel.text).unwrap_or_else(|e| panic!("{}{}: {e}", kernel.stem, kernel.suffix()))
}

/// Names and types of the parameters as the text declares them.
fn parameters(text: &str) -> Vec<Parameter> {
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix(".param ."));
    lines
        .map(|line| {
            let line = line.trim_end_matches(',');
            match line.strip_prefix("align 64 .b8 ").and_then(|map| map.strip_suffix("[128]")) {
                Some(name) => Parameter::new(name, "map"),
                None => line.split_once(' ').map(|(kind, name)| Parameter::new(name, kind)).unwrap(),
            }
        })
        .collect()
}

#[test]
fn every_kernel_file_is_in_the_back_end_and_every_operation_has_one() {
    let files = stems("kernels", ".ptx");
    assert_eq!(files, KERNELS.iter().map(|kernel| kernel.stem.to_owned()).collect());
    let mut operations = operations();
    // A variant for tensor cores, for Hopper or for few rows has the operation's stem and a suffix.
    let operation = |s: &str| {
        let stems = ["_mma", "_sm90", "_rows"].map(|suffix| s.strip_suffix(suffix));
        stems.into_iter().flatten().any(|stem| operations.contains(stem))
    };
    let variants: Vec<String> = files.iter().filter(|s| operation(s)).cloned().collect();
    operations.extend(variants);
    operations.extend(SHARED.into_iter().chain(PARTS).map(str::to_owned));
    operations.extend(NO_OPERATION.map(str::to_owned));
    assert_eq!(files, operations);
    for stem in files {
        let file = folder("kernels").join(&stem).with_extension("ptx");
        let text = std::fs::read_to_string(file).unwrap();
        let mut comments = text.lines().filter(|l| l.trim_start().starts_with("//") && !l.contains("//%"));
        assert_eq!(comments.find(|l| l.chars().count() > 120), None, "{stem}.ptx: a comment is too wide");
    }
}

/// The files that a kernel's file imports, and those that these import.
fn imported(file: &Path, files: &mut BTreeSet<PathBuf>) {
    let text = std::fs::read_to_string(file).unwrap();
    for name in text.lines().filter_map(|l| l.strip_prefix("//% import \"")?.split('"').next()) {
        let file = folder("kernels").join("shared").join(name);
        if files.insert(file.clone()) {
            imported(&file, files);
        }
    }
}

#[test]
fn a_kernel_is_read_in_at_most_four_files_and_none_is_long() {
    let mut shared = BTreeSet::new();
    for stem in stems("kernels", ".ptx") {
        let file = folder("kernels").join(&stem).with_extension("ptx");
        let mut files = BTreeSet::from([file.clone()]);
        imported(&file, &mut files);
        println!("{stem}: {} files", files.len());
        assert!(files.len() <= 4, "{stem}: {files:?}");
        for file in &files {
            let lines = std::fs::read_to_string(file).unwrap().lines().count();
            assert!(lines <= 600, "{}: {lines} lines", file.display());
        }
        shared.extend(files);
    }
    for stem in stems("kernels/shared", ".ptx") {
        let file = folder("kernels").join("shared").join(&stem).with_extension("ptx");
        assert!(shared.contains(&file), "no kernel imports {}", file.display());
    }
}

#[test]
fn headers_match_the_declarations_of_the_kernels() {
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for text in KERNELS {
        let (stem, header) = (text.stem, header(text));
        let declared = parameters(text.text);
        let (tensors, scalars) = declared.split_at(header.tensors.len());
        for (declared, tensor) in tensors.iter().zip(&header.tensors) {
            let is_map = tensor.kind.ends_with(" map");
            assert_eq!(declared.kind, if is_map { "map" } else { "u64" }, "{stem}: {}", declared.name);
        }
        let names = |of: &[Parameter]| of.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(tensors), names(&header.tensors), "{stem}");
        assert_eq!(scalars, header.scalars, "{stem}");
        for kernel in kernels(text) {
            // An entry's name ends with the types of its tensors.
            let entry = kernel.name().strip_suffix(&text.suffix()).unwrap_or_else(|| panic!("{}", kernel.name()));
            let launch = header.launches.iter().find(|l| l.entry == entry).unwrap_or_else(|| panic!("{entry}"));
            assert_eq!(kernel.threads(), launch.threads, "{entry}");
            // Dynamic shared memory is compared with the launches below.
            let asked = text.text.contains(".extern .shared");
            let declared = f64::from(kernel.shared_bytes()) / 1024.0;
            assert_eq!(declared, if asked { 0.0 } else { launch.shared_kib }, "{entry}");
            found.entry(stem).or_default().insert(entry.to_owned());
        }
    }
    for (stem, header) in headers() {
        assert_eq!(found[stem], header.launches.iter().map(|l| l.entry.clone()).collect(), "{stem}");
    }
}

/// The launches of all cases, heavy ones included, for all matmul units.
fn launches() -> Vec<(String, Launch)> {
    let mut all = Vec::new();
    for case in cases::all() {
        let shapes: Vec<&[usize]> = case.inputs.iter().map(|i| i.shape.as_slice()).collect();
        let output = case.op.shape(&shapes).unwrap();
        for matmul in [MatmulUnit::CudaCores, MatmulUnit::Tf32, MatmulUnit::Half, MatmulUnit::Warpgroup] {
            all.extend(case.op.ptx(&shapes, &[&output], matmul).into_iter().map(|l| (case.name.clone(), l)));
        }
    }
    all
}

#[test]
fn launches_match_the_headers_of_their_kernels() {
    let headers = headers();
    let mut entries = BTreeSet::new();
    for (case, launch) in launches() {
        let header = &headers[launch.stem];
        let entry = header.launches.iter().find(|l| l.entry == launch.entry).expect("the entry is in the header");
        assert_eq!(launch.threads, entry.threads, "{case}");
        assert_eq!(launch.tensors.len(), header.tensors.len(), "{case}");
        let maps = header.tensors.iter().filter(|tensor| tensor.kind.ends_with(" map")).count();
        assert_eq!(launch.tiling.as_ref().map_or(0, |tiling| tiling.walks.len()), maps, "{case}");
        if let Some(tiling) = &launch.tiling {
            assert_eq!(f64::from(tiling.shared_bytes) / 1024.0, entry.shared_kib, "{case}");
        }
        assert!(matches!(launch.tensors.last(), Some(Operand::Output(0) | Operand::Scratch { .. })), "{case}");
        let kinds = launch.scalars.iter().map(|s| if matches!(s, Scalar::U32(_)) { "u32" } else { "f32" });
        assert!(kinds.eq(header.scalars.iter().map(|p| p.kind.as_str())), "{case}");
        assert!(launch.grid[1..].iter().all(|&n| (1..=65_535).contains(&n)), "{case}: {:?}", launch.grid);
        entries.insert(launch.entry);
    }
    entries.extend(NO_OPERATION);
    let all: BTreeSet<&str> = headers.values().flat_map(|h| &h.launches).map(|l| l.entry.as_str()).collect();
    assert_eq!(entries, all, "every entry is launched by some case");
}

/// The integers before all occurrences of a word in the assembler's report.
fn numbers_before(report: &str, word: &str) -> Vec<u32> {
    let parts: Vec<&str> = report.split(word).collect();
    parts[..parts.len() - 1].iter().filter_map(|part| part.split_whitespace().last()?.parse().ok()).collect()
}

fn number_before(text: &str, word: &str) -> Option<u32> {
    numbers_before(text, word).first().copied()
}

/// The header's field `Memory`, as one line.
fn memory_field(text: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|l| !l.starts_with("// Memory"));
    let first = lines.next()?.to_owned();
    Some(lines.map_while(|l| l.strip_prefix("//   ")).fold(first, |all, line| all + line))
}

#[test]
fn every_kernel_assembles_for_every_architecture_without_spilling() {
    let Some(ptxas) = ptx::assembler() else { return };
    let modules = tempfile::tempdir().unwrap();
    let mut stems: BTreeMap<&str, Vec<&Text>> = BTreeMap::new();
    KERNELS.iter().for_each(|kernel| stems.entry(kernel.stem).or_default().push(kernel));
    let mut failures = Vec::new();
    for (stem, texts) in stems {
        // All variants as one module; their entries have different names.
        let source = modules.path().join(format!("{stem}.ptx"));
        let parts = |kernel: &&Text| kernel.text.find(".visible .entry").map(|at| kernel.text.split_at(at));
        let entries = texts.iter().map(|k| parts(k).expect("it has an entry").1);
        let (head, _) = parts(&texts[0]).expect("it has an entry");
        std::fs::write(&source, [head, &entries.collect::<String>()].concat()).unwrap();
        let limit = memory_field(texts[0].text).and_then(|field| number_before(&field, " registers"));
        let limit = limit.unwrap_or_else(|| panic!("{stem}: the header has no number of registers"));
        let mut most = 0;
        // sm_90a code runs on no other architecture.
        let own = texts[0].text.contains(".target sm_90a");
        let targets: &[&str] =
            if own { &["sm_90a"] } else { &["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] };
        for target in targets {
            let output = Command::new(&ptxas)
                .args(["-v", "-arch", target, "-o"])
                .arg(modules.path().join("out"))
                .arg(&source)
                .output()
                .unwrap();
            let report =
                String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            let spills = ["bytes spill stores", "bytes spill loads", "bytes stack frame"];
            let clean = spills.iter().all(|what| numbers_before(&report, what).iter().all(|&n| n == 0));
            let registers = numbers_before(&report, " registers,");
            // The assembler warns if it has to serialize wgmma instructions.
            let serialized = report.contains("serialized");
            if !output.status.success() || !clean || serialized || registers.len() != texts.len() {
                failures.push(format!("{stem} for {target}:\n{report}"));
            }
            most = most.max(registers.into_iter().max().unwrap_or(u32::MAX));
        }
        println!("{stem:<14} {:>2} variants, at most {most:>3} registers", texts.len());
        if most > limit {
            failures.push(format!("{stem}: {most} registers, its header says at most {limit}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
