"""The store: `<root>/<type>/<stage>-<key12>/`, complete when `manifest.json` exists; looked up by the full key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from modelwright.core.errors import UserError
from modelwright.core.events import Log

MANIFEST = "manifest.json"
SCHEMA = 1
COLUMNS = "columns"
REMOTE = "remote"
"""Folder of inputs that were fetched."""
"""Folder of numbers that curations find again; no artifact."""


class Artifact(NamedTuple):
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])


class Store:
    """Artifacts under one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def home(self, type_: str, stage: str, key: str) -> Path:
        """Where an artifact lives once it is finished."""
        return self.root / type_ / f"{stage}-{key[:12]}"

    def part(self, type_: str, stage: str, key: str) -> Path:
        """Where it is made. Found by key, so that a renamed stage goes on with what it had."""
        for found in sorted((self.root / type_).glob(f"*-{key[:12]}.part")):
            return found
        return self.root / type_ / f"{stage}-{key[:12]}.part"

    def find(self, type_: str, key: str) -> Artifact | None:
        """The finished artifact with this key, whatever its stage was called."""
        for folder in sorted((self.root / type_).glob(f"*-{key[:12]}")):
            manifest = read_manifest(folder)
            if manifest is not None and manifest["key"] == key:
                return Artifact(folder, manifest)
        return None

    def all(self) -> Iterator[Artifact]:
        """Every finished artifact, newest last."""
        found = []
        for path in self.root.glob(f"*/*/{MANIFEST}"):
            if (manifest := read_manifest(path.parent)) is not None and not path.parent.name.endswith(".part"):
                found.append(Artifact(path.parent, manifest))
        yield from sorted(found, key=lambda a: (a.manifest["made_by"]["time"], a.path.name))

    def unfinished(self) -> list[Path]:
        """Folders of killed runs."""
        return sorted(self.root.glob("*/*.part"))

    def lock(self, key: str, log: Log) -> FileLock:
        """The lock of one artifact, acquired; says so when another process holds it."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key[:12]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.note("another process is making this artifact; waiting for it")
            lock.acquire()
        return lock

    def finish(self, part: Path, home: Path, manifest: dict[str, Any]) -> Artifact:
        """Write the manifest last and give the folder its final name, both durably."""
        write_json(part / MANIFEST, manifest)
        if home.exists():  # an unreadable leftover; the one with a manifest was found before the work began
            shutil.rmtree(home)
        os.rename(part, home)
        sync_folder(home.parent)
        return Artifact(home, manifest)

    def verify(self, artifact: Artifact) -> list[str]:
        """What differs from the manifest: missing, changed and unknown files; empty when sound."""
        faults = []
        listed = artifact.manifest["files"]
        for name, entry in listed.items():
            path = artifact.path / name
            if not path.is_file():
                faults.append(f"{name}: missing")
            elif path.stat().st_size != entry["bytes"]:
                faults.append(f"{name}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
            elif sha256_file(path) != entry["sha256"]:
                faults.append(f"{name}: its content changed")
        faults += [
            f"{name}: not in the manifest"
            for name in sorted(relative_files(artifact.path))
            if name not in listed and name != MANIFEST
        ]
        return faults


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in `folder`; None where there is none or it is torn."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(manifest, dict) or "key" not in manifest:
        return None
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            f"{folder.name} was made by another version (manifest schema {manifest.get('schema')}, here {SCHEMA})",
            fix="use the version that made it, or another --store",
        )
    return manifest


def digest_files(folder: Path, but: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """`{path: {bytes, sha256}}` of every file below `folder`, `but` those in these folders right below it."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in sorted(relative_files(folder))
        if name.partition("/")[0] not in but
    }


def relative_files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, tree: Any) -> None:
    write_whole(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees the old file or the whole new one; where that fails nothing is left behind."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (POSIX)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
