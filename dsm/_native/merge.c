/* Worker side: how many memory maps our regions cost, and giving some back.
 *
 * Every border between two levels is a map of the kernel's (vm.max_map_count bounds them).  Owns the
 * cursor that goes round the regions like the hand of a clock: fragmented stretches are made inaccessible,
 * which joins their maps into one; their pages come back by local faults, many at once where the manager
 * grants the same level.  Pinned pages are left alone.  All of it is SIGNAL-SAFE.
 */
#include "internal.h"

#define PART_PAGES 1024 /* pages locked at once */
#define LONG_RUN 64     /* a longer run of one level costs one map and is worth it */
#define PATIENCE_NS 10000000u

static _Atomic int merging;
static uint64_t cursor; /* of whoever set `merging` */
static _Atomic uint64_t useless_until; /* nothing was found to merge: looking again at each fault would cost more */

static uint32_t level_of(struct dsm_region *region, uint64_t page) {
  return load_relaxed(&region->applied[page]) & DSM_LEVEL;
}

/* Borders inside [page, end) and at both its ends. */
int64_t dsm_borders(struct dsm_region *region, uint64_t page, uint64_t end) {
  int64_t borders = 0;
  uint32_t last = page ? level_of(region, page - 1) : level_of(region, page);
  for (uint64_t p = page; p < end + (end < region->pages); p++) {
    uint32_t level = level_of(region, p);
    borders += level != last;
    last = level;
  }
  return borders;
}

static uint64_t run_end(struct dsm_region *region, uint64_t page, uint64_t end) {
  uint32_t level = level_of(region, page);
  while (page < end && level_of(region, page) == level) page++;
  return page;
}

/* The stretch from `page` on that is to be joined: short runs, no pinned page. */
static uint64_t stretch_end(struct dsm_region *region, uint64_t page, uint64_t longest) {
  uint64_t limit = region->pages - page > PART_PAGES ? page + PART_PAGES : region->pages;
  uint64_t end = page;
  while (end < limit) {
    uint64_t behind = run_end(region, end, region->pages - end > longest ? end + longest + 1 : region->pages);
    if (behind - end > longest || behind > limit) break;
    for (uint64_t p = end; p < behind; p++) {
      if (load_relaxed(&region->applied[p]) & DSM_PINNED) return end;
    }
    end = behind;
  }
  return end;
}

/* Make [page, end) inaccessible.  The borders that this saves. */
static int64_t join(struct dsm_region *region, uint64_t page, uint64_t end) {
  uint64_t locked = page;
  for (; locked < end; locked++) {
    uint8_t applied = dsm_page_lock(region, locked);
    if (!(applied & DSM_PINNED)) continue;
    dsm_page_unlock(region, locked, applied); /* pinned since we looked */
    break;
  }
  if (locked == page) return 0;
  int64_t before = dsm_borders(region, page, locked);
  bool done = dsm_protect(region, page, locked - page, DSM_NONE) == 0;
  if (done) {
    for (uint64_t p = page; p < locked; p++) {
      uint8_t kept = load_relaxed(&region->applied[p]) & DSM_POISONED;
      store_relaxed(&region->applied[p], DSM_NONE | kept | DSM_LOCKED);
    }
  }
  int64_t saved = before - dsm_borders(region, page, locked);
  for (uint64_t p = page; p < locked; p++) dsm_page_unlock(region, p, load_relaxed(&region->applied[p]));
  return saved;
}

/* One stretch of one region; the page to go on at. */
static uint64_t merge_part(struct dsm_region *region, uint64_t page, uint64_t longest, int64_t *saved) {
  page = dsm_next_mapped(region, page, region->pages);
  if (page == region->pages) return page;
  uint64_t end = stretch_end(region, page, longest);
  if (end == page) { /* a long run, or pinned */
    end = run_end(region, page, region->pages);
    for (uint64_t p = page; p < end; p++) {
      if (!(load_relaxed(&region->applied[p]) & DSM_PINNED)) continue;
      return p + 1;
    }
    return end;
  }
  *saved += join(region, page, end);
  return end;
}

/* The hand goes at most once round. */
static int64_t go_round(int64_t target, uint64_t longest) {
  int64_t saved = 0;
  uint64_t start = cursor;
  for (bool wrapped = false; saved < target;) {
    struct dsm_region *region = dsm_registry_next(cursor);
    if (!region || (wrapped && region->address >= start)) {
      if (wrapped) break;
      wrapped = true;
      cursor = 0;
      continue;
    }
    uint64_t next = region->end;
    if (dsm_region_enter(region, DSM_OPEN)) {
      uint64_t page = cursor > region->address ? (cursor - region->address) >> region->page_shift : 0;
      next = region->address + (merge_part(region, page, longest, &saved) << region->page_shift);
      dsm_region_leave(region);
    }
    cursor = next;
    if (wrapped && cursor >= start) break;
  }
  return saved;
}

/* The estimate adds up what changes at borders whose other side may be changing, too: begin anew. */
static void recount(void) {
  int64_t maps = 0;
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    if (!dsm_region_enter(region, DSM_OPEN)) continue;
    maps += DSM_MAPS_OF_A_REGION + dsm_borders(region, 0, region->pages);
    dsm_region_leave(region);
  }
  store_relaxed(&dsm_worker.maps, maps);
}

/* Free about `target` maps.  Returns how many it freed; 0 when another thread was at it and is done. */
uint64_t dsm_merge(uint64_t target) {
  if (atomic_exchange(&merging, 1)) {
    while (load_acquire(&merging)) dsm_pause();
    return 0;
  }
  int64_t saved = go_round((int64_t)target, LONG_RUN);
  if (saved == 0) saved = go_round((int64_t)target, UINT64_MAX / 2);
  if (saved < (int64_t)target) {
    recount();
    store_relaxed(&useless_until, dsm_now() + PATIENCE_NS);
  } else {
    atomic_fetch_sub(&dsm_worker.maps, saved);
  }
  add_relaxed(&dsm_worker.board->merges, (uint64_t)saved);
  store_release(&merging, 0);
  return (uint64_t)saved;
}

void dsm_merge_if_many(void) {
  int64_t limit = (int64_t)dsm_worker.options.map_limit;
  if (load_relaxed(&dsm_worker.maps) + 2 <= limit) return;
  if (dsm_now() >= load_relaxed(&useless_until)) dsm_merge((uint64_t)limit / 32 + 8);
}

/* In a forked child: whoever was merging is not there. */
void dsm_merge_reset(void) { store_ordered(&merging, 0); }
