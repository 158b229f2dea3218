/* trie.c: builds the tree of trie.h from sorted strings, level by level. */
#include "trie.h"

#include <stdlib.h>
#include <string.h>

_Thread_local int64_t text_steps;

int64_t el_text_steps(void) { return text_steps; }

#define MAX_TRIE_BYTES ((int64_t)1 << 30)

typedef struct {
    const uint8_t *text;
    const int64_t *offsets;
    const int32_t *order;
} strings;

static int64_t string_at(const strings *s, int64_t i, const uint8_t **p)
{
    int64_t at = s->order ? s->order[i] : i;
    *p = s->text + s->offsets[at];
    return s->offsets[at + 1] - s->offsets[at];
}

/* Nodes of the tree, or -1 when the strings are not ascending, or one is empty or there twice. */
static int64_t count_nodes(const strings *s, int64_t n_strings, int64_t n)
{
    int64_t nodes = 1, before = 0;
    const uint8_t *last = NULL;
    for (int64_t i = 0; i < n; i++) {
        if (s->order && (s->order[i] < 0 || s->order[i] >= n_strings)) return -1;
        const uint8_t *p;
        int64_t len = string_at(s, i, &p), same = 0;
        while (same < len && same < before && p[same] == last[same]) same++;
        if (same == len || (same < before && p[same] < last[same])) return -1;
        nodes += len - same;
        last = p;
        before = len;
    }
    return nodes;
}

typedef struct {
    int32_t low, high, depth; /* the strings below a node, and how many of their bytes lead to it */
} below;

/* Gives node `i` its children; the new ones are numbered from `next`. Returns the next free number. */
static int64_t add_children(el_trie *t, const strings *s, below *ranges, int64_t i, int64_t next)
{
    below here = ranges[i];
    const uint8_t *p;
    int32_t at = here.low;
    t->ends[i] = -1;
    if (i > 0 && string_at(s, at, &p) == here.depth) t->ends[i] = at++; /* the shortest of them comes first */
    t->first[i] = (int32_t)next;
    while (at < here.high) {
        string_at(s, at, &p);
        uint8_t byte = p[here.depth];
        int32_t end = at + 1;
        while (end < here.high && (string_at(s, end, &p), p[here.depth] == byte)) end++;
        t->label[next] = byte;
        ranges[next++] = (below){at, end, here.depth + 1};
        at = end;
    }
    return next;
}

int trie_build(el_trie *t, const uint8_t *text, const int64_t *offsets, int64_t n_strings, const int32_t *order,
               int64_t n)
{
    memset(t, 0, sizeof *t);
    if (n < 0 || n_strings < 0 || n_strings > INT32_MAX / 4 || n > n_strings || offsets[0] != 0) return EL_E_ARGUMENT;
    for (int64_t i = 0; i < n_strings; i++)
        if (offsets[i + 1] < offsets[i] || offsets[i + 1] > MAX_TRIE_BYTES) return EL_E_ARGUMENT;
    strings s = {text, offsets, order};
    int64_t nodes = count_nodes(&s, n_strings, n);
    if (nodes < 0 || nodes > MAX_TRIE_BYTES) return EL_E_ARGUMENT;
    t->n_nodes = nodes;
    t->first = malloc((size_t)(nodes + 1) * sizeof *t->first);
    t->label = malloc((size_t)nodes);
    t->ends = malloc((size_t)nodes * sizeof *t->ends);
    below *ranges = malloc((size_t)nodes * sizeof *ranges);
    if (!t->first || !t->label || !t->ends || !ranges) {
        free(ranges);
        trie_free(t);
        return EL_E_NOMEM;
    }
    t->label[0] = 0;
    ranges[0] = (below){0, (int32_t)n, 0};
    int64_t next = 1;
    for (int64_t i = 0; i < nodes; i++) next = add_children(t, &s, ranges, i, next);
    t->first[nodes] = (int32_t)next;
    free(ranges);
    memset(t->from_root, 0xFF, sizeof t->from_root);
    for (int32_t child = t->first[0]; child < t->first[1]; child++) t->from_root[t->label[child]] = child;
    return EL_OK;
}

void trie_free(el_trie *t)
{
    free(t->first);
    free(t->label);
    free(t->ends);
    memset(t, 0, sizeof *t);
}
