// linear_matrices - the variant of linear for adapters with cooperative matrices; opt-in.
//
// linear.wgsl and matrices.wgsl come before this text. Tested on a software adapter only, with 8 x 8 matrices.
//
// Math      y[m, n] = activation(sum_k x[m, k] weight[k, n] + bias[n]) + residual[m, n]
// Source    none
// Tensors   x [M, K] source, weight [N/32, K, 8] vec4 source, bias [N] f32, residual [M, N] elem -> y [M, N] elem
// Scalars   m, k, n, activation, has_bias, has_residual u32
// Launch    grid (N/64, M/64, 1), 128 threads: a subgroup owns squares of 32 by 32
// Memory    13.5 KiB shared
// Numerics  f16 times f16, accumulated in f32, in an order that the driver chooses
// Variants  source: f16; elem: f32 f16; subgroups: always; side: 8 16
// Limits    full subgroups of at most 128

@compute @workgroup_size(128)
fn linear_matrices(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    // Loads of this invocation: 16 neighbours in k of one row.
    let own_row = lane / 2u;
    let row = group.y * TILE + own_row;
    let own_k = 16u * (lane % 2u);
    // Uniform: all invocations run the same passes and k-steps.
    for (var first = 0u; first < SQUARES; first += subgroups) {
        let square = first + subgroup;
        var sums = Sums();
        for (var start = 0u; start < scalars.k; start += DEPTH) {
            for (var i = own_k; i < own_k + 16u; i++) {
                var v = source();
                if row < scalars.m && start + i < scalars.k {
                    v = x[row * scalars.k + start + i];
                }
                left_tile[own_row * LEFT_STRIDE + i] = v;
            }
            share_weight(group.x, start, scalars.k, scalars.n, lane);
            workgroupBarrier();
            if square < SQUARES {
                multiply(square, &sums);
            }
            workgroupBarrier();
        }
        store_squares(group, first, subgroups, square, &sums, lane);
    }
}
