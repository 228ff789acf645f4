//! Loading ahead: while one stage runs, a thread loads the weights of those that follow.
//!
//! The thread ends with the run, however that ends: the source of its weights refuses from then on, so a load under way
//! fails at its next tensor and frees what it had. What it loads stays as any stage does that has run, so it loads only
//! what may stay. Its errors are nobody's: the stage that needs the weights loads them again and meets the same one.

use super::event::Stage;
use super::resident::Residents;
use crate::backend::Backend;
use crate::dtype::StoredDtype;
use crate::error::{Error, Result};
use crate::plan::{Plan, StoredTensor, TensorData, WeightSource};
use crate::weights::adapter::Adapted;
use crate::weights::{Adapters, Checkpoint};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A stage whose weights are to be loaded ahead.
pub(super) struct Later {
    pub stage: Stage,
    /// Its plan, for any number of pictures.
    pub plan: Plan,
    /// Bytes of its weights as they are stored.
    pub bytes: u64,
}

/// Calls `run`, and meanwhile loads weights in the order of `later`.
pub(super) fn loading<T>(
    later: &[Later],
    residents: &Residents,
    backend: &dyn Backend,
    (checkpoint, adapters): (&Checkpoint, &Adapters),
    run: impl FnOnce() -> T,
) -> T {
    if later.is_empty() {
        return run();
    }
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when `run` panics.
        let _stop = Stop(&stopped);
        let load = || {
            for Later { stage, plan, bytes } in later {
                let load = || {
                    let component = checkpoint.component(stage.component())?;
                    let adapted = adapters.over(&component);
                    let weights = backend.load(plan, &UntilStopped { adapted, stopped: &stopped }, None)?;
                    adapted.check_unchanged()?;
                    Ok((weights, component.signature()))
                };
                if !residents.load_ahead(*stage, *bytes, load) {
                    return;
                }
            }
        };
        // Without the thread every stage loads its own.
        _ = thread::Builder::new().name("loading".to_owned()).spawn_scoped(scope, load);
        run()
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A component that gives no tensor once the run has ended.
struct UntilStopped<'a> {
    adapted: Adapted<'a>,
    stopped: &'a AtomicBool,
}

impl<'a> UntilStopped<'a> {
    fn adapted(&self) -> Result<&Adapted<'a>> {
        if self.stopped.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(&self.adapted) }
    }
}

impl WeightSource for UntilStopped<'_> {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.adapted.find(tensor)
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        self.adapted()?.load(tensor)
    }

    fn open(&self, tensor: &str) -> Result<StoredTensor<'_>> {
        self.adapted()?.open(tensor)
    }

    fn path(&self, tensor: &str) -> &Path {
        self.adapted.path(tensor)
    }
}
