//! NVIDIA's driver as a device: the only place that calls it, by way of cudarc, which opens the library at run time.
//!
//! One stream carries everything, so that calls happen in the order in which they were made and memory needs no other
//! protection; while it captures one thread's calls, those of others wait. Whether there is a driver at all is asked first,
//! because the binding panics where the library is missing.

#![allow(unsafe_code, reason = "calls of a C library")]

use super::device::{Call, Captured, Driver, Loaded, Turns};
use super::tensor_map::{Swizzle, TensorMap};
use super::{HOPPER, kernels};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The oldest version of the driver's interface that has all functions that are called here, as it counts: 11.4.
const OLDEST: i32 = 11_040;
/// The same for a GPU with warpgroups: tensor maps, and the version 8.0 of PTX that their kernels are written in.
const OLDEST_FOR_WARPGROUPS: i32 = 12_000;
/// Most of what the assembler says about a kernel that it does not take.
const LOG_BYTES: usize = 4096;
/// The oldest compute capability that the kernels are written for.
const CAPABILITY: (i32, i32) = (8, 0);

struct Function {
    entry: &'static str,
    handle: sys::CUfunction,
    loaded: Loaded,
    /// Most shared memory that a launch has asked for, which the function is allowed.
    shared_bytes: u32,
}

#[derive(Default)]
struct State {
    modules: Vec<sys::CUmodule>,
    functions: Vec<Function>,
    graphs: Vec<Option<sys::CUgraphExec>>,
}

/// A GPU.
pub(super) struct Gpu {
    name: String,
    capability: (u32, u32),
    memory_bytes: Option<u64>,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    turns: Turns,
    state: Mutex<State>,
}

// SAFETY: the handles are numbers and pointers that the driver hands out, and its functions may be called from any thread
// once the context has been made that thread's own, which `Gpu::enter` does before every call.
unsafe impl Send for Gpu {}
// SAFETY: as above; what this module keeps beside the handles is behind a mutex.
unsafe impl Sync for Gpu {}

fn failed(name: &str, doing: &str, error: DriverError) -> Error {
    let said = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    Error::Device { backend: name.to_owned(), reason: format!("{doing}: {said} ({:?})", error.0) }
}

/// Starts the driver: how many GPUs it sees, and the version of its interface. `backend` stands before errors.
///
/// # Errors
/// There is no driver, or it is too old.
pub(super) fn start(backend: &str) -> Result<(usize, i32)> {
    let check = |doing: &'static str| move |error: DriverError| failed(backend, doing, error);
    // SAFETY: only looks for the library and closes it again.
    if !unsafe { sys::is_culib_present() } {
        let reason = "not available: this machine has no NVIDIA driver (libcuda)".to_owned();
        return Err(Error::Device { backend: backend.to_owned(), reason });
    }
    cu::init().map_err(check("starting the driver"))?;
    let mut version = 0;
    // SAFETY: writes one integer to a place that outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(check("asking for the driver's version"))?;
    require(backend, version, OLDEST)?;
    let count = cu::device::get_count().map_err(check("counting GPUs"))?;
    Ok((usize::try_from(count).unwrap_or(0), version))
}

fn require(backend: &str, version: i32, oldest: i32) -> Result<()> {
    let show = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    let reason = format!("the driver knows CUDA {}, at least {} is needed", show(version), show(oldest));
    if version < oldest { Err(Error::Device { backend: backend.to_owned(), reason }) } else { Ok(()) }
}

impl Gpu {
    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// There is no driver, it is too old, there is no such GPU, or its compute capability is below 8.0.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let backend = format!("cuda:{ordinal}");
        let refuse = |reason: String| Error::Device { backend: backend.clone(), reason };
        let check = |doing: &'static str| {
            let backend = backend.clone();
            move |error: DriverError| failed(&backend, doing, error)
        };
        let (count, version) = start(&backend)?;
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or_else(|| refuse(format!("there is no such GPU, the driver sees {count}")))?;
        let device = cu::device::get(number).map_err(check("opening the GPU"))?;
        let attribute = |which| {
            // SAFETY: `device` was returned by the driver just now.
            unsafe { cu::device::get_attribute(device, which) }.map_err(check("asking for the compute capability"))
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let model = cu::device::get_name(device).map_err(check("asking for the GPU's name"))?;
        if (major, minor) < CAPABILITY {
            let reason =
                format!("{model} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or newer");
            return Err(refuse(reason));
        }
        let capability = (major.unsigned_abs(), minor.unsigned_abs());
        if capability == HOPPER {
            require(&backend, version, OLDEST_FOR_WARPGROUPS)?;
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
        let (turns, state) = (Turns::default(), Mutex::default());
        Ok(Gpu { name, capability, memory_bytes, device, context, stream, turns, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a call's turn and makes the context the calling thread's.
    fn enter(&self) -> Result<Option<MutexGuard<'_, ()>>> {
        let turn = self.turns.take();
        // SAFETY: the context is retained as long as `self` lives.
        let entered = unsafe { cu::ctx::set_current(self.context) };
        entered.map_err(|e| failed(&self.name, "entering the context", e))?;
        Ok(turn)
    }

    fn wait(&self, doing: &str) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(|e| failed(&self.name, doing, e))
    }

    /// A tensor map as kernels take it.
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
        // SAFETY: every list has as many numbers as the map has dimensions, one less of strides, which `check` has made
        // sure of, and all outlive the call; the address is only noted. The map is written whole if the call succeeds.
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

    /// Loads a module of PTX. The error says what the driver's assembler has against it.
    fn assemble(&self, text: &CStr, doing: &str) -> Result<sys::CUmodule> {
        let mut log = vec![0; LOG_BYTES];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // A number is handed over as a pointer of that value.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::mem::MaybeUninit::uninit();
        // SAFETY: the text ends in a zero; it, the lists of two and the log, as long as the second option says, outlive the
        // call. The module is written if the call succeeds.
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

    fn check<T>(&self, doing: &str, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|e| failed(&self.name, doing, e))
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

    fn allocate(&self, bytes: u64) -> Result<u64> {
        let _turn = self.enter()?;
        // SAFETY: the contents are unset; nothing reads them before a kernel or a copy has written them, which the
        // emulator checks for every plan that tests run.
        let allocated = unsafe { cu::malloc_sync(bytes as usize) };
        if let Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) = allocated {
            let free = cu::mem_get_info().map_or(0, |(free, _)| free);
            let reason = format!("out of memory: {bytes} bytes are needed and {free} are free");
            return Err(Error::Device { backend: self.name.clone(), reason });
        }
        self.check("reserving memory", allocated)
    }

    fn free(&self, address: u64) {
        // A device that is lost has no memory to give back either.
        let Ok(_turn) = self.enter() else { return };
        if self.wait("waiting").is_ok() {
            // SAFETY: the address came from `allocate`, its owner gives it back once, and the stream is idle.
            _ = unsafe { cu::free_sync(address) };
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let _turn = self.enter()?;
        // SAFETY: the owner of the allocation keeps `address .. address + bytes.len()` inside of it, and `bytes` outlives
        // the copy, which is waited for.
        let copied = unsafe { cu::memcpy_htod_async(address, bytes, self.stream) };
        self.check("copying to the GPU", copied)?;
        self.wait("copying to the GPU")
    }

    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let _turn = self.enter()?;
        let mut out = vec![0; bytes];
        // SAFETY: as for `write`; `out` outlives the copy, which is waited for.
        let copied = unsafe { cu::memcpy_dtoh_async(&mut out, address, self.stream) };
        self.check("copying from the GPU", copied)?;
        self.wait("running kernels")?;
        Ok(out)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let _turn = self.enter()?;
        // SAFETY: the owner of the allocations keeps both ranges inside of them, and the stream orders the copy behind
        // whatever writes `from` and before whatever reads `to`.
        let copied = unsafe { cu::memcpy_dtod_async(to, from, bytes as usize, self.stream) };
        self.check("copying on the GPU", copied)
    }

    fn load(&self, text: &'static str, entry: &'static str) -> Result<Loaded> {
        let _turn = self.enter()?;
        let mut state = self.state();
        if let Some(known) = state.functions.iter().find(|f| f.entry == entry) {
            return Ok(known.loaded);
        }
        let refuse = |reason: &str| Error::Device { backend: self.name.clone(), reason: format!("{entry}: {reason}") };
        let image = CString::new(text).map_err(|_| refuse("the kernel's text has a zero in it"))?;
        let name = CString::new(entry).map_err(|_| refuse("the entry's name has a zero in it"))?;
        let threads = kernels::threads(text, entry).ok_or_else(|| refuse("the kernel does not say its block size"))?;
        let doing = format!("loading the kernel {entry}");
        let module = self.assemble(&image, &doing)?;
        state.modules.push(module);
        // SAFETY: the module was loaded just now and stays loaded as long as `self` lives.
        let handle = self.check(&doing, unsafe { cu::module::get_function(module, name) })?;
        let loaded = Loaded { number: state.functions.len(), threads };
        state.functions.push(Function { entry, handle, loaded, shared_bytes: 0 });
        Ok(loaded)
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let _turn = self.enter()?;
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
        let function = &mut state.functions[call.kernel.number];
        let handle = function.handle;
        // Never less again, for captured launches may have asked for more.
        if shared > function.shared_bytes {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe { sys::cuFuncSetAttribute(handle, most, shared.cast_signed()) };
            self.check(&call.label, set.result())?;
            function.shared_bytes = shared;
        }
        drop(state);
        // SAFETY: the function belongs to a loaded module; its parameters are tensor maps, pointers of 64 bits, and
        // numbers of 32 bits in the order of the call, which the driver copies before it returns. That number, order and
        // sizes are those of the kernel, and that it stays inside the tensors, is what the emulator checks for the same
        // calls.
        let launched = unsafe {
            cu::launch_kernel(handle, (x, y, z), (call.kernel.threads, 1, 1), shared, self.stream, &mut parameters)
        };
        launched.map_err(|e| failed(&self.name, &call.label, e))
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Captured> {
        let _turn = self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        self.check("capturing", unsafe { cu::stream::begin_capture(self.stream, mode) })?;
        let recorded = self.turns.capture(record);
        // SAFETY: the capture was begun above, and ends whatever became of the calls in it.
        let graph = unsafe { cu::stream::end_capture(self.stream) };
        let executable = match (recorded, graph) {
            (Ok(()), Ok(graph)) => {
                // SAFETY: the graph is valid.
                let made = unsafe { cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
                // SAFETY: the graph is not needed any more: what was made of it stands by itself.
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
        let mut state = self.state();
        state.graphs.push(Some(executable));
        Ok(Captured(state.graphs.len() - 1))
    }

    fn replay(&self, captured: Captured) -> Result<()> {
        let _turn = self.enter()?;
        let Some(graph) = self.state().graphs[captured.0] else { return Ok(()) };
        // SAFETY: the graph is valid until `release`, after which its number is not used again.
        self.check("replaying a step", unsafe { cu::graph::launch(graph, self.stream) })
    }

    fn finish(&self) -> Result<()> {
        let _turn = self.enter()?;
        self.wait("waiting for the steps")
    }

    fn release(&self, captured: Captured) {
        let graph = self.state().graphs[captured.0].take();
        let Ok(_turn) = self.enter() else { return };
        if let (Some(graph), true) = (graph, self.wait("waiting").is_ok()) {
            // SAFETY: taken out above, so it is destroyed once, and the stream is idle.
            _ = unsafe { cu::graph::exec_destroy(graph) };
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        _ = self.wait("closing");
        let state = std::mem::take(&mut *self.state());
        // SAFETY: everything was made by this `Gpu`, is destroyed once, and nobody can use it any more.
        unsafe {
            state.graphs.into_iter().flatten().for_each(|graph| _ = cu::graph::exec_destroy(graph));
            state.modules.into_iter().for_each(|module| _ = cu::module::unload(module));
            _ = cu::stream::destroy(self.stream);
            _ = cu::primary_ctx::release(self.device);
        }
    }
}
