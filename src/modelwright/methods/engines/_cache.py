"""Answers kept on the disk, so that the same question is paid once. A file an answer, named by a digest of the whole request.

The file holds the answer alone: neither the question nor the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class Cache:
    """At most `limit_bytes` in `folder`; what was used longest ago goes first. Several processes may share one."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes, self._lock = folder, limit_bytes, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._bytes = sum(size for _, size, _ in self._files())

    def get(self, request: Any) -> Any:
        """None where it is not there, or is no whole file."""
        path = self._path(request)
        try:
            found = json.loads(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError):
            return None
        return found

    def put(self, request: Any, answer: Any) -> None:
        path, data = self._path(request), json.dumps(answer).encode()
        handle, name = tempfile.mkstemp(dir=self._folder)  # readable by its owner alone
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
        with self._lock:
            self._bytes += len(data)
            if self._bytes > self._limit_bytes:
                self._shrink()

    def _shrink(self) -> None:
        """To nine tenths, so that not every answer that comes needs a look at all files."""
        files = sorted(self._files())
        self._bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._bytes <= 0.9 * self._limit_bytes:
                return
            with suppress(FileNotFoundError):  # another process was faster
                path.unlink()
            self._bytes -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob("*.json"):
            with suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        return found

    def _path(self, request: Any) -> Path:
        text = json.dumps(request, sort_keys=True, separators=(",", ":"))
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
