/* avx512_attention.h: the attention part of avx512.c, with the element-wise functions that it needs. One K or V page of
 * one KV head at a time; a row is one query head of one token.
 *
 * Few rows (a decoded token) read the page as it lies and widen its numbers once for all rows, with up to 24 accumulators
 * in registers. Many rows (a prompt) first widen 64 x 64 numbers to float32 in L1, and then multiply as matrices do, with
 * 6 x 64 accumulators. Each accumulator adds in the same order on both ways.
 */
enum { DIRECT_ROWS = 8, TILE_ROWS = 6 };

INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 16 numbers from index i on; of the masked ones those that `m` names, 0 else */
INLINE __m512 kv_f32(const void *page, int64_t i) { return _mm512_loadu_ps((const float *)page + i); }
INLINE __m512 kv_f16(const void *page, int64_t i) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)page + i)));
}
INLINE __m512 kv_q8_0(const void *page, int64_t i) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)page + i))));
}
INLINE __m512 some_f32(const void *page, int64_t i, __mmask16 m) { return _mm512_maskz_loadu_ps(m, (const float *)page + i); }
INLINE __m512 some_f16(const void *page, int64_t i, __mmask16 m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i));
}
INLINE __m512 some_q8_0(const void *page, int64_t i, __mmask16 m) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, (const int8_t *)page + i)));
}

/* 4-bit numbers: 16 of them are 8 bytes, the first 8 in the low halves. The table lookup looks at 4 bits of an index only. */
INLINE __m512 kv_q4_0(const void *page, int64_t i) {
    const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    int64_t bytes;
    memcpy(&bytes, (const uint8_t *)page + i / 2, 8);
    __m128i codes = _mm_srlv_epi64(_mm_set1_epi64x(bytes), _mm_set_epi64x(4, 0));
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), numbers);
}
INLINE __m512 some_q4_0(const void *page, int64_t i, __mmask16 m) {
    int n = __builtin_popcount(m), half = n / 2;
    if (n == 16) return kv_q4_0(page, i);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 high = m & ~first_lanes(half);
    __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(half), (const uint8_t *)page + i / 2);
    __m512i at = _mm512_mask_sub_epi32(lane, high, lane, _mm512_set1_epi32(half));
    __m512i code = _mm512_permutexvar_epi32(at, _mm512_cvtepu8_epi32(bytes));
    code = _mm512_and_si512(_mm512_mask_srli_epi32(code, high, code, 4), _mm512_set1_epi32(15));
    return _mm512_maskz_sub_ps(m, _mm512_cvtepi32_ps(code), _mm512_set1_ps(8.0f));
}

/* Bytes of n numbers */
#define BYTES_f32(n) ((n) * 4)
#define BYTES_f16(n) ((n) * 2)
#define BYTES_q8_0(n) (n)
#define BYTES_q4_0(n) ((n) / 2)

/* The scales that stand `behind` bytes after a page's begin, tokens t .. t + 15 */
INLINE __m512 token_scales(const void *page, int64_t behind, int64_t t) {
    const uint16_t *d = (const uint16_t *)((const int8_t *)page + behind);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(d + t)));
}
INLINE void prefetch_scales(const char *page, int64_t behind) {
    if (!page) return;
    prefetch(page + behind);
    prefetch(page + behind + 64);
}
INLINE void scaled_weights(const float *p, int64_t n_rows, const void *page, int64_t behind, float *y) {
    UNROLL for (int t = 0; t < EL_PAGE_TOKENS; t += 16) {
        __m512 d = token_scales(page, behind, t);
        for (int64_t r = 0; r < n_rows * EL_PAGE_TOKENS; r += EL_PAGE_TOKENS)
            _mm512_storeu_ps(y + r + t, _mm512_mul_ps(_mm512_loadu_ps(p + r + t), d));
    }
}

/* c[r][0 .. 16 V) += sum over k < n of a[r][k] * b[k][0 .. 16 V), in ascending k; a row of b has 64 floats, of the last
 * vector of c the lanes of `m` are there */
INLINE void product_tile(const float *a, int64_t lda, int64_t n, const float *b, const int R, const int V, __mmask16 m, float *c,
                         int64_t ldc) {
    __m512 s[TILE_ROWS][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++)
        s[r][v] = v + 1 < V ? _mm512_loadu_ps(c + r * ldc + 16 * v) : _mm512_maskz_loadu_ps(m, c + r * ldc + 16 * v);
    for (int64_t k = 0; k < n; k++) {
        __m512 x[4];
        UNROLL for (int v = 0; v < V; v++) x[v] = _mm512_loadu_ps(b + k * EL_PAGE_TOKENS + 16 * v);
        UNROLL for (int r = 0; r < R; r++) {
            __m512 factor = _mm512_set1_ps(a[r * lda + k]);
            UNROLL for (int v = 0; v < V; v++) s[r][v] = _mm512_fmadd_ps(factor, x[v], s[r][v]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) {
        if (v + 1 < V) _mm512_storeu_ps(c + r * ldc + 16 * v, s[r][v]);
        else _mm512_mask_storeu_ps(c + r * ldc + 16 * v, m, s[r][v]);
    }
}

INLINE void product_rows(const float *a, int64_t lda, int64_t n, const float *b, const int R, int64_t cols, float *c, int64_t ldc) {
    __mmask16 m = first_lanes((cols - 1) % 16 + 1);
    switch ((cols + 15) / 16) {
    case 1: product_tile(a, lda, n, b, R, 1, m, c, ldc); break;
    case 2: product_tile(a, lda, n, b, R, 2, m, c, ldc); break;
    case 3: product_tile(a, lda, n, b, R, 3, m, c, ldc); break;
    default: product_tile(a, lda, n, b, R, 4, m, c, ldc);
    }
}

/* All rows of c: (n_rows, cols <= 64) += a (n_rows, n) b (n, 64) */
static void product(const float *a, int64_t lda, int64_t n, const float *b, int64_t n_rows, int64_t cols, float *c, int64_t ldc) {
    for (; n_rows >= TILE_ROWS; n_rows -= TILE_ROWS, a += TILE_ROWS * lda, c += TILE_ROWS * ldc)
        product_rows(a, lda, n, b, TILE_ROWS, cols, c, ldc);
    switch (n_rows) {
    case 1: product_rows(a, lda, n, b, 1, cols, c, ldc); break;
    case 2: product_rows(a, lda, n, b, 2, cols, c, ldc); break;
    case 3: product_rows(a, lda, n, b, 3, cols, c, ldc); break;
    case 4: product_rows(a, lda, n, b, 4, cols, c, ldc); break;
    case 5: product_rows(a, lda, n, b, 5, cols, c, ldc); break;
    default: break;
    }
}

/* Calls STEP(G), G = n_rows <= 8 */
#define BY_ROWS(STEP)           \
    switch (n_rows) {           \
    case 1: STEP(1); break;     \
    case 2: STEP(2); break;     \
    case 3: STEP(3); break;     \
    case 4: STEP(4); break;     \
    case 5: STEP(5); break;     \
    case 6: STEP(6); break;     \
    case 7: STEP(7); break;     \
    default: STEP(8);           \
    }

/* G rows times V vectors of 16 tokens (scores) or channels (values) share each load of the page. */
#define ATTENTION(TYPE, SCALED)                                                                                  \
    INLINE void scores_##TYPE(const float *q, int64_t head_dim, const void *page, const char *ahead, const int G, \
                              const int V, float scale, float *scores) {                                         \
        for (int t0 = 0; t0 < EL_PAGE_TOKENS; t0 += 16 * V) {                                                    \
            __m512 s[8][4];                                                                                      \
            UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm512_setzero_ps(); \
            for (int64_t d = 0; d < head_dim; d++) {                                                             \
                __m512 k[4];                                                                                     \
                int64_t at = d * EL_PAGE_TOKENS + t0;                                                            \
                if (ahead && BYTES_##TYPE(at) % 64 == 0)                                                         \
                    UNROLL for (int l = 0; l < BYTES_##TYPE(16 * V); l += 64) prefetch(ahead + BYTES_##TYPE(at) + l); \
                UNROLL for (int v = 0; v < V; v++) k[v] = kv_##TYPE(page, at + 16 * v);                          \
                UNROLL for (int g = 0; g < G; g++) {                                                             \
                    __m512 factor = _mm512_set1_ps(q[g * head_dim + d]);                                         \
                    UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm512_fmadd_ps(factor, k[v], s[g][v]);         \
                }                                                                                                \
            }                                                                                                    \
            UNROLL for (int v = 0; v < V; v++) {                                                                 \
                __m512 f = _mm512_set1_ps(scale);                                                                \
                if (SCALED) f = _mm512_mul_ps(f, token_scales(page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), t0 + 16 * v)); \
                UNROLL for (int g = 0; g < G; g++)                                                               \
                    _mm512_storeu_ps(scores + g * EL_PAGE_TOKENS + t0 + 16 * v, _mm512_mul_ps(s[g][v], f));      \
            }                                                                                                    \
        }                                                                                                        \
    }                                                                                                            \
    static void many_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *page,           \
                                   float scale, float *scores) {                                                 \
        float wide[EL_PAGE_TOKENS * EL_PAGE_TOKENS]; /* 64 channels x 64 tokens */                               \
        memset(scores, 0, (size_t)n_rows * EL_PAGE_TOKENS * sizeof(float));                                      \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t i = 0; i < n * EL_PAGE_TOKENS; i += 16)                                                 \
                _mm512_storeu_ps(wide + i, kv_##TYPE(page, d0 * EL_PAGE_TOKENS + i));                            \
            product(q + d0, head_dim, n, wide, n_rows, EL_PAGE_TOKENS, scores, EL_PAGE_TOKENS);                  \
        }                                                                                                        \
        UNROLL for (int t = 0; t < EL_PAGE_TOKENS; t += 16) {                                                    \
            __m512 f = _mm512_set1_ps(scale);                                                                    \
            if (SCALED) f = _mm512_mul_ps(f, token_scales(page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), t));    \
            for (float *s = scores + t; s < scores + n_rows * EL_PAGE_TOKENS; s += EL_PAGE_TOKENS)               \
                _mm512_storeu_ps(s, _mm512_mul_ps(_mm512_loadu_ps(s), f));                                       \
        }                                                                                                        \
    }                                                                                                            \
    static void attn_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,         \
                                   const void *ahead, float scale, float *scores) {                              \
        if (n_rows > DIRECT_ROWS) {                                                                              \
            many_scores_##TYPE(q, n_rows, head_dim, k_page, scale, scores);                                      \
            return;                                                                                              \
        }                                                                                                        \
        if (SCALED) prefetch_scales(ahead, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS));                             \
        BY_ROWS(SCORES_##TYPE)                                                                                   \
    }                                                                                                            \
    INLINE void values_##TYPE(const float *p, int64_t head_dim, int64_t first, int64_t end, const void *page,    \
                              const char *ahead, int64_t d0, const int G, const int V, float *acc) {             \
        __m512 s[8][4];                                                                                          \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++)                                    \
            s[g][v] = _mm512_loadu_ps(acc + g * head_dim + d0 + 16 * v);                                         \
        for (int64_t t = first; t < end; t++) {                                                                  \
            __m512 value[4];                                                                                     \
            int64_t at = t * head_dim + d0;                                                                      \
            if (ahead)                                                                                           \
                UNROLL for (int l = 0; l < BYTES_##TYPE(16 * V); l += 64) prefetch(ahead + BYTES_##TYPE(at) + l); \
            UNROLL for (int v = 0; v < V; v++) value[v] = kv_##TYPE(page, at + 16 * v);                          \
            UNROLL for (int g = 0; g < G; g++) {                                                                 \
                __m512 factor = _mm512_set1_ps(p[g * EL_PAGE_TOKENS + t]);                                       \
                UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm512_fmadd_ps(factor, value[v], s[g][v]);         \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++)                                    \
            _mm512_storeu_ps(acc + g * head_dim + d0 + 16 * v, s[g][v]);                                         \
    }                                                                                                            \
    /* the last channels of a head_dim that is no multiple of 16 */                                              \
    static void last_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *page, int64_t d0, float *acc) {                                   \
        __mmask16 m = first_lanes(head_dim - d0);                                                                \
        for (int64_t g = 0; g < n_rows; g++) {                                                                   \
            __m512 s = _mm512_maskz_loadu_ps(m, acc + g * head_dim + d0);                                        \
            for (int64_t t = first; t < end; t++)                                                                \
                s = _mm512_fmadd_ps(_mm512_set1_ps(p[g * EL_PAGE_TOKENS + t]), some_##TYPE(page, t * head_dim + d0, m), s); \
            _mm512_mask_storeu_ps(acc + g * head_dim + d0, m, s);                                                \
        }                                                                                                        \
    }                                                                                                            \
    INLINE void rows_##TYPE(const float *p, const int G, int64_t head_dim, int64_t first, int64_t end,           \
                            const void *page, const char *ahead, float *acc) {                                   \
        int64_t d = 0;                                                                                           \
        if (G <= TILE_ROWS)                                                                                      \
            for (; d + 64 <= head_dim; d += 64) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 4, acc); \
        for (; d + 32 <= head_dim; d += 32) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 2, acc);   \
        for (; d + 16 <= head_dim; d += 16) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 1, acc);   \
        if (d < head_dim) last_values_##TYPE(p, G, head_dim, first, end, page, d, acc);                          \
    }                                                                                                            \
    static void many_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *page, float *acc) {                                               \
        float wide[EL_PAGE_TOKENS * EL_PAGE_TOKENS], scaled[TILE_ROWS * 8 * EL_PAGE_TOKENS]; /* tokens x channels */ \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t t = first; t < end; t++)                                                                \
                for (int64_t d = 0; d < n; d += 16)                                                              \
                    _mm512_storeu_ps(wide + (t - first) * EL_PAGE_TOKENS + d,                                    \
                                     some_##TYPE(page, t * head_dim + d0 + d, first_lanes(n - d)));              \
            for (int64_t r = 0; r < n_rows; r += TILE_ROWS * 8) {                                                \
                int64_t rows = min64(TILE_ROWS * 8, n_rows - r);                                                 \
                const float *weights = p + r * EL_PAGE_TOKENS;                                                   \
                if (SCALED) scaled_weights(weights, rows, page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), scaled), weights = scaled; \
                product(weights + first, EL_PAGE_TOKENS, end - first, wide, rows, n, acc + r * head_dim + d0, head_dim); \
            }                                                                                                    \
        }                                                                                                        \
    }                                                                                                            \
    static void attn_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *v_page, const void *ahead, float *acc) {                          \
        if (n_rows > DIRECT_ROWS) {                                                                              \
            many_values_##TYPE(p, n_rows, head_dim, first, end, v_page, acc);                                    \
            return;                                                                                              \
        }                                                                                                        \
        float scaled[DIRECT_ROWS * EL_PAGE_TOKENS];                                                              \
        if (SCALED) {                                                                                            \
            prefetch_scales(ahead, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS));                                     \
            scaled_weights(p, n_rows, v_page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), scaled);                  \
            p = scaled;                                                                                          \
        }                                                                                                        \
        BY_ROWS(VALUES_##TYPE)                                                                                   \
    }

#define SCORES_f32(G) scores_f32(q, head_dim, k_page, ahead, G, G <= TILE_ROWS ? 4 : 2, scale, scores)
#define SCORES_f16(G) scores_f16(q, head_dim, k_page, ahead, G, G <= TILE_ROWS ? 4 : 2, scale, scores)
#define SCORES_q8_0(G) scores_q8_0(q, head_dim, k_page, ahead, G, G <= TILE_ROWS ? 4 : 2, scale, scores)
#define SCORES_q4_0(G) scores_q4_0(q, head_dim, k_page, ahead, G, G <= TILE_ROWS ? 4 : 2, scale, scores)
#define VALUES_f32(G) rows_f32(p, G, head_dim, first, end, v_page, ahead, acc)
#define VALUES_f16(G) rows_f16(p, G, head_dim, first, end, v_page, ahead, acc)
#define VALUES_q8_0(G) rows_q8_0(p, G, head_dim, first, end, v_page, ahead, acc)
#define VALUES_q4_0(G) rows_q4_0(p, G, head_dim, first, end, v_page, ahead, acc)

ATTENTION(f32, 0)
ATTENTION(f16, 0)
ATTENTION(q8_0, 1)
ATTENTION(q4_0, 1)

/* ---- storing a token ------------------------------------------------------------------------------------------------ */
static void store_k_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    uint16_t *out = (uint16_t *)page + t, part[16];
    for (int64_t d = 0; d < head_dim; d += 16) {
        __m512 v = _mm512_maskz_loadu_ps(first_lanes(head_dim - d), x + d);
        _mm256_storeu_si256((__m256i *)part, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        for (int64_t i = 0; i < min64(16, head_dim - d); i++) out[(d + i) * EL_PAGE_TOKENS] = part[i];
    }
}
static void store_v_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    uint16_t *out = (uint16_t *)page + t * head_dim;
    for (int64_t d = 0; d < head_dim; d += 16) {
        __mmask16 m = first_lanes(head_dim - d);
        _mm256_mask_storeu_epi16(out + d, m, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, x + d), _MM_FROUND_TO_NEAREST_INT));
    }
}

/* x (n) to int8 at out, out + step, ... */
INLINE void store_q8_0(const float *x, int64_t n, int8_t *out, const int64_t step, uint16_t *scale) {
    __m512i top = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16)
        top = _mm512_max_epi32(top, _mm512_and_si512(_mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(n - i), x + i)),
                                                     _mm512_set1_epi32(0x7fffffff)));
    *scale = el_f32_to_f16(el_float((uint32_t)_mm512_reduce_max_epi32(top)) / 127.0f);
    float d = el_f16_to_f32(*scale);
    __m512 inverse = _mm512_set1_ps(d > 0.0f ? 1.0f / d : 0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inverse);
        v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f)); /* NaN becomes 127 */
        __m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
        if (step == 1) {
            _mm_mask_storeu_epi8(out + i, m, q);
            continue;
        }
        int8_t part[16];
        _mm_storeu_si128((__m128i *)part, q);
        for (int64_t j = 0; j < min64(16, n - i); j++) out[(i + j) * step] = part[j];
    }
}

static void store_k_q8_0(const float *x, int64_t head_dim, int64_t t, void *page) {
    int8_t *out = page;
    store_q8_0(x, head_dim, out + t, EL_PAGE_TOKENS, (uint16_t *)(out + head_dim * EL_PAGE_TOKENS) + t);
}
static void store_v_q8_0(const float *x, int64_t head_dim, int64_t t, void *page) {
    int8_t *out = page;
    store_q8_0(x, head_dim, out + t * head_dim, 1, (uint16_t *)(out + head_dim * EL_PAGE_TOKENS) + t);
}

/* ---- softmax --------------------------------------------------------------------------------------------------------- */
static float largest(const float *x, int64_t n, float max) {
    __m512 top = _mm512_set1_ps(max);
    __mmask16 odd = 0;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512 v[4];
        UNROLL for (int j = 0; j < 4; j++) {
            v[j] = _mm512_loadu_ps(x + i + 16 * j);
            odd |= _mm512_cmp_ps_mask(v[j], v[j], _CMP_UNORD_Q);
        }
        top = _mm512_max_ps(_mm512_max_ps(_mm512_max_ps(v[0], v[1]), _mm512_max_ps(v[2], v[3])), top);
    }
    for (; i < n; i += 16) {
        __m512 v = _mm512_mask_loadu_ps(top, first_lanes(n - i), x + i);
        odd |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        top = _mm512_max_ps(v, top);
    }
    return odd ? NAN : _mm512_reduce_max_ps(top);
}

/* el_expf, 16 at a time */
INLINE __m512 exp16(__m512 x) {
    const __m512 round = _mm512_set1_ps(EL_EXP_ROUND), one = _mm512_set1_ps(1.0f);
    const __m512i bias = _mm512_set1_epi32(127);
    x = _mm512_min_ps(_mm512_set1_ps(EL_EXP_HI), x);
    x = _mm512_max_ps(_mm512_set1_ps(EL_EXP_LO), x);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(EL_EXP_LOG2E), round), n = _mm512_sub_ps(t, round);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EL_EXP_LN2_LO), _mm512_fmadd_ps(n, _mm512_set1_ps(-EL_EXP_LN2_HI), x));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(EL_EXP_C6), r, _mm512_set1_ps(EL_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EL_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EL_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EL_EXP_C2));
    p = _mm512_fmadd_ps(_mm512_fmadd_ps(p, r, one), r, one);
    __m512i i = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(round)), half = _mm512_srai_epi32(i, 1);
    __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    __m512i second = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(i, half), bias), 23);
    return _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(first)), _mm512_castsi512_ps(second));
}

INLINE float tree16(__m512 v) { /* 16 lanes to one float by the fixed tree */
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

static void exp_sum(float *x, int64_t n, float max, float *sum) {
    __m512 total = _mm512_setzero_ps(), top = _mm512_set1_ps(max);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512 e[4];
        UNROLL for (int v = 0; v < 4; v++) e[v] = exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16 * v), top));
        UNROLL for (int v = 0; v < 4; v++) {
            _mm512_storeu_ps(x + i + 16 * v, e[v]);
            total = _mm512_add_ps(total, e[v]);
        }
    }
    for (; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), top));
        _mm512_mask_storeu_ps(x + i, m, e);
        total = _mm512_mask_add_ps(total, m, total, e);
    }
    *sum = tree16(total);
}

#define ATTENTION_ENTRIES                                                                          \
    .attn_scores = {attn_scores_f32, attn_scores_f16, attn_scores_q8_0, attn_scores_q4_0}, /* by el_kv_type */ \
    .attn_values = {attn_values_f32, attn_values_f16, attn_values_q8_0, attn_values_q4_0},     \
    .attn_store_k = {[EL_KV_F16] = store_k_f16, [EL_KV_Q8_0] = store_k_q8_0},                      \
    .attn_store_v = {[EL_KV_F16] = store_v_f16, [EL_KV_Q8_0] = store_v_q8_0},                      \
    .largest = largest,                                                                            \
    .exp_sum = exp_sum,
