"""Garbage collection: which artifacts no recipe needs. Decides; the command deletes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modelwright.core.recipe import Loaded
from modelwright.core.steps import prepare
from modelwright.core.store import COLUMNS, REMOTE, Store, relative_files


class Garbage(NamedTuple):
    path: Path
    bytes: int
    why: str


def garbage(store: Store, recipes: Sequence[Loaded]) -> list[Garbage]:
    """Artifacts and leftovers in `store` that none of `recipes` would use as they are now."""
    keep = {step.key for loaded in recipes for step in prepare(loaded, store)}
    found = [
        Garbage(a.path, folder_bytes(a.path), f"no recipe given needs {a.key[:12]}") for a in store.all() if a.key not in keep
    ]
    short = {key[:12] for key in keep}
    found += [
        Garbage(p, folder_bytes(p), "left by a stopped run of a recipe that is not given")
        for p in store.unfinished()
        if p.name.removesuffix(".part").rsplit("-", 1)[-1] not in short
    ]
    if (store.root / COLUMNS).is_dir():
        found.append(
            Garbage(store.root / COLUMNS, folder_bytes(store.root / COLUMNS), "a later curation would work it out again")
        )
    if (store.root / REMOTE).is_dir():
        found.append(
            Garbage(store.root / REMOTE, folder_bytes(store.root / REMOTE), "remote inputs, which would be fetched again")
        )
    return found


def folder_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in relative_files(folder))
