//! Faults planted in the text of a kernel for Hopper: each is caught, by a named check or by its results.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use half::bf16;
use support::arithmetic::Arithmetic;
use support::close::close;
use support::{Data, cases, ptx, reference};
use unclip::Dtype;
use unclip::backend::cuda::emulator::{Arguments, Check, DeviceSlice, Fault, Machine, TensorMap, parse};
use unclip::backend::cuda::kernels::KERNELS;
use unclip::ops::{MatmulUnit, Operand, Operation};

/// Three tiles of keys, so that the ring of two stages comes round.
const CASE: &str = "attention/image-encoder";

fn text() -> &'static str {
    let is = |k: &&unclip::backend::cuda::kernels::Kernel| k.stem == "attention_sm90" && k.elem == Some(Dtype::Bf16);
    KERNELS.iter().find(is).unwrap().text
}

/// The case by the kernel's text as it is given; how far the result is off if it came to its end.
fn run(text: &str) -> Result<Result<f64, String>, Fault> {
    let problem = cases::named(CASE).problem();
    let arithmetic = Arithmetic::TensorCores(Dtype::Bf16);
    let want = reference::run(&arithmetic.operands(&problem));
    let shapes = problem.shapes();
    let output = problem.op.shape(&shapes).unwrap();
    let launch = problem.op.ptx(&shapes, &[&output], MatmulUnit::Warpgroup).remove(0);
    let tiling = launch.tiling.as_ref().unwrap();

    let mut machine = Machine::default();
    let mut place = |count: usize, written: bool| {
        let bytes = 2 * count as u64;
        DeviceSlice { address: machine.allocate(bytes), bytes, written }
    };
    let inputs: Vec<DeviceSlice> = problem.tensors.iter().map(|t| place(t.shape.iter().product(), false)).collect();
    let y = place(want.len(), true);
    for (range, tensor) in inputs.iter().zip(&problem.tensors) {
        let Data::Floats(x) = &tensor.data else { panic!("numbers") };
        let halves: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        machine.write(range.address, bytemuck::cast_slice(&halves)).unwrap();
    }
    let range = |operand: &Operand| match operand {
        Operand::Input(i) => inputs[*i],
        _ => y,
    };
    let tensors: Vec<DeviceSlice> = launch.tensors.iter().map(range).collect();
    let (mapped, tensors) = tensors.split_at(tiling.walks.len());
    let walks = tiling.walks.iter().zip(mapped);
    let maps: Vec<TensorMap> = walks.map(|(walk, &tensor)| TensorMap::new(walk, tensor, Dtype::Bf16)).collect();
    let scalars: Vec<u32> = launch.scalars.iter().map(|s| s.bits()).collect();
    let arguments = Arguments {
        maps: &maps,
        tensors,
        scalars: &scalars,
        shared_bytes: tiling.shared_bytes,
        cluster: tiling.cluster,
    };
    let kernel = parse(text).unwrap_or_else(|e| panic!("{e}")).remove(0);
    machine.launch(&kernel, launch.grid, arguments)?;
    let got = machine.read(y.address, 2 * want.len()).unwrap();
    let got: Vec<f32> = bytemuck::cast_slice::<u8, bf16>(&got).iter().map(|x| x.to_f32()).collect();
    Ok(close(&got, &want, &arithmetic.rounding(&problem)))
}

/// The kernel with the first of these lines changed.
#[track_caller]
fn planted(line: &str, instead: &str) -> String {
    ptx::planted(text(), line, instead)
}

#[track_caller]
fn caught(text: &str, check: Check) {
    let fault = run(text).expect_err("nothing was found");
    assert_eq!(fault.check, check, "{fault}");
}

#[test]
fn the_kernel_without_a_fault_is_right() {
    run(text()).unwrap_or_else(|e| panic!("{e}")).unwrap();
}

#[test]
fn a_swapped_fragment_register_gives_numbers_that_are_off() {
    let fragment = "{%weight0, %weight1, %weight2, %weight3}";
    for swapped in ["{%weight1, %weight0, %weight2, %weight3}", "{%weight0, %weight1, %weight3, %weight2}"] {
        let off = run(&planted(fragment, swapped)).unwrap_or_else(|e| panic!("{e}"));
        assert!(off.expect_err("rows have changed places").contains("elements are off"));
    }
}

#[test]
fn a_missing_fence_before_the_scores_or_before_the_sums_is_named() {
    let fence = "wgmma.fence.sync.aligned;";
    caught(&planted(fence, ""), Check::MissingFence);
    let last = text().rfind(fence).unwrap();
    caught(&[&text()[..last], &text()[last + fence.len()..]].concat(), Check::MissingFence);
}

#[test]
fn a_missing_wait_for_products_is_named() {
    caught(&planted("wgmma.wait_group.sync.aligned 0;", ""), Check::RegisterInUse);
}

#[test]
fn a_missing_barrier_after_the_counters_are_made_is_named() {
    caught(&planted("bar.sync 0;", ""), Check::SharedRace);
}

#[test]
fn bytes_that_are_announced_wrongly_are_named() {
    caught(&planted("[%full], 32768;", "[%full], 16384;"), Check::Transactions);
    caught(&planted("[%full], 32768;", "[%full], 49152;"), Check::Transactions);
}

#[test]
fn a_stage_that_is_never_freed_is_named() {
    caught(&planted("@%leads mbarrier.arrive.shared.b64 _, [%empty];", ""), Check::Barrier);
}

#[test]
fn a_stage_that_is_freed_too_early_is_named() {
    let free = "@%leads mbarrier.arrive.shared.b64 _, [%empty];";
    let wait = text().rfind("wgmma.wait_group.sync.aligned 0;").unwrap();
    let early = [&text()[..wait], free, &text()[wait..].replacen(free, "", 1)].concat();
    caught(&early, Check::OperandInUse);
}

#[test]
fn a_tile_that_is_not_waited_for_is_named() {
    let wait = "mbarrier.try_wait.parity.shared.b64 %arrived, [%full], %parity;\n    @!%arrived bra wait_full;";
    caught(&planted(wait, ""), Check::MissingWait);
}

#[test]
fn a_wait_that_does_not_ask_again_is_named() {
    for wait in ["wait_full", "wait_queries", "wait_empty"] {
        caught(&planted(&format!("@!%arrived bra {wait};"), ""), Check::MissingWait);
    }
}

#[test]
fn a_ring_that_is_aligned_to_less_than_its_swizzle_is_named() {
    caught(&planted(".align 1024 .b8 ring[]", ".align 512 .b8 ring[]"), Check::Descriptor);
}
