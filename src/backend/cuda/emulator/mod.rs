//! PTX on the CPU, with checks that no GPU makes.
//!
//! A module's text is parsed (`syntax`) and decoded once (`decode`, `opcodes`) to a form in which operands are numbers of
//! registers (`program`). The blocks of a grid run on all cores; in a block (`block`) the warps take turns from barrier
//! to barrier, and a warp (`warp`) runs one instruction for all threads that stand at the same place.
//!
//! Asynchronous work of Hopper is run too: `mbarrier`s (`mbarrier`), bulk copies of rows and of tiles that tensor maps describe
//! (`bulk`), products of warpgroups (`product`). Copies land as late as possible, and what orders what is kept in `clock`,
//! so that a missing wait or fence is found whatever the order in which warps happen to run here.
//!
//! Every access and every read of a register is checked; a kernel that breaks a rule stops with a [`Fault`] that names
//! it, the line, the block and the thread. Results are those of the hardware, except that approximations such as
//! `ex2.approx` are closer here and that sums of `mma.sync` are rounded once.

mod access;
mod alu;
mod block;
mod bulk;
mod clock;
mod decode;
mod driver;
mod fault;
mod global;
mod matrix;
mod mbarrier;
mod opcodes;
mod opcodes_async;
mod opcodes_memory;
mod opcodes_warp;
mod product;
mod program;
mod shared;
mod shared_async;
mod syntax;
mod together;
mod warp;

pub use crate::backend::cuda::{DeviceSlice, Swizzle, TensorMap};
pub use driver::Emulator;
pub use fault::{Check, Counters, Fault};
pub use program::Kernel;
pub use syntax::SyntaxError;

use block::Block;
use global::Memory;
use program::MAP_BYTES;
use rayon::prelude::*;

/// The entries of a module.
///
/// # Errors
/// The text is no PTX, or uses what the emulator does not know; the message has the line.
pub fn parse(text: &str) -> Result<Vec<Kernel>, SyntaxError> {
    syntax::parse(text)?.entries.iter().map(decode::decode).collect()
}

/// What a kernel is called with: first tensor maps and tensors, then numbers of 32 bits, in the order of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// Tensors that bulk copies reach.
    pub maps: &'a [TensorMap],
    /// Pointers to tensors.
    pub tensors: &'a [DeviceSlice],
    /// Sizes, codes and factors.
    pub scalars: &'a [u32],
    /// Shared memory that the launch asks for, beside what the kernel declares.
    pub shared_bytes: u32,
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
        let reached: Vec<DeviceSlice> =
            arguments.maps.iter().map(|map| map.tensor).chain(arguments.tensors.iter().copied()).collect();
        let tensors = self.memory.tensors(&reached).map_err(refused)?;
        let parameters = Parameters::new(kernel, arguments).map_err(refused)?;
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let place = |i: u64| {
            let [x, y, _] = grid.map(u64::from);
            [i % x, i / x % y, i / x / y].map(|n| n as u32)
        };
        let counted = (0..blocks)
            .into_par_iter()
            .map_init(|| Block::new(kernel, &tensors, &parameters), |block, i| block.run(place(i), grid))
            .try_reduce(Counters::default, |mut sum, one| {
                sum += one;
                Ok(sum)
            })?;
        Ok(Counters { cached_read_bytes: tensors.cached_read_bytes(), ..counted })
    }
}

/// What a launch gives each block.
struct Parameters {
    bytes: Vec<u8>,
    /// Tensor maps by their offsets among the bytes.
    maps: Vec<(u32, TensorMap)>,
    /// Shared memory of a block.
    shared_bytes: u32,
}

impl Parameters {
    fn new(kernel: &Kernel, arguments: Arguments<'_>) -> Result<Parameters, String> {
        let Arguments { maps, tensors, scalars, shared_bytes } = arguments;
        let given = maps.len() + tensors.len() + scalars.len();
        if kernel.parameters.len() != given {
            return Err(format!("{} parameters, and the launch has {given}", kernel.parameters.len()));
        }
        let shared_bytes = match kernel.dynamic {
            Some(from) => from + shared_bytes,
            None if shared_bytes == 0 => kernel.shared_bytes,
            None => return Err("shared memory is asked for that the kernel does not know".to_owned()),
        };
        if shared_bytes > kernel.most_shared {
            return Err(format!("{shared_bytes} shared bytes, a block has {} at most", kernel.most_shared));
        }
        let mut all = Parameters { bytes: Vec::new(), maps: Vec::new(), shared_bytes };
        for (i, parameter) in kernel.parameters.iter().enumerate() {
            let tensor = i.checked_sub(maps.len());
            let scalar = i.checked_sub(maps.len() + tensors.len());
            let wanted = match (tensor, scalar) {
                (None, _) => MAP_BYTES,
                (_, None) => 8,
                _ => 4,
            };
            if parameter.bytes != wanted || parameter.is_map != tensor.is_none() {
                return Err(format!("the parameter {} has {} bytes", parameter.name, parameter.bytes));
            }
            all.bytes.resize(parameter.offset as usize, 0);
            match (tensor, scalar) {
                (None, _) => {
                    maps[i].check()?;
                    all.maps.push((parameter.offset, maps[i].clone()));
                    all.bytes.extend([0; MAP_BYTES as usize]);
                }
                (Some(i), None) => all.bytes.extend(tensors[i].address.to_le_bytes()),
                (_, Some(i)) => all.bytes.extend(scalars[i].to_le_bytes()),
            }
        }
        Ok(all)
    }
}
