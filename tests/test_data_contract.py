"""Contract of the data families: every kind, found by its file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core.events import Log
from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Run
from modelwright.methods.formats import FORMATS
from modelwright.methods.sources import SOURCES
from modelwright.methods.steps import STEPS, Cut, Drop, Made
from modelwright.methods.templates import TEMPLATES
from modelwright.methods.tokenizers import TOKENIZERS
from tests import law_kit_data
from tests.law_kit_data import documents

FAMILIES = {"sources": SOURCES, "steps": STEPS, "formats": FORMATS, "templates": TEMPLATES, "tokenizers": TOKENIZERS}
KINDS = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds.names()]


def default(kinds: Kinds, kind: str) -> Spec:
    """The kind with its defaults; what has none takes its first example."""
    cls = kinds.load(kind)
    needed = {name: info.examples[0] for name, info in cls.model_fields.items() if info.is_required() and info.examples}
    given = law_kit_data.STEPS.bases.get(kind, {}) if kinds is STEPS else {}
    return cls.model_validate({"kind": kind, **needed, **given})


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_builds_round_trips_and_is_documented(family: str, kind: str) -> None:
    kinds = FAMILIES[family]
    spec = default(kinds, kind)
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    doc = sys.modules[type(spec).__module__].__doc__ or ""
    assert re.search(r"Source", doc) and re.search(
        r"arXiv:|https?://|doi:|RFC|PEP|none to cite|this folder|_\w+\.py|\d{4},", doc
    ), doc
    for name in type(spec).model_fields:
        assert name == "kind" or len(spec.field_docs().get(name, "")) > 20, f"{kind}.{name} has no docstring"


def test_no_kind_loads_torch_or_its_friends() -> None:
    code = "\n".join(
        ["import sys"]
        + [
            f"from {kinds.package} import {name.upper()}\nfor k in {name.upper()}.names(): {name.upper()}.load(k)"
            for name, kinds in FAMILIES.items()
        ]
        + ["import modelwright.stages.curate, modelwright.stages.tokenizer"]
        + [
            "bad = {'torch', 'transformers', 'numpy', 'tokenizers', 'pyarrow', 'huggingface_hub'} & set(sys.modules)",
            "assert not bad, bad",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- steps ----------------------------------------------------------------------------------------------


def _outcome(spec: Spec, run: Run) -> list[tuple[str, str]]:
    results = spec.apply(iter(documents()), run)  # type: ignore[attr-defined]
    rows = [r for r in results if not isinstance(r, Made)]
    return [(r.record.id, f"{r.reason} {r.detail}") if isinstance(r, (Drop, Cut)) else (r.id, r.text) for r in rows]


def test_a_step_accounts_for_every_row(tmp_path: Path) -> None:
    run = Run(tmp_path, law_kit_data.given(law_kit_data.files(tmp_path)), 0, Log(None))
    ids = [record.id for record in documents()]
    for kind in STEPS.names():
        assert [name for name, _ in _outcome(default(STEPS, kind), run)] == ids, kind
