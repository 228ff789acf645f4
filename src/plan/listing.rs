//! A plan as text: one line a step, and the sums that people ask for.

use super::{Cost, Dtype, Origin, Plan, Step, assign};
use crate::ops::Operation;
use std::fmt::{self, Display};

impl Display for Plan {
    /// Header, inputs, the two parts step by step with shapes and cost, outputs, totals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = assign(self);
        let (once, each) = self.parts();
        writeln!(f, "plan {}: {} parameters", self.name, thousands(self.parameters()))?;
        for value in &self.values {
            if let Origin::Input { name, varies } = &value.origin {
                let kind = value.dtype.name();
                let when = if *varies { "every step" } else { "once" };
                writeln!(f, "  input   {name:<28} {kind} {:?}, {when}", value.shape)?;
            }
        }
        for (title, part) in [("once per picture", once), ("every step", each)] {
            if part.is_empty() {
                continue;
            }
            let cost = self.cost(part);
            writeln!(f, "{title}: {cost}")?;
            for step in part {
                self.write_step(f, step, &slots)?;
            }
        }
        for (name, id) in &self.outputs {
            writeln!(f, "  output  {name:<28} {:?}", self.shape(*id))?;
        }
        writeln!(f, "totals:")?;
        f.write_str(&self.totals())
    }
}

impl Plan {
    /// Three lines: what the two parts cost, and the memory of values and weights.
    pub fn totals(&self) -> String {
        let (slots, (once, each)) = (assign(self), self.parts());
        let weights: usize = self.weights().map(|(_, id)| self.values[id.0].size_bytes()).sum();
        let halves = self.values.iter().map(|v| v.dtype).find(|e| matches!(e, Dtype::F16 | Dtype::Bf16));
        let storage = halves.unwrap_or(Dtype::F32);
        let largest = slots.words.iter().max().copied().unwrap_or(0);
        format!(
            "  once per picture  {}\n  every step        {}\n  memory            {} in {} slots, the largest {}; weights {} as {}\n",
            self.cost(once),
            self.cost(each),
            mebibytes(slots.bytes()),
            slots.words.len(),
            mebibytes(4 * largest as u64),
            mebibytes(weights as u64),
            storage.name(),
        )
    }

    fn write_step(&self, f: &mut fmt::Formatter<'_>, step: &Step, slots: &super::Slots) -> fmt::Result {
        let shapes = self.input_shapes(step);
        let output = self.shape(step.output());
        let flops = step.op.flops(&shapes, output);
        write!(f, "  {:<12} {:<44}", step.op.name(), step.label)?;
        let tensors: Vec<String> = step
            .inputs
            .iter()
            .filter(|&&i| !matches!(self.values[i.0].origin, Origin::Weight(_)))
            .map(|&i| format!("{:?}", self.shape(i)))
            .collect();
        write!(f, " {} ->", tensors.join(" "))?;
        for id in &step.outputs {
            write!(f, " {:?}", self.shape(*id))?;
            if let Some(slot) = slots.of[id.0] {
                write!(f, " @{slot}")?;
            }
        }
        if flops > 0 {
            write!(f, "  {:.3} GFLOP", flops as f64 / 1e9)?;
        }
        writeln!(f)
    }
}

impl Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps, {:.3} GFLOP, {} moved", self.steps, self.flops as f64 / 1e9, mebibytes(self.bytes))
    }
}

/// 1234567 as 1,234,567.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
