"""A module that a test starts as a process: it tells what it finds, and ends as it is told."""

import json
import os
import signal
import sys
from pathlib import Path

import dsm


def found(descriptor):
    """Return what a process can see of its start."""
    descriptors = {
        int(number) for number in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{number}")
    }
    return {
        "pid": os.getpid(),
        "descriptor": descriptor,
        "other descriptors": len(descriptors - {0, 1, 2}),
        "standard descriptors": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
        "environment": dict(os.environ),
        "environment in /proc": Path("/proc/self/environ").read_text().rstrip("\0").split("\0"),
        "directory": os.getcwd(),
        "first of the path": sys.path[0],
        "package": str(Path(dsm.__file__).parent),
        "group": os.getpgrp(),
        "parent": os.getppid(),
        "Ctrl-C raises": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }


def main(arguments):
    """``tell DESCRIPTOR``, ``wait``, ``exit STATUS``, ``signal NUMBER`` or ``raise``."""
    match arguments:
        case ["tell", descriptor]:
            os.write(int(descriptor), json.dumps(found(int(descriptor))).encode())
        case ["wait"]:
            signal.pause()
        case ["exit", status]:
            return int(status)
        case ["signal", number]:
            os.kill(os.getpid(), int(number))
        case ["raise"]:
            raise LookupError("nobody catches this")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
