use super::{Keep, Launch, Lowering, Operand, Operation, Scalar, Tiles, count, elements, require};

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

    fn keep(&self, _: Operand) -> Keep {
        Keep::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let kind = match self {
            Resize::NearestDouble => 0,
            Resize::MeanHalve => 1,
            Resize::Bicubic { .. } => 2,
        };
        let x = inputs[0];
        let scalars = [kind, x[1], x[2], x[3], output[1], output[2]].map(Scalar::from);
        vec![Launch::each("resize", elements(output), vec![Operand::Input(0), Operand::Output], scalars)]
    }

    fn ptx(&self, inputs: &[&[usize]], output: &[usize], _: &Lowering) -> Vec<Launch> {
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        if *self != Resize::NearestDouble {
            return vec![plain];
        }
        // What a thread reads goes to four places.
        let sizes = plain.scalars[1..].iter().copied();
        vec![Launch::each("resize", elements(inputs[0]), plain.tensors, sizes)]
    }
}

/// Weights of the bicubic resize along one side: for each output index, the first input index and the weights of
/// the inputs from there on. They sum to one.
pub fn cubic_taps(input: usize, output: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..output)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let low = (center - support + 0.5).max(0.0) as usize;
            let high = ((center + support + 0.5) as usize).min(input);
            let taps: Vec<f64> = (low..high).map(|j| keys_cubic((j as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = taps.iter().sum();
            (low, taps.iter().map(|w| (w / sum) as f32).collect())
        })
        .collect()
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
