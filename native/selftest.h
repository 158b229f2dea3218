/* selftest.h: proves a kernel table before it is used. */
#ifndef EL_SELFTEST_H
#define EL_SELFTEST_H

#include "kernels.h"

/* Every function of `table` against the portable one, bit for bit, on small fixed inputs.
 * 1 passed, 0 a result differs or an instruction is illegal, -1 out of memory. */
int el_selftest(const el_kernels *table);

#endif
