/* Worker side: the free small blocks of a heap that this worker keeps.
 *
 * Owns the steps on a cache that are taken for every allocation and free.  The layout, and why the steps come in
 * this order (a worker may die between any two), is `dsm.memory.cache`'s; `WorkerCache` there does the same in
 * Python.  A cache is used by all threads of a process: a lock that is held for a few instructions keeps them apart.
 * It is no Python lock, because a signal handler must not find it taken by the thread that it interrupts.
 */
#include "internal.h"

#include <stdlib.h>

#define STEP_SHIFT 4 /* classes are multiples of 16 bytes apart */

struct dsm_cache {
  _Atomic uint64_t *words;
  _Atomic uint32_t taken; /* the lock */
  uint32_t classes;
  uint32_t steps;   /* entries of by_step */
  uint32_t *bottom; /* by class: the word 0 below the stack */
  uint32_t *limit;  /* the last word that `put` uses */
  uint32_t *batch;
  uint8_t by_step[];
};

enum { ALLOCATIONS, FREES, ASKED, GIVEN, FILLED, LEAVING, OUTBOX }; /* behind the tops of the stacks */

static void lock(struct dsm_cache *cache) {
  for (int tries = 0; atomic_exchange_explicit(&cache->taken, 1, memory_order_acquire); tries++) {
    if (tries < 100) {
      dsm_pause();
    } else {
      sched_yield();
    }
  }
}

static void unlock(struct dsm_cache *cache) { store_release(&cache->taken, 0); }

/* Inside the lock: this worker alone writes its counters. */
static void count(struct dsm_cache *cache, uint32_t which, uint64_t more) {
  _Atomic uint64_t *word = &cache->words[cache->classes + which];
  store_relaxed(word, load_relaxed(word) + more);
}

struct dsm_cache *dsm_cache_new(uint64_t *words, const uint8_t *by_step, uint32_t steps, const uint32_t *capacities,
                                const uint32_t *batches, uint32_t classes, uint32_t max_batch) {
  size_t tables = (3 * (size_t)classes + 1) * sizeof(uint32_t);
  struct dsm_cache *cache = calloc(1, sizeof *cache + steps + tables);
  if (!cache) return NULL;
  cache->words = (_Atomic uint64_t *)words;
  cache->classes = classes;
  cache->steps = steps;
  memcpy(cache->by_step, by_step, steps);
  uintptr_t behind = (uintptr_t)(cache->by_step + steps);
  cache->bottom = (uint32_t *)((behind + sizeof(uint32_t) - 1) & ~(uintptr_t)(sizeof(uint32_t) - 1));
  cache->limit = cache->bottom + classes;
  cache->batch = cache->limit + classes;
  uint32_t place = classes + OUTBOX + max_batch;
  for (uint32_t cls = 0; cls < classes; cls++) {
    cache->bottom[cls] = place;
    cache->limit[cls] = place + capacities[cls];
    cache->batch[cls] = batches[cls];
    place += 1 + capacities[cls] + batches[cls];
  }
  return cache;
}

void dsm_cache_free(struct dsm_cache *cache) { free(cache); }

uint64_t dsm_cache_take(struct dsm_cache *cache, uint64_t nbytes, int zero) {
  uint64_t step = (nbytes + 15) >> STEP_SHIFT;
  if (step >= cache->steps || nbytes + 15 < nbytes) return 0;
  return dsm_cache_take_of(cache, cache->by_step[step], nbytes, zero);
}

uint64_t dsm_cache_take_of(struct dsm_cache *cache, uint32_t cls, uint64_t nbytes, int zero) {
  if (cls >= cache->classes) return 0;
  lock(cache);
  uint64_t top = load_relaxed(&cache->words[cls]);
  uint64_t address = load_relaxed(&cache->words[top]);
  if (address) {
    count(cache, ALLOCATIONS, 1);
    count(cache, ASKED, nbytes);
    store_release(&cache->words[cls], top - 1);
  }
  unlock(cache);
  if (address && zero) memset((void *)address, 0, nbytes);
  return address;
}

int dsm_cache_put(struct dsm_cache *cache, uint64_t address, uint64_t nbytes, uint32_t cls) {
  int kept = 0;
  if (cls >= cache->classes) return 0;
  lock(cache);
  uint64_t top = load_relaxed(&cache->words[cls]);
  if (top < cache->limit[cls]) {
    store_relaxed(&cache->words[top + 1], address);
    store_release(&cache->words[cls], top + 1);
    count(cache, FREES, 1);
    count(cache, GIVEN, nbytes);
    kept = 1;
  }
  unlock(cache);
  return kept;
}

/* All of a batch or nothing: 0, there is no room for it.  One that was put here before is not put here again: its
 * caller may have been interrupted. */
int dsm_cache_fill(struct dsm_cache *cache, uint32_t cls, const uint64_t *addresses, uint32_t n, uint64_t number) {
  if (cls >= cache->classes) return 0;
  lock(cache);
  _Atomic uint64_t *filled = &cache->words[cache->classes + FILLED];
  int there = number <= load_relaxed(filled);
  uint64_t top = load_relaxed(&cache->words[cls]);
  if (!there && n <= cache->limit[cls] + cache->batch[cls] - top) {
    for (uint32_t at = 0; at < n; at++) store_relaxed(&cache->words[top + 1 + at], addresses[at]);
    store_release(&cache->words[cls], top + n);
    store_release(filled, number);
    there = 1;
  }
  unlock(cache);
  return there;
}

/* Moves a batch to the outbox, unless another one is on its way; returns how many objects.  The number is given here:
 * two callers of which one interrupts the other would give it twice, and the manager takes each number once. */
uint32_t dsm_cache_surplus(struct dsm_cache *cache, uint32_t cls) {
  if (cls >= cache->classes) return 0;
  lock(cache);
  _Atomic uint64_t *leaving = &cache->words[cache->classes + LEAVING];
  uint64_t before = load_relaxed(leaving);
  uint64_t top = load_relaxed(&cache->words[cls]);
  uint32_t n = cache->batch[cls];
  if (n > top - cache->bottom[cls]) n = (uint32_t)(top - cache->bottom[cls]);
  if (before & 0xFFFF) n = 0;
  if (n) {
    for (uint32_t at = 0; at < n; at++) {
      store_relaxed(&cache->words[cache->classes + OUTBOX + at], load_relaxed(&cache->words[top - at]));
    }
    store_release(leaving, ((before >> 16) + 1) << 16 | n);
    store_release(&cache->words[cls], top - n);
  }
  unlock(cache);
  return n;
}

void dsm_cache_sent(struct dsm_cache *cache, uint64_t number) {
  lock(cache);
  _Atomic uint64_t *leaving = &cache->words[cache->classes + LEAVING];
  if (load_relaxed(leaving) >> 16 == number) store_release(leaving, number << 16); /* else a later one has left */
  unlock(cache);
}

/* Blocks that do not go through the stacks. */
void dsm_cache_count(struct dsm_cache *cache, uint64_t allocated, uint64_t freed, uint64_t asked, uint64_t given) {
  lock(cache);
  count(cache, ALLOCATIONS, allocated);
  count(cache, FREES, freed);
  count(cache, ASKED, asked);
  count(cache, GIVEN, given);
  unlock(cache);
}

/* As `dsm.memory.rings.Ring.put`: one call, so that no signal handler in Python comes between its steps. */
int dsm_ring_put(uint64_t *ring, uint32_t slots, uint64_t place, uint64_t nbytes) {
  _Atomic uint64_t *words = (_Atomic uint64_t *)ring;
  uint64_t at = load_relaxed(&words[1]);
  if (at - load_acquire(&words[0]) >= slots) return 0;
  store_relaxed(&words[2 + 2 * (at % slots)], place);
  store_relaxed(&words[3 + 2 * (at % slots)], nbytes);
  store_release(&words[1], at + 1);
  return 1;
}

void dsm_zero(uint64_t address, uint64_t nbytes) { memset((void *)address, 0, nbytes); }

void dsm_copy(uint64_t to, uint64_t from, uint64_t nbytes) { memmove((void *)to, (const void *)from, nbytes); }
