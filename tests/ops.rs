//! Every operation on the CPU against loops in f64, on every instruction set, and what must not change a bit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::sync::OnceLock;
use support::arithmetic::Arithmetic;
use support::available::{available, whether};
use support::cases::{self, Case};
use support::close::{Rounding, close};
use support::{Data, Problem, every, reference};
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::cases::Tensor;
use unclip::noise::Seeds;
use unclip::ops::{Noise, Op};
use unclip::{Dtype, Precision};

fn cpu(threads: usize, isa: Isa) -> Cpu {
    Cpu::with_isa(threads, isa).expect("the machine has these instructions")
}

/// The instruction sets of this machine.
fn isas() -> &'static [Isa] {
    static ISAS: OnceLock<Vec<Isa>> = OnceLock::new();
    ISAS.get_or_init(|| {
        // The portable ones are everywhere.
        let has = |isa: &Isa| {
            let forced = Cpu::with_isa(1, *isa).map(drop);
            *isa == Isa::Portable || available(&format!("cpu-{}", isa.name()), forced).is_some()
        };
        Isa::ALL.into_iter().filter(has).collect()
    })
}

/// Runs all cases of a stem on all instruction sets, with one and with two threads.
fn check(stem: &str) {
    let backends = isas().iter().map(|&isa| (cpu(1, isa), cpu(2, isa))).collect();
    check_on(stem, backends, &[Arithmetic::Plain(Dtype::F32)]);
}

/// Runs all cases of a stem on pairs of back ends, which must give the same bits and compute in one of these ways.
fn check_on(stem: &str, backends: Vec<(Cpu, Cpu)>, arithmetics: &[Arithmetic]) {
    let mut failures = Vec::new();
    let mut most = (0.0, String::new());
    for case in every::cases_of(stem) {
        let problem = case.problem();
        let wants: Vec<Vec<f64>> = arithmetics.iter().map(|a| reference::run(&a.operands(&problem))).collect();
        for (one, two) in &backends {
            let got = problem.run(one).expect("the device works");
            let by_one_of_them =
                arithmetics.iter().zip(&wants).map(|(a, want)| close(&got, want, &a.rounding(&problem)));
            match by_one_of_them.reduce(|first, next| first.or(next)).expect("there is one") {
                Err(reason) => failures.push(format!("{} on {}: {reason}", case.name, one.name())),
                Ok(part) if part > most.0 => most = (part, format!("{} on {}", case.name, one.name())),
                Ok(_) => {}
            }
            if bits(&got) != bits(&problem.run(two).expect("the device works")) {
                failures.push(format!("{} on {}: two threads give other bits", case.name, one.name()));
            }
        }
    }
    println!("at most {:.2} of the bar, in {}", most.0, most.1);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn bf16(cpu: Cpu) -> Cpu {
    cpu.with_precision(Precision::Bf16).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn linear_matches_the_reference_with_any_number_of_threads() {
    check("linear");
}

#[test]
fn products_of_bf16_match_the_reference() {
    for stem in ["linear", "conv2d"] {
        let stored = isas().iter().map(|&isa| (bf16(cpu(1, isa)), bf16(cpu(2, isa))));
        let backends = stored.chain(tiled(1).into_iter().zip(tiled(2))).collect();
        // Some processors multiply bf16 by bf16, others only keep their weights in it.
        let vectors = if Isa::Avx512.available() { Isa::Avx512 } else { Isa::Portable };
        let multiplies = bf16(cpu(1, vectors)).name().contains("bf16 dot products");
        available("cpu-bf16-products", whether(multiplies, "only AMD's processors with AVX-512 do so"));
        check_on(stem, backends, &[Arithmetic::Bf16Weights, Arithmetic::Bf16Operands]);
    }
}

/// Where bf16 is multiplied in tiles: the model of AMX on this machine's best vectors, and AMX if it is there.
fn tiled(threads: usize) -> Vec<Cpu> {
    let vectors = isas().iter().rfind(|isa| **isa != Isa::Amx).expect("the portable ones are everywhere");
    let tiles = isas().contains(&Isa::Amx).then(|| bf16(cpu(threads, Isa::Amx)));
    std::iter::once(cpu(threads, *vectors).with_modelled_tiles()).chain(tiles).collect()
}

#[test]
fn attention_in_tiles_matches_the_reference() {
    check_on("attention", tiled(1).into_iter().zip(tiled(2)).collect(), &[Arithmetic::Bf16Operands]);
}

#[test]
fn tiles_in_emulation_have_the_bits_of_the_processor() {
    if !isas().contains(&Isa::Amx) {
        return;
    }
    for name in ["linear/depth-1027", "conv2d/small-48", "conv2d/five-by-seven"] {
        let problem = cases::named(name).problem();
        let run = |cpu: &Cpu| bits(&problem.run(cpu).expect("the device works"));
        let model = cpu(2, Isa::Avx512).with_modelled_tiles();
        assert!(run(&bf16(cpu(2, Isa::Amx))) == run(&model), "{name}");
    }
}

#[test]
fn conv2d_matches_the_reference_with_any_number_of_threads() {
    check("conv2d");
}

#[test]
fn attention_matches_the_reference_with_any_number_of_threads() {
    check("attention");
}

#[test]
fn group_norm_matches_the_reference_with_any_number_of_threads() {
    check("group_norm");
}

#[test]
fn layer_norm_matches_the_reference_with_any_number_of_threads() {
    check("layer_norm");
}

#[test]
fn pointwise_operations_match_the_reference_with_any_number_of_threads() {
    ["geglu", "modulate", "pointwise"].into_iter().for_each(check);
}

#[test]
fn moving_operations_match_the_reference_with_any_number_of_threads() {
    ["concat", "convert", "slice", "embed"].into_iter().for_each(check);
}

#[test]
fn resize_matches_the_reference_with_any_number_of_threads() {
    check("resize");
}

#[test]
fn sampler_step_matches_the_reference_with_any_number_of_threads() {
    ["multistep", "sampler_step"].into_iter().for_each(check);
}

/// The same step with noise that the host made.
fn given(problem: &Problem) -> Problem {
    let mut given = problem.clone();
    let Op::SamplerStep(op) = &mut given.op else { panic!("a sampler step") };
    let noise = std::mem::replace(&mut op.noise, Noise::Given);
    let words = given.tensors.split_off(3).into_iter().map(|tensor| match tensor.data {
        Data::Integers(words) => words,
        Data::Floats(_) => panic!("seeds and step are integers"),
    });
    let words: Vec<Vec<u32>> = words.collect();
    let row = noise.words().expect("seeds");
    let shape = given.tensors[1].shape.clone();
    let c = shape[shape.len() - 1];
    let mut made = Vec::new();
    for row in words[0].chunks_exact(row) {
        let mut drawn = vec![0.0; shape[1..].iter().product()];
        let seeds = match noise {
            Noise::TorchCuda(dtype) => Seeds::of_torch_cuda(row, dtype),
            _ => Seeds::of_philox(row),
        };
        seeds.fill_normal(words[1][0].into(), 0, &mut drawn);
        let positions = drawn.len() / c;
        made.extend((0..drawn.len()).map(|i| drawn[i % c * positions + i / c]));
    }
    given.tensors.push(Tensor { shape, data: Data::Floats(made), stored: None });
    given
}

#[test]
fn noise_drawn_in_the_sampler_step_has_the_bits_of_noise_that_is_given() {
    let drawn = |case: &Case| matches!(&case.op, Op::SamplerStep(op) if op.noise != Noise::Given);
    let cases: Vec<Case> = cases::all().into_iter().filter(drawn).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let problem = case.problem();
        for &isa in isas() {
            let backend = cpu(2, isa);
            let run = |problem: &Problem| bits(&problem.run(&backend).expect("the device works"));
            assert_eq!(run(&problem), run(&given(&problem)), "{} on {isa:?}", case.name);
        }
    }
}

#[test]
fn case_names_are_unique_and_begin_with_the_stem_of_an_operation() {
    let names: Vec<String> = cases::all().into_iter().map(|c| c.name).collect();
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
    for name in names {
        let stem = name.split('/').next().unwrap();
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/ops/{stem}.rs"));
        assert!(file.exists(), "{name} has no {}", file.display());
    }
}

#[test]
fn an_entry_of_a_batch_gives_the_same_bits_alone() {
    let of_batches = [
        ("linear/prior-attention", 2),
        ("linear/rows-7", 7),
        ("linear/rows-13", 13),
        ("conv2d/tiny-8", 2),
        ("conv2d/five-by-seven", 2),
        ("conv2d/small-48", 2),
        ("conv2d/residual-only", 3),
        ("group_norm/karlo-320", 2),
        ("group_norm/several-chunks", 2),
        ("attention/prior-kept-text", 2),
        ("attention/prior", 2),
        ("attention/decoder-8px", 2),
    ];
    for (name, batch) in of_batches {
        let problem = cases::named(name).problem();
        for backend in isas().iter().map(|&isa| cpu(2, isa)).chain(tiled(2)) {
            let together = problem.run(&backend).expect("the device works");
            let length = together.len() / batch;
            for b in 0..batch {
                let alone = problem.alone(b, batch).run(&backend).expect("the device works");
                let same = bits(&together[b * length..][..length]) == bits(&alone);
                assert!(same, "{name}, entry {b}, {}", backend.name());
            }
        }
    }
}

#[test]
fn replaying_a_step_gives_the_same_bits() {
    for name in ["conv2d/small-48", "attention/prior", "group_norm/karlo-320", "linear/depth-1027"] {
        let mut executable = cases::named(name).problem().prepare(&cpu(2, Isa::detect())).expect("the case compiles");
        executable.run_step(0).unwrap();
        let first = executable.read("y").unwrap();
        executable.run_step(1).unwrap();
        assert_eq!(bits(&first), bits(&executable.read("y").unwrap()), "{name}");
    }
}

#[test]
fn the_portable_instructions_can_be_forced_everywhere() {
    assert!(cpu(1, Isa::Portable).name().contains("portable"));
}

#[test]
fn instructions_that_the_machine_lacks_are_refused() {
    for isa in Isa::ALL {
        let forced = Cpu::with_isa(1, isa);
        assert_eq!(forced.is_ok(), isa.available());
        if let Ok(forced) = forced {
            // f32 has no use for the tiles.
            let shown = if isa == Isa::Amx { Isa::Avx512 } else { isa };
            assert!(forced.name().contains(shown.name()), "{}", forced.name());
        }
    }
}

#[test]
fn the_tolerance_notices_one_wrong_element_and_names_it() {
    let want = vec![1.0f64; 100];
    let mut got = vec![1.0f32; 100];
    got[37] = 1.000_1;
    let message = close(&got, &want, &Rounding::f32(64)).unwrap_err();
    assert!(message.contains("element 37") && message.contains("1.0001 instead of 1"), "{message}");
    got[37] = f32::NAN;
    assert!(close(&got, &want, &Rounding::f32(64)).is_err());
    got[37] = 1.000_001;
    assert!(close(&got, &want, &Rounding::f32(64)).is_ok());
}

#[test]
fn a_nan_reaches_exactly_the_elements_that_depend_on_it() {
    for &isa in isas() {
        every::nan_reaches_what_depends_on_it(&cpu(1, isa));
    }
}

#[test]
fn an_infinity_makes_its_whole_group_nan() {
    let mut problem = cases::named("group_norm/small-48").problem();
    problem.tensors[0].floats_mut()[0] = f32::INFINITY;
    let want: Vec<bool> = reference::run(&problem).iter().map(|y| y.is_nan()).collect();
    for &isa in isas() {
        let got: Vec<bool> = problem.run(&cpu(1, isa)).expect("the device works").iter().map(|y| y.is_nan()).collect();
        assert!(got == want, "{isa:?}");
    }
}
