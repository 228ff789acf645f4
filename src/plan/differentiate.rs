//! Reverse mode: a recorded plan with the steps that compute the gradients of its trained values.
//!
//! A plan is a list, so its gradient is a longer one. Forwards it is marked which values depend on a trained one; backwards
//! every step that such a value passed through appends the steps of its operation's rule
//! ([`Operation::backward`](crate::ops::Operation::backward)). A second gradient of one value is added to the first. What
//! the backward pass reads of the forward pass is kept by the lifetimes of its values, as anything else that is read later.
//!
//! The order is: record, [`Graph::finish_to_train`](super::Graph::finish_to_train), differentiate. A linear layer and its
//! activation stay two steps where a gradient passes, because the slope is that of the sum between them; fused are they
//! where none does, and so are sums of gradients into the products that make one of them.

use super::{Origin, Plan, Step, Value, ValueId};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Convert, Made, Op, Operation, Pointwise, Reverse, Source};
use std::collections::{HashMap, HashSet};

/// The plan with the gradients of all its [`Origin::Parameter`]s, in [`Plan::gradients`]. `seeds` are pairs of a value and
/// its gradient, which the plan computes or the caller writes: where the backward pass begins.
///
/// # Errors
/// [`Error::Unsupported`] names an operation that has no gradient, or a trained value that no gradient reaches;
/// or nothing is trained.
pub fn differentiate(mut plan: Plan, seeds: &[(ValueId, ValueId)]) -> Result<Plan> {
    let needed = depend_on_trained(&plan);
    let mut backward = Backward { gradients: HashMap::new(), needed };
    for &(value, seed) in seeds {
        backward.add(&mut plan, value, seed, "seed");
    }
    for step in plan.steps.clone().iter().rev() {
        let output = step.output();
        let Some(&gradient) = backward.gradients.get(&output).filter(|_| backward.needed[output.0]) else { continue };
        backward.step(&mut plan, step, gradient)?;
    }
    let written: HashSet<ValueId> = plan.steps[plan.once..].iter().map(Step::output).collect();
    let trained: Vec<(String, ValueId)> = plan.trained().map(|(name, id)| (name.to_owned(), id)).collect();
    if trained.is_empty() {
        let what = format!("{}: training of nothing: no tensor and no layer has a name that was asked for", plan.name);
        return Err(Error::Unsupported { what });
    }
    for (name, value) in trained {
        let Some(&gradient) = backward.gradients.get(&value) else {
            let what = format!("{}: training {name}, on which the loss does not depend", plan.name);
            return Err(Error::Unsupported { what });
        };
        // It is added to the others of its parameter behind the step that writes it.
        let gradient = match written.contains(&plan.root(gradient)) {
            true => gradient,
            false => {
                let shape = plan.shape(gradient).to_vec();
                push_shaped(&mut plan, Convert.into(), vec![gradient], shape, name)
            }
        };
        plan.gradients.push((value, gradient));
    }
    super::fuse::fuse(&mut plan);
    Ok(plan)
}

/// Which values a trained one feeds; aliases as their root.
fn depend_on_trained(plan: &Plan) -> Vec<bool> {
    let mut depends: Vec<bool> = plan.values.iter().map(|v| matches!(v.origin, Origin::Parameter(_))).collect();
    for step in &plan.steps {
        if step.inputs.iter().any(|&input| depends[plan.root(input).0]) {
            step.outputs.iter().for_each(|output| depends[output.0] = true);
        }
    }
    depends
}

/// What the walk backwards has found.
struct Backward {
    /// By root; a gradient may have the shape of any of its aliases.
    gradients: HashMap<ValueId, ValueId>,
    needed: Vec<bool>,
}

impl Backward {
    /// Appends the steps that give the gradients of a step's inputs.
    fn step(&mut self, plan: &mut Plan, step: &Step, gradient: ValueId) -> Result<()> {
        let needed = step.inputs.iter().map(|&input| self.needed[plan.root(input).0]).collect();
        let output = plan.shape(step.output()).to_vec();
        let gradient = shaped(plan, gradient, &output);
        let mut reverse = Reverse::new(plan.input_shapes(step), &output, needed);
        let refused = |reason: String| Error::Unsupported { what: format!("{}, {}: {reason}", plan.name, step.label) };
        step.op.backward(&mut reverse).map_err(refused)?;
        let (made, gradients) = reverse.into_parts();
        let mut ids: Vec<ValueId> = Vec::with_capacity(made.len());
        let of = |ids: &[ValueId], source: Source| match source {
            Source::Input(i) => step.inputs[i],
            Source::Output => step.output(),
            Source::Gradient => gradient,
            Source::Made(i) => ids[i],
        };
        for Made { op, inputs, shape } in made {
            let inputs = inputs.into_iter().map(|source| of(&ids, source)).collect();
            ids.push(push_shaped(plan, op, inputs, shape, step.label.clone()));
        }
        for (input, source) in gradients {
            let value = step.inputs[input];
            if self.needed[plan.root(value).0] {
                self.add(plan, value, of(&ids, source), &step.label);
            }
        }
        Ok(())
    }

    /// Adds a gradient of a value to those that it has.
    fn add(&mut self, plan: &mut Plan, value: ValueId, gradient: ValueId, label: &str) {
        let root = plan.root(value);
        let sum = match self.gradients.get(&root) {
            None => gradient,
            Some(&first) => {
                let shape = plan.shape(gradient).to_vec();
                let first = shaped(plan, first, &shape);
                push_shaped(plan, Pointwise::Add.into(), vec![gradient, first], shape, label.to_owned())
            }
        };
        self.gradients.insert(root, sum);
    }
}

/// The value under this shape.
fn shaped(plan: &mut Plan, id: ValueId, shape: &[usize]) -> ValueId {
    if plan.shape(id) == shape {
        return id;
    }
    plan.values.push(Value { shape: shape.to_vec(), dtype: Dtype::F32, origin: Origin::Alias(id) });
    ValueId(plan.values.len() - 1)
}

/// Appends a step and returns what it writes.
fn push_shaped(plan: &mut Plan, op: Op, inputs: Vec<ValueId>, shape: Vec<usize>, label: String) -> ValueId {
    plan.values.push(Value { shape, dtype: Dtype::F32, origin: Origin::Computed });
    let output = ValueId(plan.values.len() - 1);
    plan.steps.push(Step { op, inputs, outputs: vec![output], label });
    output
}
