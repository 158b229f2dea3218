/* neon.c: 64-bit ARM without anything optional (Cortex-A53 and A72, so the Raspberry Pi 3 and 4). */
#include "neon.h"

#if EL_HAS_NEON

#define NEON_LEVEL BY_PRODUCTS
#include "neon_ops.h"
#include "neon_attention.h"
#include "neon_panels.h"
#include "neon_rows.h"

const el_kernels el_kernels_neon = {
    .name = "neon",
    .need = EL_CPU_NEON,
    .linear[EL_ROWS] =
        {
            [EL_TYPE_F32] = rows_f32,
            [EL_TYPE_F16] = rows_f16,
            [EL_TYPE_BF16] = rows_bf16,
            NEON_BLOCK_ROWS,
        },
    NEON_PANEL_ENTRIES,
    .quantize_q8_32 = quantize_q8_32,
    .quantize_q8_256 = quantize_q8_256,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .gelu = gelu,
    .gated = gated,
    .add = add,
    .softcap = softcap,
    ATTENTION_ENTRIES
    .exp_sum = exp_sum,
};

#else

const el_kernels el_kernels_neon = {.name = "neon", .need = 0};

#endif
