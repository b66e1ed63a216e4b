// One step of the model in C: N rows in, scores out. A row is one token, the slot whose text it continues, its position.
//
// A text's tokens are computed one number after the other at the speed at which the weights come from memory, so each
// weight is read once for all rows, as it is stored (float32, bfloat16 or int8), and becomes a float32 in a register.
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
enum { OUTS = 3, ROWS_MOST = 4 };  // a tile: 3 outputs x 4 rows of sums, 4 inputs: what 16 registers hold
enum { PARTS = 4 };
enum { AHEAD = 8192 };  // bytes that are asked for before they are needed: the processor alone looks less far
enum { UNPACK = 16 };  // from so many rows on, weights are turned into float32 once and not once a tile

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef int8_t b8 __attribute__((vector_size(8)));

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
    const float *cos, *sin;  // (N, K/2)
    float *logits;           // (n_wanted, V)
    float *scratch;          // see scratch_size
} Rows;

// --- eight numbers at a time -----------------------------------------------------------------------------------------

// Named instructions, because a compiler may fuse a * b + c in one loop and not in the next, and they round differently;
// -ffp-contract=off keeps it from doing so elsewhere.
#if defined __AVX2__ && defined __FMA__
#include <immintrin.h>
#define WIDEN_16(half) ((u8)_mm256_cvtepu16_epi32((__m128i)half))
#define WIDEN_8(bytes) ((i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)&bytes)))
INLINE f8 fma8(f8 a, f8 b, f8 c) { return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
#define WIDEN_16(half) __builtin_convertvector(half, u8)
#define WIDEN_8(bytes) __builtin_convertvector(bytes, i8)
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
    } else if (kind == BF16) {
        h8 half;
        memcpy(&half, (const uint16_t *)data + i, sizeof half);
        u8 bits = WIDEN_16(half) << 16;
        memcpy(&x, &bits, sizeof x);
    } else {
        b8 bytes;
        memcpy(&bytes, (const int8_t *)data + i, sizeof bytes);
        x = __builtin_convertvector(WIDEN_8(bytes), f8);
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

INLINE float sum(f8 x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

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

// out[t][o] (+)= scale[o] * w[o] . x[t] for OUT outputs from `o` and ROWS rows. A row is cut into PARTS, each with a sum
// of 8, so that the additions of a single row do not wait for each other: it takes all parts at once. A tile of more rows
// takes one part after the other, because its registers hold no more.
INLINE void tile(float *out, size_t out_step, const float *x, const void *w, const float *scale, size_t o, int n_in,
                 int kind, int add, const int OUT, const int ROWS) {
    f8 total[OUTS][ROWS_MOST] = {{{0}}};
    const int whole = n_in & ~7, part = n_in / 8 / PARTS * 8;  // the last part takes what does not divide
    if (OUT == 1 && ROWS == 1) {
        f8 acc[PARTS] = {{0}};
        for (int i = 0; i < part; i += 8)
            UNROLL for (int p = 0; p < PARTS; p++)
                acc[p] = fma8(load(w, p * part + i, kind), load(x, p * part + i, F32), acc[p]);
        for (int i = PARTS * part; i < whole; i += 8)
            acc[PARTS - 1] = fma8(load(w, i, kind), load(x, i, F32), acc[PARTS - 1]);
        UNROLL for (int p = 0; p < PARTS; p++) total[0][0] += acc[p];
    } else {
        for (int p = 0; p < PARTS; p++) {
            f8 acc[OUTS][ROWS_MOST] = {{{0}}};
            const int end = p == PARTS - 1 ? whole : (p + 1) * part;
            for (int i = p * part; i < end; i += 8)
                UNROLL for (int j = 0; j < OUT; j++) {
                    f8 w8 = load(w, (size_t)j * n_in + i, kind);
                    UNROLL for (int t = 0; t < ROWS; t++)
                        acc[j][t] = fma8(w8, load(x, (size_t)t * n_in + i, F32), acc[j][t]);
                }
            UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++) total[j][t] += acc[j][t];
        }
    }
    UNROLL for (int j = 0; j < OUT; j++) UNROLL for (int t = 0; t < ROWS; t++) {
        float result = sum(total[j][t]);
        for (int k = whole; k < n_in; k++) result += load_1(w, (size_t)j * n_in + k, kind) * x[(size_t)t * n_in + k];
        if (scale) result *= scale[o + j];
        float *place = out + t * out_step + o + j;
        *place = add ? *place + result : result;
    }
}

typedef void Tile(float *out, size_t out_step, const float *x, const void *w, const float *scale, size_t o, int n_in,
                  int add);
#define TILE_OF(name, kind, OUT, ROWS)                                                                                 \
    static void name(float *out, size_t out_step, const float *x, const void *w, const float *scale, size_t o,         \
                     int n_in, int add) {                                                                              \
        tile(out, out_step, x, w, scale, o, n_in, kind, add, OUT, ROWS);                                               \
    }
TILE_OF(f32_1x1, F32, 1, 1) TILE_OF(f32_3x1, F32, OUTS, 1) TILE_OF(f32_3x2, F32, OUTS, 2) TILE_OF(f32_3x4, F32, OUTS, 4)
TILE_OF(bf16_1x1, BF16, 1, 1) TILE_OF(bf16_3x1, BF16, OUTS, 1) TILE_OF(bf16_3x2, BF16, OUTS, 2)
TILE_OF(bf16_3x4, BF16, OUTS, 4)
TILE_OF(int8_1x1, INT8, 1, 1) TILE_OF(int8_3x1, INT8, OUTS, 1) TILE_OF(int8_3x2, INT8, OUTS, 2)
TILE_OF(int8_3x4, INT8, OUTS, 4)
static Tile *const TILES[3][4] = {  // [kind]: 1 output x 1 row, then OUTS outputs x 1, 2 and 4 rows
    {f32_1x1, f32_3x1, f32_3x2, f32_3x4}, {bf16_1x1, bf16_3x1, bf16_3x2, bf16_3x4}, {int8_1x1, int8_3x1, int8_3x2, int8_3x4}};

static void unpack(float *out, const void *w, size_t n, int kind) {
    size_t i = 0;
    for (; kind == BF16 && i + 8 <= n; i += 8) {
        f8 w8 = load(w, i, BF16);
        memcpy(out + i, &w8, sizeof w8);
    }
    for (; kind == INT8 && i + 8 <= n; i += 8) {
        f8 w8 = load(w, i, INT8);
        memcpy(out + i, &w8, sizeof w8);
    }
    for (; i < n; i++) out[i] = load_1(w, i, kind);
}

// out (n, n_out) (+)= x (n, n_in) w^T, outputs of `range` alone
static void product(float *out, size_t out_step, const float *x, int n, Matrix w, Range range, int n_in, int kind,
                    int add, float *unpacked) {
    static const size_t bytes[] = {4, 2, 1};
    for (int count, o = range.from; o < range.to; o += count) {
        const void *rows = (const char *)w.data + (size_t)o * n_in * bytes[kind];
        count = n > 1 && range.to - o >= OUTS ? OUTS : 1;
        for (size_t i = 0; i < count * n_in * bytes[kind]; i += 64) __builtin_prefetch((const char *)rows + AHEAD + i);
        int as = kind;
        if (kind != F32 && n >= UNPACK) unpack(unpacked, rows, (size_t)count * n_in, kind), rows = unpacked, as = F32;
        for (int step, t = 0; t < n; t += step) {
            step = count == 1 ? 1 : n - t >= 4 ? 4 : n - t >= 2 ? 2 : 1;
            Tile *tile = TILES[as][count == 1 ? 0 : step == 4 ? 3 : step];
            tile(out + t * out_step, out_step, x + (size_t)t * n_in, rows, w.scale, o, n_in, add);
        }
    }
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

// out (K) = softmax(q . keys / sqrt(K)) values, over n places; `scores` has room for n + 8 numbers
INLINE void attend(float *out, const float *q, const void *keys, const void *values, size_t offset, int n, int K,
                   int kind, float *scores) {
    float scale = 1.0f / sqrtf((float)K), highest = -INFINITY;
    for (int s = 0; s < n; s++) {
        scores[s] = scale * dot(q, keys, offset + (size_t)s * K, K, kind);
        highest = scores[s] > highest ? scores[s] : highest;
    }
    for (int s = n; s < n + 8; s++) scores[s] = -INFINITY;
    f8 totals = {0};
    for (int s = 0; s < n; s += 8) {
        f8 weights = exp8(load(scores, s, F32) - highest);
        for (int i = n - s; i < 8; i++) weights[i] = 0;
        memcpy(scores + s, &weights, sizeof weights);
        totals += weights;
    }
    float share_of_1 = 1.0f / sum(totals);
    int i = 0;
    for (; i + 32 <= K; i += 32) {
        f8 acc[4] = {{0}};
        for (int s = 0; s < n; s++)
            UNROLL for (int j = 0; j < 4; j++)
                acc[j] = fma8(all(scores[s]), load(values, offset + (size_t)s * K + i + 8 * j, kind), acc[j]);
        UNROLL for (int j = 0; j < 4; j++) acc[j] *= share_of_1;
        memcpy(out + i, acc, sizeof acc);
    }
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

static size_t unpacked_size(const Model *m) {
    int widest = m->dim > m->hidden_dim ? m->dim : m->hidden_dim, heads = m->n_heads * m->head_dim;
    return (size_t)OUTS * (widest > heads ? widest : heads);
}

// How many floats the scratch memory of a step of n rows over n_places places holds.
int64_t scratch_size(const Model *m, int64_t n, int64_t n_places, int64_t n_threads) {
    int64_t heads = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    return n * (2 * m->dim + 2 * heads + 2 * kv + 2 * m->hidden_dim) + n_threads * (n_places + 8 + (int64_t)unpacked_size(m));
}

static void work(const Model *m, const Cache *cache, const Rows *rows, int thread, int n_threads) {
    const int N = rows->n, D = m->dim, H = m->n_heads, J = m->n_kv_heads, K = m->head_dim, F = m->hidden_dim;
    float *x = rows->scratch, *normed = x + (size_t)N * D, *q = normed + (size_t)N * D, *mixed = q + (size_t)N * H * K;
    float *k = mixed + (size_t)N * H * K, *v = k + (size_t)N * J * K, *gate = v + (size_t)N * J * K;
    float *up = gate + (size_t)N * F, *own = up + (size_t)N * F;
    own += (size_t)thread * (cache->n_places + 8 + unpacked_size(m));
    float *scores = own, *unpacked = own + cache->n_places + 8;
    const Range my_rows = share(N, 1, thread, n_threads), my_D = share(D, OUTS, thread, n_threads);
    const Range my_heads = share(N * H, 1, thread, n_threads), my_F = share(F, OUTS, thread, n_threads);
    const Range my_q = share(H * K, OUTS, thread, n_threads), my_kv = share(J * K, OUTS, thread, n_threads);

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
        product(q, (size_t)H * K, normed, N, layer->q, my_q, D, m->kind, 0, unpacked);
        product(k, (size_t)J * K, normed, N, layer->k, my_kv, D, m->kind, 0, unpacked);
        product(v, (size_t)J * K, normed, N, layer->v, my_kv, D, m->kind, 0, unpacked);
        BARRIER;
        const size_t heads_before = (size_t)l * cache->n_slots * J;
        Range my_new = share(N * J, 1, thread, n_threads);
        for (int i = my_new.from; i < my_new.to; i++) {  // turn the new keys, put keys and values in their places
            int t = i / J, j = i % J;
            float *key = k + (size_t)i * K, *value = v + (size_t)i * K;
            if (layer->k_norm) rms_norm(key, key, layer->k_norm, K, m->eps);
            turn(key, rows->cos + (size_t)t * (K / 2), rows->sin + (size_t)t * (K / 2), K);
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
            turn(query, rows->cos + (size_t)t * (K / 2), rows->sin + (size_t)t * (K / 2), K);
            size_t offset = (heads_before + (size_t)rows->slots[t] * J + h / (H / J)) * cache->n_places * K;
            if (cache->kind == F32) attend(out, query, cache->keys, cache->values, offset, rows->positions[t] + 1, K, F32, scores);
            else attend(out, query, cache->keys, cache->values, offset, rows->positions[t] + 1, K, BF16, scores);
        }
        BARRIER;
        product(x, D, mixed, N, layer->o, my_D, H * K, m->kind, 1, unpacked);
        BARRIER;
        for (int t = my_rows.from; t < my_rows.to; t++)
            rms_norm(normed + (size_t)t * D, x + (size_t)t * D, layer->norm_2, D, m->eps);
        BARRIER;
        product(gate, F, normed, N, layer->gate, my_F, D, m->kind, 0, unpacked);
        product(up, F, normed, N, layer->up, my_F, D, m->kind, 0, unpacked);
        for (int t = 0; t < N; t++)
            swiglu(gate + (size_t)t * F + my_F.from, up + (size_t)t * F + my_F.from, my_F.to - my_F.from);
        BARRIER;
        product(x, D, gate, N, layer->down, my_D, F, m->kind, 1, unpacked);
        BARRIER;
    }
    Range my_wanted = share(rows->n_wanted, 1, thread, n_threads);
    for (int i = my_wanted.from; i < my_wanted.to; i++)
        rms_norm(normed + (size_t)i * D, x + (size_t)rows->wanted[i] * D, m->norm, D, m->eps);
    BARRIER;
    if (rows->n_wanted)
        product(rows->logits, m->vocab_size, normed, rows->n_wanted, m->head,
                share(m->vocab_size, OUTS, thread, n_threads), D, m->kind, 0, unpacked);
}

void step(const Model *m, const Cache *cache, const Rows *rows, int64_t n_threads) {
#ifdef _OPENMP
#pragma omp parallel num_threads(n_threads)
    work(m, cache, rows, omp_get_thread_num(), omp_get_num_threads());
#else
    work(m, cache, rows, 0, 1);
#endif
}
