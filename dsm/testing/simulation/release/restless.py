"""A writer that asks for the home of a page at every chance, so that homes move more often than is wise."""

from __future__ import annotations

from dsm.coherence.release.writer import Writer


class Restless(Writer):
    """Takes one release in which nobody else has written a page for many."""

    __slots__ = ()

    def wants_home(self, page: int) -> bool:
        """Whether to ask for the home of a page that is about to be written."""
        if self.streaks[page]:
            self.streaks[page] = 255
        return super().wants_home(page)
