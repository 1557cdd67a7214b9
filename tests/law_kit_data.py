"""The law of use for data: sources, steps, formats, templates, tokenizers."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record, write_records
from modelwright.core.stage import Input, Run
from modelwright.methods.steps import Cut, Drop, Made
from modelwright.methods.templates import render
from tests import content_kit, document_kit, web_kit
from tests.law_kit import Seen, Subject
from tests.test_data_steps import CODE, PROSE, prose, vary

CHAT = [{"role": "user", "content": "How late?"}, {"role": "assistant", "content": "Five past 10."}]
ROWS = """
{"text": "One document.", "content": "Another document."}
{"text": "Two documents.", "content": "Yet another."}
"""
CHATS = """
{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}], "prompt": "a", "completion": "b"}
"""
TORN = '{"text": "whole"}\n{"text": "torn\n{"text": "whole again"}\n'


class Listening(Log):
    """Keeps the events, without what changes with the machine."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        super().__init__(None, lambda name, fields: self.heard.append([name, fields]) if name != "progress" else None)


def files(folder: Path) -> Path:
    """Files to read and packages to look at; tests change into this folder."""
    for name, text in {
        "rows/one.jsonl": ROWS,
        "rows/deep/two.json": '[{"text": "A list."}]',
        "mixed.jsonl": CHATS,
        "bad/bad.jsonl": TORN,
        "notes/a.md": "First part.\n\nSecond part,\nwith two lines.\n",
        "notes/b.txt": "Plain text.\n",
        "other/c.txt": "Another folder.\n",
        "dataset/data/train.jsonl": '{"text": "train"}\n',
        "dataset/data/test.jsonl": '{"text": "test"}\n',
        "dataset/more/train-2.jsonl": '{"text": "more"}\n',
        "configured/README.md": "---\nconfigs:\n- {config_name: one, default: true, data_files: one/*}\n"
        "- {config_name: en, data_files: two/*}\n---\nA card.\n",
        "configured/one/a.jsonl": '{"text": "of one"}\n',
        "configured/two/a.jsonl": '{"text": "of the other"}\n',
        "cells/a.csv": "text;content\n'one;two';three\nfour;five\n",
        "other-set/train.jsonl": '{"text": "of the other set"}\n',
        "site/lawone/__init__.py": _module(0),
        "site/lawone/deep.py": _module(40),
        "site/lawone/tests/test_deep.py": _module(80),
        "site/lawtwo/__init__.py": _module(120),
        "site/law_dist-2.5.dist-info/METADATA": "Metadata-Version: 2.4\nName: law-dist\nVersion: 2.5\n\nA readme.\n",
        "site/law_dist-2.5.dist-info/RECORD": "lawone/__init__.py,,\nlawone/deep.py,,\n",
        "site/law_dist-2.5.dist-info/top_level.txt": "lawone\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    document_kit.files(folder)
    content_kit.files(folder)
    web_kit.files(folder)
    (folder / "bad" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "bad" / "good.txt").write_text("good\n")
    held = Record("h", text="z", meta={"source": CODE[0], "origin": "z"})
    write_records(folder / "held.jsonl", [held])
    write_records(folder / "held2.jsonl", [Record("h", text=PROSE[0])])
    write_records(folder / "items.jsonl", ITEMS)
    return folder


def _item(name: str, question: str, answer: str) -> Record:
    turns = (("user", question), ("assistant", answer))
    return Record(name, messages=[{"role": role, "content": text} for role, text in turns])


ITEMS = [_item("long", prose(80, 36).replace("\n", " "), "forty two"), _item("five words", "how tall is that house", "tall")]


def _module(first: int) -> str:
    """Functions short and long, of which many raise the same, with answers short and long."""
    parts = []
    for n in range(first, first + 24):
        error = "ValueError" if n % 3 else f"Error{n}"
        more = "".join(f"    total += other_{n}_{i}(name_{n}, {i})\n" for i in range(n % 9))
        parts.append(
            f"def take_{n}(name_{n}, limit={n * 7}, *rest):\n"
            f'    """Take number {n} from the list{" and say at length what became of it" * (n % 2)}."""\n'
            f"    if not name_{n}:\n        raise {error}(name_{n})\n    total = limit\n{more}    return total + len(rest)\n"
        )
    return "\n\n".join(parts)


def _records(records: Any) -> list[Any]:
    return [[r.id, r.text, r.messages, r.chosen, r.rejected, r.meta] for r in records]


def see_source(spec: Any, bench: Any) -> Seen:
    log = Listening()
    rows = _records(spec.rows({}, log))
    return Seen(rows, log.heard, [spec.digest(), spec.size_bytes(), spec.facts(1e6).model_dump(), spec.bytes_per_s])


ASKED = {
    "package": "lawone",
    "min_chars": 1,
    "max_chars": 2000,
    "sorts": ["parameters", "raises", "complete", "summary"],
    "per_object": 9,
}
ASKED_BASES: dict[str, dict[str, Any]] = {
    "common": {**ASKED, "common": 1.0},
    "per_object": {**ASKED, "per_object": 4, "common": 1.0},
    "include": {**ASKED, "include": ["*"]},
}
ASKED_OTHERS = {
    "package": "lawtwo",
    "include": ["*deep.py"],
    "exclude": ["*deep.py"],
    "sorts": ["raises"],
    "min_chars": 300,
    "max_chars": 300,
    "code_chars": 200,
    "common": 0.3,
}


def _asked(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    bases = {kind: ASKED, **{f"{kind}.{name}": tree for name, tree in ASKED_BASES.items()}}
    return bases, {f"{kind}.{name}": value for name, value in ASKED_OTHERS.items()}


_DOCUMENTS = ("markdown", "pdf", "docx", "epub", "mail", "social")
_QUESTIONS, _PREFERENCES = _asked("python_questions"), _asked("python_preferences")
SOURCES = Subject(
    see_source,
    bases={
        "jsonl": {"path": "./rows/"},
        "jsonl.format": {"path": "./mixed.jsonl"},
        "jsonl.on_bad": {"path": "./bad/bad.jsonl"},
        **{f"jsonl.csv.{name}": {"path": "./cells/", "on_bad": "drop"} for name in ("delimiter", "quote", "header")},
        "jsonl.csv": {"path": "./cells/", "on_bad": "drop"},
        "hub": {"dataset": "./dataset/"},
        "hub.config": {"dataset": "./configured/"},
        "hub.columns": {"dataset": "./rows/one.jsonl"},
        "hub.format": {"dataset": "./mixed.jsonl"},
        "hub.on_bad": {"dataset": "./bad/bad.jsonl"},
        "text": {"path": "./notes/"},
        "text.on_bad": {"path": "./bad/"},
        **{kind: {"path": "./documents/"} for kind in _DOCUMENTS},
        **{f"{kind}.on_bad": {"path": "./bad_documents/"} for kind in _DOCUMENTS},
        "code": {"path": "./tree/"},
        "code.on_bad": {"path": "./bad_tree/"},
        **web_kit.SOURCES,
        "python_package": {"package": "lawone"},
        **_QUESTIONS[0],
        "python_questions.turns": {**ASKED, "common": 1.0},
        **_PREFERENCES[0],
        "python_preferences.faults": {**ASKED, "common": 1.0},
    },
    others={
        "jsonl.path": "./mixed.jsonl",
        "jsonl.format": {"kind": "prompt_completion"},
        "jsonl.columns": ["content"],
        "jsonl.csv.delimiter": ",",
        "hub.dataset": "./other-set/",
        "hub.columns": ["content"],
        "hub.format": {"kind": "prompt_completion"},
        "text.path": "./other/",
        **{f"{kind}.path": "./other_documents/" for kind in _DOCUMENTS},
        "code.path": "./other_tree/",
        **web_kit.OTHER_SOURCES,
        "python_package.package": "lawtwo",
        "python_package.include": ["*deep.py"],
        "python_package.exclude": ["*deep.py"],
        **_QUESTIONS[1],
        **_PREFERENCES[1],
    },
)


# --- steps ----------------------------------------------------------------------------------------------


@cache
def documents() -> list[Record]:
    """Rows of which each threshold drops some: prose, code, duplicates near and exact, licences, what was made from others."""
    licences = ("MIT", "GPL-3.0", "")
    rows = [Record(f"prose{i}", text=text, meta={"licence": licences[i % 3], "license": "MIT"}) for i, text in enumerate(PROSE)]
    rows += [Record(f"code{i}.py", text=text, meta={"licence": "PSF-2.0", "license": "none"}) for i, text in enumerate(CODE)]
    for seed in range(40):  # pairs close to minhash's threshold
        text = prose(seed + 1000, 150)
        rows += [Record(f"first{seed}", text=text), Record(f"second{seed}", text=vary(text, 3, seed))]
    rows.append(Record("spaced", text=PROSE[0].replace(" ", "  "), meta={"licence": "MIT"}))
    rows.append(Record("made", text="x", meta={"source": CODE[0], "licence": "MIT"}))
    rows.append(Record("made2", text="y", meta={"origin": CODE[0], "licence": "MIT"}))
    rows.append(Record("turned", text="z", meta={"source": " ".join(reversed(CODE[0].split()))}))  # the same words, no n-gram
    rows.append(Record("short", text=prose(60, 30)))
    asked = [item.messages[0]["content"] for item in ITEMS]
    rows.append(Record("asked", text=f"{prose(61, 30)} {asked[0]} {prose(62, 30)}"))
    rows.append(Record("answered", text=f"{asked[0]} so it is forty two"))
    rows.append(Record("answered later", text=f"{asked[0]} {prose(63, 8)} forty two"))
    rows += [Record(f"{words} words", text=" ".join(asked[0].split()[:words])) for words in (22, 30)]
    rows.append(Record("few", text=f"{prose(64, 30)} {asked[1]}"))
    rows += [_item(f"chat {n}", f"What is it that you do not want to see, captain {n}?", f"The end {n}.") for n in range(12)]
    return rows + [Record(name, text=text) for name, text in PAGES.items()] + content_kit.rows() + web_kit.rows()


_PAGE = """A heading of the page
The river came down from the mountain in the night. Nobody in the village heard it.
In the morning the captain walked to the gate [1] and waited. The garden was gone!
They asked him what had become of it. He could not say.
"""
PAGES = {
    "page": f"{_PAGE}Please turn on JavaScript to read this page.\nRead our privacy policy before you go on.\n",
    "lorem": f"{_PAGE}Lorem ipsum is all that was written there.\n",
    "bracket": f"{_PAGE}Here {{ x }} stands for what was written there.\n",
    "spaced lines": "\n\n\n\n".join(prose(seed, 24).replace("\n", " ") for seed in range(70, 80)),
    "essay": prose(66, 120).replace("\n", " ") + "\n" + prose(67, 120).replace("\n", " "),
    "odd": "It isn\u2019t sch\u00c3\u00b6n\u200b,\u00a0he said, \u201cdon\u2019t \ufb01nd the cafe\u0301\u201d\u2026\r\n",
    "frame": f"{_PAGE}2026\n3 likes and more\n3 likes\nSign in\n",
    "german": "Der Fluss kam in der Nacht vom Berg herab, und niemand im Dorf hatte ihn geh\u00f6rt. Der Garten war weg.",
    "both": "The river came down from the mountain in the night. " * 9
    + "Niemand im Dorf hatte den Fluss in der Nacht geh\u00f6rt. " * 9,
}


def given(folder: Path = Path()) -> dict[str, Input]:
    """What steps refer to."""
    names = ("./held.jsonl", "./held2.jsonl", "./items.jsonl")
    return {name: Input(name, "path", folder / name) for name in names} | content_kit.inputs(folder) | web_kit.inputs(folder)


def see_step(spec: Any, bench: Any, seed: int = 0) -> Seen:
    """What becomes of each row. Details are left out: they repeat bounds."""
    log = Listening()
    run = Run(Path(), given(), seed, log)
    outcome: list[Any] = []
    for result in spec.apply(iter(documents()), run):
        if isinstance(result, Drop):
            outcome.append([result.record.id, "dropped", result.reason])
        elif isinstance(result, Cut):
            outcome.append([result.record.id, result.reason, result.pieces, result.chars, result.record.text])
        else:
            record = result.record if isinstance(result, Made) else result
            outcome.append([record.id, record.text or record.messages, record.meta])
    return Seen(outcome, [heard for heard in log.heard if heard[0] == "coverage"], effort=spec.keeps(100.0))


STEPS = Subject(
    see_step,
    bases={
        "chunk.at": {"max_chars": 400},
        "chunk.overlap_chars": {"max_chars": 400},
        "c4.min_paragraph_chars": {"min_paragraphs": 1},
        "held_out": {"against": "./held.jsonl"},
        **content_kit.BASES,
        **web_kit.STEPS,
        "balance": {"by": "licence"},
        "coverage": {"by": "license"},
        "semantic_dedup.window": {"model": "./judge/"},
        **{f"recase.{field}": {"share": 1.0} for field in ("to", "how", "copies")},
        "decontaminate": {"against": "./items.jsonl"},
        "decontaminate.answer_words": {"against": "./items.jsonl", "answer": "near"},
    },
    others={**content_kit.OTHERS, "held_out.against": "./held2.jsonl", "decontaminate.against": ["./held2.jsonl"]}
    | {"balance.by": "license"},
)


# --- formats, templates, tokenizers -----------------------------------------------------------------------


def _ratings(*values: int) -> dict[str, Any]:
    sides = ("instruction_following", "helpfulness", "honesty", "truthfulness")
    return {side: {"Rating": str(value)} for side, value in zip(sides, values, strict=True)}


LAYOUTS: list[dict[str, Any]] = [
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
    {"messages": CHAT, "dialogue": CHAT[::-1], "x": 1},
    {"dialogue": CHAT},
    {"conversations": CHAT, "conversation": CHAT * 2},
    {"prompt": "2 + 2?", "completion": "4", "question": "3 + 3?", "answer": "6"},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "better": "four", "worse": "five"},
    {"text": "A document.", "content": "Another."},
    {"tokens": ["A", "text"], "words": ["Another"], "ner_tags": [0, 0]},
    {
        "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
        "better": "\n\nHuman: 2 + 2?\n\nAssistant: four",
        "worse": "\n\nHuman: 2 + 2?\n\nAssistant: five",
    },
    {"prompt": "2 + 2?", "completion": "4", "label": True, "good": False},
    {"prompt": "2 + 2?", "responses": ["5", "4", "6"], "scores": [0.2, 0.9, 0.1]},
    {"prompt": "2 + 2 + 2?", "completions": ["2 + 2 is 4.", "4 + 2 is 7."], "labels": [True, False]},
    {"instruction": "Add", "context": "1 and 2", "response": "3", "category": "sums"},
    {
        "info": {"post": "It was long.", "title": "Long", "subreddit": "stories"},
        "summaries": [{"text": " Long."}, {"text": " Short."}],
        "choice": 0,
    },
    {"info": {"article": "It rained."}, "summaries": [{"text": "Rain."}, {"text": "Sun."}], "choice": 1},
    {"history": "Tea?", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_A": 3, "score_B": 2},
    {
        "instruction": "2 + 2?",
        "completions": [
            {"response": "5", "annotations": _ratings(1, 2, 5, 1), "overall_score": 4},
            {"response": "4", "annotations": _ratings(5, 4, 4, 3), "overall_score": 3},
        ],
    },
    {
        "prompt": {"role": "prompter", "text": "Tea?", "replies": [
            {"role": "assistant", "text": "No.", "rank": 1, "replies": []},
            {"role": "assistant", "text": "Yes.", "rank": 0, "replies": []},
        ]},
    },
    {"anchor": "Tea", "positive": "A drink.", "title": "Rain", "body": "Water that falls."},
    {"schema": "modelwright.feedback/1", "request": {"messages": CHAT[:1]}, "answer": "Late.", "rating": "up", "better": "10"},
]  # fmt: skip


def see_format(spec: Any, bench: Any) -> Seen:
    found: list[Any] = []
    for row in LAYOUTS:
        try:
            found.append([bool(spec.fits(row)), *_records(spec.records(row, "name"))])
        except ValueError:  # its text repeats the keys
            found.append("cannot be read")
    return Seen(found)


def see_auto(spec: Any, bench: Any) -> Seen:
    """Looks at rows that change their layout."""
    layout, reason = spec.settle([{"text": "a"}, {"prompt": "a", "completion": "b"}], "rows.jsonl")
    return Seen([layout.model_dump()["kind"], reason])


FORMATS = Subject(
    lambda spec, bench: see_auto(spec, bench) if type(spec).__name__ == "Auto" else see_format(spec, bench),
    bases={
        name: {"prompt": "prompt", "completion": "completion"}
        for name in ("prompt_completion.prompt", "prompt_completion.completion")
    }
    | {name: {"chosen": "chosen", "rejected": "rejected"} for name in ("preference.chosen", "preference.rejected")},
)


def see_template(spec: Any, bench: Any) -> Seen:
    seen = [render(spec.jinja(), CHAT[:turns], turns == 1, eos="<end>") for turns in (1, 2)]
    try:
        return Seen([*seen, render(spec.jinja(), [{"role": "system", "content": "Be brief."}, *CHAT, *CHAT], eos="<end>")])
    except UserError as error:
        return Seen([*seen, f"no system message: {error.what}"])


TEMPLATES = Subject(see_template)


def see_tokenizer(spec: Any, bench: Any) -> Seen:
    """The vocabulary that comes of a small text, and how it cuts another."""
    draw = random.Random(0)
    texts = [f"{prose(seed, 60)} {draw.randrange(10**6)} 1984 1984" for seed in range(12)]
    tokenizer = spec.train(iter(texts), ("<|end|>",))
    tokens = [tokenizer.encode(text).tokens for text in ("the river of 1984", "The ﬁnder of quite unknown words")]
    return Seen([tokenizer.get_vocab_size(), tokens, spec.pre_tokenizer()], effort=spec.vocab_size())


_SMALL = {"size": 150}
TOKENIZERS = Subject(see_tokenizer, bases={"bpe": {"size": 340}, "wordpiece": _SMALL, "char_bpe": _SMALL, "unigram": _SMALL})
