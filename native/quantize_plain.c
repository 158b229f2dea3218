/* quantize_plain.c: float32 to the types that have no scale to choose: ternary (TQ1_0, TQ2_0) and MXFP4. The bytes are
 * those of ggml's reference code and of edgellm/quants/pack.py.
 */
#include "quantize.h"

/* Largest magnitude of a block; NaN if there is one. */
static float largest(const float *x, int n) {
    float best = 0.0f;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (isnan(a)) return a;
        if (a > best) best = a;
    }
    return best;
}

/* Codes 0, 1, 2 of the values -1, 0, 1 of 256 weights; returns the scale. NaN gives 0. */
static float ternary_codes(const float *x, uint8_t *q) {
    float d = largest(x, 256), inverse = 1.0f / d;
    if (!(d > 0.0f) || isinf(inverse)) inverse = 0.0f;
    for (int i = 0; i < 256; i++) {
        float v = x[i] * inverse; /* halves go away from zero */
        q[i] = (uint8_t)(v >= 0.5f ? 2 : v <= -0.5f ? 0 : 1);
    }
    return d;
}

/* n digits of base 3, `step` apart, the first one worth most: a fraction of 256, rounded up. */
static uint8_t digits(const uint8_t *q, int n, int step) {
    int sum = 0, power = 81;
    for (int i = 0; i < n; i++, power /= 3) sum += q[i * step] * power;
    return (uint8_t)((sum * 256 + 242) / 243);
}

void el_plain_tq1_0(const float *x, void *block) {
    el_block_tq1_0 *b = block;
    uint8_t q[256];
    b->d = el_f32_to_f16(ternary_codes(x, q));
    for (int i = 0; i < 32; i++) b->qs[i] = digits(q + i, 5, 32);
    for (int i = 0; i < 16; i++) b->qs[32 + i] = digits(q + 160 + i, 5, 16);
    for (int i = 0; i < 4; i++) b->qh[i] = digits(q + 240 + i, 4, 4);
}

void el_plain_tq2_0(const float *x, void *block) {
    el_block_tq2_0 *b = block;
    uint8_t q[256];
    b->d = el_f32_to_f16(ternary_codes(x, q));
    for (int i = 0; i < 64; i++) {
        const uint8_t *p = q + i / 32 * 128 + i % 32;
        b->qs[i] = (uint8_t)(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
    }
}

/* The exponent that puts `d` into the top binade of e2m1. The reference takes the logarithm as float32, which is a whole
 * number already just below a power of two; so does this. */
static uint8_t mx_exponent(float d) {
    if (!(d > 0.0f)) return 0;
    float e = floorf((float)log2((double)d)) + 125.0f;
    return (uint8_t)(e < 0.0f ? 0.0f : e > 254.0f ? 254.0f : e);
}

void el_plain_mxfp4(const float *x, void *block) {
    el_block_mxfp4 *b = block;
    uint8_t q[QK];
    b->e = mx_exponent(largest(x, QK));
    float half = el_e8m0_half(b->e);
    for (int i = 0; i < QK; i++) {
        q[i] = 0;
        float least = fabsf(half * (float)el_mxfp4_values[0] - x[i]);
        for (int c = 1; c < 16; c++) { /* the first of equally near ones */
            float far = fabsf(half * (float)el_mxfp4_values[c] - x[i]);
            if (far < least) least = far, q[i] = (uint8_t)c;
        }
    }
    el_put_nibbles(q, b->qs);
}
