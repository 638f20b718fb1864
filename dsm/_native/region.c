/* Worker side: mapping a region, closing it, mending it.
 *
 * Owns the maps of a region: the one that programs touch, a shadow of it that nobody can (poisoned pages
 * are mended from it without a descriptor), and the two tables.  A closed region keeps its addresses as
 * an empty reservation; a later region of ours may take them, nobody else can.
 *
 * Between two regions lies a gap.  When both are closed it is reserved too (a bridge), so that the kernel joins
 * their maps: a program that makes and destroys regions without end needs one map for all of them.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* SIGNAL-SAFE.  Whoever changes the state first says so and then waits until `busy` is zero: one of the two sees the
 * other. */
bool dsm_region_enter(struct dsm_region *region, uint32_t state) {
  atomic_fetch_add(&region->busy, 1);
  if (load_ordered(&region->state) == state) return true;
  atomic_fetch_sub(&region->busy, 1);
  return false;
}

/* SIGNAL-SAFE. */
void dsm_region_leave(struct dsm_region *region) { atomic_fetch_sub(&region->busy, 1); }

static void set_state(struct dsm_region *region, uint32_t state) {
  store_ordered(&region->state, state);
  while (load_ordered(&region->busy)) dsm_pause();
}

static void *reserve(uint64_t address, uint64_t bytes, int fixed) {
  return mmap((void *)address, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
}

#define BRIDGE_BYTES (UINT64_C(4) << 20) /* the widest gap between regions that were created one after the other */

/* Inside dsm_lock.  Where somebody else is there remains no bridge. */
static void build_bridge(const struct dsm_region *before, struct dsm_region *behind) {
  if (!before || !behind || behind->bridge || before->end >= behind->address) return;
  uint64_t gap = behind->address - before->end;
  if (gap > BRIDGE_BYTES || load_ordered(&before->state) != DSM_CLOSED) return;
  if (load_ordered(&behind->state) != DSM_CLOSED) return;
  void *map = reserve(before->end, gap, MAP_FIXED_NOREPLACE);
  if (map == MAP_FAILED) return;
  if ((uint64_t)map == before->end) {
    behind->bridge = gap;
  } else { /* before Linux 4.17 */
    munmap(map, gap);
  }
}

/* Inside dsm_lock: no bridge is left between the two addresses. */
static void break_bridges(uint64_t low, uint64_t high) {
  struct dsm_region *region = dsm_registry_next(low);
  for (; region && region->address - region->bridge < high; region = dsm_registry_next(region->end)) {
    if (!region->bridge || region->address < low) continue; /* whoever begins at `low` is displaced, too */
    munmap((void *)(region->address - region->bridge), region->bridge);
    region->bridge = 0;
  }
}

static void unmap_helpers(struct dsm_region *region) {
  if (region->wanted) munmap((void *)region->wanted, DSM_WANTED_BYTES(region->pages, region->lease_guard_ns));
  if (region->applied) munmap((void *)region->applied, region->pages);
  if (region->shadow) munmap((void *)region->shadow, region->end - region->address);
  region->wanted = region->applied = NULL;
  region->leases = NULL;
  region->shadow = 0;
}

/* A table that was used before says what another map allowed; this one allows nothing yet. */
static void clear_file(int fd, uint64_t bytes) {
  if (lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO) return; /* the usual case: it is new, one hole */
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0) return;
  static const uint8_t zeros[4096];
  for (uint64_t at = 0; at < bytes; at += sizeof zeros) {
    uint64_t part = bytes - at < sizeof zeros ? bytes - at : sizeof zeros;
    if (pwrite(fd, zeros, part, (off_t)at) < 0) return;
  }
}

static int map_helpers(struct dsm_region *region, int frames_fd, int wanted_fd, int applied_fd) {
  uint64_t bytes = region->end - region->address;
  struct stat frames;
  if (fstat(frames_fd, &frames) != 0) return -errno;
  if ((uint64_t)frames.st_size < bytes) return -EINVAL;
  clear_file(applied_fd, region->pages);
  uint64_t wanted_bytes = DSM_WANTED_BYTES(region->pages, region->lease_guard_ns);
  region->wanted = dsm_map_file(wanted_fd, wanted_bytes, wanted_bytes, 1);
  if (!region->wanted) return -errno;
  if (region->lease_guard_ns) region->leases = (void *)(region->wanted + DSM_LEASES_AT(region->pages));
  region->applied = dsm_map_file(applied_fd, region->pages, region->pages, 1);
  if (!region->applied) return -errno;
  void *shadow = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, frames_fd, 0);
  if (shadow == MAP_FAILED) return -errno;
  madvise(shadow, bytes, MADV_DONTFORK);
  region->shadow = (uint64_t)shadow;
  return 0;
}

static int map_frames(const struct dsm_region *region, int frames_fd) {
  uint64_t bytes = region->end - region->address;
  void *map = mmap((void *)region->address, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                   frames_fd, 0);
  if (map == MAP_FAILED) return -errno;
  if ((uint64_t)map != region->address) { /* before Linux 4.17 the flag was only a hint */
    munmap(map, bytes);
    return -EEXIST;
  }
  madvise(map, bytes, MADV_DONTFORK);
  return 0;
}

/* Closed reservations that a new region takes the place of. */
struct displacement {
  struct dsm_region **gone;
  uint32_t gone_count;
  struct dsm_region *come[3]; /* the new region, and what remains of the first and last one */
  uint32_t come_count;
};

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static int find_displaced(struct dsm_region *region, struct displacement *change) {
  struct dsm_region *old = dsm_registry_next(region->address);
  for (; old && old->address < region->end; old = dsm_registry_next(old->end)) {
    if (load_ordered(&old->state) != DSM_CLOSED) return -EEXIST;
    struct dsm_region **gone = realloc(change->gone, (change->gone_count + 1) * sizeof(struct dsm_region *));
    if (!gone) return -ENOMEM;
    change->gone = gone;
    gone[change->gone_count++] = old;
    region->coverings = larger(region->coverings, load_relaxed(&old->coverings) + 1); /* see dsm_region_mark */
  }
  return 0;
}

/* What a displaced reservation keeps on one side of the new region. */
static int keep_rest(struct displacement *change, const struct dsm_region *old, uint64_t from, uint64_t to) {
  if (from >= to) return 0;
  struct dsm_region *rest = dsm_region_record(old->number, from, to, old->page_shift);
  if (!rest) return -ENOMEM;
  store_relaxed(&rest->state, DSM_CLOSED);
  store_relaxed(&rest->status, load_relaxed(&old->status));
  store_relaxed(&rest->coverings, load_relaxed(&old->coverings));
  if (from == old->address) rest->bridge = old->bridge;
  change->come[change->come_count++] = rest;
  return 0;
}

/* Take the addresses, from our own closed reservations too; give those back when somebody else is there. */
static int take_addresses(struct dsm_region *region, int frames_fd, struct displacement *change) {
  int result = 0;
  break_bridges(region->address, region->end);
  for (uint32_t i = 0; i < change->gone_count && result == 0; i++) {
    const struct dsm_region *old = change->gone[i];
    result = keep_rest(change, old, old->address, region->address);
    if (result == 0) result = keep_rest(change, old, region->end, old->end);
  }
  if (result < 0) return result;
  for (uint32_t i = 0; i < change->gone_count; i++) {
    struct dsm_region *old = change->gone[i];
    set_state(old, DSM_GONE);
    uint64_t low = larger(old->address, region->address), high = smaller(old->end, region->end);
    munmap((void *)low, high - low);
  }
  result = map_frames(region, frames_fd);
  if (result == 0) {
    for (uint32_t i = 1; i < change->come_count; i++) { /* without poison: the old record's is mended no more */
      reserve(change->come[i]->address, change->come[i]->end - change->come[i]->address, MAP_FIXED);
    }
    return 0;
  }
  for (uint32_t i = 0; i < change->gone_count; i++) {
    struct dsm_region *old = change->gone[i];
    uint64_t low = larger(old->address, region->address), high = smaller(old->end, region->end);
    reserve(low, high - low, MAP_FIXED_NOREPLACE);
    set_state(old, DSM_CLOSED);
  }
  return result;
}

static int map_locked(struct dsm_region *region, int frames_fd, int wanted_fd, int applied_fd) {
  if (!dsm_worker_runs()) return -ESRCH; /* asked again inside the lock: nothing is mapped once all was closed */
  const struct dsm_region *same = dsm_registry_number(region->number);
  if (same && load_ordered(&same->state) == DSM_OPEN) return -EALREADY;
  struct displacement change = {.gone = NULL, .gone_count = 0, .come_count = 1};
  change.come[0] = region;
  int result = find_displaced(region, &change);
  if (result == 0) result = dsm_registry_reserve(3);
  if (result == 0) result = map_helpers(region, frames_fd, wanted_fd, applied_fd);
  if (result == 0) result = take_addresses(region, frames_fd, &change);
  if (result < 0) {
    unmap_helpers(region);
    for (uint32_t i = 1; i < change.come_count; i++) free(change.come[i]); /* nobody has seen them yet */
    free(change.gone);
    return result;
  }
  dsm_registry_change(change.gone, change.gone_count, change.come, change.come_count);
  free(change.gone);
  atomic_fetch_add(&dsm_worker.maps, DSM_MAPS_OF_A_REGION);
  if (load_ordered(&dsm_worker.lost)) dsm_close_locked(region, load_relaxed(&dsm_worker.status_lost));
  return 0;
}

int dsm_region_map(uint32_t number, uint64_t address, uint64_t pages, uint32_t page_shift, int frames_fd, int wanted_fd,
                   int applied_fd, uint64_t lease_guard_ns) {
  if (!dsm_worker_runs()) return -ESRCH;
  if (page_shift < 12 || page_shift > 21 || UINT64_C(1) << page_shift < dsm_worker.os_page) return -EINVAL;
  uint64_t page_bytes = UINT64_C(1) << page_shift;
  if (pages == 0 || address == 0 || address % page_bytes || pages > (UINT64_C(1) << 47) >> page_shift) return -EINVAL;
  struct dsm_region *region = dsm_region_record(number, address, address + (pages << page_shift), page_shift);
  if (!region) return -ENOMEM;
  region->lease_guard_ns = lease_guard_ns;
  sigset_t old;
  dsm_lock(&old);
  int result = map_locked(region, frames_fd, wanted_fd, applied_fd);
  if (result == 0 && lease_guard_ns) dsm_service_hurry();
  dsm_unlock(&old);
  if (result < 0) free(region);
  return result;
}

/* Nobody has access any more.  Without a memory map for the reservation the frames stay below it. */
static void shut(const struct dsm_region *region) {
  uint64_t bytes = region->end - region->address;
  if (reserve(region->address, bytes, MAP_FIXED) != MAP_FAILED) return;
  if (mprotect((void *)region->address, bytes, PROT_NONE) == 0) return;
  dsm_die("dsm: a region that was closed could not be made inaccessible\n");
}

/* Inside dsm_lock.  Closed regions keep the status they were closed with. */
void dsm_close_locked(struct dsm_region *region, uint32_t status) {
  if (load_ordered(&region->state) != DSM_OPEN) return;
  store_ordered(&region->status, status);
  set_state(region, DSM_CLOSING);
  shut(region); /* first of all: its leases may be ending */
  int64_t maps = dsm_borders(region, 0, region->pages) + DSM_MAPS_OF_A_REGION;
  atomic_fetch_sub(&dsm_worker.maps, maps);
  store_ordered(&region->poisoned, 0);
  unmap_helpers(region);
  store_ordered(&region->state, DSM_CLOSED);
  build_bridge(dsm_registry_before(region->address), region);
  build_bridge(region, dsm_registry_next(region->end));
}

/* Inside dsm_lock. */
void dsm_close_all(uint32_t status) {
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    dsm_close_locked(region, status);
  }
}

int dsm_region_close(uint32_t number) {
  sigset_t old;
  dsm_lock(&old);
  struct dsm_region *region = dsm_registry_number(number);
  uint32_t status = load_relaxed(&dsm_worker.status_closed);
  if (region) {
    dsm_close_locked(region, status);
    store_ordered(&region->status, status); /* a child of fork finds it closed, for another reason */
  }
  dsm_unlock(&old);
  return region ? 0 : -ENOENT;
}

int dsm_region_apply(uint32_t number, uint64_t page, uint64_t count, int pin) {
  sigset_t old;
  dsm_lock(&old);
  struct dsm_region *region = dsm_registry_number(number);
  int result = -ENOENT;
  bool entered = region && dsm_region_enter(region, DSM_OPEN);
  dsm_mutex_release(); /* `busy` keeps it open from here; the mutex would make others wait for our page locks */
  if (entered) {
    bool inside = page < region->pages && count <= region->pages - page;
    result = inside ? dsm_apply_range(region, page, count, pin) : -EINVAL;
    dsm_region_leave(region);
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return result;
}

int dsm_region_find(uint64_t address, uint32_t *number, uint64_t *offset) {
  struct dsm_region *region = dsm_registry_find(address);
  if (!region) return 0;
  *number = region->number;
  *offset = address - region->address;
  return 1;
}
