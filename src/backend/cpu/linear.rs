//! Linear layers: a product of dense rows.

use super::matmul::{Dense, Epilogue, matmul, with_left_operand};
use super::{Machine, Right};
use crate::ops::Linear;

pub fn run(machine: &Machine, op: &Linear, inputs: &[&[f32]], weight: Right<'_>, out: &mut [f32]) {
    let mut optional = inputs[2..].iter().copied();
    let epilogue = Epilogue {
        bias: op.bias.then(|| optional.next()).flatten(),
        activation: op.activation,
        residual: op.residual.then(|| optional.next()).flatten(),
        shift: None,
    };
    match weight {
        Right::Tiles(tiled) => tiled.multiply(machine, inputs[0], &epilogue, out),
        Right::Panels(panels) => with_left_operand(machine, panels, inputs[0], |data| {
            let rows = Dense { data, channels: panels.channels };
            matmul(machine, data.len() / panels.channels, &rows, panels, &epilogue, out);
        }),
    }
}
