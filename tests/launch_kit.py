"""Workers to launch in tests, a starter without torch, and stand-ins for Slurm's commands and for Ray.

`python -m tests.launch_kit SPEC` runs a worker that may call the functions of this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal
from unittest import mock

from modelwright import worker
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.methods import launchers
from modelwright.methods.launchers import LEASH, End, Job, Launcher, job_of
from tests import module_kit

ROOT = Path(__file__).parents[1]


def job(function: str, folder: Path, log: Log, processes: int = 2, **payload: Any) -> Job:
    """A job that calls a function of this file; `payload["folder"]` is a folder of the test's own."""
    payload["folder"] = str(folder)
    made = job_of(f"tests.launch_kit:{function}", payload, processes, folder / "job", log, {"PYTHONPATH": str(ROOT)})
    return made._replace(command=(sys.executable, "-m", "tests.launch_kit", *made.command[3:]))


# --- what workers do --------------------------------------------------------------------------------------


def total(payload: Mapping[str, Any], log: Log) -> None:
    """The sum over all processes of rank + 1, and the addresses where the processes of this launch listen."""
    import psutil
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    number = torch.tensor(dist.get_rank() + 1.0)
    dist.all_reduce(number)
    me = psutil.Process()
    listening = [
        [process.pid, *connection.laddr]
        for process in (me, me.parent())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    (Path(payload["folder"]) / f"listening-{dist.get_rank()}.json").write_text(json.dumps(listening))
    dist.barrier()
    log.progress(1, 1, "sums")
    log.event("sum", total=float(number), processes=dist.get_world_size(), omp=os.environ["OMP_NUM_THREADS"])
    dist.destroy_process_group()


def dies_once(payload: Mapping[str, Any], log: Log) -> None:
    """Worker 1 is killed in the first attempt, and worker 0 waits for it."""
    folder, rank = Path(payload["folder"]), int(os.environ["RANK"])
    if rank == 1 and not (folder / "died").exists():
        while not (folder / "waits").exists():
            time.sleep(0.02)
        print("the last words of worker 1", flush=True)
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0 and not (folder / "waits").exists():
        (folder / "waits").touch()
        time.sleep(60)
    log.event("again")


def tells(payload: Mapping[str, Any], log: Log) -> None:
    log.event("again")


def fails(payload: Mapping[str, Any], log: Log) -> None:
    """Always, with 30 lines before."""
    for line in range(30):
        print(f"line {line} of {os.environ['RANK']}")
    raise RuntimeError("out of luck")


def faulty(payload: Mapping[str, Any], log: Log) -> None:
    raise UserError("there are no rows", "the file is empty", "give one with rows")


def say_ready(folder: Path) -> None:
    """Renamed when whole: who finds the file reads a number from it."""
    own = folder / f"writing-{os.environ['RANK']}"
    own.write_text(str(os.getpid()))
    own.replace(folder / f"ready-{os.environ['RANK']}")


def saves_slowly(payload: Mapping[str, Any], log: Log) -> None:
    """As a training does: worker 0 takes a second to save, the others have nothing to write."""
    wanted: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: wanted.append(number))
    say_ready(Path(payload["folder"]))
    while not wanted:
        time.sleep(0.02)
        if len(list(Path(payload["folder"]).glob("ready-*"))) == int(os.environ["WORLD_SIZE"]):
            log.event("ready")
    time.sleep(0.0 if int(os.environ["RANK"]) else 1.0)
    (Path(payload["folder"]) / f"saved-{os.environ['RANK']}").touch()
    raise KeyboardInterrupt("saved after step 7")


def never_stops(payload: Mapping[str, Any], log: Log) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_ready(Path(payload["folder"]))
    while True:
        time.sleep(0.02)
        if len(list(Path(payload["folder"]).glob("ready-*"))) == int(os.environ["WORLD_SIZE"]):
            log.event("ready")


# --- a starter without torch ------------------------------------------------------------------------------


class Direct(Launcher):
    """The same workers without torchrun: quick."""

    kind: Literal["direct"] = "direct"

    def begin(self, job: Job) -> Any:
        return _Processes(job)


class _Processes:
    def __init__(self, job: Job) -> None:
        world = {**os.environ, **job.env, "WORLD_SIZE": str(job.processes), "TORCHELASTIC_USE_AGENT_STORE": "True", LEASH: "1"}
        self.processes = [
            subprocess.Popen(job.command, env={**world, "RANK": str(rank)}, stdin=subprocess.PIPE)
            for rank in range(job.processes)
        ]

    def ended(self) -> End | None:
        codes = [process.poll() for process in self.processes]
        if any(codes):  # torchrun gives the others half a minute
            self.kill()
        return None if None in codes and not any(codes) else End(f"codes {codes}")

    def stop(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


# --- Slurm's commands -------------------------------------------------------------------------------------

COMMANDS = {
    # takes a job, and runs its script at once
    "sbatch": """
[ "$1" = --test-only ] && { cat > "$HERE/tested.sh"; [ -e "$HERE/refuses" ] && { cat "$HERE/refuses" >&2; exit 1; }
  echo "sbatch: Job 1 to start now" >&2; exit 0; }
[ -e "$HERE/refuses" ] && { cat "$HERE/refuses" >&2; exit 1; }
number=$(( $(cat "$HERE/number" 2>/dev/null || echo 6) + 1 )); echo $number > "$HERE/number"
cp "$2" "$HERE/script-$number.sh"
echo RUNNING > "$HERE/state-$number"
(
  export SLURM_JOB_ID=$number SLURM_JOB_NODELIST=localhost SLURM_CPUS_ON_NODE=2
  setsid sh -c 'echo $$ > "$HERE/pid-$SLURM_JOB_ID"; exec bash "$0"' "$2"
  code=$?
  if [ -e "$HERE/cancelled-$number" ]; then state=CANCELLED; elif [ $code = 0 ]; then state=COMPLETED; else state=FAILED; fi
  cat "$HERE/ends" 2>/dev/null > "$HERE/state-$number" || echo $state > "$HERE/state-$number"
) > /dev/null 2>> "$HERE/job.log" &
echo "$number;cluster"
""",
    "squeue": """
[ -e "$HERE/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for argument; do case $argument in --jobs=*) number=${argument#--jobs=};; esac; done
[ -e "$HERE/forgets" ] && { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
cat "$HERE/state-$number"
""",
    "sacct": """
for argument; do case $argument in --jobs=*) number=${argument#--jobs=};; esac; done
cat "$HERE/state-$number"
""",
    "scancel": """
echo "$@" >> "$HERE/cancels"
for number; do :; done
case $1 in
  --state=*) ;;
  --signal=TERM) kill -s TERM "$(cat "$HERE/step-$number")" ;;
  *) touch "$HERE/cancelled-$number"; kill -s KILL -- "-$(cat "$HERE/pid-$number")" ;;
esac
""",
    "scontrol": 'echo "$3"\n',
    # runs the workers itself: what torchrun does is not the matter here
    "srun": """
while [ "$1" != --no-python ]; do case $1 in --nproc-per-node=*) count=${1#--nproc-per-node=};; esac; shift; done
shift
for (( rank = 0; rank < count; rank++ )); do RANK=$rank WORLD_SIZE=$count TORCHELASTIC_USE_AGENT_STORE=True "$@" & done
trap 'kill $(jobs -pr)' TERM
echo $$ > "$HERE/step-$SLURM_JOB_ID"
code=0
while [ -n "$(jobs -pr)" ]; do wait -n || { code=1; kill $(jobs -pr) 2> /dev/null; }; done
exit $code
""",
}


@contextlib.contextmanager
def slurm(folder: Path, **commands: str) -> Iterator[Path]:
    """Within the block Slurm's commands are those here, and answer at once; yields the folder of what they remember.
    `commands` replaces some."""
    from modelwright.methods.launchers import slurm

    folder.mkdir(parents=True)
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {**COMMANDS, **commands}.items():
        (programs / name).write_text(f"#!/bin/bash\nHERE='{folder}'; export HERE\n{text}")
        (programs / name).chmod(0o755)
    with (
        mock.patch.dict(os.environ, {"PATH": f"{programs}:{os.environ['PATH']}"}),
        mock.patch.multiple(slurm, POLL_S=0.05, SETTLE_S=0.5, END_S=5.0),
        mock.patch.object(launchers, "LOOK_S", 0.02),
    ):
        yield folder


# --- Ray --------------------------------------------------------------------------------------------------


class RayError(Exception):
    pass


class GetTimeoutError(RayError, TimeoutError):
    pass


class Cluster:
    """Ray as we call it: actors are objects of this process. `test_a_real_ray` holds it against the real one."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.has = {"CPU": 4.0, "GPU": 2.0}
        self.full = False
        self.lost = False
        """Actors do not answer any more."""
        self.actors: list[Any] = []

    def modules(self) -> dict[str, ModuleType]:
        ray, util, strategies = (ModuleType(name) for name in ("ray", "ray.util", "ray.util.scheduling_strategies"))
        vars(strategies).update(PlacementGroupSchedulingStrategy=lambda group, index: ["bundle", index])
        vars(util).update(
            placement_group=self._group,
            remove_placement_group=lambda group: self.calls.append(["remove_placement_group"]),
            get_node_ip_address=lambda: "127.0.0.1",
            scheduling_strategies=strategies,
        )
        vars(ray).update(
            init=self._init,
            is_initialized=lambda: False,
            cluster_resources=lambda: self.has,
            get=self._get,
            put=lambda value: value,
            kill=lambda actor: self.calls.append(["kill"]),
            remote=lambda **fields: lambda cls: _Actor(self, cls, fields),
            util=util,
            exceptions=SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError),
        )
        return {"ray": ray, "ray.util": util, "ray.util.scheduling_strategies": strategies}

    def _init(self, address: str, log_to_driver: bool, logging_level: str, ignore_reinit_error: bool) -> None:
        if not self.has:
            raise ConnectionError("Could not find any running Ray instance.")
        self.calls.append(["init", address])

    def _group(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.calls.append(["placement_group", bundles, strategy])
        return SimpleNamespace(ready=lambda: "ready")

    def _get(self, what: Any, timeout: float | None = None) -> Any:
        if what == "ready" and self.full:
            raise GetTimeoutError("Get timed out")
        if self.lost:
            raise RayError("The actor died unexpectedly")
        return [self._get(one) for one in what] if isinstance(what, list) else what() if callable(what) else what


class _Actor:
    """What `ray.remote` makes of a class."""

    def __init__(self, cluster: Cluster, cls: type, fields: dict[str, Any]) -> None:
        self._cluster, self._cls, self._fields = cluster, cls, fields

    def options(self, scheduling_strategy: Any, runtime_env: Any = None) -> _Actor:
        self._cluster.calls.append(["actor", self._fields, scheduling_strategy])
        return self

    def remote(self, *args: Any) -> Any:
        return _Handle(self._cls(*args))


class _Handle:
    def __init__(self, seat: Any) -> None:
        self._seat = seat

    def __getattr__(self, name: str) -> Any:
        def later(*args: Any) -> Any:
            value = getattr(self._seat, name)(*args)  # when it is asked for does not matter here
            return lambda: value

        return SimpleNamespace(remote=later)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """Within the block Ray is installed, and there is a cluster."""
    from modelwright.methods.launchers import ray

    cluster = Cluster()
    with (
        module_kit.in_place(cluster.modules()),
        mock.patch.multiple(ray, POLL_S=0.05, LEAVE_S=2.0),
        mock.patch.dict(os.environ, {"RAY_TMPDIR": "/nowhere"}),
        mock.patch.object(launchers, "LOOK_S", 0.02),
    ):
        yield cluster


# --- what a launcher does -----------------------------------------------------------------------------------


def attempts(spec: Launcher, folder: Path, log: Log) -> list[Any]:
    """What the programs behind a launcher are asked for while every worker fails at once, and how that ends."""
    job = Job(("false",), 2, folder / "work" / "job", log)
    job.folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/torchrun'\nexit 1\n")
    python.chmod(0o755)
    with (
        slurm(folder / "slurm", srun="exit 1\n") as there,
        ray_cluster() as cluster,
        mock.patch.object(sys, "executable", str(python)),
        mock.patch("modelwright.methods.launchers.slurm.SETTLE_S", 0.0),
        mock.patch("socket.create_connection"),
    ):
        try:
            spec.start(job)
            raise AssertionError("workers that fail are no success")
        except UserError as error:
            told = str(error)
    files = [folder / "torchrun", *sorted(there.glob("script-*"))]
    found = [[path.read_text() for path in files if path.exists()], cluster.calls, told]
    return json.loads(re.sub(r"--rdzv-id=[0-9a-f-]+", "", json.dumps(found)).replace(str(folder), "FOLDER"))


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], allowed="tests."))
