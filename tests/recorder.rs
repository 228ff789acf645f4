//! The recorder: what it joins, what it leaves alone, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::close::{Rounding, close};
use support::{Random, Tensors, replay};
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::error::Error;
use unclip::ops::{Activation, Op};
use unclip::plan::{Graph, Plan, Tensor, WeightSource};

fn cpu() -> Cpu {
    Cpu::with_isa(1, Isa::detect()).unwrap()
}

/// Weights for the small models below.
fn block_weights() -> Tensors {
    let (mut weights, mut random) = (Tensors::default(), Random(11));
    for (name, shape) in [
        ("linear.weight", &[8, 12][..]),
        ("linear.bias", &[8]),
        ("conv.weight", &[8, 12, 3, 3]),
        ("conv.bias", &[8]),
        ("norm.weight", &[12]),
        ("norm.bias", &[12]),
    ] {
        weights.insert_random(name, shape, &mut random);
    }
    weights
}

/// A model that the rules are tried on; it gets tokens, pictures and whatever else may be added to them.
struct Parts<'g> {
    /// `[2, 5, 12]`
    tokens: Tensor<'g>,
    /// `[2, 5, 8]`
    skip: Tensor<'g>,
    /// `[2, 3, 4, 12]`
    picture: Tensor<'g>,
    /// `[2, 3, 4, 8]`
    picture_skip: Tensor<'g>,
    /// `[2, 8]`
    shift: Tensor<'g>,
    /// `[2, 24]`
    style: Tensor<'g>,
    graph: &'g Graph<'g>,
}

impl<'g> Parts<'g> {
    fn linear(&self) -> Tensor<'g> {
        self.tokens.linear(self.graph.weights().at("linear"), 8)
    }

    fn conv(&self) -> Tensor<'g> {
        self.picture.conv3x3(self.graph.weights().at("conv"), 8)
    }

    fn norm(&self) -> Tensor<'g> {
        self.picture.group_norm(self.graph.weights().at("norm"), 4, 1e-5)
    }
}

type Model = for<'g> fn(&Parts<'g>) -> Tensor<'g>;

fn model_plan(model: Model, weights: &Tensors, fused: bool) -> Plan {
    let graph = Graph::new("block", weights);
    {
        let parts = Parts {
            tokens: graph.step_input("tokens", &[2, 5, 12]),
            skip: graph.step_input("skip", &[2, 5, 8]),
            picture: graph.step_input("picture", &[2, 3, 4, 12]),
            picture_skip: graph.step_input("picture_skip", &[2, 3, 4, 8]),
            shift: graph.input("shift", &[2, 8]),
            style: graph.input("style", &[2, 24]),
            graph: &graph,
        };
        let y = model(&parts);
        graph.output("y", y);
    }
    if fused { graph.finish() } else { graph.finish_unfused() }.expect("the model is correct")
}

/// Runs a model with and without fusions; the fused plan must have `steps` steps and nearly the same results.
fn check_fusion(name: &str, model: Model, steps: usize) -> Plan {
    let weights = block_weights();
    let (fused, unfused) = (model_plan(model, &weights, true), model_plan(model, &weights, false));
    assert_eq!(fused.steps.len(), steps, "{name}:\n{fused}");
    let run = |plan: &Plan| replay(cpu().prepare(plan.clone(), &weights).unwrap().as_mut());
    for (got, want) in run(&fused).iter().zip(run(&unfused)) {
        let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
        close(got, &want, &Rounding::f32(108)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    fused
}

#[test]
fn linear_takes_an_activation_and_then_a_residual() {
    for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        let model: Model = match activation {
            Activation::Silu => |p| p.linear().activate(Activation::Silu),
            Activation::Gelu => |p| p.linear().activate(Activation::Gelu),
            Activation::QuickGelu => |p| p.linear().activate(Activation::QuickGelu),
        };
        check_fusion("activation", model, 1);
    }
    check_fusion("residual on the right", |p| p.linear() + p.skip, 1);
    check_fusion("residual on the left", |p| p.skip + p.linear(), 1);
    let plan = check_fusion("both", |p| p.skip + p.linear().silu(), 1);
    let Op::Linear(op) = &plan.steps[0].op else { panic!("a linear layer stays one") };
    assert!(op.bias && op.residual && op.activation == Some(Activation::Silu));
}

#[test]
fn conv2d_takes_a_shift_and_then_a_residual() {
    check_fusion("shift", |p| p.conv().add_channels(p.shift), 1);
    check_fusion("residual on the right", |p| p.conv() + p.picture_skip, 1);
    check_fusion("residual on the left", |p| p.picture_skip + p.conv(), 1);
    let plan = check_fusion("both", |p| p.picture_skip + p.conv().add_channels(p.shift), 1);
    let Op::Conv2d(op) = &plan.steps[0].op else { panic!("a convolution stays one") };
    assert!(op.bias && op.shift && op.residual);
}

#[test]
fn group_norm_takes_a_style_and_then_an_activation() {
    check_fusion("activation", |p| p.norm().silu(), 1);
    check_fusion("style", |p| p.norm().scale_shift(p.style), 1);
    check_fusion("both", |p| p.norm().scale_shift(p.style).silu(), 1);
    check_fusion(
        "both, then a convolution",
        |p| {
            let h = p.norm().scale_shift(p.style).silu().conv3x3(p.graph.weights().at("conv"), 8);
            p.picture_skip + h.add_channels(p.shift)
        },
        2,
    );
}

#[test]
fn what_an_operation_cannot_take_along_stays_a_step() {
    check_fusion("activation after the residual", |p| (p.linear() + p.skip).silu(), 2);
    check_fusion("second residual", |p| p.linear() + p.skip + p.skip, 2);
    check_fusion("shift after the residual", |p| (p.conv() + p.picture_skip).add_channels(p.shift), 2);
    check_fusion("activation of a convolution", |p| p.conv().silu(), 2);
    check_fusion("second activation", |p| p.linear().silu().silu(), 2);
    check_fusion("style after the activation", |p| p.norm().silu().scale_shift(p.style), 2);
    check_fusion("residual that repeats", |p| p.linear() + p.linear().slice(0, 0, 1).reshape(&[5, 8]), 4);
    check_fusion("product that repeats", |p| p.skip + p.linear().slice(0, 0, 1).reshape(&[5, 8]), 3);
    check_fusion(
        "a style made by the normalised",
        |p| p.skip.scale_shift(p.linear().slice(1, 0, 2).reshape(&[2, 16])),
        3,
    );
}

#[test]
fn a_value_with_another_reader_keeps_its_step() {
    check_fusion(
        "read twice",
        |p| {
            let h = p.linear();
            h.silu() + h
        },
        3,
    );
    check_fusion(
        "added to itself",
        |p| {
            let h = p.linear();
            h + h
        },
        2,
    );
    check_fusion(
        "read under another shape",
        |p| {
            let h = p.linear();
            h.silu() + h.reshape(&[10, 8]).silu().reshape(&[2, 5, 8])
        },
        4,
    );
    check_fusion(
        "an output",
        |p| {
            let h = p.linear();
            p.graph.output("h", h);
            h.silu()
        },
        2,
    );
    check_fusion(
        "fed",
        |p| {
            let h = p.linear();
            p.graph.feed(h, p.skip);
            h.silu() + p.skip
        },
        3,
    );
}

#[test]
fn a_once_step_is_never_joined_to_a_varying_one() {
    let plan = check_fusion(
        "residual",
        |p| {
            let once = p.graph.input("text", &[2, 5, 12]).linear(p.graph.weights().at("linear"), 8);
            once + p.skip
        },
        2,
    );
    assert_eq!(plan.once, 1);
    let plan = check_fusion(
        "style",
        |p| {
            let once = p.graph.input("image", &[2, 3, 12]).group_norm(p.graph.weights().at("norm"), 4, 1e-5);
            once.scale_shift(p.tokens.slice(1, 0, 2).reshape(&[2, 24])).silu()
        },
        4,
    );
    assert_eq!(plan.once, 1);
}

/// The complaint of a model that is wrong.
fn complaint(model: Model) -> Error {
    let weights = block_weights();
    let graph = Graph::new("block", &weights);
    {
        let parts = Parts {
            tokens: graph.step_input("tokens", &[2, 5, 12]),
            skip: graph.step_input("skip", &[2, 5, 8]),
            picture: graph.step_input("picture", &[2, 3, 4, 12]),
            picture_skip: graph.step_input("picture_skip", &[2, 3, 4, 8]),
            shift: graph.input("shift", &[2, 8]),
            style: graph.input("style", &[2, 24]),
            graph: &graph,
        };
        let y = model(&parts);
        graph.output("y", y);
    }
    graph.finish().expect_err("the model is wrong")
}

fn names_all(error: &Error, words: &[&str]) {
    let message = error.to_string();
    assert!(words.iter().all(|w| message.contains(w)), "{message}");
}

#[test]
fn a_missing_tensor_is_named_with_the_shape_it_should_have() {
    let error = complaint(|p| p.tokens.linear(p.graph.weights().at("up_blocks").at(3), 8));
    assert!(matches!(error, Error::Weights { .. }));
    names_all(&error, &["memory", "up_blocks.3.weight", "[8, 12]", "no such tensor"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let error = complaint(|p| p.tokens.linear(p.graph.weights().at("linear"), 9));
    names_all(&error, &["linear.weight", "expected shape [9, 12]", "found shape [8, 12]"]);
    let again = complaint(|p| {
        p.linear();
        p.tokens.linear(p.graph.weights().at("linear"), 9)
    });
    assert_eq!(error.to_string(), again.to_string(), "asked for before in its own shape");
}

#[test]
fn shapes_that_do_not_fit_name_the_line_of_the_model() {
    let error = complaint(|p| p.tokens + p.skip);
    assert!(matches!(error, Error::Shape { .. }));
    names_all(&error, &["block, recorder.rs:", "add", "[2, 5, 12]", "[2, 5, 8]"]);
    names_all(&complaint(|p| p.tokens.reshape(&[7])), &["recorder.rs:", "[2, 5, 12]", "[7]"]);
    names_all(&complaint(|p| p.tokens.slice(1, 4, 2)), &["recorder.rs:", "slice", "[2, 5, 12]"]);
    names_all(&complaint(|p| Tensor::concat(&[p.tokens, p.skip], 1)), &["recorder.rs:", "concat"]);
    let other = complaint(|p| p.tokens.attend((p.tokens, p.tokens), None, None, 5, false));
    names_all(&other, &["recorder.rs:", "attention", "12", "5 heads"]);
}

#[test]
fn the_first_complaint_is_the_one_returned() {
    let error = complaint(|p| {
        let wrong = p.tokens + p.skip;
        wrong.linear(p.graph.weights().at("nowhere"), 4).reshape(&[99])
    });
    names_all(&error, &["recorder.rs:", "add"]);
}

#[test]
fn row_numbers_and_numbers_are_not_mistaken_for_each_other() {
    let error = complaint(|p| p.style.lookup(p.graph.input("ids", &[2, 7])));
    names_all(&error, &["recorder.rs:", "embed", "F32", "U32"]);
    let error = complaint(|p| p.graph.input_u32("ids", &[2, 7]).silu());
    names_all(&error, &["recorder.rs:", "silu", "F32", "U32"]);
}

#[test]
fn a_feed_must_fit_a_varying_input() {
    for model in [
        (|p| {
            p.graph.feed(p.tokens, p.skip);
            p.skip
        }) as Model,
        |p| {
            p.graph.feed(p.shift.silu(), p.shift);
            p.skip
        },
        |p| {
            p.graph.feed(p.skip, p.skip.silu());
            p.skip
        },
        |p| {
            p.graph.feed(p.skip, p.skip);
            p.skip
        },
        |p| {
            p.graph.feed(p.skip.reshape(&[80]).reshape(&[2, 5, 8]), p.skip);
            p.skip
        },
    ] {
        names_all(&complaint(model), &["recorder.rs:", "feed"]);
    }
}

#[test]
fn an_input_asked_for_twice_is_one_input() {
    let plan = check_fusion("twice", |p| p.graph.step_input("skip", &[2, 5, 8]) + p.skip, 1);
    assert_eq!(plan.steps[0].inputs[0], plan.steps[0].inputs[1]);
    names_all(&complaint(|p| p.graph.step_input("skip", &[2, 5, 9])), &["input skip", "[2, 5, 9]", "[2, 5, 8]"]);
    names_all(&complaint(|p| p.graph.input("skip", &[2, 5, 8])), &["input skip"]);
}

#[test]
fn a_weight_can_be_an_output_and_be_fed() {
    let weights = block_weights();
    let graph = Graph::new("block", &weights);
    {
        let state = graph.step_input("state", &[8]);
        let bias = graph.weights().at("linear").tensor("bias", &[8]);
        graph.output("bias", bias.reshape(&[2, 4]));
        graph.feed(bias, state);
    }
    let plan = graph.finish().unwrap();
    let mut executable = cpu().prepare(plan, &weights).unwrap();
    executable.run_step(0).unwrap();
    let bias = weights.load("linear.bias").unwrap().to_f32();
    assert_eq!(executable.read("bias").unwrap(), bias);
    assert_eq!(executable.read("state").unwrap(), bias);
}
