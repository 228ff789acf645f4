//! What a machine may lack. Tests that need it are left out there, which is said by name, or fail where it is required.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;

/// All that tests may do without. The variable `REQUIRE_BACKENDS`, names with commas between, lists what a machine must
/// have.
pub const OPTIONAL: [&str; 15] = [
    // Instructions of the processor, and whether it multiplies bf16 so fast that the CPU back end has it do so.
    "cpu-amx",
    "cpu-avx2",
    "cpu-avx512",
    "cpu-bf16-products",
    "cpu-neon",
    // A CUDA device, and NVIDIA's assembler.
    "cuda",
    "ptxas",
    // What the scripts of `benches/peers` are run with.
    "python3",
    // An adapter that wgpu finds, and what it may be unable to do.
    "wgpu",
    "wgpu-f16",
    "wgpu-lanes",
    "wgpu-matrices",
    "wgpu-subgroups",
    // A driver that tells what it has compiled.
    "wgpu-kernel-cache",
    // A loader that can be told to find no driver: Vulkan's.
    "wgpu-without-driver",
];

/// A line that is seen of tests that pass, too: their captured output is what `print` and `eprint` write.
pub fn say(line: &str) {
    _ = writeln!(std::io::stderr(), "{line}");
}

/// What was found, or `None` with a line that says what is left out and why.
///
/// # Panics
/// If the name is required or not in the list.
pub fn available<T>(name: &str, found: Result<T, impl Display>) -> Option<T> {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    let required: Vec<&str> = required.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for name in required.iter().chain([&name]) {
        assert!(OPTIONAL.contains(name), "REQUIRE_BACKENDS: there is no {name}, only {}", OPTIONAL.join(", "));
    }
    match found {
        Ok(found) => Some(found),
        Err(reason) if required.contains(&name) => panic!("{name} is required: {reason}"),
        Err(reason) => {
            if SAID.lock().is_ok_and(|mut said| said.insert(name.to_owned())) {
                say(&format!("not run for want of {name}: {reason}"));
            }
            None
        }
    }
}

/// Whether something is there, as [`available`] takes it.
///
/// # Errors
/// The reason, if it is not.
pub fn whether<R>(is: bool, reason: R) -> Result<(), R> {
    if is { Ok(()) } else { Err(reason) }
}
