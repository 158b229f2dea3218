/* attention.c: attention over KV pages, as a streaming softmax (Milakov and Gimelshein 2018).
 *
 * The cache is cut into splits of 8 pages at fixed positions. Every split yields a partial result
 * (maximum, sum, weighted values); partial results are merged in ascending order. Whether one worker walks
 * all splits or each split is a chunk of its own, the same sums are added in the same order: the result
 * has the same bits for every thread count and every batch size.
 *
 * A sequence that has dropped tokens is read in two stretches (span.h): the head, with queries turned back to it, and
 * the tail. Both are cut into splits at the same positions; those of the head are merged first. A split of a stretch is
 * called a part.
 *
 * A block is some neighbouring tokens at one KV head. Its rows are the query heads of these tokens that share the KV
 * head, token after token, and each page is read once for all of them.
 */
#include <stdatomic.h>

#include "plan.h"

enum {
    SPLIT_TOKENS = EL_SPLIT_PAGES * EL_PAGE_TOKENS,
    BLOCK_ROWS = 48,                  /* rows of a block, about: their scores of a split stay in L2 */
    ITEMS_PER_WORKER = 8,             /* fewer blocks than this for each worker: splits become items */
    MAX_PARTIAL_BYTES = 64 << 20      /* that the splits' results may take */
};

/* One partial result is [maximum (rows)][sum (rows)][values (rows, head_dim)]. */
static int64_t partial_floats(int64_t n_rows, int64_t head_dim) { return n_rows * (head_dim + 2); }

static int64_t block_tokens(int64_t n_group) { return n_group < BLOCK_ROWS ? BLOCK_ROWS / n_group : 1; }

int64_t el_attention_scratch(int64_t n_group, int64_t head_dim, int64_t max_tokens) {
    int64_t tokens = block_tokens(n_group), rows = (tokens < max_tokens ? tokens : max_tokens) * n_group;
    return EL_SPLIT_PAGES * rows * EL_PAGE_TOKENS + 2 * partial_floats(rows, head_dim) + 2 * rows * head_dim;
}

/* Splits [first, first + n) of each stretch, by EL_HEAD and EL_TAIL. */
typedef struct {
    int64_t first[2], n[2];
} part_range;

typedef struct {
    el_run *run;
    const el_step *step;
    const el_kv *kv;
    const int32_t *table;        /* the layer's pages, by column */
    int64_t n_heads, n_kv_heads, head_dim, n_group, window; /* window: the layer's own */
    int k_type, v_type;          /* enum el_kv_type */
    int64_t k_bytes, head_bytes; /* of one head's K in a page, and of its K and V */
    float scale, softcap;
    int64_t block;     /* tokens of a block */
    int64_t n_blocks;
    part_range parts;  /* of all blocks; as items: each block has all of them */
    _Atomic int32_t *left; /* (blocks) splits that are not done yet */
} attention_job;

/* One block at work: tokens [t0, t0 + n) of the pass. */
typedef struct {
    const attention_job *job;
    int64_t head, t0, n, rows;
    float *q;      /* (rows, head_dim) */
    float *scores; /* (8 pages, rows, 64) */
    float *total;  /* partial result of all parts so far */
    float *part;   /* and of the present one */
    float *turned; /* (rows, head_dim) q for the head, rows of tokens that see it */
} block;

/* Pages [p0, p1) of a stretch, which one part reads; then [next, end) will be read. */
typedef struct {
    int stretch;
    int64_t p0, p1, next, end;
    el_stretch seen[BLOCK_ROWS]; /* (n) what each token of the block sees of the stretch */
} page_run;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static char *k_page(const attention_job *job, int64_t page, int64_t head) {
    const el_kv *kv = job->kv;
    return (char *)kv->base + job->table[el_column(kv, page)] * kv->page_bytes + head * job->head_bytes;
}
static char *v_page(const attention_job *job, int64_t page, int64_t head) {
    return k_page(job, page, head) + job->k_bytes;
}

int64_t el_kv_page_bytes(int k_type, int v_type, int64_t n_kv_heads, int64_t head_dim) {
    if (n_kv_heads < 1 || n_kv_heads > 4096 || head_dim < 1 || head_dim > EL_MAX_HEAD_DIM) return -1;
    int64_t k = el_kv_half_bytes(k_type, head_dim), v = el_kv_half_bytes(v_type, head_dim);
    return k < 0 || v < 0 ? -1 : n_kv_heads * (k + v);
}

/* What a token of the pass sees of a stretch; where attention is not causal, what the last one would. */
static el_stretch seen(const attention_job *job, int stretch, int64_t token) {
    const el_pass *pass = job->run->pass;
    return el_seen(job->kv, stretch, job->window, pass->position + (job->step->i[8] ? pass->n_tokens - 1 : token));
}

/* What any of the tokens [t0, t1) sees of a stretch. */
static el_stretch seen_by_any(const attention_job *job, int stretch, int64_t t0, int64_t t1) {
    if (stretch == EL_HEAD) { /* the first tokens may see none: all is tail to them */
        int64_t position = job->run->pass->position, shifted = el_first_shifted(job->kv, position + t0) - position;
        if (shifted < 0 || shifted >= t1) return (el_stretch){0, 0};
        t0 = shifted;
    }
    return (el_stretch){seen(job, stretch, t0).first, seen(job, stretch, t1 - 1).end};
}

/* The parts that tokens [t0, t1) need. */
static part_range parts_of(const attention_job *job, int64_t t0, int64_t t1) {
    part_range r;
    for (int stretch = EL_HEAD; stretch <= EL_TAIL; stretch++) {
        el_stretch s = seen_by_any(job, stretch, t0, t1);
        r.first[stretch] = s.first / SPLIT_TOKENS;
        r.n[stretch] = s.first < s.end ? (s.end - 1) / SPLIT_TOKENS + 1 - r.first[stretch] : 0;
    }
    return r;
}

/* ---- writing the new tokens ------------------------------------------------------------------------ */

/* item = (page, KV head): the new tokens of one page, so that no two workers write to one cache line */
static void store_item(void *ctx, int64_t item, int worker) {
    (void)worker;
    const attention_job *job = ctx;
    const el_plan *plan = job->run->plan;
    int64_t position = job->run->pass->position, end = position + job->run->pass->n_tokens, d = job->head_dim;
    int64_t head = item % job->n_kv_heads, page = position / EL_PAGE_TOKENS + item / job->n_kv_heads;
    const float *k = plan->data[job->step->in[1]], *v = plan->data[job->step->in[2]]; /* (tokens, n_kv_heads, head_dim) */
    char *kp = k_page(job, page, head), *vp = v_page(job, page, head);
    int64_t p1 = min64(end, (page + 1) * EL_PAGE_TOKENS);
    for (int64_t p = max64(position, page * EL_PAGE_TOKENS); p < p1; p++) {
        int64_t row = ((p - position) * job->n_kv_heads + head) * d;
        el_k.attn_store_k[job->k_type](k + row, d, p % EL_PAGE_TOKENS, kp);
        el_k.attn_store_v[job->v_type](v + row, d, p % EL_PAGE_TOKENS, vp);
    }
}

/* ---- one part of one block ----------------------------------------------------------------------------- */

/* The block's tokens t0 + [*from, *to) that see something of a page. */
static void tokens_that_see(const block *b, const page_run *p, int64_t page, int64_t *from, int64_t *to) {
    const el_stretch *s = p->seen;
    int64_t first = page * EL_PAGE_TOKENS, end = first + EL_PAGE_TOKENS, i = 0, n = b->n;
    while (i < n && s[i].end <= first) i++;
    while (n > i && (s[n - 1].first >= end || s[n - 1].first >= s[n - 1].end)) n--;
    *from = i, *to = n;
}

static float *scores_of(const block *b, int64_t page, int64_t row) {
    return b->scores + (page % EL_SPLIT_PAGES * b->rows + row) * EL_PAGE_TOKENS;
}

/* Lanes [*low, *high) of a page are seen by a token that sees s. */
static void lanes_seen(el_stretch s, int64_t page, int64_t *low, int64_t *high) {
    *low = max64(s.first - page * EL_PAGE_TOKENS, 0);
    *high = min64(s.end - page * EL_PAGE_TOKENS, EL_PAGE_TOKENS);
}

/* Scores of a page, what is not seen at -infinity, and the rows' maxima with them. */
static void score_page(const block *b, const page_run *p, int64_t page, const void *ahead, float *max) {
    const attention_job *job = b->job;
    int64_t G = job->n_group, from, to, low, high;
    tokens_that_see(b, p, page, &from, &to);
    int64_t r = from * G, n = (to - from) * G;
    const float *q = (p->stretch == EL_HEAD ? b->turned : b->q) + r * job->head_dim;
    float *s = scores_of(b, page, r);
    el_k.attn_scores[job->k_type](q, n, job->head_dim, k_page(job, page, b->head), ahead, job->scale, s);
    if (job->softcap > 0.0f) el_k.softcap(s, s, n * EL_PAGE_TOKENS, job->softcap);
    for (int64_t t = from; t < to; t++) {
        lanes_seen(p->seen[t], page, &low, &high);
        for (int64_t g = 0; g < G; g++, r++, s += EL_PAGE_TOKENS) {
            for (int64_t i = 0; i < low; i++) s[i] = -INFINITY;
            for (int64_t i = high; i < EL_PAGE_TOKENS; i++) s[i] = -INFINITY;
            max[r] = el_k.largest(s, EL_PAGE_TOKENS, max[r]);
        }
    }
}

static void weigh_page(const block *b, const page_run *p, int64_t page, const void *ahead, const float *max, float *sum,
                       float *acc) {
    const attention_job *job = b->job;
    int64_t G = job->n_group, from, to, low, high, first = EL_PAGE_TOKENS, end = 0;
    tokens_that_see(b, p, page, &from, &to);
    int64_t r0 = from * G, r1 = to * G;
    for (int64_t r = r0; r < r1; r++) {
        float page_sum;
        el_k.exp_sum(scores_of(b, page, r), EL_PAGE_TOKENS, max[r], &page_sum);
        sum[r] += page_sum;
    }
    for (int64_t t = from; t < to; t++) { /* lanes that nobody sees may hold anything */
        lanes_seen(p->seen[t], page, &low, &high);
        first = min64(first, low), end = max64(end, high);
    }
    el_k.attn_values[job->v_type](scores_of(b, page, r0), r1 - r0, job->head_dim, first, end, v_page(job, page, b->head),
                                ahead, acc + r0 * job->head_dim);
}

/* What a block reads at step i of a part: first the pages' K, then their V, then K of what follows. Kernels prefetch it two
 * steps before, which covers the latency of memory; one step is too late for the small pages of q8_0. */
static const char *read_later(const block *b, const page_run *p, int64_t i) {
    int64_t n = p->p1 - p->p0;
    if (i < n) return k_page(b->job, p->p0 + i, b->head);
    if (i < 2 * n) return v_page(b->job, p->p0 + i - n, b->head);
    return p->next + i - 2 * n < p->end ? k_page(b->job, p->next + i - 2 * n, b->head) : NULL;
}

static void find_pages(const block *b, int stretch, int64_t split, page_run *p) {
    el_stretch all = seen_by_any(b->job, stretch, b->t0, b->t0 + b->n);
    p->stretch = stretch;
    p->end = (all.end - 1) / EL_PAGE_TOKENS + 1;
    p->p0 = max64(split * EL_SPLIT_PAGES, all.first / EL_PAGE_TOKENS);
    p->next = p->p1 = min64((split + 1) * EL_SPLIT_PAGES, p->end);
    if (stretch == EL_HEAD && p->next == p->end) { /* the tail follows */
        all = seen_by_any(b->job, EL_TAIL, b->t0, b->t0 + b->n);
        p->next = all.first / EL_PAGE_TOKENS, p->end = (all.end - 1) / EL_PAGE_TOKENS + 1;
    }
    for (int64_t t = 0; t < b->n; t++) p->seen[t] = seen(b->job, stretch, b->t0 + t);
}

static void partial_result(const block *b, int stretch, int64_t split, float *partial) {
    float *max = partial, *sum = partial + b->rows, *acc = partial + 2 * b->rows; /* acc (rows, head_dim) */
    page_run p;
    find_pages(b, stretch, split, &p);
    int64_t n = p.p1 - p.p0;
    for (int64_t r = 0; r < b->rows; r++) max[r] = -INFINITY, sum[r] = 0.0f;
    memset(acc, 0, (size_t)(b->rows * b->job->head_dim) * sizeof(float));
    for (int64_t i = 0; i < n; i++) score_page(b, &p, p.p0 + i, read_later(b, &p, i + 2), max);
    for (int64_t i = 0; i < n; i++) weigh_page(b, &p, p.p0 + i, read_later(b, &p, n + i + 2), max, sum, acc);
}

/* ---- merging ---------------------------------------------------------------------------------------------- */

static float exp_of(float x) { /* the kernels' exp of one number */
    float sum;
    el_k.exp_sum(&x, 1, 0.0f, &sum);
    return x;
}

/* 0: a token sees nothing of the part; 1: it does, after others; 2: it is the first part that the token sees */
static int sees_part(const attention_job *job, int64_t token, int stretch, int64_t split) {
    el_stretch s = seen(job, stretch, token);
    if (s.first >= s.end || s.first / SPLIT_TOKENS > split || (s.end - 1) / SPLIT_TOKENS < split) return 0;
    if (s.first / SPLIT_TOKENS < split) return 1;
    if (stretch == EL_HEAD) return 2;
    s = seen(job, EL_HEAD, token);
    return s.first < s.end ? 1 : 2;
}

/* Adds the partial result of a part to `total`, which holds those before it; the first one is copied. */
static void merge_part(const block *b, int stretch, int64_t split, float *total, const float *part) {
    const attention_job *job = b->job;
    int64_t R = b->rows, D = job->head_dim, G = job->n_group;
    int sees = 0;
    for (int64_t r = 0; r < R; r++) {
        if (r % G == 0) sees = sees_part(job, b->t0 + r / G, stretch, split);
        if (!sees) continue;
        float *x = total + 2 * R + r * D, before = total[r], next = part[r];
        const float *y = part + 2 * R + r * D;
        if (sees == 2) {
            total[r] = next;
            total[R + r] = part[R + r];
            memmove(x, y, (size_t)D * sizeof(float));
            continue;
        }
        float m = next > before || next != next ? next : before;
        float fa = exp_of(before - m), fb = exp_of(next - m);
        total[r] = m;
        total[R + r] = total[R + r] * fa + part[R + r] * fb;
        for (int64_t d = 0; d < D; d++) x[d] = x[d] * fa + y[d] * fb;
    }
}

static void write_output(const block *b, const float *total) {
    const attention_job *job = b->job;
    int64_t R = b->rows, D = job->head_dim, G = job->n_group;
    float *out = job->run->plan->data[job->step->out[0]]; /* (tokens, n_heads, head_dim) */
    for (int64_t r = 0; r < R; r++) {
        float *y = out + ((b->t0 + r / G) * job->n_heads + b->head * G + r % G) * D;
        for (int64_t d = 0; d < D; d++) y[d] = total[2 * R + r * D + d] / total[R + r];
    }
}

/* ---- work items ----------------------------------------------------------------------------------------- */

/* Block `index` of the pass, its queries side by side. One head's blocks follow each other, the last tokens first: they
 * see most, and no worker should meet them at the end. */
static block begin_block(const attention_job *job, int64_t index, int worker) {
    block b = {.job = job, .head = index / job->n_blocks};
    int64_t G = job->n_group, D = job->head_dim;
    b.t0 = (job->n_blocks - 1 - index % job->n_blocks) * job->block;
    b.n = min64(job->block, job->run->pass->n_tokens - b.t0);
    b.rows = b.n * G;
    b.q = el_worker_scratch(job->run, worker);
    b.scores = b.q + b.rows * D;
    b.total = b.scores + EL_SPLIT_PAGES * b.rows * EL_PAGE_TOKENS;
    b.part = b.total + partial_floats(b.rows, D);
    b.turned = b.part + partial_floats(b.rows, D);
    const float *q = job->run->plan->data[job->step->in[0]]; /* (tokens, n_heads, head_dim) */
    for (int64_t t = 0; t < b.n; t++)
        memcpy(b.q + t * G * D, q + ((b.t0 + t) * job->n_heads + b.head * G) * D, (size_t)(G * D) * sizeof(float));
    return b;
}

/* Queries of tokens that see the head, turned back to where it stands for them. */
static void turn_queries(const block *b) {
    const attention_job *job = b->job;
    int64_t row = job->n_group * job->head_dim, pairs = job->step->i[5] / 2;
    const el_angles *a = &job->run->plan->angles[job->step->i[7]];
    for (int64_t t = b->t0; t < b->t0 + b->n; t++) {
        el_stretch s = seen(job, EL_HEAD, t);
        if (s.first >= s.end) continue;
        float *x = b->turned + (t - b->t0) * row;
        memcpy(x, b->q + (t - b->t0) * row, (size_t)row * sizeof(float));
        for (int64_t at = 0; pairs && at < row; at += job->head_dim)
            el_turn(x + at, a->back_cos + t * pairs, a->back_sin + t * pairs, pairs, job->step->i[6]);
    }
}

/* item = block: walks the parts and merges as it goes */
static void whole_item(void *ctx, int64_t item, int worker) {
    block b = begin_block(ctx, item, worker);
    part_range parts = parts_of(b.job, b.t0, b.t0 + b.n);
    if (parts.n[EL_HEAD]) turn_queries(&b);
    for (int stretch = EL_HEAD; stretch <= EL_TAIL; stretch++)
        for (int64_t s = parts.first[stretch]; s < parts.first[stretch] + parts.n[stretch]; s++) {
            partial_result(&b, stretch, s, b.part);
            merge_part(&b, stretch, s, b.total, b.part);
        }
    write_output(&b, b.total);
}

/* Where the result of a part that is an item lies. */
static float *stored_partial(const attention_job *job, int64_t index, int stretch, int64_t split) {
    const part_range *p = &job->parts;
    int64_t part = split - p->first[stretch] + (stretch == EL_TAIL ? p->n[EL_HEAD] : 0);
    int64_t item = index * (p->n[EL_HEAD] + p->n[EL_TAIL]) + part;
    return job->run->plan->partials + item * partial_floats(job->block * job->n_group, job->head_dim);
}

/* item = (block, part): leaves its partial result; who finishes a block's last one merges them all, in order */
static void part_item(void *ctx, int64_t item, int worker) {
    const attention_job *job = ctx;
    int64_t n_parts = job->parts.n[EL_HEAD] + job->parts.n[EL_TAIL], index = item / n_parts, part = item % n_parts;
    int stretch = part < job->parts.n[EL_HEAD] ? EL_HEAD : EL_TAIL;
    int64_t split = job->parts.first[stretch] + part - (stretch == EL_TAIL ? job->parts.n[EL_HEAD] : 0);
    block b = begin_block(job, index, worker);
    part_range own = parts_of(job, b.t0, b.t0 + b.n);
    if (split >= own.first[stretch] && split < own.first[stretch] + own.n[stretch]) {
        if (stretch == EL_HEAD) turn_queries(&b);
        partial_result(&b, stretch, split, stored_partial(job, index, stretch, split));
    }
    if (atomic_fetch_sub_explicit(&job->left[index], 1, memory_order_acq_rel) > 1) return;
    for (stretch = EL_HEAD; stretch <= EL_TAIL; stretch++)
        for (int64_t s = own.first[stretch]; s < own.first[stretch] + own.n[stretch]; s++)
            merge_part(&b, stretch, s, b.total, stored_partial(job, index, stretch, s));
    write_output(&b, b.total);
}

/* ---- the step ---------------------------------------------------------------------------------------------- */

static int grow_partials(el_plan *plan, int64_t bytes) {
    if (bytes <= plan->partial_bytes) return EL_OK;
    float *bigger = el_arena_alloc(2 * bytes);
    if (!bigger) return EL_E_NOMEM;
    el_arena_free(plan->partials, plan->partial_bytes);
    plan->partials = bigger;
    plan->partial_bytes = 2 * bytes;
    return EL_OK;
}

/* Parts as items: few blocks over a long cache. Returns EL_E_UNSUPPORTED where it is not worth it or takes too much. */
static int run_parts(attention_job *job, int64_t items) {
    job->parts = parts_of(job, 0, job->run->pass->n_tokens);
    int64_t n_parts = job->parts.n[EL_HEAD] + job->parts.n[EL_TAIL];
    if (max64(job->parts.n[EL_HEAD], job->parts.n[EL_TAIL]) < 2 || job->run->n_threads < 2 ||
        items >= ITEMS_PER_WORKER * job->run->n_threads)
        return EL_E_UNSUPPORTED;
    int64_t part = partial_floats(job->block * job->n_group, job->head_dim) * (int64_t)sizeof(float);
    int64_t n = items * n_parts, counters = (items * (int64_t)sizeof *job->left + 63) / 64 * 64;
    if (n > MAX_PARTIAL_BYTES / part) return EL_E_UNSUPPORTED;
    int rc = grow_partials(job->run->plan, n * part + counters);
    if (rc) return rc;
    job->left = (_Atomic int32_t *)(void *)((char *)job->run->plan->partials + n * part);
    for (int64_t i = 0; i < items; i++) atomic_init(&job->left[i], (int32_t)n_parts);
    el_pool_run(part_item, job, n, job->run->pass->cancel);
    return EL_OK;
}

int el_step_attention(el_run *run, const el_step *step) {
    const el_pass *pass = run->pass;
    attention_job job = {.run = run, .step = step, .kv = pass->kv, .n_heads = step->i[1], .n_kv_heads = step->i[2],
                         .head_dim = step->i[3], .window = step->i[4], .scale = step->f[0], .softcap = step->f[1],
                         .k_type = pass->kv->k_type, .v_type = pass->kv->v_type};
    job.table = job.kv->table + step->i[0] * job.kv->table_stride;
    int64_t n = pass->n_tokens;
    job.n_group = job.n_heads / job.n_kv_heads;
    job.k_bytes = el_kv_half_bytes(job.k_type, job.head_dim);
    job.head_bytes = job.k_bytes + el_kv_half_bytes(job.v_type, job.head_dim);
    job.block = min64(block_tokens(job.n_group), n);
    job.n_blocks = (n + job.block - 1) / job.block;
    int64_t pages = (pass->position + n - 1) / EL_PAGE_TOKENS - pass->position / EL_PAGE_TOKENS + 1;
    if (n < 4)
        for (int64_t i = 0; i < pages * job.n_kv_heads; i++) store_item(&job, i, 0);
    else
        el_pool_run(store_item, &job, pages * job.n_kv_heads, pass->cancel);
    if (el_cancelled(run)) return EL_E_CANCELLED; /* a page may hold stale rows: never read them */
    int rc = run_parts(&job, job.n_blocks * job.n_kv_heads);
    if (rc == EL_E_UNSUPPORTED) el_pool_run(whole_item, &job, job.n_blocks * job.n_kv_heads, pass->cancel);
    else if (rc) return rc;
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}
