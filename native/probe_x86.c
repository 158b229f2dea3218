/* probe_x86.c: the loops of probe.h for x86-64. Each names its instructions in a target attribute. Some go beyond the
 * levels that have kernels (Intel SDM vol. 1, ch. 13 and 18; vol. 2, CPUID). */
#define _GNU_SOURCE /* syscall */
#include "probe.h"

#include <stddef.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TARGET(names) __attribute__((target(names)))
#define INLINE static inline __attribute__((always_inline))

/* ---- what may run here ------------------------------------------------------------------------------------ */
/* Kernels ask for less (cpu.c), so these bits are read here. */
static uint32_t leaf7(int sub, int reg) { /* register 0 to 3 of CPUID leaf 7 */
    uint32_t r[4] = {0, 0, 0, 0};
    return __get_cpuid_count(7, (unsigned)sub, &r[0], &r[1], &r[2], &r[3]) ? r[reg] : 0;
}

static uint64_t xcr0(void) { /* XGETBV by its bytes: the intrinsic would need a target flag */
    uint32_t low, high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the 8 KB of tile registers on request (Documentation/arch/x86/xstate.rst); others do not have it. */
static int tiles(int bit) {
    if (!(leaf7(0, 3) >> 24 & 1) || !(leaf7(0, 3) >> bit & 1) || (xcr0() & 0x60000) != 0x60000) return 0;
#if defined(__linux__) && defined(SYS_arch_prctl)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return 0;
#endif
}

static int can_bf16(void) { return leaf7(0, 0) >= 1 && leaf7(1, 0) >> 5 & 1; }
static int can_tile_int8(void) { return tiles(25); }
static int can_tile_bf16(void) { return tiles(22); }

/* ---- multiply-adds ------------------------------------------------------------------------------------------ */
#define X8(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define X12(F) X8(F) F(8) F(9) F(10) F(11)
#define X16(F) X12(F) F(12) F(13) F(14) F(15)

static volatile int64_t sink;

/* vpmaddubsw adds pairs of products only; the addition to a sum is an instruction of its own and counts as needed. */
TARGET("avx2")
static int64_t run_maddubs(int64_t rounds) {
    __m256i a = _mm256_set1_epi8((char)(rounds & 1)), b = _mm256_set1_epi8((char)(rounds & 3));
#define START(i) __m256i s##i = _mm256_set1_epi16((short)(rounds + i));
#define STEP(i)                                                                         \
    __asm__ volatile("" : "+x"(a)); /* a new value as far as the compiler knows */      \
    s##i = _mm256_add_epi16(s##i, _mm256_maddubs_epi16(a, b));
#define END(i) a = _mm256_xor_si256(a, s##i);
    X12(START)
    for (int64_t r = 0; r < rounds; r++) {
        X12(STEP)
    }
    X12(END)
    sink += _mm256_extract_epi64(a, 0);
    return rounds * 12 * 32;
#undef START
#undef STEP
#undef END
}

#define START256(i) __m256i s##i = _mm256_set1_epi32((int)rounds + i);
#define START512(i) __m512i s##i = _mm512_set1_epi32((int)rounds + i);
#define STARTF256(i) __m256 s##i = _mm256_set1_ps((float)rounds + i);
#define STARTF512(i) __m512 s##i = _mm512_set1_ps((float)rounds + i);

TARGET("avx2,avxvnni")
static int64_t run_avx_vnni(int64_t rounds) {
    __m256i a = _mm256_set1_epi8((char)(rounds & 1)), b = _mm256_set1_epi8((char)(rounds & 3));
    X12(START256)
#define STEP(i) s##i = _mm256_dpbusd_avx_epi32(s##i, a, b);
#define END(i) a = _mm256_xor_si256(a, s##i);
    for (int64_t r = 0; r < rounds; r++) {
        X12(STEP)
    }
    X12(END)
    sink += _mm256_extract_epi64(a, 0);
    return rounds * 12 * 32;
#undef STEP
#undef END
}

TARGET("avx512f,avx512vnni")
static int64_t run_avx512_vnni(int64_t rounds) {
    __m512i a = _mm512_set1_epi32((int)(rounds & 1)), b = _mm512_set1_epi32((int)(rounds & 3));
    X16(START512)
#define STEP(i) s##i = _mm512_dpbusd_epi32(s##i, a, b);
#define END(i) a = _mm512_xor_si512(a, s##i);
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
    X16(END)
    sink += _mm_cvtsi128_si64(_mm512_castsi512_si128(a));
    return rounds * 16 * 64;
#undef STEP
#undef END
}

TARGET("avx512f,avx512bf16")
static int64_t run_avx512_bf16(int64_t rounds) {
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a; /* 1.0 twice */
    X16(STARTF512)
#define STEP(i) s##i = _mm512_dpbf16_ps(s##i, a, b);
#define END(i) s0 = _mm512_add_ps(s0, s##i);
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
    X16(END)
    sink += (int64_t)_mm512_cvtss_f32(s0) & 1;
    return rounds * 16 * 32;
#undef STEP
#undef END
}

TARGET("avx2,fma")
static int64_t run_fma256(int64_t rounds) {
    __m256 a = _mm256_set1_ps(1.0f + (float)(rounds & 1)), b = _mm256_set1_ps(0.5f);
    X12(STARTF256)
#define STEP(i) s##i = _mm256_fmadd_ps(a, b, s##i);
#define END(i) s0 = _mm256_add_ps(s0, s##i);
    for (int64_t r = 0; r < rounds; r++) {
        X12(STEP)
    }
    X12(END)
    sink += (int64_t)_mm256_cvtss_f32(s0) & 1;
    return rounds * 12 * 8;
#undef STEP
#undef END
}

TARGET("avx512f")
static int64_t run_fma512(int64_t rounds) {
    __m512 a = _mm512_set1_ps(1.0f + (float)(rounds & 1)), b = _mm512_set1_ps(0.5f);
    X16(STARTF512)
#define STEP(i) s##i = _mm512_fmadd_ps(a, b, s##i);
#define END(i) s0 = _mm512_add_ps(s0, s##i);
    for (int64_t r = 0; r < rounds; r++) {
        X16(STEP)
    }
    X16(END)
    sink += (int64_t)_mm512_cvtss_f32(s0) & 1;
    return rounds * 16 * 16;
#undef STEP
#undef END
}

/* Tiles of 16 rows x 64 bytes: six sums, one A and one B. A tile instruction may start every 16 cycles and takes about
 * 52, so four sums would do. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "as LDTILECFG reads it");

#define EACH_SUM(OP) OP(0, 6, 7); OP(1, 6, 7); OP(2, 6, 7); OP(3, 6, 7); OP(4, 6, 7); OP(5, 6, 7)
#define TILES_BEGIN                                                                                   \
    tile_config config __attribute__((aligned(64))) = {.palette = 1};                                 \
    for (int t = 0; t < 8; t++) {                                                                     \
        config.bytes[t] = 64;                                                                         \
        config.rows[t] = 16;                                                                          \
    }                                                                                                 \
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12.2 leaves the stores out otherwise */  \
    _tile_loadconfig(&config);                                                                        \
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                                       \
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7)

TARGET("amx-tile,amx-int8")
static int64_t run_amx_int8(int64_t rounds) {
    TILES_BEGIN;
    for (int64_t r = 0; r < rounds; r++) {
        EACH_SUM(_tile_dpbusd);
    }
    _tile_release();
    return rounds * 6 * 16 * 16 * 64;
}

TARGET("amx-tile,amx-bf16")
static int64_t run_amx_bf16(int64_t rounds) {
    TILES_BEGIN;
    for (int64_t r = 0; r < rounds; r++) {
        EACH_SUM(_tile_dpbf16ps);
    }
    _tile_release();
    return rounds * 6 * 16 * 16 * 32;
}

const el_peak el_peaks_x86[] = {
    {"int8", "AVX2 maddubs", EL_CPU_AVX2, NULL, run_maddubs},
    {"int8", "AVX-VNNI", EL_CPU_AVX2 | EL_CPU_AVXVNNI, NULL, run_avx_vnni},
    {"int8", "AVX512-VNNI", EL_CPU_AVX512 | EL_CPU_AVX512VNNI, NULL, run_avx512_vnni},
    {"int8", "AMX int8", EL_CPU_AVX512, can_tile_int8, run_amx_int8},
    {"bf16", "AVX512-BF16", EL_CPU_AVX512, can_bf16, run_avx512_bf16},
    {"bf16", "AMX bf16", EL_CPU_AVX512, can_tile_bf16, run_amx_bf16},
    {"f32", "AVX2 FMA", EL_CPU_AVX2 | EL_CPU_FMA, NULL, run_fma256},
    {"f32", "AVX-512 FMA", EL_CPU_AVX512, NULL, run_fma512},
    {0},
};

/* ---- reading --------------------------------------------------------------------------------------------------- */
#define DEFINE_WALK(NAME, ISA, VECTOR, ZERO, LOAD, XOR, LANES)                                              \
    TARGET(ISA) INLINE uint64_t NAME##_inner(const char *p, int64_t part, int streams, int64_t ahead, int level) { \
        VECTOR s0 = ZERO, s1 = ZERO, s2 = ZERO, s3 = ZERO;                                                  \
        for (int64_t at = 0; at < part; at += 256)                                                          \
            for (int s = 0; s < streams; s++) {                                                             \
                const char *q = p + s * part + at;                                                          \
                EL_WALK_PREFETCH(q + ahead, level);                                                         \
                for (int i = 0; i < 256; i += 4 * LANES) {                                                  \
                    s0 = XOR(s0, LOAD((const void *)(q + i)));                                              \
                    s1 = XOR(s1, LOAD((const void *)(q + i + LANES)));                                      \
                    s2 = XOR(s2, LOAD((const void *)(q + i + 2 * LANES)));                                  \
                    s3 = XOR(s3, LOAD((const void *)(q + i + 3 * LANES)));                                  \
                }                                                                                           \
            }                                                                                               \
        s0 = XOR(XOR(s0, s1), XOR(s2, s3));                                                                 \
        uint64_t out[LANES / 8], total = 0;                                                                 \
        __builtin_memcpy(out, &s0, LANES);                                                                  \
        for (int i = 0; i < LANES / 8; i++) total ^= out[i];                                                \
        return total;                                                                                       \
    }                                                                                                       \
    TARGET(ISA) static uint64_t NAME(const char *p, int64_t part, int streams, int64_t ahead, int level) {  \
        EL_WALK_CASES(NAME##_inner)                                                                         \
    }

DEFINE_WALK(walk_avx2, "avx2", __m256i, _mm256_setzero_si256(), _mm256_load_si256, _mm256_xor_si256, 32)
DEFINE_WALK(walk_avx512, "avx512f", __m512i, _mm512_setzero_si512(), _mm512_load_si512, _mm512_xor_si512, 64)

el_walk_fn el_walk_x86(void) {
    uint32_t have = el_cpu_features();
    return have & EL_CPU_AVX512 ? walk_avx512 : have & EL_CPU_AVX2 ? walk_avx2 : NULL;
}

#else

const el_peak el_peaks_x86[] = {{0}};
el_walk_fn el_walk_x86(void) { return NULL; }

#endif
