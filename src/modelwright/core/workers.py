"""Processes that work through items beside each other; results come in the order of the items, whatever their number.

A worker is a fresh interpreter that makes its function once and is then fed through a pipe. It ends when the pipe does, so none
outlives the command, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any, BinaryIO, TypeVar

from modelwright.core.errors import UserError
from modelwright.core.measure import Meter

if sys.platform == "linux":
    import fcntl

AHEAD = 4
"""Items that wait at each worker while it is busy. Some take longer than others, and results are taken in order."""
OWN = 16
"""Results of this process, where it works, too, that may wait for an earlier one of a worker, which takes seconds to start."""
QUICK_S = 0.04
"""Items that this process does in less, over the number of workers, stay here: the way to a worker and back costs as much, and
rows that are the items of another map are not held up behind longer work."""
SENT = 2
"""Items that a worker has: it works on one and has read the next. The others wait here, where they may be taken back."""
T = TypeVar("T")


class Workers:
    """`target` names a function (`package.module:function`) that takes `payload` and returns what is called with each item.

    With `here`, which does the same, this process is one of `count`: it takes an item where it would have to wait. Every process
    gets its items in their order, but for those that come back from a worker: `late` does them, else `here`, too."""

    def __init__(
        self,
        target: str,
        payload: Any,
        count: int,
        here: Callable[[Any], Any] | None = None,
        late: Callable[[Any], Any] | None = None,
    ) -> None:
        self._here, self._late = here, late
        self._workers = [_Worker(target, payload) for _ in range(count - (here is not None))]

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results, in order. An error of a worker is raised here. Items of one may come from the results of another."""
        if self._here is None:
            return in_order((worker.give for worker in itertools.cycle(self._workers)), items, AHEAD * len(self._workers))
        return self._beside(iter(items), self._here) if self._workers else map(self._here, items)

    def _beside(self, items: Iterator[Any], here: Callable[[Any], Any]) -> Iterator[Any]:
        givers, most = itertools.cycle(self._workers), AHEAD * len(self._workers)
        waiting: deque[_Given | _Own] = deque()
        own, more, took_s = 0, True, 0.0
        while True:
            while more and took_s * len(self._workers) >= QUICK_S and len(waiting) - own < most:
                for item in itertools.islice(items, 1):
                    waiting.append(next(givers).give(item))
                    break
                else:
                    more = False
            if waiting and (own == OWN or waiting[0].is_ready()):
                first = waiting.popleft()
                own -= isinstance(first, _Own)
                yield first()
                continue
            for item in itertools.islice(items, 1):
                start_s = perf_counter()
                waiting.append(_own(here, item))
                took_s = perf_counter() - start_s
                own += 1
                break
            else:
                more = False
                if not waiting:
                    return
                if not _taken_back(waiting, self._late or here):
                    yield waiting.popleft()()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []


def in_order(gives: Iterator[Callable[[Any], Callable[[], T]]], items: Iterable[Any], most: int) -> Iterator[T]:
    """Each item goes to the next of `gives`, which returns what waits for its result; `most` are under way."""
    waiting: deque[Callable[[], T]] = deque()
    for item in items:
        waiting.append(next(gives)(item))
        if len(waiting) > most:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


@dataclass(frozen=True)
class _Given:
    """An item at a worker."""

    worker: _Worker
    number: int

    def is_ready(self) -> bool:
        return self.worker.is_ready(self.number)

    def take_back(self) -> tuple[Any] | None:
        return self.worker.take_back(self.number)

    def __call__(self) -> Any:
        return self.worker.result(self.number)


@dataclass(frozen=True)
class _Own:
    """An item that was worked on here; its error, too, is told when its turn comes."""

    value: Any
    error: Exception | None

    def is_ready(self) -> bool:
        return True

    def __call__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _own(here: Callable[[Any], Any], item: Any) -> _Own:
    try:
        return _Own(here(item), None)
    except Exception as error:
        return _Own(None, error)


def _taken_back(waiting: deque[_Given | _Own], here: Callable[[Any], Any]) -> bool:
    """Do here what a worker has not got yet, where there is such an item."""
    for place in reversed(range(len(waiting))):
        given = waiting[place]
        if isinstance(given, _Given) and (item := given.take_back()) is not None:
            waiting[place] = _own(here, item[0])
            return True
    return False


class _Worker:
    def __init__(self, target: str, payload: Any) -> None:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-m", "modelwright.core.workers", target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        for pipe in (self._process.stdin, self._process.stdout):
            _widen(pipe)
        self._turn = threading.Condition()  # guards what is to be sent, and how much of what was sent has no answer
        self._items: deque[Any] = deque()
        self._under_way, self._ended = 0, False
        self._given = self._came = 0
        self._results: dict[int, Any] = {}
        self._came_in: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._feed, args=(payload,)), threading.Thread(target=self._read)]
        for thread in self._threads:  # a full pipe must stop neither who reads results nor a worker whose result must wait
            thread.daemon = True
            thread.start()

    def _feed(self, payload: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdin as pipe:  # it is gone: who asks for its result says so
            item = payload
            while True:
                pickle.dump(item, pipe, protocol=5)
                pipe.flush()
                with self._turn:
                    self._turn.wait_for(lambda: self._ended or (self._items and self._under_way < SENT))
                    if self._ended:
                        return
                    item = self._items.popleft()
                    self._under_way += 1

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            with contextlib.suppress(EOFError, pickle.UnpicklingError, OSError, ValueError):
                while True:
                    self._came_in.put(pickle.load(self._process.stdout))  # of our own child, through a pipe of its own
                    self._answered()
        finally:
            self._came_in.put(None)
            self._answered(ended=True)

    def _answered(self, ended: bool = False) -> None:
        with self._turn:
            self._under_way, self._ended = self._under_way - 1, self._ended or ended
            self._turn.notify_all()

    def give(self, item: Any) -> _Given:
        """What waits for the result."""
        with self._turn:
            self._items.append(item)
            self._given += 1
            self._turn.notify_all()
        return _Given(self, self._given)

    def take_back(self, number: int) -> tuple[Any] | None:
        """The item, where it is the last one and was not sent."""
        with self._turn:
            if number != self._given or not self._items:
                return None
            self._given -= 1
            return (self._items.pop(),)

    def is_ready(self, number: int) -> bool:
        """Whether `result` has not to wait."""
        while self._came < number and not self._came_in.empty():
            if not self._arrive():
                return True
        return self._came >= number

    def result(self, number: int) -> Any:
        while self._came < number:  # those before it are of another map, whose turn has not come
            if not self._arrive():
                code = self._process.wait()
                raise UserError(
                    "a worker process ended before its work was done",
                    "it was killed, most likely because memory ran out"
                    if code == -signal.SIGKILL
                    else f"it ended with code {code}",
                    "set `runtime.workers` to less: each holds a few megabytes of rows and what its steps need",
                )
        return outcome(*self._results.pop(number))

    def _arrive(self) -> bool:
        """Take in the next result; False where none will come."""
        if (came := self._came_in.get()) is None:
            self._came_in.put(None)
            return False
        self._came += 1
        self._results[self._came] = came
        return True

    def close(self) -> None:
        Meter.count_worker(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._answered(ended=True)
        for thread in self._threads:
            thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def attempt(call: Callable[[Any], Any], value: Any) -> tuple[str, Any]:
    """What a call came to, in a form that may travel: see `outcome`."""
    try:
        return "result", call(value)
    except UserError as error:
        return "user error", (error.what, error.why, error.fix, error.where)
    except Exception:
        return "error", traceback.format_exc()


def outcome(kind: str, found: Any) -> Any:
    """The result of an `attempt`, or its error raised here."""
    if kind == "user error":
        raise UserError(*found)
    if kind == "error":
        raise RuntimeError(f"in a worker process:\n{found}")
    return found


def named(target: str) -> Callable[[Any], Any]:
    """The function `package.module:function`."""
    module, _, name = target.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(module), name)
    return found


def _widen(pipe: Any) -> None:
    """A megabyte instead of 64 kB, so that both ends wait less often for each other."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a system may allow less
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def main(target: str) -> None:
    """A worker, from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command decides
    with os.fdopen(os.dup(1), "wb") as out, os.fdopen(os.dup(0), "rb") as given:
        os.dup2(2, 1)  # what a library prints must not come between results
        begin, work = named(target), None  # imports are done before other threads begin any
        items, results = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        reader = threading.Thread(target=_take, args=(given, items), daemon=True)
        writer = threading.Thread(target=_tell, args=(out, results), daemon=True)
        for thread in (reader, writer):  # the next item is read, and the last result written, while one is worked on
            thread.start()
        while (held := items.get()) is not None:
            found = attempt(work or begin, held[0])
            if work is None and found[0] == "result":
                work = found[1]
            else:
                results.put(found)
        results.put(None)
        writer.join()


def _take(pipe: BinaryIO, items: queue.SimpleQueue[Any]) -> None:
    while (held := _load(pipe)) is not None:
        items.put(held)
    items.put(None)


def _tell(pipe: BinaryIO, results: queue.SimpleQueue[Any]) -> None:
    try:
        while (found := results.get()) is not None:
            pickle.dump(found, pipe, protocol=5)
            pipe.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # who waits for the result is told that this process has ended


def _load(given: BinaryIO) -> tuple[Any] | None:
    """None when the pipe has ended, in the middle of an item where the command was killed."""
    try:
        return (pickle.load(given),)
    except (EOFError, pickle.UnpicklingError, OSError):
        return None


if __name__ == "__main__":
    main(sys.argv[1])
