"""python_parses: the share of generated code that Python's parser accepts. Nothing is run.

Source: the `ast` module (https://docs.python.org/3/library/ast.html#ast.parse); the weakest of the checks in Chen et al. 2021
(HumanEval, arXiv:2107.03374), where code is also run against tests.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.tasks import Answer, Generate, Sample, Score, Task, no_question, question

MOST_CHARS = 200_000
"""Longer answers are not parsed: a syntax tree takes about a thousand times the memory of its text."""
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


class PythonParses(Task):
    """Asks the question of a chat and parses what comes, or the first fenced block in it."""

    advice: ClassVar[Advice] = Advice(
        "questions ask for code; choose them with `where`", "the code should also be right: parsing says nothing about that"
    )
    metric: ClassVar[str] = "code that parses"
    reference: ClassVar[bool] = False

    kind: Literal["python_parses"] = "python_parses"
    max_tokens: int = Field(256, ge=1, examples=[1])
    """Longest answer in tokens; code that is cut off rarely parses. 256 hold a function of some 25 lines."""
    definition: bool = Field(False, examples=[True])
    """Count only code that defines a function or a class. Off: any code, though one word is code, too."""

    def refuses(self, record: Record) -> str | None:
        return no_question(record)

    def ask(self, sample: Sample) -> Generate:
        return Generate(question(sample.record), max_tokens=self.max_tokens)

    def score(self, sample: Sample, answer: Answer) -> Score:
        fault = why_not(unfenced(answer.text), self.definition)
        return Score(float(not fault), detail=fault)

    def new_tokens(self) -> int:
        return self.max_tokens


def unfenced(text: str) -> str:
    """The first fenced block, also one that was cut off before its end; else the whole text, indented or not."""
    found = _FENCE.search(text)
    return textwrap.dedent(found.group(2) if found else text).strip("\n")


def why_not(code: str, definition: bool = False) -> str:
    """Why this is not Python code, '' where it is."""
    if not code.strip():
        return "empty"
    if len(code) > MOST_CHARS:
        return f"longer than {MOST_CHARS} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape is still code
            tree = ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; nested too deeply for the parser
        return f"{type(error).__name__}: {error}"
    if not tree.body:
        return "only comments"
    if definition and not any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in ast.walk(tree)):
        return "defines nothing"
    return ""
