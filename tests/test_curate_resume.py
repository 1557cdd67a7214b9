"""A curation that is killed at any point and begun again: the same bytes, the same ledger, and no finished chunk worked twice."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.events import Log, read_events
from modelwright.core.record import Record, write_records
from modelwright.core.stage import STAGES, Input, Run
from modelwright.methods.sources import _files
from modelwright.stages import _curate_flow, _curate_journal
from modelwright.stages._curate_journal import Journal, Journals
from modelwright.stages._curate_work import Work
from tests.test_data_steps import CODE, PROSE, docs, prose, vary

ROOT = Path(__file__).parents[1]
GOPHER = {"kind": "gopher", "min_words": 20, "min_stop_words": 0}
STEPS = ["exact_dedup", GOPHER, "minhash", {"kind": "length", "max_chars": 1500}]


class Killed(BaseException):
    """Nothing in the program catches it."""


def rows(path: Path) -> None:
    texts = [*PROSE, *CODE, *(prose(seed, 60 + seed) for seed in range(60)), *(vary(prose(seed), 2, seed) for seed in range(20))]
    write_records(path, [*docs(texts * 2), Record("torn")])
    path.write_bytes(path.read_bytes() + b'{"text": "torn')


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chunks of a few rows, a journal from the first one on, and a file to read."""
    monkeypatch.setattr(_files, "LINES_BYTES", 3000)
    monkeypatch.setattr(_curate_flow, "CHUNK_ROWS", 9)
    monkeypatch.setattr(_curate_journal, "AFTER_S", 0.0)
    rows(tmp_path / "rows.jsonl")
    return tmp_path


def stage(ref: str, split: bool, sources: int = 1) -> Any:
    source = [{"kind": "jsonl", "path": ref, "on_bad": "drop"}] * sources
    return STAGES.build({"kind": "curate", "source": source, "steps": STEPS, "split": {"test": 0.2} if split else None})


def curated(folder: Path, name: str, split: bool = False, sources: int = 1) -> dict[str, Any]:
    out, ref = folder / name, str(folder / "rows.jsonl")
    out.mkdir(exist_ok=True)
    log = Log(out / "metrics.jsonl")
    try:
        stats = stage(ref, split, sources).run(Run(out, {ref: Input(ref, "path", Path(ref))}, 0, log, workers=1))
    finally:
        log.close()
    for entry in stats["ledger"]:
        entry.pop("seconds")
    files = {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name not in ("metrics.jsonl", "journals")}
    return files | {"stats": json.dumps(stats, sort_keys=True)}


def cut_off(patch: pytest.MonkeyPatch, writes: int) -> None:
    """The run ends while it writes a frame of the journal."""
    left = [writes]
    write = Journal.write

    def torn(self: Journal, number: int, result: Any, lines: bytes) -> Any:
        place = write(self, number, result, lines)
        left[0] -= 1
        if not left[0]:
            assert self._file is not None
            self._file.truncate(self._file.tell() - 1)
            raise Killed
        return place

    patch.setattr(Journal, "write", torn)


@pytest.mark.parametrize(("split", "sources"), [(False, 1), (True, 1), (False, 2)])
def test_a_run_goes_on_where_it_was_cut_off(small: Path, monkeypatch: pytest.MonkeyPatch, split: bool, sources: int) -> None:
    whole = curated(small, "whole", split, sources)
    worked: list[int] = []
    work = Work.__call__
    monkeypatch.setattr(Work, "__call__", lambda self, item: worked.append(item[0]) or work(self, item))
    assert curated(small, "again", split, sources) == whole
    chunks, worked[:] = len(worked), []
    for writes in (1, 2, 12, 9):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            cut_off(patch, writes)
            curated(small, "cut", split, sources)
    written = 0 + 1 + 11 + 8
    assert len(worked) == written + 4, "what was torn is worked again, and nothing else"
    assert curated(small, "cut", split, sources) == whole
    assert len(worked) == chunks + 4
    notes = " ".join(event["text"] for event in read_events(small / "cut" / "metrics.jsonl", "note"))
    assert sum(map(int, re.findall(r"left (\d+) chunks", notes)[-2:])) == written, "two choices, both under way"
    assert not list((small / "cut").glob("waiting-*"))
    worked.clear()
    assert curated(small, "cut", split, sources) == whole and not worked, "killed while its files are hashed"


def test_another_recipe_does_not_read_the_journal(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut_off(patch, 20)
        curated(small, "cut")
    (small / "cut" / "all.jsonl").unlink()
    assert curated(small, "cut", split=True) == curated(small, "whole", split=True)


def test_a_short_run_writes_no_journal(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_curate_journal, "AFTER_S", 30.0)
    monkeypatch.setattr(Journal, "write", None)
    curated(small, "out")


def test_a_torn_journal_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte of its last frame, and where a byte was changed."""
    monkeypatch.setattr(_curate_journal, "AFTER_S", 0.0)

    def opened() -> Journal:
        return Journals(tmp_path, "x").open(0)

    journal = opened()
    for number in range(3):
        journal.write(number, ("told", number), b"line %d\n" % number)
    journal.close()
    data = (tmp_path / "journal-0").read_bytes()
    assert len(opened()) == 3 and opened().result(2)[:2] == (("told", 2), b"line 2\n")
    frame = (len(data) - 64) // 3
    for end in range(64 + 2 * frame, len(data)):
        (tmp_path / "journal-0").write_bytes(data[:end])
        journal = opened()
        assert len(journal) == 2 and (tmp_path / "journal-0").stat().st_size == 64 + 2 * frame
        journal.write(2, ("told", 2), b"line 2\n")
        journal.close()
        assert (tmp_path / "journal-0").read_bytes() == data
    (tmp_path / "journal-0").write_bytes(data[: 64 + frame + 40] + b"?" + data[64 + frame + 41 :])
    assert len(opened()) == 1
    assert len(Journals(tmp_path, "y").open(0)) == 0


def test_a_journal_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    journal = Journals(tmp_path, "x").open(0)
    journal.write(0, Evil(), b"")
    journal.close()
    journal = Journals(tmp_path, "x").open(0)
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print has no place"):
        journal.result(0)


# --- the whole command --------------------------------------------------------------------------------------

RECIPE = """
name: rows
stages:
  rows:
    kind: curate
    source: {kind: jsonl, path: ./rows.jsonl, on_bad: drop}
    steps: [exact_dedup, gopher, minhash]
    split: {test: 0.2}
"""
COMMAND = """
import os, signal, sys
from modelwright.cli.main import entry
from modelwright.methods.sources import _files
from modelwright.stages import _curate_journal
_files.LINES_BYTES, _curate_journal.AFTER_S = 3000, 0.0
left, write = [int(sys.argv.pop(1))], _curate_journal.Journal.write
def killed(*given):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*given)
_curate_journal.Journal.write = killed
entry()
"""


def command(folder: Path, store: str, writes: int) -> subprocess.Popen[str]:
    given = [sys.executable, "-c", COMMAND, str(writes), "run", str(folder / "r.yaml"), "--store", str(folder / store)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def ended(running: subprocess.Popen[str], codes: tuple[int, ...]) -> int:
    told, _ = running.communicate()
    assert running.returncode in codes, told
    return running.returncode


def made(store: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest, and what must not differ."""
    (path,) = store.glob("records/*/manifest.json")
    manifest = json.loads(path.read_text())
    for entry in manifest["stats"]["ledger"]:
        entry.pop("seconds")
    files = {name: tree for name, tree in manifest["files"].items() if name != "metrics.jsonl"}
    return manifest, {"files": files, "stats": manifest["stats"]}


def test_kill_minus_nine(tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl")
    (tmp_path / "r.yaml").write_text(RECIPE)
    ended(command(tmp_path, "cut", 15), (-signal.SIGKILL,))
    (part,) = (tmp_path / "cut" / "records").glob("*.part")
    assert (part / "journals" / "journal-0").stat().st_size > 1000
    both = [command(tmp_path, "cut", 0), command(tmp_path, "whole", 0)]
    for running in both:
        ended(running, (0,))
    (resumed, found), (plain, wanted) = made(tmp_path / "cut"), made(tmp_path / "whole")
    assert found == wanted
    assert resumed["actual"]["resumed"] is True and plain["actual"]["resumed"] is False


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments(tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl")
    (tmp_path / "r.yaml").write_text(RECIPE)
    start = time.monotonic()
    ended(command(tmp_path, "whole", 0), (0,))
    took_s = time.monotonic() - start
    chance = random.Random(0)
    for _ in range(12):
        running = command(tmp_path, "cut", 0)
        time.sleep(took_s * chance.uniform(0.4, 1.0))
        running.kill()
        if ended(running, (0, -signal.SIGKILL)) == 0:
            break
    ended(command(tmp_path, "cut", 0), (0,))
    assert made(tmp_path / "cut")[1] == made(tmp_path / "whole")[1]
