//! NVIDIA's driver as a [`Driver`]: the only module that calls it, through cudarc, which loads libcuda at run time.
//!
//! Calls go to one stream, so they execute in order and memory needs no further synchronisation; weights come through a
//! second one, see [`uploads`]. While one thread captures, calls of other threads to the first stream wait. [`Gpu::open`]
//! first checks that libcuda exists, because cudarc panics without it.

#![allow(unsafe_code, reason = "calls of a C library")]

mod events;
mod uploads;

use super::device::{Call, CaptureLock, CapturedGraph, Driver, LoadedKernel, Slab, Uploads, out_of_memory};
use super::tensor_map::{Swizzle, TensorMap};
use super::{HOPPER, kernels};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uploads::{GpuUploads, Lane};

/// Minimum CUDA version of the driver, 11.8: the first with every function that is called here, launches with attributes
/// among them. cudarc panics where one is missing.
const MIN_DRIVER: i32 = 11_080;
/// Minimum on Hopper, 12.0: the first with tensor maps and PTX 8.0, the version of the Hopper kernels.
const MIN_DRIVER_HOPPER: i32 = 12_000;
/// Size of the buffer for the PTX assembler's error log.
const LOG_BYTES: usize = 4096;
/// Minimum compute capability of the kernels.
const MIN_CAPABILITY: (i32, i32) = (8, 0);

struct Function {
    entry: &'static str,
    handle: sys::CUfunction,
    kernel: LoadedKernel,
    /// The function's present limit of dynamic shared memory: the largest that a launch has needed so far.
    shared_bytes: u32,
}

#[derive(Default)]
struct State {
    modules: Vec<sys::CUmodule>,
    functions: Vec<Function>,
    /// Captured graphs by their handles.
    graphs: Slab<sys::CUgraphExec>,
}

/// A GPU.
pub(super) struct Gpu {
    name: String,
    capability: (u32, u32),
    memory_bytes: Option<u64>,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    capture_lock: CaptureLock,
    state: Mutex<State>,
    /// A stream for uploads that no load is using.
    idle_lane: Mutex<Option<Lane>>,
}

// SAFETY: the fields are handles of the driver. Its functions may be called from any thread whose current context is
// this one, and `Gpu::enter` makes it current before every call.
unsafe impl Send for Gpu {}
// SAFETY: as above; all other state is behind a mutex.
unsafe impl Sync for Gpu {}

fn failed(name: &str, doing: &str, error: DriverError) -> Error {
    let said = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    let (backend, reason) = (name.to_owned(), format!("{doing}: {said} ({:?})", error.0));
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { backend, reason },
        _ => Error::Device { backend, reason },
    }
}

/// Initialises the driver; returns the number of GPUs and the CUDA version. Errors name `backend`.
///
/// # Errors
/// No driver, or one that is too old.
pub(super) fn start(backend: &str) -> Result<(usize, i32)> {
    let check = |doing: &'static str| move |error: DriverError| failed(backend, doing, error);
    // SAFETY: only opens the library and closes it again.
    if !unsafe { sys::is_culib_present() } {
        let reason = "not available: this machine has no NVIDIA driver (libcuda)".to_owned();
        return Err(Error::Device { backend: backend.to_owned(), reason });
    }
    cu::init().map_err(check("starting the driver"))?;
    let mut version = 0;
    // SAFETY: writes one integer to memory that outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(check("reading the driver's version"))?;
    require(backend, version, MIN_DRIVER)?;
    let count = cu::device::get_count().map_err(check("counting GPUs"))?;
    Ok((usize::try_from(count).unwrap_or(0), version))
}

fn require(backend: &str, version: i32, minimum: i32) -> Result<()> {
    let show = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    let reason = format!("the driver supports CUDA {}, needed is {} or newer", show(version), show(minimum));
    if version < minimum { Err(Error::Device { backend: backend.to_owned(), reason }) } else { Ok(()) }
}

impl Gpu {
    /// Opens the GPU with this index.
    ///
    /// # Errors
    /// No driver, a driver that is too old, no such GPU, or a compute capability below 8.0.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let backend = format!("cuda:{ordinal}");
        let refuse = |reason: String| Error::Device { backend: backend.clone(), reason };
        let check = |doing: &'static str| {
            let backend = backend.clone();
            move |error: DriverError| failed(&backend, doing, error)
        };
        let (count, version) = start(&backend)?;
        let index = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let index = index.ok_or_else(|| refuse(format!("no such GPU, the driver sees {count}")))?;
        let device = cu::device::get(index).map_err(check("opening the GPU"))?;
        let attribute = |which| {
            // SAFETY: `device` was returned by the driver just now.
            unsafe { cu::device::get_attribute(device, which) }.map_err(check("reading the compute capability"))
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let model = cu::device::get_name(device).map_err(check("reading the GPU's name"))?;
        if (major, minor) < MIN_CAPABILITY {
            let reason =
                format!("{model} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or newer");
            return Err(refuse(reason));
        }
        let capability = (major.unsigned_abs(), minor.unsigned_abs());
        if capability == HOPPER {
            require(&backend, version, MIN_DRIVER_HOPPER)?;
        }
        // SAFETY: `device` was returned by the driver.
        let memory_bytes = unsafe { cu::device::total_mem(device) }.ok().map(|bytes| bytes as u64);
        // SAFETY: `device` was returned by the driver; the context is released once, when the `Gpu` is dropped.
        let context = unsafe { cu::primary_ctx::retain(device) }.map_err(check("opening a context"))?;
        // SAFETY: `context` is retained.
        let current = unsafe { cu::ctx::set_current(context) };
        let stream = current.and_then(|()| cu::stream::create(cu::stream::StreamKind::NonBlocking));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // SAFETY: retained above and not used again.
                _ = unsafe { cu::primary_ctx::release(device) };
                return Err(check("opening a stream")(error));
            }
        };
        let name = format!("{backend} ({model}, sm_{major}{minor})");
        let (capture_lock, state) = (CaptureLock::default(), Mutex::default());
        let idle_lane = Mutex::default();
        Ok(Gpu { name, capability, memory_bytes, device, context, stream, capture_lock, state, idle_lane })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context current in this thread.
    fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("entering the context", unsafe { cu::ctx::set_current(self.context) })
    }

    /// Waits for captures of other threads to end, and makes the context current in this thread.
    fn enter(&self) -> Result<Option<MutexGuard<'_, ()>>> {
        let guard = self.capture_lock.acquire();
        self.make_current()?;
        Ok(guard)
    }

    fn wait(&self, doing: &str) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(|e| failed(&self.name, doing, e))
    }

    /// A tensor map in the driver's encoding.
    fn encode(&self, map: &TensorMap, label: &str) -> Result<sys::CUtensorMap> {
        let refuse =
            |reason: String| Error::Device { backend: self.name.clone(), reason: format!("{label}: {reason}") };
        map.check().map_err(refuse)?;
        let element = match map.dtype {
            Dtype::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Dtype::F32 | Dtype::U32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            other => unreachable!("no value of a plan is {other}"),
        };
        let swizzle = match map.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut encoded = std::mem::MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: every array has one entry per dimension, the strides one less, as `check` ensures, and all outlive
        // the call. The address is stored, not read. On success the whole map is written.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                encoded.as_mut_ptr(),
                element,
                map.dims.len() as u32,
                map.tensor.address as *mut c_void,
                map.dims.as_ptr(),
                map.strides.as_ptr(),
                map.tile.as_ptr(),
                map.steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|e| failed(&self.name, label, e))?;
            Ok(encoded.assume_init())
        }
    }

    /// Loads a PTX module. The error contains the assembler's log.
    fn assemble(&self, text: &CStr, doing: &str) -> Result<sys::CUmodule> {
        let mut log = vec![0; LOG_BYTES];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The API passes integers as pointers of that value.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::mem::MaybeUninit::uninit();
        // SAFETY: the text is NUL-terminated. The text, both arrays of two, and the log, whose length the second option
        // gives, outlive the call. On success the module is written.
        unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            let done = sys::cuModuleLoadDataEx(module.as_mut_ptr(), text.as_ptr().cast(), 2, options, values).result();
            if let Err(error) = done {
                let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
                let doing = [doing, said.trim()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>();
                return Err(failed(&self.name, &doing.join(": "), error));
            }
            Ok(module.assume_init())
        }
    }

    /// Frees memory that no call under way uses.
    fn free_idle(&self, address: u64) {
        let Ok(_guard) = self.enter() else { return };
        // SAFETY: the address came from `allocate`, its owner frees it once, and says that it is idle.
        _ = unsafe { cu::free_sync(address) };
    }

    /// Launches a kernel. The caller has made the context current.
    fn launch_on(&self, call: &Call, stream: sys::CUstream) -> Result<()> {
        let maps = call.maps.iter().map(|map| self.encode(map, &call.label)).collect::<Result<Vec<_>>>()?;
        let maps = maps.iter().map(|map| std::ptr::from_ref(map).cast::<c_void>().cast_mut());
        let mut pointers: Vec<u64> = call.tensors.iter().map(|t| t.address).collect();
        let mut scalars = call.scalars.clone();
        let pointers = pointers.iter_mut().map(|p| std::ptr::from_mut(p).cast::<c_void>());
        let scalars = scalars.iter_mut().map(|s| std::ptr::from_mut(s).cast::<c_void>());
        let mut parameters: Vec<*mut c_void> = maps.chain(pointers).chain(scalars).collect();
        let [x, y, z] = call.grid;
        let shared = call.shared_bytes;
        let mut state = self.state();
        let function = &mut state.functions[call.kernel.index];
        let handle = function.handle;
        // The limit is never lowered, because captured graphs may contain launches that need it.
        if shared > function.shared_bytes {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe { sys::cuFuncSetAttribute(handle, limit, shared.cast_signed()) };
            self.check(&call.label, set.result())?;
            // As much of the cache as shared memory as there is, so that as many blocks fit as the kernel is made for.
            let share = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: as above.
            let set = unsafe { sys::cuFuncSetAttribute(handle, share, 100) };
            self.check(&call.label, set.result())?;
            function.shared_bytes = shared;
        }
        drop(state);
        let mut attribute = cluster_of(call.cluster);
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: call.kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the function belongs to a loaded module. Its parameters are tensor maps, 64-bit pointers and 32-bit
        // scalars in this order; the driver copies them, the configuration and its attribute before it returns. The
        // emulator checks for the same calls that their number, order and sizes match the kernel and that the kernel
        // stays inside its tensors.
        let launched = unsafe {
            if call.cluster > 1 {
                // Only Hopper's kernels have clusters, and its drivers this function.
                let parameters = parameters.as_mut_ptr();
                sys::cuLaunchKernelEx(&raw const config, handle, parameters, std::ptr::null_mut()).result()
            } else {
                cu::launch_kernel(handle, (x, y, z), (call.kernel.threads, 1, 1), shared, stream, &mut parameters)
            }
        };
        launched.map_err(|e| failed(&self.name, &call.label, e))
    }

    fn check<T>(&self, doing: &str, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|e| failed(&self.name, doing, e))
    }
}

/// The attribute of a launch in clusters of so many blocks, neighbours in the grid's third dimension.
fn cluster_of(blocks: u32) -> sys::CUlaunchAttribute {
    let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: blocks };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: size },
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        let _guard = self.enter().ok()?;
        cu::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        let _guard = self.enter()?;
        // SAFETY: the contents are uninitialised. No kernel or copy reads them before they are written; the emulator
        // checks this for every plan of the tests.
        let allocated = unsafe { cu::malloc_sync(bytes as usize) };
        if let Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) = allocated {
            let free = cu::mem_get_info().map_or(0, |(free, _)| free);
            return Err(out_of_memory(&self.name, bytes, free as u64));
        }
        self.check("allocating memory", allocated)
    }

    fn free(&self, address: u64) {
        // A lost device has already lost its memory.
        let Ok(_guard) = self.enter() else { return };
        if self.wait("waiting").is_ok() {
            // SAFETY: the address came from `allocate`, its owner frees it once, and the stream is idle.
            _ = unsafe { cu::free_sync(address) };
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the owner of the allocation keeps `address .. address + bytes.len()` inside it, and `bytes` outlives
        // the copy, which the next line waits for.
        let copied = unsafe { cu::memcpy_htod_async(address, bytes, self.stream) };
        self.check("copying to the GPU", copied)?;
        self.wait("copying to the GPU")
    }

    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let _guard = self.enter()?;
        let mut out = vec![0; bytes];
        // SAFETY: as for `write`; `out` outlives the copy, which is waited for below.
        let copied = unsafe { cu::memcpy_dtoh_async(&mut out, address, self.stream) };
        self.check("copying from the GPU", copied)?;
        self.wait("running kernels")?;
        Ok(out)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the owner of the allocations keeps both ranges inside them. The stream orders the copy after writes
        // of `from` and before reads of `to`.
        let copied = unsafe { cu::memcpy_dtod_async(to, from, bytes as usize, self.stream) };
        self.check("copying on the GPU", copied)
    }

    fn load(&self, text: &'static str, entry: &'static str) -> Result<LoadedKernel> {
        let _guard = self.enter()?;
        let mut state = self.state();
        if let Some(known) = state.functions.iter().find(|f| f.entry == entry) {
            return Ok(known.kernel);
        }
        let refuse = |reason: &str| Error::Device { backend: self.name.clone(), reason: format!("{entry}: {reason}") };
        let image = CString::new(text).map_err(|_| refuse("the PTX text contains a NUL byte"))?;
        let name = CString::new(entry).map_err(|_| refuse("the entry's name contains a NUL byte"))?;
        let threads = kernels::threads(text, entry).ok_or_else(|| refuse("the kernel has no .reqntid"))?;
        let doing = format!("loading the kernel {entry}");
        let module = self.assemble(&image, &doing)?;
        state.modules.push(module);
        // SAFETY: the module was loaded just now and stays loaded while `self` lives.
        let handle = self.check(&doing, unsafe { cu::module::get_function(module, name) })?;
        let kernel = LoadedKernel { index: state.functions.len(), threads };
        state.functions.push(Function { entry, handle, kernel, shared_bytes: 0 });
        Ok(kernel)
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let _guard = self.enter()?;
        self.launch_on(call, self.stream)
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CapturedGraph> {
        let _guard = self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        self.check("capturing", unsafe { cu::stream::begin_capture(self.stream, mode) })?;
        let recorded = self.capture_lock.record(record);
        // SAFETY: the capture was begun above and must end even if a call in it failed.
        let graph = unsafe { cu::stream::end_capture(self.stream) };
        let executable = match (recorded, graph) {
            (Ok(()), Ok(graph)) => {
                // SAFETY: the graph is valid.
                let made = unsafe { cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
                // SAFETY: the executable graph does not depend on the graph it was instantiated from.
                _ = unsafe { cu::graph::destroy(graph) };
                self.check("preparing the captured steps", made)?
            }
            (Ok(()), Err(error)) => return self.check("capturing", Err(error)),
            (Err(error), graph) => {
                // SAFETY: as above.
                _ = graph.map(|graph| unsafe { cu::graph::destroy(graph) });
                return Err(error);
            }
        };
        Ok(CapturedGraph(self.state().graphs.insert(executable)))
    }

    fn replay(&self, graph: CapturedGraph) -> Result<()> {
        let _guard = self.enter()?;
        let Some(executable) = self.state().graphs.get(graph.0).copied() else { return Ok(()) };
        // SAFETY: executables in the slab are valid; `release` takes them out before it destroys them, and the handle's
        // owner does not use it after `release`.
        self.check("replaying a step", unsafe { cu::graph::launch(executable, self.stream) })
    }

    fn time(&self, calls: &[&Call]) -> Result<Vec<f64>> {
        self.time_each(calls)
    }

    fn finish(&self) -> Result<()> {
        let _guard = self.enter()?;
        self.wait("waiting for the steps")
    }

    fn release(&self, graph: CapturedGraph) {
        let executable = self.state().graphs.remove(graph.0);
        let Ok(_guard) = self.enter() else { return };
        if let (Some(executable), true) = (executable, self.wait("waiting").is_ok()) {
            // SAFETY: taken out above, so it is destroyed once, and the stream is idle.
            _ = unsafe { cu::graph::exec_destroy(executable) };
        }
    }

    fn uploads(&self) -> Result<Box<dyn Uploads + '_>> {
        Ok(Box::new(GpuUploads::open(self)?))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        _ = self.wait("closing");
        let state = std::mem::take(&mut *self.state());
        let lane = self.idle_lane.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // SAFETY: all of it was created by this `Gpu`, is destroyed once, and is unreachable afterwards. A lane that a load
        // has left is idle.
        unsafe {
            lane.into_iter().for_each(|lane| lane.close());
            state.graphs.into_values().for_each(|graph| _ = cu::graph::exec_destroy(graph));
            state.modules.into_iter().for_each(|module| _ = cu::module::unload(module));
            _ = cu::stream::destroy(self.stream);
            _ = cu::primary_ctx::release(self.device);
        }
    }
}
