"""Numbers for people: bytes, seconds, counts and money, always with their unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta


def bytes_text(value: float) -> str:
    """`1.24 GB`; decimal units, as disks and data sheets use."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {unit}" if value / size < 999.5 else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def bytes_of(text: str) -> float:
    """Bytes of `2GB`, `800 MB`, `1.5TB`; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT])?B", text)
    if found is None:
        raise ValueError("write bytes with their unit (`800MB`, `2GB`)")
    return float(found[1]) * {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[found[2]]


def seconds_text(value: float) -> str:
    """`3 min 20 s`, `1 h 05 min`, `0.4 s`."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count_text(value: float) -> str:
    """`4.5M`, `28.1k`, `312`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:  # 999.7k is 1M when rounded to three digits
            return f"{value / size:.3g}{unit}"
    return f"{value:g}" if value == int(value) else f"{value:.3g}"


def count_of(text: str) -> float:
    """The number of `30M`, `1.5B`, `2e9`, `4096`, `4,096`; ValueError for anything else."""
    found = re.fullmatch(r"((?:\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.\d+)?(?:e\d{1,2})?) ?([kMBT]?)", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no count: write 4096, 2e9, 30M or 1.5B")
    return float(found[1].replace(",", "").replace("_", "")) * {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[found[2]]


def rate_text(value: float, unit: str) -> str:
    """`110 GFLOP/s`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def usd_text(value: float) -> str:
    return "free" if value == 0 else f"${value:.2f}" if value >= 0.005 else "<$0.01"


def duration_s(text: str) -> float | None:
    """Seconds of `90s`, `50m`, `2h30m`; None for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if found is None or not text:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600.0 + minutes * 60.0 + seconds


def moment_s(text: str, now_s: float) -> float:
    """Unix time of a clock time (`17:45`, the next one, local) or of a duration from now; ValueError for anything else."""
    if (length := duration_s(text)) is not None:
        return now_s + length
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if found is None:
        raise ValueError("write a clock time (`17:45`) or a duration (`90s`, `50m`, `2h30m`)")
    now = datetime.fromtimestamp(now_s)
    then = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
    return (then if then > now else then + timedelta(days=1)).timestamp()


def text_table(rows: Sequence[dict[str, str]]) -> str:
    """Plain columns, for `print` and for terminals without colour."""
    if not rows:
        return "(nothing)"
    names = list(rows[0])
    width = {n: max(len(n), *(len(r.get(n, "")) for r in rows)) for n in names}
    lines = ["  ".join(n.ljust(width[n]) for n in names), "  ".join("-" * width[n] for n in names)]
    return "\n".join(lines + ["  ".join(r.get(n, "").ljust(width[n]) for n in names).rstrip() for r in rows])
