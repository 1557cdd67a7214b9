"""The law of use, its static half: combinations that ignore a key, for every reason that the code knows."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from modelwright.core.spec import Spec
from tests import content_kit
from tests.law_kit import FAMILIES, Tree, inner_specs, table
from tests.law_kit_data import ASKED
from tests.law_kit_stages import EVALUATE, FROM, NATIVE, TRAIN, TWO


class Refusal(NamedTuple):
    """`tree` is legal; with `value` at `path` it is refused, because nothing would read the value."""

    family: str
    kind: str
    tree: Tree
    path: str
    value: Any
    says: str


def in_a_stage(row: Refusal) -> tuple[Tree, str]:
    """A stage with this spec and without the key, and the key's path in it."""
    tree = {"kind": row.kind, **_whole(row.tree)}
    if row.family == "stages":
        return tree, row.path
    if row.family == "sources":
        return {"kind": "curate", "source": [tree]}, f"source.0.{row.path}"
    if row.family == "steps":
        return {"kind": "curate", "source": [{"kind": "jsonl", "path": "./rows.jsonl"}], "steps": [tree]}, f"steps.0.{row.path}"
    if row.family == "objectives":
        return {"kind": "train", **_whole({**TRAIN, "objective": tree})}, f"objective.{row.path}"
    if row.family == "decoders":
        return {"kind": "evaluate", **EVALUATE, **_WORDS, "decoder": tree}, f"decoder.{row.path}"
    if row.family == "engines":
        return {"kind": "evaluate", **EVALUATE, "engine": tree}, f"engine.{row.path}"
    assert row.family == "optimizers", "say here which stage holds this family"
    adapter = {"kind": "lora", "rank": 2}
    return {"kind": "train", **_whole({**TRAIN, **FROM, "adapter": adapter, "optimizer": tree})}, f"optimizer.{row.path}"


def _whole(tree: Tree) -> Tree:
    return {key: value for key, value in tree.items() if value is not ...}


_MEMORY = {key: value for key, value in ASKED.items() if not key.endswith("_chars")} | {"sorts": ["where", "purpose"]}
_TOXIC = {"words": [], "toxic": "./bad.jsonl", "clean": "./good.jsonl"}
_WORDS = {"tasks": [{"kind": "rouge", "max_tokens": 4}]}
_EXPORT = {"model": "./model/", "format": {"kind": "safetensors"}}
_EXTEND = {"start": "./model/", "tokens": [" river"]}
REFUSALS = [
    Refusal("sources", "jsonl", {"path": "earlier"}, "match", "*.jsonl", "rows of an earlier stage"),
    Refusal("sources", "jsonl", {"path": "earlier"}, "format", "messages", "rows of an earlier stage"),
    Refusal("sources", "jsonl", {"path": "earlier"}, "on_bad", "drop", "rows of an earlier stage"),
    Refusal("sources", "code", {"path": "./tree/", "leave_out": ["hidden"]}, "max_line_chars", 60, "does not name `minified`"),
    Refusal("sources", "python_package", {"package": "lawtwo"}, "docs", False, "no documentation of its own"),
    Refusal("sources", "python_questions", {**ASKED, "sorts": ["raises"]}, "code_chars", 50, "no `complete`"),
    Refusal("sources", "python_preferences", {**ASKED, "sorts": ["raises"]}, "code_chars", 50, "no `complete`"),
    Refusal("sources", "python_questions", {**ASKED, "sorts": ["complete"]}, "answer_chars", 5, "the only sort"),
    Refusal("sources", "python_questions", _MEMORY, "min_chars", 500, "show no source"),
    Refusal("sources", "python_questions", _MEMORY, "max_chars", 70, "show no source"),
    Refusal("sources", "python_questions", _MEMORY, "turns", 3, "no chat has one to share"),
    Refusal("steps", "c4", {}, "min_paragraph_chars", 100, "`min_paragraphs` is 0"),
    Refusal("steps", "fineweb", {"words": "datatrove"}, "empty_lines", False, "never counts empty lines"),
    Refusal("steps", "minhash", {"words": "datatrove"}, "threshold", 0.9, "verifies no pair"),
    Refusal("steps", "pii", {"action": "drop"}, "style", "typed", "writes no placeholders"),
    Refusal("steps", "quality", {**content_kit.BASES["quality"], "keep": 0.5}, "threshold", 0.9, "already says how many"),
    Refusal("steps", "toxicity", {"words": ["x"]}, "threshold", 0.9, "no examples to learn from"),
    Refusal("steps", "toxicity", _TOXIC, "max_count", 3, "no words to count"),
    Refusal("steps", "toxicity", _TOXIC, "max_share", 0.1, "no words to count"),
    Refusal("steps", "main_content", {"doubt": "keep"}, "min_share", 0.5, "a page in doubt is kept"),
    Refusal("steps", "main_content", {"doubt": "keep"}, "max_link_share", 0.1, "a page in doubt is kept"),
    Refusal("steps", "url_rules", {"domains": ["a.example"]}, "soft_limit", 3, "no `soft_words`"),
    Refusal("steps", "sample", {"rows": 3}, "share", 0.9, "already says how many"),
    Refusal("steps", "balance", {"shares": {"en": 1.0}}, "temperature", 2.0, "already say how much"),
    Refusal("steps", "semantic_dedup", {}, "window", 64, "words are looked at"),
    Refusal("steps", "noise", {"how": "replace"}, "copies", 2, "a row becomes one row"),
    Refusal("steps", "decontaminate", {"against": "./items.jsonl"}, "answer_words", 9, "looks for no answer"),
    Refusal("steps", "code_quality", {"parses": False}, "max_table_frac", 0.0, "`parses` is off"),
    Refusal("objectives", "multi_token", {"heads": 1}, "weight", 0.3, "no further head"),
    Refusal("objectives", "contrastive", {"partner": "itself"}, "positive", "answer", "its own partner"),
    Refusal("decoders", "beam", {}, "diversity_penalty", 2.0, "no other to differ from"),
    Refusal("decoders", "self_consistency", {}, "pattern", "x", "not looked for by a pattern"),
    Refusal("decoders", "self_consistency", {}, "choices", ["A"], "not one of several"),
    Refusal("stages", "evaluate", EVALUATE, "decoder", {"kind": "beam"}, "no task asks for an answer"),
    Refusal("engines", "openai", {"provider": "groq", "model": "m"}, "cache_bytes", 99, "no `cache` is kept"),
    Refusal("optimizers", "muon", {}, "adamw_lr", 0.1, "neither embeddings nor norms"),
    Refusal("optimizers", "muon", {}, "adamw_weight_decay", 0.5, "neither embeddings nor norms"),
    Refusal(
        "stages",
        "curate",
        {"source": [{"kind": "jsonl", "path": "./rows.jsonl"}], "limits": {}},
        "limits.max_unreadable_frac",
        0.5,
        "every source stops at the first row",
    ),
    Refusal("stages", "crawl", {"seeds": ["http://a.example/"], "contact": "me@a.example"}, "hosts", 2, "leads to no other"),
    Refusal("stages", "train", {**TRAIN, **FROM}, "vocab", "./words/", "brings its own"),
    Refusal("stages", "train", {**TRAIN, **FROM}, "model", {"kind": "llama", "depth": 1}, "brings its own"),
    Refusal("stages", "train", {**TRAIN, "objective": "regress"}, "samples_every", 2, "only a decoder answers"),
    Refusal("stages", "train", {**TRAIN, "device": "cpu"}, "offload", ["states"], "in its memory already"),
    Refusal("stages", "train", TRAIN, "grow", {"kind": "deepen", "layers": 3}, "no `start` to grow"),
    Refusal("stages", "train", TRAIN, "validate_every", 2, "there is no `validation`"),
    Refusal("stages", "train", TRAIN, "validation_rows", 2, "there is no `validation`"),
    Refusal("stages", "train", TRAIN, "patience", 2, "there is no `validation`"),
    Refusal("stages", "train", TRAIN, "keep", "best", "there is no `validation`"),
    Refusal("stages", "train", {**TRAIN, "validation": TWO}, "validation.0.epochs", 3.0, "on each row once"),
    Refusal("stages", "train", {**TRAIN, "data": [{"ref": "./texts.jsonl"}]}, "data.0.weight", 5.0, "relative to the others'"),
    Refusal(
        "stages",
        "train",
        {**TRAIN, "data": [{**mix, "epochs": 2.0} for mix in TWO], "steps": 2},
        "data.0.weight",
        5.0,
        "already fixes how much",
    ),
    Refusal(
        "stages",
        "evaluate",
        {**EVALUATE, "engine": NATIVE, "gates": [{"task": "perplexity", "at_most": 1e9}]},
        "gates.0.not_worse_than_against",
        True,
        "no `against`",
    ),
    Refusal("stages", "extend", _EXTEND, "size", 420, "no `vocab` to take"),
    Refusal("stages", "extend", {"start": "./model/", "special": ["<|a|>"]}, "init", "mean", "special tokens alone"),
    Refusal("stages", "extend", {**_EXTEND, "data": [{"ref": "./chats.jsonl"}]}, "data.0.epochs", 2.0, "only looked at"),
    Refusal("stages", "export", _EXPORT, "proof_rows", 1, "there is no `data`"),
    Refusal("stages", "export", {**_EXPORT, "data": [{"ref": "./chats.jsonl"}]}, "data.0.epochs", 2.0, "at most once"),
]


# --- every reason in the code -------------------------------------------------------------------------


def classes() -> set[type[Spec]]:
    """Every class of ours that says which of its fields are unused."""
    found: set[type[Spec]] = set()
    for family in [*FAMILIES, "stages"]:
        for kind in table(family).names():
            for cls in (table(family).load(kind), *inner_specs(table(family).load(kind))):
                found.update(base for base in cls.__mro__ if "unused" in vars(base) and base is not Spec)
    return found


def reasons(cls: type[Spec]) -> Iterator[tuple[str, ...]]:
    """The fixed parts of each reason that `cls.unused` may give."""
    function: Any = ast.parse(textwrap.dedent(inspect.getsource(vars(cls)["unused"]))).body[0]
    inside = {id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstring = function.body[0].value if isinstance(function.body[0], ast.Expr) else None
    for node in ast.walk(function):
        if isinstance(node, ast.JoinedStr):
            parts = tuple(p.value for p in node.values if isinstance(p, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside and node is not docstring:
            parts = (node.value,)
        else:
            continue
        if any(" " in part.strip() for part in parts):  # else the name of a field
            yield parts
