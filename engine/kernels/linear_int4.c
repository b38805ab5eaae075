// A linear layer with weights in 4 bits, and activations that are brought to 8: engine/linear.py has the layout.
//
// Products are sums of integers as long as scales stay the same, which is for GROUP inputs. A tile of OUTPUTS channels
// fills a vector of 32-bit sums; one instruction adds four products to each of them. Weights are read from memory once
// for all rows, and few rows take no longer than that reading.
#include "common.h"

enum {
    OUTPUTS = 16,        // channels of a tile
    GROUP = 32,          // inputs that share a scale and an offset
    PAIRS = 4,           // vectors of a tile's group, each with 4 inputs in its low and 4 in its high half bytes
    ROWS = 8,            // that share what was unpacked; more would not fit into the registers
    ROWS_IN_CACHE = 64,  // that meet a tile before its successor
    TILES = 4,           // taken by a thread at a time
    AHEAD = 8192,        // bytes of weights; the CPU's own prefetching falls behind when rows keep it busy
};

typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef int8_t i8x64 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef u8x64 u8x64_anywhere __attribute__((aligned(1)));
typedef i8x16 i8x16_anywhere __attribute__((aligned(1)));

typedef struct {
    const uint8_t *weights;   // (tiles, groups, PAIRS, OUTPUTS, 4)
    const uint16_t *scales;   // (tiles, groups, 2, OUTPUTS) in bfloat16: a scale and an offset
    const void *inputs;       // (rows, width) in float32 or bfloat16
    void *outputs;            // (rows, tiles * OUTPUTS) likewise
    int64_t rows, width, tiles;
    int32_t is_bfloat16;
    int8_t *levels;           // (rows, width): inputs in steps of their row
    float *steps;             // (rows,)
    struct Sum { int32_t middle; float whole; } *sums;  // (rows, groups) of levels; `middle` for -8 times the same
    int64_t taken;            // pieces of work that some thread has
} Job;

static inline i32x16 rounded(f32x16 values) {
    const float shift = 12582912;  // 1.5 * 2^23: what is added to it has no bits left for fractions
    return (i32x16)(values + shift) - 0x4b400000;
}

// Adds to each of 16 sums four products of weights, which are 0 to 15, and levels.
static inline i32x16 dot(i32x16 sums, u8x64 weights, i8x64 levels) {
#if defined(__AVX512VNNI__)
    return (i32x16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)levels);
#elif defined(__AVX512BW__)
    __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, (__m512i)levels);
    return sums + (i32x16)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    union { u8x64 all; __m256i half[2]; } w = {weights}, x = {(u8x64)levels};
    union { i32x16 all; __m256i half[2]; } found;
    for (int i = 0; i < 2; i++)
        found.half[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(w.half[i], x.half[i]), _mm256_set1_epi16(1));
    return sums + found.all;
#else
    for (int i = 0; i < 64; i++) sums[i / 4] += weights[i] * levels[i];
    return sums;
#endif
}

static void quantize_row(const Job *job, int64_t row) {
    int64_t first = row * job->width;
    f32x16 peaks = {0};
    for (int64_t i = 0; i < job->width; i += 16)
        peaks = __builtin_elementwise_max(peaks, __builtin_elementwise_abs(load(job->inputs, first + i, job->is_bfloat16)));
    float peak = greatest_of(__builtin_elementwise_max(peaks, (f32x16){0} + 1e-12f));  // a row of zeros stays one
    job->steps[row] = peak / 127;
    struct Sum *sum = job->sums + row * (job->width / GROUP);
    for (int64_t i = 0; i < job->width; i += GROUP, sum++) {
        i32x16 whole = {0};
        for (int half = 0; half < GROUP; half += 16) {
            i32x16 levels = rounded(load(job->inputs, first + i + half, job->is_bfloat16) * (127 / peak));
            *(i8x16_anywhere *)(job->levels + first + i + half) = __builtin_convertvector(levels, i8x16);
            whole += levels;
        }
        int32_t total = __builtin_reduce_add(whole);
        *sum = (struct Sum){-8 * total, (float)total};
    }
}

// A weight is (level - 8) * scale + offset. The inlined copy for each number of rows keeps its sums in registers.
static inline __attribute__((always_inline)) void multiply(const Job *job, int64_t tile, int64_t row, const int rows) {
    int64_t groups = job->width / GROUP;
    const uint8_t *weights = job->weights + tile * groups * PAIRS * 64;
    const uint16_t *scales = job->scales + tile * groups * 2 * OUTPUTS;
    const int8_t *levels = job->levels + row * job->width;
    const struct Sum *sums = job->sums + row * groups;
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
            struct Sum sum = sums[r * groups + group];
            i32x16 products = (i32x16){0} + sum.middle;
            for (int i = 0; i < PAIRS; i++) {
                products = dot(products, low[i], (i8x64)((i32x16){0} + quads[2 * i]));
                products = dot(products, high[i], (i8x64)((i32x16){0} + quads[2 * i + 1]));
            }
            found[r] += __builtin_convertvector(products, f32x16) * scale + sum.whole * offset;
        }
    }
    for (int r = 0; r < rows; r++)
        store(job->outputs, ((row + r) * job->tiles + tile) * OUTPUTS, found[r] * job->steps[row + r], job->is_bfloat16);
}

static void multiply_rows(const Job *job, int64_t tile, int64_t row, int64_t end) {
    for (; row + ROWS <= end; row += ROWS) multiply(job, tile, row, ROWS);
    switch (end - row) {
        case 7: return multiply(job, tile, row, 7);
        case 6: return multiply(job, tile, row, 6);
        case 5: return multiply(job, tile, row, 5);
        case 4: return multiply(job, tile, row, 4);
        case 3: return multiply(job, tile, row, 3);
        case 2: return multiply(job, tile, row, 2);
        case 1: return multiply(job, tile, row, 1);
    }
}

static void quantize(void *data) {
    Job *job = data;
    for (int64_t row = take(&job->taken); row < job->rows; row = take(&job->taken)) quantize_row(job, row);
}

static void multiply_tiles(void *data) {
    Job *job = data;
    int64_t portions = (job->tiles + TILES - 1) / TILES, blocks = (job->rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
    for (int64_t piece = take(&job->taken); piece < portions * blocks; piece = take(&job->taken)) {
        int64_t row = piece / portions * ROWS_IN_CACHE, first = piece % portions * TILES;
        for (int64_t tile = first; tile < least(first + TILES, job->tiles); tile++)
            multiply_rows(job, tile, row, least(row + ROWS_IN_CACHE, job->rows));
    }
}

void linear_int4(Job *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    if (job->rows > ROWS)
        parallel(quantize, job, threads, 0);
    else  // sooner done than told to others
        quantize(job);
    job->taken = 0;
    parallel(multiply_tiles, job, threads, 0);
}
