//! Half-precision storage: the same plan with most of its values in half the memory.
//!
//! Precision belongs to the plan, not to each operation. Kernels compute in f32 whatever they read and
//! write; [`narrow`] decides what is stored in half precision, [`Dtype::F16`] or [`Dtype::Bf16`]. What the caller
//! writes, the sampler's state, masks and small vectors stay as they are. Where an operation wants the other type, a
//! conversion follows the step that writes the value.

use super::{Dtype, Origin, Plan, Step, Value, ValueId};
use crate::ops::{Convert, Operand, Operation, StorageRule};
use std::collections::HashMap;

/// The plan with values and matmul weights in a 16-bit storage type wherever its operations allow. With f32 storage the
/// plan stays as it was recorded.
pub fn narrow(mut plan: Plan, storage: Dtype) -> Plan {
    choose(&mut plan, storage);
    let mut casts = Casts::default();
    let mut steps = std::mem::take(&mut plan.steps);
    for step in &mut steps {
        let output = step.output();
        for (i, input) in step.inputs.iter_mut().enumerate() {
            let wanted = match step.op.storage_rule(Operand::Input(i)) {
                StorageRule::Storage => storage,
                StorageRule::LikeOutput => plan.values[output.0].dtype,
                StorageRule::F32 => Dtype::F32,
                StorageRule::Any => continue,
            };
            *input = casts.of(&mut plan, *input, wanted);
        }
    }
    for feed in 0..plan.feeds.len() {
        let (from, to) = plan.feeds[feed];
        let wanted = plan.values[to.0].dtype;
        plan.feeds[feed].0 = casts.of(&mut plan, from, wanted);
    }
    insert(&mut plan, steps, casts.steps);
    plan
}

/// Chooses the element type of every value. Inputs stay as the caller writes them.
fn choose(plan: &mut Plan, storage_type: Dtype) {
    let mut single = vec![false; plan.values.len()];
    let mut storage = vec![false; plan.values.len()];
    for step in &plan.steps {
        for (i, &input) in step.inputs.iter().enumerate() {
            let readers = match step.op.storage_rule(Operand::Input(i)) {
                StorageRule::F32 => &mut single,
                StorageRule::Storage | StorageRule::LikeOutput | StorageRule::Any => &mut storage,
            };
            readers[plan.root(input).0] = true;
        }
    }
    for (from, _) in &plan.feeds {
        single[plan.root(*from).0] = true;
    }
    let mut narrowed: Vec<bool> =
        (0..plan.values.len()).map(|v| matches!(plan.values[v].origin, Origin::Weight(_)) && storage[v]).collect();
    for step in &plan.steps {
        narrowed[step.output().0] = match step.op.storage_rule(Operand::Output(0)) {
            StorageRule::Storage => true,
            StorageRule::F32 => false,
            StorageRule::LikeOutput | StorageRule::Any => !single[step.output().0],
        };
    }
    for v in 0..plan.values.len() {
        if narrowed[plan.root(ValueId(v)).0] && plan.values[v].dtype == Dtype::F32 {
            plan.values[v].dtype = storage_type;
        }
    }
}

/// Copies of values in the other element type, made where they are first asked for.
#[derive(Default)]
struct Casts {
    /// By the value copied, which may be an alias.
    made: HashMap<ValueId, ValueId>,
    /// Each with the value that it copies.
    steps: Vec<(ValueId, Step)>,
}

impl Casts {
    /// `id` in the wanted type, under its own shape.
    fn of(&mut self, plan: &mut Plan, id: ValueId, wanted: Dtype) -> ValueId {
        let found = plan.values[id.0].dtype;
        if found == wanted || found == Dtype::U32 {
            return id;
        }
        if let Some(&made) = self.made.get(&id) {
            return made;
        }
        let root = plan.root(id);
        let shape = plan.shape(id).to_vec();
        let origin = if root == id { Origin::Computed } else { Origin::Alias(self.of(plan, root, wanted)) };
        plan.values.push(Value { shape, dtype: wanted, origin });
        let made = ValueId(plan.values.len() - 1);
        if root == id {
            let label = format!("to {}", wanted.name());
            self.steps.push((id, Step { op: Convert.into(), inputs: vec![id], outputs: vec![made], label }));
        }
        self.made.insert(id, made);
        made
    }
}

/// Puts each copy right behind the step that wrote its value; copies of inputs and weights begin their part.
fn insert(plan: &mut Plan, steps: Vec<Step>, casts: Vec<(ValueId, Step)>) {
    let mut by_value: HashMap<ValueId, Step> = HashMap::new();
    let (mut once, mut each) = (Vec::new(), Vec::new());
    for (of, cast) in casts {
        match plan.values[of.0].origin {
            Origin::Computed => _ = by_value.insert(of, cast),
            Origin::Input { varies: true, .. } => each.push(cast),
            _ => once.push(cast),
        }
    }
    for (i, step) in steps.into_iter().enumerate() {
        let part = if i < plan.once { &mut once } else { &mut each };
        let cast = by_value.remove(&step.output());
        part.push(step);
        part.extend(cast);
    }
    plan.once = once.len();
    plan.steps = once;
    plan.steps.append(&mut each);
}
