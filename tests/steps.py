"""A signal handler that comes at a chosen step.

CPython runs a handler where a function begins, where a call ends, and where a loop jumps back.  A profile
function stands for it at the first two in all of dsm, a trace function at each line of chosen modules.
"""

from __future__ import annotations

import sys


class Handler:
    """Comes once, at a step of what the calling thread does in its ``with`` block.

    Parameters
    ----------
    at
        The step, from 1; when it never came, `left` is above 0 afterwards.
    action
        What the handler does.
    lines
        Names of modules where it comes at each line, too.
    """

    def __init__(self, at, action, lines):
        self.left, self.action, self.lines = at, action, lines

    def _come(self):
        self.left -= 1
        if self.left == 0:
            self.action()  # in which Python calls neither function

    def _profile(self, frame, event, argument):
        if event in ("call", "c_return") and frame.f_globals["__name__"].startswith("dsm."):
            self._come()

    def _begin(self, frame, event, argument):
        return self._line if frame.f_globals["__name__"] in self.lines else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._come()
        return self._line

    def __enter__(self):
        sys.settrace(self._begin)
        sys.setprofile(self._profile)

    def __exit__(self, *_):
        sys.setprofile(None)
        sys.settrace(None)
