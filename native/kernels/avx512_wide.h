/* avx512_wide.h: the part of avx512.c for passes of 16 columns and more.
 *
 * A block's weights (16 rows x 32 k) are unpacked once into eight registers and 16 columns run past them. Per column and
 * block that is 8 vpdpbusd, each with its quad broadcast from memory, and 4 instructions to scale: four fifths of the
 * integer peak at best. The same sums in the same order as one column at a time, so the same bits.
 */
enum { WIDE = EL_TILE_COLUMNS, SIDE = 2 };

INLINE columns wide_columns(const el_act *x, int64_t m0, int64_t per_scale) {
    int64_t blocks = x->k_pad / per_scale;
    return (columns){x->tile_q + m0 * x->k_pad, WIDE * 64, 64, x->tile_d + m0 * blocks, x->tile_sum + m0 * blocks * (per_scale == 32 ? 1 : 16), WIDE, 1};
}

/* Where the 16 columns' accumulators start: the weights' offset times the activations' sums. */
INLINE void wide_starts(const int32_t *sum, const int offset, int32_t *start) {
    _mm512_storeu_si512(start, _mm512_mullo_epi32(_mm512_loadu_si512(sum), v_set1(-offset)));
}

/* s + the dot products of n quads of one column */
INLINE vint wide_dot(vint s, const vint *w, const int n, const int8_t *quads) {
    UNROLL for (int j = 0; j < n; j++) s = v_dot(s, w[j], quads + j * 4);
    return s;
}

INLINE void wide_block32(const vint *w, const uint8_t *scale, const int offset, columns a, int64_t b, vfloat *acc) {
    int32_t start[WIDE];
    wide_starts(a.sum + b * WIDE, offset, start);
    vfloat d = v_halves(scale);
    UNROLL for (int c = 0; c < WIDE; c += SIDE) {
        vint s[SIDE];
        UNROLL for (int i = 0; i < SIDE; i++) s[i] = v_set1(start[c + i]);
        UNROLL for (int j = 0; j < 8; j++)
            UNROLL for (int i = 0; i < SIDE; i++) s[i] = v_dot(s[i], w[j], quad_at(a, b, c + i, j));
        UNROLL for (int i = 0; i < SIDE; i++) acc[c + i] = v_scaled_add(acc[c + i], d, a.d[b * WIDE + c + i], s[i]);
    }
}

INLINE void wide_store(float *y, int64_t ldy, int64_t n_rows, const vfloat *acc) {
    float rows[WIDE][EL_PANEL_ROWS];
    UNROLL for (int c = 0; c < WIDE; c++) v_store(n_rows == EL_PANEL_ROWS ? y + c * ldy : rows[c], acc[c]);
    for (int c = 0; c < WIDE && n_rows < EL_PANEL_ROWS; c++) memcpy(y + c * ldy, rows[c], (size_t)n_rows * 4);
}

static NOINLINE void wide_q4_0(const uint8_t *tile, const el_act *x, int64_t m0, int64_t n_rows, float *y, int64_t ldy) {
    columns a = wide_columns(x, m0, 32);
    int64_t n_blocks = x->k / 32, b = 0;
    vfloat acc[WIDE];
    vint w[8];
    UNROLL for (int c = 0; c < WIDE; c++) acc[c] = v_zerof();
    for (; b + 2 <= n_blocks; b += 2, tile += 576) {
        UNROLL for (int j = 0; j < 8; j++) w[j] = nibble_line(tile + 64 + j * 64, 0);
        wide_block32(w, tile, 8, a, b, acc);
        UNROLL for (int j = 0; j < 8; j++) w[j] = nibble_line(tile + 64 + j * 64, 1);
        wide_block32(w, tile + 32, 8, a, b + 1, acc);
    }
    if (b < n_blocks) {
        UNROLL for (int j = 0; j < 8; j++) w[j] = nibble_line(tile + 64 + j % 4 * 64, j / 4);
        wide_block32(w, tile, 8, a, b, acc);
    }
    wide_store(y, ldy, n_rows, acc);
}

static NOINLINE void wide_q8_0(const uint8_t *group, const el_act *x, int64_t m0, int64_t n_rows, float *y, int64_t ldy) {
    columns a = wide_columns(x, m0, 32);
    vfloat acc[WIDE];
    vint w[8];
    UNROLL for (int c = 0; c < WIDE; c++) acc[c] = v_zerof();
    for (int64_t b = 0; b < x->k / 32; b++) {
        const uint8_t *tile = group + b / 2 * 1088, *lines = tile + 64 + (b & 1) * 512;
        UNROLL for (int j = 0; j < 8; j++) w[j] = v_flip(v_line(lines + j * 64));
        wide_block32(w, tile + (b & 1) * 32, 128, a, b, acc);
    }
    wide_store(y, ldy, n_rows, acc);
}

/* 32 k of a K-quant: total[c] += scale * dot */
INLINE void wide_group(const enum k_kind kind, const uint8_t *tile, const int t, const int g, columns a, int64_t b,
                       vint *total) {
    vint w[8];
    UNROLL for (int j = 0; j < 8; j++) w[j] = k_quad(kind, tile, t, g, j);
    vint scale = k_scale(kind, tile, t, g, 0), second = kind == K6 ? k_scale(kind, tile, t, g, 1) : scale;
    UNROLL for (int c = 0; c < WIDE; c++) {
        const int8_t *quads = quad_at(a, b * 8 + t * 2 + g, c, 0);
        vint s = wide_dot(v_zero(), w, kind == K6 ? 4 : 8, quads);
        total[c] = v_add(total[c], v_mul(s, scale));
        if (kind == K6) total[c] = v_add(total[c], v_mul(wide_dot(v_zero(), w + 4, 4, quads + 16), second));
    }
}

INLINE void wide_k(const enum k_kind kind, const int64_t bytes, const uint8_t *tile, const el_act *x, int64_t m0,
                   int64_t n_rows, float *y, int64_t ldy) {
    columns a = wide_columns(x, m0, 256);
    float acc[WIDE][EL_PANEL_ROWS]; /* touched once in 256 k: memory will do */
    memset(acc, 0, sizeof acc);
    for (int64_t b = 0; b < x->k / 256; b++, tile += bytes) {
        vint total[WIDE];
        UNROLL for (int c = 0; c < WIDE; c++) total[c] = v_zero();
        for (int t = 0; t < 4; t++) {
            wide_group(kind, tile, t, 0, a, b, total);
            wide_group(kind, tile, t, 1, a, b, total);
        }
        UNROLL for (int c = 0; c < WIDE; c++) {
            vfloat sum = _mm512_loadu_ps(acc[c]);
            v_store(acc[c], k_finish(kind, tile, sum, total[c], a.sum + (b * WIDE + c) * 16, a.d[b * WIDE + c]));
        }
    }
    for (int c = 0; c < WIDE; c++) store_rows(y + c * ldy, n_rows, _mm512_loadu_ps(acc[c]));
}

static NOINLINE void wide_q4_k(const uint8_t *tile, const el_act *x, int64_t m0, int64_t n_rows, float *y, int64_t ldy) {
    wide_k(K4, 2368, tile, x, m0, n_rows, y, ldy);
}
static NOINLINE void wide_q5_k(const uint8_t *tile, const el_act *x, int64_t m0, int64_t n_rows, float *y, int64_t ldy) {
    wide_k(K5, 2880, tile, x, m0, n_rows, y, ldy);
}
static NOINLINE void wide_q6_k(const uint8_t *tile, const el_act *x, int64_t m0, int64_t n_rows, float *y, int64_t ldy) {
    wide_k(K6, 3392, tile, x, m0, n_rows, y, ldy);
}

/* All whole tiles of columns; returns how many columns that were. */
INLINE int64_t wide_rows(void (*kernel)(const uint8_t *, const el_act *, int64_t, int64_t, float *, int64_t), const void *w,
                         int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy,
                         int64_t group_bytes) {
    if (!x->tile_q || n_cols < WIDE) return 0;
    int64_t wide = n_cols / WIDE * WIDE;
    for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {
        const uint8_t *group = (const uint8_t *)w + r0 / EL_PANEL_ROWS * group_bytes;
        for (int64_t m0 = 0; m0 < wide; m0 += WIDE)
            kernel(group, x, m0, min64(EL_PANEL_ROWS, row1 - r0), y + m0 * ldy + r0 - row0, ldy);
    }
    return wide;
}
