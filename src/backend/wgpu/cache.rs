//! Caches compiled kernels on disk, on adapters with pipeline caches.
//!
//! Failures are not errors: a file that is missing, damaged or from another driver is ignored, and without a writable
//! folder kernels are compiled again in every run.
#![allow(unsafe_code)]

use super::adapters::Adapter;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The cache of one adapter, backed by a file.
pub struct Cache {
    pub pipelines: wgpu::PipelineCache,
    file: PathBuf,
    /// Whether a kernel was compiled that is not in the file.
    changed: AtomicBool,
}

impl Cache {
    /// Opens the adapter's cache and loads its file; `None` if the adapter has no pipeline caches.
    pub fn open(device: &wgpu::Device, adapter: &Adapter, folder: &Path) -> Option<Cache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(file_name(&wgpu::util::pipeline_cache_key(&device.adapter_info())?, adapter));
        let data = std::fs::read(&file).ok().and_then(without_checksum);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: by their checksum these bytes are what `save` below got from wgpu, for the adapter and driver in the
        // file's name. wgpu prepends a header with the driver's identity, checks it, and starts with an empty cache on
        // a mismatch.
        let pipelines = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Cache { pipelines, file, changed: AtomicBool::new(false) })
    }

    /// Records that a kernel was compiled.
    pub fn mark_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes the cache if it changed: to a temporary file, which is then renamed, so that readers never see half of
    /// it.
    pub fn save(&self) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.pipelines.get_data() else { return };
        let mut temporary = self.file.clone().into_os_string();
        temporary.push(format!(".{}.part", std::process::id()));
        let written = std::fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))
            .and_then(|()| std::fs::write(&temporary, with_checksum(data)))
            .and_then(|()| std::fs::rename(&temporary, &self.file));
        if written.is_err() {
            _ = std::fs::remove_file(&temporary);
        }
    }
}

/// wgpu's key, which names vendor and model, with the driver's release: other releases cannot use the compiled kernels.
fn file_name(key: &str, adapter: &Adapter) -> String {
    let sanitised = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    // File systems limit names to 255 bytes.
    format!("{key}_{}", adapter.driver).chars().map(sanitised).take(200).collect()
}

/// Appends an eight-byte checksum, because drivers do not validate cached kernels.
fn with_checksum(mut data: Vec<u8>) -> Vec<u8> {
    data.extend(checksum(&data));
    data
}

/// Removes the checksum; `None` if it does not match.
fn without_checksum(mut data: Vec<u8>) -> Option<Vec<u8>> {
    let length = data.len().checked_sub(8)?;
    let expected = data.split_off(length);
    (checksum(&data)[..] == expected).then_some(data)
}

fn checksum(data: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_flipped_bit_or_cut_short_is_rejected() {
        let whole = with_checksum((0..100).collect());
        assert_eq!(without_checksum(whole.clone()), Some((0..100).collect()));
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            assert_eq!(without_checksum(damaged), None, "byte {i}");
            assert_eq!(without_checksum(whole[..i].to_vec()), None, "{i} bytes");
        }
    }
}
