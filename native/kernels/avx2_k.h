/* avx2_k.h: the part of avx2.c for formats with blocks of 256 weights, in rows and in panels.
 *
 * Codes stay unsigned where they can: pairs of products fit an int16 (2 * 63 * 127 < 2^15) and are multiplied with the
 * groups' scales as int16 pairs into int32. The codes' offset and the minimums go through the activations' sums per 16.
 */

/* ---- rows: a decoder gives 8 vectors of 32 codes, and 16 scales and minimums as int8 ------------------------------------ */
typedef struct {
    __m256i w[8];
    __m128i scale, low;
} k_codes;

INLINE __m256i low_bits(__m256i v, const int shift, const int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)mask));
}

INLINE uint32_t load_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

INLINE __m128i twice_each(uint32_t first, uint32_t second) { /* 8 bytes, each for two groups of 16 */
    __m128i v = _mm_set_epi32(0, 0, (int32_t)second, (int32_t)first);
    return _mm_unpacklo_epi8(v, v);
}

INLINE void k_pairs(const uint8_t *qs, __m256i *w) {
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i v = bytes32(qs + half * 32);
        w[half * 4 + 0] = low_bits(v, 0, 3);
        w[half * 4 + 1] = low_bits(v, 2, 3);
        w[half * 4 + 2] = low_bits(v, 4, 3);
        w[half * 4 + 3] = low_bits(v, 6, 3);
    }
}

INLINE void k_nibbles(const uint8_t *qs, __m256i *w) {
    UNROLL for (int t = 0; t < 4; t++) {
        __m256i v = bytes32(qs + t * 32);
        w[2 * t] = low_bits(v, 0, 15);
        w[2 * t + 1] = low_bits(v, 4, 15);
    }
}

/* w[g] |= bit g of the 32 bytes, as the bit of value `bit` */
INLINE void k_high_bits(const uint8_t *bits, const int bit, __m256i *w) {
    __m256i v = bytes32(bits);
    UNROLL for (int g = 0; g < 8; g++) {
        __m256i set = low_bits(v, g, 1);
        w[g] = _mm256_or_si256(w[g], _mm256_slli_epi16(set, bit));
    }
}

INLINE void k_sixes(const uint8_t *packed, k_codes *out) {
    uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
    out->scale = twice_each(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030));
    out->low = twice_each(b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
}

INLINE void decode_q2_k(const el_block_q2_k *b, k_codes *out) {
    __m128i both = bytes16(b->scales), mask = _mm_set1_epi8(15);
    k_pairs(b->qs, out->w);
    out->scale = _mm_and_si128(both, mask);
    out->low = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
}

INLINE void decode_q3_k(const el_block_q3_k *b, k_codes *out) {
    uint32_t l0 = load_u32(b->scales), l1 = load_u32(b->scales + 4), h = load_u32(b->scales + 8);
    k_pairs(b->qs, out->w);
    k_high_bits(b->hmask, 2, out->w);
    __m128i low = _mm_set_epi32((int32_t)(l1 >> 4 & 0x0f0f0f0f), (int32_t)(l0 >> 4 & 0x0f0f0f0f),
                                (int32_t)(l1 & 0x0f0f0f0f), (int32_t)(l0 & 0x0f0f0f0f));
    __m128i high = _mm_set_epi32((int32_t)(h >> 2 & 0x30303030), (int32_t)(h & 0x30303030),
                                 (int32_t)(h << 2 & 0x30303030), (int32_t)(h << 4 & 0x30303030));
    out->scale = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
}

INLINE void decode_q4_k(const el_block_q4_k *b, k_codes *out) {
    k_nibbles(b->qs, out->w);
    k_sixes(b->scales, out);
}

INLINE void decode_q5_k(const el_block_q5_k *b, k_codes *out) {
    k_nibbles(b->qs, out->w);
    k_high_bits(b->qh, 4, out->w);
    k_sixes(b->scales, out);
}

INLINE void decode_q6_k(const el_block_q6_k *b, k_codes *out) {
    const __m256i two = _mm256_set1_epi8(0x30);
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i low = bytes32(b->ql + half * 64), next = bytes32(b->ql + half * 64 + 32);
        __m256i high = bytes32(b->qh + half * 32), *w = out->w + half * 4;
        w[0] = _mm256_or_si256(low_bits(low, 0, 15), _mm256_and_si256(_mm256_slli_epi16(high, 4), two));
        w[1] = _mm256_or_si256(low_bits(next, 0, 15), _mm256_and_si256(_mm256_slli_epi16(high, 2), two));
        w[2] = _mm256_or_si256(low_bits(low, 4, 15), _mm256_and_si256(high, two));
        w[3] = _mm256_or_si256(low_bits(next, 4, 15), _mm256_and_si256(_mm256_srli_epi16(high, 2), two));
    }
    out->scale = bytes16(b->scales);
}

INLINE void decode_iq4_xs(const el_block_iq4_xs *b, k_codes *out) {
    uint32_t l = load_u32(b->scales_l), h = b->scales_h;
    UNROLL for (int g = 0; g < 8; g++) out->w[g] = codebook(nibbles(b->qs + g * 16), el_iq4_codes);
    /* low nibbles of bytes 0-3 are groups 0, 2, 4, 6, high ones 1, 3, 5, 7; two high bits of each in turn */
    __m128i even = _mm_cvtsi32_si128((int32_t)(l & 0x0f0f0f0f)), odd = _mm_cvtsi32_si128((int32_t)(l >> 4 & 0x0f0f0f0f));
    uint32_t h0 = (h & 3) | (h & 12) << 6 | (h & 48) << 12 | (h & 192) << 18, hh = h >> 8;
    uint32_t h1 = (hh & 3) | (hh & 12) << 6 | (hh & 48) << 12 | (hh & 192) << 18;
    __m128i v = _mm_or_si128(_mm_unpacklo_epi8(even, odd), _mm_set_epi32(0, 0, (int32_t)(h1 << 4), (int32_t)(h0 << 4)));
    v = _mm_sub_epi8(v, _mm_set1_epi8(32));
    out->scale = _mm_unpacklo_epi8(v, v);
}

/* (v * 3) >> 8 of unsigned bytes, 0 to 2: v is past a third, past two thirds */
#define TERNARY(BITS)                                                                                            \
    INLINE __m##BITS##i ternary##BITS(__m##BITS##i v) {                                                          \
        __m##BITS##i a = MM(BITS, cmpeq_epi8)(MM(BITS, max_epu8)(v, MM(BITS, set1_epi8)(86)), v);                \
        __m##BITS##i b = MM(BITS, cmpeq_epi8)(MM(BITS, max_epu8)(v, MM(BITS, set1_epi8)((char)171)), v);         \
        return MM(BITS, abs_epi8)(MM(BITS, add_epi8)(a, b));                                                     \
    }                                                                                                            \
    INLINE __m##BITS##i thrice##BITS(__m##BITS##i v) {                                                           \
        return MM(BITS, add_epi8)(v, MM(BITS, add_epi8)(v, v));                                                  \
    }
#define MM(BITS, NAME) MM##BITS(NAME)
#define MM128(NAME) _mm_##NAME
#define MM256(NAME) _mm256_##NAME
TERNARY(128)
TERNARY(256)

INLINE void decode_tq1_0(const el_block_tq1_0 *b, k_codes *out) {
    __m256i v = bytes32(b->qs);
    __m128i half = bytes16(b->qs + 32), word = _mm_cvtsi32_si128((int32_t)load_u32(b->qh)), d[5], tail[4];
    UNROLL for (int j = 0; j < 5; j++) {
        out->w[j] = ternary256(v);
        d[j] = ternary128(half);
        v = thrice256(v);
        half = thrice128(half);
    }
    UNROLL for (int j = 0; j < 4; j++) {
        tail[j] = ternary128(word);
        word = thrice128(word);
    }
    __m128i last = _mm_unpacklo_epi64(_mm_unpacklo_epi32(tail[0], tail[1]), _mm_unpacklo_epi32(tail[2], tail[3]));
    out->w[5] = _mm256_set_m128i(d[1], d[0]);
    out->w[6] = _mm256_set_m128i(d[3], d[2]);
    out->w[7] = _mm256_set_m128i(last, d[4]);
    out->scale = _mm_set1_epi8(1);
}

INLINE void decode_tq2_0(const el_block_tq2_0 *b, k_codes *out) {
    k_pairs(b->qs, out->w);
    out->scale = _mm_set1_epi8(1);
}

INLINE int32_t total8(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* sum over the 16 groups of factor * activation sum, as 8 partial sums */
INLINE __m256i k_sums(const int32_t *sum, __m128i factor) {
    __m256i s = _mm256_packs_epi32(bytes32(sum), bytes32(sum + 8)); /* |sum| <= 2032 */
    return _mm256_madd_epi16(_mm256_permute4x64_epi64(s, 0xd8), _mm256_cvtepi8_epi16(factor));
}

INLINE float fma_ss(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

INLINE float half_of(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

INLINE __m256i pairs_unsigned(__m256i w, __m256i x) { return _mm256_maddubs_epi16(w, x); }
INLINE __m256i pairs_signed(__m256i w, __m256i x) { return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }

/* totals[c] = sum of scale * dot of one block, as 8 partial sums; the scales of groups 2j and 2j + 1 go to the two lanes */
#define K_TOTALS(codes, DOT, OFFSET)                                                                             \
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);                \
    __m256i by_lane = _mm256_cvtepi8_epi16(_mm_shuffle_epi8((codes).scale, even_odd)), total[4];                 \
    UNROLL for (int c = 0; c < C; c++) total[c] = _mm256_setzero_si256();                                        \
    UNROLL for (int j = 0; j < 8; j++) {                                                                         \
        __m256i scale = _mm256_shuffle_epi8(by_lane, _mm256_set1_epi16((int16_t)((2 * j + 1) << 8 | 2 * j)));    \
        UNROLL for (int c = 0; c < C; c++) {                                                                     \
            __m256i products = DOT((codes).w[j], bytes32(x->q + (m0 + c) * x->k_pad + b * 256 + j * 32));        \
            total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(products, scale));                           \
        }                                                                                                        \
    }                                                                                                            \
    UNROLL for (int c = 0; OFFSET && c < C; c++) {                                                               \
        __m256i offset = k_sums(x->sum + (m0 + c) * (x->k_pad / 16) + b * 16, (codes).scale);                    \
        total[c] = _mm256_sub_epi32(total[c], _mm256_mullo_epi32(offset, _mm256_set1_epi32(OFFSET)));            \
    }

#define K_ROWS(NAME, TYPE, DOT, OFFSET, MIN)                                                                     \
    INLINE void NAME##_tile(const el_block_##TYPE *row, const el_act *x, int64_t m0, const int C, float *y,      \
                            int64_t ldy) {                                                                       \
        int64_t n_blocks = x->k / 256;                                                                           \
        float acc[4] = {0};                                                                                      \
        for (int64_t b = 0; b < n_blocks; b++) {                                                                 \
            const el_block_##TYPE *block = row + b;                                                              \
            for (size_t at = 0; at < sizeof *block; at += 64) prefetch((const uint8_t *)block + AHEAD + at);     \
            k_codes codes;                                                                                       \
            decode_##TYPE(block, &codes);                                                                        \
            K_TOTALS(codes, DOT, OFFSET)                                                                         \
            UNROLL for (int c = 0; c < C; c++) {                                                                 \
                float dx = x->d[(m0 + c) * (x->k_pad / 256) + b];                                                \
                acc[c] = fma_ss(half_of(block->d) * dx, (float)total8(total[c]), acc[c]);                        \
                MIN                                                                                              \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int c = 0; c < C; c++) y[(m0 + c) * ldy] = acc[c];                                           \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        for (int64_t r = row0; r < row1; r++) {                                                                  \
            const el_block_##TYPE *row = (const el_block_##TYPE *)w + r * (x->k / 256);                          \
            float *out = y + r - row0;                                                                           \
            COLUMN_TILES(NAME##_STEP)                                                                            \
        }                                                                                                        \
    }

#define NO_MIN
#define WITH_MIN                                                                                                 \
    {                                                                                                            \
        int32_t low = total8(k_sums(x->sum + (m0 + c) * (x->k_pad / 16) + b * 16, codes.low));                   \
        acc[c] = fma_ss(-(half_of(block->dmin) * dx), (float)low, acc[c]);                                       \
    }

#define rows_q2_k_STEP(C) rows_q2_k_tile(row, x, m0, C, out, ldy)
#define rows_q3_k_STEP(C) rows_q3_k_tile(row, x, m0, C, out, ldy)
#define rows_q4_k_STEP(C) rows_q4_k_tile(row, x, m0, C, out, ldy)
#define rows_q5_k_STEP(C) rows_q5_k_tile(row, x, m0, C, out, ldy)
#define rows_q6_k_STEP(C) rows_q6_k_tile(row, x, m0, C, out, ldy)
#define rows_iq4_xs_STEP(C) rows_iq4_xs_tile(row, x, m0, C, out, ldy)
#define rows_tq1_0_STEP(C) rows_tq1_0_tile(row, x, m0, C, out, ldy)
#define rows_tq2_0_STEP(C) rows_tq2_0_tile(row, x, m0, C, out, ldy)
K_ROWS(rows_q2_k, q2_k, pairs_unsigned, 0, WITH_MIN)
K_ROWS(rows_q3_k, q3_k, pairs_unsigned, 4, NO_MIN)
K_ROWS(rows_q4_k, q4_k, pairs_unsigned, 0, WITH_MIN)
K_ROWS(rows_q5_k, q5_k, pairs_unsigned, 0, WITH_MIN)
K_ROWS(rows_q6_k, q6_k, pairs_unsigned, 32, NO_MIN)
K_ROWS(rows_iq4_xs, iq4_xs, pairs_signed, 0, NO_MIN)
K_ROWS(rows_tq1_0, tq1_0, pairs_unsigned, 1, NO_MIN)
K_ROWS(rows_tq2_0, tq2_0, pairs_unsigned, 1, NO_MIN)
