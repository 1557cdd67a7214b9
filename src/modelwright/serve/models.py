"""Several models and adapters behind one server: opened when they are asked for, closed when memory is needed and they are idle.

A model is opened once however many ask for it, the one that has been idle longest makes room, and a model in use is never closed.
An adapter is loaded into its model's engine under a name of ours, so that one of the same name may take its place while answers
with the old one go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from anyio.to_thread import run_sync

from modelwright.core.errors import UserError
from modelwright.methods.engines import Adapting, Engine
from modelwright.methods.engines._supervised import taken_bytes
from modelwright.serve.errors import ApiError


class Source(NamedTuple):
    """A model that can be opened."""

    name: str
    open: Callable[[], Engine]
    bytes: int = 0
    """Memory that it takes when it is open, as `memory_bytes` estimates it; 0: not counted."""


class Lease:
    """A model in use. `release` it once."""

    def __init__(self, models: Models, held: _Held, name: str, adapter: _Adapter | None) -> None:
        assert held.engine is not None
        self.engine, self.name = held.engine, name
        self.adapter = adapter.inner if adapter else ""
        """The adapter's name in the engine."""
        self._models, self._held, self._adapter = models, held, adapter
        held.users += 1
        if adapter:
            adapter.users += 1

    def release(self) -> None:
        self._held.users -= 1
        self._held.used_s = time.monotonic()
        if self._adapter:
            self._adapter.users -= 1
            self._models.sweep(self._held, self._adapter)


class _Adapter:
    def __init__(self, name: str, base: str, folder: Path, inner: str) -> None:
        self.name, self.base, self.folder, self.inner = name, base, folder, inner
        self.users = 0
        self.gone = False
        """No new answer may use it; it leaves the engine with its last user."""


class _Held:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.bytes = source.bytes
        """Memory that it takes, or took when it was open last: as measured, where that is more than was estimated."""
        self.engine: Engine | None = None
        self.users = 0
        self.used_s = 0.0
        self.ours = True
        """To close."""
        self.opening: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()
        """Of its adapters."""
        self.loaded: set[str] = set()
        """Adapters that the engine has, by our names."""


class Models:
    """What a server can answer with. Used from one event loop."""

    def __init__(self, sources: Sequence[Source], memory_bytes: int = 0) -> None:
        """`memory_bytes`: of all open models together; 0: no limit."""
        if not sources:
            raise UserError("there is no model to serve", fix="name one")
        if len({source.name for source in sources}) < len(sources):
            raise UserError("two models have the same name", fix="give each its own: --model NAME=PATH")
        self._held = {source.name: _Held(source) for source in sources}
        self._adapters: dict[str, _Adapter] = {}
        self._memory_bytes = memory_bytes
        self._made = 0
        self._lock = asyncio.Lock()
        """One model is opened at a time: the room that it takes is known before the next one asks for some."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.created = int(time.time())

    @classmethod
    def of(cls, engine: Engine, name: str) -> Models:
        """One engine that is open already, and which its owner closes."""
        models = cls([Source(name, lambda: engine)])
        models._held[name].engine, models._held[name].ours = engine, False
        return models

    def hold(self, name: str, engine: Engine) -> None:
        """The model is open already; it is closed as if `take` had opened it."""
        self._held[name].engine = engine

    @property
    def names(self) -> list[str]:
        """Models, then adapters."""
        return [*self._held, *self._adapters]

    def base_of(self, name: str) -> str:
        """The model that `name` is, or is an adapter of; 404 where there is none."""
        if name in self._held:
            return name
        base, _, adapter = name.rpartition(":")
        found = self._adapters.get(name) or self._adapters.get(adapter if base in self._held else "")
        if found is None or (found.name != name and found.base != base):
            known = ", ".join(map(repr, self.names))
            raise ApiError(404, f"there is no model {name!r}; this server has {known}", param="model", code="model_not_found")
        return found.base

    def adapter_of(self, name: str) -> str:
        """The adapter's own name; '' for a model."""
        base = self.base_of(name)
        return "" if name in self._held else name if name in self._adapters else name.removeprefix(f"{base}:")

    async def take(self, name: str) -> Lease:
        """The model, opened where it is not; UserError or ApiError where it cannot be."""
        held = self._held[self.base_of(name)]
        adapter = self._adapters.get(self.adapter_of(name))
        held.users += 1  # not to be closed while we wait
        try:
            if held.engine is None:
                if held.opening is None:
                    held.opening = asyncio.create_task(self._open(held))
                    # its fault is known, where everybody who waited has gone, too
                    held.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
                await asyncio.shield(held.opening)  # a client that hangs up does not stop it: others may wait
            if adapter:
                async with held.lock:
                    if adapter.inner not in held.loaded:
                        await self._load(held, adapter)
            return Lease(self, held, name, adapter)
        finally:
            held.users -= 1

    async def _open(self, held: _Held) -> None:
        try:
            async with self._lock:
                await self._make_room(held)
                held.engine = await run_sync(held.source.open)
        except UserError as error:
            raise ApiError(500, f"the model {held.source.name!r} cannot be opened: {error}", code="model_unavailable") from error
        finally:
            held.opening = None

    async def _make_room(self, wanted: _Held) -> None:
        source = wanted.source
        if not self._memory_bytes or not source.bytes:
            return
        if source.bytes > self._memory_bytes:
            raise ApiError(400, f"the model {source.name!r} takes {_size(source.bytes)}; this server may use "
                                f"{_size(self._memory_bytes)}", param="model", code="model_too_large")  # fmt: skip
        open_now = [held for held in self._held.values() if held.engine is not None and held.source.bytes]
        await run_sync(_measure, open_now)
        room = self._memory_bytes - min(wanted.bytes, self._memory_bytes)  # alone, it may take more than was estimated
        if sum(held.bytes for held in open_now if held.users) > room:
            raise self._no_memory(wanted, open_now)  # before others are closed for nothing
        for held in sorted(open_now, key=lambda held: held.used_s):
            if sum(held.bytes for held in open_now) <= room:
                return
            if not held.users:
                open_now.remove(held)
                await self._close(held)
        if sum(held.bytes for held in open_now) > room:  # one was asked for meanwhile
            raise self._no_memory(wanted, open_now)

    def _no_memory(self, wanted: _Held, open_now: Sequence[_Held]) -> ApiError:
        used = sum(held.bytes for held in open_now if held.users)
        return ApiError(503, f"the model {wanted.source.name!r} takes {_size(wanted.bytes)}; of {_size(self._memory_bytes)} "
                             f"models that are answering use {_size(used)}: try again later",
                        param="model", code="no_memory", retry_s=10)  # fmt: skip

    async def _close(self, held: _Held) -> None:
        engine, held.engine = held.engine, None
        held.loaded.clear()
        if engine is not None:
            await run_sync(engine.close)

    async def close(self) -> None:
        """Every model that `take` opened."""
        for held in self._held.values():
            if held.opening is not None:
                await asyncio.wait([held.opening])
            if held.ours:
                await self._close(held)

    # --- adapters ---

    def add(self, name: str, base: str, folder: Path) -> None:
        """An adapter to serve, loaded when it is asked for."""
        if name in self._adapters:
            raise UserError(f"two adapters are called {name!r}", fix="give each a name of its own: --adapter [MODEL:]NAME=PATH")
        self._add(name, base, folder)

    def _add(self, name: str, base: str, folder: Path) -> None:
        if name in self._held or ":" in name or not name:
            raise UserError(
                f"an adapter cannot be called {name!r}", "a model has that name, or it holds a colon", "choose another"
            )
        if base not in self._held:
            raise UserError(f"there is no model {base!r} for the adapter {name!r}", fix=f"one of {', '.join(self._held)}")
        self._made += 1
        self._adapters[name] = _Adapter(name, base, folder, f"{name}#{self._made}")

    def base_for(self, name: str) -> str:
        """The model that an adapter of this name is for, where nobody says: that of the one whose place it takes, or the only
        one; else 400."""
        if name in self._adapters:
            return self._adapters[name].base
        if len(self._held) > 1:
            raise ApiError(400, f"base_model_name: say which model the adapter is for: {', '.join(self._held)}",
                           param="base_model_name", code="no_base_model")  # fmt: skip
        return next(iter(self._held))

    async def swap(self, name: str, base: str, folder: Path) -> None:
        """An adapter, loaded now; one of the same name leaves once its last answer has ended."""
        old = self._adapters.get(name)
        self._add(name, base, folder)
        try:
            lease = await self.take(name)
        except BaseException:
            if old is None:
                del self._adapters[name]
            else:
                self._adapters[name] = old
            raise
        lease.release()
        if old is not None:
            self._retire(old)

    def drop(self, name: str) -> None:
        """404 where there is none."""
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise ApiError(404, f"there is no adapter {name!r}", param="lora_name", code="adapter_not_found")
        self._retire(adapter)

    def _retire(self, adapter: _Adapter) -> None:
        adapter.gone = True
        self.sweep(self._held[adapter.base], adapter)

    def sweep(self, held: _Held, adapter: _Adapter) -> None:
        """Take an adapter that is gone out of the engine, when nobody uses it."""

        async def unload(engine: Engine) -> None:
            async with held.lock:  # somebody who asked before it was gone may have loaded it again
                if adapter.inner not in held.loaded and held.engine is engine:
                    await run_sync(cast(Adapting, engine).unload_adapter, adapter.inner)

        if adapter.gone and not adapter.users and adapter.inner in held.loaded and held.engine is not None:
            held.loaded.discard(adapter.inner)
            task = asyncio.create_task(unload(held.engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _load(self, held: _Held, adapter: _Adapter) -> None:
        assert held.engine is not None
        if "adapters" not in held.engine.capabilities:
            raise ApiError(400, f"the engine of {adapter.base!r} takes no adapters", param="model", code="unsupported")
        held.loaded.add(adapter.inner)  # now: a client that hangs up ends our wait, not the load
        try:
            await run_sync(cast(Adapting, held.engine).load_adapter, adapter.inner, adapter.folder)
        except Exception:
            held.loaded.discard(adapter.inner)
            raise

    def about(self, name: str) -> dict[str, Any]:
        """The model as `/v1/models` lists it; what only an open engine knows is null before."""
        held = self._held[self.base_of(name)]
        engine = held.engine
        found = {"id": name, "object": "model", "created": self.created, "owned_by": "modelwright", "open": engine is not None,
                 "context": engine.context if engine else None,
                 "max_model_len": engine.context if engine else None,  # as vLLM calls it, and clients look for it
                 "capabilities": sorted(engine.capabilities) if engine else None}  # fmt: skip
        if (adapter := self._adapters.get(name)) is not None:
            found |= {"parent": adapter.base}
        return found


def _measure(opened: Sequence[_Held]) -> None:
    """What each takes now: its caches grow, and a process has more in it than weights."""
    for held in opened:
        if held.engine is not None:
            held.bytes = max(held.source.bytes, taken_bytes(held.engine))


def memory_bytes(model: Path, number_bytes: int = 4) -> int:
    """An estimate of what a model takes when it is open: its weights, with so many bytes a number (4: `native`'s default) or as a
    GGUF holds them, and 15 % for its cache and the rest."""
    folder = model if model.is_dir() else model.parent
    if model.suffix == ".gguf" or not (files := sorted(folder.glob("*.safetensors"))):
        paths = [model] if model.is_file() else sorted(folder.glob("*.gguf"))
        return round(1.15 * sum(path.stat().st_size for path in paths))
    return round(1.15 * number_bytes * sum(map(_numbers, files)))


def _numbers(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
