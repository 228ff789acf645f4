//! `engine plan`: the listing of a stage.

use super::args::PlanArguments;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Pipeline, Request, Stage, Task};
use unclip::plan::narrow;
use unclip::{Error, Result};

/// Prints the plan that a run with the checkpoint's default steps would replay, as a device with this storage has it.
pub fn plan(arguments: &PlanArguments) -> Result<()> {
    if arguments.batch == 0 {
        return Err(Error::value("--batch", 0, "must be at least 1"));
    }
    let pipeline = Pipeline::open(super::checkpoint(&arguments.model)?, Box::new(Cpu::new(1)?))?;
    let stage = pipeline.stage(&arguments.stage)?;
    let guidance = arguments.unguided.then_some(1.0);
    let request = |task| Request {
        pictures_per_prompt: arguments.batch,
        prior_guidance: guidance,
        decoder_guidance: guidance,
        ..Request::of(task)
    };
    // Of the two kinds of request that which has the stage.
    let pixel = Image { width: 1, height: 1, pixels: vec![0; 3] };
    let tasks = [Task::Prompts(vec!["".into()]), Task::Variations(vec![pixel])];
    let routes = tasks.map(|task| pipeline.route(&request(task)));
    let shapes = routes.iter().flatten().flatten().find(|(of, _)| *of == stage).map(|(_, shapes)| *shapes);
    let shapes = match (shapes, routes) {
        (Some(shapes), _) => shapes,
        (None, [prompts, _]) => return Err(prompts.err().unwrap_or_else(|| unused(stage))),
    };
    let plan = pipeline.plan(stage, &shapes)?;
    let plan = narrow(plan, arguments.dtype.storage());
    super::print(&if arguments.summary { plan.totals() } else { plan.to_string() })
}

fn unused(stage: Stage) -> Error {
    Error::request("--stage", format!("{stage}: no request passes through it"))
}
