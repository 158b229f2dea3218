/* portable_k.h: the part of portable.c for formats with blocks of 256 weights, in rows and in panels.
 *
 * A block is d times 16 groups of 16 weights with an integer scale each, and, in some formats, less dmin times an
 * integer minimum for each group. Formats with groups of 32 repeat each scale. Per block and column all is added up in
 * int32, then one fma takes the scales' part and one more the minimums' (formats/arithmetic.md).
 */

#include "decode_k.h"

/* sum of scale * dot over the groups: |total| <= 16 * 16 * 32 * 127 * 128 < 2^28 */
static inline int32_t k_total(const k_block *w, const int8_t *xq) {
    int32_t total = 0;
    for (int g = 0; g < 16; g++) total += w->scale[g] * dot_i8(w->q + g * 16, xq + g * 16, 16);
    return total;
}

static inline int32_t k_lows(const int16_t *low, const int32_t *sum) {
    int32_t total = 0;
    for (int g = 0; g < 16; g++) total += low[g] * sum[g];
    return total;
}

#define K_ROWS(NAME, TYPE, HAS_MIN)                                                                              \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        int64_t n_blocks = x->k / 256, ld = x->k_pad / 256;                                                      \
        for (int64_t r = row0; r < row1; r++) {                                                                  \
            const el_block_##TYPE *row = (const el_block_##TYPE *)w + r * n_blocks;                              \
            for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {                                                   \
                int64_t n = min64(COLUMNS, n_cols - m0);                                                         \
                float acc[COLUMNS] = {0};                                                                        \
                k_block block;                                                                                   \
                for (int64_t b = 0; b < n_blocks; b++) {                                                         \
                    decode_##TYPE(row + b, &block);                                                              \
                    for (int64_t m = 0; m < n; m++) {                                                            \
                        int64_t at = (m0 + m) * ld + b;                                                          \
                        float total = (float)k_total(&block, x->q + at * 256), dx = x->d[at];                    \
                        acc[m] = el_fmaf(block.d * dx, total, acc[m]);                                           \
                        if (!HAS_MIN) continue;                                                                  \
                        float low = (float)k_lows(block.low, x->sum + at * 16);                                  \
                        acc[m] = el_fmaf(-(block.dmin * dx), low, acc[m]);                                       \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++) y[(m0 + m) * ldy + r - row0] = acc[m];                           \
            }                                                                                                    \
        }                                                                                                        \
    }

K_ROWS(rows_q2_k, q2_k, 1)
K_ROWS(rows_q3_k, q3_k, 0)
K_ROWS(rows_q4_k, q4_k, 1)
K_ROWS(rows_q5_k, q5_k, 1)
K_ROWS(rows_q6_k, q6_k, 0)
K_ROWS(rows_iq4_xs, iq4_xs, 0)
K_ROWS(rows_tq1_0, tq1_0, 0)
K_ROWS(rows_tq2_0, tq2_0, 0)

/* ---- panels: tiles of 16 rows x 256 k, formats/panels.md ---------------------------------------------------- */
typedef struct {
    int8_t q[64][64];            /* lines [16 rows][4 k] in order of k */
    int16_t scale[16][16];       /* [16 weights of k][row] */
    int16_t low[16][16];
    float d[16], dmin[16];
} k_tile;

/* Lines of 64 k: low nibbles are quads 0 to 7, high ones 8 to 15. */
static inline void tile_nibbles(const uint8_t *lines, int8_t (*q)[64]) {
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 64; i++) {
            q[j][i] = (int8_t)(lines[j * 64 + i] & 15);
            q[j + 8][i] = (int8_t)(lines[j * 64 + i] >> 4);
        }
}

static inline void tile_halves(const uint8_t *p, float *d) {
    for (int r = 0; r < EL_PANEL_ROWS; r++) d[r] = load_f16(p + 2 * r);
}

/* u8 [pair of 32][16 rows][2] to one for each 16 weights */
static inline void tile_of_32(const uint8_t *p, int16_t (*out)[16]) {
    for (int g = 0; g < 8; g++)
        for (int r = 0; r < EL_PANEL_ROWS; r++) out[2 * g][r] = out[2 * g + 1][r] = p[g / 2 * 32 + 2 * r + g % 2];
}

static inline void tile_q4_k(const uint8_t *p, k_tile *out) {
    tile_halves(p, out->d);
    tile_halves(p + 32, out->dmin);
    tile_of_32(p + 64, out->scale);
    tile_of_32(p + 192, out->low);
    for (int t = 0; t < 4; t++) tile_nibbles(p + 320 + t * 512, out->q + t * 16);
}

static inline void tile_q5_k(const uint8_t *p, k_tile *out) {
    tile_halves(p, out->d);
    tile_halves(p + 32, out->dmin);
    tile_of_32(p + 64, out->scale);
    tile_of_32(p + 192, out->low);
    for (int t = 0; t < 4; t++) {
        const uint8_t *high = p + 320 + t * 640;
        tile_nibbles(high + 128, out->q + t * 16);
        for (int j = 0; j < 16; j++) /* quad j: bit j % 8 of line j / 8 */
            for (int i = 0; i < 64; i++)
                out->q[t * 16 + j][i] = (int8_t)(out->q[t * 16 + j][i] | (high[j / 8 * 64 + i] >> (j % 8) & 1) << 4);
    }
}

static inline void tile_q6_k(const uint8_t *p, k_tile *out) {
    tile_halves(p, out->d);
    for (int g = 0; g < 16; g++)
        for (int r = 0; r < EL_PANEL_ROWS; r++) out->scale[g][r] = (int8_t)p[64 + g / 2 * 32 + 2 * r + g % 2];
    for (int t = 0; t < 4; t++) {
        const uint8_t *high = p + 320 + t * 768;
        tile_nibbles(high + 256, out->q + t * 16);
        for (int j = 0; j < 16; j++) /* quad j: bits 2 (j % 4) of line j / 4 */
            for (int i = 0; i < 64; i++)
                out->q[t * 16 + j][i] = (int8_t)((out->q[t * 16 + j][i] |
                                                  (high[j / 4 * 64 + i] >> (j % 4 * 2) & 3) << 4) - 32);
    }
}

/* One tile and one column: acc[r] += the block's part of row r. */
static inline void tile_add(const k_tile *w, const int8_t *xq, const int32_t *sum, float dx, int has_min, float *acc) {
    int32_t total[EL_PANEL_ROWS] = {0}, low[EL_PANEL_ROWS] = {0};
    for (int g = 0; g < 16; g++) {
        int32_t dot[EL_PANEL_ROWS] = {0};
        for (int j = g * 4; j < g * 4 + 4; j++)
            for (int r = 0; r < EL_PANEL_ROWS; r++)
                for (int i = 0; i < 4; i++) dot[r] += (int32_t)w->q[j][r * 4 + i] * xq[j * 4 + i];
        for (int r = 0; r < EL_PANEL_ROWS; r++) total[r] += w->scale[g][r] * dot[r];
        if (has_min)
            for (int r = 0; r < EL_PANEL_ROWS; r++) low[r] += w->low[g][r] * sum[g];
    }
    for (int r = 0; r < EL_PANEL_ROWS; r++) {
        acc[r] = el_fmaf(w->d[r] * dx, (float)total[r], acc[r]);
        if (has_min) acc[r] = el_fmaf(-(w->dmin[r] * dx), (float)low[r], acc[r]);
    }
}

#define K_PANELS(NAME, SPARSE, TILE, DECODE, HAS_MIN)                                                            \
    static void NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,       \
                     int64_t ldy) {                                                                              \
        int64_t ld = x->k_pad / 256;                                                                             \
        for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                                \
            for (int64_t m0 = 0; m0 < n_cols; m0 += COLUMNS) {                                                   \
                int64_t n = min64(COLUMNS, n_cols - m0), n_rows = min64(EL_PANEL_ROWS, row1 - r0);               \
                el_group g = el_group_at(SPARSE, w, r0 / EL_PANEL_ROWS, x->k, 256, TILE, 0);                     \
                float acc[COLUMNS][EL_PANEL_ROWS] = {{0}};                                                       \
                k_tile tile;                                                                                     \
                for (int64_t i = 0; i < g.n; i++, g.tile += TILE) {                                              \
                    int64_t b = el_next_tile(SPARSE, &g, i);                                                     \
                    DECODE(g.tile, &tile);                                                                       \
                    for (int64_t m = 0; m < n; m++) {                                                            \
                        int64_t at = (m0 + m) * ld + b;                                                          \
                        tile_add(&tile, x->q + at * 256, x->sum + at * 16, x->d[at], HAS_MIN, acc[m]);           \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t m = 0; m < n; m++)                                                                  \
                    memcpy(y + (m0 + m) * ldy + r0 - row0, acc[m], (size_t)n_rows * 4);                          \
            }                                                                                                    \
        }                                                                                                        \
    }

K_PANELS(panels_q4_k, 0, 2368, tile_q4_k, 1)
K_PANELS(panels_q5_k, 0, 2880, tile_q5_k, 1)
K_PANELS(panels_q6_k, 0, 3392, tile_q6_k, 0)
K_PANELS(sparse_q4_k, 1, 2368, tile_q4_k, 1)
K_PANELS(sparse_q5_k, 1, 2880, tile_q5_k, 1)
K_PANELS(sparse_q6_k, 1, 3392, tile_q6_k, 0)
