/* What diff.c and patch.c share: the bytes of a diff payload.
 *
 * A payload is a sequence of entries, one for each block (OS page) that changed, blocks strictly ascending:
 *
 *   u32 block       number of the OS page in its region
 *   u16 encoding    enum dsm_encoding
 *   u16 length      bytes of the body that follows, without its padding
 *   body            padded with zeros, so that the next entry begins at a multiple of 8 bytes
 *
 *   DSM_RUNS        u16 count; count times (u16 offset, u16 length), ascending, not touching; then their bytes
 *   DSM_MASK        512 bytes: bit b % 8 of byte b / 8 says that byte b changed; then the changed bytes
 *   DSM_FULL        4096 bytes: all of them changed
 *
 * All numbers are little-endian.  The shortest encoding is taken.  No unchanged byte is ever in a payload: its
 * home may have another writer's value there.
 */
#ifndef DSM_DIFF_H
#define DSM_DIFF_H

#include "internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are made and read as they lie in memory");

#define DSM_BLOCK_SHIFT 12
#define DSM_BLOCK 4096u
#define DSM_WORDS (DSM_BLOCK / 64) /* of a block's mask of changed bytes */
#define DSM_MASK_BYTES (DSM_BLOCK / 8)

enum dsm_encoding { DSM_RUNS = 1, DSM_MASK = 2, DSM_FULL = 3 };

struct dsm_entry {
  uint32_t block;
  uint16_t encoding;
  uint16_t length;
};
_Static_assert(sizeof(struct dsm_entry) == 8, "as it travels");

struct dsm_bytes {
  uint16_t offset;
  uint16_t length;
};
_Static_assert(sizeof(struct dsm_bytes) == 4, "as it travels");

#define DSM_RUNS_MOST 127 /* with more of them the mask is shorter */
/* The largest entry has all but 127 bytes changed and a mask. */
#define DSM_ENTRY_MOST (sizeof(struct dsm_entry) + DSM_MASK_BYTES + DSM_BLOCK - DSM_RUNS_MOST + 7)

static inline uint64_t dsm_padded(uint64_t length) { return (length + 7) & ~UINT64_C(7); }

/* Add a page to `*count` ascending rows (page, count), the last of which may have it already. */
static inline void dsm_note_page(uint64_t page, uint64_t *runs, uint64_t *count) {
  if (*count) {
    uint64_t *last = runs + 2 * (*count - 1);
    if (last[0] + last[1] == page) last[1]++;
    if (last[0] + last[1] > page) return;
  }
  runs[2 * *count] = page;
  runs[2 * *count + 1] = 1;
  ++*count;
}

#endif
