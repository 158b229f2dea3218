/* neon_dotprod.c: SDOT, four products of int8 added to each int32 lane. Only what it changes: products of quantised weights. */
#include "neon.h"

/* clang's arm_neon.h before 16 declares the intrinsics only where the whole file is compiled for them */
#if EL_HAS_NEON && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define NEON_LEVEL BY_DOTS
#include "neon_panels.h"
#include "neon_rows.h"

const el_kernels el_kernels_neon_dotprod = {
    .name = "dotprod",
    .need = EL_CPU_NEON | EL_CPU_DOTPROD,
    .linear[EL_ROWS] = {NEON_BLOCK_ROWS},
    NEON_PANEL_ENTRIES,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

const el_kernels el_kernels_neon_dotprod = {.name = "dotprod", .need = 0};

#endif
