"""Kernels over text: what they count is what plain Python counts, in any script, however documents are divided over calls."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.text import Texts
from modelwright.text.near import shingle_set, signatures
from modelwright.text.stats import COUNTS, STOP_WORDS, counted
from modelwright.text.tables import BULLET, LINE_END, MARK, TERMINAL, UNSPACED, WORD, tables

ENDS = "\n\r\v\f\x85\u2028\u2029"


def has(char: str, flag: int) -> bool:
    return ord(char) < 0x40000 and bool(tables().flags_C[ord(char)] & flag)


def lower(char: str) -> str:
    return chr(tables().lower_C[ord(char)]) if ord(char) < 0x40000 else char


def spaced(text: str) -> list[str]:
    """Words between spaces; in scripts without spaces every letter with its marks."""
    found: list[str] = []
    open_, alone = False, False
    for char in text:
        if char.isspace():
            open_ = False
        elif open_ and not has(char, UNSPACED) and not (alone and not has(char, MARK)):
            found[-1] += char
        else:
            found.append(char)
            open_, alone = True, has(char, UNSPACED)
    return found


def bare(text: str) -> list[str]:
    found: list[str] = []
    open_, alone = False, False
    for char in text:
        if not has(char, WORD):
            open_ = False
        elif open_ and not has(char, UNSPACED) and not (alone and not has(char, MARK)):
            found[-1] += lower(char)
        else:
            found.append(lower(char))
            open_, alone = True, has(char, UNSPACED)
    return found


def lines_of(text: str) -> list[str]:
    lines = [""]
    for char in text:
        if char in ENDS:
            lines.append("")
        else:
            lines[-1] += char
    return lines


def paragraphs_of(text: str) -> list[str]:
    """Runs of lines that are not empty, spaces around them taken off, whatever ends their lines."""
    found, begin, place = [], 0, 0
    for line in lines_of(text):
        if not line.strip():
            found.append(text[begin:place])
            begin = place
        place += len(line) + 1
    found.append(text[begin:])
    return [piece.strip() for piece in found if piece.strip()]


def again(pieces: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    gone = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    return len(gone), sum(map(len, gone))


def plain(text: str) -> dict[str, int]:
    """As `counted`, the slow way."""
    words, lines, paragraphs = spaced(text), [line.strip() for line in lines_of(text) if line.strip()], paragraphs_of(text)
    real = [word for word in words if any(map(str.isalnum, word))]
    folded = {"".join(lower(c) for c in word if has(c, WORD)) for word in words if any(map(str.isalpha, word))}
    found = {
        "chars": len(text),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "line_ends": sum(char in ENDS for char in text),
        "words": len(words),
        "real_words": len(real),
        "real_chars": sum(map(len, real)),
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words),
        "stop_words": len(folded & set(STOP_WORDS)),
        "lines": len(lines),
        "bullet_lines": sum(has(line[0], BULLET) for line in lines),
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines),
        "terminal_lines": sum(has(line[-1], TERMINAL) for line in lines),
        "short_lines": sum(len(line) <= 30 for line in lines),
        "paragraphs": len(paragraphs),
    }
    found["dup_lines"], found["dup_line_chars"] = again(lines)
    found["dup_paragraphs"], found["dup_paragraph_chars"] = again(paragraphs)
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        found[f"top_{n}gram_chars"] = len(grams.most_common(1)[0][0]) * grams.most_common(1)[0][1] if grams else 0
    for n in range(5, 11):
        seen: set[tuple[str, ...]] = set()
        chars, i = 0, 0
        while i < len(words) - n + 1:
            gram = tuple(words[i : i + n])
            if gram in seen:
                chars, i = chars + sum(map(len, gram)), i + n
            else:
                seen.add(gram)
                i += 1
        found[f"dup_{n}gram_chars"] = chars
    return found


TEXTS = [
    "",
    " \n \n",
    "One line.",
    "The cat and the dog...\n\n- a list\n* of things\n\nThe cat and the dog...\nended # here.... and …\n",
    "to be or not to be " * 30,
    "你好,世界。我们在这里。\n你好,世界。",
    "สวัสดีชาวโลก ภาษาไทย",
    "नमस्ते दुनिया, यह हिन्दी है।",
    "ÀÉÎ straße ΑΒΓ Привет МИР _x_ don't \u2028 next\x85 last\r\nwindows",
    "emoji 😀 and \U0001f468\u200d\U0001f469 and a lone \ud800 surrogate",
    "カタカナ ひらがな 漢字",
]
alphabet = st.sampled_from("ab the.…#-•*\n\r\t \u2028_'9你กा😀Ω,")
texts_of = st.lists(st.text(alphabet, max_size=60) | st.text(max_size=30), max_size=6)


def check(texts: list[str]) -> None:
    columns = counted(Texts.of(texts))
    for index, text in enumerate(texts):
        assert {name: int(columns[name][index]) for name in COUNTS} == {name: plain(text)[name] for name in COUNTS}, repr(text)


def test_counts_are_those_of_plain_python() -> None:
    draw = random.Random(0)
    prose = [
        " ".join(draw.choice(("of", "the", "stone", "Winter.\n", "and\n\n", "ab", "…")) for _ in range(400)) for _ in range(4)
    ]
    check([*TEXTS, *prose])


@settings(max_examples=150)
@given(texts_of)
def test_counts_of_any_text(texts: list[str]) -> None:
    check(texts)


@settings(max_examples=60)
@given(texts_of, st.integers(1, 6))
def test_shingles_are_runs_of_bare_words(texts: list[str], ngram: int) -> None:
    packed = Texts.of(texts)
    sets = [set(shingle_set(packed, index, ngram).tolist()) for index in range(len(texts))]
    words = list(map(bare, texts))
    true = [{tuple(w[i : i + min(ngram, len(w))]) for i in range(len(w) - min(ngram, len(w)) + 1)} if w else set() for w in words]
    assert list(map(len, sets)) == list(map(len, true))
    for a in range(len(texts)):
        for b in range(a):
            if min(len(words[a]), len(words[b])) >= ngram:
                assert len(sets[a] & sets[b]) == len(true[a] & true[b])


def test_a_document_counts_the_same_in_any_company() -> None:
    texts = TEXTS * 3
    whole, found = counted(Texts.of(texts)), signatures(Texts.of(texts), 5, 14, 8, 0)
    for index, text in enumerate(texts):
        alone = counted(Texts.of([text]))
        assert all(alone[name][0] == whole[name][index] for name in COUNTS)
        assert np.array_equal(signatures(Texts.of([text]), 5, 14, 8, 0).band_DN[0], found.band_DN[index])
    assert list(Texts.of(texts).all()) == texts and len(Texts.of([])) == 0 and not len(counted(Texts.of([]))["chars"])


@pytest.mark.parametrize(("char", "flag", "there"), [("\n", LINE_END, True), ("\x1c", LINE_END, False), ("ก", UNSPACED, True)])
def test_flags(char: str, flag: int, there: bool) -> None:
    assert has(char, flag) is there
