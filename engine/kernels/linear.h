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
    void *levels;         // (rows, width): inputs in steps
    float *steps;         // (rows,): what such a step is worth, a 127th of the row's greatest magnitude
    void *sums;           // in 4 bits only
    int64_t taken;        // pieces of work that some thread has
} Job;

// Few rows are sooner brought to levels than other threads are told to.
enum { ROWS_ALONE = 8 };

static inline i32x16 levels_of(const Job *job, int64_t at, float factor) {
    const float shift = 12582912;  // 1.5 * 2^23: what is added to it has no bits left for fractions
    return (i32x16)(load(job->inputs, at, job->is_bfloat16) * factor + shift) - 0x4b400000;
}

// Keeps the step of a row, and returns the factor that turns its numbers into levels.
static inline float measure(const Job *job, int64_t row) {
    f32x16 peaks = (f32x16){0} + 1e-12f;  // a row of zeros stays one
    for (int64_t i = row * job->width; i < (row + 1) * job->width; i += 16)
        peaks = __builtin_elementwise_max(peaks, __builtin_elementwise_abs(load(job->inputs, i, job->is_bfloat16)));
    float peak = greatest_of(peaks);
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
