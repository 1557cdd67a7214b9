"""Pitfall rules that look at rows which are made, and at what evaluations gave: `modelwright check` asks them.

Each says its own source; rows are a sample, so a share is told with how many of how many.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.record import Message, Record
from modelwright.methods.steps import content
from modelwright.plan import _probe_labels, _probe_text
from modelwright.plan._lint import CHARS_PER_TOKEN, TEXTS, Fault, Look, Rule, json_in, refs_of
from modelwright.plan._lint_data import form_of
from modelwright.plan._probe_facts import open_tokenizer

MOST_LEAKED = 0.01
"""Share of held-out rows that may be in the training rows: questions of one word are alike by chance."""
MOST_CUT = 0.05
LEAST_ITEMS = 20
MOST_NEAR, MOST_CONTRADICTED = 0.05, 0.01
MOST_FOREIGN, MOST_FACTS = 0.2, 0.5
CONTEXT_CHARS = 400
"""A longer question holds what the answer is taken from."""
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]{2,}|\b(?:1[5-9]|20)\d\d\b")
"""A name within a sentence, or a year."""


def _leaked(look: Look) -> Iterator[Fault]:
    """What a training, or the trainings behind a model, share with the rows that are to judge it."""
    assert look.rows is not None
    if look.is_training:
        held, behind, field = refs_of(look.stage.validation), [look.name, *look.trainings(look.stage.start)], "validation"
    elif look.kind == "evaluate":
        held, behind, field = refs_of(look.stage.data), look.trainings(look.stage.model), "data"
    else:
        return
    trained = sorted({ref for name in behind for ref in refs_of(look.stages[name].data)})
    apart = [ref for ref in trained if not any(look.same(ref, other) for other in held)]  # the same rows are the rule `leak`
    rows, known = look.rows.sample(held), look.rows.forms(apart)
    again = [record for record in rows if form_of(record) in known]
    if len(again) > MOST_LEAKED * len(rows):
        forms = {form_of(record) for record in again}
        yield Fault(
            (field,),
            f"{len(again)} of {len(rows)} sampled rows are also in the training rows, such as {_short(content(again[0]))!r}",
            "; ".join(_without(ref, held, look) for ref in apart if look.rows.forms([ref]) & forms),
        )


def _without(ref: str, held: Sequence[str], look: Look) -> str:
    """How to take held-out rows out of training rows."""
    made = look.parent(ref)
    if made is not None and made[0] in {parent[0] for other in held if (parent := look.parent(other))}:
        return f"add `{{kind: exact_dedup, by: words}}` to the steps of {made[0]!r}, which come before its split"
    step = f"`{{kind: decontaminate, against: [{', '.join(map(repr, held))}]}}`"
    if made is not None:
        return f"add {step} to the steps that make {ref}"
    return f"read {ref} in a stage `curate` with {step} among its steps, and train on that stage"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _cut(look: Look) -> Iterator[Fault]:
    """Source by source: one that is cut is no less so beside a large one that is not."""
    if not look.is_training:
        return
    assert look.rows is not None
    count, how = _counter(look)
    found, wanted = [], 0.0
    for ref in refs_of(look.stage.data):
        records = look.rows.sample([ref])
        if look.stage.objective.needs in TEXTS:
            records = [record for record in records if record.messages]  # a document is trained on in pieces
        lengths = sorted(max(count(side) for side in _sides(record)) for record in records)
        longer = sum(length > look.stage.length for length in lengths)
        if longer > MOST_CUT * len(lengths):
            found.append(f"{longer} of {len(lengths)} sampled rows of {ref}")
            wanted = max(wanted, lengths[-1 - int(MOST_CUT * len(lengths))])
    if found:
        what = f"{', '.join(found)} are longer than {look.stage.length} tokens ({how}): left out or cut"
        yield Fault(("length",), what, _longer(look, 64 * math.ceil(wanted / 64)))


def _longer(look: Look, length: int) -> str:
    """How to keep rows of so many tokens."""
    seen, first = _context(look)
    if seen is not None and length > seen and first is None:
        return f"{look.stage.start} sees {seen} tokens at once: chunk the rows, or start from a model that sees more"
    names = [look.name, *([first] if seen is not None and length > seen and first is not None else [])]
    overrides = [f"{look.path('length', name)}={length}" for name in names]
    overrides += [f"{look.path('batch_tokens', name)}={length}" for name in names if length > look.stages[name].batch_tokens]
    return f"{' '.join(overrides)} keeps 95 % of them; or chunk the rows"


def _context(look: Look) -> tuple[int | None, str | None]:
    """Tokens that the start sees at once, where it is known, and the stage that made it from nothing: its rows' `length`."""
    ref = look.stage.start
    while (parent := look.parent(ref)) is not None:
        name, stage = parent
        if (ref := getattr(stage, "start", None)) is None:
            return (stage.length, name) if look.kinds[name] == "train" else (None, None)
    seen = json_in(look.paths[ref] / "config.json").get("max_position_embeddings") if ref in look.paths else None
    return (seen if type(seen) is int else None), None


def _sides(record: Record) -> list[str]:
    """The texts that have to fit: of a preference each answer with its prompt."""
    if not record.chosen:
        return [content(record)]
    shared = "\n".join(map(_said, record.messages))
    return ["\n".join([shared, *map(_said, side)]) for side in (record.chosen, record.rejected)]


def _said(turn: Message) -> str:
    return str(turn.get("content") or "")


def _counter(look: Look) -> tuple[Any, str]:
    """Tokens of a text: by the stage's own tokenizer, where that is made."""
    ref = look.stage.start or look.stage.vocab
    folder = look.folders.get(ref) or look.paths.get(ref) if ref is not None else None
    if folder is not None:
        try:
            made = open_tokenizer(folder)
        except UserError:
            pass  # the training itself says so; characters tell enough here
        else:
            return lambda text: len(made.encode(text, add_special_tokens=False).ids), "counted"
    return lambda text: len(text) / CHARS_PER_TOKEN, f"at {CHARS_PER_TOKEN:g} characters each"


def _constant(look: Look) -> Iterator[Fault]:
    """A reward, or a label to learn, that is the same for every row."""
    assert look.rows is not None
    if look.is_training and look.stage.objective.needs == "labels":
        labels: Counter[float] = Counter()
        for record in look.rows.sample(refs_of(look.stage.data)):
            try:
                labels[look.stage.objective.label(record)] += 1
            except ValueError:
                continue
        if labels.total() >= LEAST_ITEMS and len(labels) == 1:
            yield Fault(
                ("objective",),
                f"all {labels.total()} sampled rows have the label {next(iter(labels)):g}",
                "check which key holds the label",
            )
    if look.kind != "evaluate":
        return
    for index, task in enumerate(look.stage.tasks):
        asked = [name for name in look.folders if look.kinds.get(name) == "evaluate" and _has(look.stages[name], task.name)]
        scores: Counter[float] = Counter()
        for name in asked:
            scores += _scores(look.folders[name] / "items.jsonl", task.name)
        if asked[-1:] == [look.name] and scores.total() >= LEAST_ITEMS and len(scores) == 1:
            yield Fault(
                ("tasks", index),
                f"{task.name} gave {scores.total()} answers of every model one score, {next(iter(scores)):g}: it tells nothing "
                "apart, and as a reward teaches nothing",
                "easier or harder items, or a task that gives part of the points",
            )


def _has(stage: Any, task: str) -> bool:
    return any(one.name == task for one in stage.tasks)


def _scores(path: Path, task: str) -> Counter[float]:
    """Scores of a task in an evaluation's items, and how often each."""
    found: Counter[float] = Counter()
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                item = json.loads(line)
                if item.get("task") == task and isinstance(item.get("score"), (int, float)):
                    found[float(item["score"])] += 1
    return found


def _noisy(look: Look) -> Iterator[Fault]:
    if not look.is_training or look.stage.objective.needs != "pairs":
        return
    assert look.rows is not None
    found = _probe_labels.pairs(look.rows.sample(refs_of(look.stage.data)))
    if found is None:
        return
    fields = type(look.stage.objective).model_fields
    smooth = f"{look.path('objective.label_smoothing')}=0.1; or " if "label_smoothing" in fields else ""
    held = f"{look.path('objective.sft_weight')}=1.0; or " if "sft_weight" in fields else ""
    near = [] if held and look.stage.objective.sft_weight > 0 else [(found.near, MOST_NEAR, held)]  # that is the known mending
    for share, most, mend in (*near, (found.contradicted, MOST_CONTRADICTED, smooth), (found.ties, MOST_NEAR, smooth)):
        if share.of and share.share > most:
            sample = f", such as {share.samples[0]!r}" if share.samples else ""
            yield Fault(("data",), f"{share.name}: {share} sampled pairs ({share.why}){sample}", f"{mend}leave such pairs out")


def _new_knowledge(look: Look) -> Iterator[Fault]:
    """SFT alone, where rows are in another language than the start's, or ask for facts that stand nowhere."""
    if not look.is_training or look.stage.objective.needs != "answers" or look.stage.start is None:
        return
    assert look.rows is not None
    if any(look.stages[name].objective.needs in TEXTS for name in look.trainings(look.stage.start)):
        return
    records = look.rows.sample(refs_of(look.stage.data))
    if len(records) < LEAST_ITEMS:
        return
    languages = _probe_text.languages([content(record) for record in records])
    foreign = [share for share in languages.each if share.name != "en"]
    if foreign and foreign[0].share > MOST_FOREIGN:
        yield Fault(
            ("objective",),
            f"{foreign[0]} sampled rows are in `{foreign[0].name}`, and no stage here trains {look.stage.start} on text of it",
            "if the start hardly knows it: continue its pretraining on such text first (`objective: next_token`); if it does, "
            "`accept: [knowledge-from-sft]`",
        )
    closed = [record for record in records if _closed(record)]
    if len(closed) > MOST_FACTS * len(records):
        yield Fault(
            ("objective",),
            f"{len(closed)} of {len(records)} sampled answers hold names or years that do not stand in their question, such as "
            f"{_short(_said(closed[0].messages[-1]))!r}",
            "continue pretraining on the documents, or look them up (RAG); SFT is for how to answer",
        )


def _closed(record: Record) -> bool:
    """Whether the last answer holds names or years that nothing before it does."""
    if len(record.messages) < 2:
        return False
    before = "\n".join(map(_said, record.messages[:-1]))
    return len(before) <= CONTEXT_CHARS and any(name not in before for name in _NAME.findall(_said(record.messages[-1])))


RULES = (
    Rule(
        "leak-in-rows",
        "warning",
        "a score on rows that were trained on says nothing of others",
        "Brown et al. 2020, GPT-3, arXiv:2005.14165, section 4; Lee et al. 2022, arXiv:2107.06499, section 5",
        _leaked,
        True,
    ),
    Rule(
        "length-cuts",
        "warning",
        "what is cut off is never learned, and chats that are left out are the long ones: the model learns to be short",
        "Ding et al. 2024, Fewer Truncations Improve Language Modeling, arXiv:2404.10830",
        _cut,
        True,
    ),
    Rule(
        "constant-reward",
        "warning",
        "where every answer gets the same there is nothing to prefer: the gradient is zero, or learns a constant",
        "Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.2 (prompts with equal rewards give no gradient)",
        _constant,
        True,
    ),
    Rule(
        "noisy-preferences",
        "warning",
        "contradictions teach noise; between answers that nearly say the same, DPO makes the better one less likely, too",
        "Chowdhury et al. 2024, Provably Robust DPO, arXiv:2403.00409; Pal et al. 2024, Smaug, arXiv:2402.13228 (alike)",
        _noisy,
        True,
    ),
    Rule(
        "knowledge-from-sft",
        "hint",
        "tuning on answers teaches how to answer; facts that the start does not know are learned slowly, and with them to invent",
        "Gekhman et al. 2024, arXiv:2405.05904; Zhou et al. 2023, LIMA, arXiv:2305.11206",
        _new_knowledge,
        True,
    ),
)
