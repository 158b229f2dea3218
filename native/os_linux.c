/* os_linux.c: threads and memory through pthreads, futex and madvise. */
#define _GNU_SOURCE
#include "os.h"

#include "os_bus.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

/* Big blocks are cut out of a larger mapping so that they start on a 2 MB border: the kernel can then back
 * them with huge pages, which saves most TLB misses when weights stream through. */
void *el_os_alloc(int64_t bytes) {
    if (bytes <= 0 || bytes > INT64_MAX - 2 * HUGE_PAGE) return NULL;
    size_t want = (size_t)bytes;
    if (want < HUGE_PAGE) {
        void *p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    size_t span = want + HUGE_PAGE;
    char *raw = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    char *start = (char *)(((uintptr_t)raw + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t kept = (want + page - 1) / page * page;
    if (start > raw) munmap(raw, (size_t)(start - raw));
    if (raw + span > start + kept) munmap(start + kept, (size_t)(raw + span - (start + kept)));
    madvise(start, kept, MADV_HUGEPAGE); /* advice only: refused means ordinary pages */
    return start;
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
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigset_t old;
    block_foreign_signals(&old);
    pthread_t thread;
    int rc = pthread_create(&thread, &attr, trampoline, args);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc) free(args);
    return rc;
}

void el_os_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_us) {
    struct timespec t = {timeout_us / 1000000, (timeout_us % 1000000) * 1000};
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, expected, &t, NULL, 0);
}

void el_os_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void el_os_yield(void) { sched_yield(); }

int el_os_cpu(void) { return sched_getcpu(); }

void el_os_move_off(const int32_t *taken, int n) {
    cpu_set_t allowed, rest;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    rest = allowed;
    for (int i = 0; i < n; i++)
        if (taken[i] >= 0 && taken[i] < CPU_SETSIZE) CPU_CLR(taken[i], &rest);
    if (CPU_COUNT(&rest) && !sched_setaffinity(0, sizeof rest, &rest)) sched_setaffinity(0, sizeof allowed, &allowed);
}

int64_t el_os_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t el_os_self_clock(void) {
    clockid_t id;
    return pthread_getcpuclockid(pthread_self(), &id) ? -1 : (int64_t)id + ((int64_t)1 << 40); /* ids are negative */
}

int64_t el_os_clock_read(int64_t clock) {
    struct timespec t;
    if (clock == -1 || clock_gettime((clockid_t)(clock - ((int64_t)1 << 40)), &t)) return -1;
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): for all threads of the process, kept over fork. Refused by kernels before
 * 5.16, and where a thread has a signal stack too small for the tiles (Linux, Documentation/arch/x86/xstate.rst). */
int el_os_request_tiles(void) {
#if defined(__x86_64__) && defined(SYS_arch_prctl)
    enum { GET_PERMISSIONS = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned long have = 0;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
    return syscall(SYS_arch_prctl, GET_PERMISSIONS, &have) == 0 && have >> TILE_DATA & 1;
#else
    return 0;
#endif
}

void el_os_at_fork_child(void (*child)(void)) { pthread_atfork(NULL, NULL, child); }

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
