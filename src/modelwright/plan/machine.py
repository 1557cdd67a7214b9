"""This machine, as the planner sees it: cores, memory, cards and their rates, measured by `modelwright bench machine` or guessed.

Reads files only; imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from modelwright.core import processor, rates
from modelwright.core.estimate import Machine
from modelwright.core.measure import cores

# Rate of matrix products that a training loop reaches per core, in FLOP/s, by the best instruction the CPU has for them.
# Measured: 57e9 in float32 on a Xeon core at 2.5 GHz with avx512f (2.6M weights), 70e9 in bfloat16 on an EPYC core (Zen 4) with
# avx512_bf16; the others in proportion to their width. `bench machine` replaces the guess, `calibrated` both.
RATE_BY_FLAG = (("avx512f", 55e9), ("avx2", 30e9))
BF16_RATE_BY_FLAG = (("amx_bf16", 150e9), ("avx512_bf16", 70e9))
OTHER_RATE = 15e9
REACHED_FRAC = 0.6
"""Share of the rate of large square products that training reaches: 152 of 253 GFLOP/s (docs/benchmarks.md, `matmul_share`)."""
CARD_FRAC = 0.5
"""The same on a card: MFU over the best product, 0.51 / 0.87 on an A100 and 0.35 / 0.80 on an H100 (sources in devices.yaml)."""
CARDS = Path("/proc/driver/nvidia/gpus")
"""NVIDIA's driver for Linux tells here which cards there are (its README, "The Driver's /proc Interface")."""


def this_machine() -> Machine:
    """Cores that this process may use, memory that is installed, cards that the driver names, and their rates."""
    allowed = cores()
    flags, model = processor.told()
    found = Machine(
        name=model,
        cores=allowed,
        memory_bytes=_memory_bytes(),
        flops_per_s=allowed * next((rate for flag, rate in RATE_BY_FLAG if flag in flags), OTHER_RATE),
        bf16_flops_per_s=allowed * next((rate for flag, rate in BF16_RATE_BY_FLAG if flag in flags), 0.0),
        source="guessed from the processor's instructions",
    )
    measured = rates.known().get(key(model, allowed), {})
    if measured:
        found = _measured(found, measured)
    cards = _cards()
    return _with_cards(found, cards, measured.get("card", {})) if cards else found


def key(model: str, allowed: int) -> str:
    """Under what name the rates of a machine are remembered."""
    return f"machine {model} | {allowed} cores"


def here() -> str:
    return key(processor.told()[1], cores())


def _measured(found: Machine, told: Mapping[str, Any]) -> Machine:
    """With rates that `modelwright bench machine` remembered."""
    return found._replace(
        flops_per_s=told["fp32"] * REACHED_FRAC,
        bf16_flops_per_s=told.get("bf16", 0.0) * REACHED_FRAC,
        bandwidth_bytes_per_s=told["bandwidth_bytes_per_s"],
        disk_bytes_per_s=told["disk_read_bytes_per_s"],
        tokenise_chars_per_s=told.get("tokenise_chars_per_s", 0.0),
        link_bytes_per_s=told.get("link_bytes_per_s", 0.0),
        power_w=told.get("power_w", 0.0),
        source=f"measured {told['date']}, {REACHED_FRAC:.0%} of it for training",
    )


def _with_cards(found: Machine, cards: list[str], told: Mapping[str, Any]) -> Machine:
    """The machine with its cards: their measured rates where they are the same cards, else those of the table of devices."""
    from modelwright.plan.devices import machine, table

    known = table()
    name = row_of(cards[0], list(known))
    card = machine(known[name], len(cards)) if name is not None else None
    if told and told["name"] == cards[0] and told["count"] == len(cards):
        share = CARD_FRAC * len(cards)
        return found._replace(
            name=f"{len(cards)} x {cards[0]}" if len(cards) > 1 else cards[0],
            device="cuda",
            flops_per_s=told["fp32"] * share,
            bf16_flops_per_s=told.get("bf16", 0.0) * share,
            fp16_flops_per_s=told.get("fp16", 0.0) * share,
            fp8_flops_per_s=card.fp8_flops_per_s if card is not None else 0.0,  # which is not measured
            devices=len(cards),
            device_memory_bytes=told["memory_bytes"],
            bandwidth_bytes_per_s=told["bandwidth_bytes_per_s"],
            power_w=told.get("power_w", 0.0) * len(cards),
            source=f"{found.source}; the card {CARD_FRAC:.0%} of it for training",
        )
    if card is None:
        return found._replace(source=f"{found.source}; {cards[0]} is in no table of devices, so the processor is planned for")
    return card._replace(
        cores=found.cores,
        memory_bytes=found.memory_bytes,
        disk_bytes_per_s=found.disk_bytes_per_s,
        tokenise_chars_per_s=found.tokenise_chars_per_s,
    )


def row_of(model: str, names: list[str]) -> str | None:
    """The device of the table that the driver's name for a card (`NVIDIA A100-SXM4-40GB`) means; None where there is none."""
    words = re.findall(r"[a-z]+\d+[a-z]*|\d+|[a-z]+", model.lower())
    fits = [name for name in names if set(name.split("-")) <= set(words)] if "laptop" not in words else []
    return max(fits, key=len, default=None)


def _cards() -> list[str]:
    """What the driver calls the cards of this machine; none where the installed torch is built for processors alone."""
    found = [line for path in sorted(CARDS.glob("*/information")) for line in path.read_text(encoding="utf-8").splitlines()]
    models = [line.partition(":")[2].strip() for line in found if line.startswith("Model:")]
    return models if models and not _for_processors() else []


def _for_processors() -> bool:
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def _memory_bytes() -> float:
    limit = Path("/sys/fs/cgroup/memory.max")
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 8e9
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        return min(total, float(text))
    return total
