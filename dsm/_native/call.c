/* Worker side: asking the manager something through a slot, from normal code.
 *
 * Owns what a call is known by: its slot (slot.c's), and which start of the worker it belongs to.  After a
 * stop and another start the slot of the same number is somebody else's: an older call has ended (closed), and
 * gives nothing back.  A call that was begun keeps its slot until dsm_call_end.
 */
#include "internal.h"

#define STAMP_SHIFT 8
#define STAMPS 0x7fffffu

_Static_assert(DSM_SLOTS == 1 << STAMP_SHIFT, "a call's number holds its slot and its start");

/* Never 0, which fits every start. */
static uint32_t stamp_of(uint32_t generation) { return generation % STAMPS + 1; }

/* The slot, when the call belongs to this start of the worker. */
static bool slot_of(uint32_t call, uint32_t generation, uint32_t *slot) {
  uint32_t stamp = call >> STAMP_SHIFT;
  *slot = call % DSM_SLOTS;
  return stamp == 0 || stamp == stamp_of(generation);
}

int dsm_call_begin(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c) {
  if (op < DSM_OP_CALL) return -EINVAL;
  if (!dsm_worker_runs()) return -ESRCH;
  uint32_t generation = load_ordered(&dsm_worker.generation);
  int slot = dsm_slot_take();
  if (slot < 0) return slot;
  const uint64_t abc[3] = {a, b, c};
  dsm_slot_post((uint32_t)slot, op, object, abc, 0);
  return (int)(stamp_of(generation) << STAMP_SHIFT | (uint32_t)slot);
}

int dsm_call_post(uint32_t op, uint32_t object, uint64_t a, uint64_t b, uint64_t c) {
  int slot = dsm_call_begin(op | DSM_OP_NO_REPLY, object, a, b, c);
  return slot < 0 ? slot : 0;
}

int dsm_call_wait(uint32_t call, int64_t timeout_ns, uint32_t *status, uint64_t *result) {
  uint32_t generation = load_ordered(&dsm_worker.generation), slot;
  if (slot_of(call, generation, &slot)) return dsm_slot_wait(slot, generation, timeout_ns, true, status, result);
  *status = load_relaxed(&dsm_worker.status_closed);
  *result = 0;
  return 1;
}

void dsm_call_end(uint32_t call) {
  uint32_t slot;
  if (!dsm_worker.board || !slot_of(call, load_ordered(&dsm_worker.generation), &slot)) return;
  /* The manager may still answer what was not: such a slot stays, unless nobody is left to answer. */
  bool answered = load_acquire(&dsm_worker.board->slots[slot].state) == DSM_SLOT_DONE;
  if (answered || load_ordered(&dsm_worker.lost) || load_ordered(&dsm_worker.ended)) dsm_slot_give(slot);
}
