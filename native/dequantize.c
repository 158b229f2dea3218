/* dequantize.c: the block formats to float32, with the bits of ggml's code (as the `gguf` Python package gives them).
 *
 * formats/blocks.md has the pictures; edgellm/quants/unpack.py is the slow twin. Every operation rounds on its own.
 */
#include "kernels.h"
#include "quantize.h"

const int8_t el_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
/* twice the values of the e2m1 float (OCP Microscaling Formats 1.0) */
const int8_t el_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static int nibble(const uint8_t *qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }
static int fifth(const uint8_t *qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }

static void of_q4_0(const el_block_q4_0 *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < QK; i++) y[i] = d * (float)(nibble(b->qs, i) - 8);
}

static void of_q4_1(const el_block_q4_1 *b, float *y) {
    float d = el_f16_to_f32(b->d), m = el_f16_to_f32(b->m);
    for (int i = 0; i < QK; i++) y[i] = d * (float)nibble(b->qs, i) + m;
}

static void of_q5_0(const el_block_q5_0 *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < QK; i++) y[i] = d * (float)((nibble(b->qs, i) | fifth(b->qh, i)) - 16);
}

static void of_q5_1(const el_block_q5_1 *b, float *y) {
    float d = el_f16_to_f32(b->d), m = el_f16_to_f32(b->m);
    for (int i = 0; i < QK; i++) y[i] = d * (float)(nibble(b->qs, i) | fifth(b->qh, i)) + m;
}

static void of_q8_0(const el_block_q8_0 *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < QK; i++) y[i] = d * (float)b->qs[i];
}

static void of_q6_k(const el_block_q6_k *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, part = i % 128 / 32, at = i % 32; /* part: which quarter of the half */
        int low = b->ql[half * 64 + (part & 1) * 32 + at] >> (part / 2 * 4) & 15;
        int q = (low | (b->qh[half * 32 + at] >> (2 * part) & 3) << 4) - 32;
        y[i] = d * (float)b->scales[i / 16] * (float)q;
    }
}

/* Code i of a run-length layout: of each `run` bytes first the low nibbles of all, then the high ones. */
static int nibble_run(const uint8_t *qs, int i, int run) {
    return qs[i / (2 * run) * run + i % run] >> (i / run % 2 * 4) & 15;
}

/* Two bits of weight i: 32 bytes hold 128 weights, the lowest bits first. */
static int two_bits(const uint8_t *qs, int i) { return qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3; }

static int one_bit(const uint8_t *bits, int i) { return bits[i % 32] >> (i / 32) & 1; }

static void of_q2_k(const el_block_q2_k *b, float *y) {
    float d = el_f16_to_f32(b->d), dmin = el_f16_to_f32(b->dmin);
    for (int g = 0; g < 16; g++) {
        float step = d * (float)(b->scales[g] & 15), low = dmin * (float)(b->scales[g] >> 4);
        for (int i = g * 16; i < g * 16 + 16; i++) y[i] = step * (float)two_bits(b->qs, i) - low;
    }
}

static void of_q3_k(const el_block_q3_k *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int g = 0; g < 16; g++) {
        int scale = (b->scales[g % 8] >> (g / 8 * 4) & 15) | (b->scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        float step = d * (float)(scale - 32);
        for (int i = g * 16; i < g * 16 + 16; i++)
            y[i] = step * (float)(two_bits(b->qs, i) + 4 * one_bit(b->hmask, i) - 4);
    }
}

/* 6-bit scale and minimum of group g of Q4_K and Q5_K */
static void scale_and_min(const uint8_t *packed, int g, int *scale, int *low) {
    if (g < 4) {
        *scale = packed[g] & 63;
        *low = packed[4 + g] & 63;
    } else {
        *scale = (packed[4 + g] & 15) | packed[g - 4] >> 6 << 4;
        *low = packed[4 + g] >> 4 | packed[g] >> 6 << 4;
    }
}

static void of_q4_k(const el_block_q4_k *b, float *y) {
    float d = el_f16_to_f32(b->d), dmin = el_f16_to_f32(b->dmin);
    for (int g = 0; g < 8; g++) {
        int scale, low;
        scale_and_min(b->scales, g, &scale, &low);
        float step = d * (float)scale, offset = dmin * (float)low;
        for (int i = g * 32; i < g * 32 + 32; i++) y[i] = step * (float)nibble_run(b->qs, i, 32) - offset;
    }
}

static void of_q5_k(const el_block_q5_k *b, float *y) {
    float d = el_f16_to_f32(b->d), dmin = el_f16_to_f32(b->dmin);
    for (int g = 0; g < 8; g++) {
        int scale, low;
        scale_and_min(b->scales, g, &scale, &low);
        float step = d * (float)scale, offset = dmin * (float)low;
        for (int i = g * 32; i < g * 32 + 32; i++)
            y[i] = step * (float)(nibble_run(b->qs, i, 32) | one_bit(b->qh, i) << 4) - offset;
    }
}

static void of_iq4_nl(const el_block_iq4_nl *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < QK; i++) y[i] = d * (float)el_iq4_values[nibble(b->qs, i)];
}

static void of_iq4_xs(const el_block_iq4_xs *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int g = 0; g < 8; g++) {
        int scale = (b->scales_l[g / 2] >> (g % 2 * 4) & 15) | (b->scales_h >> (2 * g) & 3) << 4;
        float step = d * (float)(scale - 32);
        for (int i = g * 32; i < g * 32 + 32; i++) y[i] = step * (float)el_iq4_values[nibble_run(b->qs, i, 16)];
    }
}

float el_e8m0_half(uint8_t e) {
    uint32_t bits = e < 2 ? (uint32_t)0x200000 << e : (uint32_t)(e - 1) << 23;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static void of_mxfp4(const el_block_mxfp4 *b, float *y) {
    float d = el_e8m0_half(b->e);
    for (int i = 0; i < QK; i++) y[i] = d * (float)el_mxfp4_values[nibble(b->qs, i)];
}

/* Digit j of a byte that is a fraction of 256 in base 3: -1, 0 or 1. */
static float ternary(uint8_t q, int j) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (float)(((int)(uint8_t)(q * powers[j]) * 3 >> 8) - 1);
}

static void of_tq1_0(const el_block_tq1_0 *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < 160; i++) y[i] = d * ternary(b->qs[i % 32], i / 32);
    for (int i = 0; i < 80; i++) y[160 + i] = d * ternary(b->qs[32 + i % 16], i / 16);
    for (int i = 0; i < 16; i++) y[240 + i] = d * ternary(b->qh[i % 4], i / 4);
}

static void of_tq2_0(const el_block_tq2_0 *b, float *y) {
    float d = el_f16_to_f32(b->d);
    for (int i = 0; i < 256; i++) y[i] = d * (float)(two_bits(b->qs, i) - 1);
}

/* ---- the call ---------------------------------------------------------------------------------------------- */
int el_dequantize(int type, const void *src, float *dst, int64_t rows, int64_t k) {
    int64_t n = el_count_of(type, rows, k);
    if (n < 0 || (n && (!src || !dst))) return EL_E_ARGUMENT;
    switch (type) {
    case EL_TYPE_F32:
        if (n) memcpy(dst, src, (size_t)n * 4);
        return EL_OK;
    BLOCKS(F16, dst[i] = el_f16_to_f32(((const el_block_f16 *)src)[i].x), 1)
    BLOCKS(BF16, dst[i] = el_bf16_to_f32(((const el_block_bf16 *)src)[i].x), 1)
    BLOCKS(Q4_0, of_q4_0((const el_block_q4_0 *)src + i, dst + i * QK), QK)
    BLOCKS(Q4_1, of_q4_1((const el_block_q4_1 *)src + i, dst + i * QK), QK)
    BLOCKS(Q5_0, of_q5_0((const el_block_q5_0 *)src + i, dst + i * QK), QK)
    BLOCKS(Q5_1, of_q5_1((const el_block_q5_1 *)src + i, dst + i * QK), QK)
    BLOCKS(Q8_0, of_q8_0((const el_block_q8_0 *)src + i, dst + i * QK), QK)
    BLOCKS(Q2_K, of_q2_k((const el_block_q2_k *)src + i, dst + i * 256), 256)
    BLOCKS(Q3_K, of_q3_k((const el_block_q3_k *)src + i, dst + i * 256), 256)
    BLOCKS(Q4_K, of_q4_k((const el_block_q4_k *)src + i, dst + i * 256), 256)
    BLOCKS(Q5_K, of_q5_k((const el_block_q5_k *)src + i, dst + i * 256), 256)
    BLOCKS(Q6_K, of_q6_k((const el_block_q6_k *)src + i, dst + i * 256), 256)
    BLOCKS(IQ4_NL, of_iq4_nl((const el_block_iq4_nl *)src + i, dst + i * QK), QK)
    BLOCKS(IQ4_XS, of_iq4_xs((const el_block_iq4_xs *)src + i, dst + i * 256), 256)
    BLOCKS(TQ1_0, of_tq1_0((const el_block_tq1_0 *)src + i, dst + i * 256), 256)
    BLOCKS(TQ2_0, of_tq2_0((const el_block_tq2_0 *)src + i, dst + i * 256), 256)
    BLOCKS(MXFP4, of_mxfp4((const el_block_mxfp4 *)src + i, dst + i * QK), QK)
    default: return EL_E_UNSUPPORTED;
    }
}
