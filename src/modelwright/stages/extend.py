"""Extend: more tokens for a model that has a vocabulary, for text that it cuts into too many; the model stays the same on text
without them.

How tokens are added is said in `_extend_tokens`, how their first weights are found in `nn/extend.py`, with their sources. What
they mean is learned afterwards: train on such text with `objective: next_token`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.errors import UserError
from modelwright.core.estimate import TORCH, Estimate, Facts, Given, Span, estimate, imports
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Accepts, Check, Ref, Refs, Run, Stage, Stats
from modelwright.core.units import bytes_text
from modelwright.methods.architectures import shape_of
from modelwright.methods.sources import open_records
from modelwright.methods.steps import content
from modelwright.stages._extend_tokens import Added, Extension, Wanted, extended
from modelwright.stages._tokenizer_figures import Specimen, fertility, specimen

if TYPE_CHECKING:
    from modelwright.nn.extend import Mixture

MEASURED_CHARS, ALIKE_CHARS = 1_000_000, 20_000_000
"""Text of `data` that fertility is measured on, and that tokens are compared on: more sees rarer tokens, a minute for this."""
CHECKED_CHARS = 50_000
PROVED_TEXTS, PROVED_TOKENS = 8, 128
"""Texts, and most tokens of each, whose log-probabilities are compared before and after."""
TOLERANCE_NATS = 1e-4
"""Largest difference of these: a larger table sums in another order."""
_WORD = re.compile(r"\s*\S+")
NOTED_MASS = 0.05
SHOWN = 20
LIST = "added_tokens.jsonl"
"""Every new token and where its first weights come from."""
_NO_DATA = (
    "The quick brown fox jumps over the lazy dog.\nPython was created by Guido van Rossum and first released in 1991.\n",
    'def first(items):\n    """The first item, or None."""\n    return next(iter(items), None)\n',
)
_IMPORTS_BYTES, _COPY_BYTES_PER_S, _CHARS_PER_S = 0.6e9, 200e6, 2e6
"""PyTorch and transformers in memory; weights read and written; text encoded. On one core of a 2020s server."""


class Extend(Stage):
    """Makes a model with a longer vocabulary."""

    produces: ClassVar[str] = "model"
    random: ClassVar[bool] = False

    kind: Literal["extend"] = "extend"
    start: Ref("model")  # type: ignore[valid-type]
    """Model to extend: an earlier stage, a folder, or `hf:org/name@revision`; a whole model, not an adapter."""
    tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), examples=[[" photosynthesis"]])
    """Words that become one token each, as they stand in text: with a blank in front where they follow one. Pieces on the way to
    a word become tokens too, and are counted."""
    vocab: Annotated[str | None, Accepts(("tokenizer",))] = None
    """A tokenizer of the same method, trained on the new text: its tokens are added in its order, the frequent first."""
    size: int | None = Field(None, ge=1, examples=[420])
    """Tokens in all that those of `vocab` may fill up to; more shorten text further, and each costs a row of the embedding that
    has to be learned. Unset: all of them."""
    special: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), examples=[["<|tool|>"]])
    """Marks that are one token wherever they stand; they begin as the mean of all tokens, since their spelling means nothing."""
    init: Literal["pieces", "mean", "similar"] = "pieces"
    """First weights of a new token: the mean of the `pieces` that its text was before, the `mean` of all tokens, or a weighted
    mean of the old tokens that stand among `similar` neighbours in `data` (pieces, for those seen less than five times). Default:
    pieces, which need no text. Where 600 of 1,300 tokens were new to a model of two layers, `similar` was best before training
    (3.41 bits a byte; pieces 3.57, mean 3.60), pieces after 60 steps (2.67; similar 2.70, mean 2.76; no new tokens 2.74)."""
    data: Refs | None = Field(None, examples=["./chats.jsonl"])
    """Text of the new kind, to tell fertility before and after, and for `similar`; nothing is trained. Unset: neither."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.tokens or self.special or self.vocab):
            raise PydanticCustomError("nothing", "nothing to add: give `tokens`, `vocab` or `special`")
        if self.init == "similar" and self.data is None:
            raise PydanticCustomError("similar", "`init: similar` compares tokens by the text that they stand in: give `data`")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        found = {}
        if self.vocab is None:
            found["size"] = "there is no `vocab` to take tokens from"
            if not self.tokens:
                found["init"] = "special tokens alone are added, which begin as the mean"
        for index, mix in enumerate(self.data or ()):
            found |= {
                f"data.{index}.{name}": "the text is only looked at, each row once"
                for name in ("weight", "epochs")
                if getattr(mix, name) is not None
            }
        return found

    def estimate(self, given: Given) -> Estimate:
        parent = given.parents.get(self.start, Facts(type="model"))
        donor = given.parents.get(self.vocab or "", Facts(type="tokenizer"))
        wanted = len(self.tokens) + len(self.special) + (donor.rows or 0.0)
        shape = parent.shape
        if shape is not None:
            size = max(shape.vocab + wanted if self.size is None else float(self.size), shape.vocab)
            shape = shape.model_copy(update={"vocab": int(size)})
        weights = 4.0 * shape.params if shape else (parent.bytes or 540e6)
        why = f"{bytes_text(weights)} of float32 weights" + ("" if shape else ", assumed")
        chars = MEASURED_CHARS if self.data else 0
        alike = 0.4e9 if self.init == "similar" else 0.0
        spans = (
            imports("torch and transformers"),
            Span("copy", 3 * weights / _COPY_BYTES_PER_S, "weights read twice and written"),
            Span("encode", (ALIKE_CHARS if alike else 2 * chars) / _CHARS_PER_S, "text encoded with both vocabularies"),
        )
        return estimate(
            sum(span.seconds for span in spans),
            f"{why}, read twice and written" + (", and text encoded" if chars else ""),
            _IMPORTS_BYTES + 1.5 * weights + alike + 6.0 * chars,
            f"{why} and a larger table" + (", vectors of tokens" if alike else ""),
            weights,
            why,
            {"": Facts(type=self.produces, tokens=parent.tokens, bytes=weights, shape=shape, context=parent.context)},
        )._replace(spans=spans, leaves=TORCH)

    def checks(self, run: Run) -> Iterator[Check]:
        """What would be added, without the model's weights."""
        from modelwright.nn.model import load_tokenizer

        backend = _backend(load_tokenizer(run.inputs[self.start].path))
        try:
            extension = self._extension(run, backend)
        except UserError as error:
            yield Check("tokens", False, f"{error.what}: {error.why}", error.fix)
            return
        known = sum(extension.already.values())
        detail = f"{len(extension.added)} tokens are added, {known} are there already"
        yield Check("tokens", bool(extension.added), detail, "" if extension.added else "the start knows them: train it as it is")
        if self.data is not None and extension.added:
            figures = _figures(backend, _of(extension), list(_specimens(self._records(run), CHECKED_CHARS)))
            new = figures["new_tokens_frac"]
            detail = f"{new:.2%} of the tokens of `data` would be new ones, {figures['fewer_tokens_frac']:.2%} fewer in all"
            ok = new > 0 or not (self.tokens or self.vocab)
            yield Check("new tokens are met", ok, detail, "" if ok else "choose tokens that stand in the text")

    # --- the work -------------------------------------------------------------------------------------

    def run(self, run: Run) -> Stats:
        from modelwright.nn import extend, heads
        from modelwright.nn import model as models

        head = heads.of_vocabulary(run.inputs[self.start].path)
        model, tokenizer = models.load(run.inputs[self.start].path, head=head)
        if head == "seq2seq":
            models.begin(model, tokenizer)
        backend = _backend(tokenizer)
        extension = self._extension(run, backend)
        if not extension.added:
            raise UserError(
                "no token is new", f"the start has all {sum(extension.already.values())}", "leave this stage out, or name others"
            )
        after = _of(extension)
        known = sorted(set(backend.get_vocab().values()))
        specimens = list(_specimens(self._records(run), MEASURED_CHARS)) if self.data else []
        texts = [item.text for item in specimens if item.text] or list(_NO_DATA)
        cut = [ids[:PROVED_TOKENS] for ids in _encoded(backend, texts) if len(ids) > 1][:PROVED_TEXTS]
        before = extend.said(model, cut, known)
        rows_before = model.get_input_embeddings().weight.shape[0]
        first = self._first(run, extension, after, known)
        rows = extend.widen(model, extension.size, known, [one.mixture for one in first])
        self._save(run, model, tokenizer, extension)
        _write_list(run, first, {number: token for token, number in backend.get_vocab().items()})
        del model
        again, tokenizer = models.load(run.out, head=head)
        proof = _proof(_Cut(backend, after, _backend(tokenizer)), _parts(texts), extension)
        proof |= _compared(before, extend.said(again, cut, known))
        run.log.event("proof", **proof)
        told = Counter(one.how for one in first)
        run.log.note(f"{len(first)} tokens added: " + ", ".join(f"{count} from {how}" for how, count in sorted(told.items())))
        if proof["mass_on_new"] > NOTED_MASS:
            run.log.note(f"new tokens take {proof['mass_on_new']:.0%} of the probability as they begin: train before use")
        size = sum(path.stat().st_size for path in run.out.glob("*.safetensors"))
        parent = run.facts.get(self.start)
        facts = Facts(
            type=self.produces,
            tokens=parent.tokens if parent else None,
            bytes=size,
            shape=shape_of(again.config),
            context=parent.context if parent else None,
            measured=True,
        )
        return {
            "vocab_before": _size(backend),
            "vocab_size": extension.size,
            "rows_before": rows_before,
            "rows": rows,
            "added": dict(sorted(Counter(token.origin for token in extension.added).items())),
            "already": dict(sorted(extension.already.items())),
            "left_out": dict(sorted(extension.left_out.items())),
            "initialised": dict(sorted(told.items())),
            "fertility": _figures(backend, after, specimens) if specimens else None,
            "proof": proof,
            "facts": {"": facts.model_dump(mode="json")},
        }

    def _extension(self, run: Run, backend: Any) -> Extension:
        donor = None
        if self.vocab is not None:
            from modelwright.nn.model import load_tokenizer

            donor = json.loads(_backend(load_tokenizer(run.inputs[self.vocab].path)).to_str())
        if self.size is not None and self.size <= (now := len(backend.get_vocab())):
            raise UserError(
                f"`size` {self.size} leaves no room", f"the start has {now} tokens", f"set `size` to more than {now}, or unset it"
            )
        return extended(backend, Wanted(self.tokens, self.special, donor, self.size))

    def _records(self, run: Run) -> Iterator[Record]:
        return chain.from_iterable(open_records(run.inputs[mix.ref], Log(None)) for mix in self.data or ())

    def _first(self, run: Run, extension: Extension, after: Any, known: list[int]) -> list[_First]:
        """First weights of each new token."""
        from modelwright.nn import extend

        alike: dict[int, Mixture] = {}
        if self.init == "similar":
            marks = {token["id"] for token in extension.tree["added_tokens"]}
            texts = [item.text for item in _specimens(self._records(run), ALIKE_CHARS)]
            new = [token.id for token in extension.added if token.pieces]
            alike = extend.similar(_encoded(after, texts), new, [i for i in known if i not in marks]) if new else {}

        def of(token: Added) -> _First:
            if token.id in alike:
                return _First(token, "similar", alike[token.id])
            pieces = token.pieces if self.init != "mean" else []
            mixture = extend.Mixture(token.id, pieces, [1 / len(pieces) for _ in pieces])
            return _First(token, "pieces" if pieces else "mean", mixture)

        return [of(token) for token in extension.added]

    def _save(self, run: Run, model: Any, tokenizer: Any, extension: Extension) -> None:
        """The model, and its tokenizer with the new tokens; transformers learns of the special ones, too."""
        from modelwright.nn import model as models

        models.save(model, tokenizer, run.out)
        stored = json.loads(tokenizer.backend_tokenizer.to_str())
        tree = {**extension.tree, "truncation": stored["truncation"], "padding": stored["padding"]}
        (run.out / "tokenizer.json").write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        if self.special:
            again = models.load_tokenizer(run.out)
            again.add_special_tokens({"extra_special_tokens": list(self.special)}, replace_extra_special_tokens=False)
            again.save_pretrained(run.out)


class _First(NamedTuple):
    """A new token and where its first weights come from."""

    token: Added
    how: str
    """`similar`, `pieces` or `mean`."""
    mixture: Mixture


class _Cut(NamedTuple):
    """Tokenizers."""

    before: Any
    after: Any
    opened: Any
    """The one that transformers opens from what was saved."""


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` in a transformers tokenizer, without stored cuts and padding."""
    from tokenizers import Tokenizer

    from modelwright.methods.tokenizers import bare_copy

    backend = getattr(tokenizer, "backend_tokenizer", None)  # only tokenizers written in Rust have one
    if not isinstance(backend, Tokenizer):
        raise UserError(
            "this tokenizer cannot be extended",
            f"{type(tokenizer).__name__} has no tokenizer.json",
            "use a model with a fast tokenizer",
        )
    return bare_copy(backend, True)


def _of(extension: Extension) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(extension.tree))


def _size(backend: Any) -> int:
    return int(max(backend.get_vocab().values())) + 1


def _encoded(backend: Any, texts: list[str]) -> list[list[int]]:
    return [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _specimens(records: Iterator[Record], chars: int) -> Iterator[Specimen]:
    """Texts to measure on, about so many characters of them."""
    for record in records:
        if chars <= 0:
            return
        chars -= len(content(record))
        yield specimen(record)


def _figures(before: Any, after: Any, specimens: list[Specimen]) -> dict[str, Any]:
    """Fertility by both tokenizers, and how much of the text the new tokens are."""
    found = [fertility(tokenizer, specimens) for tokenizer in (before, after)]
    kept = ("bytes_per_token", "tokens_per_word", "by_kind")
    ids = [token for text in _encoded(after, [item.text for item in specimens]) for token in text]
    old = _size(before)
    tokens = [figures["measured"]["tokens"] for figures in found]
    return {
        "before": {name: found[0][name] for name in kept},
        "after": {name: found[1][name] for name in kept},
        "measured": found[0]["measured"],
        "new_tokens_frac": round(sum(token >= old for token in ids) / max(len(ids), 1), 6),
        "fewer_tokens_frac": round(1 - tokens[1] / max(tokens[0], 1), 6),
    }


def _write_list(run: Run, first: list[_First], tokens: dict[int, str]) -> None:
    with (run.out / LIST).open("w", encoding="utf-8", newline="\n") as file:
        for token, how, mixture in first:
            ids = sorted(zip(mixture.ids, mixture.weights, strict=True), key=lambda pair: -pair[1])[:SHOWN]
            parts = [[tokens[number], round(weight, 4)] for number, weight in ids]
            line = {"id": token.id, "token": token.token, "origin": token.origin, "how": how, "of": parts}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parts(texts: list[str]) -> list[str]:
    """Lines of the texts, and their different words with the blanks before them: most lines of a new kind hold new tokens."""
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return [*lines, *dict.fromkeys(word for line in lines for word in _WORD.findall(line))]


def _proof(cut: _Cut, parts: list[str], extension: Extension) -> dict[str, Any]:
    """What has no new tokens is cut as before, and transformers cuts everything as the extended tokenizer does."""
    before, after = _encoded(cut.before, parts), _encoded(cut.after, parts)
    new = {token.id for token in extension.added}
    plain = [number for number, ids in enumerate(after) if new.isdisjoint(ids)]
    changed = next((number for number in plain if before[number] != after[number]), None)
    if changed is not None:
        raise UserError("text without new tokens is cut in another way", f"{parts[changed][:80]!r}", "report this as a bug")
    probes = [*parts, *(f"a{token.token}b" for token in extension.added if token.origin == "special")]
    if _encoded(cut.opened, probes) != _encoded(cut.after, probes):
        raise UserError(
            "transformers cuts text in another way than the extended tokenizer",
            "for some architectures it puts a tokenizer of its own in place of tokenizer.json",
            "use a model whose tokenizer transformers opens as it is (Llama, GPT-2, BERT)",
        )
    return {"parts": len(parts), "parts_without_new_tokens": len(plain), "parts_same": len(plain)}


def _compared(before: Any, after: Any) -> dict[str, Any]:
    """The old tokens' log-probabilities among themselves are the same; what is given to the new ones is told."""
    worst = max((abs(a - b) for a, b in zip(before.logps, after.logps, strict=True)), default=0.0)
    if not worst <= TOLERANCE_NATS:
        raise UserError(
            "the model says something else than before",
            f"a log-probability among the old tokens changed by {worst:.2g} nats",
            "its tables are not read as rows by id; another model is needed",
        )
    return {
        "tokens_compared": len(before.logps),
        "logprob_change_max": float(f"{worst:.2g}"),
        "mass_on_new": float(f"{max(after.mass_new - before.mass_new, 0.0):.4g}"),
    }
