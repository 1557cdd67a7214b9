"""What is known of every method: the facts in the kinds' own files, and `methods.yaml` for those that have no kind (yet)."""

from __future__ import annotations

import sys
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

from modelwright.core.spec import Advice, Kinds
from modelwright.methods.adapters import ADAPTERS
from modelwright.methods.architectures import ARCHITECTURES
from modelwright.methods.exporters import EXPORTERS
from modelwright.methods.growers import GROWERS
from modelwright.methods.objectives import OBJECTIVES

FAMILIES: dict[str, Kinds] = {
    "objectives": OBJECTIVES,
    "adapters": ADAPTERS,
    "exporters": EXPORTERS,
    "architectures": ARCHITECTURES,
    "growers": GROWERS,
}
"""Where a method that the tree names may have its file."""

State = Literal["kind", "way", "missing"]


class Method(NamedTuple):
    """One method, wherever its facts are."""

    name: str
    title: str
    state: State
    """Has a file of its own; is a use of what is here; is not here yet."""
    advice: Advice
    file: str = ""
    """The kind's file, `methods/objectives/sft.py`; '' where there is none."""

    @property
    def here(self) -> bool:
        return self.state != "missing"


class Published(NamedTuple):
    """What a public comparison measured of a method, on one model and task."""

    value: float
    memory_gb: float
    seconds: float
    note: str


class Start(NamedTuple):
    """A public model that a recipe may begin with, pinned to a commit."""

    name: str
    like: str
    """Name of its sizes in `models.yaml`."""
    start: str
    chats: bool
    """Whether it was made to answer, or only to go on with texts."""


class Source(NamedTuple):
    """Where a claim is from."""

    title: str
    url: str


class Data(NamedTuple):
    """`methods.yaml`, read."""

    methods: dict[str, Method]
    published: dict[str, Published]
    published_what: str
    published_rows: int
    published_source: str
    starts: tuple[Start, ...]
    sources: dict[str, Source]


@cache
def data() -> Data:
    tree: dict[str, Any] = yaml.safe_load(resources.files(__package__).joinpath("methods.yaml").read_text(encoding="utf-8"))
    published = tree["published"]
    return Data(
        {name: _row(name, dict(row)) for name, row in tree["methods"].items()},
        {name: Published(**row) for name, row in published["results"].items()},
        published["what"],
        published["rows"],
        published["source"],
        tuple(Start(**row) for row in tree["starts"]),
        {name: Source(**row) for name, row in tree["sources"].items()},
    )


def _row(name: str, row: dict[str, Any]) -> Method:
    title, way = row.pop("title"), row.pop("way", None)
    return Method(name, title, "way" if way else "missing", Advice(**row))


def method(name: str) -> Method:
    """The kind of this name, else its row; a name that is neither is a fault of ours."""
    for family, kinds in FAMILIES.items():
        if name in kinds.names():
            cls = kinds.load(name)
            title = (sys.modules[cls.__module__].__doc__ or "").partition(":")[0].strip()
            return Method(name, title, "kind", cls.advice or Advice("", ""), f"methods/{family}/{name}.py")
    return data().methods[name]
