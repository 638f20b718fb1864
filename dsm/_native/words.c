/* Manager side: copies of frames that workers use at the same time.
 *
 * A frame that is written while it is copied gives a mixture of old and new bytes; what a program takes for one value
 * (an aligned word of eight bytes) is whole in it, which memcpy does not promise.
 */
#include "internal.h"

void dsm_words_out(void *to, const void *shared, uint64_t bytes) {
  const _Atomic uint64_t *words = shared;
  for (uint64_t i = 0; i < bytes / 8; i++) {
    uint64_t word = load_relaxed(&words[i]);
    memcpy((char *)to + 8 * i, &word, 8);
  }
}

void dsm_words_in(void *shared, const void *from, uint64_t bytes) {
  _Atomic uint64_t *words = shared;
  for (uint64_t i = 0; i < bytes / 8; i++) {
    uint64_t word;
    memcpy(&word, (const char *)from + 8 * i, 8);
    store_relaxed(&words[i], word);
  }
}
