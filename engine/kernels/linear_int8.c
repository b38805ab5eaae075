// A linear layer with weights and activations in 8 bits. Weights lie in tiles of OUTPUTS, four inputs together.
//
// One instruction adds four products to each of 16 sums. Weights are read from memory once for all rows, and few rows
// take no longer than that reading.
#include "linear.h"

enum {
    VECTORS = 4,  // of 16 sums: the outputs of a tile
    OUTPUTS = 16 * VECTORS,
#ifdef __AVX512F__
    ROWS = 6,  // that meet a tile's weights together; more would not fit into the registers
#else
    ROWS = 1,
#endif
    ROWS_IN_CACHE = 96,  // that meet a tile before its successor
    MIDDLE = 128,        // the level of activation 0
    AHEAD = 4096,        // bytes of weights; the CPU's own prefetching falls behind when rows keep it busy
};

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef u8x16 u8x16_anywhere __attribute__((aligned(1)));

static void quantize(void *data) {
    Job *job = data;
    for (int64_t row = take(&job->taken); row < job->rows; row = take(&job->taken)) {
        float factor = measure(job, row);
        for (int64_t i = row * job->width; i < (row + 1) * job->width; i += 16) {
            u8x16 levels = __builtin_convertvector(levels_of(job, i, factor) + MIDDLE, u8x16);
            *(u8x16_anywhere *)((uint8_t *)job->levels + i) = levels;
        }
    }
}

// The inlined copy for each number of rows keeps its sums in registers.
static inline __attribute__((always_inline)) void multiply(const Job *job, int64_t tile, int64_t row, const int rows) {
    const uint8_t *weights = (const uint8_t *)job->weights + tile * OUTPUTS * job->width;
    const uint8_t *levels = (const uint8_t *)job->levels + row * job->width;
    i32x16 sums[ROWS][VECTORS] = {0};
    for (int64_t i = 0; i < job->width; i += 4, weights += 64 * VECTORS) {
        for (int v = 0; v < VECTORS; v++) __builtin_prefetch(weights + 64 * v + AHEAD);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            u8x64 four = (u8x64)((i32x16){0} + *(const int32_t *)(levels + r * job->width + i));
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = dot(sums[r][v], four, (i8x64)*(const u8x64_anywhere *)(weights + 64 * v));
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        int64_t output = tile * OUTPUTS + 16 * v;
        i32x16 middles = (i32x16)*(const u8x64_anywhere *)(job->middles + output);
        for (int r = 0; r < rows; r++) {
            f32x16 products = __builtin_convertvector(sums[r][v] - middles, f32x16);
            finish(job, row + r, output, products * load(job->scales, output, 0));
        }
    }
}

static void multiply_tiles(void *data) {
    Job *job = data;
    int64_t tiles = job->outputs / OUTPUTS, portions = (job->rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
    for (int64_t piece = take(&job->taken); piece < tiles * portions; piece = take(&job->taken)) {
        int64_t row = piece / tiles * ROWS_IN_CACHE, end = least(row + ROWS_IN_CACHE, job->rows), tile = piece % tiles;
        for (; row + ROWS <= end; row += ROWS) multiply(job, tile, row, ROWS);
        if (ROWS > 4 && row + 4 <= end) multiply(job, tile, row, least(4, ROWS)), row += 4;
        if (ROWS > 2 && row + 2 <= end) multiply(job, tile, row, least(2, ROWS)), row += 2;
        for (; row < end; row++) multiply(job, tile, row, 1);
    }
}

void linear_int8(Job *job, Parallel parallel, uint32_t threads) {
    run(job, quantize, multiply_tiles, parallel, threads);
}

static void pack_tiles(void *data) {
    Packing *job = data;
    float *scales = job->scales;
    for (int64_t tile = take(&job->taken); tile < job->outputs / OUTPUTS; tile = take(&job->taken)) {
        int32_t *quads = (int32_t *)job->packed + tile * OUTPUTS * job->width / 4;
        int64_t first = tile * OUTPUTS;
        for (int64_t i = first; i < first + OUTPUTS; i++)
            scales[i] = peak_of(job->weights, i * job->width, job->width, job->is_bfloat16) / job->limit;
        i32x16 sums[OUTPUTS] = {0};
        for (int64_t at = 0; at < job->width; at += 16)  // so that what is written lies together
            for (int64_t i = 0; i < OUTPUTS; i++) {
                f32x16 weights = load(job->weights, (first + i) * job->width + at, job->is_bfloat16);
                i32x16 levels = rounded(weights / scales[first + i]);
                sums[i] += levels;
                union { i8x16 all; int32_t quad[4]; } bytes = {__builtin_convertvector(levels, i8x16)};
                for (int64_t q = 0; q < 4; q++) quads[(at / 4 + q) * OUTPUTS + i] = bytes.quad[q];
            }
        for (int64_t i = 0; i < OUTPUTS; i++) job->middles[first + i] = MIDDLE * __builtin_reduce_add(sums[i]);
    }
}

void pack(Packing *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    parallel(pack_tiles, job, threads, 0);
}
