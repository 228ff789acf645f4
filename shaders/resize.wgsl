// resize - double, halve, or bicubic resize of channels-last images.
//
// Math      double  y[i, j] = x[i / 2, j / 2]
//           halve   y[i, j] = mean of x[2i.., 2j..], two by two
//           bicubic y[i, j] = sum_rs k(i, r) k(j, s) x[r, s], k Keys' kernel, taps inside the image, normalised
// Source    Keys 1981, eq. 4 with a = -1/2, stretched by the scale where the image shrinks
// Tensors   x [N, H, W, C] source -> y [N, H', W', C] elem
// Scalars   count, kind, height, width, channels, out_height, out_width u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  f32; integer tap offsets, as exact far from the origin as near it
// Variants  source: f32 f16; elem: f32 f16
// Limits    2 H H' and 2 W W' below 2^32

struct Scalars {
    // Elements of y.
    count: u32,
    kind: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
}

@group(0) @binding(0) var<storage, read> x: array<source>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
@group(0) @binding(2) var<uniform> scalars: Scalars;

// In the order of ops/resize.rs.
const DOUBLE = 0u;
const HALVE = 1u;

fn pixel(n: u32, i: u32, j: u32, c: u32) -> f32 {
    return f32(x[((n * scalars.height + i) * scalars.width + j) * scalars.channels + c]);
}

// 1.5 d^3 - 2.5 d^2 + 1 below one, -0.5 d^3 + 2.5 d^2 - 4 d + 2 below two. Factored, because the sums cancel where they
// vanish.
fn keys_cubic(distance: f32) -> f32 {
    let d = abs(distance);
    if d < 1.0 {
        return (1.0 - d) * (1.0 + d - 1.5 * d * d);
    }
    if d < 2.0 {
        return 0.5 * (1.0 - d) * (2.0 - d) * (2.0 - d);
    }
    return 0.0;
}

// The taps low .. high of one output pixel along one side. The centre of input pixel `at` lies step * at - centre after
// that of the output pixel, in units of 1 / step input pixel; `reach` is the filter's radius.
struct Taps {
    low: u32,
    high: u32,
    step: u32,
    centre: u32,
    reach: u32,
}

fn taps(index: u32, input: u32, output: u32) -> Taps {
    let step = 2u * output;
    let centre = (2u * index + 1u) * input - output;
    // The filter is stretched where the image shrinks.
    let reach = 4u * max(input, output);
    // Those within reach: from the first after centre - reach, unsigned, to the last before centre + reach.
    let low = (max(centre + step, reach) - reach) / step;
    let high = min((centre + reach - 1u) / step + 1u, input);
    return Taps(low, high, step, centre, reach);
}

fn tap_weight(t: Taps, at: u32) -> f32 {
    return keys_cubic(f32(i32(t.step * at - t.centre)) / f32(t.reach / 2u));
}

fn bicubic(n: u32, i: u32, j: u32, c: u32) -> f32 {
    let down = taps(i, scalars.height, scalars.out_height);
    let across = taps(j, scalars.width, scalars.out_width);
    var value = 0.0;
    var sum_down = 0.0;
    var sum_across = 0.0;
    for (var s = across.low; s < across.high; s++) {
        sum_across += tap_weight(across, s);
    }
    for (var r = down.low; r < down.high; r++) {
        let weight = tap_weight(down, r);
        sum_down += weight;
        if weight == 0.0 {
            continue;
        }
        var line = 0.0;
        for (var s = across.low; s < across.high; s++) {
            let part = tap_weight(across, s);
            if part != 0.0 {
                line += part * pixel(n, r, s, c);
            }
        }
        value += weight * line;
    }
    return value / (sum_down * sum_across);
}

@compute @workgroup_size(256)
fn resize(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = element_index(group, groups, lane, 256u);
    if index >= scalars.count {
        return;
    }
    let c = index % scalars.channels;
    let position = index / scalars.channels;
    let j = position % scalars.out_width;
    let row = position / scalars.out_width;
    let i = row % scalars.out_height;
    let n = row / scalars.out_height;
    var v = 0.0;
    switch scalars.kind {
        case DOUBLE: { v = pixel(n, i / 2u, j / 2u, c); }
        case HALVE: {
            let top = pixel(n, 2u * i, 2u * j, c) + pixel(n, 2u * i, 2u * j + 1u, c);
            v = (top + pixel(n, 2u * i + 1u, 2u * j, c) + pixel(n, 2u * i + 1u, 2u * j + 1u, c)) * 0.25;
        }
        default: { v = bicubic(n, i, j, c); }
    }
    y[index] = elem(v);
}
