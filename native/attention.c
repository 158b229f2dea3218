/* attention.c: causal attention over KV pages, as a streaming softmax (Milakov and Gimelshein 2018).
 *
 * The cache is cut into splits of 8 pages at fixed positions. Every split yields a partial result
 * (maximum, sum, weighted values); partial results are merged in ascending order. Whether one worker walks
 * all splits or each split is a chunk of its own, the same sums are added in the same order: the result
 * has the same bits for every thread count and every batch size.
 */
#include "plan.h"

enum { SPLIT_TOKENS = EL_SPLIT_PAGES * EL_PAGE_TOKENS };

/* One partial result is [maximum][sum][values (head_dim)] per head of a group. */
static int64_t partial_floats(int64_t n_group, int64_t head_dim) { return n_group * (head_dim + 2); }

int64_t el_attention_scratch(int64_t n_group, int64_t head_dim) {
    return EL_SPLIT_PAGES * n_group * EL_PAGE_TOKENS + 2 * partial_floats(n_group, head_dim) + 64;
}

typedef struct {
    el_run *run;
    const el_step *step;
    int64_t layer, n_heads, n_kv_heads, head_dim, n_group, window;
    int64_t page_half; /* bytes of one head's K (or V) in a page */
    float scale, softcap;
    int64_t n_splits;  /* 0: each item walks its own splits; else splits are items */
    int64_t first_split;
} attention_job;

static char *page_of(const attention_job *job, int64_t block) {
    const el_kv *kv = job->run->pass->kv;
    return (char *)kv->base + (int64_t)kv->table[job->layer * kv->table_stride + block] * kv->page_bytes;
}
static char *k_page(const attention_job *job, int64_t block, int64_t head) {
    return page_of(job, block) + head * 2 * job->page_half;
}
static char *v_page(const attention_job *job, int64_t block, int64_t head) {
    return k_page(job, block, head) + job->page_half;
}

int64_t el_kv_page_bytes(int kv_type, int64_t n_kv_heads, int64_t head_dim) {
    if (n_kv_heads < 1 || n_kv_heads > 4096 || head_dim < 1 || head_dim > EL_MAX_HEAD_DIM) return -1;
    if (kv_type != EL_KV_F32 && kv_type != EL_KV_F16) return -1;
    return 2 * n_kv_heads * head_dim * EL_PAGE_TOKENS * (kv_type == EL_KV_F32 ? 4 : 2);
}

/* ---- writing the new tokens ------------------------------------------------------------------------ */

static void store_token(void *ctx, int64_t token, int worker) {
    (void)worker;
    const attention_job *job = ctx;
    const el_plan *plan = job->run->plan;
    int64_t position = job->run->pass->position + token;
    int64_t block = position / EL_PAGE_TOKENS, t = position % EL_PAGE_TOKENS, d_head = job->head_dim;
    const float *k = plan->data[job->step->in[1]] + token * job->n_kv_heads * d_head;
    const float *v = plan->data[job->step->in[2]] + token * job->n_kv_heads * d_head;
    int half = job->run->pass->kv->kv_type == EL_KV_F16;
    for (int64_t h = 0; h < job->n_kv_heads; h++, k += d_head, v += d_head) {
        char *kp = k_page(job, block, h), *vp = v_page(job, block, h);
        for (int64_t d = 0; d < d_head; d++) {
            if (half) {
                ((uint16_t *)kp)[d * EL_PAGE_TOKENS + t] = el_f32_to_f16(k[d]);
                ((uint16_t *)vp)[t * d_head + d] = el_f32_to_f16(v[d]);
            } else {
                ((float *)kp)[d * EL_PAGE_TOKENS + t] = k[d];
                ((float *)vp)[t * d_head + d] = v[d];
            }
        }
    }
}

/* ---- one split ---------------------------------------------------------------------------------------- */

static float exp_of(float x) { /* the kernels' exp of one number */
    float sum;
    el_k.exp_sum(&x, 1, 0.0f, &sum);
    return x;
}

static void split_partial(const attention_job *job, int64_t token, int64_t head, int64_t split, float *scores,
                          float *partial) {
    const el_pass *pass = job->run->pass;
    int64_t G = job->n_group, D = job->head_dim, type = pass->kv->kv_type;
    int64_t last = pass->position + token;                                       /* attends up to its own position */
    int64_t first = job->window > 0 && last >= job->window ? last - job->window + 1 : 0;
    const float *q = job->run->plan->data[job->step->in[0]] + (token * job->n_heads + head * G) * D; /* (G, D) */
    int64_t b0 = split * EL_SPLIT_PAGES, b1 = b0 + EL_SPLIT_PAGES;
    if (b0 < first / EL_PAGE_TOKENS) b0 = first / EL_PAGE_TOKENS;
    if (b1 > last / EL_PAGE_TOKENS + 1) b1 = last / EL_PAGE_TOKENS + 1;
    float *max = partial, *sum = partial + G, *acc = partial + 2 * G; /* acc (G, D) */
    for (int64_t g = 0; g < G; g++) max[g] = -INFINITY, sum[g] = 0.0f;
    memset(acc, 0, (size_t)(G * D) * sizeof(float));
    for (int64_t b = b0; b < b1; b++) {
        float *s = scores + (b - b0) * G * EL_PAGE_TOKENS; /* (G, 64) */
        el_k.attn_scores[type](q, G, D, k_page(job, b, head), job->scale, s);
        if (job->softcap > 0.0f) el_k.softcap(s, s, G * EL_PAGE_TOKENS, job->softcap);
        int64_t lo = first - b * EL_PAGE_TOKENS, hi = last + 1 - b * EL_PAGE_TOKENS; /* valid: [lo, hi) */
        for (int64_t g = 0; g < G; g++)
            for (int64_t t = 0; t < EL_PAGE_TOKENS; t++) {
                float *x = &s[g * EL_PAGE_TOKENS + t];
                if (t < lo || t >= hi) *x = -INFINITY;
                if (*x > max[g] || *x != *x) max[g] = *x;
            }
    }
    for (int64_t b = b0; b < b1; b++) {
        float *s = scores + (b - b0) * G * EL_PAGE_TOKENS;
        int64_t lo = first - b * EL_PAGE_TOKENS, hi = last + 1 - b * EL_PAGE_TOKENS;
        for (int64_t g = 0; g < G; g++) {
            float page_sum;
            el_k.exp_sum(s + g * EL_PAGE_TOKENS, EL_PAGE_TOKENS, max[g], &page_sum);
            sum[g] += page_sum;
        }
        el_k.attn_values[type](s, G, D, lo > 0 ? lo : 0, hi < EL_PAGE_TOKENS ? hi : EL_PAGE_TOKENS,
                               v_page(job, b, head), acc);
    }
}

/* Adds the later partial result `b` to `a`. */
static void merge_partial(float *a, const float *b, int64_t G, int64_t D) {
    for (int64_t g = 0; g < G; g++) {
        float m = b[g] > a[g] || b[g] != b[g] ? b[g] : a[g];
        float fa = exp_of(a[g] - m), fb = exp_of(b[g] - m);
        a[g] = m;
        a[G + g] = a[G + g] * fa + b[G + g] * fb;
        float *x = a + 2 * G + g * D;
        const float *y = b + 2 * G + g * D;
        for (int64_t d = 0; d < D; d++) x[d] = x[d] * fa + y[d] * fb;
    }
}

static void write_output(const attention_job *job, int64_t token, int64_t head, const float *partial) {
    int64_t G = job->n_group, D = job->head_dim;
    float *out = job->run->plan->data[job->step->out[0]] + (token * job->n_heads + head * G) * D;
    for (int64_t g = 0; g < G; g++)
        for (int64_t d = 0; d < D; d++) out[g * D + d] = partial[2 * G + g * D + d] / partial[G + g];
}

static void split_range(const attention_job *job, int64_t token, int64_t *s0, int64_t *s1) {
    int64_t last = job->run->pass->position + token;
    int64_t first = job->window > 0 && last >= job->window ? last - job->window + 1 : 0;
    *s0 = first / SPLIT_TOKENS;
    *s1 = last / SPLIT_TOKENS + 1;
}

/* ---- work items ----------------------------------------------------------------------------------------- */

/* item = (token, KV head): walks the splits and merges as it goes */
static void whole_item(void *ctx, int64_t item, int worker) {
    const attention_job *job = ctx;
    int64_t token = item / job->n_kv_heads, head = item % job->n_kv_heads, s0, s1;
    int64_t size = partial_floats(job->n_group, job->head_dim);
    float *total = el_worker_scratch(job->run, worker), *next = total + size;
    float *scores = next + size;
    split_range(job, token, &s0, &s1);
    split_partial(job, token, head, s0, scores, total);
    for (int64_t s = s0 + 1; s < s1; s++) {
        split_partial(job, token, head, s, scores, next);
        merge_partial(total, next, job->n_group, job->head_dim);
    }
    write_output(job, token, head, total);
}

static float *stored_partial(const attention_job *job, int64_t item) {
    return job->run->plan->partials + item * partial_floats(job->n_group, job->head_dim);
}

/* item = (token, KV head, split): leaves its partial result for merge_item */
static void split_item(void *ctx, int64_t item, int worker) {
    const attention_job *job = ctx;
    int64_t split = item % job->n_splits + job->first_split, pair = item / job->n_splits, s0, s1;
    int64_t token = pair / job->n_kv_heads;
    split_range(job, token, &s0, &s1);
    if (split < s0 || split >= s1) return;
    split_partial(job, token, pair % job->n_kv_heads, split, el_worker_scratch(job->run, worker),
                  stored_partial(job, item));
}

static void merge_item(const attention_job *job, int64_t pair) {
    int64_t token = pair / job->n_kv_heads, s0, s1;
    split_range(job, token, &s0, &s1);
    float *total = stored_partial(job, pair * job->n_splits + s0 - job->first_split);
    for (int64_t s = s0 + 1; s < s1; s++)
        merge_partial(total, stored_partial(job, pair * job->n_splits + s - job->first_split), job->n_group,
                      job->head_dim);
    write_output(job, token, pair % job->n_kv_heads, total);
}

static int grow_partials(el_plan *plan, int64_t bytes) {
    if (bytes <= plan->partial_bytes) return EL_OK;
    float *bigger = el_arena_alloc(2 * bytes);
    if (!bigger) return EL_E_NOMEM;
    el_arena_free(plan->partials, plan->partial_bytes);
    plan->partials = bigger;
    plan->partial_bytes = 2 * bytes;
    return EL_OK;
}

int el_step_attention(el_run *run, const el_step *step) {
    const el_pass *pass = run->pass;
    attention_job job = {.run = run, .step = step, .layer = step->i[0], .n_heads = step->i[1],
                         .n_kv_heads = step->i[2], .head_dim = step->i[3], .window = step->i[4], .scale = step->f[0], .softcap = step->f[1]};
    job.n_group = job.n_heads / job.n_kv_heads;
    job.page_half = job.head_dim * EL_PAGE_TOKENS * (pass->kv->kv_type == EL_KV_F16 ? 2 : 4);
    int64_t n = pass->n_tokens, pairs = n * job.n_kv_heads, s0, s1, unused;
    if (n < 4)
        for (int64_t t = 0; t < n; t++) store_token(&job, t, 0);
    else
        el_pool_run(store_token, &job, n, pass->cancel);
    if (el_cancelled(run)) return EL_E_CANCELLED; /* a page may hold stale rows: never read them */
    split_range(&job, 0, &s0, &unused);
    split_range(&job, n - 1, &unused, &s1);
    if (s1 - s0 > 1 && n <= 8 && run->n_threads > 1) {
        job.n_splits = s1 - s0;
        job.first_split = s0;
        int64_t items = pairs * job.n_splits;
        int rc = grow_partials(run->plan, items * partial_floats(job.n_group, job.head_dim) * (int64_t)sizeof(float));
        if (rc) return rc;
        el_pool_run(split_item, &job, items, pass->cancel);
        if (el_cancelled(run)) return EL_E_CANCELLED;
        for (int64_t pair = 0; pair < pairs; pair++) merge_item(&job, pair);
    } else {
        el_pool_run(whole_item, &job, pairs, pass->cancel);
    }
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}
