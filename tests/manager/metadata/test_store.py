"""What every metadata store must do; run against each implementation."""

import struct

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dsm.errors import (
    FullError,
    InternalError,
    LimitError,
    PageLostError,
    TooLargeError,
    UnknownNameError,
    UsageError,
)
from dsm.limits import ADDRESS_ALIGNMENT, ADDRESS_HIGH, ADDRESS_LOW, MAX_NODES
from dsm.manager.metadata.embedded import EmbeddedStore
from dsm.manager.metadata.store import MemberRecord, MetadataStore
from dsm.types import FENCE, ArrayLayout, HeapOptions, RegionOptions

MEMBERS = (0, 1)
GRID = RegionOptions(128, "grid", layout=ArrayLayout((4, 4), '"<f8"'))


@pytest.fixture
def store():
    made: MetadataStore = EmbeddedStore()
    made.add_member("127.0.0.1:1000")
    made.add_member("127.0.0.1:1001")
    yield made
    made.close()


class TestMembers:
    def test_nodes_are_numbered_and_each_change_begins_an_epoch(self, store):
        assert store.epoch() == 2
        assert store.add_member("") == 2
        store.remove_member(1)
        assert store.epoch() == 4
        assert store.members() == [MemberRecord(0, "127.0.0.1:1000", 1), MemberRecord(2, "", 3)]

    def test_numbers_are_not_used_again(self, store):
        store.remove_member(1)
        assert store.add_member("127.0.0.1:1001") == 2

    def test_removing_a_stranger_changes_nothing(self, store):
        store.remove_member(7)
        assert store.epoch() == 2

    def test_too_many_nodes(self, store):
        for node in range(2, MAX_NODES):
            assert store.add_member("") == node
        store.remove_member(5)
        epoch = store.epoch()
        with pytest.raises(
            LimitError, match=rf"{MAX_NODES} nodes have joined .* \({MAX_NODES - 1} are live\)"
        ):
            store.add_member("")
        assert store.epoch() == epoch


HEAP = HeapOptions("work", "lazy", "pooled", 1 << 20, 0, 4096, "sequential", False)


def _extent(nbytes, home=0, heap="work"):
    return RegionOptions(nbytes, home=home, use="extent", heap=heap)


class TestHeaps:
    def test_a_heap_is_created_once(self, store):
        heap, created = store.open_heap(HEAP, ())
        assert created and heap.options == HEAP
        assert store.open_heap(HEAP, ("kind", "manager")) == (heap, False)
        assert store.find_heap("work") == store.find_heap(heap.number) == heap

    def test_what_was_not_chosen_need_not_be_the_same(self, store):
        heap, _ = store.open_heap(HEAP, ())
        other = HeapOptions("work", "eager", "direct", 1 << 21, 1 << 30, 8192, "release", True)
        assert store.open_heap(other, ()) == (heap, False)
        with pytest.raises(
            UsageError, match='heap "work" exists with other options: page_size is 4096, asked'
        ):
            store.open_heap(other, ("page_size",))
        with pytest.raises(UsageError) as caught:
            store.open_heap(other, tuple(HEAP.__struct_fields__))
        fields = ("kind", "manager", "min_system_alloc", "max_bytes", "page_size", "consistency", "debug")
        assert all(f"{field} is " in str(caught.value) for field in fields)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", ""), ("name", "a\nb"), ("kind", "fast"), ("manager", "malloc"),
            ("consistency", "bounded"), ("page_size", 5000), ("min_system_alloc", 100),
            ("max_bytes", 100), ("max_bytes", -1),
        ],
    )  # fmt: skip
    def test_what_is_no_heap(self, store, field, value):
        with pytest.raises(UsageError):
            store.open_heap(msgspec.structs.replace(HEAP, **{field: value}), ())
        with pytest.raises(UnknownNameError):
            store.find_heap(1)

    def test_regions_count_against_the_bound(self, store):
        store.open_heap(msgspec.structs.replace(HEAP, max_bytes=100_000), ())
        store.open_heap(msgspec.structs.replace(HEAP, name="other"), ())
        with pytest.raises(
            TooLargeError, match="102400 bytes were asked of heap 'work', whose max_bytes is 100000"
        ):
            store.create_region(_extent(100_000), MEMBERS)  # whole pages
        first, _ = store.create_region(_extent(60_000), MEMBERS)
        store.create_region(_extent(10_000_000, heap="other"), MEMBERS)
        store.create_region(RegionOptions(10_000_000), MEMBERS)
        with pytest.raises(
            FullError, match="61440 bytes more were asked of heap 'work', which has 61440 of its"
        ):
            store.create_region(_extent(60_000, home=1), MEMBERS)
        store.create_region(RegionOptions(30_000, use="lease", heap="work"), MEMBERS)
        with pytest.raises(FullError):
            store.create_region(_extent(30_000), MEMBERS)
        store.destroy_region(first.region)
        store.create_region(_extent(60_000), MEMBERS)

    def test_what_is_on_a_dead_node_counts_no_more(self, store):
        store.open_heap(msgspec.structs.replace(HEAP, max_bytes=100_000), ())
        store.create_region(_extent(60_000, home=1), MEMBERS)
        with pytest.raises(FullError):
            store.create_region(_extent(60_000), MEMBERS)
        store.remove_member(1)
        store.create_region(_extent(60_000), (0,))

    def test_a_heap_that_is_destroyed(self, store):
        heap, _ = store.open_heap(HEAP, ())
        regions = [store.create_region(_extent(5000), MEMBERS)[0] for _ in range(3)]
        assert store.destroy_heap(heap.number) == regions
        for key in (heap.number, "work"):
            with pytest.raises(UnknownNameError, match="no heap has the name or number"):
                store.find_heap(key)
        with pytest.raises(UnknownNameError):
            store.destroy_heap(heap.number)
        with pytest.raises(UnknownNameError):
            store.create_region(_extent(5000), MEMBERS)
        again, created = store.open_heap(HEAP, ())
        assert created and again.number > heap.number
        assert store.find_region(regions[0].region) == regions[0]  # its own end is told apart

    def test_a_region_for_what_is_unknown(self, store):
        with pytest.raises(UsageError, match='a region for "stack" is unknown'):
            store.create_region(RegionOptions(10, use="stack"), MEMBERS)


class TestRegions:
    def test_what_exists_is_found_when_its_home_is_dead(self, store):
        options = RegionOptions(128, "grid", home=1)
        region, _ = store.create_region(options, MEMBERS)
        store.remove_member(1)
        assert store.create_region(options, (0,)) == (region, False)
        with pytest.raises(UsageError, match="home is 1, asked for was 0"):
            store.create_region(RegionOptions(128, "grid", home=0), (0,))
        with pytest.raises(UsageError, match="home=1 is not a live node"):
            store.create_region(RegionOptions(128, "other", home=1), (0,))

    def test_create_then_get(self, store):
        region, created = store.create_region(GRID, MEMBERS)
        assert created
        assert (region.region, region.options, region.members) == (1, GRID, MEMBERS)
        assert store.create_region(GRID, (0,)) == (region, False)
        assert store.find_region("grid") == store.find_region(1) == region

    def test_anonymous_regions_are_always_new(self, store):
        first, _ = store.create_region(RegionOptions(8), MEMBERS)
        second, created = store.create_region(RegionOptions(8), MEMBERS)
        assert created and first.region != second.region and first.address != second.address

    def test_regions_lie_apart_and_aligned(self, store):
        sizes = [0, 1, 4096, ADDRESS_ALIGNMENT, ADDRESS_ALIGNMENT + 1, 10 * ADDRESS_ALIGNMENT]
        regions = [store.create_region(RegionOptions(size), MEMBERS)[0] for size in sizes]
        end = ADDRESS_LOW
        for region in regions:
            assert region.address % ADDRESS_ALIGNMENT == 0
            assert region.address >= end + ADDRESS_ALIGNMENT
            end = region.address + region.size
        assert end <= ADDRESS_HIGH - ADDRESS_ALIGNMENT

    def test_destroy_frees_the_name_but_neither_number_nor_address(self, store):
        old, _ = store.create_region(GRID, MEMBERS)
        assert store.destroy_region("grid") == old
        with pytest.raises(UnknownNameError, match='no region of the name "grid"'):
            store.find_region("grid")
        new, created = store.create_region(GRID, MEMBERS)
        assert created and new.region > old.region and new.address > old.address
        assert store.destroy_region(new.region) == new
        with pytest.raises(UnknownNameError):
            store.destroy_region("grid")

    @pytest.mark.parametrize("key", ["nothing", "", 0, 99, -1, 2**63, 2**64 - 1, 2**100])
    def test_unknown_keys(self, store, key):
        with pytest.raises(UnknownNameError):
            store.find_region(key)
        with pytest.raises(UnknownNameError):
            store.destroy_region(key)
        if isinstance(key, int):
            for method in (store.mark_ready, store.is_ready):
                with pytest.raises(UnknownNameError):
                    method(key)

    def test_a_region_is_ready_when_its_creator_says_so(self, store):
        region, _ = store.create_region(GRID, MEMBERS, ready=False)
        assert not store.is_ready(region.region)
        store.create_region(GRID, MEMBERS, ready=True)
        assert not store.is_ready(region.region), "only the creator's word counts"
        store.mark_ready(region.region)
        assert store.is_ready(region.region)

    def test_lists(self, store):
        grid, _ = store.create_region(GRID, MEMBERS)
        anonymous, _ = store.create_region(RegionOptions(8), MEMBERS)
        unready, _ = store.create_region(RegionOptions(8, "unready"), MEMBERS, ready=False)
        assert store.list_regions() == [grid]
        assert store.list_regions(named_only=False) == [grid, anonymous, unready]

    def test_other_options_are_all_named_with_both_values(self, store):
        store.create_region(GRID, MEMBERS)
        other = RegionOptions(
            200, "grid", page_size=8192, home=1, fill=b"\1", layout=ArrayLayout((5, 5), '"<i8"', "F")
        )
        with pytest.raises(UsageError) as error:
            store.create_region(other, MEMBERS)
        text = str(error.value)
        for part in (
            "shape is (4, 4), asked for was (5, 5)", "<f8", "<i8", 'order is "C", asked for was "F"',
            "nbytes is 128, asked for was 200", "page_size is 4096, asked for was 8192",
            'home is "first-touch", asked for was 1', "fill is zeros, asked for was 0x01",
            "node.open('grid')",
        ):  # fmt: skip
            assert part in text
        assert "consistency" not in text, "only what differs is named"
        assert store.list_regions()[0].options == GRID

    def test_a_raw_region_is_no_array(self, store):
        store.create_region(GRID, MEMBERS)
        with pytest.raises(UsageError, match="it is an array, asked for was raw bytes"):
            store.create_region(RegionOptions(128, "grid"), MEMBERS)

    def test_fills_are_compared_as_bytes(self, store):
        nan = struct.pack("<d", float("nan"))
        options = RegionOptions(128, "nan", fill=nan)
        store.create_region(options, MEMBERS)
        assert store.create_region(options, MEMBERS)[1] is False
        negative = struct.pack("<d", -float("nan"))
        with pytest.raises(UsageError, match=f"fill is 0x{nan.hex()}, asked for was 0x{negative.hex()}"):
            store.create_region(RegionOptions(128, "nan", fill=negative), MEMBERS)

    def test_a_fill_of_zeros_is_no_fill(self, store):
        region, _ = store.create_region(RegionOptions(128, "zeros", fill=bytes(8)), MEMBERS)
        assert region.options.fill == b""
        assert store.create_region(RegionOptions(128, "zeros"), MEMBERS) == (region, False)

    def test_a_refused_region_takes_nothing(self, store):
        with pytest.raises(UsageError):
            store.create_region(RegionOptions(8, "x", page_size=5), MEMBERS)
        assert store.create_region(RegionOptions(8), MEMBERS)[0].region == 1


class TestSync:
    def test_create_then_get(self, store):
        lock = store.open_sync("lock", "best", 0, MEMBERS)
        assert (lock.object, lock.kind, lock.name, lock.value) == (1, "lock", "best", 0)
        assert lock.home in MEMBERS
        assert store.open_sync("lock", "best", 0, (1, 0)) == lock

    def test_kinds_may_share_a_name(self, store):
        objects = [store.open_sync(kind, "x", 1, MEMBERS) for kind in ("lock", "barrier", "atomic")]
        assert len({each.object for each in objects}) == 3
        assert store.list_sync() == objects

    def test_homes_are_spread(self, store):
        homes = {store.open_sync("atomic", f"n{i}", 0, MEMBERS).home for i in range(64)}
        assert homes == set(MEMBERS)

    def test_a_barrier_has_its_parties_for_good(self, store):
        store.open_sync("barrier", "step", 3, MEMBERS)
        assert store.open_sync("barrier", "step", 3, MEMBERS).value == 3
        with pytest.raises(UsageError, match='"step" exists with parties=3, asked for was parties=4'):
            store.open_sync("barrier", "step", 4, MEMBERS)

    @pytest.mark.parametrize(("value", "bounded"), [(3, False), (2, True), (3, True)])
    def test_a_semaphore_has_its_units_and_its_way_for_good(self, store, value, bounded):
        semaphore = store.open_sync("semaphore", "gpu", 2, MEMBERS)
        assert (semaphore.value, semaphore.bounded) == (2, False)
        assert store.open_sync("semaphore", "gpu", 2, MEMBERS) == semaphore
        asked = f'"gpu" exists with value=2, bounded=False, asked for was value={value}, bounded={bounded}'
        with pytest.raises(UsageError, match=asked):
            store.open_sync("semaphore", "gpu", value, MEMBERS, bounded)
        assert store.open_sync("semaphore", "bounded", 2, MEMBERS, True).bounded
        assert [each.bounded for each in store.list_sync()] == [False, True]

    def test_a_condition_lives_with_its_lock(self, store):
        for number in range(20):
            lock = store.open_sync("lock", f"lock {number}", 0, MEMBERS)
            condition = store.open_sync("condition", f"{number}", lock.object, MEMBERS)
            assert (condition.home, condition.value) == (lock.home, lock.object)
            assert store.open_sync("condition", f"{number}", lock.object, MEMBERS) == condition

    def test_a_condition_has_its_lock_for_good(self, store):
        first, second = (store.open_sync("lock", name, 0, MEMBERS).object for name in ("a", "b"))
        store.open_sync("condition", "full", first, MEMBERS)
        with pytest.raises(UsageError, match='"full" exists with lock "a", asked for was lock "b"'):
            store.open_sync("condition", "full", second, MEMBERS)

    @pytest.mark.parametrize("kind", ["atomic", "rwlock", None])
    def test_the_lock_of_a_condition_is_a_lock(self, store, kind):
        number = 99 if kind is None else store.open_sync(kind, "x", 0, MEMBERS).object
        with pytest.raises(UsageError, match=f"cannot have object {number} as its lock"):
            store.open_sync("condition", "full", number, MEMBERS)

    def test_a_condition_of_a_lost_lock(self, store):
        lock = store.open_sync("lock", "best", 0, MEMBERS)
        others = tuple(node for node in MEMBERS if node != lock.home)
        with pytest.raises(PageLostError, match=f'lock "best" was kept by node {lock.home}, which is gone'):
            store.open_sync("condition", "full", lock.object, others)

    def test_what_orders_the_memory_of_all_is_kept_by_the_coordinator_s_node(self, store):
        assert store.open_sync("atomic", FENCE, 0, MEMBERS).home == MEMBERS[0]

    def test_the_initial_value_of_an_existing_atomic_is_ignored(self, store):
        store.open_sync("atomic", "n", -7, MEMBERS)
        assert store.open_sync("atomic", "n", 5, MEMBERS).value == -7

    @pytest.mark.parametrize("value", [-(2**63), 2**63 - 1])
    def test_atomics_hold_64_bits(self, store, value):
        assert store.open_sync("atomic", "n", value, MEMBERS).value == value

    def test_the_state_of_a_lost_home_is_not_made_up(self, store):
        lock = store.open_sync("lock", "best", 0, MEMBERS)
        others = tuple(node for node in MEMBERS if node != lock.home)
        with pytest.raises(PageLostError, match=f"kept by node {lock.home}, which is gone"):
            store.open_sync("lock", "best", 0, others)

    def test_nobody_to_keep_it(self, store):
        with pytest.raises(InternalError):
            store.open_sync("lock", "best", 0, ())
        with pytest.raises(InternalError):
            store.create_region(GRID, ())


class TestRanks:
    def test_in_order_of_attach(self, store):
        assert [store.take_rank() for _ in range(3)] == [(0, 1), (1, 2), (2, 3)]

    def test_a_launchers_ranks_and_size(self):
        store = EmbeddedStore(ranks=3)
        assert store.take_rank(2) == (2, 3)
        assert store.take_rank(2) == (2, 3), "a child process inherits the rank of its parent"
        assert [store.take_rank()[0] for _ in range(3)] == [0, 1, 3]
        with pytest.raises(UsageError, match="DSM_RANK=3 is no rank of this job, which has ranks 0 to 2"):
            store.take_rank(3)
        store.close()

    @pytest.mark.parametrize("rank", [-1, 2**31, 2**70])
    def test_impossible_ranks(self, store, rank):
        with pytest.raises(UsageError, match=f"DSM_RANK={rank} is no rank"):
            store.take_rank(rank)


def test_addresses_run_out_with_figures():
    store = EmbeddedStore(address_low=ADDRESS_LOW, address_high=ADDRESS_LOW + 5 * ADDRESS_ALIGNMENT)
    store.create_region(RegionOptions(1), MEMBERS)
    with pytest.raises(
        LimitError, match=f"{2 * ADDRESS_ALIGNMENT} bytes .* at most {ADDRESS_ALIGNMENT} are left"
    ):
        store.create_region(RegionOptions(2 * ADDRESS_ALIGNMENT, "big"), MEMBERS)
    region, created = store.create_region(RegionOptions(ADDRESS_ALIGNMENT, "big"), MEMBERS)
    assert created and region.region == 2
    store.close()


def test_a_wrong_address_range_is_refused():
    with pytest.raises(UsageError, match="DSM_ADDRESS_LOW=0x1000"):
        EmbeddedStore(address_low=0x1000)


class StoreMachine(RuleBasedStateMachine):
    """Regions against a plain dictionary."""

    def __init__(self):
        super().__init__()
        self.store = EmbeddedStore()
        self.named = {}
        self.anonymous = []
        self.numbers = [0]
        self.addresses = [ADDRESS_LOW]

    def teardown(self):
        self.store.close()

    def new(self, region):
        assert region.region > max(self.numbers)
        assert region.address >= max(self.addresses) + ADDRESS_ALIGNMENT
        self.numbers.append(region.region)
        self.addresses.append(region.address + region.size)

    @rule(name=st.sampled_from("abc") | st.none(), nbytes=st.sampled_from([0, 8, 5000]), ready=st.booleans())
    def create(self, name, nbytes, ready):
        options = RegionOptions(nbytes, name)
        known = self.named.get(name)
        if known and known[0].options != options:
            with pytest.raises(
                UsageError, match=f"nbytes is {known[0].options.nbytes}, asked for was {nbytes}"
            ):
                self.store.create_region(options, MEMBERS, ready)
            return
        region, created = self.store.create_region(options, MEMBERS, ready)
        assert created == (known is None)
        if known:
            assert region == known[0]
            return
        self.new(region)
        if name is None:
            self.anonymous.append(region)
        else:
            self.named[name] = [region, ready]

    @rule(name=st.sampled_from("abc"), destroy=st.booleans())
    def end_or_mark(self, name, destroy):
        known = self.named.get(name)
        if known is None:
            with pytest.raises(UnknownNameError):
                self.store.destroy_region(name)
        elif destroy:
            assert self.store.destroy_region(name) == known[0]
            del self.named[name]
        else:
            self.store.mark_ready(known[0].region)
            known[1] = True

    @invariant()
    def lists_agree(self):
        ready = [region for region, is_ready in self.named.values() if is_ready]
        assert self.store.list_regions() == sorted(ready, key=lambda region: region.region)
        everything = [region for region, _ in self.named.values()] + self.anonymous
        assert self.store.list_regions(named_only=False) == sorted(
            everything, key=lambda region: region.region
        )


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
