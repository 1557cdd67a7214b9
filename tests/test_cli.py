"""The command: instant help, exit codes, tables and JSON, errors without tracebacks."""

import json
import subprocess
import sys

import pytest

from modelwright.cli.main import COMMANDS, main, usage

TEXT = "name: demo\nstages:\n  corpus: {kind: words, count: 4}\n  base: {kind: learn, data: corpus}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch, fakes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(TEXT)
    monkeypatch.setattr("modelwright.api.Project.write_report", lambda self, *a: None)
    return "r.yaml"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, modelwright.cli.main as m; m.main(['--help']); "
        "bad = {'pydantic', 'yaml', 'torch', 'rich', 'numpy', 'argparse'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_has_its_file_and_help(capsys):
    from importlib import import_module

    for name in COMMANDS:
        module = import_module(f"modelwright.cli.{name.replace('-', '_')}")
        with pytest.raises(SystemExit) as caught:
            module.main(["--help"])
        assert caught.value.code == 0
    assert all(name in usage() for name in COMMANDS)


def test_unknown_command_and_no_command(capsys):
    assert main(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err
    assert main([]) == 0


def test_run_plan_why_show_verify_gc(recipe, capsys):
    assert main(["plan", recipe]) == 0
    assert "to do: 2 of 2 stages" in capsys.readouterr().out
    assert main(["run", recipe]) == 0
    out = capsys.readouterr().out
    assert "2 made, 0 cached" in out and "modelwright chat r.yaml" in out
    assert main(["run", recipe]) == 0
    assert "0 made, 2 cached" in capsys.readouterr().out
    assert main(["why", recipe, "stages.base.rate=0.9"]) == 0
    assert "rate: 0.1 -> 0.9" in capsys.readouterr().out
    assert main(["show", recipe]) == 0
    assert main(["show", recipe, "--stage", "base"]) == 0
    assert "model store/model/base-" in capsys.readouterr().out
    assert main(["verify"]) == 0
    assert main(["gc", recipe]) == 0
    assert "would delete 0 artifacts" in capsys.readouterr().out
    assert main(["where", recipe, "--at", "stages.base"]) == 0
    assert "learn.py" in capsys.readouterr().out


def test_overrides_may_follow_options(recipe, capsys):
    assert main(["plan", recipe, "--store", "elsewhere", "stages.nothing.here=1"]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "run", "why", "ls", "verify", "where", "check", "doctor"])
def test_json_everywhere(recipe, capsys, command):
    main(["run", recipe])
    capsys.readouterr()
    assert main([command, "--json", *([] if command in ("ls", "verify", "doctor") else [recipe])]) == 0
    json.loads(capsys.readouterr().out)


def test_exit_codes(recipe, capsys):
    assert main(["run", recipe, "stages.corpus.cuont=1"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'count'?" in err and "Traceback" not in err
    assert main(["run", recipe, "stages.corpus.fail=disk"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert main(["run", recipe, "stages.base.stop_at=2"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert main(["check", recipe, "stages.corpus.fail=gate"]) == 1


def test_new_writes_a_recipe_and_never_overwrites(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert main(["new", str(path)]) == 0
    before = path.read_bytes()
    assert main(["new", str(path)]) == 2
    assert path.read_bytes() == before
    assert main(["new", "--list"]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_code_in_a_recipe_needs_permission(recipe, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from typing import Literal, ClassVar\nfrom modelwright.core.estimate import Facts, estimate\n"
        "from modelwright.core.stage import Stage\n"
        "class Mine(Stage):\n    kind: Literal['./mine.py'] = './mine.py'\n    produces: ClassVar[str] = 'records'\n"
        "    def estimate(self, given): return estimate(1, '', 1, '', 1, '', {'': Facts(type='records')})\n"
        "    def run(self, run): return {'rows_in': 0, 'rows_out': 0}\n"
    )
    (tmp_path / "code.yaml").write_text("name: code\nstages:\n  mine: {kind: ./mine.py}\n")
    for command in ("plan", "check", "run"):
        assert main([command, "code.yaml"]) == 2
        assert "--allow-code" in capsys.readouterr().err
    assert main(["run", "code.yaml", "--allow-code", "mine.py"]) == 0
    assert main(["run", "code.yaml", "--allow-code", "mine.py"]) == 0
    assert "1 cached" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# changed\n")
    assert main(["run", "code.yaml", "--allow-code", "mine.py"]) == 0
    assert "1 made" in capsys.readouterr().out


@pytest.mark.slow
def test_help_is_under_60_ms_of_cpu():
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        subprocess.run([sys.executable, "-m", "modelwright.cli.main", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 5 < 0.060


@pytest.mark.parametrize("place", ["none/p.html", "folder"])
@pytest.mark.parametrize(
    "words",
    [
        "advise --yes --html",
        "advise --yes --out",
        "calibration --html",
        "compare-decoding model prompt --out",
        "plan r.yaml --html",
        "preview rows.jsonl --html",
        "scale --flops 1e18 --html",
    ],
)
def test_a_page_that_cannot_be_written_is_told_before_the_work(recipe, tmp_path, capsys, words, place):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main([*words.split(), place]) == 2
    shown = capsys.readouterr()
    assert f"{place} cannot be written" in shown.err and not shown.out
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "folder").iterdir())


IMPOSSIBLE = """
name: r
stages:
  corpus: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}}
  vocab: {kind: tokenizer, data: corpus, method: {kind: bpe, size: 300}}
  base:
    kind: train
    data: corpus
    vocab: vocab
    model: {kind: llama, depth: 1, hidden: 16, heads: 1}
    objective: next_token
    length: 64
    steps: 2
  longer: {kind: train, start: base, data: corpus, objective: next_token, length: 128, steps: 2}
"""


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_the_recipe_shows_to_be_impossible_is_refused_before_any_work(command, tmp_path, monkeypatch, capsys):
    """A plan said nothing of rows longer than the start sees; the run said it when the start was trained, and blamed that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(IMPOSSIBLE)
    (tmp_path / "rows.jsonl").write_text('{"text": "some words to learn"}\n' * 20)
    assert main([command, "r.yaml", "--store", str(tmp_path / "store")]) == 2
    told = capsys.readouterr()
    assert "stages.longer: `length` 128 is more than the 64 tokens" in told.err and "set `length: 64`" in told.err
    assert "failed" not in told.out and not list((tmp_path / "store").glob("model/*"))
