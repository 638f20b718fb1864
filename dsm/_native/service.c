/* Worker side: the native thread that obeys revocations.
 *
 * Owns the thread.  It never takes the interpreter's lock and touches no region, so it answers while every
 * Python thread is stuck in a fault or a long computation.  It also notices that the manager is gone: then
 * what is mapped is nobody's any more and is closed, so that a thread that needs no fault does not go on alone.
 * It takes away by itself what a lease allowed, when that is over.  And once a second it looks whether our SIGSEGV
 * handler was replaced (faulthandler.enable() called later does that).
 */
#include "internal.h"

#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>

#define STACK_BYTES (256 * 1024) /* other libraries' thread-local data is taken from it, too */
#define SECOND UINT64_C(1000000000)
#define TICK_NS SECOND
#define PAUSE_NS 20000 /* what a lock is held for is shorter, once its holder has a processor */

static pthread_t thread;
static _Atomic int hurried; /* the thread goes before all ordinary ones */
static bool running;
static _Atomic int stopping;
static bool closed_all; /* of the thread itself: the manager is gone, and it has obeyed that */

/* A thread that goes before others must sleep to let them go on; sched_yield would not. */
void dsm_pause(void) {
  if (!load_relaxed(&hurried) || !pthread_equal(pthread_self(), thread)) {
    sched_yield();
    return;
  }
  struct timespec pause = {.tv_nsec = PAUSE_NS};
  nanosleep(&pause, NULL);
}

/* Leases end on time only if the thread gets a processor then.  Where the system lets us (CAP_SYS_NICE,
 * RLIMIT_RTPRIO) it goes before all ordinary threads; elsewhere it waits for its turn as they do. */
void dsm_service_hurry(void) {
  struct sched_param first = {.sched_priority = 1};
  if (running && !load_relaxed(&hurried) && pthread_setschedparam(thread, SCHED_FIFO, &first) == 0) {
    store_ordered(&hurried, 1);
  }
}

static void obey_one(const struct dsm_command *command) {
  sigset_t old;
  dsm_lock(&old);
  struct dsm_region *region = dsm_registry_number(command->region);
  bool entered = region && dsm_region_enter(region, DSM_OPEN);
  dsm_unlock(&old); /* every signal is blocked in this thread all the time */
  if (!entered) return; /* closed: inside dsm_lock nothing is half closed, so that no thread is at its maps still */
  dsm_lower_range(region, command->page, command->count, dsm_now());
  dsm_region_leave(region);
}

/* The ring had overflowed: whatever is mapped and not wanted any more, anywhere. */
static void obey_all(void) {
  for (struct dsm_region *region = dsm_registry_next(0); region; region = dsm_registry_next(region->end)) {
    sigset_t old;
    dsm_lock(&old);
    bool entered = dsm_region_enter(region, DSM_OPEN);
    dsm_unlock(&old); /* as in obey_one */
    if (!entered) continue;
    dsm_lower_range(region, 0, region->pages, dsm_now());
    dsm_region_leave(region);
  }
}

/* Returns whether there was something to do.  `commands_done` is stored when everything up to it is applied. */
static bool obey(struct dsm_worker_board *board) {
  uint64_t done = load_relaxed(&board->commands_done);
  uint64_t posted = load_ordered(&board->commands_posted);
  if (posted == done) return false;
  if (atomic_exchange(&board->sweep, 0)) { /* after reading `posted`: it covers all of them */
    obey_all();
  } else {
    for (uint64_t i = done; i != posted; i++) {
      struct dsm_command command = board->commands[i % DSM_COMMANDS];
      obey_one(&command);
    }
  }
  store_ordered(&board->commands_done, posted);
  dsm_ring();
  return true;
}

/* Whoever noticed that the manager is gone.  What is mapped later is closed as it comes (region.c). */
static void close_if_lost(void) {
  if (closed_all || !load_ordered(&dsm_worker.lost)) return;
  closed_all = true;
  sigset_t old;
  dsm_lock(&old);
  dsm_close_all(load_relaxed(&dsm_worker.status_lost));
  dsm_unlock(&old);
}

static void tick(void) {
  dsm_handler_check();
  dsm_poison_tend();
}

void dsm_service_nudge(void) {
  uint64_t one = 1;
  if (write(dsm_worker.options.nudge_fd, &one, sizeof one) < 0) { /* full: it is awake anyway */
  }
}

static void sleep_until_nudged(struct dsm_worker_board *board, uint64_t until) {
  store_ordered(&board->service_sleeping, 1);
  fence_ordered();
  bool work = load_ordered(&board->commands_posted) != load_relaxed(&board->commands_done);
  struct pollfd fds[2] = {{.fd = dsm_worker.options.nudge_fd, .events = POLLIN},
                          {.fd = closed_all ? -1 : dsm_worker.options.manager_pidfd, .events = POLLIN}};
  if (!work && !load_ordered(&stopping) && dsm_lease_sleep(until)) {
    uint64_t now = dsm_now(), rest = until > now ? until - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(rest / SECOND), .tv_nsec = (long)(rest % SECOND)};
    ppoll(fds, 2, &timeout, NULL);
  }
  dsm_lease_awake();
  store_ordered(&board->service_sleeping, 0);
  uint64_t count;
  if ((fds[0].revents & POLLIN) && read(fds[0].fd, &count, sizeof count) < 0) { /* somebody else drained it */
  }
  if (fds[1].revents) dsm_check_manager();
}

static void *serve(void *unused) {
  prctl(PR_SET_NAME, "dsm-service");
  prctl(PR_SET_TIMERSLACK, 1); /* leases end on time, not when it is convenient */
  struct dsm_worker_board *board = dsm_worker.board;
  uint64_t last_work = 0, last_tick = dsm_now(), spin_ns = (uint64_t)dsm_worker.options.spin_ns;
  while (!load_ordered(&stopping)) {
    close_if_lost();
    uint64_t look = dsm_lease_look();
    if (obey(board)) {
      last_work = dsm_now();
      continue;
    }
    uint64_t now = dsm_now();
    if (now - last_tick >= TICK_NS) {
      tick();
      last_tick = dsm_now();
    }
    if (now - last_work < spin_ns && !load_relaxed(&hurried)) {
      sched_yield();
      continue;
    }
    sleep_until_nudged(board, look < now + TICK_NS ? look : now + TICK_NS);
  }
  return unused;
}

/* Inside dsm_lock: the thread inherits that every signal is blocked. */
int dsm_service_start(void) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  store_ordered(&stopping, 0);
  closed_all = false;
  dsm_lease_forget();
  store_ordered(&hurried, 0);
  int result = pthread_create(&thread, &attributes, serve, NULL);
  pthread_attr_destroy(&attributes);
  running = result == 0;
  return -result;
}

void dsm_service_stop(void) {
  if (!running) return;
  store_ordered(&stopping, 1);
  dsm_service_nudge();
  pthread_join(thread, NULL);
  running = false;
}

/* In a forked child: there is no such thread. */
void dsm_service_forget(void) {
  running = false;
  store_ordered(&hurried, 0);
}
