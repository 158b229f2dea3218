/* kmajor_avx512.c: the lists and products of kmajor.h with AVX-512 and VNNI. */
#include "kmajor.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,popcnt")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLL _Pragma("GCC unroll 17")
enum { AHEAD = 2 }; /* groups whose live runs are on their way: no hardware stream follows a list */

int sa_fast(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c");
}

/* Half a group: the live of 16 codes go to the front of `channel` and `code`; returns how many. */
INLINE int compress(const int8_t *q, int first, uint8_t *channel, int8_t *code) {
    __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q));
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 alive = _mm512_test_epi32_mask(codes, codes);
    __m512i where = _mm512_maskz_compress_epi32(alive, _mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
    _mm_storeu_si128((__m128i *)channel, _mm512_cvtepi32_epi8(where));
    _mm_storeu_si128((__m128i *)code, _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(alive, codes)));
    return __builtin_popcount(alive);
}

TARGET int64_t sa_list_avx512(const int8_t *q, const sa_live *live) {
    int64_t total = 0;
    for (int64_t g = 0; g < live->k / 32; g++) {
        uint8_t *channel = live->channel + g * SA_LIST;
        int8_t *code = live->code + g * SA_LIST;
        int n = compress(q + 32 * g, 0, channel, code);
        n += compress(q + 32 * g + 16, 16, channel + n, code + n);
        total += n;
        if (n % 4) { /* filled up with a run that is read anyway, times 0 */
            memset(channel + n, channel[n - 1], 3);
            memset(code + n, 0, 3);
            n = (n + 3) / 4 * 4;
        }
        live->quads[g] = n / 4;
    }
    return total;
}

/* Four lines, byte by byte in turns: out[z] is [16 rows][4 channels], rows 16 z to 16 z + 15 of the line. */
INLINE void interleave(const uint8_t *const run[4], int64_t at, __m512i out[4]) {
    __m512i a = _mm512_loadu_si512(run[0] + at), b = _mm512_loadu_si512(run[1] + at);
    __m512i c = _mm512_loadu_si512(run[2] + at), d = _mm512_loadu_si512(run[3] + at);
    __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
    out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
    out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
    out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
    out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
}

/* The live runs of a group on their way into the cache, and its scales */
INLINE void fetch(const uint8_t *group, const sa_live *live, int64_t g, const int R, const int run_bytes) {
    for (int at = 0; at < 2 * R; at += 64) _mm_prefetch((const char *)group + at, _MM_HINT_T0);
    for (int i = 0; i < 4 * live->quads[g]; i++) {
        const char *run = (const char *)group + 2 * R + live->channel[g * SA_LIST + i] * run_bytes;
        UNROLL for (int at = 0; at < run_bytes; at += 64) _mm_prefetch(run + at, _MM_HINT_T0);
    }
}

/* acc[j], rows 16 j to 16 j + 15 of the block, += the live channels of a group */
INLINE void dots(const uint8_t *codes, const sa_live *live, int64_t g, const int R, const int nibbles, __m512i acc[16]) {
    const int run_bytes = nibbles ? R / 2 : R;
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t quad = 0; quad < live->quads[g]; quad++) {
        const uint8_t *channel = live->channel + g * SA_LIST + 4 * quad, *run[4];
        int32_t x;
        memcpy(&x, live->code + g * SA_LIST + 4 * quad, 4);
        const __m512i x4 = _mm512_set1_epi32(x);
        UNROLL for (int i = 0; i < 4; i++) run[i] = codes + channel[i] * run_bytes;
        UNROLL for (int line = 0; line < run_bytes / 64; line++) {
            __m512i w[4];
            interleave(run, 64 * line, w);
            UNROLL for (int z = 0; z < 4; z++) {
                if (nibbles) {
                    __m512i *first = acc + 8 * line + z;
                    first[0] = _mm512_dpbusd_epi32(first[0], _mm512_and_si512(w[z], low), x4);
                    first[4] = _mm512_dpbusd_epi32(first[4], _mm512_and_si512(_mm512_srli_epi16(w[z], 4), low), x4);
                } else {
                    acc[4 * line + z] = _mm512_dpbusd_epi32(acc[4 * line + z], w[z], x4);
                }
            }
        }
    }
}

INLINE void block(const sa_matrix *w, const sa_live *live, int64_t b, float *y, const int R, const int nibbles) {
    const int run_bytes = nibbles ? R / 2 : R;
    const int64_t n_groups = w->k / 32, bytes = 2 * R + 32 * run_bytes;
    const uint8_t *group = w->data + b * n_groups * bytes;
    _Alignas(64) float sums[256]; /* (R) */
    memset(sums, 0, sizeof sums);
    for (int64_t g = 0; g < AHEAD && g < n_groups; g++) fetch(group + g * bytes, live, g, R, run_bytes);
    for (int64_t g = 0; g < n_groups; g++, group += bytes) {
        if (g + AHEAD < n_groups) fetch(group + AHEAD * bytes, live, g + AHEAD, R, run_bytes);
        if (!live->quads[g]) continue;
        __m512i acc[16];
        UNROLL for (int j = 0; j < R / 16; j++) acc[j] = _mm512_set1_epi32(-(nibbles ? 8 : 128) * live->sum[g]);
        dots(group + 2 * R, live, g, R, nibbles, acc);
        const __m512 d = _mm512_set1_ps(live->d[g]);
        UNROLL for (int j = 0; j < R / 16; j++) {
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(group + 32 * j)));
            __m512 sum = _mm512_load_ps(sums + 16 * j);
            sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, d), _mm512_cvtepi32_ps(acc[j]), sum);
            _mm512_store_ps(sums + 16 * j, sum);
        }
    }
    memcpy(y, sums, (size_t)R * sizeof *y);
}

TARGET void sa_block_avx512(const sa_matrix *w, const sa_live *live, int64_t b, float *y) {
    int wide = w->block_rows == 256;
    if (w->type == 2) wide ? block(w, live, b, y, 256, 1) : block(w, live, b, y, 128, 1);
    else wide ? block(w, live, b, y, 256, 0) : block(w, live, b, y, 128, 0);
}

#else

int sa_fast(void) { return 0; }
int64_t sa_list_avx512(const int8_t *q, const sa_live *live) { return (void)q, (void)live, 0; }
void sa_block_avx512(const sa_matrix *w, const sa_live *live, int64_t block, float *y) {
    (void)w, (void)live, (void)block, (void)y;
}

#endif
