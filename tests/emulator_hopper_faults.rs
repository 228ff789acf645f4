//! Planted faults in Hopper's asynchronous instructions: each check of the PTX emulator finds its fault and reports it.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx::{self, hopper, rows, run_tiles};
use unclip::backend::cuda::emulator::{Check, Fault, Swizzle, TensorMap};

/// One `wgmma`: thread 0 initialises an `mbarrier` and loads both operands, then all threads wait and multiply. Faults
/// are planted by removing or changing one line.
const MATMUL: &str = "
    setp.eq.u32 p, tid, 0;
    @p mbarrier.init.shared.b64 [bar], 1;
    @p mbarrier.init.shared.b64 [bar+8], 1;
    @p fence.proxy.async;
    bar.sync 0;
    @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], 16384;
    mov.u32 at, tile;
    @p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [at], [m0, {0, 0}], [bar];
    @p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [at+8192], [m0, {0, 64}], [bar];
wait:
    mbarrier.try_wait.parity.shared.b64 q, [bar], 0;
    @!q bra wait;
    shr.u32 at, at, 4;
    cvt.u64.u32 e0, at;
    or.b64 e0, e0, 0x4000004000010000;
    add.u64 e1, e0, 512;
    mov.f32 s0, 0f00000000;
    mov.f32 s1, s0;
    mov.f32 s2, s0;
    mov.f32 s3, s0;
    mov.u32 a0, 0;
    setp.eq.u32 r, 0, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {s0, s1, s2, s3}, e0, e1, r, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    add.f32 s3, s3, s0;
    mad.wide.u32 py, tid, 4, y0;
    st.global.f32 [py], s3;";

fn run(threads: u32, body: &str) -> Result<(), Fault> {
    let x = vec![0u8; 2 * 64 * 128];
    let maps = |x, y| {
        let out = rows(y, [64, 4], [64, 4], Swizzle::Bytes128);
        [rows(x, [64, 128], [64, 64], Swizzle::Bytes128), out]
    };
    run_tiles(&hopper(threads, 20480, body), [1; 3], &x, 128, maps).map(|_| ())
}

#[track_caller]
fn caught(body: &str, check: Check, detail: &str) {
    let fault = run(128, body).expect_err("no fault was found");
    assert_eq!(fault.check, check, "{fault}");
    assert!(fault.detail.contains(detail), "{fault}");
}

/// [`MATMUL`] with one line changed.
#[track_caller]
fn planted(line: &str, instead: &str) -> String {
    ptx::planted(MATMUL, line, instead)
}

#[test]
fn the_matmul_without_a_fault_runs() {
    run(128, MATMUL).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn more_bytes_than_an_mbarrier_counts_are_found() {
    caught(&planted("[bar], 16384;", "[bar], 1048576;"), Check::Mbarrier, "expects 1048576 bytes");
}

#[test]
fn accumulators_that_are_read_before_their_group_is_waited_for_are_named() {
    for instead in ["", "wgmma.wait_group.sync.aligned 1;"] {
        let body = planted("wgmma.wait_group.sync.aligned 0;", instead).replace("add.f32 s3, s3", "add.f32 s4, s3");
        caught(&body, Check::RegisterInUse, "s3 is read while a wgmma computes it");
    }
}

#[test]
fn accumulators_that_are_overwritten_before_their_group_is_waited_for_are_named() {
    let body = planted("wgmma.commit_group.sync.aligned;", "mov.f32 s1, 0f00000000; wgmma.commit_group.sync.aligned;");
    caught(&body, Check::RegisterInUse, "s1 is written while a wgmma uses it");
}

#[test]
fn a_fragment_that_is_overwritten_before_its_group_is_waited_for_is_named() {
    let body =
        planted("{s0, s1, s2, s3}, e0, e1, r, 1, 1, 0, 0;", "{s0, s1, s2, s3}, {a0, a0, a0, a0}, e1, r, 1, 1, 0;");
    let body = body.replace("wgmma.wait_group.sync.aligned 0;", "mov.u32 a0, 1; wgmma.wait_group.sync.aligned 0;");
    caught(&body, Check::RegisterInUse, "a0 is written while a wgmma uses it");
}

#[test]
fn a_missing_fence_before_a_wgmma_is_found() {
    caught(&planted("wgmma.fence.sync.aligned;", ""), Check::MissingFence, "after the last wgmma.fence");
    let late = planted("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned; mov.f32 s2, 0f00000000;");
    caught(&late, Check::MissingFence, "s2 was written after the last wgmma.fence");
}

#[test]
fn uninitialised_accumulators_are_named() {
    caught(&planted("mov.f32 s3, s0;", ""), Check::UnwrittenRegister, "s3 was not written");
}

/// Threads write the B operand to shared memory.
const WRITTEN: &str = "
    bar.sync 0;
    shl.b32 sm, tid, 3;
    add.u32 sm, sm, at;
    st.shared.v2.u32 [sm+8192], {a0, a0};
    fence.proxy.async;
    bar.sync 0;
    shr.u32 at, at, 4;";

fn written(line: &str, instead: &str) -> String {
    assert!(WRITTEN.contains(line), "{line}");
    let body = planted("mov.u32 at, tile;", "mov.u32 at, tile; mov.u32 a0, 0;");
    body.replace("shr.u32 at, at, 4;", &WRITTEN.replacen(line, instead, 1))
}

#[test]
fn operands_that_threads_wrote_need_a_proxy_fence_by_these_threads() {
    run(128, &written("bar.sync 0;", "bar.sync 0;")).unwrap_or_else(|e| panic!("{e}"));
    let missing = "executed no fence.proxy.async after writing it";
    caught(&written("fence.proxy.async;", ""), Check::MissingProxyFence, missing);
    // A fence by one thread after the barrier does not cover the writes of the others.
    let late = written("fence.proxy.async;\n    bar.sync 0;", "bar.sync 0; @p fence.proxy.async;");
    caught(&late, Check::MissingProxyFence, missing);
    // Without the barrier the first warp's wgmma reads before the others have written.
    let unordered = written("fence.proxy.async;\n    bar.sync 0;", "fence.proxy.async;");
    caught(&unordered, Check::OperandInUse, "while a wgmma of warp 0 may still read it");
}

/// The wait in [`MATMUL`].
const WAIT: &str = "wait:\n    mbarrier.try_wait.parity.shared.b64 q, [bar], 0;\n    @!q bra wait;";

#[test]
fn a_tile_that_is_used_before_its_phase_completed_is_found() {
    let phase = "the mbarrier phase of the copy has not completed";
    caught(&planted(WAIT, ""), Check::MissingWait, phase);
    // A wait for the opposite parity returns at once: the phase before the first one counts as completed.
    caught(&planted("q, [bar], 0;", "q, [bar], 1;"), Check::MissingWait, phase);
    caught(&planted(WAIT, "ld.shared.u32 a1, [at];"), Check::MissingWait, phase);
}

#[test]
fn a_tile_whose_mbarrier_was_not_waited_for_is_found_even_if_it_has_landed() {
    let wait = "@p mbarrier.arrive.shared.b64 _, [bar+8];
        @p mbarrier.arrive.shared.b64 _, [bar+16];
        setp.ge.u32 q, tid, 32;
        @q bra other;
        wait: mbarrier.try_wait.parity.shared.b64 q, [bar], 0; @!q bra wait;
        @p mbarrier.arrive.shared.b64 _, [bar+24];
        other: mbarrier.try_wait.parity.shared.b64 q, [bar+16], 0; @!q bra other;";
    let more =
        "@p mbarrier.init.shared.b64 [bar+16], 1; @p mbarrier.init.shared.b64 [bar+24], 1; @p fence.proxy.async;";
    let body = planted(WAIT, wait).replacen("@p fence.proxy.async;", more, 1);
    caught(&body, Check::MissingWait, "");
}

#[test]
fn a_wrong_number_of_expected_bytes_is_found() {
    caught(&planted("[bar], 16384", "[bar], 16400"), Check::Transactions, "16 expected bytes are never copied");
    caught(&planted("[bar], 16384", "[bar], 8192"), Check::Transactions, "more bytes were copied than expected");
}

#[test]
fn a_phase_that_never_ends_names_every_waiting_warp() {
    // All threads wait for the second phase, in which none arrives.
    let twice =
        planted(WAIT, &format!("{WAIT} again: mbarrier.try_wait.parity.shared.b64 q, [bar], 1; @!q bra again;"));
    caught(&twice, Check::Barrier, "parity 1 of mbarrier 0 never ends: it is in phase 1, 0 of 1 threads");
    caught(&twice, Check::Barrier, "warp 3 waits at mbarrier 0 for parity 1");
    let counted = planted("mbarrier.init.shared.b64 [bar], 1;", "mbarrier.init.shared.b64 [bar], 2;");
    caught(&counted, Check::Barrier, "1 of 2 threads have arrived");
}

#[test]
fn uses_of_no_mbarrier_or_against_its_rules_are_found() {
    caught(&planted("@p mbarrier.init.shared.b64 [bar], 1;", ""), Check::Mbarrier, "no initialised mbarrier");
    let gone = planted(
        "mov.u32 a0, 0;",
        "bar.sync 0; @p mbarrier.inval.shared.b64 [bar]; bar.sync 0; mbarrier.arrive.shared.b64 _, [bar];",
    );
    caught(&gone, Check::Mbarrier, "no initialised mbarrier");
    caught(&planted("mov.u32 a0, 0;", "st.shared.u32 [bar], tid;"), Check::Mbarrier, "holds an mbarrier");
    caught(&planted("mov.u32 a0, 0;", "mbarrier.arrive.shared.b64 _, [bar+8], 2;"), Check::Mbarrier, "takes 1 more");
}

#[test]
fn an_mbarrier_is_visible_to_threads_after_a_barrier_and_to_copies_after_a_fence() {
    caught(&planted("bar.sync 0;", ""), Check::SharedRace, "no barrier after its mbarrier.init");
    caught(&planted("@p fence.proxy.async;", ""), Check::MissingProxyFence, "no fence after its mbarrier.init");
}

#[test]
fn warpgroup_instructions_need_all_four_warps() {
    let divergent = planted("wgmma.commit_group", "setp.lt.u32 q, lane, 7; @q wgmma.commit_group");
    caught(&divergent, Check::DivergentWarp, "wgmma.commit_group was executed by 7 of 32 threads");
    let three = planted("wgmma.fence.sync.aligned;", "setp.ge.u32 q, warp, 3; @q ret; wgmma.fence.sync.aligned;");
    caught(&three, Check::Warpgroup, "the warp executed 0 of the 4 instructions of warpgroup 0");
    let three = planted("mov.u32 a0, 0;", "setp.ge.u32 q, warp, 3; @!q setmaxnreg.inc.sync.aligned.u32 160;");
    caught(&three, Check::Warpgroup, "executed a different instruction");
    let half = run(64, MATMUL).expect_err("half a warpgroup");
    assert_eq!(half.check, Check::Warpgroup, "{half}");
    let other = planted("add.u64 e1, e0, 512;", "cvt.u64.u32 e2, warp; add.u64 e1, e0, 512; add.u64 e1, e1, e2;");
    assert_eq!(run(128, &other).expect_err("different descriptors").check, Check::Warpgroup);
}

#[test]
fn a_tile_that_is_overwritten_while_a_wgmma_reads_it_is_found() {
    let detail = "while a wgmma of warp";
    let body = planted("wgmma.wait_group", "st.shared.u32 [tile], a0; wgmma.wait_group");
    caught(&body, Check::OperandInUse, detail);
    let again = "@p mbarrier.arrive.expect_tx.shared.b64 _, [bar+8], 8192;
        @p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [m0, {0, 0}], [bar+8];
        second: mbarrier.try_wait.parity.shared.b64 q, [bar+8], 0;
        @!q bra second;";
    caught(&planted("wgmma.wait_group", &format!("{again} wgmma.wait_group")), Check::OperandInUse, detail);
    // A warp's wait covers the reads of the other warps only after a barrier.
    let unordered = planted("add.f32 s3, s3, s0;", &format!("add.f32 s3, s3, s0; setp.eq.u32 p, tid, 96; {again}"));
    caught(&unordered, Check::OperandInUse, detail);
    let ordered = planted("add.f32 s3, s3, s0;", &format!("add.f32 s3, s3, s0; bar.sync 0; {again}"));
    run(128, &ordered).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_tile_that_is_overwritten_while_a_store_reads_it_is_found() {
    let store = "@p cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [m1, {0, 0}], [tile];
        @p cp.async.bulk.commit_group; WAIT @p st.shared.u32 [tile], a0;";
    let body = planted("mad.wide.u32 py", &store.replace("WAIT", "").replace(" @p st", " bar.sync 0; @p st"));
    let body = body.replace("mad.wide.u32 py, tid, 4, y0;", "").replace("st.global.f32 [py], s3;", "");
    let body = body.replace(", tid, 4, y0;", "");
    caught(&body, Check::OperandInUse, "while a bulk store of warp 0 may still read it");
}

#[test]
fn tiles_and_descriptors_that_are_not_aligned_to_their_swizzle_are_found() {
    let detail = "a matrix descriptor";
    caught(&planted("add.u64 e1, e0, 512;", "add.u64 e1, e0, 520;"), Check::Descriptor, detail);
    caught(&planted("0x4000004000010000", "0x4000002000010000"), Check::Descriptor, detail);
    caught(&planted("0x4000004000010000", "0x4010004000010000"), Check::Descriptor, "undefined bits");
    caught(&planted("[at+8192], [m0", "[at+8320], [m0"), Check::Descriptor, "not a multiple of 1024");
    caught(&planted("[m0, {0, 64}]", "[x0, {0, 64}]"), Check::Descriptor, "no tensor map at");
    caught(&planted("tensor.2d", "tensor.3d").replacen("{0, 0}", "{0, 0, 0}", 1), Check::Descriptor, "3 coordinates");
}

#[test]
fn asynchronous_work_in_flight_at_exit_is_found() {
    let end = MATMUL.split("wait:").next().unwrap();
    caught(end, Check::MissingWait, "a bulk copy is in flight at exit");
    let end = MATMUL.split("wgmma.wait_group").next().unwrap();
    caught(end, Check::MissingWait, "a wgmma or bulk store is in flight at exit");
}

#[test]
fn tiles_that_end_within_a_step_or_skip_elements_of_a_row_are_refused() {
    let x = vec![0u8; 16384];
    for (tile, steps, rule) in [
        ([64, 127], [1, 2], "tile extents must be multiples of their steps"),
        ([128, 64], [2, 1], "the first step must be 1"),
    ] {
        let maps = |x, _| {
            let whole = rows(x, [64, 128], [64, 64], Swizzle::Bytes128);
            [TensorMap { tile: tile.to_vec(), steps: steps.to_vec(), ..whole.clone() }, whole]
        };
        let fault = run_tiles(&hopper(128, 20480, MATMUL), [1; 3], &x, 128, maps).expect_err("refused");
        assert!(fault.detail.contains(rule), "{fault}");
    }
}

#[test]
fn a_map_that_is_larger_than_its_tensor_is_refused() {
    let x = vec![0u8; 16384];
    let maps =
        |x, _| [rows(x, [64, 129], [64, 64], Swizzle::Bytes128), rows(x, [64, 128], [64, 64], Swizzle::Bytes128)];
    let fault = run_tiles(&hopper(128, 20480, MATMUL), [1; 3], &x, 128, maps).expect_err("too large");
    assert!(fault.detail.contains("the dimensions must lie in the tensor's memory"), "{fault}");
}
