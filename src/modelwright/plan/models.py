"""Sizes of public base models (`models.yaml`, each with where it was read), and the model that a size or a folder stands for.

A configuration is read as transformers writes it, https://huggingface.co/docs/transformers/main_classes/configuration, without
transformers: what the file leaves out has the default of its `model_type`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Shape
from modelwright.core.predict import outside
from modelwright.core.stage import Stage
from modelwright.core.steps import Parent, Step
from modelwright.core.units import bytes_text, count_of, count_text
from modelwright.plan.devices import shipped


class Base(NamedTuple):
    """A model to start from."""

    name: str
    shape: Shape
    hub: str = ""
    """Where it is on the Hub; '' for a folder or a size alone."""
    type: str = "llama"
    """`model_type` of its configuration."""
    context: int = 0
    """Most tokens it was made for; 0: not known."""
    read: str = ""
    """Where this was read, beside what the head of `models.yaml` names; or how it was guessed."""

    @property
    def params(self) -> int:
        return self.shape.params


@cache
def bases() -> tuple[Base, ...]:
    """The public ones, smallest first."""
    return tuple(_base(dict(row)) for row in shipped("models.yaml").value)


def _base(row: dict[str, Any]) -> Base:
    about = {name: row.pop(name) for name in ("name", "hub", "type", "context", "read")}
    return Base(shape=Shape(**row), **about)


def named(name: str) -> Base:
    """The public model of this name, or of this address on the Hub; UserError with the nearest one."""
    if (found := _alike(name)) is not None:
        return found
    names = {base.name.lower(): base.name for base in bases()}
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], names, n=1)
    raise UserError(
        f"the sizes of the model {name!r} are not known here",
        f"known: {', '.join(names.values())}",
        f"did you mean {names[near[0]]!r}?" if near else "name a folder with its config.json, or give --params 3B",
    )


_TUNED = frozenset({"base", "pt", "instruct", "it"})
"""Words of a name that say how far the same sizes were trained."""


def _alike(name: str) -> Base | None:
    """The model of this name or address, tuned or not."""
    return next((base for base in bases() if _plain(name) in (_plain(base.name), _plain(base.hub))), None)


def _plain(name: str) -> str:
    return "-".join(word for word in name.lower().split("-") if word not in _TUNED)


def with_sizes(steps: Sequence[Step]) -> list[Step]:
    """The steps, with the sizes of public models that are not fetched yet and of decoders in the user's own folders."""
    return [step._replace(parents=tuple(map(_sized, step.parents))) for step in steps]


DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "qwen3_moe", "mixtral", "olmoe"})
"""Values of `model_type` whose weights `Shape` counts exactly."""


def _sized(parent: Parent) -> Parent:
    if parent.stage is not None:
        return parent
    if parent.path is not None:
        return _of_files(parent, parent.path)
    if not parent.ref.startswith("hf:"):
        return parent
    base = _alike(parent.ref.removeprefix("hf:").partition("@")[0])
    return parent if base is None else parent._replace(facts=Facts(type="model", shape=base.shape))


def _of_files(parent: Parent, path: Path) -> Parent:
    """Sizes from the folder's configuration: its files say nothing of how many bits a weight has."""
    if "model" not in parent.accepts.types or not (path / "config.json").is_file():
        return parent
    try:
        base = of_folder(path)
    except UserError:
        return parent  # the stage that opens it says what is wrong with it
    return parent._replace(facts=outside(path).model_copy(update={"shape": base.shape})) if base.type in DECODERS else parent


def unsized(name: str, stage: Stage, parents: Mapping[str, Facts]) -> str:
    """A sentence where the sizes of what a stage starts from are guessed, '' elsewhere."""
    start = stage.model_dump(include={"start"}).get("start")
    facts = parents.get(start) if start is not None else None
    if facts is None or facts.shape is not None:
        return ""
    if facts.bytes:
        return f"{name}: the sizes of {start} are guessed from its {bytes_text(facts.bytes)} of files"
    return f"{name}: the sizes of {start} are not known before it is fetched, and a small model's are taken: it may need far more"


def of_params(text: str) -> Base:
    """`3B`, `360M`: the public model of about so many weights, with as many of its layers as come nearest to them."""
    try:
        wanted = count_of(text)
    except ValueError:
        wanted = 0.0
    if not wanted:
        raise UserError(f"{text!r} is no number of weights", fix="write 3B, 360M or 135000000")
    like = min(bases(), key=lambda base: abs(math.log(base.params / wanted)))
    if abs(like.params / wanted - 1) < 0.01:
        return like
    layer = (like.params - like.shape.model_copy(update={"layers": 0}).params) / like.shape.layers
    layers = max(1, round(like.shape.layers + (wanted - like.params) / layer))
    windowed = round(like.shape.windowed_layers * layers / like.shape.layers)
    shape = like.shape.model_copy(update={"layers": layers, "windowed_layers": windowed})
    read = f"{like.name} with {layers} layers in place of {like.shape.layers}: {count_text(shape.params)} weights"
    return like._replace(name=text, shape=shape, hub="", read=read)


# --- a folder's configuration -----------------------------------------------------------------------

_TIED = ("gemma",)
"""Families whose configuration has one table for head and embeddings where it does not say; others have two."""
_WHOLE = {"gemma2": 2, "gemma3_text": 6}
"""Every so many layers see all tokens, the others a window, where the configuration does not say."""
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def of_folder(folder: Path) -> Base:
    """The model in a folder that has a `config.json`."""
    from modelwright.methods.architectures import shape_of

    path = folder / "config.json" if folder.is_dir() else folder
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        text = tree.get("text_config", tree)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a model's configuration", str(error), "name a folder with config.json"
        ) from None
    kind = text.get("model_type", tree.get("model_type", ""))
    lacks = [name for name in _NEEDED if not isinstance(text.get(name), int)]
    if lacks:
        raise UserError(f"{path} does not say {', '.join(lacks)}", f"its model_type is {kind!r}", "give --params in its place")
    config = SimpleNamespace(**{"tie_word_embeddings": kind.startswith(_TIED), "model_type": kind, **text})
    if "num_local_experts" in text:
        config.num_experts = config.num_local_experts
    if not text.get("use_sliding_window", not kind.startswith("qwen")):
        config.sliding_window = None
    if kind in _WHOLE and "layer_types" not in text:
        every = text.get("sliding_window_pattern", _WHOLE[kind])
        types = ("sliding_attention", "full_attention")
        config.layer_types = [types[(index + 1) % every == 0] for index in range(config.num_hidden_layers)]
    config.get_text_config = lambda: config
    return Base(folder.resolve().name, shape_of(config), "", kind, text.get("max_position_embeddings") or 0, str(path))
