// conv2d_lanes - the variant of conv2d for CPUs whose vector units run subgroups of eight.
//
// There a load costs as much as a dozen multiply-adds: the eight lanes of a subgroup load eight elements of a window at
// once and broadcast them by shuffles. conv2d.wgsl, with bindings and store, comes before this text.
//
// Math      y[n, i, j, o] = sum_rsc x[n, i stride + r - padding, j stride + s - padding, c] weight[(r S + s) C + c, o]
//                           + bias[o] + shift[n, o] + residual[n, i, j, o]
// Source    none
// Tensors   x [N, H, W, C] source, weight [O/32, R S C, 8] vec4 source, bias [O] f32, shift [N, O] elem,
//           residual [N, H', W', O] elem -> y [N, H', W', O] elem
// Scalars   positions, height, width, channels, out_height, out_width, outputs, window_height, window_width, stride,
//           padding, has_bias, has_shift, has_residual u32
// Launch    grid (O/32, N H' W'/64, 1), 64 threads: an invocation owns 8 positions by 4 outputs
// Memory    none shared
// Numerics  f32, in the order of r, s, c
// Variants  source: f32 f16; elem: f32 f16; subgroups: always
// Limits    subgroups of exactly eight, in the order of the workgroup

const LANES = 8u;

@compute @workgroup_size(64)
fn conv2d_lanes(
    @builtin(workgroup_id) group: vec3u,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
) {
    // Subgroup-uniform: a subgroup shares its positions and leaves as a whole.
    let position = 8u * (8u * group.y + subgroup);
    if position >= scalars.positions {
        return;
    }
    // Positions beyond the last repeat it and are not stored; outputs beyond the last are zeros of their panel.
    let last = scalars.positions - 1u;
    let window0 = window(min(position, last));
    let window1 = window(min(position + 1u, last));
    let window2 = window(min(position + 2u, last));
    let window3 = window(min(position + 3u, last));
    let window4 = window(min(position + 4u, last));
    let window5 = window(min(position + 5u, last));
    let window6 = window(min(position + 6u, last));
    let window7 = window(min(position + 7u, last));
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    var sum4 = vec4f();
    var sum5 = vec4f();
    var sum6 = vec4f();
    var sum7 = vec4f();
    let depth = scalars.window_height * scalars.window_width * scalars.channels;
    var at = group.x * depth * PANEL + member;
    for (var first = 0u; first < depth; first += LANES) {
        // Each lane has its own tap and channel: all lanes are busy with few channels too.
        let k = min(first + member, depth - 1u);
        let own = tap(k);
        let x0 = channel(pixel(window0, own.r, own.s), own.c);
        let x1 = channel(pixel(window1, own.r, own.s), own.c);
        let x2 = channel(pixel(window2, own.r, own.s), own.c);
        let x3 = channel(pixel(window3, own.r, own.s), own.c);
        let x4 = channel(pixel(window4, own.r, own.s), own.c);
        let x5 = channel(pixel(window5, own.r, own.s), own.c);
        let x6 = channel(pixel(window6, own.r, own.s), own.c);
        let x7 = channel(pixel(window7, own.r, own.s), own.c);
        let count = min(LANES, depth - first);
        for (var lane = 0u; lane < count; lane++) {
            let w = vec4f(weight[at]);
            at += PANEL;
            sum0 += subgroupShuffle(x0, lane) * w;
            sum1 += subgroupShuffle(x1, lane) * w;
            sum2 += subgroupShuffle(x2, lane) * w;
            sum3 += subgroupShuffle(x3, lane) * w;
            sum4 += subgroupShuffle(x4, lane) * w;
            sum5 += subgroupShuffle(x5, lane) * w;
            sum6 += subgroupShuffle(x6, lane) * w;
            sum7 += subgroupShuffle(x7, lane) * w;
        }
    }
    let column = first_column + 4u * (PANEL * group.x + member);
    store(position, column, sum0);
    store(position + 1u, column, sum1);
    store(position + 2u, column, sum2);
    store(position + 3u, column, sum3);
    store(position + 4u, column, sum4);
    store(position + 5u, column, sum5);
    store(position + 6u, column, sum6);
    store(position + 7u, column, sum7);
}
