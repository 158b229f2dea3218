/* os.h: every call to the operating system that the library makes. One os_*.c per system implements it. */
#ifndef EL_OS_H
#define EL_OS_H

#include <stdatomic.h>
#include <stdint.h>

/* Zeroed memory, aligned to 64 bytes at least, on huge pages where the system offers them; NULL on failure. */
void *el_os_alloc(int64_t bytes);
void el_os_free(void *p, int64_t bytes);

/* Starts a detached thread; 0 on success. */
int el_os_thread_start(void (*run)(void *), void *arg);
/* Sleeps while *word == expected, until woken or at most timeout_us; may return early. */
void el_os_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_us);
void el_os_wake_all(_Atomic uint32_t *word);
void el_os_yield(void);
/* The CPU that the calling thread is on; -1: not known here. */
int el_os_cpu(void);
/* Moves the calling thread to a CPU that it may use and that is none of taken[0 .. n), if there is one. It is not bound to it. */
void el_os_move_off(const int32_t *taken, int n);

/* Monotonic time in nanoseconds. */
int64_t el_os_now(void);
/* A clock of the calling thread's CPU time that any thread may read, and its reading in nanoseconds; -1: not here. */
int64_t el_os_self_clock(void);
int64_t el_os_clock_read(int64_t clock);
/* Calls child() in the child of every fork, where the system has fork. */
void el_os_at_fork_child(void (*child)(void));

/* Calls repair(address) when an instruction of this process reads a mapped page that cannot be read (SIGBUS): 1 says that it
 * can be read now. All else goes to the handlers that the program had. Installs it anew where the program has replaced it.
 * 0 on success, -1 where there is no such signal. repair runs in a signal handler. */
int el_os_on_bus_error(int (*repair)(uintptr_t address));
/* Zeros, to be read, in place of whatever is mapped at [start, end), whole pages; 0 on success. May be called by a signal handler. */
int el_os_zero_pages(uintptr_t start, uintptr_t end);
int64_t el_os_page_size(void);

/* Asks the system to let this process use tile registers (Linux: 8 KB more of state per thread); 1: granted. */
int el_os_request_tiles(void);

typedef struct el_mutex el_mutex;
el_mutex *el_os_mutex_new(void);
void el_os_lock(el_mutex *m);
void el_os_unlock(el_mutex *m);

#endif
