"""Formats beyond chats: feedback, ranks, steps, transcripts, loaders of published sets; detection explained; writing back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.formats import FORMATS, Format, LeftOut, detect
from modelwright.methods.sources._files import read

USER, GOOD, BAD = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})
SYSTEM = {"role": "system", "content": "s"}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
SHP = {"history": "q", "human_ref_A": "b", "human_ref_B": "a", "labels": 0, "score_A": 2, "score_B": 6, "domain": "d"}
CALL = {"name": "add", "arguments": {"x": 1, "y": [2, "é"]}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL, "id": "call00001"}]}
TOOL = {"role": "tool", "content": "3", "tool_call_id": "call00001"}
POST = {"id": "t3", "post": "p", "title": "t", "subreddit": "r", "article": None}


def make(kind: str, **fields: Any) -> Format:
    spec = FORMATS.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Format)
    return spec


def request(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


ROWS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("hh", HH, [{"messages": [USER], "chosen": [GOOD], "rejected": [BAD]}]),
    ("hh", {**HH, "prompt": "q "}, [{"messages": [USER], "chosen": [GOOD], "rejected": [BAD]}]),
    (
        "binary_feedback",
        {"prompt": "q", "completion": "a", "label": False, "n": 1},
        [{"messages": [USER, GOOD], "meta": {"label": False, "n": 1}}],
    ),
    ("binary_feedback", {"prompt": "q", "completion": "a", "label": "1"}, [{"messages": [USER, GOOD], "meta": {"label": True}}]),
    ("binary_feedback", {"messages": [USER, GOOD], "label": True}, [{"messages": [USER, GOOD], "meta": {"label": True}}]),
    (
        "binary_feedback",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": False, "system": "s"},
        [{"messages": [SYSTEM, USER, GOOD], "meta": {"label": False}}],
    ),
    (
        "ranked",
        {"prompt": "q", "responses": ["b", "a", "c"], "scores": [0.5, 0.9, 0.9]},
        [
            {
                "messages": [USER],
                "chosen": [GOOD],
                "rejected": [BAD],
                "meta": {"rank_rejected": 3, "score_chosen": 0.9, "score_rejected": 0.5},
            }
        ],
    ),
    (
        "ranked",
        {"prompt": [USER], "completions": [[BAD], [GOOD], [SYSTEM | {"role": "assistant"}]], "ranks": [2, 1, 3], "id": 7},
        [
            {"messages": [USER], "chosen": [GOOD], "rejected": [BAD], "meta": {"id": 7, "rank_rejected": 2}},
            {
                "messages": [USER],
                "chosen": [GOOD],
                "rejected": [{"role": "assistant", "content": "s"}],
                "meta": {"id": 7, "rank_rejected": 3},
            },
        ],
    ),
    (
        "stepwise",
        {"prompt": "q", "completions": ["one", "two"], "labels": [True, False]},
        [
            {
                "messages": [USER, {"role": "assistant", "content": "one\ntwo"}],
                "meta": {"steps": [{"text": "one", "label": True}, {"text": "two", "label": False}]},
            }
        ],
    ),
    (
        "preference",
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        [{"messages": [USER], "chosen": [GOOD], "rejected": [BAD]}],
    ),
    ("completion", {"completion": "a text", "n": 1}, [{"text": "a text", "meta": {"n": 1}}]),
    ("near_pairs", {"anchor": "q", "positive": "a"}, [{"text": "q", "meta": {"positive": "a"}}]),
    (
        "near_pairs",
        {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", "n": 1},
        [{"text": "q", "meta": {"positive": "a", "negatives": ["b", "c"], "n": 1}}],
    ),
    (
        "near_pairs",
        {"query": "q", "pos": ["a", "a2"], "neg": ["b"]},
        [{"text": "q", "meta": {"positive": text, "negatives": ["b"]}} for text in ("a", "a2")],
    ),
    (
        "dolly",
        {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"},
        [{"messages": [request("q\n\nc"), GOOD], "meta": {"category": "open_qa"}}],
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": [{"text": " b", "policy": "sup"}, {"text": " a", "policy": "ref"}], "choice": 1, "w": "w"},
        [
            {
                "messages": [request("SUBREDDIT: r/r\n\nTITLE: t\n\nPOST: p\n\nTL;DR:")],
                "chosen": [GOOD],
                "rejected": [BAD],
                "meta": {
                    "w": "w", "id": "t3", "title": "t", "subreddit": "r", "policy_chosen": "ref", "policy_rejected": "sup"
                },
            }
        ],
    ),
    (
        "summarize_from_feedback",
        {"info": {"article": "x"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
        [{"messages": [request("Article: x\n\nTL;DR:")], "chosen": [GOOD], "rejected": [BAD]}],
    ),
    (
        "shp",
        SHP,
        [
            {
                "messages": [USER],
                "chosen": [GOOD],
                "rejected": [BAD],
                "meta": {"domain": "d", "score_chosen": 6, "score_rejected": 2, "score_ratio": 3.0},
            }
        ],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "add"}]',
        },
        [{"messages": [USER, CALLED, TOOL, GOOD], "meta": {"tools": '[{"name": "add"}]'}}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "expected"), ROWS)
def test_row_is_recognised_read_and_written_back(kind: str, row: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    layout, reason = detect([row], "f.jsonl")
    assert layout == make(kind) and "`" in reason
    found = layout.records(row, "f:1")
    assert found == make("auto").records(row, "f:1")
    assert len({record.id for record in found}) == len(found)
    for record, want in zip(found, expected, strict=True):
        for name in ("text", "messages", "chosen", "rejected", "meta"):
            assert getattr(record, name) == want.get(name, type(getattr(record, name))()), name
        if kind in ("ranked", "summarize_from_feedback"):
            with pytest.raises(UserError, match="can only be read"):
                layout.write(record)
            continue
        again = layout.write(record)
        assert layout.records(json.loads(json.dumps(again)), record.id) == [record]
        assert detect([again], "again")[0] == layout


META = {"path": "p", "n": None, "meta": 3, "text": "t", "instruction": "i", "chosen": "c", "messages": [1]}
"""Metadata that is hard to carry: keys of every layout, and nothing."""
SCORES = {"score_chosen": 4, "score_rejected": 1, "score_ratio": 4}
CHATS = {
    "one": Record("r", messages=[USER, GOOD], meta=META),
    "system": Record("r", messages=[SYSTEM, USER, GOOD]),
    "long": Record("r", messages=[SYSTEM, USER, GOOD, request(" q2 "), BAD], meta={"tools": [{"type": "function"}]}),
    "calls": Record("r", messages=[USER, CALLED, TOOL, GOOD]),
    "odd call": Record("r", messages=[{"role": "assistant", "content": "", "tool_calls": [1]}]),
    "judged": Record("r", messages=[USER, GOOD], meta={"label": True, "n": 1}),
    "steps": Record("r", messages=[USER, GOOD], meta={"steps": [{"text": "a", "label": True}]}),
    "unanswered": Record("r", messages=[USER]),
    "weighed": Record("r", messages=[USER, {**GOOD, "weight": 0, "reasoning_content": "hm"}]),
    "pair": Record("r", messages=[USER], chosen=[GOOD], rejected=[BAD], meta=META),
    "long pair": Record("r", messages=[USER, GOOD, USER], chosen=[GOOD, USER, BAD], rejected=[BAD]),
    "system pair": Record("r", messages=[SYSTEM, USER], chosen=[GOOD], rejected=[BAD]),
    "scored": Record("r", messages=[USER], chosen=[GOOD], rejected=[BAD], meta=SCORES),
    "document": Record("r", text=" a  text\n", meta=META),
    "words": Record("r", text="a text", meta={"tokens": ["a", "text"], "tags": [0, 1]}),
    "near": Record("r", text="a text", meta={"positive": "its partner", "negatives": ["another"], "n": 1}),
}  # fmt: skip
HOLDS = {
    "messages": {"odd call", "one", "system", "long", "calls", "judged", "steps", "unanswered", "weighed"},
    "sharegpt": {"one", "system", "long", "calls", "judged", "steps", "unanswered", "weighed"},
    "alpaca": {"one", "system", "long", "judged", "steps"},
    "prompt_completion": {"one", "system", "long", "calls", "judged", "steps", "weighed"},
    "binary_feedback": {"judged"},
    "stepwise": {"steps"},
    "dolly": {"one", "judged", "steps"},
    "preference": {"pair", "long pair", "system pair", "scored"},
    "hh": {"pair", "long pair", "scored"},
    "shp": {"scored"},
    "text": {"document", "words", "near"},
    "completion": {"document", "words", "near"},
    "near_pairs": {"near"},
    "words": {"words"},
    "ranked": set(),
    "summarize_from_feedback": set(),
    "auto": set(),
    "ultrafeedback": set(),
    "oasst": set(),
    "feedback": set(),
}


@pytest.mark.parametrize("kind", FORMATS.names())
def test_what_is_written_is_read_as_the_same_record_or_refused(kind: str) -> None:
    layout, held = make(kind), set()
    for name, record in CHATS.items():
        try:
            row = layout.write(record)
        except UserError as error:
            assert f"`{kind}` cannot hold the record r" in error.what and error.why and error.fix
            continue
        assert layout.records(json.loads(json.dumps(row)), "r") == [record], name
        held.add(name)
    assert held == HOLDS[kind]


def test_why_a_record_cannot_be_held() -> None:
    for kind, name, why in (
        ("alpaca", "calls", "no `tool_call_id` or `tool_calls` of a turn"),
        ("hh", "system pair", "no name for the role 'system'"),
        ("messages", "pair", "chats alone"),
        ("preference", "one", "preferences alone"),
        ("text", "one", "documents alone"),
        ("stepwise", "one", "`meta.steps`"),
        ("binary_feedback", "one", "`meta.label`"),
        ("ranked", "pair", "can only be read"),
        ("words", "document", "`meta.tokens`"),
        ("sharegpt", "odd call", "turn 1 (function_call) is not the JSON"),
    ):
        with pytest.raises(UserError, match="cannot hold") as error:
            make(kind).write(CHATS[name])
        assert why in error.value.why, (kind, error.value.why)
    broken = Record("r", messages=[USER], chosen=[{"role": "assistant", "content": "a\n\nHuman: b"}], rejected=[BAD])
    with pytest.raises(UserError, match="cannot hold") as error:
        make("hh").write(broken)
    assert error.value.why == "chosen would be read back otherwise"


@pytest.mark.parametrize(
    ("kind", "row", "fault"),
    [
        ("hh", {"chosen": "a", "rejected": "b"}, "does not begin with a speaker"),
        ("hh", {"chosen": HH["chosen"], "rejected": "\n\nHuman: q\n\nAssistant:"}, "'rejected' has a turn without text"),
        ("preference", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, "`format: hh` reads those"),
        ("binary_feedback", {"prompt": "q", "completion": "a", "label": "maybe"}, "label or kto_tag is neither true nor false"),
        ("binary_feedback", {"messages": [USER], "label": True}, "the last turn is the user's"),
        ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "no list of answers"),
        ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "no answer is worse"),
        ("ranked", {"responses": ["a", "b"], "scores": [1, 2]}, "'prompt' is NoneType"),
        ("stepwise", {"prompt": "q", "completions": ["a"], "labels": [1]}, "no list of as many true or false"),
        ("dolly", {"instruction": "q", "response": 3}, "'response' is int"),
        ("completion", {"completion": " "}, "'completion' is empty"),
        ("summarize_from_feedback", {"info": POST, "summaries": [], "choice": 0}, "not a list of two"),
        ("summarize_from_feedback", {"info": {"post": "p"}, "summaries": [{}] * 2, "choice": 0}, "'subreddit' is missing"),
        ("summarize_from_feedback", {"info": POST, "summaries": [{"text": "a"}] * 2, "choice": 2}, "'choice' is 2"),
        ("near_pairs", {"anchor": "q"}, "'positive' is NoneType"),
        ("near_pairs", {"anchor": "", "positive": "a"}, "'anchor' is empty"),
        ("near_pairs", {"anchor": "q", "positive": ["a", 3]}, "'positive' is int"),
        ("near_pairs", {"anchor": "q", "positive": "a", "negative": 3}, "'negative' is int"),
        ("shp", {**SHP, "labels": 5}, "'labels' is 5"),
        ("shp", {**SHP, "score_A": None}, "'score_A' is no number"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "add 1"}]}, "turn 1 .function_call. is not the JSON"),
        ("messages", {"messages": [USER, {**GOOD, "function_call": {"name": "f"}}]}, "turn 2 has a `function_call`"),
    ],
)  # fmt: skip
def test_faults_of_a_row(kind: str, row: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make(kind).records(row, "x")


def test_fields() -> None:
    chats = make("ranked", gives="chats").records({"prompt": "q", "responses": ["b", "a"], "ranks": [2, 1], "k": 0}, "x")
    assert [(r.id, r.messages, r.meta) for r in chats] == [
        ("x#1", [USER, GOOD], {"k": 0, "rank": 1}),
        ("x#2", [USER, BAD], {"k": 0, "rank": 2}),
    ]
    judged = make("binary_feedback", label="good").record({"prompt": "q", "completion": "a", "good": 0, "label": 1}, "x")
    assert judged.meta == {"label": False}
    steps = {"prompt": "q", "completions": ["a", "b"], "labels": [True, True]}
    assert make("stepwise", joint=" ").record(steps, "x").messages[1]["content"] == "a b"
    assert make("completion", joint="|").record({"prompt": "q", "completion": "a"}, "x").text == "q|a"
    assert (
        make("dolly", joint="|").record({"instruction": "q", "context": "c", "response": "a"}, "x").messages[0]["content"]
        == "q|c"
    )
    for field, info in (("post", {"post": "p"}), ("article", {"article": "p"})):
        row = {"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
        assert make("summarize_from_feedback", **{field: f"<{{{field}}}>"}).record(row, "x").messages[0]["content"] == "<p>"
    with pytest.raises(LeftOut, match="below min_ratio 4"):
        make("shp", min_ratio=4).record(SHP, "x")
    with pytest.raises(ValueError, match="set both or neither"):
        make("preference", chosen="better")


def test_detection_tells_what_else_it_could_be() -> None:
    layout, why = detect([{"messages": [USER, GOOD], "label": True}], "f")
    assert layout == make("binary_feedback") and why == (
        "it has `messages` and a true or false `label`; "
        "it could also be `messages`, because `messages` is a list of turns with `role`"
    )
    layout, why = detect([{"prompt": "q", "completion": "a"}], "f")
    assert layout == make("prompt_completion") and "it could also be `completion`, because" in why
    assert detect([{"prompt": "q", "completion": "a", "label": True}], "f")[0] == make("binary_feedback")
    assert detect([{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "a"}], "f")[0] == make(
        "prompt_completion"
    )
    assert detect([HH], "f")[1].count("could") == 0


def test_ambiguous_rows_name_every_candidate() -> None:
    both = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False], "scores": [1, 2]}
    with pytest.raises(UserError, match="fit several formats") as error:
        detect([both], "f.jsonl")
    assert error.value.fix == "say which: `format: ranked` or `format: stepwise`"
    assert "`ranked`, because" in error.value.why and "`stepwise`, because" in error.value.why


def test_every_default_kind_is_in_detection() -> None:
    seen = {kind for kind, _, _ in ROWS} | {"alpaca", "auto", "messages", "prompt_completion", "text", "words"}
    seen |= {"feedback", "oasst", "ultrafeedback"}  # in test_formats_judged
    assert seen == set(FORMATS.names())
    for kind in FORMATS.names():
        assert set(make(kind).over) <= set(FORMATS.names())


def test_rows_that_a_field_leaves_out_are_counted(tmp_path: Path) -> None:
    rows = [SHP, {**SHP, "score_A": 5}, {"history": "q"}]
    (tmp_path / "shp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    log = Log(None)
    told: list[dict[str, Any]] = []
    log.event = lambda kind, **more: told.append({"kind": kind, **more})  # type: ignore[method-assign]
    found = list(read(tmp_path / "shp.jsonl", log, layout=make("shp")))
    assert [record.id for record in found] == ["shp.jsonl:1"]
    assert told == [
        {"kind": "excluded", "reason": "rows: the scores' ratio is below min_ratio 2", "files": 1, "path": "shp.jsonl"}
    ]
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    (tmp_path / "ranked.jsonl").write_text(json.dumps(ranked) + "\n")
    assert [r.id for r in read(tmp_path / "ranked.jsonl", log)] == ["ranked.jsonl:1#2", "ranked.jsonl:1#3"]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def heard(path: Path, **asked: Any) -> tuple[list[Record], list[tuple[str, dict[str, Any]]]]:
    """The rows, and all that was said of them."""
    told: list[tuple[str, dict[str, Any]]] = []
    return list(read(path, Log(None, lambda event, fields: told.append((event, fields))), **asked)), told


@pytest.mark.parametrize(("kind", "key"), [("messages", "messages"), ("sharegpt", "conversations")])
def test_what_turns_hold_beside_their_text_is_kept_or_counted(tmp_path: Path, kind: str, key: str) -> None:
    odd = {**GOOD, "audio": {"id": "a"}, "refusal": None, "annotations": [], "thinking": "t"}
    path = written(tmp_path / "r.jsonl", {key: [USER, odd]}, {key: [USER, odd], "documents": [{"role": "x", "title": "kept"}]})
    found, told = heard(path, layout=make(kind))
    assert found[0].messages == [USER, {**GOOD, "thinking": "t"}] and found[1].meta
    counted = [fields for event, fields in told if event == "excluded"]
    assert counted == [{"reason": "`audio` of turns; the rows stay", "files": 2, "path": "r.jsonl"}]


def test_where_bad_rows_are_dropped_a_few_odd_ones_hide_no_format(tmp_path: Path) -> None:
    chats = [{"messages": [USER, GOOD]}] * 19
    path = written(tmp_path / "r.jsonl", chats[0], {"oops": 1}, *chats[1:])
    with pytest.raises(UserError, match="row 2 is not `messages`, though 19 of 20 rows are"):
        heard(path)
    found, told = heard(path, on_bad="drop")
    assert len(found) == 19
    notes = [fields["text"] for event, fields in told if event == "note"]
    assert any("as 19 of its first 20 rows; row 2 is the first that is not" in note for note in notes)
    assert [(fields["line"], fields["why"]) for event, fields in told if event == "unreadable"] == [
        (2, "not the format: 'messages' is missing")
    ]
    with pytest.raises(UserError, match="no known format"):  # every third row: whoever wrote them meant two things
        heard(written(tmp_path / "m.jsonl", *chats[:4], {"oops": 1}, {"oops": 2}), on_bad="drop")
