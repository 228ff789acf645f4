//! The recorder: model code that reads like eager code and leaves a plan.
//!
//! A [`Tensor`] is a copyable handle on a value of a [`Graph`]; its methods append steps. Weights are addressed
//! where they are used through [`Weights`], a path into the checkpoint. Model code needs no error handling: the
//! recorder keeps the first complaint (a missing tensor, shapes that do not fit) with the model's source line,
//! and [`Graph::finish`] returns it.

use super::{Dtype, Origin, Plan, Step, Trained, Value, ValueId, WeightSource};
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Attention, Concat, Conv2d, Embed, Geglu, GroupNorm, LayerNorm, Linear, Modulate, Multistep, Op,
    Operation, Pointwise, Resize, SamplerStep, Slice,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Add;
use std::panic::Location;

/// A plan being recorded.
pub struct Graph<'w> {
    name: String,
    source: &'w dyn WeightSource,
    pub(super) trained: Option<&'w Trained>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    values: Vec<Value>,
    steps: Vec<Step>,
    outputs: Vec<(String, ValueId)>,
    feeds: Vec<(ValueId, ValueId)>,
    weights: HashMap<String, ValueId>,
    complaint: Option<Error>,
}

/// A value of a graph under construction.
#[derive(Clone, Copy)]
pub struct Tensor<'g> {
    pub(super) graph: &'g Graph<'g>,
    id: ValueId,
}

/// A path into the checkpoint, such as `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct Weights<'g> {
    graph: &'g Graph<'g>,
    pub(super) path: String,
}

impl<'w> Graph<'w> {
    /// An empty plan whose weights come from `source`.
    pub fn new(name: impl Into<String>, source: &'w dyn WeightSource) -> Self {
        Graph { name: name.into(), source, trained: None, state: RefCell::default() }
    }

    /// An empty plan of which a part is trained.
    pub fn to_train(name: impl Into<String>, source: &'w dyn WeightSource, trained: &'w Trained) -> Self {
        Graph { trained: Some(trained), ..Graph::new(name, source) }
    }

    /// The top of the checkpoint component.
    pub fn weights<'g>(&'g self) -> Weights<'g>
    where
        'w: 'g,
    {
        Weights { graph: self, path: String::new() }
    }

    /// A tensor that the caller writes once per picture.
    pub fn input<'g>(&'g self, name: &str, shape: &[usize]) -> Tensor<'g>
    where
        'w: 'g,
    {
        self.add_input(name, shape, Dtype::F32, false)
    }

    /// A tensor that the caller (or a feed) writes before every step.
    pub fn step_input<'g>(&'g self, name: &str, shape: &[usize]) -> Tensor<'g>
    where
        'w: 'g,
    {
        self.add_input(name, shape, Dtype::F32, true)
    }

    /// A trained tensor that no checkpoint has.
    pub fn parameter<'g>(&'g self, name: &str, shape: &[usize]) -> Tensor<'g>
    where
        'w: 'g,
    {
        self.named(name, shape, Origin::Parameter(name.to_owned()))
    }

    /// Integers that the caller writes once per picture.
    pub fn input_u32<'g>(&'g self, name: &str, shape: &[usize]) -> Tensor<'g>
    where
        'w: 'g,
    {
        self.add_input(name, shape, Dtype::U32, false)
    }

    /// The number of the present step, `[1]`.
    pub fn step_number<'g>(&'g self) -> Tensor<'g>
    where
        'w: 'g,
    {
        self.add_input("step", &[1], Dtype::U32, true)
    }

    /// Names a tensor that the caller will read.
    pub fn output(&self, name: &str, tensor: Tensor<'_>) {
        self.state.borrow_mut().outputs.push((name.to_owned(), tensor.id));
    }

    /// After every step, copies `from` to the varying input `to`. Several feeds are made in the order recorded.
    #[track_caller]
    pub fn feed(&self, from: Tensor<'_>, to: Tensor<'_>) {
        let wrong = {
            let state = self.state.borrow();
            let (source, target) = (&state.values[from.id.0], &state.values[to.id.0]);
            let varies = matches!(target.origin, Origin::Input { varies: true, .. });
            let mut root = from.id;
            while let Origin::Alias(of) = state.values[root.0].origin {
                root = of;
            }
            let fits = varies && source.shape == target.shape && source.dtype == target.dtype && root != to.id;
            (!fits).then(|| format!("feed: {:?} cannot become {:?}, {:?}", source.shape, target.shape, target.origin))
        };
        match wrong {
            Some(reason) => self.complain_shape(&line(), reason),
            None => self.state.borrow_mut().feeds.push((from.id, to.id)),
        }
    }

    /// Ends the recording: steps that do not vary move to the front, neighbouring steps are fused.
    ///
    /// # Errors
    /// The first complaint of the recording: a weight that is missing or of another shape, or shapes that
    /// contradict each other, with the line of the model that asked.
    pub fn finish(self) -> Result<Plan> {
        let mut plan = self.finish_unfused()?;
        super::fuse::fuse(&mut plan);
        Ok(plan)
    }

    /// Ends the recording of a plan that is to be [differentiated](super::differentiate()): fuses like [`Graph::finish`] what
    /// has a gradient as one step.
    ///
    /// # Errors
    /// As for [`Graph::finish`].
    pub fn finish_to_train(self) -> Result<Plan> {
        let mut plan = self.finish_unfused()?;
        super::fuse::fuse_to_train(&mut plan);
        Ok(plan)
    }

    /// Ends the recording like [`Graph::finish`], but fuses nothing: for tests of fusions, and for finding out
    /// whether one of them is at fault.
    ///
    /// # Errors
    /// As for [`Graph::finish`].
    pub fn finish_unfused(self) -> Result<Plan> {
        let state = self.state.into_inner();
        if let Some(complaint) = state.complaint {
            return Err(complaint);
        }
        let mut plan = Plan {
            name: self.name,
            values: state.values,
            steps: state.steps,
            once: 0,
            outputs: state.outputs,
            feeds: state.feeds,
            gradients: Vec::new(),
        };
        hoist(&mut plan);
        Ok(plan)
    }

    /// Asked for twice, an input is the same tensor: the caller writes it by its name.
    fn add_input<'g>(&'g self, name: &str, shape: &[usize], dtype: Dtype, varies: bool) -> Tensor<'g>
    where
        'w: 'g,
    {
        let origin = Origin::Input { name: name.to_owned(), varies };
        let named = |v: &Value| matches!(&v.origin, Origin::Input { name: n, .. } if n == name);
        let earlier = self.state.borrow().values.iter().position(named);
        if let Some(id) = earlier {
            let found = self.state.borrow().values[id].clone();
            if found.shape == shape && found.dtype == dtype && found.origin == origin {
                return Tensor { graph: self, id: ValueId(id) };
            }
            let reason = format!("asked for as {shape:?} and as {:?}, or at other times", found.shape);
            self.complain_shape(&format!("input {name}"), reason);
        }
        self.add_value(shape.to_vec(), dtype, origin)
    }

    fn add_value<'g>(&'g self, shape: Vec<usize>, dtype: Dtype, origin: Origin) -> Tensor<'g>
    where
        'w: 'g,
    {
        let mut state = self.state.borrow_mut();
        state.values.push(Value { shape, dtype, origin });
        Tensor { graph: self, id: ValueId(state.values.len() - 1) }
    }

    /// A checkpoint's or trained tensor. Asked for twice, it is the same value.
    fn named<'g>(&'g self, name: &str, shape: &[usize], origin: Origin) -> Tensor<'g>
    where
        'w: 'g,
    {
        let known = self.state.borrow().weights.get(name).copied();
        if let Some(id) = known.filter(|id| self.state.borrow().values[id.0].shape == shape) {
            return Tensor { graph: self, id };
        }
        let tensor = self.add_value(shape.to_vec(), Dtype::F32, origin);
        self.state.borrow_mut().weights.insert(name.to_owned(), tensor.id);
        tensor
    }

    fn complain(&self, error: impl FnOnce() -> Error) {
        let mut state = self.state.borrow_mut();
        if state.complaint.is_none() {
            state.complaint = Some(error());
        }
    }

    pub(super) fn complain_shape(&self, at: &str, reason: String) {
        self.complain(|| Error::Shape { at: format!("{}, {at}", self.name), reason });
    }

    /// Appends a step. After a complaint the tensor returned has the shape of the first input: the recording goes
    /// on so that model code needs no exits, and its result is thrown away.
    pub(super) fn record<'g>(&'g self, op: impl Into<Op>, inputs: &[Tensor<'_>], label: String) -> Tensor<'g>
    where
        'w: 'g,
    {
        let op = op.into();
        let shape = {
            let state = self.state.borrow();
            let shapes: Vec<&[usize]> = inputs.iter().map(|t| state.values[t.id.0].shape.as_slice()).collect();
            let elements = inputs.iter().map(|t| state.values[t.id.0].dtype);
            let typed = check_dtypes(&op, elements);
            typed.and_then(|()| op.shape(&shapes)).map_err(|reason| (reason, shapes[0].to_vec()))
        };
        let shape = shape.unwrap_or_else(|(reason, fallback)| {
            self.complain_shape(&label, reason);
            fallback
        });
        let output = self.add_value(shape, Dtype::F32, Origin::Computed);
        let inputs = inputs.iter().map(|t| t.id).collect();
        self.state.borrow_mut().steps.push(Step { op, inputs, outputs: vec![output.id], label });
        output
    }
}

/// u32 inputs are row indices, seeds and step numbers; all others are f32.
fn check_dtypes(op: &Op, inputs: impl Iterator<Item = Dtype>) -> std::result::Result<(), String> {
    for (i, found) in inputs.enumerate() {
        let whole = match op {
            Op::Embed(_) => i == 1,
            Op::SamplerStep(step) => step.noise.words().is_some() && i >= 3,
            _ => false,
        };
        let wanted = if whole { Dtype::U32 } else { Dtype::F32 };
        if found != wanted {
            return Err(format!("{}: input {i} holds {found:?} where {wanted:?} is needed", op.name()));
        }
    }
    Ok(())
}

/// Moves every step that does not depend on a varying input to the front, keeping the order.
fn hoist(plan: &mut Plan) {
    let vary = |v: &Value| matches!(v.origin, Origin::Input { varies: true, .. } | Origin::Parameter(_));
    let mut varies: Vec<bool> = plan.values.iter().map(vary).collect();
    let (mut once, mut each) = (Vec::new(), Vec::new());
    for step in std::mem::take(&mut plan.steps) {
        let varying = step.inputs.iter().any(|&i| varies[plan.root(i).0]);
        step.outputs.iter().for_each(|output| varies[output.0] = varying);
        if varying { &mut each } else { &mut once }.push(step);
    }
    plan.once = once.len();
    plan.steps = once;
    plan.steps.append(&mut each);
}

impl<'g> Weights<'g> {
    /// One level down.
    pub fn at(&self, name: impl std::fmt::Display) -> Weights<'g> {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Weights { graph: self.graph, path }
    }

    /// One of several spellings of a level: the first below which the source has a tensor `probe`, or else the first.
    /// An empty spelling is this level itself.
    pub fn first_of(&self, spellings: &[&str], probe: &str) -> Weights<'g> {
        let below = |spelling: &&str| if spelling.is_empty() { self.clone() } else { self.at(spelling) };
        let mut levels = spellings.iter().map(below);
        let there = levels.clone().find(|level| self.graph.source.find(&level.at(probe).path).is_some());
        there.or_else(|| levels.next()).unwrap_or_else(|| self.clone())
    }

    /// The tensor `name` below the path, which must have this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Tensor<'g> {
        let full = self.at(name).path;
        if let Err(error) = self.graph.source.require(&full, shape) {
            self.graph.complain(|| error);
        }
        let is_trained = self.graph.trained.is_some_and(|trained| (trained.tensors)(&full));
        let origin = if is_trained { Origin::Parameter(full.clone()) } else { Origin::Weight(full.clone()) };
        self.graph.named(&full, shape, origin)
    }
}

/// The line of the model that called, as a label.
#[track_caller]
pub(super) fn line() -> String {
    let caller = Location::caller();
    let file = caller.file().rsplit(['/', '\\']).next().unwrap_or_default();
    format!("{file}:{}", caller.line())
}

impl<'g> Tensor<'g> {
    /// Its size in every dimension.
    pub fn shape(&self) -> Vec<usize> {
        self.graph.state.borrow().values[self.id.0].shape.clone()
    }

    /// Size of one dimension; 1 beyond the last.
    pub fn dim(&self, axis: usize) -> usize {
        self.graph.state.borrow().values[self.id.0].shape.get(axis).copied().unwrap_or(1)
    }

    /// Size of the last dimension.
    pub fn channels(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
    }

    /// The same elements under another shape.
    #[track_caller]
    pub fn reshape(self, shape: &[usize]) -> Tensor<'g> {
        let own = self.shape();
        if own.iter().product::<usize>() != shape.iter().product::<usize>() {
            self.graph.complain_shape(&line(), format!("{own:?} cannot be read as {shape:?}"));
        }
        let element = self.graph.state.borrow().values[self.id.0].dtype;
        self.graph.add_value(shape.to_vec(), element, Origin::Alias(self.id))
    }

    /// `x W^T + bias` with `weight [width, K]` and `bias [width]` below `w`.
    pub fn linear(self, w: Weights<'g>, width: usize) -> Tensor<'g> {
        let inputs = [self, w.tensor("weight", &[width, self.channels()]), w.tensor("bias", &[width])];
        let y = self.graph.record(Linear { bias: true, ..Linear::default() }, &inputs, w.path.clone());
        self.adapted(y, w, &[self.channels()], None)
    }

    /// `x W^T` with `weight [width, K]` below `w`.
    pub fn project(self, w: Weights<'g>, width: usize) -> Tensor<'g> {
        let inputs = [self, w.tensor("weight", &[width, self.channels()])];
        let y = self.graph.record(Linear::default(), &inputs, w.path.clone());
        self.adapted(y, w, &[self.channels()], None)
    }

    /// A 3x3 convolution with a border of zeros: `weight [width, C, 3, 3]`, `bias [width]`.
    pub fn conv3x3(self, w: Weights<'g>, width: usize) -> Tensor<'g> {
        self.conv(w, width, 3, 1, [1, 1], true)
    }

    /// A 1x1 convolution.
    pub fn conv1x1(self, w: Weights<'g>, width: usize) -> Tensor<'g> {
        self.conv(w, width, 1, 1, [0, 0], true)
    }

    /// Any square convolution.
    pub fn conv(
        self,
        w: Weights<'g>,
        width: usize,
        side: usize,
        stride: usize,
        padding: [usize; 2],
        bias: bool,
    ) -> Tensor<'g> {
        let mut inputs = vec![self, w.tensor("weight", &[width, self.channels(), side, side])];
        if bias {
            inputs.push(w.tensor("bias", &[width]));
        }
        let plain = Conv2d { stride, padding, bias: false, shift: false, residual: false, behind: false, table: false };
        let y = self.graph.record(Conv2d { bias, ..plain.clone() }, &inputs, w.path.clone());
        self.adapted(y, w, &[self.channels(), side, side], Some(plain))
    }

    /// Group normalisation with `weight` and `bias` below `w`.
    pub fn group_norm(self, w: Weights<'g>, groups: usize, eps: f32) -> Tensor<'g> {
        let c = self.channels();
        let inputs = [self, w.tensor("weight", &[c]), w.tensor("bias", &[c])];
        self.graph.record(
            GroupNorm {
                groups,
                eps,
                style: false,
                activation: None,
                statistics: Vec::new(),
                behind: false,
                table: false,
            },
            &inputs,
            w.path,
        )
    }

    /// Layer normalisation with `weight` and `bias` below `w`.
    pub fn layer_norm(self, w: Weights<'g>, eps: f32) -> Tensor<'g> {
        let c = self.channels();
        let inputs = [self, w.tensor("weight", &[c]), w.tensor("bias", &[c])];
        self.graph.record(LayerNorm { eps }, &inputs, w.path)
    }

    /// Attention of `self` (queries) over `own` keys and values, after `extra` ones; see [`Attention`].
    #[track_caller]
    pub fn attend(
        self,
        own: (Tensor<'g>, Tensor<'g>),
        extra: Option<(Tensor<'g>, Tensor<'g>)>,
        mask: Option<Tensor<'g>>,
        heads: usize,
        causal: bool,
    ) -> Tensor<'g> {
        let mut inputs = vec![self, own.0, own.1];
        inputs.extend(extra.into_iter().flat_map(|(k, v)| [k, v]));
        inputs.extend(mask);
        let op = Attention { heads, causal, extra: extra.is_some(), mask: mask.is_some() };
        self.graph.record(op, &inputs, line())
    }

    #[track_caller]
    fn pointwise(self, op: Pointwise, other: Option<Tensor<'g>>) -> Tensor<'g> {
        let mut inputs = vec![self];
        inputs.extend(other);
        self.graph.record(op, &inputs, line())
    }

    /// `x * sigmoid(x)`.
    #[track_caller]
    pub fn silu(self) -> Tensor<'g> {
        self.activate(Activation::Silu)
    }

    /// Any activation.
    #[track_caller]
    pub fn activate(self, activation: Activation) -> Tensor<'g> {
        self.pointwise(Pointwise::Activation(activation), None)
    }

    /// Element-wise product; `other` may lack leading dimensions.
    #[track_caller]
    pub fn multiply(self, other: Tensor<'g>) -> Tensor<'g> {
        self.pointwise(Pointwise::Multiply, Some(other))
    }

    /// Adds `shift [N, C]` to all positions of each image.
    #[track_caller]
    pub fn add_channels(self, shift: Tensor<'g>) -> Tensor<'g> {
        self.pointwise(Pointwise::AddChannels, Some(shift))
    }

    /// `x * (1 + scale) + shift` with `style [N, 2C]` = scale, shift.
    #[track_caller]
    pub fn scale_shift(self, style: Tensor<'g>) -> Tensor<'g> {
        self.pointwise(Pointwise::ScaleShift, Some(style))
    }

    /// `x * scale + shift` with maps `[N, h, w, C]` of a grid that is coarser by one factor in both directions.
    #[track_caller]
    pub fn modulate(self, scale: Tensor<'g>, shift: Tensor<'g>) -> Tensor<'g> {
        self.graph.record(Modulate { activation: None }, &[self, scale, shift], line())
    }

    /// The first half of every row, scaled by the GELU of the second.
    #[track_caller]
    pub fn geglu(self) -> Tensor<'g> {
        self.graph.record(Geglu, &[self], line())
    }

    /// Limits every element.
    #[track_caller]
    pub fn clamp(self, low: f32, high: f32) -> Tensor<'g> {
        self.pointwise(Pointwise::Clamp { low, high }, None)
    }

    /// Tensors one after the other.
    #[track_caller]
    pub fn concat(parts: &[Tensor<'g>], axis: usize) -> Tensor<'g> {
        parts[0].graph.record(Concat { axis }, parts, line())
    }

    /// The whole tensor `times` over along its first dimension.
    #[track_caller]
    pub fn repeat(self, times: usize) -> Tensor<'g> {
        if times == 1 { self } else { Tensor::concat(&vec![self; times], 0) }
    }

    /// Entries `start..start + length` of a dimension.
    #[track_caller]
    pub fn slice(self, axis: usize, start: usize, length: usize) -> Tensor<'g> {
        self.graph.record(Slice { axis, start, step: 1, length }, &[self], line())
    }

    /// `length` entries of a dimension, `step` apart.
    #[track_caller]
    pub fn slice_by(self, axis: usize, start: usize, step: usize, length: usize) -> Tensor<'g> {
        self.graph.record(Slice { axis, start, step, length }, &[self], line())
    }

    /// Each pixel becomes four.
    #[track_caller]
    pub fn double(self) -> Tensor<'g> {
        self.graph.record(Resize::NearestDouble, &[self], line())
    }

    /// Each 2x2 square becomes its mean.
    #[track_caller]
    pub fn halve(self) -> Tensor<'g> {
        self.graph.record(Resize::MeanHalve, &[self], line())
    }

    /// Bicubic resize to `[height, width]`.
    #[track_caller]
    pub fn bicubic(self, height: usize, width: usize) -> Tensor<'g> {
        self.graph.record(Resize::Bicubic { height, width }, &[self], line())
    }

    /// Rows of this table `[V, D]` by `ids [B, T]`.
    #[track_caller]
    pub fn lookup(self, ids: Tensor<'g>) -> Tensor<'g> {
        self.graph.record(Embed::Lookup, &[self, ids], line())
    }

    /// Token `position[b]` of each sequence.
    #[track_caller]
    pub fn token(self, position: Tensor<'g>) -> Tensor<'g> {
        self.graph.record(Embed::Token, &[self, position], line())
    }

    /// Row `step` of a table whose first dimension counts the steps.
    #[track_caller]
    pub fn row(self, step: Tensor<'g>) -> Tensor<'g> {
        self.graph.record(Embed::Row, &[self, step], line())
    }

    /// One step of a sampler without noise with `self` as the model's output; see [`Multistep`].
    #[track_caller]
    pub fn multistep(
        self,
        rule: Multistep,
        x_t: Tensor<'g>,
        coefficients: Tensor<'g>,
        history: Tensor<'g>,
    ) -> Tensor<'g> {
        self.graph.record(rule, &[self, x_t, coefficients, history], line())
    }

    /// One step of the diffusion process with `self` as the model's output and, last, what its noise comes from; see
    /// [`SamplerStep`].
    #[track_caller]
    pub fn sampler_step(
        self,
        rule: SamplerStep,
        x_t: Tensor<'g>,
        coefficients: Tensor<'g>,
        noise: &[Tensor<'g>],
    ) -> Tensor<'g> {
        self.graph.record(rule, &[&[self, x_t, coefficients], noise].concat(), line())
    }
}

impl<'g> Add for Tensor<'g> {
    type Output = Tensor<'g>;

    /// Element-wise sum; the right side may lack leading dimensions.
    #[track_caller]
    fn add(self, other: Tensor<'g>) -> Tensor<'g> {
        self.pointwise(Pointwise::Add, Some(other))
    }
}
