/* Manager side: the twins of a region's pages, in a map as large as the region, and one byte a page about them.
 *
 * A twin that has ended keeps its memory, since a page that was written once is mostly written again, and fresh
 * memory costs a fault; `dsm_twin_release` gives the memory of all of them back.
 */
#include "internal.h"

#include <sys/mman.h>

/* Bytes of the states. */
enum { NONE, LIVE, ENDED /* its memory is still there */ };

static bool all_live(const uint8_t *states, uint64_t page, uint64_t count) {
  for (uint64_t p = page; p < page + count; p++) {
    if (states[p] != LIVE) return false;
  }
  return true;
}

int64_t dsm_twin_make(uint64_t frames, uint64_t twins, uint8_t *states, uint64_t pages, uint32_t page_shift,
                      uint64_t page, uint64_t count) {
  if (page >= pages || count > pages - page) return -EINVAL;
  if (memchr(states + page, LIVE, count)) return -EEXIST;
  int64_t reused = 0;
  for (uint64_t p = page; p < page + count; p++) reused += states[p] == ENDED;
  uint64_t at = page << page_shift;
  memcpy((void *)(twins + at), (const void *)(frames + at), count << page_shift);
  memset(states + page, LIVE, count);
  return reused;
}

int dsm_twin_check(const uint8_t *states, uint64_t pages, const uint64_t *runs, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    uint64_t page = runs[2 * i], length = runs[2 * i + 1];
    if (page >= pages || length > pages - page) return -EINVAL;
    if (!all_live(states, page, length)) return -ENOENT;
  }
  return 0;
}

int64_t dsm_twin_end(uint8_t *states, uint64_t pages, const uint64_t *runs, uint64_t count) {
  int64_t ended = 0;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t page = runs[2 * i], length = runs[2 * i + 1];
    if (page >= pages || length > pages - page) return -EINVAL;
    for (uint64_t p = page; p < page + length; p++) {
      if (states[p] != LIVE) continue;
      states[p] = ENDED;
      ended++;
    }
  }
  return ended;
}

int dsm_twin_release(uint64_t twins, uint8_t *states, uint64_t pages, uint32_t page_shift) {
  for (uint64_t page = 0; page < pages;) {
    uint8_t *first = memchr(states + page, ENDED, pages - page);
    if (!first) break;
    page = (uint64_t)(first - states);
    /* One call up to the next live twin: what lies between was never there, which costs next to nothing. */
    uint8_t *live = memchr(first, LIVE, pages - page);
    uint64_t end = live ? (uint64_t)(live - states) : pages;
    if (madvise((void *)(twins + (page << page_shift)), (end - page) << page_shift, MADV_DONTNEED) != 0) return -errno;
    memset(first, NONE, end - page);
    page = end;
  }
  return 0;
}
