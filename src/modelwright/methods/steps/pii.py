"""PII: personal data and secrets, replaced by placeholders or dropped with their rows.

Sources: e-mail and global IP addresses as in FineWeb, Penedo et al. 2024, arXiv:2406.17557; the other sorts by the standards that
define them (E.164, ISO 13616, ISO/IEC 7812, RFC 7468), each named beside its rule in `_pii_rules.py`. What only looks like one
(versions, dates, hashes, ISBNs) stays: each rule checks more than the shape. Names and postal addresses are not looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Cut, Drop, Lost, Step
from modelwright.methods.steps._pii_rules import RULES, Rule, found_in


class Pii(Step):
    """Looks at documents and at every turn of chats and preferences, calls of tools included. `meta` is never trained on and
    stays as it is."""

    bytes_per_s: ClassVar[float] = 12e6
    advice: ClassVar[Advice] = Advice("pages, mail, logs or chats that people wrote", "text that has to keep its addresses")

    kind: Literal["pii"] = "pii"
    action: Literal["redact", "drop"] = "redact"
    """`redact`: a placeholder in its place, and the row goes on; `drop`: the whole row goes. Default: as FineWeb."""
    style: Literal["numbered", "typed"] = "numbered"
    """`numbered`: `[EMAIL_1]`, the same for the same value within a row, so that it can still be told who is who; `typed`:
    `[EMAIL]`. Default: loses less of the sense."""
    email: bool = Field(True, examples=[False])
    """E-mail addresses (RFC 5321). Default: as FineWeb."""
    ip: bool = Field(True, examples=[False])
    """IPv4 and IPv6 addresses of the public internet. Default: as FineWeb."""
    phone: bool = Field(True, examples=[False])
    """Telephone numbers with `+` (E.164), North American ones, and others after a word such as `tel`."""
    iban: bool = Field(True, examples=[False])
    """International bank account numbers whose length and check digits are right (ISO 13616)."""
    card: bool = Field(True, examples=[False])
    """Payment cards whose network, length and check digit are right (ISO/IEC 7812)."""
    api_key: bool = Field(True, examples=[False])
    """Keys with a published beginning: AWS, GitHub, GitLab, Slack, OpenAI, Stripe, Google, Hugging Face, npm, PyPI and more."""
    private_key: bool = Field(True, examples=[False])
    """Blocks of private keys (RFC 7468, OpenSSH, OpenPGP)."""

    @model_validator(mode="after")
    def _looks_for_something(self) -> Pii:
        if not self._rules():
            raise ValueError("every rule is switched off; leave one on or take the step away")
        return self

    def unused(self, context: Any) -> dict[str, str]:
        return {"style": "`action: drop` writes no placeholders"} if self.action == "drop" else {}

    def _rules(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in RULES if getattr(self, rule.name))

    def shown(self, text: str) -> str:
        return _Redacted(self._rules(), numbered=False).text(text)

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        rules = self._rules()
        return (self._row(record, rules) for record in rows)

    def _row(self, record: Record, rules: tuple[Rule, ...]) -> Record | Cut | Drop:
        redacted = _Redacted(rules, self.style == "numbered")
        text = redacted.text(record.text)
        messages, chosen, rejected = map(redacted.turns, (record.messages, record.chosen, record.rejected))
        if not redacted.pieces:
            return record
        first, *others = [Lost(f"pii: {name}", n, redacted.chars[name]) for name, n in redacted.pieces.items()]
        if self.action == "drop":  # the values themselves would only spread further
            return Drop(record, first.reason, ", ".join(f"{name}: {n}" for name, n in redacted.pieces.items()))
        return Cut(Record(record.id, text, messages, chosen, rejected, record.meta), *first, also=tuple(others))


class _Redacted:
    """One row's text without what the rules find, and how much that was."""

    def __init__(self, rules: tuple[Rule, ...], numbered: bool) -> None:
        self._rules, self._numbered = rules, numbered
        self._places: dict[tuple[str, str], str] = {}
        self._given: Counter[str] = Counter()
        self.pieces: Counter[str] = Counter()
        self.chars: Counter[str] = Counter()

    def text(self, text: str) -> str:
        parts, at = [], 0
        for rule, begin, end in found_in(text, self._rules):
            parts += [text[at:begin], self._place(rule, text[begin:end])]
            self.pieces[rule.name] += 1
            self.chars[rule.name] += end - begin
            at = end
        return "".join([*parts, text[at:]]) if parts else text

    def _place(self, rule: Rule, value: str) -> str:
        if not self._numbered:
            return f"[{rule.label}]"
        if (rule.label, value) not in self._places:
            self._given[rule.label] += 1
            self._places[rule.label, value] = f"[{rule.label}_{self._given[rule.label]}]"
        return self._places[rule.label, value]

    def turns(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._inside(turn) for turn in turns]

    def _inside(self, value: Any) -> Any:
        """Every string in a turn, whose keys and roles name no one."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self._inside(inner) for key, inner in value.items()}
        return [self._inside(inner) for inner in value] if isinstance(value, list) else value
