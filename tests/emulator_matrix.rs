//! `mma.sync` on the PTX emulator: fragments in the layout of the PTX manual, against loops.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use half::{bf16, f16};
use support::ptx::{module, run};

/// An element type of `mma.sync`: conversion from f32 to its bits, and elements per register.
#[derive(Clone, Copy)]
struct MatrixType {
    name: &'static str,
    bits: fn(f32) -> u32,
    per_register: usize,
}

const F16: MatrixType = MatrixType { name: "f16", bits: |x| u32::from(f16::from_f32(x).to_bits()), per_register: 2 };
const BF16: MatrixType = MatrixType { name: "bf16", bits: |x| u32::from(bf16::from_f32(x).to_bits()), per_register: 2 };
const TF32: MatrixType = MatrixType { name: "tf32", bits: f32::to_bits, per_register: 1 };

/// Small integers, exact in all element types.
fn value(i: usize) -> f32 {
    (i * 7 % 11) as f32 - 5.0
}

fn a(i: usize, k: usize) -> f32 {
    value(3 * i + 5 * k + 1)
}

fn b(k: usize, j: usize) -> f32 {
    value(2 * k + 9 * j + 4)
}

/// `a b + 1` [16, 8].
fn expected(depth: usize) -> Vec<f32> {
    (0..16 * 8).map(|e| 1.0 + (0..depth).map(|k| a(e / 8, k) * b(k, e % 8)).sum::<f32>()).collect()
}

/// A lane's registers of A and B. Registers of A alternate between rows g and g + 8; every second one moves on by a
/// quarter of K. Registers of B are in column g.
fn registers(kind: MatrixType, depth: usize, lane: usize) -> (Vec<u32>, Vec<u32>) {
    let (g, t, per) = (lane / 4, lane % 4, kind.per_register);
    let quarter = 4 * per;
    let pack = |of: &dyn Fn(usize) -> f32| (0..per).fold(0, |word, e| word | (kind.bits)(of(e)) << (16 * e));
    let first = (0..2 * depth / quarter).map(|r| pack(&|e| a(g + 8 * (r % 2), per * t + e + quarter * (r / 2))));
    let second = (0..depth / quarter).map(|r| pack(&|e| b(per * t + e + quarter * r, g)));
    (first.collect(), second.collect())
}

/// Runs one `mma.sync` on registers loaded from memory; `swap` exchanges two registers of A.
fn mma(kind: MatrixType, depth: usize, swap: bool) -> Vec<f32> {
    let mut x = vec![0; 32 * 8];
    let (mut of_a, mut of_b) = (0, 0);
    for lane in 0..32 {
        let (first, second) = registers(kind, depth, lane);
        (of_a, of_b) = (first.len(), second.len());
        x[8 * lane..][..of_a].copy_from_slice(&first);
        x[8 * lane + 4..][..of_b].copy_from_slice(&second);
    }
    let list = |name: &str, count: usize| (0..count).map(|i| format!("{name}{i}")).collect::<Vec<_>>();
    let mut fragment = list("a", of_a);
    if swap {
        fragment.swap(0, 1);
    }
    let MatrixType { name, .. } = kind;
    let body = format!(
        "mad.wide.u32 px, tid, 32, x0;
         ld.global.v4.u32 {{a0, a1, a2, a3}}, [px];
         ld.global.v2.u32 {{b0, b1}}, [px+16];
         mov.f32 c0, 0f3F800000;
         mma.sync.aligned.m16n8k{depth}.row.col.f32.{name}.{name}.f32 {{d0, d1, d2, d3}}, {{{}}}, {{{}}}, {{c0, c0, c0, c0}};
         mad.wide.u32 py, tid, 16, y0;
         st.global.v4.f32 [py], {{d0, d1, d2, d3}};",
        fragment.join(", "),
        list("b", of_b).join(", ")
    );
    let (y, _) = run(&module(32, 0, &body), [1; 3], &x, 128, 0).unwrap_or_else(|e| panic!("{e}"));
    let mut out = vec![0.0; 128];
    for (i, word) in y.into_iter().enumerate() {
        let (lane, r) = (i / 4, i % 4);
        out[8 * (lane / 4 + 8 * (r / 2)) + 2 * (lane % 4) + r % 2] = f32::from_bits(word.unwrap());
    }
    out
}

#[test]
fn mma_of_documented_fragments_is_a_matrix_product() {
    for (kind, depth) in [(F16, 16), (F16, 8), (BF16, 16), (BF16, 8), (TF32, 8), (TF32, 4)] {
        assert_eq!(mma(kind, depth, false), expected(depth), "{} k{depth}", kind.name);
    }
}

#[test]
fn a_swapped_fragment_register_gives_a_wrong_result() {
    for (kind, depth) in [(F16, 16), (BF16, 16), (TF32, 8)] {
        assert_ne!(mma(kind, depth, true), expected(depth), "{} k{depth}", kind.name);
    }
}

#[test]
fn cp_async_and_ldmatrix_load_the_fragments_of_mma() {
    // x: a [16][16] then b [16][8], row-major, bf16. Shared: a at 0 in rows of 32 bytes, then b in rows of 16 bytes.
    let words = |values: Vec<f32>| -> Vec<u32> {
        values.chunks(2).map(|pair| (BF16.bits)(pair[0]) | (BF16.bits)(pair[1]) << 16).collect()
    };
    let mut x = words((0..256).map(|e| a(e / 16, e % 16)).collect());
    x.extend(words((0..128).map(|e| b(e / 8, e % 8)).collect()));
    let body = "
        mov.u32 at, tile;
        // 512 + 256 bytes, 16 per lane and round; the second round takes half of the lanes
        shl.b32 a0, tid, 4;
        add.u32 sm, at, a0;
        mad.wide.u32 w0, tid, 16, x0;
        cp.async.cg.shared.global [sm], [w0], 16;
        setp.lt.u32 p, tid, 16;
        @p cp.async.cg.shared.global [sm+512], [w0+512], 16;
        cp.async.commit_group;
        cp.async.wait_group 0;
        bar.sync 0;
        // rows of a's four matrices: row tid % 16, left half for lanes below 16, right half for the others
        and.b32 a1, tid, 15;
        shl.b32 a1, a1, 5;
        shr.u32 a2, tid, 4;
        shl.b32 a2, a2, 4;
        add.u32 sm, at, a1;
        add.u32 sm, sm, a2;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a0, a1, a2, a3}, [sm];
        // rows of b's two matrices, transposed
        and.b32 b2, tid, 15;
        shl.b32 b2, b2, 4;
        add.u32 sm, at, b2;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {b0, b1}, [sm+512];
        mov.f32 c0, 0f3F800000;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c0, c0, c0};
        // row g, columns 2t and 2t + 1; row g + 8 is 256 bytes further
        shr.u32 c1, tid, 2;
        shl.b32 c1, c1, 5;
        and.b32 c2, tid, 3;
        shl.b32 c2, c2, 3;
        add.u32 c1, c1, c2;
        cvt.u64.u32 w1, c1;
        add.u64 w1, w1, y0;
        st.global.v2.f32 [w1], {d0, d1};
        st.global.v2.f32 [w1+256], {d2, d3};";
    let (y, _) = run(&module(32, 768, body), [1; 3], &x, 128, 0).unwrap_or_else(|e| panic!("{e}"));
    let got: Vec<f32> = y.into_iter().map(|w| f32::from_bits(w.unwrap())).collect();
    assert_eq!(got, expected(16));
}
