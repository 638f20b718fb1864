/* Worker side: asking the manager something through a slot, from normal code.
 *
 * Owns nothing: the slots are slot.c's.  A call that was begun keeps its slot until dsm_call_end.
 */
#include "internal.h"

int dsm_call_begin(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c) {
  if (op < DSM_OP_CALL) return -EINVAL;
  if (!load_ordered(&dsm_worker.started)) return -ESRCH;
  int slot = dsm_slot_take();
  if (slot < 0) return slot;
  const uint64_t abc[3] = {a, b, c};
  dsm_slot_post((uint32_t)slot, op, object, abc, 0);
  return slot;
}

int dsm_call_post(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c) {
  int slot = dsm_call_begin(op | DSM_OP_NO_REPLY, object, a, b, c);
  return slot < 0 ? slot : 0;
}

int dsm_call_wait(uint32_t slot, int64_t timeout_ns, uint32_t *status, uint64_t *result) {
  if (slot >= DSM_SLOTS) return -EINVAL;
  return dsm_slot_wait(slot, timeout_ns, true, status, result);
}

void dsm_call_end(uint32_t slot) {
  if (slot >= DSM_SLOTS || !dsm_worker.board) return;
  /* After a stop and another start the slot may be somebody else's: it is ours only when it was answered, or
   * when nobody is left to answer. */
  bool answered = load_acquire(&dsm_worker.board->slots[slot].state) == DSM_SLOT_DONE;
  if (answered || load_ordered(&dsm_worker.lost) || load_ordered(&dsm_worker.ended)) dsm_slot_give(slot);
}
