// What linear layers share: what they are told, and how activations become levels.
#include "common.h"

typedef struct {
    const void *weights, *scales;  // as each kernel has them
    const int32_t *middles;        // (outputs,): in 8 bits only
    const void *bias;              // (outputs,) or nothing
    const void *inputs;            // (rows, width)
    void *products;                // (rows, outputs)
    int64_t rows, width, outputs;
    int32_t is_bfloat16;  // inputs, products and bias; else float32
    void *levels;         // (rows, width): inputs in steps; not in floats
    float *steps;         // (rows,): what such a step is worth, a 127th of the row's greatest magnitude; not in floats
    void *sums;           // in 4 bits only
    int64_t taken;        // pieces of work that some thread has
} Job;

// Weights that are to be laid out as a kernel wants them.
typedef struct {
    const void *weights;  // (outputs, width)
    int64_t outputs, width;
    int32_t is_bfloat16;  // else float32
    int32_t limit;        // of levels: in 8 bits only
    void *packed, *scales;
    int32_t *middles;
    int64_t taken;
} Packing;

// Few rows are sooner brought to levels than other threads are told to.
enum { ROWS_ALONE = 8 };

static inline i32x16 rounded(f32x16 values) {
    const float shift = 12582912;  // 1.5 * 2^23: what is added to it has no bits left for fractions
    return (i32x16)(values + shift) - 0x4b400000;
}

// The greatest magnitude of a row of numbers; never 0, so that a row of zeros stays one.
static inline float peak_of(const void *numbers, int64_t first, int64_t count, int is_bfloat16) {
    f32x16 peaks = (f32x16){0} + 1e-12f;
    for (int64_t i = first; i < first + count; i += 16)
        peaks = __builtin_elementwise_max(peaks, __builtin_elementwise_abs(load(numbers, i, is_bfloat16)));
    return greatest_of(peaks);
}

static inline i32x16 levels_of(const Job *job, int64_t at, float factor) {
    return rounded(load(job->inputs, at, job->is_bfloat16) * factor);
}

// Keeps the step of a row, and returns the factor that turns its numbers into levels.
static inline float measure(const Job *job, int64_t row) {
    float peak = peak_of(job->inputs, row * job->width, job->width, job->is_bfloat16);
    job->steps[row] = peak / 127;
    return 127 / peak;
}

// `products` of a row in steps, for 16 outputs.
static inline void finish(const Job *job, int64_t row, int64_t output, f32x16 products) {
    products *= job->steps[row];
    if (job->bias) products += load(job->bias, output, job->is_bfloat16);
    store(job->products, row * job->outputs + output, products, job->is_bfloat16);
}

typedef void Task(void *job);

static inline void run(Job *job, Task quantize, Task multiply, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    if (job->rows > ROWS_ALONE)
        parallel(quantize, job, threads, 0);
    else
        quantize(job);
    job->taken = 0;
    parallel(multiply, job, threads, 0);
}
