//! The planner on random models: what shares memory, what moves out of the loop, what joining steps changes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use proptest::prelude::*;
use std::collections::HashSet;
use support::close::{Rounding, close};
use support::recipes::{planned, recipes, weights};
use support::{Data, Problem, Tensors, cases, inputs, replay};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::cases::models::{self, Drawn, Size};
use unclip::ops::{Op, Operation, elements};
use unclip::plan::{Origin, Plan, ValueId, WeightSource, assign, narrow};

fn cpu() -> Cpu {
    Cpu::with_isa(1, Isa::detect()).unwrap()
}

/// Runs a plan with memory of its own for every value, one step at a time, so nothing can overwrite anything.
struct Interpreter<'a> {
    plan: &'a Plan,

    memory: Vec<Vec<f32>>,
    rows: Vec<Vec<u32>>,
    cpu: Cpu,
}

impl<'a> Interpreter<'a> {
    fn new(plan: &'a Plan, weights: &Tensors) -> Self {
        let memory = plan.values.iter().map(|v| match &v.origin {
            Origin::Weight(name) => weights.load(name).unwrap().to_f32(),
            _ => vec![f32::NAN; elements(&v.shape)],
        });
        Interpreter { plan, memory: memory.collect(), rows: vec![Vec::new(); plan.values.len()], cpu: cpu() }
    }

    fn root(&self, mut id: ValueId) -> ValueId {
        while let Origin::Alias(of) = self.plan.values[id.0].origin {
            id = of;
        }
        id
    }

    fn run(&mut self, range: std::ops::Range<usize>) {
        for step in &self.plan.steps[range] {
            let tensors = step.inputs.iter().map(|&id| {
                let (value, root) = (&self.plan.values[id.0], self.root(id));
                let data = match value.dtype {
                    Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Data::Floats(self.memory[root.0].clone()),
                    _ => Data::Integers(self.rows[root.0].clone()),
                };
                let stored = matches!(value.origin, Origin::Weight(_)).then_some(Dtype::F32);
                cases::Tensor { shape: value.shape.clone(), data, stored }
            });
            let problem = Problem { op: step.op.clone(), tensors: tensors.collect() };
            self.memory[step.output().0] = problem.run(&self.cpu).expect("the device works");
        }
    }

    fn replay(&mut self) -> Vec<Vec<f32>> {
        let plan = self.plan;
        let mut seen = Vec::new();
        for picture in 0..2 {
            for (name, data) in inputs(plan, picture) {
                self.memory[plan.input(&name).unwrap().0] = data;
            }
            self.run(0..plan.once);
            for step in 0..3 {
                self.rows[plan.input("step").unwrap().0] = vec![step];
                self.run(plan.once..plan.steps.len());
                for &(from, to) in &plan.feeds {
                    self.memory[to.0] = self.memory[self.root(from).0].clone();
                }
                seen.extend(plan.outputs.iter().map(|&(_, id)| self.memory[self.root(id).0].clone()));
            }
        }
        seen
    }
}

/// Walks two pictures of three steps and keeps, for each slot, which value it holds.
fn check_owners(plan: &Plan) -> Result<(), String> {
    let slots = assign(plan);
    let slot = |id: ValueId| slots.of[plan.root(id).0];
    let mut owner: Vec<Option<ValueId>> = vec![None; slots.words.len()];
    for (i, value) in plan.values.iter().enumerate() {
        match (&value.origin, slots.of[i]) {
            (Origin::Weight(_), None) => {}
            (Origin::Alias(of), mine) if mine == slot(*of) => {}
            (Origin::Alias(_) | Origin::Weight(_), mine) => return Err(format!("value {i} has slot {mine:?}")),
            // Fusing leaves values that no step writes.
            (Origin::Computed, None) if plan.steps.iter().all(|s| s.output() != ValueId(i)) => {}
            (_, None) => return Err(format!("value {i} has no slot")),
            (_, Some(s)) if slots.words[s] < elements(&value.shape) => {
                return Err(format!("value {i} {:?} does not fit slot {s}", value.shape));
            }
            _ => {}
        }
    }
    let holds = |owner: &[Option<ValueId>], id: ValueId, who: &str| match slot(id) {
        Some(s) if owner[s] != Some(plan.root(id)) => Err(format!("{who} finds {:?} in place of {id:?}", owner[s])),
        _ => Ok(()),
    };
    for _picture in 0..2 {
        for (i, value) in plan.values.iter().enumerate() {
            if matches!(value.origin, Origin::Input { .. }) {
                owner[slot(ValueId(i)).expect("checked above")] = Some(ValueId(i));
            }
        }
        for round in 0..4 {
            let range = if round == 0 { 0..plan.once } else { plan.once..plan.steps.len() };
            for (i, step) in plan.steps[range].iter().enumerate() {
                for &input in &step.inputs {
                    holds(&owner, input, &format!("step {i} of round {round}"))?;
                    if slot(input).is_some() && slot(input) == slot(step.output()) {
                        return Err(format!("step {i} of round {round} writes over its input"));
                    }
                }
                owner[slot(step.output()).expect("checked above")] = Some(step.output());
            }
            if round > 0 {
                let read = plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().flat_map(|(a, b)| [a, b]));
                read.into_iter().try_for_each(|&id| holds(&owner, id, "a reader after the step"))?;
            }
        }
    }
    Ok(())
}

/// Values that depend on a varying input.
fn varying(plan: &Plan) -> HashSet<ValueId> {
    let is_varying = |i: &usize| matches!(plan.values[*i].origin, Origin::Input { varies: true, .. });
    let mut varying: HashSet<ValueId> = (0..plan.values.len()).filter(is_varying).map(ValueId).collect();
    for step in &plan.steps {
        if step.inputs.iter().any(|&i| varying.contains(&plan.root(i))) {
            varying.insert(step.output());
        }
    }
    varying
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn no_value_loses_its_slot_while_it_is_needed(recipe in recipes()) {
        let weights = weights();
        for fused in [false, true] {
            prop_assert_eq!(check_owners(&planned(&recipe, &weights, fused)), Ok(()));
        }
    }

    #[test]
    fn storage_in_single_precision_leaves_the_plan_as_it_is(recipe in recipes()) {
        let plan = planned(&recipe, &weights(), true);
        prop_assert_eq!(format!("{:?}", narrow(plan.clone(), Dtype::F32)), format!("{plan:?}"));
    }

    #[test]
    fn memory_never_exceeds_the_sum_of_all_values(recipe in recipes()) {
        let plan = planned(&recipe, &weights(), true);
        let owns = |origin: &Origin| matches!(origin, Origin::Input { .. } | Origin::Computed);
        let sum: usize = plan.values.iter().filter(|v| owns(&v.origin)).map(|v| elements(&v.shape)).sum();
        prop_assert!(assign(&plan).bytes() <= 4 * sum as u64);
    }

    #[test]
    fn the_first_part_holds_exactly_the_steps_that_do_not_vary(recipe in recipes()) {
        for fused in [false, true] {
            let plan = planned(&recipe, &weights(), fused);
            let varying = varying(&plan);
            for (i, step) in plan.steps.iter().enumerate() {
                prop_assert_eq!(i >= plan.once, varying.contains(&step.output()), "step {} {}", i, step.op.name());
            }
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn slots_give_the_same_bits_as_memory_for_every_value(recipe in recipes()) {
        let weights = weights();
        let plan = planned(&recipe, &weights, true);
        let mut executable = cpu().prepare(plan.clone(), &weights).unwrap();
        let got = replay(executable.as_mut());
        let want = Interpreter::new(&plan, &weights).replay();
        prop_assert_eq!(bits(&got), bits(&want));
    }

    #[test]
    fn running_everything_every_step_gives_the_same_bits(recipe in recipes()) {
        let weights = weights();
        let plan = planned(&recipe, &weights, true);
        let unhoisted = Plan { once: 0, ..plan.clone() };
        let run = |plan: Plan| replay(cpu().prepare(plan, &weights).unwrap().as_mut());
        prop_assert_eq!(bits(&run(plan)), bits(&run(unhoisted)));
    }

    #[test]
    fn fusing_changes_results_by_rounding_only(recipe in recipes()) {
        let weights = weights();
        let run = |fused| replay(cpu().prepare(planned(&recipe, &weights, fused), &weights).unwrap().as_mut());
        for (got, want) in run(true).iter().zip(run(false)) {
            prop_assert_eq!(near(got, &want), Ok(()));
        }
    }
}

fn bits(x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    x.iter().map(|x| x.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Equal but for rounding, which a chain of steps may enlarge.
fn near(got: &[f32], want: &[f32]) -> Result<(), String> {
    let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
    close(got, &want, &Rounding::f32(1 << 14)).map(|_| ())
}

#[test]
fn a_norm_that_is_kept_as_an_operand_of_the_matrix_unit_changes_no_bit() {
    let tiles = cpu().with_modelled_tiles();
    for case in models::all().into_iter().filter(|case| case.size == Size::Tiny) {
        let weights = Drawn::new(Dtype::F32);
        let run = |plan: Plan| {
            let outputs = plan.outputs.clone();
            let mut executable = tiles.prepare(plan, &weights).unwrap();
            models::fill(executable.as_mut()).unwrap();
            executable.run_once().unwrap();
            executable.run_step(0).unwrap();
            let outputs = outputs.into_iter().filter(|(name, _)| !name.starts_with("norm"));
            outputs.map(|(name, _)| executable.read(&name).unwrap()).collect::<Vec<_>>()
        };
        let plan = case.plan(2, &weights).unwrap();
        // What is an output stays in f32.
        let mut read = plan.clone();
        let norms = plan.steps.iter().filter(|step| matches!(step.op, Op::GroupNorm(_) | Op::LayerNorm(_)));
        read.outputs.extend(norms.enumerate().map(|(i, step)| (format!("norm {i}"), step.output())));
        assert!(read.outputs.len() > plan.outputs.len());
        let (kept, stored) = (run(plan), run(read));
        assert!(!kept.is_empty() && kept.iter().flatten().all(|x| x.is_finite()), "{}", case.name());
        assert_eq!(kept, stored, "{}", case.name());
    }
}
