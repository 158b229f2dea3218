/* selftest.c: a kernel table against the portable one, bit for bit, on small fixed inputs. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include "selftest.h"

#include <stdlib.h>

#ifndef _WIN32
#include <setjmp.h>
#include <signal.h>
#endif

enum { MAX_BUFFERS = 16 };

/* The buffers of one check, all given back together. */
typedef struct {
    const el_memory *memory;
    void *p[MAX_BUFFERS];
    size_t bytes[MAX_BUFFERS];
    int n, failed;
} pool;

static void *take(pool *b, int64_t bytes, size_t align) {
    size_t size = bytes > 0 ? (size_t)bytes : 1;
    void *p = b->n < MAX_BUFFERS ? b->memory->take(size, align) : NULL;
    if (!p) {
        b->failed = 1;
        return NULL;
    }
    memset(p, 0xa5, size); /* a pattern, so that a stray write shows */
    b->p[b->n] = p;
    b->bytes[b->n++] = size;
    return p;
}

static int finish(pool *b, int result) {
    for (int i = 0; i < b->n; i++) b->memory->give(b->p[i], b->bytes[i]);
    return b->failed ? -1 : result;
}

/* ---- inputs ------------------------------------------------------------------------------------------------ */
static uint32_t next(uint64_t *seed) { /* Knuth's MMIX generator, upper half */
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 32);
}

static float uniform(uint64_t *seed) { return (float)(int32_t)next(seed) * 0x1p-31f; }

/* Kinds of input, chosen by the seed, so that rounding ties, extremes and zeros all come by. */
enum { PLAIN, EXTREME, TIES, ZEROS, N_KINDS };

static void floats(float *x, int64_t n, int kind, uint64_t *seed) {
    for (int64_t i = 0; i < n; i++) {
        float u = uniform(seed);
        if (kind == EXTREME) x[i] = i % 32 && u < 0 ? -1.0f : 1.0f;
        else if (kind == TIES) x[i] = i % 32 ? (float)(int32_t)(u * 254.0f) * 0.5f : 127.0f;
        else if (kind == ZEROS) x[i] = i / 32 % 2 ? 0.0f : u * 1e-3f;
        else x[i] = u * 4.0f;
    }
}

static uint16_t half_scale(uint64_t *seed) { return el_f32_to_f16(uniform(seed) * 0.01f); }

static void put_half(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

/* Rows of random blocks whose scales are small finite numbers. */
static void weights(int type, uint8_t *w, int64_t bytes, int kind, uint64_t *seed) {
    static const uint8_t extremes[4] = {0xff, 0x80, 0x7f, 0x00};
    for (int64_t i = 0; i < bytes; i++)
        w[i] = kind == EXTREME ? extremes[i / 7 % 4] : (uint8_t)(next(seed) >> 24);
    int64_t unit = el_row_bytes(type, el_act_format_of(type) == EL_ACTF_Q8_256 ? 256
                                      : el_act_format_of(type) == EL_ACTF_Q8_32 ? 32 : 1);
    for (int64_t i = 0; i + unit <= bytes; i += unit) {
        float f = uniform(seed);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        switch (type) {
        case EL_TYPE_F32: memcpy(w + i, &f, 4); break;
        case EL_TYPE_F16: put_half(w + i, el_f32_to_f16(f)); break;
        case EL_TYPE_BF16: put_half(w + i, (uint16_t)(bits >> 16)); break;
        case EL_TYPE_Q2_K:
            put_half(w + i + offsetof(el_block_q2_k, d), half_scale(seed));
            put_half(w + i + offsetof(el_block_q2_k, dmin), half_scale(seed));
            break;
        case EL_TYPE_Q3_K: put_half(w + i + offsetof(el_block_q3_k, d), half_scale(seed)); break;
        case EL_TYPE_Q6_K: put_half(w + i + offsetof(el_block_q6_k, d), half_scale(seed)); break;
        case EL_TYPE_TQ1_0: put_half(w + i + offsetof(el_block_tq1_0, d), half_scale(seed)); break;
        case EL_TYPE_TQ2_0: put_half(w + i + offsetof(el_block_tq2_0, d), half_scale(seed)); break;
        case EL_TYPE_MXFP4: w[i] = (uint8_t)(next(seed) >> 28 ? 113 + (next(seed) >> 28) : next(seed) >> 31); break;
        case EL_TYPE_Q4_K:
        case EL_TYPE_Q5_K:
        case EL_TYPE_Q4_1:
        case EL_TYPE_Q5_1: put_half(w + i + 2, half_scale(seed)); /* the minimum, then the scale as below */
            /* fall through */
        default: put_half(w + i, half_scale(seed));
        }
    }
}

/* Sets codes of Q4_0 and Q8_0 rows to zero: half of them, none, nearly all, or two of every four. */
static void thin(int type, uint8_t *w, int64_t bytes, int kind, uint64_t *seed) {
    int64_t unit = el_row_bytes(type, 32);
    for (int64_t i = 0; i + unit <= bytes; i += unit)
        for (int c = 0; c < 32; c++) {
            int zero = kind == PLAIN ? (int)(next(seed) >> 31) : kind == TIES ? next(seed) >> 27 != 0 : kind == ZEROS && c % 4 / 2;
            uint8_t *at = w + i + 2 + (type == EL_TYPE_Q4_0 ? c % 16 : c);
            if (!zero) continue;
            if (type == EL_TYPE_Q4_0) *at = (uint8_t)(c < 16 ? (*at & 0xf0) | 8 : (*at & 0x0f) | 0x80);
            else *at = 0;
        }
}

static int same_floats(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) && !(a[i] != a[i] && b[i] != b[i])) return 0;
    return 1;
}

static int same_bytes(const void *a, const void *b, int64_t n) { return memcmp(a, b, (size_t)n) == 0; }

/* ---- the checks ------------------------------------------------------------------------------------------------ */
/* The whole blocks of 16 columns side by side, for the levels that have wide kernels */
static void add_tiles(pool *b, el_act *a, int format, int64_t n_cols) {
    int64_t ld_d = a->k_pad / (format == EL_ACTF_Q8_256 ? 256 : 32);
    int64_t ld_sum = a->k_pad / (format == EL_ACTF_Q8_256 ? 16 : 32);
    int64_t wide = n_cols / EL_TILE_COLUMNS * EL_TILE_COLUMNS;
    int8_t *q = take(b, wide * a->k_pad, 64);
    float *d = take(b, wide * ld_d * 4, 4);
    int32_t *sum = take(b, wide * ld_sum * 4, 4);
    if (b->failed) return;
    for (int64_t m = 0; m < wide; m += EL_TILE_COLUMNS)
        el_tile_columns(format, a->k_pad, a->q + m * a->k_pad, a->d + m * ld_d, a->sum + m * ld_sum, q + m * a->k_pad,
                        d + m * ld_d, sum + m * ld_sum);
    a->tile_q = q;
    a->tile_d = d;
    a->tile_sum = sum;
}

/* (n_cols, k) activations, quantised as the type wants; portable, so that the linear kernel alone is tested */
static el_act activations(pool *b, int format, int64_t k, int64_t n_cols, int kind, uint64_t *seed) {
    int64_t k_pad = (k + 255) / 256 * 256, ld_d = k_pad / (format == EL_ACTF_Q8_256 ? 256 : 32);
    int64_t ld_sum = k_pad / (format == EL_ACTF_Q8_256 ? 16 : 32);
    float *f = take(b, n_cols * k * 4, 4);
    el_act a = {.f = f, .ldf = k, .k = k, .k_pad = k_pad};
    if (b->failed) return a;
    floats(f, n_cols * k, kind, seed);
    if (format == EL_ACTF_F32) return a;
    int8_t *q = take(b, n_cols * k_pad, 64);
    float *d = take(b, n_cols * ld_d * 4, 4);
    int32_t *sum = take(b, n_cols * ld_sum * 4, 4);
    if (b->failed) return a;
    for (int64_t m = 0; m < n_cols; m++)
        (format == EL_ACTF_Q8_32 ? el_kernels_portable.quantize_q8_32 : el_kernels_portable.quantize_q8_256)(
            f + m * k, k, q + m * k_pad, d + m * ld_d, sum + m * ld_sum);
    a.q = q;
    a.d = d;
    a.sum = sum;
    if (n_cols >= EL_TILE_COLUMNS) add_tiles(b, &a, format, n_cols);
    return a;
}

/* A table's squeeze against a plain loop: matrices are packed with it once the table is in use */
static int check_squeeze(const el_kernels *table, uint64_t seed) {
    for (int share = 0; share < 5 && table->squeeze; share++) { /* of the codes in quarters */
        uint8_t line[64], values[64], expected[64];
        uint64_t mask, found = 0;
        int n = 0;
        for (int i = 0; i < 64; i++) {
            line[i] = (int)(next(&seed) >> 30) < share ? (uint8_t)(next(&seed) >> 24) : 128;
            if (line[i] == 128) continue;
            expected[n++] = line[i];
            found |= (uint64_t)1 << i;
        }
        if (table->squeeze(line, 128, &mask, values) != n || mask != found || memcmp(values, expected, (size_t)n)) return 0;
    }
    return 1;
}

/* `rows` rows of w, compressed into a buffer of just their size; NULL: no memory, or one of the steps refused */
static uint8_t *compress_rows(pool *b, int type, const uint8_t *w, int64_t rows, int64_t k, int64_t *bytes) {
    int64_t n_index = el_compressed_index_bytes(type, rows, k);
    uint8_t *index = take(b, n_index, 64);
    if (!index || el_compressed_scan(type, w, index, rows, k, 0, rows) != EL_OK) return NULL;
    *bytes = el_compressed_place(type, index, rows, k);
    uint8_t *panels = *bytes < 0 ? NULL : take(b, *bytes, 64);
    if (panels) memcpy(panels, index, (size_t)n_index);
    return panels && el_pack_compressed(type, w, panels, rows, k, 0, rows) == EL_OK ? panels : NULL;
}

/* A kernel of compressed matrices, against portable on the same rows as panels, and against portable on rubbish */
static int check_compressed(el_linear_fn kernel, int type, int64_t rows, int64_t k, int64_t n_cols, uint64_t seed,
                            const el_memory *memory) {
    pool b = {.memory = memory};
    el_linear_fn reference = el_kernels_portable.linear[EL_PANELS][type];
    int kind = (int)(seed % N_KINDS), ok = 1;
    int64_t row_bytes = el_row_bytes(type, k), ldy = rows + 3, bytes = 0, row0s[2] = {rows / 32 * 16, 0};
    el_act x = activations(&b, el_act_format_of(type), k, n_cols, kind, &seed);
    uint8_t *w = take(&b, rows * row_bytes, 1), *panels = take(&b, el_panel_bytes(type, rows, k), 64);
    float *y = take(&b, n_cols * ldy * 4, 4), *expected = take(&b, n_cols * ldy * 4, 4);
    if (b.failed) return finish(&b, -1);
    weights(type, w, rows * row_bytes, kind, &seed);
    thin(type, w, rows * row_bytes, kind, &seed);
    uint8_t *squeezed = compress_rows(&b, type, w, rows, k, &bytes);
    uint8_t *index = squeezed ? take(&b, el_compressed_index_bytes(type, rows, k), 8) : NULL;
    if (!index || el_compressed_bind(type, squeezed, bytes, rows, k, index) != EL_OK ||
        el_pack_panels(type, w, panels, rows, k, 0, rows) != EL_OK)
        return finish(&b, 0);
    for (int i = 0; i < 2 && ok; i++) {
        reference(panels, row0s[i], rows, &x, n_cols, expected, ldy);
        kernel(index, row0s[i], rows, &x, n_cols, y, ldy);
        ok = same_floats(y, expected, n_cols * ldy);
    }
    for (int64_t i = el_compressed_index_bytes(type, rows, k); i < bytes; i++) /* damaged: all kernels agree, and stay inside */
        squeezed[i] = kind == EXTREME ? 0xff : (uint8_t)(next(&seed) >> 24);
    el_kernels_portable.linear[EL_COMPRESSED][type](index, 0, rows, &x, n_cols, expected, ldy);
    kernel(index, 0, rows, &x, n_cols, y, ldy);
    return finish(&b, ok && same_floats(y, expected, n_cols * ldy));
}

/* Zero tiles here and there: a half of them, or most of them, or nearly none, by the kind of the input */
static void punch(int type, uint8_t *w, int64_t rows, int64_t k, int kind, uint64_t *seed) {
    static const uint32_t share[N_KINDS] = {1u << 31, 1u << 31, 1u << 28, 15u << 28};
    int64_t block_k = el_act_format_of(type) == EL_ACTF_Q8_256 ? 256 : 32, tile_k = block_k == 256 ? 256 : 64;
    int64_t row_bytes = el_row_bytes(type, k);
    for (int64_t g = 0; g < rows; g += EL_PANEL_ROWS)
        for (int64_t k0 = 0; k0 < k; k0 += tile_k) {
            if (next(seed) >= share[kind]) continue;
            int form = (int)(next(seed) >> 16) % el_zero_forms(type);
            for (int64_t r = g; r < g + EL_PANEL_ROWS && r < rows; r++)
                for (int64_t at = k0; at < k0 + tile_k && at < k; at += block_k)
                    el_zero_block(type, form, w + r * row_bytes + el_row_bytes(type, at));
        }
}

/* Sparse panels of w, and the index that kernels read */
static const void *make_sparse(pool *b, int type, const uint8_t *w, int64_t rows, int64_t k) {
    uint8_t *scratch = take(b, el_sparse_index_bytes(type, rows, k), 64), *index = take(b, el_sparse_index_bytes(type, rows, k), 8);
    if (b->failed || el_sparse_scan(type, w, scratch, rows, k, 0, rows) != EL_OK) return NULL;
    int64_t bytes = el_sparse_place(type, scratch, rows, k);
    uint8_t *panels = bytes < 0 ? NULL : take(b, bytes, 64);
    if (!panels) return NULL;
    memcpy(panels, scratch, (size_t)el_sparse_index_bytes(type, rows, k));
    if (el_pack_sparse(type, w, panels, rows, k, 0, rows) != EL_OK) return NULL;
    return el_sparse_bind(type, panels, bytes, rows, k, index) == EL_OK ? index : NULL;
}

int el_check_linear(const el_kernels *table, int layout, int type, int64_t rows, int64_t k, int64_t n_cols,
                    uint64_t seed, const el_memory *memory) {
    el_linear_fn kernel = table->linear[layout][type];
    el_linear_fn reference = el_kernels_portable.linear[layout == EL_SPARSE ? EL_PANELS : layout][type]; /* dense */
    if (!kernel) return 1;
    if (layout == EL_COMPRESSED) return check_compressed(kernel, type, rows, k, n_cols, seed, memory);
    pool b = {.memory = memory};
    int kind = (int)(seed % N_KINDS);
    int64_t row_bytes = el_row_bytes(type, k), ldy = rows + 3;
    int64_t row0 = layout != EL_ROWS ? rows / 32 * 16 : rows / 3; /* not only from the first row on */
    el_act x = activations(&b, el_act_format_of(type), k, n_cols, kind, &seed);
    uint8_t *w = take(&b, rows * row_bytes, 1), *panels = NULL;
    if (layout != EL_ROWS) panels = take(&b, el_panel_bytes(type, rows, k), 64);
    float *y = take(&b, n_cols * ldy * 4, 4), *expected = take(&b, n_cols * ldy * 4, 4);
    if (b.failed) return finish(&b, -1);
    weights(type, w, rows * row_bytes, kind, &seed);
    if (layout == EL_SPARSE) punch(type, w, rows, k, kind, &seed);
    if (panels && el_pack_panels(type, w, panels, rows, k, 0, rows) != EL_OK) return finish(&b, 0);
    const void *data = panels ? (const void *)panels : (const void *)w, *tested = data;
    if (layout == EL_SPARSE && !(tested = make_sparse(&b, type, w, rows, k))) return finish(&b, 0);
    reference(data, row0, rows, &x, n_cols, expected, ldy);
    kernel(tested, row0, rows, &x, n_cols, y, ldy);
    int ok = same_floats(y, expected, n_cols * ldy);
    reference(data, 0, rows, &x, n_cols, expected, ldy);
    kernel(tested, 0, rows, &x, n_cols, y, ldy);
    return finish(&b, ok && same_floats(y, expected, n_cols * ldy));
}

/* ---- prefill ---- */
static uint16_t to_bf16(float f) { /* to nearest even */
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(f != f ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static int same_column(const float *x, int64_t k, const uint16_t *high, const uint16_t *low) {
    for (int64_t i = 0; i < (k + 31) / 32 * 32; i++) {
        uint16_t h = to_bf16(i < k ? x[i] : 0.0f), l = to_bf16((i < k ? x[i] : 0.0f) - el_bf16_to_f32(h));
        int64_t at = i / 32 * 512 + i % 32;
        if (high[at] != h || (low[at] != l && el_bf16_to_f32(l) == el_bf16_to_f32(l))) return 0;
    }
    return 1;
}

/* y, tiles of the kernel, against w (rows, k) times x (n_cols, k): |error| <= `relative` * sum of |products|, and a term for
 * scales and offsets that are rounded to float32 on their own. */
static int within_bound(const float *y, const float *w, const float *x, int64_t row0, int64_t rows, int64_t k,
                        int64_t n_cols, double relative) {
    int64_t n_tiles = (rows - row0 + 15) / 16;
    for (int64_t r = row0; r < rows; r++)
        for (int64_t m = 0; m < n_cols; m++) {
            double exact = 0, size = 0, sum_x = 0, max_w = 0;
            for (int64_t i = 0; i < k; i++) {
                double a = w[r * k + i], b = x[m * k + i];
                exact += a * b;
                size += fabs(a * b);
                sum_x += fabs(b);
                if (fabs(a) > max_w) max_w = fabs(a);
            }
            double got = y[(m / 16 * n_tiles + (r - row0) / 16) * 256 + m % 16 * 16 + (r - row0) % 16];
            if (!(fabs(got - exact) <= relative * size + 0x1p-14 * relative * max_w * sum_x + 1e-30)) return 0;
        }
    return 1;
}

static int floats_of(int type, const uint8_t *w, const uint8_t *panels, int64_t rows, int64_t k, float *out) {
    for (int64_t r = 0; r < rows; r++) {
        if (panels && el_panel_row(type, panels, rows, k, r, out + r * k) != EL_OK) return 0;
        for (int64_t i = 0; !panels && i < k; i++) {
            uint16_t h;
            memcpy(&h, w + (r * k + i) * 2, 2);
            if (type != EL_TYPE_F16 && type != EL_TYPE_BF16) return 0;
            out[r * k + i] = type == EL_TYPE_F16 ? el_f16_to_f32(h) : el_bf16_to_f32(h);
        }
    }
    return 1;
}

int el_check_prefill(const el_kernels *table, int layout, int type, int64_t rows, int64_t k, int64_t n_cols, uint64_t seed,
                     const el_memory *memory) {
    el_prefill_fn kernel = table->prefill[layout][type];
    if (!kernel) return 1;
    if (!table->prefill_column) return 0;
    pool b = {.memory = memory};
    int kind = (int)(seed % N_KINDS);
    int64_t k_tiles = (k + 31) / 32, n_tiles = (n_cols + 15) / 16, row_bytes = el_row_bytes(type, k);
    int64_t row0 = rows / 32 * 16, n_row_tiles = (rows - row0 + 15) / 16;
    float *x = take(&b, n_cols * k * 4, 4), *w32 = take(&b, rows * k * 4, 4);
    uint8_t *w = take(&b, rows * row_bytes, 1), *panels = NULL;
    if (layout == EL_PANELS) panels = take(&b, el_panel_bytes(type, rows, k), 64);
    uint16_t *high = take(&b, n_tiles * k_tiles * 1024, 64), *low = take(&b, n_tiles * k_tiles * 1024, 64);
    float *c = take(&b, n_tiles * n_row_tiles * 1024, 64);
    void *scratch = take(&b, EL_PREFILL_SCRATCH, 64);
    if (b.failed) return finish(&b, -1);
    floats(x, n_cols * k, kind, &seed);
    weights(type, w, rows * row_bytes, kind, &seed);
    if (panels && el_pack_panels(type, w, panels, rows, k, 0, rows) != EL_OK) return finish(&b, 0);
    int ok = floats_of(type, w, panels, rows, k, w32);
    for (int64_t m = 0; ok && m < n_cols; m++) {
        int64_t at = (m / 16 * k_tiles * 16 + m % 16) * 32;
        table->prefill_column(x + m * k, k, high + at, low + at);
        ok = same_column(x + m * k, k, high + at, low + at);
    }
    el_columns columns = {high, low, k_tiles};
    if (!ok) return finish(&b, 0);
    kernel(panels ? (const void *)panels : (const void *)w, k, row0, rows, &columns, 0, n_tiles, c, scratch);
    return finish(&b, within_bound(c, w32, x, row0, rows, k, n_cols, el_prefill_two_parts(type) ? 0x1p-15 : 0x1.1p-8));
}

static int check_quantizer(void (*f)(const float *, int64_t, int8_t *, float *, int32_t *),
                           void (*reference)(const float *, int64_t, int8_t *, float *, int32_t *), const float *x,
                           int64_t n, int64_t block, int64_t per_sum, const el_memory *memory) {
    if (!f) return 1;
    pool b = {.memory = memory};
    int64_t n_pad = (n + 255) / 256 * 256, n_d = n_pad / block * 4, n_sum = n_pad / per_sum * 4;
    int8_t *q[2] = {take(&b, n_pad, 64), take(&b, n_pad, 64)};
    float *d[2] = {take(&b, n_d, 4), take(&b, n_d, 4)};
    int32_t *sum[2] = {take(&b, n_sum, 4), take(&b, n_sum, 4)};
    if (b.failed) return finish(&b, -1);
    reference(x, n, q[0], d[0], sum[0]);
    f(x, n, q[1], d[1], sum[1]);
    return finish(&b, same_bytes(q[0], q[1], n_pad) && same_floats(d[0], d[1], n_d / 4) &&
                          same_bytes(sum[0], sum[1], n_sum));
}

int el_check_vector(const el_kernels *table, int64_t n, uint64_t seed, const el_memory *memory) {
    static const float odd[] = {-104.5f, -100.0f, -88.0f, 88.6f, 89.0f, 200.0f, -1e30f, -0.0f, INFINITY, -INFINITY, NAN};
    enum { N_ODD = (int)(sizeof odd / sizeof *odd) };
    const el_kernels *p = &el_kernels_portable;
    pool b = {.memory = memory};
    int ok = 1, kind = (int)(seed % N_KINDS);
    float *x = take(&b, n * 4, 4), *w = take(&b, n * 4, 4), *y = take(&b, n * 4, 4), *expected = take(&b, n * 4, 4);
    if (b.failed) return finish(&b, -1);
    floats(w, n, PLAIN, &seed);
    for (int pass = 0; pass < 2 && ok == 1; pass++) { /* then again with infinities and NaN among the numbers */
        floats(x, n, kind, &seed);
        for (int i = 0; pass && i < N_ODD; i++) x[(i * 37 + (int)(seed % 64)) % n] = odd[i];
#define COMPARE(CALL, ...)                                                   \
    if (table->CALL) {                                                       \
        p->CALL(x, w, expected, __VA_ARGS__);                                \
        table->CALL(x, w, y, __VA_ARGS__);                                   \
        ok = ok && same_floats(y, expected, n);                              \
    }
        COMPARE(rmsnorm, n, 1e-5f)
        COMPARE(gated, n, EL_ACT_SILU)
        COMPARE(gated, n, EL_ACT_GELU_TANH)
        COMPARE(add, n)
#undef COMPARE
        if (table->layernorm) {
            p->layernorm(x, w, w, expected, n, 1e-12f);
            table->layernorm(x, w, w, y, n, 1e-12f);
            ok = ok && same_floats(y, expected, n);
        }
        if (table->gelu) {
            p->gelu(x, expected, n);
            table->gelu(x, y, n);
            ok = ok && same_floats(y, expected, n);
        }
        if (table->softcap) {
            p->softcap(x, expected, n, 1.5f);
            table->softcap(x, y, n, 1.5f);
            ok = ok && same_floats(y, expected, n);
        }
        if (table->exp_sum) {
            float sums[2];
            memcpy(y, x, (size_t)n * 4);
            memcpy(expected, x, (size_t)n * 4);
            p->exp_sum(expected, n, 1.5f, &sums[0]);
            table->exp_sum(y, n, 1.5f, &sums[1]);
            ok = ok && same_floats(y, expected, n) && same_floats(&sums[0], &sums[1], 1);
        }
        if (table->largest) {
            expected[0] = p->largest(x, n, -1.5f);
            y[0] = table->largest(x, n, -1.5f);
            ok = ok && same_floats(y, expected, 1);
        }
        int a = check_quantizer(table->quantize_q8_32, p->quantize_q8_32, x, n, 32, 32, memory);
        int c = check_quantizer(table->quantize_q8_256, p->quantize_q8_256, x, n, 256, 16, memory);
        ok = a < 0 || c < 0 ? -1 : ok && a && c;
    }
    return finish(&b, ok);
}

int el_check_attention(const el_kernels *table, int kv_type, int64_t n_rows, int64_t head_dim, int64_t first,
                       int64_t end, uint64_t seed, const el_memory *memory) {
    const el_kernels *p = &el_kernels_portable;
    pool b = {.memory = memory};
    int64_t n_scores = n_rows * EL_PAGE_TOKENS, n = n_rows * head_dim, bytes = el_kv_half_bytes(kv_type, head_dim);
    size_t align = kv_type == EL_KV_F32 ? 4 : 2;
    float *q = take(&b, n * 4, 4), *y = take(&b, n_scores * 4, 4), *expected = take(&b, n_scores * 4, 4);
    float *acc[2] = {take(&b, n * 4, 4), take(&b, n * 4, 4)}, *kv = take(&b, 2 * head_dim * 4, 4);
    uint8_t *page[4] = {take(&b, bytes, align), take(&b, bytes, align), take(&b, bytes, align), take(&b, bytes, align)};
    if (b.failed) return finish(&b, -1);
    int ok = 1;
    for (int i = 0; i < 4; i++) memset(page[i], 0, (size_t)bytes);
    for (int64_t t = 0; t < EL_PAGE_TOKENS; t++) { /* the pages are filled as models fill them */
        floats(kv, 2 * head_dim, PLAIN, &seed);
        if (t == 9) memset(kv, 0, (size_t)head_dim * 4);
        p->attn_store_k[kv_type](kv, head_dim, t, page[0]);
        p->attn_store_v[kv_type](kv + head_dim, head_dim, t, page[1]);
        if (table->attn_store_k[kv_type]) table->attn_store_k[kv_type](kv, head_dim, t, page[2]);
        if (table->attn_store_v[kv_type]) table->attn_store_v[kv_type](kv + head_dim, head_dim, t, page[3]);
    }
    if (table->attn_store_k[kv_type]) ok = memcmp(page[0], page[2], (size_t)bytes) == 0;
    if (table->attn_store_v[kv_type]) ok = ok && memcmp(page[1], page[3], (size_t)bytes) == 0;
    floats(q, n, PLAIN, &seed);
    p->attn_scores[kv_type](q, n_rows, head_dim, page[0], NULL, 0.125f, expected);
    if (table->attn_scores[kv_type]) {
        table->attn_scores[kv_type](q, n_rows, head_dim, page[0], seed % 2 ? page[1] : NULL, 0.125f, y);
        ok = ok && same_floats(y, expected, n_scores);
    }
    if (table->attn_values[kv_type]) {
        for (int i = 0; i < 2; i++) memcpy(acc[i], q, (size_t)n * 4);
        p->attn_values[kv_type](expected, n_rows, head_dim, first, end, page[1], NULL, acc[0]);
        table->attn_values[kv_type](expected, n_rows, head_dim, first, end, page[1], seed % 2 ? page[0] : NULL, acc[1]);
        ok = ok && same_floats(acc[0], acc[1], n);
    }
    return finish(&b, ok);
}

/* ---- before a table is used -------------------------------------------------------------------------------------- */
/* Noted, so that they can be freed after a jump out of a check (el_init lets one thread in at a time). */
static void *taken[3 * MAX_BUFFERS];
enum { N_TAKEN = (int)(sizeof taken / sizeof *taken) };

static void *plain_take(size_t bytes, size_t align) {
    (void)align; /* kernels load without alignment */
    for (int i = 0; i < N_TAKEN; i++)
        if (!taken[i]) return taken[i] = malloc(bytes);
    return NULL;
}

static void plain_give(void *p, size_t bytes) {
    (void)bytes;
    for (int i = 0; i < N_TAKEN; i++)
        if (taken[i] == p) taken[i] = NULL;
    free(p);
}

static int run_checks(const el_kernels *table) {
    static const el_memory memory = {plain_take, plain_give};
    static const int64_t widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 35}, rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17};
    int ok = 1;
    for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            int64_t prefill_k = el_row_bytes(type, 1) > 0 ? 77 : el_row_bytes(type, 32) > 0 ? 160 : 512;
            for (int64_t n_cols = 15; n_cols <= 33 && ok == 1; n_cols += 6)
                ok = el_check_prefill(table, layout, type, 37, prefill_k, n_cols, (uint64_t)(type * 8 + n_cols), &memory);
            if (!table->linear[layout][type]) continue;
            if (!el_kernels_portable.linear[layout][type]) return 0;
            int64_t k = el_row_bytes(type, 1) > 0 ? 53 : el_row_bytes(type, 32) > 0 ? 160 : 512;
            for (int i = 0; i < (int)(sizeof widths / sizeof *widths) && ok == 1; i++)
                ok = el_check_linear(table, layout, type, 21, k, widths[i], (uint64_t)(type * 8 + i), &memory);
        }
    if (ok == 1) ok = check_squeeze(table, 7);
    for (int seed = 0; seed < 4 && ok == 1; seed++) ok = el_check_vector(table, 299, (uint64_t)seed, &memory);
    for (int type = 0; type < EL_N_KV_TYPES; type++) {
        if (!table->attn_scores[type] && !table->attn_values[type] && !table->attn_store_k[type] && !table->attn_store_v[type])
            continue; /* a level that leaves this to the one below */
        for (int i = 0; i < (int)(sizeof rows / sizeof *rows) && ok == 1; i++) { /* the suite takes all numbers of rows */
            int64_t n_rows = rows[i], head_dim = n_rows < 3 || n_rows == 17 ? 91 : 27;
            if (el_kv_half_bytes(type, head_dim) < 0) head_dim--; /* a type of even sizes */
            ok = el_check_attention(table, type, n_rows, head_dim, 3, 61, (uint64_t)n_rows, &memory);
        }
    }
    return ok;
}

/* ---- faults, for tests ------------------------------------------------------------------------------------------- */
static void wrong_add(const float *a, const float *b, float *y, int64_t n) {
    el_kernels_portable.add(a, b, y, n);
    y[n - 1] = nextafterf(y[n - 1], INFINITY); /* one unit in the last place of one number */
}

static void illegal_add(const float *a, const float *b, float *y, int64_t n) {
#if defined(__x86_64__) && !defined(_WIN32)
    __asm__ volatile("ud2");
#elif defined(__aarch64__) && !defined(_WIN32)
    __asm__ volatile(".inst 0"); /* UDF #0 */
#endif
    wrong_add(a, b, y, n); /* elsewhere nothing is caught */
}

void el_add_fault(el_kernels *table, int fault) {
    if (fault == EL_FAULT_RESULT) table->add = wrong_add;
    if (fault == EL_FAULT_ILLEGAL) table->add = illegal_add;
}

#ifdef _WIN32
int el_selftest(const el_kernels *table) { return run_checks(table); }
#else
/* A hypervisor or an emulator may announce an instruction that it cannot run: catch that, once, here. Only the
 * thread that tests may jump; another thread's SIGILL goes back to the handler that was there. */
static sigjmp_buf landing;
static struct sigaction before;
static _Thread_local volatile sig_atomic_t testing;

static void on_illegal(int number) {
    if (testing) siglongjmp(landing, 1);
    sigaction(number, &before, NULL); /* the instruction runs again, into the old handler */
}

int el_selftest(const el_kernels *table) {
    struct sigaction guard;
    volatile int result = 0;
    memset(&guard, 0, sizeof guard);
    guard.sa_handler = on_illegal;
    sigemptyset(&guard.sa_mask);
    int guarded = sigaction(SIGILL, &guard, &before) == 0;
    if (sigsetjmp(landing, 1) == 0) {
        testing = 1;
        result = run_checks(table);
    }
    testing = 0;
    for (int i = 0; i < N_TAKEN; i++)
        if (taken[i]) plain_give(taken[i], 0); /* what an illegal instruction left behind */
    if (guarded) sigaction(SIGILL, &before, NULL);
    return result;
}
#endif
