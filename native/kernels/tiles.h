/* tiles.h: the six tile instructions that amx.c uses, each a statement.
 *
 * Written as assembly, not through compilers' intrinsics: theirs do not say that loads of tiles and of the configuration
 * read memory, and GCC 12 drops the stores before them (the configuration then holds rubbish, and the first use of a tile
 * is an illegal instruction). "memory" in every statement forces the buffers out. No register list is needed: without the
 * compiler flags for it nothing else touches a tile.
 *
 * Tests compile amx.c with EL_TILES_EMULATED, and the same names come from tests/native/tiles_emulated.h in plain C.
 */
#ifndef EL_TILES_H
#define EL_TILES_H

#include <stdint.h>

/* What LDTILECFG reads (Intel SDM vol. 2, LDTILECFG; palette 1: 8 tiles of at most 16 rows of 64 bytes). */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} el_tile_config;
_Static_assert(sizeof(el_tile_config) == 64, "the configuration is one line of 64 bytes");

#ifdef EL_TILES_EMULATED
#include "tiles_emulated.h"
#else
#define TILE_CONFIGURE(p) __asm__ volatile("ldtilecfg %0" : : "m"(*(const el_tile_config *)(p)) : "memory")
#define TILE_RELEASE() __asm__ volatile("tilerelease" : : : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define TILE_LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"((const void *)(p)), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"((void *)(p)), "r"((int64_t)(stride)) : "memory")
/* c[m][n] += sum over pairs of k of a[m][k] * b[k / 2][n][k % 2] */
#define TILE_DPBF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#endif

#endif
