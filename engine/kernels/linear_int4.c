// A linear layer with weights in 4 bits, and activations that are brought to 8: engine/linear.py has the layout.
//
// Products are sums of integers as long as scales stay the same, which is for GROUP inputs. A tile of OUTPUTS channels
// fills a vector of 32-bit sums; one instruction adds four products to each of them. Weights are read from memory once
// for all rows, and few rows take no longer than that reading.
#include "linear.h"

enum {
    OUTPUTS = 16,        // channels of a tile
    GROUP = 32,          // inputs that share a scale and an offset
    PAIRS = 4,           // vectors of a tile's group, each with 4 inputs in its low and 4 in its high half bytes
#ifdef __AVX512F__
    ROWS = 8,  // that share what was unpacked; more would not fit into the registers
#else
    ROWS = 2,
#endif
    ROWS_IN_CACHE = 64,  // that meet a tile before its successor
    TILES = 4,           // taken by a thread at a time
    AHEAD = 8192,        // bytes of weights; the CPU's own prefetching falls behind when rows keep it busy
};

typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef i8x16 i8x16_anywhere __attribute__((aligned(1)));

// Of the levels of a row's group.
typedef struct {
    int32_t middle;  // -8 times their sum, because level 8 of a weight is 0
    float whole;     // their sum
} Sum;

static void quantize(void *data) {
    Job *job = data;
    for (int64_t row = take(&job->taken); row < job->rows; row = take(&job->taken)) {
        float factor = measure(job, row);
        Sum *sum = (Sum *)job->sums + row * (job->width / GROUP);
        for (int64_t first = row * job->width; first < (row + 1) * job->width; first += GROUP, sum++) {
            i32x16 total = {0};
            for (int64_t i = first; i < first + GROUP; i += 16) {
                i32x16 levels = levels_of(job, i, factor);
                *(i8x16_anywhere *)((int8_t *)job->levels + i) = __builtin_convertvector(levels, i8x16);
                total += levels;
            }
            int32_t all = __builtin_reduce_add(total);
            *sum = (Sum){-8 * all, (float)all};
        }
    }
}

// A weight is (level - 8) * scale + offset. The inlined copy for each number of rows keeps its sums in registers.
static inline __attribute__((always_inline)) void multiply(const Job *job, int64_t tile, int64_t row, const int rows) {
    int64_t groups = job->width / GROUP;
    const uint8_t *weights = (const uint8_t *)job->weights + tile * groups * PAIRS * 64;
    const uint16_t *scales = (const uint16_t *)job->scales + tile * groups * 2 * OUTPUTS;
    const int8_t *levels = (const int8_t *)job->levels + row * job->width;
    const Sum *sums = (const Sum *)job->sums + row * groups;
    f32x16 found[ROWS] = {0};
    for (int64_t group = 0; group < groups; group++, weights += PAIRS * 64, scales += 2 * OUTPUTS) {
        u8x64 low[PAIRS], high[PAIRS];
        for (int i = 0; i < PAIRS; i++) {
            __builtin_prefetch(weights + 64 * i + AHEAD);
            u8x64 both = *(const u8x64_anywhere *)(weights + 64 * i);
            low[i] = both & 15, high[i] = both >> 4;
        }
        __builtin_prefetch((const uint8_t *)scales + AHEAD / 4);
        f32x16 scale = widened(scales), offset = widened(scales + OUTPUTS);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            const int32_t *quads = (const int32_t *)(levels + r * job->width + group * GROUP);
            Sum sum = sums[r * groups + group];
            i32x16 products = (i32x16){0} + sum.middle;
            for (int i = 0; i < PAIRS; i++) {
                products = dot(products, low[i], (i8x64)((i32x16){0} + quads[2 * i]));
                products = dot(products, high[i], (i8x64)((i32x16){0} + quads[2 * i + 1]));
            }
            found[r] += __builtin_convertvector(products, f32x16) * scale + sum.whole * offset;
        }
    }
    for (int r = 0; r < rows; r++) finish(job, row + r, tile * OUTPUTS, found[r]);
}

static void multiply_rows(const Job *job, int64_t tile, int64_t row, int64_t end) {
    for (; row + ROWS <= end; row += ROWS) multiply(job, tile, row, ROWS);
    if (ROWS > 4 && row + 4 <= end) multiply(job, tile, row, least(4, ROWS)), row += 4;
    if (ROWS > 2 && row + 2 <= end) multiply(job, tile, row, least(2, ROWS)), row += 2;
    for (; row < end; row++) multiply(job, tile, row, 1);
}

static void multiply_tiles(void *data) {
    Job *job = data;
    int64_t tiles = job->outputs / OUTPUTS, portions = (tiles + TILES - 1) / TILES;
    int64_t blocks = (job->rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
    for (int64_t piece = take(&job->taken); piece < portions * blocks; piece = take(&job->taken)) {
        int64_t row = piece / portions * ROWS_IN_CACHE, first = piece % portions * TILES;
        for (int64_t tile = first; tile < least(first + TILES, tiles); tile++)
            multiply_rows(job, tile, row, least(row + ROWS_IN_CACHE, job->rows));
    }
}

void linear_int4(Job *job, Parallel parallel, uint32_t threads) {
    run(job, quantize, multiply_tiles, parallel, threads);
}

// Levels 0 to 15 of a group of one channel, as 8 times 4 bytes.
static inline void levels_of_group(const Packing *job, int64_t first, float scale, float offset, uint32_t quads[8]) {
    for (int i = 0; i < GROUP; i += 16) {
        f32x16 steps = (load(job->weights, first + i, job->is_bfloat16) - offset) / scale;
        steps = __builtin_elementwise_min(__builtin_elementwise_max(steps, (f32x16){0} - 8), (f32x16){0} + 7);
        i8x16 levels = __builtin_convertvector(rounded(steps) + 8, i8x16);
        __builtin_memcpy(quads + i / 4, &levels, sizeof levels);
    }
}

static void pack_group(const Packing *job, int64_t tile, int64_t group) {
    int64_t at = tile * (job->width / GROUP) + group, first = tile * OUTPUTS * job->width + group * GROUP;
    f32x16 lowest, highest;
    for (int i = 0; i < OUTPUTS; i++) {
        f32x16 a = load(job->weights, first + i * job->width, job->is_bfloat16);
        f32x16 b = load(job->weights, first + i * job->width + 16, job->is_bfloat16);
        lowest[i] = -greatest_of(__builtin_elementwise_max(-a, -b));
        highest[i] = greatest_of(__builtin_elementwise_max(a, b));
    }
    // Rounded to what is stored before the levels are chosen, so that they make up for it.
    uint16_t *scales = (uint16_t *)job->scales + at * 2 * OUTPUTS, *offsets = scales + OUTPUTS;
    store(scales, 0, __builtin_elementwise_max((highest - lowest) / 15, (f32x16){0} + 1e-12f), 1);
    store(offsets, 0, lowest + 8 * widened(scales), 1);
    f32x16 scale = widened(scales), offset = widened(offsets);
    uint32_t *packed = (uint32_t *)job->packed + at * PAIRS * OUTPUTS;
    for (int i = 0; i < OUTPUTS; i++) {
        uint32_t quads[2 * PAIRS];
        levels_of_group(job, first + i * job->width, scale[i], offset[i], quads);
        for (int p = 0; p < PAIRS; p++) packed[p * OUTPUTS + i] = quads[2 * p] | quads[2 * p + 1] << 4;
    }
}

static void pack_tiles(void *data) {
    Packing *job = data;
    for (int64_t tile = take(&job->taken); tile < job->outputs / OUTPUTS; tile = take(&job->taken))
        for (int64_t group = 0; group < job->width / GROUP; group++) pack_group(job, tile, group);
}

void pack(Packing *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    parallel(pack_tiles, job, threads, 0);
}
