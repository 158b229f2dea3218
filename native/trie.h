/* trie.h: strings in a tree of bytes, for the longest match at a place (wordpiece.c, charsmap.c) and for all matches
 * that end at a place (unigram.c). The children of a node are neighbours in ascending order of their bytes. */
#ifndef EDGELLM_TRIE_H
#define EDGELLM_TRIE_H

#include "edgellm.h"
#include "text_steps.h"

typedef struct {
    int32_t *first;  /* (n_nodes + 1) the children of node i are first[i] .. first[i + 1] - 1 */
    uint8_t *label;  /* (n_nodes) the byte that leads to a node */
    int32_t *ends;   /* (n_nodes) the string that ends here, or -1 */
    int64_t n_nodes; /* node 0 is the root */
    int32_t from_root[256]; /* its child by each byte, -1: none */
} el_trie;

/* The strings text[offsets[order[i]] .. offsets[order[i] + 1]), i < n, ascending, none empty, none twice; `ends` says i.
 * order NULL: 0, 1, ... n may be 0. n_strings bounds what order may name. EL_E_ARGUMENT, EL_E_NOMEM: nothing was kept. */
int trie_build(el_trie *t, const uint8_t *text, const int64_t *offsets, int64_t n_strings, const int32_t *order,
               int64_t n);
void trie_free(el_trie *t);

/* The child of `node` by a byte, or -1. */
static inline int32_t trie_step(const el_trie *t, int32_t node, uint8_t byte)
{
    if (node == 0) return t->from_root[byte];
    int32_t low = t->first[node], end = t->first[node + 1], high = end;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (t->label[middle] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && t->label[low] == byte ? low : -1;
}

/* The longest string at the beginning of text (n bytes): which it is and *length, or -1. *steps grows by the bytes that
 * were looked at. */
static inline int32_t trie_longest(const el_trie *t, const uint8_t *text, int64_t n, int64_t *length, int64_t *steps)
{
    int32_t found = -1, node = 0;
    for (int64_t i = 0; i < n && (++*steps, node = trie_step(t, node, text[i])) >= 0; i++)
        if (t->ends[node] >= 0) {
            found = t->ends[node];
            *length = i + 1;
        }
    return found;
}

#endif
