/* unigram.c: the spelling with the largest sum of scores.
 *
 * Kudo 2018 ("Subword Regularization"), the search of Viterbi. All pieces that end at a place are found with one step
 * of an automaton per byte (Aho and Corasick 1975), so that a text costs its bytes and the pieces found in them, however
 * long the pieces are. Where no piece can go across a place, everything before it is decided: its tokens are written and
 * the sums begin anew. edgellm/tokenizers/unigram.py has the same search in Python.
 */
#include "trie.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct el_unigram {
    el_trie trie;
    int32_t *fail;  /* (n_nodes) the longest other suffix of a node's bytes that is a node, 0: none */
    int32_t *found; /* (n_nodes) the longest suffix (itself too) that is a piece, 0: none */
    uint8_t *open;  /* (n_nodes) 1: a longer piece begins with one of its suffixes, so it may go on */
    int32_t *ids;   /* (n_used) id of each string of the trie */
    int32_t *bytes; /* (n_used) its length */
    double *scores; /* (n_used) */
    double unknown_score;
    int32_t byte_ids[256];
    int32_t has_bytes;
    int32_t unk_id;
};

typedef struct {
    const el_unigram *u;
    const uint8_t *text;
    double *best;  /* (room) the largest sum up to each byte of the stretch that is not decided yet */
    int32_t *came; /* (room) the last piece of it, or less its bytes where it is an unknown character */
    int64_t room, base; /* base: where the stretch begins in the text */
    int32_t *ids;
    int64_t n_ids, steps;
    int after_unknown; /* the last token is the unknown one: a run of unknown characters is one token */
} work;

static int64_t char_bytes(uint8_t lead) { return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

/* ---- the vocabulary ---------------------------------------------------------------------------------------------- */

/* Failure links, from short to long: a node's link goes to a shorter one. */
static void link_nodes(el_unigram *u)
{
    const el_trie *t = &u->trie;
    u->fail[0] = u->found[0] = 0;
    u->open[0] = 0;
    for (int32_t node = 0; node < t->n_nodes; node++)
        for (int32_t child = t->first[node]; child < t->first[node + 1]; child++) {
            int32_t link = 0, from = node;
            while (from != 0) {
                from = u->fail[from];
                int32_t next = trie_step(t, from, t->label[child]);
                if (next >= 0) {
                    link = next;
                    break;
                }
            }
            u->fail[child] = link;
            u->found[child] = t->ends[child] >= 0 ? child : u->found[link];
            u->open[child] = t->first[child] < t->first[child + 1] || u->open[link];
        }
}

static int fill(el_unigram *u, const int64_t *offsets, const double *scores, const int32_t *order, int64_t n_used)
{
    for (int64_t i = 0; i < n_used; i++) {
        int32_t id = order[i];
        if (!isfinite(scores[id])) return EL_E_ARGUMENT;
        u->ids[i] = id;
        u->bytes[i] = (int32_t)(offsets[id + 1] - offsets[id]);
        u->scores[i] = scores[id];
    }
    link_nodes(u);
    return EL_OK;
}

int el_unigram_new(el_unigram **out, const uint8_t *text, const int64_t *offsets, const double *scores, int64_t n_pieces,
                   const int32_t *order, int64_t n_used, double unknown_score, const int32_t *byte_ids, int32_t unk_id)
{
    if (!out || !text || !offsets || !scores || !order || !byte_ids) return EL_E_ARGUMENT;
    *out = NULL;
    if (n_pieces < 1 || unk_id < 0 || unk_id >= n_pieces || !isfinite(unknown_score)) return EL_E_ARGUMENT;
    el_unigram *u = calloc(1, sizeof *u);
    if (!u) return EL_E_NOMEM;
    int status = trie_build(&u->trie, text, offsets, n_pieces, order, n_used);
    for (int b = 0; b < 256; b++) {
        if (byte_ids[b] < -1 || byte_ids[b] >= n_pieces) status = EL_E_ARGUMENT;
        u->byte_ids[b] = byte_ids[b];
        u->has_bytes |= byte_ids[b] >= 0;
    }
    if (status == EL_OK) {
        size_t nodes = (size_t)u->trie.n_nodes, used = (size_t)n_used + 1;
        u->unknown_score = unknown_score;
        u->unk_id = unk_id;
        u->fail = malloc(nodes * sizeof *u->fail);
        u->found = malloc(nodes * sizeof *u->found);
        u->open = malloc(nodes);
        u->ids = malloc(used * sizeof *u->ids);
        u->bytes = malloc(used * sizeof *u->bytes);
        u->scores = malloc(used * sizeof *u->scores);
        status = EL_E_NOMEM;
        if (u->fail && u->found && u->open && u->ids && u->bytes && u->scores)
            status = fill(u, offsets, scores, order, n_used);
    }
    if (status != EL_OK) {
        el_unigram_free(u);
        return status;
    }
    *out = u;
    return EL_OK;
}

void el_unigram_free(el_unigram *u)
{
    if (!u) return;
    trie_free(&u->trie);
    free(u->fail);
    free(u->found);
    free(u->open);
    free(u->ids);
    free(u->bytes);
    free(u->scores);
    free(u);
}

/* ---- one text ---------------------------------------------------------------------------------------------------- */

static void emit(work *w, const uint8_t *p, int64_t n, int32_t piece)
{
    const el_unigram *u = w->u;
    if (piece >= 0) {
        w->ids[w->n_ids++] = u->ids[piece];
    } else if (u->has_bytes) {
        for (int64_t i = 0; i < n; i++) w->ids[w->n_ids++] = u->byte_ids[p[i]] >= 0 ? u->byte_ids[p[i]] : u->unk_id;
    } else if (!w->after_unknown) {
        w->ids[w->n_ids++] = u->unk_id;
    }
    w->after_unknown = piece < 0;
}

/* Writes the tokens of the stretch that ends at `end`, and begins the next one there.
 *
 * The pieces are found from the last to the first. They wait at the far end of what `ids` has for these bytes: a token
 * has at least one byte, so writing the tokens from the front never overtakes reading. */
static void decide(work *w, int64_t end)
{
    int64_t waiting = end;
    for (int64_t at = end; at > w->base;) {
        int32_t piece = w->came[at - w->base];
        w->ids[--waiting] = piece;
        at -= piece >= 0 ? w->u->bytes[piece] : -piece;
    }
    for (int64_t at = w->base; waiting < end; waiting++) {
        int32_t piece = w->ids[waiting];
        int32_t n = piece >= 0 ? w->u->bytes[piece] : -piece;
        emit(w, w->text + at, n, piece);
        at += n;
    }
    w->base = end;
}

static int reserve(work *w, int64_t n, int64_t most)
{
    if (n < w->room) return EL_OK;
    int64_t room = n < 1024 ? 2048 : 2 * n;
    if (room > most + 1) room = most + 1;
    double *best = realloc(w->best, (size_t)room * sizeof *best);
    if (best) w->best = best;
    int32_t *came = realloc(w->came, (size_t)room * sizeof *came);
    if (came) w->came = came;
    if (!best || !came) return EL_E_NOMEM;
    w->room = room;
    return EL_OK;
}

/* The best sum up to `end`, where a character of n bytes ends and the automaton is at `node`. The longest piece comes
 * first, and the first of equal sums is kept. */
static void choose(work *w, int64_t end, int64_t n, int32_t node)
{
    const el_unigram *u = w->u;
    double *best = w->best + (end - w->base);
    int32_t *came = w->came + (end - w->base), single = 0;
    for (int32_t hit = u->found[node]; hit > 0; hit = u->found[u->fail[hit]]) {
        int32_t piece = u->trie.ends[hit];
        double sum = best[-u->bytes[piece]] + u->scores[piece];
        single |= u->bytes[piece] == n;
        w->steps++;
        if (sum > *best) {
            *best = sum;
            *came = piece;
        }
    }
    if (!single && best[-n] + u->unknown_score > *best) {
        *best = best[-n] + u->unknown_score;
        *came = (int32_t)-n;
    }
}

static int encode(work *w, int64_t n_bytes)
{
    const el_unigram *u = w->u;
    int32_t node = 0;
    for (int64_t at = 0; at < n_bytes;) {
        int64_t n = char_bytes(w->text[at]);
        if (n > n_bytes - at) n = n_bytes - at;
        int status = reserve(w, at + n - w->base, n_bytes);
        if (status != EL_OK) return status;
        if (at == w->base) w->best[0] = 0;
        for (int64_t i = 0; i < n; i++) {
            int32_t next;
            while ((next = trie_step(&u->trie, node, w->text[at + i])) < 0 && node != 0) {
                node = u->fail[node];
                w->steps++;
            }
            node = next < 0 ? 0 : next;
            w->best[at + i + 1 - w->base] = -INFINITY;
            w->came[at + i + 1 - w->base] = -1;
        }
        at += n;
        choose(w, at, n, node);
        if (!u->open[node]) {
            decide(w, at);
            node = 0;
        }
    }
    decide(w, n_bytes);
    return EL_OK;
}

int el_unigram_encode(const el_unigram *unigram, const uint8_t *text, int64_t n_bytes, int32_t *ids, int64_t capacity,
                      int64_t *n_ids)
{
    if (!unigram || !n_ids || n_bytes < 0 || n_bytes > INT32_MAX || capacity < n_bytes) return EL_E_ARGUMENT;
    *n_ids = 0;
    if (n_bytes == 0) return EL_OK;
    if (!text || !ids) return EL_E_ARGUMENT;
    work w;
    memset(&w, 0, sizeof w);
    w.u = unigram;
    w.text = text;
    w.ids = ids;
    int status = encode(&w, n_bytes);
    if (status == EL_OK) *n_ids = w.n_ids;
    text_steps = n_bytes + w.steps;
    free(w.best);
    free(w.came);
    return status;
}
