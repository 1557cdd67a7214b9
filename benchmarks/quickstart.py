"""Seconds and peak memory of every stage of recipes/quickstart.yaml, made anew, against what `plan` said before; no peer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from modelwright.api import load, text_table
from modelwright.core.units import bytes_text, seconds_text

STORE = Path(__file__).parents[1] / "runs" / "benchmark-quickstart"
"""Made anew by every run and left there to be looked at."""
RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


def main() -> dict:
    shutil.rmtree(STORE, ignore_errors=True)
    command = [sys.executable, "-m", "modelwright.cli.main", "run", str(RECIPE), "--store", str(STORE), "--json"]
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    first_s = time.monotonic() - start
    start = time.monotonic()
    again = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    again_s = time.monotonic() - start
    assert all(stage["state"] == "cached" for stage in again["stages"])
    return figures(first_s, again_s)


def figures(first_s: float, again_s: float) -> dict:
    """The table and the numbers of the run that is in STORE."""
    manifests = {s.name: s.artifact.manifest for s in load(RECIPE, store=STORE).steps() if s.artifact}
    rows = [
        {
            "stage": name,
            "seconds": f"{m['actual']['seconds']:.1f}",
            "planned": f"{m['estimate']['seconds']['value']:.1f}",
            "peak memory": bytes_text(m["actual"]["peak_bytes"]),
            "planned memory": bytes_text(m["estimate"]["memory"]["value"]),
            "size": bytes_text(m["actual"]["disk_bytes"]),
        }
        for name, m in manifests.items()
    ]
    print(text_table(rows))
    print(f"\nfirst run {seconds_text(first_s)}, second run (all cached) {seconds_text(again_s)}")
    results = [
        {
            "stage": name,
            "task": m["task"],
            "metric": m["name"],
            "group": m["group"] or "all",
            "value": f"{m['value']:.4g}",
            "95 % interval": f"{m['low']:.4g} to {m['high']:.4g}",
            "items": str(m["n"]),
        }
        for name, manifest in manifests.items()
        for m in manifest["stats"].get("metrics", [])
        if not m["group"] or m["task"] == "from_prompt"
    ]
    print("\n" + text_table(results))
    headline = {f"{r['stage']} {r['task']} {r['metric']}": float(r["value"]) for r in results if r["group"] == "all"}
    return {
        "seconds": round(first_s, 1),
        "cached_s": round(again_s, 2),
        "stages": {name: m["actual"]["seconds"] for name, m in manifests.items()},
        "peak_bytes": {name: m["actual"]["peak_bytes"] for name, m in manifests.items()},
        "metrics": headline,
    }
