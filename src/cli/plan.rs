//! `engine plan`: the listing of a stage.

use super::args::PlanArguments;
use super::devices::Device;
use super::flags::DtypeChoice;
use super::lora;
use unclip::image::{Image, Mask};
use unclip::pipeline::{Edit, Pipeline, Request, Stage, Task};
use unclip::plan::{KernelUse, Listing, Plan, narrow};
use unclip::{Error, Precision, Result};

/// Prints the plan that a run with the checkpoint's default steps would replay, as the device has it.
pub fn plan(arguments: &PlanArguments) -> Result<()> {
    if arguments.batch == 0 {
        return Err(Error::value("--batch", 0, "must be at least 1"));
    }
    let pipeline = lora::pipeline(super::checkpoint(&arguments.model)?, arguments.model.adapters.open()?)?;
    let stage = pipeline.stage(&arguments.stage)?;
    let guidance = arguments.unguided.then_some(1.0);
    let request = |task| Request {
        pictures_per_prompt: arguments.batch,
        prior_guidance: guidance,
        decoder_guidance: guidance,
        ..Request::of(task)
    };
    // Of the kinds of request that which has the stage.
    let given = Image { width: 2, height: 1, pixels: vec![0; 6] };
    let prompt = || request(Task::Prompts(vec!["".into()]));
    let edit = Some(Edit::inpaint(given.clone(), Mask { width: 2, height: 1, pixels: vec![255, 0] }));
    let requests = [
        prompt(),
        request(Task::Variations(vec![given.clone()])),
        Request { edit, ..prompt() },
        Request { hint: Some(given), ..prompt() },
    ];
    let routes = requests.map(|request| pipeline.route(&request));
    let shapes = routes.iter().flatten().flatten().find(|(of, _)| *of == stage).map(|(_, shapes)| *shapes);
    let shapes = match (shapes, routes) {
        (Some(shapes), _) => shapes,
        (None, [prompts, ..]) => return Err(prompts.err().unwrap_or_else(|| unused(stage))),
    };
    let plan = pipeline.plan(stage, &shapes)?;
    let (plan, kernels) = on_device(plan, arguments, &pipeline)?;
    let listing = Listing { plan: &plan, kernels: &kernels };
    super::print(&match (arguments.summary, arguments.json) {
        (true, _) => plan.totals(),
        (_, true) => format!("{}\n", listing.json()),
        _ => listing.to_string(),
    })
}

/// The plan as the device runs it, and its kernels by step, where it has any.
fn on_device(plan: Plan, arguments: &PlanArguments, pipeline: &Pipeline) -> Result<(Plan, Vec<Vec<KernelUse>>)> {
    let PlanArguments { device, arch, .. } = *arguments;
    let is_cuda = matches!(device, Some(Device::Cuda(_) | Device::CudaEmulator));
    let dtype = match arguments.dtype {
        DtypeChoice::Of(precision) => precision,
        DtypeChoice::Auto if is_cuda => pipeline.stored_precision(),
        DtypeChoice::Auto => Precision::F32,
    };
    if arch.is_some() && !is_cuda {
        return Err(Error::request("--arch", "only for --device cuda or cuda-emulator"));
    }
    match device {
        None | Some(Device::Cpu) => Ok((narrow(plan, dtype.storage()), Vec::new())),
        Some(Device::Auto) => Err(Error::value("--device", "auto", "expected cpu, wgpu, cuda or cuda-emulator")),
        Some(Device::Wgpu(number)) => on_wgpu(plan, number, dtype),
        Some(Device::Cuda(number)) => on_cuda(plan, dtype, arch.unwrap_or_else(|| capability(number))),
        Some(Device::CudaEmulator) => on_cuda(plan, dtype, arch.unwrap_or((8, 0))),
    }
}

#[cfg(feature = "wgpu")]
fn on_wgpu(plan: Plan, number: Option<usize>, dtype: Precision) -> Result<(Plan, Vec<Vec<KernelUse>>)> {
    use unclip::backend::wgpu::{Choice, Options, Wgpu};
    if !matches!(dtype, Precision::F32 | Precision::F16) {
        return Err(Error::value("--dtype", dtype, "wgpu stores f32 or f16"));
    }
    let adapter = number.map_or(Choice::Best, Choice::Number);
    Ok(Wgpu::new(Options { adapter, storage: dtype.storage(), ..Options::default() })?.explain(plan))
}

#[cfg(not(feature = "wgpu"))]
fn on_wgpu(_: Plan, _: Option<usize>, _: Precision) -> Result<(Plan, Vec<Vec<KernelUse>>)> {
    Err(super::devices::left_out("wgpu"))
}

#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
fn on_cuda(plan: Plan, dtype: Precision, capability: (u32, u32)) -> Result<(Plan, Vec<Vec<KernelUse>>)> {
    Ok(unclip::backend::cuda::explain(plan, dtype, capability))
}

#[cfg(not(any(feature = "cuda", feature = "cuda-emulator")))]
fn on_cuda(_: Plan, _: Precision, _: (u32, u32)) -> Result<(Plan, Vec<Vec<KernelUse>>)> {
    Err(super::devices::left_out("cuda"))
}

/// The compute capability of a card, or that of Hopper where there is none.
fn capability(number: usize) -> (u32, u32) {
    #[cfg(feature = "cuda")]
    if let Ok(card) = unclip::backend::cuda::Cuda::new(number) {
        return card.capability();
    }
    _ = number;
    (9, 0)
}

fn unused(stage: Stage) -> Error {
    Error::request("--stage", format!("{stage}: no request passes through it"))
}
