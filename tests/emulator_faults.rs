//! Planted faults: each check of the PTX emulator finds its fault and reports it.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx::{module, run, run_in_place};
use unclip::backend::cuda::emulator::{Check, Fault};

/// Each thread stores a word in shared memory at its own address `sm`; `at` is the array's address.
const SHARE: &str = "mov.u32 at, tile; shl.b32 sm, tid, 2; add.u32 sm, sm, at; st.shared.u32 [sm], tid;";

/// The fault of a program with blocks of 64 threads and tensors of 64 words.
fn fault(body: &str) -> Fault {
    match run(&module(64, 256, body), [2, 1, 1], &[1; 64], 64, 64) {
        Ok(_) => panic!("no fault was found in {body}"),
        Err(fault) => fault,
    }
}

#[track_caller]
fn caught(body: &str, check: Check, detail: &str) {
    let fault = fault(body);
    assert_eq!(fault.check, check, "{fault}");
    assert!(fault.detail.contains(detail), "{fault}");
}

#[test]
fn an_index_one_too_far_is_out_of_bounds() {
    caught("ld.global.u32 a0, [px+4];", Check::OutOfBounds, "4 bytes at byte 256 of a tensor of 256 bytes");
}

#[test]
fn an_index_before_the_beginning_is_out_of_bounds() {
    caught("st.global.u32 [py+-4], tid;", Check::OutOfBounds, "byte -4");
}

#[test]
fn a_vector_that_reaches_over_the_end_is_out_of_bounds() {
    caught("mad.wide.u32 px, tid, 4, x0; ld.global.v2.u32 {a0, a1}, [px+252];", Check::OutOfBounds, "8 bytes");
}

#[test]
fn a_missing_bounds_check_is_out_of_bounds_in_the_second_block() {
    let body = "mov.u32 a0, %ctaid.x; mad.lo.u32 at, a0, 64, tid; mad.wide.u32 py, at, 4, y0; st.global.u32 [py], tid;";
    let fault = fault(body);
    assert_eq!((fault.check, fault.block), (Check::OutOfBounds, [1, 0, 0]), "{fault}");
}

#[test]
fn a_shared_index_too_far_is_out_of_bounds() {
    caught(&format!("{SHARE} bar.sync 0; ld.shared.u32 a0, [sm+4];"), Check::OutOfBounds, "byte 256 of 256 shared");
}

#[test]
fn a_forgotten_base_address_is_out_of_bounds() {
    caught("shl.b32 sm, tid, 2; st.shared.u32 [sm], tid;", Check::OutOfBounds, "shared");
}

#[test]
fn a_vector_at_an_odd_word_is_misaligned() {
    caught("ld.global.v2.u32 {a0, a1}, [x0+4];", Check::Misaligned, "8 bytes");
}

#[test]
fn a_shared_vector_at_an_odd_word_is_misaligned() {
    caught(
        "mov.u32 at, tile; st.shared.v4.u32 [at+8], {tid, tid, tid, tid};",
        Check::Misaligned,
        "16 bytes at shared byte 8",
    );
}

#[test]
fn a_write_to_an_input_is_refused() {
    caught("st.global.u32 [px], tid;", Check::ReadOnly, "read-only");
}

#[test]
fn output_that_is_read_before_it_is_written_is_found() {
    caught("ld.global.u32 a0, [py];", Check::UnwrittenMemory, "byte 0");
}

#[test]
fn a_read_of_unwritten_shared_memory_is_found() {
    let body = "mov.u32 at, tile; shl.b32 sm, tid, 2; add.u32 sm, sm, at; ld.shared.u32 a0, [sm];";
    caught(body, Check::UnwrittenMemory, "shared byte 0");
}

#[test]
fn an_uninitialised_accumulator_is_named() {
    caught("mov.f32 a0, 0f3F800000; fma.rn.f32 c3, a0, a0, c3;", Check::UnwrittenRegister, "c3 was not written");
}

#[test]
fn a_register_that_only_some_threads_wrote_is_named() {
    let fault = fault("setp.lt.u32 p, tid, 40; @p mov.u32 a0, 1; add.u32 d0, a0, 1;");
    assert_eq!((fault.check, fault.thread), (Check::UnwrittenRegister, [40, 0, 0]), "{fault}");
}

#[test]
fn an_uninitialised_predicate_is_named() {
    caught("@r mov.u32 a0, 1;", Check::UnwrittenRegister, "r was not written");
}

#[test]
fn a_removed_barrier_after_a_write_is_a_race() {
    caught(&format!("{SHARE} xor.b32 a1, sm, 128; ld.shared.u32 a0, [a1];"), Check::UnwrittenMemory, "shared");
    // The emulator runs the second warp after the first one has written its half; hardware may run it before.
    let body = format!("{SHARE} setp.lt.u32 p, tid, 32; @p bra end; ld.shared.u32 a0, [sm+-128]; end:");
    caught(&body, Check::SharedRace, "read after thread 0 has written");
}

#[test]
fn a_removed_barrier_before_the_next_round_is_a_race() {
    let body = format!("{SHARE} bar.sync 0; ld.shared.u32 a0, [at+252]; st.shared.u32 [sm], a0;");
    caught(&body, Check::SharedRace, "written after thread");
}

#[test]
fn two_warps_that_write_one_word_are_a_race() {
    caught("mov.u32 at, tile; st.shared.u32 [at], tid;", Check::SharedRace, "has written");
}

#[test]
fn neighbours_in_a_warp_need_a_warp_barrier() {
    let racy = format!("{SHARE} and.b32 a1, tid, 32; shl.b32 a1, a1, 2; add.u32 a1, a1, at; ld.shared.u32 a0, [a1];");
    caught(&racy, Check::SharedRace, "thread 0");
    let ordered = racy.replace("and.b32", "bar.warp.sync 0xffffffff; and.b32");
    assert!(run(&module(64, 256, &ordered), [1; 3], &[1; 64], 64, 64).is_ok());
}

#[test]
fn a_barrier_in_a_branch_is_divergent() {
    caught("setp.lt.u32 p, tid, 40; @!p bra end; bar.sync 0; end:", Check::DivergentWarp, "aligned barrier");
}

#[test]
fn a_barrier_that_a_whole_warp_skips_is_found() {
    let fault = fault("setp.lt.u32 p, tid, 32; @!p bra end; bar.sync 0; end:");
    assert_eq!(fault.check, Check::Barrier, "{fault}");
    assert!(fault.detail.contains("32 of 64 threads have arrived at barrier 0, and thread 32 has exited"), "{fault}");
}

#[test]
fn warps_at_different_barriers_are_found() {
    let body = "shr.u32 a0, tid, 5; setp.eq.u32 p, a0, 0; @p bra first; bar.sync 2; bra end; first: bar.sync 1; end:";
    caught(body, Check::Barrier, "waits at barrier");
}

#[test]
fn a_shuffle_in_a_branch_is_divergent() {
    let body = "setp.lt.u32 p, tid, 16; @!p bra end; shfl.sync.bfly.b32 a0, tid, 1, 0x1f, 0xffffffff; end:";
    caught(body, Check::DivergentWarp, "0xffffffff was executed by 0x0000ffff");
}

#[test]
fn an_mma_in_a_branch_is_divergent() {
    let body = "
        mov.u32 a0, 0; setp.lt.u32 p, tid, 40; @!p bra end;
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {c0, c1, c2, c3}, {a0, a0}, {a0}, {a0, a0, a0, a0}; end:";
    caught(body, Check::DivergentWarp, "mma.sync");
}

/// Each thread copies a word to shared memory with `cp.async`.
const COPY: &str = "mov.u32 at, tile; shl.b32 sm, tid, 2; add.u32 sm, sm, at;
    cp.async.ca.shared.global [sm], [px], 4; cp.async.commit_group;";

#[test]
fn a_missing_wait_is_found() {
    caught(&format!("{COPY} bar.sync 0; ld.shared.u32 a0, [sm];"), Check::MissingWait, "cp.async into it is in flight");
}

#[test]
fn more_shared_memory_than_the_smallest_device_has_is_refused() {
    let fault = |text: &str| run(text, [1; 3], &[1; 64], 64, 64).err();
    let small = fault(&module(64, 100 << 10, "")).expect("refused");
    assert!(small.detail.contains("102400 bytes of shared memory, a block has at most 101376"), "{small}");
    let large = |kib: u32| module(64, kib << 10, "").replace("sm_80", "sm_90a");
    assert!(fault(&large(227)).is_none() && fault(&large(228)).is_some());
}

#[test]
fn a_copy_of_more_bytes_than_its_destination_has_is_found() {
    let body = "mov.u32 sm, tile; mov.u32 a0, 8; cp.async.ca.shared.global [sm], [px], 4, a0;";
    caught(body, Check::OutOfBounds, "a source of 8 bytes and a destination of 4");
}

#[test]
fn a_wait_for_too_few_groups_is_found() {
    let body = format!("{COPY} cp.async.wait_group 1; ld.shared.u32 a0, [sm];");
    caught(&body, Check::MissingWait, "cp.async into it is in flight");
}

#[test]
fn copies_in_flight_at_exit_are_found() {
    caught(COPY, Check::MissingWait, "in flight at exit");
}

#[test]
fn a_wait_without_a_barrier_orders_nothing_for_other_threads() {
    let body =
        format!("{COPY} cp.async.wait_all; setp.lt.u32 p, tid, 32; @p bra end; ld.shared.u32 a0, [sm+-128]; end:");
    caught(&body, Check::SharedRace, "read after thread 0 has written");
}

#[test]
fn an_endless_loop_is_stopped() {
    caught("again: bra again;", Check::Endless, "instructions");
}

#[test]
fn a_launch_with_the_wrong_parameters_is_refused() {
    let text = module(64, 0, "").replace(", .param .u32 n)", ", .param .u64 n)").replace("ld.param.u32 n, [n];", "");
    let fault = run(&text, [1; 3], &[1], 1, 1).unwrap_err();
    assert!(fault.detail.contains("parameter n has 8 bytes"), "{fault}");
}

#[test]
fn a_fault_says_which_kernel_line_block_and_thread() {
    let fault = fault("\n\nsetp.eq.u32 p, tid, 37; @p ld.global.u32 a0, [x0+1024];");
    let text = module(64, 256, "\n\nsetp.eq.u32");
    let line = text.lines().position(|l| l.contains("setp.eq.u32")).unwrap() + 1;
    let message = fault.to_string();
    assert!(message.contains(&format!("f, line {line}, block")) && message.contains("thread [37, 0, 0]"), "{message}");
}

/// `at` is the thread's index in the grid, `py` its own word, `px` the word of the same thread in the other of two
/// blocks.
const OWN: &str = "mov.u32 a0, %ctaid.x; mad.lo.u32 at, a0, 64, tid; mad.wide.u32 py, at, 4, y0;
    xor.b32 a1, at, 64; mad.wide.u32 px, a1, 4, x0;";

#[test]
fn blocks_that_write_the_same_word_are_a_race() {
    let body = "st.global.u32 [py], tid;";
    let fault = run_in_place(&module(64, 0, body), [2, 1, 1], 128).unwrap_err();
    assert_eq!(fault.check, Check::GlobalRace, "{fault}");
    assert!(fault.detail.contains("byte 0 of a tensor is written by block"), "{fault}");
    let own = format!("{OWN} st.global.u32 [py], tid; st.global.u32 [py], at; ld.global.u32 a0, [py];");
    run_in_place(&module(64, 0, &own), [2, 1, 1], 128).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_block_that_reads_what_another_writes_is_a_race() {
    for body in ["ld.global.u32 a2, [px]; st.global.u32 [py], a2;", "st.global.u32 [py], tid; ld.global.u32 a2, [px];"]
    {
        let fault = run_in_place(&module(64, 0, &format!("{OWN} {body}")), [2, 1, 1], 128).unwrap_err();
        assert_eq!(fault.check, Check::GlobalRace, "{fault}");
    }
}

#[test]
fn writes_to_different_bytes_of_a_word_and_two_atomics_are_no_race() {
    let halves = "mov.u32 a0, %ctaid.x; mad.lo.u32 at, tid, 2, a0; mad.wide.u32 py, at, 2, y0;
        cvt.u16.u32 h0, tid; st.global.u16 [py], h0;";
    run_in_place(&module(64, 0, halves), [2, 1, 1], 128).unwrap_or_else(|e| panic!("{e}"));
    let counts = "red.global.add.u32 [y0], 1;";
    run_in_place(&module(64, 0, counts), [2, 1, 1], 128).unwrap_or_else(|e| panic!("{e}"));
    let read = format!("{counts} mov.u32 a0, %ctaid.x; setp.eq.u32 p, a0, 1; @p ld.global.u32 a1, [y0];");
    let fault = run_in_place(&module(64, 0, &read), [2, 1, 1], 128).unwrap_err();
    assert_eq!(fault.check, Check::GlobalRace, "{fault}");
}

#[test]
fn an_earlier_reader_is_remembered_after_a_later_one() {
    // Warp 0 reads first. Warp 1 reads and synchronises with warp 2, which then writes, unordered with warp 0's read.
    let body = "mov.u32 at, tile; shr.u32 a0, tid, 5; setp.eq.u32 p, tid, 96; @p st.shared.u32 [at], tid; bar.sync 0;
        setp.eq.u32 p, a0, 0; @p bra first; setp.eq.u32 p, a0, 1; @p bra second; setp.eq.u32 p, a0, 3; @p bra end;
        bar.sync 1, 64; setp.eq.u32 p, tid, 64; @p st.shared.u32 [at], tid; bra end;
        first: ld.shared.u32 a1, [at]; bar.warp.sync 0xffffffff; bra end;
        second: ld.shared.u32 a1, [at]; bar.arrive 1, 64;
        end:";
    let fault = run(&module(128, 256, body), [1; 3], &[1; 64], 64, 64).unwrap_err();
    assert_eq!((fault.check, fault.thread), (Check::SharedRace, [64, 0, 0]), "{fault}");
    assert!(fault.detail.contains("after thread 0 has read it"), "{fault}");
    // If warp 0 synchronises with warp 1, its read happens before warp 2's write.
    let ordered =
        body.replace("bar.warp.sync 0xffffffff;", "bar.arrive 2, 64;").replace("second:", "second: bar.sync 2, 64;");
    run(&module(128, 256, &ordered), [1; 3], &[1; 64], 64, 64).unwrap_or_else(|e| panic!("{e}"));
}
