// Attention of a few new positions to the many that caches hold, in which the new ones are stored first.
//
// It takes as long as reading the keys and values: they are read once for all queries that share a key head, a block
// at a time, and the softmax goes along (Milakov and Gimelshein, 2018). PyTorch calls a matrix product for each head.
#include "common.h"

enum { QUERIES = 4, BLOCK = 64, LONGEST = 256 };  // LONGEST: numbers of a key

// Some new positions of one stream, whose cache has position p at p % slots.
typedef struct {
    void *keys, *values;  // (key_heads, slots, dim)
    int64_t key_stride, value_stride;  // numbers between heads
    int64_t slots;
    int64_t start, count;  // new positions
    int64_t offset;        // of the first of them among the queries
} Part;

typedef struct {
    const void *numbers;
    int64_t head_stride, position_stride;
} Heads;

typedef struct {
    Part *parts;
    Heads queries, keys, values;  // of the new positions of all parts
    void *outputs;                // (positions, heads, dim)
    int64_t part_count, key_heads, groups, dim;
    int64_t window;  // positions that a query sees, its own included
    float scaling;
    int32_t is_bfloat16;
    int64_t taken;
} Job;

// e to the power of values that are not above 0: 2^n from the exponent's bits, the rest by its Taylor series.
static inline f32x16 exponential(f32x16 v) {
    v = __builtin_elementwise_max(v * 1.44269504f, (f32x16){0} - 126);
    const float shift = 12582912;  // 1.5 * 2^23: what is added to it has no bits left for fractions
    f32x16 whole = v + shift;
    f32x16 x = (v - (whole - shift)) * 0.693147181f;  // -0.35 to 0.35
    f32x16 power = 1 + x * (1 + x * (0.5f + x * (1 / 6.f + x * (1 / 24.f + x * (1 / 120.f + x * (1 / 720.f))))));
    return power * (f32x16)(((i32x16)whole - 0x4b400000 + 127) << 23);
}

static inline void copy(void *to, int64_t at, const void *from, int64_t source, int64_t count, int is_bfloat16) {
    for (int64_t i = 0; i < count; i += 16) store(to, at + i, load(from, source + i, is_bfloat16), is_bfloat16);
}

static inline void keep(const Job *job, const Part *part, int64_t head, int is_bfloat16) {
    for (int64_t i = 0; i < part->count; i++) {
        int64_t slot = (part->start + i) % part->slots * job->dim, new = part->offset + i;
        int64_t key = head * job->keys.head_stride + new * job->keys.position_stride;
        int64_t value = head * job->values.head_stride + new * job->values.position_stride;
        copy(part->keys, head * part->key_stride + slot, job->keys.numbers, key, job->dim, is_bfloat16);
        copy(part->values, head * part->value_stride + slot, job->values.numbers, value, job->dim, is_bfloat16);
    }
}

// What is known of some queries after some of the keys.
typedef struct {
    float query[QUERIES][LONGEST], found[QUERIES][LONGEST];  // `found` by weights relative to `peak`
    float weights[QUERIES][BLOCK];
    float peak[QUERIES], total[QUERIES];
    int64_t position[QUERIES];
} State;

// Scores of a block of keys, and from them weights.
static inline __attribute__((always_inline)) void weigh(
    State *state, const void *keys, int64_t at, int64_t position, int64_t count, int64_t window, const int vectors,
    const int is_bfloat16
) {
    for (int64_t k = 0; k < count; k++) {
        f32x16 sums[QUERIES] = {0};
        for (int i = 0; i < vectors; i++) {
            f32x16 key = load(keys, at + (k * vectors + i) * 16, is_bfloat16);
            for (int q = 0; q < QUERIES; q++) sums[q] += key * *(f32x16_anywhere *)(state->query[q] + 16 * i);
        }
        for (int q = 0; q < QUERIES; q++) {
            int64_t behind = state->position[q] - position - k;
            state->weights[q][k] = behind >= 0 && behind < window ? sum_of(sums[q]) : -1e30f;
        }
    }
    for (int q = 0; q < QUERIES; q++) {
        f32x16 *weights = (f32x16 *)state->weights[q], peaks = (f32x16){0} + state->peak[q], total = {0};
        for (int64_t k = count; k < BLOCK; k++) state->weights[q][k] = -1e30f;
        for (int i = 0; i < BLOCK / 16; i++) peaks = __builtin_elementwise_max(peaks, weights[i]);
        float peak = greatest_of(peaks), faded = exponential((f32x16){0} + (state->peak[q] - peak))[0];
        for (int i = 0; i < BLOCK / 16; i++) total += weights[i] = exponential(weights[i] - peak);
        state->total[q] = state->total[q] * faded + sum_of(total);
        state->peak[q] = peak;
        for (int i = 0; i < vectors; i++) *(f32x16 *)(state->found[q] + 16 * i) *= faded;
    }
}

static inline __attribute__((always_inline)) void gather(
    State *state, const void *values, int64_t at, int64_t count, const int vectors, const int is_bfloat16
) {
    for (int first = 0; first < vectors; first += 4) {  // 64 numbers of each query stay in registers
        const int some = vectors - first < 4 ? vectors - first : 4;
        f32x16 found[QUERIES][4];
        for (int q = 0; q < QUERIES; q++)
            for (int i = 0; i < some; i++) found[q][i] = *(f32x16 *)(state->found[q] + 16 * (first + i));
        for (int64_t k = 0; k < count; k++)
            for (int i = 0; i < some; i++) {
                f32x16 value = load(values, at + (k * vectors + first + i) * 16, is_bfloat16);
                for (int q = 0; q < QUERIES; q++) found[q][i] += value * state->weights[q][k];
            }
        for (int q = 0; q < QUERIES; q++)
            for (int i = 0; i < some; i++) *(f32x16 *)(state->found[q] + 16 * (first + i)) = found[q][i];
    }
}

// Queries number `first` to `first + count` of a key head's, which has `groups` for each position.
static inline __attribute__((always_inline)) void attend(
    const Job *job, const Part *part, int64_t head, int64_t first, int64_t count, const int vectors,
    const int is_bfloat16
) {
    State state __attribute__((aligned(64)));
    int64_t head_of[QUERIES];
    for (int q = 0; q < QUERIES; q++) {
        int64_t query = first + least(q, count - 1);  // the last stands in for those that are missing
        state.position[q] = part->start + query / job->groups;
        head_of[q] = head * job->groups + query % job->groups;
        int64_t row = part->offset + query / job->groups;
        int64_t at = head_of[q] * job->queries.head_stride + row * job->queries.position_stride;
        for (int i = 0; i < vectors; i++) {
            *(f32x16 *)(state.query[q] + 16 * i) = load(job->queries.numbers, at + 16 * i, is_bfloat16) * job->scaling;
            *(f32x16 *)(state.found[q] + 16 * i) = (f32x16){0};
        }
        state.peak[q] = -1e30f, state.total[q] = 0;
    }
    int64_t begin = state.position[0] - job->window + 1, end = state.position[QUERIES - 1] + 1;
    for (int64_t position = begin > 0 ? begin : 0, some; position < end; position += some) {
        int64_t slot = position % part->slots;
        some = least(least(BLOCK, end - position), part->slots - slot);
        int64_t key = head * part->key_stride + slot * job->dim, value = head * part->value_stride + slot * job->dim;
        weigh(&state, part->keys, key, position, some, job->window, vectors, is_bfloat16);
        gather(&state, part->values, value, some, vectors, is_bfloat16);
    }
    for (int q = 0; q < count; q++) {
        int64_t row = part->offset + (first + q) / job->groups;
        int64_t at = (row * job->key_heads * job->groups + head_of[q]) * job->dim;
        for (int i = 0; i < vectors; i++)
            store(job->outputs, at + 16 * i, *(f32x16 *)(state.found[q] + 16 * i) / state.total[q], is_bfloat16);
    }
}

static inline __attribute__((always_inline)) void attend_head(
    const Job *job, const Part *part, int64_t head, const int vectors, const int is_bfloat16
) {
    keep(job, part, head, is_bfloat16);
    int64_t queries = part->count * job->groups;
    for (int64_t first = 0; first < queries; first += QUERIES)
        attend(job, part, head, first, least(QUERIES, queries - first), vectors, is_bfloat16);
}

static void attend_heads(void *data) {
    Job *job = data;
    for (int64_t piece = take(&job->taken); piece < job->part_count * job->key_heads; piece = take(&job->taken)) {
        const Part *part = job->parts + piece / job->key_heads;
        int64_t head = piece % job->key_heads;
        int vectors = (int)(job->dim / 16);
        // The sizes of Voxtral with loops of known lengths; others, such as those of the demo models, without.
        if (vectors == 8 && job->is_bfloat16) attend_head(job, part, head, 8, 1);
        else if (vectors == 4 && job->is_bfloat16) attend_head(job, part, head, 4, 1);
        else if (vectors == 8) attend_head(job, part, head, 8, 0);
        else if (vectors == 4) attend_head(job, part, head, 4, 0);
        else attend_head(job, part, head, vectors, job->is_bfloat16);
    }
}

void cached_attention(Job *job, Parallel parallel, uint32_t threads) {
    job->taken = 0;
    parallel(attend_heads, job, threads, 0);
}
