// matrices - matmul by cooperative matrices, for the kernels whose names end in _matrices.
//
// A subgroup multiplies matrices of SIDE by SIDE elements. The driver chooses which invocation holds which element:
// operands are loaded from shared memory, and sums go through it to `store`. The host writes SIDE, and the types
// `left_matrix`, `right_matrix` and `sum_matrix`, before this text.
//
// A workgroup owns 64 by 64 sums, in squares of 32 by 32. With fewer than four subgroups it takes several passes, a
// square for each subgroup; with more, the others only help to load and to store.

const SQUARE = 32u;
const SQUARES_IN_ROW = TILE / SQUARE;
const SQUARES = SQUARES_IN_ROW * SQUARES_IN_ROW;
// Matrices along a side of a square.
const COUNT = SQUARE / SIDE;
const MATRIX = SIDE * SIDE;

// k of a step in shared memory.
const DEPTH = 32u;
const MATRIX_THREADS = 128u;
// Padded rows put the rows of a matrix into different banks.
const LEFT_STRIDE = DEPTH + 8u;
const RIGHT_STRIDE = TILE + 8u;

// [TILE][DEPTH] of x, [DEPTH][TILE] of the weight, and one matrix of sums from every square.
var<workgroup> left_tile: array<source, TILE * LEFT_STRIDE>;
var<workgroup> right_tile: array<source, DEPTH * RIGHT_STRIDE>;
var<workgroup> sum_tile: array<f32, SQUARES * MATRIX>;

alias Sums = array<sum_matrix, COUNT * COUNT>;

// Adds the matmul of the shared tiles to a square's sums. Subgroup-uniform.
fn multiply(square: u32, sums: ptr<function, Sums>) {
    let top = square / SQUARES_IN_ROW * SQUARE;
    let left = square % SQUARES_IN_ROW * SQUARE;
    for (var k = 0u; k < DEPTH; k += SIDE) {
        for (var i = 0u; i < COUNT; i++) {
            let a = coopLoadT<left_matrix>(&left_tile[(top + i * SIDE) * LEFT_STRIDE + k], LEFT_STRIDE);
            for (var j = 0u; j < COUNT; j++) {
                let b = coopLoadT<right_matrix>(&right_tile[k * RIGHT_STRIDE + left + j * SIDE], RIGHT_STRIDE);
                (*sums)[i * COUNT + j] = coopMultiplyAdd(a, b, (*sums)[i * COUNT + j]);
            }
        }
    }
}

// Loads a step's rows of the weight, quad by quad; zeros beyond the last k and column.
fn share_weight(group: u32, start: u32, depth: u32, columns: u32, lane: u32) {
    for (var i = lane; i < DEPTH * QUADS; i += MATRIX_THREADS) {
        let k = start + i / QUADS;
        let quad = group * QUADS + i % QUADS;
        var w = vec4<source>();
        if first_column + 4u * quad < columns && k < depth {
            w = weight[(quad / PANEL * depth + k) * PANEL + quad % PANEL];
        }
        let at = i / QUADS * RIGHT_STRIDE + 4u * (i % QUADS);
        right_tile[at] = w.x;
        right_tile[at + 1u] = w.y;
        right_tile[at + 2u] = w.z;
        right_tile[at + 3u] = w.w;
    }
}

// Stores the squares of this pass, one matrix of each at a time. Uniform: it has barriers.
fn store_squares(group: vec3u, first: u32, subgroups: u32, square: u32, sums: ptr<function, Sums>, lane: u32) {
    for (var index = 0u; index < COUNT * COUNT; index++) {
        if square < SQUARES {
            coopStoreT((*sums)[index], &sum_tile[square * MATRIX], SIDE);
        }
        workgroupBarrier();
        store_matrix(group, first, min(first + subgroups, SQUARES), index, lane);
        workgroupBarrier();
    }
}

// Stores matrix `index` of each square of this pass, from sum_tile.
fn store_matrix(group: vec3u, first: u32, after: u32, index: u32, lane: u32) {
    const QUADS_OF_MATRIX = MATRIX / 4u;
    for (var i = first * QUADS_OF_MATRIX + lane; i < after * QUADS_OF_MATRIX; i += MATRIX_THREADS) {
        let square = i / QUADS_OF_MATRIX;
        let quad = i % QUADS_OF_MATRIX;
        let top = square / SQUARES_IN_ROW * SQUARE + index / COUNT * SIDE;
        let left = square % SQUARES_IN_ROW * SQUARE + index % COUNT * SIDE;
        let row = group.y * TILE + top + quad / (SIDE / 4u);
        let column = first_column + group.x * TILE + left + 4u * (quad % (SIDE / 4u));
        let sum = vec4f(sum_tile[4u * i], sum_tile[4u * i + 1u], sum_tile[4u * i + 2u], sum_tile[4u * i + 3u]);
        store(row, column, sum);
    }
}

