/* dispatch.c: chooses the kernels. The tables are merged from the lowest level up into el_k; a level takes
 * part when the CPU and the OS offer what it needs and its self-test (selftest.c) gives the portable bits.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels.h"
#include "selftest.h"

/* Lowest first. A new instruction set: its table here, its bits in cpu.c, nothing else. */
static const el_kernels *const levels[] = {
    &el_kernels_portable,
#if defined(__aarch64__)
    &el_kernels_neon,
    &el_kernels_neon_dotprod,
    &el_kernels_neon_i8mm,
#else
    &el_kernels_avx2,
    &el_kernels_avxvnni,
    &el_kernels_avx512,
    &el_kernels_vbmi2,
#endif
#if !defined(__aarch64__) || defined(EL_TILES_EMULATED)
    &el_kernels_amx,
#endif
};
#define N_LEVELS ((int)(sizeof levels / sizeof *levels))

el_kernels el_k;
const char *el_linear_level[EL_N_LAYOUTS][EL_TYPE_LIMIT];
const char *el_prefill_level[EL_N_LAYOUTS][EL_TYPE_LIMIT];

static int usable[N_LEVELS];
static int current; /* highest level in use */
static atomic_int state; /* 0 never initialised, 1 a thread is at it, 2 ready */

static void merge(el_kernels *into, const el_kernels *from) {
    into->name = from->name;
    into->need |= from->need;
    into->wide |= from->wide;
    for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            if (from->linear[layout][type]) {
                into->linear[layout][type] = from->linear[layout][type];
                el_linear_level[layout][type] = from->name;
            }
            if (from->prefill[layout][type]) {
                into->prefill[layout][type] = from->prefill[layout][type];
                el_prefill_level[layout][type] = from->name;
            }
        }
#define TAKE(field) \
    if (from->field) into->field = from->field
    TAKE(quantize_q8_32);
    TAKE(quantize_q8_256);
    TAKE(rmsnorm);
    TAKE(layernorm);
    TAKE(gelu);
    TAKE(gated);
    TAKE(add);
    TAKE(softcap);
    TAKE(exp_sum);
    TAKE(largest);
    TAKE(prefill_column);
    TAKE(squeeze);
    for (int i = 0; i < EL_N_KV_TYPES; i++) {
        TAKE(attn_scores[i]);
        TAKE(attn_values[i]);
        TAKE(attn_store_k[i]);
        TAKE(attn_store_v[i]);
    }
#undef TAKE
}

/* Fills el_k with the usable levels up to `top`. */
static void use_levels(int top) {
    memset(&el_k, 0, sizeof el_k);
    memset(el_linear_level, 0, sizeof el_linear_level);
    memset(el_prefill_level, 0, sizeof el_prefill_level);
    for (int i = 0; i <= top; i++) {
        if (usable[i] != 1) continue;
        merge(&el_k, levels[i]);
        current = i;
    }
}

static int find_level(const char *name) {
    for (int i = 0; i < N_LEVELS; i++)
        if (strcmp(levels[i]->name, name) == 0) return i;
    return -1;
}

static int probe(int cap) {
    uint32_t have = el_cpu_features();
    usable[0] = 1;
    for (int i = 1; i < N_LEVELS; i++) {
        usable[i] = 0;
        if (!levels[i]->need || (levels[i]->need & ~have)) continue; /* an empty table needs nothing */
        int passed = el_selftest(levels[i]);
        if (passed < 0) return EL_E_NOMEM;
        usable[i] = passed ? 1 : -1;
    }
    use_levels(cap);
    return EL_OK;
}

int el_init(const char *cap) {
    int top = N_LEVELS - 1;
    if (cap && *cap) top = find_level(cap);
    if (top < 0) return EL_E_ARGUMENT;
    for (;;) {
        int idle = 0;
        if (atomic_load_explicit(&state, memory_order_acquire) == 2) return EL_OK;
        if (!atomic_compare_exchange_strong(&state, &idle, 1)) continue; /* another thread does it: milliseconds */
        int status = probe(top);
        atomic_store_explicit(&state, status == EL_OK ? 2 : 0, memory_order_release);
        return status;
    }
}

const char *el_isa(void) { return el_init(NULL) == EL_OK ? levels[current]->name : NULL; }

int el_n_levels(void) { return N_LEVELS; }

const char *el_level_name(int level) { return level >= 0 && level < N_LEVELS ? levels[level]->name : NULL; }

const el_kernels *el_level_table(int level) { return level >= 0 && level < N_LEVELS ? levels[level] : NULL; }

int el_level_usable(int level) {
    if (level < 0 || level >= N_LEVELS || el_init(NULL) != EL_OK) return 0;
    return usable[level];
}

uint32_t el_level_needs(int level) { return level >= 0 && level < N_LEVELS ? levels[level]->need : 0; }

const char *el_compiler(void) {
#if defined(__clang__)
    return "Clang " __clang_version__;
#elif defined(__GNUC__)
    return "GCC " __VERSION__;
#elif defined(_MSC_VER)
#define EL_TEXT_(x) #x
#define EL_TEXT(x) EL_TEXT_(x)
    return "MSVC " EL_TEXT(_MSC_FULL_VER);
#else
    return "an unknown compiler";
#endif
}

int el_set_isa(const char *name) {
    int level = name ? find_level(name) : -1;
    if (level < 0) return EL_E_ARGUMENT;
    int status = el_init(NULL);
    if (status != EL_OK) return status;
    if (usable[level] != 1) return EL_E_UNSUPPORTED;
    use_levels(level);
    return EL_OK;
}

int el_break_level_test(const char *name, int fault) {
    int level = name ? find_level(name) : -1, status = el_init(NULL);
    if (level < 1 || fault < EL_FAULT_NONE || fault > EL_FAULT_ILLEGAL) return EL_E_ARGUMENT;
    if (status != EL_OK) return status;
    if (!usable[level]) return EL_E_UNSUPPORTED;
    el_kernels table = *levels[level];
    el_add_fault(&table, fault);
    int passed = el_selftest(&table);
    if (passed < 0) return EL_E_NOMEM;
    usable[level] = passed ? 1 : -1;
    use_levels(N_LEVELS - 1);
    return EL_OK;
}

const char *el_kernel_level(int type, int layout) {
    if (type < 0 || type >= EL_TYPE_LIMIT || layout < 0 || layout >= EL_N_LAYOUTS) return NULL;
    return el_init(NULL) == EL_OK ? el_linear_level[layout][type] : NULL;
}

const char *el_prefill_kernel_level(int type, int layout) {
    if (type < 0 || type >= EL_TYPE_LIMIT || layout < 0 || layout >= EL_N_LAYOUTS) return NULL;
    return el_init(NULL) == EL_OK ? el_prefill_level[layout][type] : NULL;
}

/* ---- sizes of the formats ------------------------------------------------------------------------------ */
typedef struct {
    int block, bytes, act, tile, half;
} format;

static const format formats[EL_TYPE_LIMIT] = {
#define ROW(NAME, name, n, bytes, act, tile, half) [EL_TYPE_##NAME] = {n, bytes, act, tile, half},
    EL_TYPE_TABLE(ROW)
#undef ROW
};
_Static_assert((int)EL_ACT_F32 == (int)EL_ACTF_F32 && (int)EL_ACT_Q8_32 == (int)EL_ACTF_Q8_32 &&
                   (int)EL_ACT_Q8_256 == (int)EL_ACTF_Q8_256,
               "blocks.toml and kernels.h number the activations alike");

static const format *format_of(int type) {
    return type >= 0 && type < EL_TYPE_LIMIT && formats[type].block ? &formats[type] : NULL;
}

int el_act_format_of(int type) {
    const format *f = format_of(type);
    return f ? f->act : -1;
}

int64_t el_row_bytes(int type, int64_t k) {
    const format *f = format_of(type);
    if (!f || k < 0 || k % f->block) return -1;
    return k / f->block > INT64_MAX / f->bytes ? -1 : k / f->block * f->bytes;
}

int64_t el_panel_bytes(int type, int64_t rows, int64_t k) {
    const format *f = format_of(type);
    if (!f || !f->tile || rows < 0 || k < 0 || k % f->block || k / 64 >= INT64_MAX / f->tile) return -1;
    int64_t tile_k = f->block > 64 ? f->block : 64; /* a tile covers 64 k, or one block of 256 */
    int64_t group = k / tile_k * f->tile + (k % tile_k ? f->half : 0); /* 16 rows */
    int64_t groups = rows / EL_PANEL_ROWS + (rows % EL_PANEL_ROWS != 0);
    return group && groups > INT64_MAX / group ? -1 : groups * group;
}

int64_t el_kv_half_bytes(int kv_type, int64_t head_dim) {
    if (kv_type < 0 || kv_type >= EL_N_KV_TYPES || head_dim < 1 || head_dim > INT64_MAX / 1024) return -1;
    if (kv_type == EL_KV_Q8_0) return (head_dim + 2) * EL_PAGE_TOKENS; /* int8, and an f16 scale per token */
    if (kv_type == EL_KV_Q4_0) return head_dim % 2 ? -1 : (head_dim / 2 + 2) * EL_PAGE_TOKENS;
    return head_dim * EL_PAGE_TOKENS * (kv_type == EL_KV_F16 ? 2 : 4);
}

/* ---- one linear call ------------------------------------------------------------------------------------------------ */
static void nan_columns(int type, int64_t n_rows, const el_act *x, int64_t n_cols, float *y, int64_t ldy) {
    int64_t n = x->k_pad / (formats[type].act == EL_ACTF_Q8_256 ? 256 : 32);
    for (int64_t m = 0; m < n_cols; m++) {
        float sum = 0.0f; /* d - d is 0 for finite d, NaN otherwise */
        for (int64_t b = 0; b < n; b++) sum += x->d[m * n + b] - x->d[m * n + b];
        for (int64_t r = 0; sum != 0.0f && r < n_rows; r++) y[m * ldy + r] = sum;
    }
}

void el_linear(int type, int layout, const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y,
               int64_t ldy) {
    el_k.linear[layout][type](w, row0, row1, x, n_cols, y, ldy);
    if (layout == EL_SPARSE) nan_columns(type, row1 - row0, x, n_cols, y, ldy);
}

/* ---- the same for tests and tools ------------------------------------------------------------------ */
static void *aligned64(void *p) { return (void *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

typedef struct {
    el_act act;
    void *memory;
} test_columns;

/* What linear.c does for a pass: n_cols columns of x (n_cols, k) as int8, wide blocks too. */
static int quantise_for_test(test_columns *t, int format, const float *x, int64_t k, int64_t n_cols) {
    int64_t k_pad = (k + 255) / 256 * 256;
    t->act = (el_act){.f = x, .ldf = k, .k = k, .k_pad = k_pad};
    if (format == EL_ACTF_F32) return EL_OK;
    int64_t ld_d = format == EL_ACTF_Q8_32 ? k_pad / 32 : k_pad / 256, ld_sum = format == EL_ACTF_Q8_32 ? ld_d : k_pad / 16;
    int64_t wide = n_cols / EL_TILE_COLUMNS * EL_TILE_COLUMNS, column_bytes = k_pad + 4 * ld_d + 4 * ld_sum;
    t->memory = malloc((size_t)((n_cols + wide) * column_bytes + 512));
    if (!t->memory) return EL_E_NOMEM;
    int8_t *q = aligned64(t->memory);
    float *d = aligned64(q + n_cols * k_pad);
    int32_t *sum = aligned64(d + n_cols * ld_d);
    int8_t *tile_q = aligned64(sum + n_cols * ld_sum);
    float *tile_d = aligned64(tile_q + wide * k_pad);
    int32_t *tile_sum = aligned64(tile_d + wide * ld_d);
    for (int64_t m = 0; m < n_cols; m++)
        (format == EL_ACTF_Q8_32 ? el_k.quantize_q8_32 : el_k.quantize_q8_256)(x + m * k, k, q + m * k_pad, d + m * ld_d,
                                                                              sum + m * ld_sum);
    for (int64_t m = 0; m < wide; m += EL_TILE_COLUMNS)
        el_tile_columns(format, k_pad, q + m * k_pad, d + m * ld_d, sum + m * ld_sum, tile_q + m * k_pad, tile_d + m * ld_d,
                        tile_sum + m * ld_sum);
    t->act.q = q, t->act.d = d, t->act.sum = sum;
    if (el_k.wide && wide) t->act.tile_q = tile_q, t->act.tile_d = tile_d, t->act.tile_sum = tile_sum;
    return EL_OK;
}

int el_linear_test(int type, int layout, const void *w, int64_t rows, int64_t k, int64_t row0, int64_t row1,
                   const float *x, int64_t n_cols, float *y, int64_t ldy) {
    int status = el_init(NULL);
    if (status != EL_OK) return status;
    if (layout < 0 || layout >= EL_N_LAYOUTS || !format_of(type)) return EL_E_ARGUMENT;
    if (!el_k.linear[layout][type]) return EL_E_UNSUPPORTED;
    if (!w || !x || !y || k < 1 || n_cols < 0 || row0 < 0 || row1 < row0 || row1 > rows || ldy < row1 - row0 ||
        (layout != EL_ROWS && row0 % EL_PANEL_ROWS) || el_row_bytes(type, k) < 0 ||
        ((layout == EL_PANELS || layout == EL_SPARSE) && el_panel_bytes(type, rows, k) < 0) ||
        (layout == EL_COMPRESSED && el_compressed_index_bytes(type, rows, k) < 0) || k > INT64_MAX / 16 ||
        (n_cols && k + 512 > INT64_MAX / 16 / n_cols))
        return EL_E_ARGUMENT;
    test_columns t = {0};
    status = quantise_for_test(&t, formats[type].act, x, k, n_cols);
    if (status == EL_OK) el_linear(type, layout, w, row0, row1, &t.act, n_cols, y, ldy);
    free(t.memory);
    return status;
}
