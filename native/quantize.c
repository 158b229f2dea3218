/* quantize.c: float32 to any block format, with and without importance of the columns. */
#include "quantize.h"

static uint16_t to_bf16(float f) { /* to nearest even; a NaN stays one and becomes quiet */
    uint32_t x;
    memcpy(&x, &f, 4);
    if ((x & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(x >> 16 | 64u);
    return (uint16_t)(((uint64_t)x + 0x7fffu + (x >> 16 & 1u)) >> 16);
}

static const float all_equal[256] = {
#define ONES8 1, 1, 1, 1, 1, 1, 1, 1
#define ONES64 ONES8, ONES8, ONES8, ONES8, ONES8, ONES8, ONES8, ONES8
    ONES64, ONES64, ONES64, ONES64,
};

typedef struct {
    int block, bytes;                                          /* weights and bytes of a block; 0: not in the table */
    void (*plain)(const float *x, void *block);                /* NULL: the search, with equal importance */
    void (*search)(const float *x, const float *w, void *block); /* NULL: no scale to choose, importance is not asked */
} writer;

#define BOTH(n) {QK, sizeof(el_block_##n), el_plain_##n, el_search_##n}
#define PLAIN(length, n) {length, sizeof(el_block_##n), el_plain_##n, NULL}
#define SEARCHED(length, n) {length, sizeof(el_block_##n), NULL, el_search_##n}
static const writer writers[EL_TYPE_LIMIT] = {
    [EL_TYPE_Q4_0] = BOTH(q4_0),
    [EL_TYPE_Q4_1] = BOTH(q4_1),
    [EL_TYPE_Q5_0] = BOTH(q5_0),
    [EL_TYPE_Q5_1] = BOTH(q5_1),
    [EL_TYPE_Q8_0] = BOTH(q8_0),
    [EL_TYPE_Q2_K] = SEARCHED(256, q2_k),
    [EL_TYPE_Q3_K] = SEARCHED(256, q3_k),
    [EL_TYPE_Q4_K] = SEARCHED(256, q4_k),
    [EL_TYPE_Q5_K] = SEARCHED(256, q5_k),
    [EL_TYPE_Q6_K] = SEARCHED(256, q6_k),
    [EL_TYPE_IQ4_NL] = SEARCHED(QK, iq4_nl),
    [EL_TYPE_IQ4_XS] = SEARCHED(256, iq4_xs),
    [EL_TYPE_TQ1_0] = PLAIN(256, tq1_0),
    [EL_TYPE_TQ2_0] = PLAIN(256, tq2_0),
    [EL_TYPE_MXFP4] = PLAIN(QK, mxfp4),
};

int64_t el_count_of(int type, int64_t rows, int64_t k) {
    int64_t bytes = el_row_bytes(type, k);
    if (bytes < 0 || rows < 0 || k > INT64_MAX / 8 || (k && rows > INT64_MAX / 8 / k)) return -1;
    return rows * k;
}

static int usable(const float *importance, int64_t k) {
    for (int64_t i = 0; i < k; i++)
        if (!(importance[i] >= 0.0f && importance[i] < INFINITY)) return 0;
    return 1;
}

int el_quantize_weighted(int type, const float *src, const float *importance, void *dst, int64_t rows, int64_t k) {
    int64_t n = el_count_of(type, rows, k);
    if (n < 0 || (n && (!src || !dst)) || (importance && !usable(importance, k))) return EL_E_ARGUMENT;
    switch (type) {
    case EL_TYPE_F32:
        if (n) memcpy(dst, src, (size_t)n * 4);
        return EL_OK;
    BLOCKS(F16, ((el_block_f16 *)dst)[i].x = el_f32_to_f16(src[i]), 1)
    BLOCKS(BF16, ((el_block_bf16 *)dst)[i].x = to_bf16(src[i]), 1)
    default: break;
    }
    const writer *to = &writers[type]; /* el_count_of has checked the type */
    if (!to->block) return EL_E_UNSUPPORTED;
    int64_t per_row = k / to->block;
    for (int64_t i = 0; i < n / to->block; i++) {
        const float *x = src + i * to->block;
        void *block = (char *)dst + i * to->bytes;
        if (!to->search || (!importance && to->plain)) to->plain(x, block);
        else to->search(x, importance ? importance + i % per_row * to->block : all_equal, block);
    }
    return EL_OK;
}

int el_quantize(int type, const float *src, void *dst, int64_t rows, int64_t k) {
    return el_quantize_weighted(type, src, NULL, dst, rows, k);
}
