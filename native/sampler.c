/* sampler.c: one token from one row of logits.
 *
 * The chain is llama.cpp's: penalties, top-k (Fan et al. 2018), locally typical (Meister et al. 2022), top-p (Holtzman
 * et al. 2020), min-p (Nguyen et al. 2024), temperature, one draw. edgellm/sampling/reference.py says the same in NumPy
 * and gives the same token: candidates stay in the order of their ids, every sum runs in that order (or, where a filter
 * needs it, from the best candidate down), exp and log are our own, and no product is fused into a sum.
 *
 * Random numbers are counter-based (Salmon et al. 2011, Philox4x32-10): a draw depends on the seed and the index of the
 * token, on nothing else, so any machine, thread count or restart gives the same one.
 *
 * Nothing is ever sorted whole: each filter finds its last kept candidate with a heap and then cuts the list there.
 */
#include "edgellm.h"

#include <math.h>
#include <string.h>

typedef struct {
    double *x;     /* (n) logits after penalties */
    double *e;     /* (n) exp(x - largest x) */
    double *shift; /* (n) typical: distance from the expected surprise */
    int32_t *id;   /* (n) ascending */
    int32_t *heap; /* (n) indices of candidates */
    int64_t n;
} candidates;

/* ---- exp and log -------------------------------------------------------------------------------------------- */

/* e^x for x <= 709; 0 below -708. x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^13 (error under 1e-17). */
static double exp_of(double x)
{
    if (!(x >= -708.0)) return 0.0;
    const double shifter = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer */
    double n = (x * 1.4426950408889634 + shifter) - shifter;
    double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10; /* ln 2 in two parts */
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits = (uint64_t)(1023 + (int64_t)n) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return p * scale;
}

/* ln x for normal x > 0: x = m 2^k with m in [sqrt 1/2, sqrt 2), then the series of artanh. */
static double log_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int64_t k = (int64_t)(bits >> 52) - 1022;
    bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FE0000000000000u;
    double m;
    memcpy(&m, &bits, 8); /* [1/2, 1) */
    if (m < 0.70710678118654752440) {
        m += m;
        k -= 1;
    }
    double s = (m - 1.0) / (m + 1.0), q = s * s, p = 1.0 / 23.0;
    for (int d = 21; d >= 1; d -= 2) p = p * q + 1.0 / (double)d;
    return (double)k * 0.69314718055994530942 + 2.0 * s * p;
}

void el_exp_log_test(const double *x, double *exp_out, double *log_out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        exp_out[i] = exp_of(x[i]);
        log_out[i] = x[i] > 0.0 ? log_of(x[i]) : 0.0;
    }
}

/* ---- random numbers ------------------------------------------------------------------------------------------ */

void el_philox(const uint32_t *counter, const uint32_t *key, uint32_t *out)
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)b;
        c2 = n2;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* A double in [0, 1) with 53 random bits. */
static double uniform(uint64_t seed, uint64_t index)
{
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    el_philox(counter, key, out);
    return (double)(((uint64_t)out[1] << 32 | out[0]) >> 11) * 0x1p-53;
}

/* ---- heaps of candidate indices ---------------------------------------------------------------------------- */

/* Which of two candidates comes nearer to the top of the heap; equal values: see each order. */
static int worse_logit(const double *x, int32_t a, int32_t b) { return x[a] < x[b] || (x[a] == x[b] && a > b); }
static int better_logit(const double *x, int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); }
static int smaller_shift(const double *x, int32_t a, int32_t b) { return x[a] < x[b] || (x[a] == x[b] && a < b); }

typedef int (*before_fn)(const double *, int32_t, int32_t);

static inline void sift_down(int32_t *heap, int64_t n, int64_t at, const double *values, before_fn before)
{
    int32_t moved = heap[at];
    for (int64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && before(values, heap[child + 1], heap[child])) child++;
        if (!before(values, heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static inline void heapify(int32_t *heap, int64_t n, const double *values, before_fn before)
{
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(heap, n, i, values, before);
}

static inline void pop(int32_t *heap, int64_t *n, const double *values, before_fn before)
{
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(heap, *n, 0, values, before);
}

/* ---- the filters ---------------------------------------------------------------------------------------------- */

static void keep(candidates *c, int64_t to, int64_t from)
{
    c->x[to] = c->x[from];
    c->e[to] = c->e[from];
    c->id[to] = c->id[from];
}

static double largest(const double *v, int64_t n)
{
    double best = v[0];
    for (int64_t i = 1; i < n; i++)
        if (v[i] > best) best = v[i];
    return best;
}

static double sum(const double *v, int64_t n)
{
    double total = 0.0;
    for (int64_t i = 0; i < n; i++) total += v[i];
    return total;
}

/* Keeps the candidates down to `last` in the order of larger logits, lower ids first. */
static void cut_after_logit(candidates *c, int32_t last)
{
    double x = c->x[last];
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->x[i] > x || (c->x[i] == x && i <= last)) keep(c, n++, i);
    c->n = n;
}

static void top_k(candidates *c, int64_t k)
{
    if (k <= 0 || k >= c->n) return;
    for (int64_t i = 0; i < k; i++) c->heap[i] = (int32_t)i;
    heapify(c->heap, k, c->x, worse_logit); /* the worst of the k best so far is on top */
    for (int64_t i = k; i < c->n; i++) {
        if (!(c->x[i] > c->x[c->heap[0]])) continue;
        c->heap[0] = (int32_t)i;
        sift_down(c->heap, k, 0, c->x, worse_logit);
    }
    cut_after_logit(c, c->heap[0]);
}

static void exponentials(candidates *c)
{
    double top = largest(c->x, c->n);
    for (int64_t i = 0; i < c->n; i++) c->e[i] = exp_of(c->x[i] - top);
}

/* Keeps the tokens whose surprise is nearest to the entropy, until their probability passes `typical_p`. */
static void typical(candidates *c, double typical_p)
{
    if (typical_p >= 1.0 || c->n == 1) return;
    double top = largest(c->x, c->n), total = sum(c->e, c->n), log_total = log_of(total), entropy = 0.0;
    for (int64_t i = 0; i < c->n; i++) {
        double log_p = (c->x[i] - top) - log_total;
        if (c->e[i] > 0.0) entropy -= c->e[i] / total * log_p;
    }
    for (int64_t i = 0; i < c->n; i++) {
        c->shift[i] = fabs(-((c->x[i] - top) - log_total) - entropy);
        c->heap[i] = (int32_t)i;
    }
    int64_t left = c->n;
    int32_t last = 0;
    double mass = 0.0;
    heapify(c->heap, left, c->shift, smaller_shift);
    while (left > 0) {
        last = c->heap[0];
        mass += c->e[last] / total;
        if (mass > typical_p) break;
        pop(c->heap, &left, c->shift, smaller_shift);
    }
    if (left == 0) return;
    double limit = c->shift[last];
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->shift[i] < limit || (c->shift[i] == limit && i <= last)) keep(c, n++, i);
    c->n = n;
}

/* Keeps the most probable tokens until their probability reaches `p`. */
static void top_p(candidates *c, double p)
{
    if (p >= 1.0 || c->n == 1) return;
    double total = sum(c->e, c->n), wanted = p * total, mass = 0.0;
    /* Candidates below this hold together less than half of 1 - p, so the cut lies above them: leave them out of the
     * heap. (Rounding of the sums is far smaller than the other half.) */
    double floor = 1.0 - p > 1e-6 ? 0.5 * (1.0 - p) * total / (double)c->n : 0.0;
    int64_t left = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i] >= floor) c->heap[left++] = (int32_t)i;
    heapify(c->heap, left, c->x, better_logit);
    while (left > 0) {
        int32_t last = c->heap[0];
        mass += c->e[last];
        if (mass >= wanted) {
            cut_after_logit(c, last);
            return;
        }
        pop(c->heap, &left, c->x, better_logit);
    }
}

/* Keeps the tokens at least `p` times as probable as the most probable one. */
static void min_p(candidates *c, double p)
{
    if (p <= 0.0 || c->n == 1) return;
    double limit = p * largest(c->e, c->n);
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i] >= limit) keep(c, n++, i);
    c->n = n;
}

static int32_t draw(candidates *c, double temperature, uint64_t seed, uint64_t counter)
{
    double top = largest(c->x, c->n);
    for (int64_t i = 0; i < c->n; i++) c->e[i] = exp_of((c->x[i] - top) / temperature);
    double target = uniform(seed, counter) * sum(c->e, c->n), mass = 0.0;
    int32_t last = c->id[0];
    for (int64_t i = 0; i < c->n; i++) {
        mass += c->e[i];
        if (mass > target) return c->id[i];
        if (c->e[i] > 0.0) last = c->id[i];
    }
    return last;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

static int has_penalties(const el_sampling *p)
{
    return p->repeat_penalty != 1.0 || p->presence_penalty != 0.0 || p->frequency_penalty != 0.0;
}

static int in_range(double v, double low, double high) { return v >= low && v <= high; }

static int check_params(const el_sampling *p)
{
    int ok = in_range(p->temperature, 0.0, 1e6) && in_range(p->top_p, 0.0, 1e6) && in_range(p->min_p, -1e6, 1.0) &&
             in_range(p->typical_p, 0.0, 1e6) && in_range(p->repeat_penalty, 1e-6, 1e6) &&
             in_range(p->presence_penalty, -1e6, 1e6) && in_range(p->frequency_penalty, -1e6, 1e6);
    return ok ? EL_OK : EL_E_ARGUMENT;
}

/* Keskar et al. 2019 (repeat); presence and frequency as in the OpenAI API. x is still indexed by token id. */
static int penalise(const el_sampling *p, candidates *c, int64_t n_vocab, const int32_t *recent, int64_t n_recent)
{
    int32_t *count = c->heap; /* (n_vocab), set only where a recent token is */
    for (int64_t i = 0; i < n_recent; i++) {
        if (recent[i] < 0 || recent[i] >= n_vocab) return EL_E_ARGUMENT;
        count[recent[i]] = 0;
    }
    for (int64_t i = 0; i < n_recent; i++) count[recent[i]]++;
    for (int64_t i = 0; i < n_recent; i++) {
        int32_t id = recent[i];
        if (count[id] == 0) continue; /* done at an earlier occurrence */
        double x = c->x[id];
        x = x <= 0.0 ? x * p->repeat_penalty : x / p->repeat_penalty;
        c->x[id] = x - ((double)count[id] * p->frequency_penalty + p->presence_penalty);
        count[id] = 0;
    }
    return EL_OK;
}

int64_t el_sample_scratch_bytes(int64_t n_vocab)
{
    if (n_vocab < 1 || n_vocab > INT32_MAX) return -1;
    return n_vocab * (int64_t)(3 * sizeof(double) + 2 * sizeof(int32_t));
}

int el_sample(const el_sampling *params, const float *logits, int64_t n_vocab, const int32_t *recent, int64_t n_recent,
              uint64_t seed, uint64_t counter, void *scratch, int64_t scratch_bytes, int32_t *token)
{
    int64_t needed = el_sample_scratch_bytes(n_vocab);
    if (!params || !logits || !scratch || !token || needed < 0 || scratch_bytes < needed || n_recent < 0 ||
        n_recent > INT32_MAX || (n_recent > 0 && !recent) || check_params(params) != EL_OK)
        return EL_E_ARGUMENT;
    candidates c;
    c.x = scratch;
    c.e = c.x + n_vocab;
    c.shift = c.e + n_vocab;
    c.id = (int32_t *)(c.shift + n_vocab);
    c.heap = c.id + n_vocab;
    for (int64_t i = 0; i < n_vocab; i++) {
        if (!(logits[i] < INFINITY)) return EL_E_NONFINITE; /* NaN too */
        c.x[i] = (double)logits[i];
    }
    if (has_penalties(params)) {
        int status = penalise(params, &c, n_vocab, recent, n_recent);
        if (status != EL_OK) return status;
    }
    c.n = 0;
    int64_t best = -1;
    for (int64_t i = 0; i < n_vocab; i++) {
        double x = c.x[i];
        if (!(x > -INFINITY)) continue;
        if (best < 0 || x > c.x[best]) best = c.n;
        c.x[c.n] = x;
        c.id[c.n++] = (int32_t)i;
    }
    if (c.n == 0) return EL_E_NONFINITE;
    if (params->temperature == 0.0) {
        *token = c.id[best];
        return EL_OK;
    }
    top_k(&c, params->top_k);
    exponentials(&c);
    typical(&c, params->typical_p);
    top_p(&c, params->top_p);
    min_p(&c, params->min_p);
    *token = draw(&c, params->temperature, seed, counter);
    return EL_OK;
}
