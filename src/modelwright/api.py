"""The Python API: `mw.load("recipe.yaml").plan()`, `.run()`, artifacts as objects with tables and plots."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from modelwright.core import environment
from modelwright.core import store as files
from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.events import Listener, read_events
from modelwright.core.execute import Outcome, execute, resolve_input
from modelwright.core.predict import as_told, givens, predict
from modelwright.core.preview import Preview
from modelwright.core.recipe import Loaded
from modelwright.core.recipe import load as load_recipe
from modelwright.core.spec import kind_of
from modelwright.core.stage import Check
from modelwright.core.steps import Step, prepare
from modelwright.core.units import count_text, text_table
from modelwright.core.why import Reason, why
from modelwright.plan import whole
from modelwright.plan._lint import Finding
from modelwright.plan.calibrate import calibrated
from modelwright.plan.fit import Tried, judge, tried
from modelwright.plan.lint import lint
from modelwright.plan.machine import this_machine
from modelwright.plan.models import with_sizes
from modelwright.plan.target import target
from modelwright.plan.whole import Plan

if TYPE_CHECKING:
    from modelwright.methods.formats import Format
    from modelwright.methods.sources._convert import Converted
    from modelwright.methods.templates import Template

STORE = Path("store")
"""Default folder of artifacts, in the folder where the command is given."""


def load(path: str | Path, *overrides: str, store: str | Path = STORE) -> Project:
    """A recipe, checked. `overrides` are dotted paths: `mw.load("r.yaml", "stages.base.steps=10")`."""
    environment.prepare()
    return Project(load_recipe(path, overrides), files.Store(store), Path(path))


class ArtifactView:
    """A finished artifact, opened: its manifest, its events, its numbers."""

    def __init__(self, artifact: files.Artifact) -> None:
        self.path, self.manifest = artifact.path, artifact.manifest

    @property
    def stats(self) -> dict[str, Any]:
        return dict(self.manifest["stats"])

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, all or those called `name`."""
        return list(read_events(self.path / "metrics.jsonl", name))

    def table(self) -> list[dict[str, str]]:
        """The numbers that matter for this type: metrics of an evaluation, else the plain values of `stats`."""
        if "metrics" in self.stats:
            return [
                {
                    "metric": m["name"],
                    "group": m["group"] or "all",
                    "value": f"{m['value']:.4g}",
                    "95 % interval": f"{m['low']:.4g} to {m['high']:.4g}",
                    "items": str(m["n"]),
                }
                for m in self.stats["metrics"]
            ]
        return [
            {"what": k, "value": count_text(v) if isinstance(v, (int, float)) else str(v)}
            for k, v in self.stats.items()
            if isinstance(v, (int, float, str))
        ]

    def plot(self) -> str:
        """Training curves as SVG; a notebook shows them (`IPython.display.SVG`)."""
        from modelwright.report import curves_svg

        return curves_svg(self.path)

    def engine(self) -> Any:
        """The model, open for generating (a context manager); see `modelwright.methods.engines.Engine`."""
        from modelwright.methods.engines import open_engine

        return open_engine(self.path)

    def __repr__(self) -> str:
        return f"<{self.manifest['type']} {self.path.name}>\n{text_table(self.table())}"


class Result(NamedTuple):
    """What a run did."""

    outcomes: list[Outcome]
    seconds: float
    report: Path | None

    def __getitem__(self, stage: Any) -> Any:
        for outcome in self.outcomes:
            if outcome.name == stage and outcome.artifact:
                return ArtifactView(outcome.artifact)
        raise KeyError(stage)


class Project:
    """A recipe with its store."""

    def __init__(self, loaded: Loaded, store: files.Store, path: Path) -> None:
        self.loaded, self.store, self.path = loaded, store, path

    @property
    def recipe(self) -> Any:
        return self.loaded.recipe

    def steps(self) -> list[Step]:
        """Every stage with its key and state."""
        return with_sizes(prepare(self.loaded, self.store))

    def plan(
        self,
        machine: Machine | str | None = None,
        count: int = 1,
        *,
        prices: str | Path | None = None,
        devices: str | Path | None = None,
    ) -> Plan:
        """Cached or to do, with time, memory, energy and money; imports no torch, touches no network, writes nothing. `machine`:
        a name in the table of devices (`modelwright bench devices`) and `count` of them, unset: this machine. `prices` and
        `devices`: files of your own, in the layout of those tables."""
        asked = target(machine, count, Path(prices) if prices else None, Path(devices) if devices else None)
        return whole.plan(self.loaded, self.steps(), asked, calibrated(self.store))

    def run(self, only: str | None = None, listener: Listener | None = None, gates: bool = True) -> Result:
        """Make what is missing; writes the report. Raises UserError when a stage cannot be made."""
        start = time.monotonic()
        outcomes: list[Outcome] = []
        for outcome in self.iterate(only, listener, gates):
            outcomes.append(outcome)
        seconds = time.monotonic() - start
        return Result(outcomes, seconds, self.write_report(outcomes, seconds))

    def iterate(self, only: str | None = None, listener: Listener | None = None, gates: bool = True) -> Iterator[Outcome]:
        """The same, one stage at a time. UserError where the recipe's budget does not hold the plan."""
        adjust = calibrated(self.store)
        steps = with_sizes(prepare(self.loaded, self.store, network=True))  # a run asks the Hub what a branch is
        if self.recipe.budget is not None:
            whole.plan(self.loaded, steps, target(), adjust).refuse()
        return execute(
            self.loaded,
            self.store,
            whole.of_run(self.loaded, this_machine()),
            listener or (lambda event, fields: None),
            adjust=adjust,
            only=only,
            gates=gates,
            look=partial(judge, adjust),
            steps=steps,
        )

    def tried(self, steps: Sequence[Step], machine: Machine | None = None) -> dict[str, Tried]:
        """Those of `steps` that are to be made, each with what it would take of the memory of `machine` (unset: this one)."""
        on = machine or whole.of_run(self.loaded, this_machine())
        parallel = whole.spread(self.loaded, steps, on)
        estimates = predict(steps, on, self.recipe.seed, parallel=parallel)
        found = givens(steps, estimates, on, self.recipe.seed, parallel)
        adjust = as_told if machine else calibrated(self.store)
        return {step.name: tried(step.stage, found[step.name], adjust) for step in steps if step.artifact is None}

    @staticmethod
    def lengths(steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
        """Histograms of rows by reference, of all that is made."""
        return {
            f"{step.name}:{part}" if part in step.stage.parts() else step.name: histogram
            for step in steps
            if step.artifact is not None
            for part, histogram in step.artifact.manifest["stats"].get("lengths", {}).items()
        }

    def why(self) -> list[Reason]:
        """Why each stage is cached or to do."""
        return why(self.steps(), self.store)

    def check(self) -> list[tuple[str, list[Check] | None]]:
        """The soundness checks of each stage; None where what it needs is not made yet."""
        from tempfile import TemporaryDirectory

        from modelwright.core.events import Log
        from modelwright.core.stage import Run

        found: list[tuple[str, list[Check] | None]] = []
        made: dict[str, files.Artifact] = {}
        for step in prepare(self.loaded, self.store, network=True):
            if step.artifact is not None:
                made[step.name] = step.artifact
            if any(p.stage is not None and p.stage not in made for p in step.parents):
                found.append((step.name, None))
                continue
            with TemporaryDirectory() as folder:
                inputs = {p.ref: resolve_input(p, made) for p in step.parents}
                runtime = self.recipe.runtime
                run = Run(Path(folder), inputs, self.recipe.seed, Log(None), parallel=runtime.parallel, launch=runtime.launch)
                found.append((step.name, list(step.stage.checks(run))))
        return found

    def pitfalls(self, data: bool = True) -> list[Finding]:
        """What known pitfalls the recipe has; `data`: in rows that are made and in files of the user's own, too."""
        machine, steps = this_machine(), self.steps()
        return lint(self.loaded, steps, predict(steps, machine, self.recipe.seed), machine, data=data)

    def preview(
        self, stage: str | None = None, *, rows: int = 5, row: str | None = None, look: int = 200, step: int | None = None
    ) -> Preview:
        """Rows of a training stage (unset: the last whose inputs are made) token by token, as its loss sees them; `print` it.
        `row`: the one record with this id. `look`: records of each source to count, 0 all. `step`: the rows of this step."""
        from tempfile import TemporaryDirectory

        from modelwright.core.events import Log
        from modelwright.core.stage import Run
        from modelwright.stages._train_choose import choose
        from modelwright.stages._train_preview import Asked, preview

        steps = prepare(self.loaded, self.store, network=True)
        made = {s.name: s.artifact for s in steps if s.artifact is not None}
        chosen = choose(steps, stage, self.path)
        with TemporaryDirectory() as folder:
            inputs = {p.ref: resolve_input(p, made) for p in chosen.parents if p.stage is None or p.stage in made}
            run = Run(Path(folder), inputs | chosen.instead, self.recipe.seed, Log(None))
            return preview(chosen.stage, run, chosen.name, Asked(rows, look, row), step)

    def artifact(self, stage: str) -> ArtifactView:
        """The finished artifact of a stage."""
        for step in self.steps():
            if step.name == stage:
                if step.artifact is None:
                    raise UserError(f"stage {stage!r} is not made yet", fix=f"modelwright run {self.path} --only {stage}")
                return ArtifactView(step.artifact)
        raise UserError(f"the recipe has no stage {stage!r}", fix=f"its stages: {', '.join(self.recipe.stages)}")

    def model_path(self) -> Path:
        """What `chat` and `serve` open: the last export, else the last model that is made."""
        steps = [s for s in self.steps() if s.artifact is not None]
        for type_ in ("export", "model"):
            for step in reversed(steps):
                if step.stage.produces == type_ and step.artifact is not None:
                    return Path(step.artifact.path)
        raise UserError(f"{self.path} has no finished model", fix=f"modelwright run {self.path}")

    def write_report(self, outcomes: Sequence[Outcome] = (), seconds: float = 0.0) -> Path | None:
        """The HTML report and the model card, under `<store>/reports/`; None where nothing is made yet."""
        from modelwright.report import RunView, StageView, model_card, render

        states = {o.name: o.state for o in outcomes}
        views = [
            StageView(
                s.name,
                kind_of(s.stage),
                states.get(s.name, s.state) if s.artifact else "missing",
                s.artifact.manifest if s.artifact else {},
                s.artifact.path if s.artifact else Path(),
                tuple(dict.fromkeys(p.stage for p in s.parents if p.stage is not None)),
            )
            for s in self.steps()
        ]
        if not any(view.manifest for view in views):
            return None
        view = RunView(
            self.recipe.name,
            self.loaded.tree.text,
            tuple(views),
            whole.machine_text(this_machine()),  # other stages of the recipe may be impossible
            time.strftime("%Y-%m-%d %H:%M"),
            seconds,
            self.recipe.description,
        )
        folder = Path(self.store.root) / "reports" / str(self.recipe.name)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("report.html", render(view)), ("model_card.md", model_card(view))):
            files.write_whole(folder / name, text)
        return folder / "report.html"


def preview_file(
    path: str | Path,
    tokenizer: str | Path,
    template: str | None = None,
    *,
    length: int = 512,
    rows: int = 5,
    row: str | None = None,
    look: int = 200,
) -> Preview:
    """A file of rows (chats, pairs, texts) token by token, with a tokenizer's folder and a chat template's kind (unset: its
    own)."""
    from modelwright.methods.templates import TEMPLATES
    from modelwright.nn.model import load_tokenizer
    from modelwright.stages._train_preview import Asked
    from modelwright.stages._train_preview import preview_file as look_at

    if not Path(path).exists():
        raise UserError(f"there is no file {path}")
    if template and template not in TEMPLATES.names():
        raise UserError(f"there is no chat template {template!r}", fix=f"known: {', '.join(TEMPLATES.names())}")
    spec = cast("Template", TEMPLATES.build(template)) if template else None
    return look_at(Path(path), load_tokenizer(tokenizer), spec, length, Asked(rows, look, row))


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    layout: str | None = None,
    *,
    on_bad: Literal["error", "drop"] = "error",
    spare: bool = False,
    force: bool = False,
) -> Converted:
    """Rows in another layout; see `modelwright convert --help`. `to` and `layout` name formats, or write one out as a recipe
    does: `{kind: prompt_completion, prompt: q, completion: a}`."""
    from modelwright.methods.sources import _convert as work_on

    spec = _format(layout) if layout else None
    return work_on.convert(Path(source), Path(target), _format(to), spec, on_bad=on_bad, spare=spare, force=force)


def _format(text: str) -> Format:
    import yaml
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    from modelwright.methods.formats import FORMATS

    try:
        return cast("Format", FORMATS.build(yaml.safe_load(text)))
    except (PydanticCustomError, ValidationError, yaml.YAMLError) as error:
        raise UserError(f"{text!r} is no format", str(error), f"known: {', '.join(FORMATS.names())}") from None
