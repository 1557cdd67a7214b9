"""`modelwright bench machine`: rates of this machine, measured and remembered for plans; `bench devices`: the table of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from math import inf
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError, missing_extra
from modelwright.core.measure import cores
from modelwright.core.units import bytes_text, count_text, rate_text

EACH_S = 2.5
"""Time for each measurement; with torch's start about 20 seconds on a processor."""
FILE_BYTES = 256 << 20
TEXT_CHARS = 400_000


def main(args: list[str]) -> int:
    options = parser(
        "bench",
        "machine: measure matrix products, memory, disk and tokenizer of this machine in about 20 seconds, and remember the "
        "rates for plans. devices: show the table of devices that `plan --device` knows.",
        recipe=False,
    )
    options.add_argument("what", choices=("machine", "devices"))
    options.add_argument("--interconnect", action="store_true", help="also measure messages between two processes")
    options.add_argument("--power-w", type=float, metavar="WATTS", help="what this machine draws under load, read off a meter")
    options.add_argument("--devices-file", type=Path, metavar="FILE", help="devices of your own, in the table's layout")
    chosen = options.parse_args(args)
    if chosen.what == "machine" and chosen.devices_file is not None:
        options.error("--devices-file goes with `devices`")
    if chosen.what == "devices" and (chosen.interconnect or chosen.power_w is not None):
        options.error("--interconnect and --power-w go with `machine`")
    if chosen.power_w is not None and not 0 < chosen.power_w < inf:
        options.error("--power-w takes more than 0 watts")
    if chosen.what == "devices":
        return _devices(chosen.devices_file, chosen.json)
    found = machine(chosen.interconnect, chosen.power_w, chosen.json)
    from modelwright.core import rates
    from modelwright.plan.machine import here

    kept = rates.remember(here(), found)
    if chosen.json:
        print_json({"machine": here(), **found, "remembered": str(rates.cache_file()) if kept else None})
        return 0
    print_table([{"what": what, "rate": rate} for what, rate in lines(found)])
    where = f"remembered in {rates.cache_file()}: plans count with it"
    print(f"\n{where if kept else 'not remembered: the home cannot be written to'}")
    return 0


def lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Measured rates in words."""
    card = found.get("card", {})
    for owner, told in (("", found), (f"{card.get('name', '')} ", card)):
        for kind in ("fp32", "fp16", "bf16", "int8"):
            if kind in told:
                yield f"{owner}products in {kind}", rate_text(told[kind], "OP/s" if kind == "int8" else "FLOP/s")
        if "bandwidth_bytes_per_s" in told:
            yield f"{owner}memory", f"{bytes_text(told['bandwidth_bytes_per_s'])}/s"
    for key, name in (("disk_write", "disk, writing"), ("disk_read", "disk, reading"), ("link", "between two processes")):
        if f"{key}_bytes_per_s" in found:
            yield name, f"{bytes_text(found[f'{key}_bytes_per_s'])}/s"
    if "tokenise_chars_per_s" in found:
        yield "tokenizer", f"{count_text(found['tokenise_chars_per_s'])} characters/s"
    if "power_w" in found:
        yield "power, as told", f"{found['power_w']:g} W"


def machine(interconnect: bool, power_w: float | None, quiet: bool) -> dict[str, Any]:
    """Everything measured, one after the other."""
    try:
        import torch

        from modelwright.nn import bench
    except ImportError:
        raise missing_extra("torch", "train", "bench machine") from None
    torch.set_num_threads(cores())  # as training does, whatever the environment says
    processor = torch.device("cpu")
    tasks: list[tuple[str, Callable[[], Any]]] = [
        (kind, partial(bench.products, kind, processor, EACH_S)) for kind in bench.kinds(processor)
    ]
    tasks += [("bandwidth_bytes_per_s", partial(bench.bandwidth, processor, EACH_S)), ("disk", disk)]
    tasks += [("tokenise_chars_per_s", tokenizer)]
    tasks += [("link_bytes_per_s", partial(bench.link, EACH_S))] if interconnect else []
    tasks += [("card", _card)] if torch.cuda.is_available() else []
    found: dict[str, Any] = {"date": date.today().isoformat()}
    with _bar(len(tasks), quiet) as advance:
        for name, measure in tasks:
            advance(name)
            value = measure()
            found |= value if name == "disk" else {name: float(f"{value:.4g}") if isinstance(value, float) else value}
    return found | ({"power_w": power_w} if power_w else {})


def _card() -> dict[str, Any]:
    """The first card, and how many there are; all of them are taken to be alike."""
    import torch

    from modelwright.nn import bench

    first = torch.device("cuda", 0)
    found: dict[str, Any] = {kind: float(f"{bench.products(kind, first, EACH_S):.4g}") for kind in bench.kinds(first)}
    found["bandwidth_bytes_per_s"] = float(f"{bench.bandwidth(first, EACH_S):.4g}")
    found |= {"name": torch.cuda.get_device_name(first), "count": torch.cuda.device_count()}
    found["memory_bytes"] = float(torch.cuda.get_device_properties(first).total_memory)
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.split()
        found |= {"power_w": float(told[0])} if told and told[0].replace(".", "", 1).isdigit() else {}
    return found


def disk() -> dict[str, float]:
    """Bytes a second of a file in this folder: written and synced, then read after the system's cache has let go of it."""
    if shutil.disk_usage(".").free < 4 * FILE_BYTES:
        raise UserError("too little free disk to measure it", f"it writes {bytes_text(FILE_BYTES)}", "run it in another folder")
    piece = os.urandom(1 << 22)
    with NamedTemporaryFile(dir=".", prefix=".modelwright-bench-") as file:
        start_s = time.perf_counter()
        for _ in range(FILE_BYTES // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        wrote_s = time.perf_counter() - start_s
        if sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start_s = time.perf_counter()
        while file.read(1 << 22):
            pass
        read_s = time.perf_counter() - start_s
    rates = {"disk_write_bytes_per_s": FILE_BYTES / wrote_s, "disk_read_bytes_per_s": FILE_BYTES / read_s}
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}


def tokenizer() -> float:
    """Characters of Python's own library a second through byte-level BPE, on all cores, with 2,000 tokens learned from them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    docs = [text[at : at + 2000] for text in texts for at in range(0, len(text), 2000)][: TEXT_CHARS // 2000]
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(docs, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    done, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < EACH_S:
        made.encode_batch(docs)
        done += sum(map(len, docs))
    return done / (time.perf_counter() - start_s)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; without one, a line for each measurement on the error stream."""
    if not sys.stdout.isatty() or quiet:
        yield lambda name: None if quiet else print(f"measuring {name.partition('_')[0]}", file=sys.stderr, flush=True)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("measuring {task.description}"), BarColumn(), TimeElapsedColumn(), transient=True) as bar:
        task, begun = bar.add_task("", total=total), [0]

        def advance(name: str) -> None:
            bar.update(task, description=name.partition("_")[0], completed=begun[0])
            begun[0] += 1

        yield advance


def _devices(file: Path | None, as_json: bool) -> int:
    from modelwright.plan.devices import table

    known = table(file)
    if as_json:
        cited = {name: {field: one.cited(key) for field, key in one.row.sources.items()} for name, one in known.items()}
        print_json({name: {**one.row.model_dump(), "cited": cited[name]} for name, one in known.items()})
        return 0
    rows = []
    for name, one in known.items():
        row, rates = one.row, one.row.tflops
        told = {kind: getattr(rates, kind) for kind in ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")}
        rows.append(
            {
                "device": name,
                "memory": f"{row.memory_gb:g} GB" + (f" x {row.chips}" if row.chips > 1 else ""),
                "reads": f"{row.bandwidth_gb_per_s:g} GB/s",
                **{kind: f"{value:g}" if value else "" for kind, value in told.items()},
                "of it": f"{row.achieved_frac:.0%}",
                "power": f"{row.power_w * row.chips:g} W" if row.power_w else "",
                "cuda": row.capability,
            }
        )
    print_table(rows)
    print(
        "\nrates: TFLOP/s of dense products on the data sheet; `of it`: what training reaches\n"
        "links, the machine around each, notes and sources: --json"
    )
    return 0
