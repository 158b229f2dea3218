/* prefill.c: linear steps of many columns through a table's prefill kernels (kernels.h), where it has some.
 *
 * The input becomes bf16 tiles once per step. A chunk is a block of rows of one weight times all columns: the kernel leaves
 * its products in the worker's scratch as tiles of 16 columns x 16 rows, and the rows of those tiles go out from there, with
 * bias, residual or activation applied on the way. An element's bits depend on its row, its column and k, never on how rows
 * and columns are cut.
 */
#include "plan.h"

enum { CHUNKS_PER_WORKER = 4, ROWS = EL_PANEL_ROWS };

#define C_FLOATS ((int64_t)EL_PREFILL_ROW_BLOCK * EL_PREFILL_COLUMN_BLOCK)
#define SCRATCH_FLOATS (C_FLOATS + EL_PREFILL_SCRATCH / (int64_t)sizeof(float)) /* and behind it, expanded sparse panels */

typedef struct {
    el_run *run;
    const el_step *step;
    int64_t n_cols, k;
    int n_weights;
    int64_t rows_per_chunk; /* a multiple of 16 */
    int64_t first_chunk[5]; /* running count of chunks per weight */
    el_columns x;
} prefill_job;

/* Sparse and compressed panels are expanded, a block of rows at a time. */
static int is_expanded(const el_weight *w) { return w->layout == EL_SPARSE || w->layout == EL_COMPRESSED; }
static el_prefill_fn kernel_of(const el_weight *w) {
    return el_k.prefill[is_expanded(w) ? EL_PANELS : w->layout][w->type];
}

static int is_linear(const el_step *s) { return s->op == EL_OP_LINEAR || s->op == EL_OP_LINEAR_GATED; }
static int weights_of(const el_step *s) { return s->op == EL_OP_LINEAR_GATED ? 2 : s->n; }

/* ---- memory: made with the plan, for the kernels in use then ------------------------------------------------------ */

/* Each of the step's weights has a prefill kernel; *parts is set to the bf16 parts that its columns need. */
static int step_has_kernels(const el_plan *p, const el_step *s, int *parts) {
    *parts = 1;
    if (!is_linear(s) || !el_k.prefill_column || s->i[3]) return 0; /* two planes hold more bits than bf16 does */
    for (int j = 0; j < weights_of(s); j++) {
        const el_weight *w = &p->weights[s->w[j]];
        if (!kernel_of(w)) return 0;
        if (el_prefill_two_parts(w->type)) *parts = 2;
    }
    return 1;
}

/* Room for a block of rows of the widest weight that is expanded */
static int64_t expanded_floats(const el_plan *p) {
    int64_t most = 0;
    for (int64_t i = 0; i < p->n_weights; i++) {
        const el_weight *w = &p->weights[i];
        int64_t bytes = is_expanded(w) ? el_panel_bytes(w->type, EL_PREFILL_ROW_BLOCK, w->cols) : 0;
        if (bytes > most) most = bytes;
    }
    return most / (int64_t)sizeof(float);
}

int el_prefill_allocate(el_plan *p) {
    int64_t columns = (p->max_tokens + ROWS - 1) / ROWS * ROWS;
    if (p->max_tokens < EL_PREFILL_FROM) return EL_OK;
    for (int64_t i = 0; i < p->n_steps; i++) {
        int parts;
        if (!step_has_kernels(p, &p->steps[i], &parts)) continue;
        int64_t bytes = columns * ((p->weights[p->steps[i].w[0]].cols + 31) / 32 * 32) * (int64_t)sizeof(uint16_t);
        for (int part = 0; part < parts; part++)
            if (bytes > p->prefill_bytes[part]) p->prefill_bytes[part] = bytes;
    }
    if (!p->prefill_bytes[0]) return EL_OK;
    int64_t floats = SCRATCH_FLOATS + expanded_floats(p);
    if (floats > p->worker_floats) p->worker_floats = floats;
    for (int part = 0; part < 2; part++)
        if (p->prefill_bytes[part] && !(p->prefill_columns[part] = el_arena_alloc(p->prefill_bytes[part]))) return EL_E_NOMEM;
    return EL_OK;
}

void el_prefill_free(el_plan *p) {
    for (int part = 0; part < 2; part++) el_arena_free(p->prefill_columns[part], p->prefill_bytes[part]);
}

int el_plan_has_prefill(const el_plan *p) { return p && p->prefill_columns[0]; }

int el_prefill_serves(const el_run *run, const el_step *s) {
    int parts;
    if (run->pass->exact || !run->plan->prefill_columns[0] || !step_has_kernels(run->plan, s, &parts)) return 0;
    return el_rows(run, s->in[0]) >= EL_PREFILL_FROM && (parts == 1 || run->plan->prefill_columns[1]);
}

/* ---- one pass ------------------------------------------------------------------------------------------------------ */

static void pack_column(void *ctx, int64_t m, int worker) {
    (void)worker;
    const prefill_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t at = (m / ROWS * job->x.k_tiles * ROWS + m % ROWS) * 32;
    el_k.prefill_column(p->data[job->step->in[0]] + m * job->k, job->k, p->prefill_columns[0] + at,
                        job->x.low ? p->prefill_columns[1] + at : NULL);
}

/* Row of column m out of tiles [column tile][n_rows][16][16]: row (16 n_rows) */
static void gather(const float *c, int64_t m, int64_t n_rows, float *row) {
    const float *from = c + (m / ROWS * n_rows * ROWS + m % ROWS) * ROWS;
    for (int64_t t = 0; t < n_rows; t++) memcpy(row + t * ROWS, from + t * ROWS * ROWS, ROWS * sizeof(float));
}

static void add_bias(const el_plan *p, int32_t id, int64_t r0, int64_t width, float *row) {
    if (id < 0) return;
    const float *bias = (const float *)p->weights[id].data + r0;
    for (int64_t i = 0; i < width; i++) row[i] += bias[i];
}

/* Rows [r0, r1) of weight j for columns [m0, m0 + n), from its tiles at c to the output */
static void finish_linear(const prefill_job *job, int j, int64_t r0, int64_t r1, int64_t m0, int64_t n, const float *c) {
    const el_plan *p = job->run->plan;
    const el_step *s = job->step;
    int64_t rows = p->weights[s->w[j]].rows, width = r1 - r0, n_rows = (width + ROWS - 1) / ROWS;
    float row[EL_PREFILL_ROW_BLOCK];
    for (int64_t m = 0; m < n; m++) {
        int64_t at = (m0 + m) * rows + r0;
        gather(c, m, n_rows, row);
        add_bias(p, s->b[j], r0, width, row);
        if (s->in[1] >= 0) el_k.add(p->data[s->in[1]] + at, row, p->data[s->out[0]] + at, width);
        else memcpy(p->data[s->out[j]] + at, row, (size_t)width * sizeof(float));
    }
}

static void finish_gated(const prefill_job *job, int64_t r0, int64_t r1, int64_t m0, int64_t n, const float *gate,
                         const float *up) {
    const el_plan *p = job->run->plan;
    const el_step *s = job->step;
    int64_t rows = p->weights[s->w[0]].rows, width = r1 - r0, n_rows = (width + ROWS - 1) / ROWS;
    float a[EL_PREFILL_ROW_BLOCK], b[EL_PREFILL_ROW_BLOCK];
    for (int64_t m = 0; m < n; m++) {
        gather(gate, m, n_rows, a);
        gather(up, m, n_rows, b);
        add_bias(p, s->b[0], r0, width, a);
        add_bias(p, s->b[1], r0, width, b);
        el_k.gated(a, b, p->data[s->out[0]] + (m0 + m) * rows + r0, width, s->i[0]);
    }
}

/* c: rows [r0, r1) of w times n_tiles tiles of columns; scratch as el_prefill_allocate made it */
static void multiply_block(const prefill_job *job, const el_weight *w, int64_t r0, int64_t r1, int64_t tile0, int64_t n_tiles,
                           float *c, float *scratch) {
    if (!is_expanded(w)) {
        kernel_of(w)(w->data, job->k, r0, r1, &job->x, tile0, n_tiles, c, scratch);
        return;
    }
    float *expanded = scratch + EL_PREFILL_SCRATCH / (int64_t)sizeof(float);
    (w->layout == EL_SPARSE ? el_sparse_expand : el_compressed_expand)(w->type, w->data, w->rows, w->cols, r0, r1, expanded);
    kernel_of(w)(expanded, job->k, 0, r1 - r0, &job->x, tile0, n_tiles, c, scratch);
}

static void prefill_chunk(void *ctx, int64_t chunk, int worker) {
    const prefill_job *job = ctx;
    const el_plan *p = job->run->plan;
    int gated = job->step->op == EL_OP_LINEAR_GATED, j = 0;
    while (chunk >= job->first_chunk[j + 1]) j++;
    const el_weight *w = &p->weights[job->step->w[j]];
    int64_t r0 = (chunk - job->first_chunk[j]) * job->rows_per_chunk;
    int64_t r1 = r0 + job->rows_per_chunk < w->rows ? r0 + job->rows_per_chunk : w->rows;
    float *c = el_worker_scratch(job->run, worker), *up = c + C_FLOATS / 2, *scratch = c + C_FLOATS;
    for (int64_t m0 = 0; m0 < job->n_cols; m0 += EL_PREFILL_COLUMN_BLOCK) {
        int64_t n = job->n_cols - m0 < EL_PREFILL_COLUMN_BLOCK ? job->n_cols - m0 : EL_PREFILL_COLUMN_BLOCK;
        int64_t n_tiles = (n + ROWS - 1) / ROWS;
        multiply_block(job, w, r0, r1, m0 / ROWS, n_tiles, c, scratch);
        if (!gated) {
            finish_linear(job, j, r0, r1, m0, n, c);
            continue;
        }
        const el_weight *w1 = &p->weights[job->step->w[1]];
        multiply_block(job, w1, r0, r1, m0 / ROWS, n_tiles, up, scratch);
        finish_gated(job, r0, r1, m0, n, c, up);
    }
}

/* Large blocks read the columns seldom, small ones share out evenly. */
static int64_t choose_rows(const prefill_job *job, int64_t all_rows, int64_t limit) {
    int64_t share = all_rows / ((int64_t)job->run->n_threads * CHUNKS_PER_WORKER) / (2 * ROWS) * (2 * ROWS);
    int64_t floor = (all_rows / (EL_MAX_CHUNKS / 2) + ROWS) / ROWS * ROWS;
    int64_t rows = share < 2 * ROWS ? 2 * ROWS : share > limit ? limit : share;
    return rows < floor && floor <= limit ? floor : rows;
}

int el_step_prefill(el_run *run, const el_step *s) {
    const el_plan *p = run->plan;
    int gated = s->op == EL_OP_LINEAR_GATED, parts;
    prefill_job job = {.run = run, .step = s, .n_cols = el_rows(run, s->in[0]), .n_weights = weights_of(s)};
    job.k = p->weights[s->w[0]].cols;
    step_has_kernels(p, s, &parts);
    job.x = (el_columns){p->prefill_columns[0], parts == 2 ? p->prefill_columns[1] : NULL, (job.k + 31) / 32};
    el_pool_run(pack_column, &job, job.n_cols, run->pass->cancel);
    if (el_cancelled(run)) return EL_E_CANCELLED;
    if (gated) job.n_weights = 1; /* chunks are of both weights' rows */
    int64_t all_rows = 0;
    for (int j = 0; j < job.n_weights; j++) all_rows += p->weights[s->w[j]].rows;
    job.rows_per_chunk = choose_rows(&job, all_rows, gated ? EL_PREFILL_ROW_BLOCK / 2 : EL_PREFILL_ROW_BLOCK);
    for (int j = 0; j < job.n_weights; j++)
        job.first_chunk[j + 1] =
            job.first_chunk[j] + (p->weights[s->w[j]].rows + job.rows_per_chunk - 1) / job.rows_per_chunk;
    if (job.first_chunk[job.n_weights] > EL_MAX_CHUNKS) return EL_E_UNSUPPORTED;
    el_pool_run(prefill_chunk, &job, job.first_chunk[job.n_weights], run->pass->cancel);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}

/* ---- one call, for tests and tools --------------------------------------------------------------------------------- */

static void test_blocks(el_prefill_fn kernel, const void *w, int64_t k, int64_t row0, int64_t row1, const el_columns *x,
                        int64_t n_cols, float *scratch, float *y, int64_t ldy) {
    float row[EL_PREFILL_ROW_BLOCK];
    for (int64_t m0 = 0; m0 < n_cols; m0 += EL_PREFILL_COLUMN_BLOCK)
        for (int64_t r0 = row0; r0 < row1; r0 += EL_PREFILL_ROW_BLOCK) {
            int64_t n = n_cols - m0 < EL_PREFILL_COLUMN_BLOCK ? n_cols - m0 : EL_PREFILL_COLUMN_BLOCK;
            int64_t r1 = row1 - r0 < EL_PREFILL_ROW_BLOCK ? row1 : r0 + EL_PREFILL_ROW_BLOCK;
            kernel(w, k, r0, r1, x, m0 / ROWS, (n + ROWS - 1) / ROWS, scratch, scratch + C_FLOATS);
            for (int64_t m = 0; m < n; m++) {
                gather(scratch, m, (r1 - r0 + ROWS - 1) / ROWS, row);
                memcpy(y + (m0 + m) * ldy + r0 - row0, row, (size_t)(r1 - r0) * sizeof(float));
            }
        }
}

int el_prefill_test(int type, int layout, const void *w, int64_t rows, int64_t k, int64_t row0, int64_t row1,
                    const float *x, int64_t n_cols, float *y, int64_t ldy) {
    int status = el_init(NULL);
    if (status != EL_OK) return status;
    if ((layout != EL_ROWS && layout != EL_PANELS) || el_act_format_of(type) < 0) return EL_E_ARGUMENT; /* no sparse kernels */
    el_prefill_fn kernel = el_k.prefill[layout][type];
    if (!kernel || !el_k.prefill_column) return EL_E_UNSUPPORTED;
    if (!w || !x || !y || k < 1 || k > 1 << 24 || n_cols < 1 || n_cols > 1 << 16 || row0 < 0 || row0 % ROWS || row1 < row0 ||
        row1 > rows || ldy < row1 - row0 || (layout == EL_PANELS ? el_panel_bytes(type, rows, k) : el_row_bytes(type, k)) < 0)
        return EL_E_ARGUMENT;
    int64_t k_tiles = (k + 31) / 32, values = (n_cols + ROWS - 1) / ROWS * k_tiles * ROWS * 32;
    int64_t bytes = 4 * values + 4 * C_FLOATS + EL_PREFILL_SCRATCH;
    uint16_t *high = el_arena_alloc(bytes), *low = high + values;
    if (!high) return EL_E_NOMEM;
    for (int64_t m = 0; m < n_cols; m++) {
        int64_t at = (m / ROWS * k_tiles * ROWS + m % ROWS) * 32;
        el_k.prefill_column(x + m * k, k, high + at, low + at);
    }
    el_columns columns = {high, low, k_tiles};
    test_blocks(kernel, w, k, row0, row1, &columns, n_cols, (float *)(low + values), y, ldy);
    el_arena_free(high, bytes);
    return EL_OK;
}
