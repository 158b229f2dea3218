/* amx.c: prefill on Intel's tile registers (AMX-BF16), for passes of many columns.
 *
 * A block of rows is unpacked to bf16 with its scales multiplied in, 512 k at a time, into a buffer that stays in L2; then
 * all columns are swept over it in squares of 2 x 2 tiles of C. One step multiplies 16 columns x 32 k (A, activations) with
 * 32 k x 16 rows (B, weights) in full tiles: all edges are padded while unpacking. The panels' lines of [16 rows][4 k] bytes
 * become two lines [16 rows][2 k] of a B tile without a shuffle across lanes: a lane is a row, so its scale is a lane too.
 *
 * The vector code is plain C on vectors of 16 lanes, so that tests run it anywhere with emulated tiles (tiles.h); only what
 * compilers do not find by themselves is an intrinsic. formats/arithmetic.md says what is rounded when.
 */
#include "arith.h"

#if defined(EL_TILES_EMULATED)
#define EL_HAVE_AMX 1
#elif defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>) /* the compiler is new enough, so its assembler is too */
#define EL_HAVE_AMX 1
#define REAL_VECTORS 1
#endif
#endif

#ifdef EL_HAVE_AMX

#include "tiles.h"

#ifdef REAL_VECTORS
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,prefer-vector-width=512")
#endif
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    ROWS = EL_PANEL_ROWS,
    LINE = 64,              /* bytes of a line */
    TILE_K = 32,            /* k of a tile step */
    TILE_HALVES = 512,      /* bf16 values of a tile of A or B */
    TILE_FLOATS = 256,      /* floats of a tile of C */
    K_TILES = EL_PREFILL_K_BLOCK / TILE_K
};

typedef uint32_t words __attribute__((vector_size(64)));  /* 16 lanes; a lane is a row, or in rows of floats two k */
typedef int32_t ints __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));

/* ---- vectors ------------------------------------------------------------------------------------------------- */
INLINE words load_words(const void *p) {
    words v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_words(void *p, words v) { memcpy(p, &v, sizeof v); }

#ifdef REAL_VECTORS
INLINE floats fma16(floats a, floats b, floats c) { return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE words and_or(words a, words b, words c) { /* a & b | c */
    return (words)_mm512_ternarylogic_epi32((__m512i)a, (__m512i)b, (__m512i)c, 0xea);
}
INLINE floats halves16(const void *p) { return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE words shorts16(const void *p) { return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
INLINE words select16(words a, words index, words b) { /* lane i: index[i] < 16 ? a[index[i]] : b[index[i] - 16] */
    return (words)_mm512_permutex2var_epi32((__m512i)a, (__m512i)index, (__m512i)b);
}
#else
INLINE floats fma16(floats a, floats b, floats c) {
    floats out;
    for (int i = 0; i < 16; i++) out[i] = el_fmaf(a[i], b[i], c[i]);
    return out;
}
INLINE words and_or(words a, words b, words c) { return (a & b) | c; }
INLINE words shorts16(const void *p) {
    words out;
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        memcpy(&h, (const char *)p + 2 * i, 2);
        out[i] = h;
    }
    return out;
}
INLINE floats halves16(const void *p) {
    words h = shorts16(p);
    floats out;
    for (int i = 0; i < 16; i++) out[i] = el_f16_to_f32((uint16_t)h[i]);
    return out;
}
INLINE words select16(words a, words index, words b) {
    words out;
    for (int i = 0; i < 16; i++) out[i] = index[i] < 16 ? a[index[i]] : b[index[i] - 16];
    return out;
}
#endif

INLINE words all(uint32_t v) { return (words){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE floats alike(float v) { return (floats){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE floats whole(words v) { return __builtin_convertvector((ints)v, floats); }

/* Any NaN as the plain one: the additions that round below would carry others into infinity or zero. */
INLINE floats plain_nan(floats v) {
    words nan = (words)(v != v);
    return (floats)(((words)v & ~nan) | (nan & all(0x7fc00000u)));
}

/* Two vectors rounded to bf16 as [lane][even, odd]; halves are rounded away from zero. No odd NaN, please. */
INLINE words round_pairs(floats even, floats odd) {
    words e = (words)even + all(0x8000u), o = (words)odd + all(0x8000u);
    return and_or(o, all(0xffff0000u), e >> 16);
}

/* bf16 of v in the upper half of each lane, to nearest even; NaN stays NaN */
INLINE words round_even(floats v) {
    words u = (words)v, nan = (words)(v != v), r = u + all(0x7fffu) + (u >> 16 & all(1u));
    r = (r & ~nan) | (nan & (u | all(0x400000u)));
    return r & all(0xffff0000u);
}

/* ---- panels to B tiles ------------------------------------------------------------------------------------------- */
/* A B tile is [16 pairs of k][16 rows][2 k] bf16. Here a line of codes, unsigned bytes [16 rows][4 k], becomes two of its
 * lines: code + 256 is a float whose mantissa holds the code, and weight = scale * (code + 256) + offset. */
INLINE void emit(words codes, floats scale, floats offset, uint16_t *out) {
    const words mask = all(0xffu << 15), bias = all(0x43800000u); /* 256.0f */
    floats w0 = fma16((floats)and_or(codes << 15, mask, bias), scale, offset);
    floats w1 = fma16((floats)and_or(codes << 7, mask, bias), scale, offset);
    floats w2 = fma16((floats)and_or(codes >> 1, mask, bias), scale, offset);
    floats w3 = fma16((floats)and_or(codes >> 9, mask, bias), scale, offset);
    store_words(out, round_pairs(w0, w1));
    store_words(out + 32, round_pairs(w2, w3));
}

/* Scale and offset for codes of which `zero` stands for 0, less `low` (minimums; 0 for types without) */
typedef struct {
    floats scale, offset;
} coding;

INLINE coding coding_of(floats scale, float zero, floats low) {
    coding out = {plain_nan(scale), plain_nan(fma16(scale, alike(-256.0f - zero), -low))};
    return out;
}

/* Entry g of [pair][16 rows][2] bytes (formats/panels.md) */
INLINE words pair_entry(const uint8_t *p, int64_t g) { return shorts16(p + g / 2 * 32) >> all(g % 2 * 8) & all(0xffu); }

/* 16 rows of k weights, k tiles [kt0, kt0 + n) of 32 k -> n tiles at b */
static void unpack_q4_0(const uint8_t *group, int64_t k, int64_t kt0, int64_t n, uint16_t *b) {
    for (int64_t kt = kt0; kt < kt0 + n; kt++) {
        const uint8_t *tile = group + kt / 2 * 576, *lines = tile + LINE;
        int is_half = kt % 2 == 0 && kt + 1 == k / TILE_K; /* low nibbles: 16 k, high nibbles: the others */
        coding q = coding_of(halves16(tile + kt % 2 * 32), 8.0f, alike(0.0f));
        for (int j = 0; j < 8; j++, b += 64) {
            words line = load_words(lines + (is_half ? j % 4 : j) * LINE);
            emit(line >> all(is_half ? j / 4 * 4 : kt % 2 * 4) & all(0x0f0f0f0fu), q.scale, q.offset, b);
        }
    }
}

static void unpack_q8_0(const uint8_t *group, int64_t k, int64_t kt0, int64_t n, uint16_t *b) {
    (void)k;
    for (int64_t kt = kt0; kt < kt0 + n; kt++) {
        const uint8_t *tile = group + kt / 2 * 1088, *lines = tile + LINE + kt % 2 * 8 * LINE;
        coding q = coding_of(halves16(tile + kt % 2 * 32), 128.0f, alike(0.0f));
        for (int j = 0; j < 8; j++, b += 64) emit(load_words(lines + j * LINE) ^ all(0x80808080u), q.scale, q.offset, b);
    }
}

/* Q4_K and Q5_K: a k tile is one group of 32 with its own scale and minimum. */
INLINE coding coding_45(const uint8_t *tile, int64_t g) {
    floats d = halves16(tile), dmin = halves16(tile + 32);
    return coding_of(d * whole(pair_entry(tile + 64, g)), 0.0f, dmin * whole(pair_entry(tile + 192, g)));
}

static void unpack_q4_k(const uint8_t *group, int64_t k, int64_t kt0, int64_t n, uint16_t *b) {
    (void)k;
    for (int64_t kt = kt0; kt < kt0 + n; kt++) {
        const uint8_t *tile = group + kt / 8 * 2368, *lines = tile + 320 + kt % 8 / 2 * 512;
        coding q = coding_45(tile, kt % 8);
        for (int j = 0; j < 8; j++, b += 64)
            emit(load_words(lines + j * LINE) >> all(kt % 2 * 4) & all(0x0f0f0f0fu), q.scale, q.offset, b);
    }
}

static void unpack_q5_k(const uint8_t *group, int64_t k, int64_t kt0, int64_t n, uint16_t *b) {
    (void)k;
    for (int64_t kt = kt0; kt < kt0 + n; kt++) {
        const uint8_t *tile = group + kt / 8 * 2880, *part = tile + 320 + kt % 8 / 2 * 640, *lines = part + 2 * LINE;
        coding q = coding_45(tile, kt % 8);
        words high = load_words(part + kt % 2 * LINE); /* bit j: the fifth bit of k = 4j + i */
        for (int j = 0; j < 8; j++, b += 64) {
            words codes = load_words(lines + j * LINE) >> all(kt % 2 * 4) & all(0x0f0f0f0fu);
            emit(codes | (high >> all(j) & all(0x01010101u)) << 4, q.scale, q.offset, b);
        }
    }
}

/* Q6_K: a k tile is two groups of 16 with a signed scale each. */
static void unpack_q6_k(const uint8_t *group, int64_t k, int64_t kt0, int64_t n, uint16_t *b) {
    (void)k;
    for (int64_t kt = kt0; kt < kt0 + n; kt++) {
        const uint8_t *tile = group + kt / 8 * 3392, *part = tile + 320 + kt % 8 / 2 * 768, *lines = part + 4 * LINE;
        for (int half = 0; half < 2; half++) {
            words scale = pair_entry(tile + 64, kt % 8 * 2 + half);
            floats wide = whole(scale ^ all(0x80u)) - alike(128.0f); /* signed */
            coding q = coding_of(halves16(tile) * wide, 32.0f, alike(0.0f));
            words high = load_words(part + (kt % 2 * 2 + half) * LINE); /* bits 2j: the upper two of k = 16 half + 4j + i */
            for (int j = 0; j < 4; j++, b += 64) {
                words codes = load_words(lines + (half * 4 + j) * LINE) >> all(kt % 2 * 4) & all(0x0f0f0f0fu);
                emit(codes | (high >> all(2 * j) & all(0x03030303u)) << 4, q.scale, q.offset, b);
            }
        }
    }
}

/* ---- rows of 16-bit floats to B tiles ------------------------------------------------------------------------------ */
/* [16 rows][16 pairs of k] words to [16 pairs of k][16 rows], by exchanging blocks of 8, 4, 2 and 1 lanes */
INLINE void transpose(words *v) {
    const words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (uint32_t s = 8; s; s /= 2) {
        words upper = (words)((lanes & all(s)) != all(0u));
        words first = (lanes & ~upper) | ((lanes - all(s) + all(16)) & upper);  /* a, and b's lower blocks in its upper ones */
        words second = ((lanes + all(s)) & ~upper) | ((lanes + all(16)) & upper); /* a's upper blocks, and b */
        for (uint32_t i = 0; i < 16; i++) {
            if (i & s) continue;
            words a = v[i], b = v[i + s];
            v[i] = select16(a, first, b);
            v[i + s] = select16(a, second, b);
        }
    }
}

/* 32 16-bit values of row r from k0 on; zero past the row's end and for rows from `row1` on */
INLINE const uint8_t *row_piece(const uint8_t *w, int64_t k, int64_t r, int64_t row1, int64_t k0, uint8_t *spare) {
    if (r < row1 && k0 + TILE_K <= k) return w + (r * k + k0) * 2;
    memset(spare, 0, LINE);
    if (r < row1) memcpy(spare, w + (r * k + k0) * 2, (size_t)(k - k0) * 2);
    return spare;
}

static void unpack_bf16(const uint8_t *w, int64_t k, int64_t r0, int64_t row1, int64_t kt0, int64_t n, uint16_t *b) {
    uint8_t spare[LINE];
    for (int64_t kt = kt0; kt < kt0 + n; kt++, b += TILE_HALVES) {
        words v[ROWS];
        for (int r = 0; r < ROWS; r++) v[r] = load_words(row_piece(w, k, r0 + r, row1, kt * TILE_K, spare));
        transpose(v);
        for (int p = 0; p < 16; p++) store_words(b + p * 32, v[p]);
    }
}

/* Lanes' upper halves, of k = 0 .. 15 and 16 .. 31, side by side in order of k */
INLINE words upper_halves(words first, words second) {
    uint16_t out[32];
    for (int i = 0; i < 16; i++) out[i] = (uint16_t)(first[i] >> 16);
    for (int i = 0; i < 16; i++) out[16 + i] = (uint16_t)(second[i] >> 16);
    return load_words(out);
}

/* f16 = high + low exactly, but where low is below bf16's range (a weight of 2^-14 has low >= 2^-24: it never is) */
static void unpack_f16(const uint8_t *w, int64_t k, int64_t r0, int64_t row1, int64_t kt0, int64_t n, uint16_t *high,
                       uint16_t *low) {
    uint8_t spare[LINE];
    for (int64_t kt = kt0; kt < kt0 + n; kt++, high += TILE_HALVES, low += TILE_HALVES) {
        words h[ROWS], l[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *p = row_piece(w, k, r0 + r, row1, kt * TILE_K, spare);
            floats a = halves16(p), b = halves16(p + 32);
            words ah = round_even(a), bh = round_even(b);
            h[r] = upper_halves(ah, bh);
            l[r] = upper_halves(round_even(a - (floats)ah), round_even(b - (floats)bh));
        }
        transpose(h);
        transpose(l);
        for (int p = 0; p < 16; p++) store_words(high + p * 32, h[p]), store_words(low + p * 32, l[p]);
    }
}

/* ---- columns to A tiles ---------------------------------------------------------------------------------------------- */
static void column(const float *x, int64_t k, uint16_t *high, uint16_t *low) {
    for (int64_t k0 = 0; k0 < k; k0 += TILE_K, high += TILE_HALVES) {
        floats v[2] = {{0}, {0}};
        words h[2];
        memcpy(v, x + k0, (size_t)(k - k0 < TILE_K ? k - k0 : TILE_K) * sizeof(float));
        for (int i = 0; i < 2; i++) h[i] = round_even(v[i]);
        store_words(high, upper_halves(h[0], h[1]));
        if (!low) continue;
        store_words(low, upper_halves(round_even(v[0] - (floats)h[0]), round_even(v[1] - (floats)h[1])));
        low += TILE_HALVES;
    }
}

/* ---- the tile loops ------------------------------------------------------------------------------------------------- */
static void configure_tiles(void) {
    _Alignas(64) el_tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = 16, config.row_bytes[t] = 64;
    TILE_CONFIGURE(&config);
}

/* One square of C: tiles 0 and 1 are the first column tile's two row tiles, 2 and 3 the second's; A is in 4 and 5, B in 6
 * and 7. a[1], b[1] are NULL at an odd edge. */
typedef struct {
    const uint16_t *a[2], *b[2]; /* tiles in order of k */
} operands;

INLINE void multiply_tiles(const operands *o, int64_t n_k) {
    const uint16_t *a0 = o->a[0], *a1 = o->a[1], *b0 = o->b[0], *b1 = o->b[1];
    for (int64_t kt = 0; kt < n_k; kt++) {
        TILE_LOAD(4, a0 + kt * TILE_HALVES, LINE);
        TILE_LOAD(6, b0 + kt * TILE_HALVES, LINE);
        TILE_DPBF16(0, 4, 6);
        if (b1) {
            TILE_LOAD(7, b1 + kt * TILE_HALVES, LINE);
            TILE_DPBF16(1, 4, 7);
        }
        if (!a1) continue;
        TILE_LOAD(5, a1 + kt * TILE_HALVES, LINE);
        TILE_DPBF16(2, 5, 6);
        if (b1) TILE_DPBF16(3, 5, 7);
    }
}

/* Tiles of C: c[1] is NULL without a second row tile, c[2] without a second column tile, c[3] without both. */
INLINE void load_square(float *const *c, int first) {
    if (first) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, c[0], LINE);
    if (c[1]) TILE_LOAD(1, c[1], LINE);
    if (c[2]) TILE_LOAD(2, c[2], LINE);
    if (c[3]) TILE_LOAD(3, c[3], LINE);
}

INLINE void store_square(float *const *c) {
    TILE_STORE(0, c[0], LINE);
    if (c[1]) TILE_STORE(1, c[1], LINE);
    if (c[2]) TILE_STORE(2, c[2], LINE);
    if (c[3]) TILE_STORE(3, c[3], LINE);
}

/* The unpacked part of a row block: B tiles [row tile][n_k] of k tiles kt0 .. kt0 + n_k - 1 */
typedef struct {
    const uint16_t *high, *low; /* low: NULL for weights in one part */
    int64_t n_rows, kt0, n_k;   /* row tiles, k tiles */
} b_block;

/* Adds the block's products for the square at column tile ct and row tile rt. */
INLINE void square(const b_block *b, const el_columns *x, int64_t tile0, int64_t n_tiles, int64_t ct, int64_t rt, float *c) {
    int two_columns = ct + 1 < n_tiles, two_rows = rt + 1 < b->n_rows;
    float *at = c + (ct * b->n_rows + rt) * TILE_FLOATS, *below = at + b->n_rows * TILE_FLOATS;
    float *const tiles[4] = {at, two_rows ? at + TILE_FLOATS : NULL, two_columns ? below : NULL,
                             two_columns && two_rows ? below + TILE_FLOATS : NULL};
    load_square(tiles, b->kt0 == 0);
    int64_t a_at = ((tile0 + ct) * x->k_tiles + b->kt0) * TILE_HALVES, b_at = rt * b->n_k * TILE_HALVES;
    for (int part = 0; part < (b->low ? 3 : 1); part++) { /* high * high, high * low, low * high */
        const uint16_t *from_a = (part == 2 ? x->low : x->high) + a_at, *from_b = (part == 1 ? b->low : b->high) + b_at;
        operands o = {{from_a, two_columns ? from_a + x->k_tiles * TILE_HALVES : NULL},
                      {from_b, two_rows ? from_b + b->n_k * TILE_HALVES : NULL}};
        multiply_tiles(&o, b->n_k);
    }
    store_square(tiles);
}

/* All columns over one unpacked block; 32 columns of A (32 KB) stay in L1 while B streams from L2. */
static void sweep(const b_block *b, const el_columns *x, int64_t tile0, int64_t n_tiles, float *c) {
    for (int64_t ct = 0; ct < n_tiles; ct += 2)
        for (int64_t rt = 0; rt < b->n_rows; rt += 2) square(b, x, tile0, n_tiles, ct, rt, c);
}

/* UNPACK(r0, high, low): the 16 rows from r0 on, k tiles [block.kt0, + block.n_k) */
#define PREFILL(NAME, TWO_PARTS, UNPACK)                                                                              \
    static void NAME(const void *w, int64_t k, int64_t row0, int64_t row1, const el_columns *x, int64_t tile0,        \
                     int64_t n_tiles, float *c, void *scratch) {                                                      \
        uint16_t *high = scratch, *low = TWO_PARTS ? high + EL_PREFILL_ROW_BLOCK * EL_PREFILL_K_BLOCK : NULL;         \
        b_block block = {high, low, (row1 - row0 + ROWS - 1) / ROWS, 0, 0};                                           \
        configure_tiles();                                                                                            \
        for (; block.kt0 < x->k_tiles; block.kt0 += K_TILES) {                                                        \
            block.n_k = x->k_tiles - block.kt0 < K_TILES ? x->k_tiles - block.kt0 : K_TILES;                          \
            for (int64_t rt = 0; rt < block.n_rows; rt++) {                                                           \
                int64_t r0 = row0 + rt * ROWS, at = rt * block.n_k * TILE_HALVES;                                     \
                UNPACK;                                                                                               \
            }                                                                                                         \
            sweep(&block, x, tile0, n_tiles, c);                                                                      \
        }                                                                                                             \
        TILE_RELEASE(); /* so that the system need not save 8 KB at each switch of threads */                         \
    }

#define GROUP(BYTES_PER_GROUP) ((const uint8_t *)w + r0 / ROWS * (BYTES_PER_GROUP))
PREFILL(panels_q4_0, 0, unpack_q4_0(GROUP(k / 64 * 576 + k % 64 / 32 * 320), k, block.kt0, block.n_k, high + at))
PREFILL(panels_q8_0, 0, unpack_q8_0(GROUP(k / 64 * 1088 + k % 64 / 32 * 576), k, block.kt0, block.n_k, high + at))
PREFILL(panels_q4_k, 0, unpack_q4_k(GROUP(k / 256 * 2368), k, block.kt0, block.n_k, high + at))
PREFILL(panels_q5_k, 0, unpack_q5_k(GROUP(k / 256 * 2880), k, block.kt0, block.n_k, high + at))
PREFILL(panels_q6_k, 0, unpack_q6_k(GROUP(k / 256 * 3392), k, block.kt0, block.n_k, high + at))
PREFILL(rows_bf16, 0, unpack_bf16(w, k, r0, row1, block.kt0, block.n_k, high + at))
PREFILL(rows_f16, 1, unpack_f16(w, k, r0, row1, block.kt0, block.n_k, high + at, low + at))

const el_kernels el_kernels_amx = {
    .name = "amx",
#ifdef EL_TILES_EMULATED
    .need = EL_CPU_EMULATED,
#else
    .need = EL_CPU_AMX | EL_CPU_AVX512 | EL_CPU_AVX2 | EL_CPU_FMA | EL_CPU_F16C,
#endif
    .prefill[EL_ROWS] = {[EL_TYPE_BF16] = rows_bf16, [EL_TYPE_F16] = rows_f16},
    .prefill[EL_PANELS] =
        {
            [EL_TYPE_Q4_0] = panels_q4_0,
            [EL_TYPE_Q8_0] = panels_q8_0,
            [EL_TYPE_Q4_K] = panels_q4_k,
            [EL_TYPE_Q5_K] = panels_q5_k,
            [EL_TYPE_Q6_K] = panels_q6_k,
        },
    .prefill_column = column,
};

#ifdef REAL_VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#else

const el_kernels el_kernels_amx = {.name = "amx", .need = 0};

#endif
