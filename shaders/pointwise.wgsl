// pointwise - element by element: activations, sums, products, shifts and scales per channel, clamping.
//
// Math      y = f(x), x + o, x * o, x + o[n, c], x * (1 + o[n, c]) + o[n, C + c], min(max(x, low), high)
// Source    see ops/pointwise.rs
// Tensors   x [count] elem, other [period] elem -> y [count] elem
// Scalars   count, kind, period, channels, image u32; low, high f32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  f32
// Variants  elem: f32 f16
// Limits    x stands in for an absent `other`

struct Scalars {
    count: u32,
    kind: u32,
    period: u32,
    channels: u32,
    image: u32,
    low: f32,
    high: f32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> other: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
@group(0) @binding(3) var<uniform> scalars: Scalars;

// Kinds after the activations of the prelude, in the order of ops/pointwise.rs.
const ADD = 4u;
const MULTIPLY = 5u;
const ADD_CHANNELS = 6u;
const SCALE_SHIFT = 7u;
const CLAMP = 8u;

@compute @workgroup_size(256)
fn pointwise(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    var v = f32(x[i]);
    switch scalars.kind {
        case ADD: { v += f32(other[i % scalars.period]); }
        case MULTIPLY: { v *= f32(other[i % scalars.period]); }
        case ADD_CHANNELS: { v += f32(other[i / scalars.image * scalars.channels + i % scalars.channels]); }
        case SCALE_SHIFT: {
            let style = i / scalars.image * 2u * scalars.channels + i % scalars.channels;
            v = v * (1.0 + f32(other[style])) + f32(other[style + scalars.channels]);
        }
        case CLAMP: {
            // Comparisons, not clamp(), keep a NaN.
            if v < scalars.low {
                v = scalars.low;
            } else if v > scalars.high {
                v = scalars.high;
            }
        }
        default: { v = activate(scalars.kind, v); }
    }
    y[i] = elem(v);
}
