"""The pitfall rule about what a training asks of the machine that it is planned for: a run would refuse it, or do otherwise, when
the stages before it have run (`stages/_train_run.py`, `nn/precision.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from modelwright.plan._lint import Fault, Look, Rule


def _lacks(look: Look) -> Iterator[Fault]:
    if not look.is_training:
        return
    stage, machine = look.stage, look.machine.host() if look.stage.device == "cpu" else look.machine
    on = machine.device
    if stage.device in ("cuda", "mps") and machine.device != stage.device:
        what = f"`device: {stage.device}`, and {machine.name} has none as far as the plan knows"
        yield Fault(("device",), what, f"{look.path('device')}=auto, or `plan --device NAME` for the machine that has one")
        on = stage.device
    products, _ = machine.products(stage.precision)
    slow = f"{look.path('precision')}={'fp16' if on == 'cuda' else 'fp32'}"
    if stage.precision == "fp16" and on == "cpu":
        yield Fault(("precision",), "processors have no fast products in float16, and training refuses them there", slow)
    if stage.precision == "fp8" and (on != "cuda" or not machine.fp8_flops_per_s):
        what = f"`precision: fp8` needs a card with products in float8, and none are known of {machine.name}"
        yield Fault(("precision",), what, f"{look.path('precision')}=auto")
    if stage.precision == "bf16" and products != "bf16":
        yield Fault(("precision",), f"{machine.name} has no fast products in bfloat16: training runs them in float32", slow)
    if stage.offload and on != "cuda":
        what = "`offload` moves what a CUDA card holds to the processor's memory, and the training is on no such card"
        yield Fault(("offload",), what, f"{look.path('offload')}=[]; `recompute: full` saves memory anywhere")
    if stage.step_in_backward and products == "fp16" and on != "cpu":
        what = "`step_in_backward` steps weights before a gradient in float16 is found to be in range, and training refuses that"
        yield Fault(("step_in_backward",), what, f"{look.path('precision')}=fp32, or {look.path('step_in_backward')}=false")


RULES = (
    Rule(
        "not-on-this-machine",
        "warning",
        "what the planned machine has not is refused, or done otherwise, only when the stages before it have run",
        "compute capabilities: https://developer.nvidia.com/cuda-gpus; bfloat16 from 8.0, float8 from 8.9 on",
        _lacks,
    ),
)
