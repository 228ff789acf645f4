use super::launch::grid;
use super::reverse::{Reverse, Source, no_rule};
use super::training::ResizeGradient;
use super::{Choice, Launch, MatmulUnit, Operand, Operation, Scalar, StorageRule, Tiles, count, elements, require};

/// Changes the height and width of channels-last images. *Shapes* `[N, H, W, C]` gives `[N, H', W', C]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Resize {
    /// Each pixel becomes four.
    NearestDouble,
    /// Each 2x2 square becomes its mean; an odd last row or column is left out.
    MeanHalve,
    /// Separable bicubic of Keys 1981 with `a = -0.5`, missing taps at the border dropped and the rest
    /// renormalised: torch's `interpolate(mode="bicubic", align_corners=False, antialias=True)`.
    Bicubic {
        /// Height asked for.
        height: usize,
        /// Width asked for.
        width: usize,
    },
}

impl Operation for Resize {
    fn name(&self) -> &'static str {
        match self {
            Resize::NearestDouble => "double",
            Resize::MeanHalve => "halve",
            Resize::Bicubic { .. } => "bicubic",
        }
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        let x = inputs[0];
        require(x.len() == 4, || format!("{}: {x:?} is not [N, H, W, C]", self.name()))?;
        let (h, w) = match *self {
            Resize::NearestDouble => (2 * x[1], 2 * x[2]),
            Resize::MeanHalve => (x[1] / 2, x[2] / 2),
            Resize::Bicubic { height, width } => (height, width),
        };
        require(h > 0 && w > 0, || format!("{}: nothing is left of {x:?}", self.name()))?;
        Ok(vec![x[0], h, w, x[3]])
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        match self {
            Resize::NearestDouble => 0,
            Resize::MeanHalve => 4 * elements(output) as u64,
            Resize::Bicubic { .. } => 16 * elements(output) as u64,
        }
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let x = reverse.shape(0);
        let gradient = match self {
            Resize::NearestDouble => ResizeGradient::Double,
            Resize::MeanHalve => ResizeGradient::Halve { size: [x[1], x[2]] },
            // Only data are resized so.
            Resize::Bicubic { .. } => return no_rule(self.name()),
        };
        reverse.give_by(0, gradient, &[Source::Gradient])
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let kind = match self {
            Resize::NearestDouble => 0,
            Resize::MeanHalve => 1,
            Resize::Bicubic { .. } => 2,
        };
        let x = inputs[0];
        let scalars = [kind, x[1], x[2], x[3], output[1], output[2]].map(Scalar::from);
        vec![Launch::each("resize", elements(output), vec![Operand::Input(0), Operand::Output(0)], scalars)]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let x = inputs[0];
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        match self {
            Resize::NearestDouble | Resize::MeanHalve => {
                // What is read of a picture to be doubled goes to four places.
                let owned = if *self == Resize::NearestDouble { x } else { output };
                let sizes = plain.scalars[1..].iter().copied();
                let launch = Launch::each("resize_by_two", elements(owned), plain.tensors, sizes);
                vec![launch.in_vectors("resize_by_two_x16", &[x[3]])]
            }
            Resize::Bicubic { .. } => {
                let down = Side { inputs: x[1], outputs: output[1] };
                let across = Side { inputs: x[2], outputs: output[2] };
                let Some([rows, columns]) = tile(down, across, x[3]) else {
                    let choice = Choice::new(None, "one thread an element: the taps of a tile exceed 24 KiB");
                    let sizes = plain.scalars[2..].iter().copied();
                    return vec![Launch { choice, ..Launch::each("resize", elements(output), plain.tensors, sizes) }];
                };
                let sizes = plain.scalars[2..].iter().copied();
                let own = [rows, columns, down.quads(), across.quads()].map(Scalar::from);
                let grid = [grid(output[2].div_ceil(columns)), grid(output[1].div_ceil(rows)), grid(output[0])];
                let (stem, threads) = ("resize_bicubic", THREADS as u32);
                let scalars = sizes.chain(own).collect();
                let choice =
                    Choice::new(Some([rows, columns]), "the largest tile whose taps and pixels fit into 24 KiB");
                vec![Launch { stem, entry: stem, threads, grid, tensors: plain.tensors, scalars, tiling: None, choice }]
            }
        }
    }
}

/// Threads of a block of the PTX kernel for bicubic pictures.
const THREADS: usize = 256;
/// What it declares of shared memory, and how much of that holds the first taps of a tile's rows and columns.
const SHARED_BYTES: usize = 24 << 10;
const FIRST_TAPS: usize = 96;
/// Rows and columns of its tiles, largest first: the fewer tiles, the less of x is read twice.
const TILES: [[usize; 2]; 6] = [[32, 64], [16, 32], [8, 16], [4, 8], [2, 4], [1, 1]];

/// Rows or columns of pictures that are resized.
#[derive(Clone, Copy)]
struct Side {
    inputs: usize,
    outputs: usize,
}

impl Side {
    /// Taps of an output, in fours: what is less than two pixels away, stretched where the picture shrinks.
    fn quads(self) -> usize {
        self.inputs.max(self.outputs).div_ceil(self.outputs)
    }

    /// Outputs of a tile if all tiles are as even as they can be, none with more than `most`.
    fn own(self, most: usize) -> usize {
        self.outputs.div_ceil(self.outputs.div_ceil(most))
    }

    /// Most inputs that so many outputs in a row take.
    fn patch(self, own: usize) -> usize {
        ((own - 1) * self.inputs).div_ceil(self.outputs) + 4 * self.quads()
    }
}

/// Rows and columns of the largest tile whose taps, inputs and inputs filtered down fit on chip, with a thread for each
/// channel of a row.
fn tile(down: Side, across: Side, channels: usize) -> Option<[usize; 2]> {
    TILES.into_iter().map(|[rows, columns]| [down.own(rows), across.own(columns)]).find(|&[rows, columns]| {
        let span = across.patch(columns) * channels;
        let taps = 4 * (rows * down.quads() + columns * across.quads());
        let floats = FIRST_TAPS + taps + span * (down.patch(rows) | 1) + rows * span;
        span.max(columns * channels) <= THREADS && 4 * floats <= SHARED_BYTES
    })
}

/// A filter that pictures are resized with.
pub(crate) struct Resampling {
    /// The filter is 0 beyond this many pixels.
    support: f64,
    kernel: fn(f64) -> f64,
}

/// Keys' cubic.
pub(crate) const CUBIC: Resampling = Resampling { support: 2.0, kernel: keys_cubic };
/// A sinc with three lobes, under the main lobe of a wider one.
pub(crate) const LANCZOS: Resampling = Resampling { support: 3.0, kernel: lanczos };

/// The input positions that an output position sees, by the first of them and their weights, which add up to 1. The side
/// has `pixels`, of which the first `length` become the output. Where it shrinks, the filter is stretched, so that
/// every input counts.
///
/// *Source* Pillow's `Resample.c`.
pub(crate) fn resampling_window(
    filter: &Resampling,
    pixels: usize,
    length: f64,
    output: usize,
    index: usize,
) -> (usize, Vec<f64>) {
    let scale = length / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support * stretch;
    let center = (index as f64 + 0.5) * scale;
    let low = (center - support + 0.5).max(0.0) as usize;
    let high = ((center + support + 0.5) as usize).min(pixels);
    let weight = |j: usize| (filter.kernel)((j as f64 - center + 0.5) * (1.0 / stretch));
    let mut weights: Vec<f64> = (low..high).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    (low, weights)
}

/// All windows of a side, by output index, in f32.
pub fn cubic_taps(input: usize, output: usize) -> Vec<(usize, Vec<f32>)> {
    let window = |index| {
        let (low, weights) = resampling_window(&CUBIC, input, input as f64, output, index);
        (low, weights.into_iter().map(|w| w as f32).collect())
    };
    (0..output).map(window).collect()
}

/// Keys' interpolation kernel with `a = -0.5`.
fn keys_cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

/// The sinc of x under that of a third of it.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_bicubic_pictures_are_as_large_as_shared_memory_allows() {
        let square = |inputs, outputs, channels| {
            let side = Side { inputs, outputs };
            tile(side, side, channels)
        };
        assert_eq!(square(64, 256, 3), Some([32, 64]));
        assert_eq!(square(5, 17, 3), Some([17, 17]));
        // The more pixels of x an output takes, the smaller is the tile.
        assert_eq!(square(512, 256, 3), Some([8, 16]));
        assert_eq!(square(1024, 256, 3), Some([4, 8]));
        assert_eq!(square(640, 64, 3), Some([1, 1]));
        assert_eq!(square(704, 64, 3), None);
        assert_eq!(square(256, 256, 64), Some([1, 1]));
        assert_eq!(square(256, 256, 65), None);
    }

    #[test]
    fn a_patch_holds_all_taps_of_a_tile() {
        for (inputs, outputs) in [(64, 256), (37, 14), (7, 17), (5, 5), (1, 4), (300, 7), (23, 67), (100, 99)] {
            let (side, taps) = (Side { inputs, outputs }, cubic_taps(inputs, outputs));
            for most in [1, 2, 8, 32] {
                let own = side.own(most);
                for tile in taps.chunks(own) {
                    let end = tile.iter().map(|(first, weights)| first + weights.len()).max().expect("it has outputs");
                    assert!(end - tile[0].0 <= side.patch(own), "{inputs} to {outputs}, {own} at a time");
                }
            }
        }
    }
}
