//! A plan for people, one line a step with the sums that they ask for, and for programs, as JSON.

use super::{Cost, Dtype, Origin, Plan, Step, assign};
use crate::ops::Operation;
use serde::Serialize;
use serde_json::{Value as Json, json};
use std::fmt::{self, Display};

/// What the marks of a listing mean.
const LEGEND: &str = "\
legend:
  @7                a memory slot; values that never meet share one
  conv_in, unet.rs:251    where the model asks for the step: the path of its weight in the checkpoint, or a line of src/model
  once per picture  steps that depend on nothing that changes from step to step of the sampling loop; every step: the others
";

/// A kernel that a device runs for a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelUse {
    /// The entry point.
    pub entry: String,
    /// Workgroups (blocks) in every dimension.
    pub grid: [u32; 3],
    /// Invocations (threads) of a workgroup.
    pub threads: u32,
    /// Rows and columns of the output that a workgroup owns, where it owns a rectangle of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile: Option<[usize; 2]>,
    /// Parts into which the depth of a matmul is split (split-K).
    pub split: usize,
    /// Why this kernel and this geometry.
    pub reason: String,
}

impl Display for KernelUse {
    /// `matmul_sm90_f16_f16: tile 128x160, grid 2x64x1 of 384 threads: wgmma ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        write!(f, "{}:", self.entry)?;
        if let Some([rows, columns]) = self.tile {
            write!(f, " tile {rows}x{columns},")?;
        }
        write!(f, " grid {x}x{y}x{z} of {} threads", self.threads)?;
        if self.split > 1 {
            write!(f, ", k in {} parts", self.split)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// A plan with the kernels that a device runs for it.
pub struct Listing<'a> {
    /// The plan, as the device has it.
    pub plan: &'a Plan,
    /// Those of each step; empty where no device was named.
    pub kernels: &'a [Vec<KernelUse>],
}

impl Display for Plan {
    /// The listing without kernels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Listing { plan: self, kernels: &[] }.fmt(f)
    }
}

impl Display for Listing<'_> {
    /// Header, inputs, the two parts step by step with shapes, cost and kernels, outputs, legend, totals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan;
        let slots = assign(plan);
        let (once, each) = plan.parts();
        writeln!(f, "plan {}: {} parameters", plan.name, thousands(plan.parameters()))?;
        for value in &plan.values {
            if let Origin::Input { name, varies } = &value.origin {
                let kind = value.dtype.name();
                let when = if *varies { "every step" } else { "once" };
                writeln!(f, "  input   {name:<28} {kind} {:?}, {when}", value.shape)?;
            }
        }
        for (title, part, first) in [("once per picture", once, 0), ("every step", each, plan.once)] {
            if part.is_empty() {
                continue;
            }
            let cost = plan.cost(part);
            writeln!(f, "{title}: {cost}")?;
            for (i, step) in part.iter().enumerate() {
                plan.write_step(f, step, &slots)?;
                for kernel in self.kernels.get(first + i).into_iter().flatten() {
                    writeln!(f, "      {kernel}")?;
                }
            }
        }
        for (name, id) in &plan.outputs {
            writeln!(f, "  output  {name:<28} {:?}", plan.shape(*id))?;
        }
        f.write_str(LEGEND)?;
        writeln!(f, "totals:")?;
        f.write_str(&plan.totals())
    }
}

impl Listing<'_> {
    /// Everything that the text says and more: all values with shape, type, origin and slot, all steps with the values
    /// that they read and write (by index), cost and kernels, the sizes of the slots, the feeds, and both parts' cost.
    pub fn json(&self) -> Json {
        let plan = self.plan;
        let slots = assign(plan);
        let values = plan.values.iter().zip(&slots.of).map(|(value, slot)| {
            let mut json = json!({
                "shape": value.shape,
                "dtype": value.dtype.name(),
                "bytes": value.size_bytes(),
            });
            let (origin, more) = match &value.origin {
                Origin::Input { name, varies } => ("input", json!({ "name": name, "varies": varies })),
                Origin::Weight(name) => ("weight", json!({ "name": name })),
                Origin::Parameter(name) => ("parameter", json!({ "name": name })),
                Origin::Computed => ("computed", json!({})),
                Origin::Alias(of) => ("alias", json!({ "of": of.0 })),
            };
            json["origin"] = json!(origin);
            json["slot"] = json!(slot);
            if let (Json::Object(json), Json::Object(more)) = (&mut json, more) {
                json.extend(more);
            }
            json
        });
        let steps = plan.steps.iter().enumerate().map(|(i, step)| {
            let Cost { flops, bytes, .. } = plan.cost(std::slice::from_ref(step));
            let mut json = json!({
                "op": step.op.name(),
                "label": step.label,
                "once": i < plan.once,
                "inputs": step.inputs.iter().map(|id| id.0).collect::<Vec<_>>(),
                "outputs": step.outputs.iter().map(|id| id.0).collect::<Vec<_>>(),
                "flops": flops,
                "bytes": bytes,
            });
            if let Some(kernels) = self.kernels.get(i) {
                json["kernels"] = json!(kernels);
            }
            json
        });
        let (once, each) = plan.parts();
        let outputs = plan.outputs.iter().map(|(name, id)| json!({ "name": name, "value": id.0 }));
        json!({
            "name": plan.name,
            "parameters": plan.parameters(),
            "values": values.collect::<Vec<_>>(),
            "steps": steps.collect::<Vec<_>>(),
            "outputs": outputs.collect::<Vec<_>>(),
            "feeds": plan.feeds.iter().map(|(from, to)| [from.0, to.0]).collect::<Vec<_>>(),
            "slot_bytes": slots.words.iter().map(|words| 4 * words).collect::<Vec<_>>(),
            "weight_bytes": plan.weight_bytes(),
            "cost_once": plan.cost(once),
            "cost_every_step": plan.cost(each),
        })
    }
}

impl Plan {
    /// Three lines: what the two parts cost, and the memory of values and weights.
    pub fn totals(&self) -> String {
        let (slots, (once, each)) = (assign(self), self.parts());
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
            mebibytes(self.weight_bytes()),
            storage.name(),
        )
    }

    /// Bytes of all weights as the plan stores them.
    fn weight_bytes(&self) -> u64 {
        self.weights().map(|(_, id)| self.values[id.0].size_bytes() as u64).sum()
    }

    fn write_step(&self, f: &mut fmt::Formatter<'_>, step: &Step, slots: &super::Slots) -> fmt::Result {
        let shapes = self.input_shapes(step);
        let flops = step.op.flops(&shapes, self.shape(step.output()));
        write!(f, "  {:<12} {:<44}", step.op.name(), step.label)?;
        let tensors: Vec<String> = step
            .inputs
            .iter()
            .filter(|&&i| !matches!(self.values[i.0].origin, Origin::Weight(_)))
            .map(|&i| format!("{:?}", self.shape(i)))
            .collect();
        write!(f, " {} ->", tensors.join(" "))?;
        for (i, output) in step.outputs.iter().enumerate() {
            // A matmul's second output is the statistics that it leaves to a group norm.
            write!(f, "{} {:?}", if i > 0 { ", statistics" } else { "" }, self.shape(*output))?;
            if let Some(slot) = slots.of[output.0] {
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
