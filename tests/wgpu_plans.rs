//! Random models on the WGSL back end: shared slots, steps that run once, feeds, and casts to f16.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use proptest::prelude::*;
use support::adapters;
use support::close::{Rounding, close, unit};
use support::recipes::{planned, recipes, weights};
use support::{Tensors, cases, every, replay};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::wgpu::Options;
use unclip::ops::{Operand, Operation, StorageRule, Tiles};
use unclip::plan::{Plan, narrow};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Equal up to rounding, which a chain of steps may amplify.
fn agree(got: &[Vec<f32>], want: &[Vec<f32>], precision: Dtype) -> Result<(), String> {
    for (got, want) in got.iter().zip(want) {
        let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
        // The reference is in f32, and a chain of up to 24 steps, three times over, rounds to f16 in between.
        let inner = if precision == Dtype::F32 { 0.0 } else { 512.0 * unit(precision) };
        close(got, &want, &Rounding { stored: precision, inner, length: 1 << 14 })?;
    }
    Ok(())
}

fn run(backend: &dyn Backend, plan: Plan, weights: &Tensors) -> Vec<Vec<f32>> {
    replay(backend.prepare(plan, weights).unwrap().as_mut())
}

#[test]
fn random_models_give_what_the_cpu_gives() {
    for storage in [Dtype::F32, Dtype::F16] {
        let Some(backend) = adapters::storing(storage) else { continue };
        let (cpu, weights) = (Cpu::new(1).unwrap(), weights());
        proptest!(config(40), |(recipe in recipes())| {
            let plan = planned(&recipe, &weights, true);
            let want = run(&cpu, plan.clone(), &weights);
            prop_assert_eq!(agree(&run(&backend, plan, &weights), &want, storage), Ok(()));
        });
    }
}

proptest! {
    #![proptest_config(config(200))]

    /// The contract of `narrow`: every operation gets the types of its rules, and feeds connect equal types.
    #[test]
    fn narrowed_plans_give_every_operation_the_type_it_wants(recipe in recipes()) {
        let plan = narrow(planned(&recipe, &weights(), true), Dtype::F16);
        let mut written = vec![false; plan.values.len()];
        for (i, step) in plan.steps.iter().enumerate() {
            for (which, &input) in step.inputs.iter().enumerate() {
                let element = plan.values[input.0].dtype;
                let fits = match step.op.storage_rule(Operand::Input(which)) {
                    StorageRule::Storage => element == Dtype::F16,
                    StorageRule::F32 => element == Dtype::F32,
                    StorageRule::LikeOutput => element == plan.values[step.output().0].dtype,
                    StorageRule::Any => true,
                };
                prop_assert!(fits, "step {} {} reads {:?}", i, step.op.name(), element);
                let root = plan.root(input);
                let computed = plan.values[root.0].origin == unclip::plan::Origin::Computed;
                prop_assert!(!computed || written[root.0], "step {} reads what comes later", i);
                prop_assert_eq!(plan.values[root.0].dtype, element);
            }
            prop_assert!(!written[step.output().0]);
            written[step.output().0] = true;
        }
        for &(from, to) in &plan.feeds {
            prop_assert_eq!(plan.values[from.0].dtype, plan.values[to.0].dtype);
        }
    }
}

#[test]
fn an_entry_of_a_batch_gives_the_same_bits_alone() {
    let Some(backend) = adapters::storing(Dtype::F32) else { return };
    let of_batches = [
        ("linear/rows-7", 7),
        ("linear/rows-13", 13),
        ("conv2d/tiny-8", 2),
        ("conv2d/five-by-seven", 2),
        ("conv2d/residual-only", 3),
        ("group_norm/small-48", 3),
        ("attention/heads-of-8", 2),
        ("attention/fewer-queries-with-extra", 2),
    ];
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    for (name, batch) in of_batches {
        let problem = cases::named(name).problem();
        let together = problem.run(&backend).expect("the device works");
        let length = together.len() / batch;
        for b in 0..batch {
            let alone = problem.alone(b, batch).run(&backend).expect("the device works");
            assert_eq!(bits(&together[b * length..][..length]), bits(&alone), "{name}, entry {b}");
        }
    }
}

/// WGSL allows implementations to assume there is no NaN. Those in use do not, and damaged weights should be visible.
#[test]
fn a_nan_reaches_exactly_the_elements_that_depend_on_it() {
    for storage in [Dtype::F32, Dtype::F16] {
        for tiles in [Tiles::Registers, Tiles::Lanes, Tiles::Shared] {
            let options = Options { storage, tiles: Some(tiles), ..Options::default() };
            adapters::open(options).iter().for_each(|backend| every::nan_reaches_what_depends_on_it(backend));
        }
    }
}
