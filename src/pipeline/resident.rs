//! Stages that stay: weights and compiled plans that outlive a run.
//!
//! A run takes a [`Lease`] of a stage. The lease gives executables for the shapes that are asked for: one that was left
//! by an earlier run, or a new one, compiled with the weights that are there or are loaded now. When it ends, what
//! [`Keep`] allows stays, up to a memory limit; beyond it the least recently used stage goes first.
//!
//! Weights are shared between runs, an executable belongs to one run at a time: two runs at once share each stage's
//! weights and compile an executable each.

use super::event::Stage;
use super::family::Shapes;
use crate::backend::{Backend, Executable, Weights};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::weights::{Adapters, Checkpoint, Component, Signature};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stays in memory after a stage has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing outlives a run. A request whose pictures are all computed together has one network in memory at a time; one
    /// of several groups keeps its stages until its last picture is done.
    Nothing,
    /// Weights, so that the next run loads none.
    Weights,
    /// Weights and compiled plans with their memory, so that the next run of the same shapes begins at once.
    #[default]
    Everything,
}

/// How often a pipeline did what a later run of the same shapes need not do again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plans recorded.
    pub recordings: u64,
    /// Plans compiled.
    pub compilations: u64,
    /// Times that weights of a stage were loaded.
    pub loads: u64,
}

/// What a stage is expected to need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// Bytes of weights as they are stored.
    pub weights: u64,
    /// Bytes of intermediate values of one picture.
    pub picture: u64,
}

/// All stages of a pipeline.
pub(super) struct Residents {
    pub keep: Keep,
    /// Bytes that may stay.
    pub limit: u64,
    stages: Mutex<HashMap<Stage, Arc<Mutex<Resident>>>>,
    /// Held while a stage is loaded, so that another run waits for its weights and does not load them, too.
    loading: Mutex<HashMap<Stage, Arc<Mutex<()>>>>,
    needs: Mutex<HashMap<(Stage, Shapes), Needs>>,
    clock: AtomicU64,
    recordings: AtomicU64,
    compilations: AtomicU64,
    loads: AtomicU64,
}

/// What stays of one stage.
#[derive(Default)]
struct Resident {
    weights: Option<Arc<dyn Weights>>,
    /// The files that the weights came from.
    signature: Option<Signature>,
    idle: Vec<(Shapes, Box<dyn Executable>)>,
    last_used: u64,
}

impl Resident {
    /// Drops everything.
    fn clear(&mut self) {
        *self = Resident { last_used: self.last_used, ..Resident::default() };
    }

    fn size_bytes(&self) -> u64 {
        let idle: u64 = self.idle.iter().map(|(_, executable)| executable.size_bytes()).sum();
        idle + self.weights.as_ref().map_or(0, |weights| weights.size_bytes())
    }
}

/// A poisoned lock means that a run panicked; what it guards is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Residents {
    pub fn new(keep: Keep, limit: u64) -> Residents {
        Residents {
            keep,
            limit,
            stages: Mutex::default(),
            loading: Mutex::default(),
            needs: Mutex::default(),
            clock: AtomicU64::new(0),
            recordings: AtomicU64::new(0),
            compilations: AtomicU64::new(0),
            loads: AtomicU64::new(0),
        }
    }

    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { recordings: get(&self.recordings), compilations: get(&self.compilations), loads: get(&self.loads) }
    }

    /// Bytes that stay at present, without what runs are using.
    pub fn size_bytes(&self) -> u64 {
        let stages: Vec<Arc<Mutex<Resident>>> = lock(&self.stages).values().cloned().collect();
        stages.iter().map(|stage| lock(stage).size_bytes()).sum()
    }

    /// What the stage needs for one picture, if that is known.
    pub fn needs(&self, stage: Stage, shapes: Shapes) -> Option<Needs> {
        lock(&self.needs).get(&(stage, shapes.of(1))).copied()
    }

    pub fn learn(&self, stage: Stage, shapes: Shapes, needs: Needs) {
        lock(&self.needs).insert((stage, shapes.of(1)), needs);
    }

    pub fn count_recording(&self) {
        self.recordings.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the stage's weights are in memory.
    pub fn is_loaded(&self, stage: Stage) -> bool {
        lock(&self.resident(stage)).weights.is_some()
    }

    fn resident(&self, stage: Stage) -> Arc<Mutex<Resident>> {
        lock(&self.stages).entry(stage).or_default().clone()
    }

    /// Loads a stage before its turn, unless it is there. Whether it is now: it has to fit beside what stays.
    pub fn load_ahead(
        &self,
        stage: Stage,
        bytes: u64,
        load: impl FnOnce() -> Result<(Arc<dyn Weights>, Signature)>,
    ) -> bool {
        let turn = self.turn(stage);
        let _turn = lock(&turn);
        if self.is_loaded(stage) {
            return true;
        }
        if self.size_bytes().saturating_add(bytes) > self.limit {
            return false;
        }
        let Ok((weights, signature)) = load() else { return false };
        let resident = self.resident(stage);
        let mut resident = lock(&resident);
        resident.last_used = self.clock.fetch_add(1, Ordering::Relaxed);
        (resident.weights, resident.signature) = (Some(weights), Some(signature));
        self.loads.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Drops tensors, by component, that are not any more what they were, and what was compiled with them.
    pub fn forget(&self, stale: &BTreeMap<String, BTreeSet<String>>) {
        for (stage, resident) in lock(&self.stages).iter() {
            let Some(tensors) = stale.get(stage.component()) else { continue };
            let mut resident = lock(resident);
            resident.idle.clear();
            resident.weights = resident.weights.take().map(|weights| weights.without(&|name| tensors.contains(name)));
        }
    }

    fn turn(&self, stage: Stage) -> Arc<Mutex<()>> {
        lock(&self.loading).entry(stage).or_default().clone()
    }

    /// A stage for one run. If its files changed since it was loaded, what stayed is dropped; the answer says so.
    pub fn lease(&self, stage: Stage, keep: Keep) -> (Lease<'_>, bool) {
        let resident = self.resident(stage);
        let mut changed = false;
        {
            let mut resident = lock(&resident);
            resident.last_used = self.clock.fetch_add(1, Ordering::Relaxed);
            if resident.signature.as_ref().is_some_and(|signature| !signature.is_current()) {
                resident.clear();
                changed = true;
            }
        }
        let lease = Lease { residents: self, stage, keep, resident, component: None, weights: None, active: None };
        (lease, changed)
    }

    /// All stages, those that were used longest ago first.
    fn by_last_use(&self) -> Vec<Arc<Mutex<Resident>>> {
        let mut stages: Vec<Arc<Mutex<Resident>>> = lock(&self.stages).values().cloned().collect();
        stages.sort_by_key(|stage| lock(stage).last_used);
        stages
    }

    /// Drops what was used longest ago until the rest fits the limit.
    pub fn trim(&self, limit: u64) {
        let stages = self.by_last_use();
        let mut held: u64 = stages.iter().map(|stage| lock(stage).size_bytes()).sum();
        for stage in &stages {
            if held <= limit {
                return;
            }
            let mut resident = lock(stage);
            held -= resident.size_bytes();
            resident.clear();
        }
    }
}

/// A stage in the hands of one run.
pub(super) struct Lease<'a> {
    residents: &'a Residents,
    stage: Stage,
    keep: Keep,
    resident: Arc<Mutex<Resident>>,
    /// Open while something may have to be read from it.
    component: Option<Component>,
    weights: Option<Arc<dyn Weights>>,
    active: Option<(Shapes, Box<dyn Executable>)>,
}

impl Lease<'_> {
    /// The component, opened where it is not.
    pub fn component(&mut self, checkpoint: &Checkpoint) -> Result<&Component> {
        if self.component.is_none() {
            self.component = Some(checkpoint.component(self.stage.component())?);
        }
        Ok(self.component.as_ref().expect("opened above"))
    }

    /// An executable for these shapes. `record` gives its plan, if none was left by an earlier run.
    ///
    /// # Errors
    /// The weights cannot be read, changed meanwhile, or the device lacks the memory.
    pub fn executable(
        &mut self,
        shapes: Shapes,
        backend: &dyn Backend,
        (checkpoint, adapters): (&Checkpoint, &Adapters),
        record: impl FnOnce(&Component) -> Result<Plan>,
    ) -> Result<&mut dyn Executable> {
        if self.active.as_ref().is_none_or(|(active, _)| *active != shapes) {
            // Two of them are never needed at once.
            self.put_back();
            let idle = self.take_idle(shapes);
            let executable = match idle {
                Some(executable) => executable,
                None => {
                    let plan = record(self.component(checkpoint)?)?;
                    self.compile(plan, backend, adapters)?
                }
            };
            self.active = Some((shapes, executable));
        }
        Ok(self.active.as_mut().expect("made above").1.as_mut())
    }

    fn take_idle(&self, shapes: Shapes) -> Option<Box<dyn Executable>> {
        let mut resident = lock(&self.resident);
        let at = resident.idle.iter().position(|(idle, _)| *idle == shapes)?;
        Some(resident.idle.swap_remove(at).1)
    }

    /// Loads what is missing and compiles. Where memory lacks, what was used longest ago is dropped and it is tried again,
    /// until nothing is left to drop.
    fn compile(&mut self, plan: Plan, backend: &dyn Backend, adapters: &Adapters) -> Result<Box<dyn Executable>> {
        loop {
            match self.try_compile(plan.clone(), backend, adapters) {
                Err(Error::OutOfMemory { .. }) if self.make_room() => {}
                result => return result,
            }
        }
    }

    /// Drops the stage that was used longest ago, at last the idle executables of this one, whose weights are needed. False
    /// if there is nothing.
    fn make_room(&self) -> bool {
        let others = self.residents.by_last_use().into_iter().filter(|other| !Arc::ptr_eq(other, &self.resident));
        for other in others {
            let mut other = lock(&other);
            if other.size_bytes() > 0 {
                other.clear();
                return true;
            }
        }
        let idle = std::mem::take(&mut lock(&self.resident).idle);
        !idle.is_empty()
    }

    fn try_compile(&mut self, plan: Plan, backend: &dyn Backend, adapters: &Adapters) -> Result<Box<dyn Executable>> {
        let component = self.component.as_ref().expect("a plan is recorded from the open component");
        {
            let turn = self.residents.turn(self.stage);
            let _turn = lock(&turn);
            let held = self.weights.take().or_else(|| lock(&self.resident).weights.clone());
            let before = held.as_ref().map_or(0, |weights| weights.size_bytes());
            let source = adapters.over(component);
            let weights = backend.load(&plan, &source, held.as_ref())?;
            source.check_unchanged()?;
            if weights.size_bytes() > before || held.is_none() {
                self.residents.loads.fetch_add(1, Ordering::Relaxed);
            }
            if self.keep != Keep::Nothing {
                let mut resident = lock(&self.resident);
                resident.weights = Some(weights.clone());
                resident.signature = Some(component.signature());
            }
            self.weights = Some(weights);
        }
        self.residents.compilations.fetch_add(1, Ordering::Relaxed);
        backend.compile(plan, self.weights.as_ref().expect("loaded above"))
    }

    /// Leaves the present executable to later runs.
    fn put_back(&mut self) {
        let Some((shapes, executable)) = self.active.take() else { return };
        if self.keep == Keep::Everything {
            let mut resident = lock(&self.resident);
            // Without its weights the stage was dropped meanwhile.
            if resident.weights.is_some() {
                resident.idle.push((shapes, executable));
            }
            drop(resident);
            self.residents.trim(self.residents.limit);
        }
    }

    /// Ends the lease; what may stay stays. A lease that is dropped instead, because its run failed, leaves no
    /// executable behind.
    pub fn end(mut self) {
        self.put_back();
        self.weights = None;
        let residents = self.residents;
        drop(self);
        residents.trim(residents.limit);
    }
}
