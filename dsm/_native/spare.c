/* Worker side: memory maps held in reserve.
 *
 * Owns pages of alternating protection, each of which costs a map.  They are given up when a page must be
 * poisoned and the process has no map left: an error must always find room.
 */
#include "internal.h"

#include <sys/mman.h>

#define SPARE_PAGES 128

static uint8_t *spare;
static _Atomic int spent;

static void occupy(void) {
  for (uint64_t i = 1; i < SPARE_PAGES; i += 2) mprotect(spare + i * dsm_worker.os_page, dsm_worker.os_page, PROT_READ);
  store_release(&spent, 0);
}

int dsm_poison_prepare(void) {
  if (spare) return 0;
  void *map = mmap(NULL, SPARE_PAGES * dsm_worker.os_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return -errno;
  spare = map;
  occupy();
  return 0;
}

/* Take the maps again that were given up; there may be room now. */
void dsm_poison_reserve(void) {
  if (spare && load_relaxed(&spent)) occupy();
}

/* SIGNAL-SAFE: one exchange and one mprotect. */
bool dsm_spare_spend(void) {
  if (!spare || atomic_exchange(&spent, 1)) return false;
  return mprotect(spare, SPARE_PAGES * dsm_worker.os_page, PROT_NONE) == 0;
}
