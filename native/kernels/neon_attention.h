/* neon_attention.h: the attention part of neon.c. One K or V page of one KV head at a time; a row is one query head of one
 * token.
 *
 * Up to DIRECT_ROWS rows (a decoded token) widen the page's numbers on the way, and up to four rows share that. More rows
 * (a prompt) first widen 64 x 64 numbers to float32, then multiply as matrices do. Each accumulator adds in the same order
 * on both ways.
 */
enum { DIRECT_ROWS = 8, TILE_ROWS = 4 };

/* Numbers i .. i + 7, as floats, of the row that begins `row` numbers behind the page's begin, i a multiple of 8. Of 16
 * numbers of 4 bits the first 8 are in the low halves of 8 bytes. */
INLINE void kv_f32(const void *page, int64_t row, int64_t i, float32x4_t *out) {
    out[0] = floats4((const float *)page + row + i);
    out[1] = floats4((const float *)page + row + i + 4);
}
INLINE void kv_f16(const void *page, int64_t row, int64_t i, float32x4_t *out) {
    out[0] = halves4((const uint16_t *)page + row + i);
    out[1] = halves4((const uint16_t *)page + row + i + 4);
}
INLINE void widened(int8x8_t bytes, float32x4_t *out) {
    int16x8_t v = vmovl_s8(bytes);
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(v)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(v));
}
INLINE void kv_q8_0(const void *page, int64_t row, int64_t i, float32x4_t *out) {
    widened(vld1_s8((const int8_t *)page + row + i), out);
}
INLINE void kv_q4_0(const void *page, int64_t row, int64_t i, float32x4_t *out) {
    uint8x8_t both = vld1_u8((const uint8_t *)page + (row + (i & ~(int64_t)15)) / 2);
    uint8x8_t codes = i & 8 ? vshr_n_u8(both, 4) : vand_u8(both, vdup_n_u8(15));
    widened(vsub_s8(vreinterpret_s8_u8(codes), vdup_n_s8(8)), out);
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

INLINE const uint16_t *scales_of(const void *page, int64_t behind) { /* `behind` bytes after the page's begin */
    return (const uint16_t *)((const int8_t *)page + behind);
}

/* y (64): factor times the scale of each token; pages without scales: factor */
INLINE void token_factors(const void *page, int64_t behind, const int scaled, float factor, float *y) {
    for (int t = 0; t < EL_PAGE_TOKENS; t += 4)
        vst1q_f32(y + t, scaled ? vmulq_n_f32(halves4(scales_of(page, behind) + t), factor) : vdupq_n_f32(factor));
}

/* y (n_rows, 64): p times the tokens' scales */
INLINE void scaled_weights(const float *p, int64_t n_rows, const void *page, int64_t behind, float *y) {
    for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i += 4)
        vst1q_f32(y + i, vmulq_f32(vld1q_f32(p + i), halves4(scales_of(page, behind) + i % EL_PAGE_TOKENS)));
}

/* c[r][0 .. 4 V) += sum over k < n of a[r][k] * b[k][0 .. 4 V), in ascending k; a row of b has 64 floats */
INLINE void product_tile(const float *a, int64_t lda, int64_t n, const float *b, const int R, const int V, float *c,
                         int64_t ldc) {
    float32x4_t s[TILE_ROWS][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) s[r][v] = vld1q_f32(c + r * ldc + 4 * v);
    for (int64_t k = 0; k < n; k++) {
        float32x4_t x[4];
        UNROLL for (int v = 0; v < V; v++) x[v] = vld1q_f32(b + k * EL_PAGE_TOKENS + 4 * v);
        UNROLL for (int r = 0; r < R; r++) {
            float factor = a[r * lda + k];
            UNROLL for (int v = 0; v < V; v++) s[r][v] = vfmaq_n_f32(s[r][v], x[v], factor);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) vst1q_f32(c + r * ldc + 4 * v, s[r][v]);
}

INLINE void product_rows(const float *a, int64_t lda, int64_t n, const float *b, const int R, int64_t cols, float *c,
                         int64_t ldc) {
    int64_t j = 0;
    for (; j + 16 <= cols; j += 16) product_tile(a, lda, n, b + j, R, 4, c + j, ldc);
    for (; j + 4 <= cols; j += 4) product_tile(a, lda, n, b + j, R, 1, c + j, ldc);
    for (; j < cols; j++)
        for (int r = 0; r < R; r++)
            for (int64_t k = 0; k < n; k++)
                c[r * ldc + j] = el_fmaf(a[r * lda + k], b[k * EL_PAGE_TOKENS + j], c[r * ldc + j]);
}

static void product(const float *a, int64_t lda, int64_t n, const float *b, int64_t rows, int64_t cols, float *c, int64_t ldc) {
    for (; rows >= 4; rows -= 4, a += 4 * lda, c += 4 * ldc) product_rows(a, lda, n, b, 4, cols, c, ldc);
    for (; rows >= 1; rows--, a += lda, c += ldc) product_rows(a, lda, n, b, 1, cols, c, ldc);
}

/* G rows times V times 8 tokens (scores) or channels (values) share each load of the page; 2 G V <= 16 accumulators. */
#define ATTENTION(TYPE, SCALED)                                                                                  \
    INLINE void ahead_##TYPE(const char *ahead, int64_t at, const int n) { /* numbers at .. at + n */            \
        for (int i = 0; ahead && BYTES_##TYPE(at) % 64 == 0 && i < BYTES_##TYPE(n); i += 64)                     \
            prefetch(ahead + BYTES_##TYPE(at) + i);                                                              \
    }                                                                                                            \
    INLINE void scores_##TYPE(const float *q, int64_t head_dim, const void *page, const char *ahead, const int G, \
                              const int V, const float *factors, float *scores) {                                \
        for (int t0 = 0; t0 < EL_PAGE_TOKENS; t0 += 8 * V) {                                                     \
            float32x4_t s[4][16];                                                                                \
            UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < 2 * V; v++) s[g][v] = vdupq_n_f32(0.0f); \
            for (int64_t d = 0; d < head_dim; d++) {                                                             \
                ahead_##TYPE(ahead, d * EL_PAGE_TOKENS + t0, 8 * V);                                             \
                UNROLL for (int v = 0; v < V; v++) {                                                             \
                    float32x4_t k[2];                                                                            \
                    kv_##TYPE(page, d * EL_PAGE_TOKENS, t0 + 8 * v, k);                                          \
                    UNROLL for (int g = 0; g < G; g++) UNROLL for (int h = 0; h < 2; h++)                        \
                        s[g][2 * v + h] = vfmaq_n_f32(s[g][2 * v + h], k[h], q[g * head_dim + d]);               \
                }                                                                                                \
            }                                                                                                    \
            UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < 2 * V; v++)                            \
                vst1q_f32(scores + g * EL_PAGE_TOKENS + t0 + 4 * v,                                              \
                          vmulq_f32(s[g][v], vld1q_f32(factors + t0 + 4 * v)));                                  \
        }                                                                                                        \
    }                                                                                                            \
    static void many_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *page,           \
                                   const float *factors, float *scores) {                                        \
        float wide[EL_PAGE_TOKENS * EL_PAGE_TOKENS]; /* 64 channels x 64 tokens */                               \
        float32x4_t v[2];                                                                                        \
        memset(scores, 0, (size_t)n_rows * EL_PAGE_TOKENS * sizeof(float));                                      \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t i = 0; i < n * EL_PAGE_TOKENS; i += 8) {                                                \
                kv_##TYPE(page, d0 * EL_PAGE_TOKENS, i, v);                                                      \
                vst1q_f32(wide + i, v[0]);                                                                       \
                vst1q_f32(wide + i + 4, v[1]);                                                                   \
            }                                                                                                    \
            product(q + d0, head_dim, n, wide, n_rows, EL_PAGE_TOKENS, scores, EL_PAGE_TOKENS);                  \
        }                                                                                                        \
        for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i += 4)                                                 \
            vst1q_f32(scores + i, vmulq_f32(vld1q_f32(scores + i), vld1q_f32(factors + i % EL_PAGE_TOKENS)));    \
    }                                                                                                            \
    static void attn_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,         \
                                   const void *ahead, float scale, float *scores) {                              \
        float factors[EL_PAGE_TOKENS];                                                                           \
        token_factors(k_page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), SCALED, scale, factors);                  \
        if (n_rows > DIRECT_ROWS) {                                                                              \
            many_scores_##TYPE(q, n_rows, head_dim, k_page, factors, scores);                                    \
            return;                                                                                              \
        }                                                                                                        \
        for (; n_rows >= 4; n_rows -= 4, q += 4 * head_dim, scores += 4 * EL_PAGE_TOKENS, ahead = NULL)          \
            scores_##TYPE(q, head_dim, k_page, ahead, 4, 2, factors, scores);                                    \
        if (n_rows == 3) scores_##TYPE(q, head_dim, k_page, ahead, 3, 2, factors, scores);                       \
        if (n_rows == 2) scores_##TYPE(q, head_dim, k_page, ahead, 2, 4, factors, scores);                       \
        if (n_rows == 1) scores_##TYPE(q, head_dim, k_page, ahead, 1, 8, factors, scores);                       \
    }                                                                                                            \
    INLINE void values_##TYPE(const float *p, int64_t head_dim, int64_t first, int64_t end, const void *page,    \
                              const char *ahead, int64_t d0, const int G, const int V, float *acc) {             \
        float32x4_t s[4][8];                                                                                     \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < 2 * V; v++)                                \
            s[g][v] = vld1q_f32(acc + g * head_dim + d0 + 4 * v);                                                \
        for (int64_t t = first; t < end; t++) {                                                                  \
            ahead_##TYPE(ahead, t * head_dim + d0, 8 * V);                                                       \
            UNROLL for (int v = 0; v < V; v++) {                                                                 \
                float32x4_t value[2];                                                                            \
                kv_##TYPE(page, t * head_dim, d0 + 8 * v, value);                                                \
                UNROLL for (int g = 0; g < G; g++) UNROLL for (int h = 0; h < 2; h++)                            \
                    s[g][2 * v + h] = vfmaq_n_f32(s[g][2 * v + h], value[h], p[g * EL_PAGE_TOKENS + t]);         \
            }                                                                                                    \
        }                                                                                                        \
        UNROLL for (int g = 0; g < G; g++) UNROLL for (int v = 0; v < 2 * V; v++)                                \
            vst1q_f32(acc + g * head_dim + d0 + 4 * v, s[g][v]);                                                 \
    }                                                                                                            \
    INLINE void heads_##TYPE(const float *p, const int G, int64_t head_dim, int64_t first, int64_t end,          \
                             const void *page, const char *ahead, float *acc) {                                  \
        float scaled[4 * EL_PAGE_TOKENS];                                                                        \
        int64_t d = 0;                                                                                           \
        if (SCALED) scaled_weights(p, G, page, BYTES_##TYPE(head_dim * EL_PAGE_TOKENS), scaled), p = scaled;     \
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
        float32x4_t v[2];                                                                                        \
        for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                              \
            int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                    \
            for (int64_t t = first; t < end; t++) {                                                              \
                float *to = wide + (t - first) * EL_PAGE_TOKENS;                                                 \
                int64_t d = 0;                                                                                   \
                for (; d + 8 <= WHOLE_##TYPE(n); d += 8) {                                                       \
                    kv_##TYPE(page, t * head_dim, d0 + d, v);                                                    \
                    vst1q_f32(to + d, v[0]);                                                                     \
                    vst1q_f32(to + d + 4, v[1]);                                                                 \
                }                                                                                                \
                for (; d < n; d++) to[d] = one_kv_##TYPE(page, t * head_dim, d0 + d, head_dim);                  \
            }                                                                                                    \
            for (int64_t r = 0; r < n_rows; r += TILE_ROWS) {                                                    \
                int64_t rows = min64(TILE_ROWS, n_rows - r);                                                     \
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
    uint16_t *out = (uint16_t *)page + t, part[4];
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4) {
        vst1_u16(part, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + d))));
        for (int i = 0; i < 4; i++) out[(d + i) * EL_PAGE_TOKENS] = part[i];
    }
    for (; d < head_dim; d++) out[d * EL_PAGE_TOKENS] = el_f32_to_f16(x[d]);
}
static void store_v_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    uint16_t *out = (uint16_t *)page + t * head_dim;
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4) vst1_u16(out + d, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + d))));
    for (; d < head_dim; d++) out[d] = el_f32_to_f16(x[d]);
}

/* x (n) to int8 at out, out + step, ... */
INLINE void store_q8_0(const float *x, int64_t n, int8_t *out, const int64_t step, uint16_t *scale) {
    int32x4_t top4 = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) top4 = vmaxq_s32(top4, abs_bits(x + i));
    uint32_t top = (uint32_t)vmaxvq_s32(top4);
    for (; i < n; i++) top = (el_bits(x[i]) & 0x7fffffffu) > top ? el_bits(x[i]) & 0x7fffffffu : top;
    *scale = el_f32_to_f16(el_float(top) / 127.0f);
    float d = el_f16_to_f32(*scale), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    for (i = 0; i + 16 <= n; i += 16) {
        int8_t part[16];
        vst1q_s8(part, rounded16(x + i, inverse));
        if (step == 1) memcpy(out + i, part, 16);
        else
            for (int j = 0; j < 16; j++) out[(i + j) * step] = part[j];
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
    float32x4_t top = vdupq_n_f32(max);
    uint32x4_t numbers = vdupq_n_u32(~0u);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        numbers = vandq_u32(numbers, vceqq_f32(v, v));
        top = vbslq_f32(vcgtq_f32(v, top), v, top);
    }
    float lanes[4];
    vst1q_f32(lanes, top);
    for (int l = 0; l < 4; l++)
        if (lanes[l] > max || lanes[l] != lanes[l]) max = lanes[l];
    for (; i < n; i++)
        if (x[i] > max || x[i] != x[i]) max = x[i];
    return vminvq_u32(numbers) ? max : NAN;
}

#define ATTENTION_ENTRIES                                                                          \
    .attn_scores = {attn_scores_f32, attn_scores_f16, attn_scores_q8_0, attn_scores_q4_0}, /* by el_kv_type */ \
    .attn_values = {attn_values_f32, attn_values_f16, attn_values_q8_0, attn_values_q4_0},     \
    .attn_store_k = {[EL_KV_F16] = store_k_f16, [EL_KV_Q8_0] = store_k_q8_0},                      \
    .attn_store_v = {[EL_KV_F16] = store_v_f16, [EL_KV_Q8_0] = store_v_q8_0},                      \
    .largest = largest,
