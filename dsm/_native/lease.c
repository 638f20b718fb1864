/* Worker side: access that ends by itself.
 *
 * Owns when the service thread looks at leases.  `due` is the earliest end among the pages that are, or are about
 * to be, mapped under one; whoever maps such a page says so first, holding its lock.  The look itself forgets
 * `due` and then goes through the applied tables: a page that was locked before that is waited for and seen, one
 * that is locked later is noted anew.
 */
#include "internal.h"

#define NEVER UINT64_MAX
#define LOOKS_OF_A_GUARD 8 /* leases that end within an eighth of the guard end together, lest we look for each */

static _Atomic uint64_t due = NEVER;
static _Atomic uint64_t asleep_until; /* 0: the service thread is awake, and looks at `due` before it sleeps */

/* One of us sees what the other stored: `due` here, `asleep_until` there (dsm_lease_sleep). */
static void note(uint64_t end) {
  uint64_t old = load_ordered(&due);
  while (end < old) {
    if (!atomic_compare_exchange_weak(&due, &old, end)) continue;
    if (end < load_ordered(&asleep_until)) dsm_service_nudge();
    return;
  }
}

static uint64_t first_end(struct dsm_region *region, uint64_t page, uint64_t end) {
  uint64_t first = NEVER;
  for (; page < end; page++) {
    uint64_t lease = load_ordered(&region->leases[page]);
    if (lease < first) first = lease;
  }
  return first;
}

void dsm_lease_note(struct dsm_region *region, uint64_t page, uint64_t end) { note(first_end(region, page, end)); }

bool dsm_lease_over(struct dsm_region *region, uint64_t page, uint64_t end) {
  return first_end(region, page, end) <= dsm_now();
}

/* When the lease of a page ends that is mapped under one; 0: it is not. */
static uint64_t lease_of(struct dsm_region *region, uint64_t page) {
  uint8_t applied = load_ordered(&region->applied[page]);
  if (applied & DSM_LOCKED) {
    applied = dsm_page_lock(region, page);
    dsm_page_unlock(region, page, applied);
  }
  if ((applied & DSM_LEVEL) != DSM_READ || (load_ordered(&region->wanted[page]) & DSM_LEVEL) != DSM_READ) return 0;
  return load_ordered(&region->leases[page]);
}

static void count_late(uint64_t promised) {
  uint64_t now = dsm_now();
  if (now > promised) add_relaxed(&dsm_worker.board->lease_late_ns, now - promised);
}

/* Take away what ends until `time`; returns when the first of the rest ends. */
static uint64_t end_leases(struct dsm_region *region, uint64_t time) {
  uint64_t page = 0, first = NEVER;
  while ((page = dsm_next_mapped(region, page, region->pages)) < region->pages) {
    uint64_t lease = lease_of(region, page);
    if (lease == 0 || lease > time) {
      if (lease && lease < first) first = lease;
      page++;
      continue;
    }
    uint64_t end = page + 1;
    uint64_t earliest = lease;
    while (end < region->pages && (lease = lease_of(region, end)) && lease <= time) {
      if (lease < earliest) earliest = lease;
      end++;
    }
    dsm_lower_range(region, page, end - page, time); /* what was raised anew meanwhile is met again */
    count_late(earliest + region->lease_guard_ns);
  }
  return first;
}

uint64_t dsm_lease_look(void) {
  uint64_t next = load_ordered(&due);
  if (next == NEVER) return NEVER;
  uint64_t now = dsm_now();
  if (next > now) return next;
  store_ordered(&due, NEVER);
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    if (!dsm_region_enter(region, DSM_OPEN)) continue;
    if (region->leases) note(end_leases(region, now + region->lease_guard_ns / LOOKS_OF_A_GUARD));
    dsm_region_leave(region);
  }
  return load_ordered(&due);
}

bool dsm_lease_sleep(uint64_t until) {
  store_ordered(&asleep_until, until);
  fence_ordered();
  return load_ordered(&due) >= until;
}

void dsm_lease_awake(void) { store_ordered(&asleep_until, 0); }

void dsm_lease_forget(void) {
  store_ordered(&due, NEVER);
  store_ordered(&asleep_until, 0);
}
