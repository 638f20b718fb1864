/* Manager side: what of a run of pages changed since their twins were made, as a payload (diff.h).
 *
 * The rule of a diff: workers may write the frame meanwhile (a page that is kept), so whatever decides anything
 * is loaded from the frame once.  That load is compared, is what is sent, and is the new twin.  A byte that
 * changes behind it differs from the twin, and is in the next diff.
 */
#include "wide.h"

/* How many runs of changed bytes there are; when they are too many, just more than DSM_RUNS_MOST. */
static uint32_t count_runs(const uint64_t *changed) {
  uint32_t count = 0;
  uint64_t before = 0;
  for (uint32_t i = 0; i < DSM_WORDS && count <= DSM_RUNS_MOST; i++) {
    uint64_t word = changed[i];
    if (word) count += dsm_bits(word & ~(word << 1 | before));
    before = word >> 63;
  }
  return count;
}

/* The runs themselves: `count` of them, as count_runs says. */
static void list_runs(const uint64_t *changed, struct dsm_bytes *runs) {
  uint32_t count = 0, end = DSM_BLOCK + 1;
  for (uint32_t i = 0; i < DSM_WORDS; i++) {
    uint64_t word = changed[i];
    while (word) {
      uint32_t low = (uint32_t)__builtin_ctzll(word), length = dsm_run(word >> low);
      if (64 * i + low == end) {
        runs[count - 1].length = (uint16_t)(runs[count - 1].length + length);
      } else {
        runs[count++] = (struct dsm_bytes){(uint16_t)(64 * i + low), (uint16_t)length};
      }
      end = 64 * i + low + length;
      word = dsm_above(word, low + length);
    }
  }
}

/* The body of DSM_RUNS; returns where it ends. */
static uint8_t *write_runs(const uint64_t *changed, const uint8_t *snapshot, uint32_t count, uint8_t *out) {
  struct dsm_bytes runs[DSM_RUNS_MOST];
  list_runs(changed, runs);
  uint16_t number = (uint16_t)count;
  memcpy(out, &number, sizeof number);
  memcpy(out + sizeof number, runs, count * sizeof *runs);
  out += sizeof number + count * sizeof *runs;
  for (uint32_t i = 0; i < count; i++) {
    memcpy(out, snapshot + runs[i].offset, runs[i].length);
    out += runs[i].length;
  }
  return out;
}

/* Bytes of the block's entry in `out`, which has room for any; 0 when nothing changed. */
static uint64_t diff_block(const uint8_t *frame, uint8_t *twin, bool keep, uint32_t block, uint8_t *out) {
  _Alignas(64) uint8_t snapshot[DSM_BLOCK + 8]; /* up to 7 bytes are read too many */
  uint64_t changed[DSM_WORDS], any = 0, all = UINT64_MAX;
  for (uint32_t i = 0; i < DSM_WORDS; i++) {
    changed[i] = dsm_take(frame + 64 * i, twin + 64 * i, snapshot + 64 * i, keep);
    any |= changed[i];
    all &= changed[i];
  }
  if (!any) return 0;
  uint8_t *body = out + sizeof(struct dsm_entry), *end;
  enum dsm_encoding encoding;
  uint32_t count;
  if (all == UINT64_MAX) {
    encoding = DSM_FULL;
    memcpy(body, snapshot, DSM_BLOCK);
    end = body + DSM_BLOCK;
  } else if ((count = count_runs(changed)) <= DSM_RUNS_MOST) {
    encoding = DSM_RUNS;
    end = write_runs(changed, snapshot, count, body);
  } else {
    encoding = DSM_MASK;
    memcpy(body, changed, DSM_MASK_BYTES);
    end = dsm_gather(changed, snapshot, body + DSM_MASK_BYTES);
  }
  struct dsm_entry entry = {block, (uint16_t)encoding, (uint16_t)(end - body)};
  memcpy(out, &entry, sizeof entry);
  uint64_t length = (uint64_t)(end - out);
  memset(end, 0, dsm_padded(length) - length);
  return dsm_padded(length);
}

uint64_t dsm_entry_most(void) { return DSM_ENTRY_MOST + DSM_BEHIND; }

int64_t dsm_diff(uint64_t frames, uint64_t twins, uint64_t pages, uint32_t page_shift, const uint64_t *runs,
                 uint64_t count, int keep, uint64_t *cursor, uint8_t *out, uint64_t room, uint64_t *changed) {
  uint32_t shift = page_shift - DSM_BLOCK_SHIFT; /* of a page in blocks */
  uint64_t used = 0;
  for (; cursor[0] < count; cursor[0]++, cursor[1] = 0) {
    uint64_t page = runs[2 * cursor[0]], length = runs[2 * cursor[0] + 1];
    if (page >= pages || length > pages - page) return -EINVAL;
    uint64_t blocks = length << shift, first = page << shift;
    for (; cursor[1] < blocks; cursor[1]++) {
      if (room - used < DSM_ENTRY_MOST + DSM_BEHIND) return (int64_t)used;
      uint64_t block = first + cursor[1], at = block << DSM_BLOCK_SHIFT;
      uint64_t bytes = diff_block((const uint8_t *)(frames + at), (uint8_t *)(twins + at), keep, (uint32_t)block,
                                  out + used);
      if (bytes) dsm_note_page(block >> shift, changed, &cursor[2]);
      used += bytes;
    }
  }
  return (int64_t)used;
}
