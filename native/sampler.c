/* sampler.c: one token from one row of logits.
 *
 * The samplers and their meanings are llama.cpp's: sampler_penalties.c has those that lower logits, sampler_filters.c those
 * that leave candidates out, and here are temperature (fixed, or following the entropy: kalomaze 2023), Mirostat 2.0 (Basu
 * et al. 2021) and the draw. edgellm/sampling/reference.py says the same in NumPy and gives the same token: candidates
 * stay in the order of their ids, every sum runs in that order (or, where a filter needs it, from the best candidate down),
 * exp and log are our own, and no product is fused into a sum.
 *
 * Random numbers are counter-based (Salmon et al. 2011, Philox4x32-10): a draw depends on the seed and the index of the
 * token, on nothing else, so any machine, thread count or restart gives the same one.
 */
#include "sampler.h"

/* ---- random numbers ------------------------------------------------------------------------------------------ */

void el_exp_log_test(const double *x, double *exp_out, double *log_out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        exp_out[i] = exp_of(x[i]);
        log_out[i] = x[i] > 0.0 ? log_of(x[i]) : 0.0;
    }
}

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


/* Two independent doubles in [0, 1) with 53 random bits each: for the draw, and for a sampler that takes chances. */
static void uniform(uint64_t seed, uint64_t index, double *draw, double *chance)
{
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    el_philox(counter, key, out);
    *draw = (double)(((uint64_t)out[1] << 32 | out[0]) >> 11) * 0x1p-53;
    *chance = (double)(((uint64_t)out[3] << 32 | out[2]) >> 11) * 0x1p-53;
}

/* ---- temperature and the draw ------------------------------------------------------------------------------------ */

/* The temperature for these candidates: fixed, or from range below to range above, the higher the more even they are. */
static double temperature_of(const el_sampling *p, candidates *c)
{
    double range = p->dynatemp_range;
    if (range <= 0.0 || c->n < 2) return p->temperature;
    double low = p->temperature > range ? p->temperature - range : 0.0, high = p->temperature + range;
    double evenness = el_entropy(c) / log_of((double)c->n); /* 0 .. 1 */
    double share = p->dynatemp_exponent == 0.0 ? 1.0 : 0.0;
    if (evenness > 0.0) share = exp_of(p->dynatemp_exponent * log_of(evenness));
    return low + (high - low) * share;
}

/* Below this only the best one has a chance, and a quotient could overflow. */
#define COLD 1e-6

static void heat(candidates *c, double temperature)
{
    if (temperature < COLD) el_filter_best(c);
    else
        for (int64_t i = 0; i < c->n; i++) c->x[i] /= temperature;
    changed(c);
}

/* Index of a candidate. `at` in [0, 1) says which. */
static int64_t draw(candidates *c, double temperature, double at)
{
    if (temperature <= 0.0) el_filter_best(c);
    if (c->n == 1) return 0;
    double top = largest(c->x, c->n);
    for (int64_t i = 0; i < c->n; i++) c->e[i] = exp_of((c->x[i] - top) / temperature);
    double target = at * sum(c->e, c->n), mass = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < c->n; i++) {
        mass += c->e[i];
        if (mass > target) return i;
        if (c->e[i] > 0.0) last = i;
    }
    return last;
}

#define LN_2 0.69314718055994530942

/* Draws from the candidates whose surprise is at most mu bits, and moves mu towards where the mean surprise is tau. */
static int64_t mirostat(const el_sampling *p, candidates *c, double *mu, double at)
{
    fresh_exponentials(c);
    double top = largest(c->x, c->n), log_total = log_of(sum(c->e, c->n));
    int64_t n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->x[i] == top || -((c->x[i] - top) - log_total) / LN_2 <= *mu) keep(c, n++, i);
    c->n = n;
    log_total = log_of(sum(c->e, n));
    int64_t chosen = draw(c, 1.0, at);
    double surprise = -((c->x[chosen] - top) - log_total) / LN_2;
    *mu -= p->mirostat_eta * (surprise - p->mirostat_tau);
    return chosen;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

static int in_range(double v, double low, double high) { return v >= low && v <= high; }

static int check_params(const el_sampling *p, const double *mu)
{
    int ok = in_range(p->temperature, 0.0, 1e6) && in_range(p->top_p, 0.0, 1e6) && in_range(p->min_p, -1e6, 1.0) &&
             in_range(p->typical_p, 0.0, 1e6) && in_range(p->repeat_penalty, 1e-6, 1e6) &&
             in_range(p->presence_penalty, -1e6, 1e6) && in_range(p->frequency_penalty, -1e6, 1e6) &&
             in_range(p->dynatemp_range, -1e6, 1e6) && in_range(p->dynatemp_exponent, 0.0, 1e6) &&
             in_range(p->top_n_sigma, -1e6, 1e6) && in_range(p->xtc_probability, -1e6, 1e6) &&
             in_range(p->xtc_threshold, 0.0, 1e6) && in_range(p->dry_multiplier, -1e6, 1e6) &&
             in_range(p->dry_base, 1.0, 1e6) && p->dry_allowed_length >= 0 && (p->mirostat == 0 || p->mirostat == 2) &&
             in_range(p->mirostat_tau, 0.0, 1e6) && in_range(p->mirostat_eta, 0.0, 1e6) &&
             (p->mirostat == 0 || (mu && in_range(*mu, -1e300, 1e300)));
    if (!ok || p->n_samplers < 0 || p->n_samplers > EL_SAMPLER_TEMPERATURE + 1) return EL_E_ARGUMENT;
    uint32_t seen = 0;
    for (int i = 0; i < p->n_samplers; i++) {
        int32_t s = p->samplers[i];
        if (s < 0 || s > EL_SAMPLER_TEMPERATURE || (seen >> s & 1)) return EL_E_ARGUMENT;
        seen |= 1u << s;
    }
    return EL_OK;
}

static int check_ids(const int32_t *ids, int64_t n, int64_t n_vocab)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab) return EL_E_ARGUMENT;
    return EL_OK;
}

static int check_tokens(const el_sampling_tokens *t, int64_t n_vocab)
{
    if (!t || t->n_biases < 0 || t->n_breakers < 0 || (t->n_biases > 0 && (!t->bias_ids || !t->biases)) ||
        (t->n_breakers > 0 && (!t->heads || !t->tail_ends || !t->tails)))
        return EL_E_ARGUMENT;
    int64_t end = 0;
    for (int64_t i = 0; i < t->n_biases; i++)
        if (!(t->biases[i] < INFINITY)) return EL_E_ARGUMENT; /* NaN too */
    for (int64_t b = 0; b < t->n_breakers; b++) {
        if (t->tail_ends[b] < end || (b > 0 && t->heads[b] < t->heads[b - 1])) return EL_E_ARGUMENT;
        end = t->tail_ends[b];
    }
    return check_ids(t->bias_ids, t->n_biases, n_vocab);
}

/* The list of those that can be chosen at all, with their biases. */
static int begin(candidates *c, const el_sampling_tokens *t, const float *logits, int64_t n_vocab)
{
    double top = -INFINITY;
    c->n = 0;
    changed(c);
    for (int64_t i = 0; i < n_vocab; i++) {
        double x = (double)logits[i];
        if (!(x < INFINITY)) return EL_E_NONFINITE; /* NaN too */
        if (!(x > -INFINITY)) continue;
        if (x > top) {
            top = x;
            c->best = c->n;
        }
        c->x[c->n] = x;
        c->id[c->n++] = (int32_t)i;
    }
    if (t->n_biases > 0) {
        for (int64_t i = 0; i < t->n_biases; i++) {
            int64_t at = find_id(c, t->bias_ids[i]);
            if (at >= 0) c->x[at] += t->biases[i];
        }
        int64_t n = 0;
        for (int64_t i = 0; i < c->n; i++)
            if (c->x[i] > -INFINITY) keep(c, n++, i);
        c->n = n;
        c->best = -1;
    }
    return c->n > 0 ? EL_OK : EL_E_NONFINITE;
}

typedef struct {
    const int32_t *ids; /* (n) */
    int64_t n;
    int32_t *matches; /* (n) scratch */
} history;

/* One sampler. `last`: nothing comes after it but the draw, which then divides by the temperature by itself. */
static void apply(int32_t sampler, const el_sampling *p, const el_sampling_tokens *t, candidates *c, const history *h,
                  double chance, int last, double *temperature)
{
    switch (sampler) {
    case EL_SAMPLER_PENALTIES: el_penalise(p, c, h->ids, h->n); break;
    case EL_SAMPLER_DRY: el_dry(p, t, c, h->ids, h->n, h->matches); break;
    case EL_SAMPLER_TOP_N_SIGMA: el_filter_top_n_sigma(c, p->top_n_sigma); break;
    case EL_SAMPLER_TOP_K: el_filter_top_k(c, p->top_k); break;
    case EL_SAMPLER_TYPICAL_P: el_filter_typical(c, p->typical_p); break;
    case EL_SAMPLER_TOP_P: el_filter_top_p(c, p->top_p); break;
    case EL_SAMPLER_MIN_P: el_filter_min_p(c, p->min_p); break;
    case EL_SAMPLER_XTC: el_filter_xtc(c, p->xtc_probability, p->xtc_threshold, chance); break;
    case EL_SAMPLER_TEMPERATURE:
        *temperature = temperature_of(p, c);
        if (last) break;
        heat(c, *temperature);
        *temperature = 1.0;
        break;
    }
}

int64_t el_sample_scratch_bytes(int64_t n_vocab, int64_t n_recent)
{
    if (n_vocab < 1 || n_vocab > INT32_MAX || n_recent < 0 || n_recent > INT32_MAX) return -1;
    return n_vocab * (int64_t)(3 * sizeof(double) + 2 * sizeof(int32_t)) + n_recent * (int64_t)sizeof(int32_t);
}

int el_sample(const el_sampling *params, const el_sampling_tokens *tokens, const float *logits, int64_t n_vocab,
              const int32_t *recent, int64_t n_recent, uint64_t seed, uint64_t counter, double *mu, void *scratch,
              int64_t scratch_bytes, int32_t *token)
{
    int64_t needed = el_sample_scratch_bytes(n_vocab, n_recent);
    if (!params || !logits || !scratch || !token || needed < 0 || scratch_bytes < needed || (n_recent > 0 && !recent) ||
        check_params(params, mu) != EL_OK || check_tokens(tokens, n_vocab) != EL_OK ||
        check_ids(recent, n_recent, n_vocab) != EL_OK)
        return EL_E_ARGUMENT;
    candidates c;
    c.x = scratch;
    c.e = c.x + n_vocab;
    c.shift = c.e + n_vocab;
    c.id = (int32_t *)(c.shift + n_vocab);
    c.heap = c.id + n_vocab;
    history h = {recent, n_recent, c.heap + n_vocab};
    int status = begin(&c, tokens, logits, n_vocab), greedy = params->temperature == 0.0;
    if (status != EL_OK) return status;
    double at, chance, temperature = 1.0;
    uniform(seed, counter, &at, &chance);
    for (int i = 0; i < params->n_samplers; i++) {
        int32_t sampler = params->samplers[i];
        if (greedy && sampler != EL_SAMPLER_PENALTIES && sampler != EL_SAMPLER_DRY) continue;
        int last = i == params->n_samplers - 1 && params->mirostat == 0;
        apply(sampler, params, tokens, &c, &h, chance, last, &temperature);
    }
    if (greedy) {
        *token = c.id[c.best >= 0 ? c.best : best_of(&c)]; /* penalties have cut nothing */
    } else {
        *token = c.id[params->mirostat == 2 ? mirostat(params, &c, mu, at) : draw(&c, temperature, at)];
    }
    return EL_OK;
}
