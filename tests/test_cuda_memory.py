"""What a card reserves: the allocator's rules on sequences worked out by hand, laws on random ones, published figures and their
sources."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from modelwright.core.estimate import Estimate, Machine, Part, Quantity
from modelwright.plan import cuda
from modelwright.plan._cuda_allocator import Allocator, rounded, segment_of

KIB, MIB = 1 << 10, 1 << 20
A100 = Machine("A100", 8, 64e9, "cuda", device_memory_bytes=80e9)
PUBLISHED = Path(__file__).parent / "published"


def replayed(*steps: tuple[str, int]) -> Allocator:
    """`("a", bytes)` allocates under a name, `("a", 0)` frees it, `("empty", 0)` empties the cache."""
    allocator, names = Allocator(), {}
    for name, size in steps:
        if name == "empty":
            allocator.empty()
        elif size:
            names[name] = len(names)
            allocator.allocate(names[name], size)
        else:
            allocator.free(names.pop(name))
    return allocator


@pytest.mark.parametrize(
    ("asked", "in_block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (9 * MIB, 9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (48 * MIB, 48 * MIB, 48 * MIB),
    ],
)
def test_sizes_are_rounded_as_torch_rounds_them(asked: int, in_block: int, segment: int) -> None:
    assert rounded(asked) == in_block
    assert segment_of(in_block) == segment


def test_small_allocations_share_a_segment() -> None:
    found = replayed(("a", 100), ("b", 600 * KIB), ("c", 600 * KIB))
    assert (found.reserved, found.allocated) == (2 * MIB, 512 + 1200 * KIB)
    assert replayed(("a", MIB), ("b", MIB), ("c", 1)).reserved == 4 * MIB, "the third does not fit beside two of 1 MiB"


def test_three_of_six_mib_share_a_segment_of_twenty() -> None:
    assert replayed(("a", 6 * MIB), ("b", 6 * MIB), ("c", 6 * MIB)).reserved == 20 * MIB
    assert replayed(("a", 6 * MIB), ("b", 6 * MIB), ("c", 6 * MIB), ("d", 6 * MIB)).reserved == 40 * MIB


def test_large_blocks_are_split_only_where_more_than_a_mib_is_left() -> None:
    whole = replayed(("a", 12 * MIB), ("a", 0), ("b", 11 * MIB))
    assert (whole.reserved, whole.allocated) == (12 * MIB, 12 * MIB), "1 MiB is left, and the block is handed out whole"
    split = replayed(("a", 12 * MIB), ("a", 0), ("b", 10 * MIB), ("c", 2 * MIB))
    assert (split.reserved, split.allocated) == (12 * MIB, 12 * MIB)


def test_the_smallest_block_that_fits_is_used() -> None:
    steps = (("a", 40 * MIB), ("b", 20 * MIB), ("a", 0), ("b", 0), ("c", 18 * MIB), ("d", 40 * MIB))
    assert replayed(*steps).reserved == 60 * MIB, "18 MiB go into the block of 20, so 40 are still in one piece"


def test_freed_neighbours_merge_but_not_across_segments() -> None:
    parts = (("whole", 60 * MIB), ("whole", 0), ("a", 20 * MIB), ("b", 20 * MIB), ("c", 20 * MIB))
    freed = (("a", 0), ("c", 0), ("b", 0), ("again", 60 * MIB))
    assert replayed(*parts, *freed).reserved == 60 * MIB
    apart = (("a", 30 * MIB), ("b", 30 * MIB), ("a", 0), ("b", 0), ("c", 60 * MIB))
    assert replayed(*apart).reserved == 120 * MIB


def test_an_emptied_cache_keeps_segments_of_which_a_piece_is_used() -> None:
    used = (("whole", 60 * MIB), ("whole", 0), ("piece", 2 * MIB), ("other", 100 * MIB), ("other", 0), ("empty", 0))
    found = replayed(*used)
    assert (found.reserved, found.peak_reserved) == (60 * MIB, 160 * MIB)
    assert replayed(*used, ("piece", 0), ("empty", 0)).reserved == 0


def random_events(count: int, seed: int, grow: float = 1.0) -> list[tuple[int, int, str]]:
    chance = random.Random(seed)
    live: list[tuple[int, int]] = []
    events = []
    for number in range(count):
        if live and (len(live) > 400 or chance.random() < 0.48):
            size, name = live.pop(chance.randrange(len(live)))
            events.append((-size, name, "free"))
        else:
            size = int(2 ** chance.uniform(4, 27) * grow)
            live.append((size, number))
            events.append((size, number, "new"))
    return events


@pytest.mark.parametrize("seed", range(6))
def test_laws_of_the_replay(seed: int) -> None:
    events = random_events(4000, seed)
    allocator, live = Allocator(), {}
    for size, name, _ in events:
        if size > 0:
            allocator.allocate(name, size)
            live[name] = rounded(size)
        else:
            allocator.free(name)
            del live[name]
        assert sum(live.values()) <= allocator.allocated <= allocator.reserved
        assert allocator.reserved % (2 * MIB) == 0
    for name in list(live):
        allocator.free(name)
    assert allocator.allocated == 0
    allocator.empty()
    assert allocator.reserved == 0, "with nothing in use every segment is whole again"


@pytest.mark.parametrize("seed", range(4))
def test_what_is_freed_in_another_order_leaves_the_same_reserve(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [int(2 ** chance.uniform(8, 26)) for _ in range(200)]
    reserves = set()
    for _ in range(3):
        allocator = Allocator()
        for name, size in enumerate(sizes):
            allocator.allocate(name, size)
        order = list(range(len(sizes)))
        chance.shuffle(order)
        for name in order:
            allocator.free(name)
        for name, size in enumerate(sizes):
            allocator.allocate(name, size)
        reserves.add((allocator.reserved, allocator.peak_reserved))
    assert len(reserves) == 1


def test_larger_allocations_without_frees_never_reserve_less() -> None:
    sizes = [int(2 ** random.Random(3).uniform(8, 26)) for _ in range(100)]
    reserved = []
    for times in (1, 2, 4):
        allocator = Allocator()
        for name, size in enumerate(sizes):
            allocator.allocate(name, size * times)
        reserved.append(allocator.reserved)
    assert reserved == sorted(reserved)


def test_replay_names_the_operation_that_added_the_last_segment() -> None:
    events = [(4 * MIB, 0, "one"), (30 * MIB, 1, "two"), (-30 * MIB, 1, "three"), (25 * MIB, 2, "four"), (8 * MIB, 3, "five")]
    assert cuda.replay(events) == cuda.Replayed(50 * MIB, 37 * MIB, "two")


def test_replayed_streams_are_told_with_workspaces_and_their_interval() -> None:
    found = cuda.reserved([(100 * MIB, 0, "matmul"), (-100 * MIB, 0, "end")])
    assert found.value == 120 * MIB, "workspaces of 8 MiB share a segment"
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    assert "matmul" in found.why
    assert cuda.reserved([], "NVIDIA H100 PCIe").value == 64 * MIB


# --- closed forms ------------------------------------------------------------------------------------


def test_a_closed_form_becomes_what_a_card_holds() -> None:
    parts = (Part("weights", 4e9, ""), Part("activations", 2e9, ""))
    found = cuda.interval(parts, "A100")
    assert found.low is not None and found.high is not None
    assert 6e9 < found.low < found.value < found.high < 8e9
    whole = cuda.card_parts(parts, "A100")
    assert sum(part.bytes for part in whole) == found.value
    assert cuda.card_parts(whole, "A100") == whole, "what is there already is not added twice"
    assert cuda.interval(whole, "A100") == found
    assert cuda.interval(parts, "H200").value > found.value


def test_estimates_without_a_card_stay_as_they_are() -> None:
    seconds = Quantity(1.0, "s", "")
    alone = Estimate(seconds, seconds, seconds, {})
    assert cuda.on_card(alone, A100) is alone
    on = alone._replace(device_memory=Quantity(6e9, "bytes", "weights 6 GB"), device_parts=(Part("weights", 6e9, ""),))
    once = cuda.on_card(on, A100)
    assert once.device_memory is not None and once.device_memory.why.startswith("weights 6 GB")
    assert cuda.on_card(once, A100) == once
    assert cuda.on_card(on, A100._replace(device="mps")) is on, "cuBLAS and its context are CUDA's"


# --- published figures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["peft", "litgpt", "torchtune"])
def test_published_figures_carry_their_sources(name: str) -> None:
    found = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert found["repository"].startswith("https://github.com/") and len(found["commit"]) == 40 and found["statistic"]
    assert found["rows"]
    for row in found["rows"]:
        assert f"{found['repository']}/blob/{found['commit']}/" in row.get("url", found.get("url", ""))
        measured = row.get("max_reserved_bytes") or row.get("peak_gb") or row.get("peak_gib")
        assert measured > 1


def test_runs_of_the_method_comparison_are_alike() -> None:
    rows = json.loads((PUBLISHED / "peft.json").read_text())["rows"]
    kept = ("model_id", "dtype", "batch_size", "max_seq_length", "use_gc", "use_amp", "autocast_adapter_dtype")
    assert len({tuple(row["train_config"][name] for name in kept) for row in rows}) == 1
    assert all(row["mean_allocated_bytes"] < row["max_reserved_bytes"] for row in rows)
    assert sum(not row["fixes_length"] for row in rows) == 5
