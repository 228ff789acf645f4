//! Random models for what must hold of every plan, whatever is in it.

use super::{Random, Tensors};
use proptest::collection::vec;
use proptest::prelude::*;
use unclip::plan::{Graph, Plan, Tensor, WeightSource};

/// One decision of a random model: which operation, on which of the tensors so far.
type Choice = (u8, usize, usize, usize);

/// A random model: its operations, then which tensors are outputs and which are fed back.
#[derive(Clone, Debug)]
pub struct Recipe {
    choices: Vec<Choice>,
    outputs: Vec<usize>,
    feeds: Vec<(usize, usize)>,
}

pub fn recipes() -> impl Strategy<Value = Recipe> {
    let index = 0..1000usize;
    let choices = vec((0..10u8, index.clone(), index.clone(), index.clone()), 1..24);
    (choices, vec(index.clone(), 1..4), vec((index.clone(), index), 0..3))
        .prop_map(|(choices, outputs, feeds)| Recipe { choices, outputs, feeds })
}

/// Weights of all shapes that a random model may ask for.
pub fn weights() -> Tensors {
    let mut weights = Tensors::default();
    let mut random = Random(7);
    for k in 1..=MOST_COLUMNS {
        for n in WIDTHS {
            weights.insert_random(&format!("{k}-{n}.weight"), &[n, k], &mut random);
        }
    }
    for n in WIDTHS {
        weights.insert_random(&format!("{n}.bias"), &[n], &mut random);
    }
    weights
}

const WIDTHS: [usize; 3] = [3, 5, 8];
const MOST_COLUMNS: usize = 16;

/// Records a random model of matrices; every choice does something, whatever the shapes at hand.
fn record(graph: &Graph<'_>, recipe: &Recipe) {
    let mut all = vec![
        graph.input("a", &[2, 3]),
        graph.input("b", &[4, 5]),
        graph.step_input("u", &[2, 3]),
        graph.step_input("v", &[4, 5]),
        graph.step_input("w", &[1, 8]),
    ];
    let varying = [all[2], all[3], all[4]];
    let mut is_input = vec![true; all.len()];
    let (table, step) = (graph.input("table", &[4, 4, 5]), graph.step_number());
    for &(kind, a, b, c) in &recipe.choices {
        let x = all[a % all.len()];
        let renames = kind == 6 && x.dim(0) * x.dim(1) <= MOST_COLUMNS;
        is_input.push(renames && is_input[a % all.len()]);
        let alike: Vec<Tensor<'_>> = all.iter().copied().filter(|t| t.shape() == x.shape()).collect();
        let y = alike[b % alike.len()];
        let (rows, columns) = (x.dim(0), x.dim(1));
        let width = WIDTHS[c % WIDTHS.len()];
        let new = match kind {
            0 => x + y,
            1 => x.clamp(-2.0, 2.0).multiply(y.clamp(-2.0, 2.0)),
            2 if rows <= 16 => Tensor::concat(&[x, y], 0),
            3 if 2 * columns <= MOST_COLUMNS => Tensor::concat(&[x, y], 1),
            4 => x.slice(0, c % rows, rows - c % rows),
            5 => x.slice(1, c % columns, columns - c % columns),
            6 if renames => x.reshape(&[1, rows * columns]),
            7 => table.row(step),
            8 | 9 => x.project(graph.weights().at(format!("{columns}-{width}")), width),
            _ => x.silu(),
        };
        all.push(new);
    }
    for (i, &output) in recipe.outputs.iter().enumerate() {
        graph.output(&format!("out{i}"), all[output % all.len()]);
    }
    for &(from, to) in &recipe.feeds {
        let to = varying[to % varying.len()];
        // An input, under whatever shape, might be `to` itself.
        let computed = all.iter().zip(&is_input).filter(|(_, is_input)| !**is_input).map(|(t, _)| *t);
        let fits: Vec<Tensor<'_>> = computed.filter(|t| t.shape() == to.shape()).collect();
        if !fits.is_empty() {
            graph.feed(fits[from % fits.len()], to);
        }
    }
}

pub fn planned(recipe: &Recipe, weights: &dyn WeightSource, fused: bool) -> Plan {
    let graph = Graph::new("random", weights);
    record(&graph, recipe);
    if fused { graph.finish() } else { graph.finish_unfused() }.expect("a random model is a correct one")
}
