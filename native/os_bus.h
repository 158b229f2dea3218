/* os_bus.h: SIGBUS on POSIX systems, for os_linux.c and os_posix.c (native/guard.c says what it is for).
 *
 * The handler passes on what it does not repair, as if it were not there: to `below`, what was installed when it came, or
 * to `above`, what the program has installed over it later. (It takes its place again when the next file is opened or the
 * next call begins.) While a handler runs that was passed a signal, a signal that it raises goes to the one below: Python's
 * faulthandler gives the process back to its predecessor, which may be this handler, and raises the signal again.
 */
#ifndef EL_OS_BUS_H
#define EL_OS_BUS_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "os.h"

enum { BUS_BELOW = 0, BUS_ABOVE = 1 };
static struct sigaction bus_others[2];
static _Atomic int bus_next; /* which of them gets what is passed on */
static int bus_installed, bus_has_above;
static int (*bus_repair)(uintptr_t address);

/* Whether an instruction caused it: a signal that somebody sent has no address. */
static int bus_is_fault(const siginfo_t *info) {
#if defined(__linux__)
    return info && info->si_code > 0;
#else
    return info && info->si_code != SI_USER && info->si_code != SI_QUEUE;
#endif
}

/* Whether `above` has had this fault again and again and let it be: it was switched off since, and stood here only because
 * this handler had gone before it. */
static int bus_in_vain(const siginfo_t *info) {
    static _Atomic uintptr_t last;
    static _Atomic int times;
    uintptr_t address = (uintptr_t)info->si_addr;
    if (atomic_exchange(&last, address) != address) atomic_store(&times, 0);
    return atomic_fetch_add(&times, 1) >= 1000;
}

static void bus_pass_on(int sig, siginfo_t *info, void *context) {
    int level = atomic_exchange(&bus_next, BUS_BELOW);
    if (level == BUS_ABOVE && bus_is_fault(info) && bus_in_vain(info)) level = BUS_BELOW;
    struct sigaction next = bus_others[level];
    int plain = !(next.sa_flags & SA_SIGINFO), fault = bus_is_fault(info);
    if (plain && next.sa_handler == SIG_IGN && !fault) {
        atomic_store(&bus_next, level);
        return;
    }
    if (plain && (next.sa_handler == SIG_DFL || next.sa_handler == SIG_IGN)) {
        struct sigaction usual = {0};
        usual.sa_handler = SIG_DFL;
        sigaction(sig, &usual, NULL);
        if (!fault) raise(sig); /* blocked here: it comes when this handler returns, as the fault does */
        return;
    }
    if (next.sa_flags & SA_RESETHAND) bus_others[level] = (struct sigaction){0}; /* SIG_DFL */
    pthread_sigmask(SIG_BLOCK, &next.sa_mask, NULL); /* the system restores the mask when this handler returns */
    if (next.sa_flags & SA_NODEFER) {
        sigset_t own;
        sigemptyset(&own);
        sigaddset(&own, sig);
        pthread_sigmask(SIG_UNBLOCK, &own, NULL);
    }
    if (plain) next.sa_handler(sig);
    else next.sa_sigaction(sig, info, context);
    atomic_store(&bus_next, level);
}

static void on_bus_error(int sig, siginfo_t *info, void *context) {
    int before = errno;
    if (!bus_is_fault(info) || !bus_repair((uintptr_t)info->si_addr)) bus_pass_on(sig, info, context);
    errno = before;
}

static int bus_same(const struct sigaction *a, const struct sigaction *b) {
    if ((a->sa_flags & SA_SIGINFO) != (b->sa_flags & SA_SIGINFO)) return 0;
    return a->sa_flags & SA_SIGINFO ? a->sa_sigaction == b->sa_sigaction : a->sa_handler == b->sa_handler;
}

static int bus_install(void) {
    struct sigaction own = {0}, now;
    own.sa_sigaction = on_bus_error;
    own.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&own.sa_mask);
    if (sigaction(SIGBUS, NULL, &now)) return -1;
    if (!bus_same(&now, &own)) {
        bus_has_above = bus_installed && !bus_same(&now, &bus_others[BUS_BELOW]);
        bus_others[bus_has_above ? BUS_ABOVE : BUS_BELOW] = now;
        if (sigaction(SIGBUS, &own, NULL)) return -1;
        bus_installed = 1;
    }
    atomic_store(&bus_next, bus_has_above ? BUS_ABOVE : BUS_BELOW);
    return 0;
}

int el_os_on_bus_error(int (*repair)(uintptr_t address)) {
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    for (int i = 0; atomic_flag_test_and_set(&busy); i++) {
        if (i == 1000) return 0; /* another thread does it; in the child of a fork nobody does, and it is done */
        el_os_yield();
    }
    bus_repair = repair;
    int rc = bus_install();
    atomic_flag_clear(&busy);
    sigset_t bus; /* a blocked fault would end the process, whatever the handler */
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    return rc;
}

int el_os_zero_pages(uintptr_t start, uintptr_t end) {
    void *p = mmap((void *)start, end - start, PROT_READ, MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
    return p == MAP_FAILED ? -1 : 0;
}

int64_t el_os_page_size(void) { return (int64_t)sysconf(_SC_PAGESIZE); }

/* For threads of the pool: signals belong to the host program's threads, but not those that an instruction causes here. */
static void block_foreign_signals(sigset_t *before) {
    static const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP};
    sigset_t all;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

#endif
