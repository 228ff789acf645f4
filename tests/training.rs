//! Optimisation steps of whole networks on the tiny checkpoint, against those of the original networks with torch's
//! optimiser in f64: `tests/golden/make_training.py`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::golden::{MODEL, Recording};
use unclip::Dtype;
use unclip::backend::TrainedPart;
use unclip::backend::cpu::Cpu;
use unclip::cases::Tensors;
use unclip::diffusion::sampler::time_features;
use unclip::diffusion::{Objective, SchedulerConfig};
use unclip::model::{decoder, prior, super_res, unet};
use unclip::plan::{LowRank, Origin, Plan, Trained, WeightSource};
use unclip::train::{Settings, Trainer};
use unclip::weights::{Checkpoint, Component, LoadOptions};

/// Largest relative error of losses and of norms.
const BAR: f64 = 1e-5;
/// Five times what the script prints as the distance of torch's own run in f32 from that in f64, of a tensor's largest
/// element: where a gradient is nearly zero, rounding decides a step.
const BAR_OF_TENSORS: f64 = 5.0 * 6.3e-4;
const STEPS: usize = 5;

/// The recorded steps of one network.
struct Run<'a> {
    golden: &'a Recording,
    part: &'a str,
    component: Component,
    /// Width of the time's features.
    features: usize,
}

impl Run<'_> {
    fn adapters(&self) -> Trained {
        let mut targets: Vec<String> = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).into();
        if self.part == "decoder" {
            targets.extend(["add_k_proj", "add_v_proj"].map(str::to_owned));
        }
        Trained::adapters(LowRank { targets, rank: 3, alpha: 6.0 })
    }

    /// What the network is given in a step, by the names of its plan's inputs.
    fn inputs(&self, step: usize, plan: &Plan) -> Vec<(String, Vec<f32>)> {
        let timesteps = self.golden.ids(&format!("{}/{step}/t", self.part));
        let objective = Objective::new(&SchedulerConfig::default());
        let of = |name: &str| match name {
            "time" => time_features(&timesteps, self.features, true, 0.0),
            "coefficients" => timesteps.iter().flat_map(|&t| objective.hybrid(t as usize)).collect(),
            name => self.golden.get(&format!("{}/{step}/{name}", self.part)).1,
        };
        let names = plan.values.iter().filter_map(|value| match &value.origin {
            Origin::Input { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.map(|name| (name.clone(), of(&name))).collect()
    }

    /// All steps: the bits of everything that was learned, after a comparison with the recording.
    fn check(&self, kind: &str, threads: usize, plan: Plan, starts: &dyn WeightSource) -> Vec<u32> {
        let settings =
            Settings { rate: 1e-3, decay: 1e-2, max_norm: Some(0.5), average: Some(0.999), ..Settings::default() };
        let cpu = Cpu::new(threads).unwrap();
        let mut trainer = Trainer::new(&cpu, plan, &self.component, starts, settings).unwrap();
        let (_, losses) = self.golden.get(&format!("{}/{kind}/losses", self.part));
        let (_, norms) = self.golden.get(&format!("{}/{kind}/norms", self.part));
        for (step, &want_norm) in norms.iter().enumerate() {
            let inputs = self.inputs(step, trainer.plan());
            let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_slice())).collect();
            let got = trainer.run(&inputs).unwrap();
            let norm = trainer.step().unwrap();
            let want = losses.chunks_exact(losses.len() / STEPS).nth(step).unwrap();
            let errors = got.iter().zip(want).chain([(&norm, &want_norm)]).map(|(got, want)| relative(*got, *want));
            let worst = errors.fold(0.0, f64::max);
            println!("{} {kind}, step {step}: {worst:.1e}", self.part);
            assert!(worst <= BAR, "step {step}: {got:?}, {norm} for {want:?}, {want_norm}");
        }
        let names: Vec<String> = trainer.plan().trained().map(|(name, _)| name.to_owned()).collect();
        let mut bits = Vec::new();
        for name in names {
            for (part, recorded) in [(TrainedPart::Value, "end"), (TrainedPart::Average, "average")] {
                let got = trainer.read(&name, part).unwrap();
                bits.extend(got.iter().map(|x| x.to_bits()));
                if kind == "lora" {
                    let (_, want) = self.golden.get(&format!("{}/lora/{recorded}/{name}", self.part));
                    let largest = want.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                    let worst =
                        got.iter().zip(&want).map(|(g, w)| f64::from((g - w).abs() / largest)).fold(0.0, f64::max);
                    assert!(worst <= BAR_OF_TENSORS, "{recorded} of {name}: off by {worst:.1e}");
                }
            }
        }
        bits
    }

    fn check_adapters(&self, plan: impl Fn(&Trained) -> Plan) {
        let mut starts = Tensors::default();
        let prefix = format!("{}/lora/start/", self.part);
        for name in self.golden.names().iter().filter_map(|name| name.strip_prefix(&prefix)) {
            let (shape, x) = self.golden.get(&format!("{prefix}{name}"));
            starts.insert(name, &shape, x, Dtype::F32);
        }
        let [one, two] = [1, 2].map(|threads| self.check("lora", threads, plan(&self.adapters()), &starts));
        assert!(one == two, "two threads learn other bits");
    }

    /// Every linear layer and convolution with an adapter, which begins as the script says.
    fn check_layers(&self, plan: impl Fn(&Trained) -> Plan) {
        let every = Trained::adapters(LowRank { targets: Vec::new(), rank: 3, alpha: 6.0 });
        let plan = plan(&every);
        let mut starts = Tensors::default();
        for (name, id) in plan.trained() {
            let shape = plan.shape(id);
            let is_first = name.ends_with("lora_A.weight");
            let start = |i: usize| if is_first { ((37 * i + 11) % 64) as f32 / 128.0 - 0.25 } else { 0.0 };
            starts.insert(name, shape, (0..shape.iter().product()).map(start).collect(), Dtype::F32);
        }
        self.check("layers", 2, plan, &starts);
    }

    fn check_full(&self, plan: impl Fn(&Trained) -> Plan) {
        self.check("full", 2, plan(&Trained::all()), &self.component);
    }
}

/// Infinity for what is no number.
fn relative(got: f32, want: f32) -> f64 {
    let error = (f64::from(got) - f64::from(want)).abs() / f64::from(want).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(MODEL, LoadOptions::default()).unwrap()
}

#[test]
fn the_prior_learns_as_the_original_with_adapters_and_as_a_whole() {
    let golden = Recording::training();
    let config = checkpoint().config::<prior::Config>("prior/config.json").unwrap();
    let component = checkpoint().component("prior").unwrap();
    let run = Run { golden: &golden, part: "prior", component, features: config.inner() };
    let plan = |trained: &Trained| prior::training_plan(&config, &run.component, trained, 2).unwrap();
    run.check_adapters(plan);
    run.check_full(plan);
}

#[test]
fn the_decoder_learns_as_the_original_with_adapters_of_any_layers_and_as_a_whole() {
    let golden = Recording::training();
    let config = checkpoint().config::<unet::Config>("decoder/config.json").unwrap();
    let component = checkpoint().component("decoder").unwrap();
    let run = Run { golden: &golden, part: "decoder", component, features: config.time_features() };
    let plan = |trained: &Trained| decoder::training_plan(&config, &run.component, trained, 2, 9).unwrap();
    run.check_adapters(plan);
    run.check_layers(plan);
    run.check_full(plan);
}

#[test]
fn super_resolution_learns_from_crops_as_the_original_with_adapters_of_all_layers() {
    let golden = Recording::training();
    let config = checkpoint().config::<unet::Config>("super_res_first/config.json").unwrap();
    let component = checkpoint().component("super_res_first").unwrap();
    let run = Run { golden: &golden, part: "super_res", component, features: config.time_features() };
    let plan = |trained: &Trained| {
        super_res::training_plan("super_res_first", &config, &run.component, trained, 2, [8, 16]).unwrap()
    };
    run.check_layers(plan);
}

/// Gradients of a frozen network's inside end where nothing trained lies before it.
#[test]
fn only_what_trained_tensors_need_is_computed() {
    let config = checkpoint().config::<prior::Config>("prior/config.json").unwrap();
    let component = checkpoint().component("prior").unwrap();
    let plan = |trained: &Trained| prior::training_plan(&config, &component, trained, 2).unwrap();
    let of = |plan: &Plan, op: &str| {
        use unclip::ops::Operation;
        plan.steps.iter().filter(|step| step.op.name() == op).count()
    };
    let last =
        Trained::adapters(LowRank { targets: vec!["transformer_blocks.1.attn1.to_out.0".into()], rank: 2, alpha: 2.0 });
    let (one, all) = (plan(&last), plan(&Trained::all()));
    // Behind the last attention: a norm, three layers and the adapter's two.
    assert_eq!((of(&one, "linear_input"), of(&one, "layer_norm_gradient"), of(&one, "attention_queries")), (4, 2, 0));
    assert_eq!(of(&one, "linear_weight"), 2);
    assert_eq!(one.gradients.len(), 2);
    assert_eq!(all.gradients.len(), all.trained().count());
    assert_eq!(of(&all, "attention_keys"), 3);
}

/// Trains adapters of the last layers of the prior from the second recorded batch on.
fn small(settings: Settings) -> (Trainer, Vec<(String, Vec<f32>)>) {
    let golden = Recording::training();
    let config = checkpoint().config::<prior::Config>("prior/config.json").unwrap();
    let component = checkpoint().component("prior").unwrap();
    let trained = Trained::adapters(LowRank { targets: vec!["ff.net.2".to_owned()], rank: 2, alpha: 2.0 });
    let plan = prior::training_plan(&config, &component, &trained, 2).unwrap();
    let mut starts = Tensors::default();
    for (name, id) in plan.trained() {
        let length: usize = plan.shape(id).iter().product();
        starts.insert(name, plan.shape(id), (0..length).map(|i| (i % 7) as f32 / 16.0 - 0.2).collect(), Dtype::F32);
    }
    let run = Run { golden: &golden, part: "prior", component, features: config.inner() };
    let inputs = run.inputs(1, &plan);
    (Trainer::new(&Cpu::new(1).unwrap(), plan, &run.component, &starts, settings).unwrap(), inputs)
}

fn run(trainer: &mut Trainer, inputs: &[(String, Vec<f32>)]) -> Vec<f32> {
    let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_slice())).collect();
    trainer.run(&inputs).unwrap()
}

fn parts(trainer: &mut Trainer) -> Vec<(String, TrainedPart, Vec<f32>)> {
    let names: Vec<String> = trainer.plan().trained().map(|(name, _)| name.to_owned()).collect();
    let parts = [TrainedPart::Value, TrainedPart::Mean, TrainedPart::Square, TrainedPart::Average];
    let all = names.iter().flat_map(|name| parts.map(|part| (name.clone(), part)));
    all.map(|(name, part)| (name.clone(), part, trainer.read(&name, part).unwrap())).collect()
}

#[test]
fn gradients_of_several_batches_count_by_their_mean() {
    let settings = Settings { max_norm: Some(0.1), ..Settings::default() };
    let [(mut once, inputs), (mut thrice, _)] = [small(settings), small(settings)];
    run(&mut once, &inputs);
    (0..4).for_each(|_| _ = run(&mut thrice, &inputs));
    // Four times the same, a power of two: nothing is rounded.
    assert_eq!(once.step().unwrap(), thrice.step().unwrap());
    assert_eq!(parts(&mut once), parts(&mut thrice));
}

#[test]
fn the_rate_grows_over_the_warm_up() {
    let plain = Settings { rate: 1e-2, ..Settings::default() };
    let moved = |settings: Settings| {
        let (mut trainer, inputs) = small(settings);
        let values = |trainer: &mut Trainer| -> Vec<f32> {
            let values = parts(trainer).into_iter().filter(|(_, part, _)| *part == TrainedPart::Value);
            values.flat_map(|(_, _, x)| x).collect()
        };
        let before = values(&mut trainer);
        run(&mut trainer, &inputs);
        trainer.step().unwrap();
        values(&mut trainer)
            .iter()
            .zip(&before)
            .map(|(after, before)| f64::from((after - before).abs()))
            .fold(0.0, f64::max)
    };
    let (whole, quarter) = (moved(plain), moved(Settings { warm_up: 4, ..plain }));
    assert!((quarter / whole - 0.25).abs() < 1e-3, "{quarter} of {whole}");
}

#[test]
fn training_that_is_stopped_and_resumed_has_the_same_bits() {
    let settings = Settings { rate: 1e-2, decay: 0.1, average: Some(0.9), warm_up: 3, ..Settings::default() };
    let [(mut whole, inputs), (mut first, _), (mut second, _)] = [0; 3].map(|_| small(settings));
    for _ in 0..4 {
        run(&mut whole, &inputs);
        whole.step().unwrap();
    }
    for _ in 0..2 {
        run(&mut first, &inputs);
        first.step().unwrap();
    }
    for (name, part, data) in parts(&mut first) {
        second.write(&name, part, &data).unwrap();
    }
    second.resume(2);
    for _ in 0..2 {
        run(&mut second, &inputs);
        second.step().unwrap();
    }
    assert_eq!(parts(&mut whole), parts(&mut second));
}
