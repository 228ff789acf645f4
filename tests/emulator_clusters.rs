//! Clusters of blocks on the PTX emulator: what their shared memory gives each other, and the faults that are found.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx::{kernel, module, planted};
use unclip::backend::cuda::emulator::{Arguments, Check, DeviceSlice, Fault, Machine};

/// Thread t of block b writes 100 b + t to shared memory, and t plus the sum over all blocks' words t to `y`.
const SUM: &str = "
    .reg .b32 rank, other, sum, word, ranks;
    .reg .f32 value;
    mov.u32 rank, %ctaid.z;
    mov.u32 ranks, %nctaid.z;
    mov.u32 at, tile;
    mad.lo.u32 at, tid, 4, at;
    mad.lo.u32 word, rank, 100, tid;
    st.shared.b32 [at], word;
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    mov.u32 sum, tid;
    mov.u32 a0, 0;
next:
    mapa.shared::cluster.u32 other, at, a0;
    ld.shared::cluster.b32 word, [other];
    add.u32 sum, sum, word;
    add.u32 a0, a0, 1;
    setp.lt.u32 p, a0, ranks;
    @p bra next;
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.acquire.aligned;
    mad.lo.u32 rank, rank, 64, tid;
    mad.wide.u32 py, rank, 4, y0;
    st.global.b32 [py], sum;";

fn run(body: &str, cluster: u32) -> Result<Vec<u32>, Fault> {
    let mut machine = Machine::default();
    let words = 64 * 4;
    let address = machine.allocate(4 * words);
    let y = DeviceSlice { address, bytes: 4 * words, written: true };
    let tensors = [DeviceSlice { written: false, ..y }, y];
    let arguments = Arguments { maps: &[], tensors: &tensors, scalars: &[0], shared_bytes: 0, cluster };
    machine.launch(&kernel(&module(64, 256, body)), [1, 1, 4], arguments)?;
    let bytes = machine.read(address, 4 * words as usize).unwrap();
    Ok(bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect())
}

#[track_caller]
fn caught(body: &str, check: Check, detail: &str) {
    let fault = run(body, 4).expect_err("no fault was found");
    assert!(fault.check == check && fault.detail.contains(detail), "{fault}");
}

#[test]
fn a_block_reads_the_shared_memory_of_every_block_of_its_cluster() {
    let want: Vec<u32> = (0..256).map(|i| 600 + 5 * (i % 64)).collect();
    assert_eq!(run(SUM, 4).unwrap(), want);
}

#[test]
fn a_rank_beyond_the_cluster_is_named() {
    let fault = run(SUM, 2).expect_err("no fault was found");
    assert!(fault.detail.contains("block 2 of the cluster"), "{fault}");
}

#[test]
fn a_grid_that_is_no_multiple_of_the_cluster_is_refused() {
    assert!(run(SUM, 3).unwrap_err().detail.contains("clusters of 3"));
}

#[test]
fn a_read_without_a_cluster_barrier_before_it_is_named() {
    let body = SUM.replacen("barrier.cluster.arrive.release.aligned;", "", 1);
    let body = body.replacen("barrier.cluster.wait.acquire.aligned;", "bar.sync 0;", 1);
    caught(&body, Check::SharedRace, "before a cluster barrier that releases it");
}

#[test]
fn a_barrier_that_releases_nothing_does_not_order_reads() {
    let body = planted(SUM, "arrive.release.aligned", "arrive.relaxed.aligned");
    caught(&body, Check::SharedRace, "before a cluster barrier that releases it");
}

#[test]
fn a_write_while_others_may_read_is_named() {
    let body = planted(SUM, "mov.u32 sum, tid;", "mov.u32 sum, tid;\nst.shared.b32 [at], sum;");
    caught(&body, Check::SharedRace, "read by another block without a cluster barrier between");
}

#[test]
fn a_block_that_ends_while_others_may_read_is_named() {
    let body = planted(SUM, "barrier.cluster.arrive.relaxed.aligned;\n    barrier.cluster.wait.acquire.aligned;", "");
    caught(&body, Check::SharedRace, "ends while others may read");
}

#[test]
fn a_block_that_does_not_arrive_is_named() {
    let body = planted(
        SUM,
        "barrier.cluster.arrive.relaxed",
        "setp.eq.u32 p, rank, 1;\n@p ret;\nbarrier.cluster.arrive.relaxed",
    );
    caught(&body, Check::SharedRace, "ends while others may read");
}

#[test]
fn work_between_arrival_and_wait_is_refused() {
    let body = planted(SUM, "barrier.cluster.wait", "mov.u32 a1, 0;\nbarrier.cluster.wait");
    caught(&body, Check::Barrier, "does not follow barrier.cluster.arrive");
}
