"""datatrove's way to count and compare: kernels do what the same rules say in plain Python, on any text.

That the rules are spaCy's and datatrove's is measured by `benchmarks/{dedup,filters}_vs_datatrove.py`; words here were looked up.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import NumbaError

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import STEPS, Drop
from modelwright.text import Texts, _spacy_rules, datatrove
from modelwright.text._ranges import bare
from modelwright.text._spacy_rules import MARKS, MONEY, PUNCTUATION, QUOTES, UNITS, classes, special_cases
from modelwright.text._xxhash import lanes, xxh64
from modelwright.text.datatrove import COUNTS, words_of
from modelwright.text.datatrove_near import clusters, normal_words, signatures
from modelwright.text.stats import STOP_WORDS

# --- the rules in plain Python ------------------------------------------------------------------------------


def chars(flag: int) -> str:
    """Inside of a character class: all characters with a flag."""
    codes = np.flatnonzero(classes() & np.uint32(flag))
    starts = codes[np.flatnonzero(np.diff(codes, prepend=-2) > 1)]
    ends = codes[np.flatnonzero(np.diff(codes, append=1 << 30) > 1)]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(starts.tolist(), ends.tolist(), strict=True))


LETTER, LOWER, UPPER, ICON = (chars(getattr(_spacy_rules, name)) for name in ("LETTER", "LOWER", "UPPER", "ICON"))
MARK, QUOTE, CASH = (re.escape(each) for each in (MARKS, QUOTES, MONEY))
UNIT = "|".join(map(re.escape, UNITS))
DASHES = "-|–|—|--|---|——|~"
PREFIX = re.compile(rf"[§%=—–{MARK}{QUOTE}{CASH}{ICON}]|\+(?![0-9])|\.\.+|US\$|C\$|A\$")
SUFFIX = re.compile(
    rf"(?:……|\.\.+|['’][sS]|[—–{MARK}{QUOTE}{ICON}]|(?<=[0-9])\+|(?<=°[FfCcKk])\.|(?<=[0-9])(?:[{CASH}]|{UNIT})"
    rf"|(?<=[0-9{LOWER}%²\-+|{MARK}{QUOTE}])\.|(?<=[{UPPER}][{UPPER}])\.)\Z"
)
INFIX = re.compile(
    rf"\.\.+|…|[{ICON}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{LOWER}{QUOTE}])\.(?=[{UPPER}{QUOTE}])|(?<=[{LETTER}]),(?=[{LETTER}])"
    rf"|(?<=[{LETTER}0-9])(?:{DASHES})(?=[{LETTER}])|(?<=[{LETTER}0-9])[:<>=/](?=[{LETTER}])"
)
HOST, SCHEME = "A-Za-z0-9\u00a1-\uffff", chars(_spacy_rules.SCHEME)
OCTET = r"(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
ADDRESS = re.compile(
    rf"(?:[{SCHEME}]{{2,}}://|\S+@)?(?:(?!(?:10|127)\.|169\.254\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.)"
    r"(?:[1-9][0-9]?|1[0-9][0-9]|2[01][0-9]|22[0-3])(?:\.(?:[01]?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])){2}"
    r"\.(?:[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-4])"
    rf"|(?:(?:[{HOST}][{HOST}_-]{{0,62}})?[{HOST}]\.)+[{LOWER}]{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?\Z"
)
CASES = special_cases()


def run_of(text: str, listed: bool) -> list[str]:
    """The words of a run."""
    front: list[str] = []
    back: list[str] = []
    cases = CASES if listed else {}
    last = -1
    while text and len(text) != last and text not in cases:
        last = len(text)
        found = PREFIX.match(text)
        prefix = found.group() if found else ""
        if prefix and text[len(prefix) :] in cases:
            front.append(prefix)
            text = text[len(prefix) :]
            break
        rest = SUFFIX.search(text[len(prefix) :])
        suffix = rest.group() if rest else ""
        if suffix and text[: -len(suffix)] in cases:
            back.append(suffix)
            text = text[: -len(suffix)]
            break
        text = text[len(prefix) : len(text) - len(suffix)]
        front += [prefix] if prefix else []
        back += [suffix] if suffix else []
    return [*front, *(inside(text, cases) if text else []), *reversed(back)]


def inside(text: str, cases: dict[str, tuple[str, ...]]) -> list[str]:
    if text in cases:
        return list(cases[text])
    if "." in text and ADDRESS.match(text):
        return [text]
    found, start = [], 0
    for match in INFIX.finditer(text):
        if match.start():
            found += [text[start : match.start()], match.group()]
            start = match.end()
    return list(filter(None, [*found, text[start:]]))


PIECES = {tuple(run_of(word, False)): word for word in CASES if len(run_of(word, False)) > 1}


def plain_words(text: str) -> list[str]:
    runs = [("" if gap == " " and at else gap, run) for at, (gap, run) in enumerate(re.findall(r"(\s*)(\S+)", text)) if run]
    tokens: list[tuple[str, str]] = []
    for (shown, run), gap in zip(runs, [gap for gap, run in re.findall(r"(\s*)(\S+)", text) if run], strict=True):
        apart = "apart" if shown else "one" if gap else ""
        tokens += [(apart if not at else "", word) for at, word in enumerate(run_of(run, True))]
    spans = [
        (size, -at)
        for at in range(len(tokens))
        for size in range(2, min(15, len(tokens) - at) + 1)
        if tuple(word for _, word in tokens[at : at + size]) in PIECES
        and all(gap != "apart" for gap, _ in tokens[at + 1 : at + size])
    ]
    taken: set[int] = set()
    whole: dict[int, int] = {}
    for size, minus in sorted(spans, reverse=True):
        if not {-minus, -minus + size - 1} & taken:
            whole[-minus] = size
        taken.update(range(-minus, -minus + size))
    found, at = [], 0
    while at < len(tokens):
        size = whole.get(at, 1)
        part = tokens[at : at + size]
        together = size > 1 and not any(gap for gap, _ in part[1:])
        found += CASES["".join(word for _, word in part)] if together else [word for _, word in part]
        at += size
    return found


# --- words ---------------------------------------------------------------------------------------------------

LOOKED_UP = {
    "We don't (can't!) won't've it's users' O'Brien's.": "We|do|n't|(|ca|n't|!|)|wo|n't|'ve|it|'s|users|'|O'Brien|'s|.",
    "e.g. the U.S. and N.Y., Dr. Who vs. etc.": "e.g.|the|U.S.|and|N.Y.|,|Dr.|Who|vs.|etc|.",
    "See https://a.example.com/x?y=1, or mail me@x.org!": "See|https://a.example.com/x?y=1|,|or|mail|me@x.org|!",
    "x=f(a,b)[0]; a.B c.d and/or well-known 3-4 a/b": "x|=|f(a|,|b)[0|]|;|a.|B|c.d|and/or|well|-|known|3|-|4|a|/|b",
    "10km $5 5€ 3.5% 8am ... wait... :-) (: …": "10|km|$|5|5|€|3.5|%|8|am|...|wait|...|:-)|(:|…",
    "--flag -x. 10.0.0.1 8.8.8.8: US$5 +1 1+": "--flag|-x|.|10.0.0.1|8.8.8.8|:|US$|5|+1|1|+",
}


@pytest.mark.parametrize("text", LOOKED_UP)
def test_words_are_spacys(text: str) -> None:
    assert words_of(text) == LOOKED_UP[text].split("|") == plain_words(text)


alphabet = st.sampled_from("aAnbtsS.'’,:;()-–—~/=<>+*^#%$€°…\"|@_0158 \n\tckmé漢я☃\u00a0")
pieces = st.sampled_from([*sorted(CASES)[::9], "10km", "a.b.com", "http://", "x@y.org", "don't", "...", "US$", ":)", "8.8.8.8"])
joined = st.lists(pieces | st.text(alphabet, max_size=4), max_size=8).map("".join)
texts = st.text(alphabet, max_size=40) | joined | st.text(max_size=20)


@settings(max_examples=200)
@given(texts)
def test_words_of_any_text(text: str) -> None:
    assert words_of(text) == plain_words(text)


# --- counts --------------------------------------------------------------------------------------------------

ENDS = chars(_spacy_rules.ENDS)


def again(parts: list[str]) -> tuple[int, int]:
    came = [part for at, part in enumerate(parts) if part in parts[:at]]
    return len(came), sum(map(len, came))


def plain_counts(text: str) -> dict[str, int]:
    words, lines = plain_words(text), text.splitlines()
    symbols = chars(_spacy_rules.SYMBOL)
    real = [word for word in words if re.search(f"[^{symbols}]", word)]
    parts, full = re.split("\n+", text), [line for line in text.split("\n") if line.strip()]
    paragraphs = re.split("\n{2,}", text.strip())
    found = {
        "chars": len(text),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "line_ends": text.count("\n"),
        "words": len(words),
        "real_words": len(real),
        "real_chars": sum(map(len, real)),
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words),
        "stop_words": len({*words} & {*STOP_WORDS}),
        "lines": len(lines),
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines),
        "parts": len(parts),
        "paragraphs": len(paragraphs),
        "full_lines": len(full),
        "terminal_lines": sum(bool(re.search(f"[{ENDS}]\\Z", line)) for line in full),
        "short_lines": sum(len(line) <= 30 for line in full),
        "dup_full_line_chars": again(full)[1],
    }
    found["dup_lines"], found["dup_line_chars"] = again(parts)
    found["dup_paragraphs"], found["dup_paragraph_chars"] = again(paragraphs)
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        found[f"top_{n}gram_chars"] = len(grams.most_common(1)[0][0]) * grams.most_common(1)[0][1] if grams else 0
    for n in range(5, 11):
        seen: set[str] = set()
        repeated, i = 0, 0
        while i < len(words) - n + 1:
            gram = "".join(words[i : i + n])
            repeated, i = (repeated + len(gram), i + n) if gram in seen else (repeated, i + 1)
            seen.add(gram)
        found[f"dup_{n}gram_chars"] = repeated
    return found


line = st.sampled_from(["\n", "\n\n", " \n", "\r\n", "\x1c", "• a", "- of the", "It ends.", "so...", "a b c d e ", "ab", "  "])


@settings(max_examples=80)
@given(st.lists(texts | st.lists(line).map("".join), min_size=1, max_size=4))
def test_counts_of_any_text(many: list[str]) -> None:
    columns = datatrove.counted(Texts.of(many))
    for at, text in enumerate(many):
        assert {name: int(columns[name][at]) for name in COUNTS} == plain_counts(text), repr(text)


def judged(kind: str, text: str, **fields: object) -> str:
    step = STEPS.build({"kind": kind, **fields})
    (result,) = step.apply(iter([Record("a", text=text)]), Run(Path(), {}, 0, Log(None)))  # type: ignore[attr-defined]
    return result.reason if isinstance(result, Drop) else ""


def test_punctuation_makes_words() -> None:
    """Where the two modes part."""
    text = " ".join(f"(see{n}: the, of, to{n} 'no{n}')" for n in range(40))
    assert judged("gopher", text, max_top_2gram_frac=1) == ""
    assert judged("gopher", text, max_top_2gram_frac=1, words="datatrove") == "gopher: words without letters"
    spaced = "\n\n\n\n".join(f"This is the line of the number {n} in it." for n in range(9))
    assert judged("fineweb", spaced) == "fineweb: short lines"
    assert judged("fineweb", spaced, words="datatrove", max_line_ends_per_word=1) == ""


# --- near-duplicates -----------------------------------------------------------------------------------------


def simplified(text: str) -> str:
    table = dict.fromkeys([*map(ord, PUNCTUATION), *range(9), 11, 12, *range(13, 32), *range(127, 160)], " ")
    text = re.sub(r"\d+([.,،٫⎖⎗⎘]\d+)?", "0", "".join(map(str.lower, text))).translate(table)
    text = unicodedata.normalize("NFD", re.sub(r"\s+", " ", text.strip()))
    return "".join(char for char in text if unicodedata.category(char) != "Mn").strip()


odd = st.sampled_from("1.5|10,000.25|٣٫٤|1.2.3|é|Å|한글|ẞ|İ|e\u0301 \u0301 x|don't|0.|5km|’s| |-|a".split("|"))


@settings(max_examples=120)
@given(texts | st.lists(odd, max_size=9).map("".join))
def test_the_normal_form_of_any_text(text: str) -> None:
    assert normal_words(text) == plain_words(simplified(text))


def hash_of(data: bytes) -> int:
    data_B = np.frombuffer(data, np.uint8)
    lane_B = np.zeros(len(data) + 1, np.uint64)
    lanes(data_B, len(data), lane_B)
    return int(xxh64(lane_B, 0, len(data)))


def plain_hash(data: bytes) -> int:
    """XXH64 by its specification."""
    one, two, three, four, five = (int(prime) for prime in PRIMES)
    mask = (1 << 64) - 1

    def turn(value: int, bits: int) -> int:
        value &= mask
        return (value << bits | value >> 64 - bits) & mask

    def step(total: int, lane: int) -> int:
        return turn(total + lane * two, 31) * one & mask

    at = 0
    if len(data) >= 32:
        totals = [one + two, two, 0, -one]
        while at + 32 <= len(data):
            totals = [step(total, int.from_bytes(data[at + 8 * i :][:8], "little")) for i, total in enumerate(totals)]
            at += 32
        value = sum(turn(total, bits) for total, bits in zip(totals, (1, 7, 12, 18), strict=True))
        for total in totals:
            value = ((value ^ step(0, total)) * one + four) & mask
    else:
        value = five
    value += len(data)
    for width in (8, 4, 1):
        while at + width <= len(data):
            lane = int.from_bytes(data[at : at + width], "little")
            at += width
            if width == 8:
                value = turn(value ^ step(0, lane), 27) * one + four
            elif width == 4:
                value = turn(value ^ lane * one, 23) * two + three
            else:
                value = turn(value ^ lane * five, 11) * one
    value &= mask
    value = (value ^ value >> 33) * two & mask
    value = (value ^ value >> 29) * three & mask
    return value ^ value >> 32


PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def test_published_hashes() -> None:
    assert hash_of(b"") == 0xEF46DB3751D8E999 and hash_of(b"abc") == 0x44BC2CF5AD770999


@given(st.binary(max_size=100))
def test_hashes_of_any_bytes(data: bytes) -> None:
    assert hash_of(data) == plain_hash(data)


DOCUMENTS = [
    *("the river came down from the mountain in the night", "The river: came down, from the mountain, in the NIGHT!"),
    *("the river came down from the mountain in the night and more", "four words are few", "four words are few"),
    *(
        "it was 12 in the garden on that day",
        "it was 3.5 in the gärden on that day",
        "",
        "a whole other sentence of many more words",
    ),
]


def test_signatures_and_clusters_are_theirs() -> None:
    """Against the formula in Python's whole numbers; same kept documents as by looking at all pairs of bands."""
    prime, bands, rows, seed = (1 << 61) - 1, 20, 2, 3
    found = signatures(Texts.of(DOCUMENTS), 5, bands, rows, seed)
    random = np.random.RandomState(seed)
    draws = (random.randint(low, np.uint64(prime), dtype=np.uint64, size=(1, bands * rows)) for low in (1, 0))
    factors, shifts = (draw[0].tolist() for draw in draws)
    least: list[list[int]] = []
    for text in DOCUMENTS:
        words = plain_words(simplified(text))
        shingles = [plain_hash(" ".join(words[i : i + 5]).encode()) for i in range(len(words) - 4)]
        assert found.shingles_D[len(least)] == max(len(shingles), 0)
        some = [[(x * a + b) % (1 << 64) % prime for x in shingles] for a, b in zip(factors, shifts, strict=True)]
        least.append([min(each) for each in some] if shingles else [])
    same = {(a, b) for a in range(9) for b in range(9) if least[a] and least[b]}
    for band in range(bands):
        rows_of = [each[band * rows : (band + 1) * rows] for each in least]
        for a, b in same:
            assert (found.band_DN[a, band] == found.band_DN[b, band]) == (rows_of[a] == rows_of[b])
            assert (found.band_DN[a, band] < found.band_DN[b, band]) <= (rows_of[a][0] <= rows_of[b][0])
    groups = clusters(found.band_DN.T, found.shingles_D)
    assert {text: home for text, home in enumerate(groups.home_D.tolist()) if home != text} == {1: 0, 2: 0, 6: 5}


def test_minhash_keeps_one_of_the_largest_cluster() -> None:
    run = Run(Path(), {}, 0, Log(None))
    rows = [Record(str(at), text=text) for at, text in enumerate(DOCUMENTS)]
    step = STEPS.build({"kind": "minhash", "words": "datatrove", "bands": 20, "rows": 2, "seed": 3})
    gone = {row.record.id: row.detail for row in step.apply(iter(rows), run) if isinstance(row, Drop)}  # type: ignore[attr-defined]
    assert set(gone) == {"1", "2", "6"} and gone["6"] == "like 5"


def test_kernels_that_count_no_references_allocate_nothing() -> None:
    """numba refuses to compile one that would."""

    def made(size: int) -> float:
        return float(np.empty(size).sum())

    with pytest.raises(NumbaError):
        bare(made)(3)
