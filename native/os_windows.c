/* os_windows.c: threads and memory through the Win32 API (Windows 8 or later for WaitOnAddress). */
#define WIN32_LEAN_AND_MEAN
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#include "os.h"

#include <windows.h>

#include <process.h>
#include <stdlib.h>

void *el_os_alloc(int64_t bytes) {
    /* Large pages need a privilege that desktop programs do not have: ordinary pages it is. */
    return bytes > 0 ? VirtualAlloc(NULL, (SIZE_T)bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) : NULL;
}

void el_os_free(void *p, int64_t bytes) {
    (void)bytes;
    if (p) VirtualFree(p, 0, MEM_RELEASE);
}

typedef struct {
    void (*run)(void *);
    void *arg;
} start_args;

static unsigned __stdcall trampoline(void *p) {
    start_args args = *(start_args *)p;
    free(p);
    args.run(args.arg);
    return 0;
}

int el_os_thread_start(void (*run)(void *), void *arg) {
    start_args *args = malloc(sizeof *args);
    if (!args) return -1;
    *args = (start_args){run, arg};
    uintptr_t thread = _beginthreadex(NULL, 0, trampoline, args, 0, NULL);
    if (!thread) {
        free(args);
        return -1;
    }
    CloseHandle((HANDLE)thread);
    return 0;
}

void el_os_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_us) {
    DWORD ms = (DWORD)((timeout_us + 999) / 1000);
    WaitOnAddress((volatile VOID *)word, &expected, sizeof expected, ms);
}

void el_os_wake_all(_Atomic uint32_t *word) { WakeByAddressAll((PVOID)word); }

void el_os_yield(void) { SwitchToThread(); }

int el_os_cpu(void) { return -1; }
void el_os_move_off(const int32_t *taken, int n) { (void)taken, (void)n; }

int64_t el_os_now(void) {
    LARGE_INTEGER f, t;
    QueryPerformanceFrequency(&f);
    QueryPerformanceCounter(&t);
    return (int64_t)((double)t.QuadPart * 1e9 / (double)f.QuadPart);
}

int64_t el_os_self_clock(void) { return -1; }
int64_t el_os_clock_read(int64_t clock) {
    (void)clock;
    return -1;
}

/* Windows refuses to cut a mapped file short. */
int el_os_on_bus_error(int (*repair)(uintptr_t address)) {
    (void)repair;
    return -1;
}
int el_os_zero_pages(uintptr_t start, uintptr_t end) {
    (void)start, (void)end;
    return -1;
}
int64_t el_os_page_size(void) { return -1; }

int el_os_request_tiles(void) { return 0; }

void el_os_at_fork_child(void (*child)(void)) { (void)child; /* there is no fork */ }

struct el_mutex {
    SRWLOCK lock;
};

el_mutex *el_os_mutex_new(void) {
    el_mutex *m = malloc(sizeof *m);
    if (m) InitializeSRWLock(&m->lock);
    return m;
}
void el_os_lock(el_mutex *m) { AcquireSRWLockExclusive(&m->lock); }
void el_os_unlock(el_mutex *m) { ReleaseSRWLockExclusive(&m->lock); }
