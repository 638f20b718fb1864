"""When to read ahead, and how far.

Owns the recognition of sequential access, one set of streams a worker and region.  A stream opens at
the second of two neighbouring faults; its window doubles each time the program reaches the last
window that was asked for (as in Linux's on-demand readahead: Wu et al., OLS 2007), so that what is
fetched and never used stays in proportion to what was used.  It suggests; the requester decides.
"""

from __future__ import annotations

#: Sequential streams of one worker in one region that are followed at the same time.
_STREAMS = 4


class _Stream:
    __slots__ = ("end", "mark", "window", "write")

    def __init__(self, end: int, write: bool) -> None:
        #: First page that was neither used nor asked for.
        self.end = end
        #: Pages of the last window; 0 before the stream is known to be one.
        self.window = 0
        #: First page of the last window: its use opens the next one.
        self.mark = -1
        self.write = write


class ReadAhead:
    """Streams of the workers of one node in one region."""

    __slots__ = ("_max_read", "_max_write", "_min", "_streams")

    def __init__(self, min_pages: int, max_read_pages: int, max_write_pages: int) -> None:
        self._min = min_pages
        self._max_read = max_read_pages
        self._max_write = max_write_pages
        self._streams: dict[int, list[_Stream]] = {}

    def fault(self, page: int, worker: int, write: bool) -> tuple[int, int]:
        """A worker faulted on `page`; return (first page, pages) to fetch besides, pages may be 0."""
        streams = self._streams.get(worker)
        if streams is None:
            streams = self._streams[worker] = []
        for index, stream in enumerate(streams):
            if stream.write == write and stream.end - 2 * stream.window <= page <= stream.end:
                if index:
                    streams.insert(0, streams.pop(index))
                if page == stream.end:
                    stream.end = page + 1
                return self._advance(stream) if page >= stream.mark else (page, 0)
        streams.insert(0, _Stream(page + 1, write))
        del streams[_STREAMS:]
        return page, 0

    def touched(self, page: int, worker: int) -> tuple[int, int]:
        """A worker used the marked `page`; return what to fetch now."""
        for stream in self._streams.get(worker, ()):
            if stream.mark == page:
                return self._advance(stream)
        return page, 0

    def declined(self, page: int) -> None:
        """Pages at `page` were not to be had: start small again."""
        for streams in self._streams.values():
            for stream in streams:
                if stream.mark <= page < stream.end:
                    stream.window = 0

    def forget(self, worker: int) -> None:
        """The worker is gone."""
        self._streams.pop(worker, None)

    def _advance(self, stream: _Stream) -> tuple[int, int]:
        limit = self._max_write if stream.write else self._max_read
        stream.window = min(max(self._min, 2 * stream.window), limit)
        start = stream.mark = stream.end
        stream.end = start + stream.window
        return start, stream.window
