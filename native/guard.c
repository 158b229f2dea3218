/* guard.c: mapped files that another program cuts short.
 *
 * Reading a page of a mapped file that is not there any more (the file was truncated, its disk or network share is gone)
 * raises SIGBUS. A table holds the ranges that were mapped for models. A fault inside one of them gets zero pages from
 * there to the range's end, and the range is marked: whoever reads goes on with zeros, so nothing has to jump out of
 * kernels, pool threads or NumPy, and looks at the mark before it believes what it has got (edgellm/gguf/source.py).
 * A fault anywhere else goes to the handler that was there before (os_bus.h).
 *
 * The table is read inside a signal handler: no locks, no allocation. A range leaves it before its memory is unmapped.
 */
#include <stdatomic.h>

#include "edgellm.h"
#include "os.h"

enum { SLOTS = 4096, FREE = 0, FILLING = 1, WATCHED = 2 };

static struct {
    _Atomic int32_t state;
    _Atomic int32_t faulted;
    uintptr_t start, end; /* whole pages; written while FILLING, read while WATCHED */
} slots[SLOTS];
static _Atomic int32_t n_used; /* slots from here on were never used */
static uintptr_t page;         /* bytes; set before the first range */

/* Called by the signal handler: 1 when the address is in a watched range and can be read now. */
static int repair(uintptr_t address) {
    int32_t n = atomic_load_explicit(&n_used, memory_order_acquire);
    for (int32_t i = 0; i < n; i++) {
        if (atomic_load_explicit(&slots[i].state, memory_order_acquire) != WATCHED) continue;
        if (address < slots[i].start || address >= slots[i].end) continue;
        atomic_store(&slots[i].faulted, 1);
        return el_os_zero_pages(address & ~(page - 1), slots[i].end) == 0;
    }
    return 0;
}

static int32_t take_slot(void) {
    for (int32_t i = 0; i < SLOTS; i++) {
        int32_t expected = FREE;
        if (!atomic_compare_exchange_strong(&slots[i].state, &expected, FILLING)) continue;
        int32_t used = atomic_load(&n_used);
        while (used < i + 1 && !atomic_compare_exchange_weak(&n_used, &used, i + 1)) {
        }
        return i;
    }
    return -1;
}

int el_guard_add(const void *start, int64_t bytes, int32_t *slot) {
    if (!start || !slot || bytes < 1 || (uint64_t)bytes > UINTPTR_MAX - (uintptr_t)start) return EL_E_ARGUMENT;
    int64_t size = el_os_page_size();
    if (size < 1) return EL_E_UNSUPPORTED;
    uintptr_t first = (uintptr_t)start, last = first + (uintptr_t)bytes - 1;
    page = (uintptr_t)size;
    if (el_os_on_bus_error(repair)) return EL_E_UNSUPPORTED;
    int32_t i = take_slot();
    if (i < 0) return EL_E_SYSTEM;
    slots[i].start = first & ~(page - 1);
    slots[i].end = (last | (page - 1)) + 1;
    atomic_store(&slots[i].faulted, 0);
    atomic_store_explicit(&slots[i].state, WATCHED, memory_order_release);
    *slot = i;
    return EL_OK;
}

void el_guard_remove(int32_t slot) {
    if (slot >= 0 && slot < SLOTS) atomic_store_explicit(&slots[slot].state, FREE, memory_order_release);
}

int el_guard_faulted(int32_t slot) {
    return slot >= 0 && slot < SLOTS && atomic_load(&slots[slot].faulted) != 0;
}

int el_guard_arm(void) {
    return atomic_load(&n_used) == 0 || el_os_on_bus_error(repair) == 0 ? EL_OK : EL_E_UNSUPPORTED;
}
