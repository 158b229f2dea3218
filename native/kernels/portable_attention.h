/* portable_attention.h: the attention part of portable.c. One K or V page of one KV head at a time; a row is one query
 * head of one token. */

static inline float kv_f32(const void *page, int64_t i) { return ((const float *)page)[i]; }
static inline float kv_f16(const void *page, int64_t i) { return el_f16_to_f32(((const uint16_t *)page)[i]); }
static inline float kv_q8_0(const void *page, int64_t i) { return (float)((const int8_t *)page)[i]; }

/* What the products of token t are multiplied with, besides `factor`: the scales behind a page of q8_0. */
static inline float scale_f32(const void *page, int64_t head_dim, int64_t t, float factor) {
    (void)page, (void)head_dim, (void)t;
    return factor;
}
#define scale_f16 scale_f32
static inline float scale_q8_0(const void *page, int64_t head_dim, int64_t t, float factor) {
    const uint16_t *d = (const uint16_t *)((const int8_t *)page + head_dim * EL_PAGE_TOKENS);
    return factor * el_f16_to_f32(d[t]);
}

#define ATTENTION(TYPE)                                                                                          \
    static void attn_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,         \
                                   const void *ahead, float scale, float *scores) {                              \
        (void)ahead;                                                                                             \
        for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i++) scores[i] = 0.0f;                                  \
        for (int64_t d = 0; d < head_dim; d++) {                                                                 \
            float k[EL_PAGE_TOKENS]; /* channel d of the 64 tokens */                                            \
            for (int t = 0; t < EL_PAGE_TOKENS; t++) k[t] = kv_##TYPE(k_page, d * EL_PAGE_TOKENS + t);           \
            for (int64_t r = 0; r < n_rows; r++) {                                                               \
                float *s = scores + r * EL_PAGE_TOKENS, factor = q[r * head_dim + d];                            \
                for (int t = 0; t < EL_PAGE_TOKENS; t++) s[t] = el_fmaf(factor, k[t], s[t]);                     \
            }                                                                                                    \
        }                                                                                                        \
        float factors[EL_PAGE_TOKENS];                                                                           \
        for (int t = 0; t < EL_PAGE_TOKENS; t++) factors[t] = scale_##TYPE(k_page, head_dim, t, scale);          \
        for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i++) scores[i] *= factors[i % EL_PAGE_TOKENS];          \
    }                                                                                                            \
    static void attn_values_##TYPE(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end, \
                                   const void *v_page, const void *ahead, float *acc) {                          \
        (void)ahead;                                                                                             \
        for (int64_t t = first; t < end; t++)                                                                    \
            for (int64_t d0 = 0; d0 < head_dim; d0 += EL_PAGE_TOKENS) {                                          \
                int64_t n = min64(EL_PAGE_TOKENS, head_dim - d0);                                                \
                float v[EL_PAGE_TOKENS]; /* up to 64 channels of token t */                                      \
                for (int64_t d = 0; d < n; d++) v[d] = kv_##TYPE(v_page, t * head_dim + d0 + d);                 \
                for (int64_t r = 0; r < n_rows; r++) {                                                           \
                    float *a = acc + r * head_dim + d0;                                                          \
                    float factor = scale_##TYPE(v_page, head_dim, t, p[r * EL_PAGE_TOKENS + t]);                 \
                    for (int64_t d = 0; d < n; d++) a[d] = el_fmaf(factor, v[d], a[d]);                          \
                }                                                                                                \
            }                                                                                                    \
    }

ATTENTION(f32)
ATTENTION(f16)
ATTENTION(q8_0)

static void store_k_f32(const float *x, int64_t head_dim, int64_t t, void *page) {
    for (int64_t d = 0; d < head_dim; d++) ((float *)page)[d * EL_PAGE_TOKENS + t] = x[d];
}
static void store_v_f32(const float *x, int64_t head_dim, int64_t t, void *page) {
    memcpy((float *)page + t * head_dim, x, (size_t)head_dim * sizeof(float));
}

static void store_k_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    for (int64_t d = 0; d < head_dim; d++) ((uint16_t *)page)[d * EL_PAGE_TOKENS + t] = el_f32_to_f16(x[d]);
}
static void store_v_f16(const float *x, int64_t head_dim, int64_t t, void *page) {
    for (int64_t d = 0; d < head_dim; d++) ((uint16_t *)page)[t * head_dim + d] = el_f32_to_f16(x[d]);
}

/* x (n) to int8 at out, out + step, ...; the scale is rounded to f16 first, so that the numbers fit what is stored */
static void store_q8_0(const float *x, int64_t n, int8_t *out, int64_t step, uint16_t *scale) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = el_bits(x[i]) & 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    *scale = el_f32_to_f16(el_float(top) / 127.0f);
    float d = el_f16_to_f32(*scale), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    for (int64_t i = 0; i < n; i++) out[i * step] = el_q8(x[i] * inverse);
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
    for (int64_t i = 0; i < n; i++)
        if (x[i] > max || x[i] != x[i]) max = x[i];
    return max;
}

#define ATTENTION_ENTRIES                                                                                     \
    .attn_scores = {[EL_KV_F32] = attn_scores_f32, [EL_KV_F16] = attn_scores_f16, [EL_KV_Q8_0] = attn_scores_q8_0}, \
    .attn_values = {[EL_KV_F32] = attn_values_f32, [EL_KV_F16] = attn_values_f16, [EL_KV_Q8_0] = attn_values_q8_0}, \
    .attn_store_k = {[EL_KV_F32] = store_k_f32, [EL_KV_F16] = store_k_f16, [EL_KV_Q8_0] = store_k_q8_0},            \
    .attn_store_v = {[EL_KV_F32] = store_v_f32, [EL_KV_F16] = store_v_f16, [EL_KV_Q8_0] = store_v_q8_0},            \
    .largest = largest,
