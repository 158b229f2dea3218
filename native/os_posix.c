/* os_posix.c: macOS, the BSDs and other POSIX systems: one condition variable stands in for the futex. */
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include "os.h"

#include "os_bus.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

void *el_os_alloc(int64_t bytes) {
    if (bytes <= 0) return NULL;
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void el_os_free(void *p, int64_t bytes) {
    if (p) munmap(p, (size_t)bytes);
}

typedef struct {
    void (*run)(void *);
    void *arg;
} start_args;

static void *trampoline(void *p) {
    start_args args = *(start_args *)p;
    free(p);
    args.run(args.arg);
    return NULL;
}

int el_os_thread_start(void (*run)(void *), void *arg) {
    start_args *args = malloc(sizeof *args);
    if (!args) return -1;
    *args = (start_args){run, arg};
    sigset_t old;
    block_foreign_signals(&old);
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, trampoline, args);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) free(args);
    else pthread_detach(thread);
    return rc;
}

/* All sleepers share one condition variable; a wake-up looks at its own word again. */
static pthread_mutex_t wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_cond = PTHREAD_COND_INITIALIZER;

void el_os_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_us) {
    struct timeval now;
    gettimeofday(&now, NULL);
    int64_t until = (int64_t)now.tv_sec * 1000000 + now.tv_usec + timeout_us;
    struct timespec t = {(time_t)(until / 1000000), (long)(until % 1000000) * 1000};
    pthread_mutex_lock(&wait_lock);
    if (atomic_load(word) == expected) pthread_cond_timedwait(&wait_cond, &wait_lock, &t);
    pthread_mutex_unlock(&wait_lock);
}

void el_os_wake_all(_Atomic uint32_t *word) {
    (void)word;
    pthread_mutex_lock(&wait_lock);
    pthread_cond_broadcast(&wait_cond);
    pthread_mutex_unlock(&wait_lock);
}

void el_os_yield(void) { sched_yield(); }

int el_os_cpu(void) { return -1; }
void el_os_move_off(const int32_t *taken, int n) { (void)taken, (void)n; }

int64_t el_os_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t el_os_self_clock(void) { return -1; }
int64_t el_os_clock_read(int64_t clock) {
    (void)clock;
    return -1;
}

static void (*fork_child)(void);
static void after_fork(void) { /* the parent's sleepers do not exist here: start with a clean lock */
    pthread_mutex_init(&wait_lock, NULL);
    pthread_cond_init(&wait_cond, NULL);
    fork_child();
}
int el_os_request_tiles(void) { return 0; }

void el_os_at_fork_child(void (*child)(void)) {
    fork_child = child;
    pthread_atfork(NULL, NULL, after_fork);
}

struct el_mutex {
    pthread_mutex_t m;
};

el_mutex *el_os_mutex_new(void) {
    el_mutex *m = malloc(sizeof *m);
    if (m) pthread_mutex_init(&m->m, NULL);
    return m;
}
void el_os_lock(el_mutex *m) { pthread_mutex_lock(&m->m); }
void el_os_unlock(el_mutex *m) { pthread_mutex_unlock(&m->m); }
