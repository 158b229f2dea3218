/* neon_ops.h: the part of neon.c that is not a product of quantised weights: rows of floats, quantising and element-wise
 * ops. 16 lanes of a float sum are four vectors.
 */

/* ---- rows of floats ----------------------------------------------------------------------------------------------- */
INLINE float one_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}
INLINE float one_f16(const uint8_t *p) { return el_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }
INLINE float one_bf16(const uint8_t *p) { return el_bf16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

/* R rows times C columns share their loads. Rows past the end repeat the last one and are not stored. The last k % 16
 * lanes go one by one: the others must stay as they are. */
#define FLOAT_ROWS(NAME, BYTES, LOAD, ONE)                                                                       \
    INLINE void NAME##_tile(const uint8_t *const *row, const int R, const el_act *x, int64_t m0, const int C,    \
                            int64_t n_rows, float *y, int64_t ldy) {                                             \
        float32x4_t acc[4][4][4];                                                                                \
        int64_t k = x->k, k0 = 0;                                                                                \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) UNROLL for (int v = 0; v < 4; v++) \
            acc[r][c][v] = vdupq_n_f32(0.0f);                                                                    \
        for (; k0 + EL_LANES <= k; k0 += EL_LANES)                                                               \
            UNROLL for (int r = 0; r < R; r++) {                                                                 \
                prefetch(row[r] + k0 * BYTES + AHEAD);                                                           \
                UNROLL for (int v = 0; v < 4; v++) {                                                             \
                    float32x4_t w = LOAD(row[r] + (k0 + 4 * v) * BYTES);                                         \
                    UNROLL for (int c = 0; c < C; c++)                                                           \
                        acc[r][c][v] = vfmaq_f32(acc[r][c][v], w, vld1q_f32(x->f + (m0 + c) * x->ldf + k0 + 4 * v)); \
                }                                                                                                \
            }                                                                                                    \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {                                  \
            float total;                                                                                         \
            if (k0 < k) {                                                                                        \
                const float *f = x->f + (m0 + c) * x->ldf;                                                       \
                float lanes[EL_LANES];                                                                           \
                UNROLL for (int v = 0; v < 4; v++) vst1q_f32(lanes + 4 * v, acc[r][c][v]);                       \
                for (int64_t i = k0; i < k; i++)                                                                 \
                    lanes[i - k0] = el_fmaf(ONE(row[r] + i * BYTES), f[i], lanes[i - k0]);                       \
                total = el_tree16(lanes);                                                                        \
            } else total = tree16(acc[r][c]);                                                                    \
            if (r < n_rows) y[(m0 + c) * ldy + r] = total;                                                       \
        }                                                                                                        \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        const uint8_t *row[4];                                                                                   \
        for (int64_t r0 = row0; r0 < row1; r0 += 4) {                                                            \
            int64_t n = min64(4, row1 - r0), m0 = 0;                                                             \
            for (int r = 0; r < 4; r++) row[r] = (const uint8_t *)w + min64(r0 + r, row1 - 1) * x->k * BYTES;    \
            float *out = y + r0 - row0;                                                                          \
            for (; m0 + 4 <= n_cols; m0 += 4)                                                                    \
                for (int r = 0; r < n; r++) NAME##_tile(row + r, 1, x, m0, 4, 1, out + r, ldy);                  \
            if (m0 + 2 <= n_cols) {                                                                              \
                NAME##_tile(row, 2, x, m0, 2, n, out, ldy);                                                      \
                if (n > 2) NAME##_tile(row + 2, 2, x, m0, 2, n - 2, out + 2, ldy);                               \
                m0 += 2;                                                                                         \
            }                                                                                                    \
            if (m0 < n_cols) NAME##_tile(row, 4, x, m0, 1, n, out, ldy);                                         \
        }                                                                                                        \
    }

FLOAT_ROWS(rows_f32, 4, floats4, one_f32)
FLOAT_ROWS(rows_f16, 2, halves4, one_f16)
FLOAT_ROWS(rows_bf16, 2, brains4, one_bf16)

/* ---- activations to int8 ---------------------------------------------------------------------------------------------- */
INLINE int32x4_t abs_bits(const float *x) { return vandq_s32(vld1q_s32((const int32_t *)x), vdupq_n_s32(0x7fffffff)); }

/* 16 floats to int8, to nearest even; NaN becomes 127, as el_q8 does (minnm takes the number) */
INLINE int8x16_t rounded16(const float *x, float inverse) {
    int32x4_t i[4];
    UNROLL for (int v = 0; v < 4; v++) {
        float32x4_t y = vminnmq_f32(vmulq_n_f32(vld1q_f32(x + 4 * v), inverse), vdupq_n_f32(127.0f));
        i[v] = vcvtnq_s32_f32(vmaxnmq_f32(y, vdupq_n_f32(-127.0f)));
    }
    int16x8_t low = vcombine_s16(vmovn_s32(i[0]), vmovn_s32(i[1])), high = vcombine_s16(vmovn_s32(i[2]), vmovn_s32(i[3]));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

INLINE void quantize_q8(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum, const int block, const int per_sum) {
    int64_t k_pad = (k + 255) / 256 * 256;
    float rest[256];
    for (int64_t k0 = 0; k0 < k_pad; k0 += block, d++) {
        const float *from = x + (k0 < k ? k0 : 0);
        if (k0 + block > k) { /* past the end: zeros */
            memset(rest, 0, (size_t)block * 4);
            if (k0 < k) memcpy(rest, from, (size_t)(k - k0) * 4);
            from = rest;
        }
        int32x4_t top[4];
        UNROLL for (int v = 0; v < 4; v++) top[v] = vdupq_n_s32(0);
        for (int i = 0; i < block; i += 16)
            UNROLL for (int v = 0; v < 4; v++) top[v] = vmaxq_s32(top[v], abs_bits(from + i + 4 * v));
        int32_t bits = vmaxvq_s32(vmaxq_s32(vmaxq_s32(top[0], top[1]), vmaxq_s32(top[2], top[3])));
        float amax = el_float((uint32_t)bits), inverse = amax != 0.0f ? 127.0f / amax : 0.0f;
        *d = amax / 127.0f;
        for (int i = 0; i < block; i += per_sum) {
            int32_t total = 0;
            for (int at = i; at < i + per_sum; at += 16) {
                int8x16_t v = rounded16(from + at, inverse);
                vst1q_s8(q + k0 + at, v);
                total += vaddlvq_s8(v);
            }
            *sum++ = total;
        }
    }
}

static void quantize_q8_32(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    quantize_q8(x, k, q, d, sum, 32, 32);
}

static void quantize_q8_256(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    quantize_q8(x, k, q, d, sum, 256, 16);
}

/* ---- element-wise ----------------------------------------------------------------------------------------------------- */
static void rmsnorm(const float *x, const float *w, float *y, int64_t n, float eps) {
    float32x4_t acc[4];
    int64_t i = 0;
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_f32(0.0f);
    for (; i + EL_LANES <= n; i += EL_LANES)
        UNROLL for (int v = 0; v < 4; v++) {
            float32x4_t a = vld1q_f32(x + i + 4 * v);
            acc[v] = vfmaq_f32(acc[v], a, a);
        }
    float lanes[EL_LANES];
    UNROLL for (int v = 0; v < 4; v++) vst1q_f32(lanes + 4 * v, acc[v]);
    for (int l = 0; i + l < n; l++) lanes[l] = el_fmaf(x[i + l], x[i + l], lanes[l]);
    float inverse = 1.0f / sqrtf(el_tree16(lanes) / (float)n + eps);
    for (i = 0; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), inverse), vld1q_f32(w + i)));
    for (; i < n; i++) y[i] = x[i] * inverse * w[i];
}

static void layernorm(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    float32x4_t acc[4];
    float lanes[EL_LANES];
    int64_t whole = n / EL_LANES * EL_LANES;
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < whole; i += EL_LANES)
        UNROLL for (int v = 0; v < 4; v++) acc[v] = vaddq_f32(acc[v], vld1q_f32(x + i + 4 * v));
    UNROLL for (int v = 0; v < 4; v++) vst1q_f32(lanes + 4 * v, acc[v]);
    for (int64_t i = whole; i < n; i++) lanes[i - whole] += x[i];
    float mean = el_tree16(lanes) / (float)n;
    float32x4_t m = vdupq_n_f32(mean);
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < whole; i += EL_LANES)
        UNROLL for (int v = 0; v < 4; v++) {
            float32x4_t a = vsubq_f32(vld1q_f32(x + i + 4 * v), m);
            acc[v] = vfmaq_f32(acc[v], a, a);
        }
    UNROLL for (int v = 0; v < 4; v++) vst1q_f32(lanes + 4 * v, acc[v]);
    for (int64_t i = whole; i < n; i++) lanes[i - whole] = el_fmaf(x[i] - mean, x[i] - mean, lanes[i - whole]);
    float inverse = 1.0f / sqrtf(el_tree16(lanes) / (float)n + eps);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vmulq_n_f32(vsubq_f32(vld1q_f32(x + i), m), inverse);
        vst1q_f32(y + i, vfmaq_f32(vld1q_f32(b + i), v, vld1q_f32(w + i)));
    }
    for (; i < n; i++) y[i] = el_fmaf((x[i] - mean) * inverse, w[i], b[i]);
}

/* el_expf, four at a time; min and max keep NaN */
INLINE float32x4_t exp4(float32x4_t x) {
    const float32x4_t round = vdupq_n_f32(EL_EXP_ROUND), one = vdupq_n_f32(1.0f);
    const int32x4_t bias = vdupq_n_s32(127);
    x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(EL_EXP_HI)), vdupq_n_f32(EL_EXP_LO));
    float32x4_t t = vfmaq_f32(round, x, vdupq_n_f32(EL_EXP_LOG2E)), n = vsubq_f32(t, round);
    float32x4_t r = vfmaq_f32(vfmaq_f32(x, n, vdupq_n_f32(-EL_EXP_LN2_HI)), n, vdupq_n_f32(-EL_EXP_LN2_LO));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(EL_EXP_C5), vdupq_n_f32(EL_EXP_C6), r);
    p = vfmaq_f32(vdupq_n_f32(EL_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(EL_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(EL_EXP_C2), p, r);
    p = vfmaq_f32(one, vfmaq_f32(one, p, r), r);
    int32x4_t i = vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(round)), half = vshrq_n_s32(i, 1);
    int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(i, half), bias), 23);
    return vmulq_f32(vmulq_f32(p, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}

INLINE float32x4_t over_one_plus_exp_minus(float32x4_t x, float32x4_t u) { /* x / (1 + exp(-u)) */
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(u))));
}

INLINE float32x4_t gelu4(float32x4_t x) {
    float32x4_t cube = vmulq_f32(vmulq_n_f32(x, EL_GELU_B), x);
    return over_one_plus_exp_minus(x, vmulq_n_f32(vfmaq_f32(x, cube, x), EL_GELU_A));
}

INLINE float32x4_t gelu_exact4(float32x4_t x) { /* el_gelu_exact */
    const float32x4_t one = vdupq_n_f32(1.0f);
    float32x4_t a = vabsq_f32(x), t = vdivq_f32(one, vfmaq_f32(one, vdupq_n_f32(EL_PHI_C), a));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(EL_PHI_P7), vdupq_n_f32(EL_PHI_P8), t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P6), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P5), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P4), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P3), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P2), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P1), p, t);
    p = vfmaq_f32(vdupq_n_f32(EL_PHI_P0), p, t);
    float32x4_t h = vmulq_f32(vmulq_f32(p, t), exp4(vmulq_f32(vmulq_n_f32(a, -0.5f), a)));
    return vfmsq_f32(vmaxq_f32(x, vdupq_n_f32(0.0f)), a, h);
}

static void gelu(const float *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, gelu_exact4(vld1q_f32(x + i)));
    for (; i < n; i++) y[i] = el_gelu_exact(x[i]);
}

static void gated(const float *gate, const float *up, float *y, int64_t n, int activation) {
    int64_t i = 0;
    if (activation == EL_ACT_GELU_TANH) {
        for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(gelu4(vld1q_f32(gate + i)), vld1q_f32(up + i)));
        for (; i < n; i++) y[i] = el_gelu(gate[i]) * up[i];
        return;
    }
    for (; i + 4 <= n; i += 4) {
        float32x4_t x = vld1q_f32(gate + i);
        vst1q_f32(y + i, vmulq_f32(over_one_plus_exp_minus(x, x), vld1q_f32(up + i)));
    }
    for (; i < n; i++) y[i] = el_silu(gate[i]) * up[i];
}

static void add(const float *a, const float *b, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vaddq_f32(vld1q_f32(a + i), vld1q_f32(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

INLINE float32x4_t tanh4(float32x4_t u) { /* el_tanhf */
    const float32x4_t one = vdupq_n_f32(1.0f), two = vdupq_n_f32(2.0f);
    float32x4_t z = vmulq_f32(u, u), p = vfmaq_f32(vdupq_n_f32(EL_TANH_C9), vdupq_n_f32(EL_TANH_C11), z);
    p = vfmaq_f32(vdupq_n_f32(EL_TANH_C7), p, z);
    p = vfmaq_f32(vdupq_n_f32(EL_TANH_C5), p, z);
    p = vfmaq_f32(vdupq_n_f32(EL_TANH_C3), p, z);
    float32x4_t small = vfmaq_f32(u, vmulq_f32(p, z), u);
    float32x4_t large = vsubq_f32(one, vdivq_f32(two, vaddq_f32(one, exp4(vmulq_f32(two, u)))));
    return vbslq_f32(vcltq_f32(vabsq_f32(u), vdupq_n_f32(EL_TANH_SMALL)), small, large);
}

static void softcap(const float *x, float *y, int64_t n, float cap) {
    float32x4_t c = vdupq_n_f32(cap);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(c, tanh4(vdivq_f32(vld1q_f32(x + i), c))));
    for (; i < n; i++) y[i] = cap * el_tanhf(x[i] / cap);
}

static void exp_sum(float *x, int64_t n, float max, float *sum) {
    float32x4_t acc[4], top = vdupq_n_f32(max);
    float lanes[EL_LANES];
    int64_t i = 0;
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_f32(0.0f);
    for (; i + EL_LANES <= n; i += EL_LANES)
        UNROLL for (int v = 0; v < 4; v++) {
            float32x4_t e = exp4(vsubq_f32(vld1q_f32(x + i + 4 * v), top));
            vst1q_f32(x + i + 4 * v, e);
            acc[v] = vaddq_f32(acc[v], e);
        }
    UNROLL for (int v = 0; v < 4; v++) vst1q_f32(lanes + 4 * v, acc[v]);
    for (int l = 0; i + l < n; l++) lanes[l] += x[i + l] = el_expf(x[i + l] - max);
    *sum = el_tree16(lanes);
}
