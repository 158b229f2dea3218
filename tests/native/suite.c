/* suite.c: every kernel level against the portable one, over odd sizes, with a guard page right behind (or right
 * before) each buffer. Exits with 1 and a message per mismatch; a read past a buffer ends the program.
 *
 * usage: suite [level]      `make native-suite` and `make asan` build and run it
 */
#if !defined(_WIN32)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#endif
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
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
    size_t page = page_size(), body = (bytes + align + page - 1) / page * page;
    char *p = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, body, PROT_READ | PROT_WRITE)) return NULL;
    return p + page + (body - bytes) / align * align;
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

static void linear_suite(const el_kernels *table) {
    static const int rows[] = {1, 3, 15, 16, 17, 33}, block_k[] = {32, 64, 96, 160, 256, 512, 1056};
    static const int float_k[] = {1, 7, 8, 15, 16, 17, 31, 64, 100}, big_k[] = {256, 512, 1280};
    for (int layout = 0; layout < 2; layout++)
        for (int type = 0; type < EL_TYPE_LIMIT; type++) {
            if (!table->linear[layout][type]) continue;
            int act = el_act_format_of(type), n_k = act == EL_ACTF_F32 ? 9 : act == EL_ACTF_Q8_32 ? 7 : 3;
            const int *ks = act == EL_ACTF_F32 ? float_k : act == EL_ACTF_Q8_32 ? block_k : big_k;
            for (int r = 0; r < 6; r++)
                for (int i = 0; i < n_k; i++)
                    for (int n_cols = 1; n_cols <= 9; n_cols++)
                        expect(el_check_linear(table, layout, type, rows[r], ks[i], n_cols,
                                               (uint64_t)(r * 1000 + i * 10 + n_cols), &memory),
                               table->name, "linear", type, layout, rows[r], ks[i], n_cols);
        }
}

static void other_suite(const el_kernels *table) {
    for (int n = 1; n <= 70; n++)
        for (uint64_t seed = 0; seed < 4; seed++)
            expect(el_check_vector(table, n, seed, &memory), table->name, "vector", 0, 0, n, (long)seed, 0);
    for (int n = 256; n <= 800; n += 87)
        expect(el_check_vector(table, n, (uint64_t)n, &memory), table->name, "vector", 0, 0, n, n, 0);
    static const int dims[] = {1, 2, 7, 8, 9, 16, 24, 31, 48, 64, 80, 128};
    for (int type = 0; type < 2; type++)
        for (int n_group = 1; n_group <= 9; n_group++)
            for (int i = 0; i < 12; i++) {
                int first = (n_group * 7 + i) % 64, end = first + (i * 11) % (65 - first);
                expect(el_check_attention(table, type, n_group, dims[i], first, end, (uint64_t)i, &memory), table->name,
                       "attention", type, 0, n_group, dims[i], first);
            }
}

int main(int argc, char **argv) {
    static const el_kernels *const tables[] = {&el_kernels_portable, &el_kernels_avx2};
    int status = el_init(NULL);
    if (status != EL_OK) {
        fprintf(stderr, "el_init: status %d\n", status);
        return 1;
    }
    for (int i = 0; i < el_n_levels(); i++) {
        if (argc > 1 && strcmp(argv[1], el_level_name(i))) continue;
        int usable = el_level_usable(i);
        if (usable == -1) expect(0, el_level_name(i), "self-test", 0, 0, 0, 0, 0);
        if (usable == 0) continue; /* a level that failed runs too: its messages tell where */
        linear_suite(tables[i]);
        other_suite(tables[i]);
        printf("%s: %d checks so far, %d failures\n", el_level_name(i), checks, failures);
    }
    if (argc > 1 && !checks) fprintf(stderr, "no usable level is called %s\n", argv[1]);
    return failures || !checks;
}
