"""A training stage on several processes: they are started here, and each runs `worker`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.estimate import Facts
from modelwright.core.events import Log
from modelwright.core.memory import state_bytes
from modelwright.core.parallel import LAUNCHERS, Parallel, elsewhere
from modelwright.core.stage import STAGES, Input, Run, Stats
from modelwright.core.store import write_json
from modelwright.core.units import bytes_text
from modelwright.methods.launchers import Launcher, job_of
from modelwright.stages._train_layouts import check
from modelwright.stages._train_open import Opened, open_model

if TYPE_CHECKING:
    from modelwright.nn.parallel import Spread
    from modelwright.nn.parallel.several import Ranks
    from modelwright.stages._train_spec import Training

WORKERS, STATS = "workers", "stats.json"
MOST_STATE = 0.6
"""Share of a card's memory that weights, gradients and optimizer state may take, so that activations find room."""


def chosen(stage: Training, run: Run) -> Parallel:
    """What the recipe says, else what the machine suggests."""
    if run.parallel is not None:
        return run.parallel
    if stage.device not in ("auto", "cuda"):
        return Parallel()
    import torch

    cards = torch.cuda.device_count()
    if cards < 2:
        return Parallel()
    shape, _ = stage.shape(run.facts)
    trained = stage.trainable(shape)
    state = state_bytes(shape.params, trained, trained, stage.optimizer.state_bytes_per_param)
    room = MOST_STATE * float(torch.cuda.get_device_properties(0).total_memory)
    # as few parts as fit: between replicas of them only gradients travel
    parts = next((size for size in range(1, cards) if cards % size == 0 and state / size <= room), cards)
    why = (
        f"{bytes_text(state)} of weights, gradients and optimizer state {'fits on each' if parts == 1 else 'does not fit on one'}"
    )
    for found in (Parallel(data=cards // parts, shard=parts), Parallel(data=cards), Parallel()):
        try:
            check(stage, shape, found)
            break
        except UserError as error:
            why += f"; {error.what}: {error.why}"
    run.log.note(f"{cards} cards: trained by {found}, since {why}")
    return found


def launched(stage: Training, run: Run, parallel: Parallel) -> Stats:
    """Train on so many processes; returns what the first of them measured."""
    from modelwright.core.spec import Spec

    assert isinstance(stage, Spec)
    if parallel.zero and find_spec("deepspeed") is None:
        raise missing_extra("deepspeed", "deepspeed", f"`parallel: {parallel}`")
    launcher = run.launch or LAUNCHERS.build("local")
    assert isinstance(launcher, Launcher)
    folder = run.out / WORKERS
    tree = stage.model_dump(mode="json")
    if elsewhere(run.launch) and "threads" not in stage.model_fields_set:
        tree["threads"] = None  # the cores of those machines are shared out there, by the launcher
    payload = {
        "stage": tree,
        "out": str(run.out.absolute()),
        "inputs": {
            ref: {**given._asdict(), "path": str(given.path.absolute()), "stats": dict(given.stats)}
            for ref, given in run.inputs.items()
        },
        "facts": {ref: facts.model_dump(mode="json") for ref, facts in run.facts.items()},
        "seed": run.seed,
        "deadline_s": run.deadline_s,
        "parallel": parallel.model_dump(),
    }
    launcher.start(job_of("modelwright.stages._train_spread:worker", payload, parallel.processes, folder, run.log))
    stats: Stats = json.loads((folder / STATS).read_text())
    shutil.rmtree(folder)
    return stats


def worker(payload: dict[str, Any], log: Log) -> None:
    """One of these processes, from start to end."""
    from modelwright.nn.device import choose
    from modelwright.nn.parallel import Sizes
    from modelwright.nn.parallel.several import Ranks
    from modelwright.stages._train_run import train

    stage: Any = STAGES.build(payload["stage"])
    parallel = Parallel(**payload["parallel"])
    out = Path(payload["out"])
    inputs = {ref: Input(**{**tree, "path": Path(tree["path"])}) for ref, tree in payload["inputs"].items()}
    facts = {ref: Facts(**tree) for ref, tree in payload["facts"].items()}
    run = Run(out, inputs, payload["seed"], log, facts, payload["deadline_s"], parallel)
    if parallel.processes == 1:  # on another machine, and nothing is divided
        write_json(out / WORKERS / STATS, train(stage, run))
        return
    ranks = Ranks(Sizes(**parallel.axes), choose(stage.device, parallel.processes).device.type, parallel.zero)
    try:
        stats = train(stage, run, ranks)
        if ranks.rank == 0:
            write_json(out / WORKERS / STATS, stats)
        ranks.wait()
    finally:
        ranks.close()


def spread_out(model: Any, ranks: Ranks | None) -> Spread:
    """The model, ready to be trained here or on all these processes."""
    from modelwright.nn.parallel import Spread

    if ranks is None:
        return Spread(model)
    from modelwright.nn.parallel.pipeline import Pipeline
    from modelwright.nn.parallel.several import Several

    if ranks.zero:
        from modelwright.nn.parallel.zero import Zero

        return Zero(model, ranks)
    return Pipeline(model, ranks) if ranks.sizes.pipeline > 1 else Several(model, ranks)


@contextmanager
def in_turn(ranks: Ranks | None) -> Iterator[None]:
    """The first process goes through the block while the others wait; then they do."""
    if ranks is not None and ranks.rank != 0:
        ranks.wait()
    yield
    if ranks is not None and ranks.rank == 0:
        ranks.wait()


def gathered(stage: Training, run: Run, opened: Opened, spread: Spread) -> Opened:
    """The trained model, whole on the first process; elsewhere what there is."""
    import torch

    if not spread.divided:
        return opened
    weights = {name: spread.whole(name, part.detach()) for name, part in spread.trained.items()}
    if not spread.first:
        return opened
    whole = open_model(stage, run)
    with torch.no_grad():
        for name, parameter in whole.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return whole
