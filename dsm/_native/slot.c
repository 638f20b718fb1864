/* Worker side: the slots of the board, in which a thread asks the manager something and waits.
 *
 * Owns taking, posting, waiting and giving back.  All of it is SIGNAL-SAFE.  The order of a wait: the
 * manager stores the answer, then `state`, then looks at `sleeping`; the thread stores `sleeping`, then
 * looks at `state` (FUTEX_WAIT does).  Sleeps are cut into slices, so that a manager that is gone, a stop
 * or a lost wake-up is noticed without anybody's help.
 */
#include "internal.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>

#define SLICE_NS 100000000u

long dsm_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns) {
  struct timespec limit = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
  return syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0) == 0 ? 0 : -errno;
}

void dsm_futex_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

/* Tell the manager to look: it polls the doorbell, or has said that it sleeps. */
void dsm_ring(void) {
  struct dsm_node_board *node = dsm_worker.node;
  atomic_fetch_add(&node->doorbell, 1);
  fence_ordered();
  if (!load_ordered(&node->sleeping) || !atomic_exchange(&node->sleeping, 0)) return;
  uint64_t one = 1;
  if (write(dsm_worker.options.bell_fd, &one, sizeof one) < 0) { /* full: it is rung anyway */
  }
}

int dsm_slot_take(void) {
  for (uint32_t word = 0; word < DSM_SLOTS / 64; word++) {
    _Atomic uint64_t *used = &dsm_worker.board->used[word];
    uint64_t old = load_relaxed(used);
    while (~old) {
      uint32_t bit = (uint32_t)__builtin_ctzll(~old);
      if (atomic_compare_exchange_weak(used, &old, old | UINT64_C(1) << bit)) return (int)(word * 64 + bit);
    }
  }
  return -EAGAIN;
}

void dsm_slot_give(uint32_t slot) {
  store_ordered(&dsm_worker.board->slots[slot].state, DSM_SLOT_FREE);
  atomic_fetch_and(&dsm_worker.board->used[slot / 64], ~(UINT64_C(1) << slot % 64));
}

void dsm_slot_post(uint32_t number, uint32_t op, uint32_t object, const uint64_t abc[3], uint64_t ip) {
  struct dsm_slot *slot = &dsm_worker.board->slots[number];
  store_relaxed(&slot->sleeping, 0);
  store_relaxed(&slot->since, 0);
  slot->op = op;
  slot->object = object;
  slot->a = abc[0];
  slot->b = abc[1];
  slot->c = abc[2];
  slot->ip = ip;
  slot->thread = (uint64_t)syscall(SYS_gettid);
  store_release(&slot->state, DSM_SLOT_POSTED);
  atomic_fetch_or(&dsm_worker.board->pending[number / 64], UINT64_C(1) << number % 64);
  dsm_ring();
}

/* A hint: when no slot is free it is dropped. */
void dsm_touched(uint32_t region, uint64_t page) {
  int slot = dsm_slot_take();
  if (slot < 0) return;
  const uint64_t abc[3] = {page, 0, 0};
  dsm_slot_post((uint32_t)slot, DSM_OP_TOUCHED, region, abc, 0);
}

/* The pidfd becomes readable when the manager has ended. */
void dsm_check_manager(void) {
  struct pollfd manager = {.fd = dsm_worker.options.manager_pidfd, .events = POLLIN};
  if (load_relaxed(&dsm_worker.lost) || manager.fd < 0) return;
  if (poll(&manager, 1, 0) != 1 || !(manager.revents & POLLIN)) return;
  store_ordered(&dsm_worker.lost, 1);
  dsm_wake_slots();
}

void dsm_wake_slots(void) {
  for (uint32_t i = 0; i < DSM_SLOTS; i++) {
    struct dsm_slot *slot = &dsm_worker.board->slots[i];
    if (load_ordered(&slot->state) == DSM_SLOT_POSTED) dsm_futex_wake(&slot->state);
  }
}

/* 1 with the status that ends every wait, when there is nobody left to answer. */
static int given_up(uint32_t *status) {
  if (load_ordered(&dsm_worker.forked) || load_ordered(&dsm_worker.lost)) {
    *status = load_relaxed(&dsm_worker.status_lost);
  } else if (load_ordered(&dsm_worker.ended) || !dsm_worker.board) {
    *status = load_relaxed(&dsm_worker.status_closed);
  } else {
    return 0;
  }
  return 1;
}

static int answered(struct dsm_slot *slot, uint32_t generation, uint32_t *status, uint64_t *result) {
  if (load_ordered(&dsm_worker.generation) != generation) {
    *status = load_relaxed(&dsm_worker.status_closed);
    return 1;
  }
  if (load_acquire(&slot->state) == DSM_SLOT_DONE) {
    *status = slot->status;
    *result = slot->result;
    return 1;
  }
  return given_up(status);
}

/* 1 when the wait has ended, 0 when the time is over (-1: never); with `once` also -EINTR after a signal
 * or a slice, for a caller that has signals of its own to look at.  `generation` is that of the start in
 * which the slot was taken. */
int dsm_slot_wait(uint32_t number, uint32_t generation, int64_t timeout_ns, bool once, uint32_t *status,
                  uint64_t *result) {
  *result = 0;
  if (given_up(status) && !dsm_worker.board) return 1;
  struct dsm_slot *slot = &dsm_worker.board->slots[number];
  if (answered(slot, generation, status, result)) return 1;
  uint64_t start = dsm_now(), spin_ns = (uint64_t)dsm_worker.options.spin_ns;
  if (!load_relaxed(&slot->since)) store_relaxed(&slot->since, start); /* a later slice of the same wait keeps it */
  for (uint64_t waited = 0; waited < spin_ns; waited = dsm_now() - start) {
    if (timeout_ns >= 0 && waited >= (uint64_t)timeout_ns) return 0;
    sched_yield();
    if (answered(slot, generation, status, result)) return 1;
  }
  for (;;) {
    uint64_t waited = dsm_now() - start, slice = SLICE_NS;
    if (timeout_ns >= 0 && waited >= (uint64_t)timeout_ns) return 0;
    if (timeout_ns >= 0 && (uint64_t)timeout_ns - waited < slice) slice = (uint64_t)timeout_ns - waited;
    store_ordered(&slot->sleeping, 1);
    fence_ordered();
    long woken = dsm_futex_wait(&slot->state, DSM_SLOT_POSTED, slice);
    if (woken == -ETIMEDOUT) dsm_check_manager();
    if (answered(slot, generation, status, result)) return 1;
    if (once && (woken == -EINTR || (woken == -ETIMEDOUT && slice == SLICE_NS))) return -EINTR;
    if (woken == -EAGAIN) sched_yield(); /* neither posted nor done: the board was taken away */
  }
}
