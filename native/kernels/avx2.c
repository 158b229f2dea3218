/* avx2.c */
#include "arith.h"
const el_kernels el_kernels_avx2 = {.name = "avx2", .need = 0};
