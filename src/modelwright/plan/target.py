"""What a plan is made for: a machine or devices of the table, and the prices of the day."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.plan import devices, money
from modelwright.plan.machine import this_machine
from modelwright.plan.money import Prices, Rent


class Target(NamedTuple):
    """What a plan is made for, and at which prices."""

    machine: Machine
    table: Prices
    device: str = ""
    """Its name in the table of devices; empty: this machine, or one that was made in Python."""
    many: int = 1
    devices_file: Path | None = None

    @property
    def rent(self) -> Rent | None:
        return money.rent(self.table, self.device or money.THIS, self.many)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the device, and files of the user's own that were read."""
        row = devices.table(self.devices_file)[self.device] if self.device else None
        found = [row.row.note] if row is not None and row.row.note else []
        found += [f"the device is a row of {row.file}"] if row is not None and row.file else []
        settings = devices.settings_file("prices.yaml")
        return (*found, f"with prices of {settings}") if settings is not None else tuple(found)


def target(
    machine: Machine | str | None = None, count: int = 1, prices_file: Path | None = None, devices_file: Path | None = None
) -> Target:
    """`machine`: a name in the table of devices, a machine made in Python, or None for this one."""
    table = money.prices(prices_file)
    if isinstance(machine, str):
        name = devices.key_of(machine, devices_file)
        found = devices.named(name, count, devices_file)
        hired = money.rent(table, name, count)
        return Target(found._replace(usd_per_hour=hired.usd_per_hour if hired else 0.0), table, name, count, devices_file)
    if count != 1:
        raise UserError(f"{count} of what?", "a count goes with the name of a device", "name one, or give the machine alone")
    if devices_file is not None:
        devices.table(devices_file)  # proposals are of its rows: a fault is told now
    return Target(machine or this_machine(), table, "", count, devices_file)
