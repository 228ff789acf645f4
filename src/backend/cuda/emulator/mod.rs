//! PTX on the CPU, with checks that no GPU makes.
//!
//! A module's text is parsed (`syntax`) and decoded once (`decode`, `opcodes`) to a form in which operands are numbers of
//! registers (`program`). The blocks of a grid run on all cores; in a block (`block`) the warps take turns from barrier
//! to barrier, and a warp (`warp`) runs one instruction for all threads that stand at the same place.
//!
//! Every access and every read of a register is checked; a kernel that breaks a rule stops with a [`Fault`] that names
//! it, the line, the block and the thread. Results are those of the hardware, except that approximations such as
//! `ex2.approx` are closer here and that sums of `mma.sync` are rounded once.

mod access;
mod alu;
mod block;
mod decode;
mod driver;
mod fault;
mod global;
mod matrix;
mod opcodes;
mod opcodes_memory;
mod opcodes_warp;
mod program;
mod shared;
mod syntax;
mod warp;

pub use crate::backend::cuda::device::Range;
pub use driver::Emulator;
pub use fault::{Check, Counters, Fault};
pub use program::Kernel;
pub use syntax::SyntaxError;

use block::Block;
use global::Memory;
use rayon::prelude::*;

/// The entries of a module.
///
/// # Errors
/// The text is no PTX, or uses what the emulator does not know; the message has the line.
pub fn parse(text: &str) -> Result<Vec<Kernel>, SyntaxError> {
    syntax::parse(text)?.entries.iter().map(decode::decode).collect()
}

/// What a kernel is called with: first tensors, then numbers of 32 bits, in the order of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// Pointers to tensors.
    pub tensors: &'a [Range],
    /// Sizes, codes and factors.
    pub scalars: &'a [u32],
}

/// Memory, and the kernels that run on it.
#[derive(Default)]
pub struct Machine {
    memory: Memory,
}

impl Machine {
    /// Reserves memory, none of it written.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        self.memory.allocate(bytes)
    }

    /// Gives an allocation back.
    pub fn free(&mut self, address: u64) {
        self.memory.free(address);
    }

    /// Copies to the machine.
    ///
    /// # Errors
    /// The range is not allocated.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let done = self.memory.write(address, bytes);
        if done { Ok(()) } else { Err(format!("{} bytes at {address:#x} are not allocated", bytes.len())) }
    }

    /// Copies from the machine.
    ///
    /// # Errors
    /// The range is not allocated, or holds what nobody wrote.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, String> {
        self.memory.read(address, bytes)
    }

    /// Copies within the machine.
    ///
    /// # Errors
    /// A range is not allocated.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), String> {
        let done = self.memory.copy(from, to, bytes);
        if done { Ok(()) } else { Err(format!("{bytes} bytes at {from:#x} or {to:#x} are not allocated")) }
    }

    /// Makes memory unwritten: its contents are no longer needed, and whoever reads them makes a mistake.
    pub fn forget(&self, address: u64, bytes: u64) {
        self.memory.forget(address, bytes);
    }

    /// Runs a grid to its end.
    ///
    /// # Errors
    /// A fault of one of the blocks; the others may have run or not.
    pub fn launch(&self, kernel: &Kernel, grid: [u32; 3], arguments: Arguments<'_>) -> Result<Counters, Fault> {
        let refused = |detail: String| Fault {
            kernel: kernel.name.clone(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
            check: Check::OutOfBounds,
            detail,
        };
        let windows = self.memory.windows(arguments.tensors).map_err(refused)?;
        let parameters = parameters(kernel, arguments).map_err(refused)?;
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let place = |i: u64| {
            let [x, y, _] = grid.map(u64::from);
            [i % x, i / x % y, i / x / y].map(|n| n as u32)
        };
        (0..blocks)
            .into_par_iter()
            .map_init(|| Block::new(kernel, &windows, &parameters), |block, i| block.run(place(i), grid))
            .try_reduce(Counters::default, |mut sum, one| {
                sum += one;
                Ok(sum)
            })
    }
}

/// The bytes of all parameters.
fn parameters(kernel: &Kernel, arguments: Arguments<'_>) -> Result<Vec<u8>, String> {
    let Arguments { tensors, scalars } = arguments;
    let given = tensors.len() + scalars.len();
    if kernel.parameters.len() != given {
        return Err(format!("{} parameters, and the launch has {given}", kernel.parameters.len()));
    }
    let mut bytes = Vec::new();
    for (i, parameter) in kernel.parameters.iter().enumerate() {
        let is_tensor = i < tensors.len();
        if parameter.bytes != if is_tensor { 8 } else { 4 } {
            return Err(format!("the parameter {} has {} bytes", parameter.name, parameter.bytes));
        }
        bytes.resize(parameter.offset as usize, 0);
        if is_tensor {
            bytes.extend(tensors[i].address.to_le_bytes());
        } else {
            bytes.extend(scalars[i - tensors.len()].to_le_bytes());
        }
    }
    Ok(bytes)
}
