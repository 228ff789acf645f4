//! Small PTX programs on the emulator.

use unclip::backend::cuda::emulator::{Arguments, Counters, Fault, Kernel, Machine, Range, parse};

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
        Range { address: from, bytes: bytes.len() as u64, written: false },
        Range { address: to, bytes: 4 * y_words as u64, written: true },
    ];
    let counters = machine.launch(&kernel(text), grid, Arguments { tensors: &tensors, scalars: &[n] })?;
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
