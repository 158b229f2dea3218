/* avx512_wide.h: the part of avx512.c for passes of 16 columns and more.
 *
 * Load ports are busier than multipliers here: vpdpbusd with a quad broadcast from memory reaches 70 % of the peak. So two
 * groups of 16 rows go side by side past sets of four columns: a broadcast serves two instructions, a line of weights four,
 * and all sums stay in registers. Per 32 k of a group and a column that leaves 8 vpdpbusd and 2 instructions to scale on the
 * two pipes that multiply: four fifths of the peak at best. The same sums in the same order as one column at a time, so the
 * same bits.
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

/* s[r][c] += the dot products of one quad of each column with a line of each group */
INLINE void pair_dot(vint w0, vint w1, const int8_t *quads, vint (*s)[SET]) {
    UNROLL for (int c = 0; c < SET; c++) {
        vint quad = v_set1(word(quads + c * 64));
        s[0][c] = _mm512_dpbusd_epi32(s[0][c], w0, quad);
        s[1][c] = _mm512_dpbusd_epi32(s[1][c], w1, quad);
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
        s[0][c] = s[1][c] = v_sub(v_zero(), v_shift_left32(v_set1(a.sum[b * WIDE + c]), kind == Q8 ? 7 : 3));
    UNROLL for (int j = 0; j < 8; j++)
        pair_dot(line_of(kind, tile[0] + lines, j), line_of(kind, tile[1] + lines, j), quad_at(a, b, 0, j), s);
    UNROLL for (int r = 0; r < PAIR; r++) {
        vfloat d = v_halves(tile[r] + scale);
        UNROLL for (int c = 0; c < SET; c++) acc[r][c] = v_scaled_add(acc[r][c], d, a.d[b * WIDE + c], s[r][c]);
    }
}

INLINE void set_by_32(const int is_q8, const uint8_t *const *group, columns a, int64_t n_blocks, set_sums *sums) {
    const uint8_t *tile[PAIR] = {group[0], group[1]};
    const int64_t bytes = is_q8 ? 1088 : 576;
    vfloat acc[PAIR][SET];
    int64_t b = 0;
    UNROLL for (int i = 0; i < PAIR * SET; i++) acc[i / SET][i % SET] = v_zerof();
    for (; b + 2 <= n_blocks; b += 2, tile[0] += bytes, tile[1] += bytes) {
        pair_block32(is_q8 ? Q8 : Q4_LOW, tile, 64, 0, a, b, acc);
        pair_block32(is_q8 ? Q8 : Q4_HIGH, tile, is_q8 ? 576 : 64, 32, a, b + 1, acc);
    }
    if (b < n_blocks) pair_block32(is_q8 ? Q8 : Q4_HALF, tile, 64, 0, a, b, acc);
    UNROLL for (int i = 0; i < PAIR * SET; i++) v_store(sums->of[i / SET][i % SET], acc[i / SET][i % SET]);
}

static NOINLINE void wide_q4_0(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) {
    for (int64_t i = 0; i < n_sets; i++) set_by_32(0, group, wide_columns(x, m0 + i * SET, 32), x->k / 32, sums + i);
}
static NOINLINE void wide_q8_0(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) {
    for (int64_t i = 0; i < n_sets; i++) set_by_32(1, group, wide_columns(x, m0 + i * SET, 32), x->k / 32, sums + i);
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
            pair_dot(line[0], line[1], quad_at(a, b * 8 + t * 2 + g, 0, j), s);
        }
        UNROLL for (int r = 0; r < PAIR; r++) {
            vint scale = _mm512_load_si512(w->scale[r][(t * 2 + g) * n_parts + p]);
            UNROLL for (int c = 0; c < SET; c++) total[r][c] = v_add(total[r][c], v_mul(s[r][c], scale));
        }
    }
}

/* Block b; sums are touched once in 256 k, so they wait in memory */
INLINE void set_k(const enum k_kind kind, const k_block *w, const uint8_t *const *tile, columns a, int64_t b, set_sums *sums) {
    vint total[PAIR][SET];
    UNROLL for (int i = 0; i < PAIR * SET; i++) total[i / SET][i % SET] = v_zero();
    for (int t = 0; t < 4; t++) {
        pair_group(kind, w, tile, t, 0, a, b, total);
        pair_group(kind, w, tile, t, 1, a, b, total);
    }
    UNROLL for (int r = 0; r < PAIR; r++) UNROLL for (int c = 0; c < SET; c++) {
        vfloat acc = _mm512_loadu_ps(sums->of[r][c]);
        v_store(sums->of[r][c], k_finish(kind, tile[r], acc, total[r][c], a.sum + (b * WIDE + c) * 16, a.d[b * WIDE + c]));
    }
}

INLINE void wide_k(const enum k_kind kind, const int64_t bytes, const uint8_t *const *group, const el_act *x, int64_t m0,
                   int64_t n_sets, set_sums *sums) {
    _Alignas(64) k_block w;
    memset(sums, 0, (size_t)n_sets * sizeof *sums);
    for (int64_t b = 0; b < x->k / 256; b++) {
        const uint8_t *tile[PAIR] = {group[0] + b * bytes, group[1] + b * bytes};
        unpack_k(kind, &w, tile);
        for (int64_t i = 0; i < n_sets; i++) set_k(kind, &w, tile, wide_columns(x, m0 + i * SET, 256), b, sums + i);
    }
}

static NOINLINE void wide_q4_k(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) {
    wide_k(K4, 2368, group, x, m0, n_sets, sums);
}
static NOINLINE void wide_q5_k(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) {
    wide_k(K5, 2880, group, x, m0, n_sets, sums);
}
static NOINLINE void wide_q6_k(const uint8_t *const *group, const el_act *x, int64_t m0, int64_t n_sets, set_sums *sums) {
    wide_k(K6, 3392, group, x, m0, n_sets, sums);
}

/* ---- two groups of rows past blocks of columns -------------------------------------------------------------------------------- */
/* y (columns, ldy): the two groups' first n_rows rows */
INLINE void store_set(const set_sums *sums, int64_t n_rows, float *y, int64_t ldy) {
    for (int c = 0; c < SET; c++)
        for (int r = 0; r < PAIR && r * EL_PANEL_ROWS < n_rows; r++)
            store_rows(y + c * ldy + r * EL_PANEL_ROWS, min64(EL_PANEL_ROWS, n_rows - r * EL_PANEL_ROWS),
                       _mm512_loadu_ps(sums->of[r][c]));
}

/* All whole tiles of columns; returns how many columns that was. A group without a partner goes beside itself. */
INLINE int64_t wide_rows(void (*kernel)(const uint8_t *const *, const el_act *, int64_t, int64_t, set_sums *), const void *w,
                         int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy,
                         int64_t group_bytes) {
    if (!x->tile_q || n_cols < WIDE) return 0;
    int64_t wide = n_cols / WIDE * WIDE;
    set_sums sums[MOST_SETS];
    for (int64_t r0 = row0; r0 < row1; r0 += PAIR * EL_PANEL_ROWS) {
        const uint8_t *first = (const uint8_t *)w + r0 / EL_PANEL_ROWS * group_bytes;
        const uint8_t *group[PAIR] = {first, first + (r0 + EL_PANEL_ROWS < row1 ? group_bytes : 0)};
        for (int64_t m0 = 0, n_sets; m0 < wide; m0 += n_sets * SET) {
            n_sets = min64(MOST_SETS, (wide - m0) / SET);
            kernel(group, x, m0, n_sets, sums);
            for (int64_t i = 0; i < n_sets; i++)
                store_set(sums + i, row1 - r0, y + (m0 + i * SET) * ldy + r0 - row0, ldy);
        }
    }
    return wide;
}
