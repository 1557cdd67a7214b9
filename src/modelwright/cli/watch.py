"""`modelwright watch`: a live page of the run, in the browser."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from modelwright.cli import _options
from modelwright.cli._output import print_json
from modelwright.core.errors import UserError, missing_extra

if TYPE_CHECKING:
    from modelwright.serve.watch import Watch

ABOUT = "Show a run as it goes, on a page of this machine: losses, speed, time left, load, samples. Reads files only."


def parser() -> argparse.ArgumentParser:
    parse = _options.parser("watch", ABOUT, recipe=False)
    parse.add_argument("what", nargs="?", type=Path, help="a recipe.yaml, or a store's folder (default: the store, ./store)")
    _options.add_overrides(parse)
    parse.add_argument("--port", type=int, default=0, help="of the page; 0 takes a free one (%(default)s)")
    parse.add_argument("--open", action="store_true", help="open the page in the browser")
    return parse


def main(args: list[str]) -> int:
    given = parser().parse_args(args)
    try:
        from modelwright.serve import watch as live
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise
        raise missing_extra(package, "serve", "`modelwright watch`") from None
    watch = _watch(given)
    if given.json:
        print_json(watch.state())
        return 0
    listener, url = live.open_port(given.port)
    print(f"watching {watch.title} at {url}/ (Ctrl-C stops)", flush=True)
    if given.open:
        webbrowser.open(url)
    live.serve(watch, listener)
    return 0


def _watch(given: argparse.Namespace) -> Watch:
    from modelwright.core.spec import kind_of
    from modelwright.serve.watch import Wanted, Watch

    what: Path | None = given.what
    if what is None or what.suffix not in (".yaml", ".yml"):
        if given.overrides:
            raise UserError("overrides change a recipe, and none is given", fix="modelwright watch recipe.yaml path=value")
        if what is not None and not what.is_dir():
            raise UserError(f"there is neither a recipe nor a folder {str(what)!r}", fix="modelwright watch recipe.yaml")
        root = what or given.store
        return Watch(root, str(root))
    project = _options.open_project(argparse.Namespace(**{**vars(given), "recipe": what}))
    wanted = [Wanted(step.name, kind_of(step.stage), step.stage.produces, step.key) for step in project.steps()]
    return Watch(given.store, str(project.recipe.name), wanted)
