//! `mbarrier`s: barriers in shared memory on which threads and bulk copies arrive.
//!
//! A phase completes when the expected number of threads have arrived and all expected bytes were transferred. Its
//! completion happens after everything that happened before the arrivals, and after the copies; waiting threads acquire
//! that order.

use super::access::{Reach, addresses};
use super::clock::{Clock, MBARRIERS, Snapshot};
use super::fault::{Check, Outcome, stop};
use super::program::{Address, Mbarrier, Phase};
use super::shared::Shared;
use super::warp::{LANES, Wait, Warp, lanes};

/// Limit of the arrival count.
const MAX_ARRIVALS: u32 = (1 << 20) - 1;
/// Limit of the transaction count: bytes expected but not yet transferred.
const MAX_BYTES: i64 = (1 << 20) - 1;

struct Counter {
    address: u32,
    /// Arrivals that complete a phase.
    count: u32,
    /// Arrivals that the present phase still lacks.
    pending: u32,
    /// Bytes expected but not yet transferred.
    bytes: i64,
    phase: u32,
    /// The thread that initialised it, and when.
    maker: u16,
    made_at: u32,
    /// Whether that thread has executed a proxy fence since; without one, bulk copies may not see the `mbarrier`.
    fenced: bool,
    /// Clock of the arrivals in the present phase.
    arriving: Snapshot,
    /// Clock of the completed phases.
    completed: Snapshot,
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

    /// The index of the `mbarrier` at an address; its initialisation must happen before the warp's access.
    pub fn find(&self, address: u32, w: &Warp, lane: usize, clock: &Clock) -> Outcome<usize> {
        let Some(index) = self.all.iter().position(|c| c.address == address) else {
            let detail = format!("no initialised mbarrier at shared address {address}");
            return stop(lane, Check::Mbarrier, detail);
        };
        let counter = &self.all[index];
        let maker = usize::from(counter.maker) / LANES;
        if maker != w.index && counter.made_at > clock.seen(w.index, maker) {
            let detail = format!("mbarrier {index} is used with no barrier after its mbarrier.init");
            return stop(lane, Check::SharedRace, detail);
        }
        Ok(index)
    }

    /// The present phase, which a bulk copy starting now belongs to.
    pub fn phase_of_copy(&self, index: usize, lane: usize) -> Outcome<u32> {
        let counter = &self.all[index];
        if !counter.fenced {
            let detail = format!(
                "a bulk copy uses mbarrier {index}, but thread {} executed no fence after its mbarrier.init",
                counter.maker
            );
            return stop(lane, Check::MissingProxyFence, detail);
        }
        Ok(counter.phase)
    }

    /// A bulk copy that was started in `phase` has transferred its bytes at `time`.
    pub fn land(&mut self, index: usize, phase: u32, bytes: u32, time: u32, clock: &Clock) -> Result<(), String> {
        let counter = &mut self.all[index];
        if counter.phase != phase {
            return Err(format!(
                "{bytes} bytes arrive at mbarrier {index} after its phase completed: \
                 more bytes were copied than expected"
            ));
        }
        counter.bytes -= i64::from(bytes);
        clock.publish_agent(clock.copy_agent(index), time, &mut counter.arriving);
        counter.advance();
        Ok(())
    }

    /// A proxy fence by these lanes: the `mbarrier`s that they initialised become visible to bulk copies.
    pub fn fence(&mut self, w: &Warp, mask: u32) {
        for counter in &mut self.all {
            let (warp, lane) = (usize::from(counter.maker) / LANES, usize::from(counter.maker) % LANES);
            counter.fenced |= warp == w.index && mask >> lane & 1 != 0;
        }
    }

    /// Whether a phase has completed.
    pub fn is_over(&self, index: usize, phase: Phase, value: u64) -> bool {
        let counter = &self.all[index];
        match phase {
            Phase::Parity(_) => u64::from(counter.phase & 1) != value & 1,
            Phase::Token(_) => u64::from(counter.phase) != value,
        }
    }

    /// What the phase that a warp waits for lacks, and whether only bytes are missing.
    pub fn missing(&self, index: usize, value: u64) -> (String, bool) {
        let Counter { count, pending, bytes, phase, .. } = self.all[index];
        let detail = format!(
            "the wait for parity {} of mbarrier {index} never ends: it is in phase {phase}, \
             {} of {count} threads have arrived, and {bytes} expected bytes are never copied",
            value & 1,
            count - pending
        );
        (detail, pending == 0 && bytes != 0)
    }
}

impl Counter {
    fn arrive(&mut self, index: usize, count: u32, lane: usize) -> Outcome {
        if count == 0 || count > self.pending {
            let detail = format!("{count} arrivals at mbarrier {index}, whose phase takes {} more", self.pending);
            return stop(lane, Check::Mbarrier, detail);
        }
        self.pending -= count;
        self.advance();
        Ok(())
    }

    /// `expect_tx`: adds to the expected bytes.
    fn expect(&mut self, index: usize, bytes: u32, lane: usize) -> Outcome {
        self.bytes += i64::from(bytes);
        if self.bytes > MAX_BYTES {
            let detail = format!("mbarrier {index} expects {} bytes, its limit is 2^20 - 1", self.bytes);
            return stop(lane, Check::Mbarrier, detail);
        }
        Ok(())
    }

    /// Completes the phase if nothing is missing.
    fn advance(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.completed = self.arriving.clone();
        }
    }
}

fn initialise(w: &Warp, reach: &mut Reach<'_>, address: u32, lane: usize, count: u32) -> Outcome {
    if count == 0 || count > MAX_ARRIVALS {
        return stop(lane, Check::Mbarrier, format!("mbarrier.init with a count of {count}"));
    }
    let all = &mut reach.mbarriers.all;
    if all.len() == MBARRIERS {
        return stop(lane, Check::Mbarrier, format!("the emulator supports at most {MBARRIERS} mbarriers per block"));
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
        arriving: Snapshot::default(),
        completed: Snapshot::default(),
    };
    all.push(counter);
    Ok(())
}

fn invalidate(shared: &mut Shared, clock: &Clock, counter: &mut Counter, thread: u16) -> Outcome {
    shared.hold_mbarrier(counter.address, false, thread, clock)?;
    // Zero is not a valid shared address.
    counter.address = 0;
    Ok(())
}

/// Executes an `mbarrier` instruction for each lane. On hardware `try_wait` may return false after a time limit, so
/// here it returns false once and the warp resumes when the phase completes: a kernel that does not retry is detected.
pub(super) fn operate(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, what: Mbarrier, at: Address) -> Outcome {
    let at = addresses(w, mask, at)?;
    let mut tokens = [0; LANES];
    let mut over = 0;
    let index = |w: &Warp, reach: &Reach<'_>, lane: usize| reach.mbarriers.find(at[lane] as u32, w, lane, reach.clock);
    let operand = |w: &Warp, reg: Option<u16>, lane: usize, absent: u32| match reg {
        Some(reg) => w.r32(reg, mask).map(|values| values[lane]),
        None => Ok(absent),
    };
    for lane in lanes(mask) {
        let thread = w.first_thread() + lane as u16;
        match what {
            Mbarrier::Init { count } => {
                let count = w.r32(count, mask)?[lane];
                initialise(w, reach, at[lane] as u32, lane, count)?;
            }
            Mbarrier::Invalidate => {
                let index = index(w, reach, lane)?;
                invalidate(reach.shared, reach.clock, &mut reach.mbarriers.all[index], thread)?;
            }
            Mbarrier::Arrive { count, bytes, .. } => {
                let index = index(w, reach, lane)?;
                let (count, bytes) = (operand(w, count, lane, 1)?, operand(w, bytes, lane, 0)?);
                let counter = &mut reach.mbarriers.all[index];
                tokens[lane] = u64::from(counter.phase);
                counter.expect(index, bytes, lane)?;
                reach.clock.publish(w.index, &mut counter.arriving);
                counter.arrive(index, count, lane)?;
            }
            Mbarrier::Expect { bytes } => {
                let index = index(w, reach, lane)?;
                reach.mbarriers.all[index].expect(index, w.r32(bytes, mask)?[lane], lane)?;
            }
            Mbarrier::Wait { phase, suspends, .. } => {
                let index = index(w, reach, lane)?;
                let value = match phase {
                    Phase::Parity(reg) => u64::from(w.r32(reg, mask)?[lane]),
                    Phase::Token(reg) => w.r64(reg, mask)?[lane],
                };
                let is_over = reach.mbarriers.is_over(index, phase, value);
                if is_over {
                    over |= 1 << lane;
                    reach.clock.adopt(w.index, &reach.mbarriers.all[index].completed);
                } else {
                    let phase = Wait::Phase { mbarrier: index, phase, value };
                    w.waits = Some(if suspends { phase } else { Wait::Yield });
                }
            }
        }
    }
    match what {
        Mbarrier::Arrive { token: Some(token), .. } => w.set_r64(token, mask, &tokens),
        Mbarrier::Wait { done, .. } => w.set_predicate(done, mask, over),
        _ => {}
    }
    Ok(())
}
