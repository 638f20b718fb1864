"""What a process knows of the ends of leases, in which order."""

from dsm.worker.leasebook import LeaseBook


class Regions:
    """Regions of which closing one takes as long as the test likes."""

    def __init__(self):
        self.drop = lambda number: None


def test_a_lease_has_ended_for_its_handles_when_its_memory_is_gone():
    regions, known = Regions(), []
    book = LeaseBook(None, regions)
    held = book.mapped(7, "lease", 0)
    book._callbacks.call = lambda callback, lease: known.append((lease, regions.drop is None))
    book.on_end(held, print, "asked before")

    def drop(number):
        assert number == 7
        known.append(("ended", held.ended))  # who sees that reads what is still mapped
        book.on_end(held, print, "asked meanwhile")
        regions.drop = None

    regions.drop = drop
    book.ended(7)
    book.on_end(held, print, "asked after")
    assert held.ended
    assert known == [
        ("ended", False), ("asked before", True), ("asked meanwhile", True), ("asked after", True)
    ]  # fmt: skip
