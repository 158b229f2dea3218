/* probe.h: loops that measure what the machine can do at most. `edgellm bench --machine` runs them.
 * Each instruction set has its own; a loop runs only where the CPU and the system allow its instructions.
 */
#ifndef EL_PROBE_H
#define EL_PROBE_H

#include <stdint.h>

#include "kernels.h"

/* Multiply-adds as fast as they go: enough independent chains to hide the latency. Returns how many were done. */
typedef struct {
    const char *kind; /* "int8" (products added in integers), "bf16", "f32" */
    const char *name; /* the instructions */
    uint32_t need;      /* EL_CPU_* bits */
    int (*also)(void);  /* more that the machine must have; NULL: nothing */
    int64_t (*run)(int64_t rounds);
} el_peak;

extern const el_peak el_peaks_x86[], el_peaks_arm[]; /* the last entry is {0}; one is empty on every machine */

/* Reads `streams` parts of `part` bytes that follow each other, all at the same pace. `part` is a multiple of 256, p of
 * 64; `ahead` bytes in front of each stream lines are prefetched into cache `level` (1, 2; 0: no prefetch). The result
 * depends on every byte. */
typedef uint64_t (*el_walk_fn)(const char *p, int64_t part, int streams, int64_t ahead, int level);
el_walk_fn el_walk_x86(void); /* NULL: the portable one */
el_walk_fn el_walk_arm(void);

#define EL_WALK_CASES(WALK)                                      \
    switch (streams * 4 + level) {                               \
        case 4: return WALK(p, part, 1, ahead, 0);               \
        case 5: return WALK(p, part, 1, ahead, 1);               \
        case 6: return WALK(p, part, 1, ahead, 2);               \
        case 8: return WALK(p, part, 2, ahead, 0);               \
        case 9: return WALK(p, part, 2, ahead, 1);               \
        case 10: return WALK(p, part, 2, ahead, 2);              \
        case 16: return WALK(p, part, 4, ahead, 0);              \
        case 17: return WALK(p, part, 4, ahead, 1);              \
        default: return WALK(p, part, 4, ahead, 2);              \
    }

#if defined(__GNUC__) || defined(__clang__)
#define EL_WALK_PREFETCH(q, level)                                                              \
    do {                                                                                        \
        for (int el_line = 0; el_line < 4; el_line++) {                                         \
            if ((level) == 1) __builtin_prefetch((q) + 64 * el_line, 0, 3);                     \
            if ((level) == 2) __builtin_prefetch((q) + 64 * el_line, 0, 2);                     \
        }                                                                                       \
    } while (0)
#else
#define EL_WALK_PREFETCH(q, level) ((void)(q), (void)(level))
#endif

#endif
