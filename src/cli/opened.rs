//! A checkpoint on a device, for the commands that encode and do not draw.

use super::devices::{self, Chosen};
use super::flags::{AdapterArguments, DeviceArguments, ModelArguments};
use super::lora;
use super::make::{INTERRUPTED, stored, watch_interrupts};
use super::progress::Progress;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use unclip::Result;
use unclip::pipeline::{Event, Pipeline};
use unclip::weights::Checkpoint;

/// The checkpoint on the device that is named; `check` says what does not fit before the device is opened for it.
///
/// # Errors
/// The checkpoint does not open, `check` refuses it, or there is no such device.
pub fn open(
    checkpoint: Checkpoint,
    adapters: &AdapterArguments,
    device: &DeviceArguments,
    progress: &Progress,
    check: impl FnOnce(&Pipeline) -> Result<()>,
) -> Result<Pipeline> {
    let model = checkpoint.name();
    let pipeline = lora::pipeline(checkpoint, adapters.open()?)?;
    check(&pipeline)?;
    watch_interrupts()?;
    let Chosen { backend, remark } = devices::open(device, &|| stored(&pipeline))?;
    let remark = remark.map_or(String::new(), |remark| format!("; {remark}"));
    progress.note(&format!("{model} on {}{remark}", backend.name()));
    pipeline.adapters().warnings().for_each(|warning| progress.note(&format!("engine: warning: {warning}")));
    Ok(pipeline.with_backend(backend))
}

/// The checkpoint that the arguments name; see [`open`].
///
/// # Errors
/// As for [`open`].
pub fn open_named(
    model: &ModelArguments,
    device: &DeviceArguments,
    progress: &Progress,
    check: impl FnOnce(&Pipeline) -> Result<()>,
) -> Result<Pipeline> {
    open(super::checkpoint(model)?, &model.adapters, device, progress, check)
}

/// Passes what happens on to the report, and ends the work after an interrupt.
pub fn observer(progress: &mut Progress) -> impl FnMut(Event<'_>) -> ControlFlow<()> + Send + '_ {
    |event| {
        progress.event(&event);
        if INTERRUPTED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
