"""How much of each memory a stage takes, beside how much there is. What counts is the high end of the interval, so that what is
called fitting does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelwright.core.estimate import Estimate, Machine, Part, Quantity
from modelwright.core.units import bytes_text
from modelwright.plan.cuda import on_card

MARGIN_FRAC = 0.1
"""Taken for the interval, to both sides, where nothing is known of it."""
SMALL_FRAC = 0.005
"""Parts that are a smaller share of the sum are told together."""


class Need(NamedTuple):
    """What is taken of one memory, and what there is."""

    what: str
    """`memory`, `memory of each card` or, where that is one, `memory of processors and GPU`."""
    takes: Quantity
    has_bytes: float
    parts: tuple[Part, ...] = ()

    @property
    def low_bytes(self) -> float:
        return (1 - MARGIN_FRAC) * self.takes.value if self.takes.low is None else self.takes.low

    @property
    def high_bytes(self) -> float:
        return (1 + MARGIN_FRAC) * self.takes.value if self.takes.high is None else self.takes.high

    @property
    def fits(self) -> bool:
        return self.high_bytes <= self.has_bytes

    @property
    def surely_not(self) -> bool:
        """Not even the low end of the interval fits."""
        return self.low_bytes > self.has_bytes

    @property
    def verdict(self) -> str:
        return "fits" if self.fits else "does not fit" if self.surely_not else "may not fit"

    @property
    def free_bytes(self) -> float:
        """What is left at the high end; below zero: what is missing."""
        return self.has_bytes - self.high_bytes

    def sum_text(self) -> str:
        """`weights 2.47 GB + gradients 2.47 GB + … = 12.1 GB`, the largest first."""
        if not self.parts:
            return f"{bytes_text(self.takes.value)}: {self.takes.why}"
        total = sum(part.bytes for part in self.parts)
        ordered = sorted((part for part in self.parts if part.bytes >= SMALL_FRAC * total), key=lambda part: -part.bytes)
        found = [f"{part.name} {bytes_text(part.bytes)}" for part in ordered]
        if rest := total - sum(part.bytes for part in ordered):
            found.append(f"others {bytes_text(rest)}")
        ends = "" if abs(total - self.takes.value) < 0.005 * total else f", {bytes_text(self.takes.value)} as corrected"
        return " + ".join(found) + f" = {bytes_text(total)}{ends}"


def needs(estimate: Estimate, machine: Machine) -> tuple[Need, ...]:
    """Of each memory whose size is known, the scarcest first."""
    found, estimate = [], on_card(estimate, machine)
    if estimate.device_memory is not None and machine.one_memory:
        return (_together(estimate, estimate.device_memory, machine),)
    if estimate.device_memory is not None and machine.device_memory_bytes:
        what = "memory of each card" if machine.devices > 1 else "memory of the card"
        found.append(Need(what, estimate.device_memory, machine.device_memory_bytes, estimate.device_parts))
    if machine.memory_bytes:
        found.append(_of_all(Need("memory", estimate.memory, machine.memory_bytes, estimate.parts), estimate.processes))
    return scarcest(found)


def _together(estimate: Estimate, on_gpu: Quantity, machine: Machine) -> Need:
    """Of the one memory that holds a process and what its GPU works on: a model is opened there and is where it is wanted."""
    has = machine.device_memory_bytes
    own, gpu = Need("", estimate.memory, has), Need("", on_gpu, has)
    twice = sum(part.bytes for part in estimate.parts if part.name == "opening")
    rest = max(0.0, 1 - twice / max(own.takes.value, 1.0))
    value, low, high = (
        rest * one + other
        for one, other in (
            (own.takes.value, gpu.takes.value),
            (own.low_bytes, gpu.low_bytes),
            (own.high_bytes, gpu.high_bytes),
        )
    )
    parts = (*estimate.device_parts, *(part for part in estimate.parts if part.name != "opening"))
    return Need(
        "memory of processors and GPU", Quantity(value, "bytes", f"{on_gpu.why}; {estimate.memory.why}", low, high), has, parts
    )


def scarcest(found: Sequence[Need]) -> tuple[Need, ...]:
    """The scarcest memory first."""
    return tuple(sorted(found, key=lambda need: -need.high_bytes / need.has_bytes))


def _of_all(need: Need, processes: int) -> Need:
    """Of a memory that so many processes share, each of which takes as much."""
    if processes == 1:
        return need
    low, high = (None if end is None else processes * end for end in (need.takes.low, need.takes.high))
    takes = need.takes._replace(value=processes * need.takes.value, low=low, high=high)
    parts = tuple(part._replace(bytes=processes * part.bytes) for part in need.parts)
    return need._replace(what=f"memory for {processes} processes", takes=takes, parts=parts)
