/* The shim's functions: what the Python side may call.
 *
 * Functions return 0 (or a count) or a negative errno.  Nothing here calls Python.  The worker side is
 * one per process (signal handlers are process-wide); the manager side is an object.
 */
#ifndef DSM_SHIM_H
#define DSM_SHIM_H

#include <stdint.h>

/* ---- manager side (board.c) -------------------------------------------------------------------- */

struct dsm_board;  /* a node board with the worker boards attached to it */
struct dsm_tables; /* a region's wanted table with the applied tables of its workers */

/* Descriptors stay the caller's; the object keeps maps of its own.  NULL with errno on failure. */
struct dsm_board *dsm_board_new(int node_fd, int bell_fd);
void dsm_board_free(struct dsm_board *board);
uint64_t dsm_node_board_bytes(void);
uint64_t dsm_worker_board_bytes(void);
/* Workers have small numbers chosen by the caller, below DSM_WORKERS. */
int dsm_board_add(struct dsm_board *board, uint32_t worker, int worker_fd, int nudge_fd);
int dsm_board_remove(struct dsm_board *board, uint32_t worker);

/* Bytes of a wanted table's file, with leases behind it if `leased`. */
uint64_t dsm_wanted_bytes(uint64_t pages, int leased);
struct dsm_tables *dsm_tables_new(struct dsm_board *board, uint32_t region, uint64_t pages, int wanted_fd, int leased);
void dsm_tables_free(struct dsm_tables *tables);
int dsm_tables_add(struct dsm_tables *tables, uint32_t worker, int applied_fd);
int dsm_tables_remove(struct dsm_tables *tables, uint32_t worker);

/* Wait for work.  Polls posted slots, finished commands and `epoll_fd`, yielding the processor, for
 * `spin_ns`; then sleeps up to `timeout_ns` (-1: without end).  Returns the number of events, with
 *   events[8*i..]  worker, slot, op, object, a, b, c, ip       (op DSM_OP_DONE: a = commands_done)
 *   *ready_count   and ready[i] = descriptor | epoll events << 32
 * Slots of DSM_OP_TOUCHED are freed here.  Returns 0 and no descriptor when the time is over or on EINTR. */
int dsm_board_wait(struct dsm_board *board, int epoll_fd, uint64_t *events, uint32_t max_events, uint64_t *ready,
                   uint32_t max_ready, uint32_t *ready_count, int64_t spin_ns, int64_t timeout_ns);

/* Raise `count` wanted bytes to `level` (with DSM_MARK on page `mark` unless it is UINT64_MAX). */
void dsm_raise(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level, uint64_t mark);
/* Let DSM_READ of `count` pages count until `end` (CLOCK_MONOTONIC in ns); comes before dsm_raise. */
void dsm_lease(struct dsm_tables *tables, uint64_t page, uint64_t count, uint64_t end);
/* Lower them to at most `level` (marks go), and post a command to each worker that may have more.
 * asked[2*i..] = worker, sequence (of commands_posted): that worker has obeyed once its commands_done
 * has reached the sequence.  Returns the number of workers asked.  What counts under a lease is lowered to DSM_NONE:
 * a worker that reads it already would not be asked to lower it to DSM_READ, nor learn of that lease. */
int dsm_lower(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level, uint64_t *asked);
/* The same for `count` runs (page, count) at once; a worker is asked once for all of them. */
int dsm_lower_runs(struct dsm_tables *tables, const uint64_t *runs, uint64_t count, uint32_t level, uint64_t *asked);
/* End the wait of a slot. */
void dsm_complete(struct dsm_board *board, uint32_t worker, uint32_t slot, uint32_t status, uint64_t result);
/* 1 while the slot is still in state DONE: its grant has not been applied yet. */
int dsm_unapplied(struct dsm_board *board, uint32_t worker, uint32_t slot);
/* Statistics of one worker: the counters of the board in their order, then the histogram. */
int dsm_worker_statistics(struct dsm_board *board, uint32_t worker, uint64_t *out, uint32_t max);
/* What each thread of a worker waits for now: eight words a slot (slot, op, object, a, b, c, kernel thread id, since
 * when), as many slots as find room; returns their number.  A snapshot for people: slots change while it is taken. */
int dsm_worker_waits(struct dsm_board *board, uint32_t worker, uint64_t *out, uint32_t max_slots);

/* Copy memory that other processes write at the same time, or read: each aligned word of eight bytes is whole.  The
 * shared side is aligned, as is the size. */
void dsm_words_out(void *to, const void *shared, uint64_t bytes);
void dsm_words_in(void *shared, const void *from, uint64_t bytes);

/* ---- manager side: twins and diffs (twin.c, diff.c, patch.c; the format is in diff.h) -------------- */

/* `frames` and `twins` are the addresses of maps of a region of `pages` pages of 1 << page_shift bytes; runs are
 * rows (page, count), ascending, not touching, `count` of them; `states` is one byte a page, zero at first. */

/* Copy `count` frames to their twins: how many of them had the memory of an ended twin; -EEXIST when a page has a
 * twin, and nothing is done. */
int64_t dsm_twin_make(uint64_t frames, int frames_fd, uint64_t twins, uint8_t *states, uint64_t pages,
                      uint32_t page_shift, uint64_t page, uint64_t count);
/* 0 when every page of the runs has a twin, else -ENOENT. */
int dsm_twin_check(const uint8_t *states, uint64_t pages, const uint64_t *runs, uint64_t count);
/* The twins of the runs end, those that there are: how many. */
int64_t dsm_twin_end(uint8_t *states, uint64_t pages, const uint64_t *runs, uint64_t count);
/* Return the memory of ended twins. */
int dsm_twin_release(uint64_t twins, uint8_t *states, uint64_t pages, uint32_t page_shift);

/* Bytes that must be free for dsm_diff to write an entry: more than any entry has. */
uint64_t dsm_entry_most(void);
/* Compare the frames of the runs with their twins and write entries of what changed to `out`, as many as have
 * room for certain; returns their bytes.  With `keep`, what was compared becomes the twin; workers may write.
 *   cursor[0], [1]   run and block in it with which to begin, and then to go on; the end is cursor[0] == count
 *   cursor[2]        how many rows of `changed`: runs of the pages of which a byte changed
 * `changed` has room for (pages of the runs + count + 1) / 2 rows. */
int64_t dsm_diff(uint64_t frames, uint64_t twins, uint64_t pages, uint32_t page_shift, const uint64_t *runs,
                 uint64_t count, int keep, uint64_t *cursor, uint8_t *out, uint64_t room, uint64_t *changed);

/* The next three return -EBADMSG, and have done nothing, when the payload is not well formed or names a block
 * outside.
 *
 * Store the changed bytes of the pages of the runs (NULL: of all pages) and no other byte.  `prepared` is one byte
 * a page, zero where the frame may be a hole. */
int dsm_patch(uint64_t frames, int frames_fd, uint64_t pages, uint32_t page_shift, uint8_t *prepared,
              const uint8_t *payload, uint64_t length, const uint64_t *runs, uint64_t count);
/* Copy the entries of these pages to `out`, which has room for the whole payload; returns their bytes. */
int64_t dsm_patch_select(uint64_t pages, uint32_t page_shift, const uint8_t *payload, uint64_t length,
                         const uint64_t *runs, uint64_t count, uint8_t *out);
/* List the pages of a payload as rows, at most one for 16 bytes of it; returns their number. */
int64_t dsm_patch_runs(uint64_t pages, uint32_t page_shift, const uint8_t *payload, uint64_t length, uint64_t *runs);

/* ---- worker side: the cache of a heap (cache.c; its layout is in dsm/memory/cache.py) -------------- */

struct dsm_cache; /* a cache and what of its layout is fixed; for all threads of a process */

/* `words` is a cache that was laid out, and stays the caller's; `by_step` has the class of each number of steps of
 * 16 bytes.  NULL when there is no memory. */
struct dsm_cache *dsm_cache_new(uint64_t *words, const uint8_t *by_step, uint32_t steps, const uint32_t *capacities,
                                const uint32_t *batches, uint32_t classes, uint32_t max_batch);
void dsm_cache_free(struct dsm_cache *cache);
/* An object for `nbytes`, its first bytes zero if asked for; 0: none is here, or no class is so large. */
uint64_t dsm_cache_take(struct dsm_cache *cache, uint64_t nbytes, int zero);
uint64_t dsm_cache_take_of(struct dsm_cache *cache, uint32_t cls, uint64_t nbytes, int zero);
/* 1; 0: there is no room, or no such class. */
int dsm_cache_put(struct dsm_cache *cache, uint64_t address, uint64_t nbytes, uint32_t cls);
/* Put a batch from the manager on a stack, once: 1; 0: there is no room for all of it.  Numbers ascend. */
int dsm_cache_fill(struct dsm_cache *cache, uint32_t cls, const uint64_t *addresses, uint32_t n, uint64_t number);
/* Move a batch to the outbox, with the next number; how many objects: 0: none, or the one before it is still there. */
uint32_t dsm_cache_surplus(struct dsm_cache *cache, uint32_t cls);
void dsm_cache_sent(struct dsm_cache *cache, uint64_t number);
/* Count blocks that did not go through the cache. */
void dsm_cache_count(struct dsm_cache *cache, uint64_t allocated, uint64_t freed, uint64_t asked, uint64_t given);
/* Put an entry into a ring, whose layout is in dsm/memory/rings.py; 0: it is full.  One thread at a time. */
int dsm_ring_put(uint64_t *ring, uint32_t slots, uint64_t place, uint64_t nbytes);
/* memset and memmove on addresses. */
void dsm_zero(uint64_t address, uint64_t nbytes);
void dsm_copy(uint64_t to, uint64_t from, uint64_t nbytes);

/* ---- worker side (region.c, handler.c, service.c, call.c) ---------------------------------------- */

struct dsm_worker_options {
  int node_fd;       /* node board */
  int worker_fd;     /* worker board */
  int bell_fd;       /* eventfd: wakes the manager */
  int nudge_fd;      /* eventfd: wakes the service thread */
  int manager_pidfd; /* readable when the manager is gone */
  int error_fd;      /* eventfd: written when an error is to be raised by Python */
  int64_t spin_ns;
  uint64_t map_limit;   /* memory maps the process may have (vm.max_map_count less a reserve) */
  uint64_t error_pause_ns; /* how long a poisoned thread waits for its error to be queued */
};

/* Map the boards, install the SIGSEGV handler (the one that was there is kept and called for faults
 * that are not ours) and start the service thread.  The descriptors stay the caller's and must stay
 * open.  -EBUSY when started already. */
int dsm_worker_start(const struct dsm_worker_options *options);
/* Every region becomes closed (see dsm_region_close), the service thread ends, the handler stays. */
int dsm_worker_stop(void);
/* 1 once the manager is gone; every wait has then ended with status `lost`. */
int dsm_worker_lost(void);
/* Which status a fault or call ends with when the manager is gone, a region is closed, or maps run out. */
void dsm_worker_statuses(uint32_t lost, uint32_t closed, uint32_t limit);
/* Make sure that our SIGSEGV handler is the installed one.  1 when it had been replaced (the other one
 * is chained now), 0 when all was well. */
int dsm_handler_check(void);
/* In a child of fork: 1 until dsm_worker_start is called there. */
int dsm_worker_forked(void);

/* Map a region at `address`, with no access; the descriptors may be closed afterwards.  -EEXIST when the range is
 * taken by somebody else, -EALREADY when the region is mapped.  `lease_guard_ns`: 0, or leases lie behind the wanted
 * table, and access that lasts longer than so many ns after the end of one is counted as late. */
int dsm_region_map(uint32_t region, uint64_t address, uint64_t pages, uint32_t page_shift, int frames_fd, int wanted_fd,
                   int applied_fd, uint64_t lease_guard_ns);
/* The addresses stay reserved; touching them is an error from now on.  Waits for no one. */
int dsm_region_close(uint32_t region);
/* Apply what is wanted to these pages now; `pin` adds (1) or takes away (0) DSM_PINNED, -1 leaves it. */
int dsm_region_apply(uint32_t region, uint64_t page, uint64_t count, int pin);
/* 1 with *region and *offset when `address` lies in one of our regions (open or closed), else 0. */
int dsm_region_find(uint64_t address, uint32_t *region, uint64_t *offset);
/* Where the closed region ends in which `address` lies, which another may take the place of; 0: it lies in none. */
uint64_t dsm_region_closed_end(uint64_t address);
/* -1 while a page of the region that has `address` may be poisoned, or it is closed.  The same other number twice: what
 * was read in between, by any thread, is what the region held. */
int64_t dsm_region_mark(uint64_t address);

/* A fault that ended in an error, for the Python thread to raise. */
struct dsm_error {
  uint64_t thread; /* kernel thread id */
  uint64_t address;
  uint64_t page;
  uint32_t region;
  uint32_t status;
  uint32_t peer; /* the result that came with the status: who is to blame, as the manager numbers it; 0 nobody */
};
/* 1 with the next error, 0 when there is none. */
int dsm_error_take(struct dsm_error *error);
/* The exception is pending in its thread, which goes on.  Until it is done, the thread touches poison silently. */
int dsm_error_told(const struct dsm_error *error);
/* The exception was raised (or cannot be): the thread goes on, and the page traps again. */
int dsm_error_done(const struct dsm_error *error);

/* How a thread that faults while it holds an interpreter's lock is told at once, without a wait: when
 * `holds_lock()` is true there, `make_pending(pthread_self(), what)`; 1 when that has been done.  Its error
 * stays in the queue for dsm_error_take. */
void dsm_error_hook(void *holds_lock, void *make_pending, void *what);

/* Ask the manager something: posts a slot and returns the call, whose low 8 bits are the slot.  -EAGAIN when
 * all are in use. */
int dsm_call_begin(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c);
/* Tell the manager something; nobody waits, and no slot is kept.  0, or -EAGAIN when all are in use. */
int dsm_call_post(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c);
/* Wait for the answer: 1 with *status and *result, 0 when the time is over, -EINTR when a signal may have come
 * (at least every 100 ms, so that one that came just before the sleep is not missed). */
int dsm_call_wait(uint32_t call, int64_t timeout_ns, uint32_t *status, uint64_t *result);
/* Give the slot back; only after dsm_call_wait returned 1. */
void dsm_call_end(uint32_t call);

/* ---- measuring (probe.c), for `dsm bench` --------------------------------------------------------- */

/* Mean nanoseconds of one SIGSEGV + mprotect + return, over `count` pages of an anonymous map. */
int64_t dsm_probe_fault(uint32_t count, uint64_t *samples_ns);
/* Ask over a connected blocking socket: send `request` bytes, receive `reply` bytes, `count` times. */
int64_t dsm_probe_ask(int fd, uint32_t count, uint32_t request, uint32_t reply, uint64_t *samples_ns);
/* Answer such requests until the peer closes. */
int64_t dsm_probe_answer(int fd, uint32_t request, uint32_t reply);

#endif
