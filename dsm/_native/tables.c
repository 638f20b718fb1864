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
  uint64_t wanted_bytes;
  _Atomic uint8_t *wanted;
  _Atomic uint64_t *leases; /* NULL: none */
  struct sharer *sharers;
};

uint64_t dsm_wanted_bytes(uint64_t pages, int leased) { return DSM_WANTED_BYTES(pages, leased); }

struct dsm_tables *dsm_tables_new(struct dsm_board *board, uint32_t region, uint64_t pages, int wanted_fd, int leased) {
  struct dsm_tables *tables = calloc(1, sizeof *tables);
  if (!tables) return NULL;
  tables->board = board;
  tables->region = region;
  tables->pages = pages;
  tables->wanted_bytes = DSM_WANTED_BYTES(pages, leased);
  tables->wanted = dsm_map_file(wanted_fd, tables->wanted_bytes, tables->wanted_bytes, 1);
  if (!tables->wanted) {
    free(tables);
    return NULL;
  }
  if (leased) tables->leases = (void *)(tables->wanted + DSM_LEASES_AT(pages));
  return tables;
}

void dsm_tables_free(struct dsm_tables *tables) {
  if (!tables) return;
  while (tables->count) dsm_tables_remove(tables, tables->sharers[0].worker);
  munmap((void *)tables->wanted, tables->wanted_bytes);
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

void dsm_lease(struct dsm_tables *tables, uint64_t page, uint64_t count, uint64_t end) {
  if (!tables->leases || page >= tables->pages || count > tables->pages - page) return;
  for (uint64_t p = page; p < page + count; p++) store_ordered(&tables->leases[p], end);
}

#define EIGHT UINT64_C(0x0101010101010101) /* a byte, eight times */

static bool exceeds(uint8_t applied, uint32_t level) { return (applied & DSM_LOCKED) || (applied & DSM_LEVEL) > level; }

/* The first page from `page` on of which this worker may have more than `level`, or which it is just changing. */
static uint64_t next_exceeding(const _Atomic uint8_t *applied, uint64_t page, uint64_t end, uint32_t level) {
  /* Levels are nested sets of bits, so one is higher than another exactly when it has a bit that this one has not. */
  const uint64_t bits = EIGHT * (DSM_LOCKED | (DSM_LEVEL & ~level));
  while (page < end) {
    if (page % 8 == 0 && end - page >= 8) {
      /* Eight at once: a torn view of bytes that change is as good as eight views. */
      uint64_t word = __atomic_load_n((const uint64_t *)(const void *)(applied + page), __ATOMIC_SEQ_CST);
      if (!(word & bits)) {
        page += 8;
        continue;
      }
    }
    if (exceeds(load_ordered(&applied[page]), level)) return page;
    page++;
  }
  return end;
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

static void want_at_most(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level) {
  for (uint64_t p = page; p < page + count; p++) {
    /* Levels are nested, and the mark goes. */
    store_release(&tables->wanted[p], load_relaxed(&tables->wanted[p]) & (uint8_t)level);
  }
}

int dsm_lower(struct dsm_tables *tables, uint64_t page, uint64_t count, uint32_t level, uint64_t *asked) {
  const uint64_t run[2] = {page, count};
  return dsm_lower_runs(tables, run, 1, level, asked);
}

#define COMMANDS_AT_ONCE 4 /* with more runs than that, one command spans them */

/* Ask one worker to lower what it may have of the runs: the sequence to wait for, or 0 when it has nothing. */
static uint64_t ask(struct dsm_member *member, uint32_t region, const _Atomic uint8_t *applied, const uint64_t *runs,
                    uint64_t count, uint32_t level) {
  uint64_t found[COMMANDS_AT_ONCE], number = 0, low = 0, high = 0;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t end = runs[2 * i] + runs[2 * i + 1];
    uint64_t first = next_exceeding(applied, runs[2 * i], end, level);
    if (first == end) continue;
    if (!number) low = first;
    high = end;
    if (number < COMMANDS_AT_ONCE) found[number] = i;
    number++;
  }
  if (!number) return 0;
  /* Pages between the runs are not lowered: the worker compares each with what is wanted. */
  if (number > COMMANDS_AT_ONCE) return post_command(member, region, low, high - low);
  uint64_t sequence = 0;
  for (uint64_t i = 0; i < number; i++) {
    sequence = post_command(member, region, runs[2 * found[i]], runs[2 * found[i] + 1]);
  }
  return sequence;
}

int dsm_lower_runs(struct dsm_tables *tables, const uint64_t *runs, uint64_t count, uint32_t level, uint64_t *asked) {
  for (uint64_t i = 0; i < count; i++) {
    if (runs[2 * i] >= tables->pages || runs[2 * i + 1] > tables->pages - runs[2 * i]) return -EINVAL;
  }
  for (uint64_t i = 0; i < count; i++) want_at_most(tables, runs[2 * i], runs[2 * i + 1], level);
  fence_ordered();
  int workers = 0;
  for (uint32_t i = 0; i < tables->count; i++) {
    struct dsm_member *member = &tables->board->members[tables->sharers[i].worker];
    if (!member->board) continue;
    uint64_t sequence = ask(member, tables->region, tables->sharers[i].applied, runs, count, level);
    if (!sequence) continue;
    asked[2 * workers] = tables->sharers[i].worker;
    asked[2 * workers + 1] = sequence;
    workers++;
  }
  return workers;
}
