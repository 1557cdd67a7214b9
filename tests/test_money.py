"""Money: rent, paid APIs, energy by hand; free sessions; budgets that refuse and propose; the plan as people see it."""

import json
import re
import subprocess
import sys
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

from modelwright.api import load
from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine, Quantity
from modelwright.core.passes import passed
from modelwright.core.recipe import Budget, loads
from modelwright.core.spec import fingerprint
from modelwright.core.steps import prepare
from modelwright.core.units import usd_text
from modelwright.plan import devices, money
from modelwright.plan._lint import Finding
from modelwright.plan._whole_text import energy_text, interval_text
from modelwright.plan.money import Cost

TABLE = money.prices()
RECIPE = """
name: small
{head}
stages:
  corpus: {{kind: curate, source: {{kind: text, path: ./texts/}}, steps: [exact_dedup]}}
  vocab: {{kind: tokenizer, data: corpus, method: {{kind: bpe, size: 512}}}}
  base:
    kind: train
    data: corpus
    vocab: vocab
    model: {{kind: llama, depth: 12, hidden: 768, heads: 12}}
    objective: next_token
    length: 512
    batch_tokens: 32768
    steps: {steps}
  chat: {{kind: train, start: base, data: ./chats.jsonl, objective: sft, steps: 40, length: 256, batch_tokens: 2048}}
  score: {{kind: evaluate, model: chat, data: ./chats.jsonl, tasks: [rouge]{engine}}}
"""
PAID = ", engine: {kind: openai, provider: openai, model: gpt-5-mini, prompt_usd: 100, answer_usd: 100}"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes the recipe and its files; returns a project."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some words about nothing.\n" * 4000)
    chat = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is nothing at all."}]}
    (tmp_path / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 100)

    def write(head="", steps=2000, engine=""):
        (tmp_path / "r.yaml").write_text(RECIPE.format(head=head, steps=steps, engine=engine))
        return load(tmp_path / "r.yaml", store=tmp_path / "store")

    return write


# --- prices -----------------------------------------------------------------------------------------------


def test_every_price_has_a_date_and_a_source_and_is_of_a_device_of_the_table():
    known = devices.names()
    rows = [*TABLE.hours, *TABLE.free, *TABLE.api, TABLE.electricity]
    assert len(rows) > 50
    for row in rows:
        assert date(2024, 1, 1) < row.date and row.title and row.url.startswith("https://")
    assert {row.device for row in (*TABLE.hours, *TABLE.free)} <= set(known)
    assert len({row.provider for row in TABLE.hours}) >= 5
    keys = [(row.device, row.provider, row.least) for row in TABLE.hours]
    assert len(keys) == len(set(keys)), "a row twice"


def test_every_provider_of_the_api_table_is_one_that_the_engine_knows():
    from modelwright.methods.engines._providers import PROVIDERS

    assert {row.provider for row in TABLE.api} <= set(PROVIDERS)


def test_the_cheapest_rent_counts_cards_that_are_not_used():
    one, eight = money.rent(TABLE, "a100-40", 1), money.rent(TABLE, "a100-40", 8)
    assert one is not None and one.usd_per_hour == 1.0 and "RunPod" in one.told and "2026" in one.told
    assert eight is not None and eight.usd_per_hour == 8.0
    dear = money.Prices(hours=[row for row in TABLE.hours if row.provider == "AWS"])
    bundled = money.rent(dear, "h100", 1)
    assert bundled is not None and bundled.usd_per_hour == pytest.approx(8 * 6.88) and "8 are rented at once" in bundled.told
    assert money.rent(dear, "h100", 9).usd_per_hour == pytest.approx(16 * 6.88), "whole machines of eight"
    assert money.rent(TABLE, "apple-m1", 1) is None


def test_prices_of_ones_own_replace_rows_and_faults_have_lines(tmp_path):
    file = tmp_path / "prices.yaml"
    row = '{device: t4, provider: Akash, usd_per_hour: 0.01, date: 2026-11-01, title: "the neighbour"}'
    file.write_text(f"electricity: {{usd_per_kwh: 0.4, date: 2026-11-01, title: my bill}}\nhours:\n  - {row}\n")
    found = money.prices(file)
    assert money.rent(found, "t4", 1).usd_per_hour == 0.01 and found.electricity.usd_per_kwh == 0.4
    assert len(found.hours) == len(TABLE.hours) and found.api == TABLE.api
    file.write_text(f"hours:\n  - {row}\n  - {row.replace('usd_per_hour: 0.01', 'usd_per_hour: cheap')}\n")
    with pytest.raises(UserError, match=r"prices.yaml:3 hours.1.usd_per_hour"):
        money.prices(file)
    file.write_text("hours: []\nprice: 3\n")
    with pytest.raises(UserError, match="unknown key 'price'"):
        money.prices(file)


# --- one stage --------------------------------------------------------------------------------------------


def test_rent_energy_and_electricity_by_hand():
    card = Machine("card", 4, 1e10, device="cuda", power_w=500.0)
    hired = money.Rent(2.0, "x", "$2 an hour at x")
    found = money.cost(7200.0, card, hired, TABLE, api_usd=0.5)
    assert found == Cost(7200.0, 4.0, 0.5, 0.0, 1.0) and found.usd == 4.5, "the rent holds the electricity"
    own = money.cost(7200.0, card, None, TABLE, api_usd=0.0)
    assert own.kwh == 1.0 and own.usd == own.power_usd == pytest.approx(TABLE.electricity.usd_per_kwh)
    mine = money.cost(7200.0, card, money.Rent(0.0, "mine", "mine"), TABLE, api_usd=0.0)
    assert mine.power_usd == own.power_usd, "a price of 0 is one's own"
    idle = money.cost(3600.0, card, hired, TABLE, 0.0, computes=False)
    assert idle.kwh == 0.0 and idle.rent_usd == 2.0, "the rent runs on"
    assert money.cost(3600.0, Machine("m", 1, 1e9), None, TABLE, 0.0).kwh is None
    both = money.total([found, own])
    assert both.seconds == 14400 and both.kwh == 2.0 and both.usd == found.usd + own.usd
    assert money.total([found, Cost(1.0)]).kwh is None, "what is not known stays so"


@pytest.mark.parametrize(
    ("fields", "usd", "unknown"),
    [
        ("provider: openai, model: gpt-5-mini", 0.25 + 0.2 * 2, ()),
        ("provider: openai, model: gpt-5-mini, prompt_usd: 3, answer_usd: 10", 5.0, ()),
        ("provider: openai, model: gpt-5-mini, prompt_usd: 3", 3.0, ()),
        ("provider: openai, model: gpt-99", 0.0, ("openai gpt-99",)),
        ("base_url: 'http://127.0.0.1:1/v1', model: mine", 0.0, ()),
    ],
)
def test_paid_engines_cost_what_the_recipe_or_the_table_says(made, fields, usd, unknown):
    stage = made(engine=f", engine: {{kind: openai, {fields}}}").recipe.stages["score"]
    assert money.paid(stage, (1e6, 2e5), TABLE) == money.Paid(pytest.approx(usd), unknown)


def test_what_a_stage_is_for(made):
    stages = made().recipe.stages
    found = {name: money.group(stage.model_dump()["kind"], stage) for name, stage in stages.items()}
    assert found == {"corpus": "data", "vocab": "data", "base": "pretraining", "chat": "fine-tuning", "score": "evaluation"}


def test_money_is_told_to_the_cent():
    assert [usd_text(value) for value in (0, 0.001, 0.006, 12.345)] == ["free", "<$0.01", "$0.01", "$12.35"]


# --- free tiers -------------------------------------------------------------------------------------------


def told(hours, count=1, device="t4"):
    return {one.provider: one for one in money.sessions(TABLE, device, count, [(n, h * 3600, r) for n, h, r in hours])}


def test_work_is_divided_over_free_sessions():
    found = told([("data", 1, False), ("train", 30, True)])
    assert "3 sessions of 12 h, with `runtime: {until: 11h45m}`" in found["Google Colab"].told
    assert "2 weeks of 30 h" in found["Kaggle"].told and all(one.fits for one in found.values())
    assert "one session of 12 h" in told([("train", 3, True)])["Google Colab"].told
    assert "within 30 h a week" in told([("train", 3, True)])["Kaggle"].told


def test_monthly_plans_are_not_for_nothing(made):
    row = "{device: t4, provider: Colab Pro, session_hours: 24, usd_per_month: 10, date: 2026-11-01, title: mine}"
    file = made("budget: {usd: 0.000001, hours: 5}").path.parent / "prices.yaml"
    file.write_text(f"free:\n  - {row}\n")
    both = money.sessions(money.prices(file), "t4", 1, [("train", 3600.0, True)])
    assert {one.provider: one.usd for one in both} == {"Google Colab": 0.0, "Kaggle": 0.0, "Colab Pro": 10.0}
    (long,) = [one for one in money.sessions(money.prices(file), "t4", 1, [("train", 3.6e6, True)]) if one.usd]
    assert long.usd == 20.0, "1,000 hours are six weeks"


@pytest.mark.parametrize(("words", "says"), [
    (["--device", "t4", "--devices", "0"], "0 devices"), (["--devices", "2"], "no --device"),
    (["--html", "none/p.html"], "cannot be written"),
    (["--devices-file", "none.yaml"], "no file none.yaml"), (["--prices", "none.yaml"], "no file none.yaml"),
])  # fmt: skip
def test_options_that_would_do_nothing_are_refused(made, capsys, words, says):
    assert main(["plan", str(made().path), *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--verify --device t4", "--exact --verify", "--exact --html p.html", "--verify --prices p"])
def test_ways_of_planning_do_not_mix(made, words):
    with pytest.raises(SystemExit):
        main(["plan", str(made().path), *words.split()])


def test_a_machine_made_in_python_is_one(made):
    with pytest.raises(UserError, match="3 of what"):
        made().plan(count=3)


def test_what_cannot_go_on_must_fit_a_session():
    found = told([("data", 13, False)])["Kaggle"]
    assert not found.fits and "data takes 13 h 00 min at a stretch" in found.told
    late = told([("train", 10, True), ("data", 5, False)])["Google Colab"]
    assert late.fits and "2 sessions" in late.told, "it waits for a fresh one"
    assert list(told([("train", 1, True)], count=2)) == ["Kaggle"], "of the two cards"
    assert told([("train", 1, True)], device="h100") == {}


def test_the_moment_of_the_free_session_is_one_that_a_recipe_takes():
    until = told([("train", 30, True)])["Kaggle"].told.partition("until: ")[2].partition("}")[0]
    loads(f"name: x\nruntime: {{until: {until}}}\nstages:\n  a: {{kind: curate, source: {{kind: text, path: ./a/}}}}\n")


# --- plans ------------------------------------------------------------------------------------------------


def test_a_plan_for_a_card_uses_its_rates_memory_and_price(made):
    project = made()
    here, card, two = project.plan(), project.plan("t4"), project.plan("t4", 2)
    base = {plan.device or "here": next(row for row in plan.rows if row.stage == "base") for plan in (here, card)}
    assert base["here"].estimate.device_memory is None and base["t4"].estimate.device_memory is not None
    assert base["t4"].estimate.seconds.value < base["here"].estimate.seconds.value / 5
    assert base["t4"].cost.rent_usd == pytest.approx(base["t4"].estimate.seconds.value / 3600 * 0.15)
    assert base["t4"].cost.kwh == pytest.approx(70 * base["t4"].estimate.seconds.value / 3.6e6)
    assert card.on.name == "NVIDIA T4" and "Akash" in card.rent and not here.rent
    assert two.parallel.data == 2 and two.seconds < card.seconds
    data = next(row for row in card.rows if row.stage == "corpus")
    assert data.cost.kwh == 0 and data.cost.rent_usd > 0 and data.estimate.device_memory is None
    names = {"stage", "kind", "state", "time", "memory", "disk", "cost"}
    assert set(here.table()[0]) == names and set(card.table()[0]) == names | {"card", "at most", "energy"}
    assert {row["for"] for row in card.split()} == {"data", "pretraining", "fine-tuning", "evaluation"}
    assert sum(one.seconds for one in card.groups.values()) == pytest.approx(card.seconds)
    assert str(project.plan(Machine("mine", 64, 1e12))).startswith("stage")


def test_cards_wait_for_their_host_and_tell_each_other_gradients(made):
    """Short rows of a small model are mostly kernels that are launched; long rows of a large batch hide that."""
    found = next(row.estimate for row in made().plan("a100-80", 4).rows if row.stage == "base")
    base = {span.name: span.seconds for span in found.spans}
    assert base["steps exchange"] == pytest.approx(2000 * 2 * 3 / 4 * found.facts[""].bytes / 300e9)
    assert base["steps calls"] == 0 == base["steps moves"]
    shape, card = found.facts[""].shape, devices.named("a100-80")
    assert passed(shape, card, 1e6, 20.0, 1024.0).called_s > 0 == passed(shape, card, 1e6, 512.0, 32768.0).called_s


def test_flash_attention_is_one_call_for_all_documents(made):
    """Short rows were as slow on an H100 as on a T4, for calls that are not made."""
    shape = next(row.estimate for row in made().plan("t4").rows if row.stage == "base").facts[""].shape
    new, old = devices.named("a100-80"), devices.named("t4")
    few, many = (passed(shape, new, 1e6, row, 32768.0, precision="bf16").called_s for row in (512.0, 20.0))
    assert few == many == 0 < passed(shape, new, 1e6, 20.0, 32768.0, precision="fp32").called_s
    assert passed(shape, old, 1e6, 20.0, 32768.0, precision="fp16").called_s > 0


def test_what_processes_wait_and_tell_each_other_is_in_the_time(made):
    """A pipeline was planned as if nobody waited: at eight processes and eight micro-batches a step half of the time."""
    alone = made().plan("a100-80").rows[2].estimate
    shape, tokens = alone.facts[""].shape, alone.facts[""].tokens

    def spans(axis, *more):
        where = (f"runtime.parallel={{{axis}: 2}}", "stages.base.micro_tokens=4096", *more)
        found = load("r.yaml", *where).plan("a100-80", 2).rows[2].estimate
        return {span.name: span.seconds for span in found.spans}

    base, beside = spans("data"), {axis: spans(axis) for axis in ("shard", "context", "tensor", "pipeline")}
    assert not {"steps waits", "steps travels"} & set(base)
    line = beside["pipeline"]
    steps_s = line["steps products"] + line["steps moves"] + line["steps calls"]
    assert line["steps waits"] == pytest.approx(steps_s / 8), "one of eight micro-batches a step"
    row = 4 * shape.hidden
    assert beside["tensor"]["steps travels"] == pytest.approx(tokens * 12 * 4 * row / 300e9)
    assert beside["context"]["steps travels"] == pytest.approx(tokens * 12 * 3 * row / 300e9), "as many keys as queries"
    assert "steps exchange" in beside["context"] and "steps exchange" not in beside["tensor"]
    model = "{kind: moe, depth: 12, hidden: 768, heads: 12}"
    mixed = spans("expert", f"stages.base.model={model}")
    assert mixed["steps travels"] == pytest.approx(tokens / 2 * 12 * 2 * 2 * 0.5 * row * 2 / 300e9)


def test_processes_do_not_share_a_card(made):
    """Eight processes on one card were planned as if each had one, at an eighth of the memory and the price."""
    made()
    eight = "runtime.parallel={data: 8}"
    with pytest.raises(UserError, match="needs 8 cards") as found:
        load("r.yaml", eight).plan("t4", 4)
    assert found.value.fix.startswith("--devices 8")
    whole, part = (load("r.yaml", f"runtime.parallel={{data: {count}}}").plan("t4", 8).notes for count in (8, 2))
    assert "6 of 8 cards" in " ".join(part) and "of 8 cards" not in " ".join(whole)
    assert load("r.yaml", eight, "stages.base.device=cpu", "stages.chat.device=cpu").plan("t4").parallel.data == 8
    assert load("r.yaml", "runtime={parallel: {data: 8}, launch: slurm}").plan("t4").parallel.data == 8


def test_the_cpu_is_planned_for_where_the_recipe_says_so(made):
    project = made()
    project.loaded.recipe.stages["base"] = project.recipe.stages["base"].model_copy(update={"device": "cpu"})
    row = next(row for row in project.plan("h100").rows if row.stage == "base")
    fast = next(row for row in made().plan("h100").rows if row.stage == "base")
    assert row.estimate.device_memory is None and row.estimate.seconds.value > 5 * fast.estimate.seconds.value


def test_this_machine_may_be_rented_and_own_files_are_told(made, tmp_path, capsys):
    project = made()
    prices = tmp_path / "settings" / "modelwright" / "prices.yaml"
    prices.parent.mkdir(parents=True)
    prices.write_text('hours:\n  - {device: this, provider: me, usd_per_hour: 36, date: 2026-11-01, title: "a cloud"}\n')
    plan = project.plan()
    assert plan.total.rent_usd == pytest.approx(plan.seconds * 0.01) and "a cloud" in plan.rent
    (tmp_path / "own.yaml").write_text(
        "devices:\n  t4:\n    {title: Mine, device: cuda, memory_gb: 16, bandwidth_gb_per_s: 300, tflops: {fp16: 60, fp32: 8}, "
        "host: {cores: 2, memory_gb: 12, of: mine}, achieved_frac: 0.4, achieved_from: me, sources: {all: me}, note: a note}\n"
    )
    assert main(["plan", "r.yaml", "--device", "t4", "--devices-file", "own.yaml"]) == 0
    out = capsys.readouterr().out
    assert "note: a note" in out and "row of own.yaml" in out and f"with prices of {prices}" in out


def test_a_card_that_is_too_small_is_told(made):
    project = made()
    tiny = devices.named("t4")._replace(device_memory_bytes=5e8)
    told = project.plan(tiny).misfits()
    assert any(line.startswith("base does not fit") and "500 MB" in line for line in told)
    assert project.plan("h100").misfits() == []


def test_intervals_stand_beside_the_card():
    assert interval_text(Quantity(2e9, "bytes", "", 1.8e9, 2.5e9)) == "2 GB (1.8 GB to 2.5 GB)"
    assert interval_text(Quantity(2e9, "bytes", "")) == "2 GB" and interval_text(None) == ""
    assert [energy_text(kwh) for kwh in (None, 0.0, 0.0004, 2.0)] == ["", "0", "0.4 Wh", "2 kWh"], "little is not nothing"


def test_names_of_devices_are_not_guessed(made):
    with pytest.raises(UserError, match="no device 't5'"):
        made().plan("t5")
    assert main(["plan", "r.yaml", "--devices", "2"]) == 2


# --- budgets ----------------------------------------------------------------------------------------------


def test_a_budget_is_no_part_of_a_key(made):
    assert [s.key for s in made().steps()] == [s.key for s in made("budget: {usd: 1, hours: 2}").steps()]
    assert fingerprint(made("budget: {usd: 1}").steps()[0].identity)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "limits something"),
        ("{usd: 0}", "greater than 0"),
        ("{euro: 3}", "unknown key 'euro'"),
        ("{hours: soon}", "number"),
    ],
)
def test_budgets_that_say_nothing_are_refused(made, text, says):
    with pytest.raises(UserError, match=says):
        made(f"budget: {text}")


def test_limits_by_hand():
    found = Cost(7200.0, 3.0, 1.0, 0.0, 0.5)
    assert money.overs(Budget(usd=4, hours=2, kwh=0.5), found) == [], "as much as it may"
    broken = money.overs(Budget(usd=2, hours=1, kwh=0.1), found)
    assert [(one.what, one.takes, one.limit) for one in broken] == [("usd", 4.0, 2.0), ("hours", 2.0, 1.0), ("kwh", 0.5, 0.1)]
    assert str(broken[0]) == "$4.00 of at most $2.00, 2 times as much"
    assert money.overs(None, found) == []
    (power,) = money.overs(Budget(kwh=1), Cost(1.0))
    assert power.takes is None and "--power-w" in str(power)
    (price,) = money.overs(Budget(usd=100), found, ["openai gpt-99"])
    assert "gpt-99" in str(price) and "prompt_usd" in str(price)


def test_plans_that_break_their_budget_are_refused_with_what_would_do(made):
    plan = made("budget: {usd: 0.05, hours: 2}", steps=20000).plan("t4")
    with pytest.raises(UserError, match="breaks its budget") as caught:
        plan.refuse()
    error = caught.value
    assert "2.00" not in error.what and "of at most 2 h" in error.what and error.why.startswith("most takes: base")
    assert "stages.base.steps=" in error.fix
    text = next(line for line in plan.proposals if line.startswith("stages.base.steps="))
    fewer = int(text.partition("=")[2].split()[0])
    again = made("budget: {usd: 0.05, hours: 2}", steps=fewer).plan("t4")
    assert not again.over
    assert again.seconds > 3600 or again.total.usd > 0.025, "and not many fewer than it holds"
    made("budget: {usd: 50, hours: 100}").plan("t4").refuse()


def test_cheaper_devices_are_proposed_and_keep_the_budget(made):
    plan = made("budget: {hours: 1, usd: 3}", steps=4000).plan("t4")
    names = [line.split()[1].rstrip(":") for line in plan.proposals if line.startswith("--device")]
    assert plan.over and names and "t4" not in names
    for name in names:
        assert not made("budget: {hours: 1, usd: 3}", steps=4000).plan(name).over
    costs = [made(steps=4000).plan(name).total.usd for name in names]
    assert all(a <= b for a, b in pairwise(costs)), "the cheapest first"


def test_adapters_are_proposed_where_they_are_faster(made):
    project = made("budget: {hours: 0.001}")
    text = (project.path.parent / "r.yaml").read_text()
    (project.path.parent / "r.yaml").write_text(text.replace("steps: 2000", "steps: 1").replace("steps: 40,", "steps: 4000,"))
    plan = load(project.path, store=project.store.root).plan("t4")
    assert any(line.startswith("stages.chat.adapter=lora: ") for line in plan.proposals)


@pytest.mark.parametrize(
    ("device", "budget"), [("h100", "{usd: 3}"), ("t4", "{hours: 2}"), ("t4", "{hours: 0.25}"), (None, "{hours: 3}")]
)
def test_faster_products_are_proposed_alone_with_a_device_and_with_fewer_steps(made, device, budget):
    project = made(f"budget: {budget}", steps=20000)
    plan = project.plan(device)
    found = [line for line in plan.proposals if ".precision=" in line]
    assert plan.over and found
    for line in found:
        typed = [word.rstrip(":") for word in line.split() if "=" in word]
        on = re.search(r"--device ([\w-]+)|run on ([\w-]+)", line)
        again = load(project.path, *typed, store=project.store.root).plan(next(filter(None, on.groups())) if on else device)
        assert typed and (on or again.seconds < plan.seconds), line
        assert "run on" in line or not again.over, line
    assert device is None or any("--device" not in line and "run on" not in line for line in found), "and here, too"


def test_products_that_are_fast_already_are_not_proposed(made):
    project = made("budget: {hours: 0.001}", steps=20000)
    fast = ["stages.base.precision=bf16", "stages.chat.precision=bf16"]
    plan = load(project.path, *fast, store=project.store.root).plan("h100")
    assert plan.over and not any("precision" in line for line in plan.proposals)


def test_paid_apis_count_for_the_budget(made):
    free, paid = made("budget: {usd: 0.0001}"), made("budget: {usd: 0.0001}", engine=PAID)
    assert not free.plan().over and [one.what for one in paid.plan().over] == ["usd"]
    row = next(row for row in paid.plan().rows if row.stage == "score")
    read, written = row.estimate.asked_tokens
    assert read > 0 < written and row.cost.api_usd == pytest.approx((read + written) * 1e-4)
    assert free.plan().total.usd == 0


def test_proposals_are_not_refused_in_their_turn(made):
    """A card that is lent costs nothing there, and its price elsewhere is another's."""
    head = "budget: {usd: 0.001, hours: 50}"
    found = made(head, steps=4000).plan("t4").proposals
    assert any(line.startswith("run on t4 at ") and line.endswith(", free") for line in found)
    for name in [line.split()[1].rstrip(":") for line in found if line.startswith("--device")]:
        assert not made(head, steps=4000).plan(name).over


def test_what_a_budget_leaves_out_is_told(made):
    assert any("no electricity" in note for note in made("budget: {usd: 5}").plan().notes)
    assert not any("no electricity" in note for note in made("budget: {usd: 5}").plan("t4").notes)
    with pytest.raises(UserError) as caught:
        made("budget: {kwh: 1}").plan().refuse()
    assert caught.value.fix is not None and "cheap enough" not in caught.value.fix


def test_a_public_model_is_planned_at_its_size_before_it_is_fetched(made):
    """135M weights were assumed of every model on the Hub: 10 GB in place of 80, and a budget kept that was not."""
    text = (made().path.parent / "r.yaml").read_text()
    tune = (
        "tune: {{kind: train, start: 'hf:{}@{}', data: corpus, objective: next_token, steps: 10, length: 64, batch_tokens: 64}}"
    )
    for hub, sized in (("Qwen/Qwen3-4B", True), ("nobody/knows-it", False)):
        file = made().path.parent / "hub.yaml"
        file.write_text(f"{text.rstrip()}\n  {tune.format(hub, 'a' * 40)}\n")
        plan = load(file, store=made().store.root).plan("t4")
        row = next(row for row in plan.rows if row.stage == "tune")
        assert (row.estimate.device_memory.value > 4 * 4 * 4e9) is sized
        assert any(f"the sizes of hf:{hub}" in note for note in plan.notes) is not sized
        assert bool(plan.short) is sized


def test_a_budget_is_held_against_a_branch_that_only_a_run_resolves(made, monkeypatch):
    text = (made().path.parent / "r.yaml").read_text()
    tune = "tune: {kind: train, start: hf:Qwen/Qwen3-4B, data: corpus, objective: next_token, steps: 9, length: 64}"
    file = made().path.parent / "hub.yaml"
    file.write_text(f"budget: {{hours: 0.01}}\n{text.strip()}\n  {tune}\n")
    monkeypatch.setattr(
        "modelwright.core.steps.hub_commit", lambda address, accepts, network, where: "a" * 40 if network else 1 / 0
    )
    with pytest.raises(UserError, match="breaks its budget") as caught:
        load(file, store="store").iterate()
    assert caught.value.why is not None and "tune " in caught.value.why


def test_a_run_with_a_budget_asks_once_what_there_is(made, monkeypatch):
    """Twice asked, the Hub may answer of two commits: one is planned, the other run."""
    asked = []
    for asks in ("modelwright.api", "modelwright.core.execute"):
        monkeypatch.setattr(f"{asks}.prepare", lambda *given, **how: asked.append(how) or prepare(*given, **how))
    project = made("budget: {hours: 100}")
    next(project.iterate())
    assert asked == [{"network": True}]


def test_run_refuses_before_it_starts(made, capsys):
    project = made("budget: {hours: 0.0001}")
    with pytest.raises(UserError, match="breaks its budget"):
        project.iterate()
    assert main(["run", "r.yaml", "--store", "store"]) == 2
    assert "breaks its budget" in capsys.readouterr().err and not (project.store.root / "records").exists()


# --- as people see it -------------------------------------------------------------------------------------


def test_the_command_prints_costs_and_refuses_with_exit_2(made, capsys):
    made("budget: {usd: 0.01, hours: 1}", steps=20000)
    assert main(["plan", "r.yaml", "--device", "a100-80", "--devices", "2", "--html", "p.html"]) == 2
    shown = capsys.readouterr()
    assert "2 x NVIDIA A100 SXM 80 GB" in shown.out and "kWh" in shown.out and "rent: $2.78 an hour at RunPod" in shown.out
    assert "pretraining" in shown.out and "page: p.html" in shown.out and "breaks its budget" in shown.err
    assert main(["plan", "r.yaml", "--device", "t4", "--json"]) == 2
    tree = json.loads(capsys.readouterr().out)
    assert tree["device"] == "t4" and tree["over_budget"] and tree["proposals"] and tree["on"]["power_w"] == 70
    assert tree["total"]["usd"] == pytest.approx(sum(stage["usd"] for stage in tree["stages"]))
    base = next(stage for stage in tree["stages"] if stage["stage"] == "base")
    assert base["device_memory"]["unit"] == "bytes" and base["device_parts"] and base["spans"] and base["cost"]["kwh"] > 0
    assert tree["free"][0]["provider"] == "Google Colab"


def test_why_shows_parts_and_the_rule_of_thumb(made, capsys):
    made()
    assert main(["plan", "r.yaml", "--why", "--device", "t4"]) == 0
    out = capsys.readouterr().out
    assert "█" in out and "rule of thumb" in out and "optimizer" in out and "less than this account" in out
    assert "data sheet" in out, "where the rates come from"
    assert re.search("at most .* of memory and .* of each card", out)


def test_json_and_page_show_the_rule_of_thumb_too(made, capsys):
    made()
    assert main(["plan", "r.yaml", "--device", "t4", "--json", "--html", "p.html"]) == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    rule, parts = stages["base"]["rule_of_thumb"], stages["base"]["device_parts"]
    weights = next(part["bytes"] for part in parts if part["name"] == "weights")
    assert rule["bytes"] == pytest.approx(1.2 * weights) and rule["wrong"] and stages["vocab"]["rule_of_thumb"] is None
    assert rule["error_frac"] == pytest.approx(rule["bytes"] / sum(part["bytes"] for part in parts) - 1)
    assert Path("p.html").read_text().count("rule of thumb") == 2, "of both trainings"


def test_what_an_earlier_stage_imports_is_told_so(made, monkeypatch):
    """`time` named 4.5 seconds of imports in a stage of two."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    base, chat = (row.estimate.seconds for row in made().plan("t4").rows[2:4])
    assert "without imports" in chat.why and "without imports" not in base.why


def test_a_broken_limit_below_a_cent_is_told_in_digits(made):
    """It said $0.00 of at most $0.00."""
    with pytest.raises(UserError) as found:
        made("budget: {usd: 0.0001}").plan("t4").refuse()
    assert "of at most $0.0001," in found.value.what


def test_the_page_is_escaped_and_has_no_scripts(made, tmp_path):
    from modelwright.cli._plan_page import write

    project = made("budget: {hours: 0.1}", steps=20000)
    pitfall = Finding("too-many-epochs", "warning", "base", "r.yaml:3", "rows of <i>x</i>", "because", "fewer", "a paper")
    plan = project.plan("t4")._replace(machine="<script>alert(1)</script>", pitfalls=(pitfall,))
    write(plan, tmp_path / "p.html", "<b>recipe</b>")
    text = (tmp_path / "p.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "<b>recipe" not in text
    assert "default-src 'none'" in text and "style=" not in text and text.count("<svg role") == 3
    assert "times as much" in text and "stages.base.steps=" in text
    assert all(part in text for part in ("too-many-epochs", "r.yaml:3", "rows of &lt;i&gt;x", "because", "fewer", "a paper"))


def test_planning_for_another_device_loads_no_torch(made):
    made()
    code = (
        "import sys; from modelwright.cli.main import main; main(['plan', 'r.yaml', '--device', 'h100', '--html', 'p.html']); "
        "bad = {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
