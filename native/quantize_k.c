/* quantize_k.c: float32 to the K-quants. The search is in quantize_search.h, the bits are those of formats/blocks.md. */
#include "quantize_search.h"

static const el_grid scales_4 = EL_GRID(0, 15, el_wide), scales_6 = EL_GRID(0, 63, el_wide);
static const el_grid signed_6 = EL_GRID(-32, 31, el_wide), signed_8 = EL_GRID(-128, 127, el_wide);

/* Two bits of weight i: 32 bytes hold 128 weights, the lowest bits first; qs is zero before. */
static void put_two_bits(uint8_t *qs, int i, int q) { qs[i / 128 * 32 + i % 32] |= (uint8_t)((q & 3) << (i / 32 % 4 * 2)); }

static void put_one_bit(uint8_t *bits, int i, int q) { bits[i % 32] |= (uint8_t)((q & 1) << (i / 32)); }

/* Low four bits of weight i: of each 32 bytes first the low nibbles of all, then the high ones. */
static void put_nibble(uint8_t *qs, int i, int q) { qs[i / 64 * 32 + i % 32] |= (uint8_t)((q & 15) << (i / 32 % 2 * 4)); }

/* 6-bit scales and minimums of 8 groups in 12 bytes */
static void put_scales(const float *scale, const float *low, uint8_t *packed) {
    for (int g = 0; g < 4; g++) {
        int s = (int)scale[g], m = (int)low[g], s4 = (int)scale[g + 4], m4 = (int)low[g + 4];
        packed[g] = (uint8_t)(s | s4 >> 4 << 6);
        packed[4 + g] = (uint8_t)(m | m4 >> 4 << 6);
        packed[8 + g] = (uint8_t)((s4 & 15) | (m4 & 15) << 4);
    }
}

void el_search_q2_k(const float *x, const float *w, void *block) {
    el_block_q2_k *b = block;
    el_super best;
    el_affine_block(&scales_4, x, w, 16, 3, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    b->dmin = el_f32_to_f16(best.dmin);
    for (int g = 0; g < 16; g++) b->scales[g] = (uint8_t)((int)best.scale[g] | (int)best.low[g] << 4);
    for (int i = 0; i < EL_SUPER; i++) put_two_bits(b->qs, i, (int)best.code[i]);
}

void el_search_q3_k(const float *x, const float *w, void *block) {
    static const el_grid codes = EL_GRID(-4, 3, el_near);
    el_block_q3_k *b = block;
    el_super best;
    el_scaled_block(&codes, &signed_6, x, w, 16, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    for (int g = 0; g < 16; g++) {
        int s = (int)best.scale[g] + 32;
        b->scales[g % 8] |= (uint8_t)((s & 15) << (g / 8 * 4));
        b->scales[8 + g % 4] |= (uint8_t)(s >> 4 << (g / 4 * 2));
    }
    for (int i = 0; i < EL_SUPER; i++) {
        int q = (int)best.code[i] + 4;
        put_two_bits(b->qs, i, q);
        put_one_bit(b->hmask, i, q >> 2);
    }
}

void el_search_q4_k(const float *x, const float *w, void *block) {
    el_block_q4_k *b = block;
    el_super best;
    el_affine_block(&scales_6, x, w, 8, 15, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    b->dmin = el_f32_to_f16(best.dmin);
    put_scales(best.scale, best.low, b->scales);
    for (int i = 0; i < EL_SUPER; i++) put_nibble(b->qs, i, (int)best.code[i]);
}

void el_search_q5_k(const float *x, const float *w, void *block) {
    el_block_q5_k *b = block;
    el_super best;
    el_affine_block(&scales_6, x, w, 8, 31, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    b->dmin = el_f32_to_f16(best.dmin);
    put_scales(best.scale, best.low, b->scales);
    for (int i = 0; i < EL_SUPER; i++) {
        put_nibble(b->qs, i, (int)best.code[i]);
        put_one_bit(b->qh, i, (int)best.code[i] >> 4);
    }
}

void el_search_q6_k(const float *x, const float *w, void *block) {
    static const el_grid codes = EL_GRID(-32, 31, el_near);
    el_block_q6_k *b = block;
    el_super best;
    el_scaled_block(&codes, &signed_8, x, w, 16, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    for (int g = 0; g < 16; g++) b->scales[g] = (int8_t)best.scale[g];
    for (int i = 0; i < EL_SUPER; i++) { /* a half has 128 weights: 64 low nibbles, then their high ones */
        int q = (int)best.code[i] + 32;
        b->ql[i / 128 * 64 + i % 64] |= (uint8_t)((q & 15) << (i / 64 % 2 * 4));
        put_two_bits(b->qh, i, q >> 4);
    }
}
