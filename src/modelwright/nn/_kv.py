"""The forward pass over rows of key/value memory: no padding in prefill, rows that come, fork, go back and go.

One forward takes a flat stream: the new tokens of every row, one or many (the next token, proposals to verify, a piece of a
prompt). The model's own modules are used through transformers' `AttentionInterface`; an equality check at load decides
whether a model can be driven like this, else each row gets transformers' own cache.

Shapes: T tokens of the stream, R places that give logits, V vocabulary, E width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from modelwright.nn._plain import Plain
from modelwright.nn._runner import SHARE, Added, Runner, Seen, Trunk
from modelwright.nn.adapters import Adapter, Worn
from modelwright.nn.attend import Plan, Terms, attend
from modelwright.nn.attention import no_mask
from modelwright.nn.lean import lean_of
from modelwright.nn.logps import cap_of, chunk_bytes_of, chunks
from modelwright.nn.memory import Kept, Layers, Memory

_NAME = "modelwright_rows"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    modelwright_plan: Plan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; `ignored` are its switches for other kernels (dropout, is_causal, …)."""
    if modelwright_plan is None or position_bias is not None:
        raise NotImplementedError("attention with a position bias")
    terms = Terms(scaling, sliding_window, softcap, s_aux)
    return attend(modelwright_plan, module.layer_idx, query, key, value, terms).transpose(1, 2), None


class Modules:
    """The model's own modules; adapters are hooked into them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, ids_T: Tensor, position_T: Tensor, plan: Plan, added: Added | None = None) -> Tensor:
        seen = self._model.base_model(
            input_ids=ids_T[None], position_ids=position_T[None], use_cache=False, modelwright_plan=plan
        )
        hidden_TE: Tensor = seen.last_hidden_state[0]
        return hidden_TE

    def logits(self, hidden_RE: Tensor) -> Tensor:
        logits_RV: Tensor = self._model.get_output_embeddings()(hidden_RE).float()
        cap = cap_of(self._model.config)
        return logits_RV if cap is None else logits_RV.div_(cap).tanh_().mul_(cap)


class Rows:
    """Drives a model over a packed stream."""

    keeps = True

    def __init__(self, model: Any, most_rows: int, trunk: Trunk) -> None:
        self.model, self.most_rows, self.memory = model, most_rows, Memory(most_rows)
        self.trunk = trunk
        self.device, self.worn = next(model.parameters()).device, Worn(model)
        way = "its own modules" if isinstance(trunk, Modules) else "few, large operations"
        self.why = f"packed: prompts without padding, all rows in one step, by {way}"

    @property
    def lengths(self) -> list[int]:
        return [self.memory.whole(row) for row in range(len(self.memory.lengths))]

    def begin(self, adapter: Adapter | None = None) -> int:
        return self.memory.begin(adapter)

    def _hidden(self, new: Sequence[Sequence[int]], plan: Plan) -> Tensor:
        ids_T = torch.tensor([token for row in plan.order for token in new[row]], device=self.device)
        position_T = torch.tensor(plan.positions, device=self.device)
        of = self.memory.adapters if plan.memory is not None else [None] * len(new)
        if not any(of[row] for row in plan.order):
            return self.trunk(ids_T, position_T, plan)
        with self.worn.on([of[row] for row in plan.order for _ in new[row]], isinstance(self.trunk, Modules)):
            return self.trunk(ids_T, position_T, plan, self.worn.added)

    def forward(self, new: Sequence[Sequence[int]], ask: Sequence[int] | None = None) -> Seen:
        memory, counts = self.memory, [len(tokens) for tokens in new]
        assert len(new) == len(memory.lengths)
        lengths = [length + count for length, count in zip(memory.lengths, counts, strict=True)]
        memory.reserve(max(lengths))
        plan = Plan(counts, memory, self.device)
        hidden_TE = self._hidden(new, plan)
        memory.lengths = lengths
        asked = [min(count, 1) for count in counts] if ask is None else ask
        places = [plan.start[row] + at for row, count in enumerate(counts) if count for at in range(count - asked[row], count)]
        hidden_RE = hidden_TE.index_select(0, torch.tensor(places, dtype=torch.long, device=self.device))
        return Seen(self.trunk.logits(hidden_RE), hidden_RE)

    def rewind(self, row: int, length: int) -> None:
        self.memory.rewind(row, length)

    def fork(self, row: int, length: int) -> int:
        memory = self.memory
        if memory.shared[row] is None and length >= SHARE:
            memory.split(row, length)
        shared = memory.shared[row]
        if shared is not None and shared.length > length:
            return self._copied(shared.layers, length, memory.begin(memory.adapters[row]))
        new = memory.begin(memory.adapters[row], shared)
        memory.reserve(max(memory.lengths))
        views = {layer: (key[row : row + 1], value[row : row + 1]) for layer, (key, value) in memory.layers.items()}
        return self._copied(views, length - (shared.length if shared else 0), new)

    def _copied(self, layers: Layers, own: int, row: int) -> int:
        """Fill a new row's own part."""
        self.memory.reserve(max(own, *self.memory.lengths))
        self.memory.put(row, 0, layers, own)
        self.memory.lengths[row] = own
        return row

    def drop(self, row: int) -> None:
        self.memory.drop(row)

    def keep(self, row: int) -> Kept:
        length = self.memory.lengths[row]
        return Kept(self.memory.shared[row], length, self.memory.cut(row, length), self.memory.adapters[row])

    def again(self, kept: Kept, length: int) -> int:
        """What the row shared stays shared where another row under way has it, else it becomes the new row's own."""
        memory, shared = self.memory, kept.shared
        begun = shared.length if shared else 0
        if shared is not None and length >= begun and any(other is shared for other in memory.shared):
            return self._copied(kept.layers, length - begun, memory.begin(kept.adapter, shared))
        row = memory.begin(kept.adapter)
        memory.reserve(max(length, *memory.lengths))
        if shared is not None:
            memory.put(row, 0, shared.layers, min(begun, length))
        if length > begun:
            memory.put(row, begun, kept.layers, length - begun)
        memory.lengths[row] = length
        return row

    def _packs(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> Iterable[tuple[list[Sequence[int]], Tensor, Plan]]:
        """Sequences, as many as fit into a chunk, and what the head sees of them."""
        group: list[Sequence[int]] = []
        for sequence in [*tokens, ()]:
            if group and (not sequence or sum(map(len, group)) + len(sequence) > chunk_tokens):
                plan = Plan([len(one) for one in group], None, self.device)
                yield group, self._hidden(group, plan), plan
                group = []
            if sequence:
                group.append(sequence)

    def states(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> Iterable[Tensor]:
        for _, hidden_TE, plan in self._packs(tokens, chunk_tokens):
            yield from (hidden_TE[document.start : document.end] for document in plan.documents)

    def logps(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> list[Tensor]:
        found: list[Tensor] = []
        for group, hidden_TE, plan in self._packs(tokens, chunk_tokens):
            target_T = torch.tensor([token for one in group for token in [*one[1:], 0]], device=self.device)
            logp_T = self._head_logps(hidden_TE, target_T)
            found += [logp_T[document.start : document.end - 1] for document in plan.documents]
        return found

    def _head_logps(self, hidden_TE: Tensor, target_T: Tensor) -> Tensor:
        """[T] log p(target); full logits exist for a chunk of positions at a time."""
        parts = []
        vocab = self.model.get_output_embeddings().weight.shape[0]
        for part in chunks(len(target_T), vocab, chunk_bytes_of(vocab)):
            logits_CV = self.trunk.logits(hidden_TE[part])
            parts.append(logits_CV.gather(1, target_T[part, None])[:, 0] - logits_CV.logsumexp(-1))
        return torch.cat(parts)


@torch.inference_mode()
def open_rows(model: Any, most_rows: int) -> Runner:
    """The fastest runner that gives what the model itself gives on two short rows, in prefill, decoding and scoring."""
    assert model.config._attn_implementation != _NAME, "another decoder has this model; close it first"
    vocab = model.get_input_embeddings().weight.shape[0]
    first, second = [(7919 * i + 3) % vocab for i in range(4)], [(104729 * i + 5) % vocab for i in range(7)]
    expected = [
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float() for row in (first, second)
    ]
    if not model._supports_attention_backend:
        return Plain(model, most_rows, f"{type(model).__name__} does not use transformers' attention interface")
    scale = max(1.0, *(float(logits.abs().max()) for logits in expected))
    allowed = scale * (0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-4)
    lean = lean_of(model)
    if lean is not None and _difference(Rows(model, 3, lean), (first, second), expected) <= allowed:
        return Rows(model, most_rows, lean)
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, no_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        difference = _difference(Rows(model, 3, Modules(model)), (first, second), expected)
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, IndexError, KeyError) as error:
        model.set_attn_implementation(before)
        return Plain(model, most_rows, f"this architecture cannot be packed ({type(error).__name__}: {str(error)[:120]})")
    if difference <= allowed:
        return Rows(model, most_rows, Modules(model))
    model.set_attn_implementation(before)
    return Plain(model, most_rows, f"packed logits differ by {difference:.2g} from the model's own")


def _difference(rows: Rows, pair: tuple[list[int], list[int]], expected: list[Tensor]) -> float:
    """Largest difference over prompts, a step that mixes a new prompt with rows under way, a dropped row, several tokens
    verified at once, and scores."""
    first, second = pair
    rows.begin()
    rows.begin()
    prefill = rows.forward([first[:-2], second[:-4]]).logits_RV
    rows.begin()
    mixed = rows.forward([first[-2:-1], second[-4:-3], first]).logits_RV
    rows.drop(0)  # row 0 is now the copy of `first` that entered last
    step = rows.forward([[0], second[-3:]], [0, 3]).logits_RV
    ours = [*prefill, *mixed, *step, *rows.logps(pair, 100)]
    theirs = [expected[0][-3], expected[1][-5], expected[0][-2], expected[1][-4], expected[0][-1], *expected[1][-3:]]
    for logits_TV, row in zip(expected, pair, strict=True):
        target_T = torch.tensor(row[1:], device=logits_TV.device)
        theirs.append(F.log_softmax(logits_TV[:-1], -1).gather(1, target_T[:, None])[:, 0])
    return max(float((mine - wanted).abs().max()) for mine, wanted in zip(ours, theirs, strict=True))
