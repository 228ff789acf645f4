//! `mbarrier`s: counters in shared memory by which threads and bulk copies tell others how far they are.
//!
//! A phase completes when as many threads have arrived as the barrier was made for and all bytes that were announced have
//! come. Who waits for a phase has then seen what those who arrived had done and seen, and what the copies brought; who
//! arrives in the next phase carries that on.

use super::access::{Reach, addresses};
use super::clock::{Clock, MBARRIERS, View};
use super::fault::{Check, Outcome, stop};
use super::program::{Address, Mbarrier, Phase};
use super::shared::Shared;
use super::warp::{LANES, Wait, Warp, lanes};

/// Most threads that a phase can wait for.
const MOST_ARRIVALS: u32 = (1 << 20) - 1;
/// Most bytes that can be announced and not yet have come.
const MOST_BYTES: i64 = (1 << 20) - 1;

struct Counter {
    address: u32,
    /// Threads that a phase takes.
    count: u32,
    pending: u32,
    /// Bytes announced and not yet come.
    bytes: i64,
    phase: u32,
    /// Who made it, and when.
    maker: u16,
    made_at: u32,
    /// Whether the maker has made a fence since, without which bulk copies may not see it.
    fenced: bool,
    /// Of the phase that is under way, and of those that have completed.
    arriving: View,
    completed: View,
}

/// The `mbarrier`s of a block.
#[derive(Default)]
pub(super) struct Mbarriers {
    all: Vec<Counter>,
}

impl Mbarriers {
    pub fn clear(&mut self) {
        self.all.clear();
    }

    /// The number of the `mbarrier` at an address, which the warp knows to be there.
    pub fn find(&self, address: u32, w: &Warp, lane: usize, clock: &Clock) -> Outcome<usize> {
        let Some(number) = self.all.iter().position(|c| c.address == address) else {
            let detail = format!("there is no initialised mbarrier at shared address {address}");
            return stop(lane, Check::Mbarrier, detail);
        };
        let counter = &self.all[number];
        let maker = usize::from(counter.maker) / LANES;
        if maker != w.index && counter.made_at > clock.seen(w.index, maker) {
            let detail = format!("mbarrier number {number} is used with no barrier after its mbarrier.init");
            return stop(lane, Check::SharedRace, detail);
        }
        Ok(number)
    }

    /// The phase that is under way, for a copy that a lane starts.
    pub fn announce(&self, number: usize, lane: usize) -> Outcome<u32> {
        let counter = &self.all[number];
        if !counter.fenced {
            let detail = format!(
                "mbarrier number {number} counts a bulk copy, and thread {} has made no fence after its mbarrier.init",
                counter.maker
            );
            return stop(lane, Check::MissingProxyFence, detail);
        }
        Ok(counter.phase)
    }

    /// Bytes of a copy that was started in `phase` have come at `time`.
    pub fn land(&mut self, number: usize, phase: u32, bytes: u32, time: u32, clock: &Clock) -> Result<(), String> {
        let counter = &mut self.all[number];
        if counter.phase != phase {
            return Err(format!(
                "{bytes} bytes come for mbarrier number {number} whose phase has completed without them: \
                 more bytes were copied than announced"
            ));
        }
        counter.bytes -= i64::from(bytes);
        clock.publish_agent(clock.copies_of(number), time, &mut counter.arriving);
        counter.advance();
        Ok(())
    }

    /// A fence by these lanes makes the `mbarrier`s that they made visible to bulk copies.
    pub fn fence(&mut self, w: &Warp, mask: u32) {
        for counter in &mut self.all {
            let (warp, lane) = (usize::from(counter.maker) / LANES, usize::from(counter.maker) % LANES);
            counter.fenced |= warp == w.index && mask >> lane & 1 != 0;
        }
    }

    /// Whether a phase has completed.
    pub fn is_over(&self, number: usize, phase: Phase, value: u64) -> bool {
        let counter = &self.all[number];
        match phase {
            Phase::Parity(_) => u64::from(counter.phase & 1) != value & 1,
            Phase::Token(_) => u64::from(counter.phase) != value,
        }
    }

    /// What is missing for the phase that a warp waits for, and whether that is bytes alone.
    pub fn missing(&self, number: usize, value: u64) -> (String, bool) {
        let Counter { count, pending, bytes, phase, .. } = self.all[number];
        let detail = format!(
            "the wait for parity {} of mbarrier number {number} never ends: it is in phase {phase}, \
             {} of {count} threads have arrived, and {bytes} bytes are announced that nobody copies",
            value & 1,
            count - pending
        );
        (detail, pending == 0 && bytes != 0)
    }
}

impl Counter {
    fn arrive(&mut self, number: usize, count: u32, lane: usize) -> Outcome {
        if count == 0 || count > self.pending {
            let detail =
                format!("{count} arrivals at mbarrier number {number}, whose phase takes {} more", self.pending);
            return stop(lane, Check::Mbarrier, detail);
        }
        self.pending -= count;
        self.advance();
        Ok(())
    }

    /// Announces bytes.
    fn expect(&mut self, number: usize, bytes: u32, lane: usize) -> Outcome {
        self.bytes += i64::from(bytes);
        if self.bytes > MOST_BYTES {
            let detail =
                format!("{} bytes are announced at mbarrier number {number}, which counts 2^20 - 1", self.bytes);
            return stop(lane, Check::Mbarrier, detail);
        }
        Ok(())
    }

    /// Ends the phase if nothing is missing.
    fn advance(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.completed = self.arriving.clone();
        }
    }
}

fn initialise(w: &Warp, reach: &mut Reach<'_>, address: u32, lane: usize, count: u32) -> Outcome {
    if count == 0 || count > MOST_ARRIVALS {
        return stop(lane, Check::Mbarrier, format!("an mbarrier for {count} threads"));
    }
    let all = &mut reach.mbarriers.all;
    if all.len() == MBARRIERS {
        return stop(lane, Check::Mbarrier, format!("a block has more than {MBARRIERS} mbarriers"));
    }
    let maker = w.first_thread() + lane as u16;
    reach.shared.hold_mbarrier(address, true, maker, reach.clock)?;
    let made_at = reach.clock.tick();
    let counter = Counter {
        address,
        count,
        pending: count,
        bytes: 0,
        phase: 0,
        maker,
        made_at,
        fenced: false,
        arriving: View::default(),
        completed: View::default(),
    };
    all.push(counter);
    Ok(())
}

fn invalidate(shared: &mut Shared, clock: &Clock, counter: &mut Counter, thread: u16) -> Outcome {
    shared.hold_mbarrier(counter.address, false, thread, clock)?;
    // No shared address is this one.
    counter.address = 0;
    Ok(())
}

/// Runs an instruction of the family for each lane. Hardware lets a thread that waits go on after a while whatever has
/// become of the phase, so `try_wait` says no once and the warp goes on when the phase is over: who does not ask again is
/// found out.
pub(super) fn operate(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, what: Mbarrier, at: Address) -> Outcome {
    let at = addresses(w, mask, at)?;
    let mut tokens = [0; LANES];
    let mut over = 0;
    let number = |w: &Warp, reach: &Reach<'_>, lane: usize| reach.mbarriers.find(at[lane] as u32, w, lane, reach.clock);
    let operand = |w: &Warp, reg: Option<u16>, lane: usize, absent: u32| match reg {
        Some(reg) => w.small(reg, mask).map(|values| values[lane]),
        None => Ok(absent),
    };
    for lane in lanes(mask) {
        let thread = w.first_thread() + lane as u16;
        match what {
            Mbarrier::Init { count } => {
                let count = w.small(count, mask)?[lane];
                initialise(w, reach, at[lane] as u32, lane, count)?;
            }
            Mbarrier::Invalidate => {
                let number = number(w, reach, lane)?;
                invalidate(reach.shared, reach.clock, &mut reach.mbarriers.all[number], thread)?;
            }
            Mbarrier::Arrive { count, bytes, .. } => {
                let number = number(w, reach, lane)?;
                let (count, bytes) = (operand(w, count, lane, 1)?, operand(w, bytes, lane, 0)?);
                let counter = &mut reach.mbarriers.all[number];
                tokens[lane] = u64::from(counter.phase);
                counter.expect(number, bytes, lane)?;
                reach.clock.publish(w.index, &mut counter.arriving);
                counter.arrive(number, count, lane)?;
            }
            Mbarrier::Expect { bytes } => {
                let number = number(w, reach, lane)?;
                reach.mbarriers.all[number].expect(number, w.small(bytes, mask)?[lane], lane)?;
            }
            Mbarrier::Wait { phase, suspends, .. } => {
                let number = number(w, reach, lane)?;
                let value = match phase {
                    Phase::Parity(reg) => u64::from(w.small(reg, mask)?[lane]),
                    Phase::Token(reg) => w.wide(reg, mask)?[lane],
                };
                let is_over = reach.mbarriers.is_over(number, phase, value);
                if is_over {
                    over |= 1 << lane;
                    reach.clock.adopt(w.index, &reach.mbarriers.all[number].completed);
                } else {
                    let phase = Wait::Phase { mbarrier: number, phase, value };
                    w.waits = Some(if suspends { phase } else { Wait::Turn });
                }
            }
        }
    }
    match what {
        Mbarrier::Arrive { token: Some(token), .. } => w.set_wide(token, mask, &tokens),
        Mbarrier::Wait { done, .. } => w.set_predicate(done, mask, over),
        _ => {}
    }
    Ok(())
}
