// sampler_step - one reverse step of the diffusion: guidance, x0, clipping, posterior mean and noise.
//
// Math      out = u + s (c - u); x0 = (x_t - row[0] out) / row[1] or out, within +-range
//           sigma = exp((f row[5] + (1 - f) row[6]) / 2), f = (v + 1) / 2, or row[4]
//           x_{t-1} = (row[2] x0 + row[3] x_t) + row[7] (sigma noise)
// Source    see ops/sampler_step.rs, whose order of operations this keeps
// Tensors   output [2B | B, P, C | 2C] f32, x_t [B, P, C] f32, noise [B, P, C] f32, row [8] f32 -> y [B, P, C] f32
// Scalars   count, channels, wide, conditional, guided, epsilon, learned, clipped u32; guidance, range f32
// Launch    grid spread over count, 256 threads: one invocation owns one element
// Memory    none shared
// Numerics  f32
// Variants  none
// Limits    the sampler's state is f32 whatever the storage type

struct Scalars {
    // Elements of x_t.
    count: u32,
    channels: u32,
    // Channels of the model's output.
    wide: u32,
    // Where the conditional half of the output begins.
    conditional: u32,
    guided: u32,
    epsilon: u32,
    learned: u32,
    clipped: u32,
    guidance: f32,
    range: f32,
}

@group(0) @binding(0) var<storage, read> output: array<f32>;
@group(0) @binding(1) var<storage, read> x_t: array<f32>;
@group(0) @binding(2) var<storage, read> noise: array<f32>;
@group(0) @binding(3) var<storage, read> row: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<uniform> scalars: Scalars;

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
    let at = i / scalars.channels * scalars.wide + i % scalars.channels;
    let conditional = f32(output[scalars.conditional + at]);
    var out = conditional;
    if scalars.guided != 0u {
        let unconditional = f32(output[at]);
        out = unconditional + scalars.guidance * (conditional - unconditional);
    }
    var x0 = out;
    if scalars.epsilon != 0u {
        x0 = (x_t[i] - row[0] * out) / row[1];
    }
    if scalars.clipped != 0u {
        // Comparisons, not clamp(): a NaN stays one.
        if x0 < -scalars.range {
            x0 = -scalars.range;
        } else if x0 > scalars.range {
            x0 = scalars.range;
        }
    }
    var sigma = row[4];
    if scalars.learned != 0u {
        let fraction = (f32(output[scalars.conditional + at + scalars.channels]) + 1.0) / 2.0;
        sigma = exp(0.5 * (fraction * row[5] + (1.0 - fraction) * row[6]));
    }
    y[i] = (row[2] * x0 + row[3] * x_t[i]) + row[7] * (sigma * noise[i]);
}
