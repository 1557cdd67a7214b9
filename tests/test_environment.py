"""What is set before torch is loaded: what a user has set stays, and memory that was freed is kept for the next tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core import environment
from modelwright.core.environment import FOR_TORCH

SOURCE = Path(__file__).parents[1] / "src"
FAULTS = """
import os, resource
from modelwright.core import environment
environment.prepare()
import numpy
def turn():
    rows = [numpy.ones(3 << 17) for _ in range(4)]  # 3 MB each
for _ in range(5):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, *(os.environ[name] for name in environment.FOR_TORCH))
"""


def run(**own: str) -> list[str]:
    bare = {name: text for name, text in os.environ.items() if name not in FOR_TORCH and not name.startswith("MALLOC_")}
    env = bare | {"PYTHONPATH": str(SOURCE)} | own
    return subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    faults, *settings = run()
    assert int(faults) < 200 and settings == list(FOR_TORCH.values())


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_own_settings_stay() -> None:
    faults, *settings = run(MALLOC_TRIM_THRESHOLD_="131072", GOMP_SPINCOUNT="7", THP_MEM_ALLOC_ENABLE="0")
    assert int(faults) > 2000 and settings == ["7", "0"]


def test_other_processes_see_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_ours", set())
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    environment.prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "5000"
    found = environment.given()
    assert "GOMP_SPINCOUNT" not in found and found["THP_MEM_ALLOC_ENABLE"] == "0" and found["PATH"]
    os.environ.pop("GOMP_SPINCOUNT")
