"""Lint: the field's known pitfalls as rules over a recipe and what is known of its stages, each with place, why and mending.

A rule that somebody knows better about is named in the recipe's head, `accept: [no-replay]`; one that is named and does not fire
is told, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelwright.core.estimate import Estimate, Machine
from modelwright.core.predict import known
from modelwright.core.recipe import Loaded
from modelwright.core.spec import kind_of
from modelwright.core.steps import Step
from modelwright.plan import _lint_device, _lint_recipe, _lint_settings
from modelwright.plan._lint import Finding, Look, Rule
from modelwright.plan._lint_data import Data

STATIC = _lint_recipe.RULES + _lint_settings.RULES + _lint_device.RULES
"""Rules that need no data."""


def rules() -> tuple[Rule, ...]:
    """Every rule; those that read rows import what they need."""
    from modelwright.plan import _lint_rows

    return STATIC + _lint_rows.RULES


def lint(
    loaded: Loaded, steps: Sequence[Step], estimates: Mapping[str, Estimate], machine: Machine, *, data: bool = False
) -> list[Finding]:
    """What to look at before running. `data`: also read rows that are made and files of the user's own."""
    chosen = rules() if data else STATIC
    found: list[Finding] = []
    for look in _looks(loaded, steps, estimates, machine, data):
        for rule in chosen:
            for fault in rule.find(look):
                where = loaded.tree.where(("stages", look.name, *fault.at))
                found.append(Finding(rule.name, rule.severity, look.name, where, fault.what, rule.why, fault.mend, rule.source))
    accepted = loaded.recipe.accept
    fired = {finding.rule for finding in found}
    found = [finding for finding in found if finding.rule not in accepted]
    return found + list(_idle(loaded, accepted, fired, {rule.name for rule in chosen}))


def _idle(loaded: Loaded, accepted: Sequence[str], fired: set[str], asked: set[str]) -> Iterator[Finding]:
    """Names in `accept` that silence nothing."""
    if not accepted:
        return
    names = [rule.name for rule in rules()]
    for index, name in enumerate(accepted):
        where = loaded.tree.where(("accept", index))
        why = "what is accepted without need would hide the same pitfall later"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"rules: {', '.join(names)}"
            yield Finding("accept", "hint", "", where, f"there is no rule {name!r}", why, mend, "")
        elif name in asked and name not in fired:
            yield Finding(
                "accept", "hint", "", where, f"{name!r} is accepted, and nothing here needs it", why, f"take {name!r} out", ""
            )


def _looks(
    loaded: Loaded, steps: Sequence[Step], estimates: Mapping[str, Estimate], machine: Machine, data: bool
) -> Iterator[Look]:
    stages: dict[str, Any] = {step.name: step.stage for step in steps}
    kinds = {step.name: kind_of(step.stage) for step in steps}
    facts = known(steps, estimates)
    rows = Data(steps) if data else None
    paths = {parent.ref: parent.path for step in steps for parent in step.parents if parent.path is not None}
    for step in steps:
        yield Look(
            step.name,
            kinds[step.name],
            step.stage,
            stages,
            kinds,
            facts[step.name],
            paths,
            estimates[step.name],
            machine,
            loaded.recipe.budget,
            rows,
            rows.folders(step) if rows is not None else {},
            step.artifact is not None,
        )


# --- for people ---------------------------------------------------------------------------------------


def lines(findings: Sequence[Finding], every: bool) -> list[str]:
    """What `plan` prints under its table: a line or two, or each with why and how to mend."""
    if not findings:
        return []
    if not every:
        named = ", ".join(dict.fromkeys(f"{one.rule}{f' in {one.stage}' if one.stage else ''}" for one in findings))
        return [
            f"pitfalls: {named}",
            "  --why tells why and how to mend each; `accept: [NAME]` in the recipe's head silences one",
        ]
    return [line for finding in findings for line in told(finding)]


def told(finding: Finding) -> list[str]:
    """One finding in full."""
    found = [f"\n{finding.severity}: {finding.rule} at {finding.where}", f"  {finding.what}", f"  why: {finding.why}"]
    return [*found, f"  mend: {finding.mend}", *([f"  source: {finding.source}"] if finding.source else [])]
