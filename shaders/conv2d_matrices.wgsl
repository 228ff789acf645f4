// conv2d_matrices - the variant of conv2d for adapters with cooperative matrices; opt-in.
//
// conv2d.wgsl and matrices.wgsl come before this text. Tested on a software adapter only, with 8 x 8 matrices.
//
// Math      y[n, i, j, o] = sum_rsc x[n, i stride + r - padding, j stride + s - padding, c] weight[(r S + s) C + c, o]
//                           + bias[o] + shift[n, o] + residual[n, i, j, o]
// Source    none
// Tensors   x [N, H, W, C] source, weight [O/32, R S C, 8] vec4 source, bias [O] f32, shift [N, O] elem,
//           residual [N, H', W', O] elem -> y [N, H', W', O] elem
// Scalars   positions, height, width, channels, out_height, out_width, outputs, window_height, window_width, stride,
//           padding, has_bias, has_shift, has_residual u32
// Launch    grid (O/64, N H' W'/64, 1), 128 threads: a subgroup owns squares of 32 by 32
// Memory    13.5 KiB shared
// Numerics  f16 times f16, accumulated in f32, in an order that the driver chooses
// Variants  source: f16; elem: f32 f16; subgroups: always; side: 8 16
// Limits    full subgroups of at most 128

@compute @workgroup_size(128)
fn conv2d_matrices(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let depth = scalars.window_height * scalars.window_width * scalars.channels;
    // Loads of this invocation: 16 neighbours in k of one position.
    let own_row = lane / 2u;
    let position = group.y * TILE + own_row;
    let own_window = window(position);
    let own_k = 16u * (lane % 2u);
    // Uniform: all invocations run the same passes and k-steps.
    for (var first = 0u; first < SQUARES; first += subgroups) {
        let square = first + subgroup;
        var sums = Sums();
        for (var start = 0u; start < depth; start += DEPTH) {
            var next = tap(start + own_k);
            for (var i = own_k; i < own_k + 16u; i++) {
                var v = source();
                if position < scalars.positions && start + i < depth {
                    v = source(channel(pixel(own_window, next.r, next.s), next.c));
                }
                left_tile[own_row * LEFT_STRIDE + i] = v;
                next = advance(next, 1u);
            }
            share_weight(group.x, start, depth, scalars.outputs, lane);
            workgroupBarrier();
            if square < SQUARES {
                multiply(square, &sums);
            }
            workgroupBarrier();
        }
        store_squares(group, first, subgroups, square, &sums, lane);
    }
}
