/* Worker side: what fork leaves to the child.
 *
 * Owns the at-fork handlers.  The maps of regions, tables and boards are MADV_DONTFORK: a child that kept
 * them would read and write the parent's memory untrapped.  In the child every region's addresses become
 * a closed reservation, so that old arrays stay valid addresses until the child starts and maps anew.
 * Locks that other threads of the parent held are reset; the one mutex is held across the fork.
 */
#include "internal.h"

#include <pthread.h>
#include <sys/mman.h>

static void reset_region(struct dsm_region *region) {
  uint64_t bytes = region->end - region->address;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  store_ordered(&region->busy, 0);
  store_ordered(&region->poisoned, 0);
  if (load_relaxed(&region->state) != DSM_CLOSED) { /* one that the parent had closed keeps its reason */
    store_ordered(&region->status, load_relaxed(&dsm_worker.status_lost));
  }
  store_ordered(&region->state, DSM_CLOSED);
  region->leases = NULL;
  region->wanted = region->applied = NULL; /* not inherited: there is nothing to unmap */
  region->shadow = 0;
  mmap((void *)region->address, bytes, PROT_NONE, flags, -1, 0);
}

static void in_child(void) {
  dsm_mutex_renew();
  if (!dsm_worker.board) return;
  store_ordered(&dsm_worker.forked, 1);
  store_ordered(&dsm_worker.ended, 1);
  store_ordered(&dsm_worker.started, 0);
  store_ordered(&dsm_worker.maps, 0);
  dsm_worker.options.bell_fd = dsm_worker.options.nudge_fd = -1; /* the parent's: not ours to ring */
  dsm_worker.options.error_fd = dsm_worker.options.manager_pidfd = -1;
  dsm_empty_boards();
  dsm_service_forget();
  dsm_merge_reset();
  dsm_poison_forget();
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    reset_region(region);
  }
}

/* Once a process and its children. */
int dsm_fork_prepare(void) {
  static bool registered;
  if (registered) return 0;
  int result = pthread_atfork(dsm_mutex_hold, dsm_mutex_release, in_child);
  registered = result == 0;
  return -result;
}
