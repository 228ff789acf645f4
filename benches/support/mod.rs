//! Shared by both benchmarks: the available back ends, and the final table with roofline shares.

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use std::time::Duration;
use unclip::Precision;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::{Backend, Executable, Roofline};
use unclip::cases::rounds;
use unclip::plan::Cost;

/// A back end and its name in the results.
pub struct Subject {
    pub name: String,
    pub backend: Box<dyn Backend>,
    /// Whether the largest cases run on it.
    pub fast: bool,
}

impl Subject {
    fn new(name: impl Into<String>, backend: impl Backend + 'static, fast: bool) -> Subject {
        Subject { name: name.into(), backend: Box::new(backend), fast }
    }
}

/// The CPU with one instruction set, in f32 or, with AMX, in bf16; the variable `THREADS` sets the number of threads.
pub fn cpu(isa: Isa) -> Subject {
    let threads = std::env::var("THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    let cpu = Cpu::with_isa(threads, isa).expect("the machine has these instructions");
    let precision = if isa == Isa::Amx { Precision::Bf16 } else { Precision::F32 };
    let cpu = cpu.with_precision(precision).expect("the CPU computes in both");
    Subject::new(isa.name(), cpu, isa != Isa::Portable)
}

/// The available GPUs: wgpu's best adapter, or number `UNCLIP_ADAPTER`, and the first CUDA device. Prints a line for
/// each, with the reason if it is unavailable.
pub fn gpus() -> Vec<Subject> {
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(unused_mut))]
    let mut found = Vec::new();
    #[cfg(feature = "wgpu")]
    {
        use unclip::backend::wgpu::{Choice, Kind, Options, Wgpu};
        let number = std::env::var("UNCLIP_ADAPTER").ok().and_then(|n| n.parse().ok());
        let adapter = number.map_or(Choice::Best, Choice::Number);
        match Wgpu::new(Options { adapter, ..Options::default() }) {
            Ok(wgpu) => {
                let adapter = wgpu.adapter();
                println!("wgpu: {adapter}");
                let fast = adapter.kind != Kind::Software;
                found.push(Subject::new("wgpu", wgpu, fast));
            }
            Err(reason) => println!("wgpu skipped: {reason}"),
        }
    }
    #[cfg(feature = "cuda")]
    match unclip::backend::cuda::Cuda::new(0) {
        Ok(cuda) => {
            println!("cuda: {}", cuda.name());
            found.push(Subject::new("cuda", cuda, true));
        }
        Err(reason) => println!("cuda skipped: {reason}"),
    }
    found
}

/// Criterion's settings for work of milliseconds; the command line overrides them.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// Best times of all cases on one back end.
#[derive(Default)]
pub struct Table(Vec<(String, Cost, f64)>);

impl Table {
    /// Runs one benchmark: one step of an executable, which is prepared only if the filter selects it.
    pub fn bench(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        (case, subject): (&str, &Subject),
        cost: Cost,
        prepare: impl Fn(&dyn Backend) -> unclip::Result<Box<dyn Executable>>,
    ) {
        // Criterion has no FLOPs; its `Gelem/s` are GFLOP/s.
        group.throughput(match cost.flops {
            0 => Throughput::Bytes(cost.bytes),
            flops => Throughput::ElementsAndBytes { elements: flops, bytes: cost.bytes },
        });
        let (mut executable, mut best) = (None, f64::INFINITY);
        group.bench_function(&subject.name, |bencher| {
            let executable = executable
                .get_or_insert_with(|| prepare(subject.backend.as_ref()).expect("the back end runs every case"));
            bencher.iter_custom(|count| {
                let seconds = rounds(executable.as_mut(), count).expect("the step runs");
                best = best.min(seconds / count as f64);
                Duration::from_secs_f64(seconds)
            });
        });
        if executable.is_some() {
            self.0.push((case.to_owned(), cost, best));
        }
    }

    /// Prints all rates, and roofline shares if the back end measures a roofline. Prints nothing if no case ran.
    pub fn print(&self, subject: &Subject) {
        if self.0.is_empty() {
            return;
        }
        let roofline = subject.backend.roofline();
        println!("\n{}", subject.backend.name());
        if let Some(Roofline { flops, bytes }) = roofline {
            println!("peak {:.0} GFLOP/s, memory {:.1} GB/s", flops / 1e9, bytes / 1e9);
        }
        for (name, cost, best) in &self.0 {
            let share =
                roofline.map(|roofline| roofline.share(cost, *best)).map_or(String::new(), |(share, compute)| {
                    format!("{:4.0} % of {}", 100.0 * share, if compute { "peak" } else { "memory" })
                });
            let (flops, bytes) = (cost.flops as f64 / best / 1e9, cost.bytes as f64 / best / 1e9);
            println!("{name:40} {:10.3} ms {flops:8.1} GFLOP/s {bytes:7.1} GB/s  {share}", best * 1e3);
        }
    }
}
