/* sampler_penalties.c: samplers that lower the logits of tokens because of what came before.
 *
 * Penalties: Keskar et al. 2019 (repeat; CTRL), with llama.cpp's rule for negative logits; presence and frequency as in
 * the OpenAI API. DRY ("don't repeat yourself"): p-e-w 2024, with the sequence breakers of llama.cpp.
 */
#include "sampler.h"

/* The part of `recent` that a sampler looks at: its last `n` ids, all of them where n is negative. */
static int64_t window(const int32_t **recent, int64_t n_recent, int64_t n)
{
    if (n < 0 || n >= n_recent) return n_recent;
    *recent += n_recent - n;
    return n;
}

void el_penalise(const el_sampling *p, candidates *c, const int32_t *recent, int64_t n_recent)
{
    if (p->repeat_penalty == 1.0 && p->presence_penalty == 0.0 && p->frequency_penalty == 0.0) return;
    n_recent = window(&recent, n_recent, p->repeat_last_n);
    int32_t *count = c->heap; /* (n), set only where a recent token is */
    for (int64_t i = 0; i < n_recent; i++) {
        int64_t at = find_id(c, recent[i]);
        if (at >= 0) count[at] = 0;
    }
    for (int64_t i = 0; i < n_recent; i++) {
        int64_t at = find_id(c, recent[i]);
        if (at >= 0) count[at]++;
    }
    for (int64_t i = 0; i < n_recent; i++) {
        int64_t at = find_id(c, recent[i]);
        if (at < 0 || count[at] == 0) continue; /* 0: done at an earlier occurrence */
        double x = c->x[at];
        x = x <= 0.0 ? x * p->repeat_penalty : x / p->repeat_penalty;
        c->x[at] = x - ((double)count[at] * p->frequency_penalty + p->presence_penalty);
        count[at] = 0;
    }
    changed(c);
}

/* ---- DRY ------------------------------------------------------------------------------------------------------- */

/* The first breaker whose head is `token`, or n_breakers. */
static int64_t first_breaker(const el_sampling_tokens *t, int32_t token)
{
    int64_t low = 0, high = t->n_breakers;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (t->heads[middle] < token) low = middle + 1;
        else high = middle;
    }
    return low < t->n_breakers && t->heads[low] == token ? low : t->n_breakers;
}

static int64_t tail_length(const el_sampling_tokens *t, int64_t b)
{
    return t->tail_ends[b] - (b > 0 ? t->tail_ends[b - 1] : 0);
}

/* Length of the longest tail that stands in `after` (n) behind its head `token`; -1: no breaker begins here. */
static int64_t breaker_here(const el_sampling_tokens *t, int32_t token, const int32_t *after, int64_t n)
{
    int64_t longest = -1;
    for (int64_t b = first_breaker(t, token); b < t->n_breakers && t->heads[b] == token; b++) {
        int64_t length = tail_length(t, b);
        const int32_t *tail = t->tails + (t->tail_ends[b] - length);
        if (length <= longest || length > n) continue;
        if (length == 0 || memcmp(tail, after, (size_t)length * sizeof *tail) == 0) longest = length;
    }
    return longest;
}

/* How many tokens at the end have no breaker in them: a repeated stretch is never longer. */
static int64_t unbroken(const el_sampling_tokens *t, const int32_t *recent, int64_t n)
{
    for (int64_t i = 0; i < n; i++) { /* tokens behind the one that is looked at */
        int64_t length = breaker_here(t, recent[n - 1 - i], recent + n - i, i);
        if (length >= 0) return i - length;
    }
    return n;
}

/* matches[k], 1 <= k < n: how many tokens before the last k are the same as those at the end (the Z function of Gusfield
 * 1997, section 1.4, read from the end; linear). */
static void match_ends(const int32_t *recent, int64_t n, int32_t *matches)
{
    const int32_t *last = recent + n - 1;
    int64_t left = 0, right = 0; /* the match that reaches furthest back: [left, right), counted from the end */
    for (int64_t k = 1; k < n; k++) {
        int64_t length = 0;
        if (k < right) {
            length = matches[k - left];
            if (length > right - k) length = right - k;
        }
        while (k + length < n && last[-length] == last[-(k + length)]) length++;
        matches[k] = (int32_t)length;
        if (k + length > right) {
            left = k;
            right = k + length;
        }
    }
}

static double power(double base, int64_t n)
{
    double result = 1.0;
    for (; n > 0; n >>= 1) {
        if (n & 1) result *= base;
        base *= base;
    }
    return result;
}

void el_dry(const el_sampling *p, const el_sampling_tokens *t, candidates *c, const int32_t *recent, int64_t n_recent,
            int32_t *matches)
{
    if (p->dry_multiplier == 0.0) return;
    n_recent = window(&recent, n_recent, p->dry_penalty_last_n);
    int64_t allowed = p->dry_allowed_length, limit = unbroken(t, recent, n_recent);
    if (n_recent <= allowed || limit < allowed) return;
    match_ends(recent, n_recent, matches);
    int32_t *longest = c->heap; /* (n) set only for tokens that would go on with a repeated stretch */
    for (int pass = 0; pass < 2; pass++)
        for (int64_t k = 1; k < n_recent; k++) {
            int64_t length = matches[k] < limit ? matches[k] : limit;
            int64_t at = length >= allowed ? find_id(c, recent[n_recent - k]) : -1;
            if (at >= 0 && (pass == 0 || longest[at] < length)) longest[at] = pass == 0 ? -1 : (int32_t)length;
        }
    /* above this exponent a float would overflow */
    int64_t most = p->dry_base > 1.0 ? (int64_t)(88.7228391 / log_of(p->dry_base)) : INT64_MAX;
    for (int64_t k = 1; k < n_recent; k++) {
        int32_t token = recent[n_recent - k];
        if ((matches[k] < limit ? matches[k] : limit) < allowed) continue;
        int64_t at = find_id(c, token);
        if (at < 0 || longest[at] < 0) continue; /* < 0: done at another occurrence */
        int64_t exponent = longest[at] - allowed;
        longest[at] = -1;
        if (breaker_here(t, token, NULL, 0) == 0) continue; /* a breaker by itself may come again */
        c->x[at] -= p->dry_multiplier * power(p->dry_base, exponent < most ? exponent : most);
    }
    changed(c);
}
