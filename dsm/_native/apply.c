/* Worker side: page locks, and bringing the maps to what the wanted table says.
 *
 * Owns every change of an applied byte but those of poison (cover.c, mend.c) and of merging.  All of it is SIGNAL-SAFE,
 * runs with all signals masked and inside dsm_region_enter / leave.  A page lock is DSM_LOCKED of the page's applied
 * byte; whoever locks a page reads wanted afterwards, never before, so that a grant and a later revocation cannot be
 * applied in the wrong order (layout.h).  A failed mprotect may have done a part: the applied byte then keeps the
 * higher of the two levels, so that the kernel never allows more than the byte says.
 */
#include "internal.h"

#include <sys/mman.h>

#define AROUND_PAGES 1024                      /* a fault maps at most so many pages of the same level ... */
#define AROUND_BYTES (UINT64_C(4) << 20)       /* ... and bytes, in one mprotect */
#define RANGE_PAGES 4096                       /* pages locked at once by a range operation */
#define ATTEMPTS 8                             /* merges before memory maps are said to have run out */
#define MERGE_FIRST 64                         /* maps the first merge after an ENOMEM is to free; doubles */
#define MAPPED_BITS UINT64_C(0x8383838383838383) /* DSM_LOCKED | DSM_LEVEL of eight pages */
#define LEVEL_BITS UINT64_C(0x0303030303030303)  /* DSM_LEVEL of eight pages */

uint8_t dsm_page_lock(struct dsm_region *region, uint64_t page) {
  uint8_t old;
  /* Sequentially consistent, as is the reading of wanted that follows: the manager stores wanted before it reads
   * the lock, so one of us sees the other. */
  while ((old = atomic_fetch_or(&region->applied[page], DSM_LOCKED)) & DSM_LOCKED) dsm_pause();
  return old;
}

void dsm_page_unlock(struct dsm_region *region, uint64_t page, uint8_t applied) {
  /* Release is enough: it says that the mprotect is over.  Reading a stale lock or level, the manager only asks. */
  store_release(&region->applied[page], applied & (uint8_t)~DSM_LOCKED);
}

/* What counts of the wanted level at `time`, which matters only where there are leases. */
static uint8_t wanted_level(struct dsm_region *region, uint64_t page, uint64_t time) {
  uint8_t level = load_ordered(&region->wanted[page]) & DSM_LEVEL;
  if (level == DSM_READ && region->leases && load_ordered(&region->leases[page]) <= time) return DSM_NONE;
  return level;
}

static uint64_t lease_time(const struct dsm_region *region) { return region->leases ? dsm_now() : 0; }

int dsm_protect(struct dsm_region *region, uint64_t page, uint64_t count, uint32_t level) {
  int protection = level == DSM_WRITE ? PROT_READ | PROT_WRITE : level == DSM_READ ? PROT_READ : PROT_NONE;
  add_relaxed(&dsm_worker.board->mprotects, 1);
  void *start = (void *)(region->address + (page << region->page_shift));
  return mprotect(start, count << region->page_shift, protection) == 0 ? 0 : -errno;
}

uint64_t dsm_next_mapped(struct dsm_region *region, uint64_t page, uint64_t end) {
  while (page < end) {
    if (page % 8 == 0 && end - page >= 8) {
      /* Eight at once: tables are page-aligned, and a torn view of bytes that change is as good as an old one. */
      uint64_t word = __atomic_load_n((const uint64_t *)(const void *)(region->applied + page), __ATOMIC_SEQ_CST);
      if (!(word & MAPPED_BITS)) {
        page += 8;
        continue;
      }
    }
    if (load_ordered(&region->applied[page]) & (DSM_LOCKED | DSM_LEVEL)) return page;
    page++;
  }
  return end;
}

/* No poison is left in [page, end), all locked by us: who gets a page sees its frame, whoever else failed on it. */
static int uncover(struct dsm_region *region, uint64_t page, uint64_t end) {
  int result = 0;
  for (; page < end && result == 0; page++) {
    uint8_t applied = load_relaxed(&region->applied[page]);
    if (!(applied & DSM_POISONED)) continue;
    result = dsm_uncover(region, page);
    if (result == 0) store_relaxed(&region->applied[page], applied & (DSM_PINNED | DSM_LOCKED));
  }
  return result;
}

/* mprotect [page, end), all locked by us, to `level`; store what holds then and unlock.  `pin` as in
 * dsm_region_apply. */
static int change_locked(struct dsm_region *region, uint64_t page, uint64_t end, uint8_t level, int pin) {
  int64_t before = dsm_borders(region, page, end);
  bool leased = level == DSM_READ && region->leases;
  if (leased) dsm_lease_note(region, page, end);
  int result = level != DSM_NONE && load_relaxed(&region->covered) ? uncover(region, page, end) : 0;
  if (result == 0) result = dsm_protect(region, page, end - page, level);
  if (leased && result == 0 && dsm_lease_over(region, page, end)) { /* this thread had to wait for its processor */
    result = dsm_protect(region, page, end - page, DSM_NONE);
    if (result == 0) level = DSM_NONE;
  }
  for (uint64_t p = page; p < end; p++) {
    uint8_t old = load_relaxed(&region->applied[p]);
    uint8_t now = result < 0 && (old & DSM_LEVEL) > level ? old & DSM_LEVEL : level;
    uint8_t kept = old & DSM_POISONED;
    kept |= pin < 0 ? old & DSM_PINNED : pin ? DSM_PINNED : 0;
    /* The levels of all first, their locks below: borders are counted while nobody else changes them. */
    store_relaxed(&region->applied[p], now | kept | DSM_LOCKED);
  }
  atomic_fetch_add(&dsm_worker.maps, dsm_borders(region, page, end) - before);
  for (uint64_t p = page; p < end; p++) dsm_page_unlock(region, p, load_relaxed(&region->applied[p]));
  return result;
}

/* Lock `page` if it can join a run that is raised to `level`: only tried, as we hold locks already. */
static bool join_run(struct dsm_region *region, uint64_t page, uint8_t level, uint64_t time) {
  uint8_t applied = load_relaxed(&region->applied[page]);
  if ((applied & DSM_LOCKED) || (applied & DSM_LEVEL) >= level) return false;
  if (load_relaxed(&region->wanted[page]) != level) return false; /* nor marked: its first use must trap */
  if (!atomic_compare_exchange_strong(&region->applied[page], &applied, applied | DSM_LOCKED)) return false;
  if (load_ordered(&region->wanted[page]) == level && wanted_level(region, page, time) == level) return true;
  dsm_page_unlock(region, page, applied);
  return false;
}

static bool take_mark(struct dsm_region *region, uint64_t page) {
  if (!(load_relaxed(&region->wanted[page]) & DSM_MARK)) return false;
  return atomic_fetch_and(&region->wanted[page], (uint8_t)~DSM_MARK) & DSM_MARK;
}

static enum dsm_applied try_apply(struct dsm_region *region, uint64_t page, uint32_t need, bool *mark) {
  dsm_page_lock(region, page);
  uint64_t time = lease_time(region);
  uint8_t level = wanted_level(region, page, time);
  if ((level & need) != need) {
    dsm_page_unlock(region, page, load_relaxed(&region->applied[page]));
    return DSM_MISSING;
  }
  uint64_t end = page + 1;
  if (level != DSM_NONE) {
    uint64_t most = AROUND_BYTES >> region->page_shift;
    if (most > AROUND_PAGES) most = AROUND_PAGES;
    if (most > region->pages - page) most = region->pages - page;
    while (end < page + most && join_run(region, end, level, time)) end++;
  }
  /* Also when applied says that all is well: after a part of a failed change the kernel may allow less. */
  if (change_locked(region, page, end, level, -1) < 0) return DSM_EXHAUSTED;
  if (take_mark(region, page)) *mark = true;
  return DSM_APPLIED;
}

enum dsm_applied dsm_apply_for(struct dsm_region *region, uint64_t page, uint32_t need, bool *mark) {
  dsm_merge_if_many();
  for (uint32_t attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (!dsm_region_enter(region, DSM_OPEN)) return DSM_SHUT;
    enum dsm_applied result = try_apply(region, page, need, mark);
    dsm_region_leave(region);
    if (result != DSM_EXHAUSTED) return result;
    dsm_merge(MERGE_FIRST << attempt);
  }
  return DSM_EXHAUSTED;
}

/* Lock the pages from `page` on that want the same level; only those that have more, if `lower`. */
static uint64_t lock_run(struct dsm_region *region, uint64_t page, uint64_t end, uint8_t level, bool lower,
                         uint64_t time) {
  if (end - page > RANGE_PAGES) end = page + RANGE_PAGES;
  for (page++; page < end; page++) {
    uint8_t applied = dsm_page_lock(region, page);
    if (wanted_level(region, page, time) == level && (!lower || (applied & DSM_LEVEL) > level)) continue;
    dsm_page_unlock(region, page, applied);
    break;
  }
  return page;
}

int dsm_apply_range(struct dsm_region *region, uint64_t page, uint64_t count, int pin) {
  uint64_t end = page + count;
  uint32_t attempt = 0;
  while (page < end) {
    dsm_merge_if_many();
    dsm_page_lock(region, page);
    uint64_t time = lease_time(region);
    uint8_t level = wanted_level(region, page, time);
    uint64_t behind = lock_run(region, page, end, level, false, time);
    if (change_locked(region, page, behind, level, pin) < 0) {
      if (++attempt == ATTEMPTS) return -ENOMEM;
      dsm_merge(MERGE_FIRST << attempt);
      continue;
    }
    for (; page < behind; page++) {
      if (take_mark(region, page)) dsm_touched(region->number, page);
    }
  }
  return 0;
}

/* Nothing of the region stays accessible: needs no further map, as it ends where the region ends.  A revocation that
 * failed must not be acknowledged. */
static void drop_all(struct dsm_region *region) {
  for (uint64_t p = 0; p < region->pages; p++) dsm_page_lock(region, p);
  if (change_locked(region, 0, region->pages, DSM_NONE, -1) < 0) dsm_die("dsm: access could not be taken away\n");
}

/* The first page from `page` on that has more than is wanted, or that somebody is just changing.  One that is not
 * locked and has no more needs no lock to be passed over: whoever locks it later reads wanted behind this. */
static uint64_t next_to_lower(struct dsm_region *region, uint64_t page, uint64_t end, uint64_t time) {
  while (page < end) {
    if (page % 8 == 0 && end - page >= 8) {
      uint64_t word = __atomic_load_n((const uint64_t *)(const void *)(region->applied + page), __ATOMIC_SEQ_CST);
      uint64_t wanted = __atomic_load_n((const uint64_t *)(const void *)(region->wanted + page), __ATOMIC_SEQ_CST);
      /* Levels are nested sets of bits. */
      if (region->leases) wanted = 0; /* what is wanted may be over */
      if (!(word & MAPPED_BITS & ~(wanted & LEVEL_BITS))) {
        page += 8;
        continue;
      }
    }
    uint8_t applied = load_ordered(&region->applied[page]);
    if ((applied & DSM_LOCKED) || (applied & DSM_LEVEL) > wanted_level(region, page, time)) return page;
    page++;
  }
  return end;
}

void dsm_lower_range(struct dsm_region *region, uint64_t page, uint64_t count, uint64_t time) {
  if (page >= region->pages) return;
  uint64_t end = count > region->pages - page ? region->pages : page + count;
  uint32_t attempt = 0;
  fence_ordered(); /* between having learnt of the revocation and reading applied: see dsm_page_lock */
  while ((page = next_to_lower(region, page, end, time)) < end) {
    uint8_t applied = dsm_page_lock(region, page);
    uint8_t level = wanted_level(region, page, time);
    if ((applied & DSM_LEVEL) <= level) {
      dsm_page_unlock(region, page++, applied);
      continue;
    }
    uint64_t behind = lock_run(region, page, end, level, true, time);
    if (change_locked(region, page, behind, level, -1) == 0) {
      page = behind;
    } else if (++attempt < ATTEMPTS) {
      dsm_merge(MERGE_FIRST << attempt);
    } else {
      drop_all(region); /* a revocation never fails */
      return;
    }
  }
}
