"""The advisor: situations with the field's accepted answers, every branch, real recipes, own runs."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from modelwright.cli import _advise_print as told
from modelwright.core.estimate import Machine
from modelwright.core.recipe import load
from modelwright.core.spec import Kinds
from modelwright.plan import _advise_recipe as recipes
from modelwright.plan._advise_facts import FAMILIES, data, method
from modelwright.plan._advise_fit import choose, precision
from modelwright.plan._advise_measured import Gain, update
from modelwright.plan._advise_trees import ORDER, trees
from modelwright.plan.advise import Advised, Known, Situation, advise
from modelwright.plan.models import of_params
from tests.advise_kit import FILES, T4, named, rows_in, written

TABLE = yaml.safe_load((Path(__file__).parent / "situations.yaml").read_text(encoding="utf-8"))
SITUATIONS = TABLE["situations"]


def advised(row) -> Advised:
    machine = named(row.get("device", "t4"), row.get("devices", 1))
    given = dict(row["given"])
    if "params" in row:
        given["shape"] = of_params(row["params"]).shape
    return advise(Known(Situation(**given), {name: ("flag", "") for name in given}), machine)


@pytest.fixture(scope="module")
def answers():
    return [advised(row) for row in SITUATIONS]


# --- the table of situations --------------------------------------------------------------------------


def test_accepted_answers(answers):
    """All right: the methods in their order, and what is said of weights, shape and deployment."""
    assert len(SITUATIONS) >= 60
    wrong = []
    for row, found in zip(SITUATIONS, answers, strict=True):
        for tree, wanted in row["answer"].items():
            walk = found.walked({"methods": "method"}.get(tree, tree))
            if walk is None or list(walk.end.methods) != wanted:
                wrong.append(f"{row['what']}: {tree} {wanted}, got {walk and walk.end.methods}")
        if "leaf" in row and row["leaf"] not in {walk.leaf for walk in found.walks}:
            wrong.append(f"{row['what']}: {row['leaf']}, got {[walk.leaf for walk in found.walks]}")
    assert not wrong, "\n".join(wrong)


def test_situations_cite_their_source():
    assert len({row["what"] for row in SITUATIONS}) == len(SITUATIONS)
    for row in SITUATIONS:
        source = TABLE["sources"][row["source"]]
        assert source["title"] and re.fullmatch(r"https://\S+", source["url"])
    assert {row["source"] for row in SITUATIONS} == set(TABLE["sources"])


def test_every_branch_is_reached(answers):
    taken = {(step.tree, step.name, step.branch) for found in answers for walk in found.walks for step in walk.steps}
    every = {
        (name, question, branch)
        for name, tree in trees().items()
        for question, q in tree.questions.items()
        for branch in q.branches
    }
    assert every - taken == set()
    assert {(walk.tree, walk.leaf) for found in answers for walk in found.walks} == {
        (name, leaf) for name, tree in trees().items() for leaf in tree.leaves
    }


def test_every_leaf_has_an_alternative_and_every_answer_its_origin(answers):
    for found in answers:
        for walk in found.walks:
            assert walk.alternatives, walk.leaf
            assert all(other.when and other.methods != walk.end.methods for other in walk.alternatives)
            assert len({other.methods for other in walk.alternatives}) == len(walk.alternatives)
            assert all(step.how and step.fact and step.answer for step in walk.steps)


# --- trees and facts ------------------------------------------------------------------------------------


def test_trees_hold_together():
    for name in ORDER:
        tree = trees()[name]
        reached = {tree.root} | {to.to for question in tree.questions.values() for to in question.branches.values()}
        assert reached == set(tree.questions) | set(tree.leaves), name
        for question in tree.questions.values():
            assert len(question.branches) >= 2 and question.source in data().sources
            assert "{" not in question.why
    assert {question.source for tree in trees().values() for question in tree.questions.values()} <= set(data().sources)


def test_every_method_named_is_known():
    """A kind, or a row of methods.yaml; and what has a kind has no row."""
    kinds = {kind for table in FAMILIES.values() for kind in table.names()}
    rows = set(data().methods)
    for tree in trees().values():
        for leaf in tree.leaves.values():
            assert set(leaf.methods) <= kinds | rows, leaf
    assert not every_kind() & rows, "a kind's file has the facts now: take the row out of methods.yaml"


def every_kind() -> set[str]:
    import importlib
    import pkgutil

    from modelwright import methods

    found = set()
    for module in pkgutil.iter_modules(methods.__path__):
        family = importlib.import_module(f"modelwright.methods.{module.name}")
        found |= {kind for table in vars(family).values() if isinstance(table, Kinds) for kind in table.names()}
    return found


def test_facts_of_methods_are_told_with_their_source():
    named_in_trees = {name for tree in trees().values() for leaf in tree.leaves.values() for name in leaf.methods}
    for name in named_in_trees | set(data().methods):
        found = method(name)
        advice = found.advice
        assert advice.use_when and advice.source, name
        assert advice.needs or advice.deployment, name
        if found.state == "kind":
            assert (Path(__file__).parents[1] / "src" / "modelwright" / found.file).is_file()
        else:
            assert re.search(r"https://", advice.source), name
    assert method("sft").advice.cost == method("sft").advice.memory == 1.0, "the unit"


def test_pinned_starts_have_sizes():
    from modelwright.plan.models import named as sizes

    for start in data().starts:
        assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}", start.start)
        assert sizes(start.like).params > 1e8


# --- choosing a start --------------------------------------------------------------------------------


def test_a_larger_card_gets_a_larger_start():
    s = Situation(rows=2000)
    params = [choose(s, named(device), "sft").room.params for device in ("t4", "rtx-4090", "a100-80")]
    assert params == sorted(params) and params[0] < params[-1]


def test_the_budget_limits_the_start():
    s = Situation(rows=2e6)
    free = choose(s._replace(hours=2000), named("a100-80"), "sft")
    tight = choose(s._replace(hours=5), named("a100-80"), "sft")
    assert tight.room.params < free.room.params and "5 hours" in tight.why


def test_what_is_only_made_smaller_is_chosen_by_where_it_is_opened_and_held():
    """The start of an export was the largest that SFT would train in a day."""
    slow = Machine("a laptop", 2, 25e9)
    found = advise(Known(Situation(goal="smaller", target="phone")), slow)
    assert found.chosen.room.name == "Qwen3-0.6B" and found.chosen.trains == "" and found.chosen.seconds == 0
    assert "phone" in found.chosen.why and "train" not in found.chosen.why
    assert not any("make it once" in text for text in found.remarks)
    assert "pass" not in told.start(found, slow) and "Qwen3-0.6B" in found.recipe
    larger = advise(Known(Situation(goal="smaller", target="laptop")), slow)
    assert larger.chosen.room.params > 3e9 and "opening it takes 32.8 GB of 25 GB" in larger.chosen.why
    own = advise(Known(Situation(goal="smaller", target="laptop", shape=of_params("1B").shape, start="mine")), slow)
    assert "the one that you named" in told.start(own, slow) and "pass" not in told.start(own, slow)
    least = advise(Known(Situation(goal="smaller", target="phone", target_bytes=1e8)), slow)
    assert "even there" in least.chosen.why


def test_a_slow_laptop_gets_fewer_bits_or_a_smaller_model():
    shape = of_params("8B").shape
    slow = advise(Known(Situation(goal="smaller", target="laptop", shape=shape, latency_ms=20)), named("a100-80"))
    assert slow.walked("deploy").leaf == "distil"


# --- recipes -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return rows_in(tmp_path)


WRITABLE = {
    "prompt": {"goal": "behaviour", "prompting": "enough"},
    "continued": {"goal": "domain", "text_tokens": 2e8},
    "text_sft": {"goal": "domain", "text_tokens": 2e8, "rows": 500},
    "text_sft_dpo": {"goal": "domain", "text_tokens": 2e8, "rows": 500, "pairs": 900},
    "pretrain": {"goal": "model", "base": False, "text_tokens": 5e8},
    "scratch_sft": {"goal": "model", "base": False, "text_tokens": 5e8, "rows": 500},
    "classify": {"goal": "labels", "labelled": 500},
    "regress": {"goal": "labels", "labelled": 500, "label_kind": "numbers"},
    "classify_tokens": {"goal": "labels", "labelled": 500, "label_kind": "words"},
    "contrastive": {"goal": "search", "near": 5000},
    "sft": {"goal": "behaviour", "rows": 500},
    "sft_many": {"goal": "behaviour", "rows": 5e5},
    "dpo": {"goal": "preference", "pairs": 900},
    "sft_dpo": {"goal": "preference", "rows": 500, "pairs": 900},
    "sft_grpo": {"goal": "reasoning", "rows": 500, "verifiable": 1.0, "traces": 1.0},
    "cold_grpo": {"goal": "reasoning", "verifiable": 1.0, "passes": 0.0, "prompting": "short"},
    "sft_kto": {"goal": "preference", "rows": 500, "ratings": 900},
    "sft_ppo": {"goal": "preference", "rows": 500, "pairs": 20000, "quality_first": True},
    "prompt_labels": {"goal": "labels", "labelled": 20},
    "prompt_documents": {"goal": "facts", "fresh": True, "reading_tokens": 1e4},
    "prompt_collect": {"goal": "behaviour", "rows": 20, "prompting": "short"},
    "smaller": {"goal": "smaller", "target": "laptop"},
}
"""Leaf -> a situation that leads to it, for every leaf whose first method is here."""


def test_every_leaf_that_can_be_written_is():
    leaves = trees()["method"].leaves
    first = {name for name, leaf in leaves.items() if leaf.methods and method(leaf.methods[0]).here}
    assert first | {"smaller"} == set(WRITABLE)


@pytest.mark.parametrize(("leaf", "place"), product(WRITABLE, (("t4", "laptop"), ("a100-80", "gpu"))))
def test_recipes_load_plan_and_pass_the_lint(folder, leaf, place):
    import modelwright as mw
    from modelwright.core.predict import predict
    from modelwright.plan.lint import lint

    device, target = place
    fields = WRITABLE[leaf] | {"target": target}
    files = FILES._replace(labelled=("./spans.jsonl",)) if leaf == "classify_tokens" else FILES
    found, path = written(folder, leaf.replace("_", "-"), Situation(**fields), named(device), files)
    assert found.walks[0].leaf == leaf
    loaded = load(path)
    project = mw.load(path, store=folder / "store")
    plan = project.plan()
    assert len(plan.rows) == len(loaded.recipe.stages)
    steps = project.steps()
    machine = named(device)
    faults = lint(loaded, steps, predict(steps, machine, 0), machine)
    assert not [fault for fault in faults if fault.severity == "warning"], faults
    assert "accept" not in {fault.rule for fault in faults}
    assert "# " in found.recipe and found.title in found.recipe


def test_a_recipe_runs_at_tiny_size(folder):
    """SFT then DPO, on a model of two layers in the place of the start."""
    import modelwright as mw
    from tests.train_kit import tokenizer

    tiny(folder / "start", tokenizer)
    situation = Situation(goal="preference", rows=500, pairs=900, start="./start/", shape=of_params("135M").shape)
    machine = named("cpu-avx2")
    found, path = written(folder, "tiny", situation, machine)
    assert "evaluate" in found.recipe and precision(machine) == "fp32"
    small = [
        f"stages.{stage}.{field}"
        for stage in ("answers", "preferences")
        for field in ("steps=2", "threads=1", "batch_tokens=256")
    ]
    small += [f"stages.{stage}.epochs=null" for stage in ("answers", "preferences")]
    small += ["stages.answers.template=chatml", "stages.answers.adapter.rank=2", "stages.preferences.adapter.rank=2"]
    scores = ("before", "after", "after_preferences")
    small += [f"stages.{stage}.tasks=[{{kind: perplexity, rows: 4}}]" for stage in scores]
    outcomes = list(mw.load(path, *small, store=folder / "store").iterate(gates=False))
    assert {outcome.state for outcome in outcomes} == {"made"}
    assert {"answers", "after", "preferences", "after_preferences"} <= {outcome.name for outcome in outcomes}


def tiny(folder, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=300, bos_token_id=None, eos_token_id=0, **sizes)).save_pretrained(folder)


def test_no_recipe_without_data_a_pin_or_what_is_missing():
    machine = named("t4")
    assert "name the files" in advise(Known(Situation(rows=500)), machine).no_recipe
    assert (
        "not here yet" in advise(Known(Situation(goal="facts", fresh=True, reading_tokens=1e7)), machine, files=FILES).no_recipe
    )
    unpinned = Situation(rows=500, start="hf:org/name", shape=of_params("135M").shape)
    assert "not pinned" in advise(Known(unpinned), machine, files=FILES).no_recipe
    large = Situation(rows=500, start="hf:org/name@" + "0" * 40, shape=of_params("7B").shape)
    assert "QLoRA" in advise(Known(large), machine, files=FILES).no_recipe
    assert advise(Known(Situation(goal="model", base=False, text_tokens=1e4)), machine, files=FILES).no_recipe


def test_names_from_data_cannot_write_into_the_recipe():
    bad = "x\u2028stages: {}\n- y\x85z: 1"
    known = Known(Situation(goal="behaviour", rows=500), {"rows": ("data", bad)})
    text = advise(known, T4, files=FILES).recipe
    assert list(yaml.safe_load(text)) == ["name", "seed", "stages"]
    assert not [line for line in text.splitlines() if line.startswith(("stages: {", "- y"))]
    assert "rename it" in advise(known, T4, files=FILES._replace(rows=(f"./{bad}.jsonl",))).no_recipe


def test_rates_are_the_published_ones():
    shape = of_params("1.7B").shape
    assert recipes.rate(shape, "sft", False) == pytest.approx(5e-5)
    assert recipes.rate(shape, "sft", True) == pytest.approx(10 * recipes.rate(shape, "sft", False), rel=0.2)
    assert recipes.rate(shape, "dpo", False) < recipes.rate(shape, "sft", False) / 10


def test_a_model_from_scratch_grows_with_text_and_budget():
    small, large = recipes.scratch("llama", 5e7, 1e20), recipes.scratch("llama", 5e9, 1e23)
    assert small.shape.params < large.shape.params
    assert 20 * large.shape.params <= 4 * 5e9
    assert recipes.scratch("llama", 5e9, 1e17).shape.params < large.shape.params


# --- own runs ----------------------------------------------------------------------------------------


def gain(way, difference, stage="s", measure="exact_match exact match"):
    return Gain("sft", way, measure, difference, difference - 0.02, difference + 0.02, 400, stage)


def test_published_prior_stands_while_runs_are_few():
    none = update([])
    assert none.runs == 0 and none.prior == pytest.approx(-0.006) and none.full_gain is None
    few = update([gain("full", 0.5), gain("lora", 0.1)])
    assert few.value == none.value and "too few" in few.said
    assert (
        update([gain("full", 0.5, measure="a"), gain("full", 0.5, measure="a"), gain("lora", 0.1), gain("lora", 0.1)]).runs == 0
    )


def test_own_runs_move_the_prior_and_change_the_answer():
    runs = tuple(gain(way, value) for way, value in (("full", 0.30), ("full", 0.31), ("lora", 0.10), ("lora", 0.11)))
    found = update(runs)
    assert found.runs == 4 and found.prior < found.value < 0.2 and found.full_gain and found.full_gain > 0
    known = Known(Situation(goal="behaviour", rows=5000, prompting="short", shape=of_params("1.7B").shape))
    machine = named("a100-80")
    before, after = advise(known, machine), advise(known, machine, runs)
    assert before.walked("weights").leaf == "lora" and after.walked("weights").leaf == "full"
    step = next(step for step in after.walked("weights").steps if step.name == "measured")
    assert step.how == "runs"
    assert any("+0.3 (+0.28 to +0.32, 400 rows)" in remark for remark in after.remarks)
    alike = tuple(gain(way, value) for way, value in (("full", 0.1), ("full", 0.11), ("lora", 0.1), ("lora", 0.11)))
    assert update(alike).full_gain == 0.0 and advise(known, machine, alike).walked("weights").leaf == "lora"


def test_gains_are_read_from_the_store(tmp_path):
    from modelwright.core.store import Store
    from modelwright.plan._advise_measured import gains

    def artifact(kind, stage, key, **manifest):
        home = tmp_path / "x" / f"{stage}-{key[:12]}"
        home.mkdir(parents=True)
        tree = {"schema": 1, "kind": kind, "stage": stage, "key": key, "type": "x", "made_by": {"time": "1"}, **manifest}
        (home / "manifest.json").write_text(json.dumps(tree))

    spec = {"objective": {"kind": "sft"}, "adapter": {"kind": "lora"}}
    artifact("train", "tuned", "a" * 64, spec=spec, parents={}, stats={})
    row = {"task": "exact_match", "name": "exact match", "group": "", "difference": 0.1, "low": 0.05, "high": 0.15, "n": 200}
    stats = {"comparisons": [row, row | {"group": "from=prompt"}]}
    parents = {"tuned": {"stage": "tuned", "type": "model", "key": "a" * 64}}
    artifact("evaluate", "after", "b" * 64, spec={"model": "tuned"}, parents=parents, stats=stats)
    assert gains(Store(tmp_path)) == [Gain("sft", "lora", "exact_match exact match", 0.1, 0.05, 0.15, 200, "after")]
