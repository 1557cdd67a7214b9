"""Decoding of many requests at once: a queue feeds rows, a finished row leaves at once and the next one enters.

Continuous batching after Yu et al. 2022 ("Orca: A Distributed Serving System for Transformer-Based Generative Models",
OSDI, iteration-level scheduling). Nucleus sampling after Holtzman et al. 2019, arXiv:1904.09751. Each request draws its
own uniform numbers from its own seed and picks by the inverse of its cumulative distribution, so what it gets does not
depend on what else is in the batch (beyond rounding, which depends on the batch's size in matrix products).

Shapes: R rows that give a token, V vocabulary, M candidates kept of it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from modelwright.nn._kv import Runner, open_rows

_CANDIDATES = 1024
"""Nucleus sampling looks at this many of the likeliest tokens first; to sort a whole vocabulary costs more than the model."""


class Step(NamedTuple):
    """One new token of one request."""

    key: int
    token: int
    logprob: float
    """Natural logarithm of its probability before temperature."""
    finish: str | None
    """`stop` when it is a stop token, `length` when no more are allowed, else None."""


class Answer(NamedTuple):
    tokens: list[int]
    """With the stop token, where one ended it."""
    logprobs: list[float]
    finish: str


class _Row:
    """A request and how far it is."""

    def __init__(
        self, key: int, tokens: Sequence[int], max_tokens: int, temperature: float, top_p: float, top_k: int, seed: int
    ) -> None:
        self.key, self.tokens, self.left = key, list(tokens), max_tokens
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.random = random.Random(seed)
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

    def add(
        self,
        key: int,
        tokens: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> None:
        """Queue a request under a key of the caller's; at least one token of prompt and of answer."""
        assert len(tokens) and max_tokens > 0
        self._waiting.append(_Row(key, tokens, max_tokens, temperature, top_p, top_k, seed))

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
        tokens, logprobs = _sample(logits_RV, self._rows)
        steps = []
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            row.last, row.left = token, row.left - 1
            finish = "stop" if token in self.stop else "length" if row.left == 0 else None
            steps.append(Step(row.key, token, logprob, finish))
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


def _sample(logits_RV: Tensor, rows: list[_Row]) -> tuple[list[int], list[float]]:
    """A token of each row, and its log-probability before temperature."""
    token_R = logits_RV.argmax(-1)
    warm = [index for index, row in enumerate(rows) if row.temperature > 0]
    plain = [index for index in warm if rows[index].top_k <= 0 and rows[index].top_p >= 1]
    cut = [index for index in warm if rows[index].top_k > 0 or rows[index].top_p < 1]
    for chosen, pick in ((plain, _draw), (cut, _draw_cut)):
        if chosen:
            temperature_R1 = torch.tensor([[rows[index].temperature] for index in chosen], device=logits_RV.device)
            uniform_R1 = torch.tensor(
                [[rows[index].random.random()] for index in chosen], dtype=torch.float64, device=logits_RV.device
            )
            token_R[chosen] = pick(logits_RV[chosen] / temperature_R1, uniform_R1, [rows[index] for index in chosen])
    logp_R = logits_RV.gather(1, token_R[:, None])[:, 0] - logits_RV.logsumexp(-1)
    return token_R.tolist(), logp_R.tolist()


def _draw(logits_RV: Tensor, uniform_R1: Tensor, rows: list[_Row]) -> Tensor:
    return _inverse(logits_RV.double().softmax(-1), uniform_R1)[:, 0]


def _draw_cut(logits_RV: Tensor, uniform_R1: Tensor, rows: list[_Row]) -> Tensor:
    """Top-k first, then the nucleus of what is left, as transformers does."""
    vocab = logits_RV.shape[1]
    most = min(vocab, max([_CANDIDATES, *(row.top_k for row in rows)]))
    top_RM, id_RM = logits_RV.topk(most, -1)
    keep = torch.tensor([[row.top_k if 0 < row.top_k < vocab else vocab] for row in rows], device=logits_RV.device)
    limit = torch.tensor([[row.top_p] for row in rows], dtype=torch.float64, device=logits_RV.device)
    # what a row without top-k divides by is the whole vocabulary's sum, also when only the candidates are sorted
    whole_R1 = torch.where(
        keep < vocab,
        top_RM.double().masked_fill(torch.arange(most, device=keep.device) >= keep, float("-inf")).logsumexp(-1, True),
        logits_RV.double().logsumexp(-1, True),
    )
    prob_RM = (top_RM.double() - whole_R1).exp()
    if most < vocab and bool(((prob_RM.sum(-1, keepdim=True) < limit) & (keep > most)).any()):
        top_RM, id_RM = logits_RV.sort(-1, descending=True)
        prob_RM = (top_RM.double() - whole_R1).exp()
    place_M = torch.arange(prob_RM.shape[1], device=keep.device)
    before_RM = prob_RM.cumsum(-1) - prob_RM
    prob_RM = prob_RM.masked_fill((place_M >= keep) | ((before_RM >= limit) & (place_M > 0)), 0.0)
    return id_RM.gather(1, _inverse(prob_RM / prob_RM.sum(-1, keepdim=True), uniform_R1))[:, 0]


def _inverse(prob_RM: Tensor, uniform_R1: Tensor) -> Tensor:
    """[R, 1] the first place whose cumulative probability exceeds the draw."""
    total_RM = prob_RM.cumsum(-1)
    place_R1 = torch.searchsorted(total_RM, uniform_R1 * total_RM[:, -1:], right=True)
    return place_R1.clamp_(max=prob_RM.shape[1] - 1)


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
            decoder.add(key, prompt, max_tokens, temperature, top_p, top_k, seed + key)
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
