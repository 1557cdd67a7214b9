"""Gopher: the rules by which DeepMind's Gopher chose prose.

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
section A.1.1 (quality, repetition) and table A1 (repetition thresholds). As in datatrove's reading of it, a repeated 5- to
10-gram counts from its second occurrence on and every character once. Source code is left to `code_quality`, chats to their
own steps: both pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Drop, Step, is_python
from modelwright.methods.steps._near import grams_of, word_hashes

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_PARAGRAPH = re.compile(r"\n{2,}")
_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-", "*", "‣", "–")


class Gopher(Step):
    """English prose that reads like prose. Each threshold is a field; a row goes at the first one that it fails."""

    bytes_per_s: ClassVar[float] = 2.5e6
    advice: ClassVar[Advice] = Advice("web pages or documentation in English", "other languages, code, verse or short notes")

    kind: Literal["gopher"] = "gopher"
    min_words: int = Field(50, ge=0, examples=[9])
    """Words that are not bare punctuation; raising it drops short pages. Default: section A.1.1, as all of the first nine."""
    max_words: int = Field(100_000, ge=1, examples=[60])
    """Words; lowering it drops dumps and logs."""
    min_mean_word_chars: float = Field(3, ge=0, examples=[5])
    """Mean length of a word in characters."""
    max_mean_word_chars: float = Field(10, gt=0, examples=[4])
    """Mean length of a word in characters; lowering it drops identifiers and URLs."""
    max_symbol_frac: float = Field(0.1, ge=0, examples=[0.0])
    """Hash signs, and ellipses, per word."""
    max_bullet_lines_frac: float = Field(0.9, ge=0, le=1, examples=[0.1])
    """Share of lines that begin with a bullet."""
    max_ellipsis_lines_frac: float = Field(0.3, ge=0, le=1, examples=[0.0])
    """Share of lines that end in an ellipsis."""
    min_alpha_words_frac: float = Field(0.8, ge=0, le=1, examples=[0.99])
    """Share of words with a letter in them."""
    min_stop_words: int = Field(2, ge=0, le=8, examples=[8])
    """How many of: the, be, to, of, and, that, have, with. 0 lets other languages through."""
    max_dup_lines_frac: float = Field(0.30, ge=0, le=1, examples=[0.0])
    """Share of lines that came before. Default: table A1, as all that follow."""
    max_dup_paragraphs_frac: float = Field(0.30, ge=0, le=1, examples=[0.0])
    """Share of paragraphs that came before."""
    max_dup_line_chars_frac: float = Field(0.20, ge=0, le=1, examples=[0.0])
    """Share of characters in lines that came before."""
    max_dup_paragraph_chars_frac: float = Field(0.20, ge=0, le=1, examples=[0.0])
    """Share of characters in paragraphs that came before."""
    max_top_2gram_frac: float = Field(0.20, ge=0, le=1, examples=[0.0])
    """Share of characters in the most frequent run of 2 words."""
    max_top_3gram_frac: float = Field(0.18, ge=0, le=1, examples=[0.0])
    """The same for 3 words."""
    max_top_4gram_frac: float = Field(0.16, ge=0, le=1, examples=[0.0])
    """The same for 4 words."""
    max_dup_5gram_frac: float = Field(0.15, ge=0, le=1, examples=[0.0])
    """Share of characters in runs of 5 words that came before."""
    max_dup_6gram_frac: float = Field(0.14, ge=0, le=1, examples=[0.0])
    """The same for 6 words."""
    max_dup_7gram_frac: float = Field(0.13, ge=0, le=1, examples=[0.0])
    """The same for 7 words."""
    max_dup_8gram_frac: float = Field(0.12, ge=0, le=1, examples=[0.0])
    """The same for 8 words."""
    max_dup_9gram_frac: float = Field(0.11, ge=0, le=1, examples=[0.0])
    """The same for 9 words."""
    max_dup_10gram_frac: float = Field(0.10, ge=0, le=1, examples=[0.0])
    """The same for 10 words."""

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        known = word_hashes()
        for record in rows:
            fault = None if not record.text or is_python(record) else self._fault(record.text, known)
            yield Drop(record, f"gopher: {fault[0]}", fault[1]) if fault else record

    def _fault(self, text: str, known: dict[str, int]) -> tuple[str, str] | None:
        """The first rule that fails, and by how much."""
        words = text.split()
        faults = [*self._words(text, words), *self._lines(text)]
        if not any(failed for failed, *_ in faults):  # n-grams cost most
            faults = self._ngrams(text, words, known)
        return next(((name, f"{value:.3g}, bound {bound:g}") for failed, name, value, bound in faults if failed), None)

    def _words(self, text: str, words: Sequence[str]) -> list[tuple[bool, str, float, float]]:
        real = [word for word in words if any(map(str.isalnum, word))]
        count = len(real)
        total = max(len(words), 1)
        mean = sum(map(len, real)) / max(count, 1)
        hashes, ellipses = text.count("#") / total, sum(text.count(mark) for mark in _ELLIPSES) / total
        alpha = sum(any(map(str.isalpha, word)) for word in words) / total
        stop = len(STOP_WORDS.intersection(word.strip(".,;:!?\"'()").lower() for word in words))
        return [
            (count < self.min_words, "too few words", count, self.min_words),
            (count > self.max_words, "too many words", count, self.max_words),
            (mean < self.min_mean_word_chars, "mean word too short", mean, self.min_mean_word_chars),
            (mean > self.max_mean_word_chars, "mean word too long", mean, self.max_mean_word_chars),
            (hashes > self.max_symbol_frac, "hash signs", hashes, self.max_symbol_frac),
            (ellipses > self.max_symbol_frac, "ellipses", ellipses, self.max_symbol_frac),
            (alpha < self.min_alpha_words_frac, "words without letters", alpha, self.min_alpha_words_frac),
            (stop < self.min_stop_words, "stop words", stop, self.min_stop_words),
        ]

    def _lines(self, text: str) -> list[tuple[bool, str, float, float]]:
        lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
        paragraphs = [stripped for piece in _PARAGRAPH.split(text) if (stripped := piece.strip())]
        bullets = sum(line.startswith(_BULLETS) for line in lines) / max(len(lines), 1)
        ellipses = sum(line.endswith(_ELLIPSES) for line in lines) / max(len(lines), 1)
        line_frac, line_chars = _repeated(lines, len(text))
        paragraph_frac, paragraph_chars = _repeated(paragraphs, len(text))
        return [
            (bullets > self.max_bullet_lines_frac, "bullet lines", bullets, self.max_bullet_lines_frac),
            (ellipses > self.max_ellipsis_lines_frac, "lines end in ellipsis", ellipses, self.max_ellipsis_lines_frac),
            (line_frac > self.max_dup_lines_frac, "repeated lines", line_frac, self.max_dup_lines_frac),
            (paragraph_frac > self.max_dup_paragraphs_frac, "repeated paragraphs", paragraph_frac, self.max_dup_paragraphs_frac),
            (line_chars > self.max_dup_line_chars_frac, "characters in repeated lines", line_chars, self.max_dup_line_chars_frac),
            (
                paragraph_chars > self.max_dup_paragraph_chars_frac,
                "characters in repeated paragraphs",
                paragraph_chars,
                self.max_dup_paragraph_chars_frac,
            ),
        ]

    def _ngrams(self, text: str, words: list[str], known: dict[str, int]) -> list[tuple[bool, str, float, float]]:
        import numpy as np

        chars_W = np.fromiter(map(len, words), np.int64, len(words))
        total = max(int(chars_W.sum()), 1)
        top = {2: self.max_top_2gram_frac, 3: self.max_top_3gram_frac, 4: self.max_top_4gram_frac}
        dup = {
            5: self.max_dup_5gram_frac,
            6: self.max_dup_6gram_frac,
            7: self.max_dup_7gram_frac,
            8: self.max_dup_8gram_frac,
            9: self.max_dup_9gram_frac,
            10: self.max_dup_10gram_frac,
        }
        faults = []
        for n in (*top, *dup):
            if len(words) < n:
                break
            _, first, which, counts = np.unique(
                grams_of(words, n, known), return_index=True, return_inverse=True, return_counts=True
            )
            if n in top:
                often = int(counts.argmax())
                share = int(chars_W[first[often] : first[often] + n].sum()) * int(counts[often]) / total
                faults.append((counts[often] > 1 and share > top[n], f"most frequent {n}-gram", share, top[n]))
            else:
                again = np.arange(len(which)) != first[which]
                covered_W = np.convolve(again, np.ones(n, np.int64))[: len(words)] > 0
                share = int(chars_W[covered_W].sum()) / total
                faults.append((share > dup[n], f"repeated {n}-grams", share, dup[n]))
        return faults


def _repeated(pieces: Sequence[str], chars: int) -> tuple[float, float]:
    """Share of `pieces` that came before, and the share of `chars` that they hold."""
    counts = Counter(pieces)
    again = len(pieces) - len(counts)
    return again / max(len(pieces), 1), sum(len(piece) * (n - 1) for piece, n in counts.items()) / max(chars, 1)
