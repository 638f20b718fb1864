"""Functions that run in threads of a test, and Ctrl-C for the test's own."""

import signal
import threading

from support import wait_until

DEADLINE_S = 20


def in_threads(*functions):
    """Run functions in threads of their own; return what each returned, or the exception."""
    outcomes = [None] * len(functions)

    def run(index, function):
        try:
            outcomes[index] = function()
        except BaseException as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return outcomes


def interrupt_when(condition):
    """Send Ctrl-C to the main thread once `condition()` is true."""
    main = threading.get_ident()

    def run():
        wait_until(condition)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
