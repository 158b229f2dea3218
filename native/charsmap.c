/* charsmap.c: strings put for others, the longest match at each place, from left to right (the normaliser of
 * SentencePiece). edgellm/tokenizers/charsmap.py reads and checks the map, and has the same loop in Python.
 */
#include "trie.h"

#include <stdlib.h>
#include <string.h>

struct el_charsmap {
    el_trie trie;
    uint8_t *text;    /* the replacements, one after the other */
    int64_t *offsets; /* (n + 1) */
};

int el_charsmap_new(el_charsmap **out, const uint8_t *keys, const int64_t *key_offsets, const uint8_t *values,
                    const int64_t *value_offsets, int64_t n)
{
    if (!out || !keys || !key_offsets || !values || !value_offsets || n < 0) return EL_E_ARGUMENT;
    *out = NULL;
    if (value_offsets[0] != 0) return EL_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++)
        if (value_offsets[i + 1] < value_offsets[i] || value_offsets[i + 1] > INT32_MAX) return EL_E_ARGUMENT;
    el_charsmap *m = calloc(1, sizeof *m);
    if (!m) return EL_E_NOMEM;
    int status = trie_build(&m->trie, keys, key_offsets, n, NULL, n);
    if (status == EL_OK) {
        m->text = malloc((size_t)value_offsets[n] + 1);
        m->offsets = malloc((size_t)(n + 1) * sizeof *m->offsets);
        status = m->text && m->offsets ? EL_OK : EL_E_NOMEM;
    }
    if (status != EL_OK) {
        el_charsmap_free(m);
        return status;
    }
    memcpy(m->text, values, (size_t)value_offsets[n]);
    memcpy(m->offsets, value_offsets, (size_t)(n + 1) * sizeof *m->offsets);
    *out = m;
    return EL_OK;
}

void el_charsmap_free(el_charsmap *m)
{
    if (!m) return;
    trie_free(&m->trie);
    free(m->text);
    free(m->offsets);
    free(m);
}

int el_charsmap_apply(const el_charsmap *map, const uint8_t *text, int64_t n_bytes, uint8_t *out, int64_t capacity,
                      int64_t *n_out)
{
    if (!map || !n_out || n_bytes < 0 || n_bytes > INT32_MAX || capacity < 0) return EL_E_ARGUMENT;
    *n_out = 0;
    if (n_bytes > 0 && !text) return EL_E_ARGUMENT;
    int64_t written = 0, steps = 0;
    for (int64_t at = 0, length = 0; at < n_bytes; at += length) {
        int32_t found = trie_longest(&map->trie, text + at, n_bytes - at, &length, &steps);
        const uint8_t *p = found < 0 ? text + at : map->text + map->offsets[found];
        int64_t n = found < 0 ? 1 : map->offsets[found + 1] - map->offsets[found];
        if (found < 0) length = 1;
        if (out) {
            if (n > capacity - written) return EL_E_ARGUMENT;
            memcpy(out + written, p, (size_t)n);
        }
        written += n;
    }
    *n_out = written;
    text_steps = steps;
    return EL_OK;
}
