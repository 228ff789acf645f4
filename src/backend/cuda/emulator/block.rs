//! One block of a grid: its warps take turns from barrier to barrier.

use super::access::{self, Reach};
use super::bulk::{self, Flight};
use super::clock::Clock;
use super::fault::{Check, Counters, Fault, Outcome, Stop, stop};
use super::global::{Global, Tensors};
use super::mbarrier::Mbarriers;
use super::product::Warpgroups;
use super::program::{Instruction, Kernel, Op};
use super::shared::{Shared, WARPS};
use super::warp::{LANES, Wait, Warp, lanes};
use super::{Parameters, alu, together};

/// Instructions after which a warp is taken to run forever.
const ENDLESS: u64 = 1 << 26;

/// Barriers of a block.
const BARRIERS: usize = 16;

/// Threads at a barrier.
#[derive(Clone, Copy, Default)]
struct Gathering {
    threads: u32,
    /// How many it takes.
    wanted: u32,
    /// Warps that have come, and when.
    came: u32,
    at: [u32; WARPS],
    /// Line of the last instruction that came.
    line: u32,
}

/// A block's state, used for one block of the grid after the other.
pub(super) struct Block<'a> {
    kernel: &'a Kernel,
    tensors: &'a Tensors<'a>,
    parameters: &'a Parameters,
    shared: Shared,
    warps: Vec<Warp>,
    mbarriers: Mbarriers,
    flights: Vec<Flight>,
    warpgroups: Warpgroups,
}

impl<'a> Block<'a> {
    pub fn new(kernel: &'a Kernel, tensors: &'a Tensors<'a>, parameters: &'a Parameters) -> Block<'a> {
        let warps = (kernel.threads() as usize).div_ceil(LANES);
        Block {
            kernel,
            tensors,
            parameters,
            shared: Shared::new(kernel.shared_base, parameters.shared_bytes, warps, kernel.asynchronous),
            warps: (0..warps).map(|i| Warp::new(kernel, i)).collect(),
            mbarriers: Mbarriers::default(),
            flights: Vec::new(),
            warpgroups: Warpgroups::default(),
        }
    }

    /// Runs all threads of a block to their end.
    pub fn run(&mut self, block: [u32; 3], grid: [u32; 3]) -> Result<Counters, Fault> {
        self.shared.clear();
        self.mbarriers.clear();
        self.flights.clear();
        self.warpgroups.clear();
        self.warps.iter_mut().for_each(|w| w.reset(self.kernel, block, grid));
        let mut counters = Counters::default();
        let mut clock = Clock::new(self.warps.len(), self.kernel.asynchronous);
        let mut barriers = [Gathering::default(); BARRIERS];
        let kernel = self.kernel;
        let number = (block[2] * grid[1] + block[1]) * grid[0] + block[0];
        let global = Global { tensors: self.tensors, block: number + 1 };
        loop {
            let mut run = Run {
                reach: Reach {
                    global: &global,
                    shared: &mut self.shared,
                    clock: &mut clock,
                    counters: &mut counters,
                    maps: &self.parameters.maps,
                    mbarriers: &mut self.mbarriers,
                    flights: &mut self.flights,
                    warpgroups: &mut self.warpgroups,
                },
                barriers: &mut barriers,
                threads: kernel.threads(),
                parameters: &self.parameters.bytes,
                names: &kernel.names[0],
            };
            let mut moved = false;
            for (i, warp) in self.warps.iter_mut().enumerate() {
                if warp.waits.is_some() || warp.is_done() {
                    continue;
                }
                moved = true;
                if let Err(stopped) = run.warp(kernel, warp) {
                    return Err(fault(kernel, block, warp.place, i, *stopped));
                }
            }
            let asks_again = self.warps.iter().any(|w| w.waits == Some(Wait::Turn));
            if !moved || asks_again {
                // As late as possible: when nobody can go on without them, or can only ask for them.
                for flight in std::mem::take(run.reach.flights) {
                    if let Err(stopped) = bulk::land(&mut run.reach, &flight) {
                        return Err(fault(kernel, block, flight.place, flight.warp, *stopped));
                    }
                }
            }
            moved |= self.release(&mut barriers, &mut clock, &mut counters);
            moved |= self.wake();
            if self.warps.iter().all(Warp::is_done) {
                return self.ended(block, counters);
            }
            if !moved {
                return Err(self.stuck(block, &barriers));
            }
        }
    }

    /// Nothing may be under way once all threads have ended.
    fn ended(&self, block: [u32; 3], counters: Counters) -> Result<Counters, Fault> {
        let stopped = |check, detail| Stop { lane: 0, check, detail, register: None };
        if let Some(flight) = self.flights.first() {
            let detail = "a bulk copy is under way at the end".to_owned();
            let stopped = Stop { lane: flight.lane as u32, ..stopped(Check::MissingWait, detail) };
            return Err(fault(self.kernel, block, flight.place, flight.warp, stopped));
        }
        if let Some((warp, detail)) = self.warpgroups.missing(&self.warps) {
            return Err(fault(self.kernel, block, self.warps[warp].place, warp, stopped(Check::Warpgroup, detail)));
        }
        Ok(counters)
    }

    /// Lets the warps go on whose phase is over, and those that only let others go first.
    fn wake(&mut self) -> bool {
        let mut any = false;
        for warp in &mut self.warps {
            let is_over = match warp.waits {
                Some(Wait::Phase { mbarrier, phase, value }) => self.mbarriers.is_over(mbarrier, phase, value),
                Some(Wait::Turn) => true,
                Some(Wait::Barrier(_)) | None => false,
            };
            if is_over {
                warp.waits = None;
            }
            any |= is_over;
        }
        any
    }

    /// Lets the warps go on for which everybody has come.
    fn release(&mut self, barriers: &mut [Gathering], clock: &mut Clock, counters: &mut Counters) -> bool {
        let mut any = false;
        for (id, barrier) in barriers.iter_mut().enumerate() {
            if barrier.threads == 0 || barrier.threads < barrier.wanted {
                continue;
            }
            let waiting: Vec<usize> =
                (0..self.warps.len()).filter(|&w| self.warps[w].waits == Some(Wait::Barrier(id as u32))).collect();
            for &w in &waiting {
                for v in lanes(barrier.came) {
                    clock.see(w, v, barrier.at[v]);
                }
                self.warps[w].waits = None;
            }
            *barrier = Gathering::default();
            counters.barriers += 1;
            any = true;
        }
        any
    }

    /// Nobody can go on: some wait for threads or bytes that never come.
    fn stuck(&self, block: [u32; 3], barriers: &[Gathering]) -> Fault {
        // Of a chain of waits the one for bytes that nobody brings is the first.
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
                let others: Vec<String> = others.map(|w| format!("warp {} waits at {}", w.index, place(w))).collect();
                let others = if others.is_empty() { "nobody else waits".to_owned() } else { others.join(", ") };
                (check, format!("{detail}; {others}"), self.kernel.code[warp.place as usize - 1].line)
            }
            _ => {
                let id = if let Some(Wait::Barrier(id)) = warp.waits { id } else { 0 };
                let barrier = &barriers[id as usize];
                let missing = self.warps.iter().find(|w| w.waits != Some(Wait::Barrier(id)));
                let why = match missing {
                    Some(w) if w.is_done() => format!("thread {} has ended", w.first_thread()),
                    Some(w) => format!("thread {} waits at {}", w.first_thread(), place(w)),
                    None => "no others exist".to_owned(),
                };
                let (came, wanted) = (barrier.threads, barrier.wanted);
                let detail = format!("{came} of {wanted} threads have come to barrier {id}, and {why}");
                (Check::Barrier, detail, barrier.line)
            }
        };
        let mut fault = fault(self.kernel, block, 0, waiting, Stop { lane: 0, check, detail, register: None });
        fault.line = line;
        fault
    }
}

/// A register that is not readable because a product under way has its sums in it.
fn in_use(w: &Warp, mut stopped: Box<Stop>, names: &[String]) -> Box<Stop> {
    if let Some((0, reg)) = stopped.register
        && w.products.writes(reg)
    {
        let name = &names[usize::from(reg)];
        (stopped.check, stopped.register) = (Check::RegisterInUse, None);
        stopped.detail = format!("{name} is read while a wgmma computes it, whose group was not waited for");
    }
    stopped
}

/// What a warp waits at.
fn place(w: &Warp) -> String {
    match w.waits {
        Some(Wait::Barrier(id)) => format!("barrier {id}"),
        Some(Wait::Phase { mbarrier, value, .. }) => format!("mbarrier number {mbarrier} for parity {}", value & 1),
        Some(Wait::Turn) | None => "nothing".to_owned(),
    }
}

fn fault(kernel: &Kernel, block: [u32; 3], place: u32, warp: usize, stopped: Stop) -> Fault {
    let Stop { lane, check, detail, register } = stopped;
    let thread = LANES as u32 * warp as u32 + lane;
    let [x, y, _] = kernel.threads;
    let detail = match register {
        Some((file, reg)) => format!("{} was not written", kernel.names[file][usize::from(reg)]),
        None => detail,
    };
    Fault {
        kernel: kernel.name.clone(),
        line: kernel.code.get(place as usize).map_or(0, |i| i.line),
        block,
        thread: [thread % x, thread / x % y, thread / x / y],
        check,
        detail,
    }
}

/// What a warp needs of its block while it runs.
struct Run<'a> {
    reach: Reach<'a>,
    barriers: &'a mut [Gathering; BARRIERS],
    threads: u32,
    parameters: &'a [u8],
    names: &'a [String],
}

impl Run<'_> {
    /// Runs a warp until it waits or ends.
    fn warp(&mut self, kernel: &Kernel, w: &mut Warp) -> Outcome {
        let before = w.steps;
        while !w.is_done() && w.waits.is_none() {
            w.settle();
            let instruction = &kernel.code[w.place as usize];
            w.steps += 1;
            if w.steps > ENDLESS {
                return stop(w.active.trailing_zeros() as usize, Check::Endless, format!("{ENDLESS} instructions"));
            }
            self.step(w, instruction).map_err(|stopped| in_use(w, stopped, self.names))?;
        }
        self.reach.counters.instructions += w.steps - before;
        if w.is_done()
            && let Some(copy) = w.copies.first()
        {
            w.place = w.place.saturating_sub(1);
            let detail = format!("a copy of {} bytes by cp.async is under way at the end", copy.bytes);
            return stop(usize::from(copy.lane), Check::MissingWait, detail);
        }
        if w.is_done() && (!w.products.is_idle() || w.has_open_stores || !w.stores.is_empty()) {
            w.place = w.place.saturating_sub(1);
            return stop(0, Check::MissingWait, "a wgmma or bulk store is under way at the end");
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
                w.place += 1;
            }
            op => {
                if lanes != 0 {
                    if !matches!(op, Op::Product(_)) {
                        let lane = lanes.trailing_zeros() as usize;
                        w.products.note_targets(&instruction.targets, lane, self.names)?;
                    }
                    self.operate(w, lanes, instruction)?;
                }
                w.place += 1;
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
        let id = w.small(id, lanes)?[lane];
        let wanted = match threads {
            Some(reg) => w.small(reg, lanes)?[lane],
            None => self.threads,
        };
        if id as usize >= BARRIERS || !wanted.is_multiple_of(LANES as u32) && wanted != self.threads {
            return stop(lane, Check::Barrier, format!("there is no barrier {id} for {wanted} threads"));
        }
        let barrier = &mut self.barriers[id as usize];
        if barrier.threads > 0 && barrier.wanted != wanted {
            let detail = format!("barrier {id} is for {wanted} threads here and for {} elsewhere", barrier.wanted);
            return stop(lane, Check::Barrier, detail);
        }
        barrier.wanted = wanted;
        // Whole warps come; of the last warp of a block only the threads that exist.
        barrier.threads += w.running().count_ones();
        barrier.came |= 1 << w.index;
        barrier.at[w.index] = self.reach.clock.tick();
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
                let (a, b, c) = (w.wide(a, lanes)?, w.wide(b, lanes)?, w.wide(c, lanes)?);
                let out = std::array::from_fn(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i]));
                w.set_wide(d, lanes, &out);
                Ok(())
            }
            Op::MulWide { signed, d, a, b, add } => alu::multiply_wide(w, lanes, signed, [d, a, b], add),
            Op::Widen { signed, d, a } => {
                let a = *w.small(a, lanes)?;
                w.set_wide(d, lanes, &a.map(|x| if signed { x as i32 as u64 } else { u64::from(x) }));
                Ok(())
            }
            Op::Narrow { d, a } => {
                let a = *w.wide(a, lanes)?;
                w.set_small(d, lanes, &a.map(|x| x as u32));
                Ok(())
            }
            Op::Join64(d, [low, high]) => {
                let (low, high) = (w.small(low, lanes)?, w.small(high, lanes)?);
                let out = std::array::from_fn(|i| u64::from(high[i]) << 32 | u64::from(low[i]));
                w.set_wide(d, lanes, &out);
                Ok(())
            }
            Op::Join32(d, [low, high]) => {
                let (low, high) = (w.small(low, lanes)?, w.small(high, lanes)?);
                let out = std::array::from_fn(|i| high[i] << 16 | low[i] & 0xffff);
                w.set_small(d, lanes, &out);
                Ok(())
            }
            Op::Split64(parts, a) => {
                let a = *w.wide(a, lanes)?;
                let halves = [a.map(|x| x as u32), a.map(|x| (x >> 32) as u32)];
                parts.iter().zip(&halves).for_each(|(d, half)| d.iter().for_each(|&d| w.set_small(d, lanes, half)));
                Ok(())
            }
            Op::Split32(parts, a) => {
                let a = *w.small(a, lanes)?;
                let halves = [a.map(|x| x & 0xffff), a.map(|x| x >> 16)];
                parts.iter().zip(&halves).for_each(|(d, half)| d.iter().for_each(|&d| w.set_small(d, lanes, half)));
                Ok(())
            }
            Op::Select { d, a, b, predicate, wide } => {
                let chosen = w.predicate(predicate, lanes)?;
                let pick = |i: usize| chosen >> i & 1 != 0;
                if wide {
                    let (a, b) = (w.wide(a, lanes & chosen)?, w.wide(b, lanes & !chosen)?);
                    let out = std::array::from_fn(|i| if pick(i) { a[i] } else { b[i] });
                    w.set_wide(d, lanes, &out);
                } else {
                    let (a, b) = (w.small(a, lanes)?, w.small(b, lanes)?);
                    let out = std::array::from_fn(|i| if pick(i) { a[i] } else { b[i] });
                    w.set_small(d, lanes, &out);
                }
                Ok(())
            }
            Op::SetPredicate { compare, number, wide, d, not, a, b, with } => {
                let is = alu::compare(w, lanes, (compare, number, wide), a, b)?;
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
                    w.set_wide(d, lanes, &[value; LANES])
                } else {
                    w.set_small(d, lanes, &[value as u32; LANES])
                }
                Ok(())
            }
            Op::Load { space, cell, ref to, at } => access::load(w, &mut self.reach, lanes, (space, cell), to, at),
            Op::Store { space, cell, ref from, at } => {
                access::store(w, &mut self.reach, lanes, (space, cell), from, at)
            }
            Op::Atomic { atomic, space, d, at, a, b } => {
                access::atomic(w, &mut self.reach, lanes, (atomic, space), d, at, [a, b])
            }
            Op::CopyAsync { to, from, bytes, filled } => {
                access::copy(w, &mut self.reach, lanes, [to, from], bytes, filled)
            }
            _ => together::operate(w, &mut self.reach, lanes, instruction, self.names),
        }
    }
}
