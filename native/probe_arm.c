/* probe_arm.c: the loops of probe.h for 64-bit ARM. */
#include "probe.h"

#include <stddef.h>

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#include <arm_neon.h>

#if defined(__clang__)
#define TARGET_DOTPROD __attribute__((target("dotprod")))
#define TARGET_I8MM __attribute__((target("i8mm")))
#else
#define TARGET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define TARGET_I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
#endif
#define INLINE static inline __attribute__((always_inline))

#define X16(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define START(i) int32x4_t s##i = vdupq_n_s32((int32_t)rounds + i);
#define END(i) total += vgetq_lane_s32(s##i, 0);

static volatile int64_t sink;

TARGET_DOTPROD
static int64_t run_dotprod(int64_t rounds) {
    int8x16_t a = vdupq_n_s8((int8_t)(rounds & 1)), b = vdupq_n_s8((int8_t)(rounds & 3));
    int64_t total = 0;
    X16(START)
#define STEP(i) s##i = vdotq_s32(s##i, a, b);
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
#undef STEP
    X16(END)
    sink += total;
    return rounds * 16 * 16;
}

TARGET_I8MM
static int64_t run_i8mm(int64_t rounds) {
    int8x16_t a = vdupq_n_s8((int8_t)(rounds & 1)), b = vdupq_n_s8((int8_t)(rounds & 3));
    int64_t total = 0;
    X16(START)
#define STEP(i) s##i = vmmlaq_s32(s##i, a, b);
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
#undef STEP
    X16(END)
    sink += total;
    return rounds * 16 * 32;
}

static int64_t run_fma(int64_t rounds) {
    float32x4_t a = vdupq_n_f32(1.0f + (float)(rounds & 1)), b = vdupq_n_f32(0.5f);
#define STARTF(i) float32x4_t s##i = vdupq_n_f32((float)rounds + i);
#define STEP(i) s##i = vfmaq_f32(s##i, a, b);
#define ENDF(i) s0 = vaddq_f32(s0, s##i);
    X16(STARTF)
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
    X16(ENDF)
#undef STEP
    sink += (int64_t)vgetq_lane_f32(s0, 0) & 1;
    return rounds * 16 * 4;
}

const el_peak el_peaks_arm[] = {
    {"int8", "NEON dotprod", EL_CPU_DOTPROD, NULL, run_dotprod},
    {"int8", "NEON i8mm", EL_CPU_I8MM, NULL, run_i8mm},
    {"f32", "NEON FMA", EL_CPU_NEON, NULL, run_fma},
    {0},
};

INLINE uint64_t walk_inner(const char *p, int64_t part, int streams, int64_t ahead, int level) {
    uint8x16_t s0 = vdupq_n_u8(0), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t at = 0; at < part; at += 256)
        for (int s = 0; s < streams; s++) {
            const char *q = p + s * part + at;
            EL_WALK_PREFETCH(q + ahead, level);
            for (int i = 0; i < 256; i += 64) {
                const uint8_t *line = (const uint8_t *)q + i;
                s0 = veorq_u8(s0, vld1q_u8(line));
                s1 = veorq_u8(s1, vld1q_u8(line + 16));
                s2 = veorq_u8(s2, vld1q_u8(line + 32));
                s3 = veorq_u8(s3, vld1q_u8(line + 48));
            }
        }
    uint64x2_t all = vreinterpretq_u64_u8(veorq_u8(veorq_u8(s0, s1), veorq_u8(s2, s3)));
    return vgetq_lane_u64(all, 0) ^ vgetq_lane_u64(all, 1);
}

static uint64_t walk_neon(const char *p, int64_t part, int streams, int64_t ahead, int level) {
    EL_WALK_CASES(walk_inner)
}

el_walk_fn el_walk_arm(void) { return walk_neon; }

#else

const el_peak el_peaks_arm[] = {{0}};
el_walk_fn el_walk_arm(void) { return NULL; }

#endif
