"""Gopher: the rules by which DeepMind's Gopher chose prose.

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
section A.1.1 (quality, repetition) and table A1 (repetition thresholds). What is counted and how: `text/stats.py`. Source code
is left to `code_quality`, chats to their own steps: both pass.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.steps import Bound, Numbers
from modelwright.methods.steps._bounds import Prose, share


class Gopher(Prose):
    """English prose that reads like prose. Each threshold is a field; a row goes at the first one that it fails."""

    bytes_per_s: ClassVar[float] = 25e6
    published: ClassVar[str] = "Rae et al. 2021, arXiv:2112.11446, section A.1.1 and table A1"
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
    """Share of lines end in ellipsis."""
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

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        def most(of: str, part: str, whole: str, field: str) -> Bound:
            return self.at_most(of, share(numbers[part], numbers[whole]), field)

        lines = "parts" if self.words == "datatrove" else "lines"
        words_D, mean_D = numbers["real_words"], share(numbers["real_chars"], numbers["real_words"])
        found = {
            "too few words": self.at_least("words", words_D, "min_words"),
            "too many words": self.at_most("words", words_D, "max_words"),
            "mean word too short": self.at_least("mean characters of a word", mean_D, "min_mean_word_chars"),
            "mean word too long": self.at_most("mean characters of a word", mean_D, "max_mean_word_chars"),
            "hash signs": most("hash signs per word", "hashes", "words", "max_symbol_frac"),
            "ellipses": most("ellipses per word", "ellipses", "words", "max_symbol_frac"),
            "words without letters": self.at_least(
                "share of words with letters", share(numbers["alpha_words"], numbers["words"]), "min_alpha_words_frac"
            ),
            "stop words": self.at_least("stop words", numbers["stop_words"], "min_stop_words"),
            "bullet lines": most("share of bullet lines", "bullet_lines", "lines", "max_bullet_lines_frac"),
            "lines end in ellipsis": most(
                "share of lines that end in ellipsis", "ellipsis_lines", "lines", "max_ellipsis_lines_frac"
            ),
            "repeated lines": most("share of repeated lines", "dup_lines", lines, "max_dup_lines_frac"),
            "repeated paragraphs": most(
                "share of repeated paragraphs", "dup_paragraphs", "paragraphs", "max_dup_paragraphs_frac"
            ),
        }
        chars = {
            "characters in repeated lines": ("dup_line_chars", "max_dup_line_chars_frac"),
            "characters in repeated paragraphs": ("dup_paragraph_chars", "max_dup_paragraph_chars_frac"),
            **{f"most frequent {n}-gram": (f"top_{n}gram_chars", f"max_top_{n}gram_frac") for n in (2, 3, 4)},
            **{f"repeated {n}-grams": (f"dup_{n}gram_chars", f"max_dup_{n}gram_frac") for n in range(5, 11)},
        }
        for reason, (part, field) in chars.items():
            of = "share of " + (reason if reason.startswith("characters") else f"characters in {reason}")
            found[reason] = most(of, part, "chars", field)
        return {f"gopher: {reason}": bound for reason, bound in found.items()}
