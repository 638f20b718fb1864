/* The work of diff.c and patch.c on 64 bytes at a time, for the machine at hand.
 *
 * A word of 64 bits says which of 64 bytes are meant.  Compiled with DSM_PLAIN, only what every machine has is
 * used; tests compare the two.  Stores go to the bytes that are meant and to no other: workers may write those.
 */
#ifndef DSM_WIDE_H
#define DSM_WIDE_H

#include "diff.h"

#if defined(__x86_64__) && !defined(DSM_PLAIN)
#define DSM_X86 1
#include <immintrin.h>
#endif

static inline uint32_t dsm_bits(uint64_t word) {
  word -= word >> 1 & UINT64_C(0x5555555555555555);
  word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
  word = (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
  return (uint32_t)(word * UINT64_C(0x0101010101010101) >> 56);
}

/* The length of the run of ones that begins at the lowest bit. */
static inline uint32_t dsm_run(uint64_t word) { return ~word ? (uint32_t)__builtin_ctzll(~word) : 64; }

/* `word` without its lowest `count` bits, 1 to 64. */
static inline uint64_t dsm_above(uint64_t word, uint32_t count) {
  return count == 64 ? 0 : word & UINT64_MAX << count;
}

/* Compare 64 bytes of a frame with its twin: which differ.  Only when one does, the bytes that were compared are
 * stored in `snapshot`, and in the twin if it is kept.  Each byte of the frame is loaded once (hence volatile). */
#ifdef DSM_X86
static inline uint64_t dsm_take(const uint8_t *frame, uint8_t *twin, uint8_t *snapshot, bool keep) {
  __m128i now[4];
  uint64_t same = 0;
  for (int i = 0; i < 4; i++) {
    now[i] = ((const volatile __m128i *)(const void *)frame)[i];
    __m128i equal = _mm_cmpeq_epi8(now[i], ((const __m128i *)(const void *)twin)[i]);
    same |= (uint64_t)(uint32_t)_mm_movemask_epi8(equal) << 16 * i;
  }
  if (~same == 0) return 0;
  for (int i = 0; i < 4; i++) ((__m128i *)(void *)snapshot)[i] = now[i];
  if (keep) {
    for (int i = 0; i < 4; i++) ((__m128i *)(void *)twin)[i] = now[i];
  }
  return ~same;
}
#else
/* One bit for each byte of `word` that is not zero. */
static inline uint64_t dsm_nonzero(uint64_t word) {
  word |= word >> 4 & UINT64_C(0x0f0f0f0f0f0f0f0f);
  word |= word >> 2 & UINT64_C(0x0303030303030303);
  word = (word | word >> 1) & UINT64_C(0x0101010101010101);
  return word * UINT64_C(0x0102040810204080) >> 56;
}

static inline uint64_t dsm_take(const uint8_t *frame, uint8_t *twin, uint8_t *snapshot, bool keep) {
  uint64_t now[8], old[8], different = 0;
  memcpy(old, twin, sizeof old);
  for (int i = 0; i < 8; i++) {
    now[i] = ((const volatile uint64_t *)(const void *)frame)[i];
    different |= now[i] ^ old[i];
  }
  if (!different) return 0;
  uint64_t changed = 0;
  for (int i = 0; i < 8; i++) changed |= dsm_nonzero(now[i] ^ old[i]) << 8 * i;
  memcpy(snapshot, now, sizeof now);
  if (keep) memcpy(twin, now, sizeof now);
  return changed;
}
#endif

/* Runs are moved as such when 64 bytes have few: numbers of 8 bytes whose high bytes stay have 8 of them. */
#define DSM_FEW_RUNS 10
static inline bool dsm_has_few_runs(uint64_t word) { return dsm_bits(word & ~(word << 1)) <= DSM_FEW_RUNS; }

#define DSM_BEHIND 64 /* so many bytes behind the last one that it writes, dsm_gather may overwrite */

/* Append the bytes of a block that changed; returns what follows. */
static inline uint8_t *dsm_gather_plain(const uint64_t *changed, const uint8_t *snapshot, uint8_t *out) {
  for (uint32_t i = 0; i < DSM_WORDS; i++, snapshot += 64) {
    uint64_t word = changed[i];
    if (dsm_has_few_runs(word)) {
      while (word) {
        uint32_t low = (uint32_t)__builtin_ctzll(word), length = dsm_run(word >> low);
        for (uint32_t at = 0; at < length; at += 8) memcpy(out + at, snapshot + low + at, 8);
        out += length;
        word = dsm_above(word, low + length);
      }
    } else {
      for (; word; word &= word - 1) *out++ = snapshot[__builtin_ctzll(word)];
    }
  }
  return out;
}

/* Store the lowest `length` bytes of `value`, 1 to 8. */
static inline void dsm_store(uint8_t *to, uint64_t value, uint32_t length) {
  if (length == 8) {
    memcpy(to, &value, 8);
    return;
  }
  if (length & 4) {
    memcpy(to, &value, 4);
    to += 4;
    value >>= 32;
  }
  if (length & 2) {
    memcpy(to, &value, 2);
    to += 2;
    value >>= 16;
  }
  if (length & 1) *to = (uint8_t)value;
}

/* Store the changed bytes of a block, which lie from `from` up to `end`; `mask` has any alignment. */
static inline void dsm_scatter_plain(const uint8_t *mask, uint8_t *frame, const uint8_t *from, const uint8_t *end) {
  for (uint32_t i = 0; i < DSM_WORDS; i++, frame += 64) {
    uint64_t word;
    memcpy(&word, mask + 8 * i, sizeof word);
    if (end - from >= 64 + 8 && dsm_has_few_runs(word)) { /* up to 7 bytes are read too many */
      while (word) {
        uint32_t low = (uint32_t)__builtin_ctzll(word), length = dsm_run(word >> low);
        for (uint32_t at = 0; at < length; at += 8) {
          uint64_t value;
          memcpy(&value, from + at, sizeof value);
          dsm_store(frame + low + at, value, length - at < 8 ? length - at : 8);
        }
        from += length;
        word = dsm_above(word, low + length);
      }
    } else {
      for (; word; word &= word - 1) frame[__builtin_ctzll(word)] = *from++;
    }
  }
}

#ifdef DSM_X86
#define DSM_WITH_MASKS __attribute__((target("avx512f,avx512bw,avx512vbmi2,popcnt")))

/* Whether the machine moves bytes by masks itself. */
static inline bool dsm_has_masks(void) {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2");
}

DSM_WITH_MASKS static uint8_t *dsm_gather_masked(const uint64_t *changed, const uint8_t *snapshot, uint8_t *out) {
  for (uint32_t i = 0; i < DSM_WORDS; i++) {
    __m512i bytes = _mm512_load_si512((const void *)(snapshot + 64 * i));
    _mm512_storeu_si512((void *)out, _mm512_maskz_compress_epi8(changed[i], bytes));
    out += __builtin_popcountll(changed[i]);
  }
  return out;
}

DSM_WITH_MASKS static void dsm_scatter_masked(const uint8_t *mask, uint8_t *frame, const uint8_t *from) {
  for (uint32_t i = 0; i < DSM_WORDS; i++, frame += 64) {
    uint64_t word;
    memcpy(&word, mask + 8 * i, sizeof word);
    uint32_t count = (uint32_t)__builtin_popcountll(word);
    /* Bytes that are masked out are neither read nor written, not even if they could not be. */
    __m512i bytes = _mm512_maskz_loadu_epi8(count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1, from);
    _mm512_mask_storeu_epi8(frame, word, _mm512_maskz_expand_epi8(word, bytes));
    from += count;
  }
}
#endif

static inline uint8_t *dsm_gather(const uint64_t *changed, const uint8_t *snapshot, uint8_t *out) {
#ifdef DSM_X86
  if (dsm_has_masks()) return dsm_gather_masked(changed, snapshot, out);
#endif
  return dsm_gather_plain(changed, snapshot, out);
}

static inline void dsm_scatter(const uint8_t *mask, uint8_t *frame, const uint8_t *from, const uint8_t *end) {
#ifdef DSM_X86
  if (dsm_has_masks()) {
    dsm_scatter_masked(mask, frame, from);
    return;
  }
#endif
  dsm_scatter_plain(mask, frame, from, end);
}

#endif
