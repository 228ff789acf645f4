// multistep - one step of a sampler without noise: guidance and a sum over the last steps.
//
// Math      row = rows[b]; out = u + row[8] (c - u); e = row[0] x_t + row[1] out
//           x_{t-1} = row[2] x_t + row[3] e + row[4] h_1 + row[5] h_2 + row[6] h_3 + row[7] h_4
//           y = x_{t-1}, e, h_1, h_2, h_3
// Source    ops/multistep.rs, with the same order of operations
// Tensors   output [2B | B, image] f32, x_t [B, image] f32, rows [B, 9] f32, history [4, B, image] f32
//           -> y [5, B, image] f32
// Scalars   count, image, conditional, guided u32
// Launch    grid spread over count, 256 threads: an invocation owns an element of x_t
// Memory    none shared
// Numerics  f32
// Variants  none
// Limits    the sampler's state is f32 for every storage type

struct Scalars {
    // Elements of x_t.
    count: u32,
    image: u32,
    // Where the conditional half of the output begins.
    conditional: u32,
    guided: u32,
}

@group(0) @binding(0) var<storage, read> output: array<f32>;
@group(0) @binding(1) var<storage, read> x_t: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<f32>;
@group(0) @binding(3) var<storage, read> history: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<uniform> scalars: Scalars;

@compute @workgroup_size(256)
fn multistep(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    let row = 9u * (i / scalars.image);
    var out = output[scalars.conditional + i];
    if scalars.guided != 0u {
        out = output[i] + rows[row + 8u] * (out - output[i]);
    }
    let x = x_t[i];
    let e = rows[row] * x + rows[row + 1u] * out;
    var next = rows[row + 2u] * x + rows[row + 3u] * e;
    y[scalars.count + i] = e;
    // The oldest estimate is read and not kept.
    for (var age = 0u; age < 4u; age++) {
        let h = history[age * scalars.count + i];
        next += rows[row + 4u + age] * h;
        if age < 3u {
            y[(age + 2u) * scalars.count + i] = h;
        }
    }
    y[i] = next;
}
