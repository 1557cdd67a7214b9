"""Code quality: drops Python files that teach nothing: broken, generated, minified, or tables of data.

Sources: The Stack, Kocetkov et al. 2022, arXiv:2211.15533, section 3, and StarCoder, Li et al. 2023, arXiv:2305.06161,
section 3.1, after Codex, Chen et al. 2021, arXiv:2107.03374, section 3.1 (longest line, mean line, share of alphanumerics,
auto-generated files); StarCoder2, Lozhkov et al. 2024, arXiv:2402.19173, section 2.1 (marks of generated code, encoded data).
The share of a file that is one literal table is ours, in place of their search for encoded data.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Bound, Cut, Drop, Measure, Measuring, Numbers, is_python

_GENERATED = re.compile(
    r"auto-?generated|automatically generated|generated (?:by|from|file)|machine generated|do not edit|don't edit", re.IGNORECASE
)
_TABLE_LINES = 20
"""A literal of fewer lines is a default or a lookup that a person wrote."""


class CodeQuality(Measuring):
    """Judges Python documents; other rows pass."""

    bytes_per_s: ClassVar[float] = 4e6
    published: ClassVar[str] = "Li et al. 2023, arXiv:2305.06161, section 3.1"

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

    def measured_by(self, run: Run) -> dict[str, Any]:
        return {"name": "code_quality", "parses": self.parses}

    def reads(self, record: Record) -> bool:
        return is_python(record)

    def measurer(self, run: Run) -> Measure:
        import numpy as np

        def measure(rows: Sequence[Record]) -> Numbers:
            counts = [_counts(record.text, self.parses) for record in rows]
            return {name: np.array([count[name] for count in counts]) for name in counts[0]}

        return measure

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        import numpy as np

        lines_D = numbers["lines"]
        table_D = np.where(numbers["broken"], np.nan, numbers["table_lines"] / lines_D)
        alphanumeric_D = numbers["alphanumeric"] / np.maximum(numbers["chars"], 1)
        found = {
            "line too long": self.at_most("characters of the longest line", numbers["longest"], "max_line_chars"),
            "mean line too long": self.at_most(
                "mean characters of a line", numbers["line_chars"] / lines_D, "max_mean_line_chars"
            ),
            "few letters and digits": self.at_least("share of letters and digits", alphanumeric_D, "min_alphanumeric_frac"),
            "generated": Bound(
                "says that it is generated", numbers["generated"], -math.inf, math.inf if self.generated else 0, "generated"
            ),
            "does not parse": Bound("does not parse", numbers["broken"], -math.inf, 0, "parses"),
            "data table": self.at_most("share of lines in literal tables", table_D, "max_table_frac"),
        }
        return {f"code: {reason}": bound for reason, bound in found.items()}

    def verdicts(self, rows: Sequence[Record], numbers: Numbers, bounds: Mapping[str, Bound]) -> Iterator[Record | Cut | Drop]:
        for result in super().verdicts(rows, numbers, bounds):
            if isinstance(result, Drop) and result.reason == "code: generated":
                yield result._replace(detail=f"it says {_mark(result.record.text.splitlines())!r}")
            elif isinstance(result, Drop) and result.reason == "code: does not parse":
                yield result._replace(detail=str(parse(result.record.text)))
            else:
                yield result


def _mark(lines: Sequence[str]) -> str:
    """What a file says that was generated; empty for others."""
    found = _GENERATED.search("\n".join(lines[:5]))
    return found.group() if found else ""


def _counts(text: str, parses: bool) -> dict[str, int]:
    lines = text.splitlines() or [""]
    tree = parse(text) if parses else ""
    return {
        "chars": len(text),
        "lines": len(lines),
        "longest": max(map(len, lines)),
        "line_chars": sum(map(len, lines)),
        "alphanumeric": sum(map(str.isalnum, text)),
        "generated": int(bool(_mark(lines))),
        "broken": int(parses and isinstance(tree, str)),
        "table_lines": 0 if isinstance(tree, str) else _table_lines(tree),
    }


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
