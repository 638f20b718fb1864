"""A worker process of a `Cluster`: ``python -m dsm.testing.serving DESCRIPTOR PARENT``.

Owns the worker's end: attach, then run what comes over the pipe until it closes or the parent dies.
"""

from __future__ import annotations

import sys
import traceback
from multiprocessing.connection import Connection

import dsm
from dsm.parent import die_with
from dsm.testing.cluster import WorkerFailed


def main(arguments: list[str]) -> None:
    """Serve until the pipe closes."""
    descriptor, parent = map(int, arguments)
    die_with(parent)
    pipe = Connection(descriptor)
    try:
        node = dsm.attach()
    except Exception as error:
        pipe.send((False, error))
        return
    pipe.send((True, None))
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            break
        except Exception as error:
            pipe.send((False, WorkerFailed(f"the function cannot be imported here: {error!r}")))
            continue
        try:
            answer = (True, function(node, *arguments))
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            answer = (False, error)
        try:
            pipe.send(answer)
        except Exception as error:
            pipe.send((False, WorkerFailed(f"the result cannot be sent back: {error!r}")))
    node.close()


if __name__ == "__main__":
    main(sys.argv[1:])
