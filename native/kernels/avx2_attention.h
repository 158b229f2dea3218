/* avx2_attention.h: the attention part of avx2.c. One K or V page of one KV head at a time; a row is one query head of
 * one token.
 *
 * Few rows (a decoded token) read the page as it lies, and widen its numbers on the way; up to four rows share that. Many
 * rows (a prompt) first widen 64 x 64 numbers of it to float32 in L1, and then multiply as matrices do, with 6 x 16
 * accumulators in registers. Each accumulator adds in the same order on both ways.
 */
enum { DIRECT_ROWS = 8, TILE_ROWS = 6 };

/* Numbers i .. i + 7 of the row that begins `row` numbers behind the page's begin, i a multiple of 8. Of 16 numbers of 4 bits
 * the first 8 are in the low halves of 8 bytes. */
INLINE __m256 kv_f32(const void *page, int64_t row, int64_t i) { return _mm256_loadu_ps((const float *)page + row + i); }
INLINE __m256 kv_f16(const void *page, int64_t row, int64_t i) { return halves8((const uint16_t *)page + row + i); }
INLINE __m256 kv_q8_0(const void *page, int64_t row, int64_t i) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const int8_t *)page + row + i))));
}
INLINE __m256 kv_q4_0(const void *page, int64_t row, int64_t i) {
    __m128i codes = _mm_loadl_epi64((const __m128i *)((const uint8_t *)page + (row + (i & ~(int64_t)15)) / 2));
    if (i & 8) codes = _mm_srli_epi16(codes, 4);
    codes = _mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}
INLINE float one_kv_f32(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return ((const float *)page)[row + i];
}
INLINE float one_kv_f16(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return el_f16_to_f32(((const uint16_t *)page)[row + i]);
}
INLINE float one_kv_q8_0(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return (float)((const int8_t *)page)[row + i];
}
#define one_kv_q4_0 el_number_q4_0

/* Bytes of n numbers, and how many of n channels are read 8 at a time */
#define BYTES_f32(n) ((n) * 4)
#define BYTES_f16(n) ((n) * 2)
#define BYTES_q8_0(n) (n)
#define BYTES_q4_0(n) ((n) / 2)
#define WHOLE_f32(n) (n)
#define WHOLE_f16(n) (n)
#define WHOLE_q8_0(n) (n)
#define WHOLE_q4_0(n) ((n) / 16 * 16)

/* y[t] = factor * scale of token t, times x[t] where x is given; pages without scales: factor */
INLINE const uint16_t *scales_of(const void *page, int64_t behind) { /* `behind` bytes after the page's begin */
    return (const uint16_t *)((const int8_t *)page + behind);
}
INLINE void prefetch_scales(const char *page, int64_t behind) {
    if (!page) return;
    prefetch(page + behind);
    prefetch(page + behind + 64);
}
INLINE void token_factors(const void *page, int64_t behind, int scaled, float factor, float *y) {
    for (int t = 0; t < EL_PAGE_TOKENS; t += 8) {
        __m256 f = _mm256_set1_ps(factor);
        if (scaled) f = _mm256_mul_ps(f, halves8(scales_of(page, behind) + t));
        _mm256_storeu_ps(y + t, f);
    }
}
INLINE void scaled_weights(const float *p, int n_rows, const void *page, int64_t behind, float *y) {
    for (int i = 0; i < n_rows * EL_PAGE_TOKENS; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(p + i), halves8(scales_of(page, behind) + i % EL_PAGE_TOKENS)));
}

/* c[r][0 .. 8 V) += sum over k < n of a[r][k] * b[k][0 .. 8 V), in ascending k; a row of b has 64 floats */
INLINE void product_tile(const float *a, int64_t lda, int64_t n, const float *b, const int R, const int V, float *c, int64_t ldc) {
    __m256 s[TILE_ROWS][2];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) s[r][v] = _mm256_loadu_ps(c + r * ldc + 8 * v);
    for (int64_t k = 0; k < n; k++) {
        __m256 x[2];
        UNROLL for (int v = 0; v < V; v++) x[v] = _mm256_loadu_ps(b + k * EL_PAGE_TOKENS + 8 * v);
        UNROLL for (int r = 0; r < R; r++) {
            __m256 factor = _mm256_broadcast_ss(a + r * lda + k);
            UNROLL for (int v = 0; v < V; v++) s[r][v] = _mm256_fmadd_ps(factor, x[v], s[r][v]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) _mm256_storeu_ps(c + r * ldc + 8 * v, s[r][v]);
}

INLINE void product_rows(const float *a, int64_t lda, int64_t n, const float *b, const int R, int64_t cols, float *c, int64_t ldc) {
    int64_t j = 0;
    for (; j + 16 <= cols; j += 16) product_tile(a, lda, n, b + j, R, 2, c + j, ldc);
    for (; j + 8 <= cols; j += 8) product_tile(a, lda, n, b + j, R, 1, c + j, ldc);
    for (; j < cols; j++)
        for (int r = 0; r < R; r++)
            for (int64_t k = 0; k < n; k++)
                c[r * ldc + j] = el_fmaf(a[r * lda + k], b[k * EL_PAGE_TOKENS + j], c[r * ldc + j]);
}

static void product_up_to_6(const float *a, int64_t lda, int64_t n, const float *b, int64_t rows, int64_t cols, float *c, int64_t ldc) {
    switch (rows) {
    case 1: product_rows(a, lda, n, b, 1, cols, c, ldc); break;
    case 2: product_rows(a, lda, n, b, 2, cols, c, ldc); break;
    case 3: product_rows(a, lda, n, b, 3, cols, c, ldc); break;
    case 4: product_rows(a, lda, n, b, 4, cols, c, ldc); break;
    case 5: product_rows(a, lda, n, b, 5, cols, c, ldc); break;
    default: product_rows(a, lda, n, b, 6, cols, c, ldc);
    }
}

/* G rows times V vectors of 8 tokens (scores) or channels (values) share each load of the page. */
#define ATTENTION(TYPE, SCALED)                                                                                  \
    INLINE void scores_##TYPE(const float *q, int64_t head_dim, const void *page, const char *ahead, const int G, \
                              const int V, const float *factors, float *scores) {                                \
        for (int t0 = 0; t0 < EL_PAGE_TOKENS; t0 += 8 * V) {                                                     \
            __m256 s[4][8];                                                                                      \
            UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm256_setzero_ps(); \
            for (int64_t d = 0; d < head_dim; d++) {                                                             \
                __m256 k[8];                                                                                     \
                int64_t at = d * EL_PAGE_TOKENS + t0;                                                            \
                if (ahead && BYTES_##TYPE(at) % 64 == 0) prefetch(ahead + BYTES_##TYPE(at));                     \
                if (ahead && BYTES_##TYPE(V * 8) > 64) prefetch(ahead + BYTES_##TYPE(at) + 64);                  \
                UNROLL for (int v = 0; v < V; v++) k[v] = kv_##TYPE(page, d * EL_PAGE_TOKENS, t0 + 8 * v);       \
                UNROLL for (int g = 0; g < G; g++) {                                                             \
                    __m256 factor = _mm256_broadcast_ss(q + g * head_dim + d);                                   \
                    UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm256_fmadd_ps(factor, k[v], s[g][v]);         \
                }                                                                                                \
            }                                                                                                    \
            UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++)                                \
                _mm256_storeu_ps(scores + g * EL_PAGE_TOKENS + t0 + 8 * v,                                       \
                                 _mm256_mul_ps(s[g][v], _mm256_loadu_ps(factors + t0 + 8 * v)));                 \
        }                                                                                                        \
    }                                                                                                            \
    static void many_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *page,           \
                                   const float *factors, float *scores) {                                        \
        float wide[EL_PAGE_TOKENS * EL_PAGE_TOKENS]; /* 64 channels x 64 tokens */                               \
        memset(scores, 0, (size_t)n_rows * EL_PAGE_TOKENS * sizeof(float));                                      \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t i = 0; i < n * EL_PAGE_TOKENS; i += 8)                                                  \
                _mm256_storeu_ps(wide + i, kv_##TYPE(page, d0 * EL_PAGE_TOKENS, i));                             \
            for (int64_t r = 0; r < n_rows; r += TILE_ROWS)                                                      \
                product_up_to_6(q + r * head_dim + d0, head_dim, n, wide, min64(TILE_ROWS, n_rows - r),          \
                                EL_PAGE_TOKENS, scores + r * EL_PAGE_TOKENS, EL_PAGE_TOKENS);                    \
        }                                                                                                        \
        for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i += 8)                                                 \
            _mm256_storeu_ps(scores + i, _mm256_mul_ps(_mm256_loadu_ps(scores + i),                              \
                                                       _mm256_loadu_ps(factors + i % EL_PAGE_TOKENS)));          \
    }                                                                                                            \
    static void attn_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,         \
                                   const void *ahead, float scale, float *scores) {                              \
        float factors[EL_PAGE_TOKENS];                                                                           \
        token_factors(k_page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), SCALED, scale, factors);                  \
        if (n_rows > DIRECT_ROWS) {                                                                              \
            many_scores_##TYPE(q, n_rows, head_dim, k_page, factors, scores);                                    \
            return;                                                                                              \
        }                                                                                                        \
        if (SCALED) prefetch_scales(ahead, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS));                             \
        for (; n_rows >= 4; n_rows -= 4, q += 4 * head_dim, scores += 4 * EL_PAGE_TOKENS, ahead = NULL)          \
            scores_##TYPE(q, head_dim, k_page, ahead, 4, 2, factors, scores);                                    \
        if (n_rows == 3) scores_##TYPE(q, head_dim, k_page, ahead, 3, 2, factors, scores);                       \
        if (n_rows == 2) scores_##TYPE(q, head_dim, k_page, ahead, 2, 4, factors, scores);                       \
        if (n_rows == 1) scores_##TYPE(q, head_dim, k_page, ahead, 1, 8, factors, scores);                       \
    }                                                                                                            \
    INLINE void values_##TYPE(const float *p, int64_t head_dim, int64_t first, int64_t end, const void *page,    \
                              const char *ahead, int64_t d0, const int G, const int V, float *acc) {             \
        __m256 s[4][4];                                                                                          \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++)                                    \
            s[g][v] = _mm256_loadu_ps(acc + g * head_dim + d0 + 8 * v);                                          \
        for (int64_t t = first; t < end; t++) {                                                                  \
            __m256 value[4];                                                                                     \
            int64_t at = t * head_dim + d0;                                                                      \
            if (ahead) prefetch(ahead + BYTES_##TYPE(at));                                                       \
            UNROLL for (int v = 0; v < V; v++) value[v] = kv_##TYPE(page, t * head_dim, d0 + 8 * v);             \
            UNROLL for (int g = 0; g < G; g++) {                                                                 \
                __m256 factor = _mm256_broadcast_ss(p + g * EL_PAGE_TOKENS + t);                                 \
                UNROLL for (int v = 0; v < V; v++) s[g][v] = _mm256_fmadd_ps(factor, value[v], s[g][v]);         \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < V; v++)                                    \
            _mm256_storeu_ps(acc + g * head_dim + d0 + 8 * v, s[g][v]);                                          \
    }                                                                                                            \
    INLINE void heads_##TYPE(const float *p, const int G, int64_t head_dim, int64_t first, int64_t end,          \
                             const void *page, const char *ahead, float *acc) {                                  \
        float scaled[4 * EL_PAGE_TOKENS];                                                                        \
        if (SCALED) {                                                                                            \
            scaled_weights(p, G, page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), scaled);                         \
            p = scaled;                                                                                          \
        }                                                                                                        \
        int64_t d = 0;                                                                                           \
        if (G <= 2)                                                                                              \
            for (; d + 32 <= WHOLE_##TYPE(head_dim); d += 32) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 4, acc); \
        for (; d + 16 <= WHOLE_##TYPE(head_dim); d += 16) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 2, acc); \
        for (; d + 8 <= WHOLE_##TYPE(head_dim); d += 8) values_##TYPE(p, head_dim, first, end, page, ahead, d, G, 1, acc); \
        for (; d < head_dim; d++)                                                                                \
            for (int g = 0; g < G; g++)                                                                          \
                for (int64_t t = first; t < end; t++)                                                            \
                    acc[g * head_dim + d] = el_fmaf(p[g * EL_PAGE_TOKENS + t],                                   \
                                                    one_kv_##TYPE(page, t * head_dim, d, head_dim), acc[g * head_dim + d]); \
    }                                                                                                            \
    static void many_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *page, float *acc) {                                               \
        float wide[EL_PAGE_TOKENS * EL_PAGE_TOKENS], scaled[TILE_ROWS * EL_PAGE_TOKENS]; /* tokens x channels */ \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t t = first; t < end; t++) {                                                              \
                float *to = wide + (t - first) * EL_PAGE_TOKENS;                                                 \
                int64_t d = 0;                                                                                   \
                for (; d + 8 <= WHOLE_##TYPE(n); d += 8) _mm256_storeu_ps(to + d, kv_##TYPE(page, t * head_dim, d0 + d)); \
                for (; d < n; d++) to[d] = one_kv_##TYPE(page, t * head_dim, d0 + d, head_dim);                  \
            }                                                                                                    \
            for (int64_t r = 0; r < n_rows; r += TILE_ROWS) {                                                    \
                int64_t rows = min64(TILE_ROWS, n_rows - r);                                                     \
                const float *weights = p + r * EL_PAGE_TOKENS;                                                   \
                if (SCALED) scaled_weights(weights, (int)rows, page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), scaled), weights = scaled; \
                product_up_to_6(weights + first, EL_PAGE_TOKENS, end - first, wide, rows, n,                     \
                                acc + r * head_dim + d0, head_dim);                                              \
            }                                                                                                    \
        }                                                                                                        \
    }                                                                                                            \
    static void attn_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *v_page, const void *ahead, float *acc) {                          \
        if (n_rows > DIRECT_ROWS) {                                                                              \
            many_values_##TYPE(p, n_rows, head_dim, first, end, v_page, acc);                                    \
            return;                                                                                              \
        }                                                                                                        \
        if (SCALED) prefetch_scales(ahead, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS));                             \
        for (; n_rows >= 4; n_rows -= 4, p += 4 * EL_PAGE_TOKENS, acc += 4 * head_dim, ahead = NULL)             \
            heads_##TYPE(p, 4, head_dim, first, end, v_page, ahead, acc);                                        \
        if (n_rows == 3) heads_##TYPE(p, 3, head_dim, first, end, v_page, ahead, acc);                           \
        if (n_rows == 2) heads_##TYPE(p, 2, head_dim, first, end, v_page, ahead, acc);                           \
        if (n_rows == 1) heads_##TYPE(p, 1, head_dim, first, end, v_page, ahead, acc);                           \
    }

ATTENTION(f32, 0)
ATTENTION(f16, 0)
ATTENTION(q8_0, 1)
ATTENTION(q4_0, 1)

/* ---- storing a token, and the largest score ------------------------------------------------------------------------- */
static void store_k_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    uint16_t *out = (uint16_t *)page + t, part[8];
    int64_t d = 0;
    for (; d + 8 <= head_dim; d += 8) {
        _mm_storeu_si128((__m128i *)part, _mm256_cvtps_ph(_mm256_loadu_ps(x + d), _MM_FROUND_TO_NEAREST_INT));
        for (int i = 0; i < 8; i++) out[(d + i) * EL_PAGE_TOKENS] = part[i];
    }
    for (; d < head_dim; d++) out[d * EL_PAGE_TOKENS] = el_f32_to_f16(x[d]);
}
static void store_v_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    uint16_t *out = (uint16_t *)page + t * head_dim;
    int64_t d = 0;
    for (; d + 8 <= head_dim; d += 8)
        _mm_storeu_si128((__m128i *)(out + d), _mm256_cvtps_ph(_mm256_loadu_ps(x + d), _MM_FROUND_TO_NEAREST_INT));
    for (; d < head_dim; d++) out[d] = el_f32_to_f16(x[d]);
}

/* x (n) to int8 at out, out + step, ... */
INLINE void store_q8_0(const float *x, int64_t n, int8_t *out, const int64_t step, uint16_t *scale) {
    __m256i top8 = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) top8 = _mm256_max_epi32(top8, abs_bits(x + i));
    uint32_t top = el_bits(largest8(top8));
    for (; i < n; i++) top = (el_bits(x[i]) & 0x7fffffffu) > top ? el_bits(x[i]) & 0x7fffffffu : top;
    *scale = el_f32_to_f16(el_float(top) / 127.0f);
    float d = el_f16_to_f32(*scale), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    for (i = 0; i + 8 <= n; i += 8) {
        int8_t part[8];
        __m256i v = rounded8(x + i, _mm256_set1_ps(inverse));
        __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        _mm_storel_epi64((__m128i *)part, _mm_packs_epi16(w, w));
        if (step == 1) memcpy(out + i, part, 8);
        else
            for (int j = 0; j < 8; j++) out[(i + j) * step] = part[j];
    }
    for (; i < n; i++) out[i * step] = el_q8(x[i] * inverse);
}

static void store_k_q8_0(const float *x, int64_t head_dim, int64_t t, void *page) {
    int8_t *out = page;
    store_q8_0(x, head_dim, out + t, EL_PAGE_TOKENS, (uint16_t *)(out + head_dim * EL_PAGE_TOKENS) + t);
}
static void store_v_q8_0(const float *x, int64_t head_dim, int64_t t, void *page) {
    int8_t *out = page;
    store_q8_0(x, head_dim, out + t * head_dim, 1, (uint16_t *)(out + head_dim * EL_PAGE_TOKENS) + t);
}

static float largest(const float *x, int64_t n, float max) {
    __m256 top = _mm256_set1_ps(max), odd = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        top = _mm256_max_ps(v, top);
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, top);
    for (int l = 0; l < 8; l++)
        if (lanes[l] > max || lanes[l] != lanes[l]) max = lanes[l];
    for (; i < n; i++)
        if (x[i] > max || x[i] != x[i]) max = x[i];
    return _mm256_movemask_ps(odd) ? NAN : max;
}

#define ATTENTION_ENTRIES                                                                          \
    .attn_scores = {attn_scores_f32, attn_scores_f16, attn_scores_q8_0, attn_scores_q4_0}, /* by el_kv_type */ \
    .attn_values = {attn_values_f32, attn_values_f16, attn_values_q8_0, attn_values_q4_0},     \
    .attn_store_k = {[EL_KV_F16] = store_k_f16, [EL_KV_Q8_0] = store_k_q8_0},                      \
    .attn_store_v = {[EL_KV_F16] = store_v_f16, [EL_KV_Q8_0] = store_v_q8_0},                      \
    .largest = largest,
