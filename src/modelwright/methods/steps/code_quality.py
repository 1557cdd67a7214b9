"""Code quality: drops Python files that teach nothing: broken, generated, minified, or tables of data.

Sources: The Stack, Kocetkov et al. 2022, arXiv:2211.15533, section 3, and StarCoder, Li et al. 2023, arXiv:2305.06161,
section 3.1, after Codex, Chen et al. 2021, arXiv:2107.03374, section 3.1 (longest line, mean line, share of alphanumerics,
auto-generated files); StarCoder2, Lozhkov et al. 2024, arXiv:2402.19173, section 2.1 (marks of generated code, encoded data).
The share of a file that is one literal table is ours, in place of their search for encoded data.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Drop, Step, is_python

_GENERATED = re.compile(
    r"auto-?generated|automatically generated|generated (?:by|from|file)|machine generated|do not edit|don't edit", re.IGNORECASE
)
_TABLE_LINES = 20
"""A literal of fewer lines is a default or a lookup that a person wrote."""


class CodeQuality(Step):
    """Judges Python documents; other rows pass."""

    bytes_per_s: ClassVar[float] = 4e6

    kind: Literal["code_quality"] = "code_quality"
    parses: bool = Field(True, examples=[False])
    """Whether a file must be Python that this interpreter can parse. Off keeps Python 2 and stops the search for tables."""
    max_line_chars: int = Field(1000, ge=1, examples=[20])
    """Characters of the longest line; lowering it drops minified code and embedded data. Default: StarCoder."""
    max_mean_line_chars: float = Field(100, gt=0, examples=[5])
    """Mean characters of a line. Default: StarCoder."""
    min_alphanumeric_frac: float = Field(0.25, ge=0, le=1, examples=[0.9])
    """Share of letters and digits among all characters; raising it drops ASCII art and punctuation. Default: StarCoder."""
    generated: bool = Field(False, examples=[True])
    """Whether files may stay that call themselves generated in their first five lines. Default: StarCoder2."""
    max_table_frac: float = Field(0.5, ge=0, le=1, examples=[0.0])
    """Share of lines inside literal lists, dicts, sets and tuples of 20 lines and more; lowering it drops lookup tables.
    Default: a file that is mostly table (ours)."""

    def unused(self, context: object) -> dict[str, str]:
        return {} if self.parses else {"max_table_frac": "tables are found in the parsed file, and `parses` is off"}

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        for record in rows:
            fault = self._fault(record.text) if is_python(record) else None
            yield Drop(record, f"code: {fault[0]}", fault[1]) if fault else record

    def _fault(self, text: str) -> tuple[str, str] | None:
        lines = text.splitlines() or [""]
        longest = max(map(len, lines))
        if longest > self.max_line_chars:
            return "line too long", f"{longest} characters, more than {self.max_line_chars}"
        mean = sum(map(len, lines)) / len(lines)
        if mean > self.max_mean_line_chars:
            return "mean line too long", f"{mean:.0f} characters, more than {self.max_mean_line_chars:g}"
        share = sum(map(str.isalnum, text)) / max(len(text), 1)
        if share < self.min_alphanumeric_frac:
            return "few letters and digits", f"{share:.2f} of the characters, less than {self.min_alphanumeric_frac:g}"
        if not self.generated and (mark := _GENERATED.search("\n".join(lines[:5]))):
            return "generated", f"it says {mark.group()!r}"
        if not self.parses:
            return None
        tree = parse(text)
        if isinstance(tree, str):
            return "does not parse", tree
        table = _table_lines(tree) / len(lines)
        if table > self.max_table_frac:
            return "data table", f"{table:.2f} of the lines are literal tables, more than {self.max_table_frac:g}"
        return None


def parse(text: str) -> ast.Module | str:
    """The tree, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own: invalid escapes and the like
            return ast.parse(text)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL byte; nesting beyond the parser's stack
        return f"{type(error).__name__}: {error}"


def _table_lines(tree: ast.Module) -> int:
    """Lines in literal containers that stand at module or class level and are long."""
    lines = 0
    queue: list[ast.stmt] = list(tree.body)
    while queue:
        statement = queue.pop()
        if isinstance(statement, ast.ClassDef):
            queue += statement.body
        value = getattr(statement, "value", None) if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Expr)) else None
        if isinstance(value, ast.Call) and value.args:
            value = value.args[0]  # frozenset({...}), dict([...])
        if isinstance(value, (ast.List, ast.Dict, ast.Set, ast.Tuple)):
            extent = (value.end_lineno or value.lineno) - value.lineno + 1
            lines += extent if extent >= _TABLE_LINES else 0
    return lines
