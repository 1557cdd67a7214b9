"""Rates that were measured on this machine, remembered in one file for all that ask: https://specifications.freedesktop.org/basedir-spec/latest/"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "modelwright" / "rates.json"


def known() -> dict[str, dict[str, Any]]:
    """Everything by what it was measured on; empty where there is nothing yet, or the file is torn."""
    with suppress(OSError, ValueError):
        found = json.loads(cache_file().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def remember(name: str, rates: Mapping[str, Any]) -> bool:
    """Beside what is there; False where the home cannot be written to, and it is measured again next time."""
    path = cache_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({**known(), name: rates}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
        return True
    return False
