/* columns.c: 16 columns of quantised activations side by side, as wide kernels read them.
 *
 * Block b of all 16 columns is one run of memory, so a kernel reaches every column at a fixed distance; and no two columns
 * compete for the same lines of the first cache, as they do when rows are a power of two apart. 64 k of 16 columns
 * are [16][64] bytes, the left operand of an AMX tile.
 */
#include "kernels.h"

static int32_t pair_of(int32_t low, int32_t high) { return (int32_t)((uint32_t)high << 16 | ((uint32_t)low & 0xffffu)); }

/* Sums of 16 k -> 8 int16 pairs of them, then 4 pairs of sums of 32 k; 4 unused */
static void pair_sums(const int32_t *sum, int32_t *pairs) {
    for (int i = 0; i < 8; i++) pairs[i] = pair_of(sum[2 * i], sum[2 * i + 1]);
    for (int i = 0; i < 4; i++) pairs[8 + i] = pair_of(sum[4 * i] + sum[4 * i + 1], sum[4 * i + 2] + sum[4 * i + 3]);
    for (int i = 12; i < 16; i++) pairs[i] = 0;
}

void el_tile_columns(int format, int64_t k_pad, const int8_t *q, const float *d, const int32_t *sum, int8_t *tile_q,
                     float *tile_d, int32_t *tile_sum) {
    int64_t blocks = format == EL_ACTF_Q8_32 ? k_pad / 32 : k_pad / 256;
    for (int64_t c = 0; c < EL_TILE_COLUMNS; c++) {
        for (int64_t t = 0; t < k_pad / 64; t++)
            memcpy(tile_q + (t * EL_TILE_COLUMNS + c) * 64, q + c * k_pad + t * 64, 64);
        for (int64_t b = 0; b < blocks; b++) {
            tile_d[b * EL_TILE_COLUMNS + c] = d[c * blocks + b];
            if (format == EL_ACTF_Q8_32) tile_sum[b * EL_TILE_COLUMNS + c] = sum[c * blocks + b];
            else pair_sums(sum + (c * blocks + b) * 16, tile_sum + (b * EL_TILE_COLUMNS + c) * 16);
        }
    }
}
