#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::super::emulator::Emulator;
use super::*;
use crate::backend::Backend;
use crate::backend::cuda::Cuda;
use crate::dtype::Precision;
use crate::plan::{Graph, TensorData};
use crate::weights::{Checkpoint, Component, LoadOptions};
use half::{bf16, f16};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const ORDERS: [Order; 3] = [Order::Stored, Order::Rows, Order::Columns];

/// Tensors of any bits.
#[derive(Default)]
struct Raw {
    tensors: HashMap<String, (Vec<usize>, TensorData<'static>)>,
    opened: AtomicUsize,
}

impl Raw {
    /// A tensor of these bits; those of halves are in the lower sixteen.
    fn insert(&mut self, name: &str, shape: &[usize], dtype: Dtype, bits: impl Fn(usize) -> u32) {
        let bits: Vec<u32> = (0..elements(shape)).map(bits).collect();
        let data = match dtype {
            Dtype::F32 => TensorData::F32(bits.iter().map(|&b| f32::from_bits(b)).collect()),
            Dtype::F16 => TensorData::F16(bits.iter().map(|&b| f16::from_bits(b as u16)).collect()),
            Dtype::Bf16 => TensorData::Bf16(bits.iter().map(|&b| bf16::from_bits(b as u16)).collect()),
            other => panic!("{other}"),
        };
        self.tensors.insert(name.to_owned(), (shape.to_vec(), data));
    }
}

impl WeightSource for Raw {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.tensors.get(tensor).map(|(shape, data)| (data.dtype().into(), shape.clone()))
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(self.tensors[tensor].1.clone())
    }

    fn path(&self, _: &str) -> &Path {
        Path::new("memory")
    }
}

/// Loads tensors of one order and type, and reads them back.
fn loaded(emulator: &Emulator, source: &Raw, names: &[&str], order: Order, dtype: Dtype) -> Vec<Vec<u8>> {
    let transfers: Vec<Transfer<'_>> = names
        .iter()
        .map(|&name| {
            let shape = &source.tensors[name].0;
            let bytes = order.size_bytes(shape, dtype);
            let place = DeviceSlice { address: emulator.allocate(bytes).unwrap(), bytes, written: false };
            Transfer { name, shape, order, dtype, place }
        })
        .collect();
    load(emulator, &transfers, source).unwrap();
    let read = |transfer: &Transfer<'_>| emulator.read(transfer.place.address, transfer.place.bytes as usize).unwrap();
    transfers.iter().map(read).collect()
}

/// An element in another type, by the arithmetic of the types: the bits, and whether it is a NaN.
fn converted(bits: u32, stored: Dtype, dtype: Dtype, rounds: bool) -> (u32, bool) {
    let value = match stored {
        Dtype::F16 => f16::from_bits(bits as u16).to_f32(),
        Dtype::Bf16 => f32::from_bits(bits << 16),
        _ => f32::from_bits(bits),
    };
    let new = match dtype {
        _ if dtype == stored && !rounds => bits,
        Dtype::F16 => u32::from(f16::from_f32(value).to_bits()),
        Dtype::Bf16 => u32::from(bf16::from_f32(value).to_bits()),
        // Half of the last kept unit is added to the magnitude, and what lies below that unit is cut off.
        _ if rounds && value.is_finite() => (value.to_bits() + (1 << 12)) >> 13 << 13,
        _ => value.to_bits(),
    };
    (new, value.is_nan())
}

/// Compares a tensor with what the stored one has at each of its places; `None` is padding.
fn check(got: &[u8], source: &TensorData<'_>, dtype: Dtype, rounds: bool, from: impl Fn(usize) -> Option<usize>) {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    let stored = source.dtype();
    for (i, bytes) in got.chunks(dtype.size_bytes()).enumerate() {
        let at = from(i);
        let bits = at.map(|at| word(&source.bytes()[at * stored.size_bytes()..][..stored.size_bytes()]));
        let (want, is_nan) = bits.map_or((0, false), |bits| converted(bits, stored, dtype, rounds));
        let got = word(bytes);
        // Every type has its own NaNs.
        let same = if is_nan && stored != dtype { converted(got, dtype, Dtype::F32, false).1 } else { got == want };
        assert!(same, "{stored} to {dtype}, element {i}: {bits:x?} became {got:#x}, not {want:#x}");
    }
}

/// Numbers near every border of the types: zeros, subnormals, ties, the largest, infinity, NaN.
fn edges(i: usize) -> u32 {
    let exponent = [0, 1, 89, 101, 102, 103, 112, 113, 126, 127, 128, 141, 142, 143, 253, 254, 255][i % 17];
    let fraction =
        [0, 1, 0xfff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_efff, 0x7f_f000, 0x7f_ffff]
            [i / 17 % 13];
    (i as u32 / 221 % 2) << 31 | exponent << 23 | fraction
}

#[test]
fn every_pattern_of_every_type_becomes_what_the_host_would_round_it_to() {
    let emulator = Emulator::new((8, 0));
    let mut source = Raw::default();
    source.insert("f32", &[34, 13], Dtype::F32, edges);
    source.insert("f16", &[1 << 16], Dtype::F16, |i| i as u32);
    source.insert("bf16", &[1 << 16], Dtype::Bf16, |i| i as u32);
    for dtype in TYPES {
        let names = ["f32", "f16", "bf16"];
        for (name, got) in names.iter().zip(loaded(&emulator, &source, &names, Order::Stored, dtype)) {
            check(&got, &source.tensors[*name].1, dtype, false, Some);
        }
    }
}

#[test]
fn matmul_weights_have_the_order_and_padding_that_kernels_read() {
    let emulator = Emulator::new((9, 0));
    // With and without taps and padding, one channel, more padding than channels, several blocks.
    let shapes: [&[usize]; 7] =
        [&[6, 3, 1, 2], &[5, 8], &[3, 16, 3, 3], &[9, 3], &[2, 1, 3, 3], &[1, 1], &[70, 33, 3, 3]];
    for (stored, dtype, order) in TYPES.iter().flat_map(|s| TYPES.iter().flat_map(move |d| ORDERS.map(|o| (*s, *d, o))))
    {
        let mut source = Raw::default();
        for shape in shapes {
            // Finite numbers of distinct bits.
            let bits = |i: usize| match stored {
                Dtype::F32 => 0x3f80_0000 + 0x11_1111 * (i as u32 % 7) + 3 * i as u32,
                _ => 0x3000 + i as u32 % 0x3000,
            };
            source.insert(&format!("{shape:?}"), shape, stored, bits);
        }
        let names: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (name, got) in names.iter().zip(loaded(&emulator, &source, &names, order, dtype)) {
            let (shape, data) = &source.tensors[*name];
            let (outputs, channels, taps) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
            // The stored place of output o at k = tap * channels + c.
            let place = |o: usize, k: usize| {
                (o < outputs && k < channels * taps).then_some((o * channels + k % channels) * taps + k / channels)
            };
            let (row, column) = (outputs.next_multiple_of(4), (channels * taps).next_multiple_of(8));
            let rounds = order == Order::Rows && dtype == Dtype::F32;
            check(&got, data, dtype, rounds, |i| match order {
                Order::Stored => Some(i),
                Order::Rows => place(i / column, i % column),
                Order::Columns => place(i % row, i / row),
            });
        }
    }
}

#[test]
fn weights_that_need_nothing_are_copied_without_a_kernel() {
    let mut source = Raw::default();
    source.insert("linear", &[5, 16], Dtype::F16, |i| i as u32);
    source.insert("point", &[3, 8, 1, 1], Dtype::F16, |i| i as u32);
    for (order, names) in [(Order::Rows, ["linear", "point"]), (Order::Stored, ["linear", "point"])] {
        let emulator = Emulator::new((9, 0));
        let got = loaded(&emulator, &source, &names, order, Dtype::F16);
        assert_eq!(emulator.counters().len(), 0, "{order:?}");
        for (name, got) in names.iter().zip(got) {
            assert_eq!(got, source.tensors[*name].1.bytes());
        }
    }
}

#[test]
fn tensors_are_packed_into_buffers_without_overlap_and_scratch_memory_is_used_again() {
    let half = STAGING_BYTES / 2;
    // Elements of f16: half a buffer and a little, one that spans three buffers, small ones, an empty one.
    let lengths =
        [half / 2 + 1, STAGING_BYTES + 5, 3, 0, half / 2, 7, STAGING_BYTES / 2, half, 3 * half, half + 9, half];
    let shapes: Vec<Vec<usize>> = lengths.iter().map(|&length| vec![length, 1]).collect();
    for order in [Order::Stored, Order::Rows] {
        let place = DeviceSlice { address: 0, bytes: 0, written: false };
        let transfers: Vec<Transfer<'_>> =
            shapes.iter().map(|shape| Transfer { name: "", shape, order, dtype: Dtype::F16, place }).collect();
        let groups = groups(&transfers, &vec![Dtype::F16; transfers.len()]);
        let mut read = vec![0; lengths.len()];
        let mut live: Vec<(usize, Range<usize>)> = Vec::new();
        for group in &groups {
            let mut end = 0;
            for piece in &group.pieces {
                assert!(piece.at >= end && piece.at % ALIGNMENT == 0 && piece.at + piece.length <= STAGING_BYTES);
                end = piece.at + piece.length;
                assert_eq!(piece.from, read[piece.transfer]);
                read[piece.transfer] += piece.length;
                assert_eq!(piece.is_last, read[piece.transfer] == 2 * lengths[piece.transfer]);
                assert_eq!(piece.scratch.is_some(), order == Order::Rows);
                let Some(first) = piece.scratch.filter(|_| piece.from == 0) else { continue };
                let range = first..first + 2 * lengths[piece.transfer];
                assert!(range.end <= group.scratch_end && first % ALIGNMENT == 0);
                assert!(live.iter().all(|(_, other)| other.end <= range.start || range.end <= other.start));
                live.push((piece.transfer, range));
            }
            live.retain(|(transfer, _)| read[*transfer] < 2 * lengths[*transfer]);
        }
        assert_eq!(read, lengths.map(|length| 2 * length));
        let most = groups.iter().map(|group| group.scratch_end).max();
        assert!(most <= Some(if order == Order::Rows { SCRATCH_BYTES } else { 0 }), "{most:?}");
    }
}

#[test]
fn a_tensor_larger_than_a_buffer_arrives_whole_and_each_is_opened_once() {
    let emulator = Emulator::new((9, 0));
    let mut source = Raw::default();
    let rows = STAGING_BYTES / 16 - 100;
    let bits = |i: usize| (i as u32).wrapping_mul(0x9e37) >> 3 & 0x7bff;
    source.insert("large", &[rows, 8], Dtype::F16, bits);
    // Begins in the first buffer and ends in the second.
    source.insert("taps", &[40, 16, 3, 3], Dtype::F16, bits);
    source.insert("largest", &[2 * STAGING_BYTES / 16 + 77, 8], Dtype::F16, bits);
    source.insert("bias", &[40], Dtype::F16, bits);
    let got = loaded(&emulator, &source, &["large", "taps", "largest"], Order::Rows, Dtype::F16);
    assert!(got[0] == source.tensors["large"].1.bytes() && got[2] == source.tensors["largest"].1.bytes());
    let place = |i: usize| Some((i / 144 * 16 + i % 16) * 9 + i % 144 / 16);
    check(&got[1], &source.tensors["taps"].1, Dtype::F16, false, place);
    assert_eq!(source.opened.load(Ordering::Relaxed), 3);
}

#[test]
fn an_upload_that_fails_anywhere_leaves_no_memory_behind() {
    let emulator = Emulator::new((9, 0));
    let mut source = Raw::default();
    for name in ["a", "b"] {
        source.insert(name, &[5, 3, 3, 3], Dtype::F16, |i| i as u32);
    }
    let place = |name| {
        let bytes = Order::Rows.size_bytes(&[5, 3, 3, 3], Dtype::F16);
        let place = DeviceSlice { address: emulator.allocate(bytes).unwrap(), bytes, written: false };
        Transfer { name, shape: &[5, 3, 3, 3], order: Order::Rows, dtype: Dtype::F16, place }
    };
    let transfers = ["a", "b"].map(place);
    let before = emulator.allocations();
    let mut failures = 0;
    loop {
        emulator.fail_after(Some(failures));
        let result = load(&emulator, &transfers, &source);
        assert_eq!(emulator.allocations(), before, "after {failures} calls");
        match result {
            Err(error) => assert!(error.to_string().contains("a test wants it"), "{error}"),
            Ok(()) => break,
        }
        failures += 1;
    }
    // Scratch memory, a buffer, two launches, the wait.
    assert_eq!(failures, 5);
}

#[test]
fn a_tensor_of_another_size_than_the_plan_expects_is_refused_by_name() {
    let emulator = Emulator::new((9, 0));
    let mut source = Raw::default();
    source.insert("w", &[4, 8], Dtype::F16, |i| i as u32);
    let bytes = Order::Rows.size_bytes(&[4, 16], Dtype::F16);
    let place = DeviceSlice { address: emulator.allocate(bytes).unwrap(), bytes, written: false };
    let transfer = Transfer { name: "w", shape: &[4, 16], order: Order::Rows, dtype: Dtype::F16, place };
    let error = load(&emulator, &[transfer], &source).unwrap_err().to_string();
    assert!(error.contains('w') && error.contains("128 bytes of F16") && error.contains("64 bytes of F16"), "{error}");
}

#[test]
fn a_capture_of_another_thread_neither_records_uploads_nor_holds_them_up() {
    let emulator = Emulator::new((9, 0));
    let bytes: Vec<u8> = (0..54).collect();
    let [place, scratch] = [96, 54].map(|bytes| emulator.allocate(bytes).unwrap());
    let place = DeviceSlice { address: place, bytes: 96, written: false };
    let transfer = Transfer { name: "w", shape: &[3, 9], order: Order::Rows, dtype: Dtype::F16, place };
    let call = unpack(&emulator, &transfer, Dtype::F16, scratch).unwrap();
    let upload = || {
        let mut uploads = emulator.uploads().unwrap();
        uploads.buffer(0).unwrap()[..54].copy_from_slice(&bytes);
        uploads.send(0, &[(0..54, scratch)]).unwrap();
        uploads.launch(&call).unwrap();
        // Executed as late as it may be.
        assert!(emulator.read(place.address, 96).is_err());
        uploads.finish().unwrap();
    };
    let record = &mut || {
        std::thread::scope(|scope| scope.spawn(upload).join().unwrap());
        Ok(())
    };
    let graph = emulator.capture(record).unwrap();
    let got = emulator.read(place.address, 96).unwrap();
    let want = bytes.chunks(18).flat_map(|row| row.iter().copied().chain([0; 14]));
    assert!(got.into_iter().eq(want));
    emulator.discard(place.address, 96).unwrap();
    emulator.replay(graph).unwrap();
    assert!(emulator.read(place.address, 96).is_err(), "the graph has the upload");
}

/// A component in a file of its own.
struct InFile {
    folder: tempfile::TempDir,
    component: Component,
}

impl InFile {
    const TENSORS: [(&'static str, [usize; 2]); 3] = [("a", [64, 24]), ("b", [9, 7]), ("c", [48, 40])];

    fn new(mmap: bool) -> InFile {
        let folder = tempfile::tempdir().unwrap();
        let (mut header, mut end) = (Vec::new(), 0);
        for (name, shape) in InFile::TENSORS {
            let start = end;
            end += 2 * elements(&shape);
            header.push(format!(r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
        }
        let header = format!("{{{}}}", header.join(","));
        let data = (0..end).map(|i| i as u8 & 0x3f);
        let bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(data);
        std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name":"X","net":["diffusers","Y"]}"#)
            .unwrap();
        std::fs::create_dir(folder.path().join("net")).unwrap();
        let file = folder.path().join("net/diffusion_pytorch_model.safetensors");
        std::fs::write(file, bytes.collect::<Vec<u8>>()).unwrap();
        let options = LoadOptions { mmap, ..LoadOptions::default() };
        let component = Checkpoint::open(folder.path(), options).unwrap().component("net").unwrap();
        InFile { folder, component }
    }

    fn file(&self) -> std::fs::File {
        let path = self.folder.path().join("net/diffusion_pytorch_model.safetensors");
        std::fs::File::options().write(true).open(path).unwrap()
    }
}

/// Does something to a file before one of its tensors is read.
struct Meddling<'a>(&'a InFile, &'a str, &'a (dyn Fn(&std::fs::File) + Sync));

impl WeightSource for Meddling<'_> {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.0.component.find(tensor)
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        self.0.component.load(tensor)
    }

    fn open(&self, tensor: &str) -> Result<StoredTensor<'_>> {
        if tensor == self.1 {
            self.2(&self.0.file());
        }
        self.0.component.open(tensor)
    }

    fn path(&self, tensor: &str) -> &Path {
        WeightSource::path(&self.0.component, tensor)
    }
}

#[test]
fn a_file_that_is_shortened_while_it_is_loaded_is_an_error_and_leaves_nothing_allocated() {
    for (mmap, at) in [(true, "a"), (true, "b"), (true, "c"), (false, "a"), (false, "c")] {
        let emulator = Arc::new(Emulator::new((9, 0)));
        let file = InFile::new(mmap);
        let graph = Graph::new("net", &file.component);
        for (name, shape) in InFile::TENSORS {
            graph.output(name, graph.weights().tensor(name, &shape));
        }
        let plan = graph.finish().unwrap();
        let cuda = Cuda { driver: emulator.clone(), precision: Precision::F16, emulator: Some(emulator.clone()) };
        let source = Meddling(&file, at, &|file| file.set_len(300).unwrap());
        let error = cuda.load(&plan, &source, None).map(|_| ()).unwrap_err();
        let is_named = |path: &Path| path.ends_with("net/diffusion_pytorch_model.safetensors");
        assert!(matches!(&error, Error::Changed { path } if is_named(path)), "{error}");
        assert_eq!(emulator.allocations(), 0, "mmap {mmap}, at {at}");
    }
}
