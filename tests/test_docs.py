"""The generated documentation is up to date, and what README and recipes say works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.api import load as open_recipe
from modelwright.cli.main import COMMANDS
from modelwright.core.recipe import load

ROOT = Path(__file__).parents[1]


def test_generated_documentation_is_current():
    done = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_planned(path, tmp_path):
    from modelwright.api import load as project

    plan = project(path, store=tmp_path).plan()
    assert [row.stage for row in plan.rows] == list(load(path).recipe.stages)
    assert all(
        row.estimate.seconds.value > 0 and row.estimate.memory.value > 1e6 and row.estimate.seconds.why for row in plan.rows
    )


def test_plan_loads_no_torch(tmp_path):
    code = (
        "import sys; from modelwright.cli.main import main; "
        f"main(['plan', 'recipes/quickstart.yaml', '--store', {str(tmp_path)!r}]); "
        "bad = {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_names_only_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"modelwright (\w+)", text):
        assert name in COMMANDS or name in ("as",), f"README names `modelwright {name}`"
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / path).exists(), f"README links to {path}"


def test_the_recipe_in_the_readme_is_valid(tmp_path):
    from modelwright.core.recipe import loads

    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert list(loads(text).recipe.stages) == ["corpus", "vocab", "base", "chat", "aligned", "report", "small"]
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is nothing at all."}]
    for name in ("chats", "test"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"messages": turns, "of": name}) + "\n") * 50)
    pair = {"prompt": "What is it?", "chosen": "It is nothing.", "rejected": "It is something."}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 50)
    (tmp_path / "r.yaml").write_text(text)
    plan = open_recipe(tmp_path / "r.yaml", store=tmp_path / "store").plan()
    assert not plan.pitfalls, "its rate was sixty times what is published for preferences"


def test_the_example_method_in_the_architecture_page_works(tmp_path):
    """docs/architecture.md shows a new objective in one file; it runs as the user's own."""
    import torch

    from modelwright.core.spec import allow_code
    from modelwright.methods.objectives import OBJECTIVES, Batch

    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S)[1]
    path = tmp_path / "slic.py"
    path.write_text(code.replace('Literal["slic"] = "slic"', f'Literal["{path}"] = "{path}"'))
    allow_code(path)
    objective = OBJECTIVES.load(str(path))()

    class Toy:
        def logps(self):
            return torch.tensor([-1.0, -3.0])

    batch = Batch(torch.zeros(2), torch.ones(2), torch.tensor([0, 1]), 2, torch.tensor([0]), torch.tensor([1]))
    assert float(objective.loss(Toy(), batch).total) == 0.0
