"""Asking a model: every different question once, long texts in windows of the context, everything cut or left out counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.measure import Laps
from modelwright.core.record import Message
from modelwright.methods.decoders import Decoder
from modelwright.methods.engines import Engine, Request, Sampling, request_of
from modelwright.methods.tasks import Answer, Generate, Likelihood
from modelwright.methods.templates import TEMPLATES, render

Ask = Generate | Likelihood
PLAIN_STOP = ("\nQuestion:",)
"""Without a template nothing marks the end of a turn; the next question does."""


def key(ask: Ask) -> str:
    """The same for the same question: such are asked once, whichever tasks score the answer."""
    tree = [type(ask).__name__, *ask]
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


class Piece(NamedTuple):
    """Tokens to score at once; the last `scored` of them count."""

    tokens: list[int]
    scored: int


def windows(ids: Sequence[int], first: int, context: int) -> list[Piece]:
    """All tokens from place `first` on, each scored once with at least half a context before it where there is as much.

    The strided evaluation of https://huggingface.co/docs/transformers/perplexity with a stride of half the context.
    """
    pieces = []
    while first < len(ids):
        end = min(len(ids), max(0, first - context // 2) + context)
        pieces.append(Piece(list(ids[max(0, end - context) : end]), end - first))
        first = end
    return pieces


class Prompter:
    """Chats as token ids for one engine, through its template or, where it has none, as plain question and answer."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.template = "chat" in engine.capabilities
        self.stop = () if self.template else PLAIN_STOP
        self._plain: str = "" if self.template else TEMPLATES.load("plain")().jinja()  # type: ignore[attr-defined]
        self.whole = "messages" in engine.capabilities
        """The engine takes questions whole and has the tokens to itself."""
        self._space = self._space_before_answer() if self.template and not self.whole else " "
        self._begin = [] if self.whole else engine.encode("")  # what the tokenizer puts before every text

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Up to and with the header of the answer."""
        if self.template:
            return self.engine.render(messages)
        return self.engine.encode(render(self._plain, messages, True))

    def request(self, ask: Generate) -> Request:
        sampling = Sampling(ask.max_tokens, stop=self.stop if ask.messages else ())
        if not ask.messages:
            return request_of(self.engine, ask.text, sampling)
        return request_of(self.engine, ask.messages if self.template else render(self._plain, ask.messages, True), sampling)

    def answer(self, text: str) -> list[int]:
        """The answer as the template would write it behind that header, without the mark that ends it."""
        ids = self.engine.encode(self._space + text.strip())
        return ids[len(self._begin) :] if ids[: len(self._begin)] == self._begin else ids

    def _space_before_answer(self) -> str:
        """White space that the template itself puts between header and answer, which tokenizers join to the first word."""
        chat: list[Message] = [{"role": "user", "content": "Hello"}]
        try:
            header, whole = (self.engine.render(m) for m in (chat, [*chat, {"role": "assistant", "content": "Yes"}]))
        except UserError:
            return ""  # a template that refuses to go on after an answer
        before = self.engine.decode(whole[len(header) :]).partition("Yes")[0] if whole[: len(header)] == header else ""
        return before if before.isspace() else ""


def answers(
    engine: Engine,
    asks: Mapping[str, Ask],
    decoder: Decoder,
    batch: int,
    log: Log,
    label: str,
    counts: Counter[str],
    laps: Laps | None = None,
) -> Iterator[tuple[str, Answer]]:
    """An answer for each of `asks`, longest prompts first so that a batch holds like lengths and lack of memory shows early. What
    they and the probabilities of texts take goes into `laps`."""
    laps = laps or Laps()
    prompter = Prompter(engine)
    if not prompter.template and any(ask.messages for ask in asks.values()):
        log.note(f"{label} has no chat template; its questions are put as `Question: … Answer:` in plain words")
    generate = {k: a for k, a in asks.items() if isinstance(a, Generate)}
    likely = {k: a for k, a in asks.items() if isinstance(a, Likelihood)}
    if likely and "score" not in engine.capabilities:
        raise UserError(
            f"the engine of {label} gives no probabilities of a text, which a likelihood task needs",
            fix="take `engine: native`, or leave the likelihood tasks (perplexity) out",
        )
    yield from log.track(_generated(prompter, generate, decoder, batch, counts), "answers", len(generate), f"{label}: answers")
    laps.done("answers")
    yield from log.track(_scored(prompter, likely, batch, counts), "texts", len(likely), f"{label}: probabilities")
    laps.done("texts")


def _generated(
    prompter: Prompter, asks: Mapping[str, Generate], decoder: Decoder, batch: int, counts: Counter[str]
) -> Iterator[tuple[str, Answer]]:
    engine, waiting = prompter.engine, []
    for name, ask in asks.items():
        request = prompter.request(ask)
        room = ask.max_tokens if prompter.whole else min(ask.max_tokens, engine.context - len(request.tokens))
        counts["prompt_tokens"] += len(request.tokens)
        if room < 1 or not (request.tokens or prompter.whole):
            counts["prompts_without_room"] += 1
            yield name, Answer()  # a model that cannot take the question has no answer
            continue
        counts["answers_with_less_room"] += room < ask.max_tokens
        waiting.append((name, request._replace(sampling=request.sampling._replace(max_tokens=room))))
    waiting.sort(key=lambda entry: -len(entry[1].tokens))
    for begin in range(0, len(waiting), batch):
        chunk = waiting[begin : begin + batch]
        for (name, _), found in zip(chunk, decoder.run_all(engine, [request for _, request in chunk]), strict=True):
            done = found.completions[0]
            counts["answers"] += 1
            counts["tokens_spent"] += found.tokens_spent
            counts["answers_cut_off"] += done.finish == "length"
            written = done.usage.answer_tokens if done.usage else len(done.tokens)
            counts["prompt_tokens"] += done.usage.prompt_tokens if done.usage else 0
            counts["answer_tokens"] += written
            yield name, Answer(done.text, done.logprobs, written)


def _scored(prompter: Prompter, asks: Mapping[str, Likelihood], batch: int, counts: Counter[str]) -> Iterator[tuple[str, Answer]]:
    engine = prompter.engine
    ready: list[tuple[str, str, list[Piece]]] = []
    for name, ask in asks.items():
        if ask.messages:
            text = str(ask.messages[-1]["content"]).strip()
            prompt = prompter.prompt(ask.messages[:-1])
            ids, first = prompt + prompter.answer(text), len(prompt)
        else:
            ids, first = engine.encode(ask.text), 1
            text = ask.text.removeprefix(engine.decode(ids[:1]))  # nothing tells the first token, unless the tokenizer has a mark
        pieces = windows(ids, max(first, 1), engine.context)
        counts["texts"] += 1
        counts["texts_in_windows"] += len(pieces) > 1
        counts["windows"] += len(pieces)
        if ask.messages and pieces:
            counts["prompt_tokens_cut"] += max(0, len(prompt) + pieces[0].scored - len(pieces[0].tokens))
        ready.append((name, text, pieces))
    ready.sort(key=lambda entry: -sum(len(piece.tokens) for piece in entry[2]))
    for begin in range(0, len(ready), batch):
        chunk = ready[begin : begin + batch]
        found = iter(engine.score([piece.tokens for _, _, pieces in chunk for piece in pieces]))
        for name, text, pieces in chunk:
            logps = [logp for piece in pieces for logp in next(found)[-piece.scored :]]
            counts["scored_tokens"] += len(logps)
            yield name, Answer(text, tuple(logps), len(logps))


def describe(engine: Engine) -> str:
    """`chat template` or `plain question and answer`, for the stats."""
    return "chat template" if "chat" in engine.capabilities else "plain question and answer"
