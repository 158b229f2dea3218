/* pass.c: the runtime's pass with sparse products in the place of some of its linear steps (kmajor.h).
 *
 * run.c is compiled here with its call of el_step_linear turned to the function below, so that dense and sparse passes of
 * one library differ in nothing but these products. One caller at a time; passes of one token only.
 */
#include "plan.h"

#include "kmajor.h"
#include "pass.h"

static int step_linear(el_run *run, const el_step *step);
#define el_step_linear step_linear
#include "run.c"
#undef el_step_linear

static const sa_site *sites; /* (n_sites), ascending steps; NULL: all dense */
static int64_t n_sites, n_live;
static sa_scratch *scratch;

void sa_use(const sa_site *all, int64_t n, sa_scratch *room) {
    sites = all;
    n_sites = n;
    scratch = room;
    n_live = 0;
}

int64_t sa_live_seen(void) { return n_live; }

typedef struct {
    const el_run *run;
    const el_step *step;
    const sa_site *site;
} sparse_job;

/* One block of rows: product, bias, residual, in the order of linear.c. */
static void sparse_chunk(void *ctx, int64_t chunk, int worker) {
    (void)worker;
    const sparse_job *job = ctx;
    const el_plan *plan = job->run->plan;
    const sa_matrix *w = &job->site->matrix;
    float y[SA_MOST_ROWS]; /* (block_rows) */
    sa_block(w, &scratch->live, chunk, y, 1);
    int64_t r0 = chunk * w->block_rows, n = w->rows - r0 < w->block_rows ? w->rows - r0 : w->block_rows;
    const float *bias = job->step->b[0] < 0 ? NULL : plan->weights[job->step->b[0]].data;
    for (int64_t i = 0; bias && i < n; i++) y[i] += bias[r0 + i];
    float *out = plan->data[job->step->out[0]] + r0;
    if (job->step->in[1] >= 0) el_k.add(plan->data[job->step->in[1]] + r0, y, out, n);
    else memcpy(out, y, (size_t)n * sizeof *out);
}

static int sparse_step(el_run *run, const el_step *step, const sa_site *site) {
    const el_plan *plan = run->plan;
    const float *x = plan->data[step->in[0]];
    int64_t k = site->matrix.k;
    sa_live *live = &scratch->live;
    live->k = k;
    live->d = plan->act_d[EL_ACTF_Q8_32];
    live->sum = plan->act_sum[EL_ACTF_Q8_32];
    sa_keep(x, k, site->threshold, scratch->kept);
    el_k.quantize_q8_32(scratch->kept, k, plan->act_q[EL_ACTF_Q8_32], plan->act_d[EL_ACTF_Q8_32],
                        plan->act_sum[EL_ACTF_Q8_32]);
    n_live += sa_list(plan->act_q[EL_ACTF_Q8_32], live, 1);
    sparse_job job = {run, step, site};
    el_pool_run(sparse_chunk, &job, (site->matrix.rows + site->matrix.block_rows - 1) / site->matrix.block_rows,
                run->pass->cancel);
    return el_cancelled(run) ? EL_E_CANCELLED : EL_OK;
}

static int step_linear(el_run *run, const el_step *step) {
    if (run->pass->n_tokens == 1)
        for (int64_t i = 0; sites && i < n_sites; i++)
            if (sites[i].step == step - run->plan->steps) return sparse_step(run, step, &sites[i]);
    return el_step_linear(run, step);
}
