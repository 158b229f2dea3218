/* avx512_ops.h: the part of avx512.c for rows of floats, the quantisation of activations and element-wise steps. A vector is
 * the 16 lanes of formats/arithmetic.md, so sums need no second accumulator.
 */

/* ---- rows of floats --------------------------------------------------------------------------------------------------- */
INLINE __m512 load_f32(const uint8_t *p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
INLINE __m512 load_f16(const uint8_t *p, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p)); }
INLINE __m512 load_bf16(const uint8_t *p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

enum { ROW_AHEAD = 1024 }; /* four rows are read side by side: less for each */

/* What is read ROW_AHEAD bytes after `at` of a row, of R side by side: behind its end comes the R-th row after it. */
INLINE int64_t row_ahead(int64_t at, int64_t row_bytes, const int R) {
    at += ROW_AHEAD;
    return at < row_bytes ? at : at + (R - 1) * row_bytes;
}

/* R rows times C columns share their loads. Rows past the end repeat the last one and are not stored. */
#define FLOAT_ROWS(NAME, BYTES, LOAD)                                                                            \
    INLINE void NAME##_step(const uint8_t *const *row, const int R, const float *x, int64_t ldf, const int C, int64_t at, \
                            __mmask16 m, __m512 (*acc)[4]) {                                                     \
        __m512 f[4];                                                                                             \
        UNROLL for (int c = 0; c < C; c++) f[c] = _mm512_maskz_loadu_ps(m, x + c * ldf + at);                    \
        UNROLL for (int r = 0; r < R; r++) {                                                                     \
            __m512 w = LOAD(row[r] + at * BYTES, m);                                                             \
            UNROLL for (int c = 0; c < C; c++) acc[r][c] = _mm512_mask3_fmadd_ps(w, f[c], acc[r][c], m);         \
        }                                                                                                        \
    }                                                                                                            \
    INLINE void NAME##_tile(const uint8_t *const *row, const int R, const el_act *x, int64_t m0, const int C,    \
                            int64_t n_rows, float *y, int64_t ldy) {                                             \
        const float *f = x->f + m0 * x->ldf;                                                                     \
        __m512 acc[4][4];                                                                                        \
        int64_t k0 = 0;                                                                                          \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();   \
        for (; k0 + EL_LANES <= x->k; k0 += EL_LANES) {                                                          \
            UNROLL for (int r = 0; r < R; r++) prefetch(row[r] + row_ahead(k0 * BYTES, x->k * BYTES, R));           \
            NAME##_step(row, R, f, x->ldf, C, k0, 0xffff, acc);                                                  \
        }                                                                                                        \
        if (k0 < x->k) NAME##_step(row, R, f, x->ldf, C, k0, first_lanes(x->k - k0), acc);                       \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {                                  \
            float total = tree16(acc[r][c]);                                                                     \
            if (r < n_rows) y[(m0 + c) * ldy + r] = total;                                                       \
        }                                                                                                        \
    }                                                                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        const uint8_t *row[4];                                                                                   \
        for (int64_t r0 = row0; r0 < row1; r0 += 4) {                                                            \
            int64_t n = min64(4, row1 - r0), m0 = 0;                                                             \
            for (int r = 0; r < 4; r++) row[r] = (const uint8_t *)w + min64(r0 + r, row1 - 1) * x->k * BYTES;    \
            float *out = y + r0 - row0;                                                                          \
            for (; m0 + 4 <= n_cols; m0 += 4) NAME##_tile(row, 4, x, m0, 4, n, out, ldy);                        \
            for (; m0 + 2 <= n_cols; m0 += 2) NAME##_tile(row, 4, x, m0, 2, n, out, ldy);                        \
            for (; m0 < n_cols; m0++) NAME##_tile(row, 4, x, m0, 1, n, out, ldy);                                \
        }                                                                                                        \
    }

FLOAT_ROWS(matrix_f32, 4, load_f32)
FLOAT_ROWS(matrix_f16, 2, load_f16)
FLOAT_ROWS(matrix_bf16, 2, load_bf16)

/* ---- activations to int8 ----------------------------------------------------------------------------------------------- */
INLINE __m512i abs_bits(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), v_set1(0x7fffffff)); }
INLINE __m512i rounded16(__m512 x, __m512 inverse) { /* NaN becomes 127, as el_q8 does */
    __m512 v = _mm512_min_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(127.0f));
    return _mm512_cvtps_epi32(_mm512_max_ps(v, _mm512_set1_ps(-127.0f)));
}
INLINE void store16(int8_t *q, __m512i v) { _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(v)); }

/* Lane i of the result: all lanes of v[i] joined by OP. Halving by transposing takes 3 instructions for each of the 15 joins. */
#define JOIN_LANES(NAME, OP)                                                                                         \
    INLINE __m512i NAME(__m512i *v) {                                                                                \
        UNROLL for (int i = 0; i < 8; i++)                                                                           \
            v[i] = OP(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1])); \
        UNROLL for (int i = 0; i < 4; i++)                                                                           \
            v[i] = OP(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1])); \
        UNROLL for (int n = 2; n; n /= 2) UNROLL for (int i = 0; i < n; i++)                                         \
            v[i] = OP(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd)); \
        return v[0];                                                                                                 \
    }
JOIN_LANES(largest_lanes, _mm512_max_epi32)
JOIN_LANES(summed_lanes, _mm512_add_epi32)

/* Up to 16 blocks of 32 at x; `n` numbers are there, what follows counts as zero */
INLINE void quantize_512(const float *x, int64_t n, int8_t *q, float *d, int32_t *sum, __mmask16 blocks) {
    __m512i v[16];
    float inverse[16];
    UNROLL for (int i = 0; i < 16; i++)
        v[i] = _mm512_max_epi32(abs_bits(_mm512_maskz_loadu_ps(first_lanes(n - i * 32), x + i * 32)),
                                abs_bits(_mm512_maskz_loadu_ps(first_lanes(n - i * 32 - 16), x + i * 32 + 16)));
    __m512 amax = _mm512_castsi512_ps(largest_lanes(v)), top = _mm512_set1_ps(127.0f);
    __mmask16 some = _mm512_cmp_ps_mask(amax, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    _mm512_storeu_ps(inverse, _mm512_maskz_div_ps(some, top, amax));
    _mm512_mask_storeu_ps(d, blocks, _mm512_div_ps(amax, top));
    UNROLL for (int i = 0; i < 16; i++) {
        __m512 scale = _mm512_set1_ps(inverse[i]);
        __m512i a = rounded16(_mm512_maskz_loadu_ps(first_lanes(n - i * 32), x + i * 32), scale);
        __m512i b = rounded16(_mm512_maskz_loadu_ps(first_lanes(n - i * 32 - 16), x + i * 32 + 16), scale);
        if (blocks >> i & 1) store16(q + i * 32, a), store16(q + i * 32 + 16, b);
        v[i] = _mm512_add_epi32(a, b);
    }
    _mm512_mask_storeu_epi32(sum, blocks, summed_lanes(v));
}

static void quantize_q8_32(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    int64_t n_blocks = (k + 255) / 256 * 8, b = 0;
    for (; b + 16 <= n_blocks; b += 16) quantize_512(x + b * 32, k - b * 32, q + b * 32, d + b, sum + b, 0xffff);
    if (b < n_blocks) quantize_512(x + b * 32, k - b * 32, q + b * 32, d + b, sum + b, 0xff);
}

static void quantize_q8_256(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    int64_t k_pad = (k + 255) / 256 * 256;
    for (int64_t k0 = 0; k0 < k_pad; k0 += 256, d++, sum += 16) {
        __m512 v[16];
        __m512i top = _mm512_setzero_si512(), r[16];
        UNROLL for (int i = 0; i < 16; i++) {
            v[i] = _mm512_maskz_loadu_ps(first_lanes(k - k0 - i * 16), x + k0 + i * 16);
            top = _mm512_max_epi32(top, abs_bits(v[i]));
        }
        float amax = el_float((uint32_t)_mm512_reduce_max_epi32(top));
        __m512 inverse = _mm512_set1_ps(amax != 0.0f ? 127.0f / amax : 0.0f);
        *d = amax / 127.0f;
        UNROLL for (int i = 0; i < 16; i++) {
            r[i] = rounded16(v[i], inverse);
            store16(q + k0 + i * 16, r[i]);
        }
        _mm512_storeu_si512(sum, summed_lanes(r));
    }
}

/* ---- element-wise ------------------------------------------------------------------------------------------------------------ */
static void rmsnorm(const float *x, const float *w, float *y, int64_t n, float eps) {
    __m512 lanes = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        lanes = _mm512_mask3_fmadd_ps(v, v, lanes, m);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(tree16(lanes) / (float)n + eps));
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inverse);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, w + i)));
    }
}

static void layernorm(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    __m512 lanes = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        lanes = _mm512_mask_add_ps(lanes, m, lanes, _mm512_maskz_loadu_ps(m, x + i));
    }
    __m512 mean = _mm512_set1_ps(tree16(lanes) / (float)n);
    lanes = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), mean);
        lanes = _mm512_mask3_fmadd_ps(v, v, lanes, m);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(tree16(lanes) / (float)n + eps));
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), mean), inverse);
        v = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(m, w + i), _mm512_maskz_loadu_ps(m, b + i));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

INLINE __m512 gelu_exact16(__m512 x) { /* el_gelu_exact */
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 a = _mm512_abs_ps(x), t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(EL_PHI_C), a, one));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(EL_PHI_P8), t, _mm512_set1_ps(EL_PHI_P7));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P6));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P5));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P4));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P3));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P2));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P1));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(EL_PHI_P0));
    __m512 e = exp16(_mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(-0.5f), a), a));
    __m512 h = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
    return _mm512_fnmadd_ps(a, h, _mm512_max_ps(x, _mm512_setzero_ps()));
}

static void gelu(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        _mm512_mask_storeu_ps(y + i, m, gelu_exact16(_mm512_maskz_loadu_ps(m, x + i)));
    }
}

INLINE __m512 over_one_plus_exp_minus(__m512 x, __m512 u) { /* x / (1 + exp(-u)) */
    __m512 e = exp16(_mm512_xor_ps(u, _mm512_set1_ps(-0.0f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

INLINE __m512 gelu16(__m512 x) {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(EL_GELU_B), x), x);
    return over_one_plus_exp_minus(x, _mm512_mul_ps(_mm512_set1_ps(EL_GELU_A), _mm512_fmadd_ps(cube, x, x)));
}

static void gated(const float *gate, const float *up, float *y, int64_t n, int activation) {
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(m, gate + i);
        __m512 v = activation == EL_ACT_GELU_TANH ? gelu16(x) : over_one_plus_exp_minus(x, x);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, up + i)));
    }
}

static void add(const float *a, const float *b, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += EL_LANES) {
        __mmask16 m = first_lanes(n - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_add_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i)));
    }
}
