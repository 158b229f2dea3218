/* arena.c: memory for weights, buffers and scratch, as the rest of the library asks for it. */
#include "edgellm.h"
#include "os.h"

void *el_arena_alloc(int64_t bytes) { return el_os_alloc(bytes); }
void el_arena_free(void *p, int64_t bytes) { el_os_free(p, bytes); }
