/* decode_k.h: blocks of 256 weights as integers, in plain C: what portable_k.h multiplies, and the row kernels of levels
 * that have no faster way. formats/blocks.toml describes the fields.
 */
#ifndef EL_DECODE_K_H
#define EL_DECODE_K_H

#include "arith.h"

typedef struct {
    int8_t q[256];
    int16_t scale[16], low[16]; /* one for 16 weights; low only in formats with minimums */
    float d, dmin;
} k_block;

/* Of each `run` bytes first the low nibbles are the next codes, then the high ones. */
static inline void k_nibbles(const uint8_t *qs, int run, int8_t *q) {
    for (int at = 0; at < 128; at += run)
        for (int i = 0; i < run; i++) {
            q[2 * at + i] = (int8_t)(qs[at + i] & 15);
            q[2 * at + run + i] = (int8_t)(qs[at + i] >> 4);
        }
}

/* 32 bytes hold 128 weights, the lowest two bits first. */
static inline void k_pairs(const uint8_t *qs, int offset, int8_t *q) {
    for (int i = 0; i < 256; i++) q[i] = (int8_t)((qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) - offset);
}

/* 6-bit scales and minimums of the 8 groups of Q4_K and Q5_K */
static inline void k_sixes(const uint8_t *packed, k_block *out) {
    for (int g = 0; g < 8; g++) {
        int scale = g < 4 ? packed[g] & 63 : (packed[4 + g] & 15) | packed[g - 4] >> 6 << 4;
        int low = g < 4 ? packed[4 + g] & 63 : packed[4 + g] >> 4 | packed[g] >> 6 << 4;
        out->scale[2 * g] = out->scale[2 * g + 1] = (int16_t)scale;
        out->low[2 * g] = out->low[2 * g + 1] = (int16_t)low;
    }
}

static inline void decode_q2_k(const el_block_q2_k *b, k_block *out) {
    k_pairs(b->qs, 0, out->q);
    for (int g = 0; g < 16; g++) {
        out->scale[g] = b->scales[g] & 15;
        out->low[g] = b->scales[g] >> 4;
    }
    out->d = el_f16_to_f32(b->d);
    out->dmin = el_f16_to_f32(b->dmin);
}

static inline void decode_q3_k(const el_block_q3_k *b, k_block *out) {
    k_pairs(b->qs, 4, out->q);
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)(out->q[i] + (b->hmask[i % 32] >> (i / 32) & 1) * 4);
    for (int g = 0; g < 16; g++)
        out->scale[g] = (int16_t)(((b->scales[g % 8] >> (g / 8 * 4) & 15) |
                                   (b->scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32);
    out->d = el_f16_to_f32(b->d);
}

static inline void decode_q4_k(const el_block_q4_k *b, k_block *out) {
    k_nibbles(b->qs, 32, out->q);
    k_sixes(b->scales, out);
    out->d = el_f16_to_f32(b->d);
    out->dmin = el_f16_to_f32(b->dmin);
}

static inline void decode_q5_k(const el_block_q5_k *b, k_block *out) {
    k_nibbles(b->qs, 32, out->q);
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)(out->q[i] | (b->qh[i % 32] >> (i / 32) & 1) << 4);
    k_sixes(b->scales, out);
    out->d = el_f16_to_f32(b->d);
    out->dmin = el_f16_to_f32(b->dmin);
}

static inline void decode_q6_k(const el_block_q6_k *b, k_block *out) {
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            int low = b->ql[half * 64 + i], next = b->ql[half * 64 + 32 + i], high = b->qh[half * 32 + i];
            int8_t *q = out->q + half * 128 + i;
            q[0] = (int8_t)(((low & 15) | (high & 3) << 4) - 32);
            q[32] = (int8_t)(((next & 15) | (high >> 2 & 3) << 4) - 32);
            q[64] = (int8_t)(((low >> 4) | (high >> 4 & 3) << 4) - 32);
            q[96] = (int8_t)(((next >> 4) | (high >> 6) << 4) - 32);
        }
    for (int g = 0; g < 16; g++) out->scale[g] = b->scales[g];
    out->d = el_f16_to_f32(b->d);
}

static inline void decode_iq4_xs(const el_block_iq4_xs *b, k_block *out) {
    k_nibbles(b->qs, 16, out->q);
    for (int i = 0; i < 256; i++) out->q[i] = el_iq4_codes[out->q[i]];
    for (int g = 0; g < 8; g++)
        out->scale[2 * g] = out->scale[2 * g + 1] =
            (int16_t)(((b->scales_l[g / 2] >> (g % 2 * 4) & 15) | (b->scales_h >> (2 * g) & 3) << 4) - 32);
    out->d = el_f16_to_f32(b->d);
}

/* Bytes are fractions of 256 in base 3, `n` digits each: of each `run` bytes first all first digits, ... */
static inline void k_ternary(const uint8_t *qs, int run, int n, int8_t *q) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    for (int j = 0; j < n; j++)
        for (int i = 0; i < run; i++) q[j * run + i] = (int8_t)(((uint8_t)(qs[i] * powers[j]) * 3 >> 8) - 1);
}

static inline void decode_tq1_0(const el_block_tq1_0 *b, k_block *out) {
    k_ternary(b->qs, 32, 5, out->q);
    k_ternary(b->qs + 32, 16, 5, out->q + 160);
    k_ternary(b->qh, 4, 4, out->q + 240);
    for (int g = 0; g < 16; g++) out->scale[g] = 1;
    out->d = el_f16_to_f32(b->d);
}

static inline void decode_tq2_0(const el_block_tq2_0 *b, k_block *out) {
    k_pairs(b->qs, 1, out->q);
    for (int g = 0; g < 16; g++) out->scale[g] = 1;
    out->d = el_f16_to_f32(b->d);
}

#endif
