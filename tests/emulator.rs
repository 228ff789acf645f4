//! The PTX emulator: small programs with known results.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::ptx::{kernel, module, run, words};
use unclip::backend::cuda::emulator::parse;

/// Runs instructions on inputs `a0`, `a1`, `a2`; returns `d0`.
fn compute(instructions: &str, inputs: [u32; 3]) -> u32 {
    let body = format!(
        "ld.global.u32 a0, [x0]; ld.global.u32 a1, [x0+4]; ld.global.u32 a2, [x0+8];
         {instructions}
         st.global.u32 [py], d0;"
    );
    let all = words(32, 0, &body, &inputs);
    assert!(all.iter().all(|w| *w == all[0]), "{instructions}: {all:x?}");
    all[0]
}

#[test]
fn integers_wrap_shift_and_divide_as_documented() {
    let minus_seven = -7i32 as u32;
    for (instructions, inputs, want) in [
        ("add.u32 d0, a0, a1;", [u32::MAX, 2, 0], 1),
        ("sub.s32 d0, a0, a1;", [1, 3, 0], -2i32 as u32),
        ("mul.lo.u32 d0, a0, a1;", [1 << 31, 3, 0], 1 << 31),
        ("mul.hi.u32 d0, a0, a1;", [1 << 31, 6, 0], 3),
        ("mul.hi.s32 d0, a0, a1;", [u32::MAX, 5, 0], u32::MAX),
        ("mad.lo.u32 d0, a0, a1, a2;", [7, 8, 9], 65),
        ("div.s32 d0, a0, a1;", [minus_seven, 2, 0], -3i32 as u32),
        ("rem.s32 d0, a0, a1;", [minus_seven, 2, 0], -1i32 as u32),
        ("div.u32 d0, a0, a1;", [minus_seven, 2, 0], 0x7fff_fffc),
        ("shl.b32 d0, a0, a1;", [5, 33, 0], 0),
        ("shr.s32 d0, a0, a1;", [minus_seven, 40, 0], u32::MAX),
        ("shr.u32 d0, a0, 4;", [0xf0, 0, 0], 0xf),
        ("min.s32 d0, a0, a1;", [minus_seven, 3, 0], minus_seven),
        ("max.u32 d0, a0, a1;", [minus_seven, 3, 0], minus_seven),
        ("popc.b32 d0, a0;", [0xf0f, 0, 0], 8),
        ("clz.b32 d0, a0;", [1, 0, 0], 31),
        ("brev.b32 d0, a0;", [1, 0, 0], 1 << 31),
        ("bfe.u32 d0, a0, a1, a2;", [0xabcd, 4, 8], 0xbc),
        ("prmt.b32 d0, a0, a1, 0x5410;", [0x1111_2222, 0x3333_4444, 0], 0x4444_2222),
        ("lop3.b32 d0, a0, a1, a2, 0x96;", [0b1100, 0b1010, 0b1111], 0b1001),
        ("mul.wide.s32 w0, a0, a1; mov.b64 {d1, d0}, w0;", [minus_seven, 5, 0], u32::MAX),
        ("cvt.u64.u32 w0, a0; shl.b64 w0, w0, 8; shr.u64 w0, w0, 4; cvt.u32.u64 d0, w0;", [3, 0, 0], 48),
        ("mov.b32 {h0, h1}, a0; mov.b32 d0, {h1, h0};", [0x0001_0002, 0, 0], 0x0002_0001),
        ("setp.lt.s32 p, a0, a1; selp.u32 d0, 5, 6, p;", [minus_seven, 0, 0], 5),
        ("setp.lt.u32 p|q, a0, a1; selp.u32 d0, 5, 6, q;", [minus_seven, 0, 0], 5),
        ("setp.eq.u32 p, a0, 1; setp.eq.and.u32 p, a1, 2, p; selp.u32 d0, 1, 0, p;", [1, 2, 0], 1),
    ] {
        assert_eq!(compute(instructions, inputs), want, "{instructions} {inputs:?}");
    }
}

#[test]
fn f32_arithmetic_rounds_once_and_follows_the_rules_for_nan() {
    let nan = f32::NAN.to_bits();
    let near = 1.0 + f32::EPSILON;
    for (instructions, inputs, want) in [
        (
            "fma.rn.f32 d0, a0, a1, a2;",
            [near, near, -1.0 - 2.0 * f32::EPSILON],
            near.mul_add(near, -1.0 - 2.0 * f32::EPSILON),
        ),
        ("fma.rn.f32 d0, a0, a1, a2;", [3.1e-23, 4.7e-19, 1e-45], 3.1e-23f32.mul_add(4.7e-19, 1e-45)),
        ("div.rn.f32 d0, a0, a1;", [1.0, 3.0, 0.0], 1.0 / 3.0),
        ("ex2.approx.f32 d0, a0;", [3.0, 0.0, 0.0], 8.0),
        ("lg2.approx.f32 d0, a0;", [8.0, 0.0, 0.0], 3.0),
        ("rsqrt.approx.f32 d0, a0;", [16.0, 0.0, 0.0], 0.25),
        ("sin.approx.f32 d0, a0;", [0.5, 0.0, 0.0], 0.5f32.sin()),
        ("max.f32 d0, a0, a1;", [f32::NAN, 2.0, 0.0], 2.0),
        ("neg.f32 d0, a0;", [0.0, 0.0, 0.0], -0.0),
        ("cvt.rni.f32.f32 d0, a0;", [2.5, 0.0, 0.0], 2.0),
        ("cvt.rmi.f32.f32 d0, a0;", [-2.5, 0.0, 0.0], -3.0),
        ("cvt.sat.f32.f32 d0, a0;", [7.0, 0.0, 0.0], 1.0),
        ("cvt.rn.f32.s32 d0, 16777217;", [0.0; 3], 16_777_216.0),
        ("cvt.rn.f16.f32 h0, a0; cvt.f32.f16 d0, h0;", [2049.0, 0.0, 0.0], 2048.0),
        ("cvt.rn.bf16.f32 h0, a0; cvt.f32.bf16 d0, h0;", [257.0, 0.0, 0.0], 256.0),
        ("cvt.rna.tf32.f32 d0, a0;", [1.0 + 1.0 / 2048.0, 0.0, 0.0], 1.0 + 1.0 / 1024.0),
    ] {
        let got = compute(instructions, inputs.map(f32::to_bits));
        assert_eq!(got, want.to_bits(), "{instructions} {inputs:?} gives {}", f32::from_bits(got));
    }
    for (instructions, inputs, want) in [
        ("cvt.rzi.s32.f32 d0, a0;", [f32::to_bits(-2.9), 0, 0], -2i32 as u32),
        ("cvt.rzi.u32.f32 d0, a0;", [f32::to_bits(-2.9), 0, 0], 0),
        ("cvt.rni.s32.f32 d0, a0;", [f32::to_bits(1e20), 0, 0], i32::MAX as u32),
        ("cvt.rzi.s32.f32 d0, a0;", [nan, 0, 0], 0),
        ("setp.ne.f32 p, a0, a1; selp.u32 d0, 1, 0, p;", [nan, 0, 0], 0),
        ("setp.neu.f32 p, a0, a1; selp.u32 d0, 1, 0, p;", [nan, 0, 0], 1),
        ("setp.nan.f32 p, a0, a1; selp.u32 d0, 1, 0, p;", [nan, 0, 0], 1),
        ("cvt.rn.bf16x2.f32 d0, a0, a1;", [f32::to_bits(1.0), f32::to_bits(2.0), 0], 0x3f80_4000),
        ("cvt.rn.f16x2.f32 d0, a0, a1;", [f32::to_bits(1.0), f32::to_bits(2.0), 0], 0x3c00_4000),
    ] {
        assert_eq!(compute(instructions, inputs), want, "{instructions}");
    }
}

#[test]
fn diverged_threads_reconverge() {
    // Odd thread t runs a loop t times; the vote afterwards needs the whole warp.
    let body = "
        mov.u32 d0, 0;
        and.b32 a0, tid, 1;
        setp.eq.u32 p, a0, 0;
        @p bra even;
        mov.u32 a1, tid;
    round:
        add.u32 d0, d0, 3;
        sub.u32 a1, a1, 1;
        setp.ne.u32 q, a1, 0;
        @q bra round;
        bra join;
    even:
        mov.u32 d0, 7;
    join:
        setp.ne.u32 p, d0, 7;
        vote.sync.ballot.b32 a2, p, 0xffffffff;
        add.u32 d0, d0, a2;
        st.global.u32 [py], d0;";
    let want = |i: u32| if i.is_multiple_of(2) { 7 } else { 3 * i };
    let got = words(32, 0, body, &[0]);
    assert_eq!(got, (0..32).map(|i| want(i).wrapping_add(0xaaaa_aaaa)).collect::<Vec<_>>());
}

#[test]
fn warp_collectives_give_the_documented_values() {
    let lanes = |f: &dyn Fn(u32) -> u32| (0..32).map(f).collect::<Vec<_>>();
    for (instruction, want) in [
        ("shfl.sync.bfly.b32 d0, tid, 4, 0x1f, 0xffffffff;", lanes(&|i| i ^ 4)),
        ("shfl.sync.down.b32 d0, tid, 5, 0x1f, 0xffffffff;", lanes(&|i| if i + 5 < 32 { i + 5 } else { i })),
        (
            "shfl.sync.up.b32 d0|p, tid, 1, 0, 0xffffffff; @!p mov.u32 d0, 99;",
            lanes(&|i| if i == 0 { 99 } else { i - 1 }),
        ),
        ("shfl.sync.idx.b32 d0, tid, 3, 0x181f, 0xffffffff;", lanes(&|i| i / 8 * 8 + 3)),
        ("redux.sync.add.u32 d0, tid, 0xffffffff;", lanes(&|_| 496)),
        ("redux.sync.max.s32 d0, tid, 0xffffffff;", lanes(&|_| 31)),
        ("setp.lt.u32 p, tid, 9; vote.sync.any.pred q, p, 0xffffffff; selp.u32 d0, 1, 0, q;", lanes(&|_| 1)),
        ("setp.lt.u32 p, tid, 9; vote.sync.all.pred q, p, 0xffffffff; selp.u32 d0, 1, 0, q;", lanes(&|_| 0)),
        ("activemask.b32 d0;", lanes(&|_| u32::MAX)),
        ("mov.u32 d0, %lanemask_lt;", lanes(&|i| (1 << i) - 1)),
    ] {
        assert_eq!(words(32, 0, &format!("{instruction} st.global.u32 [py], d0;"), &[0]), want, "{instruction}");
    }
}

#[test]
fn a_barrier_orders_shared_memory_between_warps() {
    // Thread i reads what thread 127 - i, in another warp, wrote.
    let body = "
        shl.b32 sm, tid, 2;
        mov.u32 at, tile;
        add.u32 sm, sm, at;
        mul.lo.u32 a0, tid, 10;
        st.shared.u32 [sm], a0;
        bar.sync 0;
        sub.u32 a1, 127, tid;
        shl.b32 a1, a1, 2;
        add.u32 a1, a1, at;
        ld.shared.u32 d0, [a1];
        st.global.u32 [py], d0;";
    assert_eq!(words(128, 512, body, &[0]), (0..128).map(|i| 10 * (127 - i)).collect::<Vec<_>>());
}

#[test]
fn named_barriers_synchronise_only_their_warps() {
    // Warps 0 and 1 use barrier 1, warps 2 and 3 barrier 2; warp 1 only arrives.
    let body = "
        shl.b32 sm, tid, 2;
        mov.u32 at, tile;
        add.u32 sm, sm, at;
        shr.u32 a0, tid, 5;
        setp.eq.u32 p, a0, 1;
        setp.ge.u32 q, a0, 2;
        mov.u32 d0, tid;
        @q bra others;
        @!p bra first;
        st.shared.u32 [sm], tid;
        bar.arrive 1, 64;
        bra done;
    first:
        bar.sync 1, 64;
        ld.shared.u32 d0, [sm+128];
        bra done;
    others:
        st.shared.u32 [sm], tid;
        bar.sync 2, 64;
        xor.b32 a1, tid, 32;
        mad.lo.u32 a1, a1, 4, at;
        ld.shared.u32 d0, [a1];
    done:
        st.global.u32 [py], d0;";
    let want = |i: u32| {
        if i < 32 {
            i + 32
        } else if i < 64 {
            i
        } else {
            i ^ 32
        }
    };
    assert_eq!(words(128, 512, body, &[0]), (0..128).map(want).collect::<Vec<_>>());
}

#[test]
fn atomics_count_every_thread_of_every_block() {
    let body = "
        setp.eq.u32 p, tid, 0;
        mov.u32 a0, tile;
        @p st.shared.u32 [a0], 0;
        bar.sync 0;
        atom.shared.add.u32 a1, [a0], 1;
        bar.sync 0;
        ld.shared.u32 a2, [a0];
        mov.u32 a3, %ctaid.x;
        mad.lo.u32 at, a3, 64, tid;
        mad.wide.u32 py, at, 4, y0;
        st.global.u32 [py], a2;";
    let (y, _) = run(&module(64, 4, body), [3, 1, 1], &[0], 192, 0).unwrap();
    assert!(y.iter().all(|w| *w == Some(64)));
}

#[test]
fn cp_async_has_landed_after_its_wait() {
    let body = "
        mov.u32 at, tile;
        shl.b32 sm, tid, 4;
        add.u32 sm, sm, at;
        mad.wide.u32 w0, tid, 16, x0;
        cp.async.cg.shared.global [sm], [w0], 16;
        cp.async.commit_group;
        cp.async.ca.shared.global [sm+512], [w0], 4, 2;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.v4.u32 {a0, a1, a2, a3}, [sm];
        cp.async.wait_all;
        ld.shared.u32 b0, [sm+512];
        add.u32 d0, a3, b0;
        st.global.u32 [py], d0;";
    let x: Vec<u32> = (0..128).map(|i| i << 16 | i).collect();
    let want = (0..32).map(|i| ((4 * i + 3) << 16 | (4 * i + 3)) + 4 * i).collect::<Vec<u32>>();
    assert_eq!(words(32, 1024, body, &x), want);
}

#[test]
fn requests_are_counted_in_sectors_bytes_and_conflicts() {
    let count = |stride: u32| {
        let body = format!(
            "mad.wide.u32 px, tid, {}, x0;
             ld.global.u32 a0, [px];
             mov.u32 at, tile;
             mad.lo.u32 sm, tid, {}, at;
             st.shared.u32 [sm], a0;
             st.global.u32 [py], a0;",
            4 * stride,
            4 * stride
        );
        run(&module(32, 4096, &body), [1; 3], &[0; 1024], 32, 0).unwrap().1
    };
    let dense = count(1);
    assert_eq!((dense.global_requests, dense.sectors), (2, 8));
    assert_eq!((dense.global_read_bytes, dense.global_written_bytes), (128, 128));
    assert_eq!((dense.shared_requests, dense.bank_conflicts), (1, 0));
    let wide = count(32);
    assert_eq!(wide.sectors, 32 + 4);
    assert_eq!(wide.bank_conflicts, 31);
    assert_eq!(count(2).bank_conflicts, 1);
}

#[test]
fn repeated_reads_of_a_small_tensor_count_as_cached() {
    let count = |words: usize| {
        let body = "ld.global.u32 a0, [x0]; ld.global.u32 a1, [x0+4]; st.global.u32 [py], a1;";
        run(&module(32, 0, body), [1; 3], &vec![0; words], 32, 0).unwrap().1
    };
    // 32 threads read two words each: all but one read of a two-word tensor is cached, none of a tensor of 16 KiB.
    let [tiny, small, large] = [2, 4096, 4097].map(count);
    assert_eq!((tiny.global_read_bytes, tiny.cached_read_bytes, tiny.moved_bytes()), (256, 248, 8 + 128));
    assert_eq!((small.cached_read_bytes, small.moved_bytes()), (0, 256 + 128));
    assert_eq!((large.cached_read_bytes, large.moved_bytes()), (0, 256 + 128));
}

#[test]
fn unknown_instructions_are_named() {
    for (instruction, name) in [
        ("frobnicate.u32 d0, a0;", "frobnicate.u32"),
        ("add.cc.u32 d0, a0, a1;", "add.cc.u32"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {a0}, {a1}, {a2}, {a3};", "mma.sync.aligned.m8n8k4"),
        ("ld.local.u32 a0, [sm];", "ld.local.u32"),
    ] {
        let error = parse(&module(32, 0, instruction)).unwrap_err().to_string();
        assert!(error.contains(&format!("unknown instruction {name}")), "{error}");
        assert!(error.starts_with("line 1"), "{error}");
    }
    let error = parse(&module(32, 0, "add.u32 d0, a0, elsewhere;")).unwrap_err().to_string();
    assert!(error.contains("elsewhere is not declared"), "{error}");
}

#[test]
fn a_kernel_has_its_name_block_size_and_shared_memory() {
    let kernel = kernel(&module(96, 256, ""));
    assert_eq!((kernel.name(), kernel.threads(), kernel.shared_bytes()), ("f", 96, 256));
}
