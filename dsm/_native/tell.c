/* Worker side: telling a thread of its own error while it is in the handler.
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
