// group_norm - normalise each channel group of each image, scale, shift, and apply the fused style and activation.
//
// Math      y = (x - mean) / sqrt(var + eps) * gamma + beta          mean, var over (P, C/G)
//           y = y * (1 + style[n, c]) + style[n, C + c]              with style
//           y = activation(y)
// Source    Wu & He 2018, eq. 1-3; Dhariwal & Nichol 2021, section 3.1
// Tensors   x [N, P, C] elem, gamma [C] f32, beta [C] f32, style [N, 2C] elem -> y [N, P, C] elem
// Scalars   positions, channels, groups, styled, activation u32; eps f32
// Launch    grid (G, N, 1), 256 threads: a workgroup owns a group of an image
// Memory    1 KiB shared, 256 B with subgroups
// Numerics  f32; the mean first, then the variance around it
// Variants  elem: f32 f16; reduce: plain subgroups
// Limits    x stands in for an absent `style`

struct Scalars {
    positions: u32,
    channels: u32,
    groups: u32,
    styled: u32,
    activation: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> gamma: array<f32>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read> style: array<elem>;
@group(0) @binding(4) var<storage, read_write> y: array<elem>;
@group(0) @binding(5) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn group_norm(@builtin(workgroup_id) group: vec3u, lane: Lane) {
    let channels = scalars.channels;
    let members = channels / scalars.groups;
    let count = scalars.positions * members;
    // Element e of the group is channel e % members of position e / members.
    let first = group.y * scalars.positions * channels + group.x * members;

    var own = 0.0;
    for (var e = lane.index; e < count; e += REDUCE_THREADS) {
        own += f32(x[first + e / members * channels + e % members]);
    }
    let mean = workgroup_sum(own, lane) / f32(count);

    own = 0.0;
    for (var e = lane.index; e < count; e += REDUCE_THREADS) {
        let d = f32(x[first + e / members * channels + e % members]) - mean;
        own += d * d;
    }
    let scale = 1.0 / sqrt(workgroup_sum(own, lane) / f32(count) + scalars.eps);

    for (var e = lane.index; e < count; e += REDUCE_THREADS) {
        let at = first + e / members * channels + e % members;
        let c = group.x * members + e % members;
        var v = (f32(x[at]) - mean) * scale * gamma[c] + beta[c];
        if scalars.styled != 0u {
            let s = group.y * 2u * channels + c;
            v = v * (1.0 + f32(style[s])) + f32(style[s + channels]);
        }
        y[at] = elem(activate(scalars.activation, v));
    }
}
