/* portable.c: every kernel in plain C. This file defines the bits; formats/arithmetic.md says them in words.
 *
 * Loops are written so that compilers vectorise them for the baseline instruction set, but never so that
 * the order of a float sum changes.
 */
#include "../compressed.h"
#include "arith.h"
#include "groups.h"

#define COLUMNS 4 /* columns that share one decoding of a weight row */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- rows of floats: 16 lanes, fused multiply-add in ascending k -------------------------------------- */
static inline float load_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}

static inline uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline float load_f16(const uint8_t *p) { return el_f16_to_f32(load_u16(p)); }
static inline float load_bf16(const uint8_t *p) { return el_bf16_to_f32(load_u16(p)); }

#define FLOAT_ROWS(NAME, BYTES, LOAD)                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        for (int64_t r = row0; r < row1; r++) {                                                                  \
            const uint8_t *row = (const uint8_t *)w + r * x->k * BYTES;                                          \
            for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {                                                   \
                int64_t n = min64(COLUMNS, n_cols - m0);                                                         \
                float acc[COLUMNS][EL_LANES] = {{0}}, v[EL_LANES];                                               \
                for (int64_t k0 = 0; k0 < x->k; k0 += EL_LANES) {                                                \
                    int lanes = (int)min64(EL_LANES, x->k - k0);                                                 \
                    for (int i = 0; i < lanes; i++) v[i] = LOAD(row + (k0 + i) * BYTES);                         \
                    for (int64_t m = 0; m < n; m++) {                                                            \
                        const float *f = x->f + (m0 + m) * x->ldf + k0;                                          \
                        for (int i = 0; i < lanes; i++) acc[m][i] = el_fmaf(v[i], f[i], acc[m][i]);              \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++) y[(m0 + m) * ldy + r - row0] = el_tree16(acc[m]);                \
            }                                                                                                    \
        }                                                                                                        \
    }

FLOAT_ROWS(rows_f32, 4, load_f32)
FLOAT_ROWS(rows_f16, 2, load_f16)
FLOAT_ROWS(rows_bf16, 2, load_bf16)

/* ---- rows of 32-weight blocks ------------------------------------------------------------------------ */
/* Each decoder gives the 32 integers, the scale, and the minimum (0 for formats without one). */
static inline void decode_nibbles(const uint8_t *qs, int offset, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((qs[i] & 15) - offset);
        q[i + 16] = (int8_t)((qs[i] >> 4) - offset);
    }
}

static inline void decode_fives(const uint8_t *qs, const uint8_t *qh, int offset, int8_t *q) {
    uint32_t high = (uint32_t)qh[0] | (uint32_t)qh[1] << 8 | (uint32_t)qh[2] << 16 | (uint32_t)qh[3] << 24;
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)(((qs[i] & 15) | (int)(high >> i & 1) << 4) - offset);
        q[i + 16] = (int8_t)(((qs[i] >> 4) | (int)(high >> (i + 16) & 1) << 4) - offset);
    }
}

static inline void decode_q4_0(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_q4_0 *b = (const el_block_q4_0 *)p;
    decode_nibbles(b->qs, 8, q);
    *d = el_f16_to_f32(b->d);
    *m = 0;
}

static inline void decode_q4_1(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_q4_1 *b = (const el_block_q4_1 *)p;
    decode_nibbles(b->qs, 0, q);
    *d = el_f16_to_f32(b->d);
    *m = el_f16_to_f32(b->m);
}

static inline void decode_q5_0(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_q5_0 *b = (const el_block_q5_0 *)p;
    decode_fives(b->qs, b->qh, 16, q);
    *d = el_f16_to_f32(b->d);
    *m = 0;
}

static inline void decode_q5_1(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_q5_1 *b = (const el_block_q5_1 *)p;
    decode_fives(b->qs, b->qh, 0, q);
    *d = el_f16_to_f32(b->d);
    *m = el_f16_to_f32(b->m);
}

static inline void decode_q8_0(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_q8_0 *b = (const el_block_q8_0 *)p;
    memcpy(q, b->qs, 32);
    *d = el_f16_to_f32(b->d);
    *m = 0;
}

static inline void decode_iq4_nl(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_iq4_nl *b = (const el_block_iq4_nl *)p;
    decode_nibbles(b->qs, 0, q);
    for (int i = 0; i < 32; i++) q[i] = el_iq4_codes[q[i]];
    *d = el_f16_to_f32(b->d);
    *m = 0;
}

static inline void decode_mxfp4(const uint8_t *p, int8_t *q, float *d, float *m) {
    const el_block_mxfp4 *b = (const el_block_mxfp4 *)p;
    decode_nibbles(b->qs, 0, q);
    for (int i = 0; i < 32; i++) q[i] = el_mxfp4_codes[q[i]];
    *d = el_e8m0(b->e);
    *m = 0;
}

static inline int32_t dot_i8(const int8_t *a, const int8_t *b, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += (int32_t)a[i] * b[i];
    return sum;
}

#define BLOCK_ROWS(NAME, BYTES, DECODE, HAS_MIN)                                                                 \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        int64_t n_blocks = x->k / 32, ld = x->k_pad / 32;                                                        \
        for (int64_t r = row0; r < row1; r++) {                                                                  \
            const uint8_t *row = (const uint8_t *)w + r * n_blocks * BYTES;                                      \
            for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {                                                   \
                int64_t n = min64(COLUMNS, n_cols - m0);                                                         \
                float acc[COLUMNS] = {0}, d, least;                                                              \
                int8_t q[32];                                                                                    \
                for (int64_t b = 0; b < n_blocks; b++) {                                                         \
                    DECODE(row + b * BYTES, q, &d, &least);                                                      \
                    for (int64_t m = 0; m < n; m++) {                                                            \
                        int32_t dot = dot_i8(q, x->q + (m0 + m) * x->k_pad + b * 32, 32);                        \
                        float dx = x->d[(m0 + m) * ld + b];                                                      \
                        acc[m] = el_fmaf(d * dx, (float)dot, acc[m]);                                            \
                        if (HAS_MIN) acc[m] = el_fmaf(least * dx, (float)x->sum[(m0 + m) * ld + b], acc[m]);     \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++) y[(m0 + m) * ldy + r - row0] = acc[m];                           \
            }                                                                                                    \
        }                                                                                                        \
    }

BLOCK_ROWS(rows_q4_0, (int64_t)sizeof(el_block_q4_0), decode_q4_0, 0)
BLOCK_ROWS(rows_q4_1, (int64_t)sizeof(el_block_q4_1), decode_q4_1, 1)
BLOCK_ROWS(rows_q5_0, (int64_t)sizeof(el_block_q5_0), decode_q5_0, 0)
BLOCK_ROWS(rows_q5_1, (int64_t)sizeof(el_block_q5_1), decode_q5_1, 1)
BLOCK_ROWS(rows_q8_0, (int64_t)sizeof(el_block_q8_0), decode_q8_0, 0)
BLOCK_ROWS(rows_iq4_nl, (int64_t)sizeof(el_block_iq4_nl), decode_iq4_nl, 0)
BLOCK_ROWS(rows_mxfp4, (int64_t)sizeof(el_block_mxfp4), decode_mxfp4, 0)

/* ---- panels: 16 rows side by side, formats/panels.md ---------------------------------------------------- */
/* One k-block of 32 of a panel: `q` as [8 quads][16 rows][4 k], `scale` the 16 f16 scales. */
static inline void panel_block(const int8_t *q, const uint8_t *scale, const el_act *x, int64_t b, int64_t m0, int64_t n,
                               float acc[COLUMNS][EL_PANEL_ROWS]) {
    float d[EL_PANEL_ROWS];
    for (int r = 0; r < EL_PANEL_ROWS; r++) d[r] = load_f16(scale + 2 * r);
    for (int64_t m = 0; m < n; m++) {
        const int8_t *xq = x->q + (m0 + m) * x->k_pad + b * 32;
        float dx = x->d[(m0 + m) * (x->k_pad / 32) + b];
        int32_t dot[EL_PANEL_ROWS] = {0};
        for (int j = 0; j < 8; j++)
            for (int r = 0; r < EL_PANEL_ROWS; r++)
                for (int i = 0; i < 4; i++) dot[r] += (int32_t)q[j * 64 + r * 4 + i] * xq[j * 4 + i];
        for (int r = 0; r < EL_PANEL_ROWS; r++) acc[m][r] = el_fmaf(d[r] * dx, (float)dot[r], acc[m][r]);
    }
}

/* The block b of a group of 16 rows, in `tile`, as [8][16][4] integers; returns its 16 scales. */
static inline const uint8_t *panel_q4_0(const uint8_t *tile, int64_t n_blocks, int64_t b, int8_t *q) {
    const uint8_t *line = tile + 64;
    int shift = b & 1 ? 4 : 0;
    if (b + 1 == n_blocks && !(b & 1)) { /* a half tile: quads 0-3 in the low nibbles, 4-7 in the high ones */
        for (int i = 0; i < 256; i++) {
            q[i] = (int8_t)((line[i] & 15) - 8);
            q[256 + i] = (int8_t)((line[i] >> 4) - 8);
        }
        return tile;
    }
    for (int i = 0; i < 512; i++) q[i] = (int8_t)((line[i] >> shift & 15) - 8);
    return tile + (b & 1) * 32;
}

static inline const uint8_t *panel_q8_0(const uint8_t *tile, int64_t n_blocks, int64_t b, int8_t *q) {
    (void)n_blocks;
    memcpy(q, tile + 64 + (b & 1) * 512, 512);
    return tile + (b & 1) * 32;
}

#define PANELS(NAME, SPARSE, TILE, HALF, BLOCK)                                                                  \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        int64_t n_blocks = x->k / 32;                                                                            \
        for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                                \
            for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {                                                   \
                int64_t n = min64(COLUMNS, n_cols - m0), n_rows = min64(EL_PANEL_ROWS, row1 - r0);               \
                el_group g = el_group_at(SPARSE, w, r0 / EL_PANEL_ROWS, x->k, 64, TILE, HALF);                   \
                float acc[COLUMNS][EL_PANEL_ROWS] = {{0}};                                                       \
                int8_t q[512];                                                                                   \
                for (int64_t i = 0; i < g.n + g.half; i++, g.tile += TILE) {                                     \
                    int64_t b = 2 * el_next_tile(SPARSE, &g, i), end = min64(b + 2, n_blocks);                   \
                    for (; b < end; b++) {                                                                       \
                        const uint8_t *scale = BLOCK(g.tile, n_blocks, b, q);                                    \
                        panel_block(q, scale, x, b, m0, n, acc);                                                 \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++)                                                                  \
                    memcpy(y + (m0 + m) * ldy + r0 - row0, acc[m], (size_t)n_rows * 4);                          \
            }                                                                                                    \
        }                                                                                                        \
    }

PANELS(panels_q4_0, 0, 576, 320, panel_q4_0)
PANELS(panels_q8_0, 0, 1088, 576, panel_q8_0)
PANELS(sparse_q4_0, 1, 576, 320, panel_q4_0)
PANELS(sparse_q8_0, 1, 1088, 576, panel_q8_0)

/* ---- compressed panels: each tile is expanded, then as above ------------------------------------------------ */
static inline void compressed_group(int type, const void *w, int64_t group, const el_act *x, int64_t m0, int64_t n,
                                    float acc[COLUMNS][EL_PANEL_ROWS]) {
    el_walk walk = el_walk_group(w, group);
    uint8_t codes[EL_TILE_LINES * EL_CODE_LINE];
    int8_t q[EL_TILE_LINES * EL_CODE_LINE];
    for (int64_t b = 0, n_blocks = x->k / 32; b < n_blocks; b += 2) {
        int per_tile = b + 1 < n_blocks ? 2 : 1;
        const uint8_t *tile = el_tile_at(walk);
        walk.tile = el_expand_tile(type, 8 * per_tile, tile, codes);
        for (int i = 0; i < 512 * per_tile; i++) q[i] = (int8_t)(codes[i] - el_zero_code(type));
        for (int h = 0; h < per_tile; h++) panel_block(q + 512 * h, tile + 32 * h, x, b + h, m0, n, acc);
    }
}

static inline void compressed(int type, const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols,
                              float *y, int64_t ldy) {
    for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS)
        for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {
            int64_t n = min64(COLUMNS, n_cols - m0), n_rows = min64(EL_PANEL_ROWS, row1 - r0);
            float acc[COLUMNS][EL_PANEL_ROWS] = {{0}};
            compressed_group(type, w, r0 / EL_PANEL_ROWS, x, m0, n, acc);
            for (int64_t m = 0; m < n; m++) memcpy(y + (m0 + m) * ldy + r0 - row0, acc[m], (size_t)n_rows * 4);
        }
}

static void compressed_q4_0(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy) {
    compressed(EL_TYPE_Q4_0, w, row0, row1, x, n_cols, y, ldy);
}
static void compressed_q8_0(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy) {
    compressed(EL_TYPE_Q8_0, w, row0, row1, x, n_cols, y, ldy);
}

#include "portable_k.h"

/* ---- activations to int8 -------------------------------------------------------------------------------- */
/* The largest |x| by its bits, so that a NaN wins over every number and infinity. */
static inline float amax_of(const float *x, int64_t n) {
    int32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t a = (int32_t)(el_bits(x[i]) & 0x7fffffffu);
        top = a > top ? a : top;
    }
    return el_float((uint32_t)top);
}

static inline void quantize_q8(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum, int64_t block,
                               int64_t per_sum) {
    int64_t k_pad = (k + 255) / 256 * 256;
    for (int64_t k0 = 0; k0 < k_pad; k0 += block) {
        int64_t n = k0 < k ? min64(block, k - k0) : 0;
        float amax = amax_of(x + (n ? k0 : 0), n), inverse = amax != 0.0f ? 127.0f / amax : 0.0f;
        d[k0 / block] = amax / 127.0f;
        for (int64_t i = 0; i < n; i++) q[k0 + i] = el_q8(x[k0 + i] * inverse);
        for (int64_t i = n; i < block; i++) q[k0 + i] = el_q8(0.0f * inverse); /* past the end: as zeros */
    }
    for (int64_t s = 0; s < k_pad / per_sum; s++) {
        int32_t total = 0;
        for (int64_t i = 0; i < per_sum; i++) total += q[s * per_sum + i];
        sum[s] = total;
    }
}

static void quantize_q8_32(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    quantize_q8(x, k, q, d, sum, 32, 32);
}

static void quantize_q8_256(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    quantize_q8(x, k, q, d, sum, 256, 16);
}

/* ---- element-wise ------------------------------------------------------------------------------------------ */
static void rmsnorm(const float *x, const float *w, float *y, int64_t n, float eps) {
    float lanes[EL_LANES] = {0};
    int64_t i = 0;
    for (; i + EL_LANES <= n; i += EL_LANES)
        for (int l = 0; l < EL_LANES; l++) lanes[l] = el_fmaf(x[i + l], x[i + l], lanes[l]);
    for (int l = 0; i + l < n; l++) lanes[l] = el_fmaf(x[i + l], x[i + l], lanes[l]);
    float inverse = 1.0f / sqrtf(el_tree16(lanes) / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * inverse * w[i];
}

static void layernorm(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    float sum[EL_LANES] = {0}, squares[EL_LANES] = {0};
    for (int64_t i = 0; i < n; i++) sum[i % EL_LANES] += x[i];
    float mean = el_tree16(sum) / (float)n;
    for (int64_t i = 0; i < n; i++) squares[i % EL_LANES] = el_fmaf(x[i] - mean, x[i] - mean, squares[i % EL_LANES]);
    float inverse = 1.0f / sqrtf(el_tree16(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = el_fmaf((x[i] - mean) * inverse, w[i], b[i]);
}

static void gelu(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = el_gelu_exact(x[i]);
}

static void gated(const float *gate, const float *up, float *y, int64_t n, int activation) {
    if (activation == EL_ACT_GELU_TANH)
        for (int64_t i = 0; i < n; i++) y[i] = el_gelu(gate[i]) * up[i];
    else
        for (int64_t i = 0; i < n; i++) y[i] = el_silu(gate[i]) * up[i];
}

static void add(const float *a, const float *b, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void softcap(const float *x, float *y, int64_t n, float cap) {
    for (int64_t i = 0; i < n; i++) y[i] = cap * el_tanhf(x[i] / cap);
}

static void exp_sum(float *x, int64_t n, float max, float *sum) {
    float lanes[EL_LANES] = {0};
    for (int64_t i = 0; i < n; i += EL_LANES) {
        int64_t count = min64(EL_LANES, n - i);
        for (int64_t l = 0; l < count; l++) lanes[l] += x[i + l] = el_expf(x[i + l] - max);
    }
    *sum = el_tree16(lanes);
}

#include "portable_attention.h"

const el_kernels el_kernels_portable = {
    .name = "portable",
    .need = 0,
    .linear[EL_ROWS] =
        {
            [EL_TYPE_F32] = rows_f32,
            [EL_TYPE_F16] = rows_f16,
            [EL_TYPE_BF16] = rows_bf16,
            [EL_TYPE_Q4_0] = rows_q4_0,
            [EL_TYPE_Q4_1] = rows_q4_1,
            [EL_TYPE_Q5_0] = rows_q5_0,
            [EL_TYPE_Q5_1] = rows_q5_1,
            [EL_TYPE_Q8_0] = rows_q8_0,
            [EL_TYPE_IQ4_NL] = rows_iq4_nl,
            [EL_TYPE_MXFP4] = rows_mxfp4,
            [EL_TYPE_Q2_K] = rows_q2_k,
            [EL_TYPE_Q3_K] = rows_q3_k,
            [EL_TYPE_Q4_K] = rows_q4_k,
            [EL_TYPE_Q5_K] = rows_q5_k,
            [EL_TYPE_Q6_K] = rows_q6_k,
            [EL_TYPE_IQ4_XS] = rows_iq4_xs,
            [EL_TYPE_TQ1_0] = rows_tq1_0,
            [EL_TYPE_TQ2_0] = rows_tq2_0,
        },
    .linear[EL_PANELS] =
        {
            [EL_TYPE_Q4_0] = panels_q4_0,
            [EL_TYPE_Q8_0] = panels_q8_0,
            [EL_TYPE_Q4_K] = panels_q4_k,
            [EL_TYPE_Q5_K] = panels_q5_k,
            [EL_TYPE_Q6_K] = panels_q6_k,
        },
    .linear[EL_COMPRESSED] = {[EL_TYPE_Q4_0] = compressed_q4_0, [EL_TYPE_Q8_0] = compressed_q8_0},
    .linear[EL_SPARSE] =
        {
            [EL_TYPE_Q4_0] = sparse_q4_0,
            [EL_TYPE_Q8_0] = sparse_q8_0,
            [EL_TYPE_Q4_K] = sparse_q4_k,
            [EL_TYPE_Q5_K] = sparse_q5_k,
            [EL_TYPE_Q6_K] = sparse_q6_k,
        },
    .quantize_q8_32 = quantize_q8_32,
    .quantize_q8_256 = quantize_q8_256,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .gelu = gelu,
    .gated = gated,
    .add = add,
    .softcap = softcap,
    ATTENTION_ENTRIES
    .exp_sum = exp_sum,
};
