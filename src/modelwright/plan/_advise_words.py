"""What the words of a task tell: the first line of this table that matches, said as a guess from the words and never as known."""

from __future__ import annotations

import re
from typing import Any

_GOALS: tuple[tuple[str, str], ...] = (
    ("model", r"from scratch|model of (our|my|your) own|\bpre-?train"),
    ("smaller", r"smaller|faster|compress|shrink|quanti[sz]|distil"),
    ("labels", r"classif|categori|sentiment|\bintents?\b|\bspam\b|\blabels?\b|\btag(s|ging)?\b|named entit|moderat|route|triage"),
    ("search", r"\bsearch|similar (texts?|documents?|questions?)|embedd|retriev|semantic"),
    (
        "facts",
        r"documentation|manuals?\b|knowledge base|handbook|polic(y|ies)|\bwiki|our (docs|documents|files)|\bcite|\bfaq",
    ),
    (
        "reasoning",
        r"\bmath|\bproofs?\b|\bsolv(e|es|ing)\b|puzzle|unit tests?|competitive|theorem|\breasoning\b|\bsql\b|algorithm",
    ),
    ("preference", r"prefer|safer|harmless|(more|most) helpful|politer?|less refus|people like|\brated\b|thumbs"),
    ("domain", r"jargon|terminolog|understand .*(field|domain|language|law|medic|financ)|another language|low-resource"),
    (
        "behaviour",
        r"write|style|tone|format|json|summar|extract|repl(y|ies)|answer|translat|convert|generat|chat|assistant|tools?\b",
    ),
)
_FACTS: tuple[tuple[str, Any, str], ...] = (
    ("fresh", True, r"latest|up[- ]to[- ]date|\bcurrent\b|daily|weekly|\bnews\b|changes? (often|every)|today"),
    ("cited", True, r"\bcite|\bcitation|name (its|the) sources?|with sources?|\breferences?\b"),
    ("label_kind", "words", r"named entit|\bner\b|spans?\b|part of speech"),
    ("label_kind", "numbers", r"\bscor(e|ing)\b|\bgrades?\b|\brating\b|on a scale"),
    ("target", "phone", r"\bphones?\b|mobile|android|\bios\b"),
    ("target", "laptop", r"laptop|offline|ollama|llama\.cpp|lm studio"),
    ("private", True, r"private|confidential|on[- ]prem|must not leave|may not leave|gdpr|hipaa"),
)


def told(task: str) -> dict[str, tuple[Any, str]]:
    """Field of the situation -> (value, the words that told it)."""
    found: dict[str, tuple[Any, str]] = {}
    for goal, pattern in _GOALS:
        if match := re.search(pattern, task, re.I):
            found["goal"] = (goal, f"“{match[0]}”")
            break
    for field, value, pattern in _FACTS:
        if field not in found and (match := re.search(pattern, task, re.I)):
            found[field] = (value, f"“{match[0]}”")
    return found
