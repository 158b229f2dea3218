/* run.c: one pass = the plan's steps in order. The simple steps live here, linear.c, attention.c and experts.c
 * have the rest. */
#include "plan.h"

/* ---- row-wise steps: one chunk is one row ------------------------------------------------------------- */

typedef struct {
    el_run *run;
    const el_step *step;
} row_job;

/* row `id` of a matrix as floats */
static void take_weights(const el_weight *w, int64_t id, float *out) {
    if (w->layout == EL_PANELS) el_panel_row(w->type, w->data, w->rows, w->cols, id, out);
    else if (w->layout == EL_COMPRESSED) el_compressed_row(w->type, w->data, w->rows, w->cols, id, out);
    else if (w->layout == EL_SPARSE) el_sparse_row(w->type, w->data, w->rows, w->cols, id, out);
    else el_dequantize(w->type, (const char *)w->data + id * el_row_bytes(w->type, w->cols), out, 1, w->cols);
}

static void embed_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_weight *w = &job->run->plan->weights[job->step->w[0]];
    take_weights(w, job->run->pass->tokens[row], job->run->plan->data[job->step->out[0]] + row * w->cols);
}

static void add_rows_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    const el_weight *w = &p->weights[job->step->w[0]];
    float *out = p->data[job->step->out[0]] + row * w->cols;
    take_weights(w, job->step->i[0] == EL_ROW_POSITION ? job->run->pass->position + row : 0, out);
    el_k.add(p->data[job->step->in[0]] + row * w->cols, out, out, w->cols);
}

static void layernorm_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    const el_step *s = job->step;
    int64_t n = p->buffers[s->in[0]].cols;
    el_k.layernorm(p->data[s->in[0]] + row * n, p->weights[s->w[0]].data, p->weights[s->w[1]].data,
                   p->data[s->out[0]] + row * n, n, s->f[0]);
}

static void gelu_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols;
    el_k.gelu(p->data[job->step->in[0]] + row * n, p->data[job->step->out[0]] + row * n, n);
}

static void norm_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols, group = job->step->i[0];
    for (int64_t at = row * n; at < (row + 1) * n; at += group)
        el_k.rmsnorm(p->data[job->step->in[0]] + at, p->weights[job->step->w[0]].data, p->data[job->step->out[0]] + at,
                     group, job->step->f[0]);
}

static void gated_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols, at = row * n;
    el_k.gated(p->data[job->step->in[0]] + at, p->data[job->step->in[1]] + at, p->data[job->step->out[0]] + at, n,
               job->step->i[0]);
}

static void add_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols, at = row * n;
    el_k.add(p->data[job->step->in[0]] + at, p->data[job->step->in[1]] + at, p->data[job->step->out[0]] + at, n);
}

static void scale_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols;
    const float *x = p->data[job->step->in[0]] + row * n;
    float *out = p->data[job->step->out[0]] + row * n, factor = job->step->f[0];
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor;
}

static void softcap_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols;
    el_k.softcap(p->data[job->step->in[0]] + row * n, p->data[job->step->out[0]] + row * n, n, job->step->f[0]);
}

static void take_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t n = p->buffers[job->step->in[0]].cols;
    memcpy(p->data[job->step->out[0]] + row * n, p->data[job->step->in[0]] + job->run->pass->outputs[row] * n,
           (size_t)n * sizeof(float));
}

/* (x0, x1) -> (x0 cos - x1 sin, x0 sin + x1 cos) for each pair of a head */
void el_turn(float *x, const float *cos, const float *sin, int64_t pairs, int style) {
    int64_t step = style == EL_ROPE_HALVES ? 1 : 2, other = style == EL_ROPE_HALVES ? pairs : 1;
    for (int64_t i = 0; i < pairs; i++) {
        float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cos[i] - b * sin[i];
        x[i * step + other] = a * sin[i] + b * cos[i];
    }
}

static void rope_row(void *ctx, int64_t row, int worker) {
    (void)worker;
    const row_job *job = ctx;
    const el_plan *p = job->run->plan;
    const el_step *s = job->step;
    int64_t head_dim = s->i[0], pairs = s->i[1] / 2, table = s->i[3];
    for (int j = 0; j < 2 && s->in[j] >= 0; j++) {
        int64_t cols = p->buffers[s->in[j]].cols;
        float *x = p->data[s->in[j]] + row * cols;
        for (int64_t h = 0; h < cols; h += head_dim)
            el_turn(x + h, p->angles[table].cos + row * pairs, p->angles[table].sin + row * pairs, pairs, s->i[2]);
    }
}

/* Few rows are done by the caller alone: waking helpers would cost more. */
static int run_rows(el_run *run, const el_step *step, el_chunk_fn fn, int64_t n_rows) {
    row_job job = {run, step};
    if (n_rows < 8)
        for (int64_t r = 0; r < n_rows; r++) fn(&job, r, 0);
    else
        el_pool_run(fn, &job, n_rows, run->pass->cancel);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}

static int run_step(el_run *run, const el_step *s) {
    switch (s->op) {
    case EL_OP_EMBED: return run_rows(run, s, embed_row, run->pass->n_tokens);
    case EL_OP_ADD_ROWS: return run_rows(run, s, add_rows_row, el_rows(run, s->out[0]));
    case EL_OP_LAYERNORM: return run_rows(run, s, layernorm_row, el_rows(run, s->out[0]));
    case EL_OP_GELU: return run_rows(run, s, gelu_row, el_rows(run, s->out[0]));
    case EL_OP_RMSNORM: return run_rows(run, s, norm_row, el_rows(run, s->out[0]));
    case EL_OP_LINEAR:
    case EL_OP_LINEAR_GATED: return el_step_linear(run, s);
    case EL_OP_ROPE: return run_rows(run, s, rope_row, run->pass->n_tokens);
    case EL_OP_ATTENTION: return el_step_attention(run, s);
    case EL_OP_GATED: return run_rows(run, s, gated_row, el_rows(run, s->out[0]));
    case EL_OP_ADD: return run_rows(run, s, add_row, el_rows(run, s->out[0]));
    case EL_OP_SCALE: return run_rows(run, s, scale_row, el_rows(run, s->out[0]));
    case EL_OP_SOFTCAP: return run_rows(run, s, softcap_row, el_rows(run, s->out[0]));
    case EL_OP_ROUTE: return el_step_route(run, s);
    case EL_OP_EXPERTS: return el_step_experts(run, s);
    case EL_OP_TAKE_ROWS: return run_rows(run, s, take_row, run->pass->n_outputs);
    default: return EL_E_UNSUPPORTED;
    }
}

/* ---- the pass --------------------------------------------------------------------------------------------- */

/* Every block that holds a part of [first, end) has a page, and no later block up to `newest` has taken its column. */
static int pages_ok(const el_kv *kv, int64_t layer, int64_t first, int64_t end, int64_t newest) {
    if (first >= end) return 1;
    int64_t from = first / EL_PAGE_TOKENS, to = (end - 1) / EL_PAGE_TOKENS + 1;
    int64_t behind = from > kv->head_blocks ? from : kv->head_blocks;
    if (to > behind && newest - behind >= kv->ring) return 0;
    for (int64_t b = from; b < to; b++) {
        int32_t page = kv->table[layer * kv->table_stride + el_column(kv, b)];
        if (page < 0 || page >= kv->n_pages) return 0;
    }
    return 1;
}

static int span_ok(const el_kv *kv, int64_t position) {
    return kv->head_blocks >= 0 && kv->ring > 0 && kv->table_stride <= INT32_MAX && kv->ring <= kv->table_stride &&
           kv->head_blocks <= kv->table_stride - kv->ring && kv->keep >= 0 && kv->keep <= INT64_MAX / 4 &&
           kv->window >= 0 && kv->window <= INT64_MAX / 4 && kv->first >= 0 && kv->first <= position &&
           (kv->first == 0 || kv->first >= kv->keep);
}

/* What any token of the pass sees or writes is there: what the first one sees of a stretch and all behind it. */
static int kv_ok(const el_plan *p, const el_pass *pass) {
    const el_kv *kv = pass->kv;
    if (!kv || !kv->base || !kv->table || kv->n_pages < 1 || kv->table_stride < 1 || kv->n_layers < 1) return 0;
    if (!span_ok(kv, pass->position)) return 0;
    int64_t last = pass->position + pass->n_tokens - 1, shifted = el_first_shifted(kv, pass->position);
    for (int64_t i = pass->first_step; i < pass->last_step; i++) {
        const el_step *s = &p->steps[i];
        if (s->op != EL_OP_ATTENTION) continue;
        if (s->i[8] && (kv->first || kv->window || kv->keep)) return 0; /* nothing can have been dropped */
        if (s->i[0] >= kv->n_layers) return 0;
        if (el_kv_page_bytes(kv->k_type, kv->v_type, s->i[2], s->i[3]) != kv->page_bytes) return 0;
        el_stretch tail = el_seen(kv, EL_TAIL, s->i[4], pass->position), head = {0, 0};
        if (shifted >= 0 && shifted <= last) head = el_seen(kv, EL_HEAD, s->i[4], shifted);
        if (!pages_ok(kv, s->i[0], tail.first, last + 1, last / EL_PAGE_TOKENS) ||
            !pages_ok(kv, s->i[0], head.first, head.end, last / EL_PAGE_TOKENS))
            return 0;
    }
    return 1;
}

static int pass_ok(const el_plan *p, const el_pass *pass) {
    if (!pass->tokens || pass->n_tokens < 1 || pass->n_tokens > p->max_tokens || pass->position < 0 ||
        pass->position > INT64_MAX / 2 || pass->n_outputs < 0 || pass->n_outputs > pass->n_tokens ||
        (pass->n_outputs && !pass->outputs) || pass->first_step < 0 || pass->last_step > p->n_steps ||
        pass->first_step > pass->last_step)
        return 0;
    for (int64_t i = 0; i < pass->n_outputs; i++)
        if (pass->outputs[i] < (i ? pass->outputs[i - 1] + 1 : 0) || pass->outputs[i] >= pass->n_tokens) return 0;
    for (int64_t i = pass->first_step; i < pass->last_step; i++) {
        const el_step *s = &p->steps[i];
        if (s->op == EL_OP_ADD_ROWS && s->i[0] == EL_ROW_POSITION &&
            pass->n_tokens > p->weights[s->w[0]].rows - pass->position)
            return 0;
        if (s->op == EL_OP_EMBED)
            for (int64_t t = 0; t < pass->n_tokens; t++)
                if (pass->tokens[t] < 0 || pass->tokens[t] >= p->weights[s->w[0]].rows) return 0;
    }
    return kv_ok(p, pass);
}

/* cos, sin (n). Angles in double: at position 100,000 a float angle is off by a thousandth of a turn. */
static void fill_angles(const el_rope_table *table, int64_t position, double magnitude, float *cos_out, float *sin_out) {
    for (int64_t i = 0; i < table->n; i++) {
        double angle = (double)position * table->inv_freq[i];
        cos_out[i] = (float)(cos(angle) * magnitude);
        sin_out[i] = (float)(sin(angle) * magnitude);
    }
}

/* The angles back to the head, of tokens that have a shift; the query has its table's magnitude already. */
static void fill_back(const el_rope_table *table, const el_pass *pass, el_angles *a) {
    int64_t n = table->n, from = el_first_shifted(pass->kv, pass->position) - pass->position, before = 0;
    for (int64_t t = from < 0 ? pass->n_tokens : from; t < pass->n_tokens; t++) {
        int64_t shift = el_shift(pass->kv, pass->position + t);
        if (shift == before) {
            memcpy(a->back_cos + t * n, a->back_cos + (t - 1) * n, (size_t)n * sizeof(float));
            memcpy(a->back_sin + t * n, a->back_sin + (t - 1) * n, (size_t)n * sizeof(float));
        } else {
            fill_angles(table, -shift, 1.0, a->back_cos + t * n, a->back_sin + t * n);
        }
        before = shift;
    }
}

static void fill_ropes(el_plan *p, const el_pass *pass) {
    for (int64_t r = 0; r < p->n_ropes; r++) {
        const el_rope_table *table = &p->ropes[r];
        el_angles *a = &p->angles[r];
        for (int64_t t = 0; t < pass->n_tokens; t++)
            fill_angles(table, pass->position + t, table->magnitude, a->cos + t * table->n, a->sin + t * table->n);
        fill_back(table, pass, a);
    }
}

static int ensure_scratch(el_plan *p, int n_workers) {
    if (n_workers <= p->n_workers) return EL_OK;
    int64_t row = p->worker_floats * (int64_t)sizeof(float);
    float *bigger = el_arena_alloc(n_workers * row);
    if (!bigger) return EL_E_NOMEM;
    el_arena_free(p->worker_scratch, p->n_workers * row);
    p->worker_scratch = bigger;
    p->n_workers = n_workers;
    return EL_OK;
}

static int output_finite(const el_run *run, const el_step *s) {
    for (int j = 0; j < 4; j++) {
        int32_t id = s->op == EL_OP_ROPE ? s->in[j] : s->out[j];
        if (id < 0 || (s->op == EL_OP_ROPE && j > 1)) continue;
        int64_t n = el_rows(run, id) * run->plan->buffers[id].cols;
        const float *x = run->plan->data[id];
        float sum = 0.0f; /* x - x is 0 for finite x, NaN otherwise: no branch per element */
        for (int64_t i = 0; i < n; i++) sum += x[i] - x[i];
        if (sum != 0.0f) return 0;
    }
    return 1;
}

/* Walks the pass again, looking at every step's output. Writing the same keys and values again changes nothing. */
static int64_t find_bad_step(el_run *run) {
    for (int64_t i = run->pass->first_step; i < run->pass->last_step; i++)
        if (run_step(run, &run->plan->steps[i]) || !output_finite(run, &run->plan->steps[i])) return i;
    return run->pass->last_step - 1;
}

int el_forward(el_plan *p, el_pass *pass) {
    if (!p || !pass || !pass_ok(p, pass)) return EL_E_ARGUMENT;
    pass->bad_step = -1;
    el_run run = {p, pass, el_pool_begin(pass->n_threads)};
    if (run.n_threads < 1) return EL_E_SYSTEM;
    int rc = ensure_scratch(p, el_pool_workers());
    if (!rc) fill_ropes(p, pass);
    for (int64_t i = pass->first_step; !rc && i < pass->last_step; i++) rc = run_step(&run, &p->steps[i]);
    if (!rc && pass->check_finite && pass->last_step > pass->first_step &&
        !output_finite(&run, &p->steps[pass->last_step - 1])) {
        rc = EL_E_NONFINITE;
        pass->bad_step = find_bad_step(&run);
        if (el_cancelled(&run)) rc = EL_E_CANCELLED;
    }
    el_pool_end();
    return rc;
}
