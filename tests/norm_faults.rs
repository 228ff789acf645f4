//! Faults planted in the texts of group_norm, which keeps a group in shared memory, and of matmul_sum, which writes
//! statistics for a norm: each is caught by a named check.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx;
use unclip::backend::cuda::emulator::{Arguments, Check, DeviceSlice, Fault, Machine, parse};
use unclip::backend::cuda::kernels::KERNELS;

const NORM: &str = "group_norm_512x2_f32";
/// An image of 15 by 20 positions, which is more than a block takes at a time, 24 channels, three groups.
const SIZES: [u32; 3] = [300, 24, 3];
const SUM: &str = "matmul_sum_f32_f32";

fn text(entry: &str) -> &'static str {
    KERNELS.iter().find(|kernel| kernel.entries().any(|own| own == entry)).unwrap().text
}

/// Memory of this size: small floats, or to be written.
fn tensor(machine: &mut Machine, bytes: u64, written: bool) -> DeviceSlice {
    let address = machine.allocate(bytes);
    if !written {
        let floats: Vec<u8> = (0..bytes / 4).flat_map(|i| ((i % 13) as f32 - 5.5).to_le_bytes()).collect();
        machine.write(address, &floats).unwrap();
    }
    DeviceSlice { address, bytes, written }
}

/// Runs a text of group_norm with a style and without an activation.
fn run_norm(text: &str) -> Result<(), Fault> {
    let [positions, channels, groups] = SIZES;
    let (elements_bytes, channels_bytes) = (4 * u64::from(positions * channels), 4 * u64::from(channels));
    let mut machine = Machine::default();
    let inputs = [elements_bytes, channels_bytes, channels_bytes, 2 * channels_bytes];
    let [x, gamma, beta, style] = inputs.map(|bytes| tensor(&mut machine, bytes, false));
    let y = tensor(&mut machine, elements_bytes, true);
    let kernels = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let kernel = kernels.iter().find(|kernel| kernel.name() == NORM).unwrap();
    let scalars = [positions, channels, groups, 1, 0, 1e-5f32.to_bits()];
    let arguments = Arguments {
        maps: &[],
        tensors: &[x, gamma, beta, style, y],
        scalars: &scalars,
        shared_bytes: 48 << 10,
        cluster: 1,
    };
    machine.launch(kernel, [groups, 1, 1], arguments).map(|_| ())
}

/// Runs a text of matmul_sum: two splits of 64 rows by 30 columns, statistics for every 10 columns, nothing added.
fn run_sum(text: &str) -> Result<(), Fault> {
    const ROWS: u32 = 64;
    const OUTPUTS: u32 = 30;
    const UNIT: u32 = 10;
    let bytes = 4 * u64::from(ROWS * OUTPUTS);
    let mut machine = Machine::default();
    let x = tensor(&mut machine, 2 * bytes, false);
    let statistics = tensor(&mut machine, 12 * u64::from(ROWS / 32 * OUTPUTS / UNIT), true);
    let y = tensor(&mut machine, bytes, true);
    let kernels = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let kernel = kernels.iter().find(|kernel| kernel.name() == SUM).unwrap();
    let scalars = [ROWS, 2, OUTPUTS, ROWS, 32, 0, 0, 0, 0, UNIT];
    let arguments =
        Arguments { maps: &[], tensors: &[x, x, x, x, statistics, y], scalars: &scalars, shared_bytes: 0, cluster: 1 };
    machine.launch(kernel, [1, ROWS / 32, 1], arguments).map(|_| ())
}

/// An entry, and what runs a text of it.
struct Subject {
    entry: &'static str,
    run: fn(&str) -> Result<(), Fault>,
}

const NORM_KERNEL: Subject = Subject { entry: NORM, run: run_norm };
const SUM_KERNEL: Subject = Subject { entry: SUM, run: run_sum };

/// Puts something in the place of a line that the kernel has, and sees what is found.
#[track_caller]
fn caught(Subject { entry, run }: Subject, line: &str, instead: &str, check: Check) {
    let fault = run(&ptx::planted(text(entry), line, instead)).expect_err("nothing was found");
    assert_eq!(fault.check, check, "{fault}");
}

#[test]
fn the_kernels_without_a_fault_run() {
    for Subject { entry, run } in [NORM_KERNEL, SUM_KERNEL] {
        run(text(entry)).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn elements_that_are_not_waited_for_are_named() {
    caught(NORM_KERNEL, "cp.async.wait_all;", "", Check::MissingWait);
}

#[test]
fn sums_of_warps_that_are_read_before_they_are_written_are_named() {
    caught(NORM_KERNEL, "bar.sync 0;", "", Check::UnwrittenMemory);
}

#[test]
fn two_sums_in_one_place_are_named() {
    caught(
        NORM_KERNEL,
        "st.shared.f32 [%warp_sum_at+64], %sum;",
        "st.shared.f32 [%warp_sum_at+0], %sum;",
        Check::SharedRace,
    );
}

#[test]
fn a_position_too_many_is_named() {
    caught(NORM_KERNEL, "sub.u32 %counted, %counted, 1;", "", Check::OutOfBounds);
}

#[test]
fn channels_without_scale_and_shift_are_named() {
    caught(NORM_KERNEL, "st.shared.v2.f32 [%scale_shift_at+8], {%gamma_c, %beta_c};", "", Check::UnwrittenMemory);
}

#[test]
fn elements_in_the_place_of_the_sums_are_named() {
    caught(NORM_KERNEL, "add.u32 %cell, %cell, 4224;", "add.u32 %cell, %cell, 4096;", Check::SharedRace);
}

#[test]
fn pairs_that_begin_at_an_odd_channel_are_named() {
    caught(
        NORM_KERNEL,
        "mad.lo.u32 %first, %thread_column, 2, %first;",
        "mad.lo.u32 %first, %thread_column, 1, %first;",
        Check::Misaligned,
    );
}

#[test]
fn statistics_that_are_merged_before_all_are_there_are_named() {
    caught(SUM_KERNEL, "bar.sync 0;", "", Check::UnwrittenMemory);
}

#[test]
fn merged_columns_that_are_not_waited_for_are_named() {
    let wait = "columns_merged:\n    // other threads load the merged pairs\n    bar.sync 0;";
    caught(SUM_KERNEL, wait, "columns_merged:", Check::SharedRace);
}

#[test]
fn sums_that_nobody_cleared_are_named() {
    caught(SUM_KERNEL, "mov.f32 %over0, 0f00000000;", "", Check::UnwrittenRegister);
}

#[test]
fn statistics_too_far_apart_are_named() {
    caught(
        SUM_KERNEL,
        "mad.wide.u32 %entry_address, %entry, 12, %entry_address;",
        "mad.wide.u32 %entry_address, %entry, 16, %entry_address;",
        Check::OutOfBounds,
    );
}

#[test]
fn a_split_too_many_is_named() {
    caught(
        SUM_KERNEL,
        "setp.ne.u32 %more_splits, %splits, 0;",
        "setp.ge.s32 %more_splits, %splits, 0;",
        Check::OutOfBounds,
    );
}
