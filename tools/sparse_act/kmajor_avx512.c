/* kmajor_avx512.c: the lists and products of kmajor.h with AVX-512 and VNNI. */
#include "kmajor.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,popcnt")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLL _Pragma("GCC unroll 17")
enum { AHEAD = 4096 }; /* bytes of live runs that are on their way: no hardware stream follows a list */

int sa_fast(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c");
}

/* The live of 16 codes, of channels `first` on, go to `channel` and `code`; returns how many. */
INLINE int compress(const int8_t *q, int32_t first, int32_t *channel, int8_t *code) {
    __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q));
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 alive = _mm512_test_epi32_mask(codes, codes);
    _mm512_storeu_si512(channel, _mm512_maskz_compress_epi32(alive, _mm512_add_epi32(lanes, _mm512_set1_epi32(first))));
    _mm_storeu_si128((__m128i *)code, _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(alive, codes)));
    return __builtin_popcount(alive);
}

TARGET int64_t sa_list_avx512(const int8_t *q, const sa_live *live) {
    int64_t total = 0;
    int32_t *channel = live->channel;
    int8_t *code = live->code;
    for (int64_t g = 0; g < live->k / 32; g++) {
        int n = compress(q + 32 * g, (int32_t)(32 * g), channel, code);
        n += compress(q + 32 * g + 16, (int32_t)(32 * g + 16), channel + n, code + n);
        total += n;
        for (; n % 4; n++) { /* filled up with a run that is read anyway, times 0 */
            channel[n] = channel[n - 1];
            code[n] = 0;
        }
        live->quads[g] = n / 4;
        channel += n;
        code += n;
    }
    memset(channel, 0, SA_ROOM * sizeof *channel);
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

/* acc[j], rows 16 j to 16 j + 15 of the block, += the channels of `n` quads; the runs of later quads are fetched. */
INLINE void dots(const uint8_t *codes, const int32_t *channel, const int8_t *code, int32_t n, const int R, const int nibbles,
                 __m512i acc[16]) {
    const int run_bytes = nibbles ? R / 2 : R;
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t quad = 0; quad < n; quad++, channel += 4, code += 4) {
        const uint8_t *run[4];
        int32_t x;
        memcpy(&x, code, 4);
        const __m512i x4 = _mm512_set1_epi32(x);
        UNROLL for (int i = 0; i < 4; i++) {
            const char *next = (const char *)codes + (int64_t)channel[AHEAD / run_bytes + i] * run_bytes;
            UNROLL for (int at = 0; at < run_bytes; at += 64) _mm_prefetch(next + at, _MM_HINT_T0);
            run[i] = codes + (int64_t)channel[i] * run_bytes;
        }
        UNROLL for (int line = 0; line < run_bytes / 64; line++) {
            __m512i w[4];
            __asm__ volatile("" ::: "memory"); /* line after line: GCC would load all at once and run out of registers */
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

/* y (R) = a block of R rows; 16 vectors of sums are what registers hold. */
INLINE void block(const sa_matrix *w, const sa_live *live, int64_t b, float *y, const int R, const int nibbles) {
    const uint8_t *scales = sa_scales(w, b), *codes = sa_codes(w, b);
    const int32_t *channel = live->channel;
    const int8_t *code = live->code;
    memset(y, 0, (size_t)R * sizeof *y);
    for (int64_t g = 0; g < w->k / 32; g++, scales += 2 * R) {
        const int32_t n = live->quads[g];
        __m512i acc[16]; /* [R / 16][16 rows] */
        UNROLL for (int j = 0; j < R / 16; j++) acc[j] = _mm512_set1_epi32(-(nibbles ? 8 : 128) * live->sum[g]);
        dots(codes, channel, code, n, R, nibbles, acc);
        const __m512 d = _mm512_set1_ps(live->d[g]);
        UNROLL for (int j = 0; j < R / 16; j++) {
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + 32 * j)));
            __m512 sum = _mm512_fmadd_ps(_mm512_mul_ps(scale, d), _mm512_cvtepi32_ps(acc[j]), _mm512_loadu_ps(y + 16 * j));
            _mm512_storeu_ps(y + 16 * j, sum);
        }
        channel += 4 * n;
        code += 4 * n;
    }
}

TARGET void sa_block_avx512(const sa_matrix *w, const sa_live *live, int64_t b, float *y) {
    const int wide = w->block_rows == 256;
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
