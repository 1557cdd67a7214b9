"""Which divisions of a training over processes its parts can do; what they cannot is refused before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.parallel import Parallel
from modelwright.core.spec import kind_of

if TYPE_CHECKING:
    from modelwright.stages._train_spec import Training


BESIDE = {
    "context": (("data",), "tokens are divided in a forward pass that needs every weight whole on its process"),
    "expert": (("data",), "experts are divided whole, beside processes that have all other weights"),
    "pipeline": (
        ("data", "tensor"),
        "the processes of a pipeline are at different micro-batches at one time, and each keeps all weights of its layers",
    ),
}
"""Axes that go with few others: with which, and why not with more."""


def check(stage: Training, shape: Shape, parallel: Parallel) -> None:
    """UserError where the stage cannot be divided so."""
    for axis, (others, why) in BESIDE.items():
        used = {name for name, size in parallel.axes.items() if size > 1}
        if axis in used and not used <= {axis, *others}:
            names = " and ".join(f"`{name}`" for name in others)
            raise UserError(f"`parallel: {parallel}` cannot be", why, f"put `{axis}` beside {names} alone")
    _check_optimizer(stage, parallel)
    if parallel.processes > 1 and (stage.step_in_backward or "states" in stage.offload):
        what = "step_in_backward" if stage.step_in_backward else "offload: [states]"
        raise UserError(
            f"`{what}` cannot be used with `parallel: {parallel}`",
            "gradients of several processes are added, and states put together, for all weights at once",
            "leave it out: `shard` divides gradients and states over the processes",
        )
    if stage.compile and parallel.shard > 1:
        raise UserError(
            f"`compile: true` cannot be used with `parallel: {parallel}`",
            "it fuses parts of our own forward pass, and divided weights come for transformers' modules",
            "leave it out, or divide by `data`",
        )
    if parallel.zero:
        _check_zero(stage, shape, parallel)
    if parallel.context > 1:
        _check_context(stage, shape, parallel)
    if parallel.tensor > 1:
        _check_tensor(stage, shape, parallel)
    if parallel.pipeline > 1:
        _check_pipeline(stage, shape, parallel)
    if stage.samples_every and parallel.shard * parallel.expert * parallel.pipeline > 1:
        raise UserError(
            f"`samples_every` cannot be used with `parallel: {parallel}`",
            "no process has a whole model to answer with before the end",
            "leave `samples_every` out: answers are in the report when training has ended",
        )
    if parallel.expert > 1:
        _check_expert(stage, shape, parallel)
    if stage.objective.whole_step and parallel.processes > parallel.data:
        raise UserError(
            f"`objective: {kind_of(stage.objective)}` cannot be used with `parallel: {parallel}`",
            "it compares all rows of a step, and each is computed twice, which takes a whole model on each process",
            "divide by `data` alone",
        )


def _check_optimizer(stage: Training, parallel: Parallel) -> None:
    """One that looks at whole weights can have them come to an owner, along one axis."""
    cutting = [axis for axis in ("shard", "expert", "tensor") if parallel.axes[axis] > 1]
    if stage.optimizer.elementwise or not cutting:
        return
    held = {
        "its step looks at several weights at once, and no process has them": not stage.optimizer.weightwise,
        "its step looks at whole matrices, and the engine hands out parts": bool(parallel.zero),
        "its step looks at whole matrices, and each lies in parts along two axes": len(cutting) > 1,
        "its step looks at whole matrices, and each lies in parts on some processes of the pipeline": parallel.pipeline > 1,
    }
    if why := next((why for why, so in held.items() if so), ""):
        raise UserError(
            f"`optimizer: {kind_of(stage.optimizer)}` cannot be used with `parallel: {parallel}`",
            why,
            "divide by `data` and one of `shard` (without `zero`), `expert` and `tensor`, or use `optimizer: adamw`"
            if stage.optimizer.weightwise
            else "divide by `data` alone, or use `optimizer: adamw`",
        )


def _check_zero(stage: Training, shape: Shape, parallel: Parallel) -> None:
    held = {
        f"`{name}` beside it divides what the engine holds whole": size > 1
        for name, size in parallel.axes.items()
        if name != "shard"
    }
    held |= {
        "the optimizer keeps an average of whole weights": stage.optimizer.averages,
        "`average` keeps a copy of whole weights": bool(stage.average),
        f"`on_bad_step: {stage.on_bad_step}` takes back a step whose gradients the engine has already": stage.on_bad_step
        != "stop",
        "`precision: fp16` scales gradients, and so does the engine": stage.precision == "fp16",
        "experts that a process sends no token to have no gradient there, and the engine waits for it": bool(shape.experts)
        and parallel.zero > 1,
        "`multi_token` has weights that a process without rows does not use, and the engine waits for their gradient": (
            parallel.zero > 1 and stage.objective.added_params(shape) > 0
        ),
    }
    if why := next((why for why, so in held.items() if so), ""):
        raise UserError(
            f"`parallel: {parallel}` cannot be", why, "leave `zero` out: `shard` alone is FSDP2, which has no such limit"
        )


def _check_context(stage: Training, shape: Shape, parallel: Parallel) -> None:
    if stage.objective.head != "causal":
        raise UserError(
            f"`objective: {kind_of(stage.objective)}` cannot be used with `parallel: {parallel}`",
            "it looks at whole texts, and no process computes all tokens of one",
            "divide by `data`",
        )
    _check_own(stage, shape, parallel, "tokens are divided")


def _check_expert(stage: Training, shape: Shape, parallel: Parallel) -> None:
    if stage.adapter is not None:
        raise UserError(
            f"an adapter cannot be used with `parallel: {parallel}`",
            "its weights lie beside whole experts, and each process keeps only some of these",
            "divide by `data` or `shard`, or leave `adapter` out",
        )
    if not shape.experts and stage.start is not None:
        return  # what a folder holds is known when it is opened, and refused there
    if shape.experts % parallel.expert or not shape.experts:
        raise UserError(
            f"`parallel: {parallel}` cannot be for this model",
            f"it has {shape.experts} experts in a layer, and each process keeps as many as any other",
            "choose a divisor for `expert`" if shape.experts else "divide by `data` or `shard`, or take `model: moe`",
        )


def _check_tensor(stage: Training, shape: Shape, parallel: Parallel) -> None:
    if shape.experts or shape.decoder_layers or (stage.model is not None and not stage.model.own):
        raise UserError(
            f"this model cannot be trained with `parallel: {parallel}`",
            "how its layers divide is not known here; Llama, Qwen, Mistral and Gemma models can be divided so",
            "divide by `data` or `shard`",
        )
    sizes = {"heads": shape.heads, "key-value heads": shape.kv_heads, "columns of an MLP": shape.intermediate}
    if uneven := [f"{size} {what}" for what, size in sizes.items() if size % parallel.tensor]:
        raise UserError(
            f"this model cannot be divided over `tensor: {parallel.tensor}` processes",
            f"it has {' and '.join(uneven)}, which cannot be shared out evenly",
            "choose a number that divides them, or divide by `data` or `shard`",
        )


def _check_pipeline(stage: Training, shape: Shape, parallel: Parallel) -> None:
    _check_own(stage, shape, parallel, "layers are shared out")
    if shape.layers < parallel.pipeline:
        raise UserError(
            f"this model cannot be divided over `pipeline: {parallel.pipeline}` processes",
            f"it has {shape.layers} layers, and each process needs one",
            f"set `pipeline: {shape.layers}` or less",
        )


def _check_own(stage: Training, shape: Shape, parallel: Parallel, what: str) -> None:
    """For divisions that transformers' modules know nothing of."""
    if not stage.own(shape):
        raise not_own(f"parallel: {parallel}", f"{what} in the forward pass", "divide by `data` or `shard`")


def not_own(asked: str, what: str, instead: str = "leave it out") -> UserError:
    """For what only our own forward pass can do, and a model that runs through transformers' modules."""
    return UserError(
        f"this model or adapter cannot be trained with `{asked}`",
        f"{what} that this program has of its own, which does not know it",
        f"{instead}, or take a Llama, Qwen, Mistral or Gemma model, and LoRA without dropout",
    )
