/* sampler_filters.c: samplers that leave candidates out.
 *
 * Top-k (Fan et al. 2018), locally typical (Meister et al. 2022), top-p (Holtzman et al. 2020), min-p (Nguyen et al.
 * 2024), top-n-sigma (Tang et al. 2024) and XTC ("exclude top choices", p-e-w 2024).
 *
 * Nothing is ever sorted whole: each filter finds its last kept candidate with a heap and then cuts the list there.
 */
#include "sampler.h"

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

/* Keeps the candidates down to `last` in the order of larger logits, lower ids first. */
static void cut_after_logit(candidates *c, int32_t last)
{
    double x = c->x[last];
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->x[i] > x || (c->x[i] == x && i <= last)) keep(c, n++, i);
    c->n = n;
}

void el_filter_top_k(candidates *c, int64_t k)
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

double el_entropy(candidates *c)
{
    fresh_exponentials(c);
    double top = largest(c->x, c->n), total = sum(c->e, c->n), log_total = log_of(total), entropy = 0.0;
    for (int64_t i = 0; i < c->n; i++) {
        double log_p = (c->x[i] - top) - log_total;
        if (c->e[i] > 0.0) entropy -= c->e[i] / total * log_p;
    }
    return entropy;
}

/* Keeps the tokens whose surprise is nearest to the entropy, until their probability passes `typical_p`. */
void el_filter_typical(candidates *c, double typical_p)
{
    if (typical_p >= 1.0 || c->n == 1) return;
    double entropy = el_entropy(c), top = largest(c->x, c->n), total = sum(c->e, c->n), log_total = log_of(total);
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
    c->has_e = 0; /* the best one may be gone */
}

/* Keeps the most probable tokens until their probability reaches `p`. */
void el_filter_top_p(candidates *c, double p)
{
    if (p >= 1.0 || c->n == 1) return;
    exponentials(c);
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
void el_filter_min_p(candidates *c, double p)
{
    if (p <= 0.0 || c->n == 1) return;
    exponentials(c);
    double limit = p * largest(c->e, c->n);
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i] >= limit) keep(c, n++, i);
    c->n = n;
}

/* Keeps the logits down to `n` standard deviations below the best one. */
void el_filter_top_n_sigma(candidates *c, double n)
{
    if (n <= 0.0 || c->n == 1) return;
    double mean = sum(c->x, c->n) / (double)c->n, squares = 0.0;
    for (int64_t i = 0; i < c->n; i++) squares += (c->x[i] - mean) * (c->x[i] - mean);
    double limit = largest(c->x, c->n) - n * sqrt(squares / (double)c->n);
    int64_t n_kept = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->x[i] >= limit) keep(c, n_kept++, i);
    c->n = n_kept;
}

/* Where `chance` is at most `probability`: of the tokens that reach `threshold`, only the least probable one stays, and
 * all those below the threshold. */
void el_filter_xtc(candidates *c, double probability, double threshold, double chance)
{
    if (probability <= 0.0 || threshold > 0.5 || c->n < 2 || chance > probability) return;
    fresh_exponentials(c);
    double limit = threshold * sum(c->e, c->n);
    int64_t last = -1;
    for (int64_t i = 0; i < c->n; i++)
        if (c->e[i] >= limit && (last < 0 || c->x[i] <= c->x[last])) last = i; /* of equals the highest id */
    if (last < 0) return;
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (i == last || c->e[i] < limit) keep(c, n++, i);
    c->n = n;
    c->has_e = 0; /* the best one may be gone */
}

void el_filter_best(candidates *c)
{
    keep(c, 0, best_of(c));
    c->n = 1;
}
