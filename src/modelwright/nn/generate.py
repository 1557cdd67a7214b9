"""Decoding of many requests at once: a queue feeds rows, a finished row leaves at once and the next one enters.

Continuous batching after Yu et al. 2022 ("Orca: A Distributed Serving System for Transformer-Based Generative Models",
OSDI, iteration-level scheduling). Each request draws its own uniform numbers from its own seed, so what it gets does not depend
on what else is in the batch (beyond rounding, which depends on the batch's size in matrix products).

Shapes: R rows that give a token, V vocabulary.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor

from modelwright.nn._kv import open_rows
from modelwright.nn._runner import SHARE, Runner
from modelwright.nn.adapters import Adapter
from modelwright.nn.prefix import Finished, same
from modelwright.nn.sample import GREEDY, Draw, Drawn, Top, sample, verified
from modelwright.nn.search import Search, beside
from modelwright.nn.speculate import Ask, Guess, Proposal, Proposer

KEEP_BYTES = 256 * 2**20
"""Enough for some thousand tokens of a small model."""


class Step(NamedTuple):
    """One new token of one request."""

    key: int
    token: int
    logprob: float
    """Natural logarithm of its probability before temperature."""
    finish: str | None
    """`stop` when it is a stop token, `length` when no more are allowed, else None."""
    top: Top = ()
    proposed: int = 0
    """In the first token of a pass: how many were proposed behind it."""
    accepted: int = 0


class Answer(NamedTuple):
    tokens: list[int]
    """With the stop token, where one ended it."""
    logprobs: list[float]
    finish: str


class _Row:
    """A request and how far it is."""

    def __init__(self, number: int, key: int, tokens: Sequence[int], max_tokens: int, draw: Draw) -> None:
        self.number, self.key, self.left, self.draw = number, key, max_tokens, draw
        self.tokens = list(tokens)
        """Prompt and answer."""
        self.held = 0
        """So many of them are in the runner's memory."""
        self.adapter: Adapter | None = None
        self.proposal: Proposal | None = None
        self.random = random.Random(draw.seed)


class Decoder:
    """Decodes requests for one model. Not thread-safe: one thread owns it.

    model: a causal language model of transformers, in eval mode. stop: token ids that end an answer. max_batch: rows
    decoded together; raising it raises throughput, memory and the time of a step. prefill_tokens: prompt tokens taken
    in one step, a longer prompt in pieces; raising it makes prompts cheaper and the others' next token later. keep_bytes: memory
    of finished rows, for prompts that begin as they do; raising it keeps more of them.
    """

    def __init__(
        self,
        model: Any,
        stop: Iterable[int] = (),
        max_batch: int = 64,
        prefill_tokens: int = 2048,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.model, self.stop = model, frozenset(stop)
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self._attention = model.config._attn_implementation
        self.runner: Runner = open_rows(model, max_batch)
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._finished = Finished(keep_bytes)
        self._added = 0
        self.computed_tokens = 0
        """Tokens that went through the model since it was opened; a shared beginning counts once."""

    @property
    def why(self) -> str:
        """How the model is driven and why."""
        return self.runner.why

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    def add(
        self,
        key: int,
        tokens: Sequence[int],
        max_tokens: int,
        draw: Draw = GREEDY,
        adapter: Adapter | None = None,
        proposal: Proposal | None = None,
    ) -> None:
        """Queue a request under a key of the caller's; at least one token of prompt and of answer."""
        assert len(tokens) and max_tokens > 0
        self._added += 1
        row = _Row(self._added, key, tokens, max_tokens, draw)
        row.adapter, row.proposal = adapter, proposal
        self._waiting.append(row)

    @torch.inference_mode()
    def cancel(self, key: int) -> None:
        """Forget a request, waiting or under way."""
        self._waiting = deque(row for row in self._waiting if row.key != key)
        for index, row in enumerate(self._rows):
            if row.key == key:
                self._remove(index)
                return

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """At least one token for every row whose prompt is done, and a piece of the prompts of the others."""
        self._enter()
        if not self._rows:
            return []
        pieces = self._pieces()
        guesses = self._guesses(pieces)
        ends = [row.held + len(piece) == len(row.tokens) for row, piece in zip(self._rows, pieces, strict=True)]
        new = [[*piece, *guess.tokens] for piece, guess in zip(pieces, guesses, strict=True)]
        ask = [1 + len(guess.tokens) if end else 0 for guess, end in zip(guesses, ends, strict=True)]
        seen = self.runner.forward(new, ask)
        self.computed_tokens += sum(map(len, new))
        for row, piece in zip(self._rows, pieces, strict=True):
            row.held += len(piece)
        steps = self._draw(seen.logits_RV, ask, guesses)
        for index in reversed(range(len(steps))):
            if steps[index] and steps[index][-1].finish is not None:
                self._remove(index)
        return [step for of_row in steps for step in of_row]

    def _pieces(self) -> list[list[int]]:
        """What each row puts into the next pass: its newest token, or as much of its prompt as there is room for."""
        room, pieces = self.prefill_tokens, {}
        for row in sorted(self._rows, key=lambda row: row.number):
            waiting = len(row.tokens) - row.held
            taken = waiting if waiting == 1 else min(waiting, room)
            room -= taken if waiting > 1 else 0
            pieces[row.number] = row.tokens[row.held : row.held + taken]
        return [pieces[row.number] for row in self._rows]

    def _guesses(self, pieces: list[list[int]]) -> list[Guess]:
        """What is proposed behind each row's newest token."""
        asks: dict[Proposer, list[Ask]] = {}
        for row, piece in zip(self._rows, pieces, strict=True):
            most = min(row.proposal.tokens, row.left - 1) if row.proposal is not None else 0
            if most > 0 and row.held + len(piece) == len(row.tokens):
                assert row.proposal is not None
                asks.setdefault(row.proposal.proposer, []).append(Ask(row.number, row.tokens, most, row.draw))
        found = {}
        for proposer, wanted in asks.items():
            for ask, guess in zip(wanted, proposer.propose(wanted), strict=True):
                found[ask.key] = guess
        return [found.get(row.number, Guess([])) for row in self._rows]

    def _draw(self, logits_RV: Tensor, ask: list[int], guesses: list[Guess]) -> list[list[Step]]:
        """Tokens of each row: one, and one more for each proposal that is what the row would have drawn."""
        starts = [sum(ask[:index]) for index in range(len(ask))]
        steps: list[list[Step]] = [[] for _ in ask]
        going = [index for index, asked in enumerate(ask) if asked]
        place = 0
        while going:
            for index, drawn in zip(going, self._drawn(logits_RV, going, starts, guesses, place), strict=True):
                row, proposed = self._rows[index], guesses[index].tokens
                row.tokens.append(drawn.token)
                row.left -= 1
                finish = "stop" if drawn.token in self.stop else "length" if row.left == 0 else None
                steps[index].append(Step(row.key, drawn.token, drawn.logprob, finish, drawn.top))
                if finish is None and place < len(proposed) and proposed[place] == drawn.token:
                    row.held += 1
            going = [index for index in going if self._rows[index].held == len(self._rows[index].tokens)]
            place += 1
        for index, guess in enumerate(guesses):
            if guess.tokens:
                self.runner.rewind(index, self._rows[index].held)
                taken = len(steps[index]) - 1
                steps[index][0] = steps[index][0]._replace(proposed=len(guess.tokens), accepted=taken)
        return steps

    def _drawn(self, logits_RV: Tensor, going: list[int], starts: list[int], guesses: list[Guess], place: int) -> list[Drawn]:
        """The next token of these rows, `place` tokens behind their newest."""
        found: dict[int, Drawn] = {}
        for index in going:
            row, guess = self._rows[index], guesses[index]
            if place < len(guess.prob_V):
                logits_V, pair = logits_RV[starts[index] + place], (row.random.random(), row.random.random())
                found[index] = verified(logits_V, row.draw, guess.tokens[place], guess.prob_V[place], pair)
        others = [index for index in going if index not in found]
        rows = [self._rows[index] for index in others]
        uniforms = [row.random.random() if row.draw.temperature > 0 else 0.0 for row in rows]
        if others:
            places = [starts[index] + place for index in others]
            chosen_RV = logits_RV if len(places) == len(logits_RV) else logits_RV[places]
            found.update(zip(others, sample(chosen_RV, [row.draw for row in rows], uniforms), strict=True))
        return [found[index] for index in going]

    def _enter(self) -> None:
        """Rows for requests that wait. One whose beginning another row is about to compute waits for that."""
        held_back: list[_Row] = []
        while self._waiting and len(self._rows) < self.max_batch and len(held_back) < self.max_batch:
            row = self._waiting.popleft()
            if not self._begin(row):
                held_back.append(row)
        self._waiting.extendleft(reversed(held_back))

    def _begin(self, row: _Row) -> bool:
        """Take what of its prompt is already computed, at the most all but the last token, whose outcome is wanted."""
        prompt = row.tokens[:-1]
        if self.runner.keeps and len(prompt) >= SHARE:
            like = [other for other in self._rows if other.adapter == row.adapter]
            common = {other.number: same(prompt, other.tokens) for other in like}
            there = {other.number: min(common[other.number], other.held) for other in like}
            kept = self._finished.best(prompt, row.adapter)
            length = max([0 if kept is None else kept[0], *there.values()])
            coming = [common[other.number] for other in like if len(other.tokens) - other.held > 1 and other.number < row.number]
            if max(coming, default=0) >= max(length + 1, SHARE):
                return False
            if length >= SHARE:
                source = next((index for index, other in enumerate(self._rows) if there.get(other.number) == length), None)
                if source is not None:
                    self.runner.fork(source, length)
                else:
                    assert kept is not None
                    self.runner.again(kept[1], length)
                row.held = length
        if not row.held:
            self.runner.begin(row.adapter)
        self._rows.append(row)
        return True

    def _remove(self, index: int) -> None:
        row = self._rows[index]
        if row.proposal is not None:
            row.proposal.proposer.forget(row.number)
        if self.runner.keeps and row.held >= SHARE and self._finished.most_bytes:
            self._finished.add(row.tokens[: row.held], row.adapter, self.runner.keep(index))
        self.runner.drop(index)  # the last row takes its place, here as there
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    @torch.inference_mode()
    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability (nats) of each token after the first given those before it."""
        long = [list(sequence) for sequence in tokens if len(sequence) > 1]
        found = iter(self.runner.logps(long, self.prefill_tokens))
        return [next(found).tolist() if len(sequence) > 1 else [] for sequence in tokens]

    @torch.inference_mode()
    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the mean of what the head sees of its tokens, of length 1."""
        states = self.runner.states(tokens, self.prefill_tokens)
        return [F.normalize(hidden_TE.float().mean(0), dim=0).tolist() for hidden_TE in states]

    def search(self, tokens: Sequence[int], adapter: Adapter | None = None, hidden: bool = False) -> Search:
        """Branches of one prompt, in a memory of their own; see `Search`."""
        return Search(beside(self.runner), tokens, adapter, hidden)

    def close(self) -> None:
        """Give the model back as it was."""
        self._rows, self._waiting, self._finished = [], deque(), Finished(0)
        self.runner.worn.close()
        self.model.set_attn_implementation(self._attention)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: Iterable[int] = (),
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    max_batch: int = 64,
    each: Callable[[Step], None] | None = None,
) -> list[Answer]:
    """Answers to all prompts, in order; request i draws from seed + i. `each` sees every token as it comes.

    The model is left as it was, so this serves a model that is being trained, too.
    """
    was_training = model.training
    model.eval()
    decoder = Decoder(model, stop, max_batch)
    answers = [Answer([], [], "length") for _ in prompts]
    try:
        for key, prompt in enumerate(prompts):
            decoder.add(key, prompt, max_tokens, Draw(temperature, top_p, top_k, seed + key))
        while decoder.busy:
            for step in decoder.step():
                answers[step.key].tokens.append(step.token)
                answers[step.key].logprobs.append(step.logprob)
                if step.finish is not None:
                    answers[step.key] = answers[step.key]._replace(finish=step.finish)
                if each is not None:
                    each(step)
    finally:
        decoder.close()
        model.train(was_training)
    return answers


def chat_template(tokenizer: Any) -> str:
    """The template's source; of several, the one called `default`; '' where there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or ""


def end_tokens(tokenizer: Any, *named: int | Sequence[int] | None) -> frozenset[int]:
    """Tokens that end an answer: those that the model's settings name, the tokenizer's end, and the mark that its
    template puts after an assistant's turn."""
    stop: set[int] = set()
    for tokens in (tokenizer.eos_token_id, *named):
        stop.update([tokens] if isinstance(tokens, int) else tokens or ())
    if template := chat_template(tokenizer):
        answer = "an answer"
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError):  # it wants other chats; the settings have to do
            return frozenset(stop)
        behind = text[text.rfind(answer) + len(answer) :] if answer in text else ""
        first = tokenizer.encode(behind, add_special_tokens=False)[:1]
        stop.update(token for token in first if token in tokenizer.added_tokens_decoder)
    return frozenset(stop)
