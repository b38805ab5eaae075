// A linear layer in float32 or bfloat16. Weights lie in tiles of OUTPUTS, those of one input together, or of two in
// bfloat16: 4 bytes for each output.
//
// Weights are read from memory once for ROWS_IN_CACHE rows, and few rows take no longer than that reading. Many rows meet
// a part of a tile that stays in the CPU's cache meanwhile.
#include "linear.h"

enum {
    VECTORS = 4,  // of 16 sums: the outputs of a tile
    OUTPUTS = 16 * VECTORS,
#ifdef __AVX512F__
    ROWS = 6, TOGETHER = 4,  // rows and vectors that meet at a time; more would not fit into the registers
    DEPTH = 512,             // units of 4 bytes of each output that many rows meet
#else
    ROWS = 6, TOGETHER = 1,
    DEPTH = 64,
#endif
    ROWS_IN_CACHE = 192,
    AHEAD = 4096,  // bytes of weights; the CPU's own prefetching falls behind when rows keep it busy
};

// Adds the products of 16 outputs with a unit of an input: a number, or two in bfloat16.
static inline f32x16 plus_products(f32x16 sums, u32x16 weights, uint32_t unit, const int is_bfloat16) {
    if (!is_bfloat16) return sums + (f32x16)weights * (f32x16)((u32x16){0} + unit);
#ifdef __AVX512BF16__
    return (f32x16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)((u32x16){0} + unit));
#else
    u32x16 units = (u32x16){0} + unit;
    return sums + (f32x16)(weights << 16) * (f32x16)(units << 16) +
           (f32x16)(weights & 0xffff0000) * (f32x16)(units & 0xffff0000);
#endif
}

// Some rows of inputs by some vectors of weights. The inlined copy for each number of them keeps its sums in registers.
static inline __attribute__((always_inline)) void multiply(
    const uint8_t *weights, const uint32_t *inputs, int64_t width, int64_t depth, f32x16 *sums, const int rows,
    const int vectors, const int is_bfloat16
) {
    f32x16 found[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) found[r][v] = sums[r * VECTORS + v];
    for (int64_t i = 0; i < depth; i++, weights += 64 * VECTORS) {
        for (int v = 0; v < vectors; v++) __builtin_prefetch(weights + 64 * v + AHEAD);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) {
                u32x16 some = (u32x16)*(const u8x64_anywhere *)(weights + 64 * v);
                found[r][v] = plus_products(found[r][v], some, inputs[r * width + i], is_bfloat16);
            }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r * VECTORS + v] = found[r][v];
}

// As many of the rows from `row` on as make whole groups; returns the first that is left.
static inline __attribute__((always_inline)) int64_t multiply_groups(
    const uint8_t *weights, const uint32_t *inputs, int64_t width, int64_t depth, f32x16 *sums, int64_t row,
    int64_t rows, const int group, const int vectors, const int is_bfloat16
) {
    for (; row + group <= rows; row += group)
        for (int v = 0; v < VECTORS; v += vectors) {
            f32x16 *found = sums + row * VECTORS + v;
            multiply(weights + 64 * v, inputs + row * width, width, depth, found, group, vectors, is_bfloat16);
        }
    return row;
}

static inline __attribute__((always_inline)) void multiply_rows(
    const Job *job, int64_t tile, int64_t row, int64_t rows, const int is_bfloat16
) {
    int64_t width = is_bfloat16 ? job->width / 2 : job->width;
    const uint8_t *weights = (const uint8_t *)job->weights + tile * width * 64 * VECTORS;
    const uint32_t *inputs = (const uint32_t *)job->inputs + row * width;
    f32x16 sums[ROWS_IN_CACHE * VECTORS];
    for (int64_t i = 0; i < rows * VECTORS; i++) {
        int64_t output = tile * OUTPUTS + i % VECTORS * 16;
        sums[i] = job->bias ? load(job->bias, output, is_bfloat16) : (f32x16){0};
    }
    for (int64_t at = 0, r = 0; at < width; at += DEPTH, inputs += DEPTH, weights += DEPTH * 64 * VECTORS, r = 0) {
        int64_t depth = least(DEPTH, width - at);
        r = multiply_groups(weights, inputs, width, depth, sums, r, rows, ROWS, TOGETHER, is_bfloat16);
        r = multiply_groups(weights, inputs, width, depth, sums, r, rows, 4, TOGETHER, is_bfloat16);
        r = multiply_groups(weights, inputs, width, depth, sums, r, rows, 2, TOGETHER, is_bfloat16);
        multiply_groups(weights, inputs, width, depth, sums, r, rows, 1, VECTORS, is_bfloat16);
    }
    for (int64_t i = 0; i < rows * VECTORS; i++) {
        int64_t output = tile * OUTPUTS + i % VECTORS * 16;
        store(job->products, (row + i / VECTORS) * job->outputs + output, sums[i], is_bfloat16);
    }
}

static void multiply_tiles(void *data) {
    Job *job = data;
    int64_t tiles = job->outputs / OUTPUTS, portions = (job->rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
    for (int64_t piece = take(&job->taken); piece < tiles * portions; piece = take(&job->taken)) {
        int64_t row = piece / tiles * ROWS_IN_CACHE, rows = least(ROWS_IN_CACHE, job->rows - row);
        if (job->is_bfloat16)
            multiply_rows(job, piece % tiles, row, rows, 1);
        else
            multiply_rows(job, piece % tiles, row, rows, 0);
    }
}

void linear_float(Job *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    parallel(multiply_tiles, job, threads, 0);
}

static void pack_tiles(void *data) {
    Packing *job = data;
    int64_t width = job->is_bfloat16 ? job->width / 2 : job->width;
    for (int64_t tile = take(&job->taken); tile < job->outputs / OUTPUTS; tile = take(&job->taken)) {
        const uint32_t *weights = (const uint32_t *)job->weights + tile * OUTPUTS * width;
        uint32_t *packed = (uint32_t *)job->packed + tile * OUTPUTS * width;
        for (int64_t at = 0; at < width; at += 16)  // as many as are read together
            for (int64_t output = 0; output < OUTPUTS; output++)
                for (int64_t i = at; i < least(at + 16, width); i++)
                    packed[i * OUTPUTS + output] = weights[output * width + i];
    }
}

void pack(Packing *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    parallel(pack_tiles, job, threads, 0);
}
