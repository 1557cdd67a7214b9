"""URL rules: drops pages by their address, before anything is spent on their text.

Sources: RefinedWeb, Penedo et al. 2023, arXiv:2306.01116, section 3.1 and appendix G.1 (banned domains, then words: strict ones
as parts of the address, hard ones as whole words, soft ones of which two are needed); FineWeb, Penedo et al. 2024,
arXiv:2406.17557, section 3.1. Their lists are not ours to ship; both took the domains from https://dsi.ut-capitole.fr/blacklists/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple
from urllib.parse import unquote

from pydantic import Field, model_validator

from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Accepts, Run
from modelwright.methods.sources import open_records
from modelwright.methods.steps import Drop, Judge, Step

Words = tuple[Annotated[str, Field(min_length=1)], ...]
List = Annotated[str, Accepts(("records",))]
_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#]*@)?([^/?#:\[]+)", re.IGNORECASE)
_BETWEEN = re.compile(r"[\W_]+")


class _Rules(NamedTuple):
    allowed: frozenset[str]
    domains: frozenset[str]
    words: frozenset[str]
    parts: tuple[str, ...]
    soft: frozenset[str]


class UrlRules(Step):
    """Judges rows by `meta.url`. Capitals never count; what the address writes as %20 and the like is read as it means."""

    bytes_per_s: ClassVar[float] = 200e6

    kind: Literal["url_rules"] = "url_rules"
    domains: Words = Field(examples=[["ads.example"]])
    """Domains to drop, with all their subdomains; empty where only other rules count. No default: no list is right for all."""
    domains_from: List | None = Field(None, examples=["./domains.txt"])
    """More of them, one a line (`#` begins a remark): a text file, or the rows of a stage."""
    words: Words = Field((), examples=[["casino"]])
    """Whole words of the address that drop a page: what stands between characters that are no letters or digits."""
    words_from: List | None = Field(None, examples=["./words.txt"])
    """More of them, one a line."""
    parts: Words = Field((), examples=[["casino"]])
    """Letters and digits that drop a page wherever they stand, even inside a word or across its hyphens."""
    soft_words: Words = Field((), examples=[["news", "paper"]])
    """Whole words that only together drop a page."""
    soft_limit: int = Field(2, ge=1, examples=[1])
    """How many different soft words it takes; raising it keeps more. Default: RefinedWeb."""
    allow: Words = Field((), examples=[["good.example"]])
    """Where given, only these domains and their subdomains stay, and the other rules still count. Default: every domain."""
    allow_from: List | None = Field(None, examples=["./allowed.txt"])
    """More of them, one a line."""
    no_url: Literal["pass", "drop"] = Field("pass", examples=["drop"])
    """What becomes of a row without an address. Default: it passes, since none of the rules speaks of it."""

    @model_validator(mode="after")
    def _some_rule(self) -> UrlRules:
        lists = (self.domains, self.domains_from, self.words, self.words_from, self.parts, self.soft_words)
        if not any((*lists, self.allow, self.allow_from, self.no_url == "drop")):
            raise ValueError("no rule is given, so that no row could ever be dropped: give `domains`, or another list")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        return {} if self.soft_words else {"soft_limit": "there are no `soft_words` to count"}

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        return self.ready(run)(rows)  # type: ignore[return-value]  # nothing is cut

    def ready(self, run: Run) -> Judge:
        def all_of(given: Words, ref: str | None) -> frozenset[str]:
            return frozenset(word.lower().strip(". ") for word in (*given, *(_listed(ref, run) if ref else ())))

        rules = _Rules(
            all_of(self.allow, self.allow_from),
            all_of(self.domains, self.domains_from),
            all_of(self.words, self.words_from),
            tuple(_BETWEEN.sub("", part.lower()) for part in self.parts),
            all_of(self.soft_words, None),
        )
        return lambda rows: (self._row(record, rules) for record in rows)

    def _row(self, record: Record, rules: _Rules) -> Record | Drop:
        url = str(record.meta.get("url") or "")
        if not url:
            return Drop(record, "url: none") if self.no_url == "drop" else record
        fault = self._fault(unquote(url).lower(), rules)
        return Drop(record, *fault) if fault else record

    def _fault(self, url: str, rules: _Rules) -> tuple[str, str] | None:
        host = _HOST.match(url)
        labels = host.group(1).rstrip(".").split(".") if host else []
        domains = {".".join(labels[first:]) for first in range(len(labels))}
        if (self.allow or self.allow_from) and not domains & rules.allowed:
            return "url: domain not allowed", url
        if banned := domains & rules.domains:
            return "url: banned domain", max(banned)
        words = set(_BETWEEN.split(url))
        if banned := words & rules.words:
            return "url: banned word", min(banned)
        letters = _BETWEEN.sub("", url)
        if part := next((part for part in rules.parts if part in letters), ""):
            return "url: banned part", part
        soft = words & rules.soft
        return ("url: soft words", ", ".join(sorted(soft))) if len(soft) >= self.soft_limit else None


def _listed(ref: str, run: Run) -> Iterator[str]:
    for record in open_records(run.inputs[ref], run.log):
        for line in record.text.splitlines():
            if word := line.partition("#")[0].strip():
                yield word
