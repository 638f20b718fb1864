/* Worker side: faults that cannot be served.
 *
 * Owns poison pages (private memory, all 0xFF, so that floats read NaN), the table of errors that wait for a
 * Python thread to raise them, and mending: bringing a poisoned page back to what it must be, so that its next
 * touch traps again.  A page is mended when its error was handed over, not before the thread has gone on.
 *
 * A thread whose error is not handed over yet (it holds the interpreter's lock, or is deep in a C loop)
 * gets more poison without another error and without a wait.  It keeps its last RUNS runs; older ones are
 * mended at once, so that a loop over a terabyte of closed memory costs neither memory nor maps.
 */
#include "internal.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define ERRORS 256
#define RUNS 32          /* more than the pages one instruction can touch */
#define LONGEST_RUN 64   /* OS pages poisoned at once, only where nothing was mapped: in closed regions */
#define SLICE_NS 5000000u
#define LEAVE_NS 1000000000u /* longest wait for a thread to leave the handler */
#define GRACE_NS 20000u      /* from there to having executed its instruction */
#define SPARE_PAGES 128

enum state { FREE, FILLING, POSTED, TAKEN, DONE };

struct run {
  struct dsm_region *region;
  uint64_t first, end; /* OS pages of the region */
};

struct entry {
  _Atomic uint32_t state;
  _Atomic uint32_t left; /* the thread has left the handler */
  struct dsm_error error;
  uint32_t runs; /* of the thread alone, as is what follows */
  struct run run[RUNS];
};

static struct entry entries[ERRORS];
static uint8_t *spare;      /* maps held only to be given up when poison itself needs some */
static _Atomic int spent;

/* Pages of alternating protection: each costs a map until dsm_poison needs it. */
void dsm_poison_reserve(void) {
  if (!spare) return;
  for (uint64_t i = 1; i < SPARE_PAGES; i += 2) mprotect(spare + i * dsm_worker.os_page, dsm_worker.os_page, PROT_READ);
  store_release(&spent, 0);
}

int dsm_poison_prepare(void) {
  if (spare) return 0;
  void *map = mmap(NULL, SPARE_PAGES * dsm_worker.os_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return -errno;
  spare = map;
  dsm_poison_reserve();
  return 0;
}

static bool spend(void) {
  if (!spare || atomic_exchange(&spent, 1)) return false;
  return mprotect(spare, SPARE_PAGES * dsm_worker.os_page, PROT_NONE) == 0;
}

static void widen(struct dsm_region *region, uint64_t first, uint64_t end) {
  uint64_t old = load_relaxed(&region->poisoned), new;
  do {
    uint64_t low = old & UINT32_MAX, high = old >> 32;
    if (!old || first < low) low = first;
    if (end > high) high = end;
    new = low | high << 32;
  } while (!atomic_compare_exchange_weak(&region->poisoned, &old, new));
}

/* Complete before it is there: moved into its place, so that no thread sees it half filled. */
static int place_poison(uint64_t address, uint64_t bytes) {
  void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (page == MAP_FAILED) return -errno;
  memset(page, 0xff, bytes);
  if (mremap(page, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)address) != MAP_FAILED) return 0;
  int result = -errno;
  munmap(page, bytes);
  return result;
}

/* 1 done, 0 the region has changed meanwhile, or a negative errno. */
static int poison_run(const struct run *run, uint32_t state) {
  struct dsm_region *region = run->region;
  uint64_t os_page = dsm_worker.os_page, page = run->first * os_page >> region->page_shift;
  if (!dsm_region_enter(region, state)) return 0;
  uint8_t applied = state == DSM_OPEN ? dsm_page_lock(region, page) : 0;
  int result = place_poison(region->address + run->first * os_page, (run->end - run->first) * os_page);
  widen(region, run->first, run->end); /* after it is there: whoever takes the range finds it poisoned */
  if (state == DSM_OPEN) dsm_page_unlock(region, page, applied);
  dsm_region_leave(region);
  return result < 0 ? result : 1;
}

/* ---- mending ---- */

/* [page, end) of an open region, all locked by us: fresh inaccessible maps of the frames in place of whatever is
 * there.  mremap of a shared map with an old size of 0 makes a second map of it (mremap(2)). */
static int restore(struct dsm_region *region, uint64_t page, uint64_t end) {
  uint64_t offset = page << region->page_shift, bytes = (end - page) << region->page_shift;
  void *target = (void *)(region->address + offset);
  void *source = (void *)(region->shadow + offset);
  if (mremap(source, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) return -errno;
  madvise(target, bytes, MADV_DONTFORK);
  return 0;
}

static int mend_open(struct dsm_region *region, uint64_t page, uint64_t end) {
  for (uint64_t p = page; p < end; p++) dsm_page_lock(region, p);
  int result = restore(region, page, end);
  for (uint64_t p = page; p < end; p++) {
    uint8_t applied = load_relaxed(&region->applied[p]) & (uint8_t)~DSM_LOCKED;
    if (result < 0) {
      dsm_page_unlock(region, p, applied);
    } else if (!(applied & DSM_PINNED) || dsm_protect(region, p, 1, applied & DSM_LEVEL) < 0) {
      dsm_page_unlock(region, p, applied & DSM_PINNED);
    } else {
      dsm_page_unlock(region, p, applied);
    }
  }
  return result;
}

#define MEND_PAGES 1024

static int mend_entered(struct dsm_region *region, uint32_t state, uint64_t first, uint64_t end) {
  uint64_t os_page = dsm_worker.os_page;
  if (state == DSM_CLOSED) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *start = (void *)(region->address + first * os_page);
    return mmap(start, (end - first) * os_page, PROT_NONE, flags, -1, 0) == MAP_FAILED ? -errno : 0;
  }
  uint64_t page = first * os_page >> region->page_shift;
  uint64_t behind = ((end * os_page - 1) >> region->page_shift) + 1;
  int result = 0;
  for (; page < behind && result == 0; page += MEND_PAGES) {
    result = mend_open(region, page, behind - page > MEND_PAGES ? page + MEND_PAGES : behind);
  }
  return result;
}

/* SIGNAL-SAFE.  OS pages [first, end).  What cannot be mended now stays noted for the next time. */
static void mend_range(struct dsm_region *region, uint64_t first, uint64_t end) {
  for (;;) {
    uint32_t state = load_ordered(&region->state);
    if (state == DSM_GONE) return;
    if (!dsm_region_enter(region, state)) continue; /* it is closing */
    if (mend_entered(region, state, first, end) < 0) widen(region, first, end);
    dsm_region_leave(region);
    return;
  }
}

void dsm_mend(struct dsm_region *region) {
  uint64_t range = atomic_exchange(&region->poisoned, 0);
  if (range) mend_range(region, range & UINT32_MAX, range >> 32);
}

static void mend_all(void) {
  sigset_t old;
  dsm_lock(&old);
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    if (load_relaxed(&region->poisoned)) dsm_mend(region);
  }
  dsm_unlock(&old);
}

/* ---- errors ---- */

static void die(const char *message) {
  if (write(STDERR_FILENO, message, strlen(message)) < 0) { /* nobody to tell */
  }
  struct sigaction action = {.sa_handler = SIG_DFL};
  sigaction(SIGBUS, &action, NULL);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGBUS);
}

static bool is_open(struct entry *entry) {
  uint32_t state = load_ordered(&entry->state);
  return state == POSTED || state == TAKEN;
}

static struct entry *open_entry(uint64_t thread) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    if (is_open(&entries[i]) && entries[i].error.thread == thread) return &entries[i];
  }
  return NULL;
}

static struct entry *post_error(const struct dsm_error *error, const struct run *run) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    struct entry *entry = &entries[i];
    uint32_t free = FREE;
    if (!atomic_compare_exchange_strong(&entry->state, &free, FILLING)) continue;
    store_relaxed(&entry->left, 0);
    entry->error = *error;
    entry->run[0] = *run;
    entry->runs = 1;
    store_ordered(&entry->state, POSTED);
    return entry;
  }
  return NULL;
}

static void wait_done(struct entry *entry) {
  uint64_t start = dsm_now(), pause = dsm_worker.options.error_pause_ns, one = 1;
  int fd = dsm_worker.options.error_fd;
  if (fd >= 0 && write(fd, &one, sizeof one) < 0) { /* full: it is readable anyway */
  }
  for (;;) {
    uint32_t state = load_ordered(&entry->state);
    uint64_t waited = dsm_now() - start;
    if (state == DONE || waited >= pause) break;
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

/* Remember it with the thread's open error; mend what is too old to be of use. */
static void remember_run(struct entry *entry, const struct run *run) {
  struct run *place = &entry->run[entry->runs++ % RUNS];
  if (entry->runs > RUNS) mend_range(place->region, place->first, place->end);
  *place = *run;
}

void dsm_poison(struct dsm_region *region, uint64_t address, uint32_t status) {
  uint64_t thread = (uint64_t)syscall(SYS_gettid);
  struct entry *entry = open_entry(thread);
  uint64_t first = (address - region->address) / dsm_worker.os_page;
  struct run run = {region, first, first + 1};
  uint32_t state = load_ordered(&region->state);
  if (state == DSM_GONE) return; /* another region is there now: the instruction faults again */
  choose_run(&run, entry, state);
  int result = poison_run(&run, state);
  if (result == -ENOMEM && spend()) result = poison_run(&run, state);
  if (result == 0) return; /* closed meanwhile: likewise */
  if (result < 0) die("dsm: a page could not be served, and there is no memory map left to say so\n");
  add_relaxed(&dsm_worker.board->poisoned, 1);
  if (entry && is_open(entry)) { /* asked again: after it was handed over, this page would never be mended */
    remember_run(entry, &run);
    return;
  }
  struct dsm_error error = {.thread = thread, .address = address, .region = region->number, .status = status};
  error.page = (address - region->address) >> region->page_shift;
  entry = post_error(&error, &run);
  if (entry) {
    wait_done(entry);
  } else {
    die("dsm: more threads than can be told have touched pages that could not be served\n");
  }
}

int dsm_error_take(struct dsm_error *error) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    uint32_t posted = POSTED;
    if (load_relaxed(&entries[i].state) != POSTED) continue;
    *error = entries[i].error;
    if (atomic_compare_exchange_strong(&entries[i].state, &posted, TAKEN)) return 1;
  }
  return 0;
}

static struct entry *taken_entry(const struct dsm_error *error) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    const struct dsm_error *at = &entries[i].error;
    if (load_ordered(&entries[i].state) != TAKEN) continue;
    if (at->thread == error->thread && at->address == error->address) return &entries[i];
  }
  return NULL;
}

int dsm_error_done(const struct dsm_error *error) {
  struct entry *entry = taken_entry(error);
  if (!entry) return -ENOENT;
  store_ordered(&entry->state, DONE);
  dsm_futex_wake(&entry->state);
  uint64_t start = dsm_now();
  while (!load_ordered(&entry->left) && dsm_now() - start < LEAVE_NS) sched_yield();
  for (start = dsm_now(); dsm_now() - start < GRACE_NS;) sched_yield();
  mend_all();
  store_ordered(&entry->state, FREE);
  return 0;
}

/* Once a second: what could not be mended, and the maps that were spent. */
void dsm_poison_tend(void) {
  for (uint32_t i = 0; i < ERRORS; i++) {
    if (load_relaxed(&entries[i].state) != FREE) return;
  }
  mend_all();
  if (load_relaxed(&spent)) dsm_poison_reserve();
}

/* In a forked child: its threads are gone. */
void dsm_poison_forget(void) {
  for (uint32_t i = 0; i < ERRORS; i++) store_relaxed(&entries[i].state, FREE);
}
