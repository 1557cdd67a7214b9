"""`modelwright advise`: a method, a model to start from and a recipe, from your task, data, machine and budget."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelwright.cli import _options
from modelwright.cli._output import check_place, print_json, write_page
from modelwright.core.errors import UserError

if TYPE_CHECKING:
    from modelwright.cli._advise_print import Looks
    from modelwright.core.estimate import Machine
    from modelwright.plan._advise_seen import Seen
    from modelwright.plan.advise import Advised, Known

ABOUT = (
    "Advise a method, a model to start from and a recipe. Looks at your data, asks a few questions on a terminal (never "
    "elsewhere, nor with --yes) and takes options for answers. Says why, where each answer came from, and what would change it."
)
AMOUNTS = {
    "rows": "questions with good answers",
    "pairs": "prompts with a better and a worse answer",
    "ratings": "answers with thumbs up or down",
    "rankings": "prompts with several answers in order",
    "labelled": "texts with labels",
    "near": "pairs of texts that belong together",
    "text_tokens": "tokens of plain text of the field",
    "reading_tokens": "tokens of the documents that answers come from",
    "tasks": "tasks to be served from one model",
    "few_labels": "rows below which labels count as few (100,000; others say 1,000 or 100)",
}
SHARES = {
    "verifiable": "share of answers that a program can check",
    "passes": "share that the start gets right now",
    "traces": "share of rows that show the reasoning",
}
ANSWERS = {
    "fresh": "facts change oftener than a model would be trained again",
    "cited": "answers must name their source",
    "reasoning": "answers get better when the model thinks first",
    "base": "a public model knows this language and kind of data",
    "chats": "the start answers as an assistant already",
    "teacher": "a stronger model may be asked, and its answers used",
    "quality_first": "the last points of quality are worth ten times the work",
    "private": "data may not leave this machine",
}


def options() -> argparse.ArgumentParser:
    from modelwright.plan._advise_tree import Goal

    made = _options.parser("advise", ABOUT, recipe=False)
    made.add_argument("data", nargs="*", type=Path, metavar="DATA", help="your files or folders: rows, pairs, labels, documents")
    made.add_argument("--task", metavar="TEXT", help="what the model should do, in your words")
    made.add_argument("--goal", choices=Goal.__args__, help="the same as one of the tree's answers")  # type: ignore[attr-defined]
    made.add_argument(
        "--start", metavar="MODEL", help="the model to start from: a public one by name, a folder, hf:org/name@commit"
    )
    made.add_argument("--params", metavar="3B", help="its size, where only that is known")
    made.add_argument("--device", metavar="NAME", help="a device by name, such as t4 (default: this machine)")
    made.add_argument("--devices", type=int, default=1, metavar="N", help="so many of it (%(default)s)")
    made.add_argument("--devices-file", type=Path, metavar="FILE", help="rows of your own beside the table of devices")
    made.add_argument("--usd", type=_positive, metavar="N", help="what it may cost")
    made.add_argument("--hours", type=_positive, metavar="N", help="how long it may take (24)")
    made.add_argument("--usd-per-hour", type=_positive, metavar="N", help="price of the machine")
    made.add_argument("--target", choices=("laptop", "phone", "gpu", "same"), help="where the model is to run")
    made.add_argument("--target-memory", metavar="16GB", help="memory there")
    made.add_argument("--latency-ms", type=_positive, metavar="N", help="longest time for a token there")
    made.add_argument("--prompting", choices=("untried", "enough", "short"), help="what prompts alone reach")
    made.add_argument("--label-kind", choices=("texts", "words", "numbers"), help="what is labelled")
    made.add_argument("--verifier", metavar="NAME", help="what checks answers")
    for name, said in AMOUNTS.items():
        made.add_argument(_flag(name), type=_options.count, metavar="N", help=said)
    for name, said in SHARES.items():
        made.add_argument(_flag(name), type=_share, metavar="0..1", help=said)
    for name, said in ANSWERS.items():
        made.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=None, help=said)
    made.add_argument("--yes", action="store_true", help="ask nothing: assume what is not known, and say so")
    made.add_argument("--out", type=Path, metavar="FILE", help="where to write the recipe (advised.yaml)")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page with the path as a picture, too")
    return made


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _typed(name: str, value: Any) -> str:
    """An option as it was typed."""
    if isinstance(value, bool):
        return _flag(name) if value else f"--no-{_flag(name)[2:]}"
    return f"{_flag(name)} {value:g}" if isinstance(value, float) else f"{_flag(name)} {value}"


def _positive(text: str) -> float:
    if (value := _options.count(text)) <= 0:
        raise argparse.ArgumentTypeError("give more than 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("give a share from 0 to 1")
    return value


def main(args: list[str]) -> int:
    given = options().parse_args(args)
    out: Path = given.out or Path("advised.yaml")
    check_place(given.out)
    check_place(given.html)
    if given.out is not None and out.exists():
        raise UserError(f"{out} is there already", fix="choose another name; nothing was written")
    machine = _machine(given)
    seen = _look(given.data, out.parent)
    known = _known(given, seen, machine, out.parent)
    if not given.yes and not given.json and sys.stdin.isatty() and sys.stdout.isatty():
        from modelwright.cli._advise_talk import interview

        known = interview(known, bool(given.data))
    found = _advised(known, machine, given, seen, out)
    return _told(found, machine, given, out, seen.looks if seen is not None else ())


def _told(found: Advised, machine: Machine, given: argparse.Namespace, out: Path, looks: Looks) -> int:
    from modelwright.cli import _advise_print as printing

    written = _write(found.recipe, out) if found.recipe else ""
    if given.html:
        write_page(given.html, printing.page(found, machine, looks))
    if given.json:
        print_json(printing.tree(found, machine, written, looks))
    else:
        several = f" --devices {given.devices}" if given.devices > 1 else ""
        device = f" --device {given.device}{several}" if given.device else ""
        printing.show(found, machine, written, device, looks)
        if given.html:
            print(f"page: {given.html}")
    return 0


def _write(text: str, out: Path) -> str:
    """The file's name. A file that is there is never touched: it may be an earlier recipe, with work in it."""
    if out.exists():
        out = next(path for n in range(2, 10_000) if not (path := out.with_stem(f"{out.stem}-{n}")).exists())
    write_page(out, text)
    return str(out)


def _machine(given: argparse.Namespace) -> Machine:
    from modelwright.plan.devices import named
    from modelwright.plan.machine import this_machine

    if given.device is None and given.devices != 1:
        raise UserError("--devices needs a device", fix="name it with --device")
    found = named(given.device, given.devices, given.devices_file) if given.device else this_machine()
    return found._replace(usd_per_hour=given.usd_per_hour) if given.usd_per_hour else found


def _look(paths: list[Path], folder: Path) -> Seen | None:
    if not paths:
        return None
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    return seen([(path, probe([path])) for path in paths], folder)


def _known(given: argparse.Namespace, seen: Seen | None, machine: Machine, folder: Path) -> Known:
    """What options, data and the task's words say, in this order of trust."""
    from modelwright.core.units import bytes_of
    from modelwright.plan._advise_words import told
    from modelwright.plan.advise import Known, Situation

    fields: dict[str, Any] = {}
    origins: dict[str, tuple[Literal["flag", "asked", "data", "task", "runs", "reckoned", "assumed"], str]] = {}
    for field, (value, words) in (told(given.task) if given.task else {}).items():
        fields[field], origins[field] = value, ("task", words)
    if seen is not None:
        fields |= seen.fields
        origins |= seen.origins
    names = (*AMOUNTS, *SHARES, *ANSWERS, "goal", "usd", "hours", "target", "latency_ms", "prompting", "label_kind", "verifier")
    for name in names:
        if (value := getattr(given, name)) is not None:
            fields[name], origins[name] = value, ("flag", _typed(name, value))
    if given.target_memory:
        try:
            fields["target_bytes"] = bytes_of(given.target_memory)
        except ValueError as error:
            raise UserError(f"--target-memory {given.target_memory}", str(error)) from None
    if given.start or given.params:
        fields |= _start(given, folder)
        origins["shape"] = ("flag", f"--start {given.start}" if given.start else f"--params {given.params}")
    return Known(Situation(**fields, machine=machine), origins)


def _start(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The start's sizes and its reference in a recipe."""
    from modelwright.plan._advise_facts import data
    from modelwright.plan._advise_seen import written
    from modelwright.plan.models import named, of_folder, of_params

    if given.start is None:
        return {"shape": of_params(given.params).shape}
    for pinned in data().starts:
        if given.start in (pinned.name, pinned.start):
            return {"start": pinned.start, "shape": named(pinned.like).shape, "chats": pinned.chats}
    if (Path(given.start) / "config.json").is_file():
        return {"start": written(Path(given.start), folder), "shape": of_folder(Path(given.start)).shape}
    if given.start.startswith("hf:") and given.params:
        return {"start": given.start, "shape": of_params(given.params).shape}
    base = named(given.start.removeprefix("hf:").partition("@")[0])
    start = given.start if given.start.startswith("hf:") else f"hf:{base.hub}"
    return {"start": start, "shape": base.shape}


def _advised(known: Known, machine: Machine, given: argparse.Namespace, seen: Seen | None, out: Path) -> Advised:
    from modelwright.core.store import Store
    from modelwright.plan._advise_measured import gains
    from modelwright.plan.advise import advise

    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in out.stem.lower()).strip("-_0123456789") or "advised"
    measured = tuple(gains(Store(given.store))) if given.store.is_dir() else ()
    return advise(known, machine, measured, seen.files if seen is not None else None, name[:40])
