/* neon_i8mm.c: SMMLA, 2 rows of 8 k times 2 columns in one instruction: panels, from two columns on (one column: SDOT). */
#include "neon.h"

/* clang's arm_neon.h before 16 declares the intrinsics only where the whole file is compiled for them */
#if EL_HAS_NEON && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod+i8mm"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif

#define NEON_LEVEL BY_MATRICES
#include "neon_panels.h"

const el_kernels el_kernels_neon_i8mm = {
    .name = "i8mm",
    .need = EL_CPU_NEON | EL_CPU_DOTPROD | EL_CPU_I8MM,
    NEON_PANEL_ENTRIES,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const el_kernels el_kernels_neon_i8mm = {.name = "i8mm", .need = 0};

#endif
