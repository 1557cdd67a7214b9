"""`modelwright doctor`: what is installed, what is missing and how to get it."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.core.estimate import Machine
from modelwright.core.units import bytes_text, rate_text


def main(args: list[str]) -> int:
    chosen = parser(
        "doctor", "Tell what is installed, what is missing and how to get it, and what this machine has.", recipe=False
    ).parse_args(args)
    from modelwright.plan.machine import this_machine

    machine = this_machine()
    rows = [
        {
            "extra": extra,
            "packages": ", ".join(f"{n} {v}" for n, v in have.items()),
            "missing": ", ".join(missing),
            "fix": f"pip install 'modelwright[{extra}]'" if missing else "",
        }
        for extra, (have, missing) in extras().items()
    ]
    free = shutil.disk_usage(".").free
    facts = {
        "python": sys.version.split()[0],
        "cpu": machine.name,
        "cores": machine.cores,
        "memory": bytes_text(machine.memory_bytes),
        "rates": rates_text(machine),
        "free disk": bytes_text(free),
        "gpu": graphics_cards(),
        "torch": torch_build(),
        "slurm": shutil.which("sbatch") or "no sbatch on the path: `launch: slurm` works where jobs are submitted",
    }
    if chosen.json:
        print_json({"machine": facts, "extras": rows})
        return 0
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    print_table(rows, colour={})
    return 0


def rates_text(machine: Machine) -> str:
    """What plans count with, and where it comes from."""
    told = [f"{rate_text(machine.flops_per_s, 'FLOP/s')} in float32"]
    told += [f"{rate_text(machine.bf16_flops_per_s, 'FLOP/s')} in bfloat16"] if machine.bf16_flops_per_s else []
    told += [f"memory {bytes_text(machine.bandwidth_bytes_per_s)}/s"] if machine.bandwidth_bytes_per_s else []
    told += [f"disk {bytes_text(machine.disk_bytes_per_s)}/s"] if machine.disk_bytes_per_s else []
    more = "" if "measured" in machine.source else "; `modelwright bench machine` measures it"
    return f"{', '.join(told)} ({machine.source}{more})"


def extras() -> dict[str, tuple[dict[str, str], list[str]]]:
    """Per extra, installed packages with versions and the missing ones; reads metadata, imports nothing."""
    import re

    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    for line in metadata.requires("modelwright") or []:
        match = re.match(r"([A-Za-z0-9_.-]+)(\[[^\]]*\])?[^;]*; *extra *== *['\"](\w+)['\"]", line)
        if not match or match[1] == "modelwright" or match[3] in ("test", "dev", "all"):
            continue
        have, missing = found.setdefault(match[3], ({}, []))
        try:
            have[match[1]] = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            missing.append(match[1])
    return found


def graphics_cards() -> str:
    """Those that torch sees, and whether it has code for them; importing it takes seconds, so only where there is a card."""
    if shutil.which("nvidia-smi") is None:
        return "none seen (nvidia-smi is not on the path)"
    try:
        from modelwright.nn import cards
    except ImportError:
        return "nvidia-smi is there; which cards torch can use is told where it is installed"
    return cards.told()


def torch_build() -> str:
    """The installed build, from metadata: `+cpu`, `+cu128`, …; importing torch takes seconds."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed: pip install 'modelwright[train]'"
    return version if "+" in version else f"{version} (the build of the package index)"
