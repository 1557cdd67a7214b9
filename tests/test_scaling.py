"""Scaling: the best split against its closed form, fits against a known law, and no word beyond the ladder."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import yaml

from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.store import Store
from modelwright.core.units import count_of
from modelwright.plan import _scaling_fit, devices
from modelwright.plan._scaling_fit import BEYOND, DRAWS, Run, fit
from modelwright.plan._scaling_runs import judged, ladders, read_runs
from modelwright.plan.scaling import FIRST, KNOWN, LAWS, REFITTED, Law, best_split, given_size, worth_tokens

TRUE = Law(1.7, 400.0, 900.0, 0.35, 0.37, "made up")
SIZES, LENGTHS = (1e6, 3e6, 1e7, 3e7), (2e7, 8e7, 3e8)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are the subject of one test alone."""
    monkeypatch.setattr(_scaling_fit, "DRAWS", 20)


def ladder(noise: float = 0.0, seed: int = 1) -> list[Run]:
    draw = random.Random(seed)
    return [Run(f"{n:.0e}-{d:.0e}", n, d, TRUE.loss(n, d) * math.exp(draw.gauss(0, noise))) for n in SIZES for d in LENGTHS]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("flops", [1e15, 1e18, 5.76e23])
def test_the_best_split_is_that_of_equation_4(law: Law, flops: float) -> None:
    a, b = law.params_power, law.tokens_power
    g = (a * law.params_scale / (b * law.tokens_scale)) ** (1 / (a + b))
    found = best_split(law, flops)
    assert found.params == pytest.approx(g * (flops / 6) ** (b / (a + b)), rel=1e-5)
    assert 6 * found.params * found.tokens == pytest.approx(flops)


def test_chinchilla_is_near_what_the_refitted_law_asks_for() -> None:
    """The replication's own finding: about 20 tokens a weight at that budget."""
    assert 15 < best_split(REFITTED, 5.88e23).tokens_per_param < 25
    assert best_split(FIRST, 5.88e23).tokens_per_param > 40, "the first fit asks for smaller models than Chinchilla was"


def test_what_is_used_much_is_smaller_and_trained_longer() -> None:
    splits = [best_split(REFITTED, 1e19, tokens) for tokens in (0.0, 1e9, 1e10)]
    assert splits[0].params > splits[1].params > splits[2].params
    assert splits[0].tokens_per_param < splits[1].tokens_per_param < splits[2].tokens_per_param
    for split in splits:
        assert split.training_flops + split.inference_flops == pytest.approx(1e19)
        for factor in (0.9, 1.1):
            beside = given_size(REFITTED, 1e19, split.params * factor, split.inference_flops / 2 / split.params)
            assert beside.loss >= split.loss
    with pytest.raises(UserError, match="do not pay"):
        best_split(REFITTED, 1e12, 1e12)


def test_repeated_tokens_are_worth_less() -> None:
    assert worth_tokens(1e6, 5e5) == 5e5
    assert worth_tokens(1e6, 4e6) == pytest.approx(3.73e6, rel=0.01), "four epochs are nearly as good as fresh text"
    assert worth_tokens(1e6, 1e9) == pytest.approx((1 + 15.39) * 1e6)


def test_a_law_without_noise_is_found_again() -> None:
    fitted = fit(ladder())
    for name in Law._fields[:-1]:
        assert getattr(fitted.law, name) == pytest.approx(getattr(TRUE, name), rel=0.03)
    said = fitted.predict(1e8, 1e9)
    assert said.loss == pytest.approx(TRUE.loss(1e8, 1e9), rel=1e-3)


LAWS_OF_OTHERS = (
    TRUE,
    Law(2.5, 50.0, 200.0, 0.3, 0.3, "flat"),
    Law(1.0, 200.0, 500.0, 0.5, 0.25, "steep in weights"),
    Law(3.0, 5000.0, 3000.0, 0.7, 0.5, "steep in both"),
)
"""None has the powers that a fit begins with."""


@pytest.mark.parametrize(("weights", "tokens"), [(4, 2), (3, 4), (2, 3)])
def test_intervals_hold_what_comes(weights: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of larger runs to come, 95 %; an earlier fit held half of those behind four sizes and two lengths."""
    monkeypatch.setattr(_scaling_fit, "DRAWS", DRAWS)
    draw, inside = random.Random(0), []
    for seed in range(40):
        law = LAWS_OF_OTHERS[seed % 4]
        sizes = [(3e5 * 2**n, 2e5 * 3**d) for n in range(weights) for d in range(tokens)]
        fitted = fit([Run("", *size, law.loss(*size) * math.exp(draw.gauss(0, 0.01))) for size in sizes], seed)
        for factor in (2, 5):
            said = fitted.predict(factor * sizes[-1][0], factor * sizes[-1][1])
            measured = law.loss(said.params, said.tokens) * math.exp(draw.gauss(0, 0.01))
            inside.append(said.low <= measured <= said.high)
            assert said.low < said.loss < said.high
    assert sum(inside) / len(inside) >= 0.9


def test_few_runs_borrow_the_published_powers() -> None:
    runs = [run for run in ladder(0.01) if run.params in SIZES[::3] and run.tokens in LENGTHS[::2]]
    law = fit(runs).law
    assert law.params_power == pytest.approx(REFITTED.params_power, rel=0.5) and REFITTED.source in law.source


def test_losses_that_do_not_fall_give_no_split() -> None:
    law = fit([Run("", n, d, 2 + 5 * d**-0.3 + n / 1e8) for n in SIZES for d in LENGTHS]).law
    with pytest.raises(UserError, match="does not fall with a run's size"):
        best_split(law, 1e18)


def test_what_cannot_be_told_is_refused() -> None:
    runs = ladder()
    fitted = fit(runs)
    for params, tokens in ((BEYOND * 1.01 * max(SIZES), 1e8), (1e7, BEYOND * 1.01 * max(LENGTHS)), (min(SIZES) / 11, 1e8)):
        with pytest.raises(UserError, match="says nothing of"):
            fitted.predict(params, tokens)
    with pytest.raises(UserError, match="at least 4 runs"):
        fit(runs[:3])
    with pytest.raises(UserError, match="one size"):
        fit([run._replace(params=1e6 + index) for index, run in enumerate(runs)])
    with pytest.raises(UserError, match="one length"):
        fit([run._replace(tokens=1e6 + index) for index, run in enumerate(runs)])
    for bad in ((1e6, 1e6, math.nan), (math.inf, 1e6, 3.0), (1e6, math.inf, 3.0), (1e-300, 1e6, 3.0), (1e6, 1e6, 1e300)):
        with pytest.raises(UserError, match="run bad: weights, tokens and loss are numbers"):
            fit([*runs, Run("bad", *bad)])
    with pytest.raises(UserError, match="there are 2 among these 6"):
        fit([*runs[:1], *runs[-1:]] * 3)


def test_files_of_runs(tmp_path: Path) -> None:
    rows = tmp_path / "runs.csv"
    rows.write_text("name,params,tokens,loss\n" + "".join(f"{r.name},{r.params},{r.tokens},{r.loss}\n" for r in ladder()))
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(json.dumps(r._asdict()) + "\n" for r in ladder()))
    assert read_runs(rows) == read_runs(lines) == tuple(ladder())
    whole = tmp_path / "runs.json"
    whole.write_text(json.dumps([r._asdict() for r in ladder()], indent=1))
    assert read_runs(whole) == tuple(ladder())


def test_files_of_runs_as_spreadsheets_and_people_write_them(tmp_path: Path) -> None:
    rows, lines = tmp_path / "runs.csv", tmp_path / "runs.jsonl"
    rows.write_text("Params; tokens ;Loss\n1M;2.5B;3.2\n", encoding="utf-8-sig")
    assert read_runs(rows) == (Run("line 2", 1e6, 2.5e9, 3.2),)
    lines.write_text('{"name": "a\u2028b", "params": 1, "tokens": 2, "loss": 3}\n', encoding="utf-8-sig")
    assert read_runs(lines) == (Run("a\u2028b", 1.0, 2.0, 3.0),)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("r.csv", b"params,tokens,loss\n1e6,1e7,3.2\n1e6,many,3.1\n", "line 3.*tokens is 'many'"),
        ("r.csv", b"params,loss\n1e6,3.2\n", "line 2.*no tokens"),
        ("r.csv", b"params,tokens,loss\n1e6,3.2\n", "line 2.*2 cells"),
        ("r.csv", b"name,params,tokens,loss\n\xe9,1e6,1e7,3\n", "line 2.*not UTF-8"),
        ("r.csv", "params,tokens,loss\n1,1,1\n".encode("utf-16"), "line 1.*UTF-16"),
        ("r.csv", b"params,tokens,loss\n" + b"1" * 200_000 + b",1,1\n", "line 2.*params"),
        ("r.jsonl", b"[1]\n", "line 1.*a list"),
        ("r.jsonl", b'{"params": 1\n', "line 1.*bad JSON"),
        ("r.jsonl", b"[" * 100_000 + b"\n", "line 1.*nested too deeply"),
        ("r.jsonl", b'{"params": 1' + b"0" * 400 + b', "tokens": 1, "loss": 2}\n', "line 1.*params"),
        ("r.jsonl", b'{"params": 1' + b"0" * 5000 + b', "tokens": 1, "loss": 2}\n', "line 1.*bad JSON"),
        ("r.jsonl", b'{"params": true, "tokens": 1, "loss": 2}\n', "line 1.*params is True"),
        ("r.txt", b"1,2,3\n", "no reader for this kind of file"),
    ],
)
def test_faults_in_files_of_runs_are_told_with_their_line(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"(?s){words}") as told:
        read_runs(tmp_path / name)
    assert "Error" not in str(told.value).removeprefix("UserError") and len(str(told.value)) < 500


def finished(store: Path, run: Run, start: str | None = None) -> None:
    folder = store / "model" / f"{run.name.replace('+', '')}-{abs(hash(run)):012x}"
    folder.mkdir(parents=True)
    spec = {"start": start, "objective": {"kind": "next_token"}}
    manifest = {
        "schema": 1,
        "made_by": {"time": "2026-01-01"},
        "kind": "train",
        "key": f"{abs(hash(run)):064x}",
        "spec": spec,
        "identity": {"parents": {"vocab": "a" * 64, "data.0.ref": "b" * 64}},
        "stats": {"params": run.params, "tokens": run.tokens, "loss_last": 9.0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    event = {"event": "validation", "step": 3, "set": "held", "rows": 1, "loss": run.loss}
    first = {**event, "step": 1, "loss": run.loss + 1}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(event)}\n")


def test_predictions_are_held_against_the_next_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    for run in ladder(0.002):
        finished(store, run)
    finished(store, Run("tuned", 1e6, 1e6, 1.0), start="base")
    (found,) = ladders(Store(store))
    assert len(found.runs) == 12 and found.measured == "on held"
    asked = ["scale", "--fit", "--store", str(store), "--json"]
    assert main([*asked, "--params", "60M", "--tokens", "600M"]) == 0
    said = json.loads(capsys.readouterr().out)["prediction"]
    came = TRUE.loss(6e7, 6e8)
    finished(store, Run("next", 6e7, 6e8, came))
    page = tmp_path / "page.html"
    assert main([*asked, "--flops", "1e17", "--html", str(page)]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [(one["loss"], one["measured"]) for one in tree["judged"]] == [(pytest.approx(said["loss"]), pytest.approx(came))]
    assert tree["judged"][0]["inside"] == (said["low"] <= came <= said["high"])
    assert page.read_text().count("<svg") == 2 and "<script" not in page.read_text()
    kept = [json.loads(line) for line in (store / "predictions.jsonl").read_text().splitlines()]
    (again,) = ladders(Store(store))
    assert len(judged(kept, again)) == 1
    assert judged([{**kept[0], "runs": [run.name for run in again.runs]}], again) == [], "a run of the fit was not predicted"


@pytest.mark.parametrize("broken", ["{", "[1]", '{"ladder": "x"}'])
def test_predictions_that_were_written_over_are_told(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    for run in ladder(0.002):
        finished(store, run)
    asked = ["scale", "--fit", "--store", str(store)]
    assert main([*asked, "--params", "60M", "--tokens", "600M"]) == 0
    whole = (store / "predictions.jsonl").read_text()
    (store / "predictions.jsonl").write_text(f"{whole}{broken}\n{whole}")
    assert main(asked) == 2 and "predictions.jsonl line 2 is no prediction" in capsys.readouterr().err
    (store / "predictions.jsonl").write_text(whole + broken)
    assert main(asked) == 0, "a line that was never finished is as none"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["scale", "--flops", "1e19", "--inference-tokens", "1B", "--unique-tokens", "100M", "--known"]) == 0
    text = capsys.readouterr().out
    assert "worth fresh tokens" in text and all(run.name in text for run in KNOWN)
    assert "loss with these" in text
    assert main(["scale", "--time", "2h", "--device", "t4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["flops"] > 1e16
    for wrong in (
        "", "--flops 1e9 --hours 2", "--known --params 1M", "--flops 9 --device t4", "--flops 1e18 --devices 2",
        "--hours nan", "--hours inf --device t4", "--hours 1 --devices 2", "--flops 1e18 --unique-tokens 0", "--known --ladder 2",
        "--fit x.csv --ladder 1", "--fit --law chinchilla", "--usd 3 --hours 2", "--usd -1 --device t4",
        "--hours 2 --prices p.yaml", "--hours 2 --devices-file d.yaml",
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["scale", *wrong.split()])
    assert main(["scale", "--hours", "1", "--device", "t4", "--devices", "0"]) == 2
    assert main(["scale", "--flops", "1e18", "--html", str(tmp_path / "none" / "p.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["scale", "--flops", "1e18", "--unique-tokens", "10M", "--known", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["known"][0]["source"] and tree["known"][0]["best"]["params"] > 1e9, "numbers for programs"
    assert main(["scale", "--fit", "--store", str(tmp_path / "none")]) == 2
    assert "0 ladders" in capsys.readouterr().err


def test_money_and_hours_buy_the_operations_of_a_type_that_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "prices.yaml").write_text(
        "hours:\n  - {device: t4, provider: Me, usd_per_hour: 0.1, date: 2026-11-01, title: mine, url: 'https://example.org'}\n"
    )
    prices = ["--prices", str(tmp_path / "prices.yaml")]
    trees = []
    for words in (["--usd", "2", *prices], ["--hours", "20"]):
        assert main(["scale", "--device", "t4", *words, "--json"]) == 0
        trees.append(json.loads(capsys.readouterr().out)["budget"])
    assert trees[0]["flops"] == pytest.approx(trees[1]["flops"])
    assert "Me" in trees[0]["by"] and all("in fp16 (`precision: auto`)" in tree["by"] for tree in trees)
    assert main(["scale", "--usd", "2", "--device", "rtx-mine"]) == 2
    assert main(["scale", "--usd", "2"]) == 2, "this machine has no price"
    assert "nobody told what" in capsys.readouterr().err
    own = tmp_path / "devices.yaml"
    table = yaml.safe_load((Path(devices.__file__).parent / "devices.yaml").read_text())
    row = {**table["devices"]["t4"], "title": "Mine", "sources": {"all": "read off the box"}, "achieved_from": "measured"}
    own.write_text(yaml.safe_dump({"devices": {"rtx-mine": row}}))
    assert main(["scale", "--time", "2h", "--device", "rtx-mine", "--devices-file", str(own)]) == 0
    assert "of Mine at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30M", 3e7),
        ("1.5B", 1.5e9),
        ("2e9", 2e9),
        ("4096", 4096),
        ("2k", 2000),
        ("3 M", 3e6),
        ("2,000", 2000),
        ("1_000_000", 1e6),
        ("1,234.5k", 1234500),
    ],
)
def test_counts(text: str, value: float) -> None:
    assert count_of(text) == value


@pytest.mark.parametrize("text", ["", "M", "1,5B", "2,00", "1e999", "٣", "-3", "1e", "3G", "nan"])
def test_no_counts(text: str) -> None:
    with pytest.raises(ValueError, match="no count"):
        count_of(text)


@pytest.mark.parametrize(
    ("flops", "answers"), [(1e5, 0.0), (1e33, 0.0), (10.0, 0.0), (1e12, 4.99e8)], ids=["small", "large", "nothing", "answers"]
)
def test_a_best_size_at_the_end_of_what_is_looked_at_is_none(flops: float, answers: float) -> None:
    """Of 100,000 operations, 1,000 weights were called the best, and 250 stood beside them with a smaller loss."""
    with pytest.raises(UserError, match="no model between"):
        best_split(REFITTED, flops, answers)


def test_a_best_size_is_told_with_how_well_the_ladder_knows_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where weights and tokens grow together, their parts in the loss are hardly told apart."""
    spread = {}
    for name, sizes in (("crossed", [(n, d) for n in SIZES for d in LENGTHS]), ("along", [(n, 20 * n) for n in (*SIZES, 1e8)])):
        file = tmp_path / f"{name}.jsonl"
        draw = random.Random(4)
        runs = [Run("", n, d, TRUE.loss(n, d) * math.exp(draw.gauss(0, 0.003))) for n, d in sizes]
        file.write_text("".join(json.dumps(run._asdict()) + "\n" for run in runs))
        assert main(["scale", "--fit", str(file), "--flops", "1e16", "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        low, high = tree["budget"]["params_between"]
        assert low <= tree["budget"]["best"]["params"] <= high
        spread[name] = high / low
        for number in ("irreducible", "params_power", "tokens_power"):
            assert tree["fit"]["between"][number][0] <= tree["fit"]["law"][number] <= tree["fit"]["between"][number][1]
    assert spread["crossed"] < 3 and spread["along"] > 3 * spread["crossed"]
    assert main(["scale", "--fit", str(file), "--flops", "1e16"]) == 0
    assert "95 %" in capsys.readouterr().out.split("operations")[1]


def test_no_word_of_any_size_beyond_the_ladder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The best size lay within, and those four times as large were told all the same, as was the loss of GPT-3."""
    rows = tmp_path / "runs.csv"
    rows.write_text("params,tokens,loss\n" + "".join(f"{r.params},{r.tokens},{r.loss}\n" for r in ladder()))
    assert main(["scale", "--fit", str(rows), "--flops", "5e17"]) == 0
    out = capsys.readouterr().out
    assert "0.5 times the size" in out and "4 times the size" not in out
    with pytest.raises(SystemExit):
        main(["scale", "--fit", str(rows), "--known"])


@pytest.mark.parametrize(
    "losses",
    [(1e-8, 1e8, 1e-5, 1e5, 1e-7, 1e7), (3.0,) * 6, (3.0, 3.1, 3.2, 3.3, 3.4, 3.5), (6.0, 5.0, 4.9, 80.0, 4.5, 4.0)],
    ids=["wild", "equal", "rising", "one diverged"],
)
def test_any_losses_are_fitted_or_refused(losses: tuple[float, ...]) -> None:
    runs = [Run("", n, d, loss) for (n, d), loss in zip(((n, d) for n in SIZES[:3] for d in LENGTHS[:2]), losses, strict=True)]
    said = fit(runs).predict(3e7, 3e8)
    assert 0 <= said.low <= said.high < math.inf and math.isfinite(said.loss)


def test_a_budget_beyond_the_ladder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = tmp_path / "runs.csv"
    rows.write_text("name,params,tokens,loss\n" + "".join(f"{r.name},{r.params},{r.tokens},{r.loss}\n" for r in ladder()))
    assert main(["scale", "--fit", str(rows), "--flops", "1e17"]) == 0
    assert main(["scale", "--fit", str(rows), "--flops", "1e22"]) == 2
    assert "the ladder says nothing of" in capsys.readouterr().err
