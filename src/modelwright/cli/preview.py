"""`modelwright preview`: rows of a training stage as coloured tokens, exactly as its loss sees them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from modelwright.cli._model import RECIPE_ENDS
from modelwright.cli._options import open_project, parser
from modelwright.cli._output import check_place, print_json, write_page
from modelwright.core.errors import UserError
from modelwright.core.preview import Preview, headline, summary, visible

if TYPE_CHECKING:
    from rich.text import Text

ABOUT = (
    "Show rows of a training stage token by token: what is trained on, what is context, what is cut, and why rows are left out. "
    "The stage is named behind the recipe: preview r.yaml chat."
)
STYLES = {
    "trained": ("black on #9fdcb2", "black on #7fcb98"),
    "context": ("", "white on grey23"),
    "cut": ("strike red", "strike bright_red"),
}
"""By state, for every other token, so that their borders show."""


def options() -> argparse.ArgumentParser:
    parse = parser("preview", ABOUT)
    parse.add_argument("--rows", type=int, default=5, metavar="N", help="rows to show (%(default)s)")
    parse.add_argument("--look", type=int, default=200, metavar="N", help="records of each source to count; 0: all (%(default)s)")
    parse.add_argument("--row", metavar="ID", help="the row of the record with this id")
    parse.add_argument("--step", type=int, metavar="N", help="the rows of training step N side by side, as they are packed")
    parse.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    alone = parse.add_argument_group("for a file of rows in a recipe's place")
    alone.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of a tokenizer or a model")
    alone.add_argument("--template", metavar="KIND", help="chat template (the tokenizer's own)")
    alone.add_argument("--length", type=int, metavar="N", help="most tokens of a row (512)")
    return parse


def main(args: list[str]) -> int:
    parse = options()
    given = parse.parse_args(args)
    if given.rows < 1 or given.look < 0:
        parse.error("--rows takes 1 or more, --look 0 or more")
    check_place(given.html)
    found = _of_recipe(given) if given.recipe.name.endswith(RECIPE_ENDS) else _of_file(given)
    if given.html:
        from modelwright.report.preview import page

        write_page(given.html, page(found))
    if given.json:
        print_json(found.tree())
    elif given.html:
        print("\n".join([*summary(found), f"page: {given.html}"]))
    elif sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        _coloured(found)
    else:
        print(found)
    return 0


def _of_recipe(given: argparse.Namespace) -> Preview:
    if alone := [f"--{name}" for name in ("tokenizer", "template", "length") if getattr(given, name) is not None]:
        raise UserError(f"{', '.join(alone)}: the recipe says that", fix="change the recipe: stages.NAME.length=256")
    stages = [text for text in given.overrides if "=" not in text]
    if len(stages) > 1:
        raise UserError(f"one stage at a time, not {', '.join(stages)}", fix="an override has the form path=value")
    given.overrides = [text for text in given.overrides if "=" in text]
    stage = stages[0] if stages else None
    return open_project(given).preview(stage, rows=given.rows, row=given.row, look=given.look, step=given.step)


def _of_file(given: argparse.Namespace) -> Preview:
    from modelwright.api import preview_file

    if given.overrides or given.step is not None:
        raise UserError(f"{given.recipe} is no recipe: it has no stages to change or to step through")
    if given.tokenizer is None:
        raise UserError(
            f"{given.recipe} is no recipe, so its tokens need a tokenizer",
            fix="give --tokenizer DIR (a tokenizer's or a model's folder), or name a recipe (.yaml)",
        )
    length = 512 if given.length is None else given.length
    return preview_file(
        given.recipe, given.tokenizer, given.template, length=length, rows=given.rows, row=given.row, look=given.look
    )


def _coloured(found: Preview) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(found.title, "bold"))
    for name, value in found.facts:
        console.print(Text(f"  {name}: ", "dim").append(value, "not dim"))
    console.print()
    console.print(Text("\n".join(summary(found))))
    console.print(_legend())
    for number, row in enumerate(found.rows, 1):
        console.print()
        console.rule(Text(headline(row, number), "bold red" if row.why else "bold"), align="left", style="dim")
        for part in row.parts:
            if part.name:
                console.print(Text(part.name, "dim italic"))
            shown = Text()
            for place, token in enumerate(part.tokens):
                style = STYLES[token.state][place % 2] + (" bold blue" if token.special else "") + " reverse" * token.ends
                shown.append(visible(token.text), style).append(token.label, "dim magenta").append("¶" * token.ends, "bold green")
            console.print(shown)


def _legend() -> Text:
    from rich.text import Text

    legend = Text()
    for state, said in (("trained", "trained, weight 1"), ("context", "context"), ("cut", "cut")):
        legend.append(said, STYLES[state][0]).append("  ")
    return legend.append("<mark>", "bold blue").append("  ¶ ends an answer, trained  ↵ line feed")
