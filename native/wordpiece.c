/* wordpiece.c: words spelled with the longest pieces that fit, from the left.
 *
 * Devlin et al. 2018 (BERT). edgellm/tokenizers/wordpiece.py cleans the text and has the same loop in Python.
 */
#include "trie.h"

#include <stdlib.h>
#include <string.h>

struct el_wordpiece {
    el_trie tries[2]; /* pieces that begin a word (without the mark in front), pieces that continue one */
    int32_t *ids[2];
    int32_t unk_id, max_chars;
};

static int fill(el_wordpiece *w, int which, const uint8_t *text, const int64_t *offsets, const int32_t *ids, int64_t n,
                int64_t n_pieces)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_pieces) return EL_E_ARGUMENT;
    int status = trie_build(&w->tries[which], text, offsets, n, NULL, n);
    if (status != EL_OK) return status;
    w->ids[which] = malloc((size_t)(n + 1) * sizeof *ids);
    if (!w->ids[which]) return EL_E_NOMEM;
    if (n > 0) memcpy(w->ids[which], ids, (size_t)n * sizeof *ids);
    return EL_OK;
}

int el_wordpiece_new(el_wordpiece **out, const uint8_t *begin_text, const int64_t *begin_offsets,
                     const int32_t *begin_ids, int64_t n_begin, const uint8_t *next_text, const int64_t *next_offsets,
                     const int32_t *next_ids, int64_t n_next, int64_t n_pieces, int32_t unk_id, int32_t max_chars)
{
    if (!out || !begin_text || !begin_offsets || !begin_ids || !next_text || !next_offsets || !next_ids)
        return EL_E_ARGUMENT;
    *out = NULL;
    if (unk_id < 0 || unk_id >= n_pieces || max_chars < 1) return EL_E_ARGUMENT;
    el_wordpiece *w = calloc(1, sizeof *w);
    if (!w) return EL_E_NOMEM;
    w->unk_id = unk_id;
    w->max_chars = max_chars;
    int status = fill(w, 0, begin_text, begin_offsets, begin_ids, n_begin, n_pieces);
    if (status == EL_OK) status = fill(w, 1, next_text, next_offsets, next_ids, n_next, n_pieces);
    if (status != EL_OK) {
        el_wordpiece_free(w);
        return status;
    }
    *out = w;
    return EL_OK;
}

void el_wordpiece_free(el_wordpiece *w)
{
    if (!w) return;
    for (int i = 0; i < 2; i++) {
        trie_free(&w->tries[i]);
        free(w->ids[i]);
    }
    free(w);
}

/* The tokens of one word at ids; how many they are. A word has at most as many as bytes. */
static int64_t spell(const el_wordpiece *w, const uint8_t *p, int64_t n, int32_t *ids, int64_t *steps)
{
    int64_t chars = 0, count = 0;
    for (int64_t i = 0; i < n; i++) chars += (p[i] & 0xC0) != 0x80;
    for (int64_t at = 0, length = 0; at < n && chars <= w->max_chars; at += length) {
        int which = at > 0;
        int32_t found = trie_longest(&w->tries[which], p + at, n - at, &length, steps);
        if (found < 0) {
            chars = INT64_MAX;
            break;
        }
        ids[count++] = w->ids[which][found];
    }
    if (chars <= w->max_chars) return count;
    ids[0] = w->unk_id;
    return 1;
}

int el_wordpiece_encode(const el_wordpiece *wordpiece, const uint8_t *text, int64_t n_bytes, int32_t *ids,
                        int64_t capacity, int64_t *n_ids)
{
    if (!wordpiece || !n_ids || n_bytes < 0 || n_bytes > INT32_MAX || capacity < n_bytes) return EL_E_ARGUMENT;
    *n_ids = 0;
    if (n_bytes == 0) return EL_OK;
    if (!text || !ids) return EL_E_ARGUMENT;
    int64_t count = 0, steps = n_bytes;
    for (int64_t at = 0; at < n_bytes; at++) {
        if (text[at] == ' ') continue;
        const uint8_t *space = memchr(text + at, ' ', (size_t)(n_bytes - at));
        int64_t end = space ? space - text : n_bytes;
        count += spell(wordpiece, text + at, end - at, ids + count, &steps);
        at = end;
    }
    *n_ids = count;
    text_steps = steps;
    return EL_OK;
}
