/* neon.h: what the three ARM files share. neon.c is for every 64-bit ARM, neon_dotprod.c adds SDOT (ARMv8.2 and later:
 * Cortex-A75, Apple M1, Graviton 2), neon_i8mm.c SMMLA (ARMv8.6: Cortex-A710, Apple M2, Graviton 3).
 *
 * The headers neon_rows.h and neon_panels.h are written once and included by each file with its own NEON_LEVEL.
 */
#ifndef EL_NEON_H
#define EL_NEON_H

#include "arith.h"
#include "groups.h"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define EL_HAS_NEON 1

#include <arm_neon.h>

#if !defined(__clang__)
#pragma GCC optimize("no-schedule-insns") /* before registers are given out, it moves loads up and spills: half the stack traffic */
#endif

#define BY_PRODUCTS 0 /* values of NEON_LEVEL */
#define BY_DOTS 1
#define BY_MATRICES 2

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define AHEAD 768 /* bytes of software prefetch; hardware streams stop at page ends */

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE void prefetch(const void *p) { __builtin_prefetch(p); }

/* Loads by bytes: blocks in rows have no alignment. */
INLINE uint8x16_t bytes16(const void *p) { return vld1q_u8((const uint8_t *)p); }
INLINE float32x4_t floats4(const void *p) { return vreinterpretq_f32_u8(bytes16(p)); }
INLINE float32x4_t halves4(const void *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)p)));
}
INLINE float32x4_t brains4(const void *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8((const uint8_t *)p)), 16));
}

/* 16 lanes to one float by the fixed tree: + 8, + 4, + 2, + 1 */
INLINE float tree16(const float32x4_t *v) {
    float32x4_t s4 = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}

#endif
#endif
