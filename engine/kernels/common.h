// What all kernels share: vectors of 64 bytes, which the compiler splits where a CPU's are shorter; floats of both
// lengths; and PyTorch's threads.
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef int8_t i8x64 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef f32x16 f32x16_anywhere __attribute__((aligned(1)));
typedef u8x64 u8x64_anywhere __attribute__((aligned(1)));
typedef u16x16 u16x16_anywhere __attribute__((aligned(1)));

// GOMP_parallel of the OpenMP that PyTorch runs: its threads, so that no second pool fights with them for the cores.
typedef void (*Parallel)(void (*task)(void *), void *data, unsigned threads, unsigned flags);

// Work is taken piece by piece, so that a thread whose core is busy with something else takes less of it.
static inline int64_t take(int64_t *taken) { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline f32x16 widened(const uint16_t *bfloat16) {
    return (f32x16)(__builtin_convertvector(*(const u16x16_anywhere *)bfloat16, u32x16) << 16);
}

// 16 numbers from the index `at` on.
static inline f32x16 load(const void *numbers, int64_t at, int is_bfloat16) {
    if (is_bfloat16) return widened((const uint16_t *)numbers + at);
    return *(const f32x16_anywhere *)((const float *)numbers + at);
}

static inline void store(void *numbers, int64_t at, f32x16 values, int is_bfloat16) {
    if (is_bfloat16) {  // to the nearest, and of two to the even one
        u32x16 bits = (u32x16)values;
        bits += 0x7fff + ((bits >> 16) & 1);
        *(u16x16_anywhere *)((uint16_t *)numbers + at) = __builtin_convertvector(bits >> 16, u16x16);
    } else {
        *(f32x16_anywhere *)((float *)numbers + at) = values;
    }
}

static inline f32x16 halves_swapped(f32x16 v) {
    return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

static inline f32x16 quarters_swapped(f32x16 v) {
    return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}

static inline f32x16 pairs_swapped(f32x16 v) {
    return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}

static inline float sum_of(f32x16 v) {
    v += halves_swapped(v);
    v += quarters_swapped(v);
    v += pairs_swapped(v);
    return v[0] + v[1];
}

static inline float greatest_of(f32x16 v) {
    v = __builtin_elementwise_max(v, halves_swapped(v));
    v = __builtin_elementwise_max(v, quarters_swapped(v));
    v = __builtin_elementwise_max(v, pairs_swapped(v));
    return v[0] > v[1] ? v[0] : v[1];
}

// Adds to each of 16 sums four products. On CPUs without VNNI, two of them may not go beyond 16 bits.
static inline i32x16 dot(i32x16 sums, u8x64 a, i8x64 b) {
#if defined(__AVX512VNNI__)
    return (i32x16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)b);
    return sums + (i32x16)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    union { u8x64 all; __m256i half[2]; } x = {a}, y = {(u8x64)b};
    union { i32x16 all; __m256i half[2]; } found;
    for (int i = 0; i < 2; i++)
        found.half[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(x.half[i], y.half[i]), _mm256_set1_epi16(1));
    return sums + found.all;
#else
    for (int i = 0; i < 64; i++) sums[i / 4] += a[i] * b[i];
    return sums;
#endif
}
