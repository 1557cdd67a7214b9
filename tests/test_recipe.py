"""Recipes: every fault is found, at its place, with its mend; references, overrides and the consumption ledger."""

import pytest

from modelwright.core.errors import UserError, UserErrors
from modelwright.core.recipe import load, loads

GOOD = """
name: demo
stages:
  corpus: {kind: words, count: 4}
  pairs: {kind: words, split: true}
  base: {kind: learn, data: corpus}
  chat:
    kind: learn
    start: base
    data:
      - {ref: "pairs:train", weight: 2}
      - {ref: corpus, weight: 1}
"""

pytestmark = pytest.mark.usefixtures("fakes")


def message(text, *overrides):
    with pytest.raises(UserError) as caught:
        loads(text, overrides)
    return str(caught.value)


def test_a_fault_of_several_fields_does_not_print_them_all():
    assert "(got" not in message(GOOD.replace(", weight: 1}", "}"))
    assert "(got 'many')" in message(GOOD.replace("count: 4", "count: many"))


def test_good_recipe_loads():
    recipe = loads(GOOD).recipe
    assert list(recipe.stages) == ["corpus", "pairs", "base", "chat"]
    assert [mix.ref for mix in recipe.stages["chat"].data] == ["pairs:train", "corpus"]
    assert recipe.stages["corpus"].count == 4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("kind: words, count: 4", "kind: wrods", ["recipe:4 stages.corpus.kind", "no kind 'wrods'", "did you mean 'words'?"]),
        ("count: 4", "cuont: 4", ["recipe:4 stages.corpus.cuont", "unknown key 'cuont'", "did you mean 'count'?"]),
        ("count: 4", "count: many", ["recipe:4 stages.corpus.count", "valid integer", "'many'"]),
        ("weight: 2", "wieght: 2", ["recipe:11 stages.chat.data.0.wieght", "unknown key", "did you mean 'weight'?"]),
        (", weight: 1}", "}", ["recipe:10 stages.chat.data", "give every source a `weight`", "corpus has none"]),
        ("weight: 2", "weight: .inf", ["recipe:11 stages.chat.data.0.weight", "finite number"]),
        ("weight: 2", "weight: .nan", ["recipe:11 stages.chat.data.0.weight", "finite number"]),
        ("weight: 2", "weight: -1", ["recipe:11 stages.chat.data.0.weight", "greater than 0"]),
        ("{kind: learn, data: corpus}", "{kind: learn}", ["recipe:6 stages.base.data", "needs 'data'", "Rows to learn from"]),
        ("{kind: learn, data: corpus}", "{data: corpus}", ["recipe:6 stages.base", "needs `kind:`", "learn, words"]),
        ("start: base", "start: bsae", ["recipe:9 stages.chat.start", "no earlier stage 'bsae'", "did you mean 'base'?"]),
        ("start: base", "start: corpus", ["recipe:9 stages.chat.start", "'corpus' makes records, but a model is needed here"]),
        ("data: corpus}", "data: chat}", ["recipe:6 stages.base.data.0.ref", "'base' and 'chat' refer to each other"]),
        ("base: {kind: learn, data: corpus}", "base: {kind: learn, data: base}", ["refers to itself"]),
        ("data: corpus}", "data: pairs}", ["recipe:6", "'pairs' has several parts", "pairs:train, pairs:test"]),
        ("pairs:train", "pairs:validation", ["recipe:11", "no part 'validation'", "pairs:train"]),
        ("data: corpus}", "data: 'corpus:train'}", ["recipe:6", "no part 'train'"]),
        ("name: demo", "name: Demo Model", ["recipe:2 name", "pattern"]),
        ("name: demo", "nam: demo", ["recipe:2 nam", "unknown key 'nam'", "did you mean 'name'?"]),
        ("name: demo", "name: demo\nname: again", ["recipe:3", "'name' is written twice"]),
        ("split: true}", "split: true", ["not valid YAML"]),
        ("corpus: {kind", "Corpus!: {kind", ["cannot name a stage"]),
        ("stages:", "stage:", ["needs stages"]),
        (
            "count: 4",
            "count: 0, sleep_s: 1",
            ["recipe:4 stages.corpus.sleep_s", "'sleep_s' would be ignored", "nothing to wait for"],
        ),
    ],
)
def test_faults_have_place_cause_and_mend(old, new, expected):
    assert old in GOOD
    text = message(GOOD.replace(old, new, 1))
    for piece in expected:
        assert piece in text, text


def test_a_later_stage_is_named_as_such():
    text = message("name: a\nstages:\n  one: {kind: learn, data: two}\n  two: {kind: words}\n")
    assert "'two' is a later stage" in text and "move 'two' above 'one'" in text


def test_all_faults_at_once():
    text = GOOD.replace("count: 4", "cuont: 4").replace("start: base", "start: nowhere\n    rate: fast")
    with pytest.raises(UserErrors) as caught:
        loads(text)
    assert len(caught.value.errors) == 3


@pytest.mark.parametrize("key", ["parallel: {data: 2}", "launch: local", "workers: 2", "memory: 4GB"])
def test_what_a_faulty_stage_would_use_is_not_called_ignored(key):
    good = f"name: a\nruntime: {{{key}}}\nstages:\n  one: {{kind: words, count: 4}}\n"
    assert "would be ignored" in message(good)
    text = message(good.replace("kind: words, count: 4", "kind: no_such"))
    assert "no kind 'no_such'" in text and "would be ignored" not in text


def test_overrides_change_the_tree():
    recipe = loads(GOOD, ["stages.base.rate=1e-3", "seed=7", "stages.chat.data.0.weight=3"]).recipe
    assert recipe.stages["base"].rate == 1e-3
    assert recipe.seed == 7
    assert recipe.stages["chat"].data[0].weight == 3


def test_override_faults():
    assert "did you mean 'base'?" in message(GOOD, "stages.bas.rate=1")
    assert "is not an override" in message(GOOD, "--rate")
    assert "unknown key 'rat'" in message(GOOD, "stages.base.rat=1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no file"),
        (b"", "a recipe is a mapping"),
        (b"\xff\xfe", "not UTF-8"),
        (b"- 1\n- 2\n", "a recipe is a mapping"),
        (b"x" * 2_000_000, "too many for a recipe"),
        (b"a: !!python/object:os.system {}\n", "recipe"),
        (b"a: &a [*a]\n", ""),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, expected):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert expected in str(caught.value)


def test_a_folder_and_a_near_name(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"did you mean .*quickstart\.yaml"):
        load(tmp_path / "quikstart.yaml")


def test_when_to_end():
    assert loads(GOOD).recipe.runtime.until is None
    assert loads(GOOD, ["runtime.until=50m"]).recipe.runtime.until == "50m"
    assert "a clock time" in message(GOOD, "runtime.until=soon")
    assert "unknown key 'untill'" in message(GOOD, "runtime.untill=50m")
