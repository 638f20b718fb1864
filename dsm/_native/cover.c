/* Worker side: poison over the pages of a region, and taking it away again.
 *
 * Poison is private memory, all 0xFF, so that floats read NaN.  Owns DSM_POISONED of an open region's applied bytes:
 * a page that has it is uncovered before it is mapped for anybody, and none is covered that is there with the level
 * that the failed access needed.  All of it but dsm_region_mark is SIGNAL-SAFE, runs with every signal masked and
 * inside dsm_region_enter / leave.
 */
#include "internal.h"

#include <sys/mman.h>

/* Complete before it is there: moved into its place, so that no thread sees it half filled. */
static int place(uint64_t address, uint64_t bytes) {
  void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (page == MAP_FAILED) return -errno;
  memset(page, 0xff, bytes);
  if (mremap(page, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)address) != MAP_FAILED) return 1;
  int result = -errno;
  munmap(page, bytes);
  return result;
}

int dsm_cover(struct dsm_region *region, uint64_t first, uint64_t end) {
  uint64_t os_page = dsm_worker.os_page;
  return place(region->address + first * os_page, (end - first) * os_page);
}

int dsm_cover_open(struct dsm_region *region, uint64_t first, uint32_t need) {
  uint64_t page = first * dsm_worker.os_page >> region->page_shift;
  uint8_t applied = dsm_page_lock(region, page);
  bool poisoned = applied & DSM_POISONED, came = need && (applied & need) == need;
  int result = 0;
  if (!came || poisoned) {
    /* Both counts are told before there is poison: see dsm_region_mark. */
    atomic_fetch_add(&region->covered, !poisoned);
    atomic_fetch_add(&region->coverings, 1);
    result = dsm_cover(region, first, first + 1);
    if (result == 1) {
      applied |= DSM_POISONED;
    } else {
      atomic_fetch_sub(&region->covered, !poisoned);
    }
  }
  dsm_page_unlock(region, page, applied);
  return result;
}

/* Whoever reads poison between two calls reads it behind both counts.  Either the first call sees a page covered, or
 * the second another number of coverings; a region that is mapped in the place of a closed one counts on. */
int64_t dsm_region_mark(uint64_t address) {
  struct dsm_region *region = dsm_registry_find(address);
  if (!region) return -1;
  uint64_t coverings = load_ordered(&region->coverings);
  if (load_ordered(&region->covered) || load_ordered(&region->state) != DSM_OPEN) return -1;
  return (int64_t)coverings;
}

/* A fresh map of the page's frame in place of whatever is there.  mremap of a shared map with an old size of 0 makes a
 * second map of it (mremap(2)). */
int dsm_uncover(struct dsm_region *region, uint64_t page) {
  uint64_t offset = page << region->page_shift, bytes = UINT64_C(1) << region->page_shift;
  void *target = (void *)(region->address + offset);
  void *source = (void *)(region->shadow + offset);
  if (mremap(source, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) return -errno;
  madvise(target, bytes, MADV_DONTFORK);
  atomic_fetch_sub(&region->covered, 1);
  return 0;
}
