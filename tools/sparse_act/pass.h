/* pass.h: which steps of a plan are sparse (pass.c). */
#ifndef SPARSE_ACT_PASS_H
#define SPARSE_ACT_PASS_H

#include "kmajor.h"

/* [cffi begin] */
typedef struct {
    int32_t step;        /* index in the lowered plan: a LINEAR step of one weight */
    float threshold;     /* inputs of smaller size count as 0 */
    sa_matrix matrix;
} sa_site;

typedef struct {
    sa_live live;        /* lists for the largest k; d and sum are the plan's */
    float *kept;         /* (k) */
} sa_scratch;

/* From now on passes of one token take these products (NULL: none); all stays the caller's. The count begins at 0. */
void sa_use(const sa_site *all, int64_t n, sa_scratch *room);
int64_t sa_live_seen(void); /* live channels since sa_use, of all sites and passes */
/* [cffi end] */

#endif
