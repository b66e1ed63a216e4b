// One step of the model in C: N rows in, scores out. A row is one token, the slot whose text it continues, its position.
//
// A text's tokens are computed one number after the other at the speed at which the weights come from memory, so each
// weight is read once for all rows, as it is stored. A float32 or bfloat16 one becomes a float32 in a register; an int8 one
// meets its row rounded to int16, because whole numbers are multiplied and added in pairs.
// Every sum is taken in the same order whatever else is computed beside it: one partial sum for each lane of a register
// along the row, then their sum. So a text does not depend on its neighbours, on the cut of its prompt, or on the number
// of threads.
//
// Letters: N rows, D width, H query heads, J key/value heads, K head width, F inner width, V vocabulary, S places.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define BARRIER _Pragma("omp barrier")
#else
#define BARRIER
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
enum { F32, BF16, INT8 };
static const size_t BYTES[] = {4, 2, 1};  // of a weight
#if defined __AVX512F__ && defined __AVX512BW__
#define WIDE
#define OUTS(kind) 4  // outputs of a tile of up to 4 rows: what 32 registers hold
enum { LANES = 16 };  // numbers in a register
enum { GROUP = 0 };   // bytes of weights that all rows meet before the next: with 512 bits it gains nothing
enum { ROW_OUTS = 8 };  // outputs of a tile of one row
#define ASKS(t0, ROWS, next) AHEAD
#else
#define OUTS(kind) ((kind) == F32 ? 3 : 2)  // what 16 registers hold; a mask and whole numbers' products need some
enum { LANES = 8 };
enum { GROUP = 24576 };  // half of the innermost cache: else 16 rows of inputs push each other out of it
// One row alone waits for loads: four streams of weights that ask for little ahead are the fastest on Zen 3, beside eight
// that do not (docs/LOG.md). Of several rows the first four ask further ahead, and the next four for the weights that
// follow these: together they have the time of all rows to come.
enum { ROW_OUTS = 4 };
#define ASKS(t0, ROWS, next) (ROWS == 1 ? AHEAD / 2 : t0 == 0 ? AHEAD : t0 == 4 ? next : 0)
#endif
enum { UNIT = 8 };      // outputs of a thread, and a multiple of them: what tiles of 8, of 4 and of 2 fill; of 3 leave two at most
enum { MOST = 16 };     // sums that a tile holds at most
enum { AHEAD = 1024 };  // bytes: so far before their use weights are asked for; from 512 to 1,536 it is the same
enum { LINE = 16 };     // floats in a line of the cache
enum { EXACT = 4096 };  // so many products of an int8 (127 at most) and an int16 fit 8 sums of 32 bits

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float fv __attribute__((vector_size(4 * LANES)));
typedef fv any_fv __attribute__((aligned(4), may_alias));  // wherever it lies
typedef int32_t iv __attribute__((vector_size(4 * LANES)));
typedef uint32_t uv __attribute__((vector_size(4 * LANES)));
typedef uint16_t hv __attribute__((vector_size(2 * LANES)));
typedef int16_t sv __attribute__((vector_size(2 * LANES)));
typedef int16_t s2v __attribute__((vector_size(4 * LANES)));  // twice as many of half the size
typedef int8_t b2v __attribute__((vector_size(2 * LANES)));
typedef uint64_t q2v __attribute__((vector_size(8 * LANES)));

typedef struct { const void *data; const float *scale; } Matrix;  // (out, in); scale (out) where it is INT8
typedef struct { Matrix q, k, v, o, gate, up, down; const float *norm_1, *norm_2, *q_norm, *k_norm; } Layer;
typedef struct {
    int32_t n_layers, dim, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, kind;
    float eps;
    Matrix embedding, head;
    const float *norm;
    const Layer *layers;
} Model;
typedef struct { void *keys, *values; int64_t n_slots, n_places; int32_t kind; } Cache;  // (L, slots, J, S, K)
typedef struct {
    int32_t n, n_wanted;
    const int32_t *ids, *slots, *positions, *wanted;
    const float *cos, *sin;  // (S, K/2): for each position
    float *logits;           // (n_wanted, V)
    float *scratch;          // see scratch_size
} Rows;

// --- a register full of numbers at a time ----------------------------------------------------------------------------

// Named instructions, because a compiler may fuse a * b + c in one loop and not in the next, and they round differently;
// -ffp-contract=off keeps it from doing so elsewhere.
#if defined __AVX2__ && defined __FMA__
#include <immintrin.h>
INLINE f4 sum_pairs(f4 a, f4 b) { return (f4)_mm_hadd_ps((__m128)a, (__m128)b); }
#elif defined __aarch64__
#include <arm_neon.h>
INLINE f4 sum_pairs(f4 a, f4 b) { return (f4)vpaddq_f32((float32x4_t)a, (float32x4_t)b); }
#else
INLINE f4 sum_pairs(f4 a, f4 b) { return (f4){a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]}; }
#endif

// Numbers are loaded once for a tile, a row's for all outputs and weights for all rows: left alone, a compiler makes the
// load a part of each of the multiplications, and a processor that multiplies twice in a cycle loads twice, not three
// times. FENCE keeps weights from
// being held for their second half: 16 registers do not suffice for that.
#if defined __AVX2__ && defined __FMA__
#define HOLD(x) __asm__("" : "+v"(x))
#define FENCE __asm__ volatile("" ::: "memory")
#else
#define HOLD(x) ((void)(x))
#define FENCE
#endif

#ifdef WIDE
#define WIDEN_HALF(half) ((uv)_mm512_cvtepu16_epi32((__m256i)half))
#define WIDEN_BYTES(bytes) ((s2v)_mm512_cvtepi8_epi16((__m256i)bytes))
INLINE fv fused(fv a, fv b, fv c) { return (fv)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#ifdef __AVX512VNNI__
INLINE iv dot_add(iv sums, s2v a, s2v b) { return (iv)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b); }
#else
INLINE iv dot_add(iv sums, s2v a, s2v b) { return sums + (iv)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#endif
#elif defined __AVX2__ && defined __FMA__
#define WIDEN_HALF(half) ((uv)_mm256_cvtepu16_epi32((__m128i)half))
#define WIDEN_BYTES(bytes) ((s2v)_mm256_cvtepi8_epi16((__m128i)bytes))
INLINE fv fused(fv a, fv b, fv c) { return (fv)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#ifdef __AVXVNNI__
INLINE iv dot_add(iv sums, s2v a, s2v b) { return (iv)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b); }
#else
INLINE iv dot_add(iv sums, s2v a, s2v b) { return sums + (iv)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif
#else
#define WIDEN_HALF(half) __builtin_convertvector(half, uv)
#define WIDEN_BYTES(bytes) __builtin_convertvector(bytes, s2v)
INLINE iv dot_add(iv sums, s2v a, s2v b) {  // 16 products, two to each sum
    sv half[4];
    memcpy(half, &a, 32), memcpy(half + 2, &b, 32);
    for (int i = 0; i < 2; i++) sums += __builtin_convertvector(half[i], iv) * __builtin_convertvector(half[i + 2], iv);
    return sums;
}
#ifdef __aarch64__
INLINE fv fused(fv a, fv b, fv c) {
    float32x4_t half[6];
    memcpy(half, &a, 32), memcpy(half + 2, &b, 32), memcpy(half + 4, &c, 32);
    half[4] = vfmaq_f32(half[4], half[0], half[2]), half[5] = vfmaq_f32(half[5], half[1], half[3]);
    memcpy(&c, half + 4, 32);
    return c;
}
#else
INLINE fv fused(fv a, fv b, fv c) { return a * b + c; }
#endif
#endif

INLINE fv load(const void *data, size_t i, int kind) {
    fv x;
    if (kind == F32) {
        x = *(const any_fv *)((const float *)data + i);
    } else {
        hv half;
        memcpy(&half, (const uint16_t *)data + i, sizeof half);
        uv bits = WIDEN_HALF(half) << 16;
        memcpy(&x, &bits, sizeof x);
    }
    return x;
}

// Of twice LANES bfloat16 those at even places, or those at odd ones: one instruction for each instead of two.
INLINE fv every_other(const void *data, size_t i, int odd) {
    uv bits;
    fv x;
    memcpy(&bits, (const uint16_t *)data + i, sizeof bits);
    bits = odd ? bits & 0xFFFF0000 : bits << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE float load_1(const void *data, size_t i, int kind) {
    if (kind == F32) return ((const float *)data)[i];
    if (kind == INT8) return ((const int8_t *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void store_1(void *data, size_t i, int kind, float x) {
    if (kind == F32) {
        ((float *)data)[i] = x;
    } else {  // round to the nearest bfloat16, ties to even
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        ((uint16_t *)data)[i] = x == x ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : 0x7FC0;
    }
}

// n numbers, in the same way
static void store(void *data, size_t at, int kind, const float *x, int n) {
    int i = 0;
    if (kind == F32) {
        memcpy((float *)data + at, x, sizeof(float) * n);
        return;
    }
    for (; i + LANES <= n; i += LANES) {
        uv bits;
        fv v;
        memcpy(&bits, x + i, sizeof bits), memcpy(&v, x + i, sizeof v);
        const uv rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        const iv real = v == v;
        const hv half = __builtin_convertvector((rounded & (uv)real) | (0x7FC0 & ~(uv)real), hv);
        memcpy((uint16_t *)data + at + i, &half, sizeof half);
    }
    for (; i < n; i++) store_1(data, at + i, kind, x[i]);
}

INLINE fv all(float x) { return x - (fv){0}; }

INLINE fv choose(iv mask, fv yes, fv no) { return (fv)(((iv)yes & mask) | ((iv)no & ~mask)); }

INLINE f4 fold(fv x) {  // the halves' sum, until 4 are left
    f8 eight;
#ifdef WIDE
    f8 half[2];
    memcpy(half, &x, sizeof x);
    eight = half[0] + half[1];
#else
    eight = x;
#endif
    f4 quarter[2];
    memcpy(quarter, &eight, sizeof eight);
    return quarter[0] + quarter[1];
}

INLINE f4 sums(const fv x[4]) {  // of each
    return sum_pairs(sum_pairs(fold(x[0]), fold(x[1])), sum_pairs(fold(x[2]), fold(x[3])));
}

// results[i] = the sum of x[i], for n of them and up to the next multiple of 4, each in the order of `fold` and `sums`
INLINE void sum_all(float *results, const fv *x, const int n) {
#ifdef WIDE
    if (n == 16) {  // halves of two meet in one register, then quarters of four, then pairs and single ones of 16
        __m512 quarters[4], pairs[2];
        UNROLL for (int r = 0; r < 4; r++) {
            const __m512 a = (__m512)x[r], b = (__m512)x[r + 4], c = (__m512)x[r + 8], d = (__m512)x[r + 12];
            const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xEE);
            const __m512 cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xEE);
            quarters[r] = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xDD);
        }
        UNROLL for (int r = 0; r < 2; r++) {
            const __m512 a = quarters[2 * r], b = quarters[2 * r + 1];
            pairs[r] = _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD);
        }
        const __m512 all_16 = _mm512_shuffle_ps(pairs[0], pairs[1], 0x88) + _mm512_shuffle_ps(pairs[0], pairs[1], 0xDD);
        memcpy(results, &all_16, sizeof all_16);
        return;
    }
#elif defined __AVX2__ && defined __FMA__
    if (n == 8) {  // halves of two meet in one register, then pairs and single ones of 8
        __m256 halves[4], pairs[2];
        UNROLL for (int r = 0; r < 4; r++) {
            const __m256 a = (__m256)x[r], b = (__m256)x[r + 4];
            halves[r] = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
        }
        UNROLL for (int r = 0; r < 2; r++) {
            const __m256 a = halves[2 * r], b = halves[2 * r + 1];
            pairs[r] = _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD);
        }
        const __m256 all_8 = _mm256_shuffle_ps(pairs[0], pairs[1], 0x88) + _mm256_shuffle_ps(pairs[0], pairs[1], 0xDD);
        memcpy(results, &all_8, sizeof all_8);
        return;
    }
#endif
    UNROLL for (int i = 0; i < n; i += 4) {
        f4 four = sums(x + i);
        memcpy(results + i, &four, sizeof four);
    }
}

INLINE float sum(fv x) {  // in the same order
    f4 s = fold(x);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

// e^x: 2^n times the Taylor series on [-ln 2 / 2, ln 2 / 2], whose first term left out is below 1e-8.
INLINE fv exps(fv x) {
    x = choose(x < -87.0f, all(-87.0f), x);
    x = choose(x > 88.0f, all(88.0f), x);
    const fv shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    fv n = x * 1.44269504f + shift - shift;
    fv r = x - n * 0.693359375f + n * 2.12194440e-4f;
    fv y = fused(all(1.0f / 5040), r, all(1.0f / 720));
    y = fused(y, r, all(1.0f / 120));
    y = fused(y, r, all(1.0f / 24));
    y = fused(y, r, all(1.0f / 6));
    y = fused(y, r, all(0.5f));
    y = fused(y, r, all(1.0f));
    y = fused(y, r, all(1.0f));
    iv bits = (__builtin_convertvector(n, iv) + 127) << 23;
    fv power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

INLINE float dot(const float *x, const void *w, size_t offset, int n, int kind) {
    fv acc = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) acc = fused(load(x, i, F32), load(w, offset + i, kind), acc);
    float total = sum(acc);
    for (; i < n; i++) total += x[i] * load_1(w, offset + i, kind);
    return total;
}

// --- matrix products -------------------------------------------------------------------------------------------------

typedef struct { int from, to; } Range;

INLINE int64_t lines(int64_t n) { return (n + LINE - 1) / LINE * LINE; }  // n floats, to the end of a line

INLINE Range share(int n, int unit, int thread, int n_threads) {  // a thread's part of n, in whole units
    int units = (n + unit - 1) / unit;
    int from = (int)((int64_t)units * thread / n_threads) * unit, to = (int)((int64_t)units * (thread + 1) / n_threads) * unit;
    return (Range){from < n ? from : n, to < n ? to : n};
}

// What a product reads: n rows x of n_in numbers; for int8 weights each row also as whole numbers times its scale.
// bfloat16 weights meet the numbers in another order: of twice LANES those at even places, then those at odd ones. What
// is left of a row beyond `n_whole` is no full register.
typedef struct { const float *x; const int16_t *whole; const float *scale; int n, n_in, n_whole; } Inputs;

static Inputs sorted_inputs(const float *x, int n, int n_in, float *room) {
    const int n_whole = n_in & -(2 * LANES);
    for (int t = 0; t < n; t++) {
        const float *row = x + (size_t)t * n_in;
        float *out = room + (size_t)t * n_in;
        for (int i = 0; i < n_whole; i += 2 * LANES) {
            q2v pairs;
            memcpy(&pairs, row + i, sizeof pairs);
            uv even = __builtin_convertvector(pairs, uv), odd = __builtin_convertvector(pairs >> 32, uv);
            memcpy(out + i, &even, sizeof even), memcpy(out + i + LANES, &odd, sizeof odd);
        }
        memcpy(out + n_whole, row + n_whole, sizeof(float) * (n_in - n_whole));
    }
    return (Inputs){room, NULL, NULL, n, n_in, n_whole};
}

// Rows as int16: the largest number of each becomes 32767. A row that has a NaN or an infinity gets the scale NaN.
static Inputs inputs_of(const float *x, int n, int n_in, int kind, float *room) {
    if (kind == F32) return (Inputs){x, NULL, NULL, n, n_in, n_in & -LANES};
    if (kind == BF16) return sorted_inputs(x, n, n_in, room);
    int16_t *whole = (int16_t *)(room + lines(n));
    for (int t = 0; t < n; t++) {
        const float *row = x + (size_t)t * n_in;
        fv largest = {0}, poison = {0};
        float most = 0, spoilt = 0;
        int i = 0;
        for (; i + LANES <= n_in; i += LANES) {
            fv v = load(row, i, F32), size = (fv)((iv)v & 0x7FFFFFFF);
            largest = choose(size > largest, size, largest);
            poison += v * 0.0f;
        }
        for (int j = 0; j < LANES; j++) most = largest[j] > most ? largest[j] : most;
        for (; i < n_in; i++) most = fabsf(row[i]) > most ? fabsf(row[i]) : most, spoilt += row[i] * 0.0f;
        const float to_whole = most > 0 ? 32767 / most : 0;
        room[t] = most / 32767 + sum(poison) + spoilt;
        for (i = 0; i + LANES <= n_in; i += LANES) {
            const fv shift = all(12582912.0f);  // as in exps
            iv rounded = __builtin_convertvector(load(row, i, F32) * to_whole + shift - shift, iv);
            hv half = __builtin_convertvector(rounded, hv);
            memcpy(whole + (size_t)t * n_in + i, &half, sizeof half);
        }
        for (; i < n_in; i++) whole[(size_t)t * n_in + i] = (int16_t)rintf(row[i] * to_whole);
    }
    return (Inputs){x, whole, room, n, n_in, n_in & -(2 * LANES)};
}

// The weights of a tile: its outputs are `gap` apart, and their rows of weights `step` numbers.
typedef struct { const void *data; const float *scale; size_t step; int gap, next; } Weights;

// out[t][j * gap] (+)= results[j][t]
INLINE void put(float *out, size_t out_step, int gap, int add, const float *results, const int OUT, const int ROWS) {
    UNROLL for (int t = 0; t < ROWS; t++) UNROLL for (int j = 0; j < OUT; j++) {
        float *place = out + t * out_step + j * gap;
        *place = add ? *place + results[j * ROWS + t] : results[j * ROWS + t];
    }
}

// out[t][j * gap] (+)= w[j] . x[t] for OUT outputs and ROWS rows from `t0`
INLINE void tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int kind, int add, const int OUT,
                 const int ROWS) {
    fv acc[MOST] = {{0}};
    const int n_in = in.n_in, whole = in.n_whole, span = kind == BF16 ? 2 * LANES : LANES;
    const float *x = in.x + (size_t)t0 * n_in;
    const int asks = ASKS(t0, ROWS, w.next);
    for (int i = 0; i < whole; i += span) {
        if (asks)
            UNROLL for (int j = 0; j < OUT; j++)
                __builtin_prefetch((const char *)w.data + (j * w.step + i) * BYTES[kind] + asks);
        UNROLL for (int odd = 0; odd < span / LANES; odd++) {
            FENCE;
            fv wv[ROW_OUTS];
            UNROLL for (int j = 0; j < OUT; j++)
                wv[j] = kind == F32 ? load(w.data, j * w.step + i, F32) : every_other(w.data, j * w.step + i, odd);
            UNROLL for (int j = 0; j < OUT && ROWS > 1; j++) HOLD(wv[j]);
            UNROLL for (int t = 0; t < ROWS; t++) {
                fv xv = load(x, (size_t)t * n_in + i + odd * LANES, F32);
                HOLD(xv);
                UNROLL for (int j = 0; j < OUT; j++) acc[j * ROWS + t] = fused(wv[j], xv, acc[j * ROWS + t]);
            }
        }
    }
    float results[MOST];
    sum_all(results, acc, OUT * ROWS);
    for (int k = whole; k < n_in; k++)
        for (int j = 0; j < OUT; j++)
            for (int t = 0; t < ROWS; t++)
                results[j * ROWS + t] += load_1(w.data, j * w.step + k, kind) * x[(size_t)t * n_in + k];
    put(out, out_step, w.gap, add, results, OUT, ROWS);
}

// The same of whole numbers: exact for EXACT inputs, then their sum goes on as float32.
INLINE void whole_tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int add, const int OUT,
                       const int ROWS) {
    fv total[MOST] = {{0}};
    const int n_in = in.n_in, whole = in.n_whole;
    const int8_t *weights = w.data;
    const int16_t *x = in.whole + (size_t)t0 * n_in;
    const int asks = ASKS(t0, ROWS, w.next);
    for (int from = 0; from < whole; from += EXACT) {
        iv acc[MOST] = {{0}};
        const int end = from + EXACT < whole ? from + EXACT : whole;
        for (int i = from; i < end; i += 2 * LANES) {
            s2v wv[ROW_OUTS], xv;
            UNROLL for (int j = 0; j < OUT; j++) {
                b2v bytes;
                if (asks && i % 64 == 0) __builtin_prefetch(weights + j * w.step + i + asks);
                memcpy(&bytes, weights + j * w.step + i, sizeof bytes);
                wv[j] = WIDEN_BYTES(bytes);
            }
            UNROLL for (int t = 0; t < ROWS; t++) {
                memcpy(&xv, x + (size_t)t * n_in + i, sizeof xv);
                HOLD(xv);
                UNROLL for (int j = 0; j < OUT; j++) acc[j * ROWS + t] = dot_add(acc[j * ROWS + t], wv[j], xv);
            }
        }
        UNROLL for (int i = 0; i < OUT * ROWS; i++) total[i] += __builtin_convertvector(acc[i], fv);
    }
    float results[MOST];
    sum_all(results, total, OUT * ROWS);
    UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++) {
        if (whole < n_in) {
            int rest = 0;
            for (int k = whole; k < n_in; k++) rest += weights[j * w.step + k] * x[(size_t)t * n_in + k];
            results[j * ROWS + t] += rest;
        }
        results[j * ROWS + t] *= w.scale[j * w.gap] * in.scale[t0 + t];
    }
    put(out, out_step, w.gap, add, results, OUT, ROWS);
}

INLINE void any_tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int kind, int add, const int OUT,
                     const int ROWS) {
    if (kind == INT8) whole_tile(out, out_step, in, t0, w, add, OUT, ROWS);
    else tile(out, out_step, in, t0, w, kind, add, OUT, ROWS);
}

// `n` tiles of ROWS rows from t0 on, whose weights lie one below the other
INLINE void some_rows(float *out, size_t out_step, Inputs in, int t0, Weights w, int n, int kind, int add, const int OUT,
                      const int ROWS) {
    out += t0 * out_step;
    for (int o = 0; o < n; o++) {
        any_tile(out + o, out_step, in, t0, w, kind, add, OUT, ROWS);
        w.data = (const char *)w.data + in.n_in * BYTES[kind];
        w.scale += kind == INT8;
    }
}

// `n` tiles of all rows: their weights and four rows of inputs stay in the innermost cache meanwhile
INLINE void all_rows(float *out, size_t out_step, Inputs in, Weights w, int n, int kind, int add) {
    int t = 0;
    for (; t + 4 <= in.n; t += 4) some_rows(out, out_step, in, t, w, n, kind, add, OUTS(kind), 4);
    if (in.n & 2) some_rows(out, out_step, in, t, w, n, kind, add, OUTS(kind), 2), t += 2;
    if (in.n & 1) some_rows(out, out_step, in, t, w, n, kind, add, OUTS(kind), 1);
}

INLINE Weights weights_at(Matrix w, int o, int n_in, int kind, size_t step, int gap) {
    return (Weights){(const char *)w.data + (size_t)o * n_in * BYTES[kind], w.scale ? w.scale + o : NULL, step, gap, 0};
}

// The outputs of `range`, for a kind that is known when it is compiled
INLINE void product_of(float *out, size_t out_step, Inputs in, Matrix w, Range range, int kind, int add) {
    const int outs = in.n == 1 ? ROW_OUTS : OUTS(kind), gap = (range.to - range.from) / outs;
    const int fits = GROUP / (in.n_in * (int)BYTES[kind] * outs), group = fits < 1 ? 1 : fits, end = range.from + gap;
    const size_t step = (size_t)gap * in.n_in;
    if (in.n == 1) {
        for (int o = range.from; o < end; o++)
            any_tile(out + o, out_step, in, 0, weights_at(w, o, in.n_in, kind, step, gap), kind, add, ROW_OUTS, 1);
    } else {
        for (int o = range.from; o < end; o += group) {
            Weights weights = weights_at(w, o, in.n_in, kind, step, gap);
            weights.next = group * in.n_in * (int)BYTES[kind];
            all_rows(out + o, out_step, in, weights, o + group < end ? group : end - o, kind, add);
        }
    }
    for (int o = range.from + gap * outs; o < range.to; o++)
        for (int t = 0; t < in.n; t++)
            any_tile(out + t * out_step + o, out_step, in, t, weights_at(w, o, in.n_in, kind, 0, 0), kind, add, 1, 1);
}

// out (n, n_out) (+)= in (n, n_in) w^T, outputs of `range` alone. The rows of weights that are read side by side are far
// apart: the processor looks ahead within a page, and reads several pages faster than one.
static void product(float *out, size_t out_step, Inputs in, Matrix w, Range range, int kind, int add) {
    if (kind == F32) product_of(out, out_step, in, w, range, F32, add);
    else if (kind == BF16) product_of(out, out_step, in, w, range, BF16, add);
    else product_of(out, out_step, in, w, range, INT8, add);
}

// --- the parts of a layer --------------------------------------------------------------------------------------------

static void rms_norm(float *out, const float *x, const float *weight, int n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, 0, n, F32) / n + eps);
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        const fv v = load(weight, i, F32) * (load(x, i, F32) * scale);
        memcpy(out + i, &v, sizeof v);
    }
    for (; i < n; i++) out[i] = weight[i] * (x[i] * scale);
}

static void turn(float *x, const float *cos, const float *sin, int head_dim) {  // RoPE, half-split layout
    const int half = head_dim / 2;
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
        const fv first = load(x, i, F32), second = load(x, i + half, F32), c = load(cos, i, F32), s = load(sin, i, F32);
        const fv turned = first * c - second * s, other = second * c + first * s;
        memcpy(x + i, &turned, sizeof turned), memcpy(x + i + half, &other, sizeof other);
    }
    for (; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

// scores[s] = scale * q . keys[s], four places at once, far apart as in `product`
INLINE void score(float *scores, const float *q, const void *keys, size_t offset, int n, int K, int kind, float scale) {
    const int quarter = n / 4, whole = K & -LANES;
    for (int s = 0; s < quarter; s++) {
        fv acc[4] = {{0}};
        for (int i = 0; i < whole; i += LANES)
            UNROLL for (int j = 0; j < 4; j++)
                acc[j] = fused(load(q, i, F32), load(keys, offset + (size_t)(s + j * quarter) * K + i, kind), acc[j]);
        float totals[4];
        sum_all(totals, acc, 4);
        UNROLL for (int j = 0; j < 4; j++) {
            for (int i = whole; i < K; i++)
                totals[j] += q[i] * load_1(keys, offset + (size_t)(s + j * quarter) * K + i, kind);
            scores[s + j * quarter] = scale * totals[j];
        }
    }
    for (int s = 4 * quarter; s < n; s++) scores[s] = scale * dot(q, keys, offset + (size_t)s * K, K, kind);
}

// LANES * VECTORS columns of out = factor * weights . values
INLINE void mix(float *out, const float *weights, const void *values, size_t offset, int n, int K, int kind, float factor,
                const int VECTORS) {
    fv acc[8] = {{0}};
    for (int s = 0; s < n; s++)
        UNROLL for (int j = 0; j < VECTORS; j++)
            acc[j] = fused(all(weights[s]), load(values, offset + (size_t)s * K + LANES * j, kind), acc[j]);
    UNROLL for (int j = 0; j < VECTORS; j++) {
        acc[j] *= factor;
        memcpy(out + LANES * j, acc + j, sizeof acc[j]);
    }
}

// out (K) = softmax(q . keys / sqrt(K)) values, over n places; `scores` has room for n + LANES numbers
INLINE void attend(float *out, const float *q, const void *keys, const void *values, size_t offset, int n, int K,
                   int kind, float *scores) {
    score(scores, q, keys, offset, n, K, kind, 1.0f / sqrtf((float)K));
    for (int s = n; s < n + LANES; s++) scores[s] = -INFINITY;
    fv most = all(-INFINITY), totals = {0};
    for (int s = 0; s < n; s += LANES) {
        fv some = load(scores, s, F32);
        most = choose(some > most, some, most);
    }
    float highest = -INFINITY;
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    for (int s = 0; s < n; s += LANES) {
        fv weights = exps(load(scores, s, F32) - highest);
        if (s + LANES > n)
            for (int i = n - s; i < LANES; i++) weights[i] = 0;
        memcpy(scores + s, &weights, sizeof weights);
        totals += weights;
    }
    const float share_of_1 = 1.0f / sum(totals);
    int i = 0;
    for (; i + 8 * LANES <= K; i += 8 * LANES) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 8);
    for (; i + 4 * LANES <= K; i += 4 * LANES) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 4);
    for (; i + LANES <= K; i += LANES) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 1);
    for (; i < K; i++) {
        float acc = 0;
        for (int s = 0; s < n; s++) acc += scores[s] * load_1(values, offset + (size_t)s * K + i, kind);
        out[i] = acc * share_of_1;
    }
}

INLINE void swiglu_some(float *gate, const float *up, size_t bytes) {
    fv g = {0}, u = {0};
    memcpy(&g, gate, bytes), memcpy(&u, up, bytes);
    g = g / (1.0f + exps(-g)) * u;
    memcpy(gate, &g, bytes);
}

static void swiglu(float *gate, const float *up, int n) {  // gate = silu(gate) * up
    int i = 0;
    for (; i + LANES <= n; i += LANES) swiglu_some(gate + i, up + i, sizeof(fv));
    if (i < n) swiglu_some(gate + i, up + i, sizeof(float) * (n - i));
}

// --- the step --------------------------------------------------------------------------------------------------------

// How many floats a thread needs for n rows as bfloat16 or int8 weights want to meet them.
static int64_t room_size(const Model *m, int64_t n) {
    int64_t widest = m->dim > m->hidden_dim ? m->dim : m->hidden_dim, heads = (int64_t)m->n_heads * m->head_dim;
    widest = widest > heads ? widest : heads;
    return m->kind == F32 ? 0 : m->kind == BF16 ? lines(n * widest) : lines(n) + lines(n * ((widest + 1) / 2));
}

// How many floats the scratch memory of a step of n rows over n_places places holds.
int64_t scratch_size(const Model *m, int64_t n, int64_t n_places, int64_t n_threads) {
    int64_t heads = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    return lines(n * (2 * m->dim + 2 * heads + 2 * kv + 2 * m->hidden_dim)) + n_threads * (lines(n_places + LANES) + room_size(m, n));
}

static void work(const Model *m, const Cache *cache, const Rows *rows, int thread, int n_threads) {
    const int N = rows->n, D = m->dim, H = m->n_heads, J = m->n_kv_heads, K = m->head_dim, F = m->hidden_dim;
    float *x = rows->scratch, *normed = x + (size_t)N * D, *q = normed + (size_t)N * D, *mixed = q + (size_t)N * H * K;
    float *k = mixed + (size_t)N * H * K, *v = k + (size_t)N * J * K, *gate = v + (size_t)N * J * K;
    float *up = gate + (size_t)N * F, *own = up + (size_t)N * F;
    own = rows->scratch + lines(own - rows->scratch) + thread * (lines(cache->n_places + LANES) + room_size(m, N));
    float *scores = own, *room = own + lines(cache->n_places + LANES);
    Inputs in;
    const Range my_rows = share(N, 1, thread, n_threads), my_D = share(D, UNIT, thread, n_threads);
    const Range my_heads = share(N * H, 1, thread, n_threads), my_F = share(F, UNIT, thread, n_threads);
    const Range my_q = share(H * K, UNIT, thread, n_threads), my_kv = share(J * K, UNIT, thread, n_threads);

    for (int t = my_rows.from; t < my_rows.to; t++)
        for (int i = 0; i < D; i++) {
            float e = load_1(m->embedding.data, (size_t)rows->ids[t] * D + i, m->kind);
            x[(size_t)t * D + i] = m->embedding.scale ? e * m->embedding.scale[rows->ids[t]] : e;
        }
    for (int l = 0; l < m->n_layers; l++) {
        const Layer *layer = m->layers + l;
        for (int t = my_rows.from; t < my_rows.to; t++)
            rms_norm(normed + (size_t)t * D, x + (size_t)t * D, layer->norm_1, D, m->eps);
        BARRIER;
        in = inputs_of(normed, N, D, m->kind, room);
        product(q, (size_t)H * K, in, layer->q, my_q, m->kind, 0);
        product(k, (size_t)J * K, in, layer->k, my_kv, m->kind, 0);
        product(v, (size_t)J * K, in, layer->v, my_kv, m->kind, 0);
        BARRIER;
        const size_t heads_before = (size_t)l * cache->n_slots * J;
        Range my_new = share(N * J, 1, thread, n_threads);
        for (int i = my_new.from; i < my_new.to; i++) {  // turn the new keys, put keys and values in their places
            int t = i / J, j = i % J;
            float *key = k + (size_t)i * K, *value = v + (size_t)i * K;
            if (layer->k_norm) rms_norm(key, key, layer->k_norm, K, m->eps);
            turn(key, rows->cos + rows->positions[t] * (K / 2), rows->sin + rows->positions[t] * (K / 2), K);
            size_t head = heads_before + (size_t)rows->slots[t] * J + j;
            size_t place = (head * cache->n_places + rows->positions[t]) * K;
            store(cache->keys, place, cache->kind, key, K);
            store(cache->values, place, cache->kind, value, K);
        }
        BARRIER;
        for (int i = my_heads.from; i < my_heads.to; i++) {
            int t = i / H, h = i % H;
            float *query = q + (size_t)i * K, *out = mixed + (size_t)i * K;
            if (layer->q_norm) rms_norm(query, query, layer->q_norm, K, m->eps);
            turn(query, rows->cos + rows->positions[t] * (K / 2), rows->sin + rows->positions[t] * (K / 2), K);
            size_t offset = (heads_before + (size_t)rows->slots[t] * J + h / (H / J)) * cache->n_places * K;
            if (cache->kind == F32) attend(out, query, cache->keys, cache->values, offset, rows->positions[t] + 1, K, F32, scores);
            else attend(out, query, cache->keys, cache->values, offset, rows->positions[t] + 1, K, BF16, scores);
        }
        BARRIER;
        product(x, D, inputs_of(mixed, N, H * K, m->kind, room), layer->o, my_D, m->kind, 1);
        BARRIER;
        for (int t = my_rows.from; t < my_rows.to; t++)
            rms_norm(normed + (size_t)t * D, x + (size_t)t * D, layer->norm_2, D, m->eps);
        BARRIER;
        in = inputs_of(normed, N, D, m->kind, room);
        product(gate, F, in, layer->gate, my_F, m->kind, 0);
        product(up, F, in, layer->up, my_F, m->kind, 0);
        for (int t = 0; t < N; t++)
            swiglu(gate + (size_t)t * F + my_F.from, up + (size_t)t * F + my_F.from, my_F.to - my_F.from);
        BARRIER;
        product(x, D, inputs_of(gate, N, F, m->kind, room), layer->down, my_D, m->kind, 1);
        BARRIER;
    }
    Range my_wanted = share(rows->n_wanted, 1, thread, n_threads);
    for (int i = my_wanted.from; i < my_wanted.to; i++)
        rms_norm(normed + (size_t)i * D, x + (size_t)rows->wanted[i] * D, m->norm, D, m->eps);
    BARRIER;
    if (rows->n_wanted)
        product(rows->logits, m->vocab_size, inputs_of(normed, rows->n_wanted, D, m->kind, room), m->head,
                share(m->vocab_size, UNIT, thread, n_threads), m->kind, 0);
}

void step(const Model *m, const Cache *cache, const Rows *rows, int64_t n_threads) {
#ifdef _OPENMP
#pragma omp parallel num_threads(n_threads)
    work(m, cache, rows, omp_get_thread_num(), omp_get_num_threads());
#else
    work(m, cache, rows, 0, 1);
#endif
}
