/* spm.c: the merge loop of SentencePiece BPE.
 *
 * Kudo and Richardson 2018 (SentencePiece); Sennrich et al. 2016 (BPE). Text starts as single characters; again and
 * again the neighbours whose joined text is the piece with the highest score are merged, the leftmost pair of equals
 * first. A priority queue of candidate pairs makes that O(n log n). edgellm/tokenizers/spm.py has the same loop in
 * Python.
 *
 * A merge can never cross a place where no piece has these two bytes on the two sides of a character boundary. Text is
 * cut at such places first (at most words, in practice), which changes no result and keeps the queue in cache.
 */
#include "merges.h"

typedef struct {
    uint32_t tag; /* high half of the hash */
    int32_t id;   /* -1: empty */
} slot;

struct el_spm {
    uint8_t *text;         /* all pieces, one after the other */
    int64_t *offsets;      /* (n_pieces + 1) */
    uint32_t *ranks;       /* (n_pieces) order-preserving form of the score, small = merged first */
    int32_t *unused_index; /* (n_pieces) index among the unused pieces, -1 for others */
    slot *slots;           /* (mask + 1) open addressing, linear probing, at most half full */
    uint64_t mask;
    int64_t n_pieces;
    int64_t n_unused;
    int64_t max_piece;     /* bytes of the longest piece that text can become */
    int32_t unk_id;
    int32_t byte_ids[256];
    uint32_t joins[256][8]; /* bit b of row a: in some piece byte a ends a character and byte b starts the next one */
};

typedef struct {
    int32_t prev, next; /* neighbours, -1 at the ends */
    int32_t start, len; /* bytes inside the segment; len 0: merged into its left neighbour */
} symbol;

/* What one call needs; grows to the longest segment and is freed at its end. */
typedef struct {
    const el_spm *spm;
    const uint8_t *text; /* the segment */
    symbol *symbols;
    int64_t symbol_room;
    merge_queue queue;
    int32_t *splits; /* (n_unused) bytes of the left half of the newest pair that made this unused piece, 0: none */
    int32_t *ids;
    int64_t n_ids;
    int after_unknown; /* the last token is the unknown one: a run of unknown characters is one token */
} work;

/* The piece with this text that merges may make, or -1. */
static int32_t find_piece(const el_spm *s, const uint8_t *p, int64_t n)
{
    if (n > s->max_piece) return -1;
    uint64_t h = hash_bytes(p, n);
    for (uint64_t i = h & s->mask;; i = (i + 1) & s->mask) {
        const slot *e = &s->slots[i];
        if (e->id < 0) return -1;
        int64_t start = s->offsets[e->id];
        if (e->tag == (uint32_t)(h >> 32) && s->offsets[e->id + 1] - start == n &&
            memcmp(s->text + start, p, (size_t)n) == 0)
            return e->id;
    }
}

/* Larger scores give smaller ranks; the order of floats is the order of their bits once negatives are turned over. */
static uint32_t rank_of(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 becomes +0 */
    memcpy(&bits, &score, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~bits;
}

static void note_joins(el_spm *s, const uint8_t *p, int64_t n)
{
    for (int64_t at = char_bytes(p[0]); at < n; at += char_bytes(p[at]))
        s->joins[p[at - 1]][p[at] >> 5] |= 1u << (p[at] & 31);
}

static int add_piece(el_spm *s, int32_t id)
{
    const uint8_t *p = s->text + s->offsets[id];
    int64_t n = s->offsets[id + 1] - s->offsets[id];
    uint64_t h = hash_bytes(p, n), i = h & s->mask;
    if (n > s->max_piece) s->max_piece = n;
    if (find_piece(s, p, n) >= 0) return EL_E_ARGUMENT; /* the same text twice */
    while (s->slots[i].id >= 0) i = (i + 1) & s->mask;
    s->slots[i].id = id;
    s->slots[i].tag = (uint32_t)(h >> 32);
    note_joins(s, p, n);
    return EL_OK;
}

static int check_pieces(const int64_t *offsets, const float *scores, const uint8_t *kinds, int64_t n_pieces)
{
    if (offsets[0] != 0) return EL_E_ARGUMENT;
    for (int64_t i = 0; i < n_pieces; i++) {
        int64_t n = offsets[i + 1] - offsets[i];
        if (n < 1 || n > INT32_MAX / 2 || kinds[i] > EL_PIECE_NEVER || scores[i] != scores[i]) return EL_E_ARGUMENT;
    }
    return EL_OK;
}

static int fill(el_spm *s, const uint8_t *text, const int64_t *offsets, const float *scores, const uint8_t *kinds,
                int64_t n_pieces)
{
    memcpy(s->text, text, (size_t)offsets[n_pieces]);
    memcpy(s->offsets, offsets, (size_t)(n_pieces + 1) * sizeof *offsets);
    memset(s->slots, 0xFF, (size_t)(s->mask + 1) * sizeof *s->slots);
    for (int64_t i = 0; i < n_pieces; i++) {
        s->ranks[i] = rank_of(scores[i]);
        s->unused_index[i] = kinds[i] == EL_PIECE_UNUSED ? (int32_t)s->n_unused++ : -1;
        if (kinds[i] == EL_PIECE_NEVER) continue;
        int status = add_piece(s, (int32_t)i);
        if (status != EL_OK) return status;
    }
    return EL_OK;
}

int el_spm_new(el_spm **out, const uint8_t *text, const int64_t *offsets, const float *scores, const uint8_t *kinds,
               int64_t n_pieces, const int32_t *byte_ids, int32_t unk_id)
{
    if (!out || !text || !offsets || !scores || !kinds || !byte_ids) return EL_E_ARGUMENT;
    *out = NULL;
    if (n_pieces < 1 || n_pieces > INT32_MAX / 4 || unk_id < -1 || unk_id >= n_pieces) return EL_E_ARGUMENT;
    for (int b = 0; b < 256; b++)
        if (byte_ids[b] < -1 || byte_ids[b] >= n_pieces) return EL_E_ARGUMENT;
    if (check_pieces(offsets, scores, kinds, n_pieces) != EL_OK) return EL_E_ARGUMENT;

    el_spm *s = calloc(1, sizeof *s);
    if (!s) return EL_E_NOMEM;
    uint64_t n_slots = 16;
    while (n_slots < 2 * (uint64_t)n_pieces) n_slots *= 2;
    s->mask = n_slots - 1;
    s->n_pieces = n_pieces;
    s->unk_id = unk_id;
    memcpy(s->byte_ids, byte_ids, sizeof s->byte_ids);
    s->text = malloc((size_t)offsets[n_pieces]);
    s->offsets = malloc((size_t)(n_pieces + 1) * sizeof *s->offsets);
    s->ranks = malloc((size_t)n_pieces * sizeof *s->ranks);
    s->unused_index = malloc((size_t)n_pieces * sizeof *s->unused_index);
    s->slots = malloc((size_t)n_slots * sizeof *s->slots);
    int status = EL_E_NOMEM;
    if (s->text && s->offsets && s->ranks && s->unused_index && s->slots)
        status = fill(s, text, offsets, scores, kinds, n_pieces);
    if (status != EL_OK) {
        el_spm_free(s);
        return status;
    }
    *out = s;
    return EL_OK;
}

void el_spm_free(el_spm *s)
{
    if (!s) return;
    free(s->text);
    free(s->offsets);
    free(s->ranks);
    free(s->unused_index);
    free(s->slots);
    free(s);
}

/* Adds the pair (left, right) when its text is a piece. */
static int propose(work *w, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return EL_OK;
    const symbol *l = &w->symbols[left];
    int32_t len = l->len + w->symbols[right].len;
    int32_t id = find_piece(w->spm, w->text + l->start, len);
    if (id < 0) return EL_OK;
    if (w->spm->unused_index[id] >= 0) w->splits[w->spm->unused_index[id]] = l->len;
    return push(&w->queue, (uint64_t)w->spm->ranks[id] << 32 | (uint32_t)left, right, len);
}

/* Cuts the segment (n bytes) into one symbol per character. */
static int split_characters(work *w, int64_t n, int32_t *n_symbols)
{
    if (n > w->symbol_room) {
        int64_t room = n < 256 ? 256 : n; /* a symbol has at least one byte */
        symbol *grown = realloc(w->symbols, (size_t)room * sizeof *grown);
        if (!grown) return EL_E_NOMEM;
        w->symbols = grown;
        w->symbol_room = room;
    }
    int32_t count = 0;
    for (int64_t at = 0; at < n; count++) {
        int64_t len = char_bytes(w->text[at]);
        if (len > n - at) len = n - at;
        symbol *s = &w->symbols[count];
        s->prev = count - 1;
        s->next = count + 1;
        s->start = (int32_t)at;
        s->len = (int32_t)len;
        at += len;
    }
    w->symbols[count - 1].next = -1;
    *n_symbols = count;
    return EL_OK;
}

static int merge(work *w, int32_t n_symbols)
{
    queue_clear(&w->queue, n_symbols);
    int status = EL_OK;
    for (int32_t i = 0; i + 1 < n_symbols && status == EL_OK; i++) status = propose(w, i, i + 1);
    while (w->queue.n_heap > 0 && status == EL_OK) {
        pair top = pop(&w->queue);
        int32_t left = (int32_t)(top.key & 0xFFFFFFFFu);
        symbol *l = &w->symbols[left], *r = &w->symbols[top.right];
        if (l->len == 0 || r->len == 0 || l->len + r->len != top.len) continue;
        l->len = top.len;
        r->len = 0;
        l->next = r->next;
        if (r->next >= 0) w->symbols[r->next].prev = left;
        status = propose(w, l->prev, left);
        if (status == EL_OK) status = propose(w, left, l->next);
    }
    return status;
}

/* A character that is no piece: its bytes, or the unknown token where a byte has no piece. */
static int emit_bytes(work *w, const uint8_t *p, int32_t n)
{
    int known = 1;
    for (int32_t i = 0; i < n; i++) known &= w->spm->byte_ids[p[i]] >= 0;
    if (known) {
        for (int32_t i = 0; i < n; i++) w->ids[w->n_ids++] = w->spm->byte_ids[p[i]];
        w->after_unknown = 0;
        return EL_OK;
    }
    if (w->spm->unk_id < 0) return EL_E_UNSUPPORTED;
    if (!w->after_unknown) w->ids[w->n_ids++] = w->spm->unk_id;
    w->after_unknown = 1;
    return EL_OK;
}

/* Emits one final symbol. An unused piece falls apart into the pair that made it, left half first; the right halves
 * wait in the memory of the pairs, which is free by now and large enough (reserve_waiting). */
static int emit(work *w, int32_t start, int32_t len)
{
    const el_spm *s = w->spm;
    int64_t waiting = 0;
    for (;;) {
        const uint8_t *p = w->text + start;
        int32_t id = find_piece(s, p, len), split = 0;
        if (id >= 0 && s->unused_index[id] >= 0) {
            split = w->splits[s->unused_index[id]];
            id = -1; /* an unused piece of one character is as good as none */
        }
        if (split > 0) {
            w->queue.pairs[waiting].right = start + split;
            w->queue.pairs[waiting++].len = len - split;
            len = split;
            continue;
        }
        if (id >= 0) {
            w->ids[w->n_ids++] = id;
            w->after_unknown = 0;
        } else {
            int status = emit_bytes(w, p, len);
            if (status != EL_OK) return status;
        }
        if (waiting == 0) return EL_OK;
        start = w->queue.pairs[--waiting].right;
        len = w->queue.pairs[waiting].len;
    }
}

/* The waiting list of emit() may need as many places as the longest piece has bytes. */
static int reserve_waiting(work *w)
{
    if (w->spm->n_unused == 0 || w->queue.pair_room >= w->spm->max_piece) return EL_OK;
    pair *grown = realloc(w->queue.pairs, (size_t)w->spm->max_piece * sizeof *grown);
    if (!grown) return EL_E_NOMEM;
    w->queue.pairs = grown;
    w->queue.pair_room = w->spm->max_piece;
    return EL_OK;
}

static int encode_segment(work *w, const uint8_t *text, int64_t n)
{
    int32_t n_symbols = 0;
    w->text = text;
    int status = split_characters(w, n, &n_symbols);
    if (status == EL_OK) status = merge(w, n_symbols);
    if (status == EL_OK) status = reserve_waiting(w);
    for (int32_t i = 0; status == EL_OK && i >= 0; i = w->symbols[i].next)
        status = emit(w, w->symbols[i].start, w->symbols[i].len);
    return status;
}

/* Bytes from `text` to the first place that no merge can cross. */
static int64_t segment_bytes(const el_spm *s, const uint8_t *text, int64_t n)
{
    int64_t at = char_bytes(text[0]);
    while (at < n && s->joins[text[at - 1]][text[at] >> 5] >> (text[at] & 31) & 1) at += char_bytes(text[at]);
    return at < n ? at : n;
}

int el_spm_encode(const el_spm *spm, const uint8_t *text, int64_t n_bytes, int32_t *ids, int64_t capacity,
                  int64_t *n_ids)
{
    if (!spm || !n_ids || n_bytes < 0 || n_bytes > INT32_MAX || capacity < n_bytes) return EL_E_ARGUMENT;
    *n_ids = 0;
    if (n_bytes == 0) return EL_OK;
    if (!text || !ids) return EL_E_ARGUMENT;
    work w;
    memset(&w, 0, sizeof w);
    w.spm = spm;
    w.ids = ids;
    if (spm->n_unused > 0) {
        w.splits = calloc((size_t)spm->n_unused, sizeof *w.splits);
        if (!w.splits) return EL_E_NOMEM;
    }
    int status = EL_OK;
    for (int64_t at = 0; at < n_bytes && status == EL_OK;) {
        /* How an unused piece falls apart depends on the whole text, so with such pieces it is one segment. */
        int64_t n = spm->n_unused > 0 ? n_bytes : segment_bytes(spm, text + at, n_bytes - at);
        status = encode_segment(&w, text + at, n);
        at += n;
    }
    if (status == EL_OK) *n_ids = w.n_ids;
    text_steps = n_bytes + w.queue.steps;
    free(w.symbols);
    queue_free(&w.queue);
    free(w.splits);
    return status;
}
