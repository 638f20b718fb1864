/* Manager side: storing what a diff payload (diff.h) says, and asking it which pages it is about.
 *
 * A payload comes from another node: each function looks through all of it before it does anything, and refuses
 * it with -EBADMSG.  Workers of this node may be writing the bytes beside the changed ones: nothing is stored but
 * changed bytes, and no wider word is read, modified and written.
 */
#include "wide.h"

#include <fcntl.h>
#include <sys/mman.h>

/* Where the entry's body lies, and where the next entry is. */
struct part {
  struct dsm_entry entry;
  const uint8_t *body;
  const uint8_t *next;
};

/* The entry at `at`, which has been checked. */
static inline struct part part_at(const uint8_t *at) {
  struct part part;
  memcpy(&part.entry, at, sizeof part.entry);
  part.body = at + sizeof part.entry;
  part.next = at + dsm_padded(sizeof part.entry + part.entry.length);
  return part;
}

static bool runs_are_sound(const uint8_t *body, uint32_t length) {
  uint16_t count;
  if (length < sizeof count) return false;
  memcpy(&count, body, sizeof count);
  if (!count || sizeof count + count * sizeof(struct dsm_bytes) > length) return false;
  uint32_t end = 0, bytes = 0;
  for (uint32_t i = 0; i < count; i++) {
    struct dsm_bytes run;
    memcpy(&run, body + sizeof count + i * sizeof run, sizeof run);
    if (!run.length || run.offset + run.length > DSM_BLOCK || (i && run.offset <= end)) return false;
    end = run.offset + run.length;
    bytes += run.length;
  }
  return sizeof count + count * sizeof(struct dsm_bytes) + bytes == length;
}

static bool mask_is_sound(const uint8_t *body, uint32_t length) {
  if (length <= DSM_MASK_BYTES) return false;
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < DSM_WORDS; i++) {
    uint64_t word;
    memcpy(&word, body + 8 * i, sizeof word);
    bytes += word == UINT64_MAX ? 64 : dsm_bits(word);
  }
  return DSM_MASK_BYTES + bytes == length;
}

static bool body_is_sound(uint32_t encoding, const uint8_t *body, uint32_t length) {
  switch (encoding) {
    case DSM_RUNS: return runs_are_sound(body, length);
    case DSM_MASK: return mask_is_sound(body, length);
    case DSM_FULL: return length == DSM_BLOCK;
    default: return false;
  }
}

/* A payload about blocks below `blocks`: 0 or -EBADMSG. */
static int check(const uint8_t *at, uint64_t length, uint64_t blocks) {
  const uint8_t *end = at + length;
  if (!length || length % 8) return -EBADMSG;
  uint64_t lowest = 0;
  while (at < end) {
    struct part part = part_at(at); /* there are 8 bytes at least */
    if (part.entry.block < lowest || part.entry.block >= blocks) return -EBADMSG;
    if (dsm_padded(sizeof part.entry + part.entry.length) > (uint64_t)(end - at)) return -EBADMSG;
    if (!body_is_sound(part.entry.encoding, part.body, part.entry.length)) return -EBADMSG;
    for (const uint8_t *pad = part.body + part.entry.length; pad < part.next; pad++) {
      if (*pad) return -EBADMSG;
    }
    lowest = (uint64_t)part.entry.block + 1;
    at = part.next;
  }
  return 0;
}

static void store_runs(uint8_t *frame, const uint8_t *body) {
  uint16_t count;
  memcpy(&count, body, sizeof count);
  const uint8_t *from = body + sizeof count + count * sizeof(struct dsm_bytes);
  for (uint32_t i = 0; i < count; i++) {
    struct dsm_bytes run;
    memcpy(&run, body + sizeof count + i * sizeof run, sizeof run);
    memcpy(frame + run.offset, from, run.length);
    from += run.length;
  }
}

static void store(uint8_t *frame, const struct part *part) {
  switch (part->entry.encoding) {
    case DSM_RUNS: store_runs(frame, part->body); break;
    case DSM_MASK:
      dsm_scatter(part->body, frame, part->body + DSM_MASK_BYTES, part->body + part->entry.length);
      break;
    default: memcpy(frame, part->body, DSM_BLOCK);
  }
}

/* Runs of pages to choose by; entries and runs both ascend.  Without runs, everything is chosen. */
struct choice {
  const uint64_t *runs;
  const uint64_t *end;
};

static inline bool chosen(struct choice *choice, uint64_t page) {
  if (!choice->runs) return true;
  while (choice->runs < choice->end && choice->runs[0] + choice->runs[1] <= page) choice->runs += 2;
  return choice->runs < choice->end && choice->runs[0] <= page;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
/* Allocate frames [page, end) and map them here.  A store into a hole is a fault of 6 us, all at once takes a third
 * of that a page.  That it fails does not matter: then the stores fault. */
static void prepare(uint64_t frames, int frames_fd, uint32_t page_shift, uint64_t page, uint64_t end) {
  uint64_t at = page << page_shift, bytes = (end - page) << page_shift;
  if (bytes <= DSM_FEW_BYTES) return;
  off_t hole = lseek(frames_fd, (off_t)at, SEEK_HOLE);
  if (hole < 0) return;
  if ((uint64_t)hole < at + bytes && fallocate(frames_fd, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) != 0) return;
  madvise((void *)(frames + at), bytes, MADV_POPULATE_WRITE);
}

/* Prepare the frames that the payload is stored into for the first time. */
static void prepare_new(uint64_t frames, int frames_fd, uint32_t page_shift, uint8_t *prepared, const uint8_t *payload,
                        uint64_t length, struct choice choice) {
  uint32_t shift = page_shift - DSM_BLOCK_SHIFT;
  uint64_t low = 0, end = 0;
  for (const uint8_t *at = payload; at < payload + length;) {
    struct part part = part_at(at);
    uint64_t page = part.entry.block >> shift;
    at = part.next;
    if (prepared[page] || !chosen(&choice, page)) continue;
    prepared[page] = 1;
    if (page != end) {
      prepare(frames, frames_fd, page_shift, low, end);
      low = page;
    }
    end = page + 1;
  }
  prepare(frames, frames_fd, page_shift, low, end);
}

int dsm_patch(uint64_t frames, int frames_fd, uint64_t pages, uint32_t page_shift, uint8_t *prepared,
              const uint8_t *payload, uint64_t length, const uint64_t *runs, uint64_t count) {
  uint32_t shift = page_shift - DSM_BLOCK_SHIFT;
  int result = check(payload, length, pages << shift);
  if (result < 0) return result;
  struct choice choice = {runs, runs + 2 * count};
  prepare_new(frames, frames_fd, page_shift, prepared, payload, length, choice);
  for (const uint8_t *at = payload; at < payload + length;) {
    struct part part = part_at(at);
    if (chosen(&choice, part.entry.block >> shift)) {
      store((uint8_t *)(frames + ((uint64_t)part.entry.block << DSM_BLOCK_SHIFT)), &part);
    }
    at = part.next;
  }
  return 0;
}

int64_t dsm_patch_select(uint64_t pages, uint32_t page_shift, const uint8_t *payload, uint64_t length,
                         const uint64_t *runs, uint64_t count, uint8_t *out) {
  uint32_t shift = page_shift - DSM_BLOCK_SHIFT;
  int result = check(payload, length, pages << shift);
  if (result < 0) return result;
  struct choice choice = {runs, runs + 2 * count};
  uint64_t used = 0;
  for (const uint8_t *at = payload; at < payload + length;) {
    struct part part = part_at(at);
    if (chosen(&choice, part.entry.block >> shift)) {
      memcpy(out + used, at, (size_t)(part.next - at));
      used += (uint64_t)(part.next - at);
    }
    at = part.next;
  }
  return (int64_t)used;
}

int64_t dsm_patch_runs(uint64_t pages, uint32_t page_shift, const uint8_t *payload, uint64_t length, uint64_t *runs) {
  uint32_t shift = page_shift - DSM_BLOCK_SHIFT;
  int result = check(payload, length, pages << shift);
  if (result < 0) return result;
  uint64_t count = 0;
  for (const uint8_t *at = payload; at < payload + length;) {
    struct part part = part_at(at);
    dsm_note_page(part.entry.block >> shift, runs, &count);
    at = part.next;
  }
  return (int64_t)count;
}
