"""FineWeb: the rules that FineWeb adds to those of Gopher and C4.

Source: Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale", arXiv:2406.17557, section
3.6, and the filter of datatrove that made it. What is counted and how: `text/stats.py`; a value that equals its bound passes here
and fell there, lines are counted without the spaces around them, a quotation mark ends no sentence, and words are what stands
between spaces. `words: datatrove` is that filter as release 0.10.1 has it: `text/datatrove.py`. Source code and chats pass.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.steps import Bound, Numbers
from modelwright.methods.steps._bounds import Prose, share


class FineWeb(Prose):
    """Pages that are lists, menus or repetition go. Each threshold is a field; a row goes at the first one that it fails."""

    bytes_per_s: ClassVar[float] = 35e6
    published: ClassVar[str] = "Penedo et al. 2024, arXiv:2406.17557, section 3.6"
    advice: ClassVar[Advice] = Advice("web pages, after `gopher`", "verse, code, tables or chats")

    kind: Literal["fineweb"] = "fineweb"
    min_terminal_lines_frac: float = Field(0.12, ge=0, le=1, examples=[0.99])
    """Share of lines that end a sentence; raising it drops menus and lists. Default: section 3.6, as all that follow."""
    max_short_lines_frac: float = Field(0.67, ge=0, le=1, examples=[0.0])
    """Share of lines of at most 30 characters; lowering it drops menus, tables and verse."""
    max_dup_line_chars_frac: float = Field(0.01, ge=0, le=1, examples=[0.5])
    """Share of characters in lines that came before in the document, line ends not counted. Default: 0.01, as the published code
    has it; the paper's text says 0.1, which keeps more."""
    max_line_ends_per_word: float = Field(0.3, ge=0, examples=[0.0])
    """Line ends for each word; lowering it drops lists."""
    empty_lines: bool = Field(True, examples=[False])
    """Whether empty lines count as lines that are short and end no sentence. Default: as the published code; off for text whose
    paragraphs have an empty line between them, of which half the lines would be empty."""

    def unused(self, context: object) -> dict[str, str]:
        return {"empty_lines": "`words: datatrove` never counts empty lines"} if self.words == "datatrove" else {}

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        theirs = self.words == "datatrove"
        full_D = numbers["full_lines" if theirs else "lines"]
        lines_D = numbers["line_ends"] + 1 if self.empty_lines and not theirs else full_D
        short_D = numbers["short_lines"] + lines_D - full_D
        chars_D = numbers["chars"] - numbers["line_ends"]
        terminal_D = share(numbers["terminal_lines"], lines_D)
        dup_D = share(numbers["dup_full_line_chars" if theirs else "dup_line_chars"], chars_D)
        ends_D = share(numbers["line_ends"], numbers["words"])
        return {
            "fineweb: few lines end a sentence": self.at_least(
                "share of lines that end a sentence", terminal_D, "min_terminal_lines_frac"
            ),
            "fineweb: short lines": self.at_most("share of short lines", share(short_D, lines_D), "max_short_lines_frac"),
            "fineweb: characters in repeated lines": self.at_most(
                "share of characters in repeated lines", dup_D, "max_dup_line_chars_frac"
            ),
            "fineweb: line ends": self.at_most("line ends per word", ends_D, "max_line_ends_per_word"),
        }
