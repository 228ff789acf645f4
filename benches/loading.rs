//! Benchmarks of loading the decoder: from an f16 file in the page cache into the CPU's panels, and through a CUDA driver
//! that takes all calls and does nothing, so that only the host's part is timed.
//!
//! `cargo bench --features cuda --bench loading -- FILTER`, with `cpu`, `cuda`, `default` or `karlo` as the filter. Karlo's
//! file has 1.77 GB and lies in the folder for temporary files. `RAYON_NUM_THREADS` sets the threads of both. On Linux a
//! line for each back end gives the processor time, and the memory that loading needed at its peak beyond what the process
//! had before.

use criterion::{Criterion, Throughput};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::cases::models::{Drawn, ModelCase, Network, Size};
use unclip::ops::elements;
use unclip::plan::{Plan, WeightSource};
use unclip::weights::{Checkpoint, LoadOptions};

const COMPONENT: &str = "decoder";

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    for size in [Size::Default, Size::Karlo] {
        let case = ModelCase { network: Network::Decoder, size };
        let mut stored = None;
        let mut group = criterion.benchmark_group(format!("load/{}", case.name()));
        for (name, backend) in subjects() {
            let mut best: Option<Used> = None;
            group.throughput(Throughput::Bytes(2 * parameters(&case)));
            group.bench_function(name, |bencher| {
                let stored = stored.get_or_insert_with(|| Stored::write(&case));
                bencher.iter_custom(|count| {
                    let used = stored.load(backend.as_ref(), count);
                    best = Some(best.map_or(used, |best| best.or_less(used)));
                    Duration::from_secs_f64(used.seconds * count as f64)
                });
            });
            if let Some(best) = best {
                println!("{}/{name}: {}", case.name(), best.of_bytes(2 * parameters(&case)));
            }
        }
        group.finish();
    }
    criterion.final_summary();
}

fn subjects() -> Vec<(&'static str, Box<dyn Backend>)> {
    let threads = rayon::current_num_threads();
    let cpu: Box<dyn Backend> = Box::new(Cpu::new(threads).expect("threads can be started"));
    #[cfg_attr(not(feature = "cuda"), allow(unused_mut))]
    let mut subjects = vec![("cpu", cpu)];
    #[cfg(feature = "cuda")]
    subjects.push(("cuda", Box::new(unclip::backend::cuda::Cuda::sink().with_precision(unclip::Precision::F16))));
    subjects
}

fn parameters(case: &ModelCase) -> u64 {
    case.plan(1, &Drawn::new(Dtype::F16)).expect("the networks are known").parameters()
}

/// A checkpoint with one component in a folder that is deleted afterwards.
struct Stored {
    checkpoint: Checkpoint,
    plan: Plan,
    _folder: tempfile::TempDir,
}

impl Stored {
    fn write(case: &ModelCase) -> Stored {
        let weights = Drawn::new(Dtype::F16);
        let plan = case.plan(1, &weights).expect("the networks are known");
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let index = json!({ "_class_name": "UnCLIPPipeline", COMPONENT: ["diffusers", "UNet2DConditionModel"] });
        fs::write(folder.path().join("model_index.json"), index.to_string()).expect("there is room");
        fs::create_dir(folder.path().join(COMPONENT)).expect("the folder is empty");
        let mut end = 0;
        let mut header = serde_json::Map::new();
        for (name, id) in plan.weights() {
            let (shape, start) = (plan.shape(id), end);
            end += 2 * elements(shape);
            header.insert(name.to_owned(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
        }
        // Spaces let the tensors begin at a multiple of eight bytes, as the format's own writer does.
        let mut header = serde_json::Value::from(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let file = folder.path().join(COMPONENT).join("diffusion_pytorch_model.safetensors");
        let mut file = BufWriter::new(File::create(file).expect("the folder is empty"));
        let mut put = |bytes: &[u8]| file.write_all(bytes).expect("there is room");
        put(&(header.len() as u64).to_le_bytes());
        put(header.as_bytes());
        plan.weights().for_each(|(name, _)| put(weights.load(name).expect("the plan asked for it").bytes()));
        file.flush().expect("there is room");
        let checkpoint = Checkpoint::open(folder.path(), LoadOptions::default()).expect("it was just written");
        Stored { checkpoint, plan, _folder: folder }
    }

    /// Opens the file and loads it, so many times.
    fn load(&self, backend: &dyn Backend, count: u64) -> Used {
        let resident = reset_peak();
        let (began, processor) = (Instant::now(), processor_seconds());
        for _ in 0..count {
            let component = self.checkpoint.component(COMPONENT).expect("it was just written");
            backend.load(&self.plan, &component, None).expect("there is memory");
        }
        let mean = |total: f64| total / count as f64;
        Used {
            seconds: mean(began.elapsed().as_secs_f64()),
            processor_seconds: mean(processor_seconds() - processor),
            peak_kib: memory_kib("VmHWM:").saturating_sub(resident),
        }
    }
}

/// What one load took.
#[derive(Clone, Copy)]
struct Used {
    seconds: f64,
    processor_seconds: f64,
    peak_kib: u64,
}

impl Used {
    /// The lesser times, and the larger memory.
    fn or_less(self, other: Used) -> Used {
        Used {
            seconds: self.seconds.min(other.seconds),
            processor_seconds: self.processor_seconds.min(other.processor_seconds),
            peak_kib: self.peak_kib.max(other.peak_kib),
        }
    }

    fn of_bytes(self, bytes: u64) -> String {
        let per_gb = |seconds: f64| seconds / (bytes as f64 / 1e9);
        let Used { seconds, processor_seconds, peak_kib } = self;
        format!(
            "{seconds:.3} s, {:.3} s per GB; {:.3} s of processors per GB; {} MiB at the peak",
            per_gb(seconds),
            per_gb(processor_seconds),
            peak_kib / 1024
        )
    }
}

/// User and system time of all threads; 0 where the system does not say.
fn processor_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces: the state, and from the twelfth field on the times in hundredths.
    let behind = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    behind.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Lets the peak begin anew; the memory at present.
fn reset_peak() -> u64 {
    _ = fs::write("/proc/self/clear_refs", "5");
    memory_kib("VmRSS:")
}

/// A line of the process's status; 0 where there is none.
fn memory_kib(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
