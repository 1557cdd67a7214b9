"""Answers held to a JSON schema, a regular expression, a grammar or a list of choices, by llguidance.

Source: https://github.com/guidance-ai/llguidance (`LLMatcher`): before each token it says which ones a parser of the text so far
can go on with, and an answer ends where the text is complete; the method after Geng et al. 2023, arXiv:2305.13971. White space
in JSON is held to what llama.cpp's grammars allow (`grammars/README.md`): small models write blanks without end where they may.

Shapes: V vocabulary, B bytes of a mask with one bit a token.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from modelwright.core.errors import UserError, missing_extra
from modelwright.methods.engines import Constraint

_SPACE = r" |\n{1,2}[ \t]{0,20}"
_CONTROL = re.compile("[\x7f-\x9f]")
"""Characters that Lark wants escaped and JSON does not."""

_MOST_CHARS = 120_000
"""As much as OpenAI's API takes: https://platform.openai.com/docs/guides/structured-outputs."""
_scratch = threading.local()


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise missing_extra("llguidance", "structured", "an answer held to a schema, a pattern, a grammar or choices") from None
    return llguidance


class Grammar:
    """One answer under a constraint."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.trouble: UserError | None = None
        """Why the answer cannot go on; whoever asked gets it, and no other answer suffers."""

    def mask(self, logits_V: Any) -> None:
        """Minus infinity for every token that the constraint forbids here, the end too while the answer is not complete."""
        import numpy as np

        bits_B = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error() or not bits_B.any():
            why = self._matcher.get_error() or "no token of the model's vocabulary can be next"
            self.trouble = UserError(
                "the answer cannot be held to its constraint any further", _short(why), "simplify the constraint"
            )
            return
        added_V = _added(bits_B)[: len(logits_V)]
        logits_V[: len(added_V)] += added_V
        logits_V[len(added_V) :] = -np.inf  # places of the model's head without a token

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def copy(self) -> Grammar:
        return Grammar(self._matcher.deep_copy())


@cache
def _bits() -> Any:
    """[256, 8] what each byte of a mask adds to its eight tokens' logits."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits, np.float32(0), np.float32(-np.inf))


def _added(bits_B: Any) -> Any:
    """[8 B] what a mask adds to the logits; good until the thread asks again. To look bytes up, in memory that is there already,
    takes a thirtieth of the time of filling by index."""
    import numpy as np

    if getattr(_scratch, "rows", None) is None or len(_scratch.rows) != len(bits_B):
        _scratch.rows = np.empty((len(bits_B), 8), dtype=np.float32)
    return np.take(_bits(), bits_B, axis=0, out=_scratch.rows, mode="clip").reshape(-1)


def grammar_of(constraint: Constraint, words: Any) -> Grammar:
    """The constraint at the start of an answer; `words` from `words_of_fast` or `words_of_bytes`. UserError where it says nothing
    that can be followed."""
    llguidance = _llguidance()
    if len(constraint.text) > _MOST_CHARS:  # the time to read some grows with the square of their length
        raise _refused(constraint, f"it has {len(constraint.text)} characters, and {_MOST_CHARS} are the most")
    limits = llguidance.LLParserLimits(verbose_errors=False)  # errors reach logs, which hold no prompts
    try:
        matcher = llguidance.LLMatcher(words, _source(constraint, llguidance.LLMatcher), log_level=0, limits=limits)
    except (ValueError, RecursionError) as error:  # text that is no JSON
        raise _refused(constraint, str(error)) from None
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error())
    return Grammar(matcher)


def _source(constraint: Constraint, matcher: Any) -> str:
    kind, text = constraint
    if kind == "json_schema":
        source = matcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _SPACE})
    elif kind == "regex":
        source = matcher.grammar_from_regex(text)
    elif kind == "grammar":
        source = matcher.grammar_from_lark(text)
    else:
        choices = json.loads(text)
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("it has to be a JSON list of strings with one at least")
        spelt = (_CONTROL.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(choice, ensure_ascii=False)) for choice in choices)
        source = matcher.grammar_from_lark("start: " + " | ".join(spelt))
    assert isinstance(source, str)
    return source


def _refused(constraint: Constraint, why: str) -> UserError:
    names = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar", "choices": "list of choices"}
    fixes = {
        "json_schema": "leave out what is not supported: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md",
        "regex": "write it as Rust's regex does, without look-around: https://docs.rs/regex/latest/regex/#syntax",
        "grammar": "write it in Lark's form: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md",
        "choices": '["yes", "no"]',
    }
    return UserError(f"the {names[constraint.kind]} cannot be followed", _short(why), fixes[constraint.kind])


def _short(text: str) -> str:
    lines = " ".join(text.split())
    return lines if len(lines) <= 400 else f"{lines[:400]}…"


def refusal(tokenizer: Any) -> str:
    """Why answers of a tokenizer of transformers cannot be held to anything; '' where they can."""
    if not tokenizer.is_fast:
        return "it is a slow tokenizer: the bytes of its tokens are not known"
    decoder = repr(tokenizer.backend_tokenizer.decoder)
    if any(name in decoder for name in ("ByteLevel", "ByteFallback", "Metaspace")):
        return ""
    return f"what a token spells depends on its neighbours (decoder {decoder.partition('(')[0]})"


def words_of_fast(tokenizer: Any, ends: Collection[int]) -> Any:
    """llguidance's table of the tokens of a fast tokenizer that `refusal` has nothing against; takes 0.2 s for 50,000 tokens.
    ends: tokens that end an answer."""
    _llguidance()
    if any(name in repr(tokenizer.backend_tokenizer.decoder) for name in ("ByteLevel", "ByteFallback")):
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(tokenizer, eos_token=_ending(ends))
        except ValueError as error:
            raise UserError(
                "answers cannot be held to anything", f"llguidance reads no such tokenizer: {_short(str(error))}"
            ) from None
    tokens = [(word or "").replace("▁", " ").encode() for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))

    return words_of_bytes(tokens, special, ends, encode)


def _ending(ends: Collection[int]) -> list[int]:
    if not ends:
        raise UserError("answers cannot be held to anything", "the model has no token that ends an answer")
    return sorted(ends)


class _Words:
    """Tokens as llguidance's `TokenizerWrapper` wants them."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], end: int, encode: Callable[[str], list[int]]) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self._encode = tokens, special, end, encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8"))


def words_of_bytes(
    tokens: Sequence[bytes], special: Sequence[int], ends: Collection[int], encode: Callable[[str], list[int]]
) -> Any:
    """The same from the bytes of every token."""
    llguidance, ending = _llguidance(), _ending(ends)
    wrapped = llguidance.TokenizerWrapper(_Words(tokens, special, ending[0], encode))
    return llguidance.LLTokenizer(wrapped, eos_token=ending)
