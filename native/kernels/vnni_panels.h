/* vnni_panels.h: the panel kernels for CPUs with vpdpbusd (four u8 x s8 products added to an int32 at once).
 *
 * avx512.c and avxvnni.c include this file after defining `vint` and `vfloat`, 16 lanes of int32 and float32 (a lane is a
 * row of the group), and the v_ functions on them. formats/panels.md has the tiles, formats/arithmetic.md the bits.
 * vpdpbusd wants unsigned weights: an offset is taken off through the activations' integer sum, which is where the
 * accumulator starts.
 */

/* Where the activations of a set of columns lie: quad j of block b of column c is at
 * q + (b / 2) * q_tile + c * q_col + (b % 2) * 32 + 4 j, its scale at d[b * d_block + c * d_col]. */
typedef struct {
    const int8_t *q;
    int64_t q_tile, q_col;
    const float *d;
    const int32_t *sum;     /* as d, except for K-quants: there one row of sums per (block, column) */
    int64_t d_block, d_col; /* block: 32 k, for K-quants 256 */
} columns;

INLINE columns narrow_columns(const el_act *x, int64_t m0, int64_t per_scale) {
    int64_t ld = x->k_pad / per_scale;
    return (columns){x->q + m0 * x->k_pad, 64, x->k_pad, x->d + m0 * ld, x->sum + m0 * (per_scale == 32 ? ld : ld * 16), 1, ld};
}

INLINE const int8_t *quad_at(columns a, int64_t b, int c, int j) {
    return a.q + (b >> 1) * a.q_tile + c * a.q_col + (b & 1) * 32 + j * 4;
}

INLINE void store_rows(float *y, int64_t n_rows, vfloat acc) {
    if (n_rows == EL_PANEL_ROWS) v_store(y, acc);
    else {
        float out[EL_PANEL_ROWS];
        v_store(out, acc);
        memcpy(y, out, (size_t)n_rows * 4);
    }
}

INLINE vint nibble_line(const uint8_t *line, const int high) {
    return high ? v_and15(v_shift_right(v_line(line), 4)) : v_and15(v_line(line));
}

/* ---- Q4_0 and Q8_0: one scale per 32 k ----------------------------------------------------------------------------- */
/* Eight quads at `lines`, C columns side by side: as many chains of additions as columns. */
INLINE void block32(const uint8_t *lines, const uint8_t *scale, const int is_q8, const int high, columns a, int64_t b,
                    const int C, vfloat *acc) {
    vint s[8];
    const int offset = is_q8 ? 128 : 8;
    UNROLL for (int c = 0; c < C; c++) s[c] = v_set1(-offset * a.sum[b * a.d_block + c * a.d_col]);
    UNROLL for (int j = 0; j < 8; j++) {
        vint w = is_q8 ? v_flip(v_line(lines + j * 64)) : nibble_line(lines + j * 64, high);
        UNROLL for (int c = 0; c < C; c++) s[c] = v_dot(s[c], w, quad_at(a, b, c, j));
    }
    vfloat d = v_halves(scale);
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_scaled_add(acc[c], d, a.d[b * a.d_block + c * a.d_col], s[c]);
}

/* Q4_0's half tile at the end of K = 32 mod 64: 4 lines, quads 0-3 low, 4-7 high. */
INLINE void q4_0_half(const uint8_t *tile, columns a, int64_t b, const int C, vfloat *acc) {
    vint s[8];
    UNROLL for (int c = 0; c < C; c++) s[c] = v_set1(-8 * a.sum[b * a.d_block + c * a.d_col]);
    for (int j = 0; j < 8; j++) {
        vint w = j < 4 ? nibble_line(tile + 64 + j * 64, 0) : nibble_line(tile + 64 + (j - 4) * 64, 1);
        UNROLL for (int c = 0; c < C; c++) s[c] = v_dot(s[c], w, quad_at(a, b, c, j));
    }
    vfloat d = v_halves(tile);
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_scaled_add(acc[c], d, a.d[b * a.d_block + c * a.d_col], s[c]);
}

INLINE void panel_q4_0(const int sparse, el_group g, const el_act *x, int64_t m0, const int C, int64_t n_rows, float *y,
                       int64_t ldy) {
    columns a = narrow_columns(x, m0, 32);
    vfloat acc[8];
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_zerof();
    for (int64_t i = 0; i < g.n; i++, g.tile += 576) {
        int64_t b = 2 * el_next_tile(sparse, &g, i);
        UNROLL for (int line = 0; line < 9; line++) prefetch(g.tile + AHEAD + 64 * line);
        block32(g.tile + 64, g.tile, 0, 0, a, b, C, acc);
        block32(g.tile + 64, g.tile + 32, 0, 1, a, b + 1, C, acc);
    }
    if (g.half) q4_0_half(g.tile, a, x->k / 32 - 1, C, acc);
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

INLINE void panel_q8_0(const int sparse, el_group g, const el_act *x, int64_t m0, const int C, int64_t n_rows, float *y,
                       int64_t ldy) {
    columns a = narrow_columns(x, m0, 32);
    vfloat acc[8];
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_zerof();
    for (int64_t i = 0; i < g.n; i++, g.tile += 1088) {
        int64_t b = 2 * el_next_tile(sparse, &g, i);
        UNROLL for (int line = 0; line < 17; line++) prefetch(g.tile + AHEAD + 64 * line);
        block32(g.tile + 64, g.tile, 1, 0, a, b, C, acc);
        block32(g.tile + 576, g.tile + 32, 1, 0, a, b + 1, C, acc);
    }
    if (g.half) block32(g.tile + 64, g.tile, 1, 0, a, x->k / 32 - 1, C, acc);
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

/* ---- Q4_K, Q5_K, Q6_K: blocks of 256 k with integer scales per group --------------------------------------------------- */
/* The weights of quad j (0 to 7) of half g of 64-k stretch t, unsigned */
INLINE vint quad_q4_k(const uint8_t *tile, const int t, const int g, const int j) {
    return nibble_line(tile + 320 + t * 512 + j * 64, g);
}

INLINE vint quad_q5_k(const uint8_t *tile, const int t, const int g, const int j) {
    const uint8_t *part = tile + 320 + t * 640;
    vint fifth = v_line(part + g * 64); /* bit j is quad j's */
    fifth = v_and(j < 4 ? v_shift_left(fifth, 4 - j) : v_shift_right(fifth, j - 4), v_set1(0x10101010));
    return v_or(nibble_line(part + 128 + j * 64, g), fifth);
}

/* 16-k group 2 g + j / 4 of the stretch; its four quads have their upper bits in one line */
INLINE vint quad_q6_k(const uint8_t *tile, const int t, const int g, const int j) {
    const uint8_t *part = tile + 320 + t * 768;
    const int group = 2 * g + j / 4, at = j % 4;
    vint upper = v_line(part + group * 64);
    upper = v_and(at < 2 ? v_shift_left(upper, 4 - 2 * at) : v_shift_right(upper, 2 * at - 4), v_set1(0x30303030));
    return v_or(nibble_line(part + 256 + j * 64, g), upper);
}

enum k_kind { K4, K5, K6 };
INLINE vint k_quad(const enum k_kind kind, const uint8_t *tile, const int t, const int g, const int j) {
    return kind == K4 ? quad_q4_k(tile, t, g, j) : kind == K5 ? quad_q5_k(tile, t, g, j) : quad_q6_k(tile, t, g, j);
}

/* The 16 rows' integer scales of 32 k (Q6_K: of 16 k, `part` says which of the two) */
INLINE vint k_scale(const enum k_kind kind, const uint8_t *tile, const int t, const int g, const int part) {
    if (kind == K6) return v_pair_signed(tile + 64 + (t * 2 + g) * 32, part);
    return v_pair_unsigned(tile + 64 + t * 32, g);
}

/* total[c] += scale * dot over 32 k */
INLINE void k_group(const enum k_kind kind, const uint8_t *tile, const int t, const int g, columns a, int64_t b, const int C,
                    vint *total) {
    const int n_parts = kind == K6 ? 2 : 1, n_quads = 8 / n_parts;
    UNROLL for (int part = 0; part < n_parts; part++) {
        vint s[8];
        UNROLL for (int c = 0; c < C; c++) s[c] = v_zero();
        UNROLL for (int i = 0; i < n_quads; i++) {
            int j = part * n_quads + i;
            vint w = k_quad(kind, tile, t, g, j);
            UNROLL for (int c = 0; c < C; c++) s[c] = v_dot(s[c], w, quad_at(a, b * 8 + t * 2 + g, c, j));
        }
        vint scale = k_scale(kind, tile, t, g, part);
        UNROLL for (int c = 0; c < C; c++) total[c] = v_add(total[c], v_mul(s[c], scale));
    }
}

/* sum over pairs of groups of (scale or minimum) * activation sum; `pairs` are int16 pairs */
INLINE vint k_sums(const uint8_t *factors, const int n_pairs, const int is_signed, const int32_t *pairs) {
    vint s = v_zero();
    UNROLL for (int p = 0; p < n_pairs; p++) s = v_dot_pairs(s, v_widen(factors + p * 32, is_signed), pairs[p]);
    return s;
}

/* One block's share of a row's sum, from its total and the pairs of activation sums (8 of 16 k, then 4 of 32 k) */
INLINE vfloat k_finish(const enum k_kind kind, const uint8_t *tile, vfloat acc, vint total, const int32_t *pairs, float dx) {
    if (kind == K6) {
        vint offset = k_sums(tile + 64, 8, 1, pairs);
        return v_scaled_add(acc, v_halves(tile), dx, v_sub(total, v_shift_left32(offset, 5)));
    }
    acc = v_scaled_add(acc, v_halves(tile), dx, total);
    return v_scaled_sub(acc, v_halves(tile + 32), dx, k_sums(tile + 192, 4, 0, pairs + 8));
}

INLINE void panel_k(const enum k_kind kind, const int64_t bytes, const int sparse, el_group group, const el_act *x, int64_t m0,
                    const int C, int64_t n_rows, float *y, int64_t ldy) {
    columns a = narrow_columns(x, m0, 256);
    vfloat acc[8];
    UNROLL for (int c = 0; c < C; c++) acc[c] = v_zerof();
    for (int64_t i = 0; i < group.n; i++, group.tile += bytes) {
        const uint8_t *tile = group.tile;
        int64_t b = el_next_tile(sparse, &group, i);
        vint total[8];
        UNROLL for (int c = 0; c < C; c++) total[c] = v_zero();
        for (int t = 0; t < 4; t++) {
            const uint8_t *next = tile + 320 + t * ((bytes - 320) / 4) + AHEAD;
            UNROLL for (int line = 0; line < (bytes - 320) / 256; line++) prefetch(next + 64 * line);
            k_group(kind, tile, t, 0, a, b, C, total);
            k_group(kind, tile, t, 1, a, b, C, total);
        }
        UNROLL for (int c = 0; c < C; c++) {
            int32_t pairs[12];
            v_sum_pairs(a.sum + (b * a.d_block + c * a.d_col) * 16, pairs);
            acc[c] = k_finish(kind, tile, acc[c], total[c], pairs, a.d[b * a.d_block + c * a.d_col]);
        }
    }
    UNROLL for (int c = 0; c < C; c++) store_rows(y + (m0 + c) * ldy, n_rows, acc[c]);
}

/* ---- the table's functions: C = 1 to 8 columns read the weights once ------------------------------------------------------ */
#define NARROW(PANEL, SPARSE, C) \
    case C: PANEL(SPARSE, C); break;

/* Columns from FIRST on, in steps. Behind it: k and bytes of a tile, and bytes of the half one. */
#define PANEL_ROWS(PANEL, SPARSE, FIRST, ...)                                                                    \
    for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                                    \
        const el_group group = el_group_at(SPARSE, w, r0 / EL_PANEL_ROWS, x->k, __VA_ARGS__);                    \
        int64_t n_rows = min64(EL_PANEL_ROWS, row1 - r0);                                                        \
        float *out = y + r0 - row0;                                                                              \
        for (int64_t m0 = FIRST, n = 0; m0 < n_cols; m0 += n) {                                                  \
            n = min64(NARROW_COLUMNS, n_cols - m0);                                                              \
            switch (n) {                                                                                         \
                NARROW(PANEL, SPARSE, 1)                                                                         \
                NARROW(PANEL, SPARSE, 2)                                                                         \
                NARROW(PANEL, SPARSE, 3)                                                                         \
                NARROW(PANEL, SPARSE, 4)                                                                         \
                NARROW_MORE(PANEL, SPARSE)                                                                       \
            }                                                                                                    \
        }                                                                                                        \
    }

/* WIDE takes what it can and says how many columns that was (0: there is none); the others go in steps. Sparse panels have
 * no wide kernel: skipping saves as much as it gains, from an eighth of zero tiles on. */
#define PANEL_FN(NAME, GROUP_BYTES, PANEL, WIDE, ...)                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        int64_t wide = WIDE(w, row0, row1, x, n_cols, y, ldy, GROUP_BYTES);                                      \
        PANEL_ROWS(PANEL, 0, wide, __VA_ARGS__)                                                                  \
    }                                                                                                            \
    static void NAME##_sparse(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols,        \
                              float *y, int64_t ldy) {                                                           \
        PANEL_ROWS(PANEL, 1, 0, __VA_ARGS__)                                                                     \
    }
#define Q4_0_NARROW(SPARSE, C) panel_q4_0(SPARSE, group, x, m0, C, n_rows, out, ldy)
#define Q8_0_NARROW(SPARSE, C) panel_q8_0(SPARSE, group, x, m0, C, n_rows, out, ldy)
#define Q4_K_NARROW(SPARSE, C) panel_k(K4, 2368, SPARSE, group, x, m0, C, n_rows, out, ldy)
#define Q5_K_NARROW(SPARSE, C) panel_k(K5, 2880, SPARSE, group, x, m0, C, n_rows, out, ldy)
#define Q6_K_NARROW(SPARSE, C) panel_k(K6, 3392, SPARSE, group, x, m0, C, n_rows, out, ldy)
#define VNNI_PANEL_FUNCTIONS \
    PANEL_FN(panels_q4_0, x->k / 64 * 576 + (x->k % 64 ? 320 : 0), Q4_0_NARROW, WIDE_Q4_0, 64, 576, 320) \
    PANEL_FN(panels_q8_0, x->k / 64 * 1088 + (x->k % 64 ? 576 : 0), Q8_0_NARROW, WIDE_Q8_0, 64, 1088, 576) \
    PANEL_FN(panels_q4_k, x->k / 256 * 2368, Q4_K_NARROW, WIDE_Q4_K, 256, 2368, 0) \
    PANEL_FN(panels_q5_k, x->k / 256 * 2880, Q5_K_NARROW, WIDE_Q5_K, 256, 2880, 0) \
    PANEL_FN(panels_q6_k, x->k / 256 * 3392, Q6_K_NARROW, WIDE_Q6_K, 256, 3392, 0)
#define VNNI_PANEL_ENTRIES                                                                                       \
    .linear[EL_PANELS] = {[EL_TYPE_Q4_0] = panels_q4_0, [EL_TYPE_Q8_0] = panels_q8_0, [EL_TYPE_Q4_K] = panels_q4_k, \
                          [EL_TYPE_Q5_K] = panels_q5_k, [EL_TYPE_Q6_K] = panels_q6_k},                           \
    .linear[EL_SPARSE] = {[EL_TYPE_Q4_0] = panels_q4_0_sparse, [EL_TYPE_Q8_0] = panels_q8_0_sparse,              \
                          [EL_TYPE_Q4_K] = panels_q4_k_sparse, [EL_TYPE_Q5_K] = panels_q5_k_sparse,              \
                          [EL_TYPE_Q6_K] = panels_q6_k_sparse}
