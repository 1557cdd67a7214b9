"""The house is tested, not wished for: rings, light imports, sizes, and what every kind owes."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import STAGES

ROOT = Path(__file__).parents[1] / "src" / "modelwright"
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "peft",
    "tokenizers",
    "matplotlib",
    "datasets",
    "safetensors",
    "gguf",
    "xllamacpp",
    "fastapi",
    "uvicorn",
}

# ring -> rings of ours that it may import, inside functions too
MAY_IMPORT = {
    "core": {"core"},
    "text": {"core", "text"},
    "methods": {"core", "methods", "nn", "text"},
    "nn": {"core", "nn"},
    "stages": {"core", "methods", "nn", "stages", "text"},
    "plan": {"core", "methods", "plan"},
    "report": {"core", "report"},
    "serve": {"core", "methods", "nn", "serve"},
    "cli": {"core", "methods", "nn", "stages", "plan", "report", "serve", "cli", "api"},
    "api": {"core", "methods", "nn", "stages", "plan", "report", "api"},
}
FAMILIES = sorted(p.name for p in (ROOT / "methods").iterdir() if (p / "__init__.py").exists())


def files():
    return sorted(ROOT.rglob("*.py"))


def ring(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(tree, *, top_level=False):
    """(module name, line) of every import; of the module's own level only, or anywhere."""
    nodes = [n for n in tree.body] if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            if node.module.startswith("modelwright"):
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_rings_and_sizes(path):
    text = path.read_text()
    tree = ast.parse(text)
    here = ring(path)
    assert text.count("\n") <= 600, "a file is at most 600 lines; split it by concept"
    assert ast.get_docstring(tree), "every module says what it is"
    if here in MAY_IMPORT:
        for name, line in imports(tree):
            if name.startswith("modelwright.") and (other := name.split(".")[1]) in MAY_IMPORT:
                assert other in MAY_IMPORT[here], f"line {line}: {here} must not import {name}"
    if here not in ("nn", "text"):  # a server is its web framework; the command that starts it imports it late
        for name, line in imports(tree, top_level=True):
            allowed = {"fastapi", "uvicorn"} if here == "serve" else set()
            assert name.split(".")[0] not in HEAVY - allowed, f"line {line}: {name} at module level"
    _no_foreign_kinds(path, tree, here)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 90, f"{node.name} has {length} lines; a function is at most 60, 90 with its docstring and signature"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"


def _no_foreign_kinds(path, tree, here):
    """A family's base may be imported from anywhere above core; its kinds only by their own family's loader."""
    for name, line in imports(tree):
        parts = name.split(".")
        if parts[:2] == ["modelwright", "methods"] and len(parts) > 3 and not parts[3].startswith("_"):
            kind = ROOT / "methods" / parts[2] / f"{parts[3]}.py"
            own = here == "methods" and path.parent.name == parts[2]
            assert own or not kind.exists(), f"line {line}: {name} is a kind; import the family's base and load kinds by name"
        if parts[:2] == ["modelwright", "stages"] and len(parts) > 2 and here == "stages" and not parts[2].startswith("_"):
            assert not (ROOT / "stages" / f"{parts[2]}.py").exists(), f"line {line}: a stage must not import another stage"


def kinds():
    for family in FAMILIES:
        module = importlib.import_module(f"modelwright.methods.{family}")
        table = next(v for v in vars(module).values() if isinstance(v, Kinds))
        yield from ((family, table, kind) for kind in table.names())
    yield from (("stages", STAGES, kind) for kind in Kinds("modelwright.stages", STAGES.base).names())


ALL = list(kinds())


def test_there_is_something_in_every_family():
    assert {family for family, _, _ in ALL} == {*FAMILIES, "stages"}


@pytest.mark.parametrize(("family", "table", "kind"), ALL, ids=[f"{f}-{k}" for f, _, k in ALL])
def test_contract_of_every_kind(family, table, kind):
    cls = table.load(kind)
    assert cls.model_fields["kind"].default == kind, "the file's name is the kind"
    text = sys.modules[cls.__module__].__doc__ or ""
    if family != "stages":
        assert re.search(r"arXiv:|https?://|doi|ISBN|RFC|PEP|\b(19|20)\d\d\b", text), "a method names its source"
    for name in cls.model_fields:
        assert name == "kind" or len(cls.field_docs().get(name, "")) > 8, f"{kind}.{name} has no docstring"
    required = [n for n, i in cls.model_fields.items() if i.is_required()]
    if not required:
        spec = cls()
        assert cls.model_validate(json.loads(spec.model_dump_json())) == spec, "JSON round trip"
        assert json.dumps(spec.identity()), "the identity is JSON"


def test_importing_every_kind_leaves_torch_out():
    code = (
        "import sys, importlib\n"
        "from modelwright.core.stage import STAGES\n"
        f"for f in {FAMILIES!r}:\n"
        "    m = importlib.import_module('modelwright.methods.' + f)\n"
        "    t = next(v for v in vars(m).values() if type(v).__name__ == 'Kinds')\n"
        "    [t.load(k) for k in t.names()]\n"
        "[STAGES.load(k) for k in STAGES.names()]\n"
        f"bad = {HEAVY!r} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_schema_covers_every_kind():
    from modelwright.core.recipe import Recipe

    text = json.dumps(Recipe.model_json_schema())
    for family, _, kind in ALL:
        if family != "engines":
            assert f'"{kind}"' in text, f"{family}/{kind} cannot be written in a recipe"


def test_unused_only_names_fields():
    for _, table, kind in ALL:
        cls = table.load(kind)
        assert issubclass(cls, Spec)


def test_nothing_of_this_machine_is_committed():
    root = Path(__file__).parents[1]
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = root / name
        if (
            path.suffix in (".py", ".md", ".yaml", ".toml", ".sh", ".txt", "")
            and path.is_file()
            and path.name != Path(__file__).name
        ):
            text = path.read_text(errors="replace")
            for leak in ("/work/", "/root/", "/opt/pypi", "../shared"):
                assert leak not in text, f"{name} holds {leak}"


def test_no_test_forgets_what_was_imported_meanwhile():
    """A patched dict of modules takes all away that was first imported within it; `module_kit.in_place` does not."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found = re.search(r"patch\.dict\(\s*[\"']?sys\.modules", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: use tests/module_kit.py"
