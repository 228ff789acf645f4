//! Compiled kernels kept on disk from one run to the next, where the adapter can say what it compiled.
//!
//! A cache is a convenience: a file that is missing, damaged or of another driver is ignored, and a folder that cannot be
//! written costs nothing but time.
#![allow(unsafe_code)]

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
    pub fn open(device: &wgpu::Device, folder: &Path) -> Option<Cache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(wgpu::util::pipeline_cache_key(&device.adapter_info())?);
        let data = std::fs::read(&file).ok();
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the file was written by `save` below from what wgpu handed out for an adapter of this key. wgpu puts a
        // header with driver and version before it, checks that, and starts empty where it does not match.
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
        let beside = self.file.with_extension(format!("{}.part", std::process::id()));
        let written = std::fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))
            .and_then(|()| std::fs::write(&beside, data))
            .and_then(|()| std::fs::rename(&beside, &self.file));
        if written.is_err() {
            _ = std::fs::remove_file(&beside);
        }
    }
}
