"""Attention of packed documents in one call on CUDA cards: flash attention for sequences of any lengths.

Source: Dao 2023, "FlashAttention-2", arXiv:2307.08691; torch's `varlen_attn`
(https://docs.pytorch.org/docs/stable/nn.attention.varlen.html), which takes half precision on cards from Ampere on. A branch asks
with its own tokens and looks at those of its chain: the kernel's causal mask ends at both last tokens, which is just that. Where
it is not there, or gives other numbers than document by document, attention goes on document by document.
"""

# Shape suffixes: T packed tokens, L tokens that are looked at (some several times), H query heads, K key/value heads, C head
# width.

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from modelwright.core.memory.kernels import flash_takes
from modelwright.nn import cards
from modelwright.nn.device import imagined

if TYPE_CHECKING:
    from modelwright.nn.attention import Layout

TOLERANCE = 0.03
"""Largest difference from attention document by document, of values around 1: some roundings of bfloat16 (2^-8)."""


class Places(NamedTuple):
    """Where the documents of a layout lie."""

    ask: Tensor
    """[documents + 1] where each one's queries begin, and the end."""
    look: Tensor
    """The same of what they look at."""
    most_ask: int
    most_look: int
    index_L: Tensor | None
    """The tokens that are looked at; None: all, each once."""


def places(layout: Layout, device: torch.device) -> Places:
    """Made once for a layout."""
    if layout.places is None:
        seen = [sum(layout.lengths[i] for i in layout.chain(index)) for index in range(len(layout.segments))]
        spans = [layout.segments[i] for index in range(len(layout.segments)) for i in layout.chain(index)]
        index_L = torch.cat([torch.arange(span.start, span.stop) for span in spans]) if seen != layout.lengths else None
        ask, look = (torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (layout.lengths, seen))
        index_L = None if index_L is None else index_L.to(device)
        layout.places = Places(ask, look, max(layout.lengths), max(seen), index_L)
    return layout.places


def kernel() -> Callable[..., Tensor] | None:
    """torch's; None where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Callable[..., Any] = varlen_attn
    return found


def fits(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel takes heads of this width, and was found to be right."""
    if dtype not in (torch.float16, torch.bfloat16) or not flash_takes(width):
        return False
    if (card := imagined()) is not None:
        return card.flash
    return device.type == "cuda" and proven(device, dtype, width)


@cache
@torch.no_grad()
def proven(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether it gives here what attention document by document gives: with a branch, a window and shared keys."""
    from modelwright.nn.attention import Layout, Segment, by_document, plain

    if kernel() is None or (device.type == "cuda" and torch.cuda.get_device_capability(device) < cards.AMPERE):
        return False
    draw = torch.Generator().manual_seed(0)
    query_THC, key_TKC, value_TKC = (torch.randn(40, heads, width, generator=draw).to(device, dtype) for heads in (4, 2, 2))
    layout = Layout([Segment(0, 17), Segment(17, 24), Segment(24, 33, 1), Segment(33, 40, 1)])
    for window in (None, 5):
        given = (query_THC, key_TKC, value_TKC, layout)
        alone_THC = by_document(*given, window, partial(plain, scaling=width**-0.5))
        difference = attended(*given, width**-0.5, window).float() - alone_THC.float()
        if not float(difference.abs().max()) <= TOLERANCE:
            return False
    return True


def attended(
    query_THC: Tensor,
    key_TKC: Tensor,
    value_TKC: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    both: bool = False,
) -> Tensor:
    """[T, H, C] attention; `window` and `both` as in `Layout.mask`."""
    run, at = kernel(), places(layout, query_THC.device)
    assert run is not None, "`fits` first"
    if at.index_L is not None:
        key_TKC, value_TKC = key_TKC.index_select(0, at.index_L), value_TKC.index_select(0, at.index_L)
    far = -1 if window is None else window - 1
    return run(
        query_THC,
        key_TKC,
        value_TKC,
        at.ask,
        at.look,
        at.most_ask,
        at.most_look,
        scale=scaling,
        window_size=(far, far if both else 0),
        enable_gqa=query_THC.shape[1] != key_TKC.shape[1],
    )


def told(device: torch.device, dtype: torch.dtype) -> str:
    """How attention runs there, for a note; '' on a processor."""
    if device.type == "cpu":
        return ""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and proven(device, dtype, 64):
        return "attention runs all documents in one flash kernel"
    lacks = "older than Ampere, other products than half precision, or no such kernel in this torch"
    return f"attention runs document by document{f' ({lacks})' if device.type == 'cuda' else ''}"
