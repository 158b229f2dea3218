/* plan.h: the plan as the runner holds it. Private to native/. */
#ifndef EL_PLAN_H
#define EL_PLAN_H

#include "edgellm.h"
#include "kernels.h"
#include "span.h"
#include "threads.h"

enum {
    EL_COLUMN_BLOCK = 64,    /* tokens that one sweep over a chunk's rows handles: their activations stay in L2 */
    EL_GATED_ROWS = 256,     /* rows of a gated chunk at most: bounds the per-worker scratch */
    EL_SPLIT_PAGES = 8,      /* attention over long caches is merged from runs of 8 pages, at fixed borders */
    EL_MAX_GROUP = 64,       /* query heads per KV head */
    EL_MAX_HEAD_DIM = 1024,
    EL_MAX_EXPERTS = 1024
};

/* Scratch of EXPERTS steps (experts.c). A pair is one token at one of its experts; pairs are sorted by expert. */
typedef struct {
    int64_t max_pairs;
    int32_t *token;          /* (max_pairs) row of each pair */
    int32_t *slot;           /* (max_pairs) pairs of row r, experts ascending: slot[r * n_used ...] */
    float *x, *hidden, *y;   /* (max_pairs, dim), (max_pairs, width), (max_pairs, dim) */
    int64_t x_bytes, hidden_bytes;
} el_pairs;

/* cos and sin of the angles of one table, each (max_tokens, pairs): of the tokens' positions, and of what turns a query
 * back to where it meets the head (span.h), for tokens that have a shift. */
typedef struct {
    float *cos, *sin, *back_cos, *back_sin;
} el_angles;

struct el_plan {
    el_step *steps;          /* (n_steps) */
    int64_t n_steps;
    el_buffer *buffers;      /* (n_buffers) */
    float **data;            /* (n_buffers) each (max_tokens, cols) */
    int64_t *data_bytes;
    int64_t n_buffers;
    el_weight *weights;      /* (n_weights); data of sparse and compressed ones: the bound index */
    void **indexes;          /* (n_weights) those, owned; NULL for other layouts */
    int64_t n_weights;
    el_rope_table *ropes;    /* (n_ropes), own copies of inv_freq */
    el_angles *angles;       /* (n_ropes) */
    int64_t n_ropes;
    int64_t max_tokens;

    /* quantised activations of the current linear step: the widest input of the plan fits */
    int8_t *act_q[3];        /* by el_act_format: (max_tokens, k_pad); NULL: no step needs it */
    float *act_d[3];
    int32_t *act_sum[3];
    int8_t *tile_q[3];       /* the same in blocks of 16 columns (kernels.h), for passes that wide */
    float *tile_d[3];
    int32_t *tile_sum[3];
    int64_t act_bytes[3][3];

    uint16_t *prefill_columns[2]; /* el_columns of the current step, high and low parts; NULL: no step has prefill kernels */
    int64_t prefill_bytes[2];

    float *worker_scratch;   /* (n_workers, worker_floats) */
    int64_t worker_floats;
    int64_t n_workers;
    float *partials;         /* decode attention over long caches: one partial result per (token, head, split) */
    int64_t partial_bytes;
    el_pairs pairs;
};

/* Everything one pass needs to know, shared by its phases. */
typedef struct {
    el_plan *plan;
    el_pass *pass;
    int n_threads;
} el_run;

/* Rows of a buffer in this pass. */
static inline int64_t el_rows(const el_run *run, int32_t buffer) {
    return run->plan->buffers[buffer].rows_kind ? run->pass->n_outputs : run->pass->n_tokens;
}
static inline float *el_worker_scratch(const el_run *run, int worker) {
    return run->plan->worker_scratch + worker * run->plan->worker_floats;
}
static inline int el_cancelled(const el_run *run) {
    return run->pass->cancel && *(const volatile int32_t *)run->pass->cancel;
}

int el_step_linear(el_run *run, const el_step *step);       /* linear.c: LINEAR and LINEAR_GATED */
/* Quantises n_cols columns of k floats at x into the plan's activation buffers of `format` (nothing for F32). Two planes:
 * int8 column 2 m is column m of x, 2 m + 1 what rounding left of it; together they hold 15 bits. */
void el_quantize_columns(el_run *run, const float *x, int64_t k, int64_t n_cols, int format, int planes);
int el_planes(const el_step *step, const el_weight *w); /* that kernels of w read in this step */
/* y (n, ldy) = rows [r0, r1) of w times columns [m0, m0 + n) of x, which were given to el_quantize_columns. With two planes
 * y needs room for 2 n columns. */
void el_multiply(const el_plan *plan, const el_weight *w, const float *x, int planes, int64_t m0, int64_t n, int64_t r0,
                 int64_t r1, float *y, int64_t ldy);
/* prefill.c: LINEAR and LINEAR_GATED of many columns, where all kernels for it exist and the pass allows them */
int el_prefill_serves(const el_run *run, const el_step *step);
int el_step_prefill(el_run *run, const el_step *step);
int el_prefill_allocate(el_plan *plan);
void el_prefill_free(el_plan *plan);
int el_step_route(el_run *run, const el_step *step);        /* experts.c */
int el_step_experts(el_run *run, const el_step *step);
int el_experts_ok(const el_plan *plan, const el_step *step);
int el_experts_allocate(el_plan *plan);
void el_experts_free(el_plan *plan);
/* Turns the pairs of a head; cos, sin (pairs), style: enum el_rope_style. Su et al. 2021 */
void el_turn(float *x, const float *cos, const float *sin, int64_t pairs, int style);
int el_step_attention(el_run *run, const el_step *step);    /* attention.c */
int64_t el_attention_scratch(int64_t n_group, int64_t head_dim, int64_t max_tokens); /* floats per worker */
int64_t el_linear_scratch(void);

#endif
