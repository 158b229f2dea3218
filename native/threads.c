/* threads.c: the thread pool.
 *
 * A pass is a row of phases (one linear layer, one attention, ...). The caller publishes a phase as one
 * 64-bit ticket [phase : 24][number of chunks : 20][next chunk : 20]; whoever wants work adds 1 to it.
 * The old value says at once which phase and chunk was drawn, and because a phase cannot end before all
 * its chunks are done, the holder of a chunk may read the phase's function without a lock.
 *
 * A phase ends when all its chunks are done, not when all workers have arrived: a helper that the system
 * has put aside delays nobody unless it holds a chunk. Helpers spin for tens of microseconds between
 * phases, then sleep in the kernel; an idle process burns nothing.
 *
 * Contention: a helper that loses its core inside a chunk makes everybody wait for a time slice. So each
 * pass compares wall time with the CPU time its workers got; while much is being lost the pool runs with
 * one worker less, and tries the full number again after a pause that grows.
 */
#include "threads.h"

#include <stdatomic.h>
#include <stddef.h>

#include "edgellm.h"
#include "os.h"

enum { CHUNK_BITS = 20, YIELD_NS = 20000 };
static _Atomic int64_t spin_ns = 60000; /* how long an idle helper looks for work before it sleeps */
enum { MEMORY_NS = 50000000, PAUSE_MIN_NS = 100000000, PAUSE_MAX_NS = 1600000000 };
static const double LOST_SHARE = 0.15; /* of wall time, summed over workers: above it a worker is put aside */
#define CHUNK_MASK (((uint64_t)1 << CHUNK_BITS) - 1)

static struct {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic int64_t done; /* chunks of the current phase that are finished */
    _Alignas(64) _Atomic uint32_t wake;
    _Atomic int32_t sleepers;
    _Atomic int32_t active; /* workers of the current pass, the caller included */
    _Atomic int32_t alive;  /* helper threads that exist */
    _Atomic int32_t stop;
    el_chunk_fn fn;
    void *ctx;
    const int32_t *cancel;
    uint64_t phase;
    int started; /* helpers started since the last shutdown */
    el_mutex *lock;
    _Atomic int64_t chunks[EL_MAX_THREADS];
    _Atomic int32_t cpu[EL_MAX_THREADS]; /* where each worker was last seen, -1: not known */

    /* contention watch; the caller's, but for clock and slept, which each helper writes its own element of */
    _Atomic int64_t clock[EL_MAX_THREADS]; /* CPU clocks, 0: not known yet */
    _Atomic int32_t slept[EL_MAX_THREADS]; /* went to sleep during this pass: its CPU time says nothing */
    int64_t cpu_start[EL_MAX_THREADS];
    int64_t pass_start;
    int limit;           /* workers allowed, 0: all */
    int64_t retry_at;    /* when to try all again */
    int64_t pause;       /* how long the next pause is */
    double lost, wall;   /* fading sums over the last 50 ms, in ns */
} pool;

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int chunk_waiting(uint64_t ticket) {
    return (ticket & CHUNK_MASK) < ((ticket >> CHUNK_BITS) & CHUNK_MASK);
}

/* Draws and does one chunk; 0 when there was none left. */
static int do_chunk(int worker) {
    if (!chunk_waiting(atomic_load_explicit(&pool.ticket, memory_order_acquire))) return 0;
    uint64_t mine = atomic_fetch_add_explicit(&pool.ticket, 1, memory_order_acq_rel);
    if (!chunk_waiting(mine)) return 0;
    const volatile int32_t *cancel = pool.cancel;
    if (!cancel || !*cancel) pool.fn(pool.ctx, (int64_t)(mine & CHUNK_MASK), worker);
    atomic_fetch_add_explicit(&pool.chunks[worker], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
    return 1;
}

/* A woken thread often starts on the core of the one that woke it, and both share it until the system looks again, some
 * milliseconds later: longer than many passes take. So a helper that meets another worker on its core leaves. */
static void find_own_cpu(int worker) {
    int32_t taken[EL_MAX_THREADS], own = el_os_cpu();
    int n = atomic_load(&pool.active), meets = 0;
    for (int i = 0; i < n; i++) {
        taken[i] = i == worker ? -1 : atomic_load_explicit(&pool.cpu[i], memory_order_relaxed);
        meets |= taken[i] == own;
    }
    if (meets && own >= 0) el_os_move_off(taken, n);
    atomic_store_explicit(&pool.cpu[worker], el_os_cpu(), memory_order_relaxed);
}

static void sleep_until_woken(int worker) {
    uint32_t seen = atomic_load(&pool.wake);
    atomic_fetch_add(&pool.sleepers, 1);
    atomic_store_explicit(&pool.slept[worker], 1, memory_order_relaxed);
    /* a phase published before the line above saw no sleeper: look once more before sleeping */
    int work = worker < atomic_load(&pool.active) && chunk_waiting(atomic_load(&pool.ticket));
    if (!work && !atomic_load(&pool.stop)) el_os_wait(&pool.wake, seen, 60 * 1000000LL);
    atomic_fetch_sub(&pool.sleepers, 1);
    if (worker < atomic_load(&pool.active)) find_own_cpu(worker);
}

static void helper(void *arg) {
    int worker = (int)(intptr_t)arg;
    int64_t idle_since = 0;
    atomic_store(&pool.clock[worker], el_os_self_clock());
    while (!atomic_load(&pool.stop)) {
        if (worker < atomic_load_explicit(&pool.active, memory_order_acquire) && do_chunk(worker)) {
            idle_since = 0;
            continue;
        }
        int64_t now = el_os_now();
        if (!idle_since) idle_since = now;
        if (worker >= atomic_load(&pool.active) || now - idle_since > atomic_load_explicit(&spin_ns, memory_order_relaxed)) {
            sleep_until_woken(worker);
            idle_since = 0;
        } else {
            for (int i = 0; i < 16; i++) pause_cpu();
        }
    }
    atomic_fetch_sub(&pool.alive, 1);
}

static void wake_sleepers(void) {
    if (atomic_load(&pool.sleepers) > 0) {
        atomic_store_explicit(&pool.cpu[0], el_os_cpu(), memory_order_relaxed);
        atomic_fetch_add(&pool.wake, 1);
        el_os_wake_all(&pool.wake);
    }
}

/* The child of a fork has none of the helpers: forget them, start new ones when they are needed. */
static void forget_helpers(void) {
    pool.lock = el_os_mutex_new();
    pool.started = 0;
    atomic_store(&pool.alive, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.active, 0);
    atomic_store(&pool.ticket, 0);
    atomic_store(&pool.stop, 0);
    pool.limit = 0;
    for (int i = 0; i < EL_MAX_THREADS; i++) atomic_store(&pool.clock[i], 0), atomic_store(&pool.cpu[i], -1);
}

static int ensure_lock(void) {
    static _Atomic int state; /* 0 new, 1 being made, 2 ready */
    int expected = 0;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        pool.lock = el_os_mutex_new();
        for (int i = 0; i < EL_MAX_THREADS; i++) atomic_store(&pool.cpu[i], -1);
        el_os_at_fork_child(forget_helpers);
        atomic_store(&state, 2);
    }
    while (atomic_load(&state) != 2) el_os_yield();
    return pool.lock != NULL;
}

/* ---- contention ------------------------------------------------------------------------------------------- */

static int64_t cpu_time(int worker) {
    int64_t clock = worker ? atomic_load(&pool.clock[worker]) : el_os_self_clock();
    return clock ? el_os_clock_read(clock) : -1;
}

/* How many of `wanted` workers the next pass should use; starts the watch. */
static int watch_begin(int wanted) {
    pool.pass_start = el_os_now();
    if (pool.limit && pool.pass_start >= pool.retry_at) pool.limit = 0, pool.lost = pool.wall = 0.0;
    int n = pool.limit && pool.limit < wanted ? pool.limit : wanted;
    for (int i = 0; n > 1 && i < n; i++) {
        atomic_store_explicit(&pool.slept[i], 0, memory_order_relaxed);
        pool.cpu_start[i] = cpu_time(i);
    }
    return n;
}

static void watch_end(int n) {
    if (n < 2) return;
    int64_t wall = el_os_now() - pool.pass_start;
    double lost = 0.0, fade = (double)MEMORY_NS / (double)(MEMORY_NS + wall);
    for (int i = 0; i < n; i++) {
        int64_t end = cpu_time(i);
        if (end < 0 || pool.cpu_start[i] < 0 || atomic_load(&pool.slept[i])) continue;
        int64_t missing = wall - (end - pool.cpu_start[i]);
        if (missing > 100000) lost += (double)missing; /* waking up takes up to 100 us */
    }
    pool.lost = pool.lost * fade + lost;
    pool.wall = pool.wall * fade + (double)wall;
    if (pool.wall < MEMORY_NS / 5) return; /* too little seen to judge */
    if (pool.lost > LOST_SHARE * pool.wall) {
        pool.limit = n - 1;
        pool.retry_at = el_os_now() + pool.pause;
        pool.pause = pool.pause * 2 > PAUSE_MAX_NS ? PAUSE_MAX_NS : pool.pause * 2;
        pool.lost = pool.wall = 0.0;
    } else if (pool.wall > MEMORY_NS / 2) {
        pool.pause = PAUSE_MIN_NS; /* all is well again */
    }
}

/* ---- the interface -------------------------------------------------------------------------------------------- */

int el_pool_begin(int n_threads) {
    if (!ensure_lock()) return 0;
    if (n_threads < 1) n_threads = 1;
    if (n_threads > EL_MAX_THREADS) n_threads = EL_MAX_THREADS;
    el_os_lock(pool.lock);
    while (pool.started < n_threads - 1) {
        atomic_fetch_add(&pool.alive, 1);
        if (el_os_thread_start(helper, (void *)(intptr_t)(pool.started + 1))) {
            atomic_fetch_sub(&pool.alive, 1);
            n_threads = pool.started + 1;
            break;
        }
        pool.started++;
    }
    if (!pool.pause) pool.pause = PAUSE_MIN_NS;
    atomic_store(&pool.active, watch_begin(n_threads));
    return n_threads;
}

int el_pool_workers(void) { return pool.started + 1; }

void el_pool_run(el_chunk_fn fn, void *ctx, int64_t n_chunks, const int32_t *cancel) {
    if (n_chunks <= 0) return;
    if (n_chunks == 1 || atomic_load_explicit(&pool.active, memory_order_relaxed) == 1) {
        for (int64_t c = 0; c < n_chunks && !(cancel && *(const volatile int32_t *)cancel); c++) {
            fn(ctx, c, 0);
            atomic_fetch_add_explicit(&pool.chunks[0], 1, memory_order_relaxed);
        }
        return;
    }
    pool.fn = fn;
    pool.ctx = ctx;
    pool.cancel = cancel;
    pool.phase++;
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    atomic_store(&pool.ticket, pool.phase << (2 * CHUNK_BITS) | (uint64_t)n_chunks << CHUNK_BITS);
    wake_sleepers();
    while (do_chunk(0)) {
    }
    int64_t since = 0;
    while (atomic_load_explicit(&pool.done, memory_order_acquire) < n_chunks) {
        for (int i = 0; i < 16; i++) pause_cpu();
        int64_t now = el_os_now();
        if (!since) since = now;
        if (now - since > YIELD_NS) el_os_yield(); /* the last chunk's owner may need this core */
    }
}

void el_pool_end(void) {
    watch_end(atomic_load(&pool.active));
    el_os_unlock(pool.lock);
}

int64_t el_pool_spin(int64_t ns) {
    if (ns >= 0) atomic_store(&spin_ns, ns);
    return atomic_load(&spin_ns);
}

int el_pool_chunks(int64_t *chunks, int n) {
    for (int i = 0; i < n && i < EL_MAX_THREADS; i++) chunks[i] = atomic_load(&pool.chunks[i]);
    return pool.started + 1;
}

void el_pool_shutdown(void) {
    if (!ensure_lock()) return;
    el_os_lock(pool.lock);
    atomic_store(&pool.stop, 1);
    while (atomic_load(&pool.alive) > 0) {
        atomic_fetch_add(&pool.wake, 1);
        el_os_wake_all(&pool.wake);
        el_os_yield();
    }
    pool.started = 0;
    atomic_store(&pool.stop, 0);
    el_os_unlock(pool.lock);
}
