"""Actors of a Ray cluster that is already there, one for each worker.

Source: https://docs.ray.io/en/latest/ray-core/actors.html and, for how workers are placed together and find each other, Ray
Train (https://docs.ray.io/en/latest/train/train.html). An actor only starts its worker and watches it: workers are the same
processes, with the same files, as with every other launcher. The store and this folder are at the same path on every machine.
Workers of a command that is killed are ended by Ray at once, without saving: the last checkpoint is what is left.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.stage import Check
from modelwright.core.workers import AHEAD, attempt, in_order, named, outcome
from modelwright.methods.launchers import LEASH, STARTER, End, Job, Launcher, Workers

ANSWER_S = 10.0
"""A cluster that is there answers within so long."""
PLACE_S = 600.0
"""Others may use the cluster; so long we wait for our share of it."""
POLL_S = 1.0
LEAVE_S = 30.0
"""After one worker was lost the others may take so long to end, as with torchrun."""
GCS_PORT = 6379
ADDRESS = r"(ray://)?[^/\s:]+(:\d+)?"
START = "start one with `ray start --head`, or give the address of its head"


class Ray(Launcher):
    """Workers on an existing cluster: one that `ray start --head` made on this machine, or one at an address."""

    kind: Literal["ray"] = "ray"
    address: str = Field("auto", pattern=rf"^(auto|{ADDRESS})$", examples=["10.0.0.1:6379"])
    """Where the cluster's head is: `auto` for the one that this machine belongs to, `host:port`, or `ray://host:port`."""
    cpus: float = Field(1.0, gt=0, examples=[2.0])
    """Processor cores that each worker reserves, and as many threads."""
    gpus: float = Field(0.0, ge=0, examples=[1.0])
    """GPUs that each worker reserves; it sees no others. 0: workers on processors."""

    def check(self, processes: int) -> Iterator[Check]:
        try:
            self._room(self._connect(), processes)
            yield Check("ray", True, f"the cluster at {self.address} has room for {processes} workers", "")
        except UserError as error:
            yield Check("ray", False, f"{error.what} ({error.why})", error.fix)

    def begin(self, job: Job) -> Workers:
        ray = self._connect()
        self._room(ray, job.processes)
        return _Seats(ray, job, {"CPU": self.cpus, "GPU": self.gpus})

    def pool(self, target: str, payload: Any, count: int | None) -> Pool:
        """Actors for a curation, as many as there is room for: each makes `target` (`package.module:function`) once and is given
        items, of which some are under way."""
        ray = self._connect()
        if count is None:
            count = max(1, int(ray.cluster_resources().get("CPU", 0) // self.cpus))
        self._room(ray, count)
        return Pool(ray, target, payload, count, self.cpus)

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise missing_extra("ray", "ray", "Ray") from None
        if not ray.is_initialized() and (head := _head(self.address)):
            _reach(head)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="warning", ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise UserError(
                f"no Ray cluster answers at {self.address}", f"{type(error).__name__}: {error}".splitlines()[0], START
            ) from None
        return ray

    def _room(self, ray: Any, processes: int) -> None:
        """A cluster that is too small would let us wait for ever."""
        there = ray.cluster_resources()
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * processes > there.get(name, 0):
                raise UserError(
                    f"the Ray cluster at {self.address} is too small",
                    f"{processes} workers with {each:g} {name} each need {each * processes:g}, it has {there.get(name, 0):g}",
                    f"add machines (`ray start --address …`), or lower `{name.lower()}s` or the number of processes",
                )


def _head(address: str) -> str:
    """Where `auto` leads, as Ray finds it: the variable, else what `ray start` left on this machine. '' for nowhere."""
    if address != "auto":
        return address
    left = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    found = os.environ.get("RAY_ADDRESS") or (left.read_text().strip() if left.exists() else "")
    return found if ":" in found and re.fullmatch(ADDRESS, found) else ""


def _reach(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").partition(":")
    place = (host, int(port) if port else GCS_PORT)
    try:
        socket.create_connection(place, ANSWER_S).close()
    except OSError as error:
        why = f"tried to connect to {place[0]}, port {place[1]}: {error}"
        raise UserError(f"no Ray cluster answers at {address}", why, START) from None


class Seat:
    """Runs in an actor, on whichever machine Ray chose: one worker, and the pipe that tells it when to stop."""

    def place(self) -> tuple[str, int]:
        """This machine's address in the cluster, and a free port."""
        address = str(import_module("ray.util").get_node_ip_address())
        with socket.create_server((address, 0)) as server:
            return address, int(server.getsockname()[1])

    def begin(self, command: list[str], env: Mapping[str, str], folder: str) -> None:
        with (Path(folder) / STARTER).open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Desk:
    """Runs in an actor: works through items, one after the other."""

    def __init__(self, target: str, payload: Any) -> None:
        self._made = attempt(named(target), payload)

    def work(self, item: Any) -> tuple[str, Any]:
        kind, found = self._made
        return attempt(found, item) if kind == "result" else self._made


class Pool:
    """What `core.workers.Workers` is on one machine."""

    def __init__(self, ray: Any, target: str, payload: Any, count: int, cpus: float) -> None:
        self._ray = ray
        paths = os.pathsep.join(filter(None, sys.path))
        env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        actor = ray.remote(num_cpus=cpus)(Desk).options(scheduling_strategy="SPREAD", runtime_env={"env_vars": env})
        shared = ray.put(payload)
        self._desks = [actor.remote(target, shared) for _ in range(count)]

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results, in order."""
        gives = (partial(self._give, desk) for desk in itertools.cycle(self._desks))
        return in_order(gives, items, AHEAD * len(self._desks))

    def _give(self, desk: Any, item: Any) -> Callable[[], Any]:
        return partial(self._result, desk.work.remote(item))

    def _result(self, coming: Any) -> Any:
        try:
            kind, found = self._ray.get(coming)
        except self._ray.exceptions.RayError as error:
            raise UserError(
                "a worker of the Ray cluster was lost",
                f"{type(error).__name__}: {error}".splitlines()[0],
                "run the same command again: it goes on from what is done; if memory ran out, lower `runtime.workers`",
            ) from None
        return outcome(kind, found)

    def close(self) -> None:
        for desk in self._desks:
            self._ray.kill(desk)
        self._desks = []


class _Seats:
    def __init__(self, ray: Any, job: Job, each: Mapping[str, float]) -> None:
        from ray.util import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray, self._asked_s, self._failed_s = ray, 0.0, 0.0
        self._codes: list[int | None] = [None] * job.processes
        bundle = {name: amount for name, amount in each.items() if amount}
        self._group = placement_group([bundle] * job.processes, strategy="PACK")
        try:
            ray.get(self._group.ready(), timeout=PLACE_S)
        except ray.exceptions.GetTimeoutError:
            remove_placement_group(self._group)
            raise UserError(
                "the Ray cluster has no room now",
                f"{job.processes} workers with {bundle} each were not placed within {PLACE_S:.0f} s",
                "`ray status` shows who uses it; try again later, or ask for less",
            ) from None
        actor = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"])(Seat)
        self._seats = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, rank)).remote()
            for rank in range(job.processes)
        ]
        address, port = ray.get(self._seats[0].place.remote())
        shared = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(job.processes), LEASH: "1"}
        # one local rank each: Ray shows a worker its own GPUs alone, as `torchrun --virtual-local-rank` does
        shared |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "0", **job.env}
        ray.get(
            [
                seat.begin.remote(list(job.command), {**shared, "RANK": str(rank)}, str(job.folder))
                for rank, seat in enumerate(self._seats)
            ]
        )

    def ended(self) -> End | None:
        now_s = time.monotonic()
        if now_s - self._asked_s < POLL_S:
            return None
        self._asked_s = now_s
        try:
            self._codes = self._ray.get([seat.poll.remote() for seat in self._seats])
        except self._ray.exceptions.RayError as error:
            return End(f"a machine of the Ray cluster was lost: {type(error).__name__}", cut=True)
        if None not in self._codes:
            return End(f"the workers ended with {', '.join(map(str, self._codes))}")
        if any(self._codes):  # the others wait for it in vain
            if not self._failed_s:
                self._failed_s = now_s
                self.stop()
            elif now_s - self._failed_s > LEAVE_S:
                return End("the other workers were ended")
        return None

    def stop(self) -> None:
        for seat in self._seats:
            seat.stop.remote()

    def kill(self) -> None:
        from ray.util import remove_placement_group

        for seat in self._seats:
            try:
                self._ray.get(seat.kill.remote(), timeout=ANSWER_S)
            except (self._ray.exceptions.RayError, TimeoutError):  # its machine is gone, and the worker with it
                continue
        remove_placement_group(self._group)  # ends the actors and gives back what they reserved
