/* What the shim's own files share; not for callers.
 *
 * Owns the worker's single context (signal handlers are process-wide, so there is one), the record of a
 * region, and the names of the functions between the files.  Functions marked SIGNAL-SAFE may run in the
 * SIGSEGV handler: they allocate nothing, take no lock but a page lock, and call only system calls.
 *
 * Rules that hold everywhere:
 *   - all signals are masked while a page lock or a region's `busy` count is held, so that the thread that
 *     holds it can never fault on a region and wait for itself;
 *   - page locks are taken in ascending order of page, or only tried;
 *   - what the kernel allows on a page is never more than its applied byte says (it may be less), but for the private
 *     memory of one that is DSM_POISONED.
 */
#ifndef DSM_INTERNAL_H
#define DSM_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"
#include "shim.h"

/* What is needed in front of a store and after a load is named, not guessed. */
#define load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define load_ordered(p) atomic_load_explicit((p), memory_order_seq_cst)
#define store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define store_ordered(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define add_relaxed(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define fence_ordered() atomic_thread_fence(memory_order_seq_cst)

/* A region of this process.  Records are never freed: a handler may hold one for as long as it waits. */
enum dsm_region_state {
  DSM_OPEN,
  DSM_CLOSING, /* nobody enters: those that are inside may still make it accessible */
  DSM_CLOSED,  /* reserved and empty; what is poisoned there and mended again stays inaccessible */
  DSM_GONE,    /* its addresses belong to another record now */
};

#define DSM_MAPS_OF_A_REGION 4 /* itself, its shadow, two tables */

struct dsm_region {
  uint64_t address;
  uint64_t end; /* first address behind it */
  uint64_t pages;
  uint32_t page_shift;
  uint32_t number;
  _Atomic uint32_t state;  /* enum dsm_region_state */
  _Atomic uint32_t busy;   /* threads that are changing its maps now; closing waits for them */
  _Atomic uint32_t status; /* closed: what a touch ends with */
  _Atomic uint32_t covered; /* open: how many pages are, or are about to be, DSM_POISONED */
  _Atomic uint64_t coverings; /* how often one was covered */
  _Atomic uint64_t poisoned; /* OS pages from (low half) up to (high half) are to be mended yet; 0 = none */
  _Atomic uint8_t *wanted; /* open only, as are the next two */
  _Atomic uint8_t *applied;
  _Atomic uint64_t *leases; /* behind `wanted`; NULL: what is wanted has no end */
  uint64_t lease_guard_ns;  /* how long after its end access under a lease may last; 0: no leases */
  uint64_t bridge; /* bytes reserved right in front of a closed region, under dsm_lock: see region.c */
  uint64_t shadow; /* a second map of the frames, never accessible: what a poisoned page is mended from */
  struct dsm_region *next; /* in its bucket of the number index */
};

/* Everything the worker side knows besides its regions.  Zero until the first dsm_worker_start. */
struct dsm_worker {
  struct dsm_worker_options options;
  struct dsm_node_board *node;    /* once mapped, these two addresses stay valid for ever: after a stop */
  struct dsm_worker_board *board; /* or in a forked child they are empty private memory */
  uint64_t os_page;
  _Atomic int started;
  _Atomic int ended;  /* stopped, or forked away: waits end with `closed` (`lost` in a child) */
  _Atomic int lost;   /* the manager is gone */
  _Atomic int forked; /* a child that has not started again */
  _Atomic uint32_t generation; /* counts starts: a wait never takes a later start's slot for its own */
  _Atomic int64_t maps;        /* estimate of the memory maps our regions cost */
  _Atomic uint32_t status_lost;
  _Atomic uint32_t status_closed;
  _Atomic uint32_t status_limit;
};
extern struct dsm_worker dsm_worker;

/* worker.c */
bool dsm_worker_runs(void); /* started, and nobody has begun to stop it */
uint64_t dsm_now(void);                      /* SIGNAL-SAFE; CLOCK_MONOTONIC in ns */
void *dsm_map_file(int fd, uint64_t bytes, uint64_t minimum, int writable); /* NULL with errno; not inherited by fork */
void dsm_empty_boards(void);
void dsm_lock(sigset_t *old); /* masks all signals, takes the one mutex of the slow paths */
void dsm_unlock(const sigset_t *old);
void dsm_mutex_hold(void);
void dsm_mutex_release(void);
void dsm_mutex_renew(void);

/* registry.c: regions by address (SIGNAL-SAFE to read) and by number (under dsm_lock) */
struct dsm_region *dsm_registry_find(uint64_t address);
struct dsm_region *dsm_registry_next(uint64_t address); /* the first record that ends behind `address` */
struct dsm_region *dsm_registry_before(uint64_t address); /* under dsm_lock: the last that ends at or before it */
struct dsm_region *dsm_registry_number(uint32_t number);
int dsm_registry_reserve(uint32_t more); /* room for so many further records; -ENOMEM */
/* The first that comes is new, the others are what remains of those that are gone. */
void dsm_registry_change(struct dsm_region *const *gone, uint32_t gone_count, struct dsm_region *const *come,
                         uint32_t come_count);
struct dsm_region *dsm_region_record(uint32_t number, uint64_t address, uint64_t end, uint32_t page_shift);

/* region.c; both SIGNAL-SAFE.  Between enter and leave the region keeps `state` and its maps exist. */
bool dsm_region_enter(struct dsm_region *region, uint32_t state);
void dsm_region_leave(struct dsm_region *region);
void dsm_close_locked(struct dsm_region *region, uint32_t status);
void dsm_close_all(uint32_t status);

/* apply.c: page locks and levels; all SIGNAL-SAFE, inside enter and leave */
enum dsm_applied { DSM_APPLIED, DSM_MISSING, DSM_SHUT, DSM_EXHAUSTED };
uint8_t dsm_page_lock(struct dsm_region *region, uint64_t page); /* the byte without DSM_LOCKED */
void dsm_page_unlock(struct dsm_region *region, uint64_t page, uint8_t applied);
int dsm_protect(struct dsm_region *region, uint64_t page, uint64_t count, uint32_t level);
uint64_t dsm_next_mapped(struct dsm_region *region, uint64_t page, uint64_t end);
/* `need` 0: whatever is wanted.  Enters by itself.  *mark: the page was marked and is not any more. */
enum dsm_applied dsm_apply_for(struct dsm_region *region, uint64_t page, uint32_t need, bool *mark);
int dsm_apply_range(struct dsm_region *region, uint64_t page, uint64_t count, int pin);
/* `time`: leases that end until then are over. */
void dsm_lower_range(struct dsm_region *region, uint64_t page, uint64_t count, uint64_t time);

/* lease.c */
void dsm_lease_note(struct dsm_region *region, uint64_t page, uint64_t end); /* SIGNAL-SAFE; before it is mapped */
bool dsm_lease_over(struct dsm_region *region, uint64_t page, uint64_t end); /* SIGNAL-SAFE; one of them, by now */
uint64_t dsm_lease_look(void); /* service thread; when to look again */
bool dsm_lease_sleep(uint64_t until); /* service thread; false: it must not, something ends before */
void dsm_lease_awake(void); /* service thread, after dsm_lease_sleep */
void dsm_lease_forget(void); /* while there is no service thread */

/* merge.c; SIGNAL-SAFE */
int64_t dsm_borders(struct dsm_region *region, uint64_t page, uint64_t end);
uint64_t dsm_merge(uint64_t target);
void dsm_merge_if_many(void);
void dsm_merge_reset(void);

/* slot.c; SIGNAL-SAFE */
int dsm_slot_take(void);
void dsm_slot_post(uint32_t slot, uint32_t op, uint32_t object, const uint64_t abc[3], uint64_t ip);
int dsm_slot_wait(uint32_t slot, uint32_t generation, int64_t timeout_ns, bool once, uint32_t *status,
                  uint64_t *result);
void dsm_slot_give(uint32_t slot);
void dsm_touched(uint32_t region, uint64_t page);
void dsm_ring(void);
void dsm_check_manager(void);
void dsm_wake_slots(void);
long dsm_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void dsm_futex_wake(_Atomic uint32_t *word);

/* handler.c, chain.c */
int dsm_handler_install(void);
void dsm_chain_call(int signal, siginfo_t *info, void *context); /* SIGNAL-SAFE */
int dsm_chain_push(const struct sigaction *action);
bool dsm_chain_dying(void);

/* poison.c */
int dsm_poison_prepare(void);
/* SIGNAL-SAFE.  Not if the page is there by now with the level that was needed; `need` 0: also then. */
void dsm_poison(struct dsm_region *region, uint64_t address, uint32_t need, uint32_t status, uint32_t peer);
uint32_t dsm_open_error(uint32_t *peer); /* SIGNAL-SAFE */
void dsm_poison_reserve(void);
void dsm_poison_tend(void);
void dsm_poison_forget(void);

/* cover.c; SIGNAL-SAFE, inside enter and leave.  1 done, or a negative errno. */
int dsm_cover(struct dsm_region *region, uint64_t first, uint64_t end); /* closed: OS pages [first, end) */
int dsm_cover_open(struct dsm_region *region, uint64_t first, uint32_t need); /* one OS page; 0: see dsm_poison */
int dsm_uncover(struct dsm_region *region, uint64_t page); /* locked by us: inaccessible now; 0 done */

/* mend.c; SIGNAL-SAFE.  OS pages [first, end). */
void dsm_mend(struct dsm_region *region, uint64_t first, uint64_t end);
void dsm_mend_rest(void);

/* spare.c; SIGNAL-SAFE.  Gives memory maps up that were held for this; false when that was done before. */
bool dsm_spare_spend(void);

/* tell.c; SIGNAL-SAFE for synchronous faults.  True: the exception is pending in this thread, it need not wait. */
bool dsm_tell_thread(void);
void dsm_die(const char *message); /* SIGNAL-SAFE: the message, then SIGBUS */

/* service.c, fork.c */
void dsm_pause(void); /* SIGNAL-SAFE: let whoever holds what we wait for go on */
void dsm_service_hurry(void); /* under dsm_lock: a region has leases */
void dsm_service_nudge(void); /* SIGNAL-SAFE */
int dsm_service_start(void);
void dsm_service_stop(void);
void dsm_service_forget(void);
int dsm_fork_prepare(void);

/* twin.c, patch.c: frames so small that faults cost less than asking where they have memory */
#define DSM_FEW_BYTES (UINT64_C(16) << 10)

#endif
