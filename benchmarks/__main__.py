"""`python -m benchmarks NAME` runs one; `all [NAME ...]` runs them and writes docs/benchmarks.md from their own output."""

from __future__ import annotations

import json
import os
import pkgutil
import platform
import subprocess
import sys
from datetime import date
from importlib import import_module, metadata
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "peft", "trl", "tokenizers", "xllamacpp")


def names() -> list[str]:
    """Every benchmark: the modules beside this one without an underscore."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))


def machine() -> str:
    """The machine and the versions, for the head of the page."""
    from modelwright.core.units import bytes_text
    from modelwright.plan.machine import this_machine

    here = this_machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    size = f"{here.cores} cores, {bytes_text(here.memory_bytes)}"
    return f"{here.name}, {size}, {platform.system()}, Python {platform.python_version()}; {versions}"


def run(name: str) -> tuple[str, str]:
    """Run one benchmark in a process of its own; returns its output without the last line, and that line (JSON)."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", name], stdout=subprocess.PIPE, text=True, cwd=DOCS.parents[1])
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    if process.wait() != 0:
        raise SystemExit(f"benchmark {name} failed with exit code {process.returncode}; docs/benchmarks.md is as it was for it")
    json.loads(lines[-1])
    return "\n".join(lines[:-1]).strip(), lines[-1]


def write(results: dict[str, tuple[str, str]]) -> None:
    """Put the sections of `results` into docs/benchmarks.md; others stay."""
    sections = {}
    if DOCS.exists():
        for chunk in DOCS.read_text().split("\n## ")[1:]:
            sections[chunk.split("\n", 1)[0].strip()] = chunk.split("\n", 1)[1].strip()
    for name, (table, last) in results.items():
        about = (import_module(f"benchmarks.{name}").__doc__ or "").strip()
        sections[name] = f"{about}\n\nMeasured {date.today()} on {machine()}.\n\n```\n{table}\n```\n\n`{last}`"
    head = "# Benchmarks\n\nWritten by `make bench`; nothing here is typed by hand. Ratios are ours over theirs in one run.\n"
    DOCS.write_text(head + "".join(f"\n## {name}\n\n{sections[name]}\n" for name in sorted(sections)))


def main() -> int:
    wanted = sys.argv[1:]
    if not wanted or wanted == ["--help"]:
        print(f"usage: python -m benchmarks NAME | all [NAME ...]\n\n{', '.join(names())}")
        return 0
    if wanted[0] == "all":
        chosen = wanted[1:] or names()
        write({name: run(name) for name in chosen})
        print(f"\nwrote {os.path.relpath(DOCS)}")
        return 0
    if wanted[0] not in names():
        print(f"no benchmark {wanted[0]!r}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    figures = import_module(f"benchmarks.{wanted[0]}").main()
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
