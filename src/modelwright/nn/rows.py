"""Tokenised rows on disk (memory-mapped) and packed micro-batches made of them; no padding."""

# Shape suffixes: T packed tokens, N predicted positions, P pairs, R rows.

from __future__ import annotations

import heapq
import json
import math
import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modelwright.nn import device as devices
from modelwright.nn.attention import Layout, Segment
from modelwright.nn.dropout import Dropout

FIRST, SECOND = 1, 2
"""Bits of a token's flag: a target of the document (or of the pair's better answer), of the worse answer."""
NO_TAG = -1
"""Label of a token that has none."""
INDEX = np.dtype([("start", "<i8"), ("part", "<i8"), ("label", "<f8"), ("branches", "<i4", 2), ("targets", "<i8")])
"""What is stored of a row beside its tokens, 40 bytes; one entry more ends the last row."""
FILES = ("ids.bin", "flags.bin", "index.bin", "parts.bin", "tags.bin", "names.txt")
AT_ONCE = 1 << 16
"""Rows that are gone through at a time where all are looked at; tokens that are written at a time."""


class Row(NamedTuple):
    """A row before it is stored. A document has no branches; a pair has a shared part and two."""

    ids: Sequence[int] | np.ndarray
    """The tokens; for a pair: shared, then the rest of the better answer, then the rest of the worse one."""
    flags: Sequence[int] | np.ndarray
    branches: tuple[int, int] = (0, 0)
    """Tokens of each branch at the end of `ids`."""
    name: str = ""
    """Which record this is, for messages."""
    label: float = math.nan
    """What the whole row should get, where an objective judges rows."""
    parts: Sequence[int] = ()
    """Tokens of each document, where a row holds several that do not see each other."""
    tags: Sequence[int] = ()
    """A label for each token, `NO_TAG` where it has none; for an objective that judges tokens."""


def pair(chosen: tuple[Sequence[int], Sequence[int]], rejected: tuple[Sequence[int], Sequence[int]], name: str = "") -> Row:
    """A pair of (ids, mask) as one row: what both begin with is stored, and later computed, once."""
    (first, first_mask), (second, second_mask) = chosen, rejected
    most = min(len(first), len(second)) - 1  # each branch keeps a token of its own
    shared = next((i for i in range(most) if first[i] != second[i]), max(most, 0))
    both = [FIRST * bool(a) + SECOND * bool(b) for a, b in zip(first_mask[:shared], second_mask[:shared], strict=True)]
    flags = both + [FIRST * bool(m) for m in first_mask[shared:]] + [SECOND * bool(m) for m in second_mask[shared:]]
    return Row([*first, *second[shared:]], flags, (len(first) - shared, len(second) - shared), name)


class Rows:
    """A folder of stored rows, opened. Tokens and what is known of each row are read from disk as they are needed; in memory are
    four bytes a row, its length."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        head = json.loads((folder / "rows.json").read_text())
        self.pairs: bool = head["pairs"]
        self.tokens: int = head["tokens"]
        self._maps: list[mmap.mmap] = []
        self.ids = self._mapped("ids.bin", np.dtype(head["dtype"]))
        self.flags = self._mapped("flags.bin", np.dtype(np.uint8))
        self.tags = self._mapped("tags.bin", np.dtype("<i4"))
        """A label for each token; empty where rows have none."""
        self._parts = self._mapped("parts.bin", np.dtype("<i4"))
        index = self._mapped("index.bin", INDEX)
        self.starts_R = index["start"]
        """[R + 1] where each row begins in `ids`."""
        self._part_starts = index["part"]
        self.branches_R = index["branches"][:-1]
        """[R, 2] tokens of each branch."""
        self.targets_R = index["targets"][:-1]
        """[R] predicted positions of each row."""
        self.labels_R = index["label"][:-1]
        """[R] what each row should get; not a number where it has no label."""
        self.lengths_R = np.empty(len(index) - 1, np.uint32)
        for begin in range(0, len(self), AT_ONCE):
            self.lengths_R[begin : begin + AT_ONCE] = np.diff(self.starts_R[begin : begin + AT_ONCE + 1])
            self.let_go()

    def _mapped(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        path = self.folder / name
        if not path.stat().st_size:  # nothing cannot be mapped
            return np.zeros(0, dtype)
        with path.open("rb") as file:
            self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return np.frombuffer(self._maps[-1], dtype)

    def let_go(self) -> None:
        """Give back the pages that were read: the system would keep them in this process until memory is short, and its peak
        would grow with the data. They stay in the system's cache."""
        if sys.platform == "linux":
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return len(self.lengths_R)

    def parts(self, row: int) -> list[int]:
        """Tokens of each document of a row; none where it is one document."""
        begin, end = self._part_starts[row : row + 2]
        return [int(length) for length in self._parts[begin:end]]

    def name(self, row: int) -> str:
        """Which record a row came from."""
        with (self.folder / "names.txt").open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == row:
                    return line.rstrip("\n")
        return f"row {row}"


def store(rows: Iterable[Row], folder: Path, vocab: int) -> Rows:
    """Write rows one after the other and open them; no more than `AT_ONCE` tokens, or a longer row, stay in memory. `rows.json`
    comes last, so a torn folder is not opened."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if vocab <= 1 << 16 else np.uint32)
    tokens, parts, pairs = 0, 0, False
    with ExitStack() as opened:
        files = {name: opened.enter_context((folder / name).open("wb")) for name in FILES}
        for group in _groups(rows):
            flags = [np.asarray(row.flags, np.uint8) for row in group]
            index = _index(group, flags, tokens, parts)
            ids = np.concatenate([np.asarray(row.ids, np.int64) for row in group])
            if len(odd := ids[ids >> 8 * dtype.itemsize != 0]):
                raise OverflowError(f"token {odd[0]} in a vocabulary of {vocab}")
            files["ids.bin"].write(ids.astype(dtype).tobytes())
            files["flags.bin"].write(np.concatenate(flags).tobytes())
            files["index.bin"].write(index.tobytes())
            files["parts.bin"].write(np.concatenate([row.parts for row in group]).astype("<i4").tobytes())
            files["tags.bin"].write(np.concatenate([row.tags for row in group]).astype("<i4").tobytes())
            files["names.txt"].write("".join(row.name.replace("\n", " ") + "\n" for row in group).encode())
            tokens, parts = tokens + len(ids), parts + sum(len(row.parts) for row in group)
            pairs = pairs or bool(index["branches"].any())
        end = np.zeros(1, INDEX)
        end["start"], end["part"], end["label"] = tokens, parts, math.nan
        files["index.bin"].write(end.tobytes())
    head = {"dtype": dtype.name, "tokens": tokens, "pairs": pairs}
    temporary = folder / "rows.json.tmp"
    temporary.write_text(json.dumps(head))
    temporary.replace(folder / "rows.json")
    return Rows(folder)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Of about `AT_ONCE` tokens."""
    group: list[Row] = []
    tokens = 0
    for row in rows:
        group.append(row)
        tokens += len(row.ids) + 1
        if tokens > AT_ONCE:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _index(group: Sequence[Row], flags: Sequence[np.ndarray], token: int, part: int) -> np.ndarray:
    """What is stored of each row, the first of which begins at this token and this part."""
    index = np.zeros(len(group), INDEX)
    lengths_R = np.array([len(row.ids) for row in group])
    index["start"] = token + np.cumsum(lengths_R) - lengths_R
    parts_R = np.array([len(row.parts) for row in group])
    index["part"] = part + np.cumsum(parts_R) - parts_R
    index["label"] = [row.label for row in group]
    index["branches"] = [row.branches for row in group]
    index["targets"] = [sum(len(at) for at, _ in _targets(own, row.branches)) for own, row in zip(flags, group, strict=True)]
    return index


def _targets(flags: np.ndarray, branches: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per answer (token positions that are targets, positions that predict them), within the row.

    The first token of a branch is predicted by the last shared one; the first token of a row by nothing, so it is
    no target.
    """
    first_n, second_n = int(branches[0]), int(branches[1])
    if not first_n:
        before = (flags[1:] & FIRST).nonzero()[0]
        return [(before + 1, before)]
    shared = len(flags) - first_n - second_n
    found = []
    for bit, begin, end in ((FIRST, shared, shared + first_n), (SECOND, shared + first_n, len(flags))):
        own = np.flatnonzero(flags[begin:end] & bit) + begin
        common = np.flatnonzero(flags[:shared] & bit)
        at = np.concatenate([common, own])
        before = np.where(at == begin, shared - 1, at - 1)
        found.append((at[before >= 0], before[before >= 0]))
    return found


class Packed(NamedTuple):
    """A micro-batch: one row of tokens, its layout, and where the loss looks."""

    ids_T: Tensor
    layout: Layout
    position_N: Tensor
    """Position in the packed row that predicts each target; two targets may share one."""
    target_N: Tensor
    segment_N: Tensor
    segments: int
    chosen_P: Tensor | None
    rejected_P: Tensor | None
    rows: tuple[int, ...]
    reference_N: Tensor | None = None
    """Log-probabilities under the frozen reference, where an objective needs them."""
    visit: int = 0
    """Number of the training step, from 1; 0 outside of training. Random changes are drawn from it."""
    label_S: Tensor | None = None
    """What each row should get; None where they have no labels."""
    group_S: Tensor | None = None
    """Row of the micro-batch that each segment belongs to; None where rows are one document each."""
    tag_T: Tensor | None = None
    """A label for each token, `NO_TAG` where it has none; None where tokens have no labels."""
    dropout: Dropout | None = None
    """Dropout in place of the model's own, where an objective asks for it."""


def pack(rows: Rows, chosen: Sequence[int], visit: int = 0) -> Packed:
    """The rows of these numbers side by side."""
    layout: list[Segment] = []
    ids, positions, targets, owners, tags = [], [], [], [], []
    groups: list[int] = []
    offset, segments = 0, 0
    for number, row in enumerate(chosen):
        begin, end = int(rows.starts_R[row]), int(rows.starts_R[row + 1])
        row_ids = np.asarray(rows.ids[begin:end]).astype(np.int64)
        branches = rows.branches_R[row]
        ids.append(row_ids)
        tags.append(np.asarray(rows.tags[begin:end]).astype(np.int64))
        shared = end - begin - int(branches.sum())
        parent = len(layout) if shared and branches[0] else -1
        at = offset
        lengths = rows.parts(row)
        groups += [number] * len(lengths)
        for length in lengths or (shared, int(branches[0]), int(branches[1])):
            if length:
                layout.append(Segment(at, at + length, parent if at > offset and not lengths else -1))
                at += length
        for target, before in _targets(np.asarray(rows.flags[begin:end]), branches):
            targets.append(row_ids[target])
            positions.append(before + offset)
            owners.append(np.full(len(target), segments, np.int64))
            segments += 1
        offset = at
    first_P = torch.arange(0, segments, 2) if rows.pairs else None
    labels_S = rows.labels_R[list(chosen)]
    rows.let_go()
    return Packed(
        ids_T=torch.from_numpy(np.concatenate(ids)),
        layout=Layout(layout),
        position_N=torch.from_numpy(np.concatenate(positions)),
        target_N=torch.from_numpy(np.concatenate(targets)),
        segment_N=torch.from_numpy(np.concatenate(owners)),
        segments=segments,
        chosen_P=first_P,
        rejected_P=None if first_P is None else first_P + 1,
        rows=tuple(int(row) for row in chosen),
        visit=visit,
        label_S=None if np.isnan(labels_S).any() else torch.from_numpy(labels_S),
        group_S=torch.tensor(groups) if groups else None,
        tag_T=torch.from_numpy(np.concatenate(tags)) if len(rows.tags) else None,
    )


def moved(batch: Packed, device: torch.device) -> Packed:
    """The micro-batch with its tensors there; its layout stays on the processor."""
    if device.type == "cpu":
        return batch
    there: dict[str, Any] = {n: devices.moved(t, device) for n, t in batch._asdict().items() if isinstance(t, Tensor)}
    return batch._replace(**there)


def micro_batches(rows: Rows, step_rows: Sequence[int], micro_tokens: int, multiple: int = 1) -> list[list[int]]:
    """The rows of a step in as few groups of at most `micro_tokens` as there can be (a longer row is alone), about equally
    long: a short rest would read all weights for a few tokens. The longest row first, always to the shortest group (Graham
    1969, doi:10.1137/0117039); inside a group rows keep their order. There are a `multiple` of groups, and where there are
    fewer rows some are empty."""
    lengths = {place: int(rows.lengths_R[row]) for place, row in enumerate(step_rows)}
    longest_first = sorted(lengths, key=lambda place: -lengths[place])
    least = -(-sum(lengths.values()) // micro_tokens)
    fewest, most = (-(-count // multiple) * multiple for count in (min(least, len(lengths)), len(lengths)))
    for count in range(fewest, most + 1, multiple):
        groups: list[list[int]] = [[] for _ in range(count)]
        sizes = [(0, index) for index in range(count)]  # a heap: the shortest group is first
        for place in longest_first:
            size, index = sizes[0]
            heapq.heapreplace(sizes, (size + lengths[place], index))
            groups[index].append(place)
        if all(size <= micro_tokens or len(groups[index]) == 1 for size, index in sizes):
            break
    found = [[step_rows[place] for place in sorted(group)] for group in groups]
    return [group for group in found if group] if multiple == 1 else found


def runs(rows: Rows, chosen: Sequence[int], micro_tokens: int) -> Iterator[list[int]]:
    """These rows in their order, in groups of at most `micro_tokens` (at least one row)."""
    group: list[int] = []
    size = 0
    for row in chosen:
        length = int(rows.lengths_R[row])
        if group and size + length > micro_tokens:
            yield group
            group, size = [], 0
        group.append(row)
        size += length
    if group:
        yield group
