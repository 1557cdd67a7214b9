"""The model that a training stage will have, before it or its start is made: its configuration, and transformers' modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from modelwright.core.estimate import Facts, Given, Shape
from modelwright.core.spec import kind_of
from modelwright.core.stage import parse_ref
from modelwright.core.steps import Parent, Step
from modelwright.methods.architectures._common import decoder
from modelwright.stages._train_cost import guess
from modelwright.stages._train_open import fitted

if TYPE_CHECKING:
    from modelwright.stages._trace_rows import Words
    from modelwright.stages._train_spec import Training

VOCAB = 8192
"""Where no tokenizer tells its size, as elsewhere in plans."""


class Known(NamedTuple):
    """A stage of the recipe, and what is known before it runs."""

    step: Step
    given: Given


class Configured(NamedTuple):
    config: Any
    """A transformers configuration."""
    why: str
    """Where it comes from."""


def configured(name: str, known: Mapping[str, Known]) -> Configured:
    """Of the model that a training stage trains."""
    step, given = known[name]
    stage = cast("Training", step.stage)
    if stage.start is None:
        assert stage.model is not None and stage.vocab is not None
        vocab = given.parents[stage.vocab].rows
        told = "" if vocab else f", with a vocabulary of {VOCAB:,} tokens, since none is made yet"
        return Configured(stage.model.config(int(vocab or VOCAB), stage.length), f"from the recipe{told}")
    before = _before(_parent(step, stage.start), given.parents[stage.start], known)
    return before if stage.grow is None else before._replace(config=_grown(stage, before.config))


def _before(parent: Parent, facts: Facts, known: Mapping[str, Known]) -> Configured:
    """Of the model that a reference leads to."""
    of = known.get(parent.stage or "")
    artifact = of.step.artifact if of is not None else None
    folder = artifact.path if artifact is not None else _folder(parent) if of is None else None
    if folder is not None and (folder / "config.json").is_file():
        from transformers import AutoConfig

        return Configured(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False), f"of {parent.ref}")
    if of is None:
        return _guessed(facts.shape, parent.ref)
    if kind_of(of.step.stage) == "train":
        return configured(of.step.name, known)
    start = next((one for one in of.step.parents if "model" in one.accepts.types), None)
    if start is None:
        return _guessed(facts.shape, parent.ref)
    found = _before(start, of.given.parents[start.ref], known)
    if facts.shape is not None:  # a longer vocabulary
        found.config.vocab_size = facts.shape.vocab
    return found


def _guessed(shape: Shape | None, ref: str) -> Configured:
    """A Llama of this shape, where no configuration is at hand."""
    from transformers import LlamaConfig

    shape = shape or guess(135e6)
    why = f"a Llama shape of {shape.params / 1e6:.0f}M weights, since the configuration of {ref} is not here"
    return Configured(LlamaConfig(**decoder(shape, 1 << 17)), why)


def _parent(step: Step, ref: str) -> Parent:
    return next(parent for parent in step.parents if parent.ref == ref)


def _folder(parent: Parent) -> Path | None:
    """Where a model is that no stage made; of one on the Hub, where its configuration was kept."""
    if parent.path is not None or not parent.ref.startswith("hf:"):
        return parent.path
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(parse_ref(parent.ref).name, "config.json", revision=parent.key)
    return Path(found).parent if isinstance(found, str) else None


def _grown(stage: Training, config: Any) -> Any:
    from modelwright.nn import model as models
    from modelwright.nn.fake import Fake

    assert stage.grow is not None
    with Fake():
        return stage.grow.grow(models.build(config), 0).config


def opened(stage: Training, config: Any, words: Words, seed: int) -> Any:
    """The model as training has it, with transformers' own first weights."""
    import torch

    from modelwright.nn import model as models

    torch.manual_seed(seed)
    model = models.build(config, stage.objective.head, stage.objective.settings())
    if stage.objective.head == "seq2seq":
        models.begin(model, words)
    models.packed(model)
    return fitted(stage, model, seed).train()
