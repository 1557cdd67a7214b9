"""Evaluate: a model's answers to held-out questions as numbers with intervals, beside those of another model on the same items.

Answers are greedy unless a decoder is named, and the same each time in any case: draws have seeds. How to compare: Miller 2024,
"Adding Error Bars to Evals", arXiv:2411.00640; the arithmetic is in `methods/tasks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Given, check_goes_on
from modelwright.core.measure import Laps
from modelwright.core.spec import Runtime, Spec, kind_of
from modelwright.core.stage import Accepts, Check, Input, Refs, Run, Stage, Stats, parse_ref
from modelwright.methods.decoders import DECODERS, Decoder
from modelwright.methods.engines import ENGINES, EngineSpec, open_engine, pick
from modelwright.methods.sources import open_records
from modelwright.methods.tasks import TASKS, Answer, Comparison, Likelihood, Metric, Task
from modelwright.stages import _evaluate_ask as asking
from modelwright.stages import _evaluate_cost as costs
from modelwright.stages import _evaluate_items as kept

GREEDY: Any = "greedy"


class Gate(Spec):
    """A number that must be reached; the stage fails where it is not, so that nothing is made of a bad model."""

    task: str = Field(examples=["exact_match"])
    """Name of the task: its kind, or its `label`."""
    metric: str = Field("", examples=["ROUGE-2"])
    """Which of the task's numbers; unset: its main one."""
    group: str = Field("", examples=["from=prompt"])
    """Which slice of the items; unset: all."""
    at_least: float | None = Field(None, examples=[0.5])
    """Smallest value that passes, in the metric's unit (shares from 0 to 1)."""
    at_most: float | None = Field(None, examples=[20.0])
    """Largest value that passes, for metrics where less is better."""
    not_worse_than_against: bool = Field(False, examples=[True])
    """Fail where the paired 95 % interval lies wholly on the worse side of the model in `against`."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.at_least is None and self.at_most is None and not self.not_worse_than_against:
            raise ValueError("a gate needs `at_least`, `at_most` or `not_worse_than_against`")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        if isinstance(context, Evaluate) and context.against is None and self.not_worse_than_against:
            return {"not_worse_than_against": "the stage has no `against`"}
        return {}


class Evaluate(Stage):
    """Asks a model what its tasks ask, and says what the answers are worth."""

    kind: Literal["evaluate"] = "evaluate"
    model: Annotated[str, Accepts(("model", "export"))]
    """The model: an earlier stage, a folder, or `hf:org/name@revision`."""
    data: Refs
    """Rows to ask about, which the model was not trained on; each is used once."""
    tasks: tuple[Annotated[Task, TASKS], ...] = Field(min_length=1)
    """What is measured. Tasks that ask the same thing of the same row share one answer."""
    against: Annotated[str | None, Accepts(("evaluation", "model", "export"))] = Field(None, examples=["before"])
    """What to compare with, on the same items: an earlier evaluation, whose stored scores are used, or a model, which is then
    asked here too."""
    engine: Annotated[EngineSpec, ENGINES] | None = Field(None, examples=["native"])
    """What runs the model; unset: llama.cpp for a GGUF file, else our own."""
    decoder: Annotated[Decoder, DECODERS] = Field(GREEDY, examples=[{"kind": "beam"}])
    """How answers in words are searched for; of several the best one is scored. The tokens that it spends are counted: what a
    dearer one gains, two evaluations of one model show. Default: the same answer each time, at the least cost."""
    gates: tuple[Gate, ...] = Field((), examples=[({"task": "exact_match", "at_least": 0.5},)])
    """Numbers that must be reached."""
    batch: Annotated[int, Runtime] = Field(512, ge=1, examples=[8])
    """Questions given to the engine at once; the engine batches them itself, so more leave it idle less often and
    only their texts take memory."""

    produces: ClassVar[str] = "evaluation"
    random: ClassVar[bool] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = Counter(task.name for task in self.tasks)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two tasks are called {twice[0]!r}: give one of them another `label`")
        if missing := [gate.task for gate in self.gates if gate.task not in names]:
            raise ValueError(f"a gate is about {missing[0]!r}, which is none of the tasks: {', '.join(names)}")
        if any(mix.weight is not None or mix.epochs is not None for mix in self.data):
            raise ValueError("`weight` and `epochs` are for training: an evaluation asks about each row once")
        if self.against == self.model:
            raise ValueError("`against` is the model itself: every difference would be zero")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        if any(task.new_tokens() for task in self.tasks):
            return {}
        return {"decoder": "no task asks for an answer in words"}

    def estimate(self, given: Given) -> Estimate:
        if self.engine is not None:
            self._able(self.engine)
        models = [self.model]
        if self.against is not None and given.parents[self.against].type != "evaluation":
            models.append(self.against)
        for ref in models:
            check_goes_on(ref, given.parents[ref])
            if self.engine is not None and ref in given.paths and (reason := self.engine.suits(given.paths[ref])):
                fix = "leave `engine` out: one is chosen"
                raise UserError(f"the engine `{kind_of(self.engine)}` cannot open {ref}", reason, fix)
        return costs.cost(models, [mix.ref for mix in self.data], self.tasks, self.decoder, self.batch, given, self.engine)

    def _able(self, engine: EngineSpec) -> None:
        """UserError where the decoder needs what this kind of engine never has."""
        if refusal := self.decoder.unable(engine):
            raise refusal

    def checks(self, run: Run) -> Iterator[Check]:
        rows = self._rows(run)
        spec = self.engine or pick(run.inputs[self.model].path).spec
        self._able(spec)
        for task in self.tasks:
            try:
                job = kept.job(task, rows)
            except UserError as error:
                yield Check(f"items of {task.name}", False, f"{error.what}; {error.why}", error.fix)
            else:
                if (fix := spec.lacks.get("score")) and any(isinstance(ask, Likelihood) for ask in job.asks):
                    yield Check(f"probabilities for {task.name}", False, "this engine gives none of a text", fix)
                left = "; ".join(f"{count} left out: {reason}" for reason, count in job.dropped.most_common())
                yield Check(
                    f"items of {task.name}", True, f"{len(job.samples)} of {len(rows)} rows" + (f"; {left}" if left else ""), ""
                )

    def run(self, run: Run) -> Stats:
        rows = self._rows(run)
        jobs = [kept.job(task, rows) for task in self.tasks]
        laps = run.laps or Laps()
        laps.start()
        before, earlier = self._before(run, jobs, laps)
        found = self._ask(run, self.model, jobs, laps)
        metrics: list[tuple[str, Metric]] = []
        for job, now in zip(jobs, found.items, strict=True):
            metrics += [(job.task.name, m) for m in job.task.summary(job.samples, [item.score for item in now])]
        comparisons, common = _compare(run, before, jobs, found.items, earlier)
        numbers = [{"task": name, **metric._asdict()} for name, metric in metrics]
        run.log.event("evaluation", metrics=numbers)
        items = kept.write(run.out / kept.FILE, jobs, found.items)
        return {
            "metrics": numbers,
            "comparisons": [{"task": name, **row._asdict()} for name, row in comparisons],
            "against": before,
            "samples": kept.shown(jobs, found.items, earlier),
            "tasks": {job.task.name: kept.scoring(job.task) for job in jobs},
            "rows": {job.task.name: {"items": len(job.samples), "left_out": dict(job.dropped)} for job in jobs},
            "common_items": common,
            "asked": dict(found.counts),
            "prompts": found.prompts,
            "engine": found.engine,
            "decoder": self.decoder.name if found.counts["answers"] else "",
            "gates": _gates(self.gates, metrics, comparisons, before),
            "facts": {"": {"type": "evaluation", "rows": items}},
        }

    def _rows(self, run: Run) -> list[Any]:
        return kept.unique(record for mix in self.data for record in open_records(run.inputs[mix.ref], run.log))

    def _before(self, run: Run, jobs: Sequence[kept.Job], laps: Laps) -> tuple[str, list[Mapping[str, kept.Item]]]:
        """What `against` is called and, by job, its items by id."""
        if self.against is None:
            return "", []
        given = run.inputs[self.against]
        name = str(given.stats.get("stage") or parse_ref(self.against).name)
        if given.type == "evaluation":
            return name, list(kept.stored(given, jobs))
        asked = self._ask(run, self.against, jobs, laps)
        return name, [
            {s.id: i for s, i in zip(j.samples, items, strict=True)} for j, items in zip(jobs, asked.items, strict=True)
        ]

    def _ask(self, run: Run, ref: str, jobs: Sequence[kept.Job], laps: Laps) -> Asked:
        """Every item of every job under one model."""
        given: Input = run.inputs[ref]
        spec, why = (self.engine, "the recipe says so") if self.engine is not None else pick(given.path)
        name = kind_of(spec)
        self._able(spec)
        decoder = self.decoder.placed(lambda folder: run.inputs[folder].path)
        run.log.note(f"{ref} runs on {name}: {why}")
        asks = {key: ask for job in jobs for key, ask in zip(job.keys, job.asks, strict=True)}
        counts = Counter(items=sum(len(job.samples) for job in jobs), different_asks=len(asks))
        with open_engine(given.path, spec) as engine:
            laps.done("imports+open")
            answers: dict[str, Answer] = dict(asking.answers(engine, asks, decoder, self.batch, run.log, ref, counts, laps))
            prompts = asking.describe(engine)
        for key, said in _SAID.items():
            if counts[key]:
                run.log.note(f"{ref}: {counts[key]} {said}")
        return Asked([job.items(answers) for job in jobs], counts, prompts, name)


class Asked(NamedTuple):
    """The items of every job under one model, and how they came about."""

    items: list[list[kept.Item]]
    counts: Counter[str]
    prompts: str
    engine: str


_SAID = {
    "prompts_without_room": "questions do not fit into the model's context and count as not answered",
    "answers_with_less_room": "answers had less room than `max_tokens`, because the prompt takes up the context",
    "prompt_tokens_cut": "tokens were cut from the start of prompts that do not fit into the context with their answer",
    "texts_in_windows": "texts are longer than the context and were scored in overlapping windows",
}
"""What is told when it happens; everything else is only counted."""


def _compare(
    run: Run,
    before: str,
    jobs: Sequence[kept.Job],
    items: Sequence[Sequence[kept.Item]],
    earlier: Sequence[Mapping[str, kept.Item]],
) -> tuple[list[tuple[str, Comparison]], dict[str, int]]:
    """Every task against the other model, and how many items both have."""
    rows: list[tuple[str, Comparison]] = []
    common: dict[str, int] = {}
    for job, now, then in zip(jobs, items, earlier, strict=False) if earlier else ():
        name = job.task.name
        paired = kept.pair(job, now, then)
        common[name] = paired.common
        if not paired.common:
            raise UserError(
                f"{before!r} has none of the items of the task {name!r}",
                "it was evaluated on other rows, so nothing can be paired",
                "give both evaluations the same data, or compare with a model",
            )
        if (alone := len(job.samples) - paired.common) > 0:
            run.log.note(f"{name}: {alone} of {len(job.samples)} items are not in {before!r} and are left out of the comparison")
        for note in paired.compared.notes:
            run.log.note(f"{name}: {note}")
        rows += [(name, row) for row in paired.compared.rows]
    return rows, common


def _gates(
    gates: Sequence[Gate], metrics: Sequence[tuple[str, Metric]], comparisons: Sequence[tuple[str, Comparison]], before: str
) -> list[dict[str, Any]]:
    """Each gate with its number; UserError that names all numbers where one is not passed."""
    rows, faults = [], []
    for gate in gates:
        own = [metric for name, metric in metrics if name == gate.task and (not gate.metric or metric.name == gate.metric)]
        metric = next((m for m in own if m.group == gate.group), None)
        if metric is None:
            have = ", ".join(dict.fromkeys(f"{m.name} of {m.group or 'all'}" for name, m in metrics if name == gate.task))
            raise UserError(
                f"a gate asks for {gate.metric or gate.task} of {gate.group or 'all'!r}, which was not measured",
                f"measured: {have}",
            )
        change = next((c for name, c in comparisons if name == gate.task and c[:2] == (metric.name, metric.group)), None)
        failed = _failed(gate, metric, change, before)
        faults += failed
        rows.append({**gate.model_dump(), "metric": metric.name, "value": metric.value, "passed": not failed})
    if faults:
        numbers = "; ".join(
            f"{name} {m.name} ({m.group or 'all'}) {m.value:.4g}, 95 % {m.low:.4g} to {m.high:.4g}, n = {m.n}"
            for name, m in metrics
        )
        raise UserError(
            "the evaluation did not pass: " + "; ".join(faults),
            f"all numbers: {numbers}",
            "improve the model (more steps, more or better data), or change the gate",
        )
    return rows


def _failed(gate: Gate, metric: Metric, change: Comparison | None, before: str) -> list[str]:
    what = f"{metric.name} of {gate.group or 'all'} is {metric.value:.4g}"
    found = []
    if gate.at_least is not None and metric.value < gate.at_least:
        found.append(f"{what}, at least {gate.at_least:g} was asked for")
    if gate.at_most is not None and metric.value > gate.at_most:
        found.append(f"{what}, at most {gate.at_most:g} was asked for")
    if gate.not_worse_than_against and change is None:
        found.append(f"{metric.name} could not be compared with {before!r}")
    if gate.not_worse_than_against and change is not None and change.better is False:
        found.append(f"{what}, worse than {change.before:.4g} of {before!r} (difference {change.low:.4g} to {change.high:.4g})")
    return found
