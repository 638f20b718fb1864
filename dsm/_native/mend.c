/* Worker side: bringing poisoned pages back to what they must be, so that their next touch traps again.
 *
 * An open region gets a fresh, inaccessible map of its frames there, a closed one its empty reservation.  Owns
 * the note of each region of what could not be mended for want of memory maps; it is tried again once a second.
 * All of it is SIGNAL-SAFE and runs with every signal masked.
 */
#include "internal.h"

#include <sys/mman.h>

/* Note OS pages [first, end). */
static void mend_later(struct dsm_region *region, uint64_t first, uint64_t end) {
  uint64_t old = load_relaxed(&region->poisoned), new;
  do {
    uint64_t low = old & UINT32_MAX, high = old >> 32;
    if (!old || first < low) low = first;
    if (end > high) high = end;
    new = low | high << 32;
  } while (!atomic_compare_exchange_weak(&region->poisoned, &old, new));
}

/* [page, end) of an open region, all locked by us: fresh inaccessible maps of the frames in place
 * of whatever is there.  mremap of a shared map with an old size of 0 makes a second map of it (mremap(2)). */
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

/* OS pages [first, end).  What cannot be mended now stays noted for the next time. */
void dsm_mend(struct dsm_region *region, uint64_t first, uint64_t end) {
  for (;;) {
    uint32_t state = load_ordered(&region->state);
    if (state == DSM_GONE) return;
    if (state == DSM_CLOSING || !dsm_region_enter(region, state)) { /* it is mended as a closed one in a moment */
      dsm_pause();
      continue;
    }
    if (mend_entered(region, state, first, end) < 0) mend_later(region, first, end);
    dsm_region_leave(region);
    return;
  }
}

/* What could not be mended when it was time.  Poison that a thread needs still may go too: it comes again. */
void dsm_mend_rest(void) {
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    if (!load_relaxed(&region->poisoned)) continue;
    uint64_t range = atomic_exchange(&region->poisoned, 0);
    if (range) dsm_mend(region, range & UINT32_MAX, range >> 32);
  }
}
