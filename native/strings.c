/* strings.c: vocabularies of hundreds of thousands of strings, as they lie in a GGUF header: stepping over them, finding
 * one by its text, naming what each merge joins. edgellm/strings.py and edgellm/tokenizers/merges.py have twins in Python.
 */
#include "merges.h"

typedef struct {
    uint32_t tag;        /* high half of the hash */
    int32_t id;          /* -1: empty */
    uint32_t start, len; /* its bytes in the text: known here, a look costs one line of memory and its text another */
} string_slot;

struct el_strings {
    const uint8_t *text;    /* the caller's */
    const int64_t *offsets; /* (n + 1) the caller's */
    string_slot *slots;     /* (mask + 1) open addressing, at most half full */
    uint64_t mask;
    int64_t n, longest;
};

/* ---- GGUF arrays of strings: each is a 64-bit length and so many bytes ------------------------------------------- */

static int64_t length_at(const uint8_t *p)
{
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | p[i];
    return n > INT64_MAX ? -1 : (int64_t)n;
}

int el_gguf_strings(const uint8_t *data, int64_t n_bytes, int64_t count, uint8_t *text, int64_t *offsets, int64_t *n_read)
{
    if (!data || !n_read || n_bytes < 0 || count < 0 || count > n_bytes / 8 || !text != !offsets) return EL_E_ARGUMENT;
    int64_t at = 0, out = 0, spare = n_bytes - 8 * count; /* bytes that are no length: text has room for so many */
    if (offsets) offsets[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t n = length_at(data + at);
        at += 8;
        if (n < 0 || n > spare) return EL_E_ARGUMENT;
        spare -= n;
        if (text) {
            memcpy(text + out, data + at, (size_t)n);
            out += n;
            offsets[i + 1] = out;
        }
        at += n;
    }
    *n_read = at;
    return EL_OK;
}

/* ---- UTF-8, as RFC 3629 has it: no surrogates, nothing longer than it must be, nothing above U+10FFFF -------------- */

static int is_utf8(const uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        uint64_t eight;
        if (n - i >= 8) {
            memcpy(&eight, p + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        uint8_t c = p[i];
        int64_t more = c < 0x80 ? 0 : c < 0xC2 ? -1 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF5 ? 3 : -1;
        if (more < 0 || more >= n - i) return 0;
        if (more > 0) {
            uint8_t low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
            if (p[i + 1] < low || p[i + 1] > high) return 0;
        }
        for (int64_t j = 2; j <= more; j++)
            if (p[i + j] < 0x80 || p[i + j] > 0xBF) return 0;
        i += more + 1;
    }
    return 1;
}

/* ---- finding a string by its text ---------------------------------------------------------------------------------- */

static int32_t find_hashed(const el_strings *s, const uint8_t *p, int64_t n, uint64_t h)
{
    for (uint64_t i = h & s->mask;; i = (i + 1) & s->mask) {
        const string_slot *e = &s->slots[i];
        if (e->id < 0) return -1;
        if (e->tag == (uint32_t)(h >> 32) && e->len == n && memcmp(s->text + e->start, p, (size_t)n) == 0) return e->id;
    }
}

int32_t el_strings_find(const el_strings *s, const uint8_t *p, int64_t n)
{
    return !s || !p || n < 1 || n > s->longest ? -1 : find_hashed(s, p, n, hash_bytes(p, n));
}

static int add_string(el_strings *s, int32_t id)
{
    const uint8_t *p = s->text + s->offsets[id];
    int64_t n = s->offsets[id + 1] - s->offsets[id];
    if (n < 1 || !is_utf8(p, n)) return EL_E_UNSUPPORTED;
    if (n > s->longest) s->longest = n;
    uint64_t h = hash_bytes(p, n), i = h & s->mask;
    if (find_hashed(s, p, n, h) >= 0) return EL_E_UNSUPPORTED;
    while (s->slots[i].id >= 0) i = (i + 1) & s->mask;
    s->slots[i] = (string_slot){(uint32_t)(h >> 32), id, (uint32_t)s->offsets[id], (uint32_t)n};
    return EL_OK;
}

static int offsets_ok(const int64_t *offsets, int64_t n, int64_t n_bytes)
{
    if (offsets[0] != 0 || offsets[n] != n_bytes) return 0;
    for (int64_t i = 0; i < n; i++)
        if (offsets[i + 1] < offsets[i] || offsets[i + 1] > n_bytes) return 0;
    return 1;
}

int el_strings_new(el_strings **out, const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n)
{
    if (!out || !text || !offsets || n < 0 || n > INT32_MAX / 4 || n_bytes < 0) return EL_E_ARGUMENT;
    *out = NULL;
    if (!offsets_ok(offsets, n, n_bytes)) return EL_E_ARGUMENT;
    if (n_bytes > UINT32_MAX) return EL_E_UNSUPPORTED;
    el_strings *s = calloc(1, sizeof *s);
    if (!s) return EL_E_NOMEM;
    *s = (el_strings){.text = text, .offsets = offsets, .n = n, .mask = 15};
    while (s->mask + 1 < 2 * (uint64_t)n) s->mask = 2 * s->mask + 1;
    s->slots = malloc((size_t)(s->mask + 1) * sizeof *s->slots);
    int status = s->slots ? EL_OK : EL_E_NOMEM;
    if (s->slots) memset(s->slots, 0xFF, (size_t)(s->mask + 1) * sizeof *s->slots);
    for (int64_t i = 0; i < n && status == EL_OK; i++) status = add_string(s, (int32_t)i);
    if (status == EL_OK) *out = s;
    else el_strings_free(s);
    return status;
}

void el_strings_free(el_strings *s)
{
    if (!s) return;
    free(s->slots);
    free(s);
}

/* ---- BPE vocabularies ---------------------------------------------------------------------------------------------- */

enum { MERGE_BLOCK = 32 }; /* merges whose places in the table are fetched together, for they are all over it */

static inline void fetch(const void *p)
{
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

typedef struct {
    const uint8_t *left, *right;
    int64_t n_left, n_right; /* 0: no piece can be so long, or there is no space */
    uint64_t h_left, h_right;
} merge_text;

static merge_text cut_merge(const el_strings *s, const uint8_t *p, int64_t n)
{
    merge_text m = {.left = p};
    const uint8_t *space = n > 1 ? memchr(p + 1, ' ', (size_t)(n - 1)) : NULL;
    int64_t left = space ? space - p : 0, right = n - left - 1;
    if (!space || right < 1 || left > s->longest || right > s->longest - left) return m;
    m.right = space + 1, m.n_left = left, m.n_right = right;
    m.h_left = hash_bytes(p, left), m.h_right = hash_bytes(m.right, right);
    fetch(&s->slots[m.h_left & s->mask]);
    fetch(&s->slots[m.h_right & s->mask]);
    return m;
}

static void fetch_text(const el_strings *s, uint64_t h)
{
    const string_slot *e = &s->slots[h & s->mask];
    if (e->id >= 0) fetch(s->text + e->start);
}

static int is_string(const el_strings *s, int32_t id, const uint8_t *p, int64_t n)
{
    if (id < 0 || id >= s->n || s->offsets[id + 1] - s->offsets[id] != n) return 0;
    return memcmp(s->text + s->offsets[id], p, (size_t)n) == 0;
}

/* ids of left, right and both together; 0: one of them is no piece. Most merges make the piece after the one before makes, or
 * the same: `guess`. `joined` has room for the longest piece. */
static int name_merge(const el_strings *s, const merge_text *m, int32_t guess, uint8_t *joined, int32_t *row)
{
    int64_t n = m->n_left + m->n_right;
    if (!n) return 0;
    memcpy(joined, m->left, (size_t)m->n_left);
    memcpy(joined + m->n_left, m->right, (size_t)m->n_right);
    row[0] = find_hashed(s, m->left, m->n_left, m->h_left);
    row[1] = find_hashed(s, m->right, m->n_right, m->h_right);
    if (!is_string(s, guess, joined, n)) guess = is_string(s, guess + 1, joined, n) ? guess + 1 : el_strings_find(s, joined, n);
    row[2] = guess;
    return row[0] >= 0 && row[1] >= 0 && row[2] >= 0;
}

int el_bpe_merges(const el_strings *pieces, const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n_merges,
                  int32_t *rows, int64_t *bad)
{
    if (!pieces || !text || !offsets || !rows || !bad || n_merges < 0 || n_bytes < 0) return EL_E_ARGUMENT;
    *bad = -1;
    if (!offsets_ok(offsets, n_merges, n_bytes)) return EL_E_ARGUMENT;
    uint8_t *joined = malloc((size_t)pieces->longest + 1);
    if (!joined) return EL_E_NOMEM;
    merge_text block[MERGE_BLOCK];
    int32_t guess = -1;
    for (int64_t first = 0; first < n_merges && *bad < 0; first += MERGE_BLOCK) {
        int64_t n = n_merges - first < MERGE_BLOCK ? n_merges - first : MERGE_BLOCK;
        for (int64_t i = 0; i < n; i++)
            block[i] = cut_merge(pieces, text + offsets[first + i], offsets[first + i + 1] - offsets[first + i]);
        for (int64_t i = 0; i < n; i++) fetch_text(pieces, block[i].h_left), fetch_text(pieces, block[i].h_right);
        for (int64_t i = 0; i < n && *bad < 0; i++) {
            int32_t *row = rows + 3 * (first + i);
            if (!name_merge(pieces, &block[i], guess, joined, row)) *bad = first + i;
            else guess = row[2];
        }
    }
    free(joined);
    return *bad < 0 ? EL_OK : EL_E_UNSUPPORTED;
}

/* One piece in the byte alphabet as bytes; the number of them, -1: it has other characters too. */
static int64_t spell_piece(const uint8_t *p, int64_t n, const int16_t *alphabet, uint8_t *out)
{
    int64_t n_out = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t c = p[i];
        if (c >= 0x80) {
            if (c < 0xC2 || c >= 0xC2 + (EL_ALPHABET - 0x80) / 64 || i + 1 >= n || (p[i + 1] & 0xC0) != 0x80) return -1;
            c = (c & 0x1F) << 6 | (p[++i] & 0x3F);
        }
        if (alphabet[c] < 0) return -1;
        out[n_out++] = (uint8_t)alphabet[c];
    }
    return n_out;
}

int el_bpe_spell(const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n, const int16_t *alphabet,
                 uint8_t *kinds, uint8_t *out, int64_t *out_offsets)
{
    if (!text || !offsets || !alphabet || !kinds || !out || !out_offsets || n < 0 || n_bytes < 0) return EL_E_ARGUMENT;
    if (!offsets_ok(offsets, n, n_bytes)) return EL_E_ARGUMENT;
    for (int c = 0; c < EL_ALPHABET; c++)
        if (alphabet[c] < -1 || alphabet[c] > 255) return EL_E_ARGUMENT;
    out_offsets[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        uint8_t *at = out + out_offsets[i];
        int64_t size = offsets[i + 1] - offsets[i], n_out = -1;
        if (size < 1) return EL_E_ARGUMENT;
        if (kinds[i] != EL_PIECE_NEVER) n_out = spell_piece(text + offsets[i], size, alphabet, at);
        if (n_out < 0) {
            kinds[i] = EL_PIECE_NEVER;
            *at = '?';
            n_out = 1;
        }
        out_offsets[i + 1] = out_offsets[i] + n_out;
    }
    return EL_OK;
}
