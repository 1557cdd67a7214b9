"""`modelwright where`: the file behind a line of a recipe."""

from __future__ import annotations

from pathlib import Path

from modelwright.cli._options import open_project, parser
from modelwright.cli._output import print_json
from modelwright.core.errors import UserError


def main(args: list[str]) -> int:
    options = parser(
        "where", "Print the file that a line of a recipe names: `modelwright where recipe.yaml --at stages.base.objective`."
    )
    options.add_argument("--at", metavar="PATH", help="dotted path of a kind (default: all of them)")
    chosen = options.parse_args(args)
    found: dict[str, str] = {}
    for name, stage in open_project(chosen).recipe.stages.items():
        for path, spec in [("", stage), *stage.children()]:
            import sys

            file = sys.modules[type(spec).__module__].__file__
            if "kind" in type(spec).model_fields and file:
                found[f"stages.{name}.{path}".rstrip(".")] = _short(file)
    if chosen.at is not None:
        if chosen.at not in found:
            raise UserError(f"{chosen.at!r} names no kind", fix=f"one of: {', '.join(found)}")
        found = {chosen.at: found[chosen.at]}
    if chosen.json:
        print_json(found)
    else:
        for path, file in found.items():
            print(f"{path:<40} {file}")
    return 0


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
