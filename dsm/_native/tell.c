/* Worker side: telling a thread of its own error while it is in the handler, or everybody that the process ends.
 *
 * Owns three pointers that the interpreter's side gave.  A thread that faults while it holds the interpreter's
 * lock keeps every Python thread from running, the one that raises errors too; waiting for it would be in vain
 * and, when more threads want the lock, would not even decide who gets it next.  Such a thread makes the
 * exception pending for itself, here.  A fault is synchronous, and code that touches a region's memory is
 * never inside the interpreter's allocator or its lists of threads: what may not be called from just any
 * signal handler may be called from this one.  The shim knows no more of Python than these calls.
 */
#include "internal.h"

#include <pthread.h>
#include <sys/syscall.h>

static int (*_Atomic holds)(void);
static int (*_Atomic pend)(unsigned long thread, void *what);
static void *_Atomic pending;

void dsm_error_hook(void *holds_lock, void *make_pending, void *what) {
  atomic_store(&pending, what);
  atomic_store(&pend, (int (*)(unsigned long, void *))make_pending);
  atomic_store(&holds, (int (*)(void))holds_lock);
}

/* SIGNAL-SAFE for synchronous faults: see above. */
bool dsm_tell_thread(void) {
  int (*asked)(void) = atomic_load(&holds);
  if (!asked || !asked()) return false;
  return atomic_load(&pend)((unsigned long)pthread_self(), atomic_load(&pending)) == 1;
}

/* Nobody can be told: the process must not compute with poison. */
void dsm_die(const char *message) {
  if (write(STDERR_FILENO, message, strlen(message)) < 0) { /* nobody to tell */
  }
  struct sigaction action = {.sa_handler = SIG_DFL};
  sigaction(SIGBUS, &action, NULL);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGBUS);
}
