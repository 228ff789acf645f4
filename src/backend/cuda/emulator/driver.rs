//! The emulator as a device of the back end.

use super::{Arguments, Counters, Fault, Kernel, Machine, parse};
use crate::backend::cuda::device::{Call, Captured, Driver, Loaded, Turns};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a captured list holds.
#[derive(Clone)]
enum Command {
    Launch(Call),
    Copy(u64, u64, u64),
    Forget(u64, u64),
}

#[derive(Default)]
struct State {
    machine: Machine,
    kernels: Vec<Kernel>,
    counters: BTreeMap<String, (u64, Counters)>,
    /// Commands go here while a list is captured.
    capturing: Option<Vec<Command>>,
    lists: Vec<Option<Vec<Command>>>,
}

/// The emulator as a device.
pub struct Emulator {
    capability: (u32, u32),
    turns: Turns,
    state: Mutex<State>,
}

const NAME: &str = "cuda-emulator";

fn failed(reason: impl Into<String>) -> Error {
    Error::Device { backend: NAME.to_owned(), reason: reason.into() }
}

impl State {
    /// Runs a command now, or keeps it if a list is captured.
    fn take(&mut self, command: Command) -> Result<()> {
        match &mut self.capturing {
            Some(list) => {
                list.push(command);
                Ok(())
            }
            None => self.run(&command),
        }
    }

    fn run(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Launch(call) => {
                let kernel = &self.kernels[call.kernel.number];
                let arguments = Arguments {
                    maps: &call.maps,
                    tensors: &call.tensors,
                    scalars: &call.scalars,
                    shared_bytes: call.shared_bytes,
                };
                let counted = self.machine.launch(kernel, call.grid, arguments);
                let counted = counted.map_err(|fault: Fault| failed(format!("{}: {fault}", call.label)))?;
                let (launches, sum) = self.counters.entry(kernel.name().to_owned()).or_default();
                *launches += 1;
                *sum += counted;
                Ok(())
            }
            Command::Copy(from, to, bytes) => self.machine.copy(*from, *to, *bytes).map_err(failed),
            Command::Forget(address, bytes) => {
                self.machine.forget(*address, *bytes);
                Ok(())
            }
        }
    }
}

impl Emulator {
    /// A panic while the state is held leaves a machine whose contents nobody asks for any more.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that says it has this compute capability, by which kernels are chosen.
    pub(in crate::backend::cuda) fn new(capability: (u32, u32)) -> Emulator {
        Emulator { capability, turns: Turns::default(), state: Mutex::default() }
    }

    /// What each kernel has done so far.
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

    fn allocate(&self, bytes: u64) -> Result<u64> {
        Ok(self.state().machine.allocate(bytes))
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
        let _turn = self.turns.take();
        self.state().take(Command::Copy(from, to, bytes))
    }

    fn forget(&self, address: u64, bytes: u64) -> Result<()> {
        let _turn = self.turns.take();
        self.state().take(Command::Forget(address, bytes))
    }

    fn load(&self, text: &'static str, entry: &'static str) -> Result<Loaded> {
        let mut state = self.state();
        let found = |kernels: &[Kernel]| kernels.iter().position(|k| k.name() == entry);
        if found(&state.kernels).is_none() {
            let parsed = parse(text).map_err(|e| failed(format!("{entry}: {e}")))?;
            state.kernels.extend(parsed);
        }
        let number = found(&state.kernels).ok_or_else(|| failed(format!("there is no entry {entry}")))?;
        Ok(Loaded { number, threads: state.kernels[number].threads() })
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let _turn = self.turns.take();
        self.state().take(Command::Launch(call.clone()))
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Captured> {
        let _turn = self.turns.take();
        self.state().capturing = Some(Vec::new());
        let recorded = self.turns.capture(record);
        let mut state = self.state();
        let list = state.capturing.take();
        recorded?;
        state.lists.push(list);
        Ok(Captured(state.lists.len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<()> {
        let mut state = self.state();
        // Taken out while it runs, so that the rest of the state can change.
        let list = state.lists[captured.0].take().unwrap_or_default();
        let ran = list.iter().try_for_each(|command| state.run(command));
        state.lists[captured.0] = Some(list);
        ran
    }

    /// Nothing is ever left to do.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn release(&self, captured: Captured) {
        self.state().lists[captured.0] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_capture_keeps_no_calls_of_other_threads() {
        let emulator = Emulator::new((8, 0));
        let [from, to] = [4, 4].map(|bytes| emulator.allocate(bytes).unwrap());
        emulator.write(from, &[1, 2, 3, 4]).unwrap();
        thread::scope(|scope| {
            let record = &mut || {
                scope.spawn(|| emulator.copy(from, to, 4).unwrap());
                // Long enough for the copy to come, were it not for the capture.
                thread::sleep(Duration::from_millis(50));
                Ok(())
            };
            emulator.capture(record).unwrap();
        });
        assert_eq!(emulator.state().lists[0].as_ref().map(Vec::len), Some(0));
        assert_eq!(emulator.read(to, 4).unwrap(), [1, 2, 3, 4]);
    }
}
