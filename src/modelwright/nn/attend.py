"""Attention of a flat stream of tokens, each row over its own key/value memory and over what it shares with other rows.

Linear layers see one stream; attention sees each row by itself (Yu et al. 2022, "Orca", OSDI: batch every operation but
attention). Keys that several rows share are stored once: the queries of all these rows meet them in one product, and the
result is joined with each row's own part by log-sum-exp (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099, section 3.1).

Shapes: T tokens of the stream, N rows of a run, Q new tokens of each, H query heads, K key/value heads, G = H / K, E = G * Q,
L longest own part, P shared part, C capacity, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.nn.attention import Layout, Segment, by_formula, together
from modelwright.nn.memory import Memory, Shared

SHORT = 16
"""Rows under way with at most so many new tokens are attended together; more are attended row by row."""


class Terms(NamedTuple):
    """What a layer's attention has beside queries, keys and values."""

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sink_H: Tensor | None = None
    half: bool = False
    """Products of many tokens run in bfloat16, as those with the weights do."""

    @property
    def formula(self) -> bool:
        """Whether no kernel of torch computes it."""
        return self.softcap is not None or self.sink_H is not None


class _Run(NamedTuple):
    """Rows that lie side by side in memory and in the stream, each with few new tokens."""

    first: int
    last: int
    """One behind the last row."""
    start: int
    end: int
    """In the stream."""
    before: list[int]
    """Own tokens before the new ones, of each row."""
    queries: list[int]
    """New tokens of each row."""
    shared: list[tuple[Shared, list[int]]]
    """What rows share, and their numbers counted from `first`."""


class _Document(NamedTuple):
    """A row that is attended by itself."""

    row: int
    start: int
    end: int
    before: int
    shared: Shared | None


class Plan:
    """What one forward holds, for the attention function. The stream has the rows of `order`, each with its new tokens."""

    def __init__(self, new: Sequence[int], memory: Memory | None, device: Any) -> None:
        """`new`: how many new tokens each row has."""
        self.memory, self.device = memory, device
        before = memory.lengths if memory is not None else [0] * len(new)
        whole = [memory.whole(row) for row in range(len(new))] if memory is not None else before
        short = [row for row, count in enumerate(new) if whole[row] and 0 < count <= SHORT]
        long = [row for row, count in enumerate(new) if count and not (whole[row] and count <= SHORT)]
        self.order = [*short, *long]
        self.start = dict(zip(self.order, _starts([new[row] for row in self.order]), strict=True))
        self.positions = [place for row in self.order for place in range(whole[row], whole[row] + new[row])]
        self.documents = [
            _Document(row, self.start[row], self.start[row] + new[row], before[row], memory.shared[row] if memory else None)
            for row in long
        ]
        self.runs: list[_Run] = []
        if memory is not None:
            self.row_T = torch.tensor([row for row in self.order for _ in range(new[row])], device=device)
            at = [place for row in self.order for place in range(before[row], before[row] + new[row])]
            self.at_T = torch.tensor(at, device=device)
            self.runs = [self._run(rows, new, memory) for rows in _side_by_side(short)]
        self.fresh = not self.runs and not any(one.before or one.shared for one in self.documents)
        """Every row begins here, with many tokens."""
        self._made: dict[Any, Any] = {}

    def _run(self, rows: list[int], new: Sequence[int], memory: Memory) -> _Run:
        shared: dict[int, tuple[Shared, list[int]]] = {}
        for number, row in enumerate(rows):
            if (found := memory.shared[row]) is not None:
                shared.setdefault(id(found), (found, []))[1].append(number)
        start = self.start[rows[0]]
        counts = [new[row] for row in rows]
        before = [memory.lengths[row] for row in rows]
        return _Run(rows[0], rows[-1] + 1, start, start + sum(counts), before, counts, list(shared.values()))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What all layers of one sort use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _starts(counts: Sequence[int]) -> list[int]:
    starts, total = [], 0
    for count in counts:
        starts.append(total)
        total += count
    return starts


def _side_by_side(rows: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][-1] == row - 1:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def attend(plan: Plan, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, terms: Terms) -> Tensor:
    """[1, H, T, D] attention of one layer; new keys and values go into the memory, where the plan has one."""
    out_1HTD = torch.empty_like(query_1HTD)
    keys_values = None
    if plan.memory is not None:
        kept = (key_1KTD.float(), value_1KTD.float()) if terms.half else (key_1KTD, value_1KTD)
        keys_values = plan.memory.layer(layer, kept)
        for memory, new in zip(keys_values, kept, strict=True):
            memory[plan.row_T, :, plan.at_T] = new[0].transpose(0, 1)
    for number, run in enumerate(plan.runs):
        assert keys_values is not None
        part = slice(run.start, run.end)
        out_1HTD[:, :, part] = _attend_run(plan, number, layer, query_1HTD[0, :, part], keys_values, terms)
    for document in plan.documents:
        part = slice(document.start, document.end)
        if document.before or document.shared:
            assert keys_values is not None
            out_1HTD[:, :, part] = _attend_later(plan, document, layer, query_1HTD[:, :, part], keys_values, terms)
        else:
            out_1HTD[:, :, part] = _attend_first(
                plan, query_1HTD[:, :, part], key_1KTD[:, :, part], value_1KTD[:, :, part], terms
            )
    return out_1HTD


def _attend_run(
    plan: Plan, number: int, layer: int, query_HTD: Tensor, keys_values: tuple[Tensor, Tensor], terms: Terms
) -> Tensor:
    """Few new tokens a row. The query heads that share a key head are given to the kernel as its query positions: keys are
    read once and never repeated (on CPU 2 to 12 times as fast as `enable_gqa`)."""
    run = plan.runs[number]
    rows, most, longest = len(run.queries), max(run.queries), max(map(sum, zip(run.before, run.queries, strict=True)))
    ragged = min(run.queries) < most
    heads, _, width = query_HTD.shape
    keys, values = (part[run.first : run.last, :, :longest] for part in keys_values)
    kv_heads = keys.shape[1]
    if ragged:
        query_HTD = query_HTD.index_select(1, plan.once((number, "padded"), lambda: _padded(run.queries, plan.device)))
    query_NKED = query_HTD.reshape(heads, rows, most, width).transpose(0, 1).reshape(rows, kv_heads, -1, width)
    lone = query_NKED.shape[2] == 1 and query_NKED.device.type == "cpu" and query_NKED.dtype != torch.float32
    if lone:  # in bf16 a product with one row takes the CPU's slow path, 3 to 4 times as long; a second, equal row avoids it
        query_NKED = query_NKED.expand(rows, kv_heads, 2, width)
    mask = plan.once((number, "own", terms.window, query_NKED.dtype), lambda: _own_mask(plan, run, longest, terms, query_NKED))
    mask = mask.expand(-1, -1, query_NKED.shape[2] // most, -1, -1).reshape(rows, 1, -1, longest)
    if not run.shared and not terms.formula:
        mask = mask.expand(-1, kv_heads, -1, -1)
        out_NKED = F.scaled_dot_product_attention(query_NKED, keys, values, attn_mask=mask, scale=terms.scaling)
    else:
        out_NKED = _joined(plan, number, layer, query_NKED, (keys, values), mask, terms)
    if lone:
        out_NKED = out_NKED[:, :, :1]
    out_HTD = out_NKED.reshape(rows, heads, most, width).transpose(0, 1).reshape(heads, -1, width)
    return out_HTD.index_select(1, plan.once((number, "flat"), lambda: _flat(run.queries, plan.device))) if ragged else out_HTD


def _joined(
    plan: Plan, number: int, layer: int, query_NKED: Tensor, own: tuple[Tensor, Tensor], mask: Tensor, terms: Terms
) -> Tensor:
    """Over what rows share and what is their own, part by part."""
    run = plan.runs[number]
    rows, kv_heads, asked, width = query_NKED.shape
    out_NKED, total_NKE = _part(query_NKED, *own, mask, terms)
    for place, (shared, members) in enumerate(run.shared):
        all_rows = len(members) == rows
        member_M = plan.once((number, place), partial(torch.tensor, members, device=plan.device))
        query_MKED = query_NKED if all_rows else query_NKED.index_select(0, member_M)
        query_1KED = query_MKED.transpose(0, 1).reshape(1, kv_heads, -1, width)
        seen_ME = mask_ME = None
        if terms.window is not None:
            key = (number, place, terms.window, query_NKED.dtype)
            make = partial(_shared_mask, plan, run, shared, members, terms.window, query_NKED)
            seen_ME, mask_ME = plan.once(key, make)
        out, total = _part(query_1KED, *shared.layers[layer], mask_ME, terms)
        if seen_ME is not None:
            total = total.masked_fill(~seen_ME, float("-inf"))
        out_MKED = out.view(kv_heads, -1, asked, width).transpose(0, 1)
        total_MKE = total.reshape(kv_heads, -1, asked).transpose(0, 1)
        if all_rows:
            out_NKED, total_NKE = _merged(out_NKED, total_NKE, out_MKED, total_MKE)
        else:
            out_M, total_M = _merged(out_NKED[member_M], total_NKE[member_M], out_MKED, total_MKE)
            out_NKED[member_M], total_NKE[member_M] = out_M, total_M
    if terms.sink_H is not None:
        sink_1KE = terms.sink_H.float().view(1, kv_heads, -1, 1).expand(-1, -1, -1, asked * kv_heads // len(terms.sink_H))
        sunk_NKE = torch.logaddexp(total_NKE, sink_1KE.reshape(1, kv_heads, asked))
        out_NKED = out_NKED * (total_NKE - sunk_NKE).exp()[..., None].to(out_NKED.dtype)
    return out_NKED


def _merged(out: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.logaddexp(total, other_total)
    mine, theirs = (part.sub(both).exp_()[..., None] for part in (total, other_total))
    return (out * mine + other * theirs).to(out.dtype), both


def _part(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, terms: Terms) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and the log-sum-exp of its scores. Query heads of a key head lie along its queries."""
    if query.device.type == "cpu" and terms.softcap is None:
        if mask is not None:
            mask = mask.expand(-1, query.shape[1], -1, -1)
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=terms.scaling
        )
        return out, total
    score = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if terms.scaling is None else terms.scaling)
    if terms.softcap is not None:
        score = (score / terms.softcap).tanh() * terms.softcap
    if mask is not None:
        score = score + mask.float()
    total = score.logsumexp(-1)
    # a query that sees none of these keys: its part gets no weight
    prob = (score - total.masked_fill(total == float("-inf"), 0.0)[..., None]).exp()
    return (prob @ value.float()).to(query.dtype), total


def _padded(queries: list[int], device: Any) -> Tensor:
    """[N * Q] where in the run's stream each row's new tokens are; a row's last one again where it has fewer than others."""
    most = max(queries)
    places = [start + min(at, count - 1) for start, count in zip(_starts(queries), queries, strict=True) for at in range(most)]
    return torch.tensor(places, device=device)


def _flat(queries: list[int], device: Any) -> Tensor:
    """[T] the real ones among N * Q."""
    most = max(queries)
    return torch.tensor([row * most + at for row, count in enumerate(queries) for at in range(count)], device=device)


def _at(run: _Run, device: Any) -> Tensor:
    """[N, Q] the place of each query in its row's own part."""
    most = max(run.queries)
    last_N1 = torch.tensor([[before + count - 1] for before, count in zip(run.before, run.queries, strict=True)], device=device)
    return torch.minimum(torch.tensor(run.before, device=device)[:, None] + torch.arange(most, device=device), last_N1)


def _minus_infinity(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def _own_mask(plan: Plan, run: _Run, longest: int, terms: Terms, like: Tensor) -> Tensor:
    """[N, 1, 1, Q, L] 0 where a new token may look in its row's own part, else minus infinity."""
    at_NQ1 = _at(run, plan.device)[..., None]
    key_L = torch.arange(longest, device=plan.device)
    hidden_NQL = key_L > at_NQ1
    if terms.window is not None:
        hidden_NQL |= key_L <= at_NQ1 - terms.window
    return _minus_infinity(hidden_NQL, like)[:, None, None]


def _shared_mask(plan: Plan, run: _Run, shared: Shared, members: list[int], window: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """[1, 1, M * E] whether a query sees any of the shared keys, and [1, 1, M * E, P] which."""
    at_MQ = _at(run, plan.device)[members] + shared.length
    groups = like.shape[2] // at_MQ.shape[1]
    at_E1 = at_MQ[:, None].expand(-1, groups, -1).reshape(-1, 1)
    hidden_EP = torch.arange(shared.length, device=plan.device) <= at_E1 - window
    return (~hidden_EP).any(-1)[None, None], _minus_infinity(hidden_EP, like)[None, None]


def _attend_first(plan: Plan, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, terms: Terms) -> Tensor:
    """The beginning of a row."""
    length = query_1HTD.shape[2]
    if not terms.formula:
        dtype = torch.bfloat16 if terms.half else query_1HTD.dtype
        query_THD, key_TKD, value_TKD = (part[0].transpose(0, 1).to(dtype) for part in (query_1HTD, key_1KTD, value_1KTD))
        layout = plan.once(("layout", length), lambda: Layout([Segment(0, length)]))
        found_THD = together(query_THD, key_TKD, value_TKD, layout, terms.scaling, terms.window)
        if found_THD is not None:
            return found_THD.transpose(0, 1)[None]
    seen_TT = None
    if terms.formula or (terms.window is not None and length > terms.window):
        at_T = torch.arange(length, device=query_1HTD.device)
        seen_TT = (at_T[None] <= at_T[:, None]) & (at_T[None] > at_T[:, None] - (terms.window or length))
    return _attend_alone(query_1HTD, key_1KTD, value_1KTD, seen_TT, terms)


def _attend_later(
    plan: Plan, document: _Document, layer: int, query_1HTD: Tensor, keys_values: tuple[Tensor, Tensor], terms: Terms
) -> Tensor:
    """Many new tokens of one row behind others of it."""
    length = document.before + document.end - document.start
    keys, values = (part[document.row : document.row + 1, :, :length] for part in keys_values)
    begun = 0
    if (shared := document.shared) is not None:
        begun = shared.length
        keys, values = (torch.cat([first, own], 2) for first, own in zip(shared.layers[layer], (keys, values), strict=True))

    def seen() -> Tensor:
        at_T1 = torch.arange(begun + document.before, begun + length, device=plan.device)[:, None]
        key_L = torch.arange(begun + length, device=plan.device)
        seen_TL = key_L <= at_T1
        return seen_TL if terms.window is None else seen_TL & (key_L > at_T1 - terms.window)

    return _attend_alone(query_1HTD, keys, values, plan.once((document, terms.window), seen), terms)


def _attend_alone(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, seen: Tensor | None, terms: Terms) -> Tensor:
    if seen is not None and terms.formula:
        return by_formula(query_1HTD, key_1KTD, value_1KTD, seen, terms.scaling, terms.softcap, terms.sink_H)
    if (group := query_1HTD.shape[1] // key_1KTD.shape[1]) > 1:
        key_1KTD = key_1KTD.repeat_interleave(group, dim=1)
        value_1KTD = value_1KTD.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(
        query_1HTD, key_1KTD, value_1KTD, attn_mask=seen, is_causal=seen is None, scale=terms.scaling
    )
