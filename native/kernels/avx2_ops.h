/* avx2_ops.h: the second half of avx2.c (one table, one set of target options): everything but the linear kernels. */

/* ---- activations to int8 --------------------------------------------------------------------------------------------- */
INLINE __m256i abs_bits(const float *x) {
    return _mm256_and_si256(bytes32(x), _mm256_set1_epi32(0x7fffffff));
}

INLINE float largest8(__m256i v) { /* by bits: NaN above infinity above the rest */
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return el_float((uint32_t)_mm_cvtsi128_si32(m));
}

INLINE __m256i rounded8(const float *x, __m256 inverse) { /* NaN becomes 127, as el_q8 does */
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
    v = _mm256_max_ps(_mm256_min_ps(v, _mm256_set1_ps(127.0f)), _mm256_set1_ps(-127.0f));
    return _mm256_cvtps_epi32(v);
}

INLINE __m256i quantize32(const float *x, __m256 inverse) {
    __m256i a = _mm256_packs_epi32(rounded8(x, inverse), rounded8(x + 8, inverse));
    __m256i b = _mm256_packs_epi32(rounded8(x + 16, inverse), rounded8(x + 24, inverse));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* the packs work lane by lane */
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
}

INLINE __m256i sums4(__m256i q) { /* sums of 4 neighbours */
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
}

static void quantize_q8_32(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    int64_t k_pad = (k + 255) / 256 * 256;
    float rest[32];
    for (int64_t k0 = 0; k0 < k_pad; k0 += 32, d++, sum++) {
        const float *from = x + k0;
        if (k0 + 32 > k) { /* past the end: zeros */
            memset(rest, 0, sizeof rest);
            if (k0 < k) memcpy(rest, from, (size_t)(k - k0) * 4);
            from = rest;
        }
        __m256i top = _mm256_max_epi32(_mm256_max_epi32(abs_bits(from), abs_bits(from + 8)),
                                       _mm256_max_epi32(abs_bits(from + 16), abs_bits(from + 24)));
        float amax = largest8(top);
        __m256i v = quantize32(from, _mm256_set1_ps(amax != 0.0f ? 127.0f / amax : 0.0f));
        _mm256_storeu_si256((__m256i *)(q + k0), v);
        *d = amax / 127.0f;
        *sum = total8(sums4(v));
    }
}

static void quantize_q8_256(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum) {
    int64_t k_pad = (k + 255) / 256 * 256;
    float rest[256];
    for (int64_t k0 = 0; k0 < k_pad; k0 += 256, d++, sum += 16) {
        const float *from = x + k0;
        if (k0 + 256 > k) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, from, (size_t)(k - k0) * 4);
            from = rest;
        }
        __m256i top = _mm256_setzero_si256();
        for (int i = 0; i < 256; i += 8) top = _mm256_max_epi32(top, abs_bits(from + i));
        float amax = largest8(top);
        __m256 inverse = _mm256_set1_ps(amax != 0.0f ? 127.0f / amax : 0.0f);
        *d = amax / 127.0f;
        for (int i = 0; i < 256; i += 128) {
            __m256i v[4];
            UNROLL for (int j = 0; j < 4; j++) {
                v[j] = quantize32(from + i + j * 32, inverse);
                _mm256_storeu_si256((__m256i *)(q + k0 + i + j * 32), v[j]);
                v[j] = sums4(v[j]); /* low lane: first 16, high lane: second 16 */
            }
            __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
            s = _mm256_permutevar8x32_epi32(s, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256((__m256i *)(sum + i / 16), s);
        }
    }
}

/* ---- element-wise -------------------------------------------------------------------------------------------------------- */
static void rmsnorm(const float *x, const float *w, float *y, int64_t n, float eps) {
    __m256 a = _mm256_setzero_ps(), b = a;
    int64_t i = 0;
    for (; i + EL_LANES <= n; i += EL_LANES) {
        __m256 v = _mm256_loadu_ps(x + i), u = _mm256_loadu_ps(x + i + 8);
        a = _mm256_fmadd_ps(v, v, a);
        b = _mm256_fmadd_ps(u, u, b);
    }
    float total;
    if (i < n) {
        LANE_TAIL(a, b, (const uint8_t *)x, x, i, n, F32_BYTES, one_f32)
        total = el_tree16(lanes);
    } else total = tree16(a, b);
    float inverse = 1.0f / sqrtf(total / (float)n + eps);
    __m256 factor = _mm256_set1_ps(inverse);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), _mm256_loadu_ps(w + i)));
    for (; i < n; i++) y[i] = x[i] * inverse * w[i];
}

static void layernorm(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    __m256 low = _mm256_setzero_ps(), high = low;
    float lanes[EL_LANES];
    int64_t whole = n / EL_LANES * EL_LANES;
    for (int64_t i = 0; i < whole; i += EL_LANES) {
        low = _mm256_add_ps(low, _mm256_loadu_ps(x + i));
        high = _mm256_add_ps(high, _mm256_loadu_ps(x + i + 8));
    }
    _mm256_storeu_ps(lanes, low), _mm256_storeu_ps(lanes + 8, high);
    for (int64_t i = whole; i < n; i++) lanes[i - whole] += x[i];
    float mean = el_tree16(lanes) / (float)n;
    __m256 m = _mm256_set1_ps(mean);
    low = high = _mm256_setzero_ps();
    for (int64_t i = 0; i < whole; i += EL_LANES) {
        __m256 u = _mm256_sub_ps(_mm256_loadu_ps(x + i), m), v = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), m);
        low = _mm256_fmadd_ps(u, u, low);
        high = _mm256_fmadd_ps(v, v, high);
    }
    _mm256_storeu_ps(lanes, low), _mm256_storeu_ps(lanes + 8, high);
    for (int64_t i = whole; i < n; i++) lanes[i - whole] = el_fmaf(x[i] - mean, x[i] - mean, lanes[i - whole]);
    float inverse = 1.0f / sqrtf(el_tree16(lanes) / (float)n + eps);
    __m256 factor = _mm256_set1_ps(inverse);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), m), factor);
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(v, _mm256_loadu_ps(w + i), _mm256_loadu_ps(b + i)));
    }
    for (; i < n; i++) y[i] = el_fmaf((x[i] - mean) * inverse, w[i], b[i]);
}

/* el_expf, eight at a time */
INLINE __m256 exp8(__m256 x) {
    const __m256 round = _mm256_set1_ps(EL_EXP_ROUND), one = _mm256_set1_ps(1.0f);
    const __m256i bias = _mm256_set1_epi32(127);
    x = _mm256_min_ps(_mm256_set1_ps(EL_EXP_HI), x);
    x = _mm256_max_ps(_mm256_set1_ps(EL_EXP_LO), x);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(EL_EXP_LOG2E), round), n = _mm256_sub_ps(t, round);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EL_EXP_LN2_LO),
                               _mm256_fmadd_ps(n, _mm256_set1_ps(-EL_EXP_LN2_HI), x));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EL_EXP_C6), r, _mm256_set1_ps(EL_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EL_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EL_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EL_EXP_C2));
    p = _mm256_fmadd_ps(_mm256_fmadd_ps(p, r, one), r, one);
    __m256i i = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(round)), half = _mm256_srai_epi32(i, 1);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

INLINE __m256 over_one_plus_exp_minus(__m256 x, __m256 u) { /* x / (1 + exp(-u)) */
    __m256 e = exp8(_mm256_xor_ps(u, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

INLINE __m256 gelu8(__m256 x) {
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(EL_GELU_B), x), x);
    return over_one_plus_exp_minus(x, _mm256_mul_ps(_mm256_set1_ps(EL_GELU_A), _mm256_fmadd_ps(cube, x, x)));
}

INLINE __m256 gelu_exact8(__m256 x) { /* el_gelu_exact */
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    __m256 a = _mm256_andnot_ps(sign, x), t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_set1_ps(EL_PHI_C), a, one));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EL_PHI_P8), t, _mm256_set1_ps(EL_PHI_P7));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P6));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P5));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P4));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P3));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P2));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P1));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(EL_PHI_P0));
    __m256 e = exp8(_mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(-0.5f), a), a));
    __m256 h = _mm256_mul_ps(_mm256_mul_ps(p, t), e);
    return _mm256_fnmadd_ps(a, h, _mm256_max_ps(x, _mm256_setzero_ps()));
}

static void gelu(const float *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, gelu_exact8(_mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] = el_gelu_exact(x[i]);
}

static void gated(const float *gate, const float *up, float *y, int64_t n, int activation) {
    int64_t i = 0;
    if (activation == EL_ACT_GELU_TANH) {
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(y + i, _mm256_mul_ps(gelu8(_mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
        for (; i < n; i++) y[i] = el_gelu(gate[i]) * up[i];
        return;
    }
    for (; i + 8 <= n; i += 8) {
        __m256 x = _mm256_loadu_ps(gate + i);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(over_one_plus_exp_minus(x, x), _mm256_loadu_ps(up + i)));
    }
    for (; i < n; i++) y[i] = el_silu(gate[i]) * up[i];
}

static void add(const float *a, const float *b, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

INLINE __m256 tanh8(__m256 u) { /* el_tanhf */
    const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f);
    __m256 z = _mm256_mul_ps(u, u), p = _mm256_set1_ps(EL_TANH_C11);
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(EL_TANH_C9));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(EL_TANH_C7));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(EL_TANH_C5));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(EL_TANH_C3));
    __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(p, z), u, u);
    __m256 large = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(one, exp8(_mm256_mul_ps(two, u)))));
    __m256 is_small = _mm256_cmp_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), u), _mm256_set1_ps(EL_TANH_SMALL), _CMP_LT_OQ);
    return _mm256_blendv_ps(large, small, is_small);
}

static void softcap(const float *x, float *y, int64_t n, float cap) {
    __m256 c = _mm256_set1_ps(cap);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(c, tanh8(_mm256_div_ps(_mm256_loadu_ps(x + i), c))));
    for (; i < n; i++) y[i] = cap * el_tanhf(x[i] / cap);
}

static void exp_sum(float *x, int64_t n, float max, float *sum) {
    __m256 a = _mm256_setzero_ps(), b = a, top = _mm256_set1_ps(max);
    int64_t i = 0;
    for (; i + EL_LANES <= n; i += EL_LANES) {
        __m256 v = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), top));
        __m256 u = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), top));
        _mm256_storeu_ps(x + i, v);
        _mm256_storeu_ps(x + i + 8, u);
        a = _mm256_add_ps(a, v);
        b = _mm256_add_ps(b, u);
    }
    if (i == n) {
        *sum = tree16(a, b);
        return;
    }
    float lanes[EL_LANES];
    _mm256_storeu_ps(lanes, a);
    _mm256_storeu_ps(lanes + 8, b);
    for (int l = 0; i + l < n; l++) lanes[l] += x[i + l] = el_expf(x[i + l] - max);
    *sum = el_tree16(lanes);
}
