/* probe.c: measures reading and multiplying with several threads at once (`edgellm bench --machine`).
 *
 * The threads are those of the pool, as in a pass. They wait for each other, then each repeats a small piece of work
 * until its time is over; the rate is all work over the time from the first start to the last end, so a thread that
 * came late makes the figure too small, never too large.
 */
#include "probe.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "edgellm.h"
#include "os.h"
#include "threads.h"

enum { GATHER_NS = 20000000, LONGEST_NS = 2000000000 };
enum { SEGMENT = 4 * 360 * 4096 }; /* bytes of one piece of reading; its quarters lie no power of two apart */

typedef struct race race;
struct race {
    double (*work)(race *r, int64_t lane); /* does one piece, returns its amount */
    int n;
    int64_t ns;
    atomic_int arrived;
    int64_t start[EL_MAX_THREADS], end[EL_MAX_THREADS], at[EL_MAX_THREADS];
    double done[EL_MAX_THREADS];
    /* reading */
    el_walk_fn walk;
    const char *buffer;
    int64_t share, ahead;
    int streams, level;
    /* multiplying */
    const el_peak *peak;
    int64_t rounds;
};

static volatile uint64_t sink;

/* ---- reading ------------------------------------------------------------------------------------------- */
static inline uint64_t walk(const char *p, int64_t part, int streams, int64_t ahead, int level) {
    uint64_t sum[4] = {0, 0, 0, 0};
    for (int64_t at = 0; at < part; at += 256)
        for (int s = 0; s < streams; s++) {
            const char *q = p + s * part + at;
            EL_WALK_PREFETCH(q + ahead, level);
            for (int i = 0; i < 32; i++) {
                uint64_t word;
                memcpy(&word, q + 8 * i, 8);
                sum[i & 3] += word;
            }
        }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

static uint64_t walk_portable(const char *p, int64_t part, int streams, int64_t ahead, int level) {
    EL_WALK_CASES(walk)
}

static double read_piece(race *r, int64_t lane) {
    const char *p = r->buffer + lane * r->share + r->at[lane];
    sink += r->walk(p, SEGMENT / r->streams, r->streams, r->ahead, r->level);
    r->at[lane] = r->at[lane] + 2 * SEGMENT <= r->share ? r->at[lane] + SEGMENT : 0;
    return SEGMENT;
}

/* ---- multiplying ----------------------------------------------------------------------------------------- */
static double multiply_piece(race *r, int64_t lane) {
    (void)lane;
    return (double)r->peak->run(r->rounds);
}

static const el_peak *peak_at(int i) {
    const el_peak *tables[] = {el_peaks_x86, el_peaks_arm};
    for (int t = 0; t < 2 && i >= 0; t++)
        for (const el_peak *p = tables[t]; p->name; p++)
            if (i-- == 0) return p;
    return NULL;
}

/* Rounds that take about a tenth of a millisecond, so that the clock is read seldom. */
static int64_t calibrate(const el_peak *peak) {
    int64_t rounds = 64;
    for (; rounds < (int64_t)1 << 40; rounds *= 2) {
        int64_t start = el_os_now();
        peak->run(rounds);
        if (el_os_now() - start > 100000) break;
    }
    return rounds;
}

/* ---- the race ---------------------------------------------------------------------------------------------- */
static void lane_of_race(void *ctx, int64_t lane, int worker) {
    race *r = ctx;
    (void)worker;
    int64_t came = el_os_now();
    atomic_fetch_add(&r->arrived, 1);
    while (atomic_load(&r->arrived) < r->n && el_os_now() - came < GATHER_NS) el_os_yield();
    int64_t now = r->start[lane] = el_os_now();
    while (now - r->start[lane] < r->ns) {
        r->done[lane] += r->work(r, lane);
        now = el_os_now();
    }
    r->end[lane] = now;
}

static int run_race(race *r, int n_threads, int64_t ns, double *per_s) {
    r->n = n_threads;
    r->ns = ns;
    atomic_init(&r->arrived, 0);
    int got = el_pool_begin(n_threads);
    if (got >= n_threads) el_pool_run(lane_of_race, r, n_threads, NULL);
    el_pool_end();
    if (got < n_threads) return EL_E_SYSTEM;
    int64_t first = r->start[0], last = r->end[0];
    double done = 0;
    for (int i = 0; i < n_threads; i++) {
        if (r->start[i] < first) first = r->start[i];
        if (r->end[i] > last) last = r->end[i];
        done += r->done[i];
    }
    if (last <= first) return EL_E_SYSTEM;
    *per_s = done / ((double)(last - first) * 1e-9);
    return EL_OK;
}

static int good_times(int n_threads, int64_t ns) {
    return n_threads >= 1 && n_threads <= EL_MAX_THREADS && ns >= 1 && ns <= LONGEST_NS;
}

int64_t el_measure_unit(void) { return SEGMENT; }

int el_measure_read(const void *buffer, int64_t bytes, int n_threads, int streams, int64_t ahead, int level,
                    int64_t ns, double *bytes_per_s) {
    if (!buffer || !bytes_per_s || (uintptr_t)buffer % 64 || !good_times(n_threads, ns) || level < 0 || level > 2 ||
        (streams != 1 && streams != 2 && streams != 4) || ahead < 0 || ahead > 1 << 20)
        return EL_E_ARGUMENT;
    race r = {.work = read_piece, .buffer = buffer, .streams = streams, .ahead = ahead, .level = level};
    r.share = bytes / n_threads / 4096 * 4096;
    if (r.share < SEGMENT) return EL_E_ARGUMENT;
    r.walk = el_walk_x86() ? el_walk_x86() : el_walk_arm() ? el_walk_arm() : walk_portable;
    return run_race(&r, n_threads, ns, bytes_per_s);
}

int el_n_peaks(void) {
    int n = 0;
    while (peak_at(n)) n++;
    return n;
}

const char *el_peak_kind(int peak) { return peak_at(peak) ? peak_at(peak)->kind : NULL; }
const char *el_peak_name(int peak) { return peak_at(peak) ? peak_at(peak)->name : NULL; }
int el_peak_usable(int peak) {
    const el_peak *p = peak_at(peak);
    return p && !(p->need & ~el_cpu_features()) && (!p->also || p->also());
}

int el_measure_peak(int peak, int n_threads, int64_t ns, double *per_s) {
    if (!peak_at(peak) || !per_s || !good_times(n_threads, ns)) return EL_E_ARGUMENT;
    if (!el_peak_usable(peak)) return EL_E_UNSUPPORTED;
    race r = {.work = multiply_piece, .peak = peak_at(peak), .rounds = calibrate(peak_at(peak))};
    return run_race(&r, n_threads, ns, per_s);
}
