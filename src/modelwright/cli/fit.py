"""`modelwright fit`: what fits a device, the most of each number that still does, and what to change where nothing does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli import _options
from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.units import bytes_text, count_text

if TYPE_CHECKING:
    from modelwright.core.estimate import Machine
    from modelwright.plan.fit import Fits, Most
    from modelwright.plan.models import Base
    from modelwright.plan.needs import Need

ABOUT = (
    "Show what fits the memory of a device, or of this machine: each stage of a recipe; a model and a method; without either, "
    "which public models can be trained by which method. Every number is held against the high end of its interval."
)
METHOD, LENGTH, RANK = "lora", 2048, 16
"""Unless something else is asked for."""
VERDICT = {"verdict": {"fits": "green", "may not fit": "yellow", "does not fit": "bold red"}}


def options() -> argparse.ArgumentParser:
    made = _options.parser("fit", ABOUT, recipe=False)
    made.add_argument("recipe", nargs="?", type=Path, help="the recipe's .yaml file; without: the public models")
    _options.add_overrides(made)
    made.add_argument("--stage", metavar="NAME", help="this stage of the recipe alone; of one for --model, what it makes")
    made.add_argument("--device", metavar="NAME", help="a device by name, such as t4 (default: this machine)")
    made.add_argument("--devices", type=int, metavar="N", help="so many of it (1)")
    made.add_argument("--devices-file", type=Path, metavar="FILE", help="rows of your own beside the table of devices")
    made.add_argument("--params", metavar="3B", help="a model of so many weights, in place of a recipe")
    made.add_argument("--model", metavar="MODEL", help="a public model by name, a folder with config.json, or a recipe")
    made.add_argument("--serve", metavar="MODEL", help="the same, to be served: context and sequences")
    made.add_argument("--method", metavar="METHOD", help=f"full, lora, qlora, dpo or grpo ({METHOD})")
    made.add_argument("--length", type=int, metavar="TOKENS", help=f"of a row ({LENGTH})")
    made.add_argument("--rank", type=int, help=f"of LoRA ({RANK})")
    return made


def main(args: list[str]) -> int:
    parse = options()
    given = parse.parse_args(args)
    named = [name for name in ("recipe", "params", "model", "serve") if getattr(given, name) is not None]
    if len(named) > 1:
        parse.error("give one of: a recipe, --params, --model, --serve")
    _refuse_unread(parse, given, named[0] if named else "")
    given.method, given.length, given.rank = given.method or METHOD, given.length or LENGTH, given.rank or RANK
    machine = _machine(given)
    if given.recipe is not None:
        return _recipe(given, machine)
    if given.serve is not None:
        return _serve(given, _base(given.serve, given), machine)
    if given.params is not None or given.model is not None:
        from modelwright.plan.models import of_params

        return _model(given, of_params(given.params) if given.params else _base(given.model, given), machine)
    return _models(given, machine)


def _refuse_unread(parse: argparse.ArgumentParser, given: argparse.Namespace, what: str) -> None:
    """Nothing that is typed does nothing. `what` is asked about; '' for all public models."""
    training = {"params", "model"}
    goes_with = {"stage": {"recipe", "model", "serve"}, "method": training, "rank": training, "length": training | {""}}
    for option, asked in goes_with.items():
        if getattr(given, option) is not None and what not in asked:
            parse.error(f"--{option} goes with {' or '.join(_words(name) for name in sorted(asked))}")
    if given.device is None and (given.devices is not None or given.devices_file is not None):
        parse.error("--devices and --devices-file go with --device")
    if (given.length is not None and given.length < 8) or (given.rank is not None and given.rank < 1):
        parse.error("--length takes 8 or more, --rank 1 or more")


def _words(name: str) -> str:
    return {"": "the public models", "recipe": "a recipe"}.get(name, f"--{name}")


def _machine(given: argparse.Namespace) -> Machine:
    from modelwright.plan.devices import named
    from modelwright.plan.machine import this_machine

    if given.device is None:
        return this_machine()
    found = named(given.device, 1 if given.devices is None else given.devices, given.devices_file)
    if found.device == "tpu":
        raise UserError(f"nothing fits {found.name}: Modelwright does not train on TPUs", "its row is there for its price alone")
    return found


def _base(text: str, given: argparse.Namespace) -> Base:
    from modelwright.plan import models

    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return _of_recipe(path, given)
    if given.stage is not None:
        raise UserError(f"--stage goes with a recipe, and {text} is none", fix="leave it out, or name a .yaml file")
    return models.of_folder(path) if path.exists() else models.named(text)


def _of_recipe(path: Path, given: argparse.Namespace) -> Base:
    """The model that the recipe makes: that of its last stage, or of the one that is named."""
    from modelwright.api import load
    from modelwright.core.predict import predict
    from modelwright.plan.machine import this_machine
    from modelwright.plan.models import Base

    project = load(path, store=given.store)
    estimates = predict(project.steps(), this_machine(), project.recipe.seed)
    made = {name: one.facts[""] for name, one in estimates.items() if "" in one.facts and one.facts[""].shape is not None}
    if given.stage is not None and given.stage not in made:
        raise UserError(f"{path} has no stage {given.stage!r} that makes a model", fix=f"it has: {', '.join(made) or 'none'}")
    if not made:
        raise UserError(f"no stage of {path} makes a model", fix="name a recipe with a training, or a model")
    name = given.stage or list(made)[-1]
    shape, context = made[name].shape, made[name].context
    assert shape is not None
    return Base(f"{name} of {path.name}", shape, context=int(context or 0))


def _title(machine: Machine) -> str:
    card = f"{bytes_text(machine.device_memory_bytes)} on {'each' if machine.devices > 1 else 'the'} card, "
    if machine.one_memory:
        return f"{machine.name}: {bytes_text(machine.device_memory_bytes)} for processors and GPU"
    return f"{machine.name}: {card if machine.device_memory_bytes else ''}{bytes_text(machine.memory_bytes)} of main memory"


# --- a recipe ---------------------------------------------------------------------------------------


def _recipe(given: argparse.Namespace, machine: Machine) -> int:
    from modelwright.plan.fit import fit, most
    from modelwright.plan.models import unsized

    project = _options.open_project(given)
    names = [given.stage] if given.stage else list(project.recipe.stages)
    if given.stage and given.stage not in project.recipe.stages:
        raise UserError(f"the recipe has no stage {given.stage!r}", fix=f"its stages: {', '.join(project.recipe.stages)}")
    steps = project.steps()
    lengths = project.lengths(steps)
    stages = project.tried(steps, machine if given.device else None)
    trial = {name: now for name, now in stages.items() if name in names and now.needs}
    found = {name: (fit(now.stage, now.given, name, lengths, now.adjust), most(now)) for name, now in trial.items()}
    notes = [note for name, now in trial.items() if (note := unsized(name, now.stage, now.given.parents))]
    if given.json:
        print_json(
            {
                "machine": machine._asdict(),
                "notes": notes,
                "stages": {name: _tree(fits, largest) for name, (fits, largest) in found.items()},
            }
        )
        return 0
    print_table([_row(fits) for fits, _ in found.values()], title=_title(machine), colour=VERDICT)
    for note in notes:
        print(f"note: {note}")
    for name, (_, largest) in found.items():
        for one in largest:
            if one.value is not None:
                print(f"{name}: {_most(one)}")
    for fits, _ in found.values():
        _changes(fits)
    return 0


def _row(fits: Fits) -> dict[str, str]:
    need = fits.need
    return {"stage": fits.stage} | _need(need)


def _need(need: Need) -> dict[str, str]:
    return {
        "takes": bytes_text(need.takes.value),
        "at most": bytes_text(need.high_bytes),
        "of": f"{bytes_text(need.has_bytes)} {need.what}",
        "free": bytes_text(need.free_bytes),
        "verdict": need.verdict,
    }


def _most(one: Most) -> str:
    if one.value is None:
        return f"no {one.field} fit"
    return f"{one.field} up to {one.value:,}{f' ({one.limit})' if one.limit else ''}"


def _changes(fits: Fits) -> None:
    from modelwright.plan.fit import lines_of

    if fits.changes or not fits.need.fits:
        print(f"\n{fits.stage} {fits.need.verdict}: {fits.need.sum_text()}", *lines_of(fits), sep="\n")


def _tree(fits: Fits, largest: Sequence[Most]) -> dict[str, Any]:
    need = fits.need
    return {
        "takes_bytes": need.takes.value,
        "low_bytes": need.low_bytes,
        "high_bytes": need.high_bytes,
        "has_bytes": need.has_bytes,
        "memory": need.what,
        "verdict": need.verdict,
        "parts": [part._asdict() for part in need.parts],
        "most": {one.field: one.value for one in largest},
        "changes": [change._asdict() for change in fits.changes],
        "already": fits.already,
        "needed": fits.needed,
    }


# --- a model ----------------------------------------------------------------------------------------


def _model(given: argparse.Namespace, base: Base, machine: Machine) -> int:
    from modelwright.plan import _fit_models as models

    method = models.method_of(given.method)
    asked = models.Asked(given.method, given.length, rank=given.rank)
    now = models.training(base, asked, machine)
    fits = models.fits_of(now, given.method)
    largest = models.most_of(base, asked, machine)
    biggest = models.largest_base(asked, machine)
    if given.json:
        print_json(
            {"machine": machine._asdict(), "model": base.name, "largest_model": biggest and biggest.name, **_tree(fits, largest)}
        )
        return 0
    what = f"{method.title}{'' if method.here else ' (not here yet, for information)'}, rows of {given.length:,} tokens"
    print_table([{"model": base.name} | _need(need) for need in now.needs], title=f"{what}\n{_title(machine)}", colour=VERDICT)
    if base.read and not base.hub:
        print(f"model: {base.read}")
    if fits.need.fits or not fits.changes:
        print(f"sum: {now.need.sum_text()}")
    for one in largest:
        print(f"most: {_most(one)}")
    print(f"largest model: {f'{biggest.name}, {count_text(biggest.params)} weights' if biggest else 'none of the public ones'}")
    _changes(fits)
    return 0


def _models(given: argparse.Namespace, machine: Machine) -> int:
    """Every public model with every method."""
    from modelwright.plan import _fit_models as models
    from modelwright.plan._fit_serve import need as serving
    from modelwright.plan.models import bases

    rows, tree = [], []
    for base in bases():
        cells = {name: models.cell(base, name, machine, given.length) for name in models.METHODS}
        served = {kind: serving(base, kind, "f16", given.length, 1, machine) for kind in ("bf16", "q4_k_m")}
        rows.append(
            {"model": base.name, "weights": count_text(base.params)}
            | {_marked(name): _cell(found.need, found.again) for name, found in cells.items()}
            | {kind: _cell(need, False) for kind, need in served.items()}
        )
        tree.append(
            {"model": base.name, "hub": base.hub, "params": base.params, "read": base.read}
            | {name: {"free_bytes": found.need.free_bytes, "recompute": found.again} for name, found in cells.items()}
            | {f"serve_{kind}": {"free_bytes": need.free_bytes} for kind, need in served.items()}
        )
    if given.json:
        print_json({"machine": machine._asdict(), "length": given.length, "models": tree})
        return 0
    print_table(rows, title=f"GB of memory left, with one row of {given.length:,} tokens at once\n{_title(machine)}")
    print("-: does not fit; r: with `recompute: full`; *: not here yet; bf16, q4_k_m: only served")
    print("`modelwright fit --model NAME --method METHOD` shows the sum of one")
    return 0


def _marked(name: str) -> str:
    from modelwright.plan._fit_models import METHODS

    return name if METHODS[name].here else f"{name}*"


def _cell(need: Need, again: bool) -> str:
    return f"{need.free_bytes / 1e9:.1f}{' r' if again else ''}" if need.fits else "-"


def _serve(given: argparse.Namespace, base: Base, machine: Machine) -> int:
    from modelwright.plan._fit_serve import MOST_SEQUENCES, contexts, serving

    found = serving(base, machine)
    if given.json:
        print_json(
            {
                "machine": machine._asdict(),
                "model": base.name,
                "contexts": contexts(base),
                "serving": [one._asdict() for one in found],
            }
        )
        return 0
    rows = []
    for one in (one for one in found if one.longest is not None):
        row = {"weights": one.weights, "keys, values": one.cache if one.here else f"{one.cache}*"}
        row["longest"] = f"{one.longest:,}"
        for size, count in zip(contexts(base), one.sequences, strict=True):
            more = "+" if count == MOST_SEQUENCES else ""
            row[f"{size // 1024}k" if size >= 1024 else str(size)] = "-" if count is None else f"{count}{more}"
        rows.append(row)
    print_table(rows, title=f"{base.name}: sequences at once, by their length\n{_title(machine)}")
    if nowhere := list(dict.fromkeys(one.weights for one in found if one.longest is None)):
        print(f"not even weights and one token fit: {', '.join(nowhere)}")
    print("-: does not fit; *: no engine here has it yet. The longest is one sequence's, up to what the model was made for.")
    return 0
