/* avxvnni.c: AVX2 with AVX-VNNI (Intel client CPUs since Alder Lake, AMD since Zen 5): vpdpbusd on 32-byte vectors.
 *
 * A line of a panel is two vectors here; the kernels are those of avx512.c (vnni_panels.h) on pairs of halves, with
 * at most 4 columns at a time because there are 16 registers.
 */
#include "arith.h"
#include "groups.h"

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 17")
#define AHEAD 4096 /* bytes of software prefetch; hardware streams stop at page ends */

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
INLINE int32_t word(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* ---- 16 lanes: rows 0 to 7 and 8 to 15 ------------------------------------------------------------------------------- */
typedef struct {
    __m256i a, b;
} vint;
typedef struct {
    __m256 a, b;
} vfloat;
#define EACH(OP, x, y) ((vint){OP((x).a, (y).a), OP((x).b, (y).b)})

INLINE vint v_both(__m256i v) { return (vint){v, v}; }
INLINE vint v_zero(void) { return v_both(_mm256_setzero_si256()); }
INLINE vint v_set1(int32_t x) { return v_both(_mm256_set1_epi32(x)); }
INLINE vint v_line(const uint8_t *line) {
    return (vint){_mm256_loadu_si256((const __m256i *)line), _mm256_loadu_si256((const __m256i *)(line + 32))};
}
INLINE vint v_and(vint x, vint y) { return EACH(_mm256_and_si256, x, y); }
INLINE vint v_or(vint x, vint y) { return EACH(_mm256_or_si256, x, y); }
INLINE vint v_and15(vint x) { return v_and(x, v_both(_mm256_set1_epi8(15))); }
INLINE vint v_flip(vint x) { return EACH(_mm256_xor_si256, x, v_both(_mm256_set1_epi8(-128))); } /* s8 to u8: + 128 */
INLINE vint v_shift_left(vint x, const int n) {
    return n ? (vint){_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)} : x;
}
INLINE vint v_shift_right(vint x, const int n) {
    return n ? (vint){_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)} : x;
}
INLINE vint v_shift_left32(vint x, const int n) { return (vint){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
INLINE vint v_add(vint x, vint y) { return EACH(_mm256_add_epi32, x, y); }
INLINE vint v_sub(vint x, vint y) { return EACH(_mm256_sub_epi32, x, y); }
INLINE vint v_mul(vint x, vint y) { return EACH(_mm256_mullo_epi32, x, y); }
INLINE vint v_dot(vint s, vint w, const int8_t *quad) {
    __m256i q = _mm256_set1_epi32(word(quad));
    return (vint){_mm256_dpbusd_avx_epi32(s.a, w.a, q), _mm256_dpbusd_avx_epi32(s.b, w.b, q)};
}
INLINE vint v_dot_pairs(vint s, vint w, int32_t pair) {
    __m256i q = _mm256_set1_epi32(pair);
    return (vint){_mm256_dpwssd_avx_epi32(s.a, w.a, q), _mm256_dpwssd_avx_epi32(s.b, w.b, q)};
}

/* 32 bytes to 16 pairs of int16 */
INLINE vint v_widen(const uint8_t *p, const int is_signed) {
    __m128i low = _mm_loadu_si128((const __m128i *)p), high = _mm_loadu_si128((const __m128i *)(p + 16));
    return is_signed ? (vint){_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)}
                     : (vint){_mm256_cvtepu8_epi16(low), _mm256_cvtepu8_epi16(high)};
}
/* one byte of each of 16 pairs as int32 */
INLINE vint v_pair_unsigned(const uint8_t *p, const int odd) {
    vint v = v_widen(p, 0);
    return odd ? (vint){_mm256_srli_epi32(v.a, 16), _mm256_srli_epi32(v.b, 16)} : v_and(v, v_set1(0xffff));
}
INLINE vint v_pair_signed(const uint8_t *p, const int odd) {
    vint v = v_widen(p, 1);
    if (!odd) v = v_shift_left32(v, 16);
    return (vint){_mm256_srai_epi32(v.a, 16), _mm256_srai_epi32(v.b, 16)};
}

/* 16 sums of 16 k as 8 pairs of int16, then the 8 sums of 32 k as 4 pairs */
INLINE void v_sum_pairs(const int32_t *sum, int32_t *pairs) {
    __m256i low = _mm256_loadu_si256((const __m256i *)sum), high = _mm256_loadu_si256((const __m256i *)(sum + 8));
    __m256i s16 = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8); /* the packs work lane by lane */
    __m256i s32 = _mm256_madd_epi16(s16, _mm256_set1_epi16(1));
    _mm256_storeu_si256((__m256i *)pairs, s16);
    s32 = _mm256_permute4x64_epi64(_mm256_packs_epi32(s32, s32), 0xd8);
    _mm_storeu_si128((__m128i *)(pairs + 8), _mm256_castsi256_si128(s32));
}

INLINE vfloat v_zerof(void) { return (vfloat){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE vfloat v_halves(const uint8_t *p) {
    return (vfloat){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                    _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
INLINE void v_store(float *p, vfloat v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
/* acc +- (d * dx) * float(s), rounded as everywhere */
INLINE vfloat v_scaled_add(vfloat acc, vfloat d, float dx, vint s) {
    __m256 factor = _mm256_set1_ps(dx);
    return (vfloat){_mm256_fmadd_ps(_mm256_mul_ps(d.a, factor), _mm256_cvtepi32_ps(s.a), acc.a),
                    _mm256_fmadd_ps(_mm256_mul_ps(d.b, factor), _mm256_cvtepi32_ps(s.b), acc.b)};
}
INLINE vfloat v_scaled_sub(vfloat acc, vfloat d, float dx, vint s) {
    __m256 factor = _mm256_set1_ps(dx);
    return (vfloat){_mm256_fnmadd_ps(_mm256_mul_ps(d.a, factor), _mm256_cvtepi32_ps(s.a), acc.a),
                    _mm256_fnmadd_ps(_mm256_mul_ps(d.b, factor), _mm256_cvtepi32_ps(s.b), acc.b)};
}

#define NARROW_COLUMNS 4
#define NARROW_MORE(PANEL, SPARSE)
#define WIDE_Q4_0(...) 0
#define WIDE_Q8_0(...) 0
#define WIDE_Q4_K(...) 0
#define WIDE_Q5_K(...) 0
#define WIDE_Q6_K(...) 0
#include "vnni_panels.h"
VNNI_PANEL_FUNCTIONS

const el_kernels el_kernels_avxvnni = {
    .name = "avxvnni",
    .need = EL_CPU_AVX2 | EL_CPU_FMA | EL_CPU_F16C | EL_CPU_AVXVNNI,
    VNNI_PANEL_ENTRIES,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const el_kernels el_kernels_avxvnni = {.name = "avxvnni", .need = 0};

#endif
