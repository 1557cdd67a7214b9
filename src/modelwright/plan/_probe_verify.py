"""Which answers a program can check: verifiers tried on questions with their answers. Nothing of the data is ever run.

Sources: `####` before the result, Cobbe et al. 2021 (GSM8K), arXiv:2110.14168; `\\boxed{}`, Hendrycks et al. 2021 (MATH),
arXiv:2103.03874; letters of choices, Hendrycks et al. 2020 (MMLU), arXiv:2009.03300; code with its tests, Chen et al. 2021
(HumanEval), arXiv:2107.03374; rewards that programs give, Lambert et al. 2024 (Tulu 3, "RLVR"), arXiv:2411.15124, section 6.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modelwright.core.record import Message, Record
from modelwright.plan._probe_facts import Share, clip, shares

CODE_CHARS, ANSWER_CHARS = 50_000, 20_000
"""Longer ones are not tried: no grammar takes long then."""
SHORT_WORDS, SHORT_CHARS = 5, 60
"""Of an answer that is compared as a whole: a name, a date, a few words."""
_QUESTIONS = ("question", "problem", "prompt", "query", "body", "input", "instruction", "task")
_ANSWERS = (
    "final_answer",
    "answer",
    "canonical_solution",
    "solution",
    "ground_truth",
    "target",
    "output",
    "completion",
    "correct",
)
_DERIVATIONS = ("rationale", "reasoning", "explanation", "chain_of_thought", "cot", "thought", "thoughts", "derivation")
_OPTIONS = ("options", "choices", "endings")
_TESTS = ("test", "tests", "test_list", "unit_tests", "test_cases")

DERIVATION_CHARS = 80
"""Least text before a final answer, or beside it, that counts as a derivation: a sentence or two."""

BESIDE = (*_OPTIONS, *_TESTS)
"""Keys of a row whose lists the verifiers read."""


class Case(NamedTuple):
    """A question and its answer."""

    place: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    tests: str = ""
    """Of code, as they stand beside it."""
    calls: tuple[Mapping[str, Any], ...] = ()
    """Of tools, in the answer."""
    thought: str = ""
    """What was thought before the answer, where that stands apart."""


def case(place: str, raw: Mapping[str, Any], record: Record | None) -> Case | None:
    """The question and answer of a row; None where it has none."""
    options, tests = _texts(raw, _OPTIONS), "\n".join(_texts(raw, _TESTS))
    if record is not None and (turns := [*record.messages, *record.chosen]) and turns[-1]["role"] == "assistant":
        last = turns[-1]
        question = "\n".join(str(turn.get("content", "")) for turn in turns[:-1] if turn["role"] in ("user", "tool"))
        calls = [call.get("function", call) for turn in turns for call in turn.get("tool_calls", ()) if isinstance(call, dict)]
        calls = [call if isinstance(call, dict) else {} for call in calls]
        thought = str(last.get("reasoning_content") or last.get("thinking") or "")
        return Case(place, question, _said(last), options, tests, tuple(calls), thought)
    if record is not None and record.text:
        return None
    lower = {key.lower(): value for key, value in raw.items()}
    question = "\n".join(str(lower[key]) for key in _QUESTIONS if isinstance(lower.get(key), str))
    key = next((key for key in _ANSWERS if lower.get(key) not in (None, "", [])), None)
    found = lower[key] if key is not None else None  # a column without a name, such as a table's index, is no answer
    if not question or isinstance(found, (dict, list, bool)) or (found is None and not tests):
        return None
    answer = f"{found:g}" if isinstance(found, float) else "" if found is None else str(found)
    apart = (lower.get(other) for other in (*_DERIVATIONS, *_ANSWERS) if other != key)
    thought = next((text for text in apart if isinstance(text, str) and len(text) >= DERIVATION_CHARS), "")
    return Case(place, question, answer, options, tests, thought=thought)


def _said(turn: Message) -> str:
    return str(turn.get("content") or "")


def _texts(raw: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    value = next((raw[key] for key in keys if raw.get(key)), ())
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


# --- verifiers: each gives what it would compare, or None ---------------------------------------------

_NUMBER = r"[-+]?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?\s?%?"
_ONLY_NUMBER = re.compile(rf"({_NUMBER})\s*\.?")
_SAYS_NUMBER = re.compile(rf"(?:(?:answer|result)(?: is|:|=)|^A:)\s*\**\s*({_NUMBER})\**\s*\.?\Z", re.I | re.M)
SAYS_CHARS = 200
"""Of an answer's end, where its number is looked for: a pattern that searches all of a long one may take minutes."""
_MARKED = re.compile(rf"####\s*({_NUMBER})\s*\Z")
_LETTER = re.compile(r"\s*(?:the (?:correct )?answer is:?\s*)?\(?([A-J])(?:[).:]|\s*\Z)", re.I)
_LISTED = [re.compile(rf"(?:^|\s)\(?{letter}[).:]") for letter in "AB"]
_YES_NO = re.compile(r"(yes|no|true|false)\s*[.!]?", re.I)
_INDEX = re.compile(r"[0-9]{1,3}")
_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)
_SQL = re.compile(
    r"\s*(?:select\b.+\bfrom|insert\s+into|update\s.+\bset|delete\s+from|create\s+table|with\b.+\bselect)\b", re.I | re.S
)


def _marked_number(case: Case) -> str | None:
    found = _MARKED.search(case.answer)
    return found[1] if found else None


def _boxed(case: Case) -> str | None:
    """What stands in the last `\\boxed{}`, braces within it counted."""
    start = case.answer.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for at in range(begin, len(case.answer)):
        depth += {"{": 1, "}": -1}.get(case.answer[at], 0)
        if not depth:
            return case.answer[begin + 1 : at]
    return None


def _number(case: Case) -> str | None:
    answer = case.answer.strip()
    found = _ONLY_NUMBER.fullmatch(answer) or _SAYS_NUMBER.search(answer[-SAYS_CHARS:])
    return found[1].strip() if found and _option(case) is None else None


def _option(case: Case) -> int | None:
    """Which of the options a number names, from 0."""
    named = _INDEX.fullmatch(case.answer.strip())
    return int(named[0]) if named and int(named[0]) < len(case.options) else None


def _choice(case: Case) -> str | None:
    if case.options:
        answer = case.answer.strip()
        if (number := _option(case)) is not None:
            return "ABCDEFGHIJ"[number] if number < 10 else answer
        if answer and answer in case.options:
            return answer
    found = _LETTER.match(case.answer)
    return found[1].upper() if found and (case.options or _lists(case.question)) else None


def _lists(question: str) -> bool:
    """Whether it names an A, and a B behind it."""
    first, second = _LISTED
    return bool((found := first.search(question)) and second.search(question, found.end()))


def _yes_no(case: Case) -> str | None:
    found = _YES_NO.fullmatch(case.answer.strip())
    return found[1].lower() if found else None


def _blocks(case: Case, *languages: str) -> Iterator[str]:
    """What may be code of these languages: fenced blocks, else the whole answer."""
    fences = _FENCE.findall(case.answer[:CODE_CHARS])
    yield from (text for language, text in fences if language.lower() in ("", *languages))
    if not fences and len(case.answer) <= CODE_CHARS:
        yield case.answer


def _json(case: Case) -> str | None:
    """The keys of an object, or how many items a list has."""
    for text in _blocks(case, "json"):
        if text.lstrip()[:1] in ("{", "["):
            try:
                tree = json.loads(text)
            except (ValueError, RecursionError):
                continue
            return "{" + ", ".join(sorted(map(str, tree))) + "}" if isinstance(tree, dict) else "a list"
    return None


def _tool_call(case: Case) -> str | None:
    names = []
    for call in case.calls:
        arguments = call.get("arguments")
        try:
            tree = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return None
        if not isinstance(tree, dict):
            return None
        names.append(str(call.get("name")))
    return ", ".join(names) or None


_STATEMENTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.For, ast.With)


def _parsed(text: str) -> bool:
    """Whether this is Python of more than an expression."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _STATEMENTS) for node in found.body)


def _python(case: Case) -> str | None:
    """Code that parses, alone or behind the begin that the question gives, with tests that parse beside it."""
    tests = case.tests or "\n".join(line for line in case.answer.splitlines() if line.lstrip().startswith("assert "))
    if not tests or len(tests) > CODE_CHARS or not (case.answer or case.tests):
        return None
    whole = next((text for text in _blocks(case, "python", "py") if _parsed(text)), None)
    if whole is None and _parsed(case.question + case.answer):
        whole = case.question + case.answer
    return whole if whole is not None and (_parsed(tests) or ("assert" in tests and _parsed("x = 1\n" + tests))) else None


def _sql(case: Case) -> str | None:
    for text in _blocks(case, "sql"):
        if _SQL.match(text[:2000]) and text.count("(") == text.count(")") and text.count("'") % 2 == 0:
            return text
    return None


def _short(case: Case) -> str | None:
    answer = case.answer.strip()
    is_short = 0 < len(answer) <= SHORT_CHARS and "\n" not in answer and len(answer.split()) <= SHORT_WORDS
    is_short = is_short and answer[-1] not in ".!?…"  # a sentence has many wordings
    return answer if is_short and not case.options else None


Verifier = Callable[[Case], str | None]
VERIFIERS: dict[str, tuple[Verifier, str]] = {
    "marked number": (_marked_number, "the answer ends in `#### number`, as in GSM8K; compared as a number"),
    "boxed": (_boxed, "the answer holds `\\boxed{…}`, as in MATH; compared as mathematics"),
    "choice": (_choice, "the answer names one of the listed options; compared as a letter"),
    "number": (_number, "the answer is, or ends in, one number; compared as a number"),
    "yes or no": (_yes_no, "the answer is yes, no, true or false"),
    "Python with tests": (_python, "code and tests beside it parse (neither was run); checked by running the tests in a sandbox"),
    "tool call": (_tool_call, "calls of tools whose arguments are JSON objects; compared by name and arguments"),
    "JSON": (_json, "the answer is JSON; checked against a schema"),
    "SQL": (_sql, "the answer looks like an SQL statement; checked by running it on a copy of the data"),
    "short answer": (_short, f"at most {SHORT_WORDS} words and no sentence; compared as text"),
}
"""The strictest first: a row counts for each that it passes."""


class Verified(NamedTuple):
    any: Share
    """Answers that at least one verifier can check."""
    each: tuple[Share, ...]
    """By verifier; a sample is what would be compared."""


def verified(cases: Sequence[Case]) -> Verified:
    """Every verifier on every answer."""
    found: list[tuple[str, str]] = []
    keys: Counter[str] = Counter()
    passed = 0
    for one in cases:
        if len(one.answer) > ANSWER_CHARS:
            continue
        hits = [(name, value) for name, (check, _) in VERIFIERS.items() if (value := check(one)) is not None]
        if len(hits) > 1:
            hits = [hit for hit in hits if hit[0] != "short answer"]  # the least that can be said of it
        found += hits
        keys.update(value for name, value in hits if name == "JSON")
        passed += bool(hits)
    why = {name: said for name, (_, said) in VERIFIERS.items()}
    if keys:
        schema, count = keys.most_common(1)[0]
        why["JSON"] += f"; the commonest keys, of {count}: {clip(schema)}"
    return Verified(
        Share("verifiable", passed, len(cases), (), "answers that a program can check"), shares(found, len(cases), why)
    )


# --- reasoning ----------------------------------------------------------------------------------------

_THINK = re.compile(r"<(think|thinking|reasoning|thought)>", re.I)
_STEPS = re.compile(r"\bstep[ -]by[ -]step\b|\bstep 1\b|\blet'?s think\b", re.I)
_FINAL = re.compile(r"####|\\boxed\{|\b(?:final )?answer(?: is|:)|^A:", re.I | re.M)


def reasoned(cases: Sequence[Case]) -> tuple[Share, tuple[Share, ...]]:
    """Answers that show how they were found, and by what that was told."""
    found: list[tuple[str, str]] = []
    shown = 0
    for one in cases:
        hits = list(_traces(one))
        found += hits
        shown += bool(hits)
    whole = Share("reasoning", shown, len(cases), (), "answers that show how they were found")
    return whole, shares(found, len(cases))


def _traces(case: Case) -> Iterator[tuple[str, str]]:
    if case.thought:
        yield "thoughts apart", case.thought
    answer = case.answer[:ANSWER_CHARS]
    if (found := _THINK.search(answer)) and (end := answer.lower().find(f"</{found[1].lower()}>", found.end() + 1)) >= 0:
        yield "<think>", answer[found.start() : end]
    if _STEPS.search(answer):
        yield "step by step", answer
    if any(found.start() >= DERIVATION_CHARS for found in _FINAL.finditer(answer)):
        yield "derivation before the answer", answer
