"""The law of use: each field of each kind, changed alone, changes what is made, told or estimated. Reading is not using."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core import recipe
from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.stage import STAGES
from modelwright.methods.schedules import Schedule
from tests import law_kit, law_kit_data, law_kit_model, law_kit_run, law_kit_stages
from tests.law_kit import Book, Case, Seen, Subject, difference
from tests.law_kit_refused import REFUSALS, Refusal, classes, in_a_stage, reasons

KITS = (law_kit_data, law_kit_model, law_kit_run, law_kit_stages)
SUBJECTS: dict[str, Subject] = {
    name.lower(): subject for kit in KITS for name, subject in vars(kit).items() if isinstance(subject, Subject)
}
CASES = list(law_kit.cases())
"""Every field of every kind, found by its file."""
IDS = [f"{case.family}-{case.name}" for case in CASES]
KINDS = [(family, kind) for family in SUBJECTS for kind in law_kit.table(family).names()]


class Bench:
    """Things to work on, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = law_kit_data.files(folder)
        law_kit_stages.files(folder)
        self.model = folder / "model"
        self.shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=400)
        self._fresh = 0

    @cached_property
    def gguf(self) -> Path:
        out = self.fresh()
        law_kit.table("exporters").load("gguf")(type="f32").write(self.model, out, law_kit_data.Listening())  # type: ignore[call-arg]
        return out

    def fresh(self) -> Path:
        """A new empty folder."""
        self._fresh += 1
        path = self.folder / f"out-{self._fresh}"
        path.mkdir()
        return path


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("law"))


@pytest.fixture(autouse=True)
def place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of the files, with the packages there installed, on one thread."""
    monkeypatch.chdir(bench.folder)
    monkeypatch.syspath_prepend(str(bench.folder / "site"))
    monkeypatch.setattr("modelwright.nn.fused.BACKEND", "eager")  # the compiler of torch's own takes minutes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def book() -> Book:
    return Book()


def _refused(seen: Seen) -> bool:
    return isinstance(seen.outcome, list) and seen.outcome[:1] == ["refused"]


def _needs(kind: str) -> None:
    if kind in ("gguf", "llamacpp"):
        pytest.importorskip("xllamacpp")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_field_changed_alone_changes_something(case: Case, bench: Any, book: Book) -> None:
    subject = SUBJECTS[case.family]
    trees = law_kit.variants(case, subject)
    if case.name in subject.refused:
        with pytest.raises(UserError, match=subject.refused[case.name]):
            law_kit_stages.loaded(trees[1], bench.folder)
        return
    _needs(case.kind)
    seen = [book.see(subject, law_kit.spec_of(case, tree), bench) for tree in trees]
    for before, after in combinations(seen, 2):
        assert not (_refused(before) and _refused(after)), f"the kit's specs of {case.name} are refused: {before} {after}"
        if not case.runtime:
            assert difference([before.outcome, before.told], [after.outcome, after.told]), (
                f"{case.name} is read, but nothing comes of it"
            )
            continue
        assert difference(list(before), list(after)), f"{case.name} changes nothing that can be seen"
        if not _refused(before) and not _refused(after):
            worse = difference(before.outcome, after.outcome, 1e-3)
            assert not worse, f"{case.name} is marked Runtime and changes results: {worse}"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_enters_the_key(case: Case) -> None:
    subject = SUBJECTS[case.family]
    if case.name in subject.refused:
        return
    specs = [law_kit.spec_of(case, tree) for tree in law_kit.variants(case, subject)]
    for one, two in combinations(specs, 2):
        assert (one.identity() == two.identity()) is case.runtime
    for spec in specs:
        assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=[f"{family}-{kind}" for family, kind in KINDS])
def test_the_same_spec_does_the_same(family: str, kind: str, bench: Any, book: Book) -> None:
    """Without this the law would be kept by anything that changes by itself."""
    _needs(kind)
    subject = SUBJECTS[family]
    spec = law_kit.table(family).load(kind).model_validate({"kind": kind, **subject.bases.get(kind, {})})
    before, after = book.see(subject, spec, bench), book.see(subject, spec, bench, again=True)
    assert not difference([before.outcome, before.told], [after.outcome, after.told])


SEEDED: list[tuple[str, str, dict[str, Any]]] = [
    *((family, kind, {}) for family, kind in KINDS if family in ("steps", "stages")),
    ("stages", "curate", {"split": {"test": 0.3}}),
]


@pytest.mark.parametrize(("family", "kind", "more"), SEEDED, ids=[f"{row[0]}-{row[1]}-{len(row[2])}" for row in SEEDED])
def test_the_seed_is_used_where_it_enters_the_key(family: str, kind: str, more: dict[str, Any], bench: Any) -> None:
    tree = {"kind": kind, **SUBJECTS[family].bases.get(kind, {}), **more}
    see = law_kit_stages.see_stage if family == "stages" else law_kit_data.see_step
    spec: Any = law_kit.table(family).load(kind).model_validate(tree)
    before, after = (law_kit.plain(see(spec, bench, seed)).outcome for seed in (0, 1))
    assert bool(difference(before, after)) is spec.random


def test_a_field_without_use_is_found() -> None:
    """The law bites: a field that is only read leaves the same factors."""

    class Idle(Schedule):
        idle: int = 3

        def factor(self, step: int, steps: int) -> float:
            return 1.0 + 0 * self.idle

    one, two = (law_kit.observed(SUBJECTS["schedules"], Idle(idle=idle), None) for idle in (3, 4))
    assert not difference(list(one), list(two)) and one.outcome


def test_every_family_and_stage_is_under_the_law() -> None:
    assert set(SUBJECTS) == {*law_kit.FAMILIES, "stages"}
    for family in SUBJECTS:
        folder = Path(law_kit.table(family).file(law_kit.table(family).names()[0])).parent
        files = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
        assert files == set(law_kit.table(family).names())
    known = {name for family, subject in SUBJECTS.items() for name in (*subject.bases, *subject.others, *subject.refused)}
    real = {case.name for case in CASES} | {kind for _, kind in KINDS}
    assert known <= real, f"the kit has entries for what is not there: {sorted(known - real)}"


# --- the static half ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", REFUSALS, ids=[f"{row.kind}.{row.path}-{row.value}" for row in REFUSALS])
def test_a_key_that_nothing_would_use_is_refused(row: Refusal, bench: Any, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, path = in_a_stage(row)
    law_kit_stages.loaded(stage, bench.folder)  # without the key it is sound
    with_it = law_kit.changed(stage, path.split("."), row.value)
    with pytest.raises(UserError) as caught:
        law_kit_stages.loaded(with_it, bench.folder)
    for piece in (row.says, f"stages.it.{path}", "would be ignored"):
        assert piece in str(caught.value)
    monkeypatch.setattr(recipe, "_ledger_errors", lambda tree, stages: [])
    specs = [STAGES.load(tree["kind"]).model_validate(tree) for tree in (stage, with_it)]
    before, after = (book.see(SUBJECTS["stages"], spec, bench) for spec in specs)
    if not _refused(after):  # else it is told early what would be told late
        assert not difference([before.outcome, before.told], [after.outcome, after.told]), "it would have been used"


def test_every_reason_to_refuse_has_its_case() -> None:
    said = [row.says for row in REFUSALS]
    for cls in classes():
        for parts in reasons(cls):
            assert any(text in part for text in said for part in parts), f"{cls.__name__}.unused: no case for {parts}"
