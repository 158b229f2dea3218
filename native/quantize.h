/* quantize.h: what quantize*.c and dequantize.c share. */
#ifndef EL_QUANTIZE_H
#define EL_QUANTIZE_H

#include "kernels.h"

enum { QK = 32 }; /* weights in a block of the types without super-blocks */

/* Number of values of a (rows, k) matrix that fits the type and 64-bit sizes, or -1. */
int64_t el_count_of(int type, int64_t rows, int64_t k);

extern const int8_t el_iq4_values[16];   /* codebook of IQ4_NL and IQ4_XS, ascending */
extern const int8_t el_mxfp4_values[16]; /* codebook of MXFP4: twice e2m1 */
float el_e8m0_half(uint8_t e);           /* 2**(e - 128); e = 0 and 1 are subnormal */

/* One case of a switch over types: `call` for each block i of the n values. */
#define BLOCKS(TYPE, call, length)                                                       \
    case EL_TYPE_##TYPE:                                                                       \
        for (int64_t i = 0; i < n / (length); i++) call;                                       \
        return EL_OK;

/* Bits of 32 codes: low four into nibbles (Q4_0's order), the fifth into a word. */
void el_put_nibbles(const uint8_t *q, uint8_t *qs);
void el_put_fifth_bits(const uint8_t *q, uint8_t *qh);

/* One block: el_plain_* as ggml's reference code, el_search_* with the least error weighted by w (one per weight). */
void el_plain_q4_0(const float *x, void *block);
void el_plain_q4_1(const float *x, void *block);
void el_plain_q5_0(const float *x, void *block);
void el_plain_q5_1(const float *x, void *block);
void el_plain_q8_0(const float *x, void *block);
void el_plain_tq1_0(const float *x, void *block);
void el_plain_tq2_0(const float *x, void *block);
void el_plain_mxfp4(const float *x, void *block);
void el_search_q4_0(const float *x, const float *w, void *block);
void el_search_q4_1(const float *x, const float *w, void *block);
void el_search_q5_0(const float *x, const float *w, void *block);
void el_search_q5_1(const float *x, const float *w, void *block);
void el_search_q8_0(const float *x, const float *w, void *block);
void el_search_q2_k(const float *x, const float *w, void *block);
void el_search_q3_k(const float *x, const float *w, void *block);
void el_search_q4_k(const float *x, const float *w, void *block);
void el_search_q5_k(const float *x, const float *w, void *block);
void el_search_q6_k(const float *x, const float *w, void *block);
void el_search_iq4_nl(const float *x, const float *w, void *block);
void el_search_iq4_xs(const float *x, const float *w, void *block);

#endif
