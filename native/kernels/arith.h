/* arith.h: scalar arithmetic that every kernel file shares, so that tails and portable loops round alike.
 *
 * formats/arithmetic.md is the specification. All `static inline`: each file gets its own copy, compiled
 * for its own instruction set.
 */
#ifndef EL_ARITH_H
#define EL_ARITH_H

#include "../kernels.h"

#define EL_LANES 16 /* accumulators of a float sum: lane = index mod 16 */

static inline uint32_t el_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float el_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* a * b + c, rounded once. Without a hardware instruction: the product is exact in double, the sum is
 * rounded to odd there (Boldo & Melquiond 2008), and the last rounding to float32 is then the right one. */
static inline float el_fmaf(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    double p = (double)a * (double)b, s = p + (double)c, t = s - p;
    double e = (p - (s - t)) + ((double)c - t); /* what the addition lost; NaN when s is not finite */
    uint64_t bits, e_bits;
    memcpy(&bits, &s, 8);
    memcpy(&e_bits, &e, 8);
    uint64_t inexact = (uint64_t)((e < 0.0) | (e > 0.0)) & ~bits & 1u;
    bits += (1u - (((e_bits ^ bits) >> 63) << 1)) & (0u - inexact);
    memcpy(&s, &bits, 8);
    return (float)s;
#endif
}

/* The 4-bit codebooks: IQ4_NL and IQ4_XS; twice the e2m1 floats of MXFP4 (OCP Microscaling Formats 1.0). */
static const int8_t el_iq4_codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t el_mxfp4_codes[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Half of the power of two of an e8m0 byte: 2^(e - 128); e = 0 and 1 are subnormal. */
static inline float el_e8m0(uint8_t e) { return el_float(e < 2 ? 0x200000u << e : (uint32_t)(e - 1) << 23); }

/* The fixed tree that folds 16 lanes: 8+8, 4+4, 2+2, 1+1. Overwrites the lanes. */
static inline float el_tree16(float *lanes) {
    for (int width = EL_LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* exp(x) = 2^n * p(r): n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts, p of degree 6 (a least
 * squares fit of the relative error on |r| <= ln 2 / 2, below 2^-27). NaN stays NaN. */
#define EL_EXP_HI 89.0f     /* exp is infinite above 88.73 */
#define EL_EXP_LO (-104.0f) /* and 0 below -103.98 */
#define EL_EXP_LOG2E 0x1.715476p+0f
#define EL_EXP_LN2_HI 0x1.62e4p-1f
#define EL_EXP_LN2_LO 0x1.7f7d1cp-20f
#define EL_EXP_ROUND 0x1.8p+23f /* adding it rounds to an integer, to nearest even */
#define EL_EXP_C2 0x1.fffff8p-2f
#define EL_EXP_C3 0x1.55549p-3f
#define EL_EXP_C4 0x1.555b14p-5f
#define EL_EXP_C5 0x1.123aecp-7f
#define EL_EXP_C6 0x1.68a7b6p-10f

static inline float el_expf(float x) {
    x = EL_EXP_HI < x ? EL_EXP_HI : x;
    x = EL_EXP_LO > x ? EL_EXP_LO : x;
    float t = el_fmaf(x, EL_EXP_LOG2E, EL_EXP_ROUND), n = t - EL_EXP_ROUND;
    float r = el_fmaf(n, -EL_EXP_LN2_LO, el_fmaf(n, -EL_EXP_LN2_HI, x));
    float p = el_fmaf(EL_EXP_C6, r, EL_EXP_C5);
    p = el_fmaf(p, r, EL_EXP_C4);
    p = el_fmaf(p, r, EL_EXP_C3);
    p = el_fmaf(p, r, EL_EXP_C2);
    p = el_fmaf(p, r, 1.0f);
    p = el_fmaf(p, r, 1.0f);
    /* 2^n in two factors, so that results below the smallest normal float round once */
    int32_t i = (int32_t)(el_bits(t) - el_bits(EL_EXP_ROUND)), half = i >> 1;
    return p * el_float((uint32_t)(half + 127) << 23) * el_float((uint32_t)(i - half + 127) << 23);
}

static inline float el_silu(float x) { return x / (1.0f + el_expf(-x)); }

/* gelu with tanh (Hendrycks & Gimpel 2016): x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
#define EL_GELU_A 0x1.988454p+0f /* 2 sqrt(2 / pi) */
#define EL_GELU_B 0x1.6e4e26p-5f /* 0.044715 */
static inline float el_gelu(float x) {
    float u = EL_GELU_A * el_fmaf(EL_GELU_B * x * x, x, x);
    return x / (1.0f + el_expf(-u));
}

/* gelu, exact: x Phi(x) = max(x, 0) - |x| h, h = Phi(-|x|) = t P(t) exp(-x^2 / 2), t = 1 / (1 + c |x|). P is of degree 8, a fit
 * of the relative error below 2^-25 (the form of Abramowitz and Stegun 26.2.17). NaN stays NaN. */
#define EL_PHI_C 0x1.6p-2f
#define EL_PHI_P0 0x1.18d2a8p-3f
#define EL_PHI_P1 0x1.19a722p-3f
#define EL_PHI_P2 0x1.deb29ep-4f
#define EL_PHI_P3 0x1.cb3146p-4f
#define EL_PHI_P4 -0x1.368b58p-5f
#define EL_PHI_P5 0x1.828c26p-3f
#define EL_PHI_P6 -0x1.142740p-2f
#define EL_PHI_P7 0x1.24767ap-3f
#define EL_PHI_P8 -0x1.c3e82cp-6f
static inline float el_gelu_exact(float x) {
    float a = el_float(el_bits(x) & 0x7fffffffu), t = 1.0f / el_fmaf(EL_PHI_C, a, 1.0f);
    float p = el_fmaf(EL_PHI_P8, t, EL_PHI_P7);
    p = el_fmaf(p, t, EL_PHI_P6);
    p = el_fmaf(p, t, EL_PHI_P5);
    p = el_fmaf(p, t, EL_PHI_P4);
    p = el_fmaf(p, t, EL_PHI_P3);
    p = el_fmaf(p, t, EL_PHI_P2);
    p = el_fmaf(p, t, EL_PHI_P1);
    p = el_fmaf(p, t, EL_PHI_P0);
    float h = p * t * el_expf(-0.5f * a * a);
    return el_fmaf(-a, h, x > 0.0f ? x : 0.0f);
}

/* tanh(u): an odd polynomial up to 0.625 (a fit of the relative error, below 2^-26), 1 - 2 / (1 + exp(2 u)) beyond. */
#define EL_TANH_SMALL 0.625f
#define EL_TANH_C3 -0x1.555532p-2f
#define EL_TANH_C5 0x1.110726p-3f
#define EL_TANH_C7 -0x1.b83c36p-5f
#define EL_TANH_C9 0x1.5225c4p-6f
#define EL_TANH_C11 -0x1.75de5ep-8f

static inline float el_tanhf(float u) {
    float z = u * u, p = el_fmaf(EL_TANH_C11, z, EL_TANH_C9);
    p = el_fmaf(p, z, EL_TANH_C7);
    p = el_fmaf(p, z, EL_TANH_C5);
    p = el_fmaf(p, z, EL_TANH_C3);
    float small = el_fmaf(p * z, u, u), large = 1.0f - 2.0f / (1.0f + el_expf(2.0f * u));
    return (u < 0.0f ? -u : u) < EL_TANH_SMALL ? small : large;
}

/* v to an int8 in -127 .. 127, to nearest even; NaN becomes 127 (its block's scale is NaN then) */
static inline int8_t el_q8(float v) {
    v = v < 127.0f ? v : 127.0f;
    v = v > -127.0f ? v : -127.0f;
    return (int8_t)((int32_t)(el_bits(v + EL_EXP_ROUND) & 0x7fffffu) - 0x400000);
}

/* The same for 4 bits: limited to -8 .. 7, then 8 is added. A NaN gives 15. */
static inline uint8_t el_q4(float v) {
    v = v < 7.0f ? v : 7.0f;
    v = v > -8.0f ? v : -8.0f;
    return (uint8_t)((el_bits(v + EL_EXP_ROUND) & 0x7fffffu) - 0x400000u + 8u);
}

/* Where number i of a row of `width` numbers of a q4_0 page lies: the byte, and how far up in it. `row` is the number of
 * numbers before the row, an even one. */
static inline int64_t el_nibble(int64_t row, int64_t i, int64_t width, int *shift) {
    int64_t group = i & ~(int64_t)15, n = width - group < 16 ? width - group : 16, at = i - group;
    *shift = at < n / 2 ? 0 : 4;
    return (row + group) / 2 + (at < n / 2 ? at : at - n / 2);
}
static inline float el_number_q4_0(const void *page, int64_t row, int64_t i, int64_t width) {
    int shift;
    int64_t byte = el_nibble(row, i, width, &shift);
    return (float)((((const uint8_t *)page)[byte] >> shift & 15) - 8);
}

#endif
