/* groups.h: where the tiles of a group of 16 rows lie, in panels and in sparse panels (formats/panels.md).
 *
 * A kernel's loop over tiles is written once: `sparse` is a constant where it is compiled, so that dense panels pay for
 * nothing. Of sparse panels kernels see the index that el_sparse_bind made: it was checked, it is not in a file that somebody
 * may change meanwhile, and it has addresses in the place of offsets.
 */
#ifndef EL_GROUPS_H
#define EL_GROUPS_H

#include "../kernels.h"

#if defined(__GNUC__)
#define EL_GROUPS_INLINE static inline __attribute__((always_inline))
#else
#define EL_GROUPS_INLINE static inline
#endif

/* The record of a group in the index of sparse panels; its bitmap follows it. */
typedef struct {
    uint64_t at;     /* of the first tile, from the record on; in a bound index its address */
    uint32_t n;      /* tiles that are stored */
    uint32_t form;   /* of the zero blocks of those that are not */
} el_record;

static inline int64_t el_record_bytes(int64_t n_tiles) { return (int64_t)sizeof(el_record) + (n_tiles + 63) / 64 * 8; }

static inline el_record el_load_record(const uint8_t *p) {
    el_record r;
    memcpy(&r, p, sizeof r);
    return r;
}

static inline uint64_t el_load_word64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

static inline int el_tile_live(const uint8_t *record, int64_t t) {
    return (int)(el_load_word64(record + sizeof(el_record) + t / 64 * 8) >> (t % 64) & 1);
}

EL_GROUPS_INLINE int el_lowest_bit(uint64_t bits) { /* of bits != 0 */
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int n = 0;
    while (!(bits >> n & 1)) n++;
    return n;
#endif
}

typedef struct {
    const uint8_t *tile; /* the first that is stored; kernels move it on */
    int64_t n;           /* whole tiles that are stored */
    int half;            /* 1: and the half one at the end */
    const uint8_t *live; /* sparse: the bitmap's next word, the bits left of the one before it, and their first tile */
    uint64_t bits;
    int64_t first;
} el_group;

/* Group g of a matrix of k columns; w: its panels, or its bound index. Tiles of tile_k columns take tile_bytes, the half one half_bytes. */
EL_GROUPS_INLINE el_group el_group_at(const int sparse, const void *w, int64_t g, int64_t k, const int64_t tile_k,
                                      const int64_t tile_bytes, const int64_t half_bytes) {
    int64_t n = k / tile_k;
    int half = k % tile_k != 0;
    el_group out = {.n = n, .half = half, .first = -64};
    if (!sparse) {
        out.tile = (const uint8_t *)w + g * (n * tile_bytes + half * half_bytes);
        return out;
    }
    const uint8_t *record = (const uint8_t *)w + g * el_record_bytes(n + half);
    el_record r = el_load_record(record);
    out.tile = (const uint8_t *)(uintptr_t)r.at;
    out.half = half && el_tile_live(record, n);
    out.n = (int64_t)r.n - out.half;
    out.live = record + sizeof r;
    return out;
}

/* Which tile along k the i-th stored one is; to be asked for i = 0, 1, 2, ... */
EL_GROUPS_INLINE int64_t el_next_tile(const int sparse, el_group *g, int64_t i) {
    if (!sparse) return i;
    while (!g->bits) {
        g->bits = el_load_word64(g->live);
        g->live += 8;
        g->first += 64;
    }
    int64_t t = g->first + el_lowest_bit(g->bits);
    g->bits &= g->bits - 1;
    return t;
}

#endif
