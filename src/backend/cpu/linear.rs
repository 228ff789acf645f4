//! Linear layers: [`matmul`] of dense rows.

use super::Machine;
use super::matmul::{Dense, Epilogue, matmul, with_left_operand};
use super::panels::Panels;
use crate::ops::Linear;

pub fn run(machine: &Machine, op: &Linear, inputs: &[&[f32]], panels: &Panels, out: &mut [f32]) {
    let mut optional = inputs[2..].iter().copied();
    let epilogue = Epilogue {
        bias: op.bias.then(|| optional.next()).flatten(),
        activation: op.activation,
        residual: op.residual.then(|| optional.next()).flatten(),
        shift: None,
    };
    with_left_operand(machine, panels, inputs[0], |data| {
        let rows = Dense { data, channels: panels.channels };
        matmul(machine, data.len() / panels.channels, &rows, panels, &epilogue, out);
    });
}
