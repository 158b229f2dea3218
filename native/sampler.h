/* sampler.h: what the files of the sampler share: the list of candidates, exp, log and random numbers. */
#ifndef EL_SAMPLER_H
#define EL_SAMPLER_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "edgellm.h"

typedef struct {
    double *x;     /* (n) logits */
    double *e;     /* (n) exp(x - largest x), while has_e */
    double *shift; /* (n) typical: distance from the expected surprise */
    int32_t *id;   /* (n) ascending */
    int32_t *heap; /* (n) indices of candidates; also counts for each of them */
    int64_t n;
    int has_e;
    int64_t best; /* index of the best one, until logits change or candidates are cut; -1: not known */
} candidates;

/* ---- exp and log: the same bits on every machine ------------------------------------------------------------- */

/* e^x for x <= 709; 0 below -708. x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^13 (error under 1e-17). */
static inline double exp_of(double x)
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
static inline double log_of(double x)
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

/* ---- sums over candidates --------------------------------------------------------------------------------------- */

static inline double largest(const double *v, int64_t n)
{
    double best = v[0];
    for (int64_t i = 1; i < n; i++)
        if (v[i] > best) best = v[i];
    return best;
}

/* Index of the best one, the first of equals. */
static inline int64_t best_of(const candidates *c)
{
    int64_t best = 0;
    for (int64_t i = 1; i < c->n; i++)
        if (c->x[i] > c->x[best]) best = i;
    return best;
}

static inline double sum(const double *v, int64_t n)
{
    double total = 0.0;
    for (int64_t i = 0; i < n; i++) total += v[i];
    return total;
}

static inline void keep(candidates *c, int64_t to, int64_t from)
{
    c->x[to] = c->x[from];
    c->e[to] = c->e[from];
    c->id[to] = c->id[from];
}

/* Logits have changed. */
static inline void changed(candidates *c)
{
    c->has_e = 0;
    c->best = -1;
}

static inline void fresh_exponentials(candidates *c)
{
    double top = largest(c->x, c->n);
    for (int64_t i = 0; i < c->n; i++) c->e[i] = exp_of(c->x[i] - top);
    c->has_e = 1;
}

/* Makes e what x says, unless it is. */
static inline void exponentials(candidates *c)
{
    if (!c->has_e) fresh_exponentials(c);
}

/* Index of the candidate with this id, or -1. */
static inline int64_t find_id(const candidates *c, int32_t id)
{
    if (id < c->n && c->id[id] == id) return id; /* ids ascend, so none before it is missing */
    int64_t low = 0, high = c->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (c->id[middle] < id) low = middle + 1;
        else high = middle;
    }
    return low < c->n && c->id[low] == id ? low : -1;
}

/* ---- sampler_filters.c: which candidates stay ----------------------------------------------------------------- */

void el_filter_top_k(candidates *c, int64_t k);
void el_filter_typical(candidates *c, double typical_p);
void el_filter_top_p(candidates *c, double p);
void el_filter_min_p(candidates *c, double p);
void el_filter_top_n_sigma(candidates *c, double n);
void el_filter_xtc(candidates *c, double probability, double threshold, double chance);
void el_filter_best(candidates *c); /* only the best one, the lowest id of equals */
double el_entropy(candidates *c);   /* of the candidates, in nats */

/* ---- sampler_penalties.c: what came before lowers logits ------------------------------------------------------ */

/* recent (n_recent): ids that were checked, the last one at the end. */
void el_penalise(const el_sampling *p, candidates *c, const int32_t *recent, int64_t n_recent);
/* matches: (n_recent) scratch */
void el_dry(const el_sampling *p, const el_sampling_tokens *t, candidates *c, const int32_t *recent, int64_t n_recent,
            int32_t *matches);

#endif
