//! Which values may share memory.
//!
//! Every value lives from the step that writes it to the last step that reads it, both included, so that no step
//! writes over what it reads. Inputs, outputs and what the replayed part takes from the first part live to the
//! end. Values are placed largest first, each in the first slot whose present tenants it never meets; a slot is
//! as large as its largest tenant.
//!
//! Slots rather than offsets into one arena, because WebGPU tracks use per whole buffer (a dispatch may not read
//! one range of a buffer and write another); back ends that can, place the slots in one allocation.

use super::{Origin, Plan, ValueId};

/// The assignment of values to slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The slot of each value, by value index; aliases have their root's, weights none.
    pub of: Vec<Option<usize>>,
    /// The size of each slot in words of four bytes.
    pub words: Vec<usize>,
}

impl Slots {
    /// Bytes of all slots together.
    pub fn bytes(&self) -> u64 {
        4 * self.words.iter().map(|&n| n as u64).sum::<u64>()
    }
}

/// First and last step at which each value must keep its memory; `None` for weights and aliases.
pub(super) fn lifetimes(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    const ALWAYS: usize = usize::MAX;
    let mut spans: Vec<Option<(usize, usize)>> =
        plan.values.iter().map(|v| matches!(v.origin, Origin::Input { .. }).then_some((0, ALWAYS))).collect();
    let stretch = |spans: &mut Vec<Option<(usize, usize)>>, id: ValueId, to: usize| {
        if let Some(span) = &mut spans[plan.root(id).0] {
            span.1 = span.1.max(to);
        }
    };
    for (i, step) in plan.steps.iter().enumerate() {
        for &input in &step.inputs {
            let written_once = spans[plan.root(input).0].is_some_and(|(from, _)| from < plan.once);
            let to = if i >= plan.once && written_once { ALWAYS } else { i };
            stretch(&mut spans, input, to);
        }
        for output in &step.outputs {
            spans[output.0] = Some((i, i));
        }
    }
    for (_, id) in &plan.outputs {
        stretch(&mut spans, *id, ALWAYS);
    }
    for (from, _) in &plan.feeds {
        stretch(&mut spans, *from, ALWAYS);
    }
    spans
}

/// Assigns a slot to every value that needs memory.
pub fn assign(plan: &Plan) -> Slots {
    let spans = lifetimes(plan);
    let mut order: Vec<usize> = (0..spans.len()).filter(|&v| spans[v].is_some()).collect();
    order.sort_by_key(|&v| std::cmp::Reverse(plan.values[v].size_bytes()));
    let mut tenants: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut sizes = Vec::new();
    let mut of = vec![None; plan.values.len()];
    for v in order {
        let (from, to) = spans[v].expect("only values with a lifetime were kept");
        let free = tenants.iter().position(|t| t.iter().all(|&(f, l)| to < f || l < from));
        let slot = free.unwrap_or_else(|| {
            tenants.push(Vec::new());
            sizes.push(plan.values[v].size_bytes() / 4);
            tenants.len() - 1
        });
        tenants[slot].push((from, to));
        of[v] = Some(slot);
    }
    for v in 0..of.len() {
        of[v] = of[plan.root(ValueId(v)).0];
    }
    Slots { of, words: sizes }
}
