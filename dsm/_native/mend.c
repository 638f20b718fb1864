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

/* A page that was given to somebody since it was poisoned is left alone. */
static int mend_open(struct dsm_region *region, uint64_t page) {
  uint8_t applied = dsm_page_lock(region, page);
  int result = applied & DSM_POISONED ? dsm_uncover(region, page) : 0;
  if (result == 0 && applied & DSM_POISONED) {
    applied &= DSM_PINNED | DSM_LEVEL;
    bool stays = applied & DSM_PINNED && dsm_protect(region, page, 1, applied & DSM_LEVEL) == 0;
    if (!stays) applied &= DSM_PINNED;
  }
  dsm_page_unlock(region, page, applied);
  return result;
}

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
  for (; page < behind && result == 0; page++) result = mend_open(region, page);
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
