/* kmajor.c: the layout of kmajor.h, and the slow obvious product. */
#include "kmajor.h"

#include <math.h>
#include <string.h>

#include "kernels.h" /* half floats, type ids */

int64_t sa_bytes(int type, int64_t rows, int64_t k, int block_rows) {
    if ((type != EL_TYPE_Q4_0 && type != EL_TYPE_Q8_0) || (block_rows != 128 && block_rows != 256)) return -1;
    if (rows < 1 || rows > 1 << 24 || k < 32 || k > 1 << 24 || k % 32) return -1;
    sa_matrix w = {type, block_rows, rows, k, NULL};
    return (rows + block_rows - 1) / block_rows * sa_block_bytes(&w);
}

/* Where row `row` of a block lies in a channel's run: byte, and how far its code is shifted. */
static int64_t place(const sa_matrix *w, int64_t row, int *shift) {
    int64_t per_line = w->type == EL_TYPE_Q4_0 ? 128 : 64, within = row % per_line, r = within % 64;
    *shift = within < 64 ? 0 : 4;
    return row / per_line * 64 + r % 16 / 4 * 16 + r / 16 * 4 + r % 4;
}

/* The unsigned code of one weight of a block of 32 in rows. */
static unsigned row_code(int type, const uint8_t *block, int64_t i) {
    if (type == EL_TYPE_Q8_0) return ((unsigned)(int8_t)block[2 + i] + 128) & 255;
    return i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4;
}

int sa_pack(const void *source, const sa_matrix *shape, void *out) {
    int64_t bytes = sa_bytes(shape->type, shape->rows, shape->k, shape->block_rows);
    if (bytes < 0) return 1;
    int64_t from_bytes = shape->type == EL_TYPE_Q4_0 ? 18 : 34, row_bytes = shape->k / 32 * from_bytes;
    memset(out, 0, (size_t)bytes);
    sa_matrix w = *shape;
    w.data = out;
    for (int64_t row = 0; row < w.rows; row++) {
        int shift;
        int64_t block = row / w.block_rows, r = row % w.block_rows, at = place(&w, r, &shift);
        uint8_t *scales = (uint8_t *)sa_scales(&w, block), *codes = (uint8_t *)sa_codes(&w, block);
        for (int64_t g = 0; g < w.k / 32; g++) {
            const uint8_t *from = (const uint8_t *)source + row * row_bytes + g * from_bytes;
            memcpy(scales + 2 * (g * w.block_rows + r), from, 2);
            for (int64_t i = 0; i < 32; i++)
                codes[(32 * g + i) * sa_run_bytes(&w) + at] |= (uint8_t)(row_code(w.type, from, i) << shift);
        }
    }
    return 0;
}

void sa_keep(const float *x, int64_t k, float threshold, float *kept) {
    for (int64_t i = 0; i < k; i++) kept[i] = fabsf(x[i]) < threshold ? 0.0f : x[i]; /* a NaN stays */
}

static int64_t list_plain(const int8_t *q, const sa_live *live) {
    int64_t total = 0, n = 0;
    for (int64_t g = 0; g < live->k / 32; g++) {
        int64_t first = n;
        for (int64_t i = 32 * g; i < 32 * g + 32; i++) {
            if (!q[i]) continue;
            live->channel[n] = (int32_t)i;
            live->code[n++] = q[i];
        }
        total += n - first;
        for (; n % 4; n++) {
            live->channel[n] = live->channel[n - 1];
            live->code[n] = 0;
        }
        live->quads[g] = (int32_t)((n - first) / 4);
    }
    for (int i = 0; i < SA_ROOM; i++) live->channel[n + i] = 0;
    return total;
}

static void block_plain(const sa_matrix *w, const sa_live *live, int64_t block, float *y) {
    int offset = w->type == EL_TYPE_Q4_0 ? 8 : 128;
    const uint8_t *codes = sa_codes(w, block);
    for (int64_t r = 0; r < w->block_rows; r++) {
        int shift;
        int64_t at = place(w, r, &shift), n = 0;
        float acc = 0.0f;
        for (int64_t g = 0; g < w->k / 32; g++) {
            if (!live->quads[g]) continue;
            int32_t dot = 0;
            for (int64_t end = n + 4 * live->quads[g]; n < end; n++) {
                int value = codes[live->channel[n] * sa_run_bytes(w) + at];
                if (w->type == EL_TYPE_Q4_0) value = value >> shift & 15;
                dot += (value - offset) * live->code[n];
            }
            uint16_t half;
            memcpy(&half, sa_scales(w, block) + 2 * (g * w->block_rows + r), 2);
            float scale = el_f16_to_f32(half) * live->d[g];
            acc = fmaf(scale, (float)dot, acc);
        }
        y[r] = acc;
    }
}

int64_t sa_list(const int8_t *q, const sa_live *live, int fast) {
    return fast && sa_fast() ? sa_list_avx512(q, live) : list_plain(q, live);
}

void sa_block(const sa_matrix *w, const sa_live *live, int64_t block, float *y, int fast) {
    if (fast && sa_fast()) sa_block_avx512(w, live, block, y);
    else block_plain(w, live, block, y);
}
