"""Memory that many take parts of, for a while: who finds no room waits in line.

Pure: it counts bytes and knows neither what they are for nor who takes them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


class Share(Generic[W]):
    """So many bytes for all; each has one part at most.

    Parameters
    ----------
    nbytes
        All of them; nobody may ask for more.

    Attributes
    ----------
    taken, waiting
        Bytes by who has them, and by who waits for them, the first first.
    """

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes
        self.taken: dict[W, int] = {}
        self.waiting: dict[W, int] = {}

    def take(self, who: W, nbytes: int) -> bool:
        """Take bytes; False: there is no room, or others wait, and `give` will name `who`."""
        self.waiting[who] = nbytes
        return who in self._serve()

    def give(self, who: W) -> list[W]:
        """Give back what somebody has, or waits for; return who has got his bytes by that."""
        self.waiting.pop(who, None)
        self.left += self.taken.pop(who, 0)
        return self._serve()

    def _serve(self) -> list[W]:
        served = []
        for who, nbytes in self.waiting.items():
            if nbytes > self.left:
                break
            self.left -= nbytes
            self.taken[who] = nbytes
            served.append(who)
        for who in served:
            del self.waiting[who]
        return served
