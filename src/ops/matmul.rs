//! Lowering of matmuls and convolutions: which kernel, which tile, how many parts of the depth (split-K).

use super::launch::grid;
use super::{Choice, Launch, Op, Operand, OutputTile, Scalar, Statistics, Tiles, Tiling, Walk, elements, width};

/// Which units of a GPU multiply matrices, and in which precision. Accumulation is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulUnit {
    /// CUDA cores, f32.
    CudaCores,
    /// Tensor cores (`mma`), tf32.
    Tf32,
    /// Tensor cores (`mma`), in the 16-bit type that tensors are stored in.
    Half,
    /// Warpgroups of compute capability 9.0 (`wgmma`), in the same type, where the shape allows it.
    Warpgroup,
}

impl MatmulUnit {
    /// Bytes of an element in the storage type that goes with it.
    pub(super) fn size_bytes(self) -> usize {
        match self {
            MatmulUnit::CudaCores | MatmulUnit::Tf32 => 4,
            MatmulUnit::Half | MatmulUnit::Warpgroup => 2,
        }
    }
}

/// The launch of a matmul with an output of `rows` x `columns` by one of four kernels, given by stem and entry in the
/// order of [`Tiles`].
pub(super) fn product(kernels: [[&'static str; 2]; 4], tiles: Tiles, rows: usize, columns: usize) -> Launch {
    let ([stem, entry], threads, reason) = match tiles {
        Tiles::Registers => (kernels[0], 64, "a processor: operands from its caches"),
        Tiles::Lanes => (kernels[1], 64, "a processor with subgroups of eight, whose lanes read for each other"),
        Tiles::Shared => (kernels[2], 256, "a GPU: operands through shared memory"),
        Tiles::Matrices => (kernels[3], 128, "cooperative matrices, as asked for"),
    };
    let tile = tiles.size();
    let grid = [grid(columns.div_ceil(tile[0])), grid(rows.div_ceil(tile[1])), 1];
    let choice = Choice::new(Some([tile[1], tile[0]]), reason);
    Launch { stem, entry, threads, grid, tensors: Vec::new(), scalars: Vec::new(), tiling: None, choice }
}

/// The tensor and the scalar of a kernel that may leave statistics of its output.
fn statistics_operands(statistics: Option<Statistics>) -> (Operand, Scalar) {
    statistics.map_or((Operand::Input(0), 0.into()), |of| (Operand::Output(1), of.unit.into()))
}

/// What a block of the kernel for a step owns of its output, if the step is a matrix product whose blocks divide the
/// positions of each image evenly: the tile of which it can leave [`Statistics`].
pub fn output_tile(op: &Op, inputs: &[&[usize]], output: &[usize], unit: MatmulUnit) -> Option<OutputTile> {
    let matmul = match op {
        Op::Linear(op) => op.matmul(inputs, output),
        Op::Conv2d(op) => op.matmul(inputs, output),
        _ => return None,
    };
    matmul.output_tile(output, unit)
}

/// A matmul for the PTX kernels: its sizes and its epilogue.
pub(super) struct Matmul {
    /// As the header of `matmul_mma.ptx` lists them: rows, height, width, channels, out_height, out_width, outputs,
    /// window_height, window_width, stride, padding.
    pub sizes: [usize; 11],
    /// The inputs that are the weights of the layers with these sizes, each followed by its bias if there is one. Several
    /// layers have no shift and no residual.
    pub layers: Vec<usize>,
    /// Bias, shift, residual of the first layer, each present or not.
    pub added: [Option<Operand>; 3],
    /// The code of the activation.
    pub activation: Scalar,
    /// What holds the last channels where `x` holds only the first ones, and how many these are; for `matmul_sm90` only.
    pub behind: Option<(Operand, usize)>,
    /// The row of the shift, where that is a table; for the same kernel.
    pub step: Option<Operand>,
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
/// Fewer steps of `matmul_mma` than this are not worth a launch that adds up their parts.
const LEAST_STEPS: usize = 8;
/// What a block of `matmul_sum` owns at most, and of which it can leave statistics.
const SUM: OutputTile = OutputTile { positions: 32, columns: 160 };
/// Bytes of a row that a step brings in.
const STEP_BYTES: usize = 64;

impl Tile {
    fn blocks(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }

    /// The largest tile that leaves no multiprocessor without work, or the smallest that rows fill; and why.
    fn of(rows: usize, outputs: usize) -> (Tile, String) {
        let large = LARGE.blocks(rows, outputs);
        if rows <= FLAT.rows {
            (FLAT, format!("mma; {rows} rows fill no larger tile"))
        } else if large >= MULTIPROCESSORS {
            (LARGE, format!("mma; {large} tiles keep {MULTIPROCESSORS} multiprocessors busy"))
        } else {
            (MEDIUM, format!("mma; {large} tiles of 128x160 would be too few for {MULTIPROCESSORS} multiprocessors"))
        }
    }
}

/// A block's pixels in `matmul_sm90`, two to this power.
const BOX_BITS: u32 = 7;
/// A block's outputs there.
const BOX_COLUMNS: usize = 160;
/// Channels of a tap that a step brings in there: rows of 128 bytes.
const BOX_CHANNELS: usize = 64;
/// Three stages of both operands, and two counters of 8 bytes for each.
const BOX_SHARED_BYTES: u32 = 3 * (128 * 128 + 160 * 128 + 16);
/// Multiprocessors of an H100 and an H200.
const HOPPER_MULTIPROCESSORS: usize = 132;
/// Blocks of a cluster, two to this power: every device with clusters runs eight together.
const MOST_PART_BITS: u32 = 3;
/// What a block spends besides its k-steps, in k-steps: for its stores, and where it is one of several for a tile for
/// waiting and for reading the others' sums.
const STORE_STEPS: usize = 2;
const JOIN_STEPS: usize = 3;

/// Layers for the same input that a launch computes at most: the queries, keys and values of an attention.
pub(crate) const MOST_LAYERS: usize = 3;

/// How `matmul_sm90` divides pictures: 2^wide columns by 2^high rows of several pictures are one block's.
struct TileGrid {
    wide: u32,
    high: u32,
    count: usize,
}

impl std::fmt::Display for TileGrid {
    /// `blocks of 1 image, 8 by 16 pixels`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [images, high, wide] = [BOX_BITS - self.wide - self.high, self.high, self.wide].map(|bits| 1 << bits);
        write!(f, "blocks of {images} image{}, {high} by {wide} pixels", if images > 1 { "s" } else { "" })
    }
}

impl TileGrid {
    /// The division with the fewest boxes for pictures of so many rows and columns, of several the widest.
    fn of(images: usize, height: usize, width: usize) -> TileGrid {
        let all = (0..=BOX_BITS).rev().flat_map(|wide| (0..=BOX_BITS - wide).rev().map(move |high| (wide, high)));
        let boxes = all.map(|(wide, high)| {
            let across = |length: usize, bits: u32| length.div_ceil(1 << bits);
            let count = across(width, wide) * across(height, high) * across(images, BOX_BITS - wide - high);
            TileGrid { wide, high, count }
        });
        boxes.min_by_key(|boxes| boxes.count).expect("there is more than one division")
    }

    /// Whether they have no pixels outside such pictures, and each of the 2^parts slices of a block lies in one picture.
    fn divide(&self, images: usize, height: usize, width: usize, parts: u32) -> bool {
        let whole = |length: usize, bits: u32| length.is_multiple_of(1 << bits);
        let of_image = self.wide + self.high;
        whole(width, self.wide)
            && whole(height, self.high)
            && whole(images, BOX_BITS - of_image)
            && BOX_BITS - parts <= of_image
            // In a block with several pictures each has to be whole, or slices of one would not follow each other.
            && (of_image == BOX_BITS || (width, height) == (1 << self.wide, 1 << self.high))
    }
}

/// A candidate kernel for a matmul: its launch without tensors.
struct KernelChoice {
    launch: Launch,
    depth: Depth,
    /// Positions and columns of which a block leaves statistics, where its positions are as many as that in every block.
    patch: Option<OutputTile>,
}

/// Who sums the depth.
#[derive(Clone, Copy)]
enum Depth {
    /// Blocks for `parts` of it, of so many steps but for the last. Several parts are added up by a second launch.
    Launches { parts: usize, steps_of_part: usize },
    /// Clusters of blocks, two to this power, which add up their parts themselves.
    Cluster { bits: u32 },
}

impl Depth {
    /// As many parts as keep the multiprocessors busy, of no fewer than `least` steps.
    fn in_launches(blocks: usize, steps: usize, least: usize) -> Depth {
        let parts = (MULTIPROCESSORS / blocks.max(1)).clamp(1, (steps / least).max(1));
        let steps_of_part = steps.div_ceil(parts);
        Depth::Launches { parts: steps.div_ceil(steps_of_part), steps_of_part }
    }

    /// The parts for which the busiest multiprocessor has the least to do.
    fn in_clusters(tiles: usize, steps: usize) -> Depth {
        let load = |&bits: &u32| {
            let joins = if bits > 0 { JOIN_STEPS } else { 0 };
            (tiles << bits).div_ceil(HOPPER_MULTIPROCESSORS) * (steps.div_ceil(1 << bits) + STORE_STEPS + joins)
        };
        let bits = (0..=MOST_PART_BITS).filter(|&bits| bits == 0 || steps >> bits > 0).min_by_key(load);
        Depth::Cluster { bits: bits.unwrap_or(0) }
    }
}

impl Matmul {
    fn way(&self, matmul: MatmulUnit) -> KernelChoice {
        if matmul != MatmulUnit::Warpgroup {
            return self.by_warps(matmul);
        }
        self.by_warpgroups().unwrap_or_else(|refused| {
            let mut way = self.by_warps(matmul);
            let reason = &mut way.launch.choice.reason;
            *reason = format!("{reason}; no wgmma: {refused}").into();
            way
        })
    }

    /// Whether the kernel for it reads `x` in two parts and the shift from a table.
    pub fn reads_parts_and_tables(&self, matmul: MatmulUnit) -> bool {
        matmul == MatmulUnit::Warpgroup && self.by_warpgroups().is_ok()
    }

    fn output_tile(&self, output: &[usize], matmul: MatmulUnit) -> Option<OutputTile> {
        let patch = if matmul == MatmulUnit::CudaCores {
            let [columns, positions] = Tiles::Shared.size();
            Some(OutputTile { positions, columns })
        } else {
            let way = self.way(matmul);
            if matches!(way.depth, Depth::Launches { parts: 2.., .. }) { Some(SUM) } else { way.patch }
        };
        let positions = elements(output) / (output[0] * width(output));
        patch.filter(|patch| positions.is_multiple_of(patch.positions))
    }

    /// The launches. On CUDA cores they are those for WGSL; the PTX variant of that kernel has an operand for statistics
    /// before its output.
    pub fn launches(
        self,
        plain: impl FnOnce() -> Vec<Launch>,
        matmul: MatmulUnit,
        statistics: Option<Statistics>,
    ) -> Vec<Launch> {
        if matmul != MatmulUnit::CudaCores {
            return self.on_tensor_cores(matmul, statistics);
        }
        let (operand, unit) = statistics_operands(statistics);
        let mut launches = plain();
        for launch in &mut launches {
            launch.tensors.insert(launch.tensors.len() - 1, operand);
            launch.scalars.push(unit);
            launch.choice.reason = "CUDA cores, f32".into();
        }
        self.for_each_layer(launches)
    }

    /// The weights of the layers; the first stands in for absent ones.
    pub fn weights(&self) -> [Operand; MOST_LAYERS] {
        self.of_layers(|layer| Operand::Packed(self.layers[layer]))
    }

    /// The biases of the layers; `x` stands in for absent ones.
    pub fn biases(&self) -> [Operand; MOST_LAYERS] {
        let [bias, ..] = self.added;
        self.of_layers(|layer| bias.map_or(Operand::Input(0), |_| Operand::Input(self.layers[layer] + 1)))
    }

    /// The outputs of the layers; the first stands in for absent ones.
    pub fn outputs(&self) -> [Operand; MOST_LAYERS] {
        self.of_layers(Operand::Output)
    }

    fn of_layers(&self, operand: impl Fn(usize) -> Operand) -> [Operand; MOST_LAYERS] {
        std::array::from_fn(|layer| operand(if layer < self.layers.len() { layer } else { 0 }))
    }

    /// The launches of the first layer, and the same for each of the others.
    fn for_each_layer(&self, first: Vec<Launch>) -> Vec<Launch> {
        let of = |launch: &Launch, layer: usize| {
            let mut launch = launch.clone();
            for operand in &mut launch.tensors {
                *operand = match *operand {
                    Operand::Packed(_) => Operand::Packed(self.layers[layer]),
                    Operand::Output(0) => Operand::Output(layer),
                    Operand::Input(i) if i == self.layers[0] + 1 && layer > 0 => Operand::Input(self.layers[layer] + 1),
                    other => other,
                };
            }
            launch
        };
        (0..self.layers.len()).flat_map(|layer| first.iter().map(move |launch| of(launch, layer))).collect()
    }

    /// The operands of the epilogue, bias, shift, residual and statistics, each used if its scalar is set; and these
    /// scalars, behind the activation.
    fn epilogue(&self, statistics: Option<Statistics>) -> ([Operand; 4], [Scalar; 5]) {
        let (left, unit) = statistics_operands(statistics);
        let [bias, shift, residual] = self.added.map(|operand| operand.unwrap_or(Operand::Input(0)));
        let present = self.added.map(|operand| Scalar::from(operand.is_some()));
        ([bias, shift, residual, left], [self.activation, present[0], present[1], present[2], unit])
    }

    fn on_tensor_cores(self, matmul: MatmulUnit, statistics: Option<Statistics>) -> Vec<Launch> {
        let KernelChoice { launch, depth, .. } = self.way(matmul);
        match depth {
            Depth::Launches { parts, steps_of_part } => {
                self.for_each_layer(self.in_launches(&launch, parts, steps_of_part, statistics))
            }
            Depth::Cluster { bits } => {
                let ([_, shift, residual, left], [activation, has_bias, has_shift, has_residual, unit]) =
                    self.epilogue(statistics);
                let absent = Operand::Input(0);
                let behind = self.behind.map_or(absent, |(operand, _)| operand);
                let maps = [&[Operand::Input(0), behind], &self.weights()[..]].concat();
                let operands = [shift, self.step.unwrap_or(absent), residual, left];
                let tensors = [&maps, &self.biases()[..], &operands[..], &self.outputs()[..]].concat();
                let [rows, _, _, _, height, width, outputs, ..] = self.sizes;
                let row = if self.step.is_some() { rows / (height * width) * outputs } else { 0 };
                let flags = [activation, has_bias, has_shift, row.into(), has_residual, unit];
                let scalars = [&launch.scalars[..], &[Scalar::U32(bits)], &flags].concat();
                vec![Launch { tensors, scalars, ..launch }]
            }
        }
    }

    /// One launch by `matmul_mma`; or, where tiles are fewer than multiprocessors, one that makes sums over parts of the
    /// depth and one that adds these up.
    fn in_launches(
        &self,
        launch: &Launch,
        parts: usize,
        steps_of_part: usize,
        statistics: Option<Statistics>,
    ) -> Vec<Launch> {
        let [rows, _, _, _, out_height, out_width, outputs, ..] = self.sizes;
        let absent = Operand::Input(0);
        let (operands, behind) = self.epilogue(statistics);
        let product = |operands: [Operand; 4], to: Operand, behind: [Scalar; 5]| Launch {
            grid: [launch.grid[0], launch.grid[1], grid(parts)],
            tensors: [&[Operand::Input(0), Operand::Packed(1)], &operands[..], &[to]].concat(),
            scalars: [&launch.scalars[..], &[steps_of_part.into()], &behind].concat(),
            ..launch.clone()
        };
        if parts == 1 {
            return vec![product(operands, Operand::Output(0), behind)];
        }
        let scratch = Operand::Scratch { first: 0, count: parts * rows * outputs };
        let across = outputs.div_ceil(SUM.columns);
        // Fewer rows per block keep more multiprocessors busy; statistics need whole tiles.
        let few = (rows * across / (4 * MULTIPROCESSORS)).next_multiple_of(2).clamp(2, SUM.positions);
        let part = if statistics.is_some() { SUM.positions } else { few };
        let sizes = [rows, parts, outputs, out_height * out_width, part].map(Scalar::from);
        let sum = Launch {
            stem: "matmul_sum",
            entry: "matmul_sum",
            threads: 2 * SUM.columns as u32,
            grid: [grid(across), grid(rows.div_ceil(part)), 1],
            tensors: [&[scratch], &operands[..], &[Operand::Output(0)]].concat(),
            scalars: [&sizes[..], &behind].concat(),
            tiling: None,
            choice: Choice::new(Some([part, SUM.columns]), format!("adds up {parts} parts of k")),
        };
        let mut partial = product([absent; 4], scratch, [Scalar::U32(0); 5]);
        let Choice { split, reason, .. } = &mut partial.choice;
        (*split, *reason) = (parts, format!("{reason}; k is split to keep them busy").into());
        vec![partial, sum]
    }

    /// By `matmul_mma`.
    fn by_warps(&self, matmul: MatmulUnit) -> KernelChoice {
        let [rows, _, _, channels, _, _, outputs, window_height, window_width, stride, padding] = self.sizes;
        // Windows of one pixel lie one after the other, if the output has the picture's height and width.
        let moves = stride > 1 || padding > 0 || self.sizes[1..3] != self.sizes[4..6];
        let window = window_height * window_width > 1 || moves || self.added[1].is_some();
        let (tile, reason) = Tile::of(rows, outputs);
        let step = STEP_BYTES / if matmul == MatmulUnit::Tf32 { 4 } else { 2 };
        let launch = Launch {
            stem: "matmul_mma",
            entry: tile.entries[usize::from(window)],
            threads: tile.threads,
            grid: [grid(outputs.div_ceil(tile.columns)), grid(rows.div_ceil(tile.rows)), 1],
            tensors: Vec::new(),
            scalars: self.sizes.map(Scalar::from).to_vec(),
            tiling: None,
            choice: Choice::new(Some([tile.rows, tile.columns]), reason),
        };
        let patch = Some(OutputTile { positions: tile.rows, columns: tile.columns });
        let steps = (window_height * window_width * channels).div_ceil(step);
        let depth = Depth::in_launches(tile.blocks(rows, outputs), steps, LEAST_STEPS);
        KernelChoice { launch, depth, patch: patch.filter(|_| tile.rows > FLAT.rows) }
    }

    /// By `matmul_sm90`, if the tensors can be copied in its tiles; else why not.
    fn by_warpgroups(&self) -> Result<KernelChoice, &'static str> {
        let [
            rows,
            height,
            width,
            channels,
            out_height,
            out_width,
            outputs,
            window_height,
            window_width,
            stride,
            padding,
        ] = self.sizes;
        if !channels.is_multiple_of(8) {
            return Err("a pixel is no whole number of 16-byte chunks");
        }
        if !outputs.is_multiple_of(8) {
            return Err("a pixel of the output is no whole number of 16-byte chunks");
        }
        if stride > 2 {
            return Err("a row of windows would be wider than a tile may be");
        }
        let split = self.behind.map_or(channels, |(_, first)| first);
        if split < channels && !split.is_multiple_of(BOX_CHANNELS) {
            return Err("the first part of the channels ends within a step");
        }
        if rows <= FLAT.rows {
            return Err("few rows leave most of a tile empty");
        }
        let images = rows / (out_height * out_width);
        let boxes = TileGrid::of(images, out_height, out_width);
        let step = stride as u32;
        // To load n elements of a strided dimension the driver wants n steps.
        let extent = |bits: u32| step << bits;
        let taps = window_height * window_width;
        let pixels = |channels: usize| Walk {
            dims: vec![channels, width, height, images],
            strides: vec![channels, width * channels, height * width * channels],
            tile: vec![
                BOX_CHANNELS as u32,
                extent(boxes.wide),
                extent(boxes.high),
                1 << (BOX_BITS - boxes.wide - boxes.high),
            ],
            steps: vec![1, step, step, 1],
        };
        let weight = Walk {
            dims: vec![channels, taps, outputs],
            strides: vec![channels, taps * channels],
            tile: vec![BOX_CHANNELS as u32, 1, BOX_COLUMNS as u32],
            steps: vec![1, 1, 1],
        };
        let behind = if split < channels { channels - split } else { channels };
        let sizes =
            [images, out_height, out_width, channels, split, outputs, window_height, window_width, stride, padding];
        let bits = [boxes.wide, boxes.high].map(Scalar::U32);
        let columns = self.layers.len() * outputs.div_ceil(BOX_COLUMNS);
        let depth = Depth::in_clusters(columns * boxes.count, taps * channels.div_ceil(BOX_CHANNELS));
        let Depth::Cluster { bits: part_bits } = depth else { unreachable!("made above") };
        let parts = 1usize << part_bits;
        let together = if parts > 1 { format!("; {parts} blocks a tile share k") } else { String::new() };
        let reason = format!("wgmma; {boxes} need the fewest blocks{together}");
        let launch = Launch {
            stem: "matmul_sm90",
            entry: "matmul_sm90",
            threads: 256,
            grid: [grid(columns), grid(boxes.count), grid(parts)],
            tensors: Vec::new(),
            scalars: sizes.map(Scalar::from).into_iter().chain(bits).collect(),
            tiling: Some(Tiling {
                walks: vec![pixels(split), pixels(behind), weight.clone(), weight.clone(), weight],
                shared_bytes: BOX_SHARED_BYTES,
                cluster: parts as u32,
            }),
            choice: Choice { tile: Some([1 << BOX_BITS, BOX_COLUMNS]), split: parts, reason: reason.into() },
        };
        let patch = OutputTile { positions: 1 << (BOX_BITS - part_bits), columns: BOX_COLUMNS };
        let patch = Some(patch).filter(|_| boxes.divide(images, out_height, out_width, part_bits));
        Ok(KernelChoice { launch, depth, patch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches(rows: usize, depth: usize, outputs: usize) -> Vec<Launch> {
        let sizes = [rows, rows, 1, depth, rows, 1, outputs, 1, 1, 1, 0];
        Matmul { sizes, layers: vec![1], added: [None; 3], activation: Scalar::U32(0), behind: None, step: None }
            .on_tensor_cores(MatmulUnit::Half, None)
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
            let [.., Scalar::U32(of_part), _, _, _, _, Scalar::U32(0)] = launches[0].scalars[..] else {
                panic!("steps, no statistics")
            };
            let parts = launches[0].grid[2];
            assert!(of_part * parts >= steps as u32 && of_part * (parts - 1) < steps as u32, "{rows} {outputs}");
            assert_eq!(launches.len(), if parts == 1 { 1 } else { 2 });
        }
    }

    fn by_warpgroups(images: usize, side: [usize; 2], channels: usize, stride: usize) -> Vec<Launch> {
        let out = side.map(|n| n.div_ceil(stride));
        let rows = images * out[0] * out[1];
        let sizes = [rows, side[0], side[1], channels, out[0], out[1], 320, 3, 3, stride, 1];
        Matmul { sizes, layers: vec![1], added: [None; 3], activation: Scalar::U32(0), behind: None, step: None }
            .on_tensor_cores(MatmulUnit::Warpgroup, None)
    }

    #[test]
    fn boxes_cover_all_pixels_and_waste_none_where_sides_are_powers_of_two() {
        for (images, height, width) in [(1, 64, 64), (2, 8, 8), (4, 16, 32), (1, 7, 9), (3, 1, 100), (1, 1024, 1)] {
            let TileGrid { wide, high, count } = TileGrid::of(images, height, width);
            assert!(wide + high <= BOX_BITS);
            let pixels = images * height * width;
            assert!(count << BOX_BITS >= pixels, "{images} {height} {width}: {count}");
            let exact = width.is_power_of_two() && height.is_power_of_two() && pixels >= 1 << BOX_BITS;
            assert!(!exact || count << BOX_BITS == pixels, "{images} {height} {width}: {count}");
        }
    }

    #[test]
    fn warpgroups_take_pictures_that_can_be_copied_in_boxes_and_say_why_they_leave_the_others() {
        let stem = |launches: Vec<Launch>| launches[0].stem;
        assert_eq!(stem(by_warpgroups(1, [64, 64], 320, 1)), "matmul_sm90");
        assert_eq!(stem(by_warpgroups(2, [9, 9], 8, 2)), "matmul_sm90");
        for (side, channels, stride, why) in
            [(16, 3, 1, "16-byte chunks"), (64, 64, 3, "wider than a tile"), (4, 64, 1, "few rows")]
        {
            let Launch { stem, choice, .. } = by_warpgroups(1, [side; 2], channels, stride).remove(0);
            assert!(stem == "matmul_mma" && choice.reason.contains(why), "{stem}: {}", choice.reason);
        }
    }
}
