"""What to change where an evaluation or an export does not fit: how its engine runs, and the type of the weights in a file.

Sources of costs: weights in 16 bits, `methods/engines/native.py`; fewer bits, Dettmers and Zettlemoyer 2022, arXiv:2212.09720.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from modelwright.core.spec import kind_of
from modelwright.methods.engines import ENGINES, EngineSpec
from modelwright.plan.fit import Option, Tried, attempt, field_of, largest_or_least

Lengths = Mapping[str, Mapping[str, Any]]
LEAST_PIECE = 64
"""Tokens of a prompt's piece; shorter ones would be read very slowly."""
TYPES = ("q8_0", "q6_k", "q4_k_m")
"""Of weights in a GGUF file, as few bits as are advised anywhere here."""


def _engine(now: Tried) -> EngineSpec | None:
    """Under which an evaluation asks its model, as `stages/_evaluate_cost.py` takes it; None for a stage that asks none."""
    if not {"engine", "tasks", "model"} <= set(type(now.stage).model_fields):
        return None
    stage: Any = now.stage
    usual = "llamacpp" if now.given.parents[stage.model].type == "export" else "native"
    return stage.engine or cast(EngineSpec, ENGINES.build(usual))


def _of_engine(now: Tried, field: str, low: int) -> tuple[dict[str, Any], int] | None:
    """The largest number of a field of the engine with which all fits, below what it is."""
    engine = _engine(now)
    if engine is None or (has := field_of(engine, field, None)) is None:
        return None
    kind = kind_of(engine)

    def values(size: int) -> dict[str, Any]:
        return {"engine.kind": kind, f"engine.{field}": size}

    size = largest_or_least(now, values, low, has - 1)
    return None if size is None else (values(size), size)


def fewer_answers(now: Tried, lengths: Lengths) -> Option | None:
    if (found := _of_engine(now, "max_batch", 1)) is None:
        return None
    return Option(f"{found[1]} answers at once", found[0], "the same answers; fewer at once are slower together")


def shorter_pieces(now: Tried, lengths: Lengths) -> Option | None:
    if (found := _of_engine(now, "prefill_tokens", LEAST_PIECE)) is None:
        return None
    return Option(f"prompts in pieces of {found[1]} tokens", found[0], "the same answers; prompts are read slower")


def half_weights(now: Tried, lengths: Lengths) -> Option | None:
    engine = _engine(now)
    if engine is None or field_of(engine, "precision", "") != "fp32":
        return None
    values = {"engine.kind": kind_of(engine), "engine.precision": "bf16"}
    return Option("the asked model's weights in bf16", values, "answers may differ in a few tokens of a thousand")


def fewer_bits(now: Tried, lengths: Lengths) -> Option | None:
    """A file of a smaller type."""
    written = field_of(now.stage, "format", None)
    if field_of(written, "type", None) is None or kind_of(written) != "gguf":
        return None
    tried = [(name, attempt(now, {"format.kind": "gguf", "format.type": name})) for name in TYPES]
    smaller = [(name, then) for name, then in tried if then and then.alike(now.need).high_bytes < now.need.high_bytes]
    if not smaller:
        return None
    name = next((name for name, then in smaller if then.fits), smaller[-1][0])
    costs = "fewer bits a weight; the proof tells by how much perplexity rises (arXiv:2212.09720)"
    return Option(f"the file's weights in {name}", {"format.kind": "gguf", "format.type": name}, costs)
