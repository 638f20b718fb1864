/* Manager side: the twins of a region's pages, in a map as large as the region, and one byte a page about them.
 *
 * A twin that has ended keeps its memory, since a page that was written once is mostly written again, and fresh
 * memory costs a fault; `dsm_twin_release` gives the memory of all of them back.  Twins come in huge pages where
 * many are made at once; a single one never costs more than its page.
 */
#include "internal.h"

#include <fcntl.h>
#include <sys/mman.h>

/* Bytes of the states. */
enum { NONE, LIVE, ENDED /* its memory is still there */ };

static bool all_live(const uint8_t *states, uint64_t page, uint64_t count) {
  for (uint64_t p = page; p < page + count; p++) {
    if (states[p] != LIVE) return false;
  }
  return true;
}

#define HUGE_SHIFT 21 /* of a huge page; where it has another size, the advice does nothing */
#define MANY_BYTES (UINT64_C(256) << 10) /* twins of so many bytes at once are taken for the beginning of more */

/* Ask for huge pages where [page, page + count) lies, if no twin is there yet.  That it fails does not matter. */
static void expect_many(uint64_t twins, const uint8_t *states, uint64_t pages, uint32_t page_shift, uint64_t page,
                        uint64_t count) {
  uint64_t low = twins + (page << page_shift), high = low + (count << page_shift), end = twins + (pages << page_shift);
  for (uint64_t at = low >> HUGE_SHIFT << HUGE_SHIFT; at < high; at += UINT64_C(1) << HUGE_SHIFT) {
    uint64_t behind = at + (UINT64_C(1) << HUGE_SHIFT);
    if (at < twins || behind > end) continue;
    uint64_t first = (at - twins) >> page_shift, last = (behind - 1 - twins) >> page_shift;
    bool empty = true;
    for (uint64_t p = first; p <= last; p++) empty &= states[p] == NONE;
    if (empty) madvise((void *)at, behind - at, MADV_HUGEPAGE);
  }
}

/* Whether these bytes of the frames are a hole, which reads as zeros. */
static bool is_hole(int frames_fd, uint64_t at, uint64_t bytes) {
  off_t data = lseek(frames_fd, (off_t)at, SEEK_DATA);
  return data < 0 ? errno == ENXIO : (uint64_t)data >= at + bytes;
}

/* Twins of a hole are zeros: fresh memory, which costs nothing until it is read.  Memory is allocated for the hole,
 * since workers are about to write there: with it, a store that faults takes a third of 6 us. */
static bool make_of_hole(int frames_fd, uint64_t twins, uint64_t at, uint64_t bytes) {
  if (bytes < DSM_FEW_BYTES || !is_hole(frames_fd, at, bytes)) return false;
  if (madvise((void *)(twins + at), bytes, MADV_DONTNEED) != 0) return false;
  if (fallocate(frames_fd, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) != 0) { /* then it takes all of the 6 us */
  }
  return true;
}

int64_t dsm_twin_make(uint64_t frames, int frames_fd, uint64_t twins, uint8_t *states, uint64_t pages,
                      uint32_t page_shift, uint64_t page, uint64_t count) {
  if (page >= pages || count > pages - page) return -EINVAL;
  if (memchr(states + page, LIVE, count)) return -EEXIST;
  int64_t reused = 0;
  for (uint64_t p = page; p < page + count; p++) reused += states[p] == ENDED;
  uint64_t at = page << page_shift, bytes = count << page_shift;
  if (bytes >= MANY_BYTES && !reused) expect_many(twins, states, pages, page_shift, page, count);
  if (!make_of_hole(frames_fd, twins, at, bytes)) {
    memcpy((void *)(twins + at), (const void *)(frames + at), bytes);
  }
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
    void *start = (void *)(twins + (page << page_shift));
    if (madvise(start, (end - page) << page_shift, MADV_DONTNEED) != 0) return -errno;
    madvise(start, (end - page) << page_shift, MADV_NOHUGEPAGE);
    memset(first, NONE, end - page);
    page = end;
  }
  return 0;
}
