/* Worker side: the SIGSEGV handlers that were there before ours, or came after it.
 *
 * Owns the chain, newest first.  A fault that is not ours goes to the newest as the kernel would have
 * delivered it.  When that handler faults or raises SIGSEGV again (faulthandler puts its predecessor back,
 * which is us, and raises), the next older one is called, and in the end the default action: a true
 * segmentation fault still ends the process as one.
 */
#include "internal.h"

#include <sys/syscall.h>

#define CHAIN 8      /* handlers kept; the oldest but one make room */
#define SNAPSHOTS 16 /* a handler may still read one that was replaced */
#define REPEATS 64   /* times a handler may return to the same fault before it is taken to have done nothing */
#define REPEAT_NS 200000000u

struct chain {
  uint32_t length;
  struct sigaction action[CHAIN]; /* oldest first */
  _Atomic int reset[CHAIN];       /* SA_RESETHAND: was called once */
};

static struct chain snapshots[SNAPSHOTS];
static uint32_t published;
static _Atomic(struct chain *) current;
static _Atomic int dying;

/* Initial-exec: reading it in a handler allocates nothing. */
#define THREAD static __thread __attribute__((tls_model("initial-exec")))
THREAD uint32_t depth;       /* handlers of the chain that are running in this thread */
THREAD uintptr_t depth_frame; /* where the innermost was called from: a longjmp out of it is noticed by this */
THREAD uint64_t last_address, last_ns;
THREAD uint32_t repeats;

/* SIGNAL-SAFE. */
bool dsm_chain_dying(void) { return load_relaxed(&dying); }

static bool same_handler(const struct sigaction *a, const struct sigaction *b) {
  return (a->sa_flags & SA_SIGINFO) == (b->sa_flags & SA_SIGINFO) && a->sa_handler == b->sa_handler;
}

/* Inside dsm_lock.  A handler that comes back takes the newest place and leaves its old one. */
int dsm_chain_push(const struct sigaction *action) {
  static const struct chain empty;
  const struct chain *old = load_relaxed(&current);
  if (!old) old = &empty;
  struct chain *new = &snapshots[published++ % SNAPSHOTS];
  uint32_t skip = old->length == CHAIN ? 1 : 0, length = 0;
  for (uint32_t i = 0; i < old->length; i++) {
    if ((i == 1 && skip) || same_handler(&old->action[i], action)) continue;
    store_relaxed(&new->reset[length], load_relaxed(&old->reset[i]));
    new->action[length++] = old->action[i];
  }
  store_relaxed(&new->reset[length], 0);
  new->action[length++] = *action;
  new->length = length;
  store_release(&current, new);
  return 0;
}

/* SIGNAL-SAFE.  The fault repeats when we return, and then it kills; what was sent has to be sent again. */
static void take_default(int signal, const siginfo_t *info) {
  store_relaxed(&dying, 1);
  struct sigaction action = {.sa_handler = SIG_DFL};
  sigaction(signal, &action, NULL);
  if (info->si_code <= 0) syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal);
}

/* SIGNAL-SAFE.  With the mask that the kernel would have set for it. */
static void call(const struct sigaction *action, int signal, siginfo_t *info, ucontext_t *context) {
  sigset_t mask, ours;
  sigemptyset(&mask);
  memcpy(&mask, &context->uc_sigmask, 8); /* the kernel fills no more */
  sigorset(&mask, &mask, &action->sa_mask);
  if (!(action->sa_flags & SA_NODEFER)) sigaddset(&mask, signal);
  pthread_sigmask(SIG_SETMASK, &mask, &ours);
  if (action->sa_flags & SA_SIGINFO) {
    action->sa_sigaction(signal, info, context);
  } else {
    action->sa_handler(signal);
  }
  pthread_sigmask(SIG_SETMASK, &ours, NULL);
}

/* SIGNAL-SAFE.  A chained handler that always returns without having changed anything (faulthandler after
 * disable()) would keep the thread in this fault for ever. */
static bool repeats_too_often(const siginfo_t *info) {
  if (info->si_code <= 0) return false;
  uint64_t now = dsm_now(), address = (uint64_t)info->si_addr;
  if (address != last_address || now - last_ns > REPEAT_NS) {
    last_address = address;
    last_ns = now;
    repeats = 0;
  }
  return ++repeats > REPEATS;
}

/* SIGNAL-SAFE.  What this handler is, of those that dsm_chain_call may call; NULL: take the default. */
static const struct sigaction *pick(struct chain *chain) {
  if (depth >= chain->length) return NULL;
  uint32_t index = chain->length - 1 - depth;
  const struct sigaction *action = &chain->action[index];
  if ((action->sa_flags & SA_RESETHAND) && atomic_exchange(&chain->reset[index], 1)) return NULL;
  if (!(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_DFL) return NULL;
  return action;
}

/* SIGNAL-SAFE.  Calls the handler whose turn it is, or takes the default. */
void dsm_chain_call(int signal, siginfo_t *info, void *context) {
  uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
  if (depth && frame >= depth_frame) depth = 0; /* the one that was running has jumped out */
  struct chain *chain = load_acquire(&current);
  const struct sigaction *action = chain ? pick(chain) : NULL;
  if (!action || repeats_too_often(info)) {
    take_default(signal, info);
    return;
  }
  if (!(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_IGN) {
    if (info->si_code > 0) take_default(signal, info); /* a fault cannot be ignored */
    return;
  }
  uintptr_t outer = depth_frame;
  uint32_t level = depth++;
  depth_frame = frame;
  call(action, signal, info, context);
  depth = level;
  depth_frame = outer;
}
