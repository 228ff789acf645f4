// embed - gather rows: tokens of a table, one token of each sequence, the row of the current step.
//
// Math      y[r, c] = table[r sequence + ids[r], c]
// Source    none
// Tensors   table [V, width] source, ids [R] u32 -> y [R, width] elem
// Scalars   count, width, sequence u32
// Launch    grid spread over count, 256 threads: an invocation owns an element
// Memory    none shared
// Numerics  exact, or rounded once to a narrower type
// Variants  source: f32 f16; elem: f32 f16
// Limits    ids lie inside the table; the caller checks them. The table may be a part of the rows, from first_row on:
//           then other launches write the elements of rows in other parts

struct Scalars {
    // Elements of y.
    count: u32,
    width: u32,
    // Rows of a sequence, or 0: ids[r] counts from row r * sequence of the table.
    sequence: u32,
}

@group(0) @binding(0) var<storage, read> table: array<source>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
@group(0) @binding(3) var<uniform> scalars: Scalars;

// The first row of this part of a table that is larger than one binding.
override first_row = 0u;

@compute @workgroup_size(256)
fn embed(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element_index(group, groups, lane, 256u);
    if i >= scalars.count {
        return;
    }
    let row = i / scalars.width;
    // Rows before this part wrap around to rows beyond it.
    let at = row * scalars.sequence + ids[row] - first_row;
    if at >= arrayLength(&table) / scalars.width {
        return;
    }
    y[i] = elem(table[at * scalars.width + i % scalars.width]);
}
