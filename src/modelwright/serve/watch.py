"""The live page of a run: what the event files of a store say, put together anew each time the page asks. Reads files only.

It follows a `modelwright run` in another process, and shows what earlier ones left.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelwright.core.series import UNUSED, Points, Series, number, spread, thinned
from modelwright.core.store import MANIFEST, read_manifest
from modelwright.serve.app import POLICY
from modelwright.serve.errors import json_response
from modelwright.serve.guard import Guard, Rules
from modelwright.serve.run import Address, bind, url

EVENTS = "metrics.jsonl"
SHOWN, POINTS, NOTES = 40, 240, 30
"""Stages of a store, points of a line and notes that the page gets, the newest."""
LIVE_S = 30.0
"""A stage that told something so short ago is running: a training tells the machine's load every five seconds."""
READ_BYTES = 32 << 20
"""Most bytes of events that one look reads; the rest comes with the next."""
PAGE = {"/": ("watch.html", "text/html"), "/watch.css": ("watch.css", "text/css"), "/watch.js": ("watch.js", "text/javascript"),
        "/icon.svg": ("icon.svg", "image/svg+xml")}  # fmt: skip


class Wanted(NamedTuple):
    """A stage of a recipe, by what its folder is called."""

    name: str
    kind: str
    type: str
    key: str


class Place(NamedTuple):
    """A stage and its folder; None while nothing is there."""

    id: str
    name: str
    kind: str
    folder: Path | None


class _Told:
    """One stage's events, read as far as they are written."""

    def __init__(self) -> None:
        self._inode, self._offset = 0, 0
        self.forget()

    def forget(self) -> None:
        self._offset = 0
        self.series = Series()
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self.samples: list[dict[str, Any]] = []
        self.unreadable = 0
        self._drawn: tuple[int, dict[str, Any]] = (-1, {})

    def drawn(self) -> dict[str, Any]:
        """Numbers and charts; made anew only where something was told since."""
        if self._drawn[0] != self._offset:
            self._drawn = (self._offset, {"now": _now(self.series), "panels": _panels(self.series)})
        return self._drawn[1]

    def read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                status = path.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:  # begun anew
                    self.forget()
                    self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self.unreadable += 1
            return
        self.series.add(event)
        text = _sentence(event)
        if text:
            self.notes.append({"time_s": number(event, "time_s"), "text": text})
        if event["event"] == "samples" and isinstance(event.get("samples"), list):
            self.samples = event["samples"]


def _sentence(event: dict[str, Any]) -> str:
    """What an event says to people; '' where it is a number of the charts."""
    name = event["event"]
    if name in ("step", "validation", "load", "rates", "samples", "ledger", "overflow"):
        return ""
    if name == "note":
        return str(event.get("text", ""))
    if name == "check":
        return f"{'sound' if event.get('ok') else 'NOT SOUND'}: {event.get('check')}: {event.get('detail')}"
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "time_s"))
    return f"{name.replace('_', ' ')}{': ' if rest else ''}{rest}"


class Watch:
    """What there is to see. `wanted`: the stages of a recipe; None: the newest of the store."""

    def __init__(self, root: Path, title: str, wanted: Sequence[Wanted] | None = None) -> None:
        self.root, self.title, self._wanted = root, title, wanted
        self._told: dict[str, _Told] = {}
        self._lock = threading.Lock()

    def state(self, asked: str | None = None) -> dict[str, Any]:
        """JSON of everything; `asked`: the id of the stage to show, else the one that runs, else the newest."""
        with self._lock:
            places = self._recipe() if self._wanted is not None else self._store()
            stages = [self._summary(place) for place in places]
            chosen = next((at for at, stage in enumerate(stages) if stage["id"] == asked), None)
            if chosen is None:
                chosen = _liveliest(stages)
            detail = None if chosen is None else self._detail(places[chosen], stages[chosen])
            return {"title": self.title, "store": str(self.root), "stages": stages, "stage": detail}

    def _recipe(self) -> list[Place]:
        found = []
        for wanted in self._wanted or ():
            folders = sorted((self.root / wanted.type).glob(f"*-{wanted.key[:12]}*"))  # the finished one sorts before `.part`
            found.append(Place(f"{wanted.type}/{wanted.key[:12]}", wanted.name, wanted.kind, folders[0] if folders else None))
        return found

    def _store(self) -> list[Place]:
        """The stages that told something last, oldest first."""
        files = sorted(((_changed_s(path) or 0.0, path) for path in self.root.glob(f"*/*-*/{EVENTS}")), reverse=True)[:SHOWN]
        found = []
        for _, path in reversed(files):
            folder = path.parent
            name, _, key = folder.name.removesuffix(".part").rpartition("-")
            found.append(Place(f"{folder.parent.name}/{key}", name, _kind(folder), folder))
        return found

    def _summary(self, place: Place) -> dict[str, Any]:
        tree: dict[str, Any] = {"id": place.id, "name": place.name, "kind": place.kind, "state": "to do", "age_s": None}
        if place.folder is not None:
            changed_s = _changed_s(place.folder / EVENTS)
            age_s = None if changed_s is None else max(0.0, time.time() - changed_s)
            made = (place.folder / MANIFEST).exists()
            tree["age_s"] = age_s
            tree["state"] = "made" if made else "running" if age_s is not None and age_s < LIVE_S else "quiet"
        return tree

    def _detail(self, place: Place, summary: dict[str, Any]) -> dict[str, Any]:
        told = self._told.setdefault(place.id, _Told())
        samples: Any = []
        if place.folder is not None:
            told.read(place.folder / EVENTS)
            if summary["state"] == "made":
                samples = ((read_manifest(place.folder) or {}).get("stats") or {}).get("samples")
        samples = [s for s in (told.samples or samples or []) if isinstance(s, dict)]
        return {
            **summary,
            **told.drawn(),
            "samples": [{key: str(s.get(key, "")) for key in ("prompt", "answer")} for s in samples[:6]],
            "notes": list(told.notes)[::-1],
            "unreadable": told.unreadable,
        }


def _kind(folder: Path) -> str:
    """What the folder's own papers say; '' while they are being written."""
    manifest = read_manifest(folder)
    if manifest is not None:
        return str(manifest.get("kind", ""))
    try:
        return str(json.loads((folder / "part.json").read_text(encoding="utf-8"))["identity"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _changed_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # a folder gets its final name meanwhile
        return None


def _liveliest(stages: Sequence[dict[str, Any]]) -> int | None:
    """The stage to show when nobody asked for one."""
    there = [at for at, stage in enumerate(stages) if stage["age_s"] is not None]
    running = [at for at in there if stages[at]["state"] == "running"]
    trained = [at for at in there if stages[at]["kind"] == "train"]
    return min(running or trained or there, key=lambda at: stages[at]["age_s"], default=None)


def _now(series: Series) -> dict[str, Any]:
    """The newest numbers; what is not known is left out."""
    last, load = series.last, series.load
    speed, validation = series.speed(), series.validation()
    found: dict[str, Any] = {
        name: number(last, name) for name in ("step", "steps", "loss", "lr", "grad_norm", "tokens", "seconds")
    }
    found |= {name: count for name in UNUSED if (count := series.unused(name))}
    found["left_s"] = series.left_s()
    found["validation"] = validation[-1][1] if validation else None
    found["best_validation"] = min((value for _, value in validation), default=None)
    if speed:
        recent = [value for _, value in speed[-5:]]
        found["tokens_per_s"] = sum(recent) / len(recent)
        found["mfu"] = series.mfu_of(found["tokens_per_s"])
    found |= {name: number(load, name) for name in ("cpu_frac", "memory_bytes", "cpu_energy_j")}
    found["gpus"] = [
        {name: number(card, name) for name in ("index", "memory_bytes", "use_frac", "power_w", "energy_j")}
        for card in load.get("gpus", ())
    ]
    return {name: value for name, value in found.items() if value is not None}


def _panels(series: Series) -> list[dict[str, Any]]:
    """The charts, each with how its numbers are written."""
    checks = series.validation()
    own = [
        _panel("Loss", "number", series.points("loss"), checks),
        *(_panel(name.replace("_", " ").capitalize(), "number", series.points(name)) for name in _others(series)),
        _panel("Learning rate", "number", series.points("lr"), zero=True),
        _panel("Gradient norm", "number", series.points("grad_norm"), log=True),
        _panel("Tokens per second", "count", series.speed(), zero=True),
        _panel("MFU", "percent", series.mfu(), zero=True),
        _panel("Processor", "percent", series.load_points("cpu_frac"), zero=True),
        _panel("Memory", "bytes", series.load_points("memory_bytes"), zero=True),
    ]
    for gpu in series.gpus():
        own += [
            _panel(f"GPU {gpu} in use", "percent", series.load_points("use_frac", gpu), zero=True),
            _panel(f"GPU {gpu} memory", "bytes", series.load_points("memory_bytes", gpu), zero=True),
            _panel(f"GPU {gpu} power", "watts", series.load_points("power_w", gpu), zero=True),
        ]
    return [panel for panel in own if panel["points"] or panel["marks"]]


def _others(series: Series) -> list[str]:
    """Numbers that this objective or architecture tells beside the loss."""
    return [name for name in series.metrics() if name not in ("loss", "lr", "grad_norm")]


def _panel(
    title: str, unit: str, points: Points, marks: Points | None = None, *, zero: bool = False, log: bool = False
) -> dict[str, Any]:
    return {
        "title": title,
        "unit": unit,
        "points": [_short(point) for point in thinned(points, POINTS)],
        "marks": [_short(point) for point in thinned(marks or [], POINTS)],
        "zero": zero,
        "log": log and spread(points),
    }


def _short(point: tuple[float, float]) -> tuple[float, float]:
    return point[0], float(f"{point[1]:.5g}")


# --- the server ---------------------------------------------------------------------------------------


def create_app(watch: Watch, rules: Rules | None = None) -> Starlette:
    """The page and its data, behind the same door as the chat page."""
    folder = files("modelwright.serve") / "page"

    def page(request: Request) -> Response:
        file, kind = PAGE[request.url.path]
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response((folder / file).read_bytes(), media_type=kind, headers=headers)

    def state(request: Request) -> Response:
        return json_response(watch.state(request.query_params.get("stage")), headers={"cache-control": "no-store"})

    routes = [Route(path, page, methods=["GET"]) for path in PAGE] + [Route("/state.json", state, methods=["GET"])]
    return Starlette(routes=routes, middleware=[Middleware(Guard, rules=rules or Rules())])


def open_port(port: int) -> tuple[socket.socket, str]:
    """A port of this machine alone (0: a free one), and the page's address."""
    listener = bind(Address("127.0.0.1", port), None)
    return listener, url(listener)


def serve(watch: Watch, listener: socket.socket) -> None:
    """Until Ctrl-C."""
    config = uvicorn.Config(
        create_app(watch), log_level="error", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=1
    )
    with listener:
        try:
            asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
        except KeyboardInterrupt:  # uvicorn has ended in good order and raises the signal again
            return
