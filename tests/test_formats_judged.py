"""Formats of judged answers: UltraFeedback, trees of OpenAssistant, feedback of our own server; FLAN's names; ids of calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.methods.formats import FORMATS, Format, LeftOut, detect
from modelwright.methods.templates import TEMPLATES, render

USER, GOOD, BAD = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})


def make(kind: str, **fields: Any) -> Format:
    spec = FORMATS.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Format)
    return spec


# --- UltraFeedback ------------------------------------------------------------------------------------


def answer(text: str, helpful: str, honest: str, overall: float, model: str) -> dict[str, Any]:
    notes = {
        "helpfulness": {"Rating": helpful, "Rationale": "…"},
        "honesty": {"Rating": honest},
        "truthfulness": {"Rating": "N/A"},
    }
    return {"response": text, "annotations": notes, "overall_score": overall, "model": model, "critique": "…"}


ULTRA = {
    "instruction": "q",
    "source": "flan",
    "models": ["x", "y", "z"],
    "completions": [answer("b", "2", "3", 10.0, "x"), answer("a", "5", "4", 8.5, "y"), answer("c", "4", "5", 1, "z")],
}


def test_ultrafeedback() -> None:
    layout, why = detect([ULTRA], "f")
    assert layout == make("ultrafeedback") and "`annotations`" in why
    pair = layout.records(ULTRA, "f:1")
    assert [(r.chosen[0]["content"], r.rejected[0]["content"]) for r in pair] == [("a", "b")]  # a and c are equally good
    assert pair[0].messages == [USER] and pair[0].meta == {
        "source": "flan", "model_chosen": "y", "model_rejected": "x",
        "score_chosen": 4.5, "score_rejected": 2.5, "rank_rejected": 3,
    }  # fmt: skip
    overall = make("ultrafeedback", score="overall").records(ULTRA, "x")
    assert [r.rejected[0]["content"] for r in overall] == ["a", "c"] and overall[0].chosen[0]["content"] == "b"
    chats = make("ultrafeedback", gives="chats", score="honesty").records(ULTRA, "x")
    assert [(r.messages[1]["content"], r.meta["rank"], r.meta["score"]) for r in chats] == [("c", 1, 5), ("a", 2, 4), ("b", 3, 3)]
    for score, fault in (("truthfulness", "no rating of its truthfulness"), ("instruction_following", "instruction following")):
        with pytest.raises(ValueError, match=fault):
            make("ultrafeedback", score=score).records(ULTRA, "x")
    for row, fault in (({"instruction": "q", "completions": [1]}, "two answers"), ({**ULTRA, "instruction": ""}, "is empty")):
        with pytest.raises(ValueError, match=fault):
            layout.records(row, "x")
    with pytest.raises(ValueError, match="'overall_score' is no number"):
        make("ultrafeedback", score="overall").records(
            {**ULTRA, "completions": [answer("a", "1", "1", float("nan"), "x")] * 2}, "x"
        )


def test_binarized_ultrafeedback_is_a_preference() -> None:
    published = {"prompt": "q", "prompt_id": "p", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0}
    argilla = {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 4.5}
    for row in (published, argilla):
        layout, _ = detect([row], "f")
        assert layout == make("preference")
        record = layout.record(row, "x")
        assert (record.messages, record.chosen, record.rejected) == ([USER], [GOOD], [BAD])


# --- OpenAssistant ------------------------------------------------------------------------------------


def node(role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": f"id-{text}", "role": role, "text": text, "replies": list(replies), "lang": "en", **more}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": node(
        "prompter",
        "q",
        node("assistant", "b", rank=1),
        node("assistant", "gone", node("prompter", "no"), rank=2, deleted=True),
        node("assistant", "a", node("prompter", "q2", node("assistant", "c", rank=0), node("assistant", "d")), rank=0),
    ),
}
META = {"message_tree_id": "t", "tree_state": "ready_for_export", "lang": "en", "deleted": 1}


def texts(kind: str) -> list[str]:
    return [" ".join(m["content"] for m in r.messages) for r in make("oasst", gives=kind).records(TREE, "t")]


def test_trees_of_openassistant() -> None:
    layout, why = detect([TREE], "f")
    assert layout == make("oasst") and "`replies`" in why
    best = layout.records(TREE, "f:1")
    assert texts("best") == ["q a q2 c"] and best[0].id == "f:1" and best[0].meta == META
    assert [m["role"] for m in best[0].messages] == ["user", "assistant"] * 2
    assert texts("paths") == ["q a q2 c", "q a q2 d", "q b"]
    pairs = make("oasst", gives="pairs").records(TREE, "f:1")
    assert [(r.id, r.messages, r.chosen, r.rejected) for r in pairs] == [("f:1:id-q#2", [USER], [GOOD], [BAD])]
    assert pairs[0].meta == {**META, "rank_rejected": 2}
    unanswered = {"prompt": node("prompter", "q")}
    for row, gives, why in (
        ({"prompt": node("prompter", "q", deleted=True)}, "best", "first message of the tree is deleted"),
        (unanswered, "best", "no answer"),
        (unanswered, "paths", "no answer"),
        (unanswered, "pairs", "ranked answers"),
    ):
        with pytest.raises(LeftOut, match=why):
            make("oasst", gives=gives).records(row, "x")
    ends_with_request = {"prompt": node("prompter", "q", node("assistant", "a", node("prompter", "more")))}
    assert [m["content"] for m in layout.record(ends_with_request, "x").messages] == ["q", "a"]
    with pytest.raises(ValueError, match="unknown role 'narrator'"):
        layout.record({"prompt": node("narrator", "q", node("assistant", "a"))}, "x")


def test_single_messages_of_openassistant_are_named_and_refused() -> None:
    row = {"message_id": "m", "parent_id": None, "message_tree_id": "t", "text": "q", "role": "prompter"}
    layout, why = detect([row], "f")
    assert layout == make("oasst") and "one message of a tree" in why and "could also be `text`" in why
    with pytest.raises(ValueError, match="read the file of whole trees"):
        layout.records(row, "x")


# --- feedback -----------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "schema": "modelwright.feedback/1",
    "id": "chatcmpl-1",
    "time": "2026-01-02T03:04:05Z",
    "model": "tiny",
    "model_key": "0f",
    "request": {"messages": [USER], "temperature": 0.5},
    "answer": "b",
    "finish": "stop",
    "rating": "down",
}
KEPT = {"time": ROW["time"], "model": "tiny", "model_key": "0f", "finish": "stop", "answer_id": "chatcmpl-1"}


def test_feedback_becomes_judged_chats_pairs_and_good_ones() -> None:
    edited, up = {**ROW, "better": "a", "reasons": ["wrong"]}, {**ROW, "rating": "up"}
    layout, why = detect([ROW, edited, up], "f")
    assert layout == make("feedback") and "modelwright.feedback/1" in why
    assert [(r.messages, r.meta) for r in layout.records(ROW, "x")] == [([USER, BAD], {**KEPT, "label": False})]
    judged = layout.records(edited, "x")
    assert [(r.id, r.messages[1], r.meta["label"]) for r in judged] == [("x", BAD, False), ("x#edit", GOOD, True)]
    assert judged[0].meta["reasons"] == ["wrong"]
    (pair,) = make("feedback", gives="pairs").records(edited, "x")
    assert (pair.messages, pair.chosen, pair.rejected) == ([USER], [GOOD], [BAD]) and pair.meta["rating"] == "down"
    good = make("feedback", gives="good")
    assert [good.record(row, "x").messages[1] for row in (edited, up)] == [GOOD, BAD]
    for kind, row, why in (
        ("good", ROW, "rated down, without an edit"),
        ("pairs", up, "without an edit"),
        ("pairs", {**edited, "better": "b"}, "without an edit"),
        ("judged", {**ROW, "request": {"prompt": "once"}}, "not a chat"),
        ("judged", {**ROW, "answer": ""}, "empty answer"),
    ):
        with pytest.raises(LeftOut, match=why):
            make("feedback", gives=kind).records(row, "x")
    for bad, fault in (
        ({"rating": "meh"}, "not up or down"),
        ({"request": 3}, "'request' is missing"),
        ({"answer": 3}, "is int"),
    ):
        with pytest.raises(ValueError, match=fault):
            layout.records({**ROW, **bad}, "x")


# --- names of FLAN and OpenOrca -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages", "meta"),
    [
        ({"inputs": "q", "targets": "a", "task": "t"}, [USER, GOOD], {"task": "t"}),
        (
            {"definition": "Say a.", "inputs": "q", "targets": "a"},
            [{"role": "user", "content": "Say a.\n\nq"}, GOOD],
            {},
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "a", "id": "1"},
            [{"role": "system", "content": "s"}, USER, GOOD],
            {"id": "1"},
        ),
        ({"system_prompt": "", "question": "q", "response": "a"}, [USER, GOOD], {"system_prompt": ""}),
    ],
)
def test_names_of_flan_and_openorca(row: dict[str, Any], messages: list[Any], meta: dict[str, Any]) -> None:
    layout, _ = detect([row], "f")
    assert layout == make("prompt_completion")
    record = layout.record(row, "x")
    assert record.messages == messages and record.meta == meta


# --- ids of calls -------------------------------------------------------------------------------------


def calls(*names: str) -> dict[str, Any]:
    return {"from": "function_call", "value": json.dumps([{"name": name, "arguments": {}} for name in names])}


def seen(text: str) -> dict[str, str]:
    return {"from": "observation", "value": text}


def test_calls_and_results_get_ids_where_they_are_paired_without_doubt() -> None:
    asked = {"from": "human", "value": "q"}
    row = {"conversations": [asked, calls("f", "g"), seen("1"), seen("2"), calls("h"), seen("3"), {"from": "gpt", "value": "a"}]}
    layout = make("sharegpt")
    turns = layout.record(row, "x").messages
    assert [call["id"] for turn in turns for call in turn.get("tool_calls", [])] == ["call00001", "call00002", "call00003"]
    assert [turn["tool_call_id"] for turn in turns if turn["role"] == "tool"] == ["call00001", "call00002", "call00003"]
    text = render(TEMPLATES.build("mistral").jinja(), turns, eos="</s>")  # type: ignore[attr-defined]  # refuses calls without ids
    assert '"id": "call00003"}]</s>[TOOL_RESULTS] {"content": 3, "call_id": "call00003"}' in text
    again = layout.write(record := layout.record({**row, "system": "s"}, "x"))
    assert layout.record(again, "x") == record
    unclear = layout.record({"conversations": [asked, calls("f", "g"), seen("1"), {"from": "gpt", "value": "a"}]}, "x").messages
    assert not any("id" in call for call in unclear[1]["tool_calls"]) and "tool_call_id" not in unclear[2]
    with pytest.raises(UserError, match="length 9"):
        render(TEMPLATES.build("mistral").jinja(), unclear, eos="</s>")  # type: ignore[attr-defined]
    openai = [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "call_x", "function": {"name": "f"}}]}]
    kept = (
        make("messages").record({"messages": [*openai, {"role": "tool", "content": "1", "tool_call_id": "call_x"}]}, "x").messages
    )
    assert kept[1]["tool_calls"][0]["id"] == kept[2]["tool_call_id"] == "call_x"
