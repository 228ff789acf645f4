//! Small PTX programs on the emulator.

use super::available::available;
use std::path::PathBuf;
use unclip::Dtype;
use unclip::backend::cuda::emulator::{
    Arguments, Counters, DeviceSlice, Fault, Kernel, Machine, Swizzle, TensorMap, parse,
};

/// What every small program declares: `tid`, the addresses `px` and `py` of its own words of `x` and `y`, and registers
/// to work with.
const PROLOGUE: &str = "
    .reg .b32 tid, at, n, a<8>, b<8>, c<8>, d<8>, sm;
    .reg .b16 h<4>;
    .reg .b64 px, py, x0, y0, w<4>;
    .reg .pred p, q, r;
    mov.u32 tid, %tid.x;
    ld.param.u64 x0, [x];
    ld.param.u64 y0, [y];
    ld.param.u32 n, [n];
    mad.wide.u32 px, tid, 4, x0;
    mad.wide.u32 py, tid, 4, y0;
";

/// A module of one entry `f(x, y, n)` for blocks of so many threads with so many shared bytes at `tile`.
pub fn module(threads: u32, shared_bytes: u32, body: &str) -> String {
    let shared = match shared_bytes {
        0 => String::new(),
        n => format!(".shared .align 16 .b8 tile[{n}];"),
    };
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry f(.param .u64 x, .param .u64 y, .param .u32 n)\n\
         .reqntid {threads}\n{{\n{shared}{PROLOGUE}{body}\nret;\n}}\n"
    )
}

/// A text with something in the place of the first of some lines, which it must have.
#[track_caller]
pub fn planted(text: &str, line: &str, instead: &str) -> String {
    assert!(text.contains(line), "{line}");
    text.replacen(line, instead, 1)
}

/// The only entry of a text.
pub fn kernel(text: &str) -> Kernel {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}")).remove(0)
}

/// Runs a program on words; returns the words of `y`, of which those that were not written are `None`.
pub fn run(
    text: &str,
    grid: [u32; 3],
    x: &[u32],
    y_words: usize,
    n: u32,
) -> Result<(Vec<Option<u32>>, Counters), Fault> {
    let mut machine = Machine::default();
    let bytes: Vec<u8> = x.iter().flat_map(|w| w.to_le_bytes()).collect();
    let from = machine.allocate(bytes.len() as u64);
    machine.write(from, &bytes).unwrap();
    let to = machine.allocate(4 * y_words as u64);
    let tensors = [
        DeviceSlice { address: from, bytes: bytes.len() as u64, written: false },
        DeviceSlice { address: to, bytes: 4 * y_words as u64, written: true },
    ];
    let counters = machine.launch(
        &kernel(text),
        grid,
        Arguments { maps: &[], tensors: &tensors, scalars: &[n], shared_bytes: 0, cluster: 1 },
    )?;
    let word = |i: usize| {
        let bytes = machine.read(to + 4 * i as u64, 4).ok()?;
        Some(u32::from_le_bytes(bytes.try_into().unwrap()))
    };
    Ok(((0..y_words).map(word).collect(), counters))
}

/// Runs a program of one block whose threads each write a word.
pub fn words(threads: u32, shared_bytes: u32, body: &str, x: &[u32]) -> Vec<u32> {
    let (y, _) =
        run(&module(threads, shared_bytes, body), [1; 3], x, threads as usize, 0).unwrap_or_else(|e| panic!("{e}"));
    y.into_iter().map(|w| w.expect("every thread writes")).collect()
}

/// A module like [`module`] for architecture 9.0, with tensor maps `first` and `second` before the other parameters, their
/// addresses in `m0` and `m1`, more registers, and shared memory aligned to 1024 bytes.
pub fn hopper(threads: u32, shared_bytes: u32, body: &str) -> String {
    let module = module(threads, 0, body).replace(".version 7.0\n.target sm_80", ".version 8.0\n.target sm_90a");
    let maps = "f(.param .align 64 .b8 first[128], .param .align 64 .b8 second[128], ";
    let module = module.replacen("f(", maps, 1);
    let declared = format!(
        "{{\n.shared .align 1024 .b8 tile[{shared_bytes}];\n.shared .align 8 .b64 bar[4];\n\
         .reg .b64 m0, m1, token, e<4>;\n.reg .f32 s<64>;\n.reg .b32 warp, lane, f<8>;\n\
         mov.b64 m0, first;\ncvta.param.u64 m0, m0;\nmov.b64 m1, second;\ncvta.param.u64 m1, m1;\n\
         shr.u32 warp, %tid.x, 5;\nand.b32 lane, %tid.x, 31;\n"
    );
    module.replacen("{\n", &declared, 1)
}

/// Runs a program of [`hopper`] on bytes, of which the maps, made from the address of `x` and that of `y`, cover parts.
pub fn run_tiles(
    text: &str,
    grid: [u32; 3],
    x: &[u8],
    y_words: usize,
    maps: impl Fn(DeviceSlice, DeviceSlice) -> [TensorMap; 2],
) -> Result<(Vec<Option<u32>>, Counters), Fault> {
    let mut machine = Machine::default();
    let from = machine.allocate(x.len() as u64);
    machine.write(from, x).unwrap();
    let to = machine.allocate(4 * y_words as u64);
    let x = DeviceSlice { address: from, bytes: x.len() as u64, written: false };
    let y = DeviceSlice { address: to, bytes: 4 * y_words as u64, written: true };
    let maps = maps(x, y);
    let counters = machine.launch(
        &kernel(text),
        grid,
        Arguments { maps: &maps, tensors: &[x, y], scalars: &[0], shared_bytes: 0, cluster: 1 },
    )?;
    let word = |i: usize| {
        let bytes = machine.read(to + 4 * i as u64, 4).ok()?;
        Some(u32::from_le_bytes(bytes.try_into().unwrap()))
    };
    Ok(((0..y_words).map(word).collect(), counters))
}

/// A map of 16-bit elements in rows: so many rows of so many columns, in tiles of so many.
pub fn rows(tensor: DeviceSlice, [columns, rows]: [u64; 2], tile: [u32; 2], swizzle: Swizzle) -> TensorMap {
    TensorMap {
        tensor,
        dtype: Dtype::Bf16,
        dims: vec![columns, rows],
        strides: vec![2 * columns],
        tile: tile.to_vec(),
        steps: vec![1, 1],
        swizzle,
    }
}

/// Runs a program in place: `x` and `y` are the same words.
pub fn run_in_place(text: &str, grid: [u32; 3], words: usize) -> Result<Counters, Fault> {
    let mut machine = Machine::default();
    let address = machine.allocate(4 * words as u64);
    machine.write(address, &vec![0; 4 * words]).unwrap();
    let y = DeviceSlice { address, bytes: 4 * words as u64, written: true };
    let tensors = [DeviceSlice { written: false, ..y }, y];
    machine.launch(
        &kernel(text),
        grid,
        Arguments { maps: &[], tensors: &tensors, scalars: &[0], shared_bytes: 0, cluster: 1 },
    )
}

/// NVIDIA's assembler: what the variable `PTXAS` names, or one on the path.
pub fn assembler() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PTXAS").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "PTXAS names {}, which is no file", path.display());
        return Some(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|p| p.is_file());
    let none = "it is not on the path; the wheel nvidia-cuda-nvcc has one, which the variable PTXAS may name";
    available("ptxas", found.ok_or(none))
}
