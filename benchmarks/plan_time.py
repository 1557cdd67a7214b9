"""What `plan` says of 25 small stages of every kind, each predicted from the others of its kind, against what they took; no peer.

Each stage runs in a process of its own, so that its peak of resident memory (RSS) is its own and its seconds hold what a process
begins with. `predicted` is `modelwright calibration`'s: corrected by the other stages of the kind, never by itself. `before` is
what was said without any correction. Curation, training and scoring run once before, since kernels are compiled when a
processor meets them first. Inside: how many measurements lie in the interval that is to hold 95 % of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from modelwright.api import load, text_table
from modelwright.core.store import Store
from modelwright.core.units import bytes_text, seconds_text
from modelwright.plan._errors import whole
from modelwright.plan.calibrate import Point, accounts

RECIPE = Path(__file__).with_suffix(".yaml")
STORE = Path(__file__).parents[1] / "runs" / "benchmark-plan-time"
"""Made anew by every run and left there to be looked at: `modelwright calibration --store runs/benchmark-plan-time`."""


def main() -> dict:
    shutil.rmtree(STORE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        _run("base_loss", Path(folder))
    start = time.monotonic()
    for stage in load(RECIPE, store=STORE).recipe.stages:
        _run(stage, STORE)
    return figures(time.monotonic() - start)


def _run(stage: str, store: Path) -> None:
    command = [sys.executable, "-m", "modelwright.cli.main", "run", str(RECIPE), "--store", str(store), "--only", stage]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def figures(total_s: float) -> dict:
    """The table and the numbers of the runs that are in STORE."""
    found = accounts(Store(STORE))
    seconds = {point.run.stage: (account.kind, point) for account in found if account.unit == "s" for point in account.points}
    sizes = {point.run.stage: point for account in found if account.unit == "bytes" for point in account.points}
    rows = []
    for stage, (kind, point) in sorted(seconds.items(), key=lambda item: (item[1][0], item[1][1].run.time)):
        size = sizes.get(stage)
        rows.append(
            {
                "stage": stage,
                "kind": kind,
                "before": seconds_text(whole(point.run.spans)),
                "predicted": seconds_text(point.predicted),
                "measured": seconds_text(point.measured),
                "error": f"{100 * _off(point):.0f} %",
                "interval": f"{seconds_text(point.low)} to {seconds_text(point.high)}{_outside(point)}",
                "RSS": bytes_text(size.measured) if size else "not its own",
                "its interval": f"{bytes_text(size.low)} to {bytes_text(size.high)}{_outside(size)}" if size else "",
            }
        )
    print(text_table(rows))
    errors = {kind: [_off(point) for other, point in seconds.values() if other == kind] for kind, _ in seconds.values()}
    for kind, own in sorted(errors.items()):
        print(f"{kind}: median error {100 * median(own):.1f} %, largest {100 * max(own):.0f} %")
    print(f"\n{len(seconds)} stages in {seconds_text(total_s)}")
    before = [abs(whole(point.run.spans) / point.measured - 1) for _, point in seconds.values()]
    return {
        "median": round(median(_off(point) for _, point in seconds.values()), 4),
        "median_before": round(median(before), 4),
        "median_rss": round(median(map(_off, sizes.values())), 4),
        "stages": len(seconds),
        "stages_rss": len(sizes),
        "seconds_inside": sum(point.inside for _, point in seconds.values()),
        "rss_inside": sum(point.inside for point in sizes.values()),
        "total_s": round(total_s, 1),
    }


def _outside(point: Point) -> str:
    return "" if point.inside else " OUTSIDE"


def _off(point: Point) -> float:
    """|predicted - measured| / measured."""
    return abs(point.predicted / point.measured - 1)
