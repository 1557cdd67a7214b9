"""Modules that stand in for others while something is tried."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def in_place(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Within the block an import finds these. What else is imported meanwhile stays: `mock.patch.dict` of `sys.modules` forgets
    it, and what is imported twice fills registries twice (numba: "duplicate registration") and has every class twice."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)
