//! `engine plan`: the listing of a stage.

use super::args::PlanArguments;
use unclip::backend::cpu::Cpu;
use unclip::pipeline::Pipeline;
use unclip::plan::narrow;
use unclip::{Error, Result};

/// Prints the plan that a run with the checkpoint's default steps would replay, as a device with this storage has it.
pub fn plan(arguments: &PlanArguments) -> Result<()> {
    if arguments.batch == 0 {
        return Err(Error::request("--batch", "0; it has to be at least 1"));
    }
    let pipeline = Pipeline::open(super::checkpoint(&arguments.model)?, Box::new(Cpu::new(1)?))?;
    let plan = pipeline.plan(arguments.stage, arguments.batch, !arguments.unguided)?;
    let plan = narrow(plan, arguments.dtype.storage());
    super::print(&if arguments.summary { plan.totals() } else { plan.to_string() })
}
