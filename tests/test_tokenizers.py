"""Tokenizer kinds and the fast encoders: the same ids from every library, the same merges from both learners, files that open."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from modelwright.methods.templates import _encode, array_encoder, broken, encoded_by, encoder
from modelwright.methods.tokenizers import TOKENIZERS, _fast, _merges, fast_encoding
from modelwright.methods.tokenizers._bytes import PATTERNS, assembled, characters, pre_tokenizer, read, written
from modelwright.text import bpe

from .test_data_steps import CODE, prose

SPECIAL = ("<|end|>", "<|end|>x", "<|start|>")
needs_rustbpe = pytest.mark.skipif(find_spec("rustbpe") is None, reason="rustbpe is not installed")


def corpus() -> list[str]:
    years = [f"{year} naïve 東京 {year * 7}\r\n\t  x =  {year}" for year in range(1900, 2000)]
    return [prose(i, 120) for i in range(20)] + [*CODE] * 3 + years


def learned(kind: str = "bpe", **fields: Any) -> Any:
    spec: Any = TOKENIZERS.load(kind).model_validate({"kind": kind, "size": 480, **fields})
    return spec.train(iter(corpus()), SPECIAL)


def odd_texts(seed: int = 0, count: int = 400) -> list[str]:
    """Random Unicode, code, blanks, emoji and special tokens, mixed."""
    draw = random.Random(seed)
    pieces = [
        *(
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\xa0",
            "\u2028",
            "\u3000",
            "\x85",
            "\x1c",
            "\0",
            "'s",
            "'LL",
            "’t",
            "½",
            "Ⅷ",
            "٣",
            "12",
        ),
        *(
            "🙂",
            "🙂🏽",
            "👩‍👩‍👧",
            "\u0301",
            "\u200d",
            "東京",
            "naïve",
            "ß",
            "İ",
            "word",
            "The",
            "_x",
            "**",
            "!=",
            "//",
            "def f(x):",
        ),
        *(*SPECIAL, "<|end", "|>", "<|start|", "x"),
    ]

    def one() -> str:
        wild = draw.random() < 0.3
        return "".join(
            chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000), draw.randrange(0x300)]))
            if wild and draw.random() < 0.5
            else draw.choice(pieces)
            for _ in range(draw.randrange(30))
        )

    return [one() for _ in range(count)] + ["", " " * 3000 + "x", "a" * 3000, "ab" * 900, "\n" * 2000, *CODE, prose(3, 300)]


# --- byte-level BPE ---------------------------------------------------------------------------------------


def test_bytes_as_characters() -> None:
    assert len(set(characters())) == 256 and written(b"a b\n") == "aĠbĊ" and read("aĠbĊ") == b"a b\n" and read("東") is None


@pytest.mark.parametrize("pre", [*PATTERNS])
def test_the_pattern_cuts_as_the_pre_tokenizer(pre: str) -> None:
    regex = pytest.importorskip("regex")
    cutter, pattern = pre_tokenizer(pre), regex.compile(PATTERNS[pre])
    for text in odd_texts(1):
        if any(unicodedata.category(char) == "Cn" for char in text):  # `regex` may know a newer Unicode
            continue
        assert [written(piece.encode()) for piece in pattern.findall(text)] == [p for p, _ in cutter.pre_tokenize_str(text)]


@needs_rustbpe
@pytest.mark.parametrize("pre", [*PATTERNS])
@pytest.mark.parametrize("least", [1, 2, 7])
def test_both_learners_make_the_same_merges(pre: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*corpus(), "\0\0\0\0 \0\0" * 5]
    fast = _merges.learned(iter(texts), pre, 2000, least)
    assert _merges.learner().startswith("rustbpe")
    monkeypatch.setattr(_merges, "find_spec", lambda name: None)
    assert _merges.learned(iter(texts), pre, 2000, least) == fast and len(fast) > 100
    assert _merges.learner().startswith("tokenizers")
    assert len(fast) > len(_merges.learned(iter(texts), pre, 2000, least + 10))


def test_too_much_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rustbpe")
    monkeypatch.setattr(_merges, "LARGEST_BYTES", 100)
    with pytest.raises(Exception, match="at most 2 GiB"):
        _merges.learned(iter(["text " * 30]), "gpt2", 10, 2)


def test_assembled_tokens_and_special_ones() -> None:
    tokenizer = assembled([(b"a", b"b"), (b"ab", b"c")], ["<s>"], "gpt2")
    assert tokenizer.token_to_id("<s>") == 0 and tokenizer.token_to_id("abc") == 258
    assert tokenizer.encode("abc<s>bab").tokens == ["abc", "<s>", "b", "ab"]
    with pytest.raises(AssertionError, match="a special token is one that text makes"):
        assembled([(b"a", b"b")], ["ab"], "gpt2")


# --- fast encoding ----------------------------------------------------------------------------------------


CUTS = [*PATTERNS, "qwen2", "llama3"]
PIECES = [*SPECIAL, "the ", "  ", "\n\n ", " \r\n", "'re", "'Ll", "'ſ", "x12345", "½", "!?\n", "\t", "é", "e\u0301"]


def differing(tokenizer: Any, texts: list[str], special: bool = True) -> list[str]:
    """Texts that the kernel and `tokenizers` turn into other ids."""
    encoding = fast_encoding(tokenizer, special)
    assert encoding.encode is not None and encoding.about.startswith("the kernel"), encoding.about
    tokenizer.encode_special_tokens = not special
    wanted = [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    found = [ids.tolist() for ids in encoding.encode(texts)]
    return [text for text, ours, theirs in zip(texts, found, wanted, strict=True) if ours != theirs]


def cut_as(how: str) -> Any:
    """A tokenizer that cuts text so; those of Qwen and Llama with what else they have."""
    tree = json.loads(learned(pre=how if how in PATTERNS else "gpt2").to_str())
    if how in PATTERNS:
        return Tokenizer.from_str(json.dumps(tree))
    tree["pre_tokenizer"] = _fast._cuts()[how]
    if how == "qwen2":
        tree["normalizer"] = {"type": "NFC"}
    else:  # tokens that their merges do not make, one of them longer than what is remembered
        tree["model"]["ignore_merges"] = True
        tree["model"]["vocab"].update({"Ġriver": 500, "zzz": 501, written("東京".encode()): 502, "b" * 80: 503})
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_identical(how: str, special: bool) -> None:
    texts = [
        *odd_texts(2, 1500),
        "a river 東京 zzz zzzz " + "b" * 80 + " " + "b" * 81,
        "e\u0301 \u1100\u1161 \u0344 \U0001e6ff\u0301",
    ]
    assert differing(cut_as(how), texts, special) == []


@cache
def both(how: str) -> tuple[Any, Any]:
    tokenizer = cut_as(how)
    return tokenizer, fast_encoding(tokenizer).encode


@settings(max_examples=300)
@given(st.sampled_from(CUTS), st.lists(st.text() | st.sampled_from(PIECES)))
def test_ids_are_identical_over_all_of_unicode(how: str, pieces: list[str]) -> None:
    tokenizer, encode = both(how)
    text = "".join(pieces)
    assert encode([text])[0].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("how", CUTS)
def test_every_character_is_cut_the_same(how: str) -> None:
    blocks = [
        [chr(code) for code in range(begin, begin + 4096) if not 0xD800 <= code < 0xE000] for begin in range(0, 0x110000, 4096)
    ]
    texts = [join.join(block) for block in blocks for join in ("", "a", " ", "'")]
    assert differing(cut_as(how), texts) == []


def test_known_pieces_are_forgotten_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "SLOTS", 64)
    assert differing(learned(), odd_texts(5, 600) * 2) == []


def test_long_pieces() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choice("abéthe") for _ in range(draw.randrange(50, 1300))) for _ in range(300)]
    texts += [f"x {text} {' ' * draw.randrange(300, 900)}\n\ty" for text in texts]
    assert differing(learned(), [*texts, " " * 300_000 + "x", "x" + "\n" * 300_000, "ab " * 200_000]) == []


def test_merges_in_any_order() -> None:
    """A token made twice, one that no merge makes, a pair that is there twice, halves that come later: as the list says."""
    draw = random.Random(1)
    for _ in range(30):
        tokens = [bytes([byte]) for byte in b"abc "]
        merges: list[tuple[bytes, bytes]] = []
        while len(merges) < 25:
            merges.append((draw.choice(tokens), draw.choice(tokens)))
            tokens.append(b"".join(merges[-1]))
        draw.shuffle(merges)
        tree = json.loads(assembled([], SPECIAL, "gpt2").to_str())
        vocabulary = tree["model"]["vocab"]
        for token in draw.sample(tokens, len(tokens)):
            vocabulary.setdefault(written(token), len(vocabulary))
        vocabulary["unmade"] = len(vocabulary)
        tree["model"]["merges"] = [[written(left), written(right)] for left, right in [*merges, *merges[:3]]]
        texts = ["".join(draw.choice("aaabbc  ") for _ in range(draw.randrange(100))) for _ in range(60)]
        assert differing(Tokenizer.from_str(json.dumps(tree)), [*texts, "unmade"]) == []


def test_a_spelt_token_hides_what_lies_in_it() -> None:
    tree = json.loads(learned().to_str())
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 480, "content": "nd|>", "special": False})
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    texts = ["<|end|>x", "end|>", "<|end|nd|>", "nd|><|end|>"]
    assert differing(tokenizer, texts, special=False) == [] == differing(tokenizer, texts)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    encode = fast_encoding(learned()).encode
    assert encode is not None
    with pytest.raises(UnicodeEncodeError):
        encode(["fine", "a \ud800 b"])
    assert encode([]) == [] and encode([""])[0].tolist() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.update(normalizer={"type": "NFKC"}), "normalises"),
        (lambda tree: tree["model"].update(unk_token="<|end|>"), "not plain byte-level"),
        (lambda tree: tree.update(pre_tokenizer={"type": "Whitespace"}), "cutting text"),
        (lambda tree: tree["added_tokens"][0].update(lstrip=True), "blanks"),
        (lambda tree: tree["added_tokens"][0].update(normalized=True), "two passes"),
        (lambda tree: tree["model"]["vocab"].update({"zzz": tree["model"]["vocab"].pop("ÿ")}), "alphabet"),
    ],
)
def test_tokenizers_that_the_kernel_does_not_know(change: Any, says: str) -> None:
    tree = json.loads(learned().to_str())
    change(tree)
    encoding = fast_encoding(Tokenizer.from_str(json.dumps(tree)))
    assert encoding.encode is None and says in encoding.about and encoding.about.startswith("tokenizers ")


def test_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fast, "_kinds", lambda digits_alone: lambda chars: np.full(len(chars), bpe.OTHER))
    encoding = fast_encoding(learned())
    assert encoding.encode is None and "other ids for a probe" in encoding.about


def test_rows_of_training_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned(), eos_token=SPECIAL[0])
    texts = [text + "<|start|>" for text in odd_texts(3)] + [broken([{"content": "<|end|>"}], SPECIAL)[0]["content"]]
    plain = encoder(tokenizer)(texts)
    assert encoded_by(tokenizer) == ""
    monkeypatch.setattr(_encode, "WORTH_CHARS", 1)
    monkeypatch.setattr(_encode, "BATCH_CHARS", 1)
    assert encoder(tokenizer)(texts) == plain
    assert [ids.tolist() for ids in array_encoder(tokenizer)(texts)] == plain
    assert encoded_by(tokenizer).startswith("the kernel")
    tokenizer.add_tokens(["quite new"])
    assert encoder(tokenizer)(["quite new "]) == [[len(tokenizer) - 1, *tokenizer(" ")["input_ids"]]]


# --- the other kinds --------------------------------------------------------------------------------------


@pytest.fixture(params=["wordpiece", "char_bpe", "unigram"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_special_tokens_first_and_unknown_characters(kind: str) -> None:
    tokenizer = learned(kind, alphabet=60)
    unknown = {"wordpiece": "[UNK]"}.get(kind, "<unk>")
    assert [tokenizer.id_to_token(i) for i in range(3)] == [*SPECIAL]
    assert tokenizer.token_to_id(unknown) is not None and tokenizer.token_to_id(unknown) in tokenizer.encode("the 龘 river").ids
    assert tokenizer.encode("the<|end|>x river").tokens.count("<|end|>x") == 1
    assert unknown not in tokenizer.encode("the river", add_special_tokens=False).tokens
    text = tokenizer.decode(tokenizer.encode("the river was wide", add_special_tokens=False).ids)
    assert text == "the river was wide"


def test_the_same_text_gives_the_same_vocabulary(kind: str) -> None:
    assert len({learned(kind, alphabet=60).to_str() for _ in range(4)}) == 1


def test_transformers_opens_every_kind(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    spec: Any = TOKENIZERS.load(kind).model_validate({"kind": kind, "size": 400})
    learned(kind).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **spec.roles()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.unk_token == spec.roles()["unk_token"] and opened("the river")["input_ids"]
    if kind == "wordpiece":
        assert opened.mask_token == "[MASK]" and opened.tokenize("THE") == opened.tokenize("the")
        first, *_, last = opened("the river")["input_ids"]
        assert opened.convert_ids_to_tokens([first, last]) == ["[CLS]", "[SEP]"]
