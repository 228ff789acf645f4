//! `wgmma`: products of a warpgroup, four warps of which each computes 16 of 64 rows.
//!
//! The second operand, and the first if it is not in registers, is in shared memory where a descriptor says. Its layouts
//! are the canonical ones of the PTX manual's section on matrix descriptors: pieces of 8 lines of 16 bytes without swizzle;
//! else 8 lines of 32, 64 or 128 bytes, swizzled by their address. A line is a row or column with its elements along the
//! depth (K-major), or the elements of one depth (MN-major, which `imm-trans` asks for). Fragments of the first operand
//! and of the sums are those of `mma` with 16 rows, the sums with one part for every 8 columns.
//!
//! A product is computed when it is started. Until its group has been waited for, its sums cannot be read and its
//! registers not be written.

use super::access::Reach;
use super::bulk::swizzled;
use super::fault::{Check, Outcome, stop};
use super::matrix::{elements, places_a};
use super::program::{Kernel, Left, MatrixElement, Multiply, Op, Product, Reg};
use super::shared_async::Reader;
use super::warp::{LANES, Warp};
use crate::backend::cuda::tensor_map::Swizzle;

/// Bytes along the depth of one product.
const DEPTH_BYTES: u32 = 32;

/// Products that a warp has committed together.
#[derive(Default)]
struct Group {
    sums: Vec<Reg>,
    operands: Vec<Reg>,
    time: u32,
}

/// The products of a warp that are under way.
pub(super) struct Products {
    groups: Vec<Group>,
    open: Group,
    /// Registers written since the last fence; empty in kernels without products.
    unfenced: Vec<bool>,
    /// How many instructions for warpgroups the warp has come to.
    pub met: usize,
}

impl Products {
    pub fn new(kernel: &Kernel, registers: usize) -> Products {
        let any = kernel.code.iter().any(|i| matches!(i.op, Op::Product(_)));
        let unfenced = vec![true; if any { registers } else { 0 }];
        Products { groups: Vec::new(), open: Group::default(), unfenced, met: 0 }
    }

    pub fn clear(&mut self) {
        self.groups.clear();
        self.open = Group::default();
        self.unfenced.fill(true);
        self.met = 0;
    }

    pub fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.open.sums.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain([&self.open])
    }

    /// Whether the sums of a product under way go to a register.
    pub fn writes(&self, reg: Reg) -> bool {
        self.all().any(|group| group.sums.contains(&reg))
    }

    /// An instruction writes these registers.
    pub fn note_targets(&mut self, targets: &[Reg], lane: usize, names: &[String]) -> Outcome {
        for &reg in targets {
            let Some(unfenced) = self.unfenced.get_mut(usize::from(reg)) else { return Ok(()) };
            *unfenced = true;
            if self.all().any(|group| group.sums.contains(&reg) || group.operands.contains(&reg)) {
                let name = &names[usize::from(reg)];
                let detail = format!("{name} is written while a wgmma uses it, whose group was not waited for");
                return stop(lane, Check::RegisterInUse, detail);
            }
        }
        Ok(())
    }
}

/// What the warps of each warpgroup have come to, in order.
#[derive(Default)]
pub(super) struct Warpgroups {
    /// Place and operands of each instruction, as the first warp brought them.
    met: Vec<Vec<(u32, [u64; 2])>>,
}

impl Warpgroups {
    pub fn clear(&mut self) {
        self.met.clear();
    }

    /// A whole warp comes to an instruction for warpgroups.
    pub fn meet(&mut self, w: &mut Warp, mask: u32, warps: usize, operands: [u64; 2], what: &str) -> Outcome {
        w.expect_all(mask, what)?;
        let group = w.index / 4;
        if w.running() != u32::MAX || 4 * group + 4 > warps {
            return stop(0, Check::Warpgroup, format!("{what} in a warpgroup that has not 128 threads"));
        }
        self.met.resize_with(self.met.len().max(group + 1), Vec::new);
        let met = &mut self.met[group];
        match met.get(w.products.met) {
            None => met.push((w.place, operands)),
            Some(&(place, others)) if place == w.place && others == operands => {}
            Some(_) => {
                let detail =
                    format!("{what}: another warp of warpgroup {group} came to another instruction or operand");
                return stop(0, Check::Warpgroup, detail);
            }
        }
        w.products.met += 1;
        Ok(())
    }

    /// A warp that has come to fewer instructions than its warpgroup.
    pub fn missing(&self, warps: &[Warp]) -> Option<(usize, String)> {
        let missing = |w: &&Warp| self.met.get(w.index / 4).is_some_and(|met| w.products.met < met.len());
        warps.iter().find(missing).map(|w| {
            let (group, met) = (w.index / 4, self.met[w.index / 4].len());
            let detail = format!("it came to {} of the {met} instructions of warpgroup {group}", w.products.met);
            (w.index, detail)
        })
    }
}

/// Where an operand is in shared memory.
struct Operand {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    transposed: bool,
}

/// The bits of a descriptor that say something: start, leading and stride, base offset, swizzle.
const FIELDS: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;

impl Operand {
    fn new(bits: u64, transposed: bool) -> Outcome<Operand> {
        let field = |from: u32| (bits >> from & 0x3fff) as u32 * 16;
        let swizzle = [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][(bits >> 62) as usize];
        if bits & !FIELDS != 0 {
            let detail = format!("a matrix descriptor {bits:#x} with bits that belong to no field");
            return stop(0, Check::Descriptor, detail);
        }
        let operand = Operand { start: field(0), leading: field(16), stride: field(32), swizzle, transposed };
        let span = swizzle.span();
        // Eight lines form a pattern that repeats; only the first line's pieces are where a product may begin.
        let ends = operand.start % (8 * span) + if transposed { 16 } else { DEPTH_BYTES };
        if swizzle != Swizzle::None && (ends > span || !operand.stride.is_multiple_of(8 * span) || bits >> 49 & 7 != 0)
        {
            let detail = format!(
                "a matrix descriptor with the start {:#x} and the stride {} for a swizzle of {span} bytes",
                operand.start, operand.stride
            );
            return stop(0, Check::Descriptor, detail);
        }
        Ok(operand)
    }

    /// The address of 16 bytes: piece `piece` along a line.
    fn piece(&self, line: u32, piece: u32) -> u32 {
        let span = self.swizzle.span();
        let Operand { start, leading, stride, .. } = *self;
        let address = match (self.swizzle, self.transposed) {
            (Swizzle::None, false) => start + line / 8 * stride + line % 8 * 16 + piece * leading,
            (Swizzle::None, true) => start + line / 8 * leading + line % 8 * 16 + piece * stride,
            (_, false) => start + line / 8 * stride + line % 8 * span + 16 * piece,
            (_, true) => {
                let per_line = span / 16;
                start + piece / per_line * leading + piece % per_line * 16 + line % 8 * span + line / 8 * stride
            }
        };
        swizzled(self.swizzle, address)
    }

    /// Lines `first .. first + count` of the operand as `[line][depth]`.
    fn load(
        &self,
        w: &Warp,
        reach: &mut Reach<'_>,
        element: MatrixElement,
        (first, count): (u32, u32),
        time: u32,
    ) -> Outcome<Vec<[f64; 16]>> {
        let thread = w.first_thread();
        let per_word = if element == MatrixElement::Tensor { 1 } else { 2 };
        let depth = DEPTH_BYTES / 4 * per_word;
        let mut out = vec![[0.0; 16]; count as usize];
        // Pieces along a line: of the depth, or of the lines if those are transposed.
        let (lines, pieces) =
            if self.transposed { (0..depth, first / 8..(first + count) / 8) } else { (first..first + count, 0..2) };
        for line in lines {
            for piece in pieces.clone() {
                let words =
                    reach.shared.load_async(self.piece(line, piece), thread, time, Reader::Product, reach.clock)?;
                for (i, word) in words.into_iter().enumerate() {
                    let pair = elements(element, word);
                    for (j, &x) in pair.iter().enumerate().take(per_word as usize) {
                        let along = (piece * 4 + i as u32) * per_word + j as u32;
                        let (line, k) = if self.transposed { (along, line) } else { (line, along) };
                        out[(line - first) as usize][k as usize] = x;
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Runs an instruction of the family.
pub(super) fn operate(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, op: &Product, names: &[String]) -> Outcome {
    let warps = reach.shared.warps;
    match op {
        Product::Fence => {
            reach.warpgroups.meet(w, mask, warps, [0; 2], "wgmma.fence")?;
            w.products.unfenced.fill(false);
        }
        Product::Multiply(multiply) => {
            let b = w.wide(multiply.b, mask)?[0];
            let a = match multiply.a {
                Left::Shared { descriptor, .. } => w.wide(descriptor, mask)?[0],
                Left::Registers(_) => 0,
            };
            reach.warpgroups.meet(w, mask, warps, [a, b], "wgmma.mma_async")?;
            self::multiply(w, reach, multiply, [a, b], names)?;
        }
        Product::Commit => {
            reach.warpgroups.meet(w, mask, warps, [0; 2], "wgmma.commit_group")?;
            let group = Group { time: reach.clock.tick(), ..std::mem::take(&mut w.products.open) };
            w.products.groups.push(group);
        }
        Product::Wait(left) => {
            reach.warpgroups.meet(w, mask, warps, [0; 2], "wgmma.wait_group")?;
            let done = w.products.groups.len().saturating_sub(*left as usize);
            let groups: Vec<Group> = w.products.groups.drain(..done).collect();
            for group in groups {
                reach.clock.see_agent(w.index, reach.clock.products_of(w.index), group.time);
                for reg in group.sums {
                    if !w.products.writes(reg) {
                        w.set_written(reg, true);
                    }
                }
            }
        }
    }
    Ok(())
}

fn multiply(w: &mut Warp, reach: &mut Reach<'_>, op: &Multiply, [a, b]: [u64; 2], names: &[String]) -> Outcome {
    let Multiply { element, ref d, .. } = *op;
    let operands: &[Reg] = if let Left::Registers(regs) = &op.a { regs } else { &[] };
    let changed = d.iter().chain(operands).find(|&&reg| w.products.unfenced[usize::from(reg)]);
    if let Some(&reg) = changed {
        let detail = format!("{} was written after the last wgmma.fence", names[usize::from(reg)]);
        return stop(0, Check::MissingFence, detail);
    }
    let time = reach.clock.now;
    let columns = 2 * d.len() as u32;
    let depth = if element == MatrixElement::Tensor { 8 } else { 16 };
    let mut left = match op.a {
        Left::Shared { transposed, .. } => {
            let operand = Operand::new(a, transposed)?;
            operand.load(w, reach, element, (16 * (w.index as u32 % 4), 16), time)?
        }
        Left::Registers(regs) => {
            let mut left = vec![[0.0; 16]; 16];
            for (r, reg) in regs.into_iter().enumerate() {
                for (lane, bits) in w.small(reg, u32::MAX)?.iter().enumerate() {
                    for ((i, k), x) in places_a(element, lane, r).into_iter().zip(elements(element, *bits)) {
                        left[i][k] = x;
                    }
                }
            }
            left
        }
    };
    let right = Operand::new(b, op.transposed)?.load(w, reach, element, (0, columns), time)?;
    if op.negated[0] != op.negated[1] {
        left.iter_mut().flatten().for_each(|x| *x = -*x);
    }
    let adds = w.predicate(op.adds, u32::MAX)?;
    if adds != 0 && adds != u32::MAX {
        return stop(0, Check::Warpgroup, "the lanes of a warp differ in whether wgmma adds to its sums");
    }
    for (r, &reg) in d.iter().enumerate() {
        let before = if adds == 0 {
            [0; LANES]
        } else if w.products.writes(reg) {
            *w.raw(reg)
        } else {
            *w.small(reg, u32::MAX)?
        };
        *w.raw(reg) = std::array::from_fn(|lane| {
            let (i, j) = (lane / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (lane % 4) + r % 2);
            let sum: f64 = (0..depth).map(|k| left[i][k] * right[j][k]).sum();
            ((f64::from(f32::from_bits(before[lane])) + sum) as f32).to_bits()
        });
        w.set_written(reg, false);
    }
    w.products.open.sums.extend(d);
    w.products.open.operands.extend(operands);
    Ok(())
}
