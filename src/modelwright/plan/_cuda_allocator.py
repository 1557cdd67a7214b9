"""torch's caching allocator for CUDA, replayed: which segments it reserves for a stream of allocations and frees.

Source: `c10/cuda/CUDACachingAllocator.cpp` (functions `round_size`, `get_allocation_size`, `get_free_block`, `should_split`,
`try_merge_blocks`, `release_cached_blocks`) and the constants of `c10/core/AllocatorConfig.h`, torch 2.13,
https://github.com/pytorch/pytorch, with its default settings: no expandable segments, no largest size to split, one stream.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_STEP = 512
"""Sizes are rounded up to a multiple of this (`kMinBlockSize`)."""
_SMALL = 1 << 20
"""Largest size of the small pool (`kSmallSize`); in the large pool, what may be left over without a split."""
_SMALL_SEGMENT = 2 << 20
"""Segments of the small pool (`kSmallBuffer`)."""
_OWN_SEGMENT = 10 << 20
"""From this size on an allocation gets a segment of its own (`kMinLargeAlloc`)."""
_LARGE_SEGMENT = 20 << 20
"""Segments that hold several allocations between the two (`large_segment_size_`)."""
_ROUND = 2 << 20
"""A segment of its own is rounded up to a multiple of this (`kRoundLarge`)."""


class _Block:
    """A piece of a segment."""

    __slots__ = ("after", "before", "free", "size", "small", "start")

    def __init__(self, size: int, start: int, small: bool) -> None:
        self.size, self.start, self.small = size, start, small
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = False


_Pool = list[tuple[int, int, _Block]]
"""Free blocks by size, then address: (size, start, block)."""


def rounded(size: int) -> int:
    """Bytes that an allocation takes in its block."""
    return max(_STEP, -(-size // _STEP) * _STEP)


def segment_of(size: int) -> int:
    """Bytes of the segment that is reserved for an allocation of a rounded size when no free block is large enough."""
    if size <= _SMALL:
        return _SMALL_SEGMENT
    return _LARGE_SEGMENT if size < _OWN_SEGMENT else -(-size // _ROUND) * _ROUND


class Allocator:
    """Blocks and segments of one card. Bytes only: nothing is allocated."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        """Bytes now: in blocks that are in use, in segments."""
        self.peak_allocated = self.peak_reserved = 0
        self._small: _Pool = []
        self._large: _Pool = []
        self._used: dict[int, _Block] = {}
        self._next = 0

    def allocate(self, name: int, size: int) -> None:
        """Room for `size` bytes under a name that is not in use; a size of 0 takes none, as in torch."""
        if size <= 0:
            return
        size = rounded(size)
        small = size <= _SMALL
        pool = self._small if small else self._large
        at = bisect_left(pool, (size, 0))
        block = pool.pop(at)[2] if at < len(pool) else self._segment(size, small)
        left = block.size - size
        if left >= _STEP if small else left > _SMALL:
            rest = _Block(left, block.start + size, small)
            rest.before, rest.after, rest.free = block, block.after, True
            if rest.after is not None:
                rest.after.before = rest
            block.size, block.after = size, rest
            insort(pool, (left, rest.start, rest))
        block.free = False
        self._used[name] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def free(self, name: int) -> None:
        """Give back what `allocate` gave; the segment stays reserved."""
        block = self._used.pop(name, None)
        if block is None:  # it was empty
            return
        self.allocated -= block.size
        pool = self._small if block.small else self._large
        before, after = block.before, block.after
        if before is not None and before.free:
            self._take(pool, before)
            block.start, block.size, block.before = before.start, block.size + before.size, before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free:
            self._take(pool, after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
        block.free = True
        insort(pool, (block.size, block.start, block))

    def empty(self) -> None:
        """Segments with nothing in use go back to the card (`torch.cuda.empty_cache`)."""
        for pool in (self._small, self._large):
            kept = [entry for entry in pool if entry[2].before is not None or entry[2].after is not None]
            self.reserved -= sum(entry[0] for entry in pool) - sum(entry[0] for entry in kept)
            pool[:] = kept

    def _segment(self, size: int, small: bool) -> _Block:
        whole = segment_of(size)
        block = _Block(whole, self._next, small)
        self._next += whole
        self.reserved += whole
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _take(self, pool: _Pool, block: _Block) -> None:
        del pool[bisect_left(pool, (block.size, block.start))]
