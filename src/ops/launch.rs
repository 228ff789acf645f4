//! What a GPU is asked to do for a step: which kernel, on how many workgroups, with which tensors and scalars.
//!
//! Operations lower to launches by pure functions of their shapes, so that geometry and argument order can be checked
//! without a device. A launch is plain data; a back end knows how to run launches and nothing about operations.
//! Tensors come first, then scalars, in the order in which the kernel's header lists them; in WGSL the tensors are the
//! bindings from 0 on and the scalars the members of one uniform struct in the binding after them.

use super::elements;
use std::borrow::Cow;

/// One run of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The stem of the kernel's file.
    pub stem: &'static str,
    /// The entry point in it.
    pub entry: &'static str,
    /// Invocations of a workgroup, for which the grid was computed.
    pub threads: u32,
    /// Workgroups in every dimension.
    pub grid: [u32; 3],
    /// What the kernel reads and, last, what it writes.
    pub tensors: Vec<Operand>,
    /// Sizes, codes and factors.
    pub scalars: Vec<Scalar>,
    /// Shared memory beyond what the kernel declares, and the tensor maps of bulk copies.
    pub tiling: Option<Tiling>,
    /// Why this kernel and this grid.
    pub choice: Choice,
}

/// Why a launch is what it is, as listings print it. It is written where the decision is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Rows and columns of the output that a workgroup owns, where it owns a rectangle of them.
    pub tile: Option<[usize; 2]>,
    /// Parts into which the depth of a matmul is split, each summed by workgroups of its own (split-K).
    pub split: usize,
    /// What decided, in a few words.
    pub reason: Cow<'static, str>,
}

impl Choice {
    /// That of a kernel that does not split the depth.
    pub(super) fn new(tile: Option<[usize; 2]>, reason: impl Into<Cow<'static, str>>) -> Choice {
        Choice { tile, split: 1, reason: reason.into() }
    }
}

/// What a launch has whose kernel keeps parts of tensors in shared memory of a size that the launch chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// For each of the first tensors how it is walked through in tiles, if units for that copy it; the kernel has these in
    /// place of their addresses.
    pub walks: Vec<Walk>,
    /// Shared memory of a block beside what the kernel declares.
    pub shared_bytes: u32,
    /// Workgroups, neighbours in the grid's third dimension, that run together and read each other's shared memory.
    pub cluster: u32,
}

/// A tensor as a box of elements and the tiles that are taken of it, innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Elements in each dimension.
    pub dims: Vec<usize>,
    /// Elements from one to the next in each dimension but the first, where they follow each other.
    pub strides: Vec<usize>,
    /// Extent of a tile in each dimension.
    pub tile: Vec<u32>,
    /// Of how many elements in each dimension one is taken.
    pub steps: Vec<u32>,
}

/// A tensor of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// An input of the step.
    Input(usize),
    /// An input of the step that is a matmul weight `[O, C, taps]`, in the back end's layout for matmuls.
    Packed(usize),
    /// An output of the step; the first is the operation's result.
    Output(usize),
    /// f32 scratch memory between the launches of a step.
    Scratch {
        /// The first of them among those of the step.
        first: usize,
        /// How many there are.
        count: usize,
    },
}

/// A number that is fixed when a plan is recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A size or a code.
    U32(u32),
    /// A factor.
    F32(f32),
}

impl Scalar {
    /// The four bytes that a kernel reads.
    pub fn bits(self) -> u32 {
        match self {
            Scalar::U32(n) => n,
            Scalar::F32(x) => x.to_bits(),
        }
    }
}

impl From<usize> for Scalar {
    /// Sizes of tensors; a device binds no more than 2^32 elements, which is checked where memory is reserved.
    fn from(n: usize) -> Scalar {
        Scalar::U32(u32::try_from(n).unwrap_or(u32::MAX))
    }
}

impl From<bool> for Scalar {
    fn from(is: bool) -> Scalar {
        Scalar::U32(u32::from(is))
    }
}

impl From<f32> for Scalar {
    fn from(x: f32) -> Scalar {
        Scalar::F32(x)
    }
}

/// How matmul kernels share operands; chosen per device, not per operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiles {
    /// Each invocation reads what it needs: for processors that have caches and no shared memory.
    Registers,
    /// Eight invocations of a subgroup read for each other: for programs on a processor's vector units.
    Lanes,
    /// Workgroups copy operands to shared memory first.
    Shared,
    /// The same, and subgroups multiply them as matrices: for adapters with cooperative matrices.
    Matrices,
}

impl Tiles {
    /// Columns and rows of a workgroup's output tile.
    pub(super) fn size(self) -> [usize; 2] {
        match self {
            Tiles::Registers => [32, 32],
            Tiles::Lanes => [32, 64],
            Tiles::Shared | Tiles::Matrices => [64, 64],
        }
    }
}

/// A weight that WGSL kernels take in parts where a device binds less than the whole: rows of its first dimension, each
/// part with a buffer and a launch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightSplit {
    /// Which of the step's inputs it is.
    pub input: usize,
    /// The kernel's constant that says which row is the part's first.
    pub first: &'static str,
    /// Whether a row of the weight is an output column: a part then needs the grid of its own tiles only.
    pub columns: bool,
}

impl WeightSplit {
    /// A matmul weight, whose rows are the outputs.
    pub(super) const OF_MATMUL: WeightSplit = WeightSplit { input: 1, first: "first_column", columns: true };

    /// All parts but the last have a multiple of so many rows: tiles of every kernel end where parts do.
    pub const MULTIPLE: usize = 64;

    /// The launch of a part with so many rows.
    pub fn part(&self, whole: &Launch, tiles: Tiles, rows: usize) -> Launch {
        let mut part = whole.clone();
        if self.columns {
            part.grid[0] = grid(rows.div_ceil(tiles.size()[0]));
        }
        part
    }
}

/// The type in which an operation takes or gives a tensor, where the plan's storage type is narrower than f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageRule {
    /// The storage type.
    Storage,
    /// f32 always: small vectors, masks, the sampler's state.
    F32,
    /// The type of the output, to which it is added.
    LikeOutput,
    /// Any: the operation only copies elements.
    Any,
}

/// Most workgroups in a row of a grid that is spread over elements; WebGPU allows 65535.
const ROW: usize = 32_768;

/// A grid with at least this many workgroups, in rows.
pub(crate) fn spread(groups: usize) -> [u32; 3] {
    let groups = groups.max(1);
    let row = groups.min(ROW);
    [grid(row), grid(groups.div_ceil(row).max(1)), 1]
}

/// A dimension of a grid. Too large a number stays too large, and the device's limit is named where it is compiled.
pub(super) fn grid(groups: usize) -> u32 {
    u32::try_from(groups).unwrap_or(u32::MAX)
}

impl Launch {
    /// One invocation for each element of the output.
    pub(super) fn each(
        stem: &'static str,
        count: usize,
        tensors: Vec<Operand>,
        scalars: impl IntoIterator<Item = Scalar>,
    ) -> Launch {
        const THREADS: usize = 256;
        let scalars = std::iter::once(count.into()).chain(scalars).collect();
        let grid = spread(count.div_ceil(THREADS));
        let choice = Choice::new(None, "one thread an element");
        Launch { stem, entry: stem, threads: THREADS as u32, grid, tensors, scalars, tiling: None, choice }
    }
}

/// Elements that a PTX kernel reads and writes at once: 16 bytes of halves, or of floats twice.
const VECTOR: usize = 8;
/// Elements of a thread in entries with vectors.
const ELEMENTS_OF_THREAD: usize = 16;

impl Launch {
    /// One by [`Launch::each`], by the entry of its PTX kernel whose threads own vectors, if a run of elements that are
    /// neighbours in every tensor is always whole vectors: each of `runs` is a length or a first index of some.
    pub(super) fn in_vectors(mut self, entry: &'static str, runs: &[usize]) -> Launch {
        if runs.iter().all(|run| run.is_multiple_of(VECTOR)) {
            let threads = (self.scalars[0].bits() as usize).div_ceil(ELEMENTS_OF_THREAD);
            self.entry = entry;
            self.grid = spread(threads.div_ceil(self.threads as usize));
            self.choice = Choice::new(None, "16 elements a thread, in vectors");
        }
        self
    }
}

/// The input `next` if `present`, which is then counted, or the first input in its place: kernels bind every tensor
/// that they know and are told by a scalar which ones to use.
pub(super) fn optional(present: bool, next: &mut usize) -> Operand {
    if !present {
        return Operand::Input(0);
    }
    *next += 1;
    Operand::Input(*next - 1)
}

/// Rows of a tensor, all dimensions but the last together.
pub(super) fn rows(shape: &[usize]) -> usize {
    elements(&shape[..shape.len().saturating_sub(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_grids_hold_all_workgroups_within_the_limit() {
        for groups in [0, 1, 2, ROW - 1, ROW, ROW + 1, 5 * ROW, 1 << 24] {
            let [x, y, z] = spread(groups);
            assert!(x as usize * y as usize >= groups && z == 1);
            assert!((1..=65_535).contains(&x) && (1..=65_535).contains(&y), "{groups}: {x} {y}");
        }
    }

    #[test]
    fn parts_of_a_product_need_the_workgroups_of_the_whole_between_them() {
        let weight = WeightSplit::OF_MATMUL;
        for tiles in [Tiles::Registers, Tiles::Lanes, Tiles::Shared, Tiles::Matrices] {
            let whole = super::super::matmul::product([["linear"; 2]; 4], tiles, 7, 4 * WeightSplit::MULTIPLE + 5);
            let rows = [WeightSplit::MULTIPLE, 3 * WeightSplit::MULTIPLE, 5];
            let parts = rows.map(|rows| weight.part(&whole, tiles, rows).grid);
            assert_eq!(parts.iter().map(|grid| grid[0]).sum::<u32>(), whole.grid[0]);
            assert!(parts.iter().all(|grid| grid[1..] == whole.grid[1..]));
        }
    }

    #[test]
    fn absent_tensors_are_replaced_by_the_first_and_not_counted() {
        let mut next = 2;
        assert_eq!(optional(false, &mut next), Operand::Input(0));
        assert_eq!(optional(true, &mut next), Operand::Input(2));
        assert_eq!(next, 3);
    }
}
