/* neon_rows.h: rows of blocks, four rows at a time for blocks of 32, for NEON_LEVEL BY_PRODUCTS and BY_DOTS. */
#include "decode_k.h"

/* 16 products as 4 partial sums, of two vectors */
INLINE int32x4_t dot32(int8x16_t w0, int8x16_t w1, int8x16_t x0, int8x16_t x1) {
#if NEON_LEVEL == BY_PRODUCTS
    int16x8_t a = vmlal_high_s8(vmull_s8(vget_low_s8(w0), vget_low_s8(x0)), w0, x0); /* 2 * 128 * 127 < 2^15 */
    int16x8_t b = vmlal_high_s8(vmull_s8(vget_low_s8(w1), vget_low_s8(x1)), w1, x1);
    return vpadalq_s16(vpaddlq_s16(a), b);
#else
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w0, x0), w1, x1);
#endif
}

INLINE int32x4_t dot16(int8x16_t w, int8x16_t x) {
#if NEON_LEVEL == BY_PRODUCTS
    return vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x));
#else
    return vdotq_s32(vdupq_n_s32(0), w, x);
#endif
}

/* Calls STEP(4), STEP(2) or STEP(1) until all columns are done; `m0` is the first column of the tile. */
#define ROW_COLUMNS(STEP)                                      \
    for (int64_t m0 = 0; m0 < n_cols;) {                       \
        if (n_cols - m0 >= 4) {                                \
            STEP(4);                                           \
            m0 += 4;                                           \
        } else if (n_cols - m0 >= 2) {                         \
            STEP(2);                                           \
            m0 += 2;                                           \
        } else {                                               \
            STEP(1);                                           \
            m0 += 1;                                           \
        }                                                      \
    }

/* ---- blocks of 32: codes of k = 0 to 15 in q[0], of 16 to 31 in q[1] ----------------------------------------------- */
INLINE void nibbles(const uint8_t *qs, uint8x16_t *q) {
    uint8x16_t v = bytes16(qs);
    q[0] = vandq_u8(v, vdupq_n_u8(15));
    q[1] = vshrq_n_u8(v, 4);
}

INLINE void fifth_bits(const uint8_t *qh, uint8x16_t *q) {
    static const uint8_t spread[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    static const uint8_t which[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint32_t bits;
    memcpy(&bits, qh, 4);
    uint8x16_t all = vreinterpretq_u8_u32(vdupq_n_u32(bits)), index = bytes16(spread), bit = bytes16(which);
    uint8x16_t low = vtstq_u8(vqtbl1q_u8(all, index), bit);
    uint8x16_t high = vtstq_u8(vqtbl1q_u8(all, vaddq_u8(index, vdupq_n_u8(2))), bit);
    q[0] = vorrq_u8(q[0], vandq_u8(low, vdupq_n_u8(16)));
    q[1] = vorrq_u8(q[1], vandq_u8(high, vdupq_n_u8(16)));
}

INLINE void from_codebook(const int8_t *values, uint8x16_t *q) {
    uint8x16_t table = bytes16(values);
    q[0] = vqtbl1q_u8(table, q[0]);
    q[1] = vqtbl1q_u8(table, q[1]);
}

INLINE void codes_q4_0(const uint8_t *p, uint8x16_t *q) { nibbles(((const el_block_q4_0 *)p)->qs, q); }
INLINE void codes_q4_1(const uint8_t *p, uint8x16_t *q) { nibbles(((const el_block_q4_1 *)p)->qs, q); }
INLINE void codes_q5_0(const uint8_t *p, uint8x16_t *q) {
    nibbles(((const el_block_q5_0 *)p)->qs, q);
    fifth_bits(((const el_block_q5_0 *)p)->qh, q);
}
INLINE void codes_q5_1(const uint8_t *p, uint8x16_t *q) {
    nibbles(((const el_block_q5_1 *)p)->qs, q);
    fifth_bits(((const el_block_q5_1 *)p)->qh, q);
}
INLINE void codes_q8_0(const uint8_t *p, uint8x16_t *q) {
    q[0] = bytes16(((const el_block_q8_0 *)p)->qs);
    q[1] = bytes16(((const el_block_q8_0 *)p)->qs + 16);
}
INLINE void codes_iq4_nl(const uint8_t *p, uint8x16_t *q) {
    nibbles(((const el_block_iq4_nl *)p)->qs, q);
    from_codebook(el_iq4_codes, q);
}
INLINE void codes_mxfp4(const uint8_t *p, uint8x16_t *q) {
    nibbles(((const el_block_mxfp4 *)p)->qs, q);
    from_codebook(el_mxfp4_codes, q);
}

/* f16 at `at` of the blocks of four rows */
INLINE float32x4_t scales4(const uint8_t *const *row, int64_t at) {
    uint16_t h[4];
    UNROLL for (int r = 0; r < 4; r++) memcpy(h + r, row[r] + at, 2);
    return halves4(h);
}

INLINE float32x4_t powers4(const uint8_t *const *row, int64_t at) { /* e8m0 there */
    float d[4];
    UNROLL for (int r = 0; r < 4; r++) d[r] = el_e8m0(row[r][at]);
    return vld1q_f32(d);
}

/* Rows past the end repeat the last one and are not stored. */
#define BLOCK_ROWS(NAME, BYTES, CODES, SCALES, OFFSET, HAS_MIN)                                                  \
    INLINE void NAME##_tile(const uint8_t *const *row, const el_act *x, int64_t m0, const int C, int64_t n_rows, \
                            float *y, int64_t ldy) {                                                             \
        int64_t n_blocks = x->k / 32, ld = x->k_pad / 32;                                                        \
        float32x4_t acc[4]; /* a lane is a row */                                                                \
        UNROLL for (int c = 0; c < C; c++) acc[c] = vdupq_n_f32(0.0f);                                           \
        for (int64_t b = 0; b < n_blocks; b++) {                                                                 \
            uint8x16_t w[4][2];                                                                                  \
            UNROLL for (int r = 0; r < 4; r++) {                                                                 \
                CODES(row[r] + b * BYTES, w[r]);                                                                 \
                prefetch(row[r] + b * BYTES + AHEAD);                                                            \
            }                                                                                                    \
            float32x4_t d = SCALES(row, b * BYTES), least = HAS_MIN ? scales4(row, b * BYTES + 2) : d;           \
            UNROLL for (int c = 0; c < C; c++) {                                                                 \
                const int8_t *xq = x->q + (m0 + c) * x->k_pad + b * 32;                                          \
                int8x16_t x0 = vld1q_s8(xq), x1 = vld1q_s8(xq + 16);                                             \
                int32_t sum = x->sum[(m0 + c) * ld + b];                                                         \
                float dx = x->d[(m0 + c) * ld + b];                                                              \
                int32x4_t part[4];                                                                               \
                UNROLL for (int r = 0; r < 4; r++)                                                               \
                    part[r] = dot32(vreinterpretq_s8_u8(w[r][0]), vreinterpretq_s8_u8(w[r][1]), x0, x1);         \
                int32x4_t dot = vpaddq_s32(vpaddq_s32(part[0], part[1]), vpaddq_s32(part[2], part[3]));          \
                if (OFFSET) dot = vsubq_s32(dot, vdupq_n_s32(OFFSET * sum));                                     \
                acc[c] = vfmaq_f32(acc[c], vmulq_n_f32(d, dx), vcvtq_f32_s32(dot));                              \
                if (HAS_MIN) acc[c] = vfmaq_f32(acc[c], vmulq_n_f32(least, dx), vdupq_n_f32((float)sum));        \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int c = 0; c < C; c++) {                                                                     \
            float out[4];                                                                                        \
            vst1q_f32(out, acc[c]);                                                                              \
            memcpy(y + (m0 + c) * ldy, out, (size_t)n_rows * 4);                                                 \
        }                                                                                                        \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        const uint8_t *row[4];                                                                                   \
        for (int64_t r0 = row0; r0 < row1; r0 += 4) {                                                            \
            int64_t n_rows = min64(4, row1 - r0);                                                                \
            for (int r = 0; r < 4; r++)                                                                          \
                row[r] = (const uint8_t *)w + min64(r0 + r, row1 - 1) * (x->k / 32) * BYTES;                     \
            float *out = y + r0 - row0;                                                                          \
            ROW_COLUMNS(NAME##_STEP)                                                                             \
        }                                                                                                        \
    }

#define rows_q4_0_STEP(C) rows_q4_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q4_1_STEP(C) rows_q4_1_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q5_0_STEP(C) rows_q5_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q5_1_STEP(C) rows_q5_1_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q8_0_STEP(C) rows_q8_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_iq4_nl_STEP(C) rows_iq4_nl_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_mxfp4_STEP(C) rows_mxfp4_tile(row, x, m0, C, n_rows, out, ldy)
BLOCK_ROWS(rows_q4_0, (int64_t)sizeof(el_block_q4_0), codes_q4_0, scales4, 8, 0)
BLOCK_ROWS(rows_q4_1, (int64_t)sizeof(el_block_q4_1), codes_q4_1, scales4, 0, 1)
BLOCK_ROWS(rows_q5_0, (int64_t)sizeof(el_block_q5_0), codes_q5_0, scales4, 16, 0)
BLOCK_ROWS(rows_q5_1, (int64_t)sizeof(el_block_q5_1), codes_q5_1, scales4, 0, 1)
BLOCK_ROWS(rows_q8_0, (int64_t)sizeof(el_block_q8_0), codes_q8_0, scales4, 0, 0)
BLOCK_ROWS(rows_iq4_nl, (int64_t)sizeof(el_block_iq4_nl), codes_iq4_nl, scales4, 0, 0)
BLOCK_ROWS(rows_mxfp4, (int64_t)sizeof(el_block_mxfp4), codes_mxfp4, powers4, 0, 0)

/* ---- blocks of 256: decoded once for all columns of a tile, by the C that defines them ------------------------------- */
INLINE int32_t k_dot(const k_block *w, const int8_t *xq) { /* sum of scale * dot over the groups */
    int32x4_t total = vdupq_n_s32(0);
    UNROLL for (int g = 0; g < 16; g++)
        total = vmlaq_n_s32(total, dot16(vld1q_s8(w->q + g * 16), vld1q_s8(xq + g * 16)), w->scale[g]);
    return vaddvq_s32(total);
}

INLINE int32_t k_low(const int16_t *low, const int32_t *sum) {
    int32x4_t total = vdupq_n_s32(0);
    UNROLL for (int g = 0; g < 16; g += 4) total = vmlaq_s32(total, vmovl_s16(vld1_s16(low + g)), vld1q_s32(sum + g));
    return vaddvq_s32(total);
}

enum { K_COLUMNS = 8 };

#define K_ROWS(TYPE, HAS_MIN)                                                                                    \
    static void rows_##TYPE(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, \
                            int64_t ldy) {                                                                       \
        int64_t n_blocks = x->k / 256, ld = x->k_pad / 256;                                                      \
        for (int64_t r = row0; r < row1; r++) {                                                                  \
            const el_block_##TYPE *row = (const el_block_##TYPE *)w + r * n_blocks;                              \
            for (int64_t m0 = 0; m0 < n_cols; m0 += K_COLUMNS) {                                                 \
                int64_t n = min64(K_COLUMNS, n_cols - m0);                                                       \
                float acc[K_COLUMNS] = {0};                                                                      \
                k_block block;                                                                                   \
                for (int64_t b = 0; b < n_blocks; b++) {                                                         \
                    decode_##TYPE(row + b, &block);                                                              \
                    for (int64_t m = 0; m < n; m++) {                                                            \
                        int64_t at = (m0 + m) * ld + b;                                                          \
                        float dx = x->d[at];                                                                     \
                        acc[m] = el_fmaf(block.d * dx, (float)k_dot(&block, x->q + at * 256), acc[m]);           \
                        if (HAS_MIN)                                                                             \
                            acc[m] = el_fmaf(-(block.dmin * dx), (float)k_low(block.low, x->sum + at * 16), acc[m]); \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++) y[(m0 + m) * ldy + r - row0] = acc[m];                           \
            }                                                                                                    \
        }                                                                                                        \
    }

K_ROWS(q2_k, 1)
K_ROWS(q3_k, 0)
K_ROWS(q4_k, 1)
K_ROWS(q5_k, 1)
K_ROWS(q6_k, 0)
K_ROWS(iq4_xs, 0)
K_ROWS(tq1_0, 0)
K_ROWS(tq2_0, 0)

#define NEON_BLOCK_ROWS                                                                                         \
    [EL_TYPE_Q4_0] = rows_q4_0, [EL_TYPE_Q4_1] = rows_q4_1, [EL_TYPE_Q5_0] = rows_q5_0,                         \
    [EL_TYPE_Q5_1] = rows_q5_1, [EL_TYPE_Q8_0] = rows_q8_0, [EL_TYPE_IQ4_NL] = rows_iq4_nl,                     \
    [EL_TYPE_MXFP4] = rows_mxfp4, [EL_TYPE_Q2_K] = rows_q2_k, [EL_TYPE_Q3_K] = rows_q3_k,                       \
    [EL_TYPE_Q4_K] = rows_q4_k, [EL_TYPE_Q5_K] = rows_q5_k, [EL_TYPE_Q6_K] = rows_q6_k,                         \
    [EL_TYPE_IQ4_XS] = rows_iq4_xs, [EL_TYPE_TQ1_0] = rows_tq1_0, [EL_TYPE_TQ2_0] = rows_tq2_0
