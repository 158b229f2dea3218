/* plan.c: takes a plan in, checks every index and size in 64 bits, and owns its buffers. */
#include "plan.h"

#include <stdlib.h>

/* ---- checks: after these the runner indexes without looking ---------------------------------------- */

enum { MAX_ITEMS = 1 << 20, MAX_COLS = 1 << 24, MAX_TOKENS = 1 << 16 };

static int ids_in_range(const int32_t *ids, int n, int64_t limit) {
    for (int i = 0; i < n; i++)
        if (ids[i] < -1 || ids[i] >= limit) return 0;
    return 1;
}

static int is_buffer(const el_plan *p, int32_t id, int64_t cols) {
    return id >= 0 && id < p->n_buffers && (cols < 0 || p->buffers[id].cols == cols);
}
static int is_matrix(const el_plan *p, int32_t id, int64_t cols) {
    return id >= 0 && id < p->n_weights && p->weights[id].cols == cols;
}
static int is_vector(const el_plan *p, int32_t id, int64_t n) {
    return is_matrix(p, id, n) && p->weights[id].rows == 1 && p->weights[id].type == EL_TYPE_F32 &&
           p->weights[id].layout == EL_ROWS;
}
static int same_rows(const el_plan *p, int32_t a, int32_t b) {
    return p->buffers[a].rows_kind == p->buffers[b].rows_kind;
}

static int linear_ok(const el_plan *p, const el_step *s, int64_t cols, int j, int32_t out) {
    if (!is_matrix(p, s->w[j], cols)) return 0;
    const el_weight *w = &p->weights[s->w[j]];
    if (!el_k.linear[w->layout][w->type]) return 0;
    return is_buffer(p, out, w->rows) && same_rows(p, s->in[0], out) && (s->b[j] < 0 || is_vector(p, s->b[j], w->rows));
}

static int rotation_ok(const el_plan *p, int64_t head_dim, int64_t dims, int64_t style, int64_t table) {
    return head_dim > 0 && dims > 1 && dims <= head_dim && dims % 2 == 0 && table >= 0 && table < p->n_ropes &&
           p->ropes[table].n == dims / 2 && (style == EL_ROPE_INTERLEAVED || style == EL_ROPE_HALVES);
}

static int attention_ok(const el_plan *p, const el_step *s) {
    int64_t heads = s->i[1], kv_heads = s->i[2], dim = s->i[3];
    if (s->i[8] < 0 || s->i[8] > 1 || (s->i[8] && s->i[4])) return 0;
    if (s->i[0] < 0 || heads < 1 || heads > MAX_ITEMS || kv_heads < 1 || heads % kv_heads || dim < 1 ||
        dim > EL_MAX_HEAD_DIM || heads / kv_heads > EL_MAX_GROUP || s->i[4] < 0)
        return 0;
    if (s->i[5] && !rotation_ok(p, dim, s->i[5], s->i[6], s->i[7])) return 0;
    return is_buffer(p, s->in[0], heads * dim) && is_buffer(p, s->in[1], kv_heads * dim) &&
           is_buffer(p, s->in[2], kv_heads * dim) && is_buffer(p, s->out[0], heads * dim) &&
           !p->buffers[s->in[0]].rows_kind && !p->buffers[s->in[1]].rows_kind && !p->buffers[s->in[2]].rows_kind &&
           !p->buffers[s->out[0]].rows_kind;
}

static int rope_ok(const el_plan *p, const el_step *s) {
    if (!rotation_ok(p, s->i[0], s->i[1], s->i[2], s->i[3])) return 0;
    for (int j = 0; j < 2; j++) {
        if (s->in[j] < 0 && j == 1) continue;
        if (!is_buffer(p, s->in[j], -1) || p->buffers[s->in[j]].cols % s->i[0] || p->buffers[s->in[j]].rows_kind) return 0;
    }
    return 1;
}

static int add_rows_ok(const el_plan *p, const el_step *s, int64_t cols) {
    if (cols < 1 || !is_matrix(p, s->w[0], cols) || s->out[0] == s->in[0] || !is_buffer(p, s->out[0], cols)) return 0;
    if (s->i[0] != EL_ROW_FIRST && (s->i[0] != EL_ROW_POSITION || p->buffers[s->in[0]].rows_kind)) return 0;
    return same_rows(p, s->in[0], s->out[0]);
}

static int step_ok(const el_plan *p, const el_step *s) {
    if (!ids_in_range(s->in, 4, p->n_buffers) || !ids_in_range(s->out, 4, p->n_buffers) ||
        !ids_in_range(s->w, 4, p->n_weights) || !ids_in_range(s->b, 4, p->n_weights))
        return 0;
    int64_t cols = s->in[0] >= 0 ? p->buffers[s->in[0]].cols : -1;
    switch (s->op) {
    case EL_OP_EMBED:
        return s->w[0] >= 0 && is_buffer(p, s->out[0], p->weights[s->w[0]].cols) && !p->buffers[s->out[0]].rows_kind;
    case EL_OP_RMSNORM:
        return cols > 0 && s->i[0] > 0 && cols % s->i[0] == 0 && is_buffer(p, s->out[0], cols) &&
               is_vector(p, s->w[0], s->i[0]) && same_rows(p, s->in[0], s->out[0]);
    case EL_OP_ADD_ROWS: return add_rows_ok(p, s, cols);
    case EL_OP_LAYERNORM:
        return cols > 0 && is_buffer(p, s->out[0], cols) && is_vector(p, s->w[0], cols) && is_vector(p, s->w[1], cols) &&
               same_rows(p, s->in[0], s->out[0]);
    case EL_OP_GELU: return cols > 0 && is_buffer(p, s->out[0], cols) && same_rows(p, s->in[0], s->out[0]);
    case EL_OP_LINEAR:
        if (s->i[3] < 0 || s->i[3] > 1 || cols < 1 || s->n < 1 || s->n > 4 || (s->in[1] >= 0 && s->n != 1)) return 0;
        for (int j = 0; j < s->n; j++)
            if (!linear_ok(p, s, cols, j, s->out[j]) || s->out[j] == s->in[0]) return 0;
        return s->in[1] < 0 || (p->buffers[s->in[1]].cols == p->buffers[s->out[0]].cols && same_rows(p, s->in[1], s->out[0]));
    case EL_OP_LINEAR_GATED:
        return s->i[3] >= 0 && s->i[3] <= 1 && cols > 0 && linear_ok(p, s, cols, 0, s->out[0]) && linear_ok(p, s, cols, 1, s->out[0]) && s->out[0] != s->in[0];
    case EL_OP_ROPE: return rope_ok(p, s);
    case EL_OP_ATTENTION: return attention_ok(p, s);
    case EL_OP_GATED:
    case EL_OP_ADD:
        return cols > 0 && is_buffer(p, s->in[1], cols) && is_buffer(p, s->out[0], cols) &&
               same_rows(p, s->in[0], s->in[1]) && same_rows(p, s->in[0], s->out[0]);
    case EL_OP_SCALE:
    case EL_OP_SOFTCAP:
        return cols > 0 && is_buffer(p, s->out[0], cols) && same_rows(p, s->in[0], s->out[0]) &&
               (s->op == EL_OP_SCALE || s->f[0] > 0.0f);
    case EL_OP_ROUTE:
        return cols > 0 && cols <= EL_MAX_EXPERTS && s->i[0] > 0 && s->i[0] <= cols && s->out[0] != s->in[0] &&
               is_buffer(p, s->out[0], cols) && same_rows(p, s->in[0], s->out[0]);
    case EL_OP_EXPERTS: return el_experts_ok(p, s);
    case EL_OP_TAKE_ROWS:
        return cols > 0 && is_buffer(p, s->out[0], cols) && !p->buffers[s->in[0]].rows_kind && p->buffers[s->out[0]].rows_kind;
    default: return 0;
    }
}

static int64_t index_bytes(const el_weight *w) {
    return w->layout == EL_SPARSE ? el_sparse_index_bytes(w->type, w->rows, w->cols)
                                  : el_compressed_index_bytes(w->type, w->rows, w->cols);
}

static int weight_ok(const el_weight *w) {
    if (!w->data || w->rows < 1 || w->cols < 1 || w->type < 0 || w->type >= EL_TYPE_LIMIT || w->cols > MAX_COLS) return 0;
    if (w->layout == EL_PANELS) return el_panel_bytes(w->type, w->rows, w->cols) == w->bytes;
    if (w->layout == EL_SPARSE || w->layout == EL_COMPRESSED) return index_bytes(w) >= 0; /* bind_indexes looks inside */
    int64_t row = el_row_bytes(w->type, w->cols);
    return w->layout == EL_ROWS && row > 0 && w->rows <= INT64_MAX / row && row * w->rows == w->bytes;
}

static int bind_indexes(el_plan *p) {
    for (int64_t i = 0; i < p->n_weights; i++) {
        el_weight *w = &p->weights[i];
        if (w->layout != EL_SPARSE && w->layout != EL_COMPRESSED) continue;
        p->indexes[i] = malloc((size_t)index_bytes(w));
        if (!p->indexes[i]) return EL_E_NOMEM;
        int rc = (w->layout == EL_SPARSE ? el_sparse_bind : el_compressed_bind)(w->type, w->data, w->bytes, w->rows, w->cols,
                                                                               p->indexes[i]);
        if (rc) return rc;
        w->data = p->indexes[i];
    }
    return EL_OK;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static void *copy_of(const void *src, int64_t n, size_t size) {
    void *p = calloc((size_t)(n ? n : 1), size);
    if (p && n) memcpy(p, src, (size_t)n * size);
    return p;
}

static int copy_inputs(el_plan *p, const el_step *steps, const el_buffer *buffers, const el_weight *weights,
                       const el_rope_table *ropes) {
    p->steps = copy_of(steps, p->n_steps, sizeof *steps);
    p->buffers = copy_of(buffers, p->n_buffers, sizeof *buffers);
    p->weights = copy_of(weights, p->n_weights, sizeof *weights);
    p->indexes = calloc((size_t)p->n_weights, sizeof *p->indexes);
    p->ropes = calloc((size_t)p->n_ropes + 1, sizeof *p->ropes);
    p->angles = calloc((size_t)p->n_ropes + 1, sizeof *p->angles);
    p->data = calloc((size_t)p->n_buffers + 1, sizeof *p->data);
    p->data_bytes = calloc((size_t)p->n_buffers + 1, sizeof *p->data_bytes);
    if (!p->steps || !p->buffers || !p->weights || !p->indexes || !p->ropes || !p->angles || !p->data || !p->data_bytes)
        return EL_E_NOMEM;
    for (int64_t i = 0; i < p->n_ropes; i++) {
        if (ropes[i].n < 1 || ropes[i].n > EL_MAX_HEAD_DIM || !ropes[i].inv_freq) return EL_E_ARGUMENT;
        p->ropes[i] = ropes[i];
        p->ropes[i].inv_freq = copy_of(ropes[i].inv_freq, ropes[i].n, sizeof(double));
        float **parts[] = {&p->angles[i].cos, &p->angles[i].sin, &p->angles[i].back_cos, &p->angles[i].back_sin};
        for (int j = 0; j < 4; j++)
            if (!(*parts[j] = calloc((size_t)(p->max_tokens * ropes[i].n), sizeof(float)))) return EL_E_NOMEM;
        if (!p->ropes[i].inv_freq) return EL_E_NOMEM;
    }
    return EL_OK;
}

/* Quantised activations: room for the step that needs most, of each format. */
static int allocate_activations(el_plan *p) {
    for (int64_t i = 0; i < p->n_steps; i++) {
        const el_step *s = &p->steps[i];
        int is_linear = s->op == EL_OP_LINEAR || s->op == EL_OP_LINEAR_GATED;
        if (!is_linear && s->op != EL_OP_EXPERTS) continue;
        int64_t columns = p->max_tokens * (is_linear ? 1 : s->i[2]) * (1 + s->i[3]);
        for (int j = 0; j < (s->op == EL_OP_LINEAR ? s->n : is_linear ? 2 : 3); j++) {
            const el_weight *w = &p->weights[s->w[j]];
            int format = el_act_format_of(w->type);
            int64_t need = columns * ((w->cols + 255) / 256 * 256);
            if (format > 0 && need > p->act_bytes[0][format]) p->act_bytes[0][format] = need;
        }
    }
    for (int f = 1; f < 3; f++) {
        if (!p->act_bytes[0][f]) continue;
        p->act_bytes[1][f] = p->act_bytes[0][f] / 32 * (int64_t)sizeof(float);
        p->act_bytes[2][f] = p->act_bytes[0][f] / 16 * (int64_t)sizeof(int32_t);
        p->act_q[f] = el_arena_alloc(p->act_bytes[0][f]);
        p->act_d[f] = el_arena_alloc(p->act_bytes[1][f]);
        p->act_sum[f] = el_arena_alloc(p->act_bytes[2][f]);
        if (!p->act_q[f] || !p->act_d[f] || !p->act_sum[f]) return EL_E_NOMEM;
        p->tile_q[f] = el_arena_alloc(p->act_bytes[0][f]);
        p->tile_d[f] = el_arena_alloc(p->act_bytes[1][f]);
        p->tile_sum[f] = el_arena_alloc(p->act_bytes[2][f]);
        if (!p->tile_q[f] || !p->tile_d[f] || !p->tile_sum[f]) return EL_E_NOMEM;
    }
    return el_experts_allocate(p);
}

/* The runner's buffers are zeroed arenas: pages that a short pass never touches cost nothing. */
static int allocate_buffers(el_plan *p) {
    for (int64_t i = 0; i < p->n_buffers; i++) {
        if (p->buffers[i].cols < 1 || p->buffers[i].cols > MAX_COLS) return EL_E_ARGUMENT;
        p->data_bytes[i] = p->max_tokens * p->buffers[i].cols * (int64_t)sizeof(float);
        p->data[i] = el_arena_alloc(p->data_bytes[i]);
        if (!p->data[i]) return EL_E_NOMEM;
    }
    p->worker_floats = el_linear_scratch();
    for (int64_t i = 0; i < p->n_steps; i++) {
        const el_step *s = &p->steps[i];
        if ((s->op == EL_OP_LINEAR || s->op == EL_OP_LINEAR_GATED || s->op == EL_OP_EXPERTS) && s->i[3])
            for (int j = 0; j < 4; j++) /* a column's rest, before it is rounded in its turn */
                if (s->w[j] >= 0 && p->weights[s->w[j]].cols > p->worker_floats) p->worker_floats = p->weights[s->w[j]].cols;
        if (s->op == EL_OP_ATTENTION) {
            int64_t need = el_attention_scratch(s->i[1] / s->i[2], s->i[3], p->max_tokens);
            if (need > p->worker_floats) p->worker_floats = need;
        }
    }
    int rc = el_prefill_allocate(p);
    if (rc) return rc;
    p->worker_floats = (p->worker_floats + 15) / 16 * 16;
    return allocate_activations(p);
}

int el_plan_new(el_plan **out, const el_step *steps, int64_t n_steps, const el_buffer *buffers, int64_t n_buffers,
                const el_weight *weights, int64_t n_weights, const el_rope_table *ropes, int64_t n_ropes,
                int64_t max_tokens) {
    if (!out) return EL_E_ARGUMENT;
    *out = NULL;
    if (!steps || !buffers || !weights || (n_ropes && !ropes) || n_steps < 1 || n_steps > MAX_ITEMS || n_buffers < 1 ||
        n_buffers > MAX_ITEMS || n_weights < 1 || n_weights > MAX_ITEMS || n_ropes < 0 || n_ropes > 64 ||
        max_tokens < 1 || max_tokens > MAX_TOKENS)
        return EL_E_ARGUMENT;
    int rc = el_init(NULL);
    if (rc) return rc;
    el_plan *p = calloc(1, sizeof *p);
    if (!p) return EL_E_NOMEM;
    p->n_steps = n_steps, p->n_buffers = n_buffers, p->n_weights = n_weights, p->n_ropes = n_ropes;
    p->max_tokens = max_tokens;
    rc = copy_inputs(p, steps, buffers, weights, ropes);
    for (int64_t i = 0; !rc && i < n_weights; i++)
        if (!weight_ok(&p->weights[i])) rc = EL_E_ARGUMENT;
    if (!rc) rc = bind_indexes(p);
    for (int64_t i = 0; !rc && i < n_steps; i++)
        if (!step_ok(p, &p->steps[i])) rc = EL_E_ARGUMENT;
    if (!rc) rc = allocate_buffers(p);
    if (rc) el_plan_free(p);
    else *out = p;
    return rc;
}

void el_plan_free(el_plan *p) {
    if (!p) return;
    for (int64_t i = 0; p->ropes && i < p->n_ropes; i++) {
        free((void *)p->ropes[i].inv_freq);
        if (p->angles) free(p->angles[i].cos), free(p->angles[i].sin), free(p->angles[i].back_cos), free(p->angles[i].back_sin);
    }
    for (int64_t i = 0; p->data && p->data_bytes && i < p->n_buffers; i++) el_arena_free(p->data[i], p->data_bytes[i]);
    for (int f = 1; f < 3; f++) {
        el_arena_free(p->act_q[f], p->act_bytes[0][f]);
        el_arena_free(p->act_d[f], p->act_bytes[1][f]);
        el_arena_free(p->act_sum[f], p->act_bytes[2][f]);
        el_arena_free(p->tile_q[f], p->act_bytes[0][f]);
        el_arena_free(p->tile_d[f], p->act_bytes[1][f]);
        el_arena_free(p->tile_sum[f], p->act_bytes[2][f]);
    }
    el_arena_free(p->worker_scratch, p->n_workers * p->worker_floats * (int64_t)sizeof(float));
    el_arena_free(p->partials, p->partial_bytes);
    el_experts_free(p);
    el_prefill_free(p);
    for (int64_t i = 0; p->indexes && i < p->n_weights; i++) free(p->indexes[i]);
    free(p->indexes);
    free(p->steps), free(p->buffers), free(p->weights), free(p->ropes), free(p->angles);
    free(p->data), free(p->data_bytes), free(p);
}

float *el_plan_buffer(el_plan *p, int32_t buffer) {
    return p && buffer >= 0 && buffer < p->n_buffers ? p->data[buffer] : NULL;
}

/* ---- what it costs ------------------------------------------------------------------------------------ */

/* Memory that an arena of `whole` bytes takes when a pass writes share / of of it. */
static int64_t written(int64_t whole, int64_t share, int64_t of, int64_t page) {
    int64_t used = share >= of ? whole : (whole + of - 1) / of * share;
    if (whole < page) page = 4096;
    used = (used + page - 1) / page * page;
    return used < whole ? used : (whole + 4095) / 4096 * 4096;
}

/* Fused steps leave some buffers unused: those cost nothing. */
static int is_written(const el_plan *p, int32_t buffer) {
    for (int64_t i = 0; i < p->n_steps; i++)
        for (int j = 0; j < 4; j++)
            if (p->steps[i].out[j] == buffer) return 1;
    return 0;
}

int64_t el_plan_bytes(const el_plan *p, int64_t n_tokens, int64_t n_outputs, int n_workers, int64_t page) {
    if (!p || n_tokens < 1 || n_outputs < 0 || n_workers < 1 || n_workers > EL_MAX_THREADS || page < 4096) return -1;
    int64_t most = p->max_tokens, sum = 0, rows = n_tokens < most ? n_tokens : most;
    for (int64_t i = 0; i < p->n_ropes; i++) sum += 4 * rows * p->ropes[i].n * (int64_t)sizeof(float);
    for (int64_t i = 0; i < p->n_buffers; i++)
        if (is_written(p, (int32_t)i))
            sum += written(p->data_bytes[i], p->buffers[i].rows_kind ? n_outputs : rows, most, page);
    for (int f = 1; f < 3; f++)
        for (int part = 0; part < 3; part++) /* act_* and tile_*: the second only for passes of 16 columns and more */
            sum += written(p->act_bytes[part][f], rows, most, page) * (rows < EL_PANEL_ROWS ? 1 : 2);
    for (int part = 0; part < 2 && rows >= EL_PREFILL_FROM; part++)
        sum += written(p->prefill_bytes[part], rows, most, page);
    sum += written(n_workers * p->worker_floats * (int64_t)sizeof(float), 1, 1, page);
    sum += 2 * written(p->pairs.x_bytes, rows, most, page) + written(p->pairs.hidden_bytes, rows, most, page);
    return sum + 2 * written(p->pairs.max_pairs * (int64_t)sizeof(int32_t), rows, most, page);
}
