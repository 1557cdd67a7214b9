"""The recipe that an advice comes to: stages of kinds that exist, each with why it is there in a comment above it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import yaml

from modelwright.core.estimate import Shape
from modelwright.core.units import count_text
from modelwright.methods.adapters import ADAPTERS, Adapter
from modelwright.methods.architectures import ARCHITECTURES, Architecture
from modelwright.methods.objectives import OBJECTIVES, Objective
from modelwright.methods.optimizers import OPTIMIZERS, Optimizer

LORA_RANK = 32
"""Of 16 to 64 that PEFT's comparison has best (rank 32: 0.478, rank 64 with rsLoRA: 0.513 on GSM8K)."""
EPOCHS = {"sft": 2, "dpo": 1, "next_token": 1}
"""Passes: SFT two at most (Lambert et al. 2024, Tulu 3, arXiv:2411.15124), preferences one, from which on Zephyr's pairs were
learned by heart (Tunstall et al. 2023, arXiv:2310.16944, section 5: three did no harm there), text one."""
HEAD_EPOCHS = 2
"""Of classifiers: 2 to 4 (Devlin et al. 2018, arXiv:1810.04805, appendix A.3)."""
SCRATCH_EPOCHS = 4
"""Passes over text that are nearly as good as new text (Muennighoff et al. 2023, arXiv:2305.16264)."""
MOST_UNREADABLE, USUAL_UNREADABLE = 0.5, 0.05
"""Share of a file's rows that cannot be read, above which it is to be mended first; and that a curation bears by itself."""
TEXT_LENGTH = 1024
"""Tokens of a piece of text."""
FEW_TESTS = 400
"""Rows that are held out to measure on: a share is then known to five points (half of the 95 % interval at one half)."""


class Unreadable(NamedTuple):
    """Rows, or files, that a source would stop at."""

    share: float
    said: str


class Files(NamedTuple):
    """The user's data by what it is good for: paths as the recipe writes them."""

    rows: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    length: int = 1024
    """Tokens of a row that nearly all rows have at most."""
    label_key: str = "label"
    labels: tuple[str, ...] = ()
    buried: bool = False
    """`label_key` lies within an object of each row, where no objective reads it."""
    amounts: Mapping[str, float] = {}
    """Rows of each of `rows`, `pairs`, …, where they were counted."""
    sources: Mapping[str, tuple[str, ...]] = {}
    """Path -> kinds of source that read what lies there; `jsonl` where nobody looked."""
    near_copies: bool = False
    unknown: tuple[str, ...] = ()
    """Rows in no known layout: no recipe can read them before they are converted."""
    broken: Mapping[str, Unreadable] = {}
    """Path -> what of it cannot be read, where there is any."""
    said: tuple[str, ...] = ()
    """What else to know of the data."""

    @property
    def hopeless(self) -> list[str]:
        """What no recipe should be written for: most of it cannot be read."""
        return [f"{path}: {found.said}" for path, found in self.broken.items() if found.share > MOST_UNREADABLE]

    def names(self) -> tuple[str, ...]:
        """Every name of the user's that a recipe would hold."""
        return (*self.rows, *self.pairs, *self.texts, *self.labelled, *self.near, self.label_key, *self.labels)


class Wanted(NamedTuple):
    """What the recipe is to do."""

    name: str
    methods: tuple[str, ...]
    way: str
    """`full` or `lora`."""
    start: str
    """Reference of the model to start from; '' for one from scratch."""
    shape: Shape | None
    """Sizes of the start, or of what is made from scratch."""
    architecture: str
    """Of a model from scratch."""
    depth: int
    vocab: int
    export: dict[str, Any] | None
    """Format of the export; None: none."""
    precision: str
    exact: bool
    """Answers are compared whole."""
    answer_tokens: int
    """Of the longest answer that is measured."""
    usd: float | None
    hours: float | None
    tight: frozenset[str]
    """Objectives whose training fits with few tokens at once alone."""
    engine: dict[str, Any]
    """What asks a model in evaluations; {}: as they do by themselves."""
    why: dict[str, str]
    """Stage or method -> why it is there."""
    head: tuple[str, ...]
    """Lines above everything."""


class _Part(NamedTuple):
    name: str
    why: str
    tree: dict[str, Any]


def recipe(wanted: Wanted, files: Files) -> str:
    """The text of the file."""
    parts = list(_parts(wanted, files))
    lines = [f"# {line}".rstrip() for text in wanted.head for line in _folded(text)]
    lines += [f"name: {wanted.name}", "seed: 0"]
    if wanted.usd is not None or wanted.hours is not None:
        budget = {"usd": wanted.usd, "hours": wanted.hours}
        lines.append(_dumped({"budget": {key: value for key, value in budget.items() if value is not None}}))
    if wanted.start and "next_token" in wanted.methods:
        lines += [
            "# Text of one kind alone makes a model forget: mix a share of general text into `data` of the stage `read`, then"
        ]
        lines += ["# take this line out.", "accept: [no-replay]"]
    lines += ["", "stages:"]
    for part in parts:
        lines += [f"  # {line}" for line in _folded(part.why)]
        lines += [textwrap.indent(_dumped({part.name: part.tree}), "  "), ""]
    return "\n".join(lines).rstrip() + "\n"


def _folded(text: str) -> list[str]:
    """Lines of a comment. Names from the user's data are in it, and no character of theirs may end a line."""
    return textwrap.wrap("".join(c if c.isprintable() else " " for c in text), 116) or [""]


def _dumped(tree: dict[str, Any]) -> str:
    return str(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)).rstrip()


# --- stages -----------------------------------------------------------------------------------------


def _parts(wanted: Wanted, files: Files) -> Iterator[_Part]:
    trained = [method for method in wanted.methods if method in OBJECTIVES.names()]
    model, last = wanted.start, ""
    if "next_token" in trained:
        yield _data("texts", files.texts, files, "Texts to read; what is held out shows whether it learns or memorises.")
        if not wanted.start:
            yield _Part("vocab", f"A vocabulary of {wanted.vocab:,} tokens, from these texts.", _vocab(wanted, "sft" in trained))
        yield _Part("read", wanted.why["next_token"], _train(wanted, "next_token", "texts", model, files))
        model = last = "read"
    rest = [method for method in trained if method != "next_token"]
    heads = [method for method in rest if method not in ("sft", "dpo")]
    measured = "sft" in rest or "prompting" in wanted.methods
    if "sft" in rest:
        yield _data("rows", files.rows, files, "Questions with answers, without copies; some are held out and never trained on.")
    elif measured:
        yield _data(
            "rows", files.rows, files, "Questions with answers, without copies, to measure on: all, as none is trained on.", False
        )
    if measured and model:
        yield _Part(
            "before", "What the model does without it: the number to beat. Prompts alone may be enough.", _score(wanted, model)
        )
    if "sft" in rest:
        yield _Part("answers", wanted.why["sft"], _train(wanted, "sft", "rows", model, files))
        model = last = "answers"
        against = "before" if "before" in _names(wanted) else None
        yield _Part("after", "On the same questions, with the paired difference.", _score(wanted, model, against))
    if "dpo" in rest:
        yield _data("pairs", files.pairs, files, "Better and worse answers; some are held out.")
        yield _Part("preferences", wanted.why["dpo"], _train(wanted, "dpo", "pairs", model, files))
        if measured:
            why = "Whether what SFT taught is still there."
            yield _Part("after_preferences", why, _score(wanted, "preferences", "after"))
        model = last = "preferences"
    for method in heads:
        of = files.near if method == "contrastive" else files.labelled
        yield _data("labelled", of, files, "Texts with their labels; some are held out.")
        yield _Part("sorter", wanted.why[method], _train(wanted, method, "labelled", model, files))
    if wanted.export is not None and not heads and (last or wanted.start):
        data = {"data": _held(wanted)} if _held(wanted) else {}
        why = (
            wanted.why.get("export", "") + ". It is opened by the program that it is for, and compared, before it counts as made."
        )
        yield _Part("small", why.lstrip(". "), {"kind": "export", "model": last or wanted.start, "format": wanted.export, **data})


def _names(wanted: Wanted) -> set[str]:
    """Evaluations that come before training."""
    return {"before"} if wanted.start or "next_token" in wanted.methods else set()


def _held(wanted: Wanted) -> str:
    """Rows that nothing is trained on: an export is proved with them."""
    held = {"sft": "rows:test", "prompting": "rows", "dpo": "pairs:test", "next_token": "texts:test"}
    return next((stage for method, stage in held.items() if method in wanted.methods), "")


def _data(name: str, paths: Sequence[str], files: Files, why: str, held_out: bool = True) -> _Part:
    lost = {path: files.broken[path] for path in paths if path in files.broken}
    kinds = [
        {"kind": kind, "path": path} | ({"on_bad": "drop"} if path in lost else {})
        for path in paths
        for kind in files.sources.get(path, ("jsonl",))
    ]
    steps: list[Any] = ["exact_dedup"]
    if name == "texts" or files.near_copies:
        steps.append({"kind": "minhash", "threshold": 0.8})
    test = min(0.1, max(0.01, round(FEW_TESTS / max(files.amounts.get(name, 1000.0), 1), 2)))
    split = {"test": test, "validation": round(max(test / 2, 0.01), 3)}
    tree: dict[str, Any] = {"kind": "curate", "source": kinds[0] if len(kinds) == 1 else kinds, "steps": steps}
    tree |= {"split": split} if held_out else {}
    if lost:
        why += f" What cannot be read is left out and counted: {'; '.join(f'{path}: {one.said}' for path, one in lost.items())}."
    if (most := max((one.share for one in lost.values()), default=0.0)) > USUAL_UNREADABLE:
        tree["limits"] = {"max_unreadable_frac": round(most + USUAL_UNREADABLE, 2)}
    return _Part(name, why, tree)


def _vocab(wanted: Wanted, chats: bool) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": "tokenizer", "data": "texts:train", "method": {"kind": "bpe", "size": wanted.vocab}}
    if chats:
        tree["template"] = "chatml"
    return tree


def _train(wanted: Wanted, objective: str, data: str, start: str, files: Files) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": "train"}
    if start:
        tree["start"] = start
    tree |= {"data": f"{data}:train", "validation": f"{data}:validation", "keep": "best"}
    if not start:
        tree |= {"vocab": "vocab", "model": {"kind": wanted.architecture, "depth": wanted.depth}}
    tree["objective"] = _objective(objective, files)
    if start and wanted.way == "lora" and objective in ("sft", "dpo", "next_token"):
        tree["adapter"] = {"kind": "lora", "rank": LORA_RANK}
    if start:
        tree["optimizer"] = {"kind": "adamw", "lr": rate(wanted.shape, objective, "adapter" in tree)}
        tree["schedule"] = {"kind": "cosine", "warmup": 20}
    else:
        tree |= {"optimizer": "muon", "schedule": "wsd"}
    length = row_length(objective, files.length)
    tree |= {"length": length, "batch_tokens": batch_tokens(objective, length)}
    if objective in wanted.tight:
        tree["micro_tokens"] = length
    tree["epochs"] = passes(objective, new=not start)
    if wanted.precision != "fp32":
        tree["precision"] = wanted.precision
    return tree


def row_length(objective: str, longest: int) -> int:
    """Tokens of a training's rows, where nearly all of the data have at most `longest`; texts are cut to pieces."""
    return TEXT_LENGTH if objective == "next_token" else longest


def batch_tokens(objective: str, length: int) -> int:
    """Of a step."""
    return max(8192, 16 * length if objective == "next_token" else 8 * length)


def passes(objective: str, new: bool) -> int:
    """Over the data; `new`: of a model from scratch."""
    return SCRATCH_EPOCHS if new and objective == "next_token" else EPOCHS.get(objective, HEAD_EPOCHS)


def _objective(name: str, files: Files) -> Any:
    if name == "classify" and files.labels:
        return {"kind": name, "field": files.label_key, "labels": list(files.labels)}
    if name in ("classify", "regress") and files.label_key != "label":
        return {"kind": name, "field": files.label_key}
    return name


def rate(shape: Shape | None, objective: str, adapter: bool) -> float:
    """The middle of the published rates for a model of this size, this objective and LoRA or all weights, to one digit."""
    known = cast("type[Optimizer]", OPTIMIZERS.load("adamw")).rates_tuned
    params = shape.params if shape is not None else 1e9
    rates = next(rates for rates in known if params <= rates.most_params)
    factor = cast("type[Objective]", OBJECTIVES.load(objective)).rate_factor
    if adapter:
        factor *= cast("type[Adapter]", ADAPTERS.load("lora")).rate_factor
    return float(f"{(rates.low * rates.high) ** 0.5 * factor:.0e}")


def _score(wanted: Wanted, model: str, against: str | None = None) -> dict[str, Any]:
    rows = "rows:test" if "sft" in wanted.methods else "rows"
    tree = {"kind": "evaluate", "model": model, "data": rows, "tasks": tasks(wanted.exact, wanted.answer_tokens)}
    return tree | ({"engine": wanted.engine} if wanted.engine else {}) | ({"against": against} if against else {})


def tasks(exact: bool, answer_tokens: int) -> list[Any]:
    """Answers compared whole or by their words, and by how likely the good one is."""
    return [{"kind": "exact_match" if exact else "rouge", "rows": FEW_TESTS, "max_tokens": answer_tokens}, "perplexity"]


# --- a model from scratch ---------------------------------------------------------------------------


class Scratch(NamedTuple):
    """Sizes of a model of one's own."""

    depth: int
    vocab: int
    shape: Shape
    why: str


def scratch(architecture: str, tokens: float, flops: float) -> Scratch:
    """The largest that has 20 tokens a weight with the passes that pay, and 6 FLOP a weight and token within the budget."""
    vocab = 4096 if tokens < 100e6 else 16384 if tokens < 5e9 else 32768
    best = None
    for depth in range(2, 33, 2):
        spec = cast("Architecture", ARCHITECTURES.build({"kind": architecture, "depth": depth}))
        shape = spec.shape(vocab)
        seen = SCRATCH_EPOCHS * tokens
        if best is not None and (20 * shape.params > seen or 3 * shape.flops_per_token() * seen > flops):
            break
        best = Scratch(depth, vocab, shape, "")
    assert best is not None
    of = f"{count_text(best.shape.params)} weights for {count_text(tokens)} tokens, each read {SCRATCH_EPOCHS} times"
    return best._replace(why=of)
