/* The regions of this process, by address for the handler and by number for everybody else.
 *
 * Owns both indexes.  By address: a sorted table of record pointers under a sequence lock; a table that
 * has grown leaves the old one where it is, because a handler may be reading it, and records are never
 * freed.  By number: a chained hash, read and changed under dsm_lock only.
 */
#include "internal.h"

#include <stdlib.h>

struct table {
  uint32_t capacity;
  _Atomic uint32_t count;
  _Atomic(struct dsm_region *) records[];
};

#define BUCKETS 4096

static _Atomic(struct table *) current;
static _Atomic uint32_t sequence; /* odd while the table is changing; its writer has every signal masked */
static struct dsm_region *buckets[BUCKETS];

struct dsm_region *dsm_region_record(uint32_t number, uint64_t address, uint64_t end, uint32_t page_shift) {
  struct dsm_region *region = aligned_alloc(64, (sizeof *region + 63) / 64 * 64);
  if (!region) return NULL;
  memset(region, 0, sizeof *region);
  region->number = number;
  region->address = address;
  region->end = end;
  region->page_shift = page_shift;
  region->pages = (end - address) >> page_shift;
  return region;
}

/* SIGNAL-SAFE.  Index of the first record that ends behind `address`. */
static uint32_t first_behind(struct table *table, uint32_t count, uint64_t address) {
  uint32_t low = 0, high = count;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    struct dsm_region *region = load_relaxed(&table->records[middle]);
    if (region && region->end <= address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/* SIGNAL-SAFE: a writer has every signal masked, so a handler never waits for its own thread. */
struct dsm_region *dsm_registry_next(uint64_t address) {
  for (;;) {
    uint32_t before = load_acquire(&sequence);
    struct table *table = load_acquire(&current);
    if (!table) return NULL;
    if (!(before & 1)) {
      uint32_t count = load_relaxed(&table->count);
      uint32_t index = first_behind(table, count, address);
      struct dsm_region *found = index < count ? load_relaxed(&table->records[index]) : NULL;
      atomic_thread_fence(memory_order_acquire);
      if (load_relaxed(&sequence) == before) return found;
    }
    dsm_pause();
  }
}

/* SIGNAL-SAFE. */
struct dsm_region *dsm_registry_find(uint64_t address) {
  struct dsm_region *region = dsm_registry_next(address);
  return region && region->address <= address ? region : NULL;
}

struct dsm_region *dsm_registry_before(uint64_t address) {
  struct table *table = load_relaxed(&current);
  uint32_t index = table ? first_behind(table, load_relaxed(&table->count), address) : 0;
  return index ? load_relaxed(&table->records[index - 1]) : NULL;
}

struct dsm_region *dsm_registry_number(uint32_t number) {
  struct dsm_region *region = buckets[number % BUCKETS];
  while (region && region->number != number) region = region->next;
  return region;
}

/* In front of an older record of that number: the newest is found. */
static void index_newest(struct dsm_region *region) {
  struct dsm_region **head = &buckets[region->number % BUCKETS];
  region->next = *head;
  *head = region;
}

/* Behind every record of that number, for it may have been given to another region since. */
static void index_rest(struct dsm_region *rest) {
  struct dsm_region **link = &buckets[rest->number % BUCKETS];
  while (*link) link = &(*link)->next;
  rest->next = NULL;
  *link = rest;
}

static void unindex_number(struct dsm_region *region) {
  struct dsm_region **link = &buckets[region->number % BUCKETS];
  while (*link && *link != region) link = &(*link)->next;
  if (*link) *link = region->next;
}

int dsm_registry_reserve(uint32_t more) {
  struct table *old = load_relaxed(&current);
  uint32_t count = old ? load_relaxed(&old->count) : 0;
  if (old && old->capacity - count >= more) return 0;
  uint32_t capacity = old ? old->capacity * 2 + more : 64 + more;
  struct table *table = calloc(1, sizeof *table + capacity * sizeof table->records[0]);
  if (!table) return -ENOMEM;
  table->capacity = capacity;
  store_relaxed(&table->count, count);
  for (uint32_t i = 0; i < count; i++) store_relaxed(&table->records[i], load_relaxed(&old->records[i]));
  store_release(&current, table);
  return 0;
}

static void table_remove(struct table *table, const struct dsm_region *region) {
  uint32_t count = load_relaxed(&table->count), i = 0;
  while (i < count && load_relaxed(&table->records[i]) != region) i++;
  if (i == count) return;
  for (; i + 1 < count; i++) store_relaxed(&table->records[i], load_relaxed(&table->records[i + 1]));
  store_relaxed(&table->count, count - 1);
}

static void table_insert(struct table *table, struct dsm_region *region) {
  uint32_t i = load_relaxed(&table->count);
  store_relaxed(&table->count, i + 1);
  for (; i > 0 && load_relaxed(&table->records[i - 1])->address > region->address; i--) {
    store_relaxed(&table->records[i], load_relaxed(&table->records[i - 1]));
  }
  store_relaxed(&table->records[i], region);
}

void dsm_registry_change(struct dsm_region *const *gone, uint32_t gone_count, struct dsm_region *const *come,
                         uint32_t come_count) {
  struct table *table = load_relaxed(&current);
  uint32_t before = load_relaxed(&sequence);
  store_relaxed(&sequence, before + 1);
  atomic_thread_fence(memory_order_release);
  for (uint32_t i = 0; i < gone_count; i++) {
    table_remove(table, gone[i]);
    unindex_number(gone[i]);
  }
  for (uint32_t i = 0; i < come_count; i++) {
    table_insert(table, come[i]);
    if (i == 0) {
      index_newest(come[i]);
    } else {
      index_rest(come[i]);
    }
  }
  store_release(&sequence, before + 2);
}

uint64_t dsm_region_closed_end(uint64_t address) {
  struct dsm_region *region = dsm_registry_find(address);
  return region && load_ordered(&region->state) == DSM_CLOSED ? region->end : 0;
}
