/* compressed.h: how a tile of a compressed matrix is read, in plain C (formats/panels.md, "Compressed tiles").
 *
 * A tile says itself how long it is, and what a damaged file says could lead anywhere. So whoever walks a stream asks el_tile_at
 * for each tile, which gives no place behind the stream; el_compressed_bind has seen to it that EL_COMPRESSED_PAD bytes follow.
 */
#ifndef EL_COMPRESSED_H
#define EL_COMPRESSED_H

#include "kernels.h"

enum { EL_TILE_SCALES = 64, EL_CODE_LINE = 64, EL_MASK_BYTES = 8, EL_TILE_LINES = 16 };
_Static_assert(EL_COMPRESSED_PAD >= EL_TILE_SCALES + EL_TILE_LINES * (EL_MASK_BYTES + EL_CODE_LINE) + EL_CODE_LINE,
               "the longest tile, and a whole line read from its end on");

/* The code of the weight 0, which is left out. Codes are unsigned: Q8_0's are those of its blocks + 128. */
static inline int el_zero_code(int type) { return type == EL_TYPE_Q8_0 ? 128 : 8; }
static inline int el_has_compressed(int type) { return type == EL_TYPE_Q8_0 || type == EL_TYPE_Q4_0; }

/* A group's record in the index */
typedef struct {
    uint64_t at;    /* its stream, counted from the record on; in a bound index its address */
    uint64_t bytes;
} el_stream;

static inline el_stream el_load_stream(const uint8_t *record) {
    el_stream s;
    memcpy(&s, record, sizeof s);
    return s;
}

/* Where a walk through a group's tiles stands */
typedef struct {
    const uint8_t *tile, *end; /* end: of the stream; EL_COMPRESSED_PAD bytes can be read from there on */
} el_walk;

static inline el_walk el_walk_group(const void *index, int64_t group) {
    el_stream s = el_load_stream((const uint8_t *)index + group * (int64_t)sizeof s);
    const uint8_t *tile = (const uint8_t *)(uintptr_t)s.at;
    return (el_walk){tile, tile + s.bytes};
}

/* The next tile */
static inline const uint8_t *el_tile_at(el_walk w) { return w.tile < w.end ? w.tile : w.end; }

static inline uint64_t el_mask(const uint8_t *p) {
    uint64_t mask;
    memcpy(&mask, p, 8);
    return mask;
}

/* The line's codes: those of the mask from `values` on (`shift` 4: from upper nibbles), the others `zero`. Returns how many. */
static inline int el_expand_line(uint64_t mask, const uint8_t *values, int bits, int shift, int zero, uint8_t *line) {
    int n = 0;
    for (int i = 0; i < EL_CODE_LINE; i++) { /* without a branch: every other one would be guessed wrong */
        int live = (int)(mask >> i & 1), code = values[n] >> shift & ((1 << bits) - 1);
        line[i] = (uint8_t)(live ? code : zero);
        n += live;
    }
    return n;
}

/* The n_lines (16, or 8 of a half tile) lines of a tile as unsigned codes (n_lines, 16 rows, 4 k); returns where it ends. */
static inline const uint8_t *el_expand_tile(int type, int n_lines, const uint8_t *tile, uint8_t *codes) {
    const uint8_t *masks = tile + EL_TILE_SCALES, *values = masks + EL_MASK_BYTES * n_lines;
    int zero = el_zero_code(type), is_q8 = type == EL_TYPE_Q8_0;
    for (int j = 0; j < n_lines; j += 2) { /* of Q4_0 two lines share bytes */
        uint8_t *line = codes + j * EL_CODE_LINE;
        int even = el_expand_line(el_mask(masks + j * EL_MASK_BYTES), values, is_q8 ? 8 : 4, 0, zero, line);
        if (is_q8) values += even;
        int odd = el_expand_line(el_mask(masks + (j + 1) * EL_MASK_BYTES), values, is_q8 ? 8 : 4, is_q8 ? 0 : 4, zero,
                                 line + EL_CODE_LINE);
        values += is_q8 || odd > even ? odd : even;
    }
    return values;
}

#endif
