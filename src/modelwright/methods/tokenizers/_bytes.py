"""Byte-level BPE as files have it: bytes written as characters, text cut as llama.cpp knows it, merges as a tokenizer.json.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and its code
(https://github.com/openai/gpt-2/blob/master/src/encoder.py) for the characters and the pattern; Allal et al. 2025,
arXiv:2502.02737, for digits of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

Merge = tuple[bytes, bytes]
"""Two tokens that become one."""

_LETTERS, _OTHERS = r" ?\p{L}+", r"'(?:[sdmt]|re|ve|ll)| ?[^\s\p{L}\p{N}]+"
# what needs no look-ahead stands in one group, which the engine of rustbpe then runs at one go
PATTERNS = {
    "gpt2": rf"(?:{_LETTERS}| ?\p{{N}}+|{_OTHERS})|\s+(?!\S)|\s+",
    # tokenizers and llama.cpp cut digits out first and the rest as GPT-2 does, so white space before a digit stands at the
    # end of its text and stays whole; one pattern says so by letting the look-ahead see digits as an end
    "smollm": rf"(?:{_LETTERS}|\p{{N}}|{_OTHERS})|\s+(?![^\s\p{{N}}])|\s+",
}
"""How text is cut before merging, each as one regular expression with the same cuts as `pre_tokenizer`."""


@cache
def characters() -> tuple[str, ...]:
    """The character that stands for each byte in a tokenizer.json."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return tuple(chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256))


@cache
def _values() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(characters())}


def written(token: bytes) -> str:
    """The token's bytes as characters."""
    chars = characters()
    return "".join(chars[byte] for byte in token)


def read(token: str) -> bytes | None:
    """The bytes that these characters stand for; None where one stands for none."""
    values = _values()
    found = [values.get(char, -1) for char in token]
    return None if -1 in found else bytes(found)


def pre_tokenizer(pre: str) -> Any:
    """What cuts text in the tokenizer.json."""
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt2":
        return byte_level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def assembled(merges: Sequence[Merge], special: Sequence[str], pre: str) -> Any:
    """A `tokenizers.Tokenizer`: ids are the special tokens, the 256 bytes, then the merges in their order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = [*special, *sorted(characters()), *(written(left + right) for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens), "two merges make the same token, or a special token is one that text makes"
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(written(left), written(right)) for left, right in merges]))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
