/* linear.c: the linear steps. Quantises the input once, then hands out chunks of output rows.
 *
 * A step may carry several weights that read the same input (q|k|v, gate|up): their rows form one list of
 * 16-row groups, so that one phase serves all of them. Rows never share an accumulator, which is why the
 * result does not depend on how the list is cut.
 */
#include "plan.h"

/* A chunk of a wide pass: its weights should stay in L2 while all columns run past them, and a cancel be seen within
 * a millisecond or two; without wide kernels an eighth of that. */
enum { TARGET_CHUNKS_PER_WORKER = 6, SPARSE_CHUNKS_PER_WORKER = 16, MIN_CHUNK_BYTES = 24 << 10, MAX_CHUNK_MACS = 48 << 20, WIDE_CHUNK_MACS = 384 << 20 };

int64_t el_linear_scratch(void) { return 2 * (int64_t)EL_COLUMN_BLOCK * EL_GATED_ROWS; }

typedef struct {
    el_run *run;
    const el_step *step;
    int64_t n_cols;           /* rows of the input buffer in this pass */
    int64_t k;
    int64_t n_groups;         /* 16-row groups of all weights */
    int64_t n_chunks;
    int64_t first_group[5];   /* running count of groups per weight */
    int n_weights;
} linear_job;

/* ---- the input --------------------------------------------------------------------------------- */

typedef struct {
    el_run *run;
    const float *x;
    int64_t k, k_pad, n_cols;
    int64_t per_scale, per_sum;
    int format, planes;
} quantize_job;

/* What int8 left of a column, as the next column: x - d * q */
static void quantize_rest(const quantize_job *job, const float *x, int8_t *q, float *d, int32_t *sum, float *rest) {
    int64_t ld_d = job->k_pad / job->per_scale, ld_sum = job->k_pad / job->per_sum;
    for (int64_t i = 0; i < job->k; i++) {
        float step = d[i / job->per_scale] * (float)q[i];
        rest[i] = x[i] - step;
    }
    (job->format == EL_ACTF_Q8_32 ? el_k.quantize_q8_32 : el_k.quantize_q8_256)(rest, job->k, q + job->k_pad, d + ld_d,
                                                                               sum + ld_sum);
}

/* One block of 16 int8 columns, or what is left of it; a whole block is also laid side by side for wide kernels. */
static void quantize_block(void *ctx, int64_t block, int worker) {
    const quantize_job *job = ctx;
    const el_plan *p = job->run->plan;
    int64_t c0 = block * EL_TILE_COLUMNS, c1 = c0 + EL_TILE_COLUMNS, n_cols = job->n_cols * job->planes;
    int64_t ld_d = job->k_pad / job->per_scale, ld_sum = job->k_pad / job->per_sum;
    int8_t *q = p->act_q[job->format];
    float *d = p->act_d[job->format];
    int32_t *sum = p->act_sum[job->format];
    for (int64_t c = c0; c < c1 && c < n_cols; c += job->planes) {
        const float *x = job->x + c / job->planes * job->k;
        (job->format == EL_ACTF_Q8_32 ? el_k.quantize_q8_32 : el_k.quantize_q8_256)(
            x, job->k, q + c * job->k_pad, d + c * ld_d, sum + c * ld_sum);
        if (job->planes == 2)
            quantize_rest(job, x, q + c * job->k_pad, d + c * ld_d, sum + c * ld_sum, el_worker_scratch(job->run, worker));
    }
    if (c1 > n_cols || !el_k.wide) return;
    int64_t ld_tile_sum = job->format == EL_ACTF_Q8_32 ? ld_sum : ld_d * 16;
    el_tile_columns(job->format, job->k_pad, q + c0 * job->k_pad, d + c0 * ld_d, sum + c0 * ld_sum,
                    p->tile_q[job->format] + c0 * job->k_pad, p->tile_d[job->format] + c0 * ld_d,
                    p->tile_sum[job->format] + c0 * ld_tile_sum);
}

void el_quantize_columns(el_run *run, const float *x, int64_t k, int64_t n_cols, int format, int planes) {
    if (format == EL_ACTF_F32) return;
    int by_32 = format == EL_ACTF_Q8_32;
    quantize_job q = {run, x, k, (k + 255) / 256 * 256, n_cols, by_32 ? 32 : 256, by_32 ? 32 : 16, format, planes};
    int64_t n_blocks = (n_cols * planes + EL_TILE_COLUMNS - 1) / EL_TILE_COLUMNS;
    if (n_blocks == 1) quantize_block(&q, 0, 0); /* cheaper than waking anybody */
    else el_pool_run(quantize_block, &q, n_blocks, run->pass->cancel);
}

static void quantize_input(const linear_job *job) {
    int done = 0;
    const float *x = job->run->plan->data[job->step->in[0]];
    for (int j = 0; j < job->n_weights; j++) {
        int format = el_act_format_of(job->run->plan->weights[job->step->w[j]].type);
        if (done & 1 << format) continue;
        done |= 1 << format;
        el_quantize_columns(job->run, x, job->k, job->n_cols, format, 1 + job->step->i[3]);
    }
}

static el_act activations(const el_plan *plan, int format, const float *x, int64_t k, int64_t m0, int planes) {
    int64_t k_pad = (k + 255) / 256 * 256, c0 = m0 * planes;
    el_act act = {.f = x + m0 * k, .ldf = k, .k = k, .k_pad = k_pad};
    if (format == EL_ACTF_F32) return act;
    int64_t per_scale = format == EL_ACTF_Q8_32 ? 32 : 256, per_sum = format == EL_ACTF_Q8_32 ? 32 : 16;
    act.q = plan->act_q[format] + c0 * k_pad;
    act.d = plan->act_d[format] + c0 * (k_pad / per_scale);
    act.sum = plan->act_sum[format] + c0 * (k_pad / per_sum);
    if (!el_k.wide || !plan->tile_q[format] || c0 % EL_TILE_COLUMNS) return act;
    act.tile_q = plan->tile_q[format] + c0 * k_pad;
    act.tile_d = plan->tile_d[format] + c0 * (k_pad / per_scale);
    act.tile_sum = plan->tile_sum[format] + c0 * (k_pad / per_scale) * (per_scale == 32 ? 1 : 16);
    return act;
}

int el_planes(const el_step *step, const el_weight *w) {
    return el_act_format_of(w->type) == EL_ACTF_F32 ? 1 : 1 + step->i[3];
}

void el_multiply(const el_plan *plan, const el_weight *w, const float *x, int planes, int64_t m0, int64_t n, int64_t r0,
                 int64_t r1, float *y, int64_t ldy) {
    el_act act = activations(plan, el_act_format_of(w->type), x, w->cols, m0, planes);
    el_linear(w->type, w->layout, w->data, r0, r1, &act, n * planes, y, ldy);
    for (int64_t m = 0; planes == 2 && m < n; m++) el_k.add(y + 2 * m * ldy, y + (2 * m + 1) * ldy, y + m * ldy, r1 - r0);
}

/* ---- LINEAR -------------------------------------------------------------------------------------- */

static void add_vector(float *y, const float *bias, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += bias[i];
}

static const float *vector_of(const el_plan *plan, int32_t id) { return id < 0 ? NULL : plan->weights[id].data; }

/* out = product, or residual + product: where those may be one buffer, and where two planes are to be added, the product
 * goes through the worker's scratch. */
static void scratch_rows(const linear_job *job, int j, int64_t m0, int64_t n, int64_t r0, int64_t r1, float *scratch) {
    const el_plan *plan = job->run->plan;
    const el_step *step = job->step;
    const el_weight *w = &plan->weights[step->w[j]];
    const float *bias = vector_of(plan, step->b[j]);
    const float *residual = step->in[1] >= 0 ? plan->data[step->in[1]] : NULL;
    float *out = plan->data[step->out[j]];
    for (int64_t r = r0; r < r1; r += EL_GATED_ROWS) {
        int64_t width = r1 - r < EL_GATED_ROWS ? r1 - r : EL_GATED_ROWS;
        el_multiply(plan, w, plan->data[step->in[0]], el_planes(step, w), m0, n, r, r + width, scratch, width);
        for (int64_t m = 0; m < n; m++) {
            float *y = scratch + m * width; /* (n, width) */
            int64_t at = (m0 + m) * w->rows + r;
            if (bias) add_vector(y, bias + r, width);
            if (residual) el_k.add(residual + at, y, out + at, width);
            else memcpy(out + at, y, (size_t)width * sizeof *out);
        }
    }
}

/* Rows [r0, r1) of weight j, all columns: kernel, then bias, then residual. */
static void linear_rows(const linear_job *job, int j, int64_t r0, int64_t r1, float *scratch) {
    const el_plan *plan = job->run->plan;
    const el_step *step = job->step;
    const el_weight *w = &plan->weights[step->w[j]];
    const float *bias = vector_of(plan, step->b[j]);
    int planes = el_planes(step, w);
    for (int64_t m0 = 0, n; m0 < job->n_cols; m0 += n) {
        n = job->n_cols - m0 < EL_COLUMN_BLOCK / planes ? job->n_cols - m0 : EL_COLUMN_BLOCK / planes;
        if (step->in[1] >= 0 || planes == 2) {
            scratch_rows(job, j, m0, n, r0, r1, scratch);
            continue;
        }
        float *out = plan->data[step->out[j]] + m0 * w->rows + r0;
        el_multiply(plan, w, plan->data[step->in[0]], 1, m0, n, r0, r1, out, w->rows);
        for (int64_t m = 0; bias && m < n; m++) add_vector(out + m * w->rows, bias + r0, r1 - r0);
    }
}

/* The first group of a chunk. Chunks differ by a pair of groups at most, and begin at pairs: wide kernels take two. */
static int64_t chunk_start(const linear_job *job, int64_t chunk) {
    int64_t pairs = (job->n_groups + 1) / 2, start = pairs * chunk / job->n_chunks * 2;
    return start < job->n_groups ? start : job->n_groups;
}

static void linear_chunk(void *ctx, int64_t chunk, int worker) {
    const linear_job *job = ctx;
    int64_t g0 = chunk_start(job, chunk), g1 = chunk_start(job, chunk + 1);
    for (int j = 0; j < job->n_weights; j++) {
        int64_t lo = g0 > job->first_group[j] ? g0 : job->first_group[j];
        int64_t hi = g1 < job->first_group[j + 1] ? g1 : job->first_group[j + 1];
        if (lo >= hi) continue;
        int64_t rows = job->run->plan->weights[job->step->w[j]].rows;
        int64_t r0 = (lo - job->first_group[j]) * EL_PANEL_ROWS, r1 = (hi - job->first_group[j]) * EL_PANEL_ROWS;
        linear_rows(job, j, r0, r1 < rows ? r1 : rows, el_worker_scratch(job->run, worker));
    }
}

/* ---- LINEAR_GATED ---------------------------------------------------------------------------------- */

/* out = act(gate) * up for one chunk of rows: both products meet in the worker's scratch. */
static void gated_chunk(void *ctx, int64_t chunk, int worker) {
    const linear_job *job = ctx;
    const el_plan *plan = job->run->plan;
    const el_step *step = job->step;
    const el_weight *w[2] = {&plan->weights[step->w[0]], &plan->weights[step->w[1]]};
    int64_t rows = w[0]->rows;
    int64_t r0 = chunk_start(job, chunk) * EL_PANEL_ROWS, r1 = chunk_start(job, chunk + 1) * EL_PANEL_ROWS;
    if (r1 > rows) r1 = rows;
    int64_t width = r1 - r0;
    float *scratch = el_worker_scratch(job->run, worker);
    float *out = plan->data[step->out[0]];
    const int64_t most = EL_COLUMN_BLOCK / (1 + step->i[3]);
    for (int64_t m0 = 0, n; m0 < job->n_cols; m0 += n) {
        n = job->n_cols - m0 < most ? job->n_cols - m0 : most;
        for (int j = 0; j < 2; j++) {
            float *y = scratch + j * EL_COLUMN_BLOCK * EL_GATED_ROWS; /* (n, width) */
            el_multiply(plan, w[j], plan->data[step->in[0]], el_planes(step, w[j]), m0, n, r0, r1, y, width);
            const float *bias = vector_of(plan, step->b[j]);
            for (int64_t m = 0; bias && m < n; m++) add_vector(y + m * width, bias + r0, width);
        }
        for (int64_t m = 0; m < n; m++)
            el_k.gated(scratch + m * width, scratch + EL_COLUMN_BLOCK * EL_GATED_ROWS + m * width,
                       out + (m0 + m) * rows + r0, width, step->i[0]);
    }
}

/* ---- both --------------------------------------------------------------------------------------------- */

static int is_sparse(const linear_job *job) {
    int found = 0;
    for (int j = 0; j < job->n_weights; j++) found |= job->run->plan->weights[job->step->w[j]].layout >= EL_SPARSE; /* or compressed */
    return found;
}

/* Bytes of 16 rows, on the average */
static int64_t bytes_of_group(const linear_job *job) {
    int64_t bytes = 0, groups = 0;
    for (int j = 0; j < job->n_weights; j++) {
        bytes += job->run->plan->weights[job->step->w[j]].bytes;
        groups += (job->run->plan->weights[job->step->w[j]].rows + EL_PANEL_ROWS - 1) / EL_PANEL_ROWS;
    }
    return bytes / groups + 1;
}

/* How many chunks: small enough to notice a cancel soon and to stay in L2, large enough to be worth drawing, as many for
 * each worker. Groups of sparse panels differ, so there are more chunks then. `limit` is the most groups of a chunk. */
static int64_t count_chunks(const linear_job *job, int64_t group_bytes, int64_t limit) {
    int64_t workers = job->run->n_threads, pairs = (job->n_groups + 1) / 2;
    int64_t most = (el_k.wide ? WIDE_CHUNK_MACS : MAX_CHUNK_MACS) / (EL_PANEL_ROWS * job->k * job->n_cols);
    int64_t target = is_sparse(job) ? SPARSE_CHUNKS_PER_WORKER : TARGET_CHUNKS_PER_WORKER;
    int64_t size = job->n_groups / (workers * target), least = MIN_CHUNK_BYTES / group_bytes + 1;
    if (size < least) size = least;
    if (size > most) size = most;
    if (size > limit - 1) size = limit - 1; /* chunks are rounded to pairs */
    if (size < 1) size = 1;
    int64_t n = (job->n_groups + size - 1) / size;
    n = (n + workers - 1) / workers * workers;
    if (n > pairs) n = pairs;
    return n < EL_MAX_CHUNKS ? n : EL_MAX_CHUNKS - 1;
}

int el_step_linear(el_run *run, const el_step *step) {
    if (el_prefill_serves(run, step)) return el_step_prefill(run, step);
    int gated = step->op == EL_OP_LINEAR_GATED;
    linear_job job = {.run = run, .step = step, .n_cols = el_rows(run, step->in[0]), .n_weights = gated ? 2 : step->n};
    if (job.n_cols == 0) return EL_OK;
    const el_weight *w0 = &run->plan->weights[step->w[0]];
    job.k = w0->cols;
    quantize_input(&job);
    for (int j = 0; j < job.n_weights; j++) {
        int64_t rows = run->plan->weights[step->w[j]].rows;
        job.first_group[j + 1] = job.first_group[j] + (rows + EL_PANEL_ROWS - 1) / EL_PANEL_ROWS;
    }
    job.n_groups = gated ? job.first_group[1] : job.first_group[job.n_weights];
    int64_t group_bytes = (gated ? 2 : 1) * (is_sparse(&job) ? bytes_of_group(&job) : EL_PANEL_ROWS * el_row_bytes(w0->type, w0->cols));
    job.n_chunks = count_chunks(&job, group_bytes, gated ? EL_GATED_ROWS / EL_PANEL_ROWS : job.n_groups + 1);
    el_pool_run(gated ? gated_chunk : linear_chunk, &job, job.n_chunks, run->pass->cancel);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}
