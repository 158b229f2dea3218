/* suite.c: every kernel level against the portable one, over odd sizes, with a guard page right behind (or right
 * before) each buffer. Exits with 1 and a message per mismatch; a read past a buffer ends the program.
 *
 * usage: suite [--quick] [--expect LEVEL] [--liar] [LEVEL ...]      built and run by `make native-suite asan suite-x86 suite-arm64`
 *   --quick    fewer sizes: for emulators and sanitizers
 *   --expect   LEVEL must be the highest one in use; without it, what the machine has is what is tested
 *   --liar     levels that the CPU does not have must be refused when they are tried all the same (only emulators refuse
 *              for sure: a machine may run what its hypervisor does not announce)
 *   LEVEL ...  only these levels
 */
#if !defined(_WIN32)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#endif
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "kernels/groups.h"
#include "selftest.h"

static int failures, checks;

#if defined(_WIN32)
static void *guarded_take(size_t bytes, size_t align) {
    (void)align;
    return malloc(bytes);
}
static void guarded_give(void *p, size_t bytes) {
    (void)bytes;
    free(p);
}
#else
static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* The buffer ends at the last page's end (as far as its alignment allows); the pages around it fault. */
static void *guarded_take(size_t bytes, size_t align) {
    size_t page = page_size(), body = (bytes + page - 1) / page * page;
    char *p = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, body, PROT_READ | PROT_WRITE)) return NULL;
    return p + page + (body - bytes) / align * align; /* a page is a multiple of every alignment */
}

static void guarded_give(void *p, size_t bytes) {
    size_t page = page_size(), end = ((size_t)p + bytes + page - 1) / page * page;
    size_t start = (size_t)p / page * page;
    munmap((void *)(start - page), end - start + 2 * page);
}
#endif

static const el_memory memory = {guarded_take, guarded_give};

static void expect(int result, const char *level, const char *what, int type, int layout, long a, long b, long c) {
    checks++;
    if (result == 1) return;
    failures++;
    fprintf(stderr, "%s: %s differs from portable (type %d, layout %d, sizes %ld %ld %ld)%s\n", level, what, type,
            layout, a, b, c, result < 0 ? ": out of memory" : "");
}

/* ---- sizes: no multiples of 16 rows, halves of tiles, tiles of columns that are not full ----------------------------- */
typedef struct {
    int n, v[24];
} sizes;
static const sizes row_counts = {7, {1, 3, 15, 16, 17, 33, 50}}, few_row_counts = {3, {1, 17, 33}};
static const sizes widths = {12, {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 37}};
static const sizes few_widths = {11, {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 35}};
static const sizes float_k = {9, {1, 7, 8, 15, 16, 17, 31, 64, 100}}, few_float_k = {4, {1, 15, 33, 100}};
static const sizes k_32 = {8, {32, 64, 96, 160, 256, 288, 512, 1056}}, few_k_32 = {4, {32, 64, 160, 288}};
static const sizes k_256 = {3, {256, 512, 1280}}, few_k_256 = {2, {256, 768}};
static const sizes head_dims = {18, {1, 2, 7, 8, 9, 14, 16, 24, 31, 38, 48, 64, 80, 96, 124, 128, 144, 200}};
static const sizes few_head_dims = {7, {1, 9, 31, 38, 64, 90, 144}};
static const sizes query_rows = {17, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}};
static const sizes few_query_rows = {7, {1, 2, 3, 4, 5, 9, 17}};

static int quick;
#define SIZES(NAME) (quick ? &few_##NAME : &NAME)

static const sizes *depths(int type) {
    int act = el_act_format_of(type);
    if (act == EL_ACTF_F32) return SIZES(float_k);
    return act == EL_ACTF_Q8_32 ? SIZES(k_32) : SIZES(k_256);
}

static void linear_suite(const el_kernels *table) {
    const sizes *rows = SIZES(row_counts), *columns = SIZES(widths);
    for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            if (!table->linear[layout][type]) continue;
            const sizes *k = depths(type);
            for (int r = 0; r < rows->n; r++)
                for (int i = 0; i < k->n; i++)
                    for (int c = 0; c < columns->n; c++)
                        expect(el_check_linear(table, layout, type, rows->v[r], k->v[i], columns->v[c],
                                               (uint64_t)(r * 1000 + i * 10 + c), &memory),
                               table->name, "linear", type, layout, rows->v[r], k->v[i], columns->v[c]);
        }
}

static void prefill_suite(const el_kernels *table) {
    static const int rows[] = {1, 16, 33, 70, 130}, block_k[] = {32, 96, 512, 544, 1056}, float_k[] = {1, 31, 64, 100, 515};
    static const int columns[] = {1, 16, 33, 47}, big_k[] = {256, 512, 768, 1024, 1280};
    for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            if (!table->prefill[layout][type]) continue;
            int act = el_act_format_of(type);
            const int *ks = act == EL_ACTF_F32 ? float_k : act == EL_ACTF_Q8_32 ? block_k : big_k;
            for (int r = quick; r < 5; r += quick ? 2 : 1)
                for (int i = quick; i < 5; i++) {
                    int n_cols = columns[(r + i) % 4];
                    expect(el_check_prefill(table, layout, type, rows[r], ks[i], n_cols, (uint64_t)(r * 7 + i), &memory),
                           table->name, "prefill", type, layout, rows[r], ks[i], n_cols);
                }
        }
}

static void other_suite(const el_kernels *table) {
    for (int n = 1; n <= 70; n += quick ? 3 : 1)
        for (uint64_t seed = 0; seed < 4; seed++)
            expect(el_check_vector(table, n, seed, &memory), table->name, "vector", 0, 0, n, (long)seed, 0);
    for (int n = 256; n <= 800; n += 87)
        expect(el_check_vector(table, n, (uint64_t)n, &memory), table->name, "vector", 0, 0, n, n, 0);
    const sizes *dims = SIZES(head_dims), *rows = SIZES(query_rows);
    for (int type = 0; type < EL_N_KV_TYPES; type++)
        for (int r = 0; r < rows->n; r++)
            for (int i = 0; i < dims->n; i++) {
                if (el_kv_half_bytes(type, dims->v[i]) < 0) continue; /* q4_0: even sizes only */
                int n = rows->v[r], first = (n * 7 + i) % 64, end = first + (i * 11) % (65 - first);
                expect(el_check_attention(table, type, n, dims->v[i], first, end, (uint64_t)(i + n), &memory),
                       table->name, "attention", type, 0, n, dims->v[i], first);
            }
}

/* ---- the portable table against double precision ---------------------------------------------------------------- */
static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* exp of every 1,000th (10,007th) float from -110 to 90: within 1.5 units in the last place, and one subnormal step */
static void exp_suite(const el_kernels *table) {
    double worst = 0;
    for (int sign = 0; sign < 2; sign++)
        for (uint32_t u = bits_of(1e-9f); u < bits_of(sign ? 110.0f : 88.72f); u += quick ? 10007 : 1000) {
            float x, sum;
            memcpy(&x, &u, 4);
            if (sign) x = -x;
            double exact = exp((double)x), unit = ldexp(1.0, exact < 0x1p-126 ? -149 : ilogb(exact) - 23);
            table->exp_sum(&x, 1, 0.0f, &sum);
            double error = fabs((double)x - exact) / unit;
            if (error > worst) worst = error;
        }
    expect(worst <= 1.5, table->name, "exp against double", 0, 0, (long)(worst * 100), 0, 0);
    float ends[6] = {-INFINITY, -1000.0f, INFINITY, 100.0f, NAN, 0.0f}, sum;
    table->exp_sum(ends, 6, 0.0f, &sum);
    expect(ends[0] == 0 && ends[1] == 0 && ends[2] == INFINITY && ends[3] == INFINITY && ends[4] != ends[4] && ends[5] == 1,
           table->name, "exp at its ends", 0, 0, 0, 0, 0);
}

static int near(double got, double exact, double scale) { return fabs(got - exact) <= 4e-6 * scale; }

static void op_suite(const el_kernels *table) {
    enum { N = 77 };
    float x[N], w[N], silu[N], gelu[N], norm[N], added[N], exact[N], layer[N];
    double ss = 0, mean = 0, variance = 0;
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i - 38) * 0.37f;
        w[i] = 1.0f + (float)(i % 5) * 0.25f;
        ss += (double)x[i] * x[i];
        mean += (double)w[i] / N; /* x has none */
    }
    table->gated(x, w, silu, N, EL_ACT_SILU);
    table->gated(x, w, gelu, N, EL_ACT_GELU_TANH);
    table->rmsnorm(x, w, norm, N, 1e-5f);
    table->add(x, w, added, N);
    table->gelu(x, exact, N);
    table->layernorm(w, x, w, layer, N, 1e-12f);
    for (int i = 0; i < N; i++) variance += (w[i] - mean) * (w[i] - mean) / N;
    int ok = 1;
    for (int i = 0; i < N; i++) {
        double v = x[i], u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
        ok &= near(silu[i], v / (1 + exp(-v)) * w[i], fabs(v) + 1e-9);
        ok &= near(gelu[i], 0.5 * v * (1 + tanh(u)) * w[i], fabs(v) + 1e-9);
        ok &= near(norm[i], v / sqrt(ss / N + 1e-5) * w[i], 4);
        ok &= added[i] == x[i] + w[i];
        ok &= fabs(exact[i] - 0.5 * v * erfc(-v * 0.7071067811865476)) <= 4e-7 * fabs(v) + 1e-12;
        ok &= near(layer[i], (w[i] - mean) / sqrt(variance + 1e-12) * v + w[i], 14);
    }
    expect(ok, table->name, "activation, norm or sum against double", 0, 0, N, 0, 0);
}

/* Scores and values of pages that the table itself filled; the error of q8_0 is that of rounding to 1 / 254. */
static void attention_suite(const el_kernels *table) {
    enum { G = 3, D = 20, T = EL_PAGE_TOKENS };
    static float q[G * D], k[D * T], v[T * D], s[G * T], acc[G * D];
    static uint64_t k_page[D * T], v_page[D * T]; /* more than any type needs */
    static const double unit[EL_N_KV_TYPES] = {4e-6, 6e-4, 5e-3, 0.08};
    for (int i = 0; i < G * D; i++) q[i] = sinf((float)i);
    for (int i = 0; i < D * T; i++) k[i] = cosf((float)i), v[i] = sinf((float)i * 0.7f);
    for (int type = 0; type < EL_N_KV_TYPES; type++) {
        int ok = 1, first = 5, end = 60;
        for (int t = 0; t < T; t++) {
            table->attn_store_k[type](k + t * D, D, t, k_page);
            table->attn_store_v[type](v + t * D, D, t, v_page);
        }
        memset(acc, 0, sizeof acc);
        table->attn_scores[type](q, G, D, k_page, NULL, 0.25f, s);
        table->attn_values[type](s, G, D, first, end, v_page, NULL, acc);
        for (int g = 0; g < G; g++) {
            for (int t = 0; t < T; t++) {
                double dot = 0;
                for (int d = 0; d < D; d++) dot += (double)q[g * D + d] * k[t * D + d];
                ok &= fabs(s[g * T + t] - dot * 0.25) <= unit[type] * 5;
            }
            for (int d = 0; d < D; d++) {
                double dot = 0;
                for (int t = first; t < end; t++) dot += (double)s[g * T + t] * v[t * D + d];
                ok &= fabs(acc[g * D + d] - dot) <= unit[type] * 60;
            }
        }
        expect(ok, table->name, "attention against double", type, 0, G, D, T);
    }
}

/* ---- the self-test itself: wrong tables and illegal instructions must be found --------------------------------------- */
static void wrong_q8_0(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy) {
    el_kernels_portable.linear[EL_ROWS][EL_TYPE_Q8_0](w, row0, row1, x, n_cols, y, ldy);
    if (n_cols == 3) y[0] = nextafterf(y[0], 1e9f);
}

/* Takes the stored tiles for the first ones along k; the half one stays, or it would be read as a whole one. */
static void wrong_sparse(const void *w, int64_t row0, int64_t row1, const el_act *x, int64_t n_cols, float *y, int64_t ldy) {
    uint8_t index[1 << 14];
    int64_t n_tiles = (x->k + 63) / 64;
    size_t record = (size_t)el_record_bytes(n_tiles), bytes = record * (size_t)((row1 + 15) / 16);
    if (bytes > sizeof index) return;
    memcpy(index, w, bytes);
    for (uint8_t *r = index; r < index + bytes; r += record) {
        uint64_t half = x->k % 64 && el_tile_live(r, n_tiles - 1);
        uint64_t first = (((uint64_t)1 << (el_load_record(r).n - half)) - 1) | half << (n_tiles - 1);
        memcpy(r + sizeof(el_record), &first, 8);
    }
    el_kernels_portable.linear[EL_SPARSE][EL_TYPE_Q8_0](index, row0, row1, x, n_cols, y, ldy);
}

static void selftest_suite(void) {
    el_kernels wrong = {.name = "wrong", .need = 1};
    expect(el_selftest(&wrong), "self-test", "an empty table", 0, 0, 0, 0, 0);
    wrong.linear[EL_ROWS][EL_TYPE_Q8_0] = wrong_q8_0;
    expect(!el_selftest(&wrong), "self-test", "one wrong bit that was let pass", 0, 0, 0, 0, 0);
    wrong.linear[EL_ROWS][EL_TYPE_Q8_0] = NULL;
    wrong.linear[EL_SPARSE][EL_TYPE_Q8_0] = wrong_sparse;
    expect(!el_selftest(&wrong), "self-test", "tiles in the wrong place that were let pass", 0, 0, 0, 0, 0);
    wrong.linear[EL_SPARSE][EL_TYPE_Q8_0] = NULL;
    for (int fault = EL_FAULT_RESULT; fault <= EL_FAULT_ILLEGAL; fault++) {
        el_add_fault(&wrong, fault);
        expect(!el_selftest(&wrong), "self-test", "a fault that was let pass", fault, 0, 0, 0, 0);
        expect(!el_selftest(&wrong), "self-test", "the same fault again", fault, 0, 0, 0, 0);
    }
}

/* A usable level breaks, is refused, and its work goes to the levels below; then it comes back. */
static void refusal_suite(void) {
    for (int i = 1; i < el_n_levels(); i++) {
        const char *name = el_level_name(i);
        if (el_level_usable(i) != 1) continue;
        for (int fault = EL_FAULT_RESULT; fault <= EL_FAULT_ILLEGAL; fault++) {
            int ok = el_break_level_test(name, fault) == EL_OK && el_level_usable(i) == -1 &&
                     el_set_isa(name) == EL_E_UNSUPPORTED && strcmp(el_isa(), name) != 0;
            for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
                for (int type = 0; type < EL_TYPE_LIMIT; type++) {
                    const char *level = el_kernel_level(type, layout);
                    ok = ok && !(level && strcmp(level, name) == 0);
                }
            expect(ok, name, "refusing a broken level", fault, 0, 0, 0, 0);
            ok = el_break_level_test(name, EL_FAULT_NONE) == EL_OK && el_level_usable(i) == 1;
            expect(ok, name, "taking a mended level back", fault, 0, 0, 0, 0);
        }
    }
}

/* A CPU that announces more than it has: its illegal instructions must end in a refusal, not in a dead process. */
static void liar_suite(void) {
    int n = 0;
    for (int i = 1; i < el_n_levels(); i++) {
        if (el_level_usable(i) || !el_level_table(i)->need) continue;
        expect(!el_selftest(el_level_table(i)), el_level_name(i), "instructions this CPU does not have", 0, 0, 0, 0, 0);
        printf("%-10s refused: the CPU lacks it\n", el_level_name(i));
        n++;
    }
    expect(n > 0, "suite", "no level is missing here: --liar", 0, 0, 0, 0, 0);
}

/* The level that must be in use is, and linear kernels come from it. */
static void expected_level(const char *name) {
    int n = 0;
    for (int layout = 0; layout < EL_N_LAYOUTS; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            const char *level = el_kernel_level(type, layout);
            n += level && strcmp(level, name) == 0;
        }
    printf("in use: %s, %d of its linear kernels\n", el_isa(), n);
    if (strcmp(el_isa(), name) == 0 && n) return;
    failures++;
    fprintf(stderr, "expected %s to be the level in use, it is %s\n", name, el_isa());
}

static void level_suite(int level) {
    int before = checks;
    linear_suite(el_level_table(level));
    other_suite(el_level_table(level));
    prefill_suite(el_level_table(level));
    if (el_level_usable(level) == 1 && el_set_isa(el_level_name(level)) == EL_OK) { /* merged, as models see it */
        exp_suite(&el_k);
        op_suite(&el_k);
        attention_suite(&el_k);
    }
    printf("%-10s %d checks\n", el_level_name(level), checks - before);
}

static int named(const char *name, int n, char **names) {
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return 1;
    return n == 0;
}

int main(int argc, char **argv) {
    const char *expected = NULL;
    int liar = 0, n_levels = 0, at = 1, status = el_init(NULL);
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "--quick") == 0) quick = 1;
        else if (strcmp(argv[at], "--liar") == 0) liar = 1;
        else if (strcmp(argv[at], "--expect") == 0 && at + 1 < argc) expected = argv[++at];
        else return fprintf(stderr, "usage: suite [--quick] [--expect LEVEL] [--liar] [LEVEL ...]\n"), 2;
    }
    if (status != EL_OK) return fprintf(stderr, "el_init: status %d\n", status), 1;
    if (expected) expected_level(expected);
    for (int i = 0; i < el_n_levels(); i++) {
        int usable = el_level_usable(i);
        if (!named(el_level_name(i), argc - at, argv + at)) continue;
        if (usable == -1) expect(0, el_level_name(i), "self-test", 0, 0, 0, 0, 0);
        if (usable == 0) continue; /* a level that failed runs too: its messages tell where */
        level_suite(i);
        n_levels++;
    }
    selftest_suite();
    refusal_suite();
    if (liar) liar_suite();
    printf("kernel suite: %d checks, %d failures\n", checks, failures);
    if (!n_levels) fprintf(stderr, "no usable level has such a name\n");
    return failures || !n_levels;
}
