// One step of the model in C: N rows in, scores out. A row is one token, the slot whose text it continues, its position.
//
// A text's tokens are computed one number after the other at the speed at which the weights come from memory, so each
// weight is read once for all rows, as it is stored. A float32 or bfloat16 one becomes a float32 in a register; an int8 one
// meets its row rounded to int16, because whole numbers are multiplied and added 16 at a time.
// Every sum is taken in the same order whatever else is computed beside it: 8 partial sums along the row, then their
// sum. So a text does not depend on its neighbours, on the cut of its prompt, or on the number of threads.
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
#define UNROLL _Pragma("GCC unroll 8")
enum { F32, BF16, INT8 };
enum { OUTS_MOST = 4, ROWS_MOST = 4 };  // a tile: 4 outputs of one row, or 3 of up to 4 rows: what 16 registers hold
enum { UNIT = 12 };  // outputs of a thread, and a multiple of them: what tiles of 3 and of 4 fill
enum { UNPACK = 16 };  // from so many rows on, bfloat16 weights are turned into float32 once and not once a tile
enum { EXACT = 4096 };  // so many products of an int8 (127 at most) and an int16 fit 8 sums of 32 bits

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef int16_t s8 __attribute__((vector_size(16)));
typedef int16_t s16 __attribute__((vector_size(32)));
typedef int8_t b16 __attribute__((vector_size(16)));

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

// --- eight numbers at a time -----------------------------------------------------------------------------------------

// Named instructions, because a compiler may fuse a * b + c in one loop and not in the next, and they round differently;
// -ffp-contract=off keeps it from doing so elsewhere.
#if defined __AVX2__ && defined __FMA__
#include <immintrin.h>
#define WIDEN_16(half) ((u8)_mm256_cvtepu16_epi32((__m128i)half))
#define WIDEN_8(bytes) ((s16)_mm256_cvtepi8_epi16((__m128i)bytes))
INLINE f8 fma8(f8 a, f8 b, f8 c) { return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE i8 dot_add(i8 sums, s16 a, s16 b) { return sums + (i8)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#else
#define WIDEN_16(half) __builtin_convertvector(half, u8)
#define WIDEN_8(bytes) __builtin_convertvector(bytes, s16)
INLINE i8 dot_add(i8 sums, s16 a, s16 b) {  // 16 products, two to each sum
    s8 half[4];
    memcpy(half, &a, 32), memcpy(half + 2, &b, 32);
    for (int i = 0; i < 2; i++) sums += __builtin_convertvector(half[i], i8) * __builtin_convertvector(half[i + 2], i8);
    return sums;
}
#ifdef __aarch64__
#include <arm_neon.h>
INLINE f8 fma8(f8 a, f8 b, f8 c) {
    float32x4_t half[6];
    memcpy(half, &a, 32), memcpy(half + 2, &b, 32), memcpy(half + 4, &c, 32);
    half[4] = vfmaq_f32(half[4], half[0], half[2]), half[5] = vfmaq_f32(half[5], half[1], half[3]);
    memcpy(&c, half + 4, 32);
    return c;
}
#else
INLINE f8 fma8(f8 a, f8 b, f8 c) { return a * b + c; }
#endif
#endif

INLINE f8 load(const void *data, size_t i, int kind) {
    f8 x;
    if (kind == F32) {
        memcpy(&x, (const float *)data + i, sizeof x);
    } else {
        h8 half;
        memcpy(&half, (const uint16_t *)data + i, sizeof half);
        u8 bits = WIDEN_16(half) << 16;
        memcpy(&x, &bits, sizeof x);
    }
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

INLINE f8 all(float x) { return (f8){x, x, x, x, x, x, x, x}; }

INLINE f8 choose(i8 mask, f8 yes, f8 no) { return (f8)(((i8)yes & mask) | ((i8)no & ~mask)); }

INLINE float sum(f8 x) {
    f4 half[2];
    memcpy(half, &x, sizeof x);
    f4 s = half[0] + half[1];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

// e^x: 2^n times the Taylor series on [-ln 2 / 2, ln 2 / 2], whose first term left out is below 1e-8.
INLINE f8 exp8(f8 x) {
    x = choose(x < -87.0f, all(-87.0f), x);
    x = choose(x > 88.0f, all(88.0f), x);
    const f8 shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    f8 n = x * 1.44269504f + shift - shift;
    f8 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f8 y = fma8(all(1.0f / 5040), r, all(1.0f / 720));
    y = fma8(y, r, all(1.0f / 120));
    y = fma8(y, r, all(1.0f / 24));
    y = fma8(y, r, all(1.0f / 6));
    y = fma8(y, r, all(0.5f));
    y = fma8(y, r, all(1.0f));
    y = fma8(y, r, all(1.0f));
    i8 bits = (__builtin_convertvector(n, i8) + 127) << 23;
    f8 power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

INLINE float dot(const float *x, const void *w, size_t offset, int n, int kind) {
    f8 acc = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8) acc = fma8(load(x, i, F32), load(w, offset + i, kind), acc);
    float total = sum(acc);
    for (; i < n; i++) total += x[i] * load_1(w, offset + i, kind);
    return total;
}

// --- matrix products -------------------------------------------------------------------------------------------------

typedef struct { int from, to; } Range;

INLINE Range share(int n, int unit, int thread, int n_threads) {  // a thread's part of n, in whole units
    int units = (n + unit - 1) / unit;
    int from = (int)((int64_t)units * thread / n_threads) * unit, to = (int)((int64_t)units * (thread + 1) / n_threads) * unit;
    return (Range){from < n ? from : n, to < n ? to : n};
}

// What a product reads: n rows x of n_in numbers; for int8 weights each row also as whole numbers times its scale.
typedef struct { const float *x; const int16_t *whole; const float *scale; float *room; int n, n_in; } Inputs;

// Rows as int16: the largest number of each becomes 32767. A row that has a NaN or an infinity gets the scale NaN.
static Inputs inputs_of(const float *x, int n, int n_in, int kind, float *room) {
    if (kind != INT8) return (Inputs){x, NULL, NULL, room, n, n_in};
    int16_t *whole = (int16_t *)(room + n);
    for (int t = 0; t < n; t++) {
        const float *row = x + (size_t)t * n_in;
        f8 largest = {0}, poison = {0};
        float most = 0, spoilt = 0;
        int i = 0;
        for (; i + 8 <= n_in; i += 8) {
            f8 v = load(row, i, F32), size = (f8)((i8)v & 0x7FFFFFFF);
            largest = choose(size > largest, size, largest);
            poison += v * 0.0f;
        }
        for (int j = 0; j < 8; j++) most = largest[j] > most ? largest[j] : most;
        for (; i < n_in; i++) most = fabsf(row[i]) > most ? fabsf(row[i]) : most, spoilt += row[i] * 0.0f;
        const float to_whole = most > 0 ? 32767 / most : 0;
        room[t] = most / 32767 + sum(poison) + spoilt;
        for (i = 0; i + 8 <= n_in; i += 8) {
            const f8 shift = all(12582912.0f);  // as in exp8
            i8 rounded = __builtin_convertvector(load(row, i, F32) * to_whole + shift - shift, i8);
            h8 half = __builtin_convertvector(rounded, h8);
            memcpy(whole + (size_t)t * n_in + i, &half, sizeof half);
        }
        for (; i < n_in; i++) whole[(size_t)t * n_in + i] = (int16_t)rintf(row[i] * to_whole);
    }
    return (Inputs){x, whole, room, room, n, n_in};
}

// The weights of a tile: its outputs are `gap` apart, and their rows of weights `step` numbers.
typedef struct { const void *data; const float *scale; size_t step; int gap; } Weights;

// out[t][j * gap] (+)= w[j] . x[t] for OUT outputs and ROWS rows from `t0`
INLINE void tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int kind, int add, const int OUT,
                 const int ROWS) {
    f8 acc[OUTS_MOST][ROWS_MOST] = {{{0}}};
    const int n_in = in.n_in, whole = n_in & ~7;
    const float *x = in.x + (size_t)t0 * n_in;
    for (int i = 0; i < whole; i += 8) {
        f8 w8[OUTS_MOST];
        UNROLL for (int j = 0; j < OUT; j++) w8[j] = load(w.data, j * w.step + i, kind);
        UNROLL for (int t = 0; t < ROWS; t++) {
            f8 x8 = load(x, (size_t)t * n_in + i, F32);
            UNROLL for (int j = 0; j < OUT; j++) acc[j][t] = fma8(w8[j], x8, acc[j][t]);
        }
    }
    UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++) {
        float result = sum(acc[j][t]);
        for (int k = whole; k < n_in; k++) result += load_1(w.data, j * w.step + k, kind) * x[(size_t)t * n_in + k];
        float *place = out + t * out_step + j * w.gap;
        *place = add ? *place + result : result;
    }
}

// The same of whole numbers: exact for EXACT inputs, then their sum goes on as float32.
INLINE void whole_tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int add, const int OUT,
                       const int ROWS) {
    f8 total[OUTS_MOST][ROWS_MOST] = {{{0}}};
    const int n_in = in.n_in, whole = n_in & ~15;
    const int8_t *weights = w.data;
    const int16_t *x = in.whole + (size_t)t0 * n_in;
    for (int from = 0; from < whole; from += EXACT) {
        i8 acc[OUTS_MOST][ROWS_MOST] = {{{0}}};
        const int end = from + EXACT < whole ? from + EXACT : whole;
        for (int i = from; i < end; i += 16) {
            s16 w16[OUTS_MOST], x16;
            UNROLL for (int j = 0; j < OUT; j++) {
                b16 bytes;
                memcpy(&bytes, weights + j * w.step + i, sizeof bytes);
                w16[j] = WIDEN_8(bytes);
            }
            UNROLL for (int t = 0; t < ROWS; t++) {
                memcpy(&x16, x + (size_t)t * n_in + i, sizeof x16);
                UNROLL for (int j = 0; j < OUT; j++) acc[j][t] = dot_add(acc[j][t], w16[j], x16);
            }
        }
        UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++)
            total[j][t] += __builtin_convertvector(acc[j][t], f8);
    }
    UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++) {
        int rest = 0;
        for (int k = whole; k < n_in; k++) rest += weights[j * w.step + k] * x[(size_t)t * n_in + k];
        float result = (sum(total[j][t]) + rest) * (w.scale[j * w.gap] * in.scale[t0 + t]);
        float *place = out + t * out_step + j * w.gap;
        *place = add ? *place + result : result;
    }
}

typedef void Tile(float *out, size_t out_step, Inputs in, int t0, Weights w, int add);
#define TILE_OF(kind, OUT, ROWS)                                                                                       \
    static void kind##_##OUT##x##ROWS(float *out, size_t out_step, Inputs in, int t0, Weights w, int add) {            \
        if (kind == INT8) whole_tile(out, out_step, in, t0, w, add, OUT, ROWS);                                        \
        else tile(out, out_step, in, t0, w, kind, add, OUT, ROWS);                                                     \
    }
#define TILES_OF(kind) TILE_OF(kind, 1, 1) TILE_OF(kind, 4, 1) TILE_OF(kind, 3, 1) TILE_OF(kind, 3, 2) TILE_OF(kind, 3, 4)
#define NAMES_OF(kind) {kind##_1x1, kind##_4x1, kind##_3x1, kind##_3x2, kind##_3x4}
TILES_OF(F32) TILES_OF(BF16) TILES_OF(INT8)
static Tile *const TILES[3][5] = {NAMES_OF(F32), NAMES_OF(BF16), NAMES_OF(INT8)};

static void unpack(float *out, const void *w, size_t first, int n) {  // bfloat16
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        f8 w8 = load(w, first + i, BF16);
        memcpy(out + i, &w8, sizeof w8);
    }
    for (; i < n; i++) out[i] = load_1(w, first + i, BF16);
}

// `outs` outputs, `gap` apart, from `o` on, of all rows
static void outputs(float *out, size_t out_step, Inputs in, Matrix w, int o, int outs, int gap, int kind, int add) {
    static const size_t bytes[] = {4, 2, 1};
    const size_t first = (size_t)o * in.n_in, step = (size_t)gap * in.n_in;
    Weights weights = {(const char *)w.data + first * bytes[kind], w.scale ? w.scale + o : NULL, step, gap};
    if (kind == BF16 && in.n >= UNPACK) {
        for (int j = 0; j < outs; j++) unpack(in.room + j * in.n_in, w.data, first + j * step, in.n_in);
        weights.data = in.room, weights.step = in.n_in, kind = F32;
    }
    for (int rows, t = 0; t < in.n; t += rows) {
        rows = outs < 3 ? 1 : in.n - t >= 4 ? 4 : in.n - t >= 2 ? 2 : 1;
        int which = outs == 1 ? 0 : outs == 4 ? 1 : rows == 4 ? 4 : rows + 1;
        TILES[kind][which](out + t * out_step + o, out_step, in, t, weights, add);
    }
}

// out (n, n_out) (+)= in (n, n_in) w^T, outputs of `range` alone. The rows of weights that are read side by side are far
// apart: the processor looks ahead within a page, and reads several pages faster than one.
static void product(float *out, size_t out_step, Inputs in, Matrix w, Range range, int kind, int add) {
    const int outs = in.n == 1 ? 4 : 3, gap = (range.to - range.from) / outs;
    for (int o = range.from; o < range.from + gap; o++) outputs(out, out_step, in, w, o, outs, gap, kind, add);
    for (int o = range.from + gap * outs; o < range.to; o++) outputs(out, out_step, in, w, o, 1, 0, kind, add);
}

// --- the parts of a layer --------------------------------------------------------------------------------------------

static void rms_norm(float *out, const float *x, const float *weight, int n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, 0, n, F32) / n + eps);
    for (int i = 0; i < n; i++) out[i] = weight[i] * (x[i] * scale);
}

static void turn(float *x, const float *cos, const float *sin, int head_dim) {  // RoPE, half-split layout
    for (int i = 0, half = head_dim / 2; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

// scores[s] = scale * q . keys[s], four places at once, far apart as in `product`
INLINE void score(float *scores, const float *q, const void *keys, size_t offset, int n, int K, int kind, float scale) {
    const int quarter = n / 4, whole = K & ~7;
    for (int s = 0; s < quarter; s++) {
        f8 acc[4] = {{0}};
        for (int i = 0; i < whole; i += 8)
            UNROLL for (int j = 0; j < 4; j++)
                acc[j] = fma8(load(q, i, F32), load(keys, offset + (size_t)(s + j * quarter) * K + i, kind), acc[j]);
        for (int j = 0; j < 4; j++) {
            float total = sum(acc[j]);
            for (int i = whole; i < K; i++) total += q[i] * load_1(keys, offset + (size_t)(s + j * quarter) * K + i, kind);
            scores[s + j * quarter] = scale * total;
        }
    }
    for (int s = 4 * quarter; s < n; s++) scores[s] = scale * dot(q, keys, offset + (size_t)s * K, K, kind);
}

// 8 * VECTORS columns of out = factor * weights . values
INLINE void mix(float *out, const float *weights, const void *values, size_t offset, int n, int K, int kind, float factor,
                const int VECTORS) {
    f8 acc[8] = {{0}};
    for (int s = 0; s < n; s++)
        UNROLL for (int j = 0; j < VECTORS; j++)
            acc[j] = fma8(all(weights[s]), load(values, offset + (size_t)s * K + 8 * j, kind), acc[j]);
    UNROLL for (int j = 0; j < VECTORS; j++) {
        acc[j] *= factor;
        memcpy(out + 8 * j, acc + j, sizeof acc[j]);
    }
}

// out (K) = softmax(q . keys / sqrt(K)) values, over n places; `scores` has room for n + 8 numbers
INLINE void attend(float *out, const float *q, const void *keys, const void *values, size_t offset, int n, int K,
                   int kind, float *scores) {
    float highest = -INFINITY;
    score(scores, q, keys, offset, n, K, kind, 1.0f / sqrtf((float)K));
    for (int s = 0; s < n; s++) highest = scores[s] > highest ? scores[s] : highest;
    for (int s = n; s < n + 8; s++) scores[s] = -INFINITY;
    f8 totals = {0};
    for (int s = 0; s < n; s += 8) {
        f8 weights = exp8(load(scores, s, F32) - highest);
        for (int i = n - s; i < 8; i++) weights[i] = 0;
        memcpy(scores + s, &weights, sizeof weights);
        totals += weights;
    }
    const float share_of_1 = 1.0f / sum(totals);
    int i = 0;
    for (; i + 64 <= K; i += 64) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 8);
    for (; i + 32 <= K; i += 32) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 4);
    for (; i + 8 <= K; i += 8) mix(out + i, scores, values, offset + i, n, K, kind, share_of_1, 1);
    for (; i < K; i++) {
        float acc = 0;
        for (int s = 0; s < n; s++) acc += scores[s] * load_1(values, offset + (size_t)s * K + i, kind);
        out[i] = acc * share_of_1;
    }
}

static void swiglu(float *gate, const float *up, int n) {  // gate = silu(gate) * up
    for (int i = 0; i < n; i += 8) {
        size_t bytes = sizeof(float) * (n - i < 8 ? n - i : 8);
        f8 g = {0}, u = {0};
        memcpy(&g, gate + i, bytes), memcpy(&u, up + i, bytes);
        g = g / (1.0f + exp8(-g)) * u;
        memcpy(gate + i, &g, bytes);
    }
}

// --- the step --------------------------------------------------------------------------------------------------------

// How many floats a thread needs to turn weights (bfloat16) or n rows (int8) into what is multiplied.
static int64_t room_size(const Model *m, int64_t n) {
    int64_t widest = m->dim > m->hidden_dim ? m->dim : m->hidden_dim, heads = (int64_t)m->n_heads * m->head_dim;
    widest = widest > heads ? widest : heads;
    return m->kind == INT8 ? n * (1 + (widest + 1) / 2) : OUTS_MOST * widest;
}

// How many floats the scratch memory of a step of n rows over n_places places holds.
int64_t scratch_size(const Model *m, int64_t n, int64_t n_places, int64_t n_threads) {
    int64_t heads = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    return n * (2 * m->dim + 2 * heads + 2 * kv + 2 * m->hidden_dim) + n_threads * (n_places + 8 + room_size(m, n));
}

static void work(const Model *m, const Cache *cache, const Rows *rows, int thread, int n_threads) {
    const int N = rows->n, D = m->dim, H = m->n_heads, J = m->n_kv_heads, K = m->head_dim, F = m->hidden_dim;
    float *x = rows->scratch, *normed = x + (size_t)N * D, *q = normed + (size_t)N * D, *mixed = q + (size_t)N * H * K;
    float *k = mixed + (size_t)N * H * K, *v = k + (size_t)N * J * K, *gate = v + (size_t)N * J * K;
    float *up = gate + (size_t)N * F, *own = up + (size_t)N * F;
    own += (size_t)thread * (cache->n_places + 8 + room_size(m, N));
    float *scores = own, *room = own + cache->n_places + 8;
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
            for (int c = 0; c < K; c++) {
                store_1(cache->keys, place + c, cache->kind, key[c]);
                store_1(cache->values, place + c, cache->kind, value[c]);
            }
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
