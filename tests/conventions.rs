//! What holds of all kernels: one stem in every place, headers that say what the code says, launches that fit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use support::available::{available, say};
use support::cases;
use support::files::{folder, operations, stems};
use unclip::backend::cpu::{Cpu, Isa};

#[test]
fn every_operation_has_its_stem_in_every_place() {
    let operations = operations();
    let cpu = stems("src/backend/cpu", ".rs");
    let shaders: BTreeSet<String> = stems("shaders", ".wgsl")
        .into_iter()
        .filter(|s| s != "prelude" && s != "matrices" && !s.starts_with("reduce_"))
        .collect();
    // A variant for one kind of adapter has the operation's stem and a suffix.
    let (twins, shaders): (BTreeSet<String>, BTreeSet<String>) = shaders.into_iter().partition(|s| {
        ["_lanes", "_matrices"].iter().any(|kind| s.strip_suffix(kind).is_some_and(|base| operations.contains(base)))
    });
    println!("twins: {twins:?}");
    let cases: BTreeSet<String> = cases::all().iter().map(|c| c.name.split('/').next().unwrap().to_owned()).collect();
    assert_eq!(shaders, operations);
    assert_eq!(cases, operations);
    assert!(operations.is_subset(&cpu), "{:?}", operations.difference(&cpu));
}

#[test]
fn no_source_file_is_longer_than_six_hundred_lines() {
    const FOLDERS: [&str; 7] = ["src", "kernels", "shaders", "tests", "benches", "examples", "training"];
    const SOURCES: [&str; 6] = ["rs", "ptx", "wgsl", "py", "c", "sh"];
    let mut folders: Vec<PathBuf> = FOLDERS.map(folder).into();
    let mut files: Vec<PathBuf> = ["build.rs", ".ci/run"].map(folder).into();
    while let Some(path) = folders.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            // A peer's benchmark is a package of its own, built in its folder.
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| SOURCES.iter().any(|source| ending == *source)) {
                files.push(path);
            }
        }
    }
    for ending in SOURCES {
        assert!(files.iter().any(|file| file.extension().is_some_and(|e| e == ending)), "no file ends in .{ending}");
    }
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    files.retain(|file| lines(file) > 600);
    assert!(files.is_empty(), "{files:?}");
}

/// Tests that need what a machine lacks say so themselves; this is all of it in one line of the log.
#[test]
fn what_this_machine_cannot_run_is_said_by_name() {
    let mut lacking: Vec<&str> = Vec::new();
    let mut note = |name, is_there: bool| lacking.extend((!is_there).then_some(name));
    for (name, isa) in
        [("cpu-amx", Isa::Amx), ("cpu-avx2", Isa::Avx2), ("cpu-avx512", Isa::Avx512), ("cpu-neon", Isa::Neon)]
    {
        note(name, available(name, Cpu::with_isa(1, isa)).is_some());
    }
    #[cfg(feature = "cuda")]
    note("cuda", available("cuda", unclip::backend::cuda::Cuda::new(0)).is_some());
    #[cfg(feature = "cuda-emulator")]
    note("ptxas", support::ptx::assembler().is_some());
    #[cfg(feature = "wgpu")]
    for (name, options) in support::adapters::each() {
        note(name, support::adapters::open(options).is_some());
    }
    say(&format!("tests of this machine leave out: {}", lacking.join(", ")));
}

#[cfg(feature = "wgpu")]
mod shaders {
    use super::cases;
    use super::support::header::{Header, Parameter};
    use std::collections::BTreeMap;
    use unclip::Dtype;
    use unclip::backend::wgpu::shaders::{KERNELS, Variant, base, render};
    use unclip::ops::{Launch, Operand, Operation, Scalar, Tiles};
    use wgpu::naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
    use wgpu::naga::{self, AddressSpace, Module, Scalar as Type, ScalarKind, StorageAccess, TypeInner};

    /// What every WebGPU implementation offers without being asked.
    const WORKGROUP_BYTES: u32 = 16_384;
    const STORAGE_BUFFERS: usize = 8;
    const THREADS: u32 = 256;

    fn validate(text: &str, variant: Variant) -> Result<(Module, ModuleInfo), String> {
        let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
        let mut allowed = Capabilities::empty();
        allowed.set(Capabilities::SHADER_FLOAT16, [variant.source, variant.elem].contains(&Dtype::F16));
        allowed.set(Capabilities::SUBGROUP, variant.subgroups);
        allowed.set(Capabilities::COOPERATIVE_MATRIX, variant.side.is_some());
        let mut validator = Validator::new(ValidationFlags::all(), allowed);
        let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;
        Ok((module, info))
    }

    /// All variants that a header announces.
    fn variants(header: &Header) -> Vec<Variant> {
        let types = |axis: &str| match header.variants.get(axis) {
            Some(names) => names.iter().map(|n| if n == "f16" { Dtype::F16 } else { Dtype::F32 }).collect(),
            None => vec![Dtype::F32],
        };
        let reduces = header.variants.get("reduce").map_or(1, Vec::len);
        let always = header.variants.contains_key("subgroups");
        let sides: Vec<Option<u32>> = match header.variants.get("side") {
            Some(sides) => sides.iter().map(|side| Some(side.parse().unwrap())).collect(),
            None => vec![None],
        };
        let mut all = Vec::new();
        for elem in types("elem") {
            // A kernel that never speaks of `source` is run with whatever its first tensor is.
            let sources = if header.variants.contains_key("source") { types("source") } else { vec![elem] };
            for source in sources {
                for side in &sides {
                    let variant = |i| Variant { source, elem, subgroups: always || i > 0, side: *side };
                    all.extend((0..reduces).map(variant));
                }
            }
        }
        all
    }

    fn each_variant(mut f: impl FnMut(&str, &Header, Variant, &Module, &ModuleInfo)) {
        for &(stem, text) in KERNELS {
            let header = Header::parse(stem, text).unwrap_or_else(|e| panic!("{stem}.wgsl: {e}"));
            for variant in variants(&header) {
                let text = render(stem, variant).unwrap();
                let (module, info) = validate(&text, variant).unwrap_or_else(|e| panic!("{stem} {variant:?}\n{e}"));
                f(stem, &header, variant, &module, &info);
            }
        }
    }

    fn scalar_name(kind: Type, variant: Variant, named: &str) -> String {
        let name = match (kind.kind, kind.width) {
            (ScalarKind::Float, 4) => "f32",
            (ScalarKind::Float, 2) => "f16",
            (ScalarKind::Uint, 4) => "u32",
            other => panic!("no kernel has {other:?}"),
        };
        // The header says `elem` and `source` where the variant decides.
        let of = |element| if element == Dtype::F16 { "f16" } else { "f32" };
        match named {
            "elem" if name == of(variant.elem) => "elem".to_owned(),
            "source" if name == of(variant.source) => "source".to_owned(),
            _ => name.to_owned(),
        }
    }

    #[test]
    fn every_variant_is_valid_and_its_bindings_are_those_of_its_header() {
        each_variant(|stem, header, variant, module, _| {
            let mut found: BTreeMap<u32, (String, Parameter, bool)> = BTreeMap::new();
            for (_, global) in module.global_variables.iter() {
                let Some(binding) = &global.binding else { continue };
                assert_eq!(binding.group, 0, "{stem}");
                let name = global.name.clone().unwrap();
                let wanted = header.tensors.get(binding.binding as usize);
                let (inner, writable) = match global.space {
                    AddressSpace::Storage { access } => {
                        let TypeInner::Array { base, .. } = module.types[global.ty].inner else {
                            panic!("{stem}: {name} is no array")
                        };
                        (&module.types[base].inner, access.contains(StorageAccess::STORE))
                    }
                    AddressSpace::Uniform => {
                        let TypeInner::Struct { members, .. } = &module.types[global.ty].inner else {
                            panic!("{stem}: {name} is no struct")
                        };
                        let members = members.iter().map(|m| match module.types[m.ty].inner {
                            TypeInner::Scalar(s) => {
                                Parameter::new(m.name.as_deref().unwrap(), &scalar_name(s, variant, ""))
                            }
                            ref other => panic!("{stem}: {other:?}"),
                        });
                        assert_eq!(members.collect::<Vec<_>>(), header.scalars, "{stem}");
                        assert_eq!(binding.binding as usize, header.tensors.len(), "{stem}: scalars come last");
                        continue;
                    }
                    other => panic!("{stem}: {name} in {other:?}"),
                };
                let wanted = wanted.unwrap_or_else(|| panic!("{stem}: {name} is not in the header"));
                let named = wanted.kind.trim_start_matches("vec4 ");
                let kind = match *inner {
                    TypeInner::Scalar(s) => scalar_name(s, variant, named),
                    TypeInner::Vector { size: naga::VectorSize::Quad, scalar } => {
                        format!("vec4 {}", scalar_name(scalar, variant, named))
                    }
                    ref other => panic!("{stem}: {name} holds {other:?}"),
                };
                found.insert(binding.binding, (stem.to_owned(), Parameter::new(&name, &kind), writable));
            }
            let tensors: Vec<Parameter> = found.values().map(|(_, p, _)| p.clone()).collect();
            assert_eq!(tensors, header.tensors, "{stem}");
            // The one tensor behind the arrow is the only one that is written.
            let written: Vec<bool> = found.values().map(|(.., w)| *w).collect();
            assert_eq!(written.iter().filter(|w| **w).count(), 1, "{stem}");
            assert_eq!(written.last(), Some(&true), "{stem}");
        });
    }

    #[test]
    fn workgroups_are_as_large_as_headers_say_and_within_the_limits_of_every_device() {
        each_variant(|stem, header, _, module, info| {
            let entries: Vec<&str> = module.entry_points.iter().map(|e| e.name.as_str()).collect();
            // A variant's text comes after that of the kernel it continues.
            let before = base(stem).map_or(Vec::new(), |base| {
                let (_, text) = KERNELS.iter().find(|(s, _)| *s == base).unwrap();
                Header::parse(base, text).unwrap().launches
            });
            let launches: Vec<_> = before.iter().chain(&header.launches).collect();
            let named: Vec<&str> = launches.iter().map(|l| l.entry.as_str()).collect();
            assert_eq!(entries, named, "{stem}");
            for (i, (entry, launch)) in module.entry_points.iter().zip(launches).enumerate() {
                let threads: u32 = entry.workgroup_size.iter().product();
                assert_eq!(threads, launch.threads, "{stem}: {}", entry.name);
                assert!(threads <= THREADS, "{stem}: {threads} invocations");
                let mut layouter = naga::proc::Layouter::default();
                layouter.update(module.to_ctx()).unwrap();
                let uses = info.get_entry_point(i);
                let shared = module
                    .global_variables
                    .iter()
                    .filter(|(handle, global)| global.space == AddressSpace::WorkGroup && !uses[*handle].is_empty());
                let bytes: u32 = shared.map(|(_, global)| layouter[global.ty].size).sum();
                assert!(bytes <= WORKGROUP_BYTES, "{stem}: {} shares {bytes} bytes", entry.name);
                assert_eq!(bytes == 0, launch.shared_kib == 0.0, "{stem}: {} shares {bytes} bytes", entry.name);
                let kib = f64::from(bytes) / 1024.0;
                assert!(kib <= launch.shared_kib, "{stem}: {} shares {bytes} bytes", entry.name);
            }
            assert!(header.tensors.len() <= STORAGE_BUFFERS, "{stem}");
        });
    }

    /// The launches of all cases, heavy ones included, for each way to share operands, with the output's shape.
    fn lowered() -> Vec<(String, Vec<Launch>, Vec<usize>)> {
        let mut all = Vec::new();
        for case in cases::all() {
            let shapes: Vec<&[usize]> = case.inputs.iter().map(|i| i.shape.as_slice()).collect();
            let output = case.op.shape(&shapes).unwrap();
            for tiles in [Tiles::Registers, Tiles::Lanes, Tiles::Shared, Tiles::Matrices] {
                all.push((case.name.clone(), case.op.wgsl(&shapes, &output, tiles), output.clone()));
            }
        }
        all
    }

    fn headers() -> BTreeMap<&'static str, Header> {
        KERNELS.iter().map(|&(stem, text)| (stem, Header::parse(stem, text).unwrap())).collect()
    }

    #[test]
    fn launches_give_kernels_what_their_headers_ask_for() {
        let headers = headers();
        let mut entries = std::collections::BTreeSet::new();
        for (case, launch) in lowered().iter().flat_map(|(case, launches, _)| launches.iter().map(move |l| (case, l))) {
            let header = &headers[launch.stem];
            assert_eq!(case.split('/').next(), Some(base(launch.stem).unwrap_or(launch.stem)));
            let entry = header.launches.iter().find(|l| l.entry == launch.entry).expect("the entry is in the header");
            assert_eq!(launch.threads, entry.threads, "{case}");
            assert_eq!(launch.tensors.len(), header.tensors.len(), "{case}");
            let written = launch.tensors.iter().filter(|t| **t == Operand::Output(0)).count();
            assert!(written == 1 && launch.tensors.last() == Some(&Operand::Output(0)), "{case}: {:?}", launch.tensors);
            let kinds: Vec<&str> =
                launch.scalars.iter().map(|s| if matches!(s, Scalar::U32(_)) { "u32" } else { "f32" }).collect();
            let wanted: Vec<&str> = header.scalars.iter().map(|p| p.kind.as_str()).collect();
            assert_eq!(kinds, wanted, "{case}");
            entries.insert(launch.entry);
        }
        let all: std::collections::BTreeSet<&str> =
            headers.values().flat_map(|h| &h.launches).map(|l| l.entry.as_str()).collect();
        assert_eq!(entries, all, "every entry is launched by some case");
    }

    /// A scalar of a launch by its name in the header.
    fn size(launch: &Launch, header: &Header, name: &str) -> usize {
        let at = header.scalars.iter().position(|scalar| scalar.name == name).unwrap();
        launch.scalars[at].bits() as usize
    }

    /// Workgroups in rows: as many as are needed, and no more than fill the last row.
    fn spread(launch: &Launch, workgroups: usize, case: &str) {
        let [x, y, z] = launch.grid.map(|n| n as usize);
        let enough = x * y >= workgroups && (y - 1) * x < workgroups.max(1);
        assert!(enough && z == 1, "{case}: {:?} for {workgroups} workgroups", launch.grid);
    }

    /// What a workgroup or an invocation owns stands here as in the kernels' headers.
    #[test]
    fn grids_cover_outputs_exactly_and_stay_within_every_device() {
        let headers = headers();
        for (case, launches, output) in lowered() {
            let (columns, elements) = (output.last().copied().unwrap(), output.iter().product::<usize>());
            let mut counted = 0;
            for launch in &launches {
                assert!(launch.grid.iter().all(|&n| (1..=65_535).contains(&n)), "{case}: {:?}", launch.grid);
                let scalar = |name| size(launch, &headers[launch.stem], name);
                let tiles = |across: usize, down| [columns.div_ceil(across), (elements / columns).div_ceil(down), 1];
                let exact = match launch.entry {
                    "linear" | "conv2d" => Some(tiles(32, 32)),
                    "linear_lanes" | "conv2d_lanes" => Some(tiles(32, 64)),
                    "linear_tiled" | "conv2d_tiled" | "linear_matrices" | "conv2d_matrices" => Some(tiles(64, 64)),
                    "attention" => {
                        let [queries, width, d_head] = ["queries", "width", "d_head"].map(scalar);
                        Some([queries.div_ceil(32), width / d_head * d_head.div_ceil(64), output[0]])
                    }
                    "group_norm" => Some([scalar("groups"), output[0], 1]),
                    "layer_norm" => {
                        spread(launch, elements / columns, &case);
                        None
                    }
                    "concat" | "convert" | "embed" | "geglu" | "modulate" | "pointwise" | "resize" | "sampler_step"
                    | "slice" => {
                        counted += scalar("count");
                        spread(launch, scalar("count").div_ceil(256), &case);
                        None
                    }
                    // Of the state, of which each invocation writes its element of all planes.
                    "multistep" => {
                        counted += output[0] * scalar("count");
                        spread(launch, scalar("count").div_ceil(256), &case);
                        None
                    }
                    other => panic!("{other}: what does it own?"),
                };
                if let Some(exact) = exact {
                    assert_eq!(launch.grid.map(|n| n as usize), exact, "{case}, {}", launch.entry);
                }
                // Concatenation covers a part with each launch, all others their whole output with one.
                assert!(launches.len() == 1 || launch.stem == "concat", "{case}");
            }
            assert!(counted == 0 || counted == elements, "{case}: {counted} of {elements} elements");
        }
    }
}
