"""`modelwright new`: write a recipe to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelwright.core.errors import UserError


def main(args: list[str]) -> int:
    options = argparse.ArgumentParser(prog="modelwright new", description="Write a recipe with comments to start from.")
    options.add_argument("path", type=Path, nargs="?", help="the file to write, such as my-model.yaml")
    options.add_argument(
        "--from", dest="start", default="quickstart", metavar="NAME", help="which recipe to start from (default: quickstart)"
    )
    options.add_argument("--list", action="store_true", help="list the recipes to start from")
    chosen = options.parse_args(args)
    starts = {path.stem: path for path in sorted(_recipes().glob("*.yaml"))}
    if chosen.list or chosen.path is None:
        for name, path in starts.items():
            print(f"{name:<18} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        return 0
    if chosen.start not in starts:
        raise UserError(f"no recipe {chosen.start!r} to start from", fix=f"one of: {', '.join(starts)}")
    if chosen.path.exists():
        raise UserError(f"{chosen.path} is there already", fix="choose another name; nothing was written")
    if not chosen.path.parent.is_dir():
        raise UserError(f"there is no folder {chosen.path.parent}")
    chosen.path.write_text(starts[chosen.start].read_text(encoding="utf-8"), encoding="utf-8")
    print(f"wrote {chosen.path}\nnext: modelwright plan {chosen.path}")
    return 0


def _recipes() -> Path:
    """The recipes that we ship: inside the installed package, or beside the sources of a checkout."""
    shipped = Path(__file__).parent.parent / "recipes"
    return shipped if shipped.is_dir() else Path(__file__).parents[3] / "recipes"
