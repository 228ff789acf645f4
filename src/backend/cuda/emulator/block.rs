//! One block of a grid: its warps take turns from barrier to barrier.

use super::access::{self, Reach};
use super::decode::SHARED_BASE;
use super::fault::{Check, Counters, Fault, Outcome, Stop, stop};
use super::global::Window;
use super::program::{Instruction, Kernel, Op, Shuffle, Vote};
use super::shared::{Clock, Shared, WARPS};
use super::warp::{LANES, Warp, lanes};
use super::{alu, matrix};

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
    windows: &'a [Window<'a>],
    parameters: &'a [u8],
    shared: Shared,
    warps: Vec<Warp>,
}

impl<'a> Block<'a> {
    pub fn new(kernel: &'a Kernel, windows: &'a [Window<'a>], parameters: &'a [u8]) -> Block<'a> {
        let warps = (kernel.threads() as usize).div_ceil(LANES);
        Block {
            kernel,
            windows,
            parameters,
            shared: Shared::new(SHARED_BASE, kernel.shared_bytes),
            warps: (0..warps).map(|i| Warp::new(kernel, i)).collect(),
        }
    }

    /// Runs all threads of a block to their end.
    pub fn run(&mut self, block: [u32; 3], grid: [u32; 3]) -> Result<Counters, Fault> {
        self.shared.clear();
        self.warps.iter_mut().for_each(|w| w.reset(self.kernel, block, grid));
        let mut counters = Counters::default();
        let mut clock = Clock::new(self.warps.len());
        let mut barriers = [Gathering::default(); BARRIERS];
        let kernel = self.kernel;
        loop {
            let mut moved = false;
            for w in 0..self.warps.len() {
                let warp = &mut self.warps[w];
                if warp.waits_at.is_some() || warp.is_done() {
                    continue;
                }
                moved = true;
                let mut run = Run {
                    reach: Reach {
                        windows: self.windows,
                        shared: &mut self.shared,
                        clock: &mut clock,
                        counters: &mut counters,
                    },
                    barriers: &mut barriers,
                    threads: kernel.threads(),
                    parameters: self.parameters,
                };
                if let Err(stopped) = run.warp(kernel, warp) {
                    return Err(fault(kernel, block, warp.place, w, *stopped));
                }
            }
            moved |= self.release(&mut barriers, &mut clock, &mut counters);
            if self.warps.iter().all(Warp::is_done) {
                return Ok(counters);
            }
            if !moved {
                return Err(self.stuck(block, &barriers));
            }
        }
    }

    /// Lets the warps go on for which everybody has come.
    fn release(&mut self, barriers: &mut [Gathering], clock: &mut Clock, counters: &mut Counters) -> bool {
        let mut any = false;
        for (id, barrier) in barriers.iter_mut().enumerate() {
            if barrier.threads == 0 || barrier.threads < barrier.wanted {
                continue;
            }
            let waiting: Vec<usize> =
                (0..self.warps.len()).filter(|&w| self.warps[w].waits_at == Some(id as u32)).collect();
            for &w in &waiting {
                for v in lanes(barrier.came) {
                    clock.see(w, v, barrier.at[v]);
                }
                self.warps[w].waits_at = None;
            }
            *barrier = Gathering::default();
            counters.barriers += 1;
            any = true;
        }
        any
    }

    /// Nobody can go on: some wait for threads that have ended or wait elsewhere.
    fn stuck(&self, block: [u32; 3], barriers: &[Gathering]) -> Fault {
        let waiting = self.warps.iter().position(|w| w.waits_at.is_some()).unwrap_or(0);
        let id = self.warps[waiting].waits_at.unwrap_or(0);
        let barrier = &barriers[id as usize];
        let missing = self.warps.iter().position(|w| w.waits_at != Some(id));
        let why = match missing.map(|w| &self.warps[w]) {
            Some(w) if w.is_done() => format!("thread {} has ended", w.first_thread()),
            Some(w) => format!("thread {} waits at barrier {}", w.first_thread(), w.waits_at.unwrap_or(0)),
            None => "no others exist".to_owned(),
        };
        let detail = format!("{} of {} threads have come to barrier {id}, and {why}", barrier.threads, barrier.wanted);
        let stopped = Stop { lane: 0, check: Check::Barrier, detail, register: None };
        let mut fault = fault(self.kernel, block, 0, waiting, stopped);
        fault.line = barrier.line;
        fault
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
}

impl Run<'_> {
    /// Runs a warp until it waits or ends.
    fn warp(&mut self, kernel: &Kernel, w: &mut Warp) -> Outcome {
        let before = w.steps;
        while !w.is_done() && w.waits_at.is_none() {
            w.settle();
            let instruction = &kernel.code[w.place as usize];
            w.steps += 1;
            if w.steps > ENDLESS {
                return stop(w.active.trailing_zeros() as usize, Check::Endless, format!("{ENDLESS} instructions"));
            }
            self.step(w, instruction)?;
        }
        self.reach.counters.instructions += w.steps - before;
        if w.is_done()
            && let Some(copy) = w.copies.first()
        {
            w.place = w.place.saturating_sub(1);
            let detail = format!("a copy of {} bytes by cp.async is under way at the end", copy.bytes);
            return stop(usize::from(copy.lane), Check::MissingWait, detail);
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
                    self.operate(w, lanes, op)?;
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
            w.waits_at = Some(id);
        }
        Ok(())
    }

    fn operate(&mut self, w: &mut Warp, lanes: u32, op: &Op) -> Outcome {
        match *op {
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
            _ => self.together(w, lanes, op),
        }
    }

    /// What the threads of a warp do with each other.
    fn together(&mut self, w: &mut Warp, mask: u32, op: &Op) -> Outcome {
        match *op {
            Op::CommitAsync => {
                lanes(mask).for_each(|lane| w.committed[lane] += 1);
                Ok(())
            }
            Op::WaitAsync(pending) => {
                access::wait(w, &mut self.reach, mask, pending);
                Ok(())
            }
            Op::Shuffle { shuffle, d, found, a, b, c, members } => {
                members_of(w, mask, members, "shfl.sync")?;
                let values = *w.small(a, mask)?;
                let (b, c) = (*w.small(b, mask)?, *w.small(c, mask)?);
                let mut inside = 0;
                let mut out = [0; LANES];
                for lane in lanes(mask) {
                    let (from, ok) = source(shuffle, lane as u32, b[lane], c[lane]);
                    if mask >> from & 1 == 0 {
                        let detail = format!("shfl.sync reads lane {from}, which does not take part");
                        return stop(lane, Check::DivergentWarp, detail);
                    }
                    out[lane] = values[from as usize];
                    inside |= u32::from(ok) << lane;
                }
                w.set_small(d, mask, &out);
                found.iter().for_each(|&found| w.set_predicate(found, mask, inside));
                Ok(())
            }
            Op::Vote { vote, d, a, negated, members } => {
                members_of(w, mask, members, "vote.sync")?;
                let values = w.predicate(a, mask)?;
                let yes = mask & if negated { !values } else { values };
                let all = |is: bool| if is { u32::MAX } else { 0 };
                match vote {
                    Vote::Ballot => w.set_small(d, mask, &[yes; LANES]),
                    Vote::All => w.set_predicate(d, mask, all(yes == mask)),
                    Vote::Any => w.set_predicate(d, mask, all(yes != 0)),
                    Vote::Uniform => w.set_predicate(d, mask, all(yes == mask || yes == 0)),
                }
                Ok(())
            }
            Op::Reduce { with, d, a, members } => {
                members_of(w, mask, members, "redux.sync")?;
                let values = *w.small(a, mask)?;
                let reduced = lanes(mask).map(|lane| values[lane]).reduce(|a, b| alu::combine(with, a, b));
                w.set_small(d, mask, &[reduced.unwrap_or(0); LANES]);
                Ok(())
            }
            Op::ActiveMask(d) => {
                w.set_small(d, mask, &[mask; LANES]);
                Ok(())
            }
            Op::WarpBarrier(members) => {
                members_of(w, mask, members, "bar.warp.sync")?;
                if mask == w.running() {
                    let time = self.reach.clock.tick();
                    self.reach.clock.see(w.index, w.index, time);
                }
                Ok(())
            }
            Op::LoadMatrix { ref to, transposed, at } => {
                w.expect_all(mask, "ldmatrix")?;
                matrix::load(w, &mut self.reach, to, transposed, at)
            }
            Op::StoreMatrix { ref from, transposed, at } => {
                w.expect_all(mask, "stmatrix")?;
                matrix::store(w, &mut self.reach, from, transposed, at)
            }
            Op::Matrix { element, depth, ref d, ref a, ref b, ref c } => {
                w.expect_all(mask, "mma.sync")?;
                matrix::multiply(w, (element, depth), d, (a, b, c))
            }
            _ => Ok(()),
        }
    }
}

/// The lanes that an instruction names are those that run it.
fn members_of(w: &Warp, mask: u32, members: super::program::Reg, what: &str) -> Outcome {
    let members = w.small(members, mask)?;
    lanes(mask).try_for_each(|lane| {
        let wanted = members[lane] & w.running();
        if wanted == mask {
            return Ok(());
        }
        let detail = format!("{what} for the lanes {:#010x} was reached by {mask:#010x}", members[lane]);
        stop(lane, Check::DivergentWarp, detail)
    })
}

/// Which lane is read, and whether it lies in the reader's part of the warp; if not, the reader reads itself. The
/// operand `c` holds the parts' limit in its lower and their mask in its upper half.
fn source(shuffle: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, limit, parts) = (b & 31, c & 31, c >> 8 & 31);
    let last = lane & parts | limit & !parts;
    let first = lane & parts;
    let (from, ok) = match shuffle {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= last),
        Shuffle::Index => (first | b & !parts, first | b & !parts <= last),
    };
    if ok { (from, true) } else { (lane, false) }
}
