//! Warp-collective and asynchronous instructions: shuffles, votes, matrix instructions, copies, `mbarrier`s.

use super::access::{self, Reach};
use super::fault::{Check, Outcome, stop};
use super::program::{Instruction, Op, Shuffle, Vote};
use super::warp::{LANES, Warp, lanes};
use super::{alu, bulk, matrix, mbarrier, wgmma};

/// Executes a collective or asynchronous instruction.
pub(super) fn operate(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    instruction: &Instruction,
    names: &[String],
) -> Outcome {
    match instruction.op {
        Op::CommitAsync => {
            lanes(mask).for_each(|lane| w.committed[lane] += 1);
            Ok(())
        }
        Op::WaitAsync(pending) => {
            access::wait(w, reach, mask, pending);
            Ok(())
        }
        Op::Shuffle { shuffle, d, found, a, b, c, members } => {
            check_members(w, mask, members, "shfl.sync")?;
            let values = *w.r32(a, mask)?;
            let (b, c) = (*w.r32(b, mask)?, *w.r32(c, mask)?);
            let mut inside = 0;
            let mut out = [0; LANES];
            for lane in lanes(mask) {
                let (from, ok) = source(shuffle, lane as u32, b[lane], c[lane]);
                if mask >> from & 1 == 0 {
                    let detail = format!("shfl.sync reads lane {from}, which does not participate");
                    return stop(lane, Check::DivergentWarp, detail);
                }
                out[lane] = values[from as usize];
                inside |= u32::from(ok) << lane;
            }
            w.set_r32(d, mask, &out);
            found.iter().for_each(|&found| w.set_predicate(found, mask, inside));
            Ok(())
        }
        Op::Vote { vote, d, a, negated, members } => {
            check_members(w, mask, members, "vote.sync")?;
            let values = w.predicate(a, mask)?;
            let yes = mask & if negated { !values } else { values };
            let all = |is: bool| if is { u32::MAX } else { 0 };
            match vote {
                Vote::Ballot => w.set_r32(d, mask, &[yes; LANES]),
                Vote::All => w.set_predicate(d, mask, all(yes == mask)),
                Vote::Any => w.set_predicate(d, mask, all(yes != 0)),
                Vote::Uniform => w.set_predicate(d, mask, all(yes == mask || yes == 0)),
            }
            Ok(())
        }
        Op::Reduce { with, d, a, members } => {
            check_members(w, mask, members, "redux.sync")?;
            let values = *w.r32(a, mask)?;
            let reduced = lanes(mask).map(|lane| values[lane]).reduce(|a, b| alu::combine(with, a, b));
            w.set_r32(d, mask, &[reduced.unwrap_or(0); LANES]);
            Ok(())
        }
        Op::ActiveMask(d) => {
            w.set_r32(d, mask, &[mask; LANES]);
            Ok(())
        }
        Op::WarpBarrier(members) => {
            check_members(w, mask, members, "bar.warp.sync")?;
            if mask == w.running() {
                let time = reach.clock.tick();
                reach.clock.see(w.index, w.index, time);
            }
            Ok(())
        }
        Op::LoadMatrix { ref to, transposed, at } => {
            w.expect_all(mask, "ldmatrix")?;
            matrix::ldmatrix(w, reach, to, transposed, at)
        }
        Op::StoreMatrix { ref from, transposed, at } => {
            w.expect_all(mask, "stmatrix")?;
            matrix::stmatrix(w, reach, from, transposed, at)
        }
        Op::Mma { element, depth, ref d, ref a, ref b, ref c } => {
            w.expect_all(mask, "mma.sync")?;
            matrix::mma(w, (element, depth), d, (a, b, c))
        }
        Op::ProxyFence { data } => {
            reach.mbarriers.fence(w, mask);
            if data {
                reach.clock.fence_proxy(w, mask);
            }
            Ok(())
        }
        Op::Elect { lane, is, members } => {
            check_members(w, mask, members, "elect.sync")?;
            let first = mask.trailing_zeros();
            lane.iter().for_each(|&lane| w.set_r32(lane, mask, &[first; LANES]));
            w.set_predicate(is, mask, 1 << first);
            Ok(())
        }
        Op::Registers => {
            let warps = reach.shared.warps;
            reach.warpgroups.record(w, mask, warps, [0; 2], "setmaxnreg")
        }
        Op::Mbarrier { what, at } => mbarrier::operate(w, reach, mask, what, at),
        Op::Bulk(ref op) => bulk::operate(w, reach, mask, op),
        Op::Wgmma(ref op) => wgmma::operate(w, reach, mask, op, names),
        _ => Ok(()),
    }
}

/// Checks that exactly the lanes of the member mask execute the instruction.
fn check_members(w: &Warp, mask: u32, members: super::program::Reg, what: &str) -> Outcome {
    let members = w.r32(members, mask)?;
    lanes(mask).try_for_each(|lane| {
        let wanted = members[lane] & w.running();
        if wanted == mask {
            return Ok(());
        }
        let detail = format!("{what} with member mask {:#010x} was executed by {mask:#010x}", members[lane]);
        stop(lane, Check::DivergentWarp, detail)
    })
}

/// The source lane of a shuffle, and whether it is in the lane's segment; if not, the lane reads itself. Bits 0 to 4 of
/// `c` are the clamp value, bits 8 to 12 the segment mask.
fn source(shuffle: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = lane & segment | clamp & !segment;
    let first = lane & segment;
    let (from, ok) = match shuffle {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= last),
        Shuffle::Index => (first | b & !segment, first | b & !segment <= last),
    };
    if ok { (from, true) } else { (lane, false) }
}
