/* avx2.c: AVX2 + FMA + F16C (every x86-64 since 2013, the baseline of most desktops).
 *
 * The trick of the block formats: _mm256_maddubs_epi16 multiplies unsigned weights with signed activations.
 * Nibbles stay unsigned and their offset is taken off through the activations' integer sum; signed bytes
 * go in as |w| and sign(x, w), which cannot saturate because |x| <= 127: 2 * 128 * 127 < 2^15.
 * Panels need no horizontal sums, a lane is a row; row kernels fold four rows at a time.
 */
#include "arith.h"
#include "groups.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL2 _Pragma("GCC unroll 2") /* unrolled further, GCC adds in a tree and spills its leaves */
#define AHEAD 4096 /* bytes of software prefetch; hardware streams stop at page ends */

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE __m256i bytes32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m128i bytes16(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE __m256 halves8(const void *p) { return _mm256_cvtph_ps(bytes16(p)); }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
INLINE int32_t word(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* 16 lanes to one float by the fixed tree */
INLINE float tree16(__m256 a, __m256 b) {
    __m256 s8 = _mm256_add_ps(a, b);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* Calls STEP(4), STEP(2) or STEP(1) until all columns are done; `m0` is the first column of the tile. */
#define COLUMN_TILES(STEP)                                     \
    for (int64_t m0 = 0; m0 < n_cols;) {                       \
        if (n_cols - m0 >= 4) {                                \
            STEP(4);                                           \
            m0 += 4;                                           \
        } else if (n_cols - m0 >= 2) {                         \
            STEP(2);                                           \
            m0 += 2;                                           \
        } else {                                               \
            STEP(1);                                           \
            m0 += 1;                                           \
        }                                                      \
    }

/* ---- rows of floats ----------------------------------------------------------------------------------- */
enum { F32_BYTES = 4, F16_BYTES = 2, ROW_AHEAD = 768 }; /* several rows are read side by side: less ahead for each */

INLINE __m256 load_f32(const uint8_t *p) { return _mm256_loadu_ps((const float *)p); }
INLINE __m256 load_f16(const uint8_t *p) { return halves8(p); }
INLINE __m256 load_bf16(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bytes16(p)), 16));
}

INLINE float one_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}
INLINE float one_f16(const uint8_t *p) { return el_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }
INLINE float one_bf16(const uint8_t *p) { return el_bf16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

/* The last k % 16 lanes one by one (the others must stay as they are), then the tree. */
#define LANE_TAIL(a, b, row, f, k0, k, BYTES, ONE)                                                     \
    float lanes[EL_LANES];                                                                             \
    _mm256_storeu_ps(lanes, a);                                                                        \
    _mm256_storeu_ps(lanes + 8, b);                                                                    \
    for (int64_t at = k0; at < k; at++) lanes[at - k0] = el_fmaf(ONE(row + at * BYTES), f[at], lanes[at - k0]);

/* What is read ROW_AHEAD bytes after `at` of a row, of R side by side: behind its end comes the R-th row after it. */
INLINE int64_t row_ahead(int64_t at, int64_t row_bytes, const int R) {
    at += ROW_AHEAD;
    return at < row_bytes ? at : at + (R - 1) * row_bytes;
}

/* R rows times C columns share their loads. Rows past the end repeat the last one and are not stored. */
#define FLOAT_ROWS(NAME, BYTES, LOAD, ONE)                                                                       \
    INLINE void NAME##_tile(const uint8_t *const *row, const int R, const el_act *x, int64_t m0, const int C,    \
                            int64_t n_rows, float *y, int64_t ldy) {                                             \
        __m256 acc[4][4][2];                                                                                     \
        int64_t k = x->k, k0 = 0;                                                                                \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++)                                    \
            acc[r][c][0] = acc[r][c][1] = _mm256_setzero_ps();                                                   \
        for (; k0 + EL_LANES <= k; k0 += EL_LANES) {                                                             \
            UNROLL for (int r = 0; r < R; r++) {                                                                 \
                const uint8_t *p = row[r] + k0 * BYTES;                                                          \
                prefetch(row[r] + row_ahead(k0 * BYTES, k * BYTES, R));                                          \
                __m256 w0 = LOAD(p), w1 = LOAD(p + 8 * BYTES);                                                   \
                UNROLL for (int c = 0; c < C; c++) {                                                             \
                    const float *f = x->f + (m0 + c) * x->ldf + k0;                                              \
                    acc[r][c][0] = _mm256_fmadd_ps(w0, _mm256_loadu_ps(f), acc[r][c][0]);                        \
                    acc[r][c][1] = _mm256_fmadd_ps(w1, _mm256_loadu_ps(f + 8), acc[r][c][1]);                    \
                }                                                                                                \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {                                  \
            float total;                                                                                         \
            if (k0 < k) {                                                                                        \
                const float *f = x->f + (m0 + c) * x->ldf;                                                       \
                LANE_TAIL(acc[r][c][0], acc[r][c][1], row[r], f, k0, k, BYTES, ONE)                              \
                total = el_tree16(lanes);                                                                        \
            } else total = tree16(acc[r][c][0], acc[r][c][1]);                                                   \
            if (r < n_rows) y[(m0 + c) * ldy + r] = total;                                                       \
        }                                                                                                        \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        const uint8_t *row[4];                                                                                   \
        for (int64_t r0 = row0; r0 < row1; r0 += 4) {                                                            \
            int64_t n = min64(4, row1 - r0);                                                                     \
            for (int r = 0; r < 4; r++) row[r] = (const uint8_t *)w + min64(r0 + r, row1 - 1) * x->k * BYTES;    \
            float *out = y + r0 - row0;                                                                          \
            int64_t m0 = 0;                                                                                      \
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

FLOAT_ROWS(rows_f32, F32_BYTES, load_f32, one_f32)
FLOAT_ROWS(rows_f16, F16_BYTES, load_f16, one_f16)
FLOAT_ROWS(rows_bf16, F16_BYTES, load_bf16, one_bf16)

/* ---- rows of 32-weight blocks ------------------------------------------------------------------------------ */
/* 16 bytes of nibbles to 32 bytes in k order */
INLINE __m256i nibbles(const uint8_t *qs) {
    __m128i v = bytes16(qs);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* bit i of 4 bytes to 16 in byte i: spread the bytes, then test one bit in each */
INLINE __m256i fifth_bits(const uint8_t *qh) {
    int32_t bits;
    memcpy(&bits, qh, 4);
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i others = _mm256_set1_epi64x(0x7fbfdfeff7fbfdfe); /* all but bit i % 8 */
    __m256i v = _mm256_or_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), others);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(-1)), _mm256_set1_epi8(16));
}

INLINE __m256i decode_q4_0(const uint8_t *p) { return nibbles(((const el_block_q4_0 *)p)->qs); }
INLINE __m256i decode_q4_1(const uint8_t *p) { return nibbles(((const el_block_q4_1 *)p)->qs); }
INLINE __m256i decode_q5_0(const uint8_t *p) {
    const el_block_q5_0 *b = (const el_block_q5_0 *)p;
    return _mm256_or_si256(nibbles(b->qs), fifth_bits(b->qh));
}
INLINE __m256i decode_q5_1(const uint8_t *p) {
    const el_block_q5_1 *b = (const el_block_q5_1 *)p;
    return _mm256_or_si256(nibbles(b->qs), fifth_bits(b->qh));
}
/* nibbles to the values of a 4-bit codebook */
INLINE __m256i codebook(__m256i v, const int8_t *values) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes16(values)), v);
}
INLINE __m256i decode_iq4_nl(const uint8_t *p) {
    return codebook(nibbles(((const el_block_iq4_nl *)p)->qs), el_iq4_codes);
}
INLINE __m256i decode_mxfp4(const uint8_t *p) { return codebook(nibbles(((const el_block_mxfp4 *)p)->qs), el_mxfp4_codes); }
INLINE __m256i decode_q8_0(const uint8_t *p) { return bytes32(((const el_block_q8_0 *)p)->qs); }

/* products of 32 weights and 32 activations as 8 partial sums */
INLINE __m256i dot_unsigned(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
INLINE __m256i dot_signed(__m256i w, __m256i x) {
    return dot_unsigned(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

/* f16 at `offset` of the blocks of four rows */
INLINE __m128 scales4(const uint8_t *const *row, int64_t at) {
    uint16_t h[4];
    UNROLL for (int r = 0; r < 4; r++) memcpy(h + r, row[r] + at, 2);
    return _mm_cvtph_ps(_mm_cvtsi64_si128((int64_t)((uint64_t)h[0] | (uint64_t)h[1] << 16 | (uint64_t)h[2] << 32 |
                                                    (uint64_t)h[3] << 48)));
}

INLINE __m128 powers4(const uint8_t *const *row, int64_t at) { /* e8m0 there */
    return _mm_setr_ps(el_e8m0(row[0][at]), el_e8m0(row[1][at]), el_e8m0(row[2][at]), el_e8m0(row[3][at]));
}

/* four vectors of 8 partial sums to the four totals */
INLINE __m128i fold4(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

#define BLOCK_ROWS(NAME, BYTES, DECODE, SCALES, DOT, OFFSET, HAS_MIN)                                            \
    INLINE void NAME##_tile(const uint8_t *const *row, const el_act *x, int64_t m0, const int C, int64_t n_rows, \
                            float *y, int64_t ldy) {                                                             \
        int64_t n_blocks = x->k / 32, ld = x->k_pad / 32;                                                        \
        const uint8_t *next = row[3] + n_blocks * BYTES;                                                         \
        __m128 acc[4]; /* a lane is a row */                                                                     \
        UNROLL for (int c = 0; c < C; c++) acc[c] = _mm_setzero_ps();                                            \
        for (int64_t b = 0; b < n_blocks; b++) {                                                                 \
            __m256i w[4];                                                                                        \
            UNROLL for (int r = 0; r < 4; r++) w[r] = DECODE(row[r] + b * BYTES);                                \
            prefetch(next + b * 4 * BYTES); /* the next four rows, in the order they lie */                      \
            prefetch(next + b * 4 * BYTES + 64);                                                                 \
            __m128 d = SCALES(row, b * BYTES);                                                                   \
            __m128 least = HAS_MIN ? scales4(row, b * BYTES + 2) : d;                                            \
            UNROLL for (int c = 0; c < C; c++) {                                                                 \
                __m256i q = bytes32(x->q + (m0 + c) * x->k_pad + b * 32);                                        \
                int32_t sum = x->sum[(m0 + c) * ld + b];                                                         \
                __m128 dx = _mm_set1_ps(x->d[(m0 + c) * ld + b]);                                                \
                __m128i dot = fold4(DOT(w[0], q), DOT(w[1], q), DOT(w[2], q), DOT(w[3], q));                     \
                if (OFFSET) dot = _mm_sub_epi32(dot, _mm_set1_epi32(OFFSET * sum));                              \
                acc[c] = _mm_fmadd_ps(_mm_mul_ps(d, dx), _mm_cvtepi32_ps(dot), acc[c]);                          \
                if (HAS_MIN) acc[c] = _mm_fmadd_ps(_mm_mul_ps(least, dx), _mm_set1_ps((float)sum), acc[c]);      \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int c = 0; c < C; c++) {                                                                     \
            float out[4];                                                                                        \
            _mm_storeu_ps(out, acc[c]);                                                                          \
            memcpy(y + (m0 + c) * ldy, out, (size_t)n_rows * 4);                                                 \
        }                                                                                                        \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        const uint8_t *row[4];                                                                                   \
        for (int64_t r0 = row0; r0 < row1; r0 += 4) {                                                            \
            int64_t n_rows = min64(4, row1 - r0);                                                                \
            for (int r = 0; r < 4; r++)                                                                          \
                row[r] = (const uint8_t *)w + min64(r0 + r, row1 - 1) * (x->k / 32) * BYTES;                     \
            float *out = y + r0 - row0;                                                                          \
            COLUMN_TILES(NAME##_STEP)                                                                            \
        }                                                                                                        \
    }

#define rows_q4_0_STEP(C) rows_q4_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q4_1_STEP(C) rows_q4_1_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q5_0_STEP(C) rows_q5_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q5_1_STEP(C) rows_q5_1_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_q8_0_STEP(C) rows_q8_0_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_iq4_nl_STEP(C) rows_iq4_nl_tile(row, x, m0, C, n_rows, out, ldy)
#define rows_mxfp4_STEP(C) rows_mxfp4_tile(row, x, m0, C, n_rows, out, ldy)
BLOCK_ROWS(rows_q4_0, (int64_t)sizeof(el_block_q4_0), decode_q4_0, scales4, dot_unsigned, 8, 0)
BLOCK_ROWS(rows_q4_1, (int64_t)sizeof(el_block_q4_1), decode_q4_1, scales4, dot_unsigned, 0, 1)
BLOCK_ROWS(rows_q5_0, (int64_t)sizeof(el_block_q5_0), decode_q5_0, scales4, dot_unsigned, 16, 0)
BLOCK_ROWS(rows_q5_1, (int64_t)sizeof(el_block_q5_1), decode_q5_1, scales4, dot_unsigned, 0, 1)
BLOCK_ROWS(rows_q8_0, (int64_t)sizeof(el_block_q8_0), decode_q8_0, scales4, dot_signed, 0, 0)
BLOCK_ROWS(rows_iq4_nl, (int64_t)sizeof(el_block_iq4_nl), decode_iq4_nl, scales4, dot_signed, 0, 0)
BLOCK_ROWS(rows_mxfp4, (int64_t)sizeof(el_block_mxfp4), decode_mxfp4, powers4, dot_signed, 0, 0)

#include "avx2_k.h"

/* ---- panels ---------------------------------------------------------------------------------------------------------- */
/* acc += (d * dx) * dot for 16 rows, rounded as the row kernels do */
INLINE void add_block(__m256 *acc, const uint8_t *scale, float dx, __m256i dot0, __m256i dot1) {
    __m256 factor = _mm256_set1_ps(dx);
    acc[0] = _mm256_fmadd_ps(_mm256_mul_ps(halves8(scale), factor), _mm256_cvtepi32_ps(dot0), acc[0]);
    acc[1] = _mm256_fmadd_ps(_mm256_mul_ps(halves8(scale + 16), factor), _mm256_cvtepi32_ps(dot1), acc[1]);
}

INLINE void store_rows(float *y, int64_t n_rows, const __m256 *acc) {
    if (n_rows == EL_PANEL_ROWS) {
        _mm256_storeu_ps(y, acc[0]);
        _mm256_storeu_ps(y + 8, acc[1]);
    } else {
        float out[EL_PANEL_ROWS];
        _mm256_storeu_ps(out, acc[0]);
        _mm256_storeu_ps(out + 8, acc[1]);
        memcpy(y, out, (size_t)n_rows * 4);
    }
}

/* dot of 16 rows from int16 sums (8 * 2 * 15 * 127 < 2^15) with the nibbles' offset of 8 taken off */
INLINE void add_nibbles(__m256 *acc, const uint8_t *scale, const el_act *x, int64_t at, __m256i s0, __m256i s1) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i start = _mm256_set1_epi32(-8 * x->sum[at]);
    add_block(acc, scale, x->d[at], _mm256_add_epi32(_mm256_madd_epi16(s0, ones), start),
              _mm256_add_epi32(_mm256_madd_epi16(s1, ones), start));
}

/* One block (32 k) of a full tile: its nibbles are the low (SHIFT 0) or high (SHIFT 4) ones of 8 lines. */
INLINE void q4_0_block(const uint8_t *lines, const uint8_t *scale, const int SHIFT, const el_act *x, int64_t m0,
                       int64_t b, const int C, __m256 (*acc)[2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i s[4][2];
    UNROLL for (int c = 0; c < C; c++) s[c][0] = s[c][1] = _mm256_setzero_si256();
    UNROLL2 for (int j = 0; j < 8; j++) {
        __m256i w0 = bytes32(lines + j * 64), w1 = bytes32(lines + j * 64 + 32);
        w0 = _mm256_and_si256(SHIFT ? _mm256_srli_epi16(w0, 4) : w0, mask);
        w1 = _mm256_and_si256(SHIFT ? _mm256_srli_epi16(w1, 4) : w1, mask);
        UNROLL for (int c = 0; c < C; c++) {
            __m256i q = _mm256_set1_epi32(word(x->q + (m0 + c) * x->k_pad + b * 32 + j * 4));
            s[c][0] = _mm256_add_epi16(s[c][0], _mm256_maddubs_epi16(w0, q));
            s[c][1] = _mm256_add_epi16(s[c][1], _mm256_maddubs_epi16(w1, q));
        }
    }
    UNROLL for (int c = 0; c < C; c++)
        add_nibbles(acc[c], scale, x, (m0 + c) * (x->k_pad / 32) + b, s[c][0], s[c][1]);
}

/* The half tile at the end of K = 32 mod 64: 4 lines, quads 0-3 low, 4-7 high. */
INLINE void q4_0_half(const uint8_t *tile, const el_act *x, int64_t m0, int64_t b, const int C, __m256 (*acc)[2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int c = 0; c < C; c++) {
        const int8_t *xq = x->q + (m0 + c) * x->k_pad + b * 32;
        __m256i s[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int j = 0; j < 4; j++)
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i w = bytes32(tile + 64 + j * 64 + h * 32);
                __m256i low = _mm256_and_si256(w, mask), high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
                s[h] = _mm256_add_epi16(s[h], _mm256_maddubs_epi16(low, _mm256_set1_epi32(word(xq + j * 4))));
                s[h] = _mm256_add_epi16(s[h], _mm256_maddubs_epi16(high, _mm256_set1_epi32(word(xq + 16 + j * 4))));
            }
        add_nibbles(acc[c], tile, x, (m0 + c) * (x->k_pad / 32) + b, s[0], s[1]);
    }
}

INLINE void panel_q4_0(const int sparse, el_group g, const el_act *x, int64_t m0, const int C, int64_t n_rows, float *y,
                       int64_t ldy) {
    __m256 acc[4][2]; /* a lane is a row */
    UNROLL for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < g.n; i++, g.tile += 576) {
        int64_t b = 2 * el_next_tile(sparse, &g, i);
        UNROLL for (int line = 0; line < 9; line++) prefetch(g.tile + AHEAD + 64 * line);
        q4_0_block(g.tile + 64, g.tile, 0, x, m0, b, C, acc);
        q4_0_block(g.tile + 64, g.tile + 32, 4, x, m0, b + 1, C, acc);
    }
    if (g.half) q4_0_half(g.tile, x, m0, x->k / 32 - 1, C, acc);
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

/* One block of 32 k: 8 lines of signed bytes. */
INLINE void q8_0_block(const uint8_t *lines, const uint8_t *scale, const el_act *x, int64_t m0, int64_t b, const int C,
                       __m256 (*acc)[2]) {
    __m256i s[4][2];
    UNROLL for (int c = 0; c < C; c++) s[c][0] = s[c][1] = _mm256_setzero_si256();
    UNROLL2 for (int j = 0; j < 8; j++) {
        __m256i w0 = bytes32(lines + j * 64), w1 = bytes32(lines + j * 64 + 32);
        UNROLL for (int c = 0; c < C; c++) {
            __m256i q = _mm256_set1_epi32(word(x->q + (m0 + c) * x->k_pad + b * 32 + j * 4));
            s[c][0] = _mm256_add_epi32(s[c][0], dot_signed(w0, q));
            s[c][1] = _mm256_add_epi32(s[c][1], dot_signed(w1, q));
        }
    }
    UNROLL for (int c = 0; c < C; c++)
        add_block(acc[c], scale, x->d[(m0 + c) * (x->k_pad / 32) + b], s[c][0], s[c][1]);
}

INLINE void panel_q8_0(const int sparse, el_group g, const el_act *x, int64_t m0, const int C, int64_t n_rows, float *y,
                       int64_t ldy) {
    __m256 acc[4][2]; /* a lane is a row */
    UNROLL for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < g.n; i++, g.tile += 1088) {
        int64_t b = 2 * el_next_tile(sparse, &g, i);
        for (int h = 0; h < 2; h++) {
            const uint8_t *lines = g.tile + 64 + h * 512;
            UNROLL for (int line = 0; line < 9; line++) prefetch(lines + AHEAD + 64 * line);
            q8_0_block(lines, g.tile + h * 32, x, m0, b + h, C, acc);
        }
    }
    if (g.half) q8_0_block(g.tile + 64, g.tile, x, m0, x->k / 32 - 1, C, acc);
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

/* Behind STEP: k and bytes of a tile, and bytes of the half one */
#define PANELS(NAME, SPARSE, STEP, ...)                                                                          \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        enum { sparse = SPARSE };                                                                                \
        for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                                \
            const el_group group = el_group_at(sparse, w, r0 / EL_PANEL_ROWS, x->k, __VA_ARGS__);                \
            int64_t n_rows = min64(EL_PANEL_ROWS, row1 - r0);                                                    \
            float *out = y + r0 - row0;                                                                          \
            COLUMN_TILES(STEP)                                                                                   \
        }                                                                                                        \
    }
#define Q4_0_STEP(C) panel_q4_0(sparse, group, x, m0, C, n_rows, out, ldy)
#define Q8_0_STEP(C) panel_q8_0(sparse, group, x, m0, C, n_rows, out, ldy)
PANELS(panels_q4_0, 0, Q4_0_STEP, 64, 576, 320)
PANELS(sparse_q4_0, 1, Q4_0_STEP, 64, 576, 320)
PANELS(panels_q8_0, 0, Q8_0_STEP, 64, 1088, 576)
PANELS(sparse_q8_0, 1, Q8_0_STEP, 64, 1088, 576)

#include "avx2_k_panels.h"
#include "avx2_ops.h"
#include "avx2_attention.h"

const el_kernels el_kernels_avx2 = {
    .name = "avx2",
    .need = EL_CPU_AVX2 | EL_CPU_FMA | EL_CPU_F16C,
    .linear[EL_ROWS] =
        {
            [EL_TYPE_F32] = rows_f32,
            [EL_TYPE_F16] = rows_f16,
            [EL_TYPE_BF16] = rows_bf16,
            [EL_TYPE_Q4_0] = rows_q4_0,
            [EL_TYPE_Q4_1] = rows_q4_1,
            [EL_TYPE_Q5_0] = rows_q5_0,
            [EL_TYPE_Q5_1] = rows_q5_1,
            [EL_TYPE_Q8_0] = rows_q8_0,
            [EL_TYPE_IQ4_NL] = rows_iq4_nl,
            [EL_TYPE_MXFP4] = rows_mxfp4,
            [EL_TYPE_Q2_K] = rows_q2_k,
            [EL_TYPE_Q3_K] = rows_q3_k,
            [EL_TYPE_Q4_K] = rows_q4_k,
            [EL_TYPE_Q5_K] = rows_q5_k,
            [EL_TYPE_Q6_K] = rows_q6_k,
            [EL_TYPE_IQ4_XS] = rows_iq4_xs,
            [EL_TYPE_TQ1_0] = rows_tq1_0,
            [EL_TYPE_TQ2_0] = rows_tq2_0,
        },
    .linear[EL_PANELS] =
        {
            [EL_TYPE_Q4_0] = panels_q4_0,
            [EL_TYPE_Q8_0] = panels_q8_0,
            [EL_TYPE_Q4_K] = panels_q4_k,
            [EL_TYPE_Q5_K] = panels_q5_k,
            [EL_TYPE_Q6_K] = panels_q6_k,
        },
    .linear[EL_SPARSE] =
        {
            [EL_TYPE_Q4_0] = sparse_q4_0,
            [EL_TYPE_Q8_0] = sparse_q8_0,
            [EL_TYPE_Q4_K] = sparse_q4_k,
            [EL_TYPE_Q5_K] = sparse_q5_k,
            [EL_TYPE_Q6_K] = sparse_q6_k,
        },
    .quantize_q8_32 = quantize_q8_32,
    .quantize_q8_256 = quantize_q8_256,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .gelu = gelu,
    .gated = gated,
    .add = add,
    .softcap = softcap,
    ATTENTION_ENTRIES
    .exp_sum = exp_sum,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const el_kernels el_kernels_avx2 = {.name = "avx2", .need = 0};

#endif
