/* Manager side: the boards of a node, and waiting for what its workers and its sockets have to say.
 *
 * Owns the maps of the boards.  The sleeping-flag protocol: a worker posts, counts the doorbell up, and
 * only then looks at `sleeping`; the manager says that it sleeps, and only then looks at the doorbell
 * once more (both sequentially consistent), so that one of the two sees the other.
 *
 * What a worker posted before it wrote to a socket is reported with that socket, or earlier, if there is room:
 * whenever one is found ready, the slots are looked at once more.
 */
#include "internal.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "manager.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

uint64_t dsm_node_board_bytes(void) { return sizeof(struct dsm_node_board); }
uint64_t dsm_worker_board_bytes(void) { return sizeof(struct dsm_worker_board); }

struct dsm_board *dsm_board_new(int node_fd, int bell_fd) {
  struct dsm_board *board = calloc(1, sizeof *board);
  if (!board) return NULL;
  board->node = dsm_map_file(node_fd, sizeof *board->node, sizeof *board->node, 1);
  if (!board->node) {
    free(board);
    return NULL;
  }
  board->node->magic = DSM_MAGIC;
  board->bell_fd = bell_fd;
  board->epoll_fd = -1;
  return board;
}

void dsm_board_free(struct dsm_board *board) {
  if (!board) return;
  while (board->count) dsm_board_remove(board, board->numbers[0]);
  munmap(board->node, sizeof *board->node);
  free(board);
}

int dsm_board_add(struct dsm_board *board, uint32_t worker, int worker_fd, int nudge_fd) {
  if (worker >= DSM_WORKERS) return -EINVAL;
  struct dsm_member *member = &board->members[worker];
  if (member->board) return -EEXIST;
  member->board = dsm_map_file(worker_fd, sizeof *member->board, sizeof *member->board, 1);
  if (!member->board) return -errno;
  member->board->magic = DSM_MAGIC;
  member->nudge_fd = nudge_fd;
  member->done_seen = load_ordered(&member->board->commands_done);
  board->numbers[board->count++] = worker;
  board->unfinished = true;
  return 0;
}

int dsm_board_remove(struct dsm_board *board, uint32_t worker) {
  if (worker >= DSM_WORKERS || !board->members[worker].board) return -ENOENT;
  munmap(board->members[worker].board, sizeof(struct dsm_worker_board));
  board->members[worker].board = NULL;
  for (uint32_t i = 0; i < board->count; i++) {
    if (board->numbers[i] == worker) board->numbers[i] = board->numbers[--board->count];
  }
  return 0;
}

static void free_slot(struct dsm_worker_board *board, uint32_t slot) {
  store_release(&board->slots[slot].state, DSM_SLOT_FREE);
  atomic_fetch_and(&board->used[slot / 64], ~(UINT64_C(1) << slot % 64));
}

/* Report one slot; those that nobody waits for are freed here. */
static void report_slot(struct dsm_worker_board *board, uint32_t worker, uint32_t slot, uint64_t *event) {
  struct dsm_slot *from = &board->slots[slot];
  const uint64_t values[8] = {worker, slot, from->op, from->object, from->a, from->b, from->c, from->ip};
  memcpy(event, values, sizeof values);
  if (from->op == DSM_OP_TOUCHED || from->op & DSM_OP_NO_REPLY) free_slot(board, slot);
}

static uint32_t collect_worker(struct dsm_member *member, uint32_t worker, uint64_t *events, uint32_t room) {
  struct dsm_worker_board *board = member->board;
  uint32_t found = 0;
  uint64_t done = load_acquire(&board->commands_done);
  if (done != member->done_seen && found < room) {
    const uint64_t values[8] = {worker, 0, DSM_OP_DONE, 0, done, 0, 0, 0};
    memcpy(events, values, sizeof values);
    member->done_seen = done;
    found++;
  }
  for (uint32_t word = 0; word < DSM_SLOTS / 64; word++) {
    uint64_t bits = load_acquire(&board->pending[word]);
    while (bits && found < room) {
      uint32_t bit = (uint32_t)__builtin_ctzll(bits);
      bits &= bits - 1;
      atomic_fetch_and(&board->pending[word], ~(UINT64_C(1) << bit));
      report_slot(board, worker, word * 64 + bit, events + 8 * (size_t)found++);
    }
  }
  return found;
}

/* Everything posted since the last time.  What finds no room is found the next time. */
static uint32_t collect(struct dsm_board *board, uint64_t *events, uint32_t room) {
  uint32_t doorbell = load_ordered(&board->node->doorbell);
  if (doorbell == board->doorbell_seen && !board->unfinished) return 0;
  board->doorbell_seen = doorbell;
  uint32_t found = 0;
  for (uint32_t i = 0; i < board->count && found < room; i++) {
    uint32_t worker = board->numbers[(board->first + i) % board->count];
    found += collect_worker(&board->members[worker], worker, events + 8 * (size_t)found, room - found);
  }
  board->first++; /* so that no worker is always the one without room */
  board->unfinished = found == room;
  return found;
}

static int wait_epoll(int epoll_fd, struct epoll_event *events, int room, int64_t timeout_ns) {
  static _Atomic int without_ns;
  if (timeout_ns > 0 && !load_relaxed(&without_ns)) {
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    long count = syscall(SYS_epoll_pwait2, epoll_fd, events, room, &limit, NULL, (size_t)8);
    if (count >= 0 || errno != ENOSYS) return (int)count;
    store_relaxed(&without_ns, 1);
  }
  int64_t milliseconds = timeout_ns <= 0 ? timeout_ns : (timeout_ns + 999999) / 1000000;
  return epoll_wait(epoll_fd, events, room, milliseconds > INT32_MAX ? INT32_MAX : (int)milliseconds);
}

#define READY_AT_ONCE 64
#define POLL_EVERY 4 /* while slots keep coming, sockets are asked every so many times: they must not starve */

/* Ask the kernel; the bell is not reported.  The number of descriptors, or a negative errno. */
static int poll_ready(struct dsm_board *board, uint64_t *ready, uint32_t room, int64_t timeout_ns) {
  struct epoll_event found[READY_AT_ONCE];
  if (room > READY_AT_ONCE - 1) room = READY_AT_ONCE - 1;
  int count = wait_epoll(board->epoll_fd, found, (int)room + 1, timeout_ns);
  if (count < 0) return -errno;
  uint32_t kept = 0;
  for (int i = 0; i < count; i++) {
    if (found[i].data.fd == board->bell_fd) continue;
    if (kept == room) break; /* level-triggered: it comes again */
    ready[kept++] = (uint32_t)found[i].data.fd | (uint64_t)found[i].events << 32;
  }
  return (int)kept;
}

/* The bell is edge-triggered and never read: each write is one edge, and a read would be a system call. */
static int use_epoll(struct dsm_board *board, int epoll_fd) {
  if (board->epoll_fd == epoll_fd) return 0;
  struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = board->bell_fd};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, board->bell_fd, &event) != 0 && errno != EEXIST) return -errno;
  board->epoll_fd = epoll_fd;
  return 0;
}

/* Say that we sleep, look once more, sleep.  The result of poll_ready. */
static int sleep_ready(struct dsm_board *board, uint64_t *ready, uint32_t room, int64_t timeout_ns) {
  store_ordered(&board->node->sleeping, 1);
  fence_ordered();
  bool rung = load_ordered(&board->node->doorbell) != board->doorbell_seen;
  int count = poll_ready(board, ready, room, rung ? 0 : timeout_ns);
  store_ordered(&board->node->sleeping, 0);
  return count;
}

int dsm_board_wait(struct dsm_board *board, int epoll_fd, uint64_t *events, uint32_t max_events, uint64_t *ready,
                   uint32_t max_ready, uint32_t *ready_count, int64_t spin_ns, int64_t timeout_ns) {
  *ready_count = 0;
  int result = use_epoll(board, epoll_fd);
  if (result < 0) return result;
  uint64_t start = 0; /* the clock is read only when there is nothing to do */
  for (;;) {
    uint32_t found = collect(board, events, max_events);
    if (found && ++board->unpolled % POLL_EVERY) return (int)found; /* a fault is not delayed by a system call */
    int count = poll_ready(board, ready, max_ready, 0);
    if (count > 0) {
      *ready_count = (uint32_t)count;
      found += collect(board, events + 8 * (size_t)found, max_events - found);
    }
    if (found || count > 0) return (int)found;
    if (count < 0) return count == -EINTR ? 0 : count;
    uint64_t now = dsm_now();
    if (!start) start = now;
    int64_t waited = (int64_t)(now - start);
    if (timeout_ns >= 0 && waited >= timeout_ns) return 0;
    if (waited < spin_ns) {
      sched_yield();
      continue;
    }
    count = sleep_ready(board, ready, max_ready, timeout_ns < 0 ? -1 : timeout_ns - waited);
    if (count < 0) return count == -EINTR ? 0 : count;
    *ready_count = (uint32_t)count;
    if (count > 0) return (int)collect(board, events, max_events);
  }
}

void dsm_complete(struct dsm_board *board, uint32_t worker, uint32_t slot, uint32_t status, uint64_t result) {
  if (worker >= DSM_WORKERS || slot >= DSM_SLOTS || !board->members[worker].board) return;
  struct dsm_slot *to = &board->members[worker].board->slots[slot];
  if (load_acquire(&to->state) != DSM_SLOT_POSTED) return;
  to->status = status;
  to->result = result;
  store_ordered(&to->state, DSM_SLOT_DONE);
  fence_ordered();
  if (load_ordered(&to->sleeping)) dsm_futex_wake(&to->state);
}

int dsm_unapplied(struct dsm_board *board, uint32_t worker, uint32_t slot) {
  if (worker >= DSM_WORKERS || slot >= DSM_SLOTS || !board->members[worker].board) return 0;
  return load_ordered(&board->members[worker].board->slots[slot].state) == DSM_SLOT_DONE;
}

int dsm_worker_statistics(struct dsm_board *board, uint32_t worker, uint64_t *out, uint32_t max) {
  if (worker >= DSM_WORKERS || !board->members[worker].board) return -ENOENT;
  struct dsm_worker_board *from = board->members[worker].board;
  _Atomic uint64_t *const counters[] = {&from->faults_read, &from->faults_write, &from->faults_local, &from->mprotects,
                                        &from->merges,      &from->poisoned,     &from->lease_late_ns};
  const uint32_t named = sizeof counters / sizeof counters[0];
  uint32_t count = 0;
  for (; count < named && count < max; count++) out[count] = load_relaxed(counters[count]);
  for (; count < named + DSM_BUCKETS && count < max; count++) out[count] = load_relaxed(&from->latency[count - named]);
  return (int)count;
}

int dsm_worker_waits(struct dsm_board *board, uint32_t worker, uint64_t *out, uint32_t max_slots) {
  if (worker >= DSM_WORKERS || !board->members[worker].board) return -ENOENT;
  struct dsm_worker_board *from = board->members[worker].board;
  uint32_t found = 0;
  for (uint32_t i = 0; i < DSM_SLOTS && found < max_slots; i++) {
    struct dsm_slot *slot = &from->slots[i];
    if (load_acquire(&slot->state) != DSM_SLOT_POSTED || slot->op & DSM_OP_NO_REPLY) continue;
    if (slot->op == DSM_OP_TOUCHED) continue;
    const uint64_t values[8] = {i,       slot->op, slot->object, slot->a,
                                slot->b, slot->c,  slot->thread, load_relaxed(&slot->since)};
    memcpy(out + 8 * (size_t)found++, values, sizeof values);
  }
  return (int)found;
}
