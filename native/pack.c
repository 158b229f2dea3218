/* pack.c: row-major blocks to panels and back to single rows. formats/panels.md has the pictures.
 *
 * Only bits move: a panel holds exactly the integers and f16 scales of its source. A call covers a range of
 * whole 16-row groups, so callers can pack in parallel.
 */
#include "kernels.h"

enum { ROWS = EL_PANEL_ROWS, LINE = 64, HEADER = 64, LOW = 0x0f0f0f0f };

static inline uint32_t load_word(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Sixteen rows are sixteen streams, too many for the hardware's prefetcher: ask for the next group as it lies. */
static inline void prefetch(const uint8_t *p, int64_t bytes) {
#if defined(__GNUC__)
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(p + i);
#else
    (void)p, (void)bytes;
#endif
}

static inline void store_word(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

/* Two Q4_0 blocks of one row (k 0-31 and 32-63) into row r of a tile. Byte b of a GGUF block holds k = b in
 * its low and k = b + 16 in its high nibble; line j of a tile wants k = 4j+i low and k = 32+4j+i high. */
static inline void q4_0_pair(const el_block_q4_0 *a, const el_block_q4_0 *b, uint8_t *tile, int r) {
    memcpy(tile + 2 * r, &a->d, 2);
    memcpy(tile + 32 + 2 * r, &b->d, 2);
    uint8_t *at = tile + HEADER + 4 * r;
    for (int j = 0; j < 4; j++) {
        uint32_t first = load_word(a->qs + 4 * j), second = load_word(b->qs + 4 * j);
        store_word(at + j * LINE, (first & LOW) | (second & LOW) << 4);
        store_word(at + (j + 4) * LINE, (first >> 4 & LOW) | (second & ~(uint32_t)LOW));
    }
}

static inline void q4_0_half(const el_block_q4_0 *a, uint8_t *tile, int r) {
    memcpy(tile + 2 * r, &a->d, 2);
    for (int j = 0; j < 4; j++) memcpy(tile + HEADER + j * LINE + 4 * r, a->qs + 4 * j, 4);
}

static inline void q8_0_block(const el_block_q8_0 *a, uint8_t *scale, uint8_t *lines, int r) {
    memcpy(scale + 2 * r, &a->d, 2);
    for (int j = 0; j < 8; j++) memcpy(lines + j * LINE + 4 * r, a->qs + 4 * j, 4);
}

/* One group: n_rows rows (1 .. 16) of k weights at src; the missing rows are zero bytes. */
static void pack_q4_0(const uint8_t *src, int64_t n_rows, int64_t k, uint8_t *dst) {
    int64_t n_blocks = k / 32;
    const el_block_q4_0 *blocks = (const el_block_q4_0 *)src;
    for (int64_t b = 0; b + 1 < n_blocks; b += 2, dst += 576) {
        prefetch((const uint8_t *)(blocks + ROWS * (n_blocks + b)), 576);
        for (int r = 0; r < n_rows; r++) {
            const el_block_q4_0 *pair = blocks + r * n_blocks + b;
            q4_0_pair(pair, pair + 1, dst, r);
        }
    }
    if (n_blocks & 1)
        for (int r = 0; r < n_rows; r++) q4_0_half(blocks + (r + 1) * n_blocks - 1, dst, r);
}

static void pack_q8_0(const uint8_t *src, int64_t n_rows, int64_t k, uint8_t *dst) {
    int64_t n_blocks = k / 32;
    const el_block_q8_0 *blocks = (const el_block_q8_0 *)src;
    for (int64_t b = 0; b < n_blocks; b++) {
        uint8_t *tile = dst + b / 2 * 1088;
        prefetch((const uint8_t *)(blocks + ROWS * (n_blocks + b)), 544);
        for (int r = 0; r < n_rows; r++)
            q8_0_block(blocks + r * n_blocks + b, tile + (b & 1) * 32, tile + HEADER + (b & 1) * 8 * LINE, r);
    }
}

static float scale_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return el_f16_to_f32(h);
}

#include "pack_k.h"

int el_pack_panels(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1) {
    int64_t group_bytes = el_panel_bytes(type, ROWS, k), row_bytes = el_row_bytes(type, k);
    if (!src || !dst || el_panel_bytes(type, rows, k) < 0 || row0 < 0 || row1 < row0 || row1 > rows || row0 % ROWS ||
        (row1 % ROWS && row1 != rows) || (row_bytes && rows > INT64_MAX / row_bytes))
        return EL_E_ARGUMENT;
    for (int64_t r0 = row0; r0 < row1; r0 += ROWS) {
        int64_t n_rows = row1 - r0 < ROWS ? row1 - r0 : ROWS;
        const uint8_t *from = (const uint8_t *)src + r0 * row_bytes;
        uint8_t *to = (uint8_t *)dst + r0 / ROWS * group_bytes;
        int holes = n_rows < ROWS || k % 64; /* padding rows, or the half tile's header */
        if (holes) memset(to, 0, (size_t)group_bytes);
        if (type == EL_TYPE_Q4_0) pack_q4_0(from, n_rows, k, to);
        else if (type == EL_TYPE_Q8_0) pack_q8_0(from, n_rows, k, to);
        else if (type == EL_TYPE_Q4_K) pack_q4_k(from, n_rows, k, to);
        else if (type == EL_TYPE_Q5_K) pack_q5_k(from, n_rows, k, to);
        else if (type == EL_TYPE_Q6_K) pack_q6_k(from, n_rows, k, to);
        else return EL_E_UNSUPPORTED;
    }
    return EL_OK;
}

static void row_q4_0(const uint8_t *group, int r, int64_t n_blocks, float *dst) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t *tile = group + b / 2 * 576, *at = tile + HEADER + 4 * r;
        int is_half = b + 1 == n_blocks && !(b & 1);
        float d = scale_at(tile + (b & 1) * 32 + 2 * r);
        for (int i = 0; i < 32; i++) {
            int line = is_half ? i / 4 % 4 : i / 4, high = is_half ? i >= 16 : (int)(b & 1);
            int q = at[line * LINE + i % 4] >> (high ? 4 : 0) & 15;
            dst[b * 32 + i] = d * (float)(q - 8);
        }
    }
}

static void row_q8_0(const uint8_t *group, int r, int64_t n_blocks, float *dst) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t *tile = group + b / 2 * 1088, *at = tile + HEADER + (b & 1) * 8 * LINE + 4 * r;
        float d = scale_at(tile + (b & 1) * 32 + 2 * r);
        for (int i = 0; i < 32; i++) dst[b * 32 + i] = d * (float)(int8_t)at[i / 4 * LINE + i % 4];
    }
}

int el_panel_row(int type, const void *panels, int64_t rows, int64_t k, int64_t row, float *dst) {
    int64_t group_bytes = el_panel_bytes(type, ROWS, k);
    if (!panels || !dst || el_panel_bytes(type, rows, k) < 0 || row < 0 || row >= rows) return EL_E_ARGUMENT;
    const uint8_t *group = (const uint8_t *)panels + row / ROWS * group_bytes;
    int r = (int)(row % ROWS);
    if (type == EL_TYPE_Q4_0) row_q4_0(group, r, k / 32, dst);
    else if (type == EL_TYPE_Q8_0) row_q8_0(group, r, k / 32, dst);
    else if (type == EL_TYPE_Q4_K || type == EL_TYPE_Q5_K || type == EL_TYPE_Q6_K) row_k(type, group, r, k / 256, dst);
    else return EL_E_UNSUPPORTED;
    return EL_OK;
}
