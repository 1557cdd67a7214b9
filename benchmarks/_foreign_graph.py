"""Other people's training steps as a card would run them, without a card: transformers' model, PEFT's adapter and torch's
optimizer on tensors without values (`nn/fake.py`), attention by the operations that cards have, allocations counted
(`nn/tally.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from modelwright.nn import workspaces
from modelwright.nn.fake import Fake
from modelwright.nn.tally import Event, Tally

aten = torch.ops.aten

QUERY_TILE = 128
"""Queries of one tile of the memory-efficient backward kernel, and columns of its sums, for heads of up to 128 places in half
precision: aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernel_backward.h, `workspace_elements_gq`."""


class Run(NamedTuple):
    """What a run allocates."""

    weight_bytes: int
    begun: int
    """Events before the first step: weights, adapter."""
    steps: list[int]
    """Number of events at each step's end."""
    events: list[Event]


class Style(NamedTuple):
    """How a program trains."""

    cache: bool
    """transformers keeps keys and values of all layers with the outputs, as it does unless told not to."""
    padded: bool = True
    """A mask says where rows end."""
    chunk: int = 0
    """Positions whose logits and loss are made at once; 0: transformers' own loss."""
    adapter_float32: bool = True
    """PEFT's weights are in float32."""
    clip: bool = True


def card_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as it divides on a card from Ampere on in half precision (aten/src/ATen/native/transformers/
    attention.cpp and cuda/sdp_utils.cpp): flash attention without a mask, the memory-efficient kernel with one, whose bias each
    call makes of the mask."""
    if attn_mask is None:
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)
        return found[0]  # type: ignore[no-any-return]
    assert not enable_gqa, "the memory-efficient kernel takes as many key heads as query heads"
    bias = torch.where(attn_mask, 0.0, torch.tensor(float("-inf"), dtype=query.dtype))
    if bias.shape[-1] % 8:
        bias = torch.nn.functional.pad(bias, (0, 8 - bias.shape[-1] % 8))[..., : bias.shape[-1]]
    bias = bias.expand(*query.shape[:3], key.shape[2])
    result = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p, is_causal, scale=scale)
    return result[0]  # type: ignore[no-any-return]


def _backward_bytes(args: Any, kwargs: Any, result: Any) -> int:
    """Sums of the queries' gradients, and a number for each query."""
    batch, heads, queries, _ = args[1].shape
    tiles = -(-queries // QUERY_TILE)
    return batch * heads * (tiles * (QUERY_TILE * QUERY_TILE * 4 + 16) + queries * 4)


CARD_WORKSPACES: dict[Any, Callable[[Any, Any, Any], int]] = {
    aten._scaled_dot_product_efficient_attention_backward.default: _backward_bytes
}


@contextmanager
def card() -> Iterator[Tally]:
    """While it is open, tensors have no values and are counted as on a card."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(workspaces.WORKSPACES, CARD_WORKSPACES, clear=True))
        stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", card_attention))
        stack.enter_context(Fake())
        yield stack.enter_context(Tally())


def trained(config: Any, adapter: Any, batches: list[tuple[int, int]], style: Style) -> Run:
    """The loop of PEFT's method comparison (method_comparison/MetaMathQA/run.py) on batches of (rows, length of the longest): one
    step of AdamW after each, gradients let go before the next, the last step's outputs when the next step's are there. `adapter`:
    PEFT's configuration, or None to train all weights."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        frozen = list(model.parameters())
        if adapter is not None:
            model = get_peft_model(model, adapter, low_cpu_mem_usage=True)
    with card() as tally:
        made = filled(model, None if style.adapter_float32 else config.dtype)
        tally.own("weights", (made[id(weight)] for weight in frozen))
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)  # as torch chooses on a card
        begun, ends = len(tally.events), []
        outputs = None
        for rows, length in batches:
            optimizer.zero_grad()
            outputs = forward(model, batch(rows, length, style.padded), style)
            outputs[0].backward()
            if style.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ends.append(len(tally.events))
        return Run(sum(weight.nbytes for weight in frozen), begun, ends, list(tally.events))


def forward(model: Any, inputs: dict[str, Tensor], style: Style) -> tuple[Any, ...]:
    """The loss, and what else stays."""
    if not style.chunk:
        count = inputs["input_ids"].numel()
        outputs = model(**inputs, num_items_in_batch=count, use_cache=style.cache)
        return (outputs.loss, outputs)
    labels = inputs.pop("labels")
    plain = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    hidden = plain.model(**inputs, use_cache=style.cache).last_hidden_state
    logits = [plain.lm_head(part) for part in hidden.split(style.chunk, dim=1)]
    pairs = zip(logits, labels.split(style.chunk, dim=1), strict=True)
    losses = [cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none") for part, target in pairs]
    return (torch.cat(losses).sum() / labels.numel(), logits)


def filled(model: Any, dtype: torch.dtype | None = None) -> dict[int, Tensor]:
    """Every weight and buffer on a processor instead of nowhere; what was tied stays so. By what it was (its `id`). `dtype`: of
    all weights; None: as they are."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                new = torch.empty(weight.shape, dtype=dtype or weight.dtype)
                module._parameters[name] = made.setdefault(id(weight), torch.nn.Parameter(new, weight.requires_grad))
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return made


def batch(rows: int, length: int, padded: bool) -> dict[str, Tensor]:
    """`padded`: all rows but the first are shorter, and a mask tells it."""
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    seen = torch.ones(rows, length, dtype=torch.int64)
    seen[1 if rows > 1 else 0 :, -1] = 0 if padded else 1
    return {"input_ids": tokens, "attention_mask": seen, "labels": tokens.clone()}
