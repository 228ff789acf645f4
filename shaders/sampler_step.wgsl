// sampler_step - one reverse step of the diffusion: guidance, x0, clipping, posterior mean and noise.
//
// Math      row = rows[b]; out = u + row[8] (c - u); x0 = out, (x_t - row[0] out) / row[1] or
//           row[1] x_t - row[0] out, within +-range
//           sigma = exp((f row[5] + (1 - f) row[6]) / 2), f = (v + 1) / 2, or row[4]
//           x_{t-1} = (row[2] x0 + row[3] x_t) + row[7] (sigma z)
//           z = noise, or element c P + p of the step's draw, of the generator that `drawn` numbers
// Source    ops/sampler_step.rs, with the same order of operations; noise/philox.rs and noise/torch_cuda.rs for z
// Tensors   output [2B | B, P, C | 2C] f32, x_t [B, P, C] f32, rows [B, 9] f32, noise [B, P, C] f32,
//           seeds [B, 4 | 8] u32, step_number [1] u32 -> y [B, P, C] f32
// Scalars   count, channels, positions, wide, conditional, guided, prediction, learned, clipped, drawn,
//           lost u32; range f32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  f32; the random words are exact, the normal floats within a few roundings of the CPU's
// Variants  none
// Limits    the sampler's state is f32 for every storage type

struct Scalars {
    // Elements of x_t.
    count: u32,
    channels: u32,
    // Of one image.
    positions: u32,
    // Channels of the model's output.
    wide: u32,
    // Where the conditional half of the output begins.
    conditional: u32,
    guided: u32,
    // What the model predicts: x0, the noise, or the velocity.
    prediction: u32,
    learned: u32,
    clipped: u32,
    // What draws z: nothing, because it is given, Philox, or torch's generator for CUDA.
    drawn: u32,
    // Bits of an f32's fraction that the type of a draw lacks: 0, 13 of f16, 16 of bf16.
    lost: u32,
    range: f32,
}

@group(0) @binding(0) var<storage, read> output: array<f32>;
@group(0) @binding(1) var<storage, read> x_t: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<f32>;
@group(0) @binding(3) var<storage, read> noise: array<f32>;
@group(0) @binding(4) var<storage, read> seeds: array<u32>;
@group(0) @binding(5) var<storage, read> step_number: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<uniform> scalars: Scalars;

// The upper 32 bits of a * b, from 16-bit halves: WGSL has no 64-bit integers. No sum below overflows.
fn multiply_high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + (a0 * b0 >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return a1 * b1 + (middle >> 16u) + (other >> 16u);
}

fn philox4x32_10(counter: vec4u, seed: vec2u) -> vec4u {
    var c = counter;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        c = vec4u(
            multiply_high(c.z, 0xcd9e8d57u) ^ c.y ^ key.x,
            c.z * 0xcd9e8d57u,
            multiply_high(c.x, 0xd2511f53u) ^ c.w ^ key.y,
            c.x * 0xd2511f53u,
        );
        key += vec2u(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

// Natural logarithm of a positive normal float, as in noise/box_muller.rs: x = m 2^e.
fn ln(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    var e = f32(i32(bits >> 23u) - 126);
    var m = bitcast<f32>((bits & 0x007fffffu) | 0x3f000000u);
    if m < 0.70710678 {
        e -= 1.0;
        m = (m - 1.0) + m;
    } else {
        m = m - 1.0;
    }
    let z = m * m;
    var p = 7.0376836292e-2;
    p = fma(p, m, -1.1514610310e-1);
    p = fma(p, m, 1.1676998740e-1);
    p = fma(p, m, -1.2420140846e-1);
    p = fma(p, m, 1.4249322787e-1);
    p = fma(p, m, -1.6668057665e-1);
    p = fma(p, m, 2.0000714765e-1);
    p = fma(p, m, -2.4999993993e-1);
    p = fma(p, m, 3.3333331174e-1);
    p = fma(p * m, z, e * -2.12194440e-4);
    p = fma(z, -0.5, p);
    return fma(e, 0.693359375, m + p);
}

// cos(2 pi u) or sin(2 pi u) for u in [0, 1), as in noise/box_muller.rs: WGSL's own may be off by 5e-4. The angle is
// j pi/4 + r with an even j.
fn wave(u: f32, is_sine: bool) -> f32 {
    let angle = 6.2831853 * u;
    let j = (u32(angle * 1.27323954) + 1u) & ~1u;
    var r = fma(f32(j), -0.78515625, angle);
    r = fma(f32(j), -2.4187564849853515625e-4, r);
    r = fma(f32(j), -3.77489497744594108e-8, r);
    let z = r * r;
    // A cosine is the sine two eighths of the circle later.
    let eighths = select(j + 2u, j, is_sine);
    var value = fma(fma(fma(-1.9515295891e-4, z, 8.3321608736e-3), z, -1.6666654611e-1) * z, r, r);
    if (eighths & 2u) != 0u {
        let p = fma(fma(2.443315711809948e-5, z, -1.388731625493765e-3), z, 4.166664568298827e-2);
        value = fma(p * z, z, -(z * 0.5)) + 1.0;
    }
    return select(value, -value, (eighths & 4u) != 0u);
}

// The sum of two integers of 64 bits, low words first.
fn add_wide(a: vec2u, b: vec2u) -> vec2u {
    let low = a.x + b.x;
    return vec2u(low, a.y + b.y + select(0u, 1u, low < a.x));
}

// Four words of an image's row of seeds.
fn seed_words(at: u32) -> vec4u {
    return vec4u(seeds[at], seeds[at + 1u], seeds[at + 2u], seeds[at + 3u]);
}

// An element of an image's noise as torch draws it on a card: thread `place mod T` makes it in turn `place div T`, four
// turns from one counter, sines before cosines.
fn normal_of_torch(image: u32, element: u32) -> f32 {
    let first = seed_words(8u * image);
    let draw = seed_words(8u * image + 4u);
    let place = draw.z + element;
    let turn = draw.w + place / draw.y;
    let step = vec2u(step_number[0] * draw.x, multiply_high(step_number[0], draw.x));
    let counter = add_wide(add_wide(first.zw, step), vec2u(turn / 4u, 0u));
    let words = philox4x32_10(vec4u(counter, place % draw.y, 0u), first.xy);
    let pair = select(words.xy, words.zw, (turn & 2u) != 0u);
    // Words become floats in two halves: the sum is rounded once, whatever the device's conversion does.
    let rounded = vec2f(pair >> vec2u(16u)) * 65536.0 + vec2f(pair & vec2u(0xffffu));
    let u = rounded * 0x1p-32 + 0x1p-33;
    return nearest(sqrt(-2.0 * ln(u.x)) * wave(u.y, (turn & 1u) == 0u));
}

// The nearest value of the type of draws, halfway cases to even.
fn nearest(x: f32) -> f32 {
    if scalars.lost == 0u {
        return x;
    }
    if scalars.lost == 13u && abs(x) < 0x1p-14 {
        // Too small for f16's exponents: there its values are 2^-24 apart.
        return round(x * 0x1p24) * 0x1p-24;
    }
    let bits = bitcast<u32>(x);
    let odd = (bits >> scalars.lost) & 1u;
    return bitcast<f32>((bits + (1u << (scalars.lost - 1u)) - 1u + odd) >> scalars.lost << scalars.lost);
}

// An element of an image's noise as Philox draws it.
fn normal(image: u32, element: u32) -> f32 {
    let seed = seed_words(4u * image);
    let draw = add_wide(seed.zw, vec2u(step_number[0], 0u));
    let words = philox4x32_10(vec4u(element / 4u, 0u, draw), seed.xy);
    let pair = select(words.xy, words.zw, (element & 2u) != 0u);
    let radius = sqrt(-2.0 * ln(f32((pair.x >> 8u) + 1u) * 0x1p-24));
    return radius * wave(f32(pair.y >> 8u) * 0x1p-24, (element & 1u) != 0u);
}

@compute @workgroup_size(256)
fn sampler_step(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    let position = i / scalars.channels;
    let channel = i % scalars.channels;
    let image = position / scalars.positions;
    let row = 9u * image;
    let at = position * scalars.wide + channel;
    let conditional = f32(output[scalars.conditional + at]);
    var out = conditional;
    if scalars.guided != 0u {
        let unconditional = f32(output[at]);
        out = unconditional + rows[row + 8u] * (conditional - unconditional);
    }
    var x0 = out;
    if scalars.prediction == 1u {
        x0 = (x_t[i] - rows[row] * out) / rows[row + 1u];
    } else if scalars.prediction == 2u {
        x0 = rows[row + 1u] * x_t[i] - rows[row] * out;
    }
    if scalars.clipped != 0u {
        // Comparisons, not clamp(), keep a NaN.
        if x0 < -scalars.range {
            x0 = -scalars.range;
        } else if x0 > scalars.range {
            x0 = scalars.range;
        }
    }
    var sigma = rows[row + 4u];
    if scalars.learned != 0u {
        let fraction = (f32(output[scalars.conditional + at + scalars.channels]) + 1.0) / 2.0;
        sigma = exp(0.5 * (fraction * rows[row + 5u] + (1.0 - fraction) * rows[row + 6u]));
    }
    var z = 0.0;
    if scalars.drawn == 0u {
        z = noise[i];
    } else if rows[row + 7u] != 0.0 {
        let element = channel * scalars.positions + position % scalars.positions;
        if scalars.drawn == 1u {
            z = normal(image, element);
        } else {
            z = normal_of_torch(image, element);
        }
    }
    y[i] = (rows[row + 2u] * x0 + rows[row + 3u] * x_t[i]) + rows[row + 7u] * (sigma * z);
}
