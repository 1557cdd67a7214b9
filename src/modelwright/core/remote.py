"""Remote inputs: `s3://`, `gs://`, `https://` and whatever fsspec opens; what pins one, and its files, fetched one by one.

Source: https://filesystem-spec.readthedocs.io. A file is pinned by what its server says of its content (an ETag, a digest), else
by size and time. Credentials are those that fsspec's own packages find; they have no place in a recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.store import write_json
from modelwright.core.units import bytes_text

_CONTENT = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "contentHash", "Digest", "checksum", "sha256")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")
_WHOLE = ".whole.json"


class Listed(NamedTuple):
    """A remote file, a folder's files, or those that a glob finds."""

    system: Any
    base: str
    """What names are relative to; '' for one file."""
    files: dict[str, Mapping[str, Any]]
    """Name -> what the server says of it."""

    def digest(self, url: str) -> str:
        total = hashlib.sha256()
        for name, facts in sorted(self.files.items()):
            total.update(f"{name}\0{_mark(facts, url, name)}\n".encode())
        return total.hexdigest()


def remote_digest(url: str, where: str) -> str:
    """What pins a remote input; asks its server."""
    return _listed(url, where).digest(url)


def remote_files(url: str, digest: str, cache: Path, where: str) -> Path:
    """The file or folder on this machine, fetched where it is not there yet; UserError where it is not what was pinned."""
    folder = cache / digest[:16]
    if not (folder / _WHOLE).exists():
        listed = _listed(url, where)
        _unchanged(listed, url, digest, where)
        _fetch(listed, folder, url, where)
        _unchanged(_listed(url, where), url, digest, where)
        write_json(folder / _WHOLE, {"url": url, "digest": digest, "single": "" if listed.base else next(iter(listed.files))})
    return folder / str(json.loads((folder / _WHOLE).read_text(encoding="utf-8"))["single"])


def _listed(url: str, where: str) -> Listed:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing_extra("fsspec", "remote", url) from None
    parts = urlsplit(url)
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        raise UserError(
            f"{parts.hostname}: a password has no place in a recipe", fix="set up fsspec's own credentials", where=where
        )
    try:
        system, path = url_to_fs(url)
        if any(sign in path for sign in "*["):
            base = path[: path.index(next(sign for sign in path if sign in "*["))].rpartition("/")[0]
            found = system.glob(path, detail=True)
        elif url.endswith("/"):
            base, found = path.rstrip("/"), system.find(path, detail=True)
        else:
            base, found = "", {path: system.info(path)}
    except UserError:
        raise
    except ImportError as error:  # each kind of address has a package of its own
        raise UserError(f"{url} cannot be opened", str(error), "pip install what it names", where) from None
    except Exception as error:  # every file system has errors of its own
        raise _failed(url, error, where) from None
    files = {_name(name, base): facts for name, facts in found.items() if facts.get("type", "file") == "file"}
    if not files:
        raise UserError(f"{url} holds no file", "a folder is written with a slash at its end", "correct the address", where)
    return Listed(system, base, files)


def _name(path: str, base: str) -> str:
    name = path[len(base) :].lstrip("/") if base else PurePosixPath(urlsplit(path).path or path).name
    if ".." in name.split("/") or not name:
        raise UserError(f"{path!r} is no name of a file", fix="correct the address")
    return name


def _mark(facts: Mapping[str, Any], url: str, name: str) -> str:
    for key in _CONTENT:
        if facts.get(key):
            return str(facts[key])
    time = next((facts[key] for key in _TIMES if facts.get(key)), None)
    if time is None:
        raise UserError(
            f"{url}: nothing tells whether {name} changes", "its server gives neither ETag nor time", "fetch it yourself"
        )
    return f"{facts.get('size')}:{time}"


def _unchanged(listed: Listed, url: str, digest: str, where: str) -> None:
    if listed.digest(url) != digest:
        raise UserError(f"{url} changed meanwhile", "its files are not those that the key was made of", "run it again", where)


def _fetch(listed: Listed, folder: Path, url: str, where: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    size_bytes = sum(int(facts.get("size") or 0) for facts in listed.files.values())
    if size_bytes > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{url} is {bytes_text(size_bytes)}, and {bytes_text(free)} are free", fix="free some space", where=where)
    for name, facts in sorted(listed.files.items()):
        target = folder / name
        if target.exists():
            continue  # whole: it was renamed last
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.half")
        try:
            listed.system.get_file(str(facts["name"]), str(half))
        except Exception as error:  # as above
            raise _failed(url, error, where) from None
        os.replace(half, target)


def _failed(url: str, error: Exception, where: str) -> UserError:
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(f"{url} cannot be fetched", told, "check the address, the network and your access", where)
