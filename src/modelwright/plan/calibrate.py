"""Estimates, corrected by what earlier runs on this machine measured."""

from __future__ import annotations

import socket
from statistics import median

from modelwright.core.execute import Adjust
from modelwright.core.stage import Estimate
from modelwright.core.store import Store

KEPT = 8
"""Newest runs of a kind that the correction is the median of: enough to ride out one slow run, few enough to follow a change."""


def calibrated(store: Store) -> Adjust:
    """Scale each kind's seconds and bytes by the median of measured / estimated over its newest runs on this host.

    What a manifest keeps as its estimate was itself corrected, so its own correction is divided out (`raw`).
    """
    ratios: dict[str, list[tuple[float, float]]] = {}
    for artifact in store.all():
        manifest = artifact.manifest
        if manifest["made_by"]["host"] != socket.gethostname() or not manifest.get("estimate"):
            continue
        raw_s, raw_bytes = manifest["estimate"]["seconds"]["value"], manifest["estimate"]["memory"]["value"]
        scale_s, scale_bytes = manifest["estimate"].get("scale", (1.0, 1.0))
        if raw_s > 0 and raw_bytes > 0:
            ratios.setdefault(manifest["kind"], []).append(
                (manifest["actual"]["seconds"] / raw_s * scale_s, manifest["actual"]["peak_bytes"] / raw_bytes * scale_bytes)
            )

    def adjust(kind: str, estimate: Estimate) -> Estimate:
        known = ratios.get(kind, [])[-KEPT:]
        if not known:
            return estimate
        by_s, by_bytes = median(r[0] for r in known), median(r[1] for r in known)
        note = f"; times {{:.2f}}, the median of measured over estimated in {len(known)} run{'s' if len(known) > 1 else ''} here"
        return estimate._replace(
            seconds=estimate.seconds._replace(value=estimate.seconds.value * by_s, why=estimate.seconds.why + note.format(by_s)),
            memory=estimate.memory._replace(
                value=estimate.memory.value * by_bytes, why=estimate.memory.why + note.format(by_bytes)
            ),
            scale=(by_s, by_bytes),
        )

    return adjust
