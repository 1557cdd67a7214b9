"""A forward pass for decoding with transformers' own weights of Llama-like models: the same numbers in a third of the operations.

A step of one token is a few hundred small operations beside one walk over all weights. Here no module is called, products that
read the same input are one (queries, keys and values; gate and up), what they add to the stream is added inside the product, and
few rows are multiplied at the speed of memory (`nn/_gemv.py`, where numba is there: on a processor, sums are float32 then,
however the weights are held). Nothing is copied: weights stay where the model's modules have them.

Which models those are, `nn/blocks.py` says; attention and key/value memory are those of `nn/attend.py`.
"""

# Shape suffixes: T tokens of the stream, E width of the model, I inputs of a product, O outputs, H query heads, K key/value
# heads, N = H + 2 K, C head width, M width of the MLP, R places that give logits, V vocabulary.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from modelwright.nn._runner import Added
from modelwright.nn.attend import Plan, Terms, attend
from modelwright.nn.blocks import (
    ACTIVATIONS,
    FAMILIES,
    NORMS,
    OUTER_NORMS,
    Activation,
    Block,
    Family,
    Norm,
    Projection,
    block_of,
    norm_of,
)
from modelwright.nn.logps import cap_of
from modelwright.nn.model import has_bf16

try:
    from modelwright.nn import _attend_few, _gemv, _pieces, _small
except ImportError:  # numba is not there
    _attend_few = _gemv = _pieces = _small = None  # type: ignore[assignment]

DECODED: dict[str, Family] = FAMILIES | {
    "gemma2": FAMILIES["gemma3_text"]._replace(norms=NORMS | OUTER_NORMS, turns="", embedding="Gemma2TextScaledWordEmbedding")
}
"""Values of `model_type` that are computed here."""
_WIDENED = 2048
"""Outputs whose weights are widened together: a few megabytes."""
_FEW_THREADS = 4
"""Threads up to which torch's several passes with all of them take longer than one pass with one."""


class _Joint:
    """Linear layers that read the same input, their outputs side by side."""

    def __init__(self, parts: dict[str, Projection], quick: bool) -> None:
        self.parts = parts
        self.weights = [part.weight for part in parts.values()]
        self.sizes = [weight.shape[0] for weight in self.weights]
        self.bare = all(part.bias is None and part.down is None for part in parts.values())
        self.quick = _gemv.Weights(self.weights) if quick else None

    def __call__(self, x_TI: Tensor, added: Added | None = None, onto_TO: Tensor | None = None) -> Tensor:
        """[T, O], or `onto_TO` with it added to it."""
        alone = onto_TO is None
        count = x_TI.shape[0]
        half = self.weights[0].dtype == torch.bfloat16 and has_bf16()
        dtype = torch.float32 if half and self.quick is not None else x_TI.dtype
        out_TO = x_TI.new_empty(count, sum(self.sizes), dtype=dtype) if onto_TO is None else onto_TO
        if self.quick is not None and count <= _gemv.MOST:
            _gemv.product(x_TI, self.quick, out_TO, not alone)
        else:
            given_TI = x_TI.to(torch.bfloat16) if half else x_TI
            for weight, part_TO in self._columns(out_TO):
                _multiply(given_TI, weight, part_TO, alone)
        if not self.bare or added is not None:
            for (place, part), (_, part_TO) in zip(self.parts.items(), self._columns(out_TO), strict=True):
                if part.bias is not None:
                    part_TO.add_(part.bias)
                if part.down is not None and part.up is not None:
                    down, up = part.down.to(out_TO.dtype), part.up.to(out_TO.dtype)
                    part_TO.addmm_(x_TI.to(out_TO.dtype) @ down.t(), up.t(), alpha=part.scale)
                if added is not None:
                    added(place, x_TI, part_TO)
        return out_TO

    def _columns(self, out_TO: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.weights, torch.split(out_TO, self.sizes, 1), strict=True))


def _multiply(x_TI: Tensor, weight: Tensor, out_TO: Tensor, alone: bool) -> None:
    """out = x @ weight.T, or that added to it where it is not `alone`."""
    if weight.dtype == x_TI.dtype != out_TO.dtype:
        made_TO = x_TI @ weight.t()
        out_TO.copy_(made_TO) if alone else out_TO.add_(made_TO)
    elif weight.dtype == x_TI.dtype:
        if alone:
            torch.mm(x_TI, weight.t(), out=out_TO)
        else:
            out_TO.addmm_(x_TI, weight.t())
    else:
        for at in range(0, len(weight), _WIDENED):
            _multiply(x_TI, weight[at : at + _WIDENED].to(x_TI.dtype), out_TO[:, at : at + _WIDENED], alone)


class _Layer(NamedTuple):
    block: Block
    number: int
    heads: int
    inner: _Joint
    out: _Joint
    gate_up: _Joint
    down: _Joint
    terms: Terms


class _Pieces:
    """What lies between the products, as operations of torch: for many rows and threads, other types and devices."""

    @staticmethod
    def normed(x: Tensor, norm: Norm) -> Tensor:
        """Divided by the root mean square of the last dimension, times the norm's gain."""
        wide = x if x.dtype == torch.float64 else x.float()
        gain = norm.weight.to(wide.dtype)
        scale = wide.square().mean(-1, keepdim=True).add_(norm.eps).rsqrt_()
        return (wide * scale).mul_(gain + norm.offset if norm.offset else gain).to(x.dtype)

    @staticmethod
    def norm_heads(x_TNC: Tensor, norm: Norm) -> None:
        x_TNC.copy_(_Pieces.normed(x_TNC, norm))

    @staticmethod
    def turn(x_TNC: Tensor, heads: int, cos_TC: Tensor, sin_TC: Tensor) -> None:
        """Rotary positions (arXiv:2104.09864) of the first heads, in transformers' half-and-half layout, in place."""
        half = x_TNC.shape[-1] // 2
        cos_T1C, sin_T1C = cos_TC[:, None], sin_TC[:, None]
        first, second = x_TNC[:, :heads, :half], x_TNC[:, :heads, half:]
        turned = second * sin_T1C[..., :half], first * sin_T1C[..., half:]
        x_TNC[:, :heads].mul_(cos_T1C)
        first.sub_(turned[0])
        second.add_(turned[1])

    @staticmethod
    def gated(gate_up_TM: Tensor, activation: Activation) -> Tensor:
        gate_TM, up_TM = gate_up_TM.chunk(2, 1)
        return activation.forward(gate_TM).mul_(up_TM)

    @classmethod
    def read(cls, x: Tensor, norm: Norm) -> Tensor:
        """Normed, for products to read."""
        return cls.normed(x, norm)

    @classmethod
    def asked(
        cls, x_TE: Tensor, layer: _Layer, turn: tuple[Tensor, Tensor], added: Added | None, fresh: bool
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values, [T, N, C] side by side or each by itself; queries and keys are turned by their positions."""
        block, heads = layer.block, layer.heads
        inner_TNC = layer.inner(cls.read(x_TE, block.norm_in), added).view(len(x_TE), -1, turn[0].shape[-1])
        kv_heads = (inner_TNC.shape[1] - heads) // 2
        if block.norm_query is not None and block.norm_key is not None:
            cls.norm_heads(inner_TNC[:, :heads], block.norm_query)
            cls.norm_heads(inner_TNC[:, heads : heads + kv_heads], block.norm_key)
        cls.turn(inner_TNC, heads + kv_heads, *turn)
        return (inner_TNC,)

    @classmethod
    def passed(cls, x_TE: Tensor, gate_up: _Joint, activation: Activation, added: Added | None) -> Tensor:
        """What goes through the gate."""
        return cls.gated(gate_up(x_TE, added), activation)


class _OnePass(_Pieces):
    """The same in one pass each (`nn/_small.py`), by one thread."""

    @staticmethod
    def normed(x: Tensor, norm: Norm) -> Tensor:
        out = torch.empty_like(x)
        _small.normed(x, norm.weight.float(), norm.offset, norm.eps, out)
        return out

    @staticmethod
    def norm_heads(x_TNC: Tensor, norm: Norm) -> None:
        _small.norm_heads(x_TNC, norm.weight.float(), norm.offset, norm.eps)

    @staticmethod
    def turn(x_TNC: Tensor, heads: int, cos_TC: Tensor, sin_TC: Tensor) -> None:
        _small.turn(x_TNC, cos_TC, sin_TC, heads)

    @staticmethod
    def gated(gate_up_TM: Tensor, activation: Activation) -> Tensor:
        if activation.forward is not silu:
            return _Pieces.gated(gate_up_TM, activation)
        out_TM = gate_up_TM.new_empty(gate_up_TM.shape[0], gate_up_TM.shape[1] // 2)
        _small.gated(gate_up_TM, out_TM)
        return out_TM


class _Halves(_OnePass):
    """What products in bfloat16 read is made in it, by all threads (`nn/_pieces.py`)."""

    @staticmethod
    def read(x: Tensor, norm: Norm) -> Tensor:
        gain = norm.weight.float() + norm.offset
        return _pieces.normed(x, _pieces.scale(x, norm.eps), gain, torch.bfloat16)

    @classmethod
    def asked(
        cls, x_TE: Tensor, layer: _Layer, turn: tuple[Tensor, Tensor], added: Added | None, fresh: bool
    ) -> tuple[Tensor, ...]:
        plain = layer.inner.bare and layer.block.norm_query is None and not layer.terms.formula
        if not fresh or not plain or added is not None:
            return super().asked(x_TE, layer, turn, added, fresh)
        given_TE = cls.read(x_TE, layer.block.norm_in)
        shape = (len(x_TE), -1, turn[0].shape[-1])
        query, key, value = ((given_TE @ weight.t()).view(shape) for weight in layer.inner.weights)
        return _pieces.rotate(query, *turn), _pieces.rotate(key, *turn), value

    @staticmethod
    def passed(x_TE: Tensor, gate_up: _Joint, activation: Activation, added: Added | None) -> Tensor:
        if not gate_up.bare or added is not None:
            return _OnePass.passed(x_TE, gate_up, activation, added)
        return _pieces.gated(activation.forward, *(x_TE @ weight.t() for weight in gate_up.weights))


class Lean:
    """([T] token ids, [T] positions, plan) -> [T, E] what the head sees."""

    def __init__(self, model: Any, family: Family, blocks: list[Block], head: Projection) -> None:
        trunk = model.base_model
        quick = _gemv is not None and all(_gemv.fits(weight) for weight in _weights(blocks, head))
        self.table, self.rotary, self.cap = trunk.embed_tokens, trunk.rotary_emb, cap_of(model.config)
        self.width: int = trunk.layers[0].self_attn.head_dim
        self.quick = quick
        self.dtype = torch.float32 if quick else head.weight.dtype
        """Of everything between the weights."""
        scale = getattr(self.table, family.scale) if family.scale else 1.0
        self.scale = float(torch.tensor(scale, dtype=self.table.weight.dtype))  # as the model was trained with
        self.norm = norm_of(trunk.norm, family, None)
        self.head = _Joint({"lm_head": head}, quick)
        self.layers = [
            self._layer_of(index, block, layer.self_attn, quick)
            for index, (block, layer) in enumerate(zip(blocks, trunk.layers, strict=True))
        ]

    def _layer_of(self, index: int, block: Block, attention: Any, quick: bool) -> _Layer:
        def joint(parent: str, **parts: Projection) -> _Joint:
            return _Joint({f"model.layers.{index}.{parent}.{name}_proj": part for name, part in parts.items()}, quick)

        half = quick and block.query.weight.dtype == torch.bfloat16 and has_bf16()
        softcap = attention.attn_logit_softcapping if attention.config.model_type == "gemma2" else None
        return _Layer(
            block,
            index,
            len(block.query.weight) // self.width,
            joint("self_attn", q=block.query, k=block.key, v=block.value),
            joint("self_attn", o=block.out),
            joint("mlp", gate=block.gate, up=block.up),
            joint("mlp", down=block.down),
            Terms(attention.scaling, block.window, softcap, half=half),
        )

    @torch.no_grad()
    def __call__(self, ids_T: Tensor, position_T: Tensor, plan: Plan, added: Added | None = None) -> Tensor:
        x_TE = embedding(ids_T, self.table.weight).to(self.dtype)
        if self.scale != 1.0:
            x_TE.mul_(self.scale)
        few = self.quick and len(ids_T) <= _gemv.MOST
        pieces = self._pieces(few)
        turns: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in self.layers:
            kind = layer.block.turns
            if kind not in turns:
                cos, sin = self.rotary(x_TE, position_T[None], *((kind,) if kind else ()))
                if cos.shape[-1] != self.width:
                    raise NotImplementedError("rotary positions in a part of each head")
                turns[kind] = cos[0].contiguous(), sin[0].contiguous()
            self._run(layer, x_TE, turns[kind], pieces, few, plan, added)
        return pieces.normed(x_TE, self.norm)

    def _pieces(self, few: bool) -> type[_Pieces]:
        if not self.quick or few:
            return _OnePass if few else _Pieces
        if self.layers[0].terms.half:
            return _Halves
        return _OnePass if torch.get_num_threads() <= _FEW_THREADS else _Pieces

    def _run(
        self,
        layer: _Layer,
        x_TE: Tensor,
        turn: tuple[Tensor, Tensor],
        pieces: type[_Pieces],
        few: bool,
        plan: Plan,
        added: Added | None,
    ) -> None:
        """One layer; what it adds is added to `x_TE`."""
        block, heads, count = layer.block, layer.heads, x_TE.shape[0]
        parts = pieces.asked(x_TE, layer, turn, added, plan.fresh)
        if few and _attend_few.fits(plan, layer.terms, self.width):
            attended_TI = _attend_few.attend_few(plan, layer.number, parts[0], heads, layer.terms)
        else:
            if len(parts) == 1:
                kv_heads = (parts[0].shape[1] - heads) // 2
                parts = torch.split(parts[0], [heads, kv_heads, kv_heads], 1)
            query_1HTC, key_1KTC, value_1KTC = (part.transpose(0, 1)[None] for part in parts)
            attended_1HTC = attend(plan, layer.number, query_1HTC, key_1KTC, value_1KTC, layer.terms)
            attended_TI = attended_1HTC[0].transpose(0, 1).reshape(count, -1)
        if block.norm_attended is None:
            layer.out(attended_TI, added, x_TE)
        else:
            x_TE.add_(pieces.normed(layer.out(attended_TI, added), block.norm_attended))
        gated_TM = pieces.passed(pieces.read(x_TE, block.norm_mlp), layer.gate_up, block.activation, added)
        if block.norm_out is None:
            layer.down(gated_TM, added, x_TE)
        else:
            x_TE.add_(pieces.normed(layer.down(gated_TM, added), block.norm_out))

    @torch.no_grad()
    def logits(self, hidden_RE: Tensor) -> Tensor:
        """[R, V] in float32."""
        logits_RV = self.head(hidden_RE.contiguous()).float()
        return logits_RV if self.cap is None else logits_RV.div_(self.cap).tanh_().mul_(self.cap)


def _weights(blocks: list[Block], head: Projection) -> list[Tensor]:
    found = [head.weight]
    for block in blocks:
        found += [part.weight for part in (block.query, block.key, block.value, block.out, block.gate, block.up, block.down)]
    return found


def lean_of(model: Any) -> Lean | None:
    """None for a model that has to run through its own modules: another family or activation, a part that was replaced,
    quantised or hooked."""
    family = DECODED.get(model.config.model_type)
    activation = ACTIVATIONS.get(getattr(model.config, family.activation)) if family else None
    if family is None or activation is None:
        return None
    trunk, head = model.base_model, Projection.of(model.get_output_embeddings())
    table, attentions = trunk.embed_tokens, [layer.self_attn for layer in trunk.layers]
    if not isinstance(table, nn.Embedding) or type(table).__name__ != family.embedding or head is None:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    if not all(attention.is_causal for attention in attentions) or len({p.dtype for p in model.parameters()}) > 1:
        return None
    blocks = [block_of(layer, family, activation, None) for layer in trunk.layers]
    return Lean(model, family, [block for block in blocks if block is not None], head) if all(blocks) else None
