//! Runs one step or one picture on demand, for a comparison that alternates with another program.
//!
//! `cargo run --release --example one_step -- MODEL STAGE PICTURES [THREADS] [DTYPE]` loads one stage of a checkpoint,
//! then runs one step, or the whole of a network without steps, for every line of standard input and prints its time in
//! seconds; the stage `picture` is a whole picture. `benches/peers/compare.py` runs it beside PyTorch. After a line
//! `profile` it ends with a profile by kind of operation.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead;
use std::time::Instant;
use unclip::Precision;
use unclip::backend::cpu::Cpu;
use unclip::backend::{Backend, Executable, LaunchTime};
use unclip::cases::models::fill;
use unclip::cases::profile;
use unclip::image::Image;
use unclip::ops::Operation;
use unclip::pipeline::{Pipeline, Request, Task};
use unclip::plan::Plan;
use unclip::weights::{Checkpoint, LoadOptions};

const USAGE: &str = "usage: one_step MODEL STAGE PICTURES [THREADS] [f32 | bf16]";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, stage, pictures, rest @ ..] = &arguments[..] else { return Err(USAGE.into()) };
    let cpu = Cpu::new(rest.first().map_or(Ok(0), |t| t.parse())?)?;
    let cpu = match rest.get(1).map_or("f32", String::as_str) {
        "f32" => cpu,
        "bf16" => cpu.with_precision(Precision::Bf16)?,
        _ => return Err(USAGE.into()),
    };
    eprintln!("{}", cpu.name());
    let checkpoint = Checkpoint::open(model, LoadOptions::default())?;
    if stage == "picture" {
        return whole_pictures(Pipeline::open(checkpoint, Box::new(cpu))?, pictures.parse()?);
    }
    let component = checkpoint.component(stage)?;
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(1)?))?;
    let white = Image { width: 8, height: 8, pixels: vec![255; 3 * 8 * 8] };
    // Some checkpoints make variations of pictures alone.
    let tasks = [Task::Prompts(vec!["".into()]), Task::Variations(vec![white])];
    let request = tasks
        .into_iter()
        .map(Request::of)
        .find(|request| pipeline.route(request).is_ok())
        .ok_or("makes no pictures")?;
    let request = Request { pictures_per_prompt: pictures.parse()?, ..request };
    let of_stage = pipeline.route(&request)?.into_iter().find(|(of, _)| of.name() == stage);
    let (stage, shapes) = of_stage.ok_or("no stage of that name")?;
    let plan = pipeline.plan(stage, &shapes)?;
    let (once, each) = plan.parts();
    // Encoders and autoencoders have no steps: all of them is done once.
    let is_repeated = !each.is_empty();
    eprintln!("once {}; every step {}", plan.cost(once), plan.cost(each));

    let started = Instant::now();
    let mut executable = cpu.prepare(plan, &component)?;
    drop(component);
    eprintln!("loaded in {:.2} s", started.elapsed().as_secs_f64());
    fill(executable.as_mut())?;
    let started = Instant::now();
    executable.run_once()?;
    println!("once {:.6}", started.elapsed().as_secs_f64());

    let run = |it: &mut dyn Executable| if is_repeated { it.run_step(0) } else { it.run_once() };
    if on_demand(|| Ok(run(executable.as_mut())?))? {
        let launches = profile(executable.as_mut(), 5)?;
        print_profile(executable.plan(), &launches);
    }
    Ok(())
}

/// Runs `work` for every line of standard input. Returns whether a line was `profile`.
fn on_demand(mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<bool, Box<dyn Error>> {
    let mut profiled = false;
    for line in std::io::stdin().lock().lines() {
        profiled |= line? == "profile";
        let started = Instant::now();
        work()?;
        println!("step {:.6}", started.elapsed().as_secs_f64());
    }
    Ok(profiled)
}

fn whole_pictures(pipeline: Pipeline, pictures: usize) -> Result<(), Box<dyn Error>> {
    let request = Request { pictures_per_prompt: pictures, ..Request::new("a red apple") };
    on_demand(|| {
        pipeline.pictures(&request)?;
        Ok(())
    })?;
    Ok(())
}

/// Prints the kinds of operation that took longest.
fn print_profile(plan: &Plan, launches: &[LaunchTime]) {
    let mut kinds: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    for launch in launches {
        let Some(step) = launch.step.map(|i| &plan.steps[i]) else { continue };
        let shapes: Vec<&[usize]> = step.inputs.iter().map(|&i| plan.shape(i)).collect();
        let output = plan.shape(step.output());
        let kind = kinds.entry(format!("{} {:?} -> {output:?}", step.op.name(), shapes[0])).or_default();
        kind.0 += launch.seconds;
        kind.1 += step.op.flops(&shapes, output);
    }
    let mut rows: Vec<_> = kinds.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (kind, (seconds, flops)) in rows.iter().take(40) {
        println!("{seconds:9.4} s  {:9.2} GFLOP  {kind}", *flops as f64 / 1e9);
    }
}
