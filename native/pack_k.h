/* pack_k.h: the part of pack.c for blocks of 256 weights: a tile is one block of each of 16 rows. */

enum {
    K_SCALES = 64,              /* bytes of a tile before its scales */
    K_LOWS = 192,               /* before the minimums of Q4_K and Q5_K */
    K_LINES = 320,              /* before the first 64 k */
    Q4_K_TILE = 2368, Q5_K_TILE = 2880, Q6_K_TILE = 3392,
    Q4_K_PART = 8 * LINE, Q5_K_PART = 10 * LINE, Q6_K_PART = 12 * LINE /* 64 k */
};

/* Where entry g of row r lies in [pairs][16 rows][2] */
static inline int k_at(int g, int r) { return g / 2 * 32 + 2 * r + g % 2; }

static inline void k_sixes(const uint8_t *packed, uint8_t *tile, int r) {
    for (int g = 0; g < 8; g++) {
        int scale = g < 4 ? packed[g] & 63 : (packed[4 + g] & 15) | packed[g - 4] >> 6 << 4;
        int low = g < 4 ? packed[4 + g] & 63 : packed[4 + g] >> 4 | packed[g] >> 6 << 4;
        tile[K_SCALES + k_at(g, r)] = (uint8_t)scale;
        tile[K_LOWS + k_at(g, r)] = (uint8_t)low;
    }
}

static inline void q4_k_tile(const el_block_q4_k *b, uint8_t *tile, int r) {
    memcpy(tile + 2 * r, &b->d, 2);
    memcpy(tile + 32 + 2 * r, &b->dmin, 2);
    k_sixes(b->scales, tile, r);
    for (int j = 0; j < 32; j++) memcpy(tile + K_LINES + j * LINE + 4 * r, b->qs + 4 * j, 4);
}

/* Bit b of byte i of word a to bit a of byte i of word b: four 8 x 8 transpositions side by side. */
static inline void transpose_bits(uint32_t *w) {
    static const uint32_t masks[3] = {0x0f0f0f0f, 0x33333333, 0x55555555};
    for (int step = 4, n = 0; step; step /= 2, n++)
        for (int a = 0; a < 8; a++) {
            if (a & step) continue;
            uint32_t t = ((w[a] >> step) ^ w[a + step]) & masks[n];
            w[a + step] ^= t;
            w[a] ^= t << step;
        }
}

static inline void q5_k_tile(const el_block_q5_k *b, uint8_t *tile, int r) {
    memcpy(tile + 2 * r, &b->d, 2);
    memcpy(tile + 32 + 2 * r, &b->dmin, 2);
    k_sixes(b->scales, tile, r);
    uint32_t high[8]; /* word j: bit g is of k = 32g + 4j + i; the tile wants word g with bit j */
    for (int j = 0; j < 8; j++) high[j] = load_word(b->qh + 4 * j);
    transpose_bits(high);
    for (int t = 0; t < 4; t++) {
        uint8_t *at = tile + K_LINES + t * Q5_K_PART + 4 * r;
        store_word(at, high[2 * t]);
        store_word(at + LINE, high[2 * t + 1]);
        for (int j = 0; j < 8; j++) memcpy(at + (2 + j) * LINE, b->qs + 32 * t + 4 * j, 4);
    }
}

/* 32 bytes at qh hold two bits of 128 k, here of the 16 k from `k` on: as one word of a line */
static inline uint32_t q6_k_high(const uint8_t *qh, int k) {
    uint32_t word = 0;
    for (int j = 0; j < 4; j++) word |= (load_word(qh + k % 32 + 4 * j) >> (k / 32 * 2) & 0x03030303) << (2 * j);
    return word;
}

static inline void q6_k_tile(const el_block_q6_k *b, uint8_t *tile, int r) {
    if (r == 0) memset(tile + 32, 0, 32);
    memcpy(tile + 2 * r, &b->d, 2);
    for (int g = 0; g < 16; g++) memcpy(tile + K_SCALES + k_at(g, r), b->scales + g, 1);
    for (int t = 0; t < 4; t++) {
        uint8_t *at = tile + K_LINES + t * Q6_K_PART + 4 * r;
        const uint8_t *ql = b->ql + t / 2 * 64, *qh = b->qh + t / 2 * 32;
        int shift = t % 2 * 4;
        for (int h = 0; h < 4; h++) store_word(at + h * LINE, q6_k_high(qh, t % 2 * 64 + h * 16));
        for (int j = 0; j < 8; j++) {
            uint32_t first = load_word(ql + 4 * j) >> shift & LOW, second = load_word(ql + 32 + 4 * j) >> shift & LOW;
            store_word(at + (4 + j) * LINE, first | second << 4);
        }
    }
}

#define PACK_K(TYPE, TILE)                                                                                   \
    static void pack_##TYPE(const uint8_t *src, int64_t n_rows, int64_t k, uint8_t *dst) {                   \
        int64_t n_blocks = k / 256;                                                                          \
        const el_block_##TYPE *blocks = (const el_block_##TYPE *)src;                                        \
        for (int64_t b = 0; b < n_blocks; b++, dst += TILE) {                                                \
            prefetch((const uint8_t *)(blocks + ROWS * (n_blocks + b)), ROWS * (int64_t)sizeof *blocks);     \
            for (int r = 0; r < n_rows; r++) TYPE##_tile(blocks + r * n_blocks + b, dst, r);                 \
        }                                                                                                    \
    }

PACK_K(q4_k, Q4_K_TILE)
PACK_K(q5_k, Q5_K_TILE)
PACK_K(q6_k, Q6_K_TILE)

/* Code of k = 64t + i of row r from the nibble lines of 64 k */
static inline int k_nibble(const uint8_t *lines, int r, int i) {
    return lines[i % 32 / 4 * LINE + 4 * r + i % 4] >> (i / 32 * 4) & 15;
}

/* Floats of row r, in dequantize.c's order: d * scale * q, less dmin * low */
static inline void row_q4_5_k(const uint8_t *tile, int r, int fifth, float *dst) {
    float d = scale_at(tile + 2 * r), dmin = scale_at(tile + 32 + 2 * r);
    for (int i = 0; i < 256; i++) {
        int g = i / 32, j = i % 32 / 4, q;
        const uint8_t *part = tile + K_LINES + i / 64 * (fifth ? Q5_K_PART : Q4_K_PART);
        q = k_nibble(part + (fifth ? 2 * LINE : 0), r, i % 64);
        if (fifth) q |= (part[g % 2 * LINE + 4 * r + i % 4] >> j & 1) << 4;
        float step = d * (float)tile[K_SCALES + k_at(g, r)], offset = dmin * (float)tile[K_LOWS + k_at(g, r)];
        dst[i] = step * (float)q - offset;
    }
}

static inline void row_q6_k(const uint8_t *tile, int r, float *dst) {
    float d = scale_at(tile + 2 * r);
    for (int i = 0; i < 256; i++) {
        const uint8_t *part = tile + K_LINES + i / 64 * Q6_K_PART;
        int high = part[i % 64 / 16 * LINE + 4 * r + i % 4] >> (i % 16 / 4 * 2) & 3;
        int q = (k_nibble(part + 4 * LINE, r, i % 64) | high << 4) - 32;
        dst[i] = d * (float)(int8_t)tile[K_SCALES + k_at(i / 16, r)] * (float)q;
    }
}

static void row_k(int type, const uint8_t *group, int r, int64_t n_blocks, float *dst) {
    for (int64_t b = 0; b < n_blocks; b++, dst += 256) {
        if (type == EL_TYPE_Q4_K) row_q4_5_k(group + b * Q4_K_TILE, r, 0, dst);
        else if (type == EL_TYPE_Q5_K) row_q4_5_k(group + b * Q5_K_TILE, r, 1, dst);
        else row_q6_k(group + b * Q6_K_TILE, r, dst);
    }
}
