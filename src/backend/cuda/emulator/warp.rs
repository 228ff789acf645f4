//! The state of a warp: registers of its 32 threads, and which of them are where.
//!
//! Threads that stand at the same place run together. Of several places the one earliest in the text comes first, so
//! threads that took different ways meet again where the ways join, as on hardware that waits at the joint.

use super::fault::{Check, Outcome, Stop, stop};
use super::product::Products;
use super::program::{Kernel, Phase, Preset, Reg};

/// Threads of a warp.
pub(super) const LANES: usize = 32;

/// A copy by `cp.async` that has not arrived.
pub(super) struct Copy {
    pub lane: u8,
    pub group: u32,
    pub to: u32,
    pub bytes: u32,
    pub words: [u32; 4],
}

/// What a warp waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A barrier, by its number.
    Barrier(u32),
    /// The end of a phase, after which it is asked for again.
    Phase { mbarrier: usize, phase: Phase, value: u64 },
    /// That others have had their turn.
    Turn,
}

pub(super) struct Warp {
    pub index: usize,
    /// Lanes that have a thread.
    pub all: u32,
    pub exited: u32,
    pub place: u32,
    pub active: u32,
    /// Lanes elsewhere, the earliest place last.
    elsewhere: Vec<(u32, u32)>,
    small: Vec<[u32; LANES]>,
    wide: Vec<[u64; LANES]>,
    predicates: Vec<u32>,
    /// Which lanes of a register were written, for the three files.
    written: [Vec<u32>; 3],
    pub copies: Vec<Copy>,
    /// Groups of copies that each lane has committed.
    pub committed: [u32; LANES],
    /// Groups of bulk stores: when each was committed, and of the open one whether it has any.
    pub stores: Vec<u32>,
    pub has_open_stores: bool,
    /// What its `wgmma` do.
    pub products: Products,
    pub waits: Option<Wait>,
    pub steps: u64,
}

impl Warp {
    pub fn new(kernel: &Kernel, index: usize) -> Warp {
        let threads = (kernel.threads() as usize - LANES * index).min(LANES);
        let [small, wide, predicates] = kernel.names.each_ref().map(Vec::len);
        let mut warp = Warp {
            index,
            all: if threads == LANES { u32::MAX } else { (1 << threads) - 1 },
            exited: 0,
            place: 0,
            active: 0,
            elsewhere: Vec::new(),
            small: vec![[0; LANES]; small],
            wide: vec![[0; LANES]; wide],
            predicates: vec![0; predicates],
            written: [vec![0; small], vec![0; wide], vec![0; predicates]],
            copies: Vec::new(),
            committed: [0; LANES],
            stores: Vec::new(),
            has_open_stores: false,
            products: Products::new(kernel, small),
            waits: None,
            steps: 0,
        };
        for &(reg, bits) in &kernel.presets64 {
            warp.wide[usize::from(reg)] = [bits; LANES];
        }
        warp
    }

    /// Ready for another block of the grid.
    pub fn reset(&mut self, kernel: &Kernel, block: [u32; 3], grid: [u32; 3]) {
        (self.exited, self.place, self.active, self.steps) = (0, 0, self.all, 0);
        self.elsewhere.clear();
        self.copies.clear();
        self.committed = [0; LANES];
        self.stores.clear();
        self.has_open_stores = false;
        self.products.clear();
        self.waits = None;
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
            self.small[usize::from(reg)] = std::array::from_fn(of_lane);
            self.written[0][usize::from(reg)] = u32::MAX;
        }
        for &(reg, _) in &kernel.presets64 {
            self.written[1][usize::from(reg)] = u32::MAX;
        }
    }

    /// Lanes that have not ended.
    pub fn running(&self) -> u32 {
        self.all & !self.exited
    }

    pub fn is_done(&self) -> bool {
        self.running() == 0
    }

    /// Threads of the block before this warp's.
    pub fn first_thread(&self) -> u16 {
        (LANES * self.index) as u16
    }

    /// Goes on with the earliest lanes, which may have caught up with others.
    #[inline]
    pub fn settle(&mut self) {
        while let Some(&(place, lanes)) = self.elsewhere.last() {
            if self.active == 0 || place < self.place {
                let own = (self.place, self.active);
                (self.place, self.active) = (place, lanes);
                self.elsewhere.pop();
                if own.1 != 0 {
                    self.leave(own);
                }
            } else if place == self.place {
                self.active |= lanes;
                self.elsewhere.pop();
            } else {
                break;
            }
        }
    }

    fn leave(&mut self, group: (u32, u32)) {
        let at = self.elsewhere.partition_point(|&(place, _)| place > group.0);
        self.elsewhere.insert(at, group);
    }

    /// Of the active lanes those in `taken` go to `target`, the others to the next place.
    pub fn branch(&mut self, taken: u32, target: u32) {
        let stay = self.active & !taken;
        if stay == 0 {
            self.place = target;
            return;
        }
        self.place += 1;
        if taken != 0 {
            self.active = stay;
            self.leave((target, taken));
        }
    }

    pub fn exit(&mut self, lanes: u32) {
        self.exited |= lanes;
        self.active &= !lanes;
        self.place += 1;
    }

    #[inline]
    fn check(&self, file: usize, reg: Reg, lanes: u32) -> Outcome {
        let missing = lanes & !self.written[file][usize::from(reg)];
        if missing == 0 { Ok(()) } else { unwritten(missing, file, reg) }
    }

    #[inline]
    pub fn small(&self, reg: Reg, lanes: u32) -> Outcome<&[u32; LANES]> {
        self.check(0, reg, lanes)?;
        Ok(&self.small[usize::from(reg)])
    }

    #[inline]
    pub fn wide(&self, reg: Reg, lanes: u32) -> Outcome<&[u64; LANES]> {
        self.check(1, reg, lanes)?;
        Ok(&self.wide[usize::from(reg)])
    }

    #[inline]
    pub fn predicate(&self, reg: Reg, lanes: u32) -> Outcome<u32> {
        self.check(2, reg, lanes)?;
        Ok(self.predicates[usize::from(reg)])
    }

    /// The values of a register, whoever may read it.
    pub fn raw(&mut self, reg: Reg) -> &mut [u32; LANES] {
        &mut self.small[usize::from(reg)]
    }

    /// Makes a register readable, or not.
    pub fn set_written(&mut self, reg: Reg, is: bool) {
        self.written[0][usize::from(reg)] = if is { u32::MAX } else { 0 };
    }

    #[inline]
    pub fn set_small(&mut self, reg: Reg, lanes: u32, values: &[u32; LANES]) {
        let reg = usize::from(reg);
        self.written[0][reg] |= lanes;
        if lanes == u32::MAX {
            self.small[reg] = *values;
            return;
        }
        for (i, own) in self.small[reg].iter_mut().enumerate() {
            *own = if lanes >> i & 1 != 0 { values[i] } else { *own };
        }
    }

    #[inline]
    pub fn set_wide(&mut self, reg: Reg, lanes: u32, values: &[u64; LANES]) {
        let reg = usize::from(reg);
        self.written[1][reg] |= lanes;
        for (i, own) in self.wide[reg].iter_mut().enumerate() {
            *own = if lanes >> i & 1 != 0 { values[i] } else { *own };
        }
    }

    #[inline]
    pub fn set_predicate(&mut self, reg: Reg, lanes: u32, values: u32) {
        let reg = usize::from(reg);
        self.written[2][reg] |= lanes;
        self.predicates[reg] = self.predicates[reg] & !lanes | values & lanes;
    }

    /// An aligned instruction needs all threads of the warp that have not ended.
    pub fn expect_all(&self, lanes: u32, what: &str) -> Outcome {
        if lanes == self.running() {
            return Ok(());
        }
        let lane = lanes.trailing_zeros().min(31) as usize;
        let (found, all) = (lanes.count_ones(), self.running().count_ones());
        stop(lane, Check::DivergentWarp, format!("{what} was reached by {found} of {all} threads of the warp"))
    }
}

#[cold]
fn unwritten(missing: u32, file: usize, reg: Reg) -> Outcome {
    let lane = missing.trailing_zeros();
    Err(Box::new(Stop { lane, check: Check::UnwrittenRegister, detail: String::new(), register: Some((file, reg)) }))
}

/// The lanes of a mask, in order.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |i| mask >> i & 1 != 0)
}
