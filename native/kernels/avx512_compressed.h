/* avx512_compressed.h: the part of avx512.c for compressed matrices: lines of codes are expanded in registers (vpexpandb, AVX512-
 * VBMI2) on their way to vpdpbusd (formats/panels.md, "Compressed tiles").
 *
 * A line takes a mask, a load, the expansion and a count of the mask's bits, which moves the next load: some 90 to 100 billion
 * weights a second and core, more than memory gives (Zen 5). Q4_0's lines come in pairs, in lower and upper nibbles: one load
 * and two masks for 128 weights, where nibbles of one line after the other would take an unpacking each (4/5 of the speed for
 * 3 % fewer bytes).
 */
#include "../compressed.h"

/* Where a tile's lines begin, and what is left of its values */
typedef struct {
    const uint8_t *masks, *values;
} squeezed;

INLINE squeezed open_tile(const uint8_t *tile, const int n_lines) {
    const uint8_t *masks = tile + EL_TILE_SCALES;
    return (squeezed){masks, masks + EL_MASK_BYTES * n_lines};
}

/* The next two lines, as unsigned codes */
INLINE void two_lines(const int is_q8, squeezed *s, vint *w) {
    const vint zero = _mm512_set1_epi8(is_q8 ? -128 : 8);
    uint64_t even = el_mask(s->masks), odd = el_mask(s->masks + EL_MASK_BYTES);
    int64_t n_even = _mm_popcnt_u64(even), n_odd = _mm_popcnt_u64(odd);
    vint values = v_line(s->values);
    prefetch(s->values + AHEAD);
    s->masks += 2 * EL_MASK_BYTES;
    if (is_q8) {
        prefetch(s->values + n_even + AHEAD);
        w[0] = _mm512_mask_expand_epi8(zero, even, values);
        w[1] = _mm512_mask_expand_epi8(zero, odd, v_line(s->values + n_even));
        s->values += n_even + n_odd;
    } else {
        w[0] = _mm512_mask_expand_epi8(zero, even, v_and15(values));
        w[1] = _mm512_mask_expand_epi8(zero, odd, v_and15(v_shift_right(values, 4)));
        s->values += n_even > n_odd ? n_even : n_odd;
    }
}

/* ---- up to 8 columns ----------------------------------------------------------------------------------------------- */
/* The next 32 k, C columns side by side */
INLINE void squeezed_block(const int is_q8, squeezed *from, const uint8_t *scale, columns a, int64_t b, const int C, vfloat *acc) {
    vint s[8];
    const int offset = is_q8 ? 128 : 8;
    UNROLL for (int c = 0; c < C; c++) s[c] = v_set1(-offset * a.sum[b * a.d_block + c * a.d_col]);
    UNROLL for (int j = 0; j < 8; j += 2) {
        vint w[2];
        two_lines(is_q8, from, w);
        UNROLL for (int i = 0; i < 2; i++)
            UNROLL for (int c = 0; c < C; c++) s[c] = v_dot(s[c], w[i], quad_at(a, b, c, j + i));
    }
    vfloat d = v_halves(scale);
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_scaled_add(acc[c], d, a.d[b * a.d_block + c * a.d_col], s[c]);
}

INLINE void panel_compressed(const int is_q8, const void *w, int64_t group, const el_act *x, int64_t m0, const int C,
                             int64_t n_rows, float *y, int64_t ldy) {
    el_walk walk = el_walk_group(w, group);
    columns a = narrow_columns(x, m0, 32);
    int64_t n_blocks = x->k / 32, b = 0;
    vfloat acc[8];
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_zerof();
    for (; b + 2 <= n_blocks; b += 2) {
        const uint8_t *tile = el_tile_at(walk);
        UNROLL for (int line = 0; line < 3; line++) prefetch(tile + AHEAD + 64 * line); /* scales and masks */
        squeezed from = open_tile(tile, EL_TILE_LINES);
        squeezed_block(is_q8, &from, tile, a, b, C, acc);
        squeezed_block(is_q8, &from, tile + 32, a, b + 1, C, acc);
        walk.tile = from.values;
    }
    if (b < n_blocks) {
        const uint8_t *tile = el_tile_at(walk);
        squeezed from = open_tile(tile, EL_TILE_LINES / 2);
        squeezed_block(is_q8, &from, tile, a, b, C, acc);
    }
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

/* ---- 16 columns and more: a tile of two groups is expanded once for up to 64 columns -------------------------------- */
typedef struct {
    vint lines[PAIR][EL_TILE_LINES]; /* unsigned codes */
    vfloat scale[PAIR][2];           /* of the tile's two blocks */
} open_pair;

INLINE void expand_pair(const int is_q8, const int n_lines, el_walk *walk, open_pair *w) {
    for (int r = 0; r < PAIR; r++) {
        const uint8_t *tile = el_tile_at(walk[r]);
        squeezed from = open_tile(tile, n_lines);
        for (int h = 0; h < 2; h++) w->scale[r][h] = v_halves(tile + 32 * h);
        for (int j = 0; j < n_lines; j += 2) two_lines(is_q8, &from, w->lines[r] + j);
        walk[r].tile = from.values;
    }
}

/* Half h of a tile, block b, for one set of columns; sums wait in memory between tiles */
INLINE void set_block(const int is_q8, const open_pair *w, const int h, columns a, int64_t b, vfloat (*acc)[SET]) {
    vint s[PAIR][SET];
    UNROLL for (int c = 0; c < SET; c++)
        s[0][c] = s[1][c] = v_sub(v_zero(), v_shift_left32(v_set1(a.sum[b * WIDE + c]), is_q8 ? 7 : 3));
    UNROLL for (int j = 0; j < 8; j++) pair_dot(w->lines[0][8 * h + j], w->lines[1][8 * h + j], quad_at(a, b, 0, j), s);
    UNROLL for (int r = 0; r < PAIR; r++)
        UNROLL for (int c = 0; c < SET; c++) acc[r][c] = v_scaled_add(acc[r][c], w->scale[r][h], a.d[b * WIDE + c], s[r][c]);
}

INLINE void set_tile(const int is_q8, const int n_blocks, const open_pair *w, columns a, int64_t b, set_sums *sums) {
    vfloat acc[PAIR][SET];
    UNROLL for (int i = 0; i < PAIR * SET; i++) acc[i / SET][i % SET] = _mm512_loadu_ps(sums->of[i / SET][i % SET]);
    UNROLL for (int h = 0; h < n_blocks; h++) set_block(is_q8, w, h, a, b + h, acc);
    UNROLL for (int i = 0; i < PAIR * SET; i++) v_store(sums->of[i / SET][i % SET], acc[i / SET][i % SET]);
}

INLINE void wide_compressed(const int is_q8, const void *w, const int64_t *group, const el_act *x, int64_t m0,
                            int64_t n_sets, set_sums *sums) {
    el_walk walk[PAIR] = {el_walk_group(w, group[0]), el_walk_group(w, group[1])};
    open_pair open;
    memset(sums, 0, (size_t)n_sets * sizeof *sums);
    for (int64_t b = 0; b < x->k / 32; b += 2) {
        if (b + 2 <= x->k / 32) {
            expand_pair(is_q8, EL_TILE_LINES, walk, &open);
            for (int64_t i = 0; i < n_sets; i++) set_tile(is_q8, 2, &open, wide_columns(x, m0 + i * SET, 32), b, sums + i);
        } else {
            expand_pair(is_q8, EL_TILE_LINES / 2, walk, &open);
            for (int64_t i = 0; i < n_sets; i++) set_tile(is_q8, 1, &open, wide_columns(x, m0 + i * SET, 32), b, sums + i);
        }
    }
}

static NOINLINE void wide_compressed_q4_0(const void *w, const int64_t *group, const el_act *x, int64_t m0,
                                          int64_t n_sets, set_sums *sums) {
    wide_compressed(0, w, group, x, m0, n_sets, sums);
}
static NOINLINE void wide_compressed_q8_0(const void *w, const int64_t *group, const el_act *x, int64_t m0,
                                          int64_t n_sets, set_sums *sums) {
    wide_compressed(1, w, group, x, m0, n_sets, sums);
}

/* All whole tiles of columns; returns how many columns that was. A group without a partner goes beside itself. */
INLINE int64_t wide_compressed_rows(const int is_q8, const void *w, int64_t row0, int64_t row1, const el_act *x,
                                    int64_t n_cols, float *y, int64_t ldy) {
    if (!x->tile_q || n_cols < WIDE) return 0;
    int64_t wide = n_cols / WIDE * WIDE;
    set_sums sums[MOST_SETS];
    for (int64_t r0 = row0; r0 < row1; r0 += PAIR * EL_PANEL_ROWS) {
        int64_t first = r0 / EL_PANEL_ROWS, group[PAIR] = {first, first + (r0 + EL_PANEL_ROWS < row1)};
        for (int64_t m0 = 0, n_sets; m0 < wide; m0 += n_sets * SET) {
            n_sets = min64(MOST_SETS, (wide - m0) / SET);
            (is_q8 ? wide_compressed_q8_0 : wide_compressed_q4_0)(w, group, x, m0, n_sets, sums);
            for (int64_t i = 0; i < n_sets; i++)
                store_set(sums + i, row1 - r0, y + (m0 + i * SET) * ldy + r0 - row0, ldy);
        }
    }
    return wide;
}

/* ---- the table's functions ---------------------------------------------------------------------------------------- */
#define COMPRESSED_FN(NAME, IS_Q8, PANEL)                                                                          \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,         \
                     int64_t ldy) {                                                                                \
        int64_t wide = wide_compressed_rows(IS_Q8, w, row0, row1, x, n_cols, y, ldy);                              \
        for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                                  \
            int64_t group = r0 / EL_PANEL_ROWS, n_rows = min64(EL_PANEL_ROWS, row1 - r0);                          \
            float *out = y + r0 - row0;                                                                            \
            for (int64_t m0 = wide, n = 0; m0 < n_cols; m0 += n) {                                                 \
                n = min64(NARROW_COLUMNS, n_cols - m0);                                                            \
                switch (n) {                                                                                       \
                    NARROW(PANEL, 0, 1)                                                                            \
                    NARROW(PANEL, 0, 2)                                                                            \
                    NARROW(PANEL, 0, 3)                                                                            \
                    NARROW(PANEL, 0, 4)                                                                            \
                    NARROW_MORE(PANEL, 0)                                                                          \
                }                                                                                                  \
            }                                                                                                      \
        }                                                                                                          \
    }
#define Q4_0_SQUEEZED(SPARSE, C) panel_compressed(0, w, group, x, m0, C, n_rows, out, ldy)
#define Q8_0_SQUEEZED(SPARSE, C) panel_compressed(1, w, group, x, m0, C, n_rows, out, ldy)
COMPRESSED_FN(compressed_q4_0, 0, Q4_0_SQUEEZED)
COMPRESSED_FN(compressed_q8_0, 1, Q8_0_SQUEEZED)

/* ---- packing --------------------------------------------------------------------------------------------------------- */
static int squeeze(const uint8_t *line, int zero, uint64_t *mask, uint8_t *values) {
    vint codes = v_line(line);
    *mask = _mm512_cmpneq_epi8_mask(codes, _mm512_set1_epi8((char)zero));
    _mm512_storeu_si512(values, _mm512_maskz_compress_epi8(*mask, codes));
    return (int)_mm_popcnt_u64(*mask);
}
