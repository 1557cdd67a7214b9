"""Stand-ins for the trackers' libraries, with the signatures that we call; what they are told is in `calls`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from tests import module_kit


class Told:
    """A run, writer or client that remembers what it is told."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._calls.append(["log", step, metrics])

    def finish(self, exit_code: int = 0) -> None:
        self._calls.append(["finish", exit_code])


class Writer:
    def __init__(self, calls: list[Any], log_dir: str, purge_step: int, flush_secs: int) -> None:
        self._calls = calls
        calls.append(["SummaryWriter", log_dir, purge_step, flush_secs])

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        self._calls.append(["add_text", tag, text_string, global_step])

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self._calls.append(["add_scalar", tag, scalar_value, global_step])

    def close(self) -> None:
        self._calls.append(["close"])


class Client:
    """MLflow's, with the runs of this process."""

    def __init__(self, calls: list[Any], runs: dict[str, str], tracking_uri: str) -> None:
        self._calls, self._runs = calls, runs
        calls.append(["MlflowClient", tracking_uri])

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if self._runs else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        self._calls.append(["create_experiment", name, artifact_location])
        return name

    def search_runs(self, experiment_ids: list[str], filter_string: str = "", max_results: int = 1000) -> list[Any]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run)) for name, run in self._runs.items() if f"'{name}'" in filter_string
        ]

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        self._calls.append(["create_run", experiment_id, tags, run_name])
        self._runs[run_name] = f"id of {run_name}"
        return SimpleNamespace(info=SimpleNamespace(run_id=self._runs[run_name]))

    def update_run(self, run_id: str, status: str | None = None) -> None:
        self._calls.append(["update_run", run_id, status])

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._calls.append(["log_batch", run_id, [(m.key, m.value, m.step) for m in metrics], [(p.key, p.value) for p in params]])

    def set_terminated(self, run_id: str, status: str) -> None:
        self._calls.append(["set_terminated", run_id, status])


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def libraries(calls: list[Any]) -> dict[str, ModuleType]:
    """Module name -> stand-in."""
    runs: dict[str, str] = {}

    def trackio_init(*, project, name, space_id, config, resume, embed, auto_log_gpu, auto_log_cpu) -> Told:  # type: ignore[no-untyped-def]
        calls.append(["trackio.init", project, name, space_id, config, resume])
        print("Trackio greets")
        return Told(calls)

    def wandb_init(*, project, name, id, dir, mode, config, resume, settings) -> Told:  # type: ignore[no-untyped-def]
        calls.append(["wandb.init", project, name, id, dir, mode, config, resume])
        return Told(calls)

    entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    return {
        "trackio": _module("trackio", init=trackio_init),
        "wandb": _module("wandb", init=wandb_init),
        "mlflow": _module("mlflow", MlflowClient=lambda tracking_uri: Client(calls, runs, tracking_uri), entities=entities),
        "torch.utils.tensorboard": _module(
            "torch.utils.tensorboard",
            SummaryWriter=lambda log_dir, purge_step, flush_secs: Writer(calls, log_dir, purge_step, flush_secs),
        ),
    }


@contextmanager
def installed() -> Iterator[list[Any]]:
    """Within the block the libraries are those here; yields what they are told."""
    calls: list[Any] = []
    with module_kit.in_place(libraries(calls)):
        yield calls
