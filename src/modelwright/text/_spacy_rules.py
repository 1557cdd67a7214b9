"""What spaCy's English word splitter asks of a character, and the words that it splits by a list.

Facts about spaCy 3.8 (https://spacy.io/api/tokenizer, its `lang/char_classes.py`, `lang/punctuation.py` and the tokenizer
exceptions of English), which datatrove takes its words from, and of datatrove 0.10.1's own marks. How they are used: `_spacy.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from modelwright.text.tables import PLANES, tables

if TYPE_CHECKING:
    from modelwright.text import Array

(
    BLANK,
    IS_ALPHA,
    LETTER,
    LOWER,
    UPPER,
    PREFIX,
    SUFFIX,
    ICON,
    QUOTE,
    BEFORE_DOT,
    HOST,
    SCHEME,
    DIGIT,
    CURRENCY,
    MARKED,
    SYMBOL,
    ENDS,
    BREAK,
) = (1 << bit for bit in range(18))
"""BLANK, IS_ALPHA: as `str` has them. LETTER, LOWER, UPPER: as spaCy has them; a letter without case is both. HOST, SCHEME: may
be in an address. MARKED: some rule asks for it. SYMBOL, ENDS: datatrove's punctuation and ends of sentences. BREAK: a line's."""

_CASED = """41-5a 61-7a c0-d6 d8-f6 f8-1bf 1c4-2af 386 388-38a 38c 38e-38f 391-3a9 3ac-3af 3b1-3c9 3cc-3ce 400-401 403-40a
40c-40d 410-451 453-45a 45c-45d 490-491 496-497 4a2-4a3 4ae-4af 4ba-4bb 4d8-4d9 4e8-4e9 1d00-1d25 1d6b-1d77 1d79-1d9a 1e00-1eff
2c60-2c7b 2c7e-2c7f a722-a76f a771-a787 a78b-a78e a790-a7b9 a7fa ab30-ab5a ab60-ab64 ff21-ff3a ff41-ff5a"""
_UNCASED = """591-5f4 620-64a 66e-6d5 6e5-6ff 750-77f 8a0-8bd 900-9ff b80-cff d80-dff 1100-137f 2e80-2fdf 2ff0-30ff 31c0-31ef
3200-4dbf 4e00-9fff ac00-d7af f900-faff fb1d-fbb1 fbd3-fd3d fd50-fdc7 fdf0-fdfb fe30-fe4f fe70-fefc 1ee00-1eebb 1f200-1f2ff
20000-2a6df 2a700-2ebef 2f800-2fa1f"""
_LATER_ICONS = """166d 2b97 2bc9 2bff 2e50-2e51 32ff fd40-fd4f fdcf fdfe-fdff 1cf50-1cfc3 1f6d5-1f6d7 1f6dd-1f6df 1f6fa-1f6fc
1f7e0-1f7f0 1f8b0-1f8b1 1f90c-1f90f 1f93f 1f971-1f972 1f977-1f979 1f97b 1f9a3-1f9af 1f9ba-1f9bf 1f9c3-1f9cf 1fa00-1fa53
1fa70-1fbca"""
"""Pictures newer than Unicode 11, which spaCy's list does not have."""
_ENDS = """21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c
2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e
ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239
1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42
11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"""
"""Unicode's Sentence_Terminal, which datatrove has."""
CONTROLS = "0-8 b-c d-1f 7f-9f"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
"""What datatrove takes for a space before it looks for near-duplicates, with `CONTROLS`."""
MARKS = "….,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪".replace(".", "")
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧\u2329\u232a"
MONEY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
UNITS = tuple(
    """km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa
Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с
км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم
كغ ملغ كوب اكواب US$ C$ A$""".split()
)
"""Split off behind a digit; so is one sign of MONEY."""


def spans(text: str) -> list[range]:
    """Ranges of code points, from hexadecimal."""
    ends = [part.partition("-") for part in text.split()]
    return [range(int(first, 16), int(last or first, 16) + 1) for first, _, last in ends]


# --- words that are split, or kept whole, by a list -------------------------------------------------------------

_WHOLE = """'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock 'em 'll 'nuff
'd a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. v.s. vs. co. Ph.D. D.C. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. Mt. Ak. Ala.
Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La.
Mar. Mass. Mich. Minn. Miss. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. Sep. Sept. Tenn. Va. Wash. Wis. Adm. Bros. Co.
Corp. Dr. Gen. Gov. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. Prof. Rep. Rev. Sen. St. ä. ö. ü. ' '' \\")
<space> C++ \\t \\n — =) (= =( =/ =| =[ ]= [= =] =3 =D 8) 8-) (-8 ;) ;-) (; (-; ;D ;-D 8D 8-D xD xDD XD XDD :o) (o: :1
:0 :-0 :() :> >:( >:o :* :-* :') :'-) :'( :'-( :-))) :))) :((( :-((( ): )-: (: (-: [: [-: :| :-| ^_^ ^__^ ^___^ >.<
>.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3
(^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"""
_PARTS = """y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta Got|ta let|'s
Let|'s c'm|on C'm|on °|c|. °|f|. °|k|. °|C|. °|F|. °|K|."""
_PEOPLE, _ASKED, _POINTED = "i you he she it we they", "who what when where why how there", "that this"
_SHORTENED = (
    ("i", "'m 'm|a"),
    (_PEOPLE, "'ll 'll|'ve 'd 'd|'ve"),
    ("i you we they", "'ve"),
    ("you we they", "'re"),
    ("he she it", "'s"),
    (f"{_ASKED} {_POINTED} these those", "'ll 'll|'ve 'd 'd|'ve"),
    (f"{_ASKED} {_POINTED}", "'s"),
    (f"{_ASKED} these those", "'re 've"),
    ("ca could do does did had may might must need ought sha should wo would", "n't n't|'ve"),
    ("could might must should would", "'ve"),
    ("ai are is was were have has dare", "n't"),
)
"""Words, and what may hang on them: with its apostrophe and without."""
_OTHER_WORDS = "ill its hell shell shed were well whore".split()
"""Words of their own that only look shortened."""


def special_cases() -> dict[str, tuple[str, ...]]:
    """The parts of each listed word; those that no rule would divide anyway are left out."""
    found: dict[str, tuple[str, ...]] = {
        word: (word,) for word in (*_WHOLE.split(), *(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyz"))
    }
    found |= {f"{eyes}{nose}{mouth}": (f"{eyes}{nose}{mouth}",) for eyes, nose, mouth in _faces()}
    sung = "doin' goin' havin' lovin' nothin' nuthin' ol' somethin'".split()
    found |= {word: (word,) for word in (*sung, *(low[0].upper() + low[1:] for low in sung))}
    found |= {"".join(parts): parts for parts in (tuple(text.split("|")) for text in _PARTS.split())}
    found |= {f"{hour}{half}": (str(hour), half) for hour in range(1, 13) for half in ("a.m.", "am", "p.m.", "pm")}
    for words, tails in _SHORTENED:
        for word in words.split():
            for tail in tails.split():
                for parts in (tail.split("|"), tail.replace("'", "").split("|")):
                    if word + "".join(parts) not in _OTHER_WORDS:
                        found |= {"".join((stem, *parts)): (stem, *parts) for stem in (word, word.title())}
    return found | {word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for word, parts in found.items()}


def _faces() -> Iterator[tuple[str, str, str]]:
    for nose in ("", "-"):
        yield from ((":", nose, mouth) for mouth in (*") )) ( (( ] } / P p O o 3 > X x D".split(), ")))", "((("))
    yield "", ":", "("


# --- tables -------------------------------------------------------------------------------------------------


@cache
def classes() -> Array:
    """[PLANES] uint32: the flags of each character."""
    import unicodedata

    import numpy as np

    from modelwright.text import tables as own

    ours_C = tables().flags_C
    flags_C = np.zeros(PLANES, np.uint32)

    def mark(flag: int, codes: object) -> None:
        flags_C[np.array(list(codes), np.int64)] |= np.uint32(flag)  # type: ignore[call-overload]

    flags_C[(ours_C & own.SPACE) > 0] |= BLANK
    flags_C[(ours_C & own.ALPHA) > 0] |= IS_ALPHA
    flags_C[(ours_C & own.ALNUM) > 0] |= SCHEME
    for part in spans(_UNCASED):
        mark(LETTER | LOWER | UPPER, part)
    for part in spans(_CASED):
        mark(LETTER, part)
        mark(LOWER, (code for code in part if unicodedata.category(chr(code)) == "Ll" or code == 0x294))
        mark(UPPER, (code for code in part if unicodedata.category(chr(code)) == "Lu"))
    later = {code for part in spans(_LATER_ICONS) for code in part}
    mark(ICON, (code for code in range(0x80, PLANES) if unicodedata.category(chr(code)) == "So" and code not in later))
    mark(QUOTE, map(ord, QUOTES))
    mark(CURRENCY, map(ord, MONEY))
    mark(PREFIX, map(ord, f"§%=—–{MARKS}{QUOTES}{MONEY}"))
    mark(SUFFIX, map(ord, f"—–{MARKS}{QUOTES}"))
    mark(BEFORE_DOT, map(ord, f"0123456789%²-+|{MARKS}{QUOTES}"))
    flags_C[(flags_C & LOWER) > 0] |= BEFORE_DOT
    flags_C[(flags_C & ICON) > 0] |= PREFIX | SUFFIX
    mark(HOST, map(ord, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    flags_C[0xA1:0x10000] |= HOST
    mark(SCHEME, map(ord, "+-._"))
    mark(DIGIT, (code for code in range(PLANES) if unicodedata.category(chr(code)) == "Nd"))
    mark(SYMBOL, map(ord, PUNCTUATION))
    for part in spans(CONTROLS):
        mark(SYMBOL, part)
    for part in spans(_ENDS):
        mark(SYMBOL | ENDS, part)
    mark(BREAK, map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    flags_C[(flags_C & (PREFIX | SUFFIX | DIGIT)) > 0] |= MARKED
    mark(MARKED, map(ord, ".+-*^:<>=/,~—–@"))
    return flags_C
