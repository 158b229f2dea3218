/* selftest.h: proves a kernel table before it is used. tests/native/suite.c runs the same checks over many
 * sizes, with memory that faults one byte past each buffer.
 */
#ifndef EL_SELFTEST_H
#define EL_SELFTEST_H

#include "kernels.h"

/* Where the checks take their buffers from: at least `align` aligned, NULL on failure. */
typedef struct {
    void *(*take)(size_t bytes, size_t align);
    void (*give)(void *p, size_t bytes);
} el_memory;

/* Each check compares `table` with the portable table, bit for bit, on inputs made from `seed` (NaN equals NaN).
 * 1 equal, or the table has no such function; 0 different; -1 out of memory. */
int el_check_linear(const el_kernels *table, int layout, int type, int64_t rows, int64_t k, int64_t n_cols,
                    uint64_t seed, const el_memory *memory);
int el_check_vector(const el_kernels *table, int64_t n, uint64_t seed, const el_memory *memory);
int el_check_attention(const el_kernels *table, int kv_type, int64_t n_rows, int64_t head_dim, int64_t first,
                       int64_t end, uint64_t seed, const el_memory *memory);

/* Puts a fault (enum el_fault) into one function of a table, so that tests see it refused. */
void el_add_fault(el_kernels *table, int fault);

/* A prefill kernel against the weights as floats in double, each element within the bound that bf16 operands give
 * (formats/arithmetic.md); and its columns against their definition, bit for bit. */
int el_check_prefill(const el_kernels *table, int layout, int type, int64_t rows, int64_t k, int64_t n_cols, uint64_t seed,
                     const el_memory *memory);

/* Every function of `table` on a few small sizes, guarded against illegal instructions where the system allows it.
 * 1 passed, 0 a result differs or an instruction is illegal, -1 out of memory. */
int el_selftest(const el_kernels *table);

#endif
