/* Manager side: a region's wanted table, the applied tables of its workers, and revocation.
 *
 * Owns the maps of the tables.  Only the manager calls; workers change these bytes at the same time, so
 * every access is atomic, and the order is the one that layout.h asks for.
 */
#include "manager.h"

#include <stdlib.h>
#include <sys/mman.h>

struct sharer {
  uint32_t worker;
  _Atomic uint8_t *applied;
};

struct dsm_tables {
  struct dsm_board *board;
  uint32_t region;
  uint32_t count;
  uint64_t pages;
  _Atomic uint8_t *wanted;
  struct sharer *sharers;
};

struct dsm_tables *dsm_tables_new(struct dsm_board *board, uint32_t region, uint64_t pages, int wanted_fd) {
  struct dsm_tables *tables = calloc(1, sizeof *tables);
  if (!tables) return NULL;
  tables->board = board;
  tables->region = region;
  tables->pages = pages;
  tables->wanted = dsm_map_file(wanted_fd, pages, pages, 1);
  if (tables->wanted) return tables;
  free(tables);
  return NULL;
}

void dsm_tables_free(struct dsm_tables *tables) {
  if (!tables) return;
  while (tables->count) dsm_tables_remove(tables, tables->sharers[0].worker);
  munmap((void *)tables->wanted, tables->pages);
  free(tables->sharers);
  free(tables);
}

int dsm_tables_add(struct dsm_tables *tables, uint32_t worker, int applied_fd) {
  if (worker >= DSM_WORKERS) return -EINVAL;
  for (uint32_t i = 0; i < tables->count; i++) {
    if (tables->sharers[i].worker == worker) return -EEXIST;
  }
  struct sharer *sharers = realloc(tables->sharers, (tables->count + 1) * sizeof *sharers);
  if (!sharers) return -ENOMEM;
  tables->sharers = sharers;
  _Atomic uint8_t *applied = dsm_map_file(applied_fd, tables->pages, tables->pages, 0);
  if (!applied) return -errno;
  sharers[tables->count++] = (struct sharer){worker, applied};
  return 0;
}

int dsm_tables_remove(struct dsm_tables *tables, uint32_t worker) {
  for (uint32_t i = 0; i < tables->count; i++) {
    if (tables->sharers[i].worker != worker) continue;
    munmap((void *)tables->sharers[i].applied, tables->pages);
    tables->sharers[i] = tables->sharers[--tables->count];
    return 0;
  }
  return -ENOENT;
}

void dsm_raise(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level, uint64_t mark) {
  if (page >= tables->pages || count > tables->pages - page) return;
  for (uint64_t p = page; p < page + count; p++) {
    uint8_t old = load_relaxed(&tables->wanted[p]) & DSM_LEVEL;
    uint8_t new = old > level ? old : (uint8_t)level;
    store_release(&tables->wanted[p], p == mark ? new | DSM_MARK : new);
  }
  fence_ordered();
}

/* Whether this worker may have more than `level` on one of the pages, or is just changing one. */
static bool may_exceed(const _Atomic uint8_t *applied, uint64_t page, uint64_t count, uint32_t level) {
  for (uint64_t p = page; p < page + count; p++) {
    uint8_t byte = load_ordered(&applied[p]);
    if ((byte & DSM_LOCKED) || (byte & DSM_LEVEL) > level) return true;
  }
  return false;
}

/* Returns the sequence that commands_done must reach. */
static uint64_t post_command(struct dsm_member *member, uint32_t region, uint64_t page, uint64_t count) {
  struct dsm_worker_board *board = member->board;
  uint64_t posted = load_relaxed(&board->commands_posted);
  if (posted - load_acquire(&board->commands_done) < DSM_COMMANDS && count <= UINT32_MAX) {
    board->commands[posted % DSM_COMMANDS] = (struct dsm_command){region, (uint32_t)count, page};
  } else {
    /* In this order: whoever sees the count sees the sweep.  A sweep seen before the count has already
     * obeyed (the wanted bytes were stored earlier), and the stale ring entry it meets then is harmless. */
    store_ordered(&board->sweep, 1);
  }
  store_ordered(&board->commands_posted, posted + 1);
  fence_ordered();
  if (load_ordered(&board->service_sleeping) && atomic_exchange(&board->service_sleeping, 0)) {
    uint64_t one = 1;
    if (write(member->nudge_fd, &one, sizeof one) < 0) { /* full: it is awake anyway */
    }
  }
  return posted + 1;
}

int dsm_lower(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level, uint64_t *asked) {
  if (page >= tables->pages || count > tables->pages - page) return -EINVAL;
  for (uint64_t p = page; p < page + count; p++) {
    uint8_t old = load_relaxed(&tables->wanted[p]) & DSM_LEVEL;
    store_release(&tables->wanted[p], old < level ? old : (uint8_t)level);
  }
  fence_ordered();
  int workers = 0;
  for (uint32_t i = 0; i < tables->count; i++) {
    struct dsm_member *member = &tables->board->members[tables->sharers[i].worker];
    if (!member->board || !may_exceed(tables->sharers[i].applied, page, count, level)) continue;
    asked[2 * workers] = tables->sharers[i].worker;
    asked[2 * workers + 1] = post_command(member, tables->region, page, count);
    workers++;
  }
  return workers;
}
