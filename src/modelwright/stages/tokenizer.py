"""Tokenizer: learns a vocabulary from rows and saves it, with a chat template, as a Hugging Face tokenizer folder.

Source: the folder layout of https://huggingface.co/docs/transformers/main_classes/tokenizer (`tokenizer.json`,
`tokenizer_config.json`, `chat_template.jinja`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Facts, Given, Span, estimate
from modelwright.core.record import Record
from modelwright.core.spec import Kinds, kind_of
from modelwright.core.stage import Check, Mix, Refs, Run, Stage, Stats
from modelwright.core.units import bytes_text
from modelwright.methods.sources import open_records
from modelwright.methods.steps import content
from modelwright.methods.templates import TEMPLATES, Template, encode_chat, parity_check
from modelwright.methods.tokenizers import TOKENIZERS, Tokenizer
from modelwright.stages._tokenizer_figures import Specimen, fertility, specimen

END_OF_TEXT = "<|endoftext|>"
"""Ends a document; the name that GPT-2 gave it and that llama.cpp knows."""
MEASURED_CHARS = 1_000_000
"""Text that fertility is measured on: enough for three digits, a second of encoding."""
EVERY = 20
"""One row in so many is measured and not learned from, so that fertility is told for text the vocabulary has not seen."""
SPECIMEN_ROWS = 50
BEGIN_S, MERGE_S = 0.2, 1.4e-4
"""A million characters measured and the template tried; a token of the vocabulary. Measured on 9 MB with 1,024 and 4,096."""


class Vocabulary(Stage):
    """Makes a `tokenizer`."""

    produces: ClassVar[str] = "tokenizer"
    random: ClassVar[bool] = False

    kind: Literal["tokenizer"] = "tokenizer"
    data: Annotated[Refs, Field(examples=["./notes/"])]
    """Rows to learn from. `weight` and `epochs` set how often each source counts."""
    method: Annotated[Tokenizer, TOKENIZERS] = Field("bpe", examples=[{"kind": "bpe", "size": 512}])  # type: ignore[assignment]
    """How the vocabulary is learned."""
    template: Annotated[Template, TEMPLATES] = Field("chatml", examples=["plain"])  # type: ignore[assignment]  # validated
    """Chat template kept inside the tokenizer; its marks become whole tokens. Default: ChatML, which most engines know."""
    special: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), examples=[["<|tool|>"]])
    """Further special tokens: each is one token wherever it stands, and text never becomes one by merging."""
    mask: str | None = Field(None, min_length=1, examples=["<|mask|>"])
    """Special token that stands for a hidden one, which `masked_token` needs; unset: none, but `[MASK]` for `wordpiece`."""

    @field_validator("template")
    @classmethod
    def _not_own(cls, value: Template) -> Template:
        if not value.jinja():
            raise ValueError("a new tokenizer has no template of its own; choose one: " + ", ".join(_others(TEMPLATES, "own")))
        return value

    def roles(self) -> dict[str, str]:
        """Special tokens by what transformers calls their role."""
        ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
        return {**ends, **self.method.roles(), **({"mask_token": self.mask} if self.mask else {})}

    def marks(self) -> tuple[str, ...]:
        """The first tokens of the vocabulary."""
        return tuple(dict.fromkeys((END_OF_TEXT, *self.template.special, *self.roles().values(), *self.special)))

    def estimate(self, given: Given) -> Estimate:
        known = [given.parents[mix.ref].bytes or given.parents[mix.ref].chars for mix in self.data if mix.ref in given.parents]
        bytes_in = sum(size or 0.0 for size in known)
        size = self.method.vocab_size()
        why = f"{bytes_text(bytes_in)} of text" + (" as far as known" if None in known else "")
        facts = Facts(type=self.produces, rows=size)
        kind = kind_of(self.method)
        spans = (
            Span("start", BEGIN_S, "text measured and the folder proved"),
            Span("merge", size * MERGE_S, f"{size} tokens", kind),
            Span("learn", bytes_in / self.method.bytes_per_s, f"{why} at {bytes_text(self.method.bytes_per_s)}/s", kind),
        )
        return estimate(
            sum(span.seconds for span in spans),
            f"counting words and merging pairs of {why}",
            90e6 + 6.0 * bytes_in,
            f"words and pairs of {why}",
            size * 60.0,
            f"{size} tokens and their merges as JSON",
            {"": facts},
        )._replace(spans=spans)

    # --- the work -------------------------------------------------------------------------------------

    def run(self, run: Run) -> Stats:
        measured: list[Specimen] = []
        learned = 0

        def texts() -> Iterator[str]:
            nonlocal learned
            seen = measured_chars = 0
            last = None
            for record in run.log.track(self._rows(run), "rows", label="tokenizer"):
                text = content(record)
                seen += record.id != last  # copies of a row follow each other and go the same way
                last = record.id
                if seen % EVERY == 0 and measured_chars < MEASURED_CHARS:
                    measured.append(specimen(record))
                    measured_chars += len(text)
                    continue
                learned += len(text.encode())
                yield text

        run.log.note(f"the vocabulary is learned by {self.method.learner()}")
        tokenizer = self.method.train(texts(), self.marks())
        own = not measured
        if own:  # too few rows to keep any apart
            measured = [specimen(record) for record, _ in zip(self._rows(run), range(EVERY), strict=False)]
        self._save(tokenizer, run)
        self._prove(tokenizer, run, [item.text for item in measured])
        figures = fertility(tokenizer, measured, self.method.roles().get("unk_token"))
        if figures["unknown_tokens"]:
            share = figures["unknown_tokens"] / figures["measured"]["tokens"]
            run.log.note(f"{share:.2%} of the tokens of measured text are unknown to the vocabulary; `bpe` knows every text")
        size = tokenizer.get_vocab_size()
        if size < self.method.vocab_size():
            run.log.note(f"the text gives {size} tokens, fewer than the {self.method.vocab_size()} that were asked for")
        facts = Facts(type=self.produces, rows=size, bytes=(run.out / "tokenizer.json").stat().st_size, measured=True)
        return {
            "vocab_size": size,
            "special": list(self.marks()),
            "pre": self.method.pre_tokenizer(),
            "learned_bytes": learned,
            "learned_by": self.method.learner(),
            "measured_on": "the text learned from" if own else f"one row in {EVERY}, not learned from",
            **figures,
            "preview": _preview(tokenizer, [item.text for item in measured]),
            "longest": sorted((tokenizer.decode([i]) for i in range(size)), key=len, reverse=True)[:20],
            "facts": {"": facts.model_dump(mode="json")},
        }

    def _rows(self, run: Run) -> Iterator[Record]:
        """The rows of every source, each as often as the recipe says."""
        for mix, times in zip(self.data, self._times(run), strict=True):
            whole, part = int(times), times - int(times)
            for record in open_records(run.inputs[mix.ref], run.log):
                for _ in range(whole + (part > 0 and _draw(record.id) < part)):
                    yield record

    def _times(self, run: Run) -> list[float]:
        """How often each source's rows are used; the source that weights ask most of is used once."""
        weighted = [mix for mix in self.data if mix.weight is not None]
        if not weighted:
            return [mix.epochs if mix.epochs is not None else 1.0 for mix in self.data]
        chars = {mix.ref: self._chars(mix, run) for mix in self.data}
        most = max((mix.weight or 0.0) / chars[mix.ref] for mix in weighted)
        plain = [mix.epochs if mix.epochs is not None else 1.0 for mix in self.data]
        return [
            times if mix.weight is None else mix.weight / chars[mix.ref] / most
            for mix, times in zip(self.data, plain, strict=True)
        ]

    def _chars(self, mix: Mix, run: Run) -> float:
        facts = run.facts.get(mix.ref)
        if facts and facts.chars:
            return facts.chars
        return float(sum(len(content(record)) for record in open_records(run.inputs[mix.ref], run.log)))

    def _save(self, tokenizer: Any, run: Run) -> None:
        tokenizer.save(str(run.out / "tokenizer.json"))
        (run.out / "chat_template.jinja").write_text(self.template.jinja(), encoding="utf-8")
        roles = self.roles()
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
            **roles,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": [token for token in self.marks() if token not in roles.values()],
            "modelwright_stop": self.template.stop or END_OF_TEXT,
        }
        if (pre := self.method.pre_tokenizer()) is not None:
            config["modelwright_pre"] = pre
        (run.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _prove(self, tokenizer: Any, run: Run, texts: list[str]) -> None:
        """Text survives where the method promises it, special tokens come first, the template parses and trains on something."""
        for index, token in enumerate(self.marks()):
            assert tokenizer.token_to_id(token) == index, f"{token} has id {tokenizer.token_to_id(token)}, not {index}"
        for text in texts[:SPECIMEN_ROWS] if self.method.exact else ():
            if tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) != text:
                raise UserError("the vocabulary does not give a text back as it was", f"it begins {text[:60]!r}")
        self.template.check(tokenizer)
        chat = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]
        if not any(encode_chat(tokenizer, self.template.jinja(), chat, bos=END_OF_TEXT, eos=END_OF_TEXT).mask):
            raise UserError("the chat template gives an answer no token to train on")
        chats = [record.messages for record, _ in zip(self._chats(run), range(SPECIMEN_ROWS), strict=False)]
        if chats:
            check: Check = parity_check(tokenizer, self.template.jinja(), chats)
            run.log.event("check", check=check.name, ok=check.ok, detail=check.detail)

    def _chats(self, run: Run) -> Iterator[Record]:
        for mix in self.data:
            rows = open_records(run.inputs[mix.ref], run.log)
            yield from (record for record, _ in zip(rows, range(SPECIMEN_ROWS), strict=False) if record.messages)


def _preview(tokenizer: Any, texts: list[str]) -> list[str]:
    """The first tokens of a text, to be looked at."""
    ids = tokenizer.encode(texts[0][:600], add_special_tokens=False).ids[:80] if texts else []
    return [tokenizer.decode([i]) for i in ids]


def _draw(name: str) -> float:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _others(kinds: Kinds, but: str) -> list[str]:
    return [name for name in kinds.names() if name != but]
