"""Every script, digits, spaces, emoji and special tokens: llama.cpp cuts them as the trained tokenizer and gives them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modelwright.core.events import Log
from modelwright.methods.engines import ENGINES, Engine, open_engine
from modelwright.methods.exporters import EXPORTERS, _pre
from tests import engine_kit as kit

pytest.importorskip("xllamacpp")

SCRIPTS = {
    "Latin": "All people are born free and equal in dignity and rights. Người ta sinh ra tự do. Żółć, ğüşiöç, ñandú, Ærøskøbing",
    "Cyrillic": "Все люди рождаются свободными и равными. Усі люди. Сви људи; қазақ, ӯзбек",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι· ἐν ἀρχῇ ἦν ὁ λόγος",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։",
    "Georgian": "ყველა ადამიანი იბადება თავისუფალი. ႠႡႢ",
    "Hebrew": "כל בני האדם נולדו בני חורין; שָׁלוֹם",
    "Arabic": "يولد جميع الناس أحرارًا متساوين. تمام انسان آزاد ہیں؟ ١٢٣ ۴۵۶",
    "Syriac": "ܟܠ ܒܪܢܫܐ ܒܪܝܠܗ ܚܐܪܐ",
    "Thaana": "ހުރިހާ އިންސާނުން",
    "Ethiopic": "የሰው ልጅ ሁሉ ሲወለድ ነጻና እኩል ነው። ፩፪፫",
    "Nko": "ߡߐ߱ ߓߍ߯ ߛߓߊߡߊ߬",
    "Devanagari": "सभी मनुष्य जन्म से स्वतन्त्र हैं। १२३ क्ष त्र ज्ञ",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে। ১২৩",
    "Gurmukhi": "ਸਾਰੇ ਮਨੁੱਖ ਆਜ਼ਾਦ ਪੈਦਾ ਹੁੰਦੇ ਹਨ",
    "Gujarati": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ",
    "Odia": "ସମସ୍ତ ମଣିଷ ଜନ୍ମରୁ ସ୍ୱାଧୀନ",
    "Tamil": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே",
    "Telugu": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును",
    "Kannada": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ",
    "Malayalam": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും",
    "Sinhala": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน ๑๒๓",
    "Lao": "ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ",
    "Tibetan": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ། ༡༢༣",
    "Burmese": "လူတိုင်းသည် တူညီ လွတ်လပ်သော",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាព ១២៣",
    "Mongolian": "ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ ᠮᠡᠨᠳᠡᠯᠡᠬᠦ",
    "Han": "人人生而自由，在尊严和权利上一律平等。㐀 𠀋",
    "Japanese": "すべての人間は、生まれながらにして自由でありﾊﾝｶｸ ガギグ",
    "Hangul": "모든 인간은 태어날 때부터 자유로우며 \u1112\u1161\u11ab",
    "Cherokee": "ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ",
    "Canadian": "ᐃᓄᓕᒫᑦ ᐊᓂᖅᑎᕆᔪᓕᒫᑦ",
    "Tifinagh": "ⴰⵎⴷⴰⵏ ⴰⴽⴽⵯ ⵓⵔⵏ",
    "Javanese": "ꦱꦧꦼꦤ꧀ꦮꦺꦴꦁ",
    "Gothic": "𐌰𐌻𐌻𐌰𐌹 𐌼𐌰𐌽𐌽𐌰",
    "Cuneiform": "𒀀𒁀𒂊 𓀀𓁐",
    "Digits": "0 12 345 6789 3.14159 -1e-9 1,000,000 ½ ² Ⅻ ٣ ३ ３",
    "Spaces": " a  b   c\td\t\te \n f\n\n\ng\r\nh \u00a0i\u2003j\u3000k\u200bl ",
    "Emoji": "😀👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇺🇳❤️‍🔥1️⃣ ☺︎",
    "Signs": "¿?¡! «a» „b“ — … €£¥ ∀x∈ℝ → ≠ 𝒜𝔅 a̐éö̲ \u202eabc\u202c",
    "Special": "a<|im_start|>user\nb<|im_end|><|im_end|> <|endoftext|>c <|im_start <|im_end|",
}


def tokenizer(pre: str) -> Any:
    """A small vocabulary that cuts text as `pre` does."""
    from tokenizers import Regex, pre_tokenizers

    if pre in ("smollm", "gpt-2"):
        return kit.tokenizer(pre)
    words = kit.tokenizer("gpt-2")
    pattern = next(pattern for pattern, name in _pre._SPLITS.items() if name == pre)
    backend = words.backend_tokenizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.model.ignore_merges = pre == "llama-bpe"
    return words


@pytest.fixture(scope="module", params=["smollm", "gpt-2", "llama-bpe", "qwen2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    out = tmp_path_factory.mktemp("out")
    model = kit.folder(tmp_path_factory.mktemp("model"))
    tokenizer(request.param).save_pretrained(model)
    written = EXPORTERS.load("gguf")().write(model, out, Log(None))  # type: ignore[attr-defined]
    assert written["pre_tokenizer"] == request.param
    before = open_engine(model, ENGINES.load("native")(device="cpu"))  # type: ignore[arg-type, call-arg]
    after = open_engine(out / "model.gguf", ENGINES.load("llamacpp")(context=64))  # type: ignore[arg-type, call-arg]
    with before as one, after as two:
        yield one, two


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script(pair: tuple[Engine, Engine], script: str) -> None:
    before, after = pair
    text = SCRIPTS[script]
    tokens = after.encode(text)
    assert tokens == before.encode(text)
    wanted = text
    for special in kit.SPECIAL:
        wanted = wanted.replace(special, "")
    assert after.decode(tokens) == before.decode(tokens) == wanted
