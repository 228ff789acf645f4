//! Faults planted in the text of group_norm, which keeps a group in shared memory: each is caught by a named check.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx;
use unclip::backend::cuda::emulator::{Arguments, Check, Fault, Machine, Range, parse};
use unclip::backend::cuda::kernels::KERNELS;

const ENTRY: &str = "group_norm_512x2_f32";
/// An image of 15 by 20 positions, which is more than a block takes at a time, 24 channels, three groups.
const SIZES: [u32; 3] = [300, 24, 3];

fn text() -> &'static str {
    KERNELS.iter().find(|kernel| kernel.entries().any(|entry| entry == ENTRY)).unwrap().text
}

/// The kernel with something in the place of a line that it has.
#[track_caller]
fn planted(line: &str, instead: &str) -> String {
    ptx::planted(text(), line, instead)
}

/// Runs it with a style and without an activation.
fn run(text: &str) -> Result<(), Fault> {
    let [positions, channels, groups] = SIZES;
    let (elements_bytes, channels_bytes) = (4 * u64::from(positions * channels), 4 * u64::from(channels));
    let mut machine = Machine::default();
    let mut tensor = |bytes: u64, written: bool| {
        let address = machine.allocate(bytes);
        if !written {
            let numbers: Vec<u8> = (0..bytes / 4).flat_map(|i| ((i % 13) as f32 - 5.5).to_le_bytes()).collect();
            machine.write(address, &numbers).unwrap();
        }
        Range { address, bytes, written }
    };
    let inputs = [elements_bytes, channels_bytes, channels_bytes, 2 * channels_bytes];
    let [x, gamma, beta, style] = inputs.map(|bytes| tensor(bytes, false));
    let y = tensor(elements_bytes, true);
    let kernels = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let kernel = kernels.iter().find(|kernel| kernel.name() == ENTRY).unwrap();
    let scalars = [positions, channels, groups, 1, 0, 1e-5f32.to_bits()];
    let arguments =
        Arguments { maps: &[], tensors: &[x, gamma, beta, style, y], scalars: &scalars, shared_bytes: 48 << 10 };
    machine.launch(kernel, [groups, 1, 1], arguments).map(|_| ())
}

#[track_caller]
fn caught(text: &str, check: Check) {
    let fault = run(text).expect_err("nothing was found");
    assert_eq!(fault.check, check, "{fault}");
}

#[test]
fn the_kernel_without_a_fault_runs() {
    run(text()).unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn elements_that_are_not_waited_for_are_named() {
    caught(&planted("cp.async.wait_all;", ""), Check::MissingWait);
}

#[test]
fn sums_of_warps_that_are_read_before_they_are_written_are_named() {
    caught(&planted("bar.sync 0;", ""), Check::UnwrittenMemory);
}

#[test]
fn two_sums_in_one_place_are_named() {
    caught(&planted("st.shared.f32 [%warp_sum+64], %own;", "st.shared.f32 [%warp_sum+0], %own;"), Check::SharedRace);
}

#[test]
fn a_position_too_many_is_named() {
    caught(&planted("sub.u32 %at, %at, 1;\n    div.u32 %count", "div.u32 %count"), Check::OutOfBounds);
}

#[test]
fn channels_without_factors_are_named() {
    caught(&planted("st.shared.v2.f32 [%put+8], {%g, %b};", ""), Check::UnwrittenMemory);
}

#[test]
fn elements_in_the_place_of_the_sums_are_named() {
    caught(&planted("add.u32 %cell, %cell, 4224;", "add.u32 %cell, %cell, 4096;"), Check::SharedRace);
}

#[test]
fn pairs_that_begin_at_an_odd_channel_are_named() {
    caught(
        &planted("mad.lo.u32 %first, %column, 2, %first;", "mad.lo.u32 %first, %column, 1, %first;"),
        Check::Misaligned,
    );
}
