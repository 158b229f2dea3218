/* tiles_emulated.h: the tile instructions of native/kernels/tiles.h in plain C, for machines without AMX.
 *
 * One tile unit per thread, with the rules that hardware has: nothing works before a valid configuration was loaded, rows and
 * bytes of the operands must agree, and rows past a tile's configured ones read as zero. A broken rule ends the program.
 * TDPBF16PS as its page in Intel's instruction reference has it: even and odd k are added in accumulators of their own with
 * fused multiply-adds, the two are added, then the sum goes onto C; denormals count as zero, results are rounded to nearest
 * even, and tiny ones become zero.
 */
#ifndef EL_TILES_EMULATED_H
#define EL_TILES_EMULATED_H

#include <stdio.h>
#include <stdlib.h>

#include "arith.h"

static _Thread_local struct {
    el_tile_config config;
    int ready;
    uint8_t tile[8][16][64];
} tile_unit;

static inline void tile_fault(const char *what) {
    fprintf(stderr, "tile unit: %s\n", what);
    abort();
}

static inline void tile_configure(const el_tile_config *config) {
    if (config->palette != 1 || config->start_row) tile_fault("configuration: palette or start row");
    for (int i = 0; i < 14; i++)
        if (config->reserved[i]) tile_fault("configuration: reserved bytes");
    for (int t = 0; t < 16; t++) {
        int rows = config->rows[t], bytes = config->row_bytes[t];
        if (rows > 16 || bytes > 64 || !rows != !bytes || (t >= 8 && rows)) tile_fault("configuration: a tile's size");
    }
    tile_unit.config = *config;
    tile_unit.ready = 1;
    memset(tile_unit.tile, 0, sizeof tile_unit.tile);
}

static inline void tile_release(void) { tile_unit.ready = 0; }

static inline void tile_needed(int t) {
    if (!tile_unit.ready || !tile_unit.config.rows[t]) tile_fault("a tile without configuration");
}

static inline void tile_zero(int t) {
    tile_needed(t);
    memset(tile_unit.tile[t], 0, sizeof tile_unit.tile[t]);
}

static inline void tile_load(int t, const void *p, int64_t stride) {
    tile_zero(t);
    for (int r = 0; r < tile_unit.config.rows[t]; r++)
        memcpy(tile_unit.tile[t][r], (const char *)p + r * stride, tile_unit.config.row_bytes[t]);
}

static inline void tile_store(int t, void *p, int64_t stride) {
    tile_needed(t);
    for (int r = 0; r < tile_unit.config.rows[t]; r++)
        memcpy((char *)p + r * stride, tile_unit.tile[t][r], tile_unit.config.row_bytes[t]);
}

static inline float tile_flush(float x) { /* denormals are zero, with their sign */
    return (el_bits(x) & 0x7f800000u) ? x : el_float(el_bits(x) & 0x80000000u);
}

static inline float tile_bf16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return tile_flush(el_bf16_to_f32(h));
}

static inline void tile_dpbf16(int c, int a, int b) {
    tile_needed(a), tile_needed(b), tile_needed(c);
    const el_tile_config *f = &tile_unit.config;
    if (a == b || b == c || a == c) tile_fault("one tile as two operands");
    if (f->rows[a] != f->rows[c] || f->row_bytes[b] != f->row_bytes[c] || f->row_bytes[a] != 4 * f->rows[b] ||
        f->row_bytes[a] % 4 || f->row_bytes[b] % 4)
        tile_fault("sizes of the operands");
    for (int m = 0; m < f->rows[c]; m++)
        for (int n = 0; n < f->row_bytes[c] / 4; n++) {
            float sum[2] = {0, 0}, old;
            for (int k = 0; k < f->rows[b]; k++)
                for (int odd = 0; odd < 2; odd++)
                    sum[odd] = tile_flush(el_fmaf(tile_bf16(&tile_unit.tile[a][m][4 * k + 2 * odd]),
                                                  tile_bf16(&tile_unit.tile[b][k][4 * n + 2 * odd]), sum[odd]));
            memcpy(&old, &tile_unit.tile[c][m][4 * n], 4);
            old = tile_flush(tile_flush(old) + tile_flush(sum[0] + sum[1]));
            memcpy(&tile_unit.tile[c][m][4 * n], &old, 4);
        }
}

#define TILE_CONFIGURE(p) tile_configure(p)
#define TILE_RELEASE() tile_release()
#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, p, stride) tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) tile_store(t, p, stride)
#define TILE_DPBF16(c, a, b) tile_dpbf16(c, a, b)

#endif
