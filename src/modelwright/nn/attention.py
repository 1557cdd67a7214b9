"""Packed attention: many documents in one row of tokens, no padding, no attention across documents.

Registered with transformers as an attention implementation, so every model that uses its attention interface can run it
(https://huggingface.co/docs/transformers/attention_interface); whether a layer looks back alone or both ways is the layer's own
`is_causal`. Each document is one call of `scaled_dot_product_attention`; a branch (a pair's answers under one prompt) also sees
its parent's keys, so that the parent is computed once (prefix sharing, as in tree attention, Miao et al. 2023,
arXiv:2305.09781, section 3). Soft caps (Gemma 2, arXiv:2408.00118, section 2) and sinks (a learnt number in each head's
softmax that takes attention and gives nothing: gpt-oss, arXiv:2508.10925), which no kernel of torch knows, are computed by their
formula.
"""

# Shape suffixes: B batch (1 where rows are packed), H query heads, K key/value heads, T tokens, Q of them that ask, E = H / K * Q
# (all that ask one key/value head), C head width.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from modelwright.core.errors import UserError
from modelwright.nn import varlen
from modelwright.nn.device import on_processor

NAME = "modelwright_packed"
"""What the implementation is called inside transformers."""


class Segment(NamedTuple):
    """Tokens `start` to `stop` of the packed row. With a parent they also attend to it and to its parents."""

    start: int
    stop: int
    parent: int = -1
    """Index of the segment that this one continues; -1: none."""


@dataclasses.dataclass
class Layout:
    """How a packed row is divided. Segments lie side by side, in order, parents before their branches."""

    segments: Sequence[Segment]
    _masks: dict[tuple[int, int | None, bool, bool], Tensor | None] = dataclasses.field(default_factory=dict, repr=False)
    places: varlen.Places | None = dataclasses.field(default=None, repr=False)
    """As a kernel for documents of any length wants it; made when one first asks."""

    def __post_init__(self) -> None:
        end = 0
        for index, segment in enumerate(self.segments):
            assert segment.start == end < segment.stop, f"segment {index} {segment} does not follow position {end}"
            assert -1 <= segment.parent < index, f"segment {index} must come after its parent {segment.parent}"
            end = segment.stop
        self.lengths = [segment.stop - segment.start for segment in self.segments]
        self.tokens = end
        self.branched = any(segment.parent >= 0 for segment in self.segments)

    def chain(self, index: int) -> list[int]:
        """The segment and its ancestors, the oldest first."""
        found = [index]
        while (parent := self.segments[found[0]].parent) >= 0:
            found.insert(0, parent)
        return found

    def positions(self) -> Tensor:
        """[T] position of each token in its own document; a branch goes on where its parent ends."""
        ends: list[int] = []
        parts: list[Tensor] = []
        for segment, length in zip(self.segments, self.lengths, strict=True):
            begin = ends[segment.parent] if segment.parent >= 0 else 0
            parts.append(torch.arange(begin, begin + length))
            ends.append(begin + length)
        return torch.cat(parts)

    def asked(self, wanted_U: Tensor | None) -> list[Tensor] | None:
        """Segment by segment, which of its tokens are wanted, counted from its start; None: all are."""
        if wanted_U is None:
            return None
        starts = torch.tensor([segment.start for segment in self.segments])
        bounds = [*torch.searchsorted(wanted_U, starts.to(wanted_U.device)).cpu().tolist(), len(wanted_U)]
        return [wanted_U[a:b] - start for a, b, start in zip(bounds, bounds[1:], starts.tolist(), strict=False)]

    def mask(
        self,
        index: int,
        window: int | None,
        device: torch.device,
        asked_Q: Tensor | None = None,
        both: bool = False,
        whole: bool = False,
    ) -> Tensor | None:
        """[queries, keys] True where a query may look. None, unless it is wanted `whole`, where plain attention does the same,
        causal or (`both`) of all tokens. `window`: how far it looks back, itself included, and with `both` as far ahead.
        `asked_Q`: the queries, counted from the segment's start; None: all its tokens."""
        assert not both or self.segments[index].parent < 0, "what looks both ways cannot share a prefix"
        if asked_Q is not None:
            return self._seen(index, window, asked_Q.to(device), both)
        key = (index, window, both, whole)
        if key not in self._masks:
            queries = self.lengths[index]
            plain = not whole and self.segments[index].parent < 0 and (window is None or queries <= window)
            self._masks[key] = None if plain else self._seen(index, window, torch.arange(queries, device=device), both)
        return self._masks[key]

    def _seen(self, index: int, window: int | None, asked_Q: Tensor, both: bool) -> Tensor:
        keys = sum(self.lengths[i] for i in self.chain(index))
        query_Q1 = (asked_Q + keys - self.lengths[index])[:, None]
        key_1K = torch.arange(keys, device=asked_Q.device)[None, :]
        ahead = 0 if not both else keys if window is None else window - 1
        seen_QK = key_1K <= query_Q1 + ahead
        return seen_QK if window is None else seen_QK & (key_1K > query_Q1 - window)


def one_each(query: Tensor, key: Tensor, value: Tensor, dim: int) -> tuple[Tensor, Tensor, bool]:
    """Keys and values as `scaled_dot_product_attention` takes them, and whether it has to share them among heads (along `dim`).
    On a processor it does; the memory-efficient kernel of cards does not, and another would make all scores."""
    times = query.shape[dim] // key.shape[dim]
    if times == 1 or on_processor(query):
        return key, value, times > 1
    return key.repeat_interleave(times, dim), value.repeat_interleave(times, dim), False


def by_formula(
    query_BHQC: Tensor,
    key_BKTC: Tensor,
    value_BKTC: Tensor,
    seen_QT: Tensor,
    scaling: float | None,
    softcap: float | None,
    sink_H: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """[B, H, Q, C] attention whose scores stay under `softcap`, with a sink in each head's softmax; all in float32, however the
    products around it run. `seen_QT`: True where a query may look; it may have B and H before it."""
    wide = torch.promote_types(query_BHQC.dtype, torch.float32)
    batch, heads, asked, width = query_BHQC.shape
    kv_heads, tokens = key_BKTC.shape[1:3]
    with torch.autocast(query_BHQC.device.type, enabled=False):
        query_BKEC = query_BHQC.to(wide).reshape(batch, kv_heads, -1, width) * (width**-0.5 if scaling is None else scaling)
        score_BHQT = (query_BKEC @ key_BKTC.to(wide).mT).view(batch, heads, asked, tokens)
        if softcap is not None:
            score_BHQT = (score_BHQT / softcap).tanh() * softcap
        score_BHQT = score_BHQT.masked_fill(~seen_QT, -torch.inf)
        if sink_H is not None:
            score_BHQT = torch.cat([score_BHQT, sink_H.to(wide)[:, None, None].expand(batch, heads, asked, 1)], dim=-1)
        prob_BHQT = score_BHQT.softmax(-1)[..., :tokens]
        if dropout:
            prob_BHQT = drop(prob_BHQT, dropout)
        out_BKEC = prob_BHQT.reshape(batch, kv_heads, -1, tokens) @ value_BKTC.to(wide)
        return out_BKEC.view(batch, heads, asked, -1).to(query_BHQC.dtype)


def plain(
    query_BHQC: Tensor,
    key_BKTC: Tensor,
    value_BKTC: Tensor,
    seen_QT: Tensor | None,
    scaling: float | None,
    causal: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """[B, H, Q, C] attention by torch's kernels."""
    key_BKTC, value_BKTC, grouped = one_each(query_BHQC, key_BKTC, value_BKTC, 1)
    return scaled_dot_product_attention(
        query_BHQC,
        key_BKTC,
        value_BKTC,
        attn_mask=seen_QT,
        dropout_p=dropout,
        is_causal=causal and seen_QT is None,
        scale=scaling,
        enable_gqa=grouped,
    )


def by_document(
    query_UHC: Tensor,
    key_TKC: Tensor,
    value_TKC: Tensor,
    layout: Layout,
    window: int | None,
    kernel: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    wanted_U: Tensor | None = None,
    both: bool = False,
    whole: bool = False,
) -> Tensor:
    """[U, H, C] attention of the tokens `wanted_U` (None: all), a call of the kernel for each document; `both` and `whole` as in
    `Layout.mask`."""
    asked = layout.asked(wanted_U)
    # split, not slices: the gradient of a slice is a zero-filled copy of the whole row, once per document
    queries = torch.split(query_UHC.transpose(0, 1), [len(places) for places in asked] if asked else layout.lengths, dim=1)
    parts = [torch.split(t.transpose(0, 1), layout.lengths, dim=1) for t in (key_TKC, value_TKC)]
    outputs = []
    for index, query in enumerate(queries):
        if not query.shape[1]:
            continue
        chain = layout.chain(index)
        key, value = (part[index] if len(chain) == 1 else torch.cat([part[i] for i in chain], dim=1) for part in parts)
        mask = layout.mask(index, window, query.device, asked[index] if asked else None, both, whole)
        outputs.append(kernel(query[None], key[None], value[None], mask)[0].transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@cache
def _many() -> Any:
    """The kernel for processors; None where this one lacks what it needs."""
    try:
        return import_module("modelwright.nn._attend_many")
    except ImportError:
        return None


def compiled() -> bool:
    """Whether the kernels for processors were compiled before, as far as their folder tells."""
    return any((Path(__file__).parent / "__pycache__").glob("_attend_many*.nbi"))


def together(
    query_THC: Tensor,
    key_TKC: Tensor,
    value_TKC: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    both: bool = False,
) -> Tensor | None:
    """[T, H, C] attention of all documents by one kernel; None where no such kernel takes them (`by_document` does). It runs in
    what autocast says, where that is at work: rotary positions of transformers' modules are in float32 then."""
    device, width = query_THC.device, query_THC.shape[-1]
    casts = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if casts else query_THC.dtype
    flash = varlen.fits(device, dtype, width)
    many = None if flash or layout.branched or not on_processor(query_THC) else _many()
    if not flash and (many is None or not many.fits(dtype, width)):
        return None
    query_THC, key_TKC, value_TKC = (tensor.to(dtype) for tensor in (query_THC, key_TKC, value_TKC))
    if many is None:
        return varlen.attended(query_THC, key_TKC, value_TKC, layout, scaling, window, both)
    found_THC: Tensor = many.attended(query_THC, key_TKC, value_TKC, layout.lengths, scaling, window, both)
    return found_THC


def packed_attention(
    module: nn.Module,
    query_BHTC: Tensor,
    key_BKTC: Tensor,
    value_BKTC: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Layout | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in place of its own attention; returns [B, T, H, C].

    `s_aux` is what transformers calls sinks, one for each head; `other` are its switches for other kernels.
    """
    assert segments is not None and query_BHTC.shape[:1] == (1,) and query_BHTC.shape[2] == segments.tokens
    if position_bias is not None:
        raise UserError(
            "this model's attention uses `position_bias`, which packed training does not compute",
            f"{type(module).__name__} passes it to its attention",
            "start from a Llama, Qwen, Mistral, SmolLM or Gemma model",
        )
    causal = bool(getattr(module, "is_causal", True))  # the default is transformers' own
    formula = softcap is not None or s_aux is not None
    query_THC, key_TKC, value_TKC = (t[0].transpose(0, 1) for t in (query_BHTC, key_BKTC, value_BKTC))
    if not formula and not dropout:
        found_THC = together(query_THC, key_TKC, value_TKC, segments, scaling, sliding_window, not causal)
        if found_THC is not None:
            return found_THC[None], None
    terms = (scaling, softcap, s_aux, dropout)

    def by_terms(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # made again in the backward pass: the scores of all layers would be larger than everything else
        found: Tensor = checkpoint(by_formula, query, key, value, mask, *terms, use_reentrant=False)
        return found

    kernel = by_terms if formula else partial(plain, scaling=scaling, causal=causal, dropout=dropout)
    out_THC = by_document(query_THC, key_TKC, value_TKC, segments, sliding_window, kernel, both=not causal, whole=formula)
    return out_THC[None], None


def steady_tokens(config: Any) -> int | None:
    """Tokens of a row up to which the positions of a text do not depend on the other texts of its row; None: they never do. (What
    `dynamic` scaling changes begins behind `max_position_embeddings`.)"""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(inner for inner in rope.values() if isinstance(inner, dict))]  # one for all layers, or each sort has its own
    return min((kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"), default=None)


def no_mask(*_: Any, **__: Any) -> None:
    """The mask that transformers would build for us: none, the layout says who sees whom."""
    return None


def register() -> None:
    """Make `NAME` known to transformers; harmless when done twice."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, no_mask)
