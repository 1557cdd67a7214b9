"""Text to ids at speed: the ids that `tokenizers` gives for the same tokenizer.json, by a kernel of our own.

What a tokenizer.json may hold for that is checked, and what its engine takes for letters, digits and white space is asked of
`tokenizers` itself, for versions of Unicode differ; some texts are encoded by both before the kernel is trusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import category, is_normalized

from modelwright.methods.tokenizers._bytes import PATTERNS, characters, pre_tokenizer, read

if TYPE_CHECKING:
    from modelwright.text import Array

_PLAIN = ("unk_token", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
"""What a model of byte-level BPE leaves unset."""
_NEWER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How the tokenizers of Qwen 2 and 3 and of Llama 3 cut text, as their files have it: what a piece may hold of digits."""
PROBES = (
    "I'll see  you'RE 12 345 ½ km\n\n\tdef f(x):\r\n        return x ** 2  # naïve Ⅷ",
    "東京 🙂🏽 \u0301\u200d\xa0 \u2028x",
    " ",
    "",
    "a" * 490,
    " " * 490 + "x",
)


_Encode = Callable[[Sequence[str]], list[Any]]


class Encoding(NamedTuple):
    """How a tokenizer's texts become ids."""

    encode: Callable[[Sequence[str]], list[Array]] | None
    """[T] int32 of each text; None where only `tokenizers` can do it."""
    about: str
    """Who encodes, or why `tokenizers` must; for the log."""


class _Unfit(Exception):
    """Why the kernel cannot encode as a tokenizer does."""


def fast_encoding(tokenizer: Any, special: bool = True) -> Encoding:
    """For a `tokenizers.Tokenizer`; no token is added. `special`: whether special tokens in a text are marks or are spelt."""
    theirs = f"tokenizers {metadata.version('tokenizers')}"
    tree = json.loads(tokenizer.to_str())
    try:
        encode, marks = _encoder(tree, special)
    except _Unfit as error:
        return Encoding(None, f"{theirs}, since {error}")
    bare = bare_copy(tokenizer, special)

    def slow(texts: Sequence[str]) -> list[Any]:
        return [item.ids for item in bare.encode_batch_fast(list(texts), add_special_tokens=False)]

    probes = [*PROBES, "".join(f"a{mark} b" for mark in marks)]
    if tree.get("normalizer"):
        encode = _where_normal(encode, slow)
    if [list(ids) for ids in encode(probes)] != slow(probes):
        return Encoding(None, f"{theirs}, since the faster kernel gave other ids for a probe")
    return Encoding(encode, f"the kernel in modelwright.text.bpe, with the ids of {theirs}")


def _where_normal(encode: _Encode, slow: _Encode) -> _Encode:
    """`encode` for texts that NFC leaves as they are, whatever version of Unicode it knows; `slow` for others."""
    import numpy as np

    def is_normal(text: str) -> bool:
        return text.isascii() or (is_normalized("NFC", text) and "Cn" not in map(category, set(text)))

    def both(texts: Sequence[str]) -> list[Array]:
        normal = [is_normal(text) for text in texts]
        fast = iter(encode([text for text, own in zip(texts, normal, strict=True) if own]))
        others = iter(slow([text for text, own in zip(texts, normal, strict=True) if not own]))
        return [next(fast) if own else np.array(next(others), np.int32) for own in normal]

    return both


def bare_copy(tokenizer: Any, special: bool) -> Any:
    """Of a `tokenizers.Tokenizer`, without the settings that would cut or fill rows. `special`: as for `fast_encoding`."""
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.no_truncation()
    bare.no_padding()
    bare.encode_special_tokens = not special
    return bare


def _encoder(tree: dict[str, Any], special: bool) -> tuple[_Encode, list[str]]:
    """The encoder and the marks that it finds, after every condition was checked."""
    from modelwright.text.bpe import SPELT, Encoder

    model = tree["model"]
    if model.get("type") != "BPE" or any(model.get(name) for name in _PLAIN):
        raise _Unfit("it is not plain byte-level BPE")
    if tree.get("normalizer") not in (None, {"type": "NFC"}):
        raise _Unfit("it normalises text by more than NFC")
    cuts = _cuts()
    how = next((name for name, node in cuts.items() if _without(node) == _without(tree.get("pre_tokenizer"))), None)
    if how is None:
        raise _Unfit("its way of cutting text is none of " + ", ".join(cuts))
    added = [token for token in tree["added_tokens"] if token["content"]]
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in added):
        raise _Unfit("an added token takes blanks with it or stands only between words")
    if len({token["normalized"] for token in added}) > 1 or (tree.get("normalizer") and any(t["normalized"] for t in added)):
        raise _Unfit("its added tokens are found in two passes, or in normalised text")
    vocabulary: dict[str, int] = model["vocab"]
    if any(char not in vocabulary for char in characters()):
        raise _Unfit("its alphabet lacks some of the 256 bytes")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs]
    marks = {token["content"]: token["id"] if special or not token["special"] else SPELT for token in added}
    whole = {token: number for text, number in vocabulary.items() if (token := read(text))} if model.get("ignore_merges") else {}
    byte_ids, numbers = [vocabulary[char] for char in characters()], {"qwen2": 1, "llama3": 3}.get(how, 0)
    return Encoder(byte_ids, merges, marks, _kinds(how == "smollm"), numbers, whole), list(marks)


def _cuts() -> dict[str, Any]:
    """The pre-tokenizers of tokenizer.json that are known, by name."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    newer = {
        name: Sequence([Split(Regex(_NEWER % digits), "isolated"), byte_level])
        for name, digits in (("qwen2", ""), ("llama3", "{1,3}"))
    }
    known = {**{name: pre_tokenizer(name) for name in PATTERNS}, **newer}
    return {name: json.loads(cut.__getstate__()) for name, cut in known.items()}


def _without(node: Any) -> Any:
    """`trim_offsets` moves no cut."""
    if isinstance(node, dict):
        return {key: _without(value) for key, value in node.items() if key != "trim_offsets"}
    return [_without(item) for item in node] if isinstance(node, list) else node


def _kinds(digits_alone: bool) -> Callable[[str], Array]:
    """What `tokenizers` takes each of some characters for. `digits_alone`: whether digits are cut out one by one before all else;
    its engine for that is another, and knows other digits."""
    import numpy as np
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Digits, Split

    from modelwright.text.bpe import ALONE, LETTER, NUMBER, OTHER, SPACE

    others = (
        (LETTER, Split(Regex(r"\P{L}"), "removed")),
        (NUMBER, Split(Regex(r"\P{N}"), "removed")),
        (SPACE, Split(Regex(r"\S"), "removed")),
    )

    def kinds(chars: str) -> Array:
        found = np.full(len(chars), OTHER)
        for kind, without in others:
            for _, (begin, end) in without.pre_tokenize_str(chars):
                found[begin:end] = kind
        if digits_alone:  # runs of digits and of others, in turn: behind the "a" come digits
            for _, (begin, end) in Digits(individual_digits=False).pre_tokenize_str(f"a{chars}")[1::2]:
                found[begin - 1 : end - 1] = ALONE
        return found

    return kinds
