"""Trackers: programs that keep the numbers of many trainings. One file a kind, thin over the program's own library.

They listen to the events that go to `metrics.jsonl`; the training loop does not know of them. Nothing leaves the machine
unless a field of the tracker says so, and the libraries' own usage reports are switched off.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any, Protocol

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.series import Series, number, tokens_per_s
from modelwright.core.spec import Kinds, Spec, kind_of

TRACKERS = Kinds(__name__, f"{__name__}:Tracker")

NO_REPORTS = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""What the libraries read to send no reports about their use; a user's own settings win."""


class Session(Protocol):
    """One training in a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, ok: bool) -> None:
        """`ok`: the training came to its end."""
        ...


class RunSession:
    """In a library that is called as wandb is."""

    def __init__(self, run: Any, finish: Callable[[bool], None]) -> None:
        self._run, self._finish = run, finish

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, ok: bool) -> None:
        self._finish(ok)


class Tracker(Spec):
    """A kind of tracker and its settings."""

    def open(self, name: str, config: Mapping[str, Any]) -> Session:
        """Begin the training `name`, or go on with it after a kill. `config`: dotted field -> value, for people."""
        raise NotImplementedError

    def where(self) -> str:
        """For people: where the numbers go and how to look at them."""
        raise NotImplementedError


def library(module: str, package: str) -> Any:
    """A tracker's own library, or the error that says how to install it."""
    for name, value in NO_REPORTS.items():
        os.environ.setdefault(name, value)
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"the tracker needs the package {package!r}, which is not installed", str(error), f"pip install {package}"
        ) from None


class Feed:
    """Listens to a log and hands a tracker the numbers of `step`, `validation` and `load` events."""

    def __init__(self, kind: str, session: Session, log: Log, sets: Sequence[str] = ()) -> None:
        self._kind, self._session, self._log = kind, session, log
        self._groups = _groups(sets)
        self._step, self._series = 0, Series()
        self._before: dict[str, Any] = {}
        self.broken = False

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        if self.broken or event not in ("step", "validation", "load", "rates"):
            return
        values = self._values(event, fields)
        if not values:
            return
        try:
            self._session.log(self._step, values)
        except Exception as error:  # hours of training do not end because another program does
            self.broken = True
            self._log.note(f"the tracker {self._kind} failed and gets no more numbers: {type(error).__name__}: {error}")

    def _values(self, event: str, fields: dict[str, Any]) -> dict[str, float]:
        if event == "rates":
            self._series.add({"event": event, **fields})
            return {}
        if event == "load":
            return {f"load/{name}": value for name, value in _flat_load(fields) if value is not None}
        self._step = int(fields["step"])
        group = "train" if event == "step" else self._groups.get(fields.get("set", ""), "validation")
        names = [name for name in fields if name not in ("step", "steps", "seconds")]
        found = {f"{group}/{name}": value for name in names if (value := number(fields, name)) is not None}
        if event == "step":
            speed, self._before = tokens_per_s(self._before, fields), fields
            if speed is not None:
                found["train/tokens_per_s"] = round(speed, 1)
                if (share := self._series.mfu_of(speed)) is not None:
                    found["train/mfu"] = round(share, 4)
        return found


def _groups(sets: Sequence[str]) -> dict[str, str]:
    """Under which name each validation set's numbers stand: a path of characters that every tracker takes, and each its own."""
    if len(sets) < 2:
        return {}
    names = [re.sub(r"[^\w.-]+", "_", name.removeprefix("./"), flags=re.ASCII) for name in sets]
    if len({*names}) < len({*sets}):
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    return {name: f"validation/{shown}" for name, shown in zip(sets, names, strict=True)}


def _flat_load(fields: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield from ((name, number(fields, name)) for name in fields)
    for card in fields.get("gpus", ()):
        yield from ((f"gpu{card['index']}_{name}", number(card, name)) for name in card if name != "index")


@contextmanager
def tracked(tracker: Tracker, name: str, config: Mapping[str, Any], log: Log, sets: Sequence[str] = ()) -> Iterator[None]:
    """Within the block the log's events go to `tracker`, too. `sets`: the validation sets, which are told apart where there are
    several."""
    kind = kind_of(tracker)
    with redirect_stdout(sys.stderr):  # libraries greet on the standard output, which may be our JSON
        session = tracker.open(name, config)
    log.note(f"tracked by {kind}: {tracker.where()}")
    feed, ok = Feed(kind, session, log, sets), False
    try:
        with log.also(feed):
            yield
        ok = True
    finally:
        try:
            with redirect_stdout(sys.stderr):
                session.close(ok)
        except Exception as error:  # as above: what was trained is kept
            log.note(f"the tracker {kind} could not be closed: {type(error).__name__}: {error}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as dotted names; unset ones are left out."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            found.update(flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}."))
        elif value is not None:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
