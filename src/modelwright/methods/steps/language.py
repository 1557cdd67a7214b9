"""Language: names each row's language and keeps those of the wanted ones.

Sources: py3langid, after Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool",
https://aclanthology.org/P12-3005/ (its model comes with the package); before it Chromium's Compact Language Detector 2,
https://github.com/CLD2Owners/cld2, ten times as fast. A threshold on the confidence as in FineWeb (0.65 of fastText's), Penedo et
al. 2024, arXiv:2406.17557, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Bound, Drop, Measure, Measuring, Numbers, content, is_python

_SURE_PERCENT = 90
"""Of a text's letters in one language, from which the fast detector is believed. On 1,083 passages of 200 characters of the
Universal Declaration of Human Rights in 30 languages it answers 98.6 % so, of them 1.3 % wrong; the slow one has 2.0 % wrong."""
_SAME = {"iw": "he", "jw": "jv", "nb": "no", "zh-Hant": "zh", "sr-ME": "sr"}
"""Codes that the detectors have for one language: the older ISO code, the script, the country."""


class Language(Measuring):
    """Chats count with all their turns. Python documents pass. Writes `meta.lang` (an ISO 639 code; `meta.language` is the
    programming language) and `meta.lang_confidence` (0 to 1)."""

    bytes_per_s: ClassVar[float] = 35e6
    advice: ClassVar[Advice] = Advice(
        "text from the web or in unknown languages", "rows of a few words, which no detector can tell"
    )

    kind: Literal["language"] = "language"
    keep: list[str] = Field(["en"], examples=[["de"], []])
    """ISO 639 codes of the languages that stay; empty: all, and nothing is dropped. Default: English, as FineWeb."""
    min_confidence: float = Field(0.5, ge=0, le=1, examples=[0.99])
    """Confidence below which a row goes (with an empty `keep` none does); raising it drops short and mixed texts. Default: from
    where one language outweighs all others together; 99 % of py3langid's answers for 30 languages are above it. fastText's 0.65
    is on another scale."""
    mode: Literal["fast", "accurate"] = Field("fast", examples=["accurate"])
    """fast: CLD2 first, and py3langid where that is not sure; accurate: py3langid alone. The confidence is the share of the text
    that CLD2 found to be in the language, or py3langid's probability. Default: they agree, but for speed."""
    sample_chars: int = Field(3000, ge=30, examples=[30])
    """Characters looked at: of a longer text a third each of the begin, the middle and the end. Raising it is slower and sees
    more of a text of several languages. Default: a page and a half; answers change little from a thousand on."""

    def measured_by(self, run: Run) -> dict[str, Any]:
        try:
            versions = {name: version(name) for name in ("py3langid", "pycld2")}
        except PackageNotFoundError as error:
            raise missing_extra(error.name, "language", "telling languages") from None
        return {"name": "language", "mode": self.mode, "sample_chars": self.sample_chars, **versions}

    def reads(self, record: Record) -> bool:
        return not is_python(record)

    def measurer(self, run: Run) -> Measure:
        import numpy as np

        detect = _Detectors.load(self.mode == "fast")
        if unknown := self._wanted() - detect.languages:
            raise UserError(
                f"no detector tells the language {', '.join(map(repr, sorted(unknown)))}",
                "`keep` takes ISO 639 codes of two letters, or three where there are no two",
                f"use one of {', '.join(sorted(detect.languages))}",
            )

        def measure(rows: Sequence[Record]) -> Numbers:
            found = [detect(_sample(content(record), self.sample_chars)) for record in rows]
            return {"code": np.array([code for code, _ in found], "S16"), "confidence": np.array([sure for _, sure in found])}

        return measure

    def _wanted(self) -> set[str]:
        return {_SAME.get(code, code) for code in self.keep}

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        least = self.min_confidence if self.keep else -math.inf
        return {"language: uncertain": Bound("confidence", numbers["confidence"], least, math.inf, "min_confidence")}

    def verdicts(self, rows: Sequence[Record], numbers: Numbers, bounds: Mapping[str, Bound]) -> Iterator[Record | Drop]:
        wanted = self._wanted()
        for record, encoded, sure in zip(rows, numbers["code"].tolist(), numbers["confidence"].tolist(), strict=True):
            code = encoded.decode()
            if wanted and sure < self.min_confidence:
                yield Drop(record, "language: uncertain", f"{code} with {sure:.2f}, less than {self.min_confidence:g}")
            elif wanted and code not in wanted:
                yield Drop(record, f"language: {code}", f"with {sure:.2f}")
            else:
                yield replace(record, meta={**record.meta, "lang": code, "lang_confidence": round(sure, 3)})


class _Detectors(NamedTuple):
    """Both are given UTF-8: neither takes halves of surrogate pairs."""

    slow: Any
    fast: Any
    """None: the slow one alone."""
    languages: frozenset[str]

    @staticmethod
    @cache
    def load(fast: bool) -> _Detectors:
        try:
            import pycld2
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise missing_extra(error.name or "py3langid", "language", "telling languages") from None
        slow = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        codes = set(slow.labels) | ({code for _, code in pycld2.LANGUAGES} if fast else set())
        return _Detectors(slow, pycld2 if fast else None, frozenset(_SAME.get(code, code) for code in codes if len(code) < 4))

    def __call__(self, text: str) -> tuple[str, float]:
        data = text.encode("utf-8", "replace")
        if self.fast is not None:
            try:
                reliable, _, found = self.fast.detect(data)
            except self.fast.error:  # control characters
                reliable, found = False, ()
            if reliable and found[0][2] >= _SURE_PERCENT:
                return _SAME.get(found[0][1], found[0][1]), found[0][2] / 100
        code, confidence = self.slow.classify(data)
        return _SAME.get(code, code), confidence


def _sample(text: str, chars: int) -> str:
    """The text, or a third each of its begin, middle and end."""
    if len(text) <= chars:
        return text
    part = chars // 3
    middle = (len(text) - part) // 2
    return "\n".join((text[:part], text[middle : middle + part], text[-part:]))
