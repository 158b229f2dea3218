/* kernels.h: what a kernel file implements, and the table that the plan runner calls through.
 *
 * One file per instruction set in kernels/. Each ends in one const table; a NULL entry keeps the lower
 * table's function. Float order is part of every format's definition (formats/arithmetic.md), so all
 * tables give the same bits: integer dot products are exact, and each row adds its blocks in ascending k
 * with one fused multiply-add per block. `static` everywhere: an inline function that the linker merges
 * could end up with another file's instruction set.
 */
#ifndef EL_KERNELS_H
#define EL_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "blocks.h"
#include "edgellm.h"

#define EL_PANEL_ROWS 16
#define EL_TILE_COLUMNS 16 /* columns that wide kernels take at once */
#define EL_TYPE_LIMIT 64 /* GGUF type ids below this have a row in the tables */

/* How a linear kernel wants its input. Each block format names one (formats/blocks.toml). */
enum el_act_format {
    EL_ACTF_F32 = 0,    /* the floats themselves */
    EL_ACTF_Q8_32 = 1,  /* int8, one float scale per 32, and the integer sum of each 32 */
    EL_ACTF_Q8_256 = 2  /* int8, one float scale per 256, and the integer sum of each 16 */
};

/* Activations of a pass, quantised once per distinct input. All pointers 64-byte aligned.
 * k_pad is k rounded up to 256, so that a row of q is always a whole number of cache lines. */
typedef struct {
    const float *f;     /* (n_cols, k) the floats */
    int64_t ldf;        /* floats between columns of f */
    const int8_t *q;    /* (n_cols, k_pad) */
    const float *d;     /* (n_cols, k_pad / 32 or / 256) */
    const int32_t *sum; /* (n_cols, k_pad / 32 or / 16) */
    int64_t k;
    int64_t k_pad;
    /* The whole blocks of 16 columns once more, side by side (columns.c); NULL in narrow passes */
    const int8_t *tile_q;    /* (n_cols / 16, k_pad / 64, 16, 64) */
    const float *tile_d;     /* (n_cols / 16, k_pad / 32 or / 256, 16) */
    const int32_t *tile_sum; /* (n_cols / 16, k_pad / 32, 16); q8_256: (n_cols / 16, k_pad / 256, 16, 16) int16 pairs */
} el_act;

/* Fills one block of 16 columns of tile_q, tile_d, tile_sum from its columns' q, d, sum. */
void el_tile_columns(int format, int64_t k_pad, const int8_t *q, const float *d, const int32_t *sum, int8_t *tile_q,
                     float *tile_d, int32_t *tile_sum);

/* y[m * ldy + r - row0] = dot(row r, column m) for r in [row0, row1), m in [0, n_cols).
 * `w` is the whole tensor. But in EL_ROWS row0 is a multiple of 16 and rows beyond row1 are not written. */
typedef void (*el_linear_fn)(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols,
                             float *y, int64_t ldy);
/* The kernel in use for a type and layout, which exists. Sparse panels: columns with a NaN or an infinity come out as NaN, so
 * that none hides behind a tile that is not read. */
void el_linear(int type, int layout, const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,
               int64_t ldy);

/* ---- prefill: many columns at once, allowed to round otherwise than formats/arithmetic.md ------- */
/* A kernel file with matrix units may offer kernels for passes of many columns whose error against the weights as floats
 * is no larger than that of the exact kernels, but whose bits differ. native/prefill.c runs them. */
enum {
    EL_PREFILL_FROM = 32,         /* columns from which on a prefill kernel serves */
    EL_PREFILL_COLUMN_BLOCK = 512, /* columns of one call at most, */
    EL_PREFILL_ROW_BLOCK = 256,   /* rows, */
    EL_PREFILL_K_BLOCK = 512      /* and k that are unpacked at a time: with these C, B and a block of A share 2 MB of L2 */
};

/* The columns of a pass as bf16, in tiles: [ceil(n_cols / 16)][k_tiles][16 columns][32 k], k_tiles = ceil(k / 32). What is
 * past k is zero, columns past n_cols may hold anything. */
typedef struct {
    const uint16_t *high; /* the floats, rounded to nearest even */
    const uint16_t *low;  /* what that lost, rounded again; NULL where no weight type of the step wants it */
    int64_t k_tiles;
} el_columns;

/* c [n_tiles][ceil((row1 - row0) / 16)][16 columns][16 rows] = rows [row0, row1) of w times the 16 n_tiles columns from tile
 * tile0 on. row0 is a multiple of 16; rows past row1 come out as anything. At most EL_PREFILL_ROW_BLOCK rows and
 * EL_PREFILL_COLUMN_BLOCK columns. All buffers are 64-byte aligned; scratch has EL_PREFILL_SCRATCH bytes. */
typedef void (*el_prefill_fn)(const void *w, int64_t k, int64_t row0, int64_t row1, const el_columns *x, int64_t tile0,
                              int64_t n_tiles, float *c, void *scratch);
#define EL_PREFILL_SCRATCH (2 * 2 * (int64_t)EL_PREFILL_ROW_BLOCK * EL_PREFILL_K_BLOCK) /* bf16, for weights in two parts */

typedef struct {
    const char *name;
    uint32_t need;                                /* EL_CPU_* bits this table requires */
    int wide;                                     /* its linear kernels make use of el_act's tiles */
    el_linear_fn linear[EL_N_LAYOUTS][EL_TYPE_LIMIT]; /* [layout][GGUF type id] */
    /* x (k) -> q (k_pad), d, sum; the padding gets zeros */
    void (*quantize_q8_32)(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum);
    void (*quantize_q8_256)(const float *x, int64_t k, int8_t *q, float *d, int32_t *sum);
    /* y = x / sqrt(mean(x^2) + eps) * w */
    void (*rmsnorm)(const float *x, const float *w, float *y, int64_t n, float eps);
    /* y = (x - mean) / sqrt(variance + eps) * w + b */
    void (*layernorm)(const float *x, const float *w, const float *b, float *y, int64_t n, float eps);
    void (*gelu)(const float *x, float *y, int64_t n); /* y = x * Phi(x), exact; gated has the tanh form */
    void (*gated)(const float *gate, const float *up, float *y, int64_t n, int activation);
    void (*add)(const float *a, const float *b, float *y, int64_t n);
    void (*softcap)(const float *x, float *y, int64_t n, float cap); /* y = cap * tanh(x / cap) */
    /* Attention over one page of one KV head, by the page's type (enum el_kv_type). A row is one query head of one token.
     * scores[r * 64 + t] = scale * dot(q[r], K[.][t]) for the 64 tokens; q (n_rows, head_dim). `ahead`: a page (or NULL)
     * that is read next, prefetched on the way. */
    void (*attn_scores[EL_N_KV_TYPES])(const float *q, int64_t n_rows, int64_t head_dim, const void *k_page,
                                       const void *ahead, float scale, float *scores);
    /* acc[r][d] += sum over first <= t < end of p[r * 64 + t] * V[t][d]; acc (n_rows, head_dim) */
    void (*attn_values[EL_N_KV_TYPES])(const float *p, int64_t n_rows, int64_t head_dim, int64_t first, int64_t end,
                                       const void *v_page, const void *ahead, float *acc);
    /* x (head_dim) becomes token t of a page of keys, or of values */
    void (*attn_store_k[EL_N_KV_TYPES])(const float *x, int64_t head_dim, int64_t t, void *k_page);
    void (*attn_store_v[EL_N_KV_TYPES])(const float *x, int64_t head_dim, int64_t t, void *v_page);
    /* the largest of `max` and x[0 .. n); NaN where one of them is */
    float (*largest)(const float *x, int64_t n, float max);
    el_prefill_fn prefill[EL_N_LAYOUTS][EL_TYPE_LIMIT]; /* [layout][GGUF type id]; NULL: the exact kernel serves */
    /* one column, x (k), into its lines of el_columns: 32 values every 16 * 32; low may be NULL */
    void (*prefill_column)(const float *x, int64_t k, uint16_t *high, uint16_t *low);
    /* For packing: the codes of a line (64) that are not `zero`, one after the other at values (64), and which they are; returns
     * how many. NULL: compress.c has its own. */
    int (*squeeze)(const uint8_t *line, int zero, uint64_t *mask, uint8_t *values);
    /* in place: x = exp(x - max); returns nothing, *sum gets the total in lane order */
    void (*exp_sum)(float *x, int64_t n, float max, float *sum);
} el_kernels;

enum el_cpu_bits {
    EL_CPU_AVX2 = 1,
    EL_CPU_FMA = 2,
    EL_CPU_F16C = 4,
    EL_CPU_AVXVNNI = 8,
    EL_CPU_AVX512 = 16, /* F, BW, DQ and VL */
    EL_CPU_AVX512VNNI = 32,
    EL_CPU_VBMI2 = 64,  /* AVX512-VBMI2 and POPCNT */
    EL_CPU_NEON = 1 << 16,
    EL_CPU_DOTPROD = 1 << 17,
    EL_CPU_I8MM = 1 << 18,
    EL_CPU_AMX = 1 << 24,     /* AMX-TILE and AMX-BF16 */
    EL_CPU_EMULATED = 1 << 30 /* builds with emulated tiles have it */
};

extern const el_kernels el_kernels_portable;
extern const el_kernels el_kernels_avx2; /* all NULL where it was not compiled */
extern const el_kernels el_kernels_avxvnni;
extern const el_kernels el_kernels_avx512;
extern const el_kernels el_kernels_vbmi2; /* only compressed matrices */
extern const el_kernels el_kernels_neon;
extern const el_kernels el_kernels_neon_dotprod;
extern const el_kernels el_kernels_neon_i8mm;
extern const el_kernels el_kernels_amx; /* only prefill */
const el_kernels *el_level_table(int level); /* the table of a level as compiled; NULL: no such level */

extern el_kernels el_k; /* the merged table in use */
extern const char *el_linear_level[EL_N_LAYOUTS][EL_TYPE_LIMIT];
extern const char *el_prefill_level[EL_N_LAYOUTS][EL_TYPE_LIMIT];

/* Bytes of one head's K, or V, in a page; -1: not possible. */
int64_t el_kv_half_bytes(int kv_type, int64_t head_dim);

/* The block (at most 256 bytes) that stands for zeros in sparse panels; forms 0 .. el_zero_forms(type) - 1 */
void el_zero_block(int type, int form, uint8_t *out);
int el_zero_forms(int type);

/* Which activation format a type's kernels read; -1: the type is unknown. */
int el_act_format_of(int type);
/* 1: the type's weights do not fit a bf16, so its prefill kernel wants el_columns.low too. */
static inline int el_prefill_two_parts(int type) { return type == EL_TYPE_F16; }

/* ---- half floats, exact, without hardware help ------------------------------------------------ */
static inline float el_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u, bits;
    if (exponent == 31) bits = sign | 0x7f800000u | (mantissa << 13);
    else if (exponent) bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    else { /* zero or subnormal: mantissa * 2^-24 is exact in float32 */
        float f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint16_t el_f32_to_f16(float f) { /* round to nearest even; NaN stays NaN */
    uint32_t x;
    memcpy(&x, &f, 4);
    uint32_t sign = (x >> 16) & 0x8000u, a = x & 0x7fffffffu;
    if (a >= 0x7f800000u) return (uint16_t)(sign | (a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 1023u) : 0x7c00u));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);              /* rounds to infinity */
    if (a < 0x38800000u) {                                               /* subnormal half: let the FPU round */
        float tiny;
        memcpy(&tiny, &a, 4);
        tiny += 0.5f; /* 2^-1 has an ulp of 2^-24, the half's subnormal step */
        uint32_t t;
        memcpy(&t, &tiny, 4);
        return (uint16_t)(sign | (t - 0x3f000000u));
    }
    uint32_t odd = (a >> 13) & 1u;
    return (uint16_t)(sign | ((a + 0xfffu + odd - 0x38000000u) >> 13));
}

static inline float el_bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

#endif
