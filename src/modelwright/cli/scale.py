"""`modelwright scale`: how large a model and how many tokens for a budget, by a published law or by that of one's own runs."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli import _options
from modelwright.cli._output import check_place, print_json, print_table, write_page
from modelwright.core.errors import UserError
from modelwright.core.units import count_text, duration_s, rate_text, seconds_text

if TYPE_CHECKING:
    from modelwright.plan._scaling_fit import Fitted
    from modelwright.plan._scaling_runs import Judged, Ladder
    from modelwright.plan.scaling import Law, Split
    from modelwright.plan.target import Target
    from modelwright.report.scaling import Budget, Point

ABOUT = (
    "How large a model and how many tokens to train it on: the least loss for a budget, under a published law or one fitted to "
    "your own small runs, with intervals and no word beyond what they tell."
)
KEPT = "predictions.jsonl"
"""In the store: what was said of runs that were not there yet."""
OTHERS = (0.25, 0.5, 2.0, 4.0)
"""Sizes beside the best one, as factors."""


def options() -> argparse.ArgumentParser:
    parse = _options.parser("scale", ABOUT, recipe=False)
    budget = parse.add_argument_group("the budget (one of them)")
    budget.add_argument("--flops", type=_options.count, metavar="N", help="floating-point operations: 1e18")
    budget.add_argument("--hours", type=float, metavar="H", help="hours on --device, or on this machine")
    budget.add_argument("--time", metavar="T", help="the same as 50m, 2h30m")
    budget.add_argument("--usd", type=float, metavar="N", help="dollars of rent of --device")
    parse.add_argument("--device", metavar="NAME", help="a device of the table (t4, a100-80, …); default: this machine")
    parse.add_argument("--devices", type=int, metavar="N", help="so many of it")
    parse.add_argument("--devices-file", type=Path, metavar="FILE", help="rows of your own beside the table of devices")
    parse.add_argument("--prices", type=Path, metavar="FILE", help="prices of your own, in the layout of plan/prices.yaml")
    parse.add_argument("--inference-tokens", type=_options.count, metavar="N", help="tokens that will be generated with it")
    parse.add_argument(
        "--unique-tokens", type=_options.count, metavar="N", help="tokens of text that there are: more means repeating"
    )
    parse.add_argument("--law", choices=("refitted", "chinchilla"), help="the published law (refitted)")
    own = parse.add_argument_group("your own ladder")
    own.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="FILE",
        help="fit the law to the store's runs, or to rows of a .csv, .jsonl or .json file",
    )
    own.add_argument("--ladder", type=int, metavar="N", help="which of the store's ladders (1: the most runs)")
    own.add_argument("--params", type=_options.count, metavar="N", help="with --tokens: predict the loss of such a run")
    own.add_argument("--tokens", type=_options.count, metavar="N", help="tokens of that run")
    parse.add_argument("--known", action="store_true", help="published runs, and what the law says of them")
    parse.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, too")
    return parse


def main(args: list[str]) -> int:
    from modelwright.plan.scaling import LAWS

    parse = options()
    given = parse.parse_args(args)
    flops, how = _flops(parse, given)
    _refuse_unread(parse, given, flops)
    check_place(given.html)
    law, points = LAWS[given.law or "refitted"], list["Point"]()
    tables: list[tuple[str, list[dict[str, str]]]] = []
    tree: dict[str, Any] = {}
    fitted: Fitted | None = None
    if given.fit is not None:
        fitted, points = _own(given, tables, tree)
        law = fitted.law
    budget = _budget(law, fitted, flops, how, given, tables, tree) if flops is not None else None
    if given.known:
        _known(law, tables, tree)
    if given.json:
        print_json(tree)
    else:
        for heading, rows in tables:
            print_table(rows, title=heading)
            print()
    if given.html is not None:
        from modelwright.report.scaling import page

        write_page(given.html, page(tables, budget, points))
        if not given.json:
            print(f"page: {given.html}")
    return 0


def _refuse_unread(parse: argparse.ArgumentParser, given: argparse.Namespace, flops: float | None) -> None:
    """Nothing that is typed does nothing."""
    if (given.params is None) != (given.tokens is None) or (given.params is not None and given.fit is None):
        parse.error("--params and --tokens go together, with --fit")
    if flops is None and given.fit is None and not given.known:
        parse.error("give a budget (--flops, --hours, --time, --usd), --fit or --known")
    if flops is None and (given.inference_tokens is not None or given.unique_tokens is not None):
        parse.error("--inference-tokens and --unique-tokens need a budget")
    if given.ladder is not None and given.fit != "":
        parse.error("--ladder goes with --fit without a file")
    if given.fit is not None and given.law is not None:
        parse.error("--law is a published one, and --fit one of your own: give one")
    if given.fit is not None and given.known:
        parse.error("--known goes with a published law: those runs are far beyond a ladder of your own")
    if 0.0 in (given.unique_tokens, given.params, given.tokens):
        parse.error("--unique-tokens, --params and --tokens are more than 0")


def _flops(parse: argparse.ArgumentParser, given: argparse.Namespace) -> tuple[float | None, str]:
    """Operations of the budget, and what does them; None where there is none."""
    named = [name for name in ("flops", "hours", "time", "usd") if getattr(given, name) is not None]
    if len(named) > 1:
        parse.error(f"--{' and --'.join(named)} say the same thing: give one")
    if given.device is None and (given.devices is not None or given.devices_file is not None):
        parse.error("--devices and --devices-file need --device")
    if given.prices is not None and given.usd is None:
        parse.error("--prices needs --usd")
    if not named or named == ["flops"]:
        if given.device is not None:
            parse.error("--device needs --hours, --time or --usd")
        return (given.flops, "") if named else (None, "")
    from modelwright.plan.target import target

    on = target(given.device, 1 if given.devices is None else given.devices, given.prices, given.devices_file)
    if given.usd is None:
        seconds, price = given.hours * 3600 if given.hours is not None else duration_s(given.time), ""
    else:
        seconds, price = _bought(parse, given.usd, on)
    if not seconds or not 0 < seconds < math.inf:
        parse.error("write a time as 50m or 2h30m, and more than none")
    type_, rate = on.machine.products("auto")
    told = f"{seconds_text(seconds)} of {on.machine.name}{price} at {rate_text(rate, 'FLOP/s')}"
    return seconds * rate, told + (f" in {type_} (`precision: auto`)" if type_ != "fp32" else "")


def _bought(parse: argparse.ArgumentParser, usd: float, on: Target) -> tuple[float, str]:
    """Seconds of rent, and whose price it is."""
    if not 0 < usd < math.inf:
        parse.error("--usd is more than 0")
    if on.rent is None or not on.rent.usd_per_hour:
        raise UserError(
            f"nobody told what {on.machine.name} costs",
            "its row is missing in the table of prices" if on.device else "it is this machine",
            "name a --device that is rented, or write its price into a file for --prices",
        )
    return usd / on.rent.usd_per_hour * 3600, f" for ${usd:g} ({on.rent.told})"


def _row(law: Law, split: Split, unique: float | None, what: str) -> dict[str, str]:
    from modelwright.plan.scaling import worth_tokens

    row = {
        "": what,
        "weights": count_text(split.params),
        "tokens": count_text(split.tokens),
        "tokens a weight": f"{split.tokens_per_param:.3g}",
        "loss": f"{split.loss:.3f}",
        "training": f"{split.training_flops:.2e} FLOP",
    }
    if split.inference_flops:
        row["answers"] = f"{split.inference_flops:.2e} FLOP"
    if unique is not None:
        row["epochs"] = f"{max(1.0, split.tokens / unique):.3g}"
        worth = worth_tokens(unique, split.tokens)
        row |= {"worth fresh tokens": count_text(worth), "loss with these": f"{law.loss(split.params, worth):.3f}"}
    return row


def _budget(
    law: Law,
    fitted: Fitted | None,
    flops: float,
    how: str,
    given: argparse.Namespace,
    tables: list[tuple[str, list[dict[str, str]]]],
    tree: dict[str, Any],
) -> Budget:
    """The best split and those beside it."""
    from modelwright.plan.scaling import best_split, given_size
    from modelwright.report.scaling import Budget

    answers = given.inference_tokens or 0.0
    best = best_split(law, flops, answers)
    rows, beside = [_row(law, best, given.unique_tokens, "best")], []
    tree["budget"] = {"flops": flops, "by": how, "law": law._asdict(), "best": best._asdict()}
    if fitted is not None:
        fitted.check(best.params, best.tokens)
        low, high = fitted.best_between(flops, answers)
        rows[0]["weights"] += f" (95 %: {count_text(low)} to {count_text(high)})"
        tree["budget"]["params_between"] = [low, high]
    sizes = [best.params * 2 ** (step / 4) for step in range(-16, 17)]
    for params in sizes:
        try:
            one = given_size(law, flops, params, answers)
        except UserError:
            break  # so large a model leaves nothing to train it with
        if fitted is None or not fitted.far(one.params, one.tokens):
            beside.append(one)
    for factor in OTHERS:
        if near := [one for one in beside if abs(one.params / best.params / factor - 1) < 0.01]:
            rows.append(_row(law, near[0], given.unique_tokens, f"{factor:g} times the size"))
    tables.append((f"{flops:.2e} operations{f', {how}' if how else ''}\nunder {law.source}", rows))
    said = f"{count_text(best.params)} weights, {count_text(best.tokens)} tokens"
    return Budget([one.params for one in beside], [one.loss for one in beside], (best.params, best.loss), said)


def _own(
    given: argparse.Namespace, tables: list[tuple[str, list[dict[str, str]]]], tree: dict[str, Any]
) -> tuple[Fitted, list[Point]]:
    """The law of the user's runs; what was predicted of it before, and what is now."""
    from modelwright.plan._scaling_fit import fit
    from modelwright.plan._scaling_runs import judged
    from modelwright.report.scaling import Point

    ladder, folder = _ladder(given)
    found = judged(_kept(folder), ladder)
    fitted = fit(ladder.runs)
    tables.append((f"{len(fitted.runs)} runs, loss {ladder.measured}", _fit_rows(fitted)))
    tables.append(("the law", _law_rows(fitted)))
    points = [Point(run.loss, fitted.law.loss(run.params, run.tokens)) for run in fitted.runs]
    points += [Point(one.run.loss, one.said.loss, (one.said.low, one.said.high)) for one in found]
    between = {name: list(fitted.between(name)) for name in fitted.law._fields[:-1]}
    tree["fit"] = {"law": fitted.law._asdict(), "between": between, "runs": [run._asdict() for run in fitted.runs]}
    if found:
        tables.append(("predicted before they ran", [_judged_row(one) for one in found]))
        tree["judged"] = [{**one.said._asdict(), "measured": one.run.loss, "inside": one.inside} for one in found]
    if given.params is not None:
        said = fitted.predict(given.params, given.tokens)
        rows = [{"weights": count_text(said.params), "tokens": count_text(said.tokens), "loss": _between(said)}]
        tables.append(("prediction", rows))
        tree["prediction"] = said._asdict()
        if folder is not None:
            entry = {"time": int(time.time()), "ladder": ladder.key, "runs": [run.name for run in ladder.runs], **said._asdict()}
            with (folder / KEPT).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
    return fitted, points


def _ladder(given: argparse.Namespace) -> tuple[Ladder, Path | None]:
    """The runs to fit to, and the folder where predictions of them are kept."""
    from modelwright.core.store import Store
    from modelwright.plan._scaling_runs import Ladder, ladders, read_runs

    if given.fit:
        return Ladder(given.fit, read_runs(Path(given.fit)), f"as {Path(given.fit).name} says"), None
    found = ladders(Store(given.store))
    number = 1 if given.ladder is None else given.ladder
    if not 1 <= number <= len(found):
        raise UserError(
            f"the store {given.store} has {len(found)} ladders" + (f", no number {number}" if found else ""),
            "a ladder is models trained from scratch with `next_token` on the same rows and vocabulary",
            "train some small ones of different depth and steps, or name a file: --fit runs.csv",
        )
    return found[number - 1], given.store


def _kept(folder: Path | None) -> list[Mapping[str, Any]]:
    from modelwright.plan._scaling_fit import Prediction

    if folder is None or not (folder / KEPT).exists():
        return []
    found: list[Mapping[str, Any]] = []
    names = {"ladder", "runs", *Prediction._fields}
    *lines, _torn = (folder / KEPT).read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict) or not names <= tree.keys():
            raise UserError(
                f"{folder / KEPT} line {number} is no prediction",
                "each line was written by `scale --fit --params … --tokens …`, and is held against the run that came",
                "take the line out, or bring back the file as it was",
            )
        found.append(tree)
    return found


def _fit_rows(fitted: Fitted) -> list[dict[str, str]]:
    return [
        {
            "run": run.name,
            "weights": count_text(run.params),
            "tokens": count_text(run.tokens),
            "measured": f"{run.loss:.4f}",
            "law": f"{(said := fitted.law.loss(run.params, run.tokens)):.4f}",
            "off": f"{run.loss / said - 1:+.2%}",
        }
        for run in fitted.runs
    ]


def _law_rows(fitted: Fitted) -> list[dict[str, str]]:
    names = {"irreducible": "E, nats", "params_power": "power of weights", "tokens_power": "power of tokens"}
    rows = []
    for name, said in names.items():
        low, high = fitted.between(name)
        rows.append({"": said, "value": f"{getattr(fitted.law, name):.3f}", "95 %": f"{low:.3f} to {high:.3f}"})
    return rows


def _judged_row(one: Judged) -> dict[str, str]:
    return {
        "run": one.run.name,
        "predicted": _between(one.said),
        "measured": f"{one.run.loss:.4f}",
        "off": f"{one.run.loss / one.said.loss - 1:+.2%}",
        "inside": "yes" if one.inside else "no",
    }


def _between(said: Any) -> str:
    return f"{said.loss:.4f} ({said.low:.4f} to {said.high:.4f})"


def _known(law: Law, tables: list[tuple[str, list[dict[str, str]]]], tree: dict[str, Any]) -> None:
    from modelwright.plan.scaling import KNOWN, best_split, training_flops

    rows: list[dict[str, str]] = []
    tree["known"] = []
    for run in KNOWN:
        flops = training_flops(run.params, run.tokens)
        best = best_split(law, flops)
        rows.append(
            {
                "run": run.name,
                "tokens": count_text(run.tokens),
                "tokens a weight": f"{run.tokens / run.params:.3g}",
                "operations": f"{flops:.2e}",
                "law's size": count_text(best.params),
                "law's tokens": count_text(best.tokens),
                "loss": f"{law.loss(run.params, run.tokens):.3f}",
                "best loss": f"{best.loss:.3f}",
            }
        )
        tree["known"].append({**run._asdict(), "loss": law.loss(run.params, run.tokens), "best": best._asdict()})
    tables.append((f"known runs (their sources: --json) under {law.source}", rows))
