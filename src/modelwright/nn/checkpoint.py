"""Training checkpoints: written whole or not at all, and only read when their digest is right."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint of `step`; older ones are then removed.

    The data file is written beside its final name, synced and renamed; the note with its digest follows the same way.
    A power cut at any point leaves the previous checkpoint or this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"step-{step:08d}.pt"
    _atomically(data, lambda path: torch.save(state, path))
    note = {"step": step, "bytes": data.stat().st_size, "sha256": _digest(data)}
    _atomically(data.with_suffix(".json"), lambda path: path.write_text(json.dumps(note), encoding="utf-8"))
    for path in folder.iterdir():
        if path.name not in (data.name, data.with_suffix(".json").name):
            path.unlink()
    return data


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None. A torn one (no note, wrong size or digest) is passed over."""
    for note_path in sorted(folder.glob("step-*.json"), reverse=True):
        data = note_path.with_suffix(".pt")
        try:
            note = json.loads(note_path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if not data.exists() or data.stat().st_size != note["bytes"] or _digest(data) != note["sha256"]:
            continue
        # ours, and its digest is right; weights_only keeps the unpickler to tensors and plain containers all the same
        state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
        return state
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
