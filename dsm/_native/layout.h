/* Memory that a manager and its workers share: the boards and the page tables.
 *
 * Owns the layout of the node board (one a node), the worker board (one a worker) and the meaning of
 * the bytes of the wanted and applied tables.  Every field that two processes touch is atomic; which
 * order the accesses need is said here once and obeyed in the functions that make them.
 *
 *   wanted table    one byte a page, one table a node and region.  Written by the manager (level, mark);
 *                   a worker clears DSM_MARK.
 *   applied table   one byte a page, one table a worker and region.  Written by the worker only, under
 *                   DSM_LOCKED of that byte (the page lock).  The manager reads it.
 *   leases          eight bytes a page, behind the wanted table of a region that has them: CLOCK_MONOTONIC in
 *                   ns, until when DSM_READ counts.  Written by the manager, before it raises the page.
 *
 * The rule that makes a revocation safe (each line is sequentially consistent):
 *
 *   worker   lock the page in applied; read wanted; mprotect; store applied and unlock
 *   manager  store wanted; read applied
 *
 * If the manager reads a level that is not higher and no lock, whoever locks the page later reads the
 * new wanted.  Otherwise it asks the worker's service thread, which waits for the lock and re-reads.
 *
 * A wanted DSM_READ whose lease is over counts as DSM_NONE.  Nobody is told that it is over: whoever maps a page
 * first notes when its lease ends, and the service thread takes the access away at that time by itself, whatever
 * has become of the manager.  To the manager that looks like a worker that gave maps up: applied is lower than
 * wanted, and the next touch asks.
 */
#ifndef DSM_LAYOUT_H
#define DSM_LAYOUT_H

#include <stdatomic.h>
#include <stdint.h>

#define DSM_MAGIC 0x314d5344u /* "DSM1" */
#define DSM_SLOTS 256         /* threads of a worker that wait at the same time */
#define DSM_WORKERS 256       /* workers of a node */
#define DSM_COMMANDS 1024     /* revocations posted to a worker and not yet done */
#define DSM_BUCKETS 40        /* latency histogram: powers of two of nanoseconds */

/* Bits of a wanted or applied byte. */
#define DSM_NONE 0u
#define DSM_READ 1u
#define DSM_WRITE 3u
#define DSM_LEVEL 3u   /* mask */
#define DSM_MARK 0x10u /* wanted: tell the manager when a worker first uses this page */
#define DSM_POISONED 0x20u /* applied: private memory lies over a part of the page; it goes before the page is mapped */
#define DSM_PINNED 0x40u /* applied: keep it mapped when merging maps */
#define DSM_LOCKED 0x80u /* applied: the page lock */

/* What a slot asks of the manager. */
#define DSM_OP_FAULT_READ 1u
#define DSM_OP_FAULT_WRITE 2u
#define DSM_OP_TOUCHED 3u /* a marked page was used; nobody waits, the manager frees the slot */
#define DSM_OP_DONE 15u   /* pseudo-operation: a worker finished revocations up to `a` */
#define DSM_OP_CALL 16u   /* and above: calls of dsm_call_begin, their meaning is not the shim's */
#define DSM_OP_NO_REPLY 0x40000000u /* flag of a call: nobody waits, the manager's side frees the slot */

/* Where the leases lie behind a wanted table. */
#define DSM_LEASES_AT(pages) (((pages) + 7) / 8 * 8)
#define DSM_WANTED_BYTES(pages, leased) ((leased) ? DSM_LEASES_AT(pages) + 8 * (pages) : (pages))

#define DSM_SLOT_FREE 0u
#define DSM_SLOT_POSTED 1u
#define DSM_SLOT_DONE 2u

/* One waiting thread.  `state` is the futex word. */
struct dsm_slot {
  _Atomic uint32_t state;
  _Atomic uint32_t sleeping; /* the thread is in, or about to enter, FUTEX_WAIT */
  uint32_t op;
  uint32_t object; /* region, or what the call is about */
  uint64_t a, b, c;
  uint64_t ip;     /* faults: the instruction, so that the manager sees it fault again */
  uint64_t thread; /* kernel thread id */
  uint64_t result;
  uint32_t status;
  _Atomic uint64_t since; /* CLOCK_MONOTONIC in ns when the thread began to wait; 0: not yet.  For status only */
  uint32_t unused[12];
};
_Static_assert(sizeof(struct dsm_slot) == 128, "slots do not share cache lines");

/* Lower every page of this range to what is wanted. */
struct dsm_command {
  uint32_t region;
  uint32_t count;
  uint64_t page;
};

struct dsm_node_board {
  uint32_t magic;
  _Alignas(64) _Atomic uint32_t doorbell; /* counts what workers posted or finished */
  _Atomic uint32_t sleeping;              /* the manager is about to sleep: ring its eventfd too */
};

struct dsm_worker_board {
  uint32_t magic;
  _Alignas(64) _Atomic uint64_t pending[DSM_SLOTS / 64]; /* posted, not yet collected */
  _Alignas(64) _Atomic uint64_t used[DSM_SLOTS / 64];    /* allocated slots */
  _Alignas(64) _Atomic uint64_t commands_posted;         /* written by the manager */
  _Atomic uint32_t sweep; /* the ring overflowed: compare the whole tables instead */
  _Alignas(64) _Atomic uint64_t commands_done; /* written by the service thread */
  _Atomic uint32_t service_sleeping;
  /* Statistics, written by the worker, relaxed. */
  _Alignas(64) _Atomic uint64_t faults_read;
  _Atomic uint64_t faults_write;
  _Atomic uint64_t faults_local; /* answered from the wanted table without the manager */
  _Atomic uint64_t mprotects;
  _Atomic uint64_t merges;   /* maps merged because their number neared the limit */
  _Atomic uint64_t poisoned; /* faults that ended in an error */
  _Atomic uint64_t lease_late_ns; /* in all: by how much access under a lease outlived its guard */
  _Atomic uint64_t latency[DSM_BUCKETS];
  struct dsm_command commands[DSM_COMMANDS];
  struct dsm_slot slots[DSM_SLOTS];
};

#endif
