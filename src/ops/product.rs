//! How matrix products, convolutions among them, become launches: which kernel, which tiles, how many parts.

use super::launch::{grid, spread};
use super::{Launch, Operand, Scalar, Tiles};

/// What a GPU's products multiply, where it has a choice; their sums are in single precision always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Factors {
    /// Single precision, on plain cores.
    Single,
    /// Single precision cut to ten bits of fraction (tf32), on tensor cores.
    Tensor,
    /// The half-precision type that tensors are stored in, on tensor cores.
    Half,
}

/// A product with `rows` rows and `columns` columns by one of three kernels, in the order of [`Tiles`]; stem and entry
/// point of each.
pub(super) fn product(kernels: [[&'static str; 2]; 3], tiles: Tiles, rows: usize, columns: usize) -> Launch {
    let ([stem, entry], threads, tile) = match tiles {
        Tiles::Registers => (kernels[0], 64, [32, 32]),
        Tiles::Lanes => (kernels[1], 64, [32, 64]),
        Tiles::Shared => (kernels[2], 256, [64, 64]),
    };
    let grid = [grid(columns.div_ceil(tile[0])), grid(rows.div_ceil(tile[1])), 1];
    Launch { stem, entry, threads, grid, tensors: Vec::new(), scalars: Vec::new() }
}

/// What a product on tensor cores reads, and what is done to its sums.
pub(super) struct TensorProduct {
    /// As the header of `product_mma.ptx` lists them: rows, height, width, channels, out_height, out_width, outputs,
    /// window_height, window_width, stride, padding.
    pub sizes: [usize; 11],
    /// Bias, shift, residual, each present or not.
    pub added: [Option<Operand>; 3],
    /// The code of the activation.
    pub activation: Scalar,
}

/// A tile: what one block owns.
struct Tile {
    /// Entry points for rows that lie one after the other, and for windows of pictures.
    entries: [&'static str; 2],
    rows: usize,
    columns: usize,
    threads: u32,
}

/// 160 and 80 divide the widths of unCLIP's U-Nets: 320, 640, 960, 1280.
const LARGE: Tile =
    Tile { entries: ["linear_mma_128x160", "conv2d_mma_128x160"], rows: 128, columns: 160, threads: 256 };
const MEDIUM: Tile = Tile { entries: ["linear_mma_64x80", "conv2d_mma_64x80"], rows: 64, columns: 80, threads: 128 };
const FLAT: Tile = Tile { entries: ["linear_mma_16x64", "conv2d_mma_16x64"], rows: 16, columns: 64, threads: 128 };

/// Blocks that keep a GPU busy. The multiprocessors of the cards in use are between 46 and 144; a plan must not depend
/// on the one that it happens to run on.
const MULTIPROCESSORS: usize = 128;
/// Fewer steps than this are not worth a launch that adds up their parts.
const LEAST_STEPS: usize = 8;
/// Bytes of a row that a step brings in.
const STEP_BYTES: usize = 64;

impl Tile {
    fn blocks(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }

    /// The largest tile that leaves no multiprocessor without work, or the smallest that rows fill.
    fn of(rows: usize, outputs: usize) -> Tile {
        if rows <= FLAT.rows {
            FLAT
        } else if LARGE.blocks(rows, outputs) >= MULTIPROCESSORS {
            LARGE
        } else {
            MEDIUM
        }
    }
}

impl TensorProduct {
    /// The launches: one, or where tiles are fewer than multiprocessors one that makes sums over parts of the depth and
    /// one that adds these up.
    pub fn launches(self, factors: Factors) -> Vec<Launch> {
        let [rows, _, _, channels, out_height, out_width, outputs, window_height, window_width, stride, padding] =
            self.sizes;
        // Windows of one pixel lie one after the other.
        let window = window_height * window_width > 1 || stride > 1 || padding > 0 || self.added[1].is_some();
        let tile = Tile::of(rows, outputs);
        let step = STEP_BYTES / if factors == Factors::Half { 2 } else { 4 };
        let steps = (window_height * window_width * channels).div_ceil(step);
        let blocks = tile.blocks(rows, outputs);
        let parts = (MULTIPROCESSORS / blocks).clamp(1, (steps / LEAST_STEPS).max(1));
        let steps_of_part = steps.div_ceil(parts);
        let parts = steps.div_ceil(steps_of_part);

        let absent = Operand::Input(0);
        let operands = self.added.map(|operand| operand.unwrap_or(absent));
        let present = self.added.map(|operand| Scalar::from(operand.is_some()));
        let sizes = || self.sizes.iter().map(|&n| Scalar::from(n));
        let product = |added: [Operand; 3], to: Operand, behind: [Scalar; 4]| Launch {
            stem: "product_mma",
            entry: tile.entries[usize::from(window)],
            threads: tile.threads,
            grid: [grid(outputs.div_ceil(tile.columns)), grid(rows.div_ceil(tile.rows)), grid(parts)],
            tensors: [&[Operand::Input(0), Operand::Packed(1)], &added[..], &[to]].concat(),
            scalars: sizes().chain(behind).chain([steps_of_part.into()]).collect(),
        };
        let behind = [self.activation, present[0], present[1], present[2]];
        if parts == 1 {
            return vec![product(operands, Operand::Output, behind)];
        }
        let scratch = Operand::Scratch(parts * rows * outputs);
        let count = rows * outputs;
        let sum = Launch {
            stem: "product_sum",
            entry: "product_sum",
            threads: 256,
            grid: spread(count.div_ceil(256)),
            tensors: [&[scratch], &operands[..], &[Operand::Output]].concat(),
            scalars: [count, parts, outputs, out_height * out_width]
                .map(Scalar::from)
                .into_iter()
                .chain(behind)
                .collect(),
        };
        vec![product([absent; 3], scratch, [Scalar::U32(0); 4]), sum]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches(rows: usize, depth: usize, outputs: usize) -> Vec<Launch> {
        let sizes = [rows, rows, 1, depth, rows, 1, outputs, 1, 1, 1, 0];
        TensorProduct { sizes, added: [None; 3], activation: Scalar::U32(0) }.launches(Factors::Half)
    }

    #[test]
    fn products_fill_the_multiprocessors_and_cover_their_depth() {
        for (rows, depth, outputs) in
            [(1, 1, 1), (2, 1280, 1280), (128, 11520, 1280), (512, 8640, 960), (8192, 2880, 320)]
        {
            let launches = launches(rows, depth, outputs);
            let blocks: u32 = launches[0].grid.iter().product();
            let steps = depth.div_ceil(32);
            assert!(blocks as usize >= MULTIPROCESSORS / 2 || steps < 2 * LEAST_STEPS, "{rows} {outputs}: {blocks}");
            let Some(Scalar::U32(of_part)) = launches[0].scalars.last() else { panic!("steps come last") };
            let parts = launches[0].grid[2];
            assert!(of_part * parts >= steps as u32 && of_part * (parts - 1) < steps as u32, "{rows} {outputs}");
            assert_eq!(launches.len(), if parts == 1 { 1 } else { 2 });
        }
    }
}
