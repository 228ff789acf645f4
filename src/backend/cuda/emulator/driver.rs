//! The emulator as a [`Driver`] of the CUDA back end.

use super::uploads::EmulatedUploads;
use super::{Arguments, Counters, DeviceSlice, Fault, Kernel, Machine, TensorMap, parse};
use crate::backend::cuda::device::{
    Call, CaptureLock, CapturedGraph, Driver, LoadedKernel, Slab, Uploads, out_of_memory,
};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A call that a captured graph replays.
#[derive(Clone)]
pub(super) enum Command {
    Launch(Call),
    Copy(u64, u64, u64),
    Discard(u64, u64),
}

#[derive(Default)]
pub(super) struct State {
    pub machine: Machine,
    kernels: Vec<Kernel>,
    /// The launches that were checked for races.
    checked: HashSet<Launch>,
    counters: BTreeMap<String, (u64, Counters)>,
    /// The graph that is being captured.
    capturing: Option<Vec<Command>>,
    /// Captured graphs by their handles.
    graphs: Slab<Arc<[Command]>>,
    /// Calls of allocations and uploads that succeed before one fails, for tests.
    calls_left: Option<u64>,
}

/// What the order of a launch's accesses depends on: no kernel decides by the elements of a tensor what it accesses in
/// shared memory or what it writes. So of equal launches one is checked for races.
#[derive(PartialEq, Eq, Hash)]
struct Launch {
    kernel: usize,
    grid: [u32; 3],
    cluster: u32,
    shared_bytes: u32,
    scalars: Vec<u32>,
    maps: Vec<TensorMap>,
    tensors: Vec<DeviceSlice>,
}

impl Launch {
    /// A call with the addresses of its tensors relative to the first one that each overlaps.
    fn of(call: &Call) -> Launch {
        let all: Vec<DeviceSlice> =
            call.maps.iter().map(|map| map.tensor).chain(call.tensors.iter().copied()).collect();
        let overlap =
            |a: &DeviceSlice, b: &DeviceSlice| a.address < b.address + b.bytes && b.address < a.address + a.bytes;
        let relative = |slice: &DeviceSlice| {
            let first = all.iter().position(|other| overlap(other, slice)).unwrap_or(0);
            let from = all[first].address;
            // Sectors and alignments repeat every 256 bytes; the index keeps different tensors apart.
            let address = ((first as u64) << 48) + from % 256 + slice.address.wrapping_sub(from);
            DeviceSlice { address, ..*slice }
        };
        Launch {
            kernel: call.kernel.index,
            grid: call.grid,
            cluster: call.cluster,
            shared_bytes: call.shared_bytes,
            scalars: call.scalars.clone(),
            maps: call.maps.iter().map(|map| TensorMap { tensor: relative(&map.tensor), ..map.clone() }).collect(),
            tensors: call.tensors.iter().map(relative).collect(),
        }
    }
}

/// The emulator as a device.
pub struct Emulator {
    capability: (u32, u32),
    /// Bytes that may be allocated; without it as many as the machine has.
    memory_bytes: Option<u64>,
    capture_lock: CaptureLock,
    state: Mutex<State>,
}

const NAME: &str = "cuda-emulator";

pub(super) fn failed(reason: impl Into<String>) -> Error {
    Error::Device { backend: NAME.to_owned(), reason: reason.into() }
}

impl State {
    /// Runs a command, or records it during a capture.
    fn submit(&mut self, command: Command) -> Result<()> {
        match &mut self.capturing {
            Some(graph) => {
                graph.push(command);
                Ok(())
            }
            None => self.run(&command),
        }
    }

    pub fn run(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Launch(call) => {
                let kernel = &self.kernels[call.kernel.index];
                let arguments = Arguments {
                    maps: &call.maps,
                    tensors: &call.tensors,
                    scalars: &call.scalars,
                    shared_bytes: call.shared_bytes,
                    cluster: call.cluster,
                };
                let launch = Launch::of(call);
                let counted = if self.checked.contains(&launch) {
                    self.machine.repeat(kernel, call.grid, arguments)
                } else {
                    self.machine.launch(kernel, call.grid, arguments)
                };
                let counted = counted.map_err(|fault: Fault| failed(format!("{}: {fault}", call.label)))?;
                self.checked.insert(launch);
                let (launches, sum) = self.counters.entry(kernel.name().to_owned()).or_default();
                *launches += 1;
                *sum += counted;
                Ok(())
            }
            Command::Copy(from, to, bytes) => self.machine.copy(*from, *to, *bytes).map_err(failed),
            Command::Discard(address, bytes) => {
                self.machine.discard(*address, *bytes);
                Ok(())
            }
        }
    }
}

impl Emulator {
    /// Ignores poisoning: after a panic the caller drops the emulator without reading it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An emulated device that reports this compute capability.
    pub(in crate::backend::cuda) fn new(capability: (u32, u32)) -> Emulator {
        Emulator { capability, memory_bytes: None, capture_lock: CaptureLock::default(), state: Mutex::default() }
    }

    /// The same device with so many bytes of memory.
    pub(in crate::backend::cuda) fn with_memory(self, bytes: u64) -> Emulator {
        Emulator { memory_bytes: Some(bytes), ..self }
    }

    /// Counts a call that a device may refuse; an error once a test has asked for it.
    pub(super) fn count_call(&self) -> Result<()> {
        match &mut self.state().calls_left {
            Some(0) => Err(failed("out of memory: a test wants it")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Refuses all allocations and uploads behind the next `calls`; `None` for none.
    #[cfg(test)]
    pub(in crate::backend::cuda) fn fail_after(&self, calls: Option<u64>) {
        self.state().calls_left = calls;
    }

    /// Number of allocations.
    pub(in crate::backend::cuda) fn allocations(&self) -> usize {
        self.state().machine.allocations()
    }

    /// Launches and counters of each kernel so far.
    pub(in crate::backend::cuda) fn counters(&self) -> Vec<(String, u64, Counters)> {
        self.state().counters.iter().map(|(entry, (launches, sum))| (entry.clone(), *launches, *sum)).collect()
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        let (major, minor) = self.capability;
        format!("{NAME} (sm_{major}{minor})")
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        let allocated = self.state().machine.allocated_bytes();
        self.memory_bytes.map(|bytes| bytes.saturating_sub(allocated))
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        self.count_call()?;
        match self.free_memory_bytes() {
            Some(free) if free < bytes => Err(out_of_memory(NAME, bytes, free)),
            _ => Ok(self.state().machine.allocate(bytes)),
        }
    }

    fn free(&self, address: u64) {
        self.state().machine.free(address);
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.state().machine.write(address, bytes).map_err(failed)
    }

    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        self.state().machine.read(address, bytes).map_err(failed)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let _guard = self.capture_lock.acquire();
        self.state().submit(Command::Copy(from, to, bytes))
    }

    fn discard(&self, address: u64, bytes: u64) -> Result<()> {
        let _guard = self.capture_lock.acquire();
        self.state().submit(Command::Discard(address, bytes))
    }

    fn load(&self, text: &'static str, entry: &'static str) -> Result<LoadedKernel> {
        let mut state = self.state();
        let found = |kernels: &[Kernel]| kernels.iter().position(|k| k.name() == entry);
        if found(&state.kernels).is_none() {
            let parsed = parse(text).map_err(|e| failed(format!("{entry}: {e}")))?;
            state.kernels.extend(parsed);
        }
        let index = found(&state.kernels).ok_or_else(|| failed(format!("the module has no entry {entry}")))?;
        Ok(LoadedKernel { index, threads: state.kernels[index].threads() })
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let _guard = self.capture_lock.acquire();
        self.state().submit(Command::Launch(call.clone()))
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CapturedGraph> {
        let _guard = self.capture_lock.acquire();
        self.state().capturing = Some(Vec::new());
        let recorded = self.capture_lock.record(record);
        let mut state = self.state();
        let graph = state.capturing.take().unwrap_or_default();
        recorded?;
        Ok(CapturedGraph(state.graphs.insert(graph.into())))
    }

    fn replay(&self, graph: CapturedGraph) -> Result<()> {
        let mut state = self.state();
        let Some(commands) = state.graphs.get(graph.0).cloned() else { return Ok(()) };
        commands.iter().try_for_each(|command| state.run(command))
    }

    /// What a kernel costs here says nothing about a card.
    fn time(&self, _: &[&Call]) -> Result<Vec<f64>> {
        Err(failed("the emulator has no clock; `engine plan --device cuda-emulator` counts the kernels of each step"))
    }

    /// Calls are synchronous here.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn release(&self, graph: CapturedGraph) {
        self.state().graphs.remove(graph.0);
    }

    fn uploads(&self) -> Result<Box<dyn Uploads + '_>> {
        Ok(Box::new(EmulatedUploads::new(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_capture_records_no_calls_of_other_threads() {
        let emulator = Emulator::new((8, 0));
        let [from, to] = [4, 4].map(|bytes| emulator.allocate(bytes).unwrap());
        emulator.write(from, &[1, 2, 3, 4]).unwrap();
        thread::scope(|scope| {
            let record = &mut || {
                scope.spawn(|| emulator.copy(from, to, 4).unwrap());
                // Enough time for the copy to be submitted, if the capture did not block it.
                thread::sleep(Duration::from_millis(50));
                Ok(())
            };
            let graph = emulator.capture(record).unwrap();
            assert_eq!(emulator.state().graphs.get(graph.0).map(|commands| commands.len()), Some(0));
        });
        assert_eq!(emulator.read(to, 4).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_released_graph_leaves_its_handle_to_the_next_capture() {
        let emulator = Emulator::new((8, 0));
        let [from, to] = [4, 4].map(|bytes| emulator.allocate(bytes).unwrap());
        emulator.write(from, &[1, 2, 3, 4]).unwrap();
        let [first, second] = [(); 2].map(|()| emulator.capture(&mut || Ok(())).unwrap());
        emulator.release(first);
        let third = emulator.capture(&mut || emulator.copy(from, to, 4)).unwrap();
        assert_eq!((third, first != second), (first, true));
        emulator.replay(second).unwrap();
        assert!(emulator.read(to, 4).is_err(), "the empty graph was replayed");
        emulator.replay(third).unwrap();
        assert_eq!(emulator.read(to, 4).unwrap(), [1, 2, 3, 4]);
    }
}
