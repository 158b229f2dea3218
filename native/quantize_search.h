/* quantize_search.h: finding scales. The fast twin of edgellm/quants/search.py, which explains what is looked for;
 * names and order of operations are the same, and so are the bytes. Sums halve: t[i] += t[i + n/2].
 */
#ifndef EL_QUANTIZE_SEARCH_H
#define EL_QUANTIZE_SEARCH_H

#include "quantize.h"

#if defined(__GNUC__)
#define EL_INLINE static inline __attribute__((always_inline)) /* lengths become constants, loops become vectors */
#else
#define EL_INLINE static inline
#endif

enum { EL_MAX_GROUP = 32, EL_MAX_GROUPS = 16, EL_SUPER = 256, EL_TURNS = 2 };

/* Codes of a group, low .. high (iq4: the codebook's values), and offsets of the candidate tops around the ends. */
typedef struct {
    int low, high, iq4, n_offsets;
    const double *offsets;
} el_grid;

static const double el_near[] = {0.0, -0.45, 0.45, -0.9, 0.9};
static const double el_wide[] = {0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75, -1.0, 1.0};
static const double el_affine[] = {0.0, -0.2, 0.2, -0.4, 0.4, -0.6, 0.6, -0.8, 0.8, -1.0, 1.0};
static const double el_codebook[] = {0.0, -3.0, 3.0, -6.0, 6.0, -9.0, 9.0, -12.0, 12.0};
#define EL_GRID(low, high, offsets) {low, high, 0, (int)(sizeof(offsets) / sizeof(*(offsets))), offsets}
#define EL_GRID_IQ4 {-127, 113, 1, (int)(sizeof(el_codebook) / sizeof(*el_codebook)), el_codebook}

EL_INLINE float el_fold(float *t, int n) {
    for (n /= 2; n; n /= 2)
        for (int i = 0; i < n; i++) t[i] += t[i + n];
    return t[0];
}

EL_INLINE float el_ratio(float a, float b) {
    float r = a / b;
    return r - r == 0.0f ? r : 0.0f; /* 0 where it is not finite */
}

EL_INLINE float el_nearest(float v, float low, float high) {
    v = v > low ? v : low;
    v = v < high ? v : high;
    return (v + 12582912.0f) - 12582912.0f; /* to even; |v| is far below 2^22 */
}

EL_INLINE float el_clip(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

EL_INLINE float el_to_half(float d) { return el_f16_to_f32(el_f32_to_f16(d)); }

/* c[i] = the code nearest to x[i] * inv */
EL_INLINE void el_codes(const el_grid *g, const float *x, float inv, int n, float *c) {
    float low = (float)g->low, high = (float)g->high;
    if (!g->iq4) {
        for (int i = 0; i < n; i++) c[i] = el_nearest(x[i] * inv, low, high);
        return;
    }
    static const float middles[15] = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f,
                                      7.0f,    19.0f,  31.5f,  45.5f,  61.0f,  79.0f,  101.0f};
    static const float rises[15] = {23, 21, 18, 16, 14, 13, 12, 11, 12, 12, 13, 15, 16, 20, 24}; /* to the next value */
    for (int i = 0; i < n; i++) {
        float v = x[i] * inv, value = low;
        for (int j = 0; j < 15; j++) value += v > middles[j] ? rises[j] : 0.0f;
        c[i] = value;
    }
}

/* ---- one group ------------------------------------------------------------------------------------------------ */
typedef struct {
    float error, s, m, curvature;
} el_fit;

EL_INLINE void el_scale_attempt(const el_grid *g, const float *x, const float *w, int n, float inv, el_fit *best) {
    float c[EL_MAX_GROUP], t[EL_MAX_GROUP], u[EL_MAX_GROUP];
    el_codes(g, x, inv, n, c);
    for (int i = 0; i < n; i++) {
        t[i] = w[i] * x[i] * c[i];
        u[i] = w[i] * c[i] * c[i];
    }
    float curvature = el_fold(u, n), s = el_ratio(el_fold(t, n), curvature);
    for (int i = 0; i < n; i++) {
        float miss = x[i] - s * c[i];
        t[i] = w[i] * (miss * miss);
    }
    float error = el_fold(t, n);
    if (error < best->error) *best = (el_fit){error, s, 0.0f, curvature};
}

/* x' = s * c */
EL_INLINE el_fit el_scale_search(const el_grid *g, const float *x, const float *w, int n) {
    float extreme = x[0];
    for (int i = 1; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    float unit = el_ratio(1.0f, extreme);
    el_fit best = {INFINITY, 0.0f, 0.0f, 0.0f};
    for (int j = 0; j < g->n_offsets; j++) {
        if (g->low < 0) el_scale_attempt(g, x, w, n, unit * (float)(g->low + g->offsets[j]), &best);
        el_scale_attempt(g, x, w, n, unit * (float)(g->high + g->offsets[j]), &best);
    }
    for (int j = 0; j < EL_TURNS; j++) el_scale_attempt(g, x, w, n, el_ratio(1.0f, best.s), &best);
    return best;
}

typedef struct {
    float w, x;
} el_sums;

EL_INLINE void el_affine_attempt(const float *x, const float *w, int n, float top, int any_min, const el_sums *sum,
                                 float inv, float m, el_fit *best) {
    float q[EL_MAX_GROUP], t[EL_MAX_GROUP], u[EL_MAX_GROUP], v[EL_MAX_GROUP];
    for (int i = 0; i < n; i++) {
        q[i] = el_nearest((x[i] + m) * inv, 0.0f, top);
        t[i] = w[i] * q[i];
        u[i] = w[i] * q[i] * q[i];
        v[i] = w[i] * x[i] * q[i];
    }
    float sum_q = el_fold(t, n), sum_qq = el_fold(u, n), sum_qx = el_fold(v, n);
    float det = sum->w * sum_qq - sum_q * sum_q, s = 0.0f, low;
    if (det > 0.0f) {
        s = el_ratio(sum->w * sum_qx - sum_q * sum->x, det);
        low = el_ratio(sum_q * sum_qx - sum_qq * sum->x, det);
    } else { /* all codes are equal */
        low = -el_ratio(sum->x, sum->w);
    }
    if (!any_min && !(low > 0.0f)) {
        s = el_ratio(sum_qx, sum_qq);
        low = 0.0f;
    }
    for (int i = 0; i < n; i++) {
        float miss = x[i] - (s * q[i] - low);
        t[i] = w[i] * (miss * miss);
    }
    float error = el_fold(t, n);
    if (error < best->error) *best = (el_fit){error, s, low, sum_qq};
}

/* x' = s * q - m with q in 0 .. top and m >= 0 unless any_min; *sum_w gets sum(w) */
EL_INLINE el_fit el_affine_search(const float *x, const float *w, int n, int top, int any_min, float *sum_w) {
    float low = x[0], high = x[0], t[EL_MAX_GROUP], u[EL_MAX_GROUP];
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        t[i] = w[i];
        u[i] = w[i] * x[i];
    }
    if (!any_min && !(low < 0.0f)) low = 0.0f;
    el_sums sum = {el_fold(t, n), el_fold(u, n)};
    el_fit best = {INFINITY, 0.0f, -low, 0.0f};
    for (int j = 0; j < (int)(sizeof(el_affine) / sizeof(*el_affine)); j++)
        el_affine_attempt(x, w, n, (float)top, any_min, &sum, el_ratio((float)(top + el_affine[j]), high - low), -low,
                          &best);
    for (int j = 0; j < EL_TURNS; j++)
        el_affine_attempt(x, w, n, (float)top, any_min, &sum, el_ratio(1.0f, best.s), best.m, &best);
    *sum_w = sum.w;
    return best;
}

/* ---- a super-block of `groups` groups of n = 256 / groups weights ------------------------------------------------ */
typedef struct {
    float error, d, dmin;
    float scale[EL_MAX_GROUPS], low[EL_MAX_GROUPS]; /* whole numbers */
    float code[EL_SUPER];
} el_super;

/* Each group takes the best of its scale (and minimum) and those beside it. */
EL_INLINE void el_scaled_attempt(const el_grid *g, const el_grid *scales, const float *x, const float *w, int groups,
                                 float d, const float *scale, el_super *out) {
    static const float beside[3] = {0.0f, -1.0f, 1.0f};
    int n = EL_SUPER / groups;
    float errors[EL_MAX_GROUPS];
    out->d = d;
    for (int a = 0; a < groups; a++) {
        const float *xa = x + a * n, *wa = w + a * n;
        for (int j = 0; j < 3; j++) {
            float c[EL_MAX_GROUP], t[EL_MAX_GROUP];
            float level = el_clip(scale[a] + beside[j], (float)scales->low, (float)scales->high), step = d * level;
            el_codes(g, xa, el_ratio(1.0f, step), n, c);
            for (int i = 0; i < n; i++) {
                float miss = xa[i] - step * c[i];
                t[i] = wa[i] * (miss * miss);
            }
            float error = el_fold(t, n);
            if (j && !(error < errors[a])) continue;
            errors[a] = error;
            out->scale[a] = level;
            memcpy(out->code + a * n, c, (size_t)n * sizeof *c);
        }
    }
    out->error = el_fold(errors, groups);
}

/* x' = (d * scale) * code */
EL_INLINE void el_scaled_block(const el_grid *g, const el_grid *scales, const float *x, const float *w, int groups,
                               el_super *best) {
    int n = EL_SUPER / groups;
    float s[EL_MAX_GROUPS], curvature[EL_MAX_GROUPS], level[EL_MAX_GROUPS], cx[EL_MAX_GROUPS], cc[EL_MAX_GROUPS];
    for (int a = 0; a < groups; a++) {
        el_fit fit = el_scale_search(g, x + a * n, w + a * n, n);
        s[a] = fit.s;
        curvature[a] = fit.curvature;
    }
    float d = el_to_half(el_scale_search(scales, s, curvature, groups).s), inv = el_ratio(1.0f, d);
    for (int a = 0; a < groups; a++) level[a] = el_nearest(s[a] * inv, (float)scales->low, (float)scales->high);
    el_scaled_attempt(g, scales, x, w, groups, d, level, best);
    for (int a = 0; a < groups; a++) {
        float t[EL_MAX_GROUP], u[EL_MAX_GROUP];
        for (int i = 0; i < n; i++) {
            float c = best->scale[a] * best->code[a * n + i], wc = w[a * n + i] * c;
            t[i] = wc * x[a * n + i];
            u[i] = wc * c;
        }
        cx[a] = el_fold(t, n);
        cc[a] = el_fold(u, n);
    }
    el_super other;
    float sum_cx = el_fold(cx, groups), sum_cc = el_fold(cc, groups);
    el_scaled_attempt(g, scales, x, w, groups, el_to_half(el_ratio(sum_cx, sum_cc)), best->scale, &other);
    if (other.error < best->error) *best = other;
}

EL_INLINE void el_lower_attempt(const float *x, const float *w, int groups, float top, float high, float d, float dmin,
                                const float *scale, const float *low, el_super *out) {
    static const float beside[9][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {-1, -1}, {-1, 1}, {1, -1}, {1, 1}};
    int n = EL_SUPER / groups;
    float errors[EL_MAX_GROUPS];
    out->d = d;
    out->dmin = dmin;
    for (int a = 0; a < groups; a++) {
        const float *xa = x + a * n, *wa = w + a * n;
        for (int j = 0; j < 9; j++) {
            float q[EL_MAX_GROUP], t[EL_MAX_GROUP];
            float level = el_clip(scale[a] + beside[j][0], 0.0f, high), lower = el_clip(low[a] + beside[j][1], 0.0f, high);
            float step = d * level, offset = dmin * lower, inv = el_ratio(1.0f, step);
            for (int i = 0; i < n; i++) {
                q[i] = el_nearest((xa[i] + offset) * inv, 0.0f, top);
                float miss = xa[i] - (step * q[i] - offset);
                t[i] = wa[i] * (miss * miss);
            }
            float error = el_fold(t, n);
            if (j && !(error < errors[a])) continue;
            errors[a] = error;
            out->scale[a] = level;
            out->low[a] = lower;
            memcpy(out->code + a * n, q, (size_t)n * sizeof *q);
        }
    }
    out->error = el_fold(errors, groups);
}

/* d and dmin of least error for the scales, minimums and codes of `b` */
EL_INLINE void el_affine_solve(const float *x, const float *w, int groups, const el_super *b, float *d, float *dmin) {
    int n = EL_SUPER / groups;
    float sums[5][EL_MAX_GROUPS];
    for (int g = 0; g < groups; g++) {
        float t[5][EL_MAX_GROUP];
        for (int i = 0; i < n; i++) {
            float at = x[g * n + i], p = b->scale[g] * b->code[g * n + i], q = b->low[g];
            float wp = w[g * n + i] * p, wq = w[g * n + i] * q;
            t[0][i] = wp * p;
            t[1][i] = wp * q;
            t[2][i] = wq * q;
            t[3][i] = wp * at;
            t[4][i] = wq * at;
        }
        for (int j = 0; j < 5; j++) sums[j][g] = el_fold(t[j], n);
    }
    float pp = el_fold(sums[0], groups), pq = el_fold(sums[1], groups), qq = el_fold(sums[2], groups);
    float px = el_fold(sums[3], groups), qx = el_fold(sums[4], groups), det = pp * qq - pq * pq;
    *d = el_ratio(px * qq - qx * pq, det);
    *dmin = el_ratio(px * pq - qx * pp, det);
    if (det > 0.0f && *dmin > 0.0f) return;
    *d = el_ratio(px, pp);
    *dmin = 0.0f;
}

/* x' = (d * scale) * code - dmin * low */
EL_INLINE void el_affine_block(const el_grid *scales, const float *x, const float *w, int groups, int top,
                               el_super *best) {
    int n = EL_SUPER / groups;
    float s[EL_MAX_GROUPS], m[EL_MAX_GROUPS], curvature[EL_MAX_GROUPS], sum_w[EL_MAX_GROUPS], high = (float)scales->high;
    for (int a = 0; a < groups; a++) {
        el_fit fit = el_affine_search(x + a * n, w + a * n, n, top, 0, &sum_w[a]);
        s[a] = fit.s;
        m[a] = fit.m;
        curvature[a] = fit.curvature;
    }
    float d = el_to_half(el_scale_search(scales, s, curvature, groups).s);
    float dmin = el_to_half(el_scale_search(scales, m, sum_w, groups).s);
    float inv = el_ratio(1.0f, d), inv_min = el_ratio(1.0f, dmin);
    for (int a = 0; a < groups; a++) {
        s[a] = el_nearest(s[a] * inv, 0.0f, high);
        m[a] = el_nearest(m[a] * inv_min, 0.0f, high);
    }
    el_lower_attempt(x, w, groups, (float)top, high, d, dmin, s, m, best);
    el_affine_solve(x, w, groups, best, &d, &dmin);
    el_super other;
    el_lower_attempt(x, w, groups, (float)top, high, el_to_half(d), el_to_half(dmin), best->scale, best->low, &other);
    if (other.error < best->error) *best = other;
}

#endif
