"""The live page: what it says of stages that run, ended or are to come, and who may ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from modelwright.cli import watch as command
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.serve.watch import PAGE, Wanted, Watch, create_app

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
KEY = "0123456789ab" + "0" * 52


def training(folder: Path, steps: int, of: int, **more: Any) -> Path:
    """A stage that told so many steps."""
    folder.mkdir(parents=True)
    (folder / "part.json").write_text(json.dumps({"key": KEY, "stage": "base", "identity": {"kind": "train"}}))
    log = Log(folder / "metrics.jsonl")
    log.event("check", check="rows kept", ok=True, detail="all of them")
    log.event("rates", flops_per_token=1e6, matrix_flops_per_s=1e9, products="float32")
    for step in range(1, steps + 1):
        log.event(
            "step", step=step, steps=of, loss=5 / step, lr=0.01, grad_norm=1.0, tokens=100 * step, seconds=0.5 * step, **more
        )
        log.event(
            "load", cpu_frac=0.9, memory_bytes=10**9, gpus=[{"index": 0, "use_frac": 0.5, "power_w": 90.0, "energy_j": 7.2}]
        )
    if steps:
        log.event("validation", step=steps, loss=1.5)
    log.note(f"something {HOSTILE}")
    log.close()
    return folder


def made(folder: Path, **stats: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "key": KEY, "kind": "train", "stats": stats}))


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / "metrics.jsonl", (then, then))


def panel(stage: dict[str, Any], title: str) -> dict[str, Any]:
    return next(p for p in stage["panels"] if p["title"] == title)


# --- what it says -------------------------------------------------------------------------------------------


def test_a_training_that_runs(tmp_path: Path) -> None:
    training(tmp_path / "model" / f"base-{KEY[:12]}.part", 4, 16, margin=0.25)
    state = Watch(tmp_path, "store").state()
    stage = state["stage"]
    assert [(s["name"], s["kind"], s["state"]) for s in state["stages"]] == [("base", "train", "running")]
    now = stage["now"]
    assert (now["step"], now["steps"], now["loss"], now["validation"]) == (4, 16, 1.25, 1.5)
    assert (
        now["left_s"] == pytest.approx(6.0) and now["tokens_per_s"] == pytest.approx(200.0) and now["mfu"] == pytest.approx(0.2)
    )
    assert now["memory_bytes"] == 1e9 and now["gpus"][0]["power_w"] == 90.0
    assert panel(stage, "Loss")["points"] == [(1, 5.0), (2, 2.5), (3, 1.6667), (4, 1.25)] and panel(stage, "Loss")["marks"] == [
        (4, 1.5)
    ]
    titles = [p["title"] for p in stage["panels"]]
    assert {"Margin", "Learning rate", "Gradient norm", "Tokens per second", "MFU", "Processor", "Memory", "GPU 0 power"} <= set(
        titles
    )
    assert "overflow" not in now and "bad_step" not in now
    assert stage["notes"][0]["text"] == f"something {HOSTILE}" and stage["notes"][1]["text"] == "sound: rows kept: all of them"


def test_steps_whose_gradient_was_not_used_are_counted(tmp_path: Path) -> None:
    """Once each, though a resumed run makes some again; a bad step is said in words too, an overflow is not worth it."""
    from modelwright.report.page import _some

    folder = tmp_path / "model" / f"base-{KEY[:12]}.part"
    training(folder, 4, 16)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for event in (
            {"event": "overflow", "step": 2, "factor": 8.0},
            {"event": "bad_step", "step": 3, "what": "the loss became nan", "rows": ["row 1"], "module": "lm_head"},
            {"event": "overflow", "step": 4, "factor": 4.0},
            {"event": "resumed", "step": 3},
            {"event": "overflow", "step": 4, "factor": 4.0},
        ):
            file.write(json.dumps(event) + "\n")
    stage = Watch(tmp_path, "store").state()["stage"]
    assert stage["now"]["overflow"] == 2 and stage["now"]["bad_step"] == 1
    said = [note["text"] for note in stage["notes"]]
    assert any("the loss became nan" in text for text in said) and not any("overflow" in text for text in said)
    assert _some({"steps_overflowed": 2}, "steps_overflowed") == "2" and _some({"steps_overflowed": 0}, "steps_overflowed") == ""


def test_it_follows_what_is_written_and_the_new_name_of_the_folder(tmp_path: Path) -> None:
    part = training(tmp_path / "model" / f"base-{KEY[:12]}.part", 2, 3)
    watch = Watch(tmp_path, "store")
    assert watch.state()["stage"]["now"]["step"] == 2
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 3, "steps": 3, "loss": 0.5}\n{"event": "st')
    assert watch.state()["stage"]["now"]["loss"] == 0.5 and watch.state()["stage"]["unreadable"] == 0
    with (part / "metrics.jsonl").open("a") as file:
        file.write('ep", "step": 4}\nnot json\n[1]\n')
    made(part, samples=[{"prompt": "p", "answer": HOSTILE}])
    part.rename(part.with_suffix(""))
    stage = watch.state()["stage"]
    assert stage["state"] == "made" and stage["now"]["step"] == 4 and stage["unreadable"] == 2
    assert stage["samples"] == [{"prompt": "p", "answer": HOSTILE}]


def test_samples_of_a_training_that_runs(tmp_path: Path) -> None:
    part = training(tmp_path / "model" / f"base-{KEY[:12]}.part", 2, 3)
    watch = Watch(tmp_path, "store")
    for answer in ("early", "later"):
        with (part / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"event": "samples", "step": 2, "samples": [{"prompt": "p", "answer": answer}, "torn"]}) + "\n")
    assert watch.state()["stage"]["samples"] == [{"prompt": "p", "answer": "later"}]


def test_a_stage_that_began_anew_is_read_anew(tmp_path: Path) -> None:
    part = training(tmp_path / "model" / f"base-{KEY[:12]}.part", 9, 9)
    watch = Watch(tmp_path, "store")
    assert watch.state()["stage"]["now"]["step"] == 9
    (part / "metrics.jsonl").unlink()
    (part / "metrics.jsonl").write_text('{"event": "step", "step": 1, "steps": 9, "loss": 3.0}\n')
    stage = watch.state()["stage"]
    assert stage["now"]["step"] == 1 and panel(stage, "Loss")["points"] == [(1, 3.0)]


def test_quiet_stages_and_which_is_shown(tmp_path: Path) -> None:
    quiet = training(tmp_path / "model" / "old-aaaaaaaaaaaa.part", 1, 9)
    aged(quiet, 300)
    done = training(tmp_path / "model" / "base-bbbbbbbbbbbb", 2, 2)
    made(done)
    aged(done, 200)
    other = training(tmp_path / "records" / "rows-cccccccccccc", 0, 0)
    (other / "manifest.json").write_text(json.dumps({"schema": 1, "key": KEY, "kind": "curate", "stats": {}}))
    aged(other, 100)
    watch = Watch(tmp_path, "store")
    state = watch.state()
    assert [(s["name"], s["state"]) for s in state["stages"]] == [("old", "quiet"), ("base", "made"), ("rows", "made")]
    assert state["stage"]["name"] == "base", "the newest training, where nothing runs"
    assert 299 < state["stages"][0]["age_s"] < 320
    assert watch.state("model/aaaaaaaaaaaa")["stage"]["name"] == "old"
    assert watch.state("../../etc/passwd")["stage"]["name"] == "base", "an id that is not in the list is nothing"
    os.utime(quiet / "metrics.jsonl")
    assert watch.state()["stage"]["name"] == "old", "what runs comes first"


def test_a_recipe_shows_what_is_to_come(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "mine", [Wanted("base", "train", "model", KEY), Wanted("score", "evaluate", "evaluation", "f" * 64)])
    state = watch.state()
    assert state["stage"] is None and [s["state"] for s in state["stages"]] == ["to do", "to do"]
    training(tmp_path / "model" / f"renamed-{KEY[:12]}.part", 1, 2)
    training(tmp_path / "model" / "other-eeeeeeeeeeee.part", 1, 2)
    state = watch.state()
    assert [s["name"] for s in state["stages"]] == ["base", "score"] and state["stage"]["now"]["step"] == 1
    assert json.loads(json.dumps(watch.state("evaluation/ffffffffffff"), allow_nan=False))["stage"]["panels"] == []


def test_numbers_that_json_does_not_know_are_left_out(tmp_path: Path) -> None:
    part = tmp_path / "model" / "base-aaaaaaaaaaaa.part"
    part.mkdir(parents=True)
    (part / "metrics.jsonl").write_text(
        '{"event": "step", "step": 1, "steps": 2, "loss": NaN, "lr": Infinity}\n{"event": "load"}\n'
    )
    state = Watch(tmp_path, "store").state()
    assert "loss" not in json.loads(json.dumps(state, allow_nan=False))["stage"]["now"]


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    training(tmp_path / "model" / "base-aaaaaaaaaaaa.part", 3000, 3000)
    state = Watch(tmp_path, "store").state()
    assert all(len(p["points"]) <= 240 for p in state["stage"]["panels"])
    assert len(json.dumps(state)) < 100_000


# --- who may ask ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    training(tmp_path / "model" / f"base-{KEY[:12]}.part", 2, 4)
    return TestClient(create_app(Watch(tmp_path, HOSTILE)), base_url="http://127.0.0.1:8123")


def test_the_page_is_whole_and_strict(client: TestClient) -> None:
    for path, (_, kind) in PAGE.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        for word in ("http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval("):
            rest = answer.text.replace("http://www.w3.org/2000/svg", "")
            assert word not in rest, f"{path} holds {word}"
    html = client.get("/").text
    assert "<script>" not in html and "style=" not in html and "onclick" not in html


def test_the_data_is_json_of_our_own_origin_only(client: TestClient) -> None:
    answer = client.get("/state.json", params={"stage": f"model/{KEY[:12]}"})
    assert answer.headers["content-type"] == "application/json" and answer.json()["title"] == HOSTILE
    assert answer.headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in answer.headers
    assert client.get("/state.json", headers={"host": "evil.test"}).status_code == 421
    assert client.get("/state.json", headers={"origin": "http://evil.test"}).status_code == 403
    assert client.get("/metrics.jsonl").status_code == 404 and client.post("/state.json", json={}).status_code == 405


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_serves_a_free_port_until_ctrl_c(tmp_path: Path) -> None:
    training(tmp_path / "store" / "model" / f"base-{KEY[:12]}.part", 2, 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    child = subprocess.Popen(
        [sys.executable, "-m", "modelwright.cli.main", "watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert child.stdout is not None and child.stderr is not None
        line = child.stdout.readline()
        assert line.startswith("watching store at http://127.0.0.1:"), line + child.stderr.read()
        url = line.split()[3]
        assert httpx.get(f"{url}state.json").json()["stage"]["now"]["step"] == 2
        assert "<title>" in httpx.get(url).text
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0 and child.stderr.read() == ""
    finally:
        child.kill()
        child.communicate()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "it reads files only"


def test_the_command_reads_a_recipe_and_tells_json(tmp_path: Path, fakes: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("name: demo\nstages:\n  corpus: {kind: words, count: 4}\n  base: {kind: learn, data: corpus}\n")
    assert command.main(["r.yaml", "--json", "stages.corpus.count=5"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["title"] == "demo" and [(s["name"], s["kind"], s["state"]) for s in state["stages"]] == [
        ("corpus", "words", "to do"),
        ("base", "learn", "to do"),
    ]
    assert command.main(["--json"]) == 0, "a store that is not there yet is an empty one"
    assert json.loads(capsys.readouterr().out)["stages"] == []


def test_what_the_command_refuses(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither a recipe nor a folder"):
        command.main(["nothing"])
    Path("place").mkdir()
    with pytest.raises(UserError, match="overrides change a recipe"):
        command.main(["place", "stages.base.steps=1"])


# --- the report, from the same events -----------------------------------------------------------------------------


def test_the_report_draws_the_same_events(tmp_path: Path) -> None:
    from modelwright.report.curves import curves_svg, read

    folder = training(tmp_path / "base", 4, 16)
    panels = {p.title: p for p in read(folder).panels}
    assert list(panels) == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Speed",
        "MFU",
        "Processor",
        "Memory",
        "GPU 0",
        "GPU 0 power",
    ]
    assert panels["MFU"].said == "mean 20" and panels["Processor"].said == "mean 90" and panels["Memory"].said == "peak 1"
    assert panels["Loss"].marks == [(4, 1.5)] and "GPU 0 power (W)" in curves_svg(folder)
