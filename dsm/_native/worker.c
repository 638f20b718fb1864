/* Worker side: the one context of this process, starting and stopping it.
 *
 * Owns `dsm_worker`, the maps of the boards and the one mutex of the slow paths (mapping, closing,
 * starting).  The boards keep their addresses for the life of the process: after a stop, and in a forked
 * child, empty private memory takes their place, so that a handler that is late reads zeros and not a hole.
 */
#include "internal.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct dsm_worker dsm_worker = {.status_lost = 2, .status_closed = 1, .status_limit = 5};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define LEAST_MAP_LIMIT 32 /* below it an instruction's own pages could not be mapped together */

/* SIGNAL-SAFE (signal-safety(7) lists clock_gettime). */
uint64_t dsm_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void dsm_lock(sigset_t *old) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, old);
  pthread_mutex_lock(&mutex);
}

void dsm_unlock(const sigset_t *old) {
  pthread_mutex_unlock(&mutex);
  pthread_sigmask(SIG_SETMASK, old, NULL);
}

void dsm_mutex_hold(void) { pthread_mutex_lock(&mutex); }
void dsm_mutex_release(void) { pthread_mutex_unlock(&mutex); }
void dsm_mutex_renew(void) { pthread_mutex_init(&mutex, NULL); }

void *dsm_map_file(int fd, uint64_t bytes, uint64_t minimum, int writable) {
  struct stat file;
  if (fstat(fd, &file) != 0) return NULL;
  if ((uint64_t)file.st_size < minimum) {
    errno = EINVAL;
    return NULL;
  }
  void *map = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return NULL;
  madvise(map, bytes, MADV_DONTFORK);
  return map;
}

/* Put a board's file, or with fd -1 empty memory, at its fixed address; choose the address the first time. */
static int place_board(void **board, uint64_t bytes, int fd) {
  int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  struct stat file;
  if (fd >= 0) {
    if (fstat(fd, &file) != 0) return -errno;
    if ((uint64_t)file.st_size < bytes) return -EINVAL;
  }
  void *map = mmap(*board, bytes, PROT_READ | PROT_WRITE, flags | (*board ? MAP_FIXED : 0), fd, 0);
  if (map == MAP_FAILED) return -errno;
  *board = map;
  if (fd >= 0) madvise(map, bytes, MADV_DONTFORK);
  return 0;
}

void dsm_empty_boards(void) {
  if (dsm_worker.node) place_board((void **)&dsm_worker.node, sizeof(struct dsm_node_board), -1);
  if (dsm_worker.board) place_board((void **)&dsm_worker.board, sizeof(struct dsm_worker_board), -1);
}

static int start_locked(const struct dsm_worker_options *options) {
  if (load_ordered(&dsm_worker.started)) return -EBUSY;
  dsm_worker.os_page = (uint64_t)sysconf(_SC_PAGESIZE);
  void **node = (void **)&dsm_worker.node, **board = (void **)&dsm_worker.board;
  int result = place_board(node, sizeof(struct dsm_node_board), options->node_fd);
  if (result == 0) result = place_board(board, sizeof(struct dsm_worker_board), options->worker_fd);
  if (result == 0) result = dsm_poison_prepare();
  if (result == 0) result = dsm_fork_prepare();
  if (result < 0) {
    dsm_empty_boards();
    return result;
  }
  dsm_worker.options = *options;
  if (dsm_worker.options.map_limit < LEAST_MAP_LIMIT) dsm_worker.options.map_limit = LEAST_MAP_LIMIT;
  store_ordered(&dsm_worker.lost, 0);
  store_ordered(&dsm_worker.ended, 0);
  atomic_fetch_add(&dsm_worker.generation, 1);
  result = dsm_handler_install();
  if (result >= 0) result = dsm_service_start();
  if (result < 0) {
    store_ordered(&dsm_worker.ended, 1);
    dsm_empty_boards();
    return result;
  }
  store_ordered(&dsm_worker.forked, 0);
  store_ordered(&dsm_worker.started, 1);
  return 0;
}

int dsm_worker_start(const struct dsm_worker_options *options) {
  sigset_t old;
  dsm_lock(&old);
  int result = start_locked(options);
  dsm_unlock(&old);
  return result;
}

#define LEAVE_NS 300000000u /* how long stopping waits for threads to leave the boards */

/* Whether a thread has a slot; what nobody waits for belongs to the manager. */
static bool slots_in_use(void) {
  struct dsm_worker_board *board = dsm_worker.board;
  for (uint32_t i = 0; i < DSM_SLOTS; i++) {
    bool used = load_ordered(&board->used[i / 64]) >> i % 64 & 1;
    uint32_t op = board->slots[i].op;
    if (used && op != DSM_OP_TOUCHED && !(op & DSM_OP_NO_REPLY)) return true;
  }
  return false;
}

static void wait_until_slots_free(void) {
  uint64_t start = dsm_now();
  while (slots_in_use() && dsm_now() - start < LEAVE_NS) {
    dsm_wake_slots();
    sched_yield();
  }
}

bool dsm_worker_runs(void) { return load_ordered(&dsm_worker.started) && !load_ordered(&dsm_worker.ended); }

int dsm_worker_stop(void) {
  sigset_t old;
  dsm_lock(&old);
  if (!dsm_worker_runs()) {
    dsm_unlock(&old);
    return -ESRCH;
  }
  dsm_close_all(load_relaxed(&dsm_worker.status_closed));
  store_ordered(&dsm_worker.ended, 1); /* and `started` still: no other start comes between */
  dsm_unlock(&old);
  dsm_service_stop(); /* without the mutex: the service thread takes it */
  dsm_lock(&old);
  wait_until_slots_free();
  dsm_empty_boards();
  /* The caller closes them now: a thread that is late must not write to what gets their numbers. */
  dsm_worker.options.bell_fd = dsm_worker.options.nudge_fd = dsm_worker.options.manager_pidfd = -1;
  store_ordered(&dsm_worker.started, 0);
  dsm_unlock(&old);
  return 0;
}

int dsm_worker_lost(void) {
  if (load_ordered(&dsm_worker.started)) dsm_check_manager();
  return load_ordered(&dsm_worker.lost);
}

void dsm_worker_statuses(uint32_t lost, uint32_t closed, uint32_t limit) {
  store_ordered(&dsm_worker.status_lost, lost);
  store_ordered(&dsm_worker.status_closed, closed);
  store_ordered(&dsm_worker.status_limit, limit);
}

int dsm_worker_forked(void) { return load_ordered(&dsm_worker.forked); }
