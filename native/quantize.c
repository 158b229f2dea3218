/* quantize.c: float32 to the block formats, with the bits of ggml's reference quantisers (as the
 * `gguf` Python package writes them). Float16 values round to nearest even.
 */
#include "kernels.h"
#include "quantize.h"

/* ---- float32 to blocks ----------------------------------------------------------------------------------- */
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

static void put_nibbles(const uint8_t *q, uint8_t *qs) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

static void put_fifth_bits(const uint8_t *q, uint8_t *qh) {
    for (int byte = 0; byte < 4; byte++) {
        int bits = 0;
        for (int i = 0; i < 8; i++) bits |= (q[byte * 8 + i] >> 4) << i;
        qh[byte] = (uint8_t)bits;
    }
}

static void to_q4_0(const float *x, el_block_q4_0 *b) {
    float d;
    uint8_t q[QK];
    codes_signed(x, 8, &d, q);
    b->d = el_f32_to_f16(d);
    put_nibbles(q, b->qs);
}

static void to_q4_1(const float *x, el_block_q4_1 *b) {
    float d, m;
    uint8_t q[QK];
    codes_above(x, 15, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    put_nibbles(q, b->qs);
}

static void to_q5_0(const float *x, el_block_q5_0 *b) {
    float d;
    uint8_t q[QK];
    codes_signed(x, 16, &d, q);
    b->d = el_f32_to_f16(d);
    put_nibbles(q, b->qs);
    put_fifth_bits(q, b->qh);
}

static void to_q5_1(const float *x, el_block_q5_1 *b) {
    float d, m;
    uint8_t q[QK];
    codes_above(x, 31, &d, &m, q);
    b->d = el_f32_to_f16(d);
    b->m = el_f32_to_f16(m);
    put_nibbles(q, b->qs);
    put_fifth_bits(q, b->qh);
}

static void to_q8_0(const float *x, el_block_q8_0 *b) {
    float d = fabsf(extreme(x)) / 127.0f, id = inverse(d);
    b->d = el_f32_to_f16(d);
    for (int i = 0; i < QK; i++) {
        float v = x[i] * id, a = fabsf(v);
        int whole = a < 127.0f ? (int)a : 127; /* NaN too */
        if (a < 127.0f && a - (float)whole >= 0.5f) whole++; /* half away from zero */
        b->qs[i] = (int8_t)(v < 0.0f ? -whole : whole);
    }
}

static uint16_t to_bf16(float f) { /* to nearest even; a NaN stays one and becomes quiet */
    uint32_t x;
    memcpy(&x, &f, 4);
    if ((x & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(x >> 16 | 64u);
    return (uint16_t)(((uint64_t)x + 0x7fffu + (x >> 16 & 1u)) >> 16);
}

/* ---- the call --------------------------------------------------------------------------------------------- */
int64_t el_count_of(int type, int64_t rows, int64_t k) {
    int64_t bytes = el_row_bytes(type, k);
    if (bytes < 0 || rows < 0 || k > INT64_MAX / 8 || (k && rows > INT64_MAX / 8 / k)) return -1;
    return rows * k;
}

int el_quantize(int type, const float *src, void *dst, int64_t rows, int64_t k) {
    int64_t n = el_count_of(type, rows, k);
    if (n < 0 || (n && (!src || !dst))) return EL_E_ARGUMENT;
    switch (type) {
    case EL_TYPE_F32:
        if (n) memcpy(dst, src, (size_t)n * 4);
        return EL_OK;
    BLOCKS(F16, ((el_block_f16 *)dst)[i].x = el_f32_to_f16(src[i]), 1)
    BLOCKS(BF16, ((el_block_bf16 *)dst)[i].x = to_bf16(src[i]), 1)
    BLOCKS(Q4_0, to_q4_0(src + i * QK, (el_block_q4_0 *)dst + i), QK)
    BLOCKS(Q4_1, to_q4_1(src + i * QK, (el_block_q4_1 *)dst + i), QK)
    BLOCKS(Q5_0, to_q5_0(src + i * QK, (el_block_q5_0 *)dst + i), QK)
    BLOCKS(Q5_1, to_q5_1(src + i * QK, (el_block_q5_1 *)dst + i), QK)
    BLOCKS(Q8_0, to_q8_0(src + i * QK, (el_block_q8_0 *)dst + i), QK)
    default: return EL_E_UNSUPPORTED;
    }
}
