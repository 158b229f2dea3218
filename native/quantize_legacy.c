/* quantize_legacy.c: float32 to Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. Without importance with the bits of ggml's reference
 * quantisers (as the `gguf` Python package writes them); with it by the search of quantize_search.h.
 */
#include "quantize_search.h"

/* The value of largest magnitude, the first of equals; the formats without a minimum keep its sign. */
static float extreme(const float *x) {
    float best = x[0];
    for (int i = 1; i < QK; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

static void range(const float *x, float *low, float *high) {
    *low = *high = x[0];
    for (int i = 1; i < QK; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

static float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

/* Truncated and clamped to 0 .. top; not-a-number gives 0. */
static uint8_t code(float v, int top) {
    if (!(v > 0.0f)) return 0;
    return v >= (float)top ? (uint8_t)top : (uint8_t)v;
}

static void codes_signed(const float *x, int half, float *d, uint8_t *q) {
    *d = extreme(x) / (float)-half;
    float id = inverse(*d);
    for (int i = 0; i < QK; i++) q[i] = code(x[i] * id + ((float)half + 0.5f), 2 * half - 1);
}

static void codes_above(const float *x, int top, float *d, float *m, uint8_t *q) {
    float high;
    range(x, m, &high);
    *d = (high - *m) / (float)top;
    float id = inverse(*d);
    for (int i = 0; i < QK; i++) q[i] = code((x[i] - *m) * id + 0.5f, top);
}

void el_put_nibbles(const uint8_t *q, uint8_t *qs) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

void el_put_fifth_bits(const uint8_t *q, uint8_t *qh) {
    for (int byte = 0; byte < 4; byte++) {
        int bits = 0;
        for (int i = 0; i < 8; i++) bits |= (q[byte * 8 + i] >> 4) << i;
        qh[byte] = (uint8_t)bits;
    }
}

void el_plain_q4_0(const float *x, void *block) {
    el_block_q4_0 *b = block;
    float d;
    uint8_t q[QK];
    codes_signed(x, 8, &d, q);
    b->d = el_f32_to_f16(d);
    el_put_nibbles(q, b->qs);
}

void el_plain_q4_1(const float *x, void *block) {
    el_block_q4_1 *b = block;
    float d, m;
    uint8_t q[QK];
    codes_above(x, 15, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    el_put_nibbles(q, b->qs);
}

void el_plain_q5_0(const float *x, void *block) {
    el_block_q5_0 *b = block;
    float d;
    uint8_t q[QK];
    codes_signed(x, 16, &d, q);
    b->d = el_f32_to_f16(d);
    el_put_nibbles(q, b->qs);
    el_put_fifth_bits(q, b->qh);
}

void el_plain_q5_1(const float *x, void *block) {
    el_block_q5_1 *b = block;
    float d, m;
    uint8_t q[QK];
    codes_above(x, 31, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    el_put_nibbles(q, b->qs);
    el_put_fifth_bits(q, b->qh);
}

void el_plain_q8_0(const float *x, void *block) {
    el_block_q8_0 *b = block;
    float d = fabsf(extreme(x)) / 127.0f, id = inverse(d);
    b->d = el_f32_to_f16(d);
    for (int i = 0; i < QK; i++) {
        float v = x[i] * id, a = fabsf(v);
        int whole = a < 127.0f ? (int)a : 127; /* NaN too */
        if (a < 127.0f && a - (float)whole >= 0.5f) whole++; /* half away from zero */
        b->qs[i] = (int8_t)(v < 0.0f ? -whole : whole);
    }
}

/* ---- with importance: the scale of least error -------------------------------------------------------------------- */
static float scaled_32(const float *x, const float *w, const el_grid *g, int shift, uint8_t *q) {
    float d = el_to_half(el_scale_search(g, x, w, QK).s), c[QK];
    el_codes(g, x, el_ratio(1.0f, d), QK, c);
    for (int i = 0; i < QK; i++) q[i] = (uint8_t)((int)c[i] + shift);
    return d;
}

static void affine_32(const float *x, const float *w, int top, float *d, float *m, uint8_t *q) {
    float sum_w;
    el_fit fit = el_affine_search(x, w, QK, top, 1, &sum_w);
    *d = el_to_half(fit.s);
    *m = el_to_half(-fit.m);
    float inv = el_ratio(1.0f, *d);
    for (int i = 0; i < QK; i++) q[i] = (uint8_t)el_nearest((x[i] - *m) * inv, 0.0f, (float)top);
}

void el_search_q4_0(const float *x, const float *w, void *block) {
    static const el_grid g = EL_GRID(-8, 7, el_near);
    el_block_q4_0 *b = block;
    uint8_t q[QK];
    b->d = el_f32_to_f16(scaled_32(x, w, &g, 8, q));
    el_put_nibbles(q, b->qs);
}

void el_search_q4_1(const float *x, const float *w, void *block) {
    el_block_q4_1 *b = block;
    float d, m;
    uint8_t q[QK];
    affine_32(x, w, 15, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    el_put_nibbles(q, b->qs);
}

void el_search_q5_0(const float *x, const float *w, void *block) {
    static const el_grid g = EL_GRID(-16, 15, el_near);
    el_block_q5_0 *b = block;
    uint8_t q[QK];
    b->d = el_f32_to_f16(scaled_32(x, w, &g, 16, q));
    el_put_nibbles(q, b->qs);
    el_put_fifth_bits(q, b->qh);
}

void el_search_q5_1(const float *x, const float *w, void *block) {
    el_block_q5_1 *b = block;
    float d, m;
    uint8_t q[QK];
    affine_32(x, w, 31, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    el_put_nibbles(q, b->qs);
    el_put_fifth_bits(q, b->qh);
}

void el_search_q8_0(const float *x, const float *w, void *block) {
    static const el_grid g = EL_GRID(-127, 127, el_near);
    el_block_q8_0 *b = block;
    uint8_t q[QK];
    b->d = el_f32_to_f16(scaled_32(x, w, &g, 128, q));
    for (int i = 0; i < QK; i++) b->qs[i] = (int8_t)(q[i] - 128);
}
