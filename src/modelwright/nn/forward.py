"""A forward pass of our own for Llama-like decoders: the same numbers as transformers' modules, in half the memory.

Four things make the difference. What is cheap (norms, the gate of the MLP) is computed again in the backward pass and not
kept (selective recomputation, Korthikanti et al. 2022, arXiv:2205.05198, section 5). Gradients of weights are added to
`.grad` inside the matrix product (as Megatron-LM's gradient accumulation fusion does), so no second copy of them ever
exists. Under bf16 a weight is cast where it is used and the cast is dropped. And where the loss looks at few positions
(answers), the last layer computes keys and values for all tokens, and everything else for those positions alone.

Which models those are, `nn/blocks.py` says. Used only for those that `Decoder.of` recognises, and after `model.check_packed`
found the results equal; everything else, other adapters too, runs through transformers' own modules.
"""

# Shape suffixes: T packed tokens, U of them that are wanted, D model width, H query heads, K key/value heads, C head width,
# I width of the MLP.

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from modelwright.nn import fused
from modelwright.nn.attention import Layout, by_document, plain, together
from modelwright.nn.blocks import ACTIVATIONS, FAMILIES, Block, Family, Norm, block_of, norm_of
from modelwright.nn.fused import Pieces
from modelwright.nn.gradients import add, begun

# --- pieces with a backward pass of their own -------------------------------------------------------------


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scale(x_TD: Tensor, norm: Norm) -> Tensor:
    """[T, 1] what a row is multiplied with: 1 / root mean square."""
    if norm.fused is not None:
        return norm.fused.scale(x_TD, norm.eps)
    return (x_TD.square().mean(-1, keepdim=True) + norm.eps).rsqrt_()


def _normed(x_TD: Tensor, scale_T1: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    if norm.fused is not None:
        return norm.fused.normed(x_TD, scale_T1, norm.gain(), dtype)
    return (x_TD * scale_T1).mul_(norm.gain()).to(dtype)


def _norm_backward(grad_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, norm: Norm) -> Tensor:
    """Gradient of the norm's input; the weight's is added to it. There may be heads between T and D."""
    if norm.fused is not None:
        slope_TD, gain_grad_D = norm.fused.slope(grad_TD, x_TD, scale_T1, norm.gain())
        add(norm.weight, gain_grad_D)
        return slope_TD
    grad_TD = _wide(grad_TD)
    hat_TD = x_TD * scale_T1
    if norm.weight.requires_grad:
        add(norm.weight, (grad_TD * hat_TD).flatten(0, -2).sum(0))
    grad_TD = grad_TD * norm.gain()
    mean_T1 = torch.linalg.vecdot(grad_TD, hat_TD).div_(x_TD.shape[-1])[..., None]
    return grad_TD.sub_(hat_TD.mul_(mean_T1)).mul_(scale_T1)


def _maybe_normed(x_TD: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result, and what its backward pass needs: None, None where there is no norm."""
    if norm is None:
        return x_TD, None, None
    wide_TD = _wide(x_TD)
    scale_T1 = _scale(wide_TD, norm)
    return _normed(wide_TD, scale_T1, norm, wide_TD.dtype), x_TD, scale_T1


def _maybe_backward(grad_TD: Tensor, x_TD: Tensor | None, scale_T1: Tensor | None, norm: Norm | None) -> Tensor:
    if norm is None or x_TD is None or scale_T1 is None:
        return grad_TD
    return _norm_backward(grad_TD, _wide(x_TD), scale_T1, norm)


def _rotate(x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor, fused: Pieces | None) -> Tensor:
    """Rotary positions (arXiv:2104.09864) in transformers' half-and-half layout. The backward pass is the same with -sin."""
    if fused is not None:
        return fused.rotate(x_THC, cos_T1C, sin_T1C)
    half = x_THC.shape[-1] // 2
    first, second = x_THC[..., :half], x_THC[..., half:]
    cos, sin = cos_T1C[..., :half], sin_T1C[..., :half]
    out_THC = torch.empty_like(x_THC)
    torch.mul(first, cos, out=out_THC[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_THC[..., half:]).addcmul_(first, sin)
    return out_THC


def _at(wanted_U: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """These tokens of each."""
    return tensors if wanted_U is None else tuple(tensor.index_select(0, wanted_U) for tensor in tensors)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids_T: Tensor, table: nn.Parameter, scale: float, padding: int | None) -> Tensor:
        ctx.ids_T, ctx.table, ctx.scale, ctx.padding = ids_T, table, scale, padding
        found_TD = embedding(ids_T, table)
        return found_TD if scale == 1.0 else found_TD.mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        table, ids_T = ctx.table, ctx.ids_T
        if table.requires_grad:
            if ctx.padding is not None:  # this row does not learn as an input
                learns_T = ids_T != ctx.padding
                ids_T, grad_TD = ids_T[learns_T], grad_TD[learns_T]
            begun(table).index_add_(0, ids_T, grad_TD.to(table.dtype), alpha=ctx.scale)
        return None, None, None, None, None


class _Before(torch.autograd.Function):
    """Norm and the three projections; keeps the input and one number a token. Queries are those of the tokens `wanted_U`;
    None: of all."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, block: Block, width: int, dtype: torch.dtype, wanted_U: Tensor | None) -> Any:
        scale_T1 = _scale(x_TD, block.norm_in)
        normed_TD = _normed(x_TD, scale_T1, block.norm_in, dtype)
        (asking_UD,) = _at(wanted_U, normed_TD)
        ctx.save_for_backward(x_TD, scale_T1, wanted_U)
        ctx.block, ctx.dtype = block, dtype
        pairs = ((block.query, asking_UD), (block.key, normed_TD), (block.value, normed_TD))
        return tuple(torch.unflatten(project(rows), -1, (-1, width)) for project, rows in pairs)

    @staticmethod
    def backward(ctx: Any, grad_query_UHC: Tensor, grad_key_TKC: Tensor, grad_value_TKC: Tensor) -> Any:
        x_TD, scale_T1, wanted_U = ctx.saved_tensors
        block: Block = ctx.block
        normed_TD = _normed(x_TD, scale_T1, block.norm_in, ctx.dtype)
        query, key, value = (grad.flatten(1) for grad in (grad_query_UHC, grad_key_TKC, grad_value_TKC))
        grad_TD = block.value.backward(value, normed_TD, block.key.backward(key, normed_TD))
        if wanted_U is None:
            block.query.backward(query, normed_TD, grad_TD)
        else:
            (asking_UD,) = _at(wanted_U, normed_TD)
            grad_TD.index_add_(0, wanted_U, block.query.backward(query, asking_UD))
        return _norm_backward(block.sum(grad_TD), x_TD, scale_T1, block.norm_in), None, None, None, None


class _Turn(torch.autograd.Function):
    """Rotary positions, behind a norm of each head where there is one; keeps its input only for that norm."""

    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, norm: Norm | None, cos_T1C: Tensor, sin_T1C: Tensor, fused: Pieces | None) -> Tensor:
        normed_THC, kept_THC, scale_TH1 = _maybe_normed(x_THC, norm)
        ctx.save_for_backward(kept_THC, scale_TH1, cos_T1C, sin_T1C)
        ctx.norm, ctx.fused = norm, fused
        return _rotate(normed_THC.to(x_THC.dtype), cos_T1C, sin_T1C, fused)

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> Any:
        kept_THC, scale_TH1, cos_T1C, sin_T1C = ctx.saved_tensors
        turned_THC = _rotate(grad_THC, cos_T1C, -sin_T1C, ctx.fused)
        return _maybe_backward(turned_THC, kept_THC, scale_TH1, ctx.norm).to(grad_THC.dtype), None, None, None, None


def _added(block: Block, x_TD: Tensor, part_TD: Tensor) -> Tensor:
    return x_TD + part_TD if block.fused is None else block.fused.added(x_TD, part_TD)


def _gated(block: Block, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    if block.fused is not None:
        return block.fused.gated(block.activation.forward, gate_TI, up_TI)
    return block.activation.forward(gate_TI).mul_(up_TI)


def _gate_backward(block: Block, grad_out_TD: Tensor, gate_TI: Tensor, up_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; that of the projection behind them is added to it."""
    if block.fused is not None:
        grad_TI = block.down.backward(grad_out_TD, _gated(block, gate_TI, up_TI))
        return block.fused.gate_slopes(block.activation.forward, block.activation.backward, grad_TI, gate_TI, up_TI)
    active_TI = block.activation.forward(gate_TI)
    grad_TI = block.down.backward(grad_out_TD, active_TI * up_TI)
    grad_up_TI = active_TI.mul_(grad_TI)
    return block.activation.backward(grad_TI.mul_(up_TI), gate_TI), grad_up_TI


class _After(torch.autograd.Function):
    """Output projection, norm and gated MLP with both residual sums; keeps gate and up, not what is made of them."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, attended_TE: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
        added_TD, kept_TD, kept_T1 = _maybe_normed(block.sum(block.out(attended_TE)), block.norm_attended)
        middle_TD = _added(block, x_TD, added_TD)
        scale_T1 = _scale(middle_TD, block.norm_mlp)
        normed_TD = _normed(middle_TD, scale_T1, block.norm_mlp, dtype)
        gate_TI, up_TI = block.gate(normed_TD), block.up(normed_TD)
        made_TD = block.sum(block.down(_gated(block, gate_TI, up_TI)))
        out_TD, last_TD, last_T1 = _maybe_normed(made_TD, block.norm_out)
        ctx.save_for_backward(attended_TE, middle_TD, scale_T1, gate_TI, up_TI, kept_TD, kept_T1, last_TD, last_T1)
        ctx.block, ctx.dtype = block, dtype
        return _added(block, middle_TD, out_TD)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        attended_TE, middle_TD, scale_T1, gate_TI, up_TI, kept_TD, kept_T1, last_TD, last_T1 = ctx.saved_tensors
        block: Block = ctx.block
        dtype = ctx.dtype
        grad_out_TD = _maybe_backward(grad_TD, last_TD, last_T1, block.norm_out).to(dtype)
        grad_gate_TI, grad_up_TI = _gate_backward(block, grad_out_TD, gate_TI, up_TI)
        normed_TD = _normed(middle_TD, scale_T1, block.norm_mlp, dtype)
        grad_normed_TD = block.sum(block.up.backward(grad_up_TI, normed_TD, block.gate.backward(grad_gate_TI, normed_TD)))
        grad_middle_TD = _norm_backward(grad_normed_TD, middle_TD, scale_T1, block.norm_mlp).add_(grad_TD)
        grad_added_TD = _maybe_backward(grad_middle_TD, kept_TD, kept_T1, block.norm_attended)
        return grad_middle_TD, block.out.backward(grad_added_TD.to(dtype), attended_TE), None, None


class _FinalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, norm: Norm) -> Tensor:
        scale_T1 = _scale(x_TD, norm)
        ctx.save_for_backward(x_TD, scale_T1)
        ctx.norm = norm
        return _normed(x_TD, scale_T1, norm, x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        x_TD, scale_T1 = ctx.saved_tensors
        return _norm_backward(grad_TD, x_TD, scale_T1, ctx.norm), None


def attend(
    query_UHC: Tensor,
    key_TKC: Tensor,
    value_TKC: Tensor,
    layout: Layout,
    scaling: float,
    window: int | None,
    wanted_U: Tensor | None,
) -> Tensor:
    """[U, H * C] attention of each document; see `attention.packed_attention`."""
    if wanted_U is None and (found_THC := together(query_UHC, key_TKC, value_TKC, layout, scaling, window)) is not None:
        return found_THC.flatten(1)
    found_UHC = by_document(query_UHC, key_TKC, value_TKC, layout, window, partial(plain, scaling=scaling), wanted_U)
    return found_UHC.flatten(1)


# --- the model ------------------------------------------------------------------------------------------


class Decoder:
    """The weights of a transformers model, taken up in the order in which they are used. Nothing is copied."""

    def __init__(self, trunk: Any, family: Family, blocks: list[Block]) -> None:
        self.trunk, self.blocks = trunk, blocks
        self.scaling: float = trunk.layers[0].self_attn.scaling
        self.width: int = trunk.layers[0].self_attn.head_dim
        self.embed_scale: float = getattr(trunk.embed_tokens, family.scale) if family.scale else 1.0
        self.norm = norm_of(trunk.norm, family, blocks[0].fused)
        self.recompute: bool = trunk.layers[0].gradient_checkpointing
        """Keep only what enters each layer, and compute the layer again in the backward pass (Chen et al. 2016,
        arXiv:1604.06174): asked for by `model.recompute`."""
        self.anchor = torch.zeros((), requires_grad=True)
        """Gives autograd a reason to walk back through functions whose weights it does not see."""
        self.enter: Callable[[Tensor], Tensor] = self._embedded
        self.leave: Callable[[Tensor], Tensor] = self._normed
        """What is before the layers and behind them; another where other processes have these."""
        self.behind: Callable[[], None] | None = None
        """Told in the backward pass, layer by layer: all gradients of what lies behind a layer's input are whole."""

    @staticmethod
    def of(model: Any) -> Decoder | None:
        """None for a model that has to run through its own modules: another family or activation, dropout, an adapter other
        than LoRA on linear layers."""
        config = model.config
        family = FAMILIES.get(config.model_type)
        if family is None or config.attention_dropout:
            return None
        activation = ACTIVATIONS.get(getattr(config, family.activation))
        trunk = model.base_model
        table = trunk.embed_tokens
        if not isinstance(table, nn.Embedding) or type(table).__name__ != family.embedding:
            return None
        if activation is None or any(p.dtype not in (torch.float32, torch.float64) for p in trunk.parameters()):
            return None
        if not all(layer.self_attn.is_causal for layer in trunk.layers):
            return None
        blocks = [block_of(layer, family, activation, fused.of(model)) for layer in trunk.layers]
        return Decoder(trunk, family, [b for b in blocks if b is not None]) if all(blocks) else None

    def _turns(self, kind: str, layout: Layout, dtype: torch.dtype, own_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, 1, C] each."""
        probe = torch.empty(1, 1, 1, dtype=dtype, device=self.norm.weight.device)
        cos, sin = self.trunk.rotary_emb(probe, layout.positions().to(probe.device)[None], *((kind,) if kind else ()))
        cos_T1C, sin_T1C = _at(own_T, cos[0][:, None], sin[0][:, None])
        return cos_T1C, sin_T1C

    def hidden(
        self,
        ids_T: Tensor,
        layout: Layout,
        dtype: torch.dtype,
        wanted_U: Tensor | None = None,
        own_T: Tensor | None = None,
        attend: Callable[..., Tensor] = attend,
    ) -> Tensor:
        """[U, D] last hidden states, float32, of the tokens `wanted_U` (ascending, each once; None: of all); matrix products
        run in `dtype`. `own_T`: the tokens that are computed here, among which `wanted_U` counts and to which `attend` adds those
        of other processes; None: all."""
        with torch.no_grad():
            turns = {kind: self._turns(kind, layout, dtype, own_T) for kind in {block.turns for block in self.blocks}}
        (ids_T,) = _at(own_T, ids_T)
        again = self.recompute and torch.is_grad_enabled()
        with torch.autocast(ids_T.device.type, enabled=False):
            x_TD = self.enter(ids_T)
            for block in self.blocks:
                wanted = wanted_U if block is self.blocks[-1] else None
                layer = partial(self._layer, block, turns[block.turns], layout, dtype, wanted, attend)
                if self.behind is not None and x_TD.requires_grad:
                    x_TD.register_hook(lambda _, behind=self.behind: behind())  # type: ignore[no-untyped-call]
                x_TD = checkpoint(layer, x_TD, use_reentrant=False, preserve_rng_state=False) if again else layer(x_TD)
            return self.leave(x_TD)

    def _embedded(self, ids_T: Tensor) -> Tensor:
        apply: Any = _Embed.apply
        table = self.trunk.embed_tokens
        found_TD: Tensor = apply(self.anchor, ids_T, table.weight, self.embed_scale, table.padding_idx)
        return found_TD

    def _normed(self, x_UD: Tensor) -> Tensor:
        apply: Any = _FinalNorm.apply
        found_UD: Tensor = apply(x_UD, self.norm)
        return found_UD

    def _layer(
        self,
        block: Block,
        turn_T1C: tuple[Tensor, Tensor],
        layout: Layout,
        dtype: torch.dtype,
        wanted_U: Tensor | None,
        attend: Callable[..., Tensor],
        x_TD: Tensor,
    ) -> Tensor:
        pieces: Any = (_Before.apply, _Turn.apply, _After.apply)
        before, turn, after = pieces
        query_UHC, key_TKC, value_TKC = before(x_TD, block, self.width, dtype, wanted_U)
        query_UHC = turn(query_UHC, block.norm_query, *_at(wanted_U, *turn_T1C), block.fused)
        key_TKC = turn(key_TKC, block.norm_key, *turn_T1C, block.fused)
        attended_UE = attend(query_UHC, key_TKC, value_TKC, layout, self.scaling, block.window, wanted_U)
        found_UD: Tensor = after(*_at(wanted_U, x_TD), attended_UE, block, dtype)
        return found_UD
