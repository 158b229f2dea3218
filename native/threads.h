/* threads.h: one pool of helper threads per process, shared by all models. */
#ifndef EL_THREADS_H
#define EL_THREADS_H

#include <stdint.h>

/* Does chunk `chunk` of a phase; `worker` is 0 for the caller of el_pool_run, 1.. for helpers. */
typedef void (*el_chunk_fn)(void *ctx, int64_t chunk, int worker);

enum { EL_MAX_THREADS = 128, EL_MAX_CHUNKS = 1 << 19 };

/* Takes the pool for one pass with n_threads workers (the caller is one). Returns how many there are:
 * fewer when the system refuses threads. Passes of other models wait here. */
int el_pool_begin(int n_threads);
/* Workers that exist, while a pass holds the pool. A helper of an earlier, wider pass may draw a chunk of this one before it
 * sees that it is not wanted: what is kept per worker must have room for all of these. */
int el_pool_workers(void);
/* Runs fn for chunks 0..n_chunks-1 and returns when all are done. *cancel != 0 skips what is left. */
void el_pool_run(el_chunk_fn fn, void *ctx, int64_t n_chunks, const int32_t *cancel);
void el_pool_end(void);

#endif
