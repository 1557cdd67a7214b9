"""External inputs: the digest that pins a file, a folder or a Hub repository, and where its files are."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.remote import remote_digest
from modelwright.core.stage import Accepts, Address
from modelwright.core.store import REMOTE, sha256_file, write_json

_REMOTE = "remote"
COMMIT = re.compile(r"^[0-9a-f]{40}$")


class Digests:
    """sha256 of files, remembered by path, size, time and inode in `<store>/.digests.json`."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known: dict[str, list[str]] = {}
        self._new = False
        if cache and cache.exists():
            try:
                self._known = json.loads(cache.read_text())
            except json.JSONDecodeError:
                self._known = {}

    def file(self, path: Path) -> str:
        """`unreadable` where it may not be read: whoever reads it says so, or counts it."""
        try:
            return self._file(path)
        except PermissionError:
            return "unreadable"

    def _file(self, path: Path) -> str:
        state = path.stat()
        mark = f"{state.st_size}:{state.st_mtime_ns}:{state.st_ino}"
        known = self._known.get(str(path.resolve()))
        if known and known[0] == mark:
            return known[1]
        digest = sha256_file(path)
        self._known[str(path.resolve())] = [mark, digest]
        self._new = True
        return digest

    def path(self, path: Path) -> str:
        """A file's digest, or a folder's over its sorted names and digests."""
        if path.is_file():
            return self.file(path)
        total = hashlib.sha256()
        for name in sorted(
            p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()
        ):  # what links lead to is read, too
            total.update(f"{name}\0{self.file(path / name)}\n".encode())
        return total.hexdigest()

    def remote(self, url: str, network: bool, where: str) -> str:
        """What pins a remote input: asked for, or without a network what it was when it was last asked for."""
        known = self._known.get(url)
        if network:
            digest = remote_digest(url, where)
            self._new |= known != [_REMOTE, digest]
            self._known[url] = [_REMOTE, digest]
            return digest
        if known:
            return known[1]
        raise UserError(
            f"what {url} holds is not known yet",
            "the plan does not ask the network",
            "`modelwright run` asks its server and remembers the answer; or fetch it yourself and name the file",
            where,
        )

    def fetched(self) -> Path:
        """Folder of remote inputs."""
        return (self._cache.parent if self._cache else Path()) / REMOTE

    def save(self) -> None:
        """Keep what was learned; `plan` never calls this."""
        if self._cache and self._new:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._cache, self._known)


def _files(folder: Path) -> list[str]:
    """Also what links lead to: a source reads it, and the Hub's cache holds nothing else."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def local(address: Address, folder: Path, where: str) -> Path:
    """The file or folder that a path reference names; UserError where it is not there or not readable."""
    path = Path(address.name).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.exists():
        raise UserError(
            f"there is no file or folder {address.name}",
            f"looked for {path}",
            "correct the path; it starts at the recipe's folder",
            where,
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{address.name} cannot be read", "permission denied", f"chmod +r {path}", where)
    return path


def hub_commit(address: Address, accepts: Accepts, network: bool, where: str) -> str:
    """The commit that an `hf:` reference means. A name such as `main` moves, so it is resolved before it enters a key."""
    if address.revision and COMMIT.match(address.revision):
        return address.revision
    revision = address.revision or "main"
    cached = _cached_commit(address.name, revision, repo_type(accepts))
    if cached and not network:
        return cached
    if not network:
        raise UserError(
            f"hf:{address.name}@{revision} is not pinned",
            "a branch moves, and the plan does not ask the network",
            f"write the commit: hf:{address.name}@<40 hex digits>; `modelwright run` resolves and prints it",
            where,
        )
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"hf:{address.name}") from None
    try:
        info = HfApi().repo_info(address.name, revision=revision, repo_type=repo_type(accepts))
    except Exception as error:  # the client's errors have no common base below OSError and ValueError
        if cached:
            return cached
        raise UserError(
            f"hf:{address.name}@{revision} cannot be resolved",
            f"{type(error).__name__}: {error}".splitlines()[0],
            "check the name and the network, or pin a commit that is in the local cache",
            where,
        ) from None
    assert info.sha is not None
    return info.sha


def hub_files(address: Address, commit: str, accepts: Accepts, where: str) -> Path:
    """The folder with the repository's files, from the local cache or the Hub. Never pickle, never code."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"hf:{address.name}") from None
    try:
        wanted = DATA_FILES if repo_type(accepts) == "dataset" else SAFE_FILES
        return Path(snapshot_download(address.name, revision=commit, repo_type=repo_type(accepts), allow_patterns=wanted))
    except Exception as error:  # as above
        raise _not_fetched(address, commit, f"{type(error).__name__}: {error}".splitlines()[0], where) from None


def hub_names(address: Address, commit: str, accepts: Accepts, where: str) -> list[str]:
    """The names of a repository's files; without a network those that the local cache has."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"hf:{address.name}") from None
    kind = repo_type(accepts)
    try:
        return sorted(HfApi().list_repo_files(address.name, revision=commit, repo_type=kind))
    except Exception as error:  # as above
        told = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        return _files(Path(snapshot_download(address.name, revision=commit, repo_type=kind, local_files_only=True)))
    except Exception:
        raise _not_fetched(address, commit, told, where) from None


def hub_file(address: Address, commit: str, name: str, accepts: Accepts, where: str) -> Path:
    """One file of a repository, from the local cache or the Hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(address.name, name, revision=commit, repo_type=repo_type(accepts)))
    except Exception as error:  # as above
        raise _not_fetched(address, commit, f"{name}: {type(error).__name__}: {error}".splitlines()[0], where) from None


def _not_fetched(address: Address, commit: str, why: str, where: str) -> UserError:
    return UserError(
        f"hf:{address.name}@{commit[:12]} cannot be fetched",
        why,
        "check the network and your access (`hf auth login` for a gated one), or use a local folder",
        where,
    )


_PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".rst", ".xml", ".warc", ".wet")
_WHOLE = (".parquet", ".zip", ".html", ".htm", ".xhtml", ".markdown", ".pdf", ".docx", ".epub", ".eml", ".mbox")
DATA_FILES = [
    *(f"*{end}{packing}" for end in _PLAIN for packing in ("", ".gz", ".bz2", ".xz", ".zst")),
    *(f"*{e}" for e in _WHOLE),
]
"""Of a dataset: whatever a source may read."""
SAFE_FILES = [
    "*.safetensors",
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.parquet",
    "*.csv",
    "*.md",
    "*.gguf",
    "*.jsonl.gz",
]


def repo_type(accepts: Accepts) -> str:
    return "dataset" if {"records", "crawl"} & {*accepts.types} else "model"


def _cached_commit(name: str, revision: str, kind: str) -> str | None:
    """What the Hub's local cache remembers of a branch; reads one small file, imports nothing."""
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub")
    ref = home / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None
