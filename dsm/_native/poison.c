/* Worker side: faults that cannot be served.
 *
 * Owns where poison lies (cover.c) and the table of errors that wait for a Python thread to raise them.  A page is
 * mended (mend.c) when its error was handed over, not before the thread has gone on.
 *
 * From lock_entries down to dsm_poison everything is SIGNAL-SAFE: it runs in the handler, every signal masked, and
 * calls only system calls and dsm_tell_thread.  What follows dsm_poison is for the thread that raises errors.
 *
 * A thread that was told of its error goes on, but the error stays open until it is raised (done): until
 * then the thread gets more poison without another error and without a wait, also where a page could be had:
 * an operation on a thousand pages that do not come must not wait for each of them in turn.  It keeps its last
 * RUNS runs; older ones are mended at once, so that a loop over a terabyte of closed memory costs neither memory
 * nor maps.
 */
#include "internal.h"

#include <sys/syscall.h>

#define ERRORS 256
#define RUNS 32          /* more than the pages one instruction can touch */
#define LONGEST_RUN 64   /* OS pages poisoned at once, only where nothing was mapped: in closed regions */
#define SLICE_NS 5000000u
#define LEAVE_NS 1000000000u /* longest wait for a thread to leave the handler */
#define GRACE_NS 20000u      /* from there to having executed its instruction */
#define RETELL_NS 10000000u  /* a thread that touches more pages after that has perhaps lost its exception */

enum state { FREE, POSTED, TAKEN, TOLD, DONE };

struct run {
  struct dsm_region *region;
  uint64_t first, end; /* OS pages of the region */
};

struct entry {
  _Atomic uint32_t state;
  _Atomic uint32_t left; /* the thread has left the handler */
  struct dsm_error error;
  uint64_t told; /* when */
  uint32_t runs; /* counted; the last RUNS of them are kept */
  struct run run[RUNS];
};

static struct entry entries[ERRORS];
static _Atomic uint32_t open_errors; /* entries that are not FREE */
static _Atomic int locked; /* poisoning and mending, one at a time: what is in between is in no doubt */

/* Held for some system calls, never while waiting for anybody; every signal is masked. */
static void lock_entries(void) {
  while (atomic_exchange(&locked, 1)) dsm_pause();
}

static void unlock_entries(void) { store_release(&locked, 0); }

/* 1 done, 0 what the fault was about has changed meanwhile, or a negative errno. */
static int poison_run(const struct run *run, uint32_t state, uint32_t need) {
  struct dsm_region *region = run->region;
  if (!dsm_region_enter(region, state)) return 0;
  int result = state == DSM_OPEN ? dsm_cover_open(region, run->first, need) : dsm_cover(region, run->first, run->end);
  dsm_region_leave(region);
  return result;
}

static struct entry *open_entry(uint64_t thread) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    uint32_t state = load_relaxed(&entries[i].state);
    if ((state == POSTED || state == TAKEN || state == TOLD) && entries[i].error.thread == thread) return &entries[i];
  }
  return NULL;
}

/* SIGNAL-SAFE, cheap while no thread has an error.  What this thread's open error ended with; 0: it has none. */
uint32_t dsm_open_error(uint32_t *peer) {
  if (!load_relaxed(&open_errors)) return 0;
  const struct entry *entry = open_entry((uint64_t)syscall(SYS_gettid));
  if (!entry) return 0;
  *peer = entry->error.peer;
  return entry->error.status;
}

static struct entry *post_error(const struct dsm_error *error, const struct run *run) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    struct entry *entry = &entries[i];
    if (load_relaxed(&entry->state) != FREE) continue;
    store_relaxed(&entry->left, 0);
    entry->error = *error;
    entry->run[0] = *run;
    entry->runs = 1;
    add_relaxed(&open_errors, 1);
    store_ordered(&entry->state, POSTED);
    return entry;
  }
  return NULL;
}

static void ring_watcher(void) {
  uint64_t one = 1;
  int fd = dsm_worker.options.error_fd;
  if (fd >= 0 && write(fd, &one, sizeof one) < 0) { /* full: it is readable anyway */
  }
}

static void wait_told(struct entry *entry) {
  uint64_t start = dsm_now(), pause = dsm_worker.options.error_pause_ns;
  ring_watcher();
  for (;;) {
    uint32_t state = load_ordered(&entry->state);
    uint64_t waited = dsm_now() - start;
    if (state == TOLD || state == DONE || waited >= pause) break;
    dsm_futex_wait(&entry->state, state, pause - waited < SLICE_NS ? pause - waited : SLICE_NS);
  }
  store_ordered(&entry->left, 1);
}

/* Where this thread's next poison goes: more of it when it walks on through a closed region. */
static void choose_run(struct run *run, const struct entry *entry, uint32_t state) {
  if (!entry || state != DSM_CLOSED) return;
  uint64_t last = (run->region->end - run->region->address) / dsm_worker.os_page;
  for (uint32_t i = entry->runs > RUNS ? entry->runs - RUNS : 0; i < entry->runs; i++) {
    const struct run *old = &entry->run[i % RUNS];
    if (old->region != run->region || old->end != run->first) continue;
    uint64_t length = 2 * (old->end - old->first);
    if (length > LONGEST_RUN) length = LONGEST_RUN;
    run->end = last - run->first < length ? last : run->first + length;
  }
}

/* Whether another error's thread needs this OS page poisoned still; its own end mends it then. */
static bool needed(const struct entry *but, const struct dsm_region *region, uint64_t page) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    const struct entry *entry = &entries[i];
    if (entry == but || load_relaxed(&entry->state) == FREE) continue;
    for (uint32_t r = 0; r < entry->runs && r < RUNS; r++) {
      const struct run *run = &entry->run[r];
      if (run->region == region && run->first <= page && page < run->end) return true;
    }
  }
  return false;
}

static void mend_run(const struct entry *entry, const struct run *run) {
  for (uint64_t first = run->first, end; first < run->end; first = end + 1) {
    for (end = first; end < run->end && !needed(entry, run->region, end);) end++;
    if (end > first) dsm_mend(run->region, first, end);
  }
}

/* Remember it with the thread's open error; mend what is too old to be of use. */
static void remember_run(struct entry *entry, const struct run *run) {
  struct run *place = &entry->run[entry->runs++ % RUNS];
  const struct run oldest = *place;
  *place = *run;
  if (entry->runs > RUNS) mend_run(NULL, &oldest);
}

/* C code may have dropped the exception. */
static void tell_again(struct entry *entry) {
  if (dsm_tell_thread() || load_relaxed(&entry->state) != TOLD || dsm_now() - entry->told < RETELL_NS) return;
  store_ordered(&entry->state, POSTED);
  ring_watcher();
}

/* The thread's new error, to wait for; NULL when there is nothing to wait for. */
static struct entry *poison_locked(struct dsm_region *region, uint64_t address, uint32_t need, uint32_t status,
                                   uint32_t peer) {
  uint64_t thread = (uint64_t)syscall(SYS_gettid);
  struct entry *entry = open_entry(thread);
  uint64_t first = (address - region->address) / dsm_worker.os_page;
  struct run run = {region, first, first + 1};
  uint32_t state = load_ordered(&region->state);
  if (state != DSM_OPEN && state != DSM_CLOSED) { /* closing, or another region is there: it faults again */
    dsm_pause();
    return NULL;
  }
  choose_run(&run, entry, state);
  int result = poison_run(&run, state, need);
  if (result == -ENOMEM && dsm_spare_spend()) result = poison_run(&run, state, need);
  if (result == 0) return NULL; /* closed meanwhile, or the page is there: likewise */
  if (result < 0) dsm_die("dsm: a page could not be served, and there is no memory map left to say so\n");
  add_relaxed(&dsm_worker.board->poisoned, 1);
  if (entry) {
    remember_run(entry, &run);
    tell_again(entry);
    return NULL;
  }
  struct dsm_error error = {.thread = thread, .address = address, .region = region->number};
  error.status = status;
  error.peer = peer;
  error.page = (address - region->address) >> region->page_shift;
  entry = post_error(&error, &run);
  if (!entry) dsm_die("dsm: more threads than can be told have touched pages that could not be served\n");
  return entry;
}

void dsm_poison(struct dsm_region *region, uint64_t address, uint32_t need, uint32_t status, uint32_t peer) {
  lock_entries();
  struct entry *entry = poison_locked(region, address, need, status, peer);
  unlock_entries();
  if (!entry) return;
  if (dsm_tell_thread()) {
    store_ordered(&entry->left, 1);
  } else {
    wait_told(entry);
  }
}

int dsm_error_take(struct dsm_error *error) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    uint32_t posted = POSTED;
    if (load_acquire(&entries[i].state) != POSTED) continue;
    *error = entries[i].error;
    if (atomic_compare_exchange_strong(&entries[i].state, &posted, TAKEN)) return 1;
  }
  return 0;
}

static struct entry *taken_entry(const struct dsm_error *error) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    const struct dsm_error *at = &entries[i].error;
    uint32_t state = load_ordered(&entries[i].state);
    if (state != TAKEN && state != TOLD) continue;
    if (at->thread == error->thread && at->address == error->address) return &entries[i];
  }
  return NULL;
}

int dsm_error_told(const struct dsm_error *error) {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  lock_entries();
  struct entry *entry = taken_entry(error);
  if (entry) {
    entry->told = dsm_now();
    store_ordered(&entry->state, TOLD);
    dsm_futex_wake(&entry->state);
  }
  unlock_entries();
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return entry ? 0 : -ENOENT;
}

/* The thread has left the handler and, as far as one can tell, executed its instruction. */
static void wait_left(struct entry *entry) {
  uint64_t start = dsm_now();
  while (!load_ordered(&entry->left) && dsm_now() - start < LEAVE_NS) sched_yield();
  for (start = dsm_now(); dsm_now() - start < GRACE_NS;) sched_yield();
}

int dsm_error_done(const struct dsm_error *error) {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  lock_entries();
  struct entry *entry = taken_entry(error);
  if (entry) store_ordered(&entry->state, DONE); /* from here on its thread's next error is another one */
  unlock_entries();
  if (entry) {
    dsm_futex_wake(&entry->state);
    wait_left(entry);
    lock_entries();
    for (uint32_t i = 0; i < entry->runs && i < RUNS; i++) mend_run(entry, &entry->run[i]);
    store_ordered(&entry->state, FREE);
    atomic_fetch_sub(&open_errors, 1);
    unlock_entries();
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return entry ? 0 : -ENOENT;
}

/* Once a second, with every signal masked: what could not be mended, and the maps that were spent. */
void dsm_poison_tend(void) {
  lock_entries();
  dsm_mend_rest();
  unlock_entries();
  dsm_poison_reserve();
}

/* In a forked child: its threads are gone. */
void dsm_poison_forget(void) {
  for (uint32_t i = 0; i < ERRORS; i++) store_relaxed(&entries[i].state, FREE);
  store_relaxed(&open_errors, 0);
  store_ordered(&locked, 0);
}
