/* avx512_wide.h: the part of avx512.c for passes of several columns.
 *
 * Load ports are busier than multipliers here: vpdpbusd with a quad broadcast from memory reaches 70 % of the peak. So two
 * groups of 16 rows go side by side past sets of four columns: a broadcast serves two instructions, a line of weights four,
 * and all sums stay in registers. Per 32 k of a group and a column that leaves 8 vpdpbusd and 2 instructions to scale on the
 * two pipes that multiply: four fifths of the peak at best. The same sums in the same order as one column at a time, so the
 * same bits. Whole tiles of 16 columns are `tiled`, laid side by side; a few columns are read where they lie.
 */
enum { WIDE = EL_TILE_COLUMNS, PAIR = 2, SET = 4, MOST_SETS = 16 };

typedef struct {
    float of[PAIR][SET][EL_PANEL_ROWS]; /* by group, column and row */
} set_sums;

/* The columns from m0 on; SET of them lie in one tile */
INLINE columns wide_columns(const el_act *x, int64_t m0, int64_t per_scale) {
    int64_t blocks = x->k_pad / per_scale, first = m0 / WIDE * WIDE, c = m0 % WIDE, ld_sum = per_scale == 32 ? 1 : 16;
    return (columns){x->tile_q + first * x->k_pad + c * 64, WIDE * 64, 64, x->tile_d + first * blocks + c,
                     x->tile_sum + (first * blocks + c) * ld_sum, WIDE, 1};
}

INLINE columns set_columns(const int tiled, const el_act *x, int64_t m0, int64_t per_scale) {
    return tiled ? wide_columns(x, m0, per_scale) : narrow_columns(x, m0, per_scale);
}

/* s[r][c] += the dot products of one quad of each column with a line of each group */
INLINE void pair_dot(vint w0, vint w1, columns a, int64_t b, int j, vint (*s)[SET]) {
    UNROLL for (int c = 0; c < SET; c++) {
        vint quad = v_set1(word(quad_at(a, b, c, j)));
        s[0][c] = _mm512_dpbusd_epi32(s[0][c], w0, quad);
        s[1][c] = _mm512_dpbusd_epi32(s[1][c], w1, quad);
    }
}

/* What lies AHEAD of `bytes` of both groups: a few columns wait for memory */
INLINE void prefetch_pair(const uint8_t *const *tile, int64_t bytes) {
    for (int64_t i = AHEAD; i < AHEAD + bytes; i += 64) {
        prefetch(tile[0] + i);
        prefetch(tile[1] + i);
    }
}

/* ---- Q4_0 and Q8_0: lines are unpacked on their way into registers --------------------------------------------------------- */
enum line_kind { Q4_LOW, Q4_HIGH, Q4_HALF, Q8 };

INLINE vint line_of(const enum line_kind kind, const uint8_t *lines, const int j) {
    if (kind == Q8) return v_flip(v_line(lines + j * 64));
    if (kind == Q4_HALF) return nibble_line(lines + j % 4 * 64, j / 4);
    return nibble_line(lines + j * 64, kind == Q4_HIGH);
}

/* Block b, 32 k; `lines` and `scale` say where they lie in a tile */
INLINE void pair_block32(const enum line_kind kind, const uint8_t *const *tile, const int lines, const int scale, columns a,
                         int64_t b, vfloat (*acc)[SET]) {
    vint s[PAIR][SET];
    UNROLL for (int c = 0; c < SET; c++) /* the weights' offset, 128 or 8, times the activations' sum */
        s[0][c] = s[1][c] = v_sub(v_zero(), v_shift_left32(v_set1(a.sum[b * a.d_block + c * a.d_col]), kind == Q8 ? 7 : 3));
    UNROLL for (int j = 0; j < 8; j++)
        pair_dot(line_of(kind, tile[0] + lines, j), line_of(kind, tile[1] + lines, j), a, b, j, s);
    UNROLL for (int r = 0; r < PAIR; r++) {
        vfloat d = v_halves(tile[r] + scale);
        UNROLL for (int c = 0; c < SET; c++) acc[r][c] = v_scaled_add(acc[r][c], d, a.d[b * a.d_block + c * a.d_col], s[r][c]);
    }
}

/* Blocks b to end, which both groups' tiles begin with */
INLINE void set_by_32(const int is_q8, const uint8_t *const *tiles, columns a, int64_t b, int64_t end, set_sums *sums) {
    const uint8_t *tile[PAIR] = {tiles[0], tiles[1]};
    const int64_t bytes = is_q8 ? 1088 : 576;
    vfloat acc[PAIR][SET];
    UNROLL for (int i = 0; i < PAIR * SET; i++) acc[i / SET][i % SET] = _mm512_loadu_ps(sums->of[i / SET][i % SET]);
    for (; b + 2 <= end; b += 2, tile[0] += bytes, tile[1] += bytes) {
        pair_block32(is_q8 ? Q8 : Q4_LOW, tile, 64, 0, a, b, acc);
        pair_block32(is_q8 ? Q8 : Q4_HIGH, tile, is_q8 ? 576 : 64, 32, a, b + 1, acc);
    }
    if (b < end) pair_block32(is_q8 ? Q8 : Q4_HALF, tile, 64, 0, a, b, acc);
    UNROLL for (int i = 0; i < PAIR * SET; i++) v_store(sums->of[i / SET][i % SET], acc[i / SET][i % SET]);
}

INLINE void wide_32(const int is_q8, const int tiled, const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets,
                    set_sums *sums) {
    /* Few columns: weights are read from memory once, 256 k at a time. Many: they stay in L1, and the columns go past. */
    const int64_t n_blocks = x->k / 32, step = tiled ? n_blocks : 8, bytes = step / 2 * (is_q8 ? 1088 : 576);
    memset(sums, 0, (size_t)n_sets * sizeof *sums);
    for (int64_t b = 0; b < n_blocks; b += step) {
        const uint8_t *tile[PAIR] = {group[0] + b / step * bytes, group[1] + b / step * bytes};
        if (!tiled) prefetch_pair(tile, bytes);
        for (int64_t i = 0; i < n_sets; i++)
            set_by_32(is_q8, tile, set_columns(tiled, x, m0 + i * SET, 32), b, min64(b + step, n_blocks), sums + i);
    }
}

/* ---- Q4_K, Q5_K, Q6_K: a block's scales, and its lines where that takes long, are unpacked once for all columns --- */
typedef struct {
    uint8_t lines[PAIR][64][64];            /* quad j of group r: each lane a row's 4 weights as u8; not used by Q4_K */
    int32_t scale[PAIR][16][EL_PANEL_ROWS]; /* of each 32 k, Q6_K of each 16 k */
} k_block;

INLINE int k_parts(const enum k_kind kind) { return kind == K6 ? 2 : 1; } /* scales of 32 k */

INLINE void unpack_k(const enum k_kind kind, k_block *w, const uint8_t *const *tile) {
    for (int r = 0; r < PAIR; r++)
        for (int t = 0; t < 4; t++)
            UNROLL for (int g = 0; g < 2; g++) {
                UNROLL for (int j = 0; j < 8 && kind != K4; j++)
                    _mm512_store_si512(w->lines[r][(t * 2 + g) * 8 + j], k_quad(kind, tile[r], t, g, j));
                UNROLL for (int p = 0; p < k_parts(kind); p++)
                    _mm512_store_si512(w->scale[r][(t * 2 + g) * k_parts(kind) + p], k_scale(kind, tile[r], t, g, p));
            }
}

/* total[r][c] += scale * dot over 32 k */
INLINE void pair_group(const enum k_kind kind, const k_block *w, const uint8_t *const *tile, const int t, const int g,
                       columns a, int64_t b, vint (*total)[SET]) {
    const int n_parts = k_parts(kind), n_quads = 8 / n_parts;
    UNROLL for (int p = 0; p < n_parts; p++) {
        vint s[PAIR][SET];
        UNROLL for (int i = 0; i < PAIR * SET; i++) s[i / SET][i % SET] = v_zero();
        UNROLL for (int j = p * n_quads; j < (p + 1) * n_quads; j++) {
            vint line[PAIR];
            UNROLL for (int r = 0; r < PAIR; r++)
                line[r] = kind == K4 ? k_quad(K4, tile[r], t, g, j) : v_line(w->lines[r][(t * 2 + g) * 8 + j]);
            pair_dot(line[0], line[1], a, b * 8 + t * 2 + g, j, s);
        }
        UNROLL for (int r = 0; r < PAIR; r++) {
            vint scale = _mm512_load_si512(w->scale[r][(t * 2 + g) * n_parts + p]);
            UNROLL for (int c = 0; c < SET; c++) total[r][c] = v_add(total[r][c], v_mul(s[r][c], scale));
        }
    }
}

/* Block b; sums are touched once in 256 k, so they wait in memory */
INLINE void set_k(const enum k_kind kind, const int tiled, const k_block *w, const uint8_t *const *tile, columns a, int64_t b,
                  set_sums *sums) {
    int32_t narrow[SET][16]; /* pairs of activation sums, which tiles already have */
    UNROLL for (int c = 0; c < SET && !tiled; c++) v_sum_pairs(a.sum + (b * a.d_block + c * a.d_col) * 16, narrow[c]);
    vint total[PAIR][SET];
    UNROLL for (int i = 0; i < PAIR * SET; i++) total[i / SET][i % SET] = v_zero();
    for (int t = 0; t < 4; t++) {
        pair_group(kind, w, tile, t, 0, a, b, total);
        pair_group(kind, w, tile, t, 1, a, b, total);
    }
    UNROLL for (int r = 0; r < PAIR; r++) UNROLL for (int c = 0; c < SET; c++) {
        vfloat acc = _mm512_loadu_ps(sums->of[r][c]);
        const int32_t *pairs = tiled ? a.sum + (b * WIDE + c) * 16 : narrow[c];
        v_store(sums->of[r][c], k_finish(kind, tile[r], acc, total[r][c], pairs, a.d[b * a.d_block + c * a.d_col]));
    }
}

INLINE void wide_k(const enum k_kind kind, const int64_t bytes, const int tiled, const uint8_t *const *group, const el_act *x,
                   int64_t m0, int64_t n_sets, set_sums *sums) {
    _Alignas(64) k_block w;
    memset(sums, 0, (size_t)n_sets * sizeof *sums);
    for (int64_t b = 0; b < x->k / 256; b++) {
        const uint8_t *tile[PAIR] = {group[0] + b * bytes, group[1] + b * bytes};
        if (!tiled) prefetch_pair(tile, bytes);
        unpack_k(kind, &w, tile);
        for (int64_t i = 0; i < n_sets; i++) set_k(kind, tiled, &w, tile, set_columns(tiled, x, m0 + i * SET, 256), b, sums + i);
    }
}

/* For each type a kernel past whole tiles; where lines need no unpacking through memory, one past sets of columns as they lie */
#define PAIR_KERNEL(NAME, WORK, ...)                                                                                      \
    static NOINLINE void NAME(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) { \
        WORK(__VA_ARGS__, group, x, m0, n_sets, sums);                                                                    \
    }
PAIR_KERNEL(wide_q4_0, wide_32, 0, 1)
PAIR_KERNEL(sets_q4_0, wide_32, 0, 0)
PAIR_KERNEL(wide_q8_0, wide_32, 1, 1)
PAIR_KERNEL(sets_q8_0, wide_32, 1, 0)
PAIR_KERNEL(wide_q4_k, wide_k, K4, 2368, 1)
PAIR_KERNEL(sets_q4_k, wide_k, K4, 2368, 0)
PAIR_KERNEL(wide_q5_k, wide_k, K5, 2880, 1)
PAIR_KERNEL(wide_q6_k, wide_k, K6, 3392, 1)

/* ---- two groups of rows past blocks of columns -------------------------------------------------------------------------------- */
/* y (columns, ldy): the two groups' first n_rows rows */
INLINE void store_set(const set_sums *sums, int64_t n_rows, float *y, int64_t ldy) {
    for (int c = 0; c < SET; c++)
        for (int r = 0; r < PAIR && r * EL_PANEL_ROWS < n_rows; r++)
            store_rows(y + c * ldy + r * EL_PANEL_ROWS, min64(EL_PANEL_ROWS, n_rows - r * EL_PANEL_ROWS),
                       _mm512_loadu_ps(sums->of[r][c]));
}

typedef void pair_kernel(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums);

/* n_rows of two groups: whole tiles of columns, then sets; returns how many columns that was. A group without a partner goes
 * beside itself. Five to seven columns at the end are left: one group at a time is faster there than a set and a rest. */
INLINE int64_t pair_rows(pair_kernel *tiles, pair_kernel *sets, const uint8_t *first, int64_t group_bytes, const el_act *x,
                         int64_t n_cols, int64_t n_rows, float *y, int64_t ldy) {
    int64_t tiled = x->tile_q ? n_cols / WIDE * WIDE : 0, whole = sets ? n_cols / SET * SET : tiled;
    if (n_cols > whole && whole > tiled) whole -= SET;
    const uint8_t *group[PAIR] = {first, first + (n_rows > EL_PANEL_ROWS ? group_bytes : 0)};
    set_sums sums[MOST_SETS];
    for (int64_t m0 = 0, n_sets; m0 < whole; m0 += n_sets * SET) {
        n_sets = min64(MOST_SETS, ((m0 < tiled ? tiled : whole) - m0) / SET);
        (m0 < tiled ? tiles : sets)(group, x, m0, n_sets, sums);
        for (int64_t i = 0; i < n_sets; i++) store_set(sums + i, n_rows, y + (m0 + i * SET) * ldy, ldy);
    }
    return whole;
}
