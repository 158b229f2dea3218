/* avx2_k_panels.h: the part of avx2.c for panels of Q4_K, Q5_K and Q6_K (formats/panels.md).
 *
 * As in the other panels a lane is a row. Sums of pairs stay int16 for as many quads as fit (4 bits: 8, 5 bits: 4,
 * 6 bits: 2), then one multiply-add with the 16 rows' scales takes them to int32.
 */

typedef __m256i k_sum[4][2]; /* [column][8 rows] */

INLINE void k_clear(k_sum s, const int C) {
    UNROLL for (int c = 0; c < C; c++) s[c][0] = s[c][1] = _mm256_setzero_si256();
}

/* s += w * the quad of k from `at` on, as sums of pairs */
INLINE void k_quad(k_sum s, __m256i w0, __m256i w1, const el_act *x, int64_t m0, int64_t at, const int C) {
    UNROLL for (int c = 0; c < C; c++) {
        __m256i q = _mm256_set1_epi32(word(x->q + (m0 + c) * x->k_pad + at));
        s[c][0] = _mm256_add_epi16(s[c][0], _mm256_maddubs_epi16(w0, q));
        s[c][1] = _mm256_add_epi16(s[c][1], _mm256_maddubs_epi16(w1, q));
    }
}

/* int16 pairs (group 2p, group 2p + 1) of 8 rows: one of the two, twice */
INLINE __m256i one_of_two(__m256i pairs, const int odd) {
    const __m256i even = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9,
                                          8, 9, 12, 13, 12, 13);
    return _mm256_shuffle_epi8(pairs, odd ? _mm256_add_epi8(even, _mm256_set1_epi8(2)) : even);
}

INLINE void k_scale(k_sum total, k_sum s, const __m256i *pairs, const int odd, const int C) {
    __m256i scale0 = one_of_two(pairs[0], odd), scale1 = one_of_two(pairs[1], odd);
    UNROLL for (int c = 0; c < C; c++) {
        total[c][0] = _mm256_add_epi32(total[c][0], _mm256_madd_epi16(s[c][0], scale0));
        total[c][1] = _mm256_add_epi32(total[c][1], _mm256_madd_epi16(s[c][1], scale1));
    }
}

INLINE void unsigned_pairs(const uint8_t *p, __m256i *out) { /* [16 rows][2] */
    out[0] = _mm256_cvtepu8_epi16(bytes16(p));
    out[1] = _mm256_cvtepu8_epi16(bytes16(p + 16));
}

INLINE void signed_pairs(const uint8_t *p, __m256i *out) {
    out[0] = _mm256_cvtepi8_epi16(bytes16(p));
    out[1] = _mm256_cvtepi8_epi16(bytes16(p + 16));
}

/* 32 k of 4 bits: the low or high nibbles of 8 lines */
INLINE void k_fours(k_sum s, const uint8_t *lines, const int shift, const el_act *x, int64_t m0, int64_t at, const int C) {
    k_clear(s, C);
    UNROLL2 for (int j = 0; j < 8; j++)
        k_quad(s, low_bits(bytes32(lines + j * 64), shift, 15), low_bits(bytes32(lines + j * 64 + 32), shift, 15), x, m0,
               at + j * 4, C);
}

/* 16 k of 5 bits: 4 lines of nibbles, and the fifth bits in bits 4 to 7 of `high` */
INLINE void k_fives(k_sum s, const uint8_t *lines, const int shift, const __m256i *high, const el_act *x, int64_t m0,
                    int64_t at, const int C) {
    const __m256i bit = _mm256_set1_epi8(16);
    __m256i h0 = high[0], h1 = high[1];
    k_clear(s, C);
    UNROLL for (int j = 0; j < 4; j++) {
        __m256i w0 = _mm256_or_si256(low_bits(bytes32(lines + j * 64), shift, 15), _mm256_and_si256(h0, bit));
        __m256i w1 = _mm256_or_si256(low_bits(bytes32(lines + j * 64 + 32), shift, 15), _mm256_and_si256(h1, bit));
        k_quad(s, w0, w1, x, m0, at + j * 4, C);
        h0 = _mm256_srli_epi16(h0, 1);
        h1 = _mm256_srli_epi16(h1, 1);
    }
}

/* 8 k of 6 bits: 2 lines of nibbles, and the upper bits in bits 4 to 7 of `high` */
INLINE void k_sixes8(k_sum s, const uint8_t *lines, const int shift, const __m256i *high, const el_act *x, int64_t m0,
                     int64_t at, const int C) {
    const __m256i two = _mm256_set1_epi8(0x30);
    k_clear(s, C);
    UNROLL for (int j = 0; j < 2; j++) {
        __m256i h0 = j ? _mm256_srli_epi16(high[0], 2) : high[0], h1 = j ? _mm256_srli_epi16(high[1], 2) : high[1];
        __m256i w0 = _mm256_or_si256(low_bits(bytes32(lines + j * 64), shift, 15), _mm256_and_si256(h0, two));
        __m256i w1 = _mm256_or_si256(low_bits(bytes32(lines + j * 64 + 32), shift, 15), _mm256_and_si256(h1, two));
        k_quad(s, w0, w1, x, m0, at + j * 4, C);
    }
}

INLINE void k_high(const uint8_t *line, const int up, __m256i *high) {
    high[0] = up ? _mm256_slli_epi16(bytes32(line), 4) : bytes32(line);
    high[1] = up ? _mm256_slli_epi16(bytes32(line + 32), 4) : bytes32(line + 32);
}

/* Activation sums of 16 k as int16: of 32 k (`wide`, 4 pairs) or as they are (8 pairs) */
INLINE void k_sum_pairs(const int32_t *sum, const int wide, int32_t *pairs) {
    __m256i a = bytes32(sum), b = bytes32(sum + 8);
    if (wide) {
        __m256i s = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
        s = _mm256_packs_epi32(s, s); /* lane 0: groups 0-3 twice, lane 1: groups 4-7 */
        _mm_storeu_si128((__m128i *)pairs, _mm256_castsi256_si128(_mm256_permute4x64_epi64(s, 0xd8)));
    } else
        _mm256_storeu_si256((__m256i *)pairs, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
}

/* acc -= (dmin * dx) * float(sum of minimum * activation sum) */
INLINE void k_minimums(__m256 *acc, const uint8_t *tile, const int32_t *sum, float dx) {
    int32_t pairs[4];
    __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, m[2];
    k_sum_pairs(sum, 1, pairs);
    UNROLL for (int p = 0; p < 4; p++) {
        unsigned_pairs(tile + 192 + p * 32, m);
        UNROLL for (int h = 0; h < 2; h++)
            low[h] = _mm256_add_epi32(low[h], _mm256_madd_epi16(m[h], _mm256_set1_epi32(pairs[p])));
    }
    UNROLL for (int h = 0; h < 2; h++) {
        __m256 factor = _mm256_mul_ps(halves8(tile + 32 + 16 * h), _mm256_set1_ps(dx));
        acc[h] = _mm256_fnmadd_ps(factor, _mm256_cvtepi32_ps(low[h]), acc[h]);
    }
}

INLINE void tile_q4_k(const uint8_t *tile, k_sum total, const el_act *x, int64_t m0, int64_t at, const int C) {
    __m256i pairs[2];
    k_sum s;
    for (int t = 0; t < 4; t++) {
        const uint8_t *lines = tile + 320 + t * 512;
        UNROLL for (int line = 0; line < 8; line++) prefetch(lines + AHEAD + 64 * line);
        unsigned_pairs(tile + 64 + t * 32, pairs);
        k_fours(s, lines, 0, x, m0, at + t * 64, C);
        k_scale(total, s, pairs, 0, C);
        k_fours(s, lines, 4, x, m0, at + t * 64 + 32, C);
        k_scale(total, s, pairs, 1, C);
    }
}

INLINE void tile_q5_k(const uint8_t *tile, k_sum total, const el_act *x, int64_t m0, int64_t at, const int C) {
    __m256i pairs[2], high[2];
    k_sum s;
    for (int t = 0; t < 4; t++) {
        const uint8_t *part = tile + 320 + t * 640, *lines = part + 128;
        UNROLL for (int line = 0; line < 10; line++) prefetch(part + AHEAD + 64 * line);
        unsigned_pairs(tile + 64 + t * 32, pairs);
        UNROLL for (int g = 0; g < 2; g++) UNROLL for (int h = 0; h < 2; h++) {
            k_high(part + g * 64, !h, high);
            k_fives(s, lines + h * 256, g * 4, high, x, m0, at + t * 64 + g * 32 + h * 16, C);
            k_scale(total, s, pairs, g, C);
        }
    }
}

INLINE void tile_q6_k(const uint8_t *tile, k_sum total, const el_act *x, int64_t m0, int64_t at, const int C) {
    __m256i pairs[2], high[2];
    k_sum s;
    for (int t = 0; t < 4; t++) {
        const uint8_t *part = tile + 320 + t * 768, *lines = part + 256;
        UNROLL for (int line = 0; line < 12; line++) prefetch(part + AHEAD + 64 * line);
        UNROLL for (int g = 0; g < 4; g++) {
            if (g % 2 == 0) signed_pairs(tile + 64 + t * 64 + g * 16, pairs);
            UNROLL for (int h = 0; h < 2; h++) {
                k_high(part + g * 64, !h, high);
                k_sixes8(s, lines + (g & 1) * 256 + h * 128, g / 2 * 4, high, x, m0, at + t * 64 + g * 16 + h * 8, C);
                k_scale(total, s, pairs, g & 1, C);
            }
        }
    }
}

/* total -= 32 * sum of scale * activation sum */
INLINE void q6_k_offset(const uint8_t *tile, const int32_t *sum, __m256i *total) {
    int32_t pairs[8];
    __m256i offset[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, scale[2];
    k_sum_pairs(sum, 0, pairs);
    UNROLL for (int p = 0; p < 8; p++) {
        signed_pairs(tile + 64 + p * 32, scale);
        UNROLL for (int h = 0; h < 2; h++)
            offset[h] = _mm256_add_epi32(offset[h], _mm256_madd_epi16(scale[h], _mm256_set1_epi32(pairs[p])));
    }
    UNROLL for (int h = 0; h < 2; h++) total[h] = _mm256_sub_epi32(total[h], _mm256_slli_epi32(offset[h], 5));
}

#define K_PANELS(NAME, TILE, BYTES, SIGNED)                                                                      \
    INLINE void NAME(const int sparse, el_group g, const el_act *x, int64_t m0, const int C, int64_t n_rows,     \
                     float *y, int64_t ldy) {                                                                    \
        int64_t ld = x->k_pad / 256;                                                                             \
        __m256 acc[4][2]; /* a lane is a row */                                                                  \
        UNROLL for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = _mm256_setzero_ps();                          \
        for (int64_t i = 0; i < g.n; i++, g.tile += BYTES) {                                                     \
            int64_t b = el_next_tile(sparse, &g, i);                                                             \
            k_sum total;                                                                                         \
            k_clear(total, C);                                                                                   \
            TILE(g.tile, total, x, m0, b * 256, C);                                                              \
            UNROLL for (int c = 0; c < C; c++) {                                                                 \
                int64_t at = (m0 + c) * ld + b;                                                                  \
                if (SIGNED) q6_k_offset(g.tile, x->sum + at * 16, total[c]);                                     \
                add_block(acc[c], g.tile, x->d[at], total[c][0], total[c][1]);                                   \
                if (!SIGNED) k_minimums(acc[c], g.tile, x->sum + at * 16, x->d[at]);                             \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);                       \
    }
K_PANELS(panel_q4_k, tile_q4_k, 2368, 0)
K_PANELS(panel_q5_k, tile_q5_k, 2880, 0)
K_PANELS(panel_q6_k, tile_q6_k, 3392, 1)
#define Q4_K_STEP(C) panel_q4_k(sparse, group, x, m0, C, n_rows, out, ldy)
#define Q5_K_STEP(C) panel_q5_k(sparse, group, x, m0, C, n_rows, out, ldy)
#define Q6_K_STEP(C) panel_q6_k(sparse, group, x, m0, C, n_rows, out, ldy)
PANELS(panels_q4_k, 0, Q4_K_STEP, 256, 2368, 0)
PANELS(sparse_q4_k, 1, Q4_K_STEP, 256, 2368, 0)
PANELS(panels_q5_k, 0, Q5_K_STEP, 256, 2880, 0)
PANELS(sparse_q5_k, 1, Q5_K_STEP, 256, 2880, 0)
PANELS(panels_q6_k, 0, Q6_K_STEP, 256, 3392, 0)
PANELS(sparse_q6_k, 1, Q6_K_STEP, 256, 3392, 0)
