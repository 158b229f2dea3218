/* span.h: which positions a token sees, and where the table has their pages; edgellm/cache/span.py and
 * Sequence.column in C. A sequence that has dropped tokens is two stretches, the head [0, keep) and the tail; else all
 * of it is the tail. */
#ifndef EL_SPAN_H
#define EL_SPAN_H

#include "edgellm.h"

enum { EL_HEAD = 0, EL_TAIL = 1 };

typedef struct {
    int64_t first, end; /* positions [first, end); first >= end: none */
} el_stretch;

/* First position of the tail that token t sees; 0 while it touches the head. */
static inline int64_t el_start(const el_kv *kv, int64_t t) {
    int64_t start = kv->window > 0 && t - kv->window + 1 > kv->first ? t - kv->window + 1 : kv->first;
    return start > kv->keep ? start : 0;
}

/* Positions between head and tail that token t does not see: its query meets the head turned back by them. */
static inline int64_t el_shift(const el_kv *kv, int64_t t) {
    int64_t start = el_start(kv, t);
    return start ? start - kv->keep : 0;
}

/* The first token from t on that has a shift; -1: none ever has. All later ones have one too. */
static inline int64_t el_first_shifted(const el_kv *kv, int64_t t) {
    if (kv->first > kv->keep) return t;
    if (kv->window < 1) return -1;
    return t > kv->keep + kv->window ? t : kv->keep + kv->window;
}

/* What token t sees of a stretch in a layer with a window of its own (0: none). Both ends never go back as t grows. */
static inline el_stretch el_seen(const el_kv *kv, int stretch, int64_t window, int64_t t) {
    int64_t start = el_start(kv, t), low;
    if (stretch == EL_TAIL) {
        low = window > 0 ? t - window + 1 : 0;
        return (el_stretch){low > start ? low : start, t + 1};
    }
    if (!start) return (el_stretch){0, 0};
    low = window > 0 ? t - (start - kv->keep) - window + 1 : 0;
    return (el_stretch){low > 0 ? low : 0, kv->keep};
}

/* Column of the page table for a block of 64 positions. */
static inline int64_t el_column(const el_kv *kv, int64_t block) {
    int64_t behind = block - kv->head_blocks;
    if (behind < kv->ring) return block; /* the head, and the ring's first round */
    return kv->head_blocks + behind % kv->ring;
}

#endif
