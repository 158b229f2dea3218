/* neon_panels.h: panels of Q4_0, Q8_0, Q4_K, Q5_K and Q6_K (formats/panels.md) for one NEON_LEVEL.
 *
 * 16 bytes of a line are 4 rows of 4 k. SDOT multiplies them with 4 activations and a lane is a row. SMMLA wants 2 rows of
 * 8 k: two lines zipped. Plain NEON adds int16 products: 8 quads of 4 or 5 bits, 4 of 6 bits or 2 of 8 bits fit
 * (8 * 31 * 127, 4 * 63 * 127 and 2 * 128 * 127 are below 2^15). Codes stay unsigned; offsets go in through the sums.
 *
 * Up to FEW columns the codes go from the tile straight into registers; more columns share one unpacked copy of a tile in
 * the first-level cache. Both ways read the weights once for up to WIDE columns.
 */

enum { FEW = NEON_LEVEL == BY_PRODUCTS ? 2 : 4, WIDE = 32 };

typedef struct { /* one column of the activations */
    const int8_t *q;
    const float *d;
    const int32_t *sum;
} column;

typedef int32x4_t sums[4][4];    /* [column][4 rows] */
typedef float32x4_t results[4];  /* 16 rows of one column */

/* Where the codes of a line are: whole bytes, one of its nibbles (upper bits of 5- and 6-bit codes apart), or unpacked. */
enum { BYTES, LOW, HIGH, READY };

INLINE uint8x16_t code(const int where, const int bits, const uint8_t *line, const uint8_t *upper, const int shift) {
    uint8x16_t v = bytes16(line);
    if (where == LOW) v = vandq_u8(v, vdupq_n_u8(15));
    if (where == HIGH) v = vshrq_n_u8(v, 4);
    if ((where == LOW || where == HIGH) && bits > 4) {
        uint8x16_t u = vshlq_u8(bytes16(upper), vdupq_n_s8((int8_t)shift));
        v = vorrq_u8(v, vandq_u8(u, vdupq_n_u8(bits == 5 ? 0x10 : 0x30)));
    }
    return v;
}

/* 16 bytes (4 rows) of quad j of 8 (16 k of 6 bits: of 4); upper line: bit j, or bits 2j and 2j + 1, to bit 4 */
INLINE int8x16_t rows4(const int where, const int bits, const uint8_t *p, const uint8_t *upper, const int j, const int s) {
    int shift = bits == 5 ? 4 - j : 4 - 2 * j;
    return vreinterpretq_s8_u8(code(where, bits, p + j * 64 + s * 16, upper + s * 16, shift));
}

/* ---- 16 rows times C columns over n times 16 k: out[c][s] += dot --------------------------------------------------- */
#if NEON_LEVEL == BY_PRODUCTS

#define SPREAD(c, J) vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(q[c]), J)) /* a quad, four times */

/* 8 bits: pairs of quads fit an int16 */
#define PRODUCTS_8(J, K)                                                                          \
    UNROLL for (int s = 0; s < 4; s++) {                                                          \
        int8x16_t a = rows4(where, 8, p, p, u * 4 + J, s), b = rows4(where, 8, p, p, u * 4 + K, s); \
        UNROLL for (int c = 0; c < C; c++) {                                                      \
            int8x16_t xa = SPREAD(c, J), xb = SPREAD(c, K);                                       \
            int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(xa));                            \
            int16x8_t high = vmull_high_s8(a, xa);                                                \
            low = vmlal_s8(low, vget_low_s8(b), vget_low_s8(xb));                                 \
            high = vmlal_high_s8(high, b, xb);                                                    \
            pairs[c][2 * s] = vpadalq_s16(pairs[c][2 * s], low);                                  \
            pairs[c][2 * s + 1] = vpadalq_s16(pairs[c][2 * s + 1], high);                         \
        }                                                                                         \
    }

INLINE void dots_bytes(sums out, const int where, const uint8_t *p, const column *x, int64_t at, const int n, const int C) {
    int32x4_t pairs[4][8];
    int8x16_t q[4];
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int i = 0; i < 8; i++) pairs[c][i] = vdupq_n_s32(0);
    UNROLL for (int u = 0; u < n; u++) {
        UNROLL for (int c = 0; c < C; c++) q[c] = vld1q_s8(x[c].q + at + u * 16);
        PRODUCTS_8(0, 1)
        PRODUCTS_8(2, 3)
    }
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++)
        out[c][s] = vaddq_s32(out[c][s], vpaddq_s32(pairs[c][2 * s], pairs[c][2 * s + 1]));
}

/* up to 5 bits over 32 k, or 6 bits over 16 k: all products of a lane fit an int16 */
#define PRODUCTS(J)                                                                               \
    UNROLL for (int s = 0; s < 4; s++) {                                                          \
        int8x16_t a = rows4(where, bits, p, upper, u * 4 + J, s);                                 \
        UNROLL for (int c = 0; c < C; c++) {                                                      \
            int8x16_t xa = SPREAD(c, J);                                                          \
            total[c][2 * s] = vmlal_s8(total[c][2 * s], vget_low_s8(a), vget_low_s8(xa));         \
            total[c][2 * s + 1] = vmlal_high_s8(total[c][2 * s + 1], a, xa);                      \
        }                                                                                         \
    }

INLINE void dots(sums out, const int where, const int bits, const uint8_t *p, const uint8_t *upper, const column *x,
                 int64_t at, const int n, const int C) {
    if (bits == 8) {
        dots_bytes(out, where, p, x, at, n, C);
        return;
    }
    int16x8_t total[4][8];
    int8x16_t q[4];
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int i = 0; i < 8; i++) total[c][i] = vdupq_n_s16(0);
    UNROLL for (int u = 0; u < n; u++) {
        UNROLL for (int c = 0; c < C; c++) q[c] = vld1q_s8(x[c].q + at + u * 16);
        PRODUCTS(0)
        PRODUCTS(1)
        PRODUCTS(2)
        PRODUCTS(3)
    }
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++)
        out[c][s] = vaddq_s32(out[c][s], vpaddq_s32(vpaddlq_s16(total[c][2 * s]), vpaddlq_s16(total[c][2 * s + 1])));
}

#else

#define DOTS(J)                                                                                               \
    UNROLL for (int s = 0; s < 4; s++) {                                                                      \
        int8x16_t a = rows4(where, bits, p, upper, u * 4 + J, s);                                             \
        UNROLL for (int c = 0; c < C; c++) out[c][s] = vdotq_laneq_s32(out[c][s], a, q[c], J);                \
    }

INLINE void dots_by_column(sums out, const int where, const int bits, const uint8_t *p, const uint8_t *upper,
                           const column *x, int64_t at, const int n, const int C) {
    int8x16_t q[4];
    UNROLL for (int u = 0; u < n; u++) {
        UNROLL for (int c = 0; c < C; c++) q[c] = vld1q_s8(x[c].q + at + u * 16);
        DOTS(0)
        DOTS(1)
        DOTS(2)
        DOTS(3)
    }
}

#if NEON_LEVEL == BY_DOTS

INLINE void dots(sums out, const int where, const int bits, const uint8_t *p, const uint8_t *upper, const column *x,
                 int64_t at, const int n, const int C) {
    dots_by_column(out, where, bits, p, upper, x, at, n, C);
}

#else

/* Quads j and j + 1 of 4 rows as rows 0 and 1 of 8 k, rows 2 and 3 of 8 k; unpacked tiles hold them so already. */
INLINE void rows2x8(int8x16_t *a, const int where, const int bits, const uint8_t *p, const uint8_t *upper, const int j,
                    const int s) {
    if (where == READY) {
        a[0] = vreinterpretq_s8_u8(bytes16(p + j * 64 + s * 32));
        a[1] = vreinterpretq_s8_u8(bytes16(p + j * 64 + s * 32 + 16));
        return;
    }
    int32x4_t first = vreinterpretq_s32_s8(rows4(where, bits, p, upper, j, s));
    int32x4_t second = vreinterpretq_s32_s8(rows4(where, bits, p, upper, j + 1, s));
    a[0] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
    a[1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
}

INLINE void dots(sums out, const int where, const int bits, const uint8_t *p, const uint8_t *upper, const column *x,
                 int64_t at, const int n, const int C) {
    if (C == 1) {
        dots_by_column(out, where, bits, p, upper, x, at, n, C);
        return;
    }
    int32x4_t square[2][8]; /* 2 rows x 2 columns each */
    int8x16_t q[2][2];      /* [pair of columns][8 k] */
    UNROLL for (int c = 0; c < C / 2; c++) UNROLL for (int i = 0; i < 8; i++) square[c][i] = vdupq_n_s32(0);
    UNROLL for (int u = 0; u < n; u++) {
        UNROLL for (int c = 0; c < C / 2; c++) {
            int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x[2 * c].q + at + u * 16));
            int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(x[2 * c + 1].q + at + u * 16));
            q[c][0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            q[c][1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int s = 0; s < 4; s++) {
            int8x16_t a[2];
            rows2x8(a, where, bits, p, upper, u * 4 + h * 2, s);
            UNROLL for (int c = 0; c < C / 2; c++) UNROLL for (int i = 0; i < 2; i++)
                square[c][2 * s + i] = vmmlaq_s32(square[c][2 * s + i], a[i], q[c][h]);
        }
    }
    UNROLL for (int c = 0; c < C / 2; c++) UNROLL for (int s = 0; s < 4; s++) {
        int32x4_t a = square[c][2 * s], b = square[c][2 * s + 1];
        out[2 * c][s] = vaddq_s32(out[2 * c][s], vuzp1q_s32(a, b));
        out[2 * c + 1][s] = vaddq_s32(out[2 * c + 1][s], vuzp2q_s32(a, b));
    }
}

#endif
#endif

/* Codes of n times 16 k as `dots` wants them with READY: 256 bytes for each 16 k */
INLINE void unpack(uint8_t *to, const int where, const int bits, const uint8_t *p, const uint8_t *upper, const int n) {
    UNROLL for (int u = 0; u < n; u++) {
#if NEON_LEVEL == BY_MATRICES
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int s = 0; s < 4; s++) {
            int8x16_t a[2];
            rows2x8(a, where, bits, p, upper, u * 4 + h * 2, s);
            UNROLL for (int i = 0; i < 2; i++)
                vst1q_u8(to + u * 256 + h * 128 + s * 32 + i * 16, vreinterpretq_u8_s8(a[i]));
        }
#else
        UNROLL for (int j = 0; j < 4; j++) UNROLL for (int s = 0; s < 4; s++)
            vst1q_u8(to + u * 256 + j * 64 + s * 16, vreinterpretq_u8_s8(rows4(where, bits, p, upper, u * 4 + j, s)));
#endif
    }
}

/* ---- what a block adds to the results ------------------------------------------------------------------------------ */
INLINE void start_at(sums out, const int32_t *value, const int C) {
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++) out[c][s] = vdupq_n_s32(value[c]);
}

INLINE void start_at_zero(sums out, const int C) {
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++) out[c][s] = vdupq_n_s32(0);
}

/* acc += (d * dx) * dot, rounded as the row kernels do */
INLINE void add_block(results *acc, const uint8_t *scale, const column *x, int64_t b, sums dot, const int C) {
    UNROLL for (int s = 0; s < 4; s++) {
        float32x4_t d = halves4(scale + 8 * s);
        UNROLL for (int c = 0; c < C; c++)
            acc[c][s] = vfmaq_f32(acc[c][s], vmulq_n_f32(d, x[c].d[b]), vcvtq_f32_s32(dot[c][s]));
    }
}

/* ---- Q4_0 and Q8_0: tiles of two blocks of 32 ------------------------------------------------------------------------ */
INLINE void block_q4_0(results *acc, const int where, const uint8_t *p, const uint8_t *scale, const column *x, int64_t b,
                       const int C) {
    sums dot;
    int32_t offset[4];
    UNROLL for (int c = 0; c < C; c++) offset[c] = -8 * x[c].sum[b];
    start_at(dot, offset, C);
    dots(dot, where, 4, p, p, x, b * 32, 2, C);
    add_block(acc, scale, x, b, dot, C);
}

INLINE void tile_q4_0(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    block_q4_0(acc, ready ? READY : LOW, ready ? ready : tile + 64, tile, x, b, C);
    block_q4_0(acc, ready ? READY : HIGH, ready ? ready + 512 : tile + 64, tile + 32, x, b + 1, C);
}

/* K = 32 mod 64: 4 lines, the first 16 k in the low nibbles */
INLINE void half_q4_0(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    if (ready) {
        block_q4_0(acc, READY, ready, tile, x, b, C);
        return;
    }
    sums dot;
    int32_t offset[4];
    UNROLL for (int c = 0; c < C; c++) offset[c] = -8 * x[c].sum[b];
    start_at(dot, offset, C);
    dots(dot, LOW, 4, tile + 64, tile, x, b * 32, 1, C);
    dots(dot, HIGH, 4, tile + 64, tile, x, b * 32 + 16, 1, C);
    add_block(acc, tile, x, b, dot, C);
}

INLINE const uint8_t *unpack_q4_0(uint8_t *to, const uint8_t *tile, const int half) {
    unpack(to, LOW, 4, tile + 64, tile, half ? 1 : 2);
    unpack(to + (half ? 256 : 512), HIGH, 4, tile + 64, tile, half ? 1 : 2);
    return to;
}

INLINE void block_q8_0(results *acc, const int where, const uint8_t *p, const uint8_t *scale, const column *x, int64_t b,
                       const int C) {
    sums dot;
    start_at_zero(dot, C);
    dots(dot, where, 8, p, p, x, b * 32, 2, C);
    add_block(acc, scale, x, b, dot, C);
}

INLINE void half_q8_0(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    block_q8_0(acc, ready ? READY : BYTES, ready ? ready : tile + 64, tile, x, b, C);
}

INLINE void tile_q8_0(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    const uint8_t *p = ready ? ready : tile + 64;
    block_q8_0(acc, ready ? READY : BYTES, p, tile, x, b, C);
    block_q8_0(acc, ready ? READY : BYTES, p + 512, tile + 32, x, b + 1, C);
}

INLINE const uint8_t *unpack_q8_0(uint8_t *to, const uint8_t *tile, const int half) {
    if (NEON_LEVEL != BY_MATRICES) return tile + 64; /* lines of bytes are what `dots` wants */
    for (int u = 0; u < (half ? 2 : 4); u++) unpack(to + u * 256, BYTES, 8, tile + 64 + u * 256, tile, 1);
    return to;
}

/* ---- Q4_K, Q5_K, Q6_K: tiles of 256 k --------------------------------------------------------------------------------- */
/* total += dot * the 16 rows' scales */
INLINE void add_scaled_u8(sums total, sums dot, uint8x16_t scale, const int C) {
    uint16x8_t low = vmovl_u8(vget_low_u8(scale)), high = vmovl_high_u8(scale);
    int32x4_t v[4] = {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
                      vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))};
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++)
        total[c][s] = vmlaq_s32(total[c][s], dot[c][s], v[s]);
}

INLINE void add_scaled_s8(sums total, sums dot, int8x16_t scale, const int C) {
    int16x8_t low = vmovl_s8(vget_low_s8(scale)), high = vmovl_high_s8(scale);
    int32x4_t v[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)};
    UNROLL for (int c = 0; c < C; c++) UNROLL for (int s = 0; s < 4; s++)
        total[c][s] = vmlaq_s32(total[c][s], dot[c][s], v[s]);
}

/* Sums of 32 activations, 8 of them as int16 (|sum| <= 32 * 127) */
INLINE int16x8_t sums_of_32(const int32_t *sum) {
    int32x4_t a = vpaddq_s32(vld1q_s32(sum), vld1q_s32(sum + 4)), b = vpaddq_s32(vld1q_s32(sum + 8), vld1q_s32(sum + 12));
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
}

#define MINIMUMS(P, H)                                                                                         \
    {                                                                                                          \
        int16x8_t m0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(pair[P].val[H])));                           \
        int16x8_t m1 = vreinterpretq_s16_u16(vmovl_high_u8(pair[P].val[H]));                                   \
        UNROLL for (int c = 0; c < C; c++) {                                                                   \
            low[c][0] = vmlal_laneq_s16(low[c][0], vget_low_s16(m0), s[c], 2 * P + H);                         \
            low[c][1] = vmlal_high_laneq_s16(low[c][1], m0, s[c], 2 * P + H);                                  \
            low[c][2] = vmlal_laneq_s16(low[c][2], vget_low_s16(m1), s[c], 2 * P + H);                         \
            low[c][3] = vmlal_high_laneq_s16(low[c][3], m1, s[c], 2 * P + H);                                  \
        }                                                                                                      \
    }

/* acc -= (dmin * dx) * float(sum of minimum * activation sum) */
INLINE void subtract_minimums(results *acc, const uint8_t *tile, const column *x, int64_t b, const int C) {
    sums low;
    int16x8_t s[4];
    uint8x16x2_t pair[4]; /* [pair of groups][16 rows] */
    start_at_zero(low, C);
    UNROLL for (int c = 0; c < C; c++) s[c] = sums_of_32(x[c].sum + b * 16);
    UNROLL for (int p = 0; p < 4; p++) pair[p] = vld2q_u8(tile + 192 + p * 32);
    MINIMUMS(0, 0)
    MINIMUMS(0, 1)
    MINIMUMS(1, 0)
    MINIMUMS(1, 1)
    MINIMUMS(2, 0)
    MINIMUMS(2, 1)
    MINIMUMS(3, 0)
    MINIMUMS(3, 1)
    UNROLL for (int i = 0; i < 4; i++) {
        float32x4_t dmin = halves4(tile + 32 + 8 * i);
        UNROLL for (int c = 0; c < C; c++)
            acc[c][i] = vfmsq_f32(acc[c][i], vmulq_n_f32(dmin, x[c].d[b]), vcvtq_f32_s32(low[c][i]));
    }
}

/* Part t of Q4_K and Q5_K: upper lines, then 8 lines of nibbles; each nibble half is a group of 32 */
INLINE void tile_with_minimums(results *acc, const uint8_t *tile, const uint8_t *ready, const int bits, const column *x,
                               int64_t b, const int C) {
    const int upper_bytes = (bits - 4) * 128, part_bytes = upper_bytes + 512;
    sums total;
    start_at_zero(total, C);
    for (int t = 0; t < 4; t++) {
        const uint8_t *part = tile + 320 + t * part_bytes, *lines = part + upper_bytes;
        uint8x16x2_t scale = vld2q_u8(tile + 64 + t * 32);
        UNROLL for (int g = 0; g < 2; g++) {
            sums dot;
            start_at_zero(dot, C);
            dots(dot, ready ? READY : g ? HIGH : LOW, bits, ready ? ready + t * 1024 + g * 512 : lines, part + g * 64, x,
                 b * 256 + t * 64 + g * 32, 2, C);
            add_scaled_u8(total, dot, scale.val[g], C);
        }
    }
    add_block(acc, tile, x, b, total, C);
    subtract_minimums(acc, tile, x, b, C);
}

INLINE void tile_q4_k(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    tile_with_minimums(acc, tile, ready, 4, x, b, C);
}

INLINE void tile_q5_k(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    tile_with_minimums(acc, tile, ready, 5, x, b, C);
}

/* Groups of 16; the codes' offset of 32 is in the sums' starts */
INLINE void tile_q6_k(results *acc, const uint8_t *tile, const uint8_t *ready, const column *x, int64_t b, const int C) {
    sums total;
    start_at_zero(total, C);
    for (int t = 0; t < 4; t++) {
        const uint8_t *part = tile + 320 + t * 768, *lines = part + 256;
        int8x16x2_t scale[2] = {vld2q_s8((const int8_t *)tile + 64 + t * 64), vld2q_s8((const int8_t *)tile + 96 + t * 64)};
        UNROLL for (int g = 0; g < 4; g++) {
            sums dot;
            int32_t offset[4];
            UNROLL for (int c = 0; c < C; c++) offset[c] = -32 * x[c].sum[b * 16 + t * 4 + g];
            start_at(dot, offset, C);
            dots(dot, ready ? READY : g / 2 ? HIGH : LOW, 6, ready ? ready + t * 1024 + g * 256 : lines + (g & 1) * 256,
                 part + g * 64, x, b * 256 + t * 64 + g * 16, 1, C);
            add_scaled_s8(total, dot, scale[g / 2].val[g & 1], C);
        }
    }
    add_block(acc, tile, x, b, total, C);
}

INLINE const uint8_t *unpack_k(uint8_t *to, const uint8_t *tile, const int bits) {
    const int upper_bytes = (bits - 4) * 128, part_bytes = upper_bytes + 512;
    for (int t = 0; t < 4; t++) {
        const uint8_t *part = tile + 320 + t * part_bytes, *lines = part + upper_bytes;
        if (bits == 6)
            UNROLL for (int g = 0; g < 4; g++)
                unpack(to + t * 1024 + g * 256, g / 2 ? HIGH : LOW, bits, lines + (g & 1) * 256, part + g * 64, 1);
        else
            UNROLL for (int g = 0; g < 2; g++)
                unpack(to + t * 1024 + g * 512, g ? HIGH : LOW, bits, lines, part + g * 64, 2);
    }
    return to;
}

INLINE const uint8_t *unpack_q4_k(uint8_t *to, const uint8_t *tile, const int half) {
    (void)half;
    return unpack_k(to, tile, 4);
}
INLINE const uint8_t *unpack_q5_k(uint8_t *to, const uint8_t *tile, const int half) {
    (void)half;
    return unpack_k(to, tile, 5);
}
INLINE const uint8_t *unpack_q6_k(uint8_t *to, const uint8_t *tile, const int half) {
    (void)half;
    return unpack_k(to, tile, 6);
}

/* ---- the loops over tiles and columns ------------------------------------------------------------------------------------ */
/* Columns [m0, m0 + n), the last one repeated up to 3 times so that tiles of columns are whole. */
INLINE void columns(column *out, const el_act *x, int64_t m0, int64_t n, int64_t per_d, int64_t per_sum) {
    for (int64_t i = 0; i < n + 3; i++) {
        int64_t m = m0 + min64(i, n - 1);
        out[i] = (column){x->q + m * x->k_pad, x->d + m * (x->k_pad / per_d), x->sum + m * (x->k_pad / per_sum)};
    }
}

INLINE void store_rows(float *y, int64_t n_rows, const float32x4_t *acc) {
    float out[EL_PANEL_ROWS];
    UNROLL for (int s = 0; s < 4; s++) vst1q_f32(out + 4 * s, acc[s]);
    memcpy(y, out, (size_t)n_rows * 4);
}

INLINE void clear(results *acc, int64_t n) {
    for (int64_t c = 0; c < n; c++)
        UNROLL for (int s = 0; s < 4; s++) acc[c][s] = vdupq_n_f32(0.0f);
}

INLINE void prefetch_tile(const uint8_t *tile, const int bytes) {
    for (int i = 0; i < bytes; i += 64) prefetch(tile + AHEAD + i);
}

/* Calls STEP(c, C) for tiles of columns that cover n of them, with the last one repeated where a tile is not full. */
#if NEON_LEVEL == BY_PRODUCTS
#define COLUMN_TILES(n, STEP)                     \
    for (int64_t c = 0; c < n; c += 2) {          \
        if (n - c >= 2) STEP(c, 2);               \
        else STEP(c, 1);                          \
    }
#else
#define COLUMN_TILES(n, STEP)                     \
    for (int64_t c = 0; c < n; c += 4) {          \
        if (n - c >= 3) STEP(c, 4);               \
        else STEP(c, 2);                          \
    }
#endif

/* TILE(acc, tile, ready, x, b, C) for the tiles of TILE_K weights of one group, HALF for a last one of 32 */
#define PANELS(NAME, BLOCK_K, TILE_K, TILE_BYTES, HALF_BYTES, PER_SUM, TILE, HALF, UNPACK)                         \
    INLINE void NAME##_few(const int sparse, el_group g, const column *x, int64_t k, const int C, results *acc) {  \
        clear(acc, C);                                                                                             \
        for (int64_t i = 0; i < g.n; i++, g.tile += TILE_BYTES) {                                                  \
            int64_t b = el_next_tile(sparse, &g, i);                                                               \
            prefetch_tile(g.tile, TILE_BYTES);                                                                     \
            TILE(acc, g.tile, NULL, x, b * (TILE_K / BLOCK_K), C);                                                 \
        }                                                                                                          \
        if (g.half) HALF(acc, g.tile, NULL, x, k / TILE_K * (TILE_K / BLOCK_K), C);                                \
    }                                                                                                              \
    static void NAME##_many(const int sparse, el_group g, const column *x, int64_t k, int64_t n, results *acc) {   \
        uint8_t unpacked[TILE_K * EL_PANEL_ROWS];                                                                  \
        int64_t b;                                                                                                 \
        clear(acc, n + 3);                                                                                         \
        for (int64_t i = 0; i < g.n; i++, g.tile += TILE_BYTES) {                                                  \
            b = el_next_tile(sparse, &g, i);                                                                       \
            prefetch_tile(g.tile, TILE_BYTES);                                                                     \
            const uint8_t *ready = UNPACK(unpacked, g.tile, 0);                                                    \
            COLUMN_TILES(n, NAME##_TILE)                                                                           \
        }                                                                                                          \
        if (g.half) {                                                                                              \
            b = k / TILE_K;                                                                                        \
            const uint8_t *ready = UNPACK(unpacked, g.tile, 1);                                                    \
            COLUMN_TILES(n, NAME##_HALF)                                                                           \
        }                                                                                                          \
    }                                                                                                              \
    INLINE void NAME##_rows(const int sparse, const void *w, int64_t row0, int64_t row1, const el_act *x,          \
                            int64_t n_cols, float *y, int64_t ldy) {                                               \
        column col[WIDE + 3];                                                                                      \
        results acc[WIDE + 3];                                                                                     \
        for (int64_t m0 = 0; m0 < n_cols; m0 += WIDE) {                                                            \
            int64_t n = min64(WIDE, n_cols - m0);                                                                  \
            columns(col, x, m0, n, BLOCK_K, PER_SUM);                                                              \
            for (int64_t r0 = row0; r0 < row1; r0 += EL_PANEL_ROWS) {                                              \
                const el_group g = el_group_at(sparse, w, r0 / EL_PANEL_ROWS, x->k, TILE_K, TILE_BYTES, HALF_BYTES); \
                if (n == 1) NAME##_few(sparse, g, col, x->k, 1, acc);                                              \
                else if (n == 2) NAME##_few(sparse, g, col, x->k, 2, acc);                                         \
                else if (n == 3 && NEON_LEVEL == BY_DOTS) NAME##_few(sparse, g, col, x->k, 3, acc);                \
                else if (n <= 4 && FEW == 4) NAME##_few(sparse, g, col, x->k, 4, acc);                             \
                else NAME##_many(sparse, g, col, x->k, n, acc);                                                    \
                for (int64_t c = 0; c < n; c++)                                                                    \
                    store_rows(y + (m0 + c) * ldy + r0 - row0, min64(EL_PANEL_ROWS, row1 - r0), acc[c]);           \
            }                                                                                                      \
        }                                                                                                          \
    }                                                                                                              \
    static void panels_##NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols,          \
                              float *y, int64_t ldy) {                                                             \
        NAME##_rows(0, w, row0, row1, x, n_cols, y, ldy);                                                          \
    }                                                                                                              \
    static void sparse_##NAME(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols,          \
                              float *y, int64_t ldy) {                                                             \
        NAME##_rows(1, w, row0, row1, x, n_cols, y, ldy);                                                          \
    }

#define q4_0_TILE(c, C) tile_q4_0(acc + (c), g.tile, ready, x + (c), b * 2, C)
#define q4_0_HALF(c, C) half_q4_0(acc + (c), g.tile, ready, x + (c), b * 2, C)
#define q8_0_TILE(c, C) tile_q8_0(acc + (c), g.tile, ready, x + (c), b * 2, C)
#define q8_0_HALF(c, C) half_q8_0(acc + (c), g.tile, ready, x + (c), b * 2, C)
#define q4_k_TILE(c, C) tile_q4_k(acc + (c), g.tile, ready, x + (c), b, C)
#define q4_k_HALF q4_k_TILE /* never: k is a multiple of 256 */
#define q5_k_TILE(c, C) tile_q5_k(acc + (c), g.tile, ready, x + (c), b, C)
#define q5_k_HALF q5_k_TILE
#define q6_k_TILE(c, C) tile_q6_k(acc + (c), g.tile, ready, x + (c), b, C)
#define q6_k_HALF q6_k_TILE
PANELS(q4_0, 32, 64, 576, 320, 32, tile_q4_0, half_q4_0, unpack_q4_0)
PANELS(q8_0, 32, 64, 1088, 576, 32, tile_q8_0, half_q8_0, unpack_q8_0)
PANELS(q4_k, 256, 256, 2368, 0, 16, tile_q4_k, tile_q4_k, unpack_q4_k)
PANELS(q5_k, 256, 256, 2880, 0, 16, tile_q5_k, tile_q5_k, unpack_q5_k)
PANELS(q6_k, 256, 256, 3392, 0, 16, tile_q6_k, tile_q6_k, unpack_q6_k)

#define NEON_PANEL_ENTRIES                                                                                      \
    .linear[EL_PANELS] = {[EL_TYPE_Q4_0] = panels_q4_0, [EL_TYPE_Q8_0] = panels_q8_0, [EL_TYPE_Q4_K] = panels_q4_k, \
                          [EL_TYPE_Q5_K] = panels_q5_k, [EL_TYPE_Q6_K] = panels_q6_k},                          \
    .linear[EL_SPARSE] = {[EL_TYPE_Q4_0] = sparse_q4_0, [EL_TYPE_Q8_0] = sparse_q8_0, [EL_TYPE_Q4_K] = sparse_q4_k, \
                          [EL_TYPE_Q5_K] = sparse_q5_k, [EL_TYPE_Q6_K] = sparse_q6_k}
