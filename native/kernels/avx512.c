/* avx512.c: AVX-512 with VNNI (Intel since Cascade Lake and Ice Lake, AMD since Zen 4), and with VBMI2 (Ice Lake, Zen 4).
 *
 * One vector is one line of a panel, so a kernel is little more than vpdpbusd with a broadcast quad of activations
 * (vnni_panels.h). Passes of 16 columns and more keep a block's weights in eight registers and run 16 columns past
 * them (avx512_wide.h). VBMI2 is a level of its own that adds compressed matrices (avx512_compressed.h).
 */
#include "arith.h"
#include "groups.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define TARGET_OPTIONS "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(TARGET_OPTIONS))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline)) /* GCC runs out of registers when a whole table is one function */
#define UNROLL _Pragma("GCC unroll 17")
#define AHEAD 4096 /* bytes of software prefetch: DRAM's latency at the speed of 8 columns; hardware streams stop at page ends */

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
INLINE int32_t word(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* ---- 16 lanes ------------------------------------------------------------------------------------------------------ */
typedef __m512i vint;
typedef __m512 vfloat;

INLINE vint v_zero(void) { return _mm512_setzero_si512(); }
INLINE vint v_set1(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vint v_line(const uint8_t *line) { return _mm512_loadu_si512(line); }
INLINE vint v_and(vint a, vint b) { return _mm512_and_si512(a, b); }
INLINE vint v_or(vint a, vint b) { return _mm512_or_si512(a, b); }
INLINE vint v_and15(vint a) { return v_and(a, _mm512_set1_epi8(15)); }
INLINE vint v_flip(vint a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); } /* s8 to u8: + 128 */
INLINE vint v_shift_left(vint a, const int n) { return n ? _mm512_slli_epi16(a, (unsigned)n) : a; }
INLINE vint v_shift_right(vint a, const int n) { return n ? _mm512_srli_epi16(a, (unsigned)n) : a; }
INLINE vint v_shift_left32(vint a, const int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE vint v_add(vint a, vint b) { return _mm512_add_epi32(a, b); }
INLINE vint v_sub(vint a, vint b) { return _mm512_sub_epi32(a, b); }
INLINE vint v_mul(vint a, vint b) { return _mm512_mullo_epi32(a, b); }
INLINE vint v_dot(vint s, vint w, const int8_t *quad) { return _mm512_dpbusd_epi32(s, w, v_set1(word(quad))); }
INLINE vint v_dot_pairs(vint s, vint w, int32_t pair) { return _mm512_dpwssd_epi32(s, w, v_set1(pair)); }

/* 32 bytes to 16 pairs of int16 */
INLINE vint v_widen(const uint8_t *p, const int is_signed) {
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    return is_signed ? _mm512_cvtepi8_epi16(v) : _mm512_cvtepu8_epi16(v);
}
/* one byte of each of 16 pairs as int32 */
INLINE vint v_pair_unsigned(const uint8_t *p, const int odd) {
    vint v = v_widen(p, 0);
    return odd ? _mm512_srli_epi32(v, 16) : _mm512_and_si512(v, v_set1(0xffff));
}
INLINE vint v_pair_signed(const uint8_t *p, const int odd) {
    vint v = v_widen(p, 1);
    return _mm512_srai_epi32(odd ? v : _mm512_slli_epi32(v, 16), 16);
}

/* 16 sums of 16 k as 8 pairs of int16, then the 8 sums of 32 k as 4 pairs */
INLINE void v_sum_pairs(const int32_t *sum, int32_t *pairs) {
    __m256i s16 = _mm512_cvtepi32_epi16(_mm512_loadu_si512(sum));
    __m256i s32 = _mm256_madd_epi16(s16, _mm256_set1_epi16(1));
    _mm256_storeu_si256((__m256i *)pairs, s16);
    _mm_storeu_si128((__m128i *)(pairs + 8), _mm256_cvtepi32_epi16(s32));
}

INLINE vfloat v_zerof(void) { return _mm512_setzero_ps(); }
INLINE vfloat v_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void v_store(float *p, vfloat v) { _mm512_storeu_ps(p, v); }
/* acc +- (d * dx) * float(s), rounded as everywhere */
INLINE vfloat v_scaled_add(vfloat acc, vfloat d, float dx, vint s) {
    return _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(dx)), _mm512_cvtepi32_ps(s), acc);
}
INLINE vfloat v_scaled_sub(vfloat acc, vfloat d, float dx, vint s) {
    return _mm512_fnmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(dx)), _mm512_cvtepi32_ps(s), acc);
}

#define NARROW_COLUMNS 8
#define NARROW_MORE(PANEL, SPARSE) \
    NARROW(PANEL, SPARSE, 5) NARROW(PANEL, SPARSE, 6) NARROW(PANEL, SPARSE, 7) NARROW(PANEL, SPARSE, 8)
#include "vnni_panels.h"
#include "avx512_wide.h"

#define WIDE_Q4_0(...) wide_rows(wide_q4_0, __VA_ARGS__)
#define WIDE_Q8_0(...) wide_rows(wide_q8_0, __VA_ARGS__)
#define WIDE_Q4_K(...) wide_rows(wide_q4_k, __VA_ARGS__)
#define WIDE_Q5_K(...) wide_rows(wide_q5_k, __VA_ARGS__)
#define WIDE_Q6_K(...) wide_rows(wide_q6_k, __VA_ARGS__)
VNNI_PANEL_FUNCTIONS

#include "avx512_attention.h"
#include "avx512_ops.h"

const el_kernels el_kernels_avx512 = {
    .name = "avx512vnni",
    .need = EL_CPU_AVX2 | EL_CPU_FMA | EL_CPU_F16C | EL_CPU_AVX512 | EL_CPU_AVX512VNNI,
    .wide = 1,
    .linear[EL_ROWS] = {[EL_TYPE_F32] = matrix_f32, [EL_TYPE_F16] = matrix_f16, [EL_TYPE_BF16] = matrix_bf16},
    VNNI_PANEL_ENTRIES,
    .quantize_q8_32 = quantize_q8_32,
    .quantize_q8_256 = quantize_q8_256,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .gelu = gelu,
    .gated = gated,
    .add = add,
    ATTENTION_ENTRIES
};

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target(TARGET_OPTIONS ",avx512vbmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512vbmi2,popcnt") /* with those above */
#endif

#include "avx512_compressed.h"

const el_kernels el_kernels_vbmi2 = {
    .name = "avx512vbmi2",
    .need = EL_CPU_AVX2 | EL_CPU_FMA | EL_CPU_F16C | EL_CPU_AVX512 | EL_CPU_AVX512VNNI | EL_CPU_VBMI2,
    .wide = 1,
    .linear[EL_COMPRESSED] = {[EL_TYPE_Q4_0] = compressed_q4_0, [EL_TYPE_Q8_0] = compressed_q8_0},
    .squeeze = squeeze,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const el_kernels el_kernels_avx512 = {.name = "avx512vnni", .need = 0};
const el_kernels el_kernels_vbmi2 = {.name = "avx512vbmi2", .need = 0};

#endif
