//! The state of a warp: registers and program counters of its 32 lanes.
//!
//! Lanes with the same program counter run together. After a divergence the lanes with the lowest program counter run
//! first, so that diverged lanes reconverge where their paths join.

use super::fault::{Check, Outcome, Stop, stop};
use super::program::{Kernel, Phase, Preset, Reg};
use super::wgmma::WgmmaState;

/// Threads per warp.
pub(super) const LANES: usize = 32;

/// A `cp.async` in flight.
pub(super) struct AsyncCopy {
    pub lane: u8,
    pub group: u32,
    pub to: u32,
    pub bytes: u32,
    pub words: [u32; 4],
}

/// What a warp waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A hardware barrier.
    Barrier(u32),
    /// The completion of an `mbarrier` phase, after which the warp retries its `try_wait`.
    Phase { mbarrier: usize, phase: Phase, value: u64 },
    /// One round of the other warps.
    Yield,
    /// The barrier of the cluster.
    Cluster,
}

pub(super) struct Warp {
    pub index: usize,
    /// Mask of the lanes that have a thread.
    pub all: u32,
    pub exited: u32,
    pub pc: u32,
    pub active: u32,
    /// Other lanes by program counter, the lowest last.
    diverged: Vec<(u32, u32)>,
    r32: Vec<[u32; LANES]>,
    r64: Vec<[u64; LANES]>,
    predicates: Vec<u32>,
    /// Masks of the lanes that have written each register, for the three register files.
    written: [Vec<u32>; 3],
    pub async_copies: Vec<AsyncCopy>,
    /// `cp.async` groups that each lane has committed.
    pub committed: [u32; LANES],
    /// Commit times of the groups of bulk stores in flight.
    pub stores: Vec<u32>,
    /// Whether there are uncommitted bulk stores.
    pub has_open_stores: bool,
    pub wgmma: WgmmaState,
    pub waits: Option<Wait>,
    /// The program counter of the last arrival at the cluster barrier, and whether it released the warp's writes.
    pub arrived_at: Option<(u32, bool)>,
    pub executed: u64,
}

impl Warp {
    pub fn new(kernel: &Kernel, index: usize) -> Warp {
        let threads = (kernel.threads() as usize - LANES * index).min(LANES);
        let [r32, r64, predicates] = kernel.names.each_ref().map(Vec::len);
        let mut warp = Warp {
            index,
            all: if threads == LANES { u32::MAX } else { (1 << threads) - 1 },
            exited: 0,
            pc: 0,
            active: 0,
            diverged: Vec::new(),
            r32: vec![[0; LANES]; r32],
            r64: vec![[0; LANES]; r64],
            predicates: vec![0; predicates],
            written: [vec![0; r32], vec![0; r64], vec![0; predicates]],
            async_copies: Vec::new(),
            committed: [0; LANES],
            stores: Vec::new(),
            has_open_stores: false,
            wgmma: WgmmaState::new(kernel, r32),
            waits: None,
            arrived_at: None,
            executed: 0,
        };
        for &(reg, bits) in &kernel.presets64 {
            warp.r64[usize::from(reg)] = [bits; LANES];
        }
        warp
    }

    /// Prepares the warp for another block of the grid.
    pub fn reset(&mut self, kernel: &Kernel, block: [u32; 3], grid: [u32; 3]) {
        (self.exited, self.pc, self.active, self.executed) = (0, 0, self.all, 0);
        self.diverged.clear();
        self.async_copies.clear();
        self.committed = [0; LANES];
        self.stores.clear();
        self.has_open_stores = false;
        self.wgmma.clear();
        self.waits = None;
        self.arrived_at = None;
        self.written.iter_mut().for_each(|file| file.fill(0));
        let [x, y, _] = kernel.threads;
        for &(reg, preset) in &kernel.presets {
            let of_lane = |lane: usize| {
                let thread = (LANES * self.index + lane) as u32;
                match preset {
                    Preset::Constant(bits) => bits as u32,
                    Preset::Thread(axis) => [thread % x, thread / x % y, thread / x / y][usize::from(axis)],
                    Preset::Threads(axis) => kernel.threads[usize::from(axis)],
                    Preset::Block(axis) => block[usize::from(axis)],
                    Preset::Blocks(axis) => grid[usize::from(axis)],
                    Preset::Lane => lane as u32,
                    Preset::Warp => self.index as u32,
                    Preset::LanesBelow => (1 << lane) - 1,
                }
            };
            self.r32[usize::from(reg)] = std::array::from_fn(of_lane);
            self.written[0][usize::from(reg)] = u32::MAX;
        }
        for &(reg, _) in &kernel.presets64 {
            self.written[1][usize::from(reg)] = u32::MAX;
        }
    }

    /// Mask of the lanes that have not exited.
    pub fn running(&self) -> u32 {
        self.all & !self.exited
    }

    pub fn is_done(&self) -> bool {
        self.running() == 0
    }

    /// Index of the warp's first thread in the block.
    pub fn first_thread(&self) -> u16 {
        (LANES * self.index) as u16
    }

    /// Selects the lanes with the lowest program counter, and merges lanes with equal ones.
    #[inline]
    pub fn reconverge(&mut self) {
        while let Some(&(pc, lanes)) = self.diverged.last() {
            if self.active == 0 || pc < self.pc {
                let own = (self.pc, self.active);
                (self.pc, self.active) = (pc, lanes);
                self.diverged.pop();
                if own.1 != 0 {
                    self.set_aside(own);
                }
            } else if pc == self.pc {
                self.active |= lanes;
                self.diverged.pop();
            } else {
                break;
            }
        }
    }

    fn set_aside(&mut self, group: (u32, u32)) {
        let at = self.diverged.partition_point(|&(pc, _)| pc > group.0);
        self.diverged.insert(at, group);
    }

    /// Moves the active lanes in `taken` to `target`, the others to the next instruction.
    pub fn branch(&mut self, taken: u32, target: u32) {
        let stay = self.active & !taken;
        if stay == 0 {
            self.pc = target;
            return;
        }
        self.pc += 1;
        if taken != 0 {
            self.active = stay;
            self.set_aside((target, taken));
        }
    }

    pub fn exit(&mut self, lanes: u32) {
        self.exited |= lanes;
        self.active &= !lanes;
        self.pc += 1;
    }

    #[inline]
    fn check(&self, file: usize, reg: Reg, lanes: u32) -> Outcome {
        let missing = lanes & !self.written[file][usize::from(reg)];
        if missing == 0 { Ok(()) } else { unwritten(missing, file, reg) }
    }

    #[inline]
    pub fn r32(&self, reg: Reg, lanes: u32) -> Outcome<&[u32; LANES]> {
        self.check(0, reg, lanes)?;
        Ok(&self.r32[usize::from(reg)])
    }

    #[inline]
    pub fn r64(&self, reg: Reg, lanes: u32) -> Outcome<&[u64; LANES]> {
        self.check(1, reg, lanes)?;
        Ok(&self.r64[usize::from(reg)])
    }

    #[inline]
    pub fn predicate(&self, reg: Reg, lanes: u32) -> Outcome<u32> {
        self.check(2, reg, lanes)?;
        Ok(self.predicates[usize::from(reg)])
    }

    /// A register's values, without the check that they were written.
    pub fn raw(&mut self, reg: Reg) -> &mut [u32; LANES] {
        &mut self.r32[usize::from(reg)]
    }

    /// Marks a register as written or unwritten in all lanes.
    pub fn set_written(&mut self, reg: Reg, is: bool) {
        self.written[0][usize::from(reg)] = if is { u32::MAX } else { 0 };
    }

    #[inline]
    pub fn set_r32(&mut self, reg: Reg, lanes: u32, values: &[u32; LANES]) {
        let reg = usize::from(reg);
        self.written[0][reg] |= lanes;
        if lanes == u32::MAX {
            self.r32[reg] = *values;
            return;
        }
        for (i, own) in self.r32[reg].iter_mut().enumerate() {
            *own = if lanes >> i & 1 != 0 { values[i] } else { *own };
        }
    }

    #[inline]
    pub fn set_r64(&mut self, reg: Reg, lanes: u32, values: &[u64; LANES]) {
        let reg = usize::from(reg);
        self.written[1][reg] |= lanes;
        for (i, own) in self.r64[reg].iter_mut().enumerate() {
            *own = if lanes >> i & 1 != 0 { values[i] } else { *own };
        }
    }

    #[inline]
    pub fn set_predicate(&mut self, reg: Reg, lanes: u32, values: u32) {
        let reg = usize::from(reg);
        self.written[2][reg] |= lanes;
        self.predicates[reg] = self.predicates[reg] & !lanes | values & lanes;
    }

    /// Checks that all running lanes execute an `.aligned` instruction.
    pub fn expect_all(&self, lanes: u32, what: &str) -> Outcome {
        if lanes == self.running() {
            return Ok(());
        }
        let lane = lanes.trailing_zeros().min(31) as usize;
        let (found, all) = (lanes.count_ones(), self.running().count_ones());
        stop(lane, Check::DivergentWarp, format!("{what} was executed by {found} of {all} threads of the warp"))
    }
}

#[cold]
fn unwritten(missing: u32, file: usize, reg: Reg) -> Outcome {
    let lane = missing.trailing_zeros();
    Err(Box::new(Stop { lane, check: Check::UnwrittenRegister, detail: String::new(), register: Some((file, reg)) }))
}

/// The lanes of a mask in ascending order.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = (left != 0).then(|| left.trailing_zeros() as usize);
        left &= left.wrapping_sub(1);
        lane
    })
}
