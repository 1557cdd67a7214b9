"""The heads that a model can be opened with, by the names that objectives use, and whether a folder can be opened so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from modelwright.core.errors import UserError


class Opening(NamedTuple):
    """A way to open a model."""

    auto: str
    """Class of transformers that opens it."""
    known: str
    """Name of transformers' table of the models that have it."""
    what: str


HEADS = {
    "causal": Opening("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal language model"),
    "masked": Opening("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "masked language model"),
    "seq2seq": Opening("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "sequence-to-sequence model"),
    "sequence": Opening(
        "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "classifier of texts"
    ),
    "tokens": Opening("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "classifier of tokens"),
}


def checked(folder: Path, head: str) -> str:
    """The head to open it with; UserError where that cannot be done safely."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} holds no model", "it has no config.json", "name a folder in Hugging Face's layout")
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config} cannot be read", str(error), "copy the model again") from None
    head = own(tree.get("model_type"), head)
    if "auto_map" in tree and tree.get("model_type") not in _known(head):
        raise UserError(
            f"the model in {folder} brings its own Python code",
            "config.json has `auto_map`; that code is never run",
            "use a model that transformers supports by itself",
        )
    if fitting(kind := str(tree.get("model_type"))):
        check(kind, head)
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt*")]
        why = f"only {pickled[0]}, a pickle, which can run code when opened" if pickled else "there is no *.safetensors file"
        raise UserError(f"{folder} holds no safetensors weights", why, "save the model again with `save_pretrained`")
    return head


def own(model_type: str | None, head: str) -> str:
    """The head to open a model with: where only its vectors are wanted, the one that it was trained with. A type that
    transformers knows as both is an encoder: decoders are no masked language models."""
    if head != "vectors":
        return head
    return next((name for name in ("masked", "causal") if model_type in _known(name)), "causal")


def of_vocabulary(folder: Path) -> str:
    """The head over the vocabulary that the model in a folder was trained with."""
    config = folder / "config.json"
    tree = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return "seq2seq" if tree.get("model_type") in _known("seq2seq") - _known("causal") - _known("masked") else "vectors"


def _known(head: str) -> frozenset[str]:
    from transformers.models.auto import modeling_auto

    return frozenset(getattr(modeling_auto, HEADS[head].known))


def fitting(model_type: str) -> list[str]:
    """The heads that transformers has for it, the one that it is usually opened with first."""
    return [name for name in HEADS if model_type in _known(name)]


def check(model_type: str, head: str) -> None:
    """UserError for a head that models of this type cannot have."""
    if head not in (found := fitting(model_type)):
        others = " or ".join(f"a {HEADS[name].what}" for name in found) or "no language model"
        raise UserError(
            f"a model of type {model_type!r} cannot be a {HEADS[head].what}",
            f"transformers knows it as {others}",
            "choose another objective, or another model",
        )
