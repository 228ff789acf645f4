//! Hopper's asynchronous instructions on the PTX emulator: small programs with known results.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use half::{bf16, f16};
use support::ptx::{hopper, rows, run_tiles};
use unclip::Dtype;
use unclip::backend::cuda::emulator::{DeviceSlice, Swizzle, TensorMap};

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];

/// Thread 0 initialises an `mbarrier` for one arrival, visible to bulk copies and to all threads.
const START: &str = "
    setp.eq.u32 p, tid, 0;
    @p mbarrier.init.shared.b64 [bar], 1;
    @p fence.mbarrier_init.release.cluster;
    bar.sync 0;";

/// All threads wait for the first phase.
const WAIT: &str = "
wait:
    mbarrier.try_wait.parity.shared.b64 q, [bar], 0;
    @!q bra wait;";

/// Runs a program of one block on 16-bit elements.
fn run(text: &str, x: &[u16], y_words: usize, maps: impl Fn(DeviceSlice, DeviceSlice) -> [TensorMap; 2]) -> Vec<u32> {
    let (y, _) = run_tiles(text, [1; 3], bytemuck::cast_slice(x), y_words, maps).unwrap_or_else(|e| panic!("{e}"));
    y.into_iter().map(|w| w.expect("every word is written")).collect()
}

/// Two tensor maps for programs that use none.
fn unused(x: DeviceSlice, _: DeviceSlice) -> [TensorMap; 2] {
    let map = rows(x, [8, 1], [8, 1], Swizzle::None);
    [map.clone(), map]
}

fn halves(words: &[u32]) -> Vec<u16> {
    words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).collect()
}

#[test]
fn phases_order_the_writes_and_reads_of_warps() {
    // Both warps write, arrive and wait three times, the second time with a token; each reads what the other wrote.
    let body = "
        setp.eq.u32 p, tid, 0;
        @p mbarrier.init.shared.b64 [bar], 64;
        bar.sync 0;
        mov.u32 at, tile;
        shl.b32 sm, tid, 2;
        xor.b32 a0, sm, 128;
        add.u32 sm, sm, at;
        add.u32 a0, a0, at;
        st.shared.u32 [sm], tid;
        mbarrier.arrive.shared.b64 _, [bar];
    first_phase:
        mbarrier.try_wait.parity.shared.b64 q, [bar], 0;
        @!q bra first_phase;
        ld.shared.u32 d0, [a0];
        mbarrier.arrive.release.cta.shared::cta.b64 token, [bar];
    second_phase:
        mbarrier.test_wait.shared.b64 q, [bar], token;
        @!q bra second_phase;
        add.u32 d1, d0, 1000;
        st.shared.u32 [sm], d1;
        mbarrier.arrive.shared.b64 _, [bar], 1;
    third_phase:
        mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 q, [bar], 0, 1000;
        @!q bra third_phase;
        ld.shared.u32 d0, [a0];
        st.global.u32 [py], d0;";
    let y = run(&hopper(64, 256, body), &[0; 8], 64, unused);
    assert_eq!(y, (0..64).map(|i| 1000 + i).collect::<Vec<_>>());
}

#[test]
fn one_lane_is_elected() {
    let body = "elect.sync d0|p, 0xffffffff; selp.u32 d1, 100, 0, p; add.u32 d0, d0, d1; st.global.u32 [py], d0;";
    let y = run(&hopper(32, 16, body), &[0; 8], 32, unused);
    assert_eq!(y, (0..32).map(|i| if i == 0 { 100 } else { 0 }).collect::<Vec<_>>());
}

#[test]
fn loaded_tiles_are_swizzled_and_zero_outside_the_tensor() {
    for swizzle in SWIZZLES {
        let span = if swizzle == Swizzle::None { 64 } else { swizzle.span() };
        let (columns, bytes) = (span / 2, 16 * span);
        // 16 rows from row 5 of 18, columns from -3 of 40: the tile exceeds the tensor at the bottom and on the left.
        let x: Vec<u16> = (0..18 * 40).map(|i| i + 1).collect();
        let body = format!(
            "{START}
             @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], {bytes};
             mov.u32 a0, -3;
             @p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [m0, {{a0, 5}}], [bar];
             {WAIT}
             mov.u32 a0, tid;
        copy:
             shl.b32 sm, a0, 2;
             mad.wide.u32 w0, a0, 4, y0;
             mov.u32 at, tile;
             add.u32 sm, sm, at;
             ld.shared.u32 d0, [sm];
             st.global.u32 [w0], d0;
             add.u32 a0, a0, 32;
             setp.lt.u32 q, a0, {};
             @q bra copy;",
            bytes / 4
        );
        let maps = |x, _| [rows(x, [40, 18], [columns, 16], swizzle), rows(x, [40, 18], [columns, 16], swizzle)];
        let y = halves(&run(&hopper(32, bytes, &body), &x, bytes as usize / 4, maps));
        for r in 0..16u32 {
            for c in 0..columns {
                // The index of a 16-byte chunk, address bits 4 to 6, is XORed with bits 7 to 9, within the swizzle's
                // span.
                let byte = r * span + 2 * c;
                let chunk = match swizzle {
                    Swizzle::None => byte / 16 % 8,
                    Swizzle::Bytes32 => (byte / 16 % 8) ^ (byte / 128 % 2),
                    Swizzle::Bytes64 => (byte / 16 % 8) ^ (byte / 128 % 4),
                    Swizzle::Bytes128 => (byte / 16 % 8) ^ (byte / 128 % 8),
                };
                let swizzled = byte / 128 * 128 + chunk * 16 + byte % 16;
                let (row, column) = (5 + r, c as i32 - 3);
                let inside = row < 18 && (0..40).contains(&column);
                let want = if inside { x[(row * 40 + column as u32) as usize] } else { 0 };
                assert_eq!(y[swizzled as usize / 2], want, "{swizzle:?} row {r} column {c}");
            }
        }
    }
}

#[test]
fn image_tiles_can_be_shifted_and_strided() {
    // [N 2][H 6][W 5][C 8]; every second row and every second column of the second image, from -1.
    let x: Vec<u16> = (0..2 * 6 * 5 * 8).map(|i| i + 1).collect();
    let map = |x: DeviceSlice, _: DeviceSlice| {
        let map = TensorMap {
            tensor: x,
            dtype: Dtype::F16,
            dims: vec![8, 5, 6, 2],
            strides: vec![16, 80, 480],
            tile: vec![8, 6, 8, 1],
            steps: vec![1, 2, 2, 1],
            swizzle: Swizzle::None,
        };
        [map.clone(), map]
    };
    let body = format!(
        "{START}
         @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], 192;
         mov.u32 a0, -1;
         @p cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
            [tile], [m0, {{0, a0, a0, 1}}], [bar];
         {WAIT}
         shl.b32 sm, tid, 2;
         mov.u32 at, tile;
         add.u32 sm, sm, at;
         ld.shared.u32 d0, [sm];
         st.global.u32 [py], d0;
         setp.lt.u32 q, tid, 16;
         @q ld.shared.u32 d0, [sm+128];
         @q st.global.u32 [py+128], d0;"
    );
    let y = halves(&run(&hopper(32, 192, &body), &x, 48, map));
    for (i, &found) in y.iter().enumerate() {
        let (c, w, h) = (i % 8, i / 8 % 3, i / 24);
        let want = if w == 0 || h == 0 { 0 } else { x[((6 + 2 * h - 1) * 5 + 2 * w - 1) * 8 + c] };
        assert_eq!(found, want, "channel {c}, column {w}, row {h}");
    }
}

#[test]
fn bulk_stores_write_tiles_and_byte_ranges() {
    // Loads contiguous bytes, then stores them as a swizzled tile and as bytes; the tile is clipped to its tensor.
    let x: Vec<u16> = (0..256).collect();
    let body = format!(
        "{START}
         @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], 512;
         @p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [x0], 512, [bar];
         {WAIT}
         @p cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [m1, {{0, 1}}], [tile];
         add.u64 w0, y0, 384;
         @p cp.async.bulk.global.shared::cta.bulk_group [w0], [tile], 128;
         @p cp.async.bulk.commit_group;
         @p cp.async.bulk.wait_group.read 0;"
    );
    let maps = |x, y: DeviceSlice| {
        // Three rows of 64 elements, 384 bytes; the tile's four rows start at the second.
        let tile = rows(DeviceSlice { bytes: 384, ..y }, [64, 3], [64, 4], Swizzle::Bytes128);
        [rows(x, [8, 1], [8, 1], Swizzle::None), tile]
    };
    let (y, _) = run_tiles(&hopper(32, 512, &body), [1; 3], bytemuck::cast_slice(&x), 128, maps).unwrap();
    assert!(y[..32].iter().all(Option::is_none), "the tile does not contain the first row");
    let words: Vec<u32> = y[32..].iter().map(|w| w.unwrap()).collect();
    let y = halves(&words);
    for (i, &found) in y[..128].iter().enumerate() {
        let (r, c) = (i / 64, i % 64);
        assert_eq!(found as usize, r * 64 + ((c / 8) ^ r) * 8 + c % 8, "row {r} column {c}");
    }
    assert_eq!(y[128..], x[..64]);
}

/// An element type of `wgmma`: name, K, size, and conversion from f32 to its bits.
#[derive(Clone, Copy)]
struct MatrixType {
    name: &'static str,
    depth: usize,
    bytes: usize,
    bits: fn(f32) -> u32,
}

const F16: MatrixType =
    MatrixType { name: "f16", depth: 16, bytes: 2, bits: |x| u32::from(f16::from_f32(x).to_bits()) };
const BF16: MatrixType =
    MatrixType { name: "bf16", depth: 16, bytes: 2, bits: |x| u32::from(bf16::from_f32(x).to_bits()) };
const TF32: MatrixType = MatrixType { name: "tf32", depth: 8, bytes: 4, bits: f32::to_bits };

fn a(i: usize, k: usize) -> f32 {
    ((3 * i + 5 * k + 1) * 7 % 11) as f32 - 5.0
}

fn b(k: usize, j: usize) -> f32 {
    ((2 * k + 9 * j + 4) * 7 % 11) as f32 - 5.0
}

/// Byte offset of element `k` of row or column `line` in the canonical layouts, with the leading and stride offsets of
/// [`descriptor`]; `transposed` is MN-major, otherwise K-major.
fn layout(swizzle: Swizzle, transposed: bool, line: usize, k: usize, bytes: usize) -> usize {
    let span = swizzle.span() as usize;
    let (major, minor) = if transposed { (k, line * bytes) } else { (line, k * bytes) };
    let at = match (swizzle, transposed) {
        // Core matrices of 8 lines by 16 bytes; the next one along the line is at 128 bytes, the next 8 lines at 2048
        // bytes.
        (Swizzle::None, _) => major / 8 * 2048 + minor / 16 * 128 + major % 8 * 16 + minor % 16,
        (_, false) => major * span + minor,
        // Eight lines of a span; the next span of columns follows them, the next eight k are at 4096 bytes.
        (_, true) => major / 8 * 4096 + minor / span * 8 * span + major % 8 * span + minor % span,
    };
    let bits = at >> 7 & (span / 16 - 1);
    at ^ bits << 4
}

/// A matrix descriptor for [`layout`], without its start address.
fn descriptor(swizzle: Swizzle, transposed: bool) -> u64 {
    let span = u64::from(swizzle.span());
    let (leading, stride) = match (swizzle, transposed) {
        (Swizzle::None, false) => (128, 2048),
        (Swizzle::None, true) => (2048, 128),
        (_, false) => (16, 8 * span),
        (_, true) => (8 * span, 4096),
    };
    let mode = [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32];
    let mode = mode.iter().position(|m| *m == swizzle).unwrap() as u64;
    (leading / 16) << 16 | (stride / 16) << 32 | mode << 62
}

/// Runs one `wgmma`, `1 + a b`, with `a` in registers or in shared memory.
fn wgmma(
    kind: MatrixType,
    columns: usize,
    swizzle: Swizzle,
    [in_registers, a_transposed, b_transposed]: [bool; 3],
) -> Vec<f32> {
    // a at 0, b at 32 KiB, then a's fragments, 16 bytes per thread
    let mut x = vec![0u8; 65536 + 2048];
    let mut put = |at: usize, value: f32| {
        x[at..at + kind.bytes].copy_from_slice(&(kind.bits)(value).to_le_bytes()[..kind.bytes]);
    };
    for k in 0..kind.depth {
        (0..64).for_each(|i| put(layout(swizzle, a_transposed, i, k, kind.bytes), a(i, k)));
        (0..columns).for_each(|j| put(32768 + layout(swizzle, b_transposed, j, k, kind.bytes), b(k, j)));
    }
    let per = 4 / kind.bytes;
    for thread in 0..128 {
        let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
        for e in 0..4 * per {
            let (r, part) = (e / per, e % per);
            let (row, k) = (16 * warp + g + 8 * (r % 2), per * t + part + 4 * per * (r / 2));
            put(65536 + 16 * thread + kind.bytes * e, a(row, k));
        }
    }
    let sums: Vec<String> = (0..columns / 2).map(|i| format!("s{i}")).collect();
    let list = sums.join(", ");
    let start: String = sums.iter().map(|s| format!("mov.f32 {s}, 0f3F800000;\n")).collect();
    let store: String = (0..columns / 2).map(|i| format!("st.global.f32 [py+{}], s{i};\n", 4 * i)).collect();
    let transposes = match (kind.bytes, in_registers) {
        (4, _) => String::new(),
        (_, true) => format!(", {}", u8::from(b_transposed)),
        (_, false) => format!(", {}, {}", u8::from(a_transposed), u8::from(b_transposed)),
    };
    let MatrixType { name, depth, .. } = kind;
    let first = if in_registers { "{a0, a1, a2, a3}" } else { "e0" };
    let body = format!(
        "{START}
         @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], 65536;
         @p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [x0], 65536, [bar];
         {WAIT}
         mad.wide.u32 w0, tid, 16, x0;
         ld.global.v4.u32 {{a0, a1, a2, a3}}, [w0+65536];
         mov.u32 at, tile;
         shr.u32 at, at, 4;
         cvt.u64.u32 w1, at;
         or.b64 e0, w1, {:#x};
         add.u64 w1, w1, 2048;
         or.b64 e1, w1, {:#x};
         {start}
         setp.eq.u32 r, 0, 0;
         wgmma.fence.sync.aligned;
         wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{name}.{name} {{{list}}}, {first}, e1, r, 1, 1{transposes};
         wgmma.commit_group.sync.aligned;
         wgmma.wait_group.sync.aligned 0;
         mad.wide.u32 py, tid, {}, y0;
         {store}",
        descriptor(swizzle, a_transposed),
        descriptor(swizzle, b_transposed),
        2 * columns
    );
    let text = hopper(128, 65536, &body);
    let (y, _) = run_tiles(&text, [1; 3], &x, 64 * columns, unused).unwrap_or_else(|e| panic!("{e}"));
    let mut out = vec![0.0; 64 * columns];
    for (i, word) in y.into_iter().enumerate() {
        let (thread, s) = (i / (columns / 2), i % (columns / 2));
        let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (s / 2 % 2);
        out[row * columns + 8 * (s / 4) + 2 * (thread % 4) + s % 2] = f32::from_bits(word.unwrap());
    }
    out
}

fn expected(depth: usize, columns: usize) -> Vec<f32> {
    let sum = |i: usize, j: usize| 1.0 + (0..depth).map(|k| a(i, k) * b(k, j)).sum::<f32>();
    (0..64 * columns).map(|e| sum(e / columns, e % columns)).collect()
}

#[test]
fn wgmma_is_a_matrix_product() {
    for swizzle in SWIZZLES {
        for kind in [F16, BF16, TF32] {
            for in_registers in [false, true] {
                for columns in [8, 24, 128] {
                    let got = wgmma(kind, columns, swizzle, [in_registers, false, false]);
                    let want = expected(kind.depth, columns);
                    assert_eq!(got, want, "{} n{columns} {swizzle:?}, a in registers: {in_registers}", kind.name);
                }
            }
        }
    }
}

#[test]
fn operands_may_be_mn_major() {
    for swizzle in SWIZZLES {
        for transposed in [[false, true, false], [false, false, true], [true, false, true], [false, true, true]] {
            for columns in [64, 128] {
                let got = wgmma(BF16, columns, swizzle, transposed);
                assert_eq!(got, expected(16, columns), "n{columns} {swizzle:?} {transposed:?}");
            }
        }
    }
}

#[test]
fn an_operand_may_start_within_the_swizzle_span() {
    // K = 64 in rows of 128 bytes, in four steps of 16: the start moves by 32 bytes, the swizzle pattern stays.
    let value = |i: usize| f32::from((i * 5 % 7) as u8) - 3.0;
    let mut x = vec![0u8; 16384];
    for line in 0..64 {
        for k in 0..64 {
            let at = layout(Swizzle::Bytes128, false, line, k, 2);
            x[at..at + 2].copy_from_slice(&bf16::from_f32(value(line + 3 * k)).to_le_bytes());
            let at = 8192 + layout(Swizzle::Bytes128, false, line % 8, k, 2);
            x[at..at + 2].copy_from_slice(&bf16::from_f32(value(k + 2 * (line % 8))).to_le_bytes());
        }
    }
    let steps: String = (0..4)
        .map(|i| {
            format!(
                "setp.ne.u32 r, {i}, 0;
                 wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{s0, s1, s2, s3}}, e0, e1, r, 1, 1, 0, 0;
                 add.u64 e0, e0, 2; add.u64 e1, e1, 2;"
            )
        })
        .collect();
    let body = format!(
        "{START}
         @p mbarrier.arrive.expect_tx.shared.b64 _, [bar], 16384;
         @p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [x0], 16384, [bar];
         {WAIT}
         mov.u32 at, tile;
         shr.u32 at, at, 4;
         cvt.u64.u32 w1, at;
         or.b64 e0, w1, {0:#x};
         add.u64 w1, w1, 512;
         or.b64 e1, w1, {0:#x};
         wgmma.fence.sync.aligned;
         {steps}
         wgmma.commit_group.sync.aligned;
         wgmma.wait_group.sync.aligned 0;
         mad.wide.u32 py, tid, 16, y0;
         st.global.v4.f32 [py], {{s0, s1, s2, s3}};",
        descriptor(Swizzle::Bytes128, false)
    );
    let (y, _) = run_tiles(&hopper(128, 16384, &body), [1; 3], &x, 512, unused).unwrap_or_else(|e| panic!("{e}"));
    for (i, word) in y.into_iter().enumerate() {
        let (thread, s) = (i / 4, i % 4);
        let (row, column) = (16 * (thread / 32) + thread % 32 / 4 + 8 * (s / 2), 2 * (thread % 4) + s % 2);
        let want: f32 = (0..64).map(|k| value(row + 3 * k) * value(k + 2 * column)).sum();
        assert_eq!(f32::from_bits(word.unwrap()), want, "row {row} column {column}");
    }
}
