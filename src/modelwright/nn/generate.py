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
from jinja2 import TemplateError

from modelwright.nn._kv import Runner, open_rows
from modelwright.nn.sample import GREEDY, Draw, Top, sample


class Step(NamedTuple):
    """One new token of one request."""

    key: int
    token: int
    logprob: float
    """Natural logarithm of its probability before temperature."""
    finish: str | None
    """`stop` when it is a stop token, `length` when no more are allowed, else None."""
    top: Top = ()


class Answer(NamedTuple):
    tokens: list[int]
    """With the stop token, where one ended it."""
    logprobs: list[float]
    finish: str


class _Row:
    """A request and how far it is."""

    def __init__(self, key: int, tokens: Sequence[int], max_tokens: int, draw: Draw) -> None:
        self.key, self.tokens, self.left, self.draw = key, list(tokens), max_tokens, draw
        self.random = random.Random(draw.seed)
        self.last = -1


class Decoder:
    """Decodes requests for one model. Not thread-safe: one thread owns it.

    model: a causal language model of transformers, in eval mode. stop: token ids that end an answer. max_batch: rows
    decoded together; raising it raises throughput, memory and the time of a step. prefill_tokens: prompt tokens taken
    in one step (one prompt may be longer); raising it makes prompts cheaper and the others' next token later.
    """

    def __init__(self, model: Any, stop: Iterable[int] = (), max_batch: int = 64, prefill_tokens: int = 2048) -> None:
        self.model, self.stop = model, frozenset(stop)
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self._attention = model.config._attn_implementation
        self._runner: Runner = open_rows(model, max_batch)
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []

    @property
    def why(self) -> str:
        """How the model is driven and why."""
        return self._runner.why

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    def add(self, key: int, tokens: Sequence[int], max_tokens: int, draw: Draw = GREEDY) -> None:
        """Queue a request under a key of the caller's; at least one token of prompt and of answer."""
        assert len(tokens) and max_tokens > 0
        self._waiting.append(_Row(key, tokens, max_tokens, draw))

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
        """One token for every row under way, prompts of new rows included."""
        entering = self._enter()
        if not self._rows and not entering:
            return []
        logits_RV = self._runner.forward([row.last for row in self._rows], [row.tokens for row in entering])
        self._rows += entering
        uniforms = [row.random.random() if row.draw.temperature > 0 else 0.0 for row in self._rows]
        steps = []
        for row, drawn in zip(self._rows, sample(logits_RV, [row.draw for row in self._rows], uniforms), strict=True):
            row.last, row.left = drawn.token, row.left - 1
            finish = "stop" if drawn.token in self.stop else "length" if row.left == 0 else None
            steps.append(Step(row.key, drawn.token, drawn.logprob, finish, drawn.top))
        for index in reversed(range(len(steps))):
            if steps[index].finish is not None:
                self._remove(index)
        return steps

    def _enter(self) -> list[_Row]:
        entering: list[_Row] = []
        tokens = 0
        while self._waiting and len(self._rows) + len(entering) < self.max_batch:
            tokens += len(self._waiting[0].tokens)
            if entering and tokens > self.prefill_tokens:
                break
            entering.append(self._waiting.popleft())
        return entering

    def _remove(self, index: int) -> None:
        self._runner.drop(index)  # the last row takes its place, here as there
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    @torch.inference_mode()
    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability (nats) of each token after the first given those before it."""
        long = [list(sequence) for sequence in tokens if len(sequence) > 1]
        found = iter(self._runner.logps(long, self.prefill_tokens))
        return [next(found).tolist() if len(sequence) > 1 else [] for sequence in tokens]

    def close(self) -> None:
        """Give the model back as it was."""
        self._rows, self._waiting = [], deque()
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
