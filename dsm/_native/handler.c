/* Worker side: the SIGSEGV handler.
 *
 * Owns the way of a fault: whose it is, read or write (from the machine context), what the wanted table
 * grants already, what only the manager can grant.  Everything here but the two functions that install it,
 * at the end, is SIGNAL-SAFE: it runs with every signal masked, on the thread's alternate stack if it has
 * one, and keeps errno.  A grant is applied before its slot is given back, so that the manager sees
 * (dsm_unapplied) whether the thread has got its page yet.
 */
#include "internal.h"

#include <ucontext.h>

#if defined(__aarch64__)
#include <asm/sigcontext.h>
#endif

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_EXECUTE, ACCESS_UNKNOWN };

#if defined(__x86_64__)

/* The page fault's error code: bit 1 write, bit 4 instruction fetch (Intel SDM 3A, 4.7). */
static enum access access_of(const ucontext_t *context) {
  uint64_t code = (uint64_t)context->uc_mcontext.gregs[REG_ERR];
  return code & 16 ? ACCESS_EXECUTE : code & 2 ? ACCESS_WRITE : ACCESS_READ;
}

static uint64_t instruction_of(const ucontext_t *context) { return (uint64_t)context->uc_mcontext.gregs[REG_RIP]; }

#elif defined(__aarch64__)

/* ESR_EL1, among the records behind the registers: class 0x20 and 0x21 instruction aborts, bit 6 write,
 * bit 8 cache maintenance, which says "write" but needs only read (Arm ARM, D17.2.37). */
static enum access access_of(const ucontext_t *context) {
  const uint8_t *at = (const uint8_t *)context->uc_mcontext.__reserved;
  const uint8_t *end = at + sizeof context->uc_mcontext.__reserved;
  while (at + sizeof(struct _aarch64_ctx) <= end) {
    const struct _aarch64_ctx *head = (const struct _aarch64_ctx *)at;
    if (head->magic == 0 || head->size < sizeof *head) break;
    if (head->magic == ESR_MAGIC) {
      uint64_t esr = ((const struct esr_context *)head)->esr, class = esr >> 26 & 0x3f;
      if (class == 0x20 || class == 0x21) return ACCESS_EXECUTE;
      return (esr & 0x40) && !(esr & 0x100) ? ACCESS_WRITE : ACCESS_READ;
    }
    at += head->size;
  }
  return ACCESS_UNKNOWN;
}

static uint64_t instruction_of(const ucontext_t *context) { return context->uc_mcontext.pc; }

#else
#error "the signal pager knows x86-64 and aarch64"
#endif

struct fault {
  struct dsm_region *region;
  uint64_t address;
  uint64_t page;
  uint64_t ip;
  uint32_t need; /* DSM_READ or DSM_WRITE */
};

static void poison(const struct fault *fault, uint32_t status, uint32_t peer) {
  dsm_poison(fault->region, fault->address, fault->need, status, peer);
}

/* How a fault ends that was applied, or could not be: what the kernel refused may count as applied. */
static void finish(const struct fault *fault, enum dsm_applied applied) {
  if (applied == DSM_SHUT) poison(fault, load_relaxed(&fault->region->status), 0);
  if (applied != DSM_EXHAUSTED) return;
  dsm_poison(fault->region, fault->address, DSM_NONE, load_relaxed(&dsm_worker.status_limit), 0);
}

static void count_fault(uint32_t need, uint64_t start) {
  struct dsm_worker_board *board = dsm_worker.board;
  uint64_t ns = dsm_now() - start;
  uint32_t bucket = 63u - (uint32_t)__builtin_clzll(ns | 1);
  add_relaxed(need == DSM_WRITE ? &board->faults_write : &board->faults_read, 1);
  add_relaxed(&board->latency[bucket < DSM_BUCKETS ? bucket : DSM_BUCKETS - 1], 1);
}

static int take_slot(uint32_t *status) {
  int slot;
  while ((slot = dsm_slot_take()) < 0) {
    dsm_check_manager();
    if (load_ordered(&dsm_worker.lost)) *status = load_relaxed(&dsm_worker.status_lost);
    if (load_ordered(&dsm_worker.ended)) *status = load_relaxed(&dsm_worker.status_closed);
    if (*status) return -1;
    sched_yield();
  }
  return slot;
}

/* Ask the manager, wait, apply. */
static void ask(const struct fault *fault) {
  uint32_t peer = 0, open = dsm_open_error(&peer);
  if (open) { /* its exception is pending: what it computes is void */
    poison(fault, open, peer);
    return;
  }
  uint64_t start = dsm_now(), result;
  uint32_t generation = load_ordered(&dsm_worker.generation);
  uint32_t status = load_ordered(&dsm_worker.lost) ? load_relaxed(&dsm_worker.status_lost) : 0;
  int slot = status ? -1 : take_slot(&status);
  if (slot < 0) {
    poison(fault, status, 0);
    return;
  }
  const uint64_t abc[3] = {fault->page, 0, 0};
  uint32_t op = fault->need == DSM_WRITE ? DSM_OP_FAULT_WRITE : DSM_OP_FAULT_READ;
  dsm_slot_post((uint32_t)slot, op, fault->region->number, abc, fault->ip);
  dsm_slot_wait((uint32_t)slot, generation, -1, false, &status, &result);
  bool mark = false;
  enum dsm_applied applied = DSM_APPLIED;
  /* Whatever is wanted now; it may be less again than what was granted: then the instruction faults again. */
  if (status == 0) applied = dsm_apply_for(fault->region, fault->page, DSM_NONE, &mark);
  /* After a stop and another start the board is a new one, and the slot somebody else's. */
  if (load_ordered(&dsm_worker.generation) == generation) {
    dsm_slot_give((uint32_t)slot);
    count_fault(fault->need, start);
  }
  if (mark) dsm_touched(fault->region->number, fault->page);
  if (status) {
    poison(fault, status, (uint32_t)result);
  } else {
    finish(fault, applied);
  }
}

static void serve(const struct fault *fault) {
  bool mark = false;
  enum dsm_applied applied = dsm_apply_for(fault->region, fault->page, fault->need, &mark);
  if (applied == DSM_MISSING) {
    ask(fault);
    return;
  }
  if (applied == DSM_APPLIED) add_relaxed(&dsm_worker.board->faults_local, 1);
  if (mark) dsm_touched(fault->region->number, fault->page);
  finish(fault, applied);
}

/* Whether the page is readable already: where the machine does not tell, a fault on it was a write. */
static bool readable(struct dsm_region *region, uint64_t page) {
  if (!dsm_region_enter(region, DSM_OPEN)) return false;
  bool result = load_ordered(&region->applied[page]) & DSM_READ;
  dsm_region_leave(region);
  return result;
}

static bool serve_if_ours(const siginfo_t *info, const ucontext_t *context) {
  if (info->si_code <= 0) return false; /* sent by somebody, not a fault */
  uint64_t address = (uint64_t)info->si_addr;
  struct dsm_region *region = dsm_registry_find(address);
  enum access access = region ? access_of(context) : ACCESS_EXECUTE;
  if (access == ACCESS_EXECUTE) return false;
  struct fault fault = {.region = region, .address = address, .ip = instruction_of(context)};
  fault.page = (address - region->address) >> region->page_shift;
  if (access == ACCESS_UNKNOWN) access = readable(region, fault.page) ? ACCESS_WRITE : ACCESS_READ;
  fault.need = access == ACCESS_WRITE ? DSM_WRITE : DSM_READ;
  serve(&fault);
  return true;
}

static void handle(int signal, siginfo_t *info, void *context) {
  int saved = errno;
  if (!serve_if_ours(info, context)) dsm_chain_call(signal, info, context);
  errno = saved;
}

/* Inside dsm_lock.  1 when another handler was there; it is chained now. */
int dsm_handler_install(void) {
  struct sigaction now;
  if (sigaction(SIGSEGV, NULL, &now) != 0) return -errno;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handle) return 0;
  int result = dsm_chain_push(&now);
  if (result < 0) return result;
  struct sigaction ours = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
  sigfillset(&ours.sa_mask);
  return sigaction(SIGSEGV, &ours, NULL) == 0 ? 1 : -errno;
}

int dsm_handler_check(void) {
  if (!dsm_worker.board || dsm_chain_dying()) return 0;
  sigset_t old;
  dsm_lock(&old);
  int result = dsm_handler_install();
  dsm_unlock(&old);
  return result;
}
