"""`modelwright gc`: remove the artifacts that none of the recipes given needs. Shows first; deletes with --yes."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.core.gc import garbage
from modelwright.core.recipe import load
from modelwright.core.store import Store
from modelwright.core.units import bytes_text


def main(args: list[str]) -> int:
    options = parser(
        "gc", "Remove artifacts that none of these recipes needs as they are now. Without --yes it only shows them.", recipe=False
    )
    options.add_argument("recipes", nargs="+", type=Path, help="the recipes whose artifacts are kept")
    options.add_argument("--yes", action="store_true", help="delete")
    chosen = options.parse_args(args)
    store = Store(chosen.store)
    found = garbage(store, [load(path) for path in chosen.recipes])
    if chosen.yes:
        for item in found:
            shutil.rmtree(item.path)
    if chosen.json:
        print_json({"deleted": chosen.yes, "items": [item._asdict() for item in found]})
        return 0
    if found:
        print_table([{"artifact": str(i.path.relative_to(store.root)), "size": bytes_text(i.bytes), "why": i.why} for i in found])
    total = bytes_text(sum(i.bytes for i in found))
    print(
        f"{'deleted' if chosen.yes else 'would delete'} {len(found)} artifacts, {total}"
        + ("" if chosen.yes or not found else "; add --yes to do it")
    )
    return 0
