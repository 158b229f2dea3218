/* suffix.c: guesses what comes next in a text from what came behind the same words before. edgellm/speculate/
 * suffix_reference.py is the same in a few lines of Python and says what is right.
 *
 * Three tokens in a row are a key. A position p (3 .. n) is an occurrence of the key ids[p - 3 .. p); all occurrences of a key
 * are a chain from the latest to the first, and a hash table holds the latest of each. An append is at most PROBES looks into
 * the table; a proposal visits at most OCCURRENCES positions: no text, however made, costs more. 16 bytes a token of capacity.
 */
#include <stdlib.h>
#include <string.h>

#include "edgellm.h"

enum { KEY = 3, LONGEST = 16, OCCURRENCES = 32, PROBES = 64, FIRST_CAPACITY = 1024 };
static const int64_t MOST_TOKENS = (int64_t)1 << 28;

struct el_suffix {
    int32_t *ids;      /* (capacity) negative: a border, which no match goes across and no draft has in it */
    int32_t *earlier;  /* (capacity + 1) the occurrence before p of the same key; 0: none */
    int32_t *slots;    /* (2 capacity) the latest occurrence of a key; 0: empty. Open addressing, at most half full */
    int64_t n, fixed;  /* tokens; the first `fixed` are never forgotten */
    int64_t capacity;  /* a power of 2, at most limit */
    int64_t limit;
};

static int same_key(const int32_t *a, const int32_t *b) { return a[0] == b[0] && a[1] == b[1] && a[2] == b[2]; }

/* The slot of the key that ends before p, or the empty one where it belongs; -1: neither is near. */
static int64_t find_slot(const el_suffix *s, int64_t p)
{
    const int32_t *key = s->ids + p - KEY;
    uint64_t h = (uint32_t)key[0] * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 29 ^ (uint32_t)key[1]) * 0xBF58476D1CE4E5B9u;
    h = (h ^ h >> 32 ^ (uint32_t)key[2]) * 0x94D049BB133111EBu;
    uint64_t mask = (uint64_t)(2 * s->capacity - 1);
    for (uint64_t i = 0, at = h >> 32; i < PROBES; i++) {
        int32_t *slot = &s->slots[(at + i) & mask];
        if (*slot == 0 || same_key(s->ids + *slot - KEY, key)) return slot - s->slots;
    }
    return -1;
}

static int has_key(const el_suffix *s, int64_t p)
{
    const int32_t *key = s->ids + p - KEY;
    return p >= KEY && key[0] >= 0 && key[1] >= 0 && key[2] >= 0;
}

/* Position p becomes the latest occurrence of its key. */
static void link_position(el_suffix *s, int64_t p)
{
    s->earlier[p] = 0;
    if (!has_key(s, p)) return;
    int64_t slot = find_slot(s, p);
    if (slot < 0) return;
    s->earlier[p] = s->slots[slot];
    s->slots[slot] = (int32_t)p;
}

static void link_all(el_suffix *s)
{
    memset(s->slots, 0, (size_t)(2 * s->capacity) * sizeof *s->slots);
    for (int64_t p = 1; p <= s->n; p++) link_position(s, p);
}

static int grow(el_suffix *s, int64_t wanted)
{
    int64_t capacity = s->capacity;
    while (capacity < wanted && capacity < s->limit) capacity *= 2;
    if (capacity == s->capacity) return EL_OK;
    int32_t *ids = malloc((size_t)capacity * sizeof *ids), *earlier = malloc((size_t)(capacity + 1) * sizeof *earlier);
    int32_t *slots = malloc((size_t)(2 * capacity) * sizeof *slots);
    if (!ids || !earlier || !slots) {
        free(ids);
        free(earlier);
        free(slots);
        return EL_E_NOMEM;
    }
    if (s->n > 0) memcpy(ids, s->ids, (size_t)s->n * sizeof *ids);
    free(s->ids);
    free(s->earlier);
    free(s->slots);
    s->ids = ids;
    s->earlier = earlier;
    s->slots = slots;
    s->capacity = capacity;
    link_all(s);
    return EL_OK;
}

/* Full: of what is not fixed, the older half goes. */
static void forget_half(el_suffix *s)
{
    int64_t kept = (s->n - s->fixed) / 2;
    memmove(s->ids + s->fixed, s->ids + s->n - kept, (size_t)kept * sizeof *s->ids);
    s->n = s->fixed + kept;
    link_all(s);
}

int el_suffix_new(el_suffix **out, int64_t limit)
{
    if (!out || limit < FIRST_CAPACITY || limit > MOST_TOKENS || (limit & (limit - 1))) return EL_E_ARGUMENT;
    el_suffix *s = calloc(1, sizeof *s);
    if (!s) return EL_E_NOMEM;
    s->limit = limit;
    s->capacity = FIRST_CAPACITY / 2; /* of which grow makes twice as much */
    int status = grow(s, FIRST_CAPACITY);
    if (status != EL_OK) {
        free(s);
        return status;
    }
    *out = s;
    return EL_OK;
}

void el_suffix_free(el_suffix *s)
{
    if (!s) return;
    free(s->ids);
    free(s->earlier);
    free(s->slots);
    free(s);
}

int el_suffix_append(el_suffix *s, const int32_t *ids, int64_t n)
{
    if (!s || n < 0 || (n > 0 && !ids) || n > INT64_MAX - MOST_TOKENS) return EL_E_ARGUMENT;
    int status = grow(s, s->n + n);
    if (status != EL_OK) return status;
    for (int64_t i = 0; i < n; i++) {
        if (s->n == s->limit) forget_half(s);
        s->ids[s->n++] = ids[i];
        link_position(s, s->n);
    }
    return EL_OK;
}

int el_suffix_fix(el_suffix *s)
{
    if (!s || s->n > s->limit / 2) return EL_E_ARGUMENT;
    s->fixed = s->n;
    return EL_OK;
}

/* The latest occurrences leave first, so the table becomes what it was before each of them came. */
void el_suffix_rewind(el_suffix *s)
{
    if (!s) return;
    for (; s->n > s->fixed; s->n--) {
        int64_t slot = has_key(s, s->n) ? find_slot(s, s->n) : -1;
        if (slot >= 0 && s->slots[slot] == s->n) s->slots[slot] = s->earlier[s->n];
    }
}

int64_t el_suffix_bytes(const el_suffix *s) { return s ? (int64_t)sizeof *s + (4 * s->capacity + 1) * 4 : 0; }

/* ---- proposals --------------------------------------------------------------------------------------------------- */

/* How many tokens before p are also those at the end of the text, as far as it matters. */
static int match_length(const el_suffix *s, int64_t p)
{
    int n = KEY;
    while (n < LONGEST && p > n && s->ids[p - 1 - n] >= 0 && s->ids[p - 1 - n] == s->ids[s->n - 1 - n]) n++;
    return n;
}

/* The earlier occurrences with the longest match, the latest first. */
static int find_voters(const el_suffix *s, int32_t *voters, int32_t *longest)
{
    int n = 0, seen = 0;
    *longest = 0;
    for (int64_t p = has_key(s, s->n) ? s->earlier[s->n] : 0; p > 0 && seen < OCCURRENCES; p = s->earlier[p], seen++) {
        int match = match_length(s, p);
        if (match < *longest) continue;
        if (match > *longest) n = 0;
        *longest = match;
        voters[n++] = (int32_t)p;
    }
    return n;
}

/* What stands j tokens behind an occurrence; behind the end of the text the draft goes on. */
static int32_t token_at(const el_suffix *s, const el_suffix_draft *d, int64_t p, int j)
{
    return p + j < s->n ? s->ids[p + j] : d->tokens[p + j - s->n];
}

int el_suffix_propose(const el_suffix *s, int32_t k, el_suffix_draft *d)
{
    if (!s || !d || k < 0 || k > EL_DRAFT_TOKENS) return EL_E_ARGUMENT;
    int32_t voters[OCCURRENCES];
    d->n = 0;
    int n = find_voters(s, voters, &d->match);
    for (int j = 0; j < k && n > 0; j++) {
        int32_t token[OCCURRENCES];
        int total = 0, best_votes = 0, kept = 0;
        for (int i = 0; i < n; i++) {
            token[i] = token_at(s, d, voters[i], j);
            total += token[i] >= 0;
        }
        if (total == 0) break;
        int32_t best = -1;
        for (int i = 0; i < n && n - i > best_votes; i++) { /* later tokens have fewer votes than that */
            int votes = 0;
            for (int o = i; token[i] >= 0 && o < n; o++) votes += token[o] == token[i];
            if (votes > best_votes) {
                best_votes = votes;
                best = token[i];
            }
        }
        for (int i = 0; i < n; i++)
            if (token[i] == best) voters[kept++] = voters[i];
        n = kept;
        d->tokens[j] = best;
        d->votes[j] = best_votes;
        d->totals[j] = total;
        d->n = j + 1;
    }
    return EL_OK;
}
