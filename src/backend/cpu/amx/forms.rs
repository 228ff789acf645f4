//! Which values of a plan are kept as operands of the matrix unit.
//!
//! A norm whose output goes into products alone writes it rounded to bf16, in the place and order in which they read it: that
//! saves writing and reading it in f32. The result is the same to the bit, because the product would round it so.

use super::rows::{Geometry, Windows};
use crate::ops::Op;
use crate::plan::{Plan, Step, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// The geometries of a plan.
#[derive(Default)]
pub struct Forms {
    /// Of the left operand of each product, by step.
    products: HashMap<usize, Arc<Geometry>>,
    /// Of the values that are kept as operands.
    kept: HashMap<ValueId, Arc<Geometry>>,
}

impl Forms {
    /// The geometries of all products, and of the values that are operands only.
    pub fn of(plan: &Plan) -> Forms {
        let mut forms = Forms::default();
        for (i, step) in plan.steps.iter().enumerate() {
            if let Some(windows) = windows(plan, step) {
                forms.products.insert(i, Arc::new(Geometry::new(windows)));
            }
        }
        for step in plan.steps.iter().filter(|step| matches!(step.op, Op::GroupNorm(_) | Op::LayerNorm(_))) {
            let value = step.output();
            if let Some(geometry) = forms.only_use(plan, value) {
                forms.kept.insert(value, geometry);
            }
        }
        forms
    }

    /// The geometry in which all steps that read a value read it, if they are products with one and the same.
    fn only_use(&self, plan: &Plan, value: ValueId) -> Option<Arc<Geometry>> {
        let outside = plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from));
        if outside.into_iter().any(|id| plan.root(*id) == value) {
            return None;
        }
        let mut geometry: Option<&Arc<Geometry>> = None;
        for (i, step) in plan.steps.iter().enumerate() {
            for (position, _) in step.inputs.iter().enumerate().filter(|(_, id)| plan.root(**id) == value) {
                let own = self.products.get(&i).filter(|_| position == 0)?;
                if geometry.is_some_and(|other| other.windows() != own.windows()) {
                    return None;
                }
                geometry = Some(own);
            }
        }
        geometry.cloned()
    }

    /// The geometry of a product's left operand.
    pub fn of_product(&self, step: usize) -> Option<&Geometry> {
        self.products.get(&step).map(|geometry| &**geometry)
    }

    /// The geometry of a value that is kept as an operand.
    pub fn of_value(&self, root: ValueId) -> Option<&Geometry> {
        self.kept.get(&root).map(|geometry| &**geometry)
    }

    /// The values that are kept as operands, and the words that they take.
    pub fn kept(&self) -> impl Iterator<Item = (ValueId, usize)> + '_ {
        self.kept.iter().map(|(value, geometry)| (*value, geometry.words()))
    }
}

/// The windows of a product's left operand.
fn windows(plan: &Plan, step: &Step) -> Option<Windows> {
    let (x, output) = (plan.shape(step.inputs[0]), plan.shape(step.output()));
    let dense = |x: &[usize]| Windows::dense(x[..x.len() - 1].iter().product(), x[x.len() - 1]);
    match &step.op {
        Op::Linear(_) => Some(dense(x)),
        Op::Conv2d(op) => {
            let window = plan.shape(step.inputs[1]);
            if window[2..] == [1, 1] && op.stride == 1 && op.padding == [0, 0] {
                return Some(dense(x));
            }
            Some(Windows {
                picture: [x[0], x[1], x[2], x[3]],
                output: [output[1], output[2]],
                window: [window[2], window[3]],
                stride: op.stride,
                padding: op.padding[0],
            })
        }
        _ => None,
    }
}
