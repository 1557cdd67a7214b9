"""A curation on a Ray cluster: the same bytes, and an error in seconds where there is none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.parallel import LAUNCHERS
from modelwright.core.recipe import loads
from modelwright.core.record import write_records
from modelwright.core.stage import STAGES, Input, Run
from modelwright.methods.sources import _files
from tests import launch_kit
from tests.test_data_steps import CODE, PROSE, docs, prose, vary

STEPS = ["exact_dedup", {"kind": "gopher", "min_words": 20, "min_stop_words": 0}, "minhash"]


def curated(folder: Path, name: str, cluster: Any = None, workers: int | None = None) -> dict[str, bytes]:
    if not (folder / "rows.jsonl").exists():
        texts = [*PROSE, *CODE, *(prose(seed, 60) for seed in range(40)), *(vary(prose(seed), 2, seed) for seed in range(20))]
        write_records(folder / "rows.jsonl", docs(texts * 2))
    out, ref = folder / name, str(folder / "rows.jsonl")
    out.mkdir()
    spec = {"kind": "curate", "source": {"kind": "jsonl", "path": ref}, "steps": STEPS, "split": {"test": 0.2}}
    stage: Any = STAGES.build(spec)
    stage.run(Run(out, {ref: Input(ref, "path", Path(ref))}, 0, Log(None), workers=workers, cluster=cluster))
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def ray(**fields: Any) -> Any:
    return LAUNCHERS.build({"kind": "ray", **fields})


def test_a_cluster_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LINES_BYTES", 5000)
    alone = curated(tmp_path, "alone", workers=1)
    with launch_kit.ray_cluster() as cluster:
        assert curated(tmp_path, "two", ray(), workers=2) == alone
        assert [call[0] for call in cluster.calls] == ["init", "actor", "kill", "kill"]
        cluster.calls.clear()
        assert curated(tmp_path, "all", ray(cpus=1.5)) == alone
        assert cluster.calls[1:] == [["actor", {"num_cpus": 1.5}, "SPREAD"], ["kill"], ["kill"]], "as many as there is room for"
        with pytest.raises(UserError, match="is too small"):
            curated(tmp_path, "many", ray(), workers=5)
        cluster.lost = True
        with pytest.raises(UserError, match="a worker of the Ray cluster was lost") as found:
            curated(tmp_path, "lost", ray())
        assert "goes on from what is done" in found.value.fix


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with launch_kit.ray_cluster(), pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        curated(tmp_path, "out", ray(address="127.0.0.1:9"))
    assert time.monotonic() - start < 10


def test_a_recipe_says_what_a_cluster_cannot_do() -> None:
    def recipe(runtime: str, kind: str = "curate, source: {kind: text, path: ./t/}") -> Any:
        return loads(f"name: x\nruntime: {{{runtime}}}\nstages:\n  v: {{kind: {kind}}}\n")

    assert recipe("cluster: ray").recipe.runtime.cluster == ray()
    with pytest.raises(UserError, match="'slurm' starts trainings"):
        recipe("cluster: slurm")
    with pytest.raises(UserError, match="'gpus' would be ignored"):
        recipe("cluster: {kind: ray, gpus: 1}")
    with pytest.raises(UserError, match="'cluster' would be ignored"):
        recipe("cluster: ray", "tokenizer, data: ./rows.jsonl")
    with pytest.raises(UserError, match=r"write bytes with their unit"):
        recipe("memory: lots")


@pytest.mark.slow
def test_a_real_ray_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("ray")
    monkeypatch.setattr(_files, "LINES_BYTES", 5000)
    module.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
    try:
        assert curated(tmp_path, "ray", ray(), workers=2) == curated(tmp_path, "alone", workers=1)
    finally:
        module.shutdown()
