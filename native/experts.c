/* experts.c: mixtures of experts. ROUTE chooses a few experts per token, EXPERTS runs only those.
 *
 * A pair is one token at one of its experts. Pairs are sorted by expert, so that an expert's rows are read once for all
 * its tokens. Kernels give a column the same bits whatever columns stand beside it, and a token's results are added
 * with its experts in ascending order: neither batch nor threads change a bit.
 */
#include "plan.h"

enum { MIN_CHUNK_BYTES = 24 << 10, CHUNKS_PER_WORKER = 12 };

/* ---- ROUTE ------------------------------------------------------------------------------------------------ */

/* share (n) = softmax of logits at the n_used largest columns (of equals the first), 0 elsewhere */
static void route_row(const float *logits, float *share, int64_t n, int64_t n_used, int normalise) {
    uint8_t chosen[EL_MAX_EXPERTS] = {0};
    float max = -INFINITY, sum, total = 0.0f;
    for (int64_t e = 0; e < n; e++)
        if (logits[e] > max || logits[e] != logits[e]) max = logits[e];
    memcpy(share, logits, (size_t)n * sizeof(float));
    el_k.exp_sum(share, n, max, &sum);
    for (int64_t j = 0; j < n_used; j++) {
        int64_t best = 0;
        while (chosen[best]) best++;
        for (int64_t e = best + 1; e < n; e++)
            if (!chosen[e] && share[e] > share[best]) best = e;
        chosen[best] = 1;
    }
    for (int64_t e = 0; e < n; e++) {
        share[e] = chosen[e] ? share[e] / sum : 0.0f;
        total += share[e];
    }
    for (int64_t e = 0; normalise && e < n; e++)
        if (chosen[e]) share[e] /= total;
}

int el_step_route(el_run *run, const el_step *s) {
    int64_t n = run->plan->buffers[s->in[0]].cols, n_rows = el_rows(run, s->in[0]);
    for (int64_t r = 0; r < n_rows; r++)
        route_row(run->plan->data[s->in[0]] + r * n, run->plan->data[s->out[0]] + r * n, n, s->i[0], s->i[1]);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}

/* ---- EXPERTS ---------------------------------------------------------------------------------------------- */

typedef struct {
    el_run *run;
    const el_step *step;
    int64_t n_experts, n_used, dim, width, n_rows;
    int64_t n_active;                     /* experts that at least one token uses */
    int32_t active[EL_MAX_EXPERTS];
    int64_t first_pair[EL_MAX_EXPERTS + 1]; /* of each active expert */
    int64_t rows;                         /* of one expert in the present phase: width, then dim */
    int64_t groups_per_chunk, chunks_per_expert;
} experts_job;

static int expert_weight_ok(const el_plan *p, int32_t id, int64_t n_experts, int64_t rows, int64_t cols) {
    if (id < 0 || id >= p->n_weights) return 0;
    const el_weight *w = &p->weights[id];
    return w->cols == cols && rows <= INT64_MAX / n_experts && w->rows == rows * n_experts &&
           (w->layout == EL_ROWS || rows % EL_PANEL_ROWS == 0) && el_k.linear[w->layout][w->type];
}

int el_experts_ok(const el_plan *p, const el_step *s) {
    int64_t n = s->i[1];
    if (s->i[3] < 0 || s->i[3] > 1 || s->in[0] < 0 || s->in[1] < 0 || s->out[0] < 0 || s->w[0] < 0 || s->w[2] < 0 || n < 1 || n > EL_MAX_EXPERTS ||
        s->i[2] < 1 || s->i[2] > n || p->weights[s->w[0]].rows % n ||
        p->weights[s->w[0]].rows >= (int64_t)EL_MAX_CHUNKS / 2 * EL_GATED_ROWS ||
        p->weights[s->w[2]].rows >= (int64_t)EL_MAX_CHUNKS / 2 * EL_GATED_ROWS || s->out[0] == s->in[0] || s->out[0] == s->in[1])
        return 0;
    int64_t dim = p->buffers[s->in[0]].cols, width = p->weights[s->w[0]].rows / n;
    int32_t kind = p->buffers[s->in[0]].rows_kind;
    return p->buffers[s->in[1]].cols == n && p->buffers[s->out[0]].cols == dim &&
           p->buffers[s->in[1]].rows_kind == kind && p->buffers[s->out[0]].rows_kind == kind &&
           expert_weight_ok(p, s->w[0], n, width, dim) && expert_weight_ok(p, s->w[1], n, width, dim) &&
           expert_weight_ok(p, s->w[2], n, dim, width);
}

int el_experts_allocate(el_plan *p) {
    el_pairs *a = &p->pairs;
    for (int64_t i = 0; i < p->n_steps; i++) {
        const el_step *s = &p->steps[i];
        if (s->op != EL_OP_EXPERTS) continue;
        int64_t pairs = p->max_tokens * s->i[2];
        int64_t x = pairs * p->buffers[s->in[0]].cols * (int64_t)sizeof(float);
        int64_t hidden = pairs * p->weights[s->w[2]].cols * (int64_t)sizeof(float);
        if (pairs > a->max_pairs) a->max_pairs = pairs;
        if (x > a->x_bytes) a->x_bytes = x;
        if (hidden > a->hidden_bytes) a->hidden_bytes = hidden;
    }
    if (!a->max_pairs) return EL_OK;
    a->token = el_arena_alloc(a->max_pairs * (int64_t)sizeof(int32_t));
    a->slot = el_arena_alloc(a->max_pairs * (int64_t)sizeof(int32_t));
    a->x = el_arena_alloc(a->x_bytes);
    a->y = el_arena_alloc(a->x_bytes);
    a->hidden = el_arena_alloc(a->hidden_bytes);
    return a->token && a->slot && a->x && a->y && a->hidden ? EL_OK : EL_E_NOMEM;
}

void el_experts_free(el_plan *p) {
    el_pairs *a = &p->pairs;
    el_arena_free(a->token, a->max_pairs * (int64_t)sizeof(int32_t));
    el_arena_free(a->slot, a->max_pairs * (int64_t)sizeof(int32_t));
    el_arena_free(a->x, a->x_bytes);
    el_arena_free(a->y, a->x_bytes);
    el_arena_free(a->hidden, a->hidden_bytes);
}

/* Lists the pairs, expert by expert. -1 in slot ends a row's list. Fails when a row names more than n_used experts. */
static int sort_pairs(experts_job *job) {
    el_pairs *a = &job->run->plan->pairs;
    const float *share = job->run->plan->data[job->step->in[1]];
    int64_t n = 0;
    for (int64_t i = 0; i < job->n_rows * job->n_used; i++) a->slot[i] = -1;
    for (int64_t e = 0; e < job->n_experts; e++) {
        int64_t before = n;
        for (int64_t r = 0; r < job->n_rows; r++) {
            if (share[r * job->n_experts + e] == 0.0f) continue;
            int64_t j = 0;
            while (j < job->n_used && a->slot[r * job->n_used + j] >= 0) j++;
            if (j == job->n_used) return EL_E_ARGUMENT;
            a->slot[r * job->n_used + j] = (int32_t)n;
            a->token[n++] = (int32_t)r;
        }
        if (n == before) continue;
        job->active[job->n_active] = (int32_t)e;
        job->first_pair[job->n_active++] = before;
    }
    job->first_pair[job->n_active] = n;
    return EL_OK;
}

static void gather_pair(void *ctx, int64_t pair, int worker) {
    (void)worker;
    const experts_job *job = ctx;
    el_plan *p = job->run->plan;
    memcpy(p->pairs.x + pair * job->dim, p->data[job->step->in[0]] + p->pairs.token[pair] * job->dim,
           (size_t)job->dim * sizeof(float));
}

/* Weight j times columns [m0, m0 + n) of x for rows [r0, r1) of one expert: y (n, ldy). */
static void multiply(const experts_job *job, int j, int64_t expert, const float *x, int64_t m0, int64_t n, int64_t r0,
                     int64_t r1, float *y, int64_t ldy) {
    const el_weight *w = &job->run->plan->weights[job->step->w[j]];
    int64_t base = expert * job->rows;
    el_multiply(job->run->plan, w, x, el_planes(job->step, w), m0, n, base + r0, base + r1, y, ldy);
}

/* The rows, the expert and the pairs of one chunk. */
static int64_t chunk_rows(const experts_job *job, int64_t chunk, int64_t *r0, int64_t *r1) {
    int64_t size = job->groups_per_chunk * EL_PANEL_ROWS;
    *r0 = chunk % job->chunks_per_expert * size;
    *r1 = *r0 + size < job->rows ? *r0 + size : job->rows;
    return chunk / job->chunks_per_expert;
}

/* hidden = act(gate x) * (up x) */
static void hidden_chunk(void *ctx, int64_t chunk, int worker) {
    const experts_job *job = ctx;
    const el_pairs *a = &job->run->plan->pairs;
    float *gate = el_worker_scratch(job->run, worker), *up = gate + EL_COLUMN_BLOCK * EL_GATED_ROWS;
    int64_t r0, r1, i = chunk_rows(job, chunk, &r0, &r1), width = r1 - r0, last = job->first_pair[i + 1];
    const int64_t most = EL_COLUMN_BLOCK / (1 + job->step->i[3]);
    for (int64_t m0 = job->first_pair[i], n; m0 < last; m0 += n) {
        n = last - m0 < most ? last - m0 : most;
        multiply(job, 0, job->active[i], a->x, m0, n, r0, r1, gate, width);
        multiply(job, 1, job->active[i], a->x, m0, n, r0, r1, up, width);
        for (int64_t m = 0; m < n; m++)
            el_k.gated(gate + m * width, up + m * width, a->hidden + (m0 + m) * job->width + r0, width, job->step->i[0]);
    }
}

/* y = down hidden */
static void down_chunk(void *ctx, int64_t chunk, int worker) {
    const experts_job *job = ctx;
    const el_pairs *a = &job->run->plan->pairs;
    float *y = el_worker_scratch(job->run, worker);
    int64_t r0, r1, i = chunk_rows(job, chunk, &r0, &r1), width = r1 - r0, last = job->first_pair[i + 1];
    const int64_t most = EL_COLUMN_BLOCK / (1 + job->step->i[3]);
    for (int64_t m0 = job->first_pair[i], n; m0 < last; m0 += n) {
        n = last - m0 < most ? last - m0 : most;
        multiply(job, 2, job->active[i], a->hidden, m0, n, r0, r1, y, width);
        for (int64_t m = 0; m < n; m++)
            memcpy(a->y + (m0 + m) * job->dim + r0, y + m * width, (size_t)width * sizeof *y);
    }
}

static void sum_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const experts_job *job = ctx;
    const el_plan *p = job->run->plan;
    const int32_t *slot = p->pairs.slot + row * job->n_used;
    const float *share = p->data[job->step->in[1]] + row * job->n_experts;
    float *out = p->data[job->step->out[0]] + row * job->dim;
    memset(out, 0, (size_t)job->dim * sizeof(float));
    for (int64_t j = 0, e = 0; j < job->n_used && slot[j] >= 0; j++, e++) {
        const float *y = p->pairs.y + slot[j] * job->dim;
        while (share[e] == 0.0f) e++;
        for (int64_t d = 0; d < job->dim; d++) out[d] += share[e] * y[d];
    }
}

static void run_each(const experts_job *job, el_chunk_fn fn, int64_t n) {
    if (n < 8)
        for (int64_t i = 0; i < n; i++) fn((void *)job, i, 0);
    else
        el_pool_run(fn, (void *)job, n, job->run->pass->cancel);
}

/* One phase over all active experts: chunks of whole 16-row groups of one expert. */
static int run_phase(experts_job *job, el_chunk_fn fn, const float *x, int64_t rows, int j0, int j1, int64_t limit) {
    const el_plan *p = job->run->plan;
    int64_t k = p->weights[job->step->w[j0]].cols, n_pairs = job->first_pair[job->n_active], done = 0, bytes = 0;
    for (int j = j0; j < j1; j++) {
        const el_weight *w = &p->weights[job->step->w[j]];
        int format = el_act_format_of(w->type);
        bytes += EL_PANEL_ROWS * el_row_bytes(w->type, k);
        if (done & 1 << format) continue;
        done |= 1 << format;
        el_quantize_columns(job->run, x, k, n_pairs, format, 1 + job->step->i[3]);
    }
    if (el_cancelled(job->run)) return EL_E_CANCELLED;
    int64_t groups = (rows + EL_PANEL_ROWS - 1) / EL_PANEL_ROWS, all = groups * job->n_active;
    int64_t size = all / ((int64_t)job->run->n_threads * CHUNKS_PER_WORKER), floor = all / (EL_MAX_CHUNKS / 2) + 1;
    if (size < MIN_CHUNK_BYTES / bytes) size = MIN_CHUNK_BYTES / bytes;
    if (size > limit) size = limit;
    if (size < floor) size = floor;
    job->rows = rows;
    job->groups_per_chunk = size;
    job->chunks_per_expert = (groups + size - 1) / size;
    el_pool_run(fn, job, job->n_active * job->chunks_per_expert, job->run->pass->cancel);
    return el_cancelled(job->run) ? EL_E_CANCELLED : EL_OK;
}

int el_step_experts(el_run *run, const el_step *step) {
    const el_plan *p = run->plan;
    experts_job job = {.run = run, .step = step, .n_experts = step->i[1], .n_used = step->i[2]};
    job.dim = p->buffers[step->in[0]].cols;
    job.width = p->weights[step->w[2]].cols;
    job.n_rows = el_rows(run, step->in[0]);
    int rc = sort_pairs(&job);
    if (rc) return rc;
    int64_t n_pairs = job.first_pair[job.n_active];
    if (n_pairs) {
        run_each(&job, gather_pair, n_pairs);
        rc = run_phase(&job, hidden_chunk, p->pairs.x, job.width, 0, 2, EL_GATED_ROWS / EL_PANEL_ROWS);
        if (!rc) rc = run_phase(&job, down_chunk, p->pairs.hidden, job.dim, 2, 3, EL_GATED_ROWS / EL_PANEL_ROWS);
        if (rc) return rc;
    }
    run_each(&job, sum_row, job.n_rows);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}
