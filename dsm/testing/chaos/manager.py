"""A manager whose stacks can be seen: ``python -m dsm.testing.chaos.manager``, SIGUSR1 prints them."""

from __future__ import annotations

import faulthandler
import signal
import sys

from dsm.manager.__main__ import main

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.exit(main(sys.argv[1:]))
