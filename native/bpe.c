/* bpe.c: BPE by merge rank, for texts that were already cut into words.
 *
 * Sennrich et al. 2016; Radford et al. 2019 for bytes as the alphabet. A word starts as the ids of its bytes (or
 * characters); again and again the neighbours with the lowest rank become the piece that their merge makes, the leftmost
 * of equals first. edgellm/tokenizers/bpe.py has the same loop in Python.
 *
 * A text says most of its words many times, so a call remembers where in its output the ids of a word are.
 */
#include "merges.h"

typedef struct {
    int32_t left, right, rank; /* rank -1: empty */
} merge_slot;

typedef struct {
    uint32_t tag; /* high half of the hash */
    int32_t id;   /* -1: empty */
} piece_slot;

struct el_bpe {
    merge_slot *merges;  /* (merge_mask + 1) open addressing, at most half full */
    int32_t *results;    /* (n_merges) the piece that each merge makes */
    uint64_t merge_mask;
    uint8_t *text;       /* all pieces, one after the other; NULL when no piece is ever looked up by its text */
    int64_t *offsets;    /* (n_pieces + 1) */
    piece_slot *pieces;  /* (piece_mask + 1) */
    uint64_t piece_mask;
    int64_t max_piece;   /* bytes of the longest piece */
    int64_t n_pieces;
    int32_t byte_ids[256];
    int32_t unk_id;
    int32_t whole_words; /* enum el_whole_words */
    int32_t characters;  /* words start as characters, not as bytes */
};

typedef struct {
    int32_t prev, next; /* neighbours, -1 at the ends */
    int32_t id, len;    /* piece and its bytes; len 0: merged into its left neighbour */
} bpe_symbol;

typedef struct {
    uint64_t hash;
    int64_t start, first; /* where the word is in the text and its ids are in the output */
    int32_t len, n_ids;   /* n_ids 0: empty */
} seen_word;

/* What one call needs; freed at its end. */
typedef struct {
    const el_bpe *bpe;
    merge_queue queue;
    bpe_symbol *symbols;
    int64_t symbol_room;
    seen_word *seen;      /* (seen_mask + 1), NULL: none */
    uint64_t seen_mask;
    int32_t *ids;
    int64_t n_ids;
} bpe_work;

static uint64_t merge_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ (h >> 29);
}

/* Rank of the merge of two pieces, or -1. */
static int32_t find_merge(const el_bpe *b, int32_t left, int32_t right)
{
    for (uint64_t i = merge_hash(left, right) & b->merge_mask;; i = (i + 1) & b->merge_mask) {
        const merge_slot *e = &b->merges[i];
        if (e->rank < 0 || (e->left == left && e->right == right)) return e->rank;
    }
}

static int32_t find_piece(const el_bpe *b, const uint8_t *p, int64_t n)
{
    if (n > b->max_piece) return -1;
    uint64_t h = hash_bytes(p, n);
    for (uint64_t i = h & b->piece_mask;; i = (i + 1) & b->piece_mask) {
        const piece_slot *e = &b->pieces[i];
        if (e->id < 0) return -1;
        int64_t start = b->offsets[e->id];
        if (e->tag == (uint32_t)(h >> 32) && b->offsets[e->id + 1] - start == n &&
            memcmp(b->text + start, p, (size_t)n) == 0)
            return e->id;
    }
}

static int fill_merges(el_bpe *b, const int32_t *merges, int64_t n_merges)
{
    memset(b->merges, 0xFF, (size_t)(b->merge_mask + 1) * sizeof *b->merges);
    for (int64_t rank = 0; rank < n_merges; rank++) {
        const int32_t *m = merges + 3 * rank;
        b->results[rank] = m[2];
        if (m[0] == -1) continue; /* never done */
        for (int j = 0; j < 3; j++)
            if (m[j] < 0 || m[j] >= b->n_pieces) return EL_E_ARGUMENT;
        if (find_merge(b, m[0], m[1]) >= 0) return EL_E_ARGUMENT; /* the same pair twice */
        uint64_t i = merge_hash(m[0], m[1]) & b->merge_mask;
        while (b->merges[i].rank >= 0) i = (i + 1) & b->merge_mask;
        b->merges[i] = (merge_slot){m[0], m[1], (int32_t)rank};
    }
    return EL_OK;
}

static int fill_pieces(el_bpe *b, const uint8_t *text, const int64_t *offsets, const uint8_t *kinds)
{
    memcpy(b->text, text, (size_t)offsets[b->n_pieces]);
    memcpy(b->offsets, offsets, (size_t)(b->n_pieces + 1) * sizeof *offsets);
    memset(b->pieces, 0xFF, (size_t)(b->piece_mask + 1) * sizeof *b->pieces);
    for (int64_t id = 0; id < b->n_pieces; id++) {
        if (kinds[id] == EL_PIECE_NEVER) continue;
        const uint8_t *p = b->text + offsets[id];
        int64_t n = offsets[id + 1] - offsets[id];
        if (n > b->max_piece) b->max_piece = n;
        if (find_piece(b, p, n) >= 0) return EL_E_ARGUMENT; /* the same text twice */
        uint64_t h = hash_bytes(p, n), i = h & b->piece_mask;
        while (b->pieces[i].id >= 0) i = (i + 1) & b->piece_mask;
        b->pieces[i] = (piece_slot){(uint32_t)(h >> 32), (int32_t)id};
    }
    return EL_OK;
}

static int check_pieces(const int64_t *offsets, const uint8_t *kinds, int64_t n_pieces)
{
    if (offsets[0] != 0) return EL_E_ARGUMENT;
    for (int64_t i = 0; i < n_pieces; i++) {
        int64_t n = offsets[i + 1] - offsets[i];
        if (n < 1 || n > INT32_MAX / 2 || kinds[i] > EL_PIECE_NEVER) return EL_E_ARGUMENT;
    }
    return EL_OK;
}

static uint64_t mask_for(int64_t n)
{
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)n) slots *= 2;
    return slots - 1;
}

int el_bpe_new(el_bpe **out, const uint8_t *text, const int64_t *offsets, const uint8_t *kinds, int64_t n_pieces,
               const int32_t *merges, int64_t n_merges, const int32_t *byte_ids, int32_t unk_id, int32_t whole_words,
               int32_t characters)
{
    if (!out || !text || !offsets || !kinds || !merges || !byte_ids) return EL_E_ARGUMENT;
    *out = NULL;
    if (n_pieces < 1 || n_pieces > INT32_MAX / 4 || n_merges < 0 || n_merges > INT32_MAX / 4) return EL_E_ARGUMENT;
    if (unk_id < -1 || unk_id >= n_pieces || whole_words < EL_WHOLE_NONE || whole_words > EL_WHOLE_LINE_FEEDS)
        return EL_E_ARGUMENT;
    for (int i = 0; i < 256; i++)
        if (byte_ids[i] < -1 || byte_ids[i] >= n_pieces) return EL_E_ARGUMENT;
    if (check_pieces(offsets, kinds, n_pieces) != EL_OK) return EL_E_ARGUMENT;

    el_bpe *b = calloc(1, sizeof *b);
    if (!b) return EL_E_NOMEM;
    b->n_pieces = n_pieces;
    b->unk_id = unk_id;
    b->whole_words = whole_words;
    b->characters = characters != 0;
    memcpy(b->byte_ids, byte_ids, sizeof b->byte_ids);
    b->merge_mask = mask_for(n_merges);
    b->piece_mask = mask_for(n_pieces);
    b->merges = malloc((size_t)(b->merge_mask + 1) * sizeof *b->merges);
    b->results = malloc((size_t)(n_merges + 1) * sizeof *b->results);
    b->text = malloc((size_t)offsets[n_pieces]);
    b->offsets = malloc((size_t)(n_pieces + 1) * sizeof *b->offsets);
    b->pieces = malloc((size_t)(b->piece_mask + 1) * sizeof *b->pieces);
    int status = EL_E_NOMEM;
    if (b->merges && b->results && b->text && b->offsets && b->pieces) status = fill_merges(b, merges, n_merges);
    if (status == EL_OK) status = fill_pieces(b, text, offsets, kinds);
    if (status != EL_OK) {
        el_bpe_free(b);
        return status;
    }
    *out = b;
    return EL_OK;
}

void el_bpe_free(el_bpe *b)
{
    if (!b) return;
    free(b->merges);
    free(b->results);
    free(b->text);
    free(b->offsets);
    free(b->pieces);
    free(b);
}

/* ---- one word ---------------------------------------------------------------------------------------------------- */

/* A byte without a piece is the unknown token, or left out where there is none (as in Hugging Face's tokenizers). */
static void add_symbol(bpe_work *w, int32_t *count, int32_t id, int32_t len)
{
    if (id < 0) id = w->bpe->unk_id;
    if (id < 0) return;
    w->symbols[*count] = (bpe_symbol){*count - 1, *count + 1, id, len};
    ++*count;
}

/* A word (n bytes) as bytes, or as characters where those without a piece become their bytes. */
static int first_symbols(bpe_work *w, const uint8_t *p, int64_t n, int32_t *count)
{
    const el_bpe *b = w->bpe;
    if (n > w->symbol_room) {
        int64_t room = n < 256 ? 256 : n;
        bpe_symbol *grown = realloc(w->symbols, (size_t)room * sizeof *grown);
        if (!grown) return EL_E_NOMEM;
        w->symbols = grown;
        w->symbol_room = room;
    }
    for (int64_t at = 0; at < n;) {
        int64_t len = b->characters ? char_bytes(p[at]) : 1;
        if (len > n - at) len = n - at;
        int32_t id = b->characters ? find_piece(b, p + at, len) : -1;
        if (id >= 0) {
            add_symbol(w, count, id, (int32_t)len);
        } else {
            for (int64_t i = 0; i < len; i++) add_symbol(w, count, b->byte_ids[p[at + i]], 1);
        }
        at += len;
    }
    if (*count > 0) w->symbols[*count - 1].next = -1;
    return EL_OK;
}

static int propose(bpe_work *w, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return EL_OK;
    const bpe_symbol *l = &w->symbols[left], *r = &w->symbols[right];
    int32_t rank = find_merge(w->bpe, l->id, r->id);
    if (rank < 0) return EL_OK;
    return push(&w->queue, (uint64_t)rank << 32 | (uint32_t)left, right, l->len + r->len);
}

static int merge_word(bpe_work *w, const uint8_t *p, int64_t n)
{
    int32_t n_symbols = 0;
    int status = first_symbols(w, p, n, &n_symbols);
    if (status != EL_OK || n_symbols == 0) return status;
    queue_clear(&w->queue, n_symbols);
    for (int32_t i = 0; i + 1 < n_symbols && status == EL_OK; i++) status = propose(w, i, i + 1);
    while (w->queue.n_heap > 0 && status == EL_OK) {
        pair top = pop(&w->queue);
        int32_t left = (int32_t)(top.key & 0xFFFFFFFFu);
        bpe_symbol *l = &w->symbols[left], *r = &w->symbols[top.right];
        if (l->len == 0 || r->len == 0 || l->len + r->len != top.len) continue;
        l->len = top.len;
        l->id = w->bpe->results[top.key >> 32];
        r->len = 0;
        l->next = r->next;
        if (r->next >= 0) w->symbols[r->next].prev = left;
        status = propose(w, l->prev, left);
        if (status == EL_OK) status = propose(w, left, l->next);
    }
    for (int32_t i = 0; status == EL_OK && i >= 0; i = w->symbols[i].next) w->ids[w->n_ids++] = w->symbols[i].id;
    return status;
}

static int looked_up_whole(const el_bpe *b, const uint8_t *p, int64_t n)
{
    if (b->whole_words != EL_WHOLE_LINE_FEEDS) return b->whole_words == EL_WHOLE_ALL;
    for (int64_t i = 0; i < n; i++)
        if (p[i] != '\n') return 0;
    return 1;
}

static int encode_word(bpe_work *w, const uint8_t *text, int64_t start, int64_t n)
{
    const uint8_t *p = text + start;
    const el_bpe *b = w->bpe;
    seen_word *seen = NULL;
    uint64_t hash = 0;
    if (w->seen && n < 256) {
        hash = hash_bytes(p, n);
        seen = &w->seen[(hash ^ hash >> 20) & w->seen_mask];
        if (seen->n_ids > 0 && seen->hash == hash && seen->len == n && memcmp(text + seen->start, p, (size_t)n) == 0) {
            memcpy(w->ids + w->n_ids, w->ids + seen->first, (size_t)seen->n_ids * sizeof *w->ids);
            w->n_ids += seen->n_ids;
            return EL_OK;
        }
    }
    int64_t first = w->n_ids;
    int32_t whole = looked_up_whole(b, p, n) ? find_piece(b, p, n) : -1;
    int status = EL_OK;
    if (whole >= 0)
        w->ids[w->n_ids++] = whole;
    else
        status = merge_word(w, p, n);
    if (seen && status == EL_OK) *seen = (seen_word){hash, start, first, (int32_t)n, (int32_t)(w->n_ids - first)};
    return status;
}

int el_bpe_encode(const el_bpe *bpe, const uint8_t *text, int64_t n_bytes, const int64_t *word_ends, int64_t n_words,
                  int32_t *ids, int64_t capacity, int64_t *n_ids)
{
    if (!bpe || !n_ids || n_bytes < 0 || n_bytes > INT32_MAX || capacity < n_bytes) return EL_E_ARGUMENT;
    *n_ids = 0;
    if (n_bytes == 0) return n_words == 0 ? EL_OK : EL_E_ARGUMENT;
    if (!text || !ids || !word_ends || n_words < 1) return EL_E_ARGUMENT;
    for (int64_t i = 0, at = 0; i < n_words; at = word_ends[i++])
        if (word_ends[i] <= at || word_ends[i] > n_bytes) return EL_E_ARGUMENT;
    if (word_ends[n_words - 1] != n_bytes) return EL_E_ARGUMENT;
    bpe_work w;
    memset(&w, 0, sizeof w);
    w.bpe = bpe;
    w.ids = ids;
    if (n_words > 16) {
        w.seen_mask = mask_for(n_words < 16384 ? n_words / 2 : 16384);
        w.seen = calloc((size_t)w.seen_mask + 1, sizeof *w.seen); /* without it, words are merged again */
    }
    int status = EL_OK;
    int64_t at = 0;
    for (int64_t i = 0; i < n_words && status == EL_OK; at = word_ends[i++])
        status = encode_word(&w, text, at, word_ends[i] - at);
    if (status == EL_OK) *n_ids = w.n_ids;
    text_steps = n_bytes + w.queue.steps;
    free(w.symbols);
    free(w.seen);
    queue_free(&w.queue);
    return status;
}
