/* quantize_iq.c: float32 to the types whose codes choose from the IQ4 codebook. The search is in quantize_search.h. */
#include "quantize_search.h"

static const el_grid codebook = EL_GRID_IQ4;

static int index_of(float value) {
    int at = 0;
    while (at < 15 && el_iq4_values[at] < (int)value) at++;
    return at;
}

void el_search_iq4_nl(const float *x, const float *w, void *block) {
    el_block_iq4_nl *b = block;
    float d = el_to_half(el_scale_search(&codebook, x, w, QK).s), c[QK];
    el_codes(&codebook, x, el_ratio(1.0f, d), QK, c);
    b->d = el_f32_to_f16(d);
    for (int i = 0; i < 16; i++) b->qs[i] = (uint8_t)(index_of(c[i]) | index_of(c[i + 16]) << 4);
}

void el_search_iq4_xs(const float *x, const float *w, void *block) {
    static const el_grid scales = EL_GRID(-32, 31, el_wide);
    el_block_iq4_xs *b = block;
    el_super best;
    el_scaled_block(&codebook, &scales, x, w, 8, &best);
    memset(b, 0, sizeof *b);
    b->d = el_f32_to_f16(best.d);
    for (int g = 0; g < 8; g++) {
        int s = (int)best.scale[g] + 32;
        b->scales_l[g / 2] |= (uint8_t)((s & 15) << (g % 2 * 4));
        b->scales_h |= (uint16_t)(s >> 4 << (2 * g));
        for (int i = 0; i < 16; i++)
            b->qs[g * 16 + i] = (uint8_t)(index_of(best.code[g * 32 + i]) | index_of(best.code[g * 32 + 16 + i]) << 4);
    }
}
