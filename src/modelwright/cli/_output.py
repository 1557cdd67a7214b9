"""Tables for people and JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError

NAME_WIDE = 24
"""Characters of a first column that is never broken."""


def print_json(tree: Any) -> None:
    print(json.dumps(tree, indent=1, ensure_ascii=False, default=str))


def check_place(path: Path | None) -> None:
    """UserError where `write_page` could not write there, before the work that fills the page."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}", fix="name a file in a folder of yours")
    if path is not None and path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder", fix="name a file in it")


def write_page(path: Path, text: str) -> None:
    """The whole file or nothing."""
    from modelwright.core.store import write_whole

    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written", error.strerror or str(error), "name a file in a folder of yours") from None


def print_table(rows: Sequence[dict[str, str]], *, title: str = "", colour: dict[str, dict[str, str]] | None = None) -> None:
    """Plain text where the output is no terminal; `colour` maps column -> value -> style elsewhere."""
    if not sys.stdout.isatty():
        from modelwright.core.units import text_table

        print((f"{title}\n" if title else "") + text_table(rows))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for place, name in enumerate(rows[0] if rows else ()):
        numeric = all(r.get(name, "")[:1].isdigit() or r.get(name, "") in ("", "free") for r in rows)
        whole = place == 0 and max(len(r.get(name, "")) for r in rows) <= NAME_WIDE  # other columns wrap before names do
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(Text(v, style=(colour or {}).get(n, {}).get(v, "")) for n, v in row.items()))
    Console().print(table)


STATE_COLOUR = {
    "state": {"cached": "green", "made": "bold green", "to do": "yellow", "unfinished": "yellow", "failed": "bold red"}
}
