//! The gradients of plans on the CPU: of every operation against torch's in f64, and against finite differences.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::golden::Recording;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::{Backend, Executable, TrainedPart};
use unclip::cases::{Random, Tensors};
use unclip::ops::training::{LossPart, Scale};
use unclip::ops::{Activation, elements};
use unclip::plan::{Graph, LowRank, Origin, Plan, Step, Tensor, Trained, Value, ValueId, Weights, differentiate};
use unclip::{Dtype, Error};

/// Largest error of a gradient, relative to its largest element.
const BAR: f64 = 1e-5;

/// The tensors of one case, as values of a graph.
struct Given<'g> {
    graph: &'g Graph<'g>,
    golden: &'g Recording,
    case: &'g str,
}

impl<'g> Given<'g> {
    /// An input of the case: trained if it has a gradient.
    fn get(&self, name: &str) -> Tensor<'g> {
        let (shape, _) = self.golden.get(&format!("{}/{name}", self.case));
        if self.golden.has(&format!("{}/grad/{name}", self.case)) {
            self.graph.parameter(name, &shape)
        } else {
            self.graph.input(name, &shape)
        }
    }

    fn ids(&self, shape: &[usize]) -> Tensor<'g> {
        self.graph.input_u32("ids", shape)
    }

    fn w(&self) -> Weights<'g> {
        self.graph.weights()
    }
}

type Record = for<'g> fn(&Given<'g>) -> Tensor<'g>;

/// Each records its output; inputs and layers have the names of the golden tensors.
const CASES: &[(&str, Record)] = &[
    ("linear/plain", |g| g.get("x").project(g.w(), 7)),
    ("linear/bias", |g| g.get("x").linear(g.w(), 7)),
    ("linear/silu", |g| g.get("x").linear(g.w(), 7).silu()),
    ("linear/gelu", |g| g.get("x").linear(g.w(), 7).activate(Activation::Gelu)),
    ("linear/quick_gelu", |g| g.get("x").linear(g.w(), 7).activate(Activation::QuickGelu)),
    ("linear/residual", |g| g.get("x").linear(g.w(), 7) + g.get("residual")),
    ("linear/shared", |g| g.get("x").project(g.w(), 4).project(g.w(), 4)),
    ("adapter/linear", |g| g.get("x").linear(g.w(), 7)),
    ("adapter/conv2d", |g| g.get("x").conv3x3(g.w(), 5)),
    ("conv2d/3x3", |g| g.get("x").conv3x3(g.w(), 5).add_channels(g.get("shift")) + g.get("residual")),
    ("conv2d/1x1", |g| g.get("x").conv1x1(g.w(), 5)),
    ("conv2d/stride", |g| g.get("x").conv(g.w(), 5, 3, 2, [1, 1], true)),
    ("conv2d/patch", |g| g.get("x").conv(g.w(), 5, 2, 2, [0, 0], false)),
    ("conv2d/below", |g| g.get("x").conv(g.w(), 5, 3, 2, [0, 1], false)),
    ("attention/own", |g| g.get("q").attend((g.get("k"), g.get("v")), None, None, 2, false)),
    ("attention/causal", |g| g.get("q").attend((g.get("k"), g.get("v")), None, None, 2, true)),
    ("attention/extra", |g| attend_to_extra(g, false)),
    ("attention/prior", |g| attend_to_extra(g, true)),
    ("group_norm/plain", |g| g.get("x").group_norm(g.w(), 3, 1e-5)),
    ("group_norm/silu", |g| g.get("x").group_norm(g.w(), 3, 1e-5).silu()),
    ("group_norm/style", |g| g.get("x").group_norm(g.w(), 3, 1e-5).scale_shift(g.get("style")).silu()),
    ("layer_norm/rows", |g| g.get("x").layer_norm(g.w(), 1e-5)),
    ("pointwise/silu", |g| g.get("x").silu()),
    ("pointwise/gelu", |g| g.get("x").activate(Activation::Gelu)),
    ("pointwise/quick_gelu", |g| g.get("x").activate(Activation::QuickGelu)),
    ("pointwise/add", |g| g.get("x") + g.get("other")),
    ("pointwise/multiply", |g| g.get("x").multiply(g.get("other"))),
    ("pointwise/square", |g| g.get("x").multiply(g.get("x"))),
    ("pointwise/add_channels", |g| g.get("x").add_channels(g.get("other"))),
    ("pointwise/scale_shift", |g| g.get("x").scale_shift(g.get("other"))),
    ("pointwise/clamp", |g| g.get("x").clamp(-1.0, 1.0)),
    ("concat/twice", |g| {
        let a = g.get("a");
        Tensor::concat(&[a, g.get("b"), a], 1)
    }),
    ("slice/by_two", |g| g.get("x").slice_by(1, 1, 2, 3)),
    ("embed/lookup", |g| g.get("table").lookup(g.ids(&[2, 3]))),
    ("embed/token", |g| g.get("x").token(g.ids(&[2]))),
    ("embed/row", |g| g.get("x").row(g.graph.step_number())),
    ("resize/double", |g| g.get("x").double()),
    ("resize/halve", |g| g.get("x").halve()),
    ("loss/squared_error", |g| {
        let (output, target) = (g.get("output"), g.get("target"));
        g.graph.output("seed", output.squared_error(target, LossPart::Seed));
        g.graph.output("network", output);
        output.squared_error(target, LossPart::Values)
    }),
    ("loss/diffusion", |g| {
        let output = g.get("output");
        let given = ["x0", "noise", "coefficients"].map(|name| g.get(name));
        g.graph.output("seed", output.diffusion_loss(given, LossPart::Seed));
        g.graph.output("network", output);
        output.diffusion_loss(given, LossPart::Values)
    }),
];

fn attend_to_extra<'g>(g: &Given<'g>, causal: bool) -> Tensor<'g> {
    let extra = (g.get("k_extra"), g.get("v_extra"));
    g.get("q").attend((g.get("k"), g.get("v")), Some(extra), Some(g.get("mask")), 2, causal)
}

/// One case with its plan, differentiated.
struct Problem<'a> {
    golden: &'a Recording,
    case: &'a str,
    plan: Plan,
    weights: Tensors,
}

impl<'a> Problem<'a> {
    fn new(golden: &'a Recording, case: &'a str, record: Record) -> Problem<'a> {
        let of = |name: &str| golden.get(&format!("{case}/{name}"));
        let mut weights = Tensors::default();
        for name in ["weight", "bias"].into_iter().filter(|name| golden.has(&format!("{case}/{name}"))) {
            let (shape, x) = of(name);
            weights.insert(name, &shape, x, Dtype::F32);
        }
        let is_adapter = case.starts_with("adapter/");
        let trained = match is_adapter {
            true => Trained::adapters(LowRank { targets: Vec::new(), rank: 2, alpha: 8.0 }),
            false => Trained::all(),
        };
        let graph = Graph::to_train(case, &weights, &trained);
        let y = record(&Given { graph: &graph, golden, case });
        graph.output("y", y);
        if golden.has(&format!("{case}/g")) {
            graph.output("network", y);
            graph.output("seed", graph.step_input("g", &y.shape()));
        }
        let plan = graph.finish_to_train().unwrap();
        let seed = (plan.output("network").unwrap(), plan.output("seed").unwrap());
        let plan = differentiate(plan, &[seed]).unwrap();
        Problem { golden, case, plan, weights }
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let name = name.strip_prefix("lora_").map_or_else(|| name.to_owned(), |_| name.replace(".weight", ""));
        self.golden.get(&format!("{}/{name}", self.case)).1
    }

    /// The output and every gradient, by the name of what it is compared with.
    fn run(&self, cpu: &Cpu, plan: Plan) -> Vec<(String, Vec<f32>)> {
        let mut executable = cpu.prepare(plan, &self.weights).unwrap();
        let plan = executable.plan().clone();
        let names: Vec<String> = plan.trained().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            executable.write_trained(name, TrainedPart::Value, &self.get(name)).unwrap();
        }
        for value in &plan.values {
            match &value.origin {
                Origin::Input { name, .. } if name == "ids" => {
                    executable.write_u32(name, &self.golden.ids(&format!("{}/ids", self.case))).unwrap();
                }
                Origin::Input { name, .. } if name != "step" => executable.write(name, &self.get(name)).unwrap(),
                _ => {}
            }
        }
        executable.run_once().unwrap();
        executable.run_step(0).unwrap();
        let mut got = vec![("y".to_owned(), executable.read("y").unwrap())];
        for name in names {
            let gradient = executable.read_trained(&name, TrainedPart::Gradient).unwrap();
            got.push((format!("grad/{}", name.replace(".weight", "")), gradient));
        }
        got
    }

    /// The largest error of a tensor, relative to its largest element, and which tensor has it.
    fn worst(&self, got: &[(String, Vec<f32>)]) -> (f64, String) {
        let error = |(name, got): &(String, Vec<f32>)| {
            let want = self.get(name);
            assert_eq!(got.len(), want.len(), "{}: {name}", self.case);
            let largest = want.iter().fold(0.0, |most: f64, w| most.max(f64::from(w.abs())));
            let difference = |(g, w): (&f32, &f32)| (f64::from(*g) - f64::from(*w)).abs();
            let differences = got.iter().zip(&want).map(difference).map(|d| if d.is_nan() { f64::INFINITY } else { d });
            let worst = differences.fold(0.0, f64::max);
            (worst / largest, name.clone())
        };
        got.iter().map(error).fold((0.0, String::new()), |most, next| if next.0 > most.0 { next } else { most })
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| *isa != Isa::Amx && isa.available())
}

fn bits(got: &[(String, Vec<f32>)]) -> Vec<u32> {
    got.iter().flat_map(|(_, x)| x.iter().map(|x| x.to_bits())).collect()
}

#[test]
fn gradients_of_every_operation_are_those_of_autograd_with_any_number_of_threads() {
    let golden = Recording::gradients();
    let mut failures = Vec::new();
    for (case, record) in CASES {
        let problem = Problem::new(&golden, case, *record);
        for isa in isas() {
            let [one, two] = [1, 2].map(|threads| Cpu::with_isa(threads, isa).unwrap());
            let got = problem.run(&one, problem.plan.clone());
            let (error, name) = problem.worst(&got);
            if error > BAR {
                failures.push(format!("{case} on {}: {name} is off by {error:.1e}", one.name()));
            }
            if bits(&got) != bits(&problem.run(&two, problem.plan.clone())) {
                failures.push(format!("{case} on {}: two threads give other bits", one.name()));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    let cases: std::collections::BTreeSet<String> = golden.names().iter().map(|n| stem(n)).collect();
    assert_eq!(cases, CASES.iter().map(|(case, _)| (*case).to_owned()).collect(), "every golden case is run");
}

/// `linear/plain` of `linear/plain/grad/x`.
fn stem(name: &str) -> String {
    name.split('/').take(2).collect::<Vec<_>>().join("/")
}

#[test]
fn a_flipped_sign_in_any_step_of_a_rule_is_noticed() {
    let golden = Recording::gradients();
    let cpu = Cpu::new(1).unwrap();
    let mut unnoticed = Vec::new();
    for (case, record) in CASES {
        let problem = Problem::new(&golden, case, *record);
        for at in 0..problem.plan.steps.len() {
            let mut plan = problem.plan.clone();
            // A step behind it turns the sign for all that read it; values are written once.
            let output = plan.steps[at].output();
            let shape = plan.shape(output).to_vec();
            plan.values.push(Value { shape, dtype: Dtype::F32, origin: Origin::Computed });
            let turned = ValueId(plan.values.len() - 1);
            let roots: Vec<ValueId> = (0..plan.values.len()).map(|i| plan.root(ValueId(i))).collect();
            let turn = |id: &mut ValueId| *id = if roots[id.0] == output && *id == output { turned } else { *id };
            plan.steps[at + 1..].iter_mut().flat_map(|step| &mut step.inputs).for_each(turn);
            plan.outputs.iter_mut().for_each(|(_, id)| turn(id));
            plan.gradients.iter_mut().for_each(|(_, id)| turn(id));
            for value in &mut plan.values {
                if let Origin::Alias(of) = &mut value.origin {
                    turn(of);
                }
            }
            let step = Step {
                op: Scale { factor: -1.0 }.into(),
                inputs: vec![output],
                outputs: vec![turned],
                label: "turned".into(),
            };
            plan.steps.insert(at + 1, step);
            plan.once += usize::from(at < plan.once);
            if problem.worst(&problem.run(&cpu, plan)).0 < 100.0 * BAR {
                unnoticed.push(format!("{case}: step {at}, {}", problem.plan.steps[at].label));
            }
        }
    }
    assert!(unnoticed.is_empty(), "\n{}", unnoticed.join("\n"));
}

/// A network larger than all blocks of the kernels and of odd sizes: `sum(g y)` changes along a direction as the gradients
/// say.
fn check_by_differences(name: &str, trained: &Trained, record: impl Fn(&Graph<'_>) -> Vec<usize>) {
    let mut random = Random::named(name);
    let mut draw = |shape: &[usize], size: f64| -> Vec<f32> {
        (0..elements(shape)).map(|_| (size * random.normal()) as f32).collect()
    };
    let source = Anything;
    let graph = Graph::to_train(name, &source, trained);
    let shape = record(&graph);
    let plan = graph.finish_to_train().unwrap();
    let seed = (plan.output("y").unwrap(), plan.input("g").unwrap());
    let plan = differentiate(plan, &[seed]).unwrap();
    let mut executable = Cpu::new(2).unwrap().prepare(plan, &source).unwrap();
    let plan = executable.plan().clone();
    let parameters: Vec<(String, Vec<usize>)> =
        plan.trained().map(|(name, id)| (name.to_owned(), plan.shape(id).to_vec())).collect();
    // Of a layer's weight as large as keeps sums near one.
    let deviation =
        |shape: &[usize]| if shape.len() > 1 { (shape[0] as f64 / elements(shape) as f64).sqrt() } else { 1.0 };
    let values: Vec<Vec<f32>> = parameters.iter().map(|(_, shape)| draw(shape, deviation(shape))).collect();
    let ways: Vec<Vec<f32>> = parameters.iter().map(|(_, shape)| draw(shape, deviation(shape))).collect();
    let g = draw(&shape, 1.0);
    executable.write("g", &g).unwrap();
    let run = |step: f32, executable: &mut dyn Executable| -> f64 {
        for (((name, _), value), way) in parameters.iter().zip(&values).zip(&ways) {
            let moved: Vec<f32> = value.iter().zip(way).map(|(x, d)| x + step * d).collect();
            executable.write_trained(name, TrainedPart::Value, &moved).unwrap();
        }
        executable.run_once().unwrap();
        executable.run_step(0).unwrap();
        let y = executable.read("y").unwrap();
        y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
    };
    // Differences of two distances: the error of the second order falls out (Richardson 1911).
    let slope = |h: f32, run: &mut dyn FnMut(f32) -> f64| (run(h) - run(-h)) / f64::from(2.0 * h);
    let mut by_step = |h: f32| run(h, &mut *executable);
    let (wide, narrow) = (slope(0.02, &mut by_step), slope(0.01, &mut by_step));
    let measured = (4.0 * narrow - wide) / 3.0;
    for (name, _) in &parameters {
        let zeros = vec![0.0; executable.read_trained(name, TrainedPart::Gradient).unwrap().len()];
        executable.write_trained(name, TrainedPart::Gradient, &zeros).unwrap();
        // Once more at the point itself.
    }
    for ((name, _), value) in parameters.iter().zip(&values) {
        executable.write_trained(name, TrainedPart::Value, value).unwrap();
    }
    executable.run_once().unwrap();
    executable.run_step(0).unwrap();
    let mut said = 0.0;
    let mut size = 0.0;
    for ((name, _), way) in parameters.iter().zip(&ways) {
        let gradient = executable.read_trained(name, TrainedPart::Gradient).unwrap();
        said += gradient.iter().zip(way).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum::<f64>();
        size += gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    }
    let error = (measured - said).abs() / size.sqrt();
    assert!(error < 2e-3, "{name}: the slope is {measured}, the gradients say {said}: {error:.1e} of their norm");
}

/// A source that has every tensor asked for; none is read.
struct Anything;

impl unclip::plan::WeightSource for Anything {
    fn find(&self, _: &str) -> Option<(unclip::StoredDtype, Vec<usize>)> {
        None
    }

    fn require(&self, _: &str, _: &[usize]) -> unclip::Result<()> {
        Ok(())
    }

    fn load(&self, tensor: &str) -> unclip::Result<unclip::plan::TensorData<'_>> {
        panic!("{tensor} is not trained")
    }

    fn path(&self, _: &str) -> &std::path::Path {
        std::path::Path::new("memory")
    }
}

/// Marks the output and its gradient; returns the shape.
fn end(graph: &Graph<'_>, y: Tensor<'_>) -> Vec<usize> {
    graph.output("y", y);
    graph.step_input("g", &y.shape());
    y.shape()
}

#[test]
fn gradients_of_a_transformer_of_odd_sizes_are_the_slopes() {
    check_by_differences("transformer", &Trained::all(), |graph| {
        let (x, w) = (graph.parameter("x", &[3, 131, 42]), graph.weights());
        let h = x.layer_norm(w.at("norm"), 1e-5);
        let [q, k, v] = ["q", "k", "v"].map(|name| h.linear(w.at(name), 42));
        let text = graph.parameter("text", &[3, 19, 42]);
        let extra = (text.project(w.at("k_extra"), 42), text.project(w.at("v_extra"), 42));
        let x = x + q.attend((k, v), Some(extra), None, 3, true).linear(w.at("out"), 42);
        let h = x.layer_norm(w.at("norm2"), 1e-5).linear(w.at("in"), 101).activate(Activation::Gelu);
        end(graph, x + h.linear(w.at("up"), 42))
    });
}

#[test]
fn gradients_of_residual_blocks_of_odd_sizes_are_the_slopes() {
    check_by_differences("residual", &Trained::all(), |graph| {
        // The first convolution is one of those that are transformed (Winograd), both ways.
        let (x, w) = (graph.parameter("x", &[2, 13, 11, 32]), graph.weights());
        let style = graph.parameter("time", &[2, 29]).silu().linear(w.at("time"), 2 * 48);
        let h = x.group_norm(w.at("norm1"), 16, 1e-5).silu().conv3x3(w.at("conv1"), 48);
        let h = h.group_norm(w.at("norm2"), 12, 1e-5).scale_shift(style).silu().conv3x3(w.at("conv2"), 40);
        let h = (x.conv1x1(w.at("skip"), 40) + h).halve().conv(w.at("down"), 21, 3, 2, [1, 1], true).double();
        end(graph, Tensor::concat(&[h, h], 3))
    });
}

#[test]
fn what_has_no_gradient_is_refused_by_name() {
    let trained = Trained::all();
    let graph = Graph::to_train("case", &Anything, &trained);
    let x = graph.parameter("x", &[2, 4]);
    let y = x.geglu();
    graph.output("y", y);
    graph.step_input("g", &y.shape());
    let plan = graph.finish_to_train().unwrap();
    let seed = (plan.output("y").unwrap(), plan.input("g").unwrap());
    let error = differentiate(plan, &[seed]).unwrap_err().to_string();
    assert!(error.contains("gradients.rs:") && error.contains("geglu"), "{error}");

    let graph = Graph::to_train("case", &Anything, &trained);
    let y = graph.parameter("x", &[2, 4]).silu();
    graph.parameter("lonely", &[3]);
    end(&graph, y);
    let plan = graph.finish_to_train().unwrap();
    let seed = (plan.output("y").unwrap(), plan.input("g").unwrap());
    let error = differentiate(plan, &[seed]).unwrap_err().to_string();
    assert!(error.contains("lonely"), "{error}");

    for (rank, targets, named) in
        [(2, vec!["to_x".to_owned()], "no layer"), (0, Vec::new(), "block: an adapter of rank 0")]
    {
        let trained = Trained::adapters(LowRank { targets, rank, alpha: 1.0 });
        let graph = Graph::to_train("case", &Anything, &trained);
        let y = graph.input("x", &[2, 4]).linear(graph.weights().at("block"), 3);
        end(&graph, y);
        let error = graph.finish_to_train().and_then(|plan| {
            let seed = (plan.output("y").unwrap(), plan.input("g").unwrap());
            differentiate(plan, &[seed])
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_back_end_without_kernels_for_training_refuses_it() {
    let golden = Recording::gradients();
    let problem = Problem::new(&golden, "linear/plain", CASES[0].1);
    let bf16 = Cpu::new(1).unwrap().with_precision(unclip::Precision::Bf16).unwrap();
    let refused =
        |error: Option<Error>| matches!(error, Some(Error::Unsupported { what }) if what.contains("training"));
    assert!(refused(bf16.prepare(problem.plan.clone(), &problem.weights).err()));
    #[cfg(feature = "cuda-emulator")]
    {
        let emulator = unclip::backend::cuda::Cuda::emulator();
        assert!(refused(emulator.prepare(problem.plan.clone(), &problem.weights).err()));
    }
}
