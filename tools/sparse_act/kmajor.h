/* kmajor.h: matrices stored by input channel, and products that read live channels only. An experiment, not in the wheel:
 * tools/sparse_act.py compiles it. kmajor.c is plain C and defines the results, kmajor_avx512.c gives the same bits.
 *
 * The result is that of the runtime's dense product (formats/arithmetic.md) for an x in which the dead channels are 0: an
 * activation is dead where its int8 code is 0. Blocks of 32 k without a live channel would add fma(d * 0, 0, acc).
 */
#ifndef SPARSE_ACT_KMAJOR_H
#define SPARSE_ACT_KMAJOR_H

#include <stdint.h>

/* [cffi begin] */
/* [rows / block_rows] blocks; a block is
 *     scales   [k / 32][block_rows] f16
 *     codes    [k][block_rows] of 4 or 8 bits, unsigned: Q4_0 has offset 8, Q8_0 128
 * The codes of one k are a run: lines of 64 bytes. Byte 16 i + 4 z + j of a line is row 16 z + 4 i + j of its 64 rows, so
 * that four runs, byte by byte in turns, are vectors of [16 rows][4 channels]. Q4_0: a line has 128 rows, the second 64 in
 * the upper halves of its bytes. Rows past the end have scale 0. */
enum { SA_MOST_ROWS = 256 };
typedef struct {
    int32_t type;         /* GGUF type id of Q4_0 or Q8_0 */
    int32_t block_rows;   /* 128 or 256; more would not fit into registers */
    int64_t rows, k;      /* k is a multiple of 32 */
    const uint8_t *data;  /* sa_bytes(...), 64-byte aligned */
} sa_matrix;

/* The live channels of one input vector, ascending; those of each 32 are filled up to a multiple of 4 with code 0. */
enum { SA_ROOM = 128 };   /* entries of a list behind k: vectors are stored whole, and prefetching looks ahead */
typedef struct {
    int64_t k;
    int32_t *channel;     /* (k + SA_ROOM), each below k, also where the list is over */
    int8_t *code;         /* (k + SA_ROOM) */
    int32_t *quads;       /* (k / 32) how many quads of the list are of these 32 */
    const float *d;       /* (k / 32) scale, as the runtime quantises */
    const int32_t *sum;   /* (k / 32) sum of codes */
} sa_live;

int64_t sa_bytes(int type, int64_t rows, int64_t k, int block_rows);   /* -1: no such matrix */
int sa_pack(const void *source, const sa_matrix *shape, void *out);    /* rows of blocks -> out; 0, or 1: wrong shape */
void sa_keep(const float *x, int64_t k, float threshold, float *kept); /* kept = |x| < threshold ? 0 : x */
int64_t sa_list(const int8_t *q, const sa_live *live, int fast);       /* q (k) int8 codes -> lists; how many are live */
/* y (block_rows) = rows of block `block` times the live channels */
void sa_block(const sa_matrix *w, const sa_live *live, int64_t block, float *y, int fast);
int sa_fast(void);                                                     /* 1: `fast` makes a difference here */
/* [cffi end] */

/* kmajor_avx512.c */
int64_t sa_list_avx512(const int8_t *q, const sa_live *live);
void sa_block_avx512(const sa_matrix *w, const sa_live *live, int64_t block, float *y);

static inline int64_t sa_run_bytes(const sa_matrix *w) { return w->type == 2 ? w->block_rows / 2 : w->block_rows; }
static inline int64_t sa_block_bytes(const sa_matrix *w) { return w->k / 32 * 2 * w->block_rows + w->k * sa_run_bytes(w); }
/* f16 (k / 32, block_rows), and runs (k, sa_run_bytes) */
static inline const uint8_t *sa_scales(const sa_matrix *w, int64_t block) { return w->data + block * sa_block_bytes(w); }
static inline const uint8_t *sa_codes(const sa_matrix *w, int64_t block) {
    return sa_scales(w, block) + w->k / 32 * 2 * w->block_rows;
}

#endif
