//! The networks of other families than Karlo's against diffusers: given what the original was given, they answer what it
//! answered, on every back end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod families {
    mod autoencoders;
    mod kandinsky;
    #[cfg(feature = "tokenizer")]
    mod kandinsky_21;
    #[cfg(feature = "tokenizer")]
    mod kandinsky_edits;
    #[cfg(feature = "tokenizer")]
    mod kandinsky_pictures;
    mod stable_unclip;
    #[cfg(feature = "tokenizer")]
    mod stable_unclip_pictures;
    #[cfg(feature = "tokenizer")]
    mod together;
}

use std::path::Path;
use support::golden::{Recording, channels_last};
use unclip::Dtype;
use unclip::backend::Executable;
use unclip::cases::Tensors;
use unclip::weights::config::{self, Configured, Schema};

/// Largest error of an element relative to the tensor's root mean square.
const TOLERANCE: f64 = 1e-4;

/// Configuration and weights of a recorded model.
fn recorded_model<T: Schema>(recording: &Recording, name: &str) -> (Configured<T>, Tensors) {
    let config: Configured<T> =
        config::read(Path::new("config.json"), &recording.text(&format!("{name}/config"))).unwrap();
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    let mut weights = Tensors::default();
    for (full, _) in recording.tensors().tensors() {
        if let Some(tensor) = full.strip_prefix(&format!("{name}/weights/")) {
            let (shape, values) = recording.halves(&full);
            weights.insert(tensor, &shape, values, Dtype::F16);
        }
    }
    (config, weights)
}

/// Writes a recorded tensor as an input.
fn write(executable: &mut dyn Executable, input: &str, recording: &Recording, name: &str) {
    let (shape, values) = recording.get(name);
    executable.write(input, &channels_last(&shape, &values)).unwrap();
}

/// Holds that an output is the recorded one.
#[track_caller]
fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let rms = (want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let errors = got.iter().zip(want).map(|(g, w)| f64::from(g - w).abs() / rms);
    let worst = errors.fold(0.0, |worst, e| if e.is_nan() || e > worst { e } else { worst });
    println!("{what}: {worst:.1e}");
    assert!(worst <= TOLERANCE, "{what}: off by {worst:.1e} of the tensor's size");
}

/// A test for each back end.
macro_rules! on_every_backend {
    ($check:ident) => {
        #[test]
        fn on_the_cpu() {
            $check(&unclip::backend::cpu::Cpu::new(2).unwrap());
        }

        #[cfg(feature = "wgpu")]
        #[test]
        fn on_wgpu() {
            if let Some(adapter) = crate::support::adapters::storing(unclip::Dtype::F32) {
                $check(&adapter);
            }
        }

        #[cfg(feature = "cuda-emulator")]
        #[test]
        fn on_the_emulator() {
            $check(&unclip::backend::cuda::Cuda::emulator());
        }
    };
}
pub(crate) use on_every_backend;
