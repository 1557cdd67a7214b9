"""Steps that even out, count, compare by meaning and make changed copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Input, Run
from modelwright.methods.steps import Cut, Made
from modelwright.text import Texts, vectors
from tests import engine_kit
from tests.test_data_steps import go, make, prose


def grouped(sizes: dict[str, int], words: int = 20) -> list[Record]:
    rows = []
    for name, count in sizes.items():
        meta = {"lang": name} if name else {}
        rows += [Record(f"{name}{n}", text=prose(n, words), meta=meta) for n in range(count)]
    return rows


def kept(step: Any, rows: list[Record], seed: int = 0) -> Counter[str]:
    return Counter(r.meta.get("lang", "") for r in go(step, rows, Run(Path(), {}, seed, Log(None)))[0])


# --- balance --------------------------------------------------------------------------------------------


def test_shares_by_temperature_are_those_of_xlm_r() -> None:
    """q = n ** (1 / t) over their sum: 8 times the rows are 2 times the share at 3."""
    left = kept(make("balance", count="rows"), grouped({"en": 800, "sw": 100}))
    assert left == {"en": 200, "sw": 100}
    assert kept(make("balance", count="rows", temperature=1), grouped({"en": 800, "sw": 100})) == {"en": 800, "sw": 100}


def test_wanted_shares_are_met_and_the_scarcest_group_keeps_all() -> None:
    rows = grouped({"en": 300, "de": 50, "fr": 90, "": 7})
    assert kept(make("balance", count="rows", shares={"en": 3, "de": 1}), rows) == {"en": 150, "de": 50}
    with pytest.raises(UserError, match="no row has 'sw'"):
        kept(make("balance", shares={"sw": 1}), rows)


def test_bytes_are_counted_and_no_order_matters() -> None:
    rows = grouped({"en": 300}, 40) + grouped({"de": 100}, 20)
    left = go(make("balance", temperature=100), rows)[0]
    total = Counter[str]()
    for record in left:
        total[record.meta["lang"]] += len(record.text)
    assert abs(total["en"] / total["de"] - 1) < 0.1
    assert {r.id for r in go(make("balance", temperature=100), rows[::-1])[0]} == {r.id for r in left}
    assert kept(make("balance"), []) == {}


# --- coverage -------------------------------------------------------------------------------------------


def test_coverage_counts_and_stops() -> None:
    events: list[Any] = []
    run = Run(Path(), {}, 0, Log(None, lambda name, fields: events.append((name, fields))))
    rows = [Record("a", text="abcd", meta={"url": "https://one.org/x"}), Record("b", text="äb", meta={"lang": "de"})]
    left, gone, _ = go(make("coverage", by=["lang", "site"]), rows, run)
    assert left == rows and not gone
    told = {fields["by"]: fields["groups"] for name, fields in events if name == "coverage"}
    assert [(g["value"], g["rows"], g["bytes"]) for g in told["lang"]] == [("", 1, 4), ("de", 1, 3)]
    assert [g["value"] for g in told["site"]] == ["one.org", ""]
    with pytest.raises(UserError, match=r"42\.86% of the text has lang=de"):
        go(make("coverage", least={"lang=de": 0.5}), rows)
    with pytest.raises(UserError, match=r"0\.00% of the text has lang=sw"):
        go(make("coverage", least={"lang=sw": 0.01}), rows)


def test_the_largest_groups_are_told_and_the_rest_are_counted() -> None:
    events: list[Any] = []
    run = Run(Path(), {}, 0, Log(None, lambda name, fields: events.append((name, fields))))
    go(make("coverage"), grouped({f"l{n}": 1 + (n == 9) for n in range(60)}), run)
    (found,) = (fields for name, fields in events if name == "coverage")
    assert found["groups"][0]["value"] == "l9" and len(found["groups"]) == 50
    assert found["rest"]["groups"] == 10 and found["rest"]["rows"] == 10


# --- semantic duplicates --------------------------------------------------------------------------------


def shuffled(text: str, seed: int) -> str:
    words = text.split()
    np.random.default_rng(seed).shuffle(words)
    return " ".join(words)


WIDE = [" ".join(f"w{word}" for word in np.random.default_rng(n).integers(0, 5000, 80)) for n in range(40)]


def test_the_same_words_in_another_order_are_a_duplicate() -> None:
    rows = [Record(f"d{n}", text=text) for n, text in enumerate([*WIDE, shuffled(WIDE[3], 0), ""])]
    left, gone, _ = go(make("semantic_dedup"), rows)
    assert [drop.record.id for drop in gone] == ["d40"] and gone[0].detail == "like d3, cosine 1.00"
    assert len(left) == 41, "a row without words is like no other"


def test_no_chain_is_followed() -> None:
    """b is like a, and c like b but not like a: c stays, for b is gone."""
    vector_DV = np.zeros((3, 256), np.float32)
    for row, angle in enumerate((0.0, 0.5, 1.0)):
        vector_DV[row, :2] = np.cos(angle), np.sin(angle)
    assert [(t.document, t.like) for t in vectors.alike(vector_DV, float(np.cos(0.6)))] == [(1, 0)]


def test_vectors_do_not_depend_on_company() -> None:
    together = vectors.of_words(Texts.of(WIDE))
    alone = np.concatenate([vectors.of_words(Texts.of([text])) for text in WIDE])
    assert (together == alone).all()
    assert np.allclose((together * together).sum(1), 1, atol=1e-6)


def test_groups_find_what_all_pairs_find(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(f"w{word}" for word in np.random.default_rng(n).integers(0, 900, 60)) for n in range(600)]
    texts += [shuffled(text, 1) for text in texts[:200]]
    vector_DV = vectors.apart(vectors.of_words(Texts.of(texts)))
    exact = vectors.alike(vector_DV, 0.9)
    assert {(t.document, t.like) for t in exact} >= {(600 + n, n) for n in range(200)}
    monkeypatch.setattr(vectors, "GROUP", 100)
    found = vectors.alike(vector_DV, 0.9)
    assert {t.document for t in exact} == {t.document for t in found}, "equal vectors have the same nearest centres"


def test_a_model_makes_the_vectors(tmp_path: Path) -> None:
    folder = engine_kit.folder(tmp_path / "model", num_hidden_layers=1, intermediate_size=16)
    run = Run(tmp_path, {"./model/": Input("./model/", "path", folder)}, 0, Log(None))
    rows = [Record("a", text="the river"), Record("b", text="the river"), Record("c", text="of")]
    step = make("semantic_dedup", model="./model/", threshold=0.999)
    found = step.numbers(rows, run)["vector"]
    assert (found[0] == found[1]).all() and np.allclose((found.astype(float) ** 2).sum(1), 1, atol=1e-2)
    _, gone, _ = go(step, rows, run)
    assert "b" in [drop.record.id for drop in gone]
    windowed = make("semantic_dedup", model="./model/", window=2).numbers(rows, run)["vector"]
    assert not (windowed[0] == found[0]).all()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    last = make("semantic_dedup", model="./model/").numbers(rows, run)["vector"]
    assert not (last[0] == found[0]).all()


# --- changed copies -------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "What is it that you do not see? I have to know."},
    {"role": "assistant", "content": "What is it that you do not see?"},
    {"role": "user", "content": "Can you tell me more about the mountain and the river?"},
]
ROWS = [Record("chat", messages=CHAT), Record("text", text="It is not what the captain carried across the river.")]
ROWS += [Record("code.py", text="def it_is(not_):\n    return not_\n")]
AUGMENT = {"noise": {"rate": 1.0}, "recase": {}, "paraphrase": {"rate": 1.0}, "reword": {}}


def results(kind: str, seed: int = 0, rows: list[Record] = ROWS, **fields: Any) -> list[Any]:
    step = make(kind, **{"share": 1.0, **AUGMENT[kind], **fields})
    return list(step.apply(iter(rows), Run(Path(), {}, seed, Log(None))))


@pytest.mark.parametrize("kind", AUGMENT)
def test_copies_change_questions_and_no_answers(kind: str) -> None:
    found = results(kind, copies=2)
    made = [result.record for result in found if isinstance(result, Made)]
    assert len(found) == len(ROWS) + len(made) and len({row.id for row in made}) == len(made)
    for copy in made:
        home = next(row for row in ROWS if row.id == copy.meta["document"])
        assert copy.meta["augmented"] == kind and copy.id.startswith(f"{home.id}~{kind}")
        assert (copy.text, copy.messages) != (home.text, home.messages)
        if home.messages:
            assert copy.messages[1] == CHAT[1]
    assert {row.meta["document"] for row in made} == ({"chat"} if kind == "reword" else {"chat", "text"}), "code stays"
    assert [r.meta.get("document") for r in found if isinstance(r, Record) and r.id == "chat"] == ["chat"]
    assert CHAT[0]["content"].startswith("What is it"), "rows that came in are as they were"


@pytest.mark.parametrize("kind", AUGMENT)
def test_replacing_is_counted_and_a_row_stays_one_row(kind: str) -> None:
    found = results(kind, how="replace")
    assert len(found) == len(ROWS)
    (chat,) = (result for result in found if isinstance(result, Cut) and result.record.id == "chat")
    assert chat.reason == f"{kind}: changed" and chat.record.messages != CHAT


@pytest.mark.parametrize("kind", AUGMENT)
def test_copies_depend_on_the_seed_and_the_row_alone(kind: str) -> None:
    rows = [Record(f"c{n}", messages=[{"role": "user", "content": prose(n, 30)}]) for n in range(30)]
    fields: dict[str, Any] = {"rate": 0.2} if kind == "noise" else {"to": ["lower", "upper"]} if kind == "recase" else {}
    texts = {r.record.id: r.record.messages for r in results(kind, rows=rows, share=0.5, **fields) if isinstance(r, Made)}
    again = {r.record.id: r.record.messages for r in results(kind, rows=rows[::-1], share=0.5, **fields) if isinstance(r, Made)}
    other = {r.record.id: r.record.messages for r in results(kind, 1, rows=rows, share=0.5, **fields) if isinstance(r, Made)}
    assert texts == again and (kind == "paraphrase" or (texts and texts != other))


def said(kind: str, text: str, **fields: Any) -> str:
    (_, made) = results(kind, rows=[Record("a", messages=[{"role": "user", "content": text}])], **fields)
    return str(made.record.messages[0]["content"])


def test_what_each_rule_does() -> None:
    assert said("recase", "Who Said SO?") == "who said so?"
    assert said("recase", "don't stop", to=["capitals"]) == "Don't Stop"
    assert said("paraphrase", "What is it? I don't know.") == "What's it? I do not know."
    assert said("paraphrase", "I'm here.") == "I am here."
    assert said("paraphrase", "das Haus", english=False, rules={"haus": "heim"}) == "das Heim"
    assert said("reword", "Why?", templates=["Q: {prompt}\nA:"]) == "Q: Why?\nA:"
    assert said("noise", "mountain", slips=["drop"]) in {"mountain"[:n] + "mountain"[n + 1 :] for n in range(8)}
    assert sorted(said("noise", "captain", slips=["swap"])) == sorted("captain")
    assert len(said("noise", "captain", slips=["repeat"])) == 8
    assert len(said("noise", "captain", slips=["neighbour"])) == 7
    with pytest.raises(ValueError, match="must hold"):
        make("reword", templates=["no hole"])
