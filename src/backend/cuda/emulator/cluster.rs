//! Clusters: blocks that run together and read each other's shared memory.
//!
//! The blocks of a cluster run one after the other, each until all its warps wait or have ended. At a cluster barrier at
//! which every warp has arrived, each block's shared memory is copied; until the next barrier its peers read that copy.
//! A block may not write, between two barriers, what a peer reads there, nor end before the peers' reads are followed by
//! a barrier. Work between the arrival at a cluster barrier and the wait is not supported.

use super::access::{Reach, addresses};
use super::block::{Block, Progress};
use super::fault::{Check, Counters, Fault, Outcome, stop};
use super::program::{Address, ClusterBarrier, ElementType, Kernel, Reg};
use super::shared::{Contents, Shadow};
use super::warp::{LANES, Wait, Warp, lanes};
use super::{Parameters, global::Tensors};
use std::sync::Arc;

/// Addresses of a peer's shared memory: its rank, counted from 1, above an address in a block's own.
const RANK_SHIFT: u32 = 24;

/// A block's shared memory at a cluster barrier.
pub(super) struct Copied {
    words: Vec<u32>,
    /// Whether each word was written and holds data; empty where accesses are not tracked.
    is_data: Vec<bool>,
}

/// What a block knows of its cluster.
#[derive(Default)]
pub(super) struct Peers {
    /// The shared memory of all blocks at the last cluster barrier, by rank. Empty before the first, and after one that
    /// released no writes.
    copies: Vec<Arc<Copied>>,
    /// Rank and word of what the block has read since.
    reads: Vec<(u32, u32)>,
    /// The block's time at that barrier.
    since: u32,
}

impl Peers {
    pub fn clear(&mut self) {
        *self = Peers::default();
    }
}

/// `mapa`: the address in the shared memory of the block with that rank.
pub(super) fn map(w: &mut Warp, mask: u32, d: Reg, a: Reg, rank: Reg) -> Outcome {
    let (a, rank) = (*w.r32(a, mask)?, *w.r32(rank, mask)?);
    w.set_r32(d, mask, &std::array::from_fn(|lane| a[lane] | (rank[lane] + 1) << RANK_SHIFT));
    Ok(())
}

/// `ld.shared::cluster` at an address that `mapa` gave.
pub(super) fn load(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    element: ElementType,
    to: &[Option<Reg>],
    at: Address,
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let bytes = 4 * to.len() as u32;
    let mut words = [[0u32; 4]; LANES];
    for lane in lanes(mask) {
        let Some(rank) = (at[lane] as u32 >> RANK_SHIFT).checked_sub(1) else {
            return stop(lane, Check::OutOfBounds, format!("{:#x} is no address in a cluster", at[lane]));
        };
        let Some(copied) = reach.peers.copies.get(rank as usize).cloned() else {
            let detail = format!(
                "shared memory of block {rank} of the cluster is read before a cluster barrier that releases it"
            );
            return stop(lane, Check::SharedRace, detail);
        };
        let own = at[lane] as u32 & ((1 << RANK_SHIFT) - 1);
        let (first, _) = reach.shared.locate(own, bytes, bytes, lane)?;
        for (i, word) in words[lane].iter_mut().enumerate().take(to.len()) {
            if copied.is_data.get(first + i) == Some(&false) {
                let detail = format!("shared byte {} of block {rank} of the cluster", 4 * (first + i));
                return stop(lane, Check::UnwrittenMemory, detail);
            }
            *word = copied.words[first + i];
            reach.peers.reads.push((rank, (first + i) as u32));
        }
    }
    debug_assert_eq!(element.bytes, 4);
    reach.counters.shared_requests += 1;
    for (i, reg) in to.iter().enumerate() {
        reg.iter().for_each(|&reg| w.set_r32(reg, mask, &words.each_ref().map(|w| w[i])));
    }
    Ok(())
}

/// `barrier.cluster`
pub(super) fn barrier(w: &mut Warp, mask: u32, which: ClusterBarrier) -> Outcome {
    w.expect_all(mask, "barrier.cluster")?;
    match which {
        ClusterBarrier::Arrive { releases } => w.arrived_at = Some((w.pc, releases)),
        ClusterBarrier::Wait if w.arrived_at.is_some_and(|(pc, _)| pc + 1 == w.pc) => w.waits = Some(Wait::Cluster),
        ClusterBarrier::Wait => {
            let detail = "barrier.cluster.wait does not follow barrier.cluster.arrive, which is not supported";
            return stop(0, Check::Barrier, detail);
        }
    }
    Ok(())
}

/// The blocks of a cluster, reused for the next one.
pub(super) struct Cluster<'a> {
    blocks: Vec<Block<'a>>,
}

impl<'a> Cluster<'a> {
    pub fn new(kernel: &'a Kernel, tensors: &'a Tensors<'a>, parameters: &'a Parameters, size: u32) -> Cluster<'a> {
        Cluster { blocks: (0..size).map(|_| Block::new(kernel, tensors, parameters)).collect() }
    }

    /// Runs the cluster whose first block is `first` to completion; the others follow in z.
    pub fn run(&mut self, first: [u32; 3], grid: [u32; 3]) -> Result<Counters, Fault> {
        for (rank, block) in self.blocks.iter_mut().enumerate() {
            block.begin([first[0], first[1], first[2] + rank as u32], grid);
        }
        loop {
            let mut ended = 0;
            for block in &mut self.blocks {
                ended += usize::from(block.advance()? == Progress::Ended);
            }
            self.check_reads(ended)?;
            if ended == self.blocks.len() {
                break;
            }
            if ended > 0 {
                let waiting = self.blocks.iter().find(|block| !block.is_done()).expect("not all have ended");
                return Err(waiting.cluster_fault("another block of the cluster has ended"));
            }
            let released = self.blocks.iter().all(Block::has_released);
            let copies: Vec<_> =
                self.blocks.iter().filter(|_| released).map(|block| Arc::new(block.copied())).collect();
            self.blocks.iter_mut().for_each(|block| block.pass_cluster_barrier(&copies));
        }
        self.blocks.iter().try_fold(Counters::default(), |mut sum, block| {
            sum += block.finish()?;
            Ok(sum)
        })
    }

    /// Checks what was read since the last cluster barrier: its owner still runs and has not written it meanwhile.
    fn check_reads(&self, ended: usize) -> Result<(), Fault> {
        for reader in &self.blocks {
            for &(rank, word) in &reader.peers.reads {
                let owner = &self.blocks[rank as usize];
                if ended > 0 && !std::ptr::eq(owner, reader) && owner.is_done() {
                    return Err(owner.cluster_fault("the block ends while others may read its shared memory"));
                }
                if owner.wrote_since(word, owner.peers.since) && !std::ptr::eq(owner, reader) {
                    let byte = 4 * word;
                    return Err(owner.cluster_fault(&format!(
                        "shared byte {byte} is written and read by another block without a cluster barrier between"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Block<'_> {
    fn copied(&self) -> Copied {
        let is_data = |s: &Shadow| s.filled == 15 && s.holds == Contents::Data;
        Copied { words: self.shared.words.clone(), is_data: self.shared.shadow.iter().map(is_data).collect() }
    }

    /// Whether the writes of all warps that wait at the cluster barrier become visible by it.
    fn has_released(&self) -> bool {
        self.warps.iter().filter(|w| !w.is_done()).all(|w| w.arrived_at.is_some_and(|(_, releases)| releases))
    }

    /// Whether a word was written after that time.
    fn wrote_since(&self, word: u32, time: u32) -> bool {
        self.shared.shadow.get(word as usize).is_some_and(|shadow| shadow.written_at > time)
    }

    /// Resumes all warps, which wait at the cluster barrier.
    fn pass_cluster_barrier(&mut self, copies: &[Arc<Copied>]) {
        self.join_warps();
        self.peers.copies = copies.to_vec();
        self.peers.reads.clear();
        self.peers.since = self.clock.tick();
        self.warps.iter_mut().for_each(|warp| warp.waits = None);
    }
}
