//! The list of cases for all operations: the models' real shapes with fewer positions, the widths of small models, and
//! sizes that fit no tile. Tests and benchmarks use the same list; `heavy` cases are for benchmarks only.

use super::{Data, Problem, Random, Tensor};
use crate::dtype::Dtype::{self, Bf16, F16, F32};
use crate::ops::Activation::{Gelu, QuickGelu, Silu};
use crate::ops::{
    Attention, Concat, Conv2d, Convert, Embed, Geglu, GroupNorm, LayerNorm, Linear, Modulate, Op, Pointwise, Resize,
    Slice,
};
use crate::plan::Plan;

/// How a tensor's elements are drawn.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal values with this mean and deviation.
    Normal(f64, f64),
    /// 1 for three keys out of five and for the first, else 0.
    Mask,
    /// Row indices below a bound.
    Rows(u32),
    /// These integers.
    Words(Vec<u32>),
    /// These floats.
    Fixed(Vec<f32>),
}

/// A tensor of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// How its elements are drawn.
    pub fill: Fill,
    /// The stored type of a weight; `None` for an input.
    pub stored: Option<Dtype>,
}

/// One step, and how its tensors are drawn.
#[derive(Clone, Debug)]
pub struct Case {
    /// `stem/what`.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Its inputs, in the operation's order.
    pub inputs: Vec<Input>,
    /// Too large for the f64 reference: for benchmarks only.
    pub heavy: bool,
}

impl Case {
    pub(super) fn new(name: impl Into<String>, op: impl Into<Op>, inputs: Vec<Input>) -> Case {
        let name = name.into();
        Case { name, op: op.into(), inputs, heavy: false }
    }

    pub(super) fn heavy(mut self) -> Case {
        self.heavy = true;
        self
    }

    /// The plan of [`Case::problem`], without drawing anything.
    pub fn plan(&self) -> Plan {
        let empty = |fill: &Fill| match fill {
            Fill::Rows(_) => Data::Integers(Vec::new()),
            _ => Data::Floats(Vec::new()),
        };
        let tensor = |i: &Input| Tensor { shape: i.shape.clone(), data: empty(&i.fill), stored: i.stored };
        Problem { op: self.op.clone(), tensors: self.inputs.iter().map(tensor).collect() }.plan()
    }

    /// Draws the tensors. Weights are rounded to the type in which they are stored.
    pub fn problem(&self) -> Problem {
        let mut random = Random::named(&self.name);
        let tensors = self.inputs.iter().map(|input| {
            let length: usize = input.shape.iter().product();
            let round = |x: f32| input.stored.map_or(x, |stored| round(stored, x));
            let data = match &input.fill {
                Fill::Normal(mean, deviation) => {
                    Data::Floats((0..length).map(|_| round((mean + deviation * random.normal()) as f32)).collect())
                }
                Fill::Mask => {
                    let keys = input.shape[1];
                    let keep = |i: usize, u: f64| if i.is_multiple_of(keys) || u < 0.6 { 1.0 } else { 0.0 };
                    Data::Floats((0..length).map(|i| keep(i, random.uniform())).collect())
                }
                Fill::Rows(bound) => {
                    Data::Integers((0..length).map(|_| (random.bits() % u64::from(*bound)) as u32).collect())
                }
                Fill::Words(x) => Data::Integers(x.clone()),
                Fill::Fixed(x) => Data::Floats(x.clone()),
            };
            Tensor { shape: input.shape.clone(), data, stored: input.stored }
        });
        Problem { op: self.op.clone(), tensors: tensors.collect() }
    }
}

/// The nearest value of a type.
fn round(stored: Dtype, x: f32) -> f32 {
    match stored {
        F16 => half::f16::from_f32(x).to_f32(),
        Bf16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = linear();
    cases.extend(conv2d());
    cases.extend(attention());
    cases.extend(norms());
    cases.extend(pointwise());
    cases.extend(modulate());
    cases.extend(geglu());
    cases.extend(moves());
    cases.extend(resize());
    cases.extend(super::samplers::all());
    cases
}

/// The case of that name.
///
/// # Panics
/// If there is none.
pub fn named(name: &str) -> Case {
    all().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

pub(super) fn x(shape: &[usize]) -> Input {
    Input { shape: shape.to_vec(), fill: Fill::Normal(0.0, 1.0), stored: None }
}

fn spread(shape: &[usize], mean: f64, deviation: f64) -> Input {
    Input { shape: shape.to_vec(), fill: Fill::Normal(mean, deviation), stored: None }
}

/// A weight that keeps matmuls with normal values near one.
fn weight(shape: &[usize], stored: Dtype) -> Input {
    let terms: usize = shape[1..].iter().product();
    Input { shape: shape.to_vec(), fill: Fill::Normal(0.0, 1.0 / (terms as f64).sqrt()), stored: Some(stored) }
}

fn vector(length: usize, mean: f64, stored: Dtype) -> Input {
    Input { shape: vec![length], fill: Fill::Normal(mean, 0.5), stored: Some(stored) }
}

pub(super) fn rows(shape: &[usize], bound: u32) -> Input {
    Input { shape: shape.to_vec(), fill: Fill::Rows(bound), stored: None }
}

fn linear() -> Vec<Case> {
    let case = |what: &str, rows: &[usize], k: usize, n: usize, op: Linear, stored: Dtype| {
        let with = |width: usize| [rows, &[width]].concat();
        let mut inputs = vec![x(&with(k)), weight(&[n, k], stored)];
        inputs.extend(op.bias.then(|| vector(n, 0.0, stored)));
        inputs.extend(op.residual.then(|| x(&with(n))));
        Case::new(format!("linear/{what}"), op, inputs)
    };
    let plain = Linear::default();
    let bias = Linear { bias: true, ..Linear::default() };
    let whole = Linear { bias: true, activation: Some(Gelu), residual: true, also: 0 };
    let mut cases = vec![
        case("text-encoder-mlp", &[1, 20], 768, 3072, Linear { activation: Some(QuickGelu), ..bias.clone() }, F16),
        case("text-projection-no-bias", &[3], 768, 768, plain.clone(), F16),
        case("prior-up", &[2, 3], 2048, 8192, Linear { activation: Some(Gelu), ..bias.clone() }, F16),
        case("prior-down", &[1, 5], 8192, 2048, Linear { residual: true, ..bias.clone() }, F16),
        case("prior-attention", &[2, 17], 2048, 2048, bias.clone(), Bf16),
        case("time-embedding", &[2], 1280, 1280, Linear { activation: Some(Silu), ..bias.clone() }, F32),
        case("decoder-text-keys", &[1, 81], 1536, 640, bias.clone(), F32),
        case("decoder-attention-out", &[2, 1024], 640, 640, Linear { residual: true, ..bias.clone() }, F16).heavy(),
        case("one-number", &[1], 1, 1, plain.clone(), F32),
        case("one-input", &[7], 1, 33, whole.clone(), F32),
        case("one-output", &[7], 33, 1, whole.clone(), F32),
        case("tiny-8-to-24", &[2, 5], 8, 24, bias.clone(), F32),
        case("tiny-12-to-12", &[1, 3], 12, 12, plain.clone(), F32),
        case("tiny-24-to-96", &[2, 9], 24, 96, whole.clone(), F16),
        case("small-96-to-160", &[2, 33], 96, 160, whole.clone(), Bf16),
        case("small-160-to-17", &[5, 7], 160, 17, bias.clone(), F32),
        case("depth-256", &[13], 256, 48, bias.clone(), F32),
        case("depth-257", &[13], 257, 17, whole.clone(), F32),
        case("depth-1027", &[97], 1027, 31, whole.clone(), F16),
        case("no-leading-dimension", &[], 40, 24, plain, F32),
        // A large tile for every multiprocessor of a GPU, the last ones not full.
        case("large-tiles", &[8187], 24, 317, whole.clone(), F32),
        case("large-tiles-even", &[8187], 40, 318, bias.clone(), F16),
        case("prior-step", &[4, 81], 2048, 8192, bias.clone(), F16).heavy(),
    ];
    // Every tile height, alone and after full tiles.
    cases.extend((1..=13).map(|m| case(&format!("rows-{m}"), &[m], 37, 21, bias.clone(), [F32, F16, Bf16][m % 3])));
    cases
}

const CONV: Conv2d =
    Conv2d { stride: 1, padding: [1, 1], bias: true, shift: false, residual: false, behind: false, table: false };

fn conv2d() -> Vec<Case> {
    let case = |what: &str, from: [usize; 4], to: [usize; 3], op: Conv2d, stored: Dtype| {
        let [n, h, w, c] = from;
        let [o, r, s] = to;
        let side = |length: usize, kernel: usize| (length + op.padding[0] + op.padding[1] - kernel) / op.stride + 1;
        let mut inputs = vec![x(&from), weight(&[o, c, r, s], stored)];
        inputs.extend(op.bias.then(|| vector(o, 0.0, stored)));
        inputs.extend(op.shift.then(|| x(&[n, o])));
        inputs.extend(op.residual.then(|| x(&[n, side(h, r), side(w, s), o])));
        Case::new(format!("conv2d/{what}"), op, inputs)
    };
    let plain = Conv2d { bias: false, ..CONV };
    let one = Conv2d { padding: [0, 0], ..CONV };
    let half = Conv2d { stride: 2, ..CONV };
    let whole = Conv2d { shift: true, residual: true, ..CONV };
    let mut cases = vec![
        case("decoder-in", [1, 16, 16, 3], [320, 3, 3], CONV, F32),
        case("decoder-out", [1, 16, 16, 320], [6, 3, 3], CONV, F16),
        case("karlo-320", [1, 12, 12, 320], [320, 3, 3], whole.clone(), F16),
        case("karlo-640", [1, 6, 6, 640], [640, 3, 3], CONV, F32),
        case("karlo-1280", [2, 2, 3, 1280], [1280, 3, 3], whole.clone(), F16),
        case("karlo-shortcut", [2, 3, 3, 2560], [1280, 1, 1], one.clone(), Bf16),
        case("karlo-down", [1, 9, 9, 320], [320, 3, 3], half.clone(), F32),
        case("super-res-in", [1, 16, 16, 6], [320, 3, 3], CONV, F32),
        case("patches", [1, 42, 28, 3], [256, 14, 14], Conv2d { stride: 14, bias: false, ..one.clone() }, F16),
        case("tiny-8", [2, 8, 8, 8], [12, 3, 3], whole.clone(), F32),
        case("tiny-24", [1, 4, 4, 24], [24, 3, 3], CONV, F16),
        case("small-48", [2, 8, 8, 48], [48, 3, 3], whole.clone(), Bf16),
        case("small-96-to-160", [1, 7, 9, 96], [160, 3, 3], whole.clone(), F32),
        case("several-blocks-of-tiles", [1, 44, 41, 32], [40, 3, 3], whole.clone(), F16),
        case("slices-of-channels", [2, 6, 7, 144], [33, 3, 3], whole.clone(), Bf16),
        case("one-pixel", [1, 1, 1, 5], [7, 3, 3], CONV, F32),
        case("one-pixel-of-one-channel", [3, 1, 1, 1], [1, 1, 1], one.clone(), F32),
        case("five-by-seven", [2, 5, 7, 17], [19, 3, 3], whole.clone(), F32),
        case("one-row", [1, 1, 31, 12], [17, 3, 3], CONV, F16),
        case("one-column", [1, 31, 1, 12], [17, 3, 3], plain.clone(), F32),
        case("odd-by-two", [1, 5, 7, 10], [33, 3, 3], half, F32),
        case("dense-by-two", [1, 5, 7, 10], [33, 1, 1], Conv2d { stride: 2, ..one.clone() }, F32),
        case("dense-with-border", [1, 5, 7, 10], [33, 1, 1], CONV, F32),
        case("border-after-by-two", [2, 6, 8, 12], [20, 3, 3], Conv2d { stride: 2, padding: [0, 1], ..CONV }, F16),
        case("border-after-odd", [1, 7, 5, 19], [9, 3, 3], Conv2d { stride: 2, padding: [0, 1], ..CONV }, F32),
        case("border-after-wide", [2, 16, 16, 64], [64, 3, 3], Conv2d { stride: 2, padding: [0, 1], ..CONV }, F16),
        case("dense-with-border-after", [1, 5, 7, 10], [33, 1, 1], Conv2d { padding: [0, 1], ..CONV }, F32),
        case("no-border", [1, 5, 7, 10], [9, 3, 3], one.clone(), F32),
        case("window-fills-picture", [2, 3, 3, 10], [9, 3, 3], Conv2d { bias: false, ..one.clone() }, F32),
        case("window-five-by-three", [1, 6, 5, 11], [13, 5, 3], Conv2d { padding: [2, 2], ..CONV }, F32),
        case("channels-257", [1, 5, 7, 257], [17, 3, 3], CONV, F32),
        case("channels-322", [1, 3, 5, 322], [31, 3, 3], whole.clone(), F16),
        case("channels-100", [1, 5, 5, 100], [20, 3, 3], CONV, F32),
        case("large-tiles", [2, 64, 64, 8], [316, 3, 3], whole.clone(), F16),
        case("residual-only", [3, 4, 5, 8], [16, 3, 3], Conv2d { residual: true, ..plain.clone() }, F32),
        case("shift-only", [3, 4, 5, 8], [18, 1, 1], Conv2d { shift: true, padding: [0, 0], ..plain }, F32),
    ];
    for (what, from, to) in [
        ("decoder-64px", [2, 64, 64, 320], 320),
        ("decoder-32px", [2, 32, 32, 640], 640),
        ("decoder-16px", [2, 16, 16, 960], 960),
        ("decoder-8px", [2, 8, 8, 1280], 1280),
        ("super-res-256px", [1, 256, 256, 320], 320),
    ] {
        cases.push(case(what, from, [to, 3, 3], CONV, F16).heavy());
    }
    cases
}

fn attention() -> Vec<Case> {
    struct Sizes(usize, usize, usize, usize, usize, usize);
    // Batch, queries, own keys, extra keys, heads, width of a head; then the mask's length.
    let case = |what: &str, sizes: Sizes, causal: bool, mask: Option<usize>| {
        let Sizes(b, tq, tk, te, heads, d) = sizes;
        let width = heads * d;
        let mut inputs = vec![x(&[b, tq, width]), x(&[b, tk, width]), x(&[b, tk, width])];
        if te > 0 {
            inputs.extend([x(&[b, te, width]), x(&[b, te, width])]);
        }
        inputs.extend(mask.map(|m| Input { shape: vec![b, m], fill: Fill::Mask, stored: None }));
        let op = Attention { heads, causal, extra: te > 0, mask: mask.is_some() };
        Case::new(format!("attention/{what}"), op, inputs)
    };
    vec![
        case("text-encoder", Sizes(1, 77, 77, 0, 12, 64), true, None),
        case("image-encoder", Sizes(1, 257, 257, 0, 4, 64), false, None),
        case("prior", Sizes(2, 81, 81, 0, 8, 64), true, Some(77)),
        case("prior-kept-text", Sizes(2, 4, 4, 77, 32, 64), true, Some(77)),
        case("decoder-8px", Sizes(2, 64, 64, 81, 10, 64), false, None),
        case("decoder-32px", Sizes(1, 1024, 1024, 81, 1, 64), false, None),
        case("three-queries-of-1105-keys", Sizes(1, 3, 1024, 81, 2, 64), false, None),
        case("heads-of-8", Sizes(2, 16, 16, 9, 3, 8), false, None),
        case("heads-of-12", Sizes(1, 25, 25, 0, 2, 12), true, None),
        case("heads-of-32", Sizes(2, 35, 35, 13, 5, 32), false, Some(13)),
        case("heads-of-80", Sizes(1, 35, 40, 3, 2, 80), true, None),
        case("heads-of-104", Sizes(2, 33, 33, 0, 2, 104), false, None),
        case("one-head-of-512", Sizes(1, 40, 72, 0, 1, 512), false, None),
        case("heads-of-1", Sizes(1, 5, 7, 0, 3, 1), false, None),
        case("heads-of-17", Sizes(1, 30, 33, 2, 2, 17), false, Some(35)),
        case("one-query-one-key", Sizes(2, 1, 1, 0, 1, 8), true, None),
        case("two-tokens", Sizes(3, 2, 2, 0, 2, 12), true, None),
        case("one-key-for-many", Sizes(1, 29, 1, 0, 2, 8), false, None),
        case("fewer-queries-than-keys", Sizes(1, 5, 19, 0, 2, 8), true, None),
        case("fewer-queries-with-extra", Sizes(2, 5, 19, 3, 2, 12), true, Some(7)),
        case("mask-covers-own", Sizes(2, 9, 17, 0, 2, 16), false, Some(17)),
        case("mask-of-one", Sizes(2, 9, 17, 0, 2, 16), false, Some(1)),
        case("keys-255-256-257", Sizes(1, 7, 257, 255, 1, 32), false, None),
        case("decoder-32px-batch", Sizes(2, 1024, 1024, 81, 10, 64), false, None).heavy(),
        case("movq-768px", Sizes(1, 9216, 9216, 0, 1, 512), false, None).heavy(),
    ]
}

fn norms() -> Vec<Case> {
    let group = |what: &str, shape: &[usize], groups: usize, style: bool, activation: Option<_>, mean: f64| {
        let c = shape[shape.len() - 1];
        let mut inputs = vec![spread(shape, mean, 1.5), vector(c, 1.0, F32), vector(c, 0.0, F16)];
        inputs.extend(style.then(|| spread(&[shape[0], 2 * c], 0.0, 0.5)));
        let statistics = Vec::new();
        let op = GroupNorm { groups, eps: 1e-5, style, activation, statistics, behind: false, table: false };
        Case::new(format!("group_norm/{what}"), op, inputs)
    };
    let layer = |what: &str, shape: &[usize], mean: f64, stored: Dtype| {
        let d = shape[shape.len() - 1];
        let inputs = vec![spread(shape, mean, 2.0), vector(d, 1.0, stored), vector(d, 0.0, stored)];
        Case::new(format!("layer_norm/{what}"), LayerNorm { eps: 1e-5 }, inputs)
    };
    vec![
        group("karlo-320", &[2, 16, 16, 320], 32, true, Some(Silu), 0.0),
        group("karlo-1280", &[2, 4, 4, 1280], 32, true, Some(Silu), 0.5),
        group("karlo-2560", &[1, 3, 3, 2560], 32, false, Some(Silu), 0.0),
        group("tokens", &[2, 64, 640], 32, false, None, 0.0),
        group("tiny-8", &[2, 8, 8, 8], 4, true, Some(Silu), 0.0),
        group("small-48", &[3, 5, 7, 48], 8, false, Some(Silu), -1.0),
        group("one-group", &[2, 5, 7, 12], 1, true, None, 0.0),
        group("channel-groups", &[2, 5, 7, 17], 17, false, None, 0.0),
        group("one-pixel", &[2, 1, 1, 32], 8, true, Some(Silu), 0.0),
        group("constant-groups", &[2, 1, 1, 32], 32, true, None, 3.0),
        group("no-positions", &[3, 96], 32, false, None, 0.0),
        group("channels-257", &[1, 3, 5, 257], 257, false, Some(Gelu), 0.0),
        group("several-chunks", &[2, 40, 41, 24], 8, true, Some(Silu), 2.0),
        group("one-channel", &[1, 9, 11, 1], 1, false, Some(QuickGelu), 0.0),
        group("on-a-chip", &[1, 40, 50, 32], 4, true, Some(Silu), 1.0),
        group("on-a-chip-as-halves", &[1, 60, 50, 32], 4, true, Some(Silu), 1.0),
        group("in-parts", &[2, 120, 70, 16], 2, true, Some(Silu), -1.0),
        group("parts-of-one-channel", &[1, 90, 140, 3], 3, true, None, 40.0),
        group("one-channel-on-a-chip", &[1, 120, 140, 1], 1, false, None, 0.0),
        group("wide-groups", &[2, 3, 2, 2060], 2, true, None, 0.0),
        group("odd-wide-group", &[1, 5, 1543], 1, false, Some(Silu), 0.0),
        group("decoder-64px", &[2, 64, 64, 320], 32, true, Some(Silu), 0.0).heavy(),
        layer("text-encoder", &[1, 77, 768], 0.0, F16),
        layer("image-encoder", &[1, 257, 1024], 0.3, F32),
        layer("prior", &[2, 9, 2048], -0.2, Bf16),
        layer("tiny-24", &[2, 9, 24], 0.0, F32),
        layer("width-17", &[5, 17], 1.0, F32),
        layer("width-1", &[5, 1], 1.0, F32),
        layer("wider-than-registers", &[2, 3076], 0.5, F32),
        layer("odd-and-wide", &[2, 4099], -0.5, F32),
        layer("one-row", &[768], 0.0, F32),
        layer("prior-batch", &[4, 81, 2048], 0.0, F16).heavy(),
    ]
}

fn pointwise() -> Vec<Case> {
    let case = |what: &str, op: Pointwise, inputs: Vec<Input>| Case::new(format!("pointwise/{what}"), op, inputs);
    let wide = |shape: &[usize]| spread(shape, 0.0, 4.0);
    vec![
        case("silu", Pointwise::Activation(Silu), vec![wide(&[2, 37, 53])]),
        case("silu-shared", Pointwise::Activation(Silu), vec![wide(&[1, 23, 67, 53])]),
        // Whole vectors, the last ones of a block beyond the end.
        case("silu-vectors", Pointwise::Activation(Silu), vec![wide(&[3, 43, 48])]),
        case("gelu-vectors", Pointwise::Activation(Gelu), vec![wide(&[3, 43, 40])]),
        case("multiply-vectors", Pointwise::Multiply, vec![x(&[3, 43, 40]), x(&[40])]),
        case("clamp-vectors", Pointwise::Clamp { low: -1.0, high: 0.5 }, vec![x(&[2, 7, 24])]),
        case("silu-far-out", Pointwise::Activation(Silu), vec![spread(&[301], 0.0, 60.0)]),
        case("gelu", Pointwise::Activation(Gelu), vec![wide(&[2, 37, 53])]),
        case("gelu-one", Pointwise::Activation(Gelu), vec![wide(&[1])]),
        case("quick-gelu", Pointwise::Activation(QuickGelu), vec![wide(&[2, 77, 31])]),
        case("add", Pointwise::Add, vec![x(&[2, 5, 7, 3]), x(&[2, 5, 7, 3])]),
        case("add-positions", Pointwise::Add, vec![x(&[2, 77, 768]), x(&[77, 768])]),
        case("add-vector", Pointwise::Add, vec![x(&[3, 5, 17]), vector(17, 0.0, F16)]),
        case("add-to-row", Pointwise::Add, vec![x(&[9]), x(&[9])]),
        case("multiply-shared", Pointwise::Multiply, vec![x(&[3, 211, 131]), x(&[131])]),
        case("multiply-one-column", Pointwise::Multiply, vec![x(&[5, 1]), x(&[1])]),
        case("add-channels", Pointwise::AddChannels, vec![x(&[2, 16, 16, 320]), x(&[2, 320])]),
        case("add-channels-odd", Pointwise::AddChannels, vec![x(&[3, 5, 7, 9]), x(&[3, 9])]),
        case("scale-shift", Pointwise::ScaleShift, vec![x(&[2, 16, 16, 320]), x(&[2, 640])]),
        case("scale-shift-odd", Pointwise::ScaleShift, vec![x(&[3, 5, 7]), x(&[3, 14])]),
        case("scale-shift-rows", Pointwise::ScaleShift, vec![x(&[3, 7]), x(&[3, 14])]),
        case("clamp", Pointwise::Clamp { low: -1.0, high: 0.5 }, vec![x(&[2, 5, 7, 3])]),
        case("clamp-shared", Pointwise::Clamp { low: -1.0, high: 1.0 }, vec![x(&[1, 157, 151, 3])]),
        case("add-decoder-64px", Pointwise::Add, vec![x(&[2, 64, 64, 320]), x(&[2, 64, 64, 320])]).heavy(),
        case("silu-decoder-64px", Pointwise::Activation(Silu), vec![x(&[2, 64, 64, 320])]).heavy(),
    ]
}

/// Scales and shifts by coarser maps.
fn modulate() -> Vec<Case> {
    let case = |what: &str, activation, image: [usize; 4], factor: usize| {
        let [n, height, width, c] = image;
        let map = [n, height / factor, width / factor, c];
        let inputs = vec![x(&image), spread(&map, 1.0, 0.5), x(&map)];
        Case::new(format!("modulate/{what}"), Modulate { activation }, inputs)
    };
    vec![
        case("latent-grid", None, [2, 6, 10, 37], 1),
        case("movq-4", Some(Silu), [2, 16, 24, 64], 4),
        case("movq-8-odd-width", Some(Silu), [1, 24, 40, 19], 8),
        case("odd-factor", Some(Gelu), [3, 9, 15, 5], 3),
        case("movq-256px", Some(Silu), [1, 256, 256, 128], 8).heavy(),
    ]
}

/// Values and gates.
fn geglu() -> Vec<Case> {
    let case = |what: &str, shape: &[usize]| Case::new(format!("geglu/{what}"), Geglu, vec![x(shape)]);
    vec![
        case("tiny", &[2, 5, 48]),
        case("odd", &[3, 4, 74]),
        case("unclip", &[2, 9, 2560]),
        case("one-row", &[16]),
        case("unclip-768px", &[2, 9216, 2560]).heavy(),
    ]
}

/// Concatenation, slices and rows by index.
fn moves() -> Vec<Case> {
    let concat = |what: &str, axis: usize, parts: &[&[usize]]| {
        Case::new(format!("concat/{what}"), Concat { axis }, parts.iter().map(|p| x(p)).collect())
    };
    let slice = |what: &str, shape: &[usize], axis: usize, start: usize, step: usize, length: usize| {
        Case::new(format!("slice/{what}"), Slice { axis, start, step, length }, vec![x(shape)])
    };
    let embed = |what: &str, op: Embed, inputs: Vec<Input>| Case::new(format!("embed/{what}"), op, inputs);
    let table = |v: usize, d: usize, stored| Input { fill: Fill::Normal(0.0, 1.0), ..weight(&[v, d], stored) };
    vec![
        concat("skip", 3, &[&[2, 8, 8, 640], &[2, 8, 8, 320]]),
        concat("batch", 0, &[&[1, 5, 7, 3], &[1, 5, 7, 3]]),
        concat("prior-tokens", 1, &[&[2, 77, 48], &[2, 1, 48], &[2, 1, 48], &[2, 1, 48], &[2, 1, 48]]),
        concat("odd-channels", 3, &[&[3, 5, 7, 1], &[3, 5, 7, 13], &[3, 5, 7, 4]]),
        concat("one-part", 1, &[&[3, 5]]),
        concat("vectors", 0, &[&[3], &[1], &[9]]),
        Case::new("convert/odd".to_owned(), Convert, vec![x(&[3, 5, 7])]),
        Case::new("convert/picture".to_owned(), Convert, vec![x(&[2, 64, 64, 3])]),
        concat("skip-64px", 3, &[&[2, 64, 64, 320], &[2, 64, 64, 320]]).heavy(),
        slice("conditional-half", &[2, 8, 8, 6], 0, 1, 1, 1),
        slice("last-token", &[2, 81, 48], 1, 80, 1, 1),
        slice("channels", &[2, 5, 7, 6], 3, 3, 1, 3),
        slice("channels-in-vectors", &[2, 5, 7, 48], 3, 16, 1, 24),
        slice("rows-in-vectors", &[2, 17, 40], 1, 2, 7, 2),
        slice("heads-strided", &[2, 9, 12], 2, 1, 3, 4),
        slice("rows-strided", &[2, 17, 5], 1, 2, 7, 3),
        slice("whole", &[3, 5], 1, 0, 1, 5),
        slice("shared", &[2, 64, 64, 24], 3, 4, 2, 10),
        embed("text-tokens", Embed::Lookup, vec![table(499, 768, F16), rows(&[2, 77], 499)]),
        embed("odd", Embed::Lookup, vec![table(3, 17, F32), rows(&[1, 5], 3)]),
        embed("one", Embed::Lookup, vec![table(1, 1, Bf16), rows(&[1, 1], 1)]),
        embed("end-of-text", Embed::Token, vec![x(&[3, 77, 32]), rows(&[3], 77)]),
        embed("token-of-one", Embed::Token, vec![x(&[2, 1, 3]), rows(&[2], 1)]),
        embed("coefficients", Embed::Row, vec![x(&[25, 8]), rows(&[1], 25)]),
        embed("time-shifts", Embed::Row, vec![x(&[7, 2, 320]), rows(&[1], 7)]),
    ]
}

fn resize() -> Vec<Case> {
    let case = |what: &str, shape: &[usize], op: Resize| Case::new(format!("resize/{what}"), op, vec![x(shape)]);
    let bicubic = |height, width| Resize::Bicubic { height, width };
    vec![
        case("double", &[2, 8, 8, 48], Resize::NearestDouble),
        case("double-odd", &[3, 5, 7, 3], Resize::NearestDouble),
        case("double-one-pixel", &[1, 1, 1, 1], Resize::NearestDouble),
        case("halve", &[2, 8, 8, 48], Resize::MeanHalve),
        case("double-vectors-of-odd-sides", &[2, 5, 7, 24], Resize::NearestDouble),
        case("halve-vectors-of-odd-sides", &[2, 5, 7, 24], Resize::MeanHalve),
        case("halve-odd", &[3, 5, 7, 3], Resize::MeanHalve),
        case("bicubic-up-four", &[1, 16, 16, 3], bicubic(64, 64)),
        case("bicubic-down-prime", &[1, 37, 29, 3], bicubic(14, 14)),
        case("bicubic-up-prime", &[1, 7, 5, 3], bicubic(17, 19)),
        case("bicubic-up-and-down", &[2, 5, 23, 3], bicubic(8, 3)),
        case("bicubic-same", &[1, 5, 7, 4], bicubic(5, 7)),
        case("bicubic-one-pixel", &[1, 1, 1, 3], bicubic(4, 5)),
        case("bicubic-to-one-pixel", &[1, 9, 6, 3], bicubic(1, 1)),
        case("bicubic-tiles", &[2, 23, 31, 4], bicubic(67, 71)),
        case("bicubic-beyond-a-tile", &[1, 4, 45, 3], bicubic(2, 2)),
        case("bicubic-picture", &[1, 64, 64, 3], bicubic(256, 256)).heavy(),
    ]
}
