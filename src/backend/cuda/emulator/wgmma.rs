//! `wgmma`: matrix multiply-accumulate of a warpgroup. Each of its four warps computes 16 of the 64 rows.
//!
//! B, and A unless it is in registers, is in shared memory, located by a descriptor. The layouts are the canonical ones
//! of the PTX manual's section on matrix descriptors: core matrices of 8 lines of 16 bytes without swizzle, else 8
//! lines of 32, 64 or 128 bytes, swizzled by address. A line holds the elements of one row or column along K (K-major),
//! or the elements of one k (MN-major, requested by `imm-trans`). Fragments of A and of the accumulators are those of
//! `mma` with 16 rows, with one accumulator fragment for every 8 columns.
//!
//! The result is computed when the instruction is issued. Until its group was waited for, its accumulators cannot be
//! read and its registers cannot be written.

use super::access::Reach;
use super::bulk::swizzled;
use super::fault::{Check, Outcome, stop};
use super::matrix::{Left, Right, accumulated, multiply, place_a, unpack};
use super::program::{Kernel, MatrixType, MmaAsync, Op, OperandA, Reg, Wgmma};
use super::shared_async::Reader;
use super::warp::{LANES, Warp};
use crate::backend::cuda::tensor_map::Swizzle;

/// Bytes along K of one instruction.
const DEPTH_BYTES: u32 = 32;

/// A `wgmma` group of a warp: its registers, and the time of its commit.
#[derive(Default)]
struct Group {
    accumulators: Vec<Reg>,
    operands: Vec<Reg>,
    time: u32,
}

/// A warp's `wgmma` instructions in flight.
pub(super) struct WgmmaState {
    groups: Vec<Group>,
    open: Group,
    /// Registers written since the last `wgmma.fence`; empty in kernels without `wgmma`.
    unfenced: Vec<bool>,
    /// Warpgroup instructions that the warp has executed.
    pub executed: usize,
}

impl WgmmaState {
    pub fn new(kernel: &Kernel, registers: usize) -> WgmmaState {
        let any = kernel.code.iter().any(|i| matches!(i.op, Op::Wgmma(_)));
        let unfenced = vec![true; if any { registers } else { 0 }];
        WgmmaState { groups: Vec::new(), open: Group::default(), unfenced, executed: 0 }
    }

    pub fn clear(&mut self) {
        self.groups.clear();
        self.open = Group::default();
        self.unfenced.fill(true);
        self.executed = 0;
    }

    pub fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.open.accumulators.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain([&self.open])
    }

    /// Whether a register is an accumulator of a `wgmma` in flight.
    pub fn writes(&self, reg: Reg) -> bool {
        self.all().any(|group| group.accumulators.contains(&reg))
    }

    /// Checks that an instruction writes no register of a `wgmma` in flight, and marks its targets as unfenced.
    pub fn check_targets(&mut self, targets: &[Reg], lane: usize, names: &[String]) -> Outcome {
        for &reg in targets {
            let Some(unfenced) = self.unfenced.get_mut(usize::from(reg)) else { return Ok(()) };
            *unfenced = true;
            if self.all().any(|group| group.accumulators.contains(&reg) || group.operands.contains(&reg)) {
                let name = &names[usize::from(reg)];
                let detail = format!("{name} is written while a wgmma uses it: its group was not waited for");
                return stop(lane, Check::RegisterInUse, detail);
            }
        }
        Ok(())
    }
}

/// The warpgroup instructions of each warpgroup, to check that its warps execute the same ones.
#[derive(Default)]
pub(super) struct Warpgroups {
    /// Program counter and descriptors of each instruction, from the first warp that executed it.
    executed: Vec<Vec<(u32, [u64; 2])>>,
}

impl Warpgroups {
    pub fn clear(&mut self) {
        self.executed.clear();
    }

    /// Records that a warp executes a warpgroup instruction; a fault if another warp executed a different one.
    pub fn record(&mut self, w: &mut Warp, mask: u32, warps: usize, descriptors: [u64; 2], what: &str) -> Outcome {
        w.expect_all(mask, what)?;
        let group = w.index / 4;
        if w.running() != u32::MAX || 4 * group + 4 > warps {
            return stop(0, Check::Warpgroup, format!("{what} in a warpgroup without 128 threads"));
        }
        self.executed.resize_with(self.executed.len().max(group + 1), Vec::new);
        let executed = &mut self.executed[group];
        match executed.get(w.wgmma.executed) {
            None => executed.push((w.pc, descriptors)),
            Some(&(pc, others)) if pc == w.pc && others == descriptors => {}
            Some(_) => {
                let detail =
                    format!("{what}: another warp of warpgroup {group} executed a different instruction or descriptor");
                return stop(0, Check::Warpgroup, detail);
            }
        }
        w.wgmma.executed += 1;
        Ok(())
    }

    /// A warp that executed fewer instructions than its warpgroup, with a message.
    pub fn missing(&self, warps: &[Warp]) -> Option<(usize, String)> {
        let of_group = |w: &Warp| self.executed.get(w.index / 4).map_or(0, Vec::len);
        warps.iter().find(|w| w.wgmma.executed < of_group(w)).map(|w| {
            let (group, all) = (w.index / 4, of_group(w));
            let detail =
                format!("the warp executed {} of the {all} instructions of warpgroup {group}", w.wgmma.executed);
            (w.index, detail)
        })
    }
}

/// A decoded matrix descriptor.
struct MatrixOperand {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    transposed: bool,
}

/// The defined bits of a descriptor: start, leading and stride offsets, base offset, swizzle.
const FIELDS: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;

impl MatrixOperand {
    fn new(bits: u64, transposed: bool) -> Outcome<MatrixOperand> {
        let field = |from: u32| (bits >> from & 0x3fff) as u32 * 16;
        let swizzle = [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][(bits >> 62) as usize];
        if bits & !FIELDS != 0 {
            let detail = format!("a matrix descriptor {bits:#x} with undefined bits");
            return stop(0, Check::Descriptor, detail);
        }
        let operand = MatrixOperand { start: field(0), leading: field(16), stride: field(32), swizzle, transposed };
        let span = swizzle.span();
        // The swizzle pattern repeats every eight lines; an operand may start only at a chunk of the first of them.
        let ends = operand.start % (8 * span) + if transposed { 16 } else { DEPTH_BYTES };
        if swizzle != Swizzle::None && (ends > span || !operand.stride.is_multiple_of(8 * span) || bits >> 49 & 7 != 0)
        {
            let detail = format!(
                "a matrix descriptor with start {:#x} and stride {}, invalid for a swizzle of {span} bytes",
                operand.start, operand.stride
            );
            return stop(0, Check::Descriptor, detail);
        }
        Ok(operand)
    }

    /// The address of 16-byte chunk `chunk` of a line.
    fn chunk_address(&self, line: u32, chunk: u32) -> u32 {
        let span = self.swizzle.span();
        let MatrixOperand { start, leading, stride, .. } = *self;
        let address = match (self.swizzle, self.transposed) {
            (Swizzle::None, false) => start + line / 8 * stride + line % 8 * 16 + chunk * leading,
            (Swizzle::None, true) => start + line / 8 * leading + line % 8 * 16 + chunk * stride,
            (_, false) => start + line / 8 * stride + line % 8 * span + 16 * chunk,
            (_, true) => {
                let per_line = span / 16;
                start + chunk / per_line * leading + chunk % per_line * 16 + line % 8 * span + line / 8 * stride
            }
        };
        swizzled(self.swizzle, address)
    }

    /// Rows of A or columns of B, `first .. first + count`: calls `put` with line, k and value of each element.
    fn load(
        &self,
        w: &Warp,
        reach: &mut Reach<'_>,
        element: MatrixType,
        (first, count): (u32, u32),
        time: u32,
        mut put: impl FnMut(usize, usize, f64),
    ) -> Outcome {
        let thread = w.first_thread();
        let per_word = if element == MatrixType::Tf32 { 1 } else { 2 };
        let depth = DEPTH_BYTES / 4 * per_word;
        // MN-major: a line in memory holds one k, and chunks go along M or N.
        let (lines, chunks) =
            if self.transposed { (0..depth, first / 8..(first + count) / 8) } else { (first..first + count, 0..2) };
        for line in lines {
            for chunk in chunks.clone() {
                let address = self.chunk_address(line, chunk);
                let words = reach.shared.load_async(address, thread, time, Reader::Wgmma, reach.clock)?;
                for (i, pair) in unpack(element, &words).into_iter().enumerate() {
                    for (j, &x) in pair.iter().enumerate().take(per_word as usize) {
                        let along = (chunk * 4 + i as u32) * per_word + j as u32;
                        let (line, k) = if self.transposed { (along, line) } else { (line, along) };
                        put((line - first) as usize, k as usize, x);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Executes a `wgmma` instruction.
pub(super) fn operate(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, op: &Wgmma, names: &[String]) -> Outcome {
    let warps = reach.shared.warps;
    match op {
        Wgmma::Fence => {
            reach.warpgroups.record(w, mask, warps, [0; 2], "wgmma.fence")?;
            w.wgmma.unfenced.fill(false);
        }
        Wgmma::MmaAsync(op) => {
            let b = w.r64(op.b, mask)?[0];
            let a = match op.a {
                OperandA::Shared { descriptor, .. } => w.r64(descriptor, mask)?[0],
                OperandA::Registers(_) => 0,
            };
            reach.warpgroups.record(w, mask, warps, [a, b], "wgmma.mma_async")?;
            mma_async(w, reach, op, [a, b], names)?;
        }
        Wgmma::Commit => {
            reach.warpgroups.record(w, mask, warps, [0; 2], "wgmma.commit_group")?;
            let group = Group { time: reach.clock.tick(), ..std::mem::take(&mut w.wgmma.open) };
            w.wgmma.groups.push(group);
        }
        Wgmma::Wait(remaining) => {
            reach.warpgroups.record(w, mask, warps, [0; 2], "wgmma.wait_group")?;
            let done = w.wgmma.groups.len().saturating_sub(*remaining as usize);
            let groups: Vec<Group> = w.wgmma.groups.drain(..done).collect();
            for group in groups {
                reach.clock.see_agent(w.index, reach.clock.wgmma_agent(w.index), group.time);
                for reg in group.accumulators {
                    if !w.wgmma.writes(reg) {
                        w.set_written(reg, true);
                    }
                }
            }
        }
    }
    Ok(())
}

fn mma_async(w: &mut Warp, reach: &mut Reach<'_>, op: &MmaAsync, [a, b]: [u64; 2], names: &[String]) -> Outcome {
    let MmaAsync { element, ref d, .. } = *op;
    let operands: &[Reg] = if let OperandA::Registers(regs) = &op.a { regs } else { &[] };
    let changed = d.iter().chain(operands).find(|&&reg| w.wgmma.unfenced[usize::from(reg)]);
    if let Some(&reg) = changed {
        let detail = format!("{} was written after the last wgmma.fence", names[usize::from(reg)]);
        return stop(0, Check::MissingFence, detail);
    }
    reach.clock.act(reach.clock.wgmma_agent(w.index));
    let time = reach.clock.now;
    let columns = 2 * d.len() as u32;
    let depth = if element == MatrixType::Tf32 { 8 } else { 16 };
    let mut left = Left::default();
    match op.a {
        OperandA::Shared { transposed, .. } => {
            let operand = MatrixOperand::new(a, transposed)?;
            let lines = (16 * (w.index as u32 % 4), 16);
            operand.load(w, reach, element, lines, time, |i, k, x| left[i][k] = x)?;
        }
        OperandA::Registers(regs) => {
            for (r, reg) in regs.into_iter().enumerate() {
                place_a(&mut left, element, r, &unpack(element, w.r32(reg, u32::MAX)?));
            }
        }
    }
    // One factor for each eight columns, as they lie in accumulator fragments.
    let mut right = vec![Right::default(); columns as usize / 8];
    let operand = MatrixOperand::new(b, op.transposed)?;
    operand.load(w, reach, element, (0, columns), time, |j, k, x| right[j / 8][k][j % 8] = x)?;
    if op.negated[0] != op.negated[1] {
        left.iter_mut().flatten().for_each(|x| *x = -*x);
    }
    let accumulate = w.predicate(op.accumulate, u32::MAX)?;
    if accumulate != 0 && accumulate != u32::MAX {
        return stop(0, Check::Warpgroup, "the lanes of a warp have different values of scale-d");
    }
    let sums: Vec<_> = right.iter().map(|right| multiply(&left, right, depth)).collect();
    for (r, &reg) in d.iter().enumerate() {
        let before = if accumulate == 0 {
            [0; LANES]
        } else if w.wgmma.writes(reg) {
            *w.raw(reg)
        } else {
            *w.r32(reg, u32::MAX)?
        };
        *w.raw(reg) = accumulated(&before, &sums[r / 4], r % 4);
        w.set_written(reg, false);
    }
    w.wgmma.open.accumulators.extend(d);
    w.wgmma.open.operands.extend(operands);
    Ok(())
}
