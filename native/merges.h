/* merges.h: what the merge loops of spm.c and bpe.c share: hashing of pieces, and the queue of candidate pairs. */
#ifndef EDGELLM_MERGES_H
#define EDGELLM_MERGES_H

#include "edgellm.h"
#include "text_steps.h"

#include <stdlib.h>
#include <string.h>

static inline uint64_t hash_bytes(const uint8_t *p, int64_t n)
{
    uint64_t h = (uint64_t)n * 0x9E3779B97F4A7C15u, v;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&v, p, 8);
        h = (h ^ v) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    if (n > 0) {
        v = 0;
        memcpy(&v, p, (size_t)n);
        h = (h ^ v) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    h *= 0xD6E8FEB86659FD93u;
    return h ^ (h >> 29);
}

/* Bytes of the UTF-8 character that begins with `lead`. */
static inline int64_t char_bytes(uint8_t lead)
{
    return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* ---- the queue of candidate pairs ------------------------------------------------------------------------------
 *
 * Pairs are found from left to right, and most have a score that many others have too. So a new pair usually belongs
 * behind the newest pair of the same score: such pairs form a run, a sorted list, and only the first pair of each run
 * is in the heap. The heap stays small, and ten million equal letters cost ten million steps, not ten million heap
 * operations. A pair that fits behind no run goes into the heap by itself; the order of the queue never depends on the
 * runs. */

#define N_RUNS 1024
#define MIN_SYMBOLS_FOR_RUNS 64

typedef struct {
    uint64_t key; /* rank << 32 | left: the smallest is the next merge */
    int32_t right;
    int32_t len;  /* bytes of both symbols when the pair was found; another sum now means it is stale */
    int32_t next; /* the pair after it in its run, or in the list of free pairs; -1: none */
} pair;

typedef struct {
    uint64_t key;
    int32_t at; /* index of the pair */
} heap_item;

typedef struct {
    pair *pairs;
    int64_t n_pairs, pair_room;
    int32_t free_pair;
    heap_item *heap;
    int64_t n_heap, heap_room;
    int use_runs;
    int64_t steps; /* pushed pairs and moves in the heap: what a text cost */
    int32_t tails[N_RUNS]; /* last pair of each run, -1: the run is empty */
} merge_queue;

static inline void queue_clear(merge_queue *q, int64_t n_symbols)
{
    q->n_heap = q->n_pairs = 0;
    q->free_pair = -1;
    q->use_runs = n_symbols >= MIN_SYMBOLS_FOR_RUNS;
    if (q->use_runs) memset(q->tails, 0xFF, sizeof q->tails);
}

static inline void queue_free(merge_queue *q)
{
    free(q->pairs);
    free(q->heap);
}

static inline void sift_down(heap_item *heap, int64_t n, int64_t at, int64_t *steps)
{
    heap_item moved = heap[at];
    for (int64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && heap[child + 1].key < heap[child].key) child++;
        if (heap[child].key >= moved.key) break;
        heap[at] = heap[child];
        at = child;
        ++*steps;
    }
    heap[at] = moved;
}

static inline void sift_up(heap_item *heap, int64_t at, int64_t *steps)
{
    heap_item moved = heap[at];
    while (at > 0 && heap[(at - 1) / 2].key > moved.key) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
        ++*steps;
    }
    heap[at] = moved;
}

/* `items` with room for one more of `size` bytes; NULL: no memory, `items` is as it was. */
static inline void *grow(void *items, int64_t used, int64_t *room, size_t size)
{
    if (used < *room) return items;
    int64_t wanted = *room < 64 ? 64 : *room + *room / 2;
    void *grown = wanted < INT32_MAX ? realloc(items, (size_t)wanted * size) : NULL;
    if (grown) *room = wanted;
    return grown;
}

static inline int32_t *run_of(merge_queue *q, uint64_t key)
{
    return &q->tails[(uint32_t)(key >> 32) * 0x9E3779B9u >> 22];
}

static inline int push(merge_queue *q, uint64_t key, int32_t right, int32_t len)
{
    int32_t at = q->free_pair;
    q->steps++;
    if (at >= 0) {
        q->free_pair = q->pairs[at].next;
    } else {
        pair *pairs = grow(q->pairs, q->n_pairs, &q->pair_room, sizeof *pairs);
        if (!pairs) return EL_E_NOMEM;
        q->pairs = pairs;
        at = (int32_t)q->n_pairs++;
    }
    q->pairs[at] = (pair){key, right, len, -1};
    if (q->use_runs) {
        int32_t *tail = run_of(q, key);
        if (*tail >= 0 && q->pairs[*tail].key <= key) {
            q->pairs[*tail].next = at;
            *tail = at;
            return EL_OK;
        }
        if (*tail < 0) *tail = at;
    }
    heap_item *heap = grow(q->heap, q->n_heap, &q->heap_room, sizeof *heap);
    if (!heap) return EL_E_NOMEM;
    q->heap = heap;
    q->heap[q->n_heap] = (heap_item){key, at};
    sift_up(q->heap, q->n_heap++, &q->steps);
    return EL_OK;
}

static inline pair pop(merge_queue *q)
{
    int32_t at = q->heap[0].at;
    pair top = q->pairs[at];
    if (top.next >= 0)
        q->heap[0] = (heap_item){q->pairs[top.next].key, top.next};
    else
        q->heap[0] = q->heap[--q->n_heap];
    if (q->n_heap > 0) sift_down(q->heap, q->n_heap, 0, &q->steps);
    if (q->use_runs && *run_of(q, top.key) == at) *run_of(q, top.key) = -1;
    q->pairs[at].next = q->free_pair;
    q->free_pair = at;
    return top;
}

#endif
