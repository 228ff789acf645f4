//! Compiled kernels kept on disk from one run to the next, where the adapter can say what it compiled.
//!
//! A cache is a convenience: a file that is missing, damaged or of another driver is ignored, and a folder that cannot be
//! written costs nothing but time.
#![allow(unsafe_code)]

use super::adapters::Adapter;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One adapter's file in a cache folder.
pub struct Cache {
    pub pipelines: wgpu::PipelineCache,
    file: PathBuf,
    /// Whether something was compiled that the file does not hold.
    changed: AtomicBool,
}

impl Cache {
    /// The adapter's cache, filled from its file; `None` where adapters of this kind have none.
    pub fn open(device: &wgpu::Device, adapter: &Adapter, folder: &Path) -> Option<Cache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(file_name(&wgpu::util::pipeline_cache_key(&device.adapter_info())?, adapter));
        let data = std::fs::read(&file).ok().and_then(unsealed);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the sum says that these bytes are what `save` below got from wgpu, for an adapter and a driver of this
        // file's name. wgpu puts a header with the driver's own identity before them, checks that, and starts empty
        // where it does not match.
        let pipelines = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Cache { pipelines, file, changed: AtomicBool::new(false) })
    }

    /// Notes that a kernel was compiled.
    pub fn grew(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes what was added, beside the file first, so that no reader sees half of it.
    pub fn save(&self) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.pipelines.get_data() else { return };
        let mut beside = self.file.clone().into_os_string();
        beside.push(format!(".{}.part", std::process::id()));
        let written = std::fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))
            .and_then(|()| std::fs::write(&beside, sealed(data)))
            .and_then(|()| std::fs::rename(&beside, &self.file));
        if written.is_err() {
            _ = std::fs::remove_file(&beside);
        }
    }
}

/// wgpu's key names maker and model; what a driver compiled is of use to no other driver, nor to another release of it.
fn file_name(key: &str, adapter: &Adapter) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    // File systems take names of 255 bytes.
    format!("{key}_{}", adapter.driver).chars().map(plain).take(200).collect()
}

/// Drivers trust what they are given, so that a file is only used if its last eight bytes are the sum of the others.
fn sealed(mut data: Vec<u8>) -> Vec<u8> {
    data.extend(sum(&data));
    data
}

fn unsealed(mut data: Vec<u8>) -> Option<Vec<u8>> {
    let length = data.len().checked_sub(8)?;
    let expected = data.split_off(length);
    (sum(&data)[..] == expected).then_some(data)
}

fn sum(data: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_one_wrong_bit_or_cut_short_is_no_cache() {
        let whole = sealed((0..100).collect());
        assert_eq!(unsealed(whole.clone()), Some((0..100).collect()));
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            assert_eq!(unsealed(damaged), None, "byte {i}");
            assert_eq!(unsealed(whole[..i].to_vec()), None, "{i} bytes");
        }
    }
}
