"""Data larger than memory: rows and their order take a few bytes a row, and no order depends on who reads it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.record import Record
from modelwright.nn.order import Order, Source, order
from modelwright.nn.rows import Row, Rows, micro_batches, pack, store
from modelwright.stages._train_memory import ROW_BYTES, ROW_USE_BYTES
from tests import train_kit

ROOT = Path(__file__).parents[1]


def in_a_process(code: str, *arguments: Any) -> Any:
    """What a fresh Python prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- the order ------------------------------------------------------------------------------------------


def test_an_epoch_is_the_generators_own_permutation() -> None:
    """So it is what it always was, in half the memory."""
    plan = order([Source(7, np.ones(70_000, np.uint32))], 1000, seed=3, epochs=2)
    for epoch in range(2):
        wanted = 7 + np.random.Generator(np.random.PCG64([3, 0, epoch])).permutation(70_000)
        assert (plan.rows[70_000 * epoch : 70_000 * (epoch + 1)] == wanted).all()
    assert plan.rows.nbytes == 4 * 140_000


def slow_order(sources: list[Source], shares: list[float], limits: list[float], seed: int) -> list[int]:
    """The rule itself: always the source that lags most behind its share."""
    drawn, used, found = [0] * len(sources), [0.0] * len(sources), []
    orders: dict[tuple[int, int], Any] = {}
    while ready := [i for i in range(len(sources)) if drawn[i] < limits[i]]:
        index = min(ready, key=lambda i: (used[i] / shares[i], i))
        epoch, place = divmod(drawn[index], len(sources[index].lengths))
        if (index, epoch) not in orders:
            generator = np.random.Generator(np.random.PCG64([seed, index, epoch]))
            orders[index, epoch] = generator.permutation(len(sources[index].lengths))
        row = int(orders[index, epoch][place])
        used[index] += float(sources[index].lengths[row])
        drawn[index] += 1
        found.append(sources[index].first + row)
    return found


def test_many_sources_with_weights_and_epochs() -> None:
    rng = np.random.default_rng(0)
    sources, first = [], 0
    for number in range(40):
        lengths = rng.integers(1, 30, 5 + number).astype(np.uint32)
        sources.append(Source(first, lengths, epochs=float(1 + number % 3)))
        first += len(lengths)
    plan = order(sources, 64, seed=5, epochs=1)
    shares = [float(source.epochs or 0) * float(source.lengths.sum()) for source in sources]
    limits = [float(source.epochs or 0) * len(source.lengths) for source in sources]
    assert plan.rows.tolist() == slow_order(sources, shares, limits, 5)
    lengths_R = np.concatenate([source.lengths for source in sources])
    for source in sources:
        times, tokens = plan.used(source.first, source.first + len(source.lengths), lengths_R)
        assert times == source.epochs * len(source.lengths) and tokens == source.epochs * source.lengths.sum()
    assert [row for index in range(plan.steps) for row in plan.step(index)] == plan.rows.tolist()


WORKER = """
import json, sys
from pathlib import Path
from modelwright.nn.order import Source, order
from modelwright.nn.rows import Rows, micro_batches
rows, worker, workers = Rows(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
plan = order([Source(0, rows.lengths_R[:30], 3.0), Source(30, rows.lengths_R[30:], 1.0)], 200, seed=1, steps=12)
print(json.dumps([micro_batches(rows, plan.step(index), 60)[worker::workers] for index in range(plan.steps)]))
"""


def test_processes_agree_on_the_order(tmp_path: Path) -> None:
    """Each finds the same global order by itself and takes its share of every step."""
    rng = random.Random(0)
    rows = store((Row([1] * (n := rng.randint(4, 40)), [1] * n) for _ in range(80)), tmp_path, 300)
    plan = order([Source(0, rows.lengths_R[:30], 3.0), Source(30, rows.lengths_R[30:], 1.0)], 200, seed=1, steps=12)
    alone = [micro_batches(rows, plan.step(index), 60) for index in range(12)]
    shares = [in_a_process(WORKER, tmp_path, worker, 2) for worker in range(2)]
    for index, groups in enumerate(alone):
        assert shares[0][index] == groups[0::2] and shares[1][index] == groups[1::2]


# --- memory ---------------------------------------------------------------------------------------------


def test_rows_keep_their_lengths_in_memory_and_nothing_else(tmp_path: Path) -> None:
    rows = store((Row([n % 200] * (1 + n % 9), [1] * (1 + n % 9), label=float(n)) for n in range(1000)), tmp_path, 300)
    assert rows.lengths_R.nbytes == 4000 and rows.lengths_R.tolist() == [1 + n % 9 for n in range(1000)]
    batch = pack(rows, [999, 3])
    assert batch.label_S is not None and batch.label_S.tolist() == [999.0, 3.0] and batch.ids_T.tolist() == [199] * 1 + [3] * 4
    assert rows.tokens == int(rows.starts_R[-1]) == int(rows.lengths_R.sum()) and len(Rows(tmp_path)) == 1000
    assert len(store([], tmp_path / "none", 300)) == 0


GROWS = """
import json, sys
from pathlib import Path
import numpy as np
from modelwright.core.measure import Meter
from modelwright.nn.order import Source, order
from modelwright.nn.rows import Row, micro_batches, pack, store
folder, count = Path(sys.argv[1]), int(sys.argv[2])
ids, flags = [7] * 64, [1] * 64
store((Row(ids, flags, name="n") for _ in range(500)), folder / "first", 300)  # what is allocated once
meter = Meter()
rows = store((Row(ids, flags, name="n") for _ in range(count)), folder / "rows", 300)
plan = order([Source(0, rows.lengths_R)], 64 * 64, seed=0, epochs=1)
for index in range(0, plan.steps, 8):
    for group in micro_batches(rows, plan.step(index), 512):
        pack(rows, group)
print(json.dumps([meter.peak_bytes() - meter.held_bytes, plan.steps]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of an interval are read from /proc")
def test_memory_grows_by_a_few_bytes_a_row(tmp_path: Path) -> None:
    """60,000 rows more are 14 MB more on disk; rows from all over it are read."""
    (few, _), (many, steps) = (in_a_process(GROWS, tmp_path / str(count), count) for count in (20_000, 80_000))
    assert steps > 1200
    assert many - few < 60_000 * (ROW_BYTES + ROW_USE_BYTES) + 3e6, f"{(many - few) / 60_000:.1f} bytes a row"


def test_the_estimate_counts_the_rows() -> None:
    machine = Machine("test", 2, 8e9)
    stage = train_kit.stage(length=64, batch_tokens=128, steps=None, epochs=2.0)

    def memory(rows: float) -> float:
        # rows of one length, so that micro-batches hold the same
        facts = {"data": Facts(type="records", rows=rows, tokens=10 * rows), "vocab": Facts(type="tokenizer", rows=300)}
        value: float = stage.estimate(Given(machine, facts)).memory.value
        return value

    assert memory(2e8) - memory(1e8) == pytest.approx(1e8 * (ROW_BYTES + 2 * ROW_USE_BYTES))


LIMITED = """
import json, resource, sys
from pathlib import Path
from modelwright.core.measure import _status
from modelwright.core.stage import Input
from tests import train_kit
folder, spare = Path(sys.argv[1]), int(sys.argv[2])
vocab = Input("vocab", "tokenizer", folder / "vocab")
def run(name):
    inputs = {"data": Input("data", "path", folder / f"{name}.jsonl"), "vocab": vocab}
    return train_kit.stage(steps=8, length=1024, batch_tokens=2048).run(train_kit.run_of(folder / name, inputs))
run("small")  # libraries and what they allocate once
held = _status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (held + spare, held + spare))
stats = run("large")
print(json.dumps([stats["rows"]["used"], stats["tokens"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what RLIMIT_DATA does")
def test_a_training_on_more_data_than_it_may_hold(tmp_path: Path) -> None:
    """The limit is on private memory (RLIMIT_DATA; Linux knows no limit on resident memory since 2.4.30, getrlimit(2)): 32 MB
    beyond what a small training holds, for 100 MB of text."""

    train_kit.tokenizer(tmp_path / "vocab")
    rng = random.Random(0)
    line = json.dumps({"text": train_kit.sentence(rng, 400)}) + "\n"
    (tmp_path / "small.jsonl").write_text(line * 200)
    rows = 100_000_000 // len(line)
    with (tmp_path / "large.jsonl").open("w") as file:
        for _ in range(rows):
            file.write(line)
    used, _ = in_a_process(LIMITED, tmp_path, 32 << 20)
    assert used == rows


def test_order_is_plain_numbers() -> None:
    """As other code makes one by hand."""
    plan = Order(np.arange(6), np.array([0, 2, 6]))
    assert plan.steps == 2 and plan.step(1) == [2, 3, 4, 5] and plan.used(1, 3, np.full(6, 10)) == (2, 20)


def test_long_texts_do_not_pile_up_for_the_tokenizer() -> None:
    """Its groups end at a number of characters, too."""
    from modelwright.stages import _train_rows

    long = [Record(f"r{n}", text="the cat " * 1000) for n in range(30)]
    groups = list(_train_rows.at_once(iter(long), 512, 50_000))
    assert [record for group in groups for record in group] == long
    assert max(len(group) for group in groups) <= 7 and len(list(_train_rows.at_once(iter(long), 8, 10**9))) == 4
    assert [len(group) for group in _train_rows.at_once(iter(long[:2]), 512, 10)] == [1, 1], "a longer one is alone"


def test_a_long_text_file_is_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelwright.core.events import Log
    from modelwright.methods.sources import _files

    monkeypatch.setattr(_files, "PIECE_BYTES", 1000)
    text = "".join(f"é line {n}\n" + "\n" * (n % 7 == 0) for n in range(400))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    notes: list[str] = []
    log = Log(None, lambda event, fields: notes.append(fields["text"]))
    found = list(_files.read(tmp_path / "long.txt", log))
    assert "".join(record.text for record in found) == text and len(found) > 3 and len({r.id for r in found}) == len(found)
    assert all(record.text.endswith("\n\n") and len(record.text) < 1300 for record in found[:-1])
    assert len(notes) == 1 and "several documents" in notes[0]
    (tmp_path / "flat.txt").write_text("word " * 900)
    assert "".join(record.text for record in _files.read(tmp_path / "flat.txt", Log(None))) == "word " * 900
