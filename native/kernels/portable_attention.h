/* portable_attention.h: the attention part of portable.c. One K or V page of one KV head at a time; a row is one query
 * head of one token. */

/* Number i of a row of `width` numbers, `row` numbers behind the page's begin */
static inline float kv_f32(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return ((const float *)page)[row + i];
}
static inline float kv_f16(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return el_f16_to_f32(((const uint16_t *)page)[row + i]);
}
static inline float kv_q8_0(const void *page, int64_t row, int64_t i, int64_t width) {
    (void)width;
    return (float)((const int8_t *)page)[row + i];
}
#define kv_q4_0 el_number_q4_0

/* What the products of token t are multiplied with, besides `factor`: the scales behind a page of q8_0 or q4_0. */
static inline float scale_f32(const void *page, int64_t head_dim, int64_t t, float factor) {
    (void)page, (void)head_dim, (void)t;
    return factor;
}
#define scale_f16 scale_f32
static inline float scale_q8_0(const void *page, int64_t head_dim, int64_t t, float factor) {
    const uint16_t *d = (const uint16_t *)((const int8_t *)page + head_dim * EL_PAGE_TOKENS);
    return factor * el_f16_to_f32(d[t]);
}
static inline float scale_q4_0(const void *page, int64_t head_dim, int64_t t, float factor) {
    return scale_q8_0(page, head_dim / 2, t, factor);
}

#define ATTENTION(TYPE)                                                                                          \
    static void attn_scores_##TYPE(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,         \
                                   const void *ahead, float scale, float *scores) {                              \
        (void)ahead;                                                                                             \
        for (int64_t i = 0; i < n_rows * EL_PAGE_TOKENS; i++) scores[i] = 0.0f;                                  \
        for (int64_t d = 0; d < head_dim; d++) {                                                                 \
            float k[EL_PAGE_TOKENS]; /* channel d of the 64 tokens */                                            \
            for (int t = 0; t < EL_PAGE_TOKENS; t++) k[t] = kv_##TYPE(k_page, d * EL_PAGE_TOKENS, t, EL_PAGE_TOKENS);           \
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
                for (int64_t d = 0; d < n; d++) v[d] = kv_##TYPE(v_page, t * head_dim, d0 + d, head_dim);                 \
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
ATTENTION(q4_0)

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

/* The f16 scale for x (n) if its number of largest size shall become `code`, and the squared error that comes of it */
static uint16_t q4_scale(const float *x, int64_t n, float extreme, float code, float *error) {
    uint16_t scale = el_f32_to_f16(extreme / code);
    float d = el_f16_to_f32(scale), inverse = d != 0.0f ? 1.0f / d : 0.0f, lanes[EL_LANES] = {0};
    for (int64_t i0 = 0; i0 < n; i0 += EL_LANES)
        for (int64_t i = i0; i < min64(n, i0 + EL_LANES); i++) {
            float rest = x[i] - d * (float)(el_q4(x[i] * inverse) - 8);
            lanes[i - i0] += rest * rest;
        }
    *error = el_tree16(lanes);
    return scale;
}

/* x (n) as token t of a page: K if `keys`, its numbers in n rows of 64, else V, one row of n */
static void store_q4_0(const float *x, int64_t n, int64_t t, void *page, int keys) {
    uint8_t *out = page;
    float extreme = x[0], error8, error9;
    for (int64_t i = 1; i < n; i++)
        if ((el_bits(x[i]) & 0x7fffffffu) > (el_bits(extreme) & 0x7fffffffu)) extreme = x[i];
    uint16_t scale = q4_scale(x, n, extreme, -8.0f, &error8), clipped = q4_scale(x, n, extreme, -9.0f, &error9);
    if (error9 < error8) scale = clipped;
    ((uint16_t *)(out + n * EL_PAGE_TOKENS / 2))[t] = scale;
    float d = el_f16_to_f32(scale), inverse = d != 0.0f ? 1.0f / d : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        int shift;
        int64_t byte = keys ? el_nibble(i * EL_PAGE_TOKENS, t, EL_PAGE_TOKENS, &shift) : el_nibble(t * n, i, n, &shift);
        out[byte] = (uint8_t)((out[byte] & 0xf0u >> shift) | (uint32_t)el_q4(x[i] * inverse) << shift);
    }
}
static void store_k_q4_0(const float *x, int64_t head_dim, int64_t t, void *page) { store_q4_0(x, head_dim, t, page, 1); }
static void store_v_q4_0(const float *x, int64_t head_dim, int64_t t, void *page) { store_q4_0(x, head_dim, t, page, 0); }

static float largest(const float *x, int64_t n, float max) {
    for (int64_t i = 0; i < n; i++)
        if (x[i] > max || x[i] != x[i]) max = x[i];
    return max;
}

#define ATTENTION_ENTRIES /* by el_kv_type */                                        \
    .attn_scores = {attn_scores_f32, attn_scores_f16, attn_scores_q8_0, attn_scores_q4_0}, \
    .attn_values = {attn_values_f32, attn_values_f16, attn_values_q8_0, attn_values_q4_0}, \
    .attn_store_k = {store_k_f32, store_k_f16, store_k_q8_0, store_k_q4_0},                \
    .attn_store_v = {store_v_f32, store_v_f16, store_v_q8_0, store_v_q4_0},                \
    .largest = largest,
