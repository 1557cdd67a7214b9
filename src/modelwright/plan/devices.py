"""Devices that are not here: what data sheets say (`devices.yaml`), scaled by the share that training was measured to reach.

Users add theirs in a file of the same layout: `--devices-file`, or `modelwright/devices.yaml` in the folder of settings
(https://specifications.freedesktop.org/basedir-spec/latest/).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import yaml
from pydantic import Field, ValidationError

from modelwright.core.errors import UserError, UserErrors
from modelwright.core.estimate import Machine
from modelwright.core.faults import faults_of
from modelwright.core.places import Tree, read_yaml
from modelwright.core.spec import Spec

TERA, GIGA = 1e12, 1e9
LAYOUT = "see the file of the same name in modelwright/plan"


class Source(Spec):
    """Where a number comes from."""

    title: str
    """What it is, as one would cite it."""
    url: str = ""
    """Its address; empty for what was measured or assumed by whoever wrote the file."""
    read: date
    """The day on which somebody looked."""


class Rates(Spec):
    """Dense matrix products, in TFLOP/s (int8: TOP/s), sums in float32."""

    fp32: float | None = Field(None, gt=0)
    """float32, without TensorFloat-32."""
    tf32: float | None = Field(None, gt=0)
    """float32 with products in TensorFloat-32; told for comparison, training here does not use it."""
    fp16: float | None = Field(None, gt=0)
    """float16."""
    bf16: float | None = Field(None, gt=0)
    """bfloat16; unset where there are no such products."""
    fp8: float | None = Field(None, gt=0)
    """float8."""
    int8: float | None = Field(None, gt=0)
    """8-bit integers; told for comparison."""


class Link(Spec):
    """What joins several of them."""

    gb_per_s: float = Field(gt=0)
    """Both directions together, in GB/s."""
    kind: str
    """What it is called."""


class Host(Spec):
    """The machine around it."""

    cores: int = Field(ge=1)
    """Processors for one of these devices."""
    memory_gb: float = Field(gt=0)
    """Main memory for one of these devices, in GB."""
    of: str
    """Which machine that is."""


class Device(Spec):
    """One row of the table."""

    title: str
    """Its name in full."""
    device: Literal["cuda", "mps", "cpu", "tpu"]
    """What it is to torch; `tpu` is there for its price alone."""
    chips: int = Field(1, ge=1)
    """Chips that are had together, each with the memory and the rates below."""
    capability: str = Field("", pattern=r"^(\d+\.\d+)?$")
    """CUDA's compute capability (`7.5`); empty: no CUDA card."""
    memory_gb: float = Field(gt=0)
    """Memory of one, in 10^9 bytes."""
    bandwidth_gb_per_s: float = Field(gt=0)
    """Rate of reading that memory, in GB/s."""
    tflops: Rates
    """Rates of matrix products on the data sheet."""
    power_w: float | None = Field(None, gt=0)
    """What its board draws at most, in watts; unset: not published."""
    link: Link | None = None
    """How several of them talk to each other; unset: not published, or there is never more than one."""
    host: Host
    """The machine around it."""
    achieved_frac: float = Field(gt=0, le=1)
    """Share of these rates that training reaches."""
    achieved_fp8_frac: float | None = Field(None, gt=0, le=1)
    """The same of the float8 rate; unset: as the others."""
    achieved_from: str
    """Source of the share: a key of `sources`, or a sentence."""
    sources: dict[str, str]
    """By field its source (a key of `sources`, or a sentence); `all` for those that are not named."""
    note: str = ""
    """What else has to be known."""


class Table(Spec):
    """The whole file."""

    sources: dict[str, Source] = {}
    """By key, for the rows to name."""
    devices: dict[str, Device]
    """By name."""


class Known(NamedTuple):
    """A row, and the file and sources that it came with."""

    row: Device
    sources: dict[str, Source]
    file: str
    """Empty for the table of this program."""

    def cited(self, text: str) -> str:
        """A source as one sentence: a key of the file's list in full, else the words as they are."""
        found = self.sources.get(text)
        return text if found is None else f"{found.title}{f', {found.url}' if found.url else ''}, read {found.read}"


def table(file: Path | None = None) -> dict[str, Known]:
    """Every row by name: this program's, those of the folder of settings, those of `file`; later ones replace earlier ones."""
    found = dict(_own())
    for path in (settings_file("devices.yaml"), file):
        if path is not None:
            found |= dict(_rows(read_yaml(path, LAYOUT), str(path)))
    return found


@cache
def _own() -> dict[str, Known]:
    return dict(_rows(shipped("devices.yaml"), ""))


def shipped(name: str) -> Tree:
    """A table of this program, by libyaml where it is there, ten times as fast; lines are for files that others write."""
    text = resources.files("modelwright.plan").joinpath(name).read_text(encoding="utf-8")
    return Tree(yaml.load(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader), {}, name, text)


def settings_file(name: str) -> Path | None:
    """The user's file of this name in the folder of settings; None where there is none."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    path = (Path(home) if Path(home).is_absolute() else Path.home() / ".config") / "modelwright" / name
    return path if path.is_file() else None


def names(file: Path | None = None) -> list[str]:
    return list(table(file))


def key_of(name: str, file: Path | None = None) -> str:
    """The name of a row, from however it is written (`NVIDIA A100 80`); UserError with near names where there is none."""
    known = names(file)
    key = "-".join(name.lower().replace("_", "-").split()).removeprefix("nvidia-").removeprefix("geforce-")
    if key in known:
        return key
    near = sorted(known, key=lambda one: (key not in one, -difflib.SequenceMatcher(None, key, one).ratio()))[:3]
    raise UserError(
        f"there is no device {name!r} in the table",
        f"it has: {', '.join(known)}",
        f"did you mean {', '.join(near)}? Or write a row of your own and name its file with --devices-file",
    )


def named(name: str, count: int = 1, file: Path | None = None) -> Machine:
    """`count` of the device of this name, with the machine around them, at the cheapest known price; UserError with near names
    where there is none."""
    from modelwright.plan.money import prices, rent

    known, key = table(file), key_of(name, file)
    if count < 1:
        raise UserError(f"{count} devices cannot be planned for", fix="name one or more")
    if count > 1 and known[key].row.device in ("cpu", "mps"):
        raise UserError(
            f"{known[key].row.title} is a whole machine, and there is one of it",
            "training on several machines is `runtime.launch`, which is not planned by `--devices`",
            "leave `--devices` out",
        )
    hired = rent(prices(), key, count)
    return machine(known[key], count)._replace(usd_per_hour=hired.usd_per_hour if hired else 0.0)


def machine(known: Known, count: int = 1) -> Machine:
    """The row as the planner takes it: `count` of them together."""
    row, every = known.row, count * known.row.chips
    share = row.achieved_frac * TERA * every
    rates = row.tflops
    card = row.device != "cpu"
    told = [f"{row.achieved_frac:.0%} of the rates of {known.cited(row.sources.get('tflops', row.sources.get('all', '')))}"]
    told += [f"a share from {known.cited(row.achieved_from)}"] if row.achieved_frac < 1 else []
    told += [row.note] if row.note else []
    told += [f"from {known.file}"] if known.file else []
    return Machine(
        name=f"{count} x {row.title}" if count > 1 else row.title,
        cores=row.host.cores * count,
        memory_bytes=row.host.memory_gb * GIGA * count,
        device=row.device,
        flops_per_s=(rates.fp32 or rates.bf16 or 0.0) * share,
        bf16_flops_per_s=(rates.bf16 or 0.0) * share,
        fp16_flops_per_s=(rates.fp16 or 0.0) * share,
        fp8_flops_per_s=(rates.fp8 or 0.0) * (row.achieved_fp8_frac or row.achieved_frac) * TERA * every,
        devices=every,
        device_memory_bytes=row.memory_gb * GIGA if card else 0.0,
        bandwidth_bytes_per_s=row.bandwidth_gb_per_s * GIGA,
        link_bytes_per_s=row.link.gb_per_s / 2 * GIGA if row.link and every > 1 else 0.0,
        power_w=(row.power_w or 0.0) * every,
        source="; ".join(told),
    )


def _rows(tree: Tree, file: str) -> Iterator[tuple[str, Known]]:
    found = checked(Table, tree)
    for name, row in found.devices.items():
        yield name.lower(), Known(row, found.sources, file)


T = TypeVar("T", bound=Spec)


def checked(kind: type[T], tree: Tree) -> T:
    """The tree as `kind`; every fault with its line."""
    if not isinstance(tree.value, dict):
        keys = ", ".join(f"`{name}`" for name in kind.model_fields)
        raise UserError(f"this file is a mapping with {keys}", fix=LAYOUT, where=tree.name)
    try:
        return kind.model_validate(tree.value)
    except ValidationError as error:
        errors = [fault.error(tree) for fault in faults_of(error, kind, ())]
        raise errors[0] if len(errors) == 1 else UserErrors(errors) from None
