//! One block of a grid. Its warps run one after the other, each until it waits or ends. A block belongs to a cluster, of
//! one block in most launches.

use super::access::{self, Reach};
use super::bulk::{self, PendingCopy};
use super::clock::Clock;
use super::cluster::{self, Peers};
use super::fault::{Check, Counters, Fault, Outcome, Stop, stop};
use super::global::{Global, Tensors};
use super::mbarrier::Mbarriers;
use super::program::{Instruction, Kernel, Op};
use super::shared::{Shared, WARPS};
use super::warp::{LANES, Wait, Warp, lanes};
use super::wgmma::Warpgroups;
use super::{Parameters, alu, collective};

/// Limit of instructions per warp, beyond which the kernel is assumed to loop forever.
const MAX_INSTRUCTIONS: u64 = 1 << 26;

/// Hardware barriers per block.
const BARRIERS: usize = 16;

/// State of a hardware barrier.
#[derive(Clone, Copy, Default)]
struct BarrierState {
    /// Threads that have arrived.
    threads: u32,
    /// Threads that complete the barrier.
    expected: u32,
    /// Mask of the warps that have arrived, and the time of each arrival.
    arrived: u32,
    arrived_at: [u32; WARPS],
    /// Line of the last arrival.
    line: u32,
}

/// How far a block came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All threads have exited.
    Ended,
    /// All threads that have not exited wait at the cluster barrier.
    AtCluster,
}

/// A block's state, reused for the next block of the grid.
pub(super) struct Block<'a> {
    kernel: &'a Kernel,
    tensors: &'a Tensors<'a>,
    parameters: &'a Parameters,
    pub(super) shared: Shared,
    pub(super) warps: Vec<Warp>,
    mbarriers: Mbarriers,
    pending_copies: Vec<PendingCopy>,
    warpgroups: Warpgroups,
    barriers: [BarrierState; BARRIERS],
    pub(super) clock: Clock,
    counters: Counters,
    pub(super) peers: Peers,
    /// Its index in the grid, and the same as one number.
    place: [u32; 3],
    number: u32,
}

impl<'a> Block<'a> {
    pub fn new(kernel: &'a Kernel, tensors: &'a Tensors<'a>, parameters: &'a Parameters) -> Block<'a> {
        let warps = (kernel.threads() as usize).div_ceil(LANES);
        Block {
            kernel,
            tensors,
            parameters,
            shared: Shared::new(
                kernel.shared_base,
                parameters.shared_bytes,
                warps,
                kernel.asynchronous,
                tensors.is_tracked(),
            ),
            warps: (0..warps).map(|i| Warp::new(kernel, i)).collect(),
            mbarriers: Mbarriers::default(),
            pending_copies: Vec::new(),
            warpgroups: Warpgroups::default(),
            barriers: [BarrierState::default(); BARRIERS],
            clock: Clock::new(warps, kernel.asynchronous),
            counters: Counters::default(),
            peers: Peers::default(),
            place: [0; 3],
            number: 0,
        }
    }

    /// Prepares the block of that index in the grid.
    pub fn begin(&mut self, block: [u32; 3], grid: [u32; 3]) {
        self.shared.clear();
        self.mbarriers.clear();
        self.pending_copies.clear();
        self.warpgroups.clear();
        self.warps.iter_mut().for_each(|w| w.reset(self.kernel, block, grid));
        self.barriers = [BarrierState::default(); BARRIERS];
        self.clock = Clock::new(self.warps.len(), self.kernel.asynchronous);
        self.counters = Counters::default();
        self.peers.clear();
        self.place = block;
        self.number = (block[2] * grid[1] + block[1]) * grid[0] + block[0];
    }

    pub fn is_done(&self) -> bool {
        self.warps.iter().all(Warp::is_done)
    }

    /// Runs the block until all its threads have exited or wait at the cluster barrier.
    pub fn advance(&mut self) -> Result<Progress, Fault> {
        let (kernel, place) = (self.kernel, self.place);
        let global = Global { tensors: self.tensors, block: self.number + 1 };
        loop {
            let mut executor = Executor {
                reach: Reach {
                    global: &global,
                    shared: &mut self.shared,
                    clock: &mut self.clock,
                    counters: &mut self.counters,
                    maps: &self.parameters.maps,
                    mbarriers: &mut self.mbarriers,
                    pending_copies: &mut self.pending_copies,
                    warpgroups: &mut self.warpgroups,
                    peers: &mut self.peers,
                },
                barriers: &mut self.barriers,
                threads: kernel.threads(),
                parameters: &self.parameters.bytes,
                names: &kernel.names[0],
            };
            let mut progressed = false;
            for (i, warp) in self.warps.iter_mut().enumerate() {
                if warp.waits.is_some() || warp.is_done() {
                    continue;
                }
                progressed = true;
                if let Err(stopped) = executor.run_warp(kernel, warp) {
                    return Err(fault(kernel, place, warp.pc, i, *stopped));
                }
            }
            let is_polling = self.warps.iter().any(|w| w.waits == Some(Wait::Yield));
            if !progressed || is_polling {
                // Copies land as late as possible: once all warps wait, or one polls.
                for copy in std::mem::take(executor.reach.pending_copies) {
                    if let Err(stopped) = bulk::land(&mut executor.reach, &copy) {
                        return Err(fault(kernel, place, copy.pc, copy.warp, *stopped));
                    }
                }
            }
            progressed |= self.release_barriers();
            progressed |= self.wake();
            if self.is_done() {
                return Ok(Progress::Ended);
            }
            if self.warps.iter().all(|w| w.is_done() || w.waits == Some(Wait::Cluster)) {
                return Ok(Progress::AtCluster);
            }
            if !progressed {
                return Err(self.deadlock());
            }
        }
    }

    /// All warps' accesses so far happen before any warp's next one.
    pub(super) fn join_warps(&mut self) {
        let warps = self.warps.len();
        let times: Vec<u32> = (0..warps).map(|_| self.clock.tick()).collect();
        for w in 0..warps {
            times.iter().enumerate().for_each(|(v, &time)| self.clock.see(w, v, time));
        }
    }

    /// The fault of a block that breaks a rule of its cluster.
    pub(super) fn cluster_fault(&self, detail: &str) -> Fault {
        let waiting = self.warps.iter().position(|w| w.waits.is_some()).unwrap_or(0);
        let stopped = Stop { lane: 0, check: Check::SharedRace, detail: detail.to_owned(), register: None };
        fault(self.kernel, self.place, self.warps[waiting].pc.saturating_sub(1), waiting, stopped)
    }

    /// Checks that no asynchronous work is in flight after all threads have exited.
    pub fn finish(&self) -> Result<Counters, Fault> {
        let block = self.place;
        let stopped = |check, detail| Stop { lane: 0, check, detail, register: None };
        if let Some(copy) = self.pending_copies.first() {
            let detail = "a bulk copy is in flight at exit".to_owned();
            let stopped = Stop { lane: copy.lane as u32, ..stopped(Check::MissingWait, detail) };
            return Err(fault(self.kernel, block, copy.pc, copy.warp, stopped));
        }
        if let Some((warp, detail)) = self.warpgroups.missing(&self.warps) {
            return Err(fault(self.kernel, block, self.warps[warp].pc, warp, stopped(Check::Warpgroup, detail)));
        }
        Ok(self.counters)
    }

    /// Resumes warps whose `mbarrier` phase has completed, and warps that yielded.
    fn wake(&mut self) -> bool {
        let mut any = false;
        for warp in &mut self.warps {
            let is_over = match warp.waits {
                Some(Wait::Phase { mbarrier, phase, value }) => self.mbarriers.is_over(mbarrier, phase, value),
                Some(Wait::Yield) => true,
                Some(Wait::Barrier(_) | Wait::Cluster) | None => false,
            };
            if is_over {
                warp.waits = None;
            }
            any |= is_over;
        }
        any
    }

    /// Resumes the warps at complete barriers.
    fn release_barriers(&mut self) -> bool {
        let mut any = false;
        for (id, barrier) in self.barriers.iter_mut().enumerate() {
            if barrier.threads == 0 || barrier.threads < barrier.expected {
                continue;
            }
            let waiting: Vec<usize> =
                (0..self.warps.len()).filter(|&w| self.warps[w].waits == Some(Wait::Barrier(id as u32))).collect();
            for &w in &waiting {
                for v in lanes(barrier.arrived) {
                    self.clock.see(w, v, barrier.arrived_at[v]);
                }
                self.warps[w].waits = None;
            }
            *barrier = BarrierState::default();
            self.counters.barriers += 1;
            any = true;
        }
        any
    }

    /// The fault when no warp can continue.
    fn deadlock(&self) -> Fault {
        let (block, barriers) = (self.place, &self.barriers);
        // A wait for bytes that are never copied is the cause of the other waits.
        let for_bytes = |w: &Warp| match w.waits {
            Some(Wait::Phase { mbarrier, value, .. }) => self.mbarriers.missing(mbarrier, value).1,
            _ => false,
        };
        let waiting = self.warps.iter().position(for_bytes);
        let waiting = waiting.or_else(|| self.warps.iter().position(|w| w.waits.is_some())).unwrap_or(0);
        let warp = &self.warps[waiting];
        let (check, detail, line) = match warp.waits {
            Some(Wait::Phase { mbarrier, value, .. }) => {
                let (detail, bytes_alone) = self.mbarriers.missing(mbarrier, value);
                let check = if bytes_alone { Check::Transactions } else { Check::Barrier };
                let others = self.warps.iter().filter(|w| w.waits.is_some() && w.index != waiting);
                let others: Vec<String> =
                    others.map(|w| format!("warp {} waits at {}", w.index, waits_at(w))).collect();
                let others = if others.is_empty() { "no other warp waits".to_owned() } else { others.join(", ") };
                (check, format!("{detail}; {others}"), self.kernel.code[warp.pc as usize - 1].line)
            }
            _ => {
                let id = if let Some(Wait::Barrier(id)) = warp.waits { id } else { 0 };
                let barrier = &barriers[id as usize];
                let missing = self.warps.iter().find(|w| w.waits != Some(Wait::Barrier(id)));
                let why = match missing {
                    Some(w) if w.is_done() => format!("thread {} has exited", w.first_thread()),
                    Some(w) => format!("thread {} waits at {}", w.first_thread(), waits_at(w)),
                    None => "the block has no more threads".to_owned(),
                };
                let (arrived, expected) = (barrier.threads, barrier.expected);
                let detail = format!("{arrived} of {expected} threads have arrived at barrier {id}, and {why}");
                (Check::Barrier, detail, barrier.line)
            }
        };
        let mut fault = fault(self.kernel, block, 0, waiting, Stop { lane: 0, check, detail, register: None });
        fault.line = line;
        fault
    }
}

/// Turns a read of an unwritten register into a read of an accumulator in use, if a `wgmma` in flight writes it.
fn in_use(w: &Warp, mut stopped: Box<Stop>, names: &[String]) -> Box<Stop> {
    if let Some((0, reg)) = stopped.register
        && w.wgmma.writes(reg)
    {
        let name = &names[usize::from(reg)];
        (stopped.check, stopped.register) = (Check::RegisterInUse, None);
        stopped.detail = format!("{name} is read while a wgmma computes it: its group was not waited for");
    }
    stopped
}

/// What a warp waits for, for messages.
fn waits_at(w: &Warp) -> String {
    match w.waits {
        Some(Wait::Barrier(id)) => format!("barrier {id}"),
        Some(Wait::Phase { mbarrier, value, .. }) => format!("mbarrier {mbarrier} for parity {}", value & 1),
        Some(Wait::Cluster) => "the cluster barrier".to_owned(),
        Some(Wait::Yield) | None => "nothing".to_owned(),
    }
}

fn fault(kernel: &Kernel, block: [u32; 3], pc: u32, warp: usize, stopped: Stop) -> Fault {
    let Stop { lane, check, detail, register } = stopped;
    let thread = LANES as u32 * warp as u32 + lane;
    let [x, y, _] = kernel.threads;
    let detail = match register {
        Some((file, reg)) => format!("{} was not written", kernel.names[file][usize::from(reg)]),
        None => detail,
    };
    Fault {
        kernel: kernel.name.clone(),
        line: kernel.code.get(pc as usize).map_or(0, |i| i.line),
        block,
        thread: [thread % x, thread / x % y, thread / x / y],
        check,
        detail,
    }
}

/// Executes the instructions of a block's warps.
struct Executor<'a> {
    reach: Reach<'a>,
    barriers: &'a mut [BarrierState; BARRIERS],
    threads: u32,
    parameters: &'a [u8],
    names: &'a [String],
}

impl Executor<'_> {
    /// Runs a warp until it waits or ends.
    fn run_warp(&mut self, kernel: &Kernel, w: &mut Warp) -> Outcome {
        let before = w.executed;
        while !w.is_done() && w.waits.is_none() {
            w.reconverge();
            let instruction = &kernel.code[w.pc as usize];
            w.executed += 1;
            if w.executed > MAX_INSTRUCTIONS {
                let lane = w.active.trailing_zeros() as usize;
                return stop(lane, Check::Endless, format!("no exit after {MAX_INSTRUCTIONS} instructions"));
            }
            self.step(w, instruction).map_err(|stopped| in_use(w, stopped, self.names))?;
        }
        self.reach.counters.instructions += w.executed - before;
        if w.is_done()
            && let Some(copy) = w.async_copies.first()
        {
            w.pc = w.pc.saturating_sub(1);
            let detail = format!("a cp.async of {} bytes is in flight at exit", copy.bytes);
            return stop(usize::from(copy.lane), Check::MissingWait, detail);
        }
        if w.is_done() && (!w.wgmma.is_idle() || w.has_open_stores || !w.stores.is_empty()) {
            w.pc = w.pc.saturating_sub(1);
            return stop(0, Check::MissingWait, "a wgmma or bulk store is in flight at exit");
        }
        Ok(())
    }

    fn step(&mut self, w: &mut Warp, instruction: &Instruction) -> Outcome {
        let lanes = match instruction.guard {
            None => w.active,
            Some((predicate, negated)) => {
                let values = w.predicate(predicate, w.active)?;
                w.active & if negated { !values } else { values }
            }
        };
        match &instruction.op {
            Op::Branch(target) => w.branch(lanes, *target),
            Op::Exit => w.exit(lanes),
            Op::Barrier { .. } => {
                if lanes != 0 {
                    self.barrier(w, lanes, instruction)?;
                }
                w.pc += 1;
            }
            op => {
                if lanes != 0 {
                    if !matches!(op, Op::Wgmma(_)) {
                        let lane = lanes.trailing_zeros() as usize;
                        w.wgmma.check_targets(&instruction.targets, lane, self.names)?;
                    }
                    self.operate(w, lanes, instruction)?;
                }
                w.pc += 1;
            }
        }
        Ok(())
    }

    fn barrier(&mut self, w: &mut Warp, lanes: u32, instruction: &Instruction) -> Outcome {
        let Op::Barrier { id, threads, waits, aligned } = instruction.op else { return Ok(()) };
        if aligned {
            w.expect_all(lanes, "an aligned barrier")?;
        }
        w.expect_all(lanes, "a barrier")?;
        let lane = lanes.trailing_zeros() as usize;
        let id = w.r32(id, lanes)?[lane];
        let expected = match threads {
            Some(reg) => w.r32(reg, lanes)?[lane],
            None => self.threads,
        };
        if id as usize >= BARRIERS || !expected.is_multiple_of(LANES as u32) && expected != self.threads {
            return stop(lane, Check::Barrier, format!("barrier {id} cannot be for {expected} threads"));
        }
        let barrier = &mut self.barriers[id as usize];
        if barrier.threads > 0 && barrier.expected != expected {
            let detail = format!("barrier {id} is for {expected} threads here and for {} elsewhere", barrier.expected);
            return stop(lane, Check::Barrier, detail);
        }
        barrier.expected = expected;
        // Warps arrive as a whole; the last warp of a block may have fewer than 32 threads.
        barrier.threads += w.running().count_ones();
        barrier.arrived |= 1 << w.index;
        barrier.arrived_at[w.index] = self.reach.clock.tick();
        barrier.line = instruction.line;
        if waits {
            w.waits = Some(Wait::Barrier(id));
        }
        Ok(())
    }

    fn operate(&mut self, w: &mut Warp, lanes: u32, instruction: &Instruction) -> Outcome {
        match instruction.op {
            Op::Unary(how, d, a) => alu::unary(w, lanes, how, d, a),
            Op::Binary(with, d, a, b) => alu::binary(w, lanes, with, [d, a, b]),
            Op::Ternary(with, d, a, b, c) => alu::ternary(w, lanes, with, [d, a, b, c]),
            Op::Unary64(how, d, a) => alu::unary64(w, lanes, how, d, a),
            Op::Binary64(with, d, a, b) => alu::binary64(w, lanes, with, [d, a, b]),
            Op::MulAdd64(d, a, b, c) => {
                let (a, b, c) = (w.r64(a, lanes)?, w.r64(b, lanes)?, w.r64(c, lanes)?);
                let out = std::array::from_fn(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i]));
                w.set_r64(d, lanes, &out);
                Ok(())
            }
            Op::MulWide { signed, d, a, b, add } => alu::multiply_wide(w, lanes, signed, [d, a, b], add),
            Op::Widen { signed, d, a } => {
                let a = *w.r32(a, lanes)?;
                w.set_r64(d, lanes, &a.map(|x| if signed { x as i32 as u64 } else { u64::from(x) }));
                Ok(())
            }
            Op::Narrow { d, a } => {
                let a = *w.r64(a, lanes)?;
                w.set_r32(d, lanes, &a.map(|x| x as u32));
                Ok(())
            }
            Op::Join64(d, [low, high]) => {
                let (low, high) = (w.r32(low, lanes)?, w.r32(high, lanes)?);
                let out = std::array::from_fn(|i| u64::from(high[i]) << 32 | u64::from(low[i]));
                w.set_r64(d, lanes, &out);
                Ok(())
            }
            Op::Join32(d, [low, high]) => {
                let (low, high) = (w.r32(low, lanes)?, w.r32(high, lanes)?);
                let out = std::array::from_fn(|i| high[i] << 16 | low[i] & 0xffff);
                w.set_r32(d, lanes, &out);
                Ok(())
            }
            Op::Split64(parts, a) => {
                let a = *w.r64(a, lanes)?;
                let halves = [a.map(|x| x as u32), a.map(|x| (x >> 32) as u32)];
                parts.iter().zip(&halves).for_each(|(d, half)| d.iter().for_each(|&d| w.set_r32(d, lanes, half)));
                Ok(())
            }
            Op::Split32(parts, a) => {
                let a = *w.r32(a, lanes)?;
                let halves = [a.map(|x| x & 0xffff), a.map(|x| x >> 16)];
                parts.iter().zip(&halves).for_each(|(d, half)| d.iter().for_each(|&d| w.set_r32(d, lanes, half)));
                Ok(())
            }
            Op::Select { d, a, b, predicate, wide } => {
                let chosen = w.predicate(predicate, lanes)?;
                let pick = |i: usize| chosen >> i & 1 != 0;
                if wide {
                    let (a, b) = (w.r64(a, lanes & chosen)?, w.r64(b, lanes & !chosen)?);
                    let out = std::array::from_fn(|i| if pick(i) { a[i] } else { b[i] });
                    w.set_r64(d, lanes, &out);
                } else {
                    let (a, b) = (w.r32(a, lanes)?, w.r32(b, lanes)?);
                    let out = std::array::from_fn(|i| if pick(i) { a[i] } else { b[i] });
                    w.set_r32(d, lanes, &out);
                }
                Ok(())
            }
            Op::SetPredicate { compare, compare_type, wide, d, not, a, b, with } => {
                let is = alu::compare(w, lanes, (compare, compare_type, wide), a, b)?;
                let combined = |w: &Warp, is: u32| -> Outcome<u32> {
                    let Some((logic, other, negated)) = with else { return Ok(is) };
                    let other = w.predicate(other, lanes)?;
                    Ok(alu::logic(logic, is, if negated { !other } else { other }))
                };
                let (yes, no) = (combined(w, is)?, combined(w, !is)?);
                w.set_predicate(d, lanes, yes);
                not.iter().for_each(|&not| w.set_predicate(not, lanes, no));
                Ok(())
            }
            Op::PredicateLogic(with, d, a, b) => {
                let value = alu::logic(with, w.predicate(a, lanes)?, w.predicate(b, lanes)?);
                w.set_predicate(d, lanes, value);
                Ok(())
            }
            Op::PredicateNot(d, a) => {
                let value = !w.predicate(a, lanes)?;
                w.set_predicate(d, lanes, value);
                Ok(())
            }
            Op::PredicateMove(d, a) => {
                let value = w.predicate(a, lanes)?;
                w.set_predicate(d, lanes, value);
                Ok(())
            }
            Op::Parameter { d, offset, wide } => {
                let at = offset as usize;
                let mut bytes = [0; 8];
                let size = if wide { 8 } else { 4 };
                bytes[..size].copy_from_slice(&self.parameters[at..at + size]);
                let value = u64::from_le_bytes(bytes);
                if wide {
                    w.set_r64(d, lanes, &[value; LANES])
                } else {
                    w.set_r32(d, lanes, &[value as u32; LANES])
                }
                Ok(())
            }
            Op::Load { space, element, ref to, at } => {
                access::load(w, &mut self.reach, lanes, (space, element), to, at)
            }
            Op::Store { space, element, ref from, at } => {
                access::store(w, &mut self.reach, lanes, (space, element), from, at)
            }
            Op::Atomic { atomic, space, d, at, a, b } => {
                access::atomic(w, &mut self.reach, lanes, (atomic, space), d, at, [a, b])
            }
            Op::MapRank { d, a, rank } => cluster::map(w, lanes, d, a, rank),
            Op::LoadCluster { element, ref to, at } => cluster::load(w, &mut self.reach, lanes, element, to, at),
            Op::ClusterBarrier(which) => cluster::barrier(w, lanes, which),
            Op::CopyAsync { to, from, bytes, source_bytes } => {
                access::copy(w, &mut self.reach, lanes, [to, from], bytes, source_bytes)
            }
            _ => collective::operate(w, &mut self.reach, lanes, instruction, self.names),
        }
    }
}
