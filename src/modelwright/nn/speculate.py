"""What proposes tokens for a model to verify: the row's own past, a smaller model, or the model without some of its layers.

The model sees all proposals of a row in one forward pass and takes the first ones that it would have drawn itself
(Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318; the rule is in `modelwright.nn.sample`). Prompt
lookup: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding. Layer skip: Zhang et al. 2024, "Draft & Verify",
arXiv:2309.08168.

Shapes: V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modelwright.core.errors import UserError
from modelwright.nn._kv import Modules, Rows, open_rows
from modelwright.nn._runner import Runner
from modelwright.nn.lean import lean_of
from modelwright.nn.model import load
from modelwright.nn.prefix import same
from modelwright.nn.sample import Draw, distribution, drawn_from


class Ask(NamedTuple):
    """A row that wants proposals."""

    key: int
    tokens: list[int]
    """All of it; not to be changed."""
    most: int
    draw: Draw


class Guess(NamedTuple):
    tokens: list[int]
    prob_V: Sequence[Tensor] = ()
    """The distribution that each was drawn from; none where they were not drawn."""


class Proposer(Protocol):
    """For all rows that share it. Proposals depend on the row alone, never on what else is asked."""

    def propose(self, asks: Sequence[Ask]) -> list[Guess]: ...
    def forget(self, key: int) -> None:
        """A row has ended."""
        ...


class Proposal(NamedTuple):
    """How a request is sped up."""

    proposer: Proposer
    tokens: int
    """Proposals a pass."""


class Lookup:
    """What followed the newest tokens of a row where they last stood before."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram

    def propose(self, asks: Sequence[Ask]) -> list[Guess]:
        return [Guess(_continued(ask.tokens, self._ngram, ask.most)) for ask in asks]

    def forget(self, key: int) -> None:
        """Nothing is kept."""


def _continued(tokens: list[int], ngram: int, most: int) -> list[int]:
    for length in range(min(ngram, len(tokens) - 1), 0, -1):
        wanted, last = tokens[-length:], tokens[-1]
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - 1] == last and tokens[end - length : end] == wanted:
                return tokens[end : end + most]
    return []


class Draft:
    """A quicker model, decoding all rows that ask, batched. Warm rows are drawn from its own distribution."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._keys: list[int] = []
        self._tokens: list[list[int]] = []
        """What the runner holds of each row."""
        self._random: dict[int, random.Random] = {}

    def propose(self, asks: Sequence[Ask]) -> list[Guess]:
        for ask in asks:
            if ask.key not in self._random:
                self._random[ask.key] = random.Random(f"draft {ask.draw.seed}")
                self._keys.append(ask.key)
                self._tokens.append([])
                self._runner.begin()
        rows = [self._keys.index(ask.key) for ask in asks]
        new: dict[int, list[int]] = {}
        for row, ask in zip(rows, asks, strict=True):
            begun = same(self._tokens[row], ask.tokens[:-1])
            if begun < len(self._tokens[row]):
                self._runner.rewind(row, begun)
                del self._tokens[row][begun:]
            new[row] = ask.tokens[begun:]
        found: list[tuple[list[int], list[Tensor]]] = [([], []) for _ in asks]
        for _ in range(max((ask.most for ask in asks), default=0)):
            going = {row: at for at, row in enumerate(rows) if len(found[at][0]) < asks[at].most}
            seen = self._runner.forward([new[row] if row in going else [] for row in range(len(self._keys))])
            for logits_V, row in zip(seen.logits_RV, sorted(going), strict=True):
                at = going[row]
                self._tokens[row] += new[row]
                ask, (tokens, probs) = asks[at], found[at]
                if ask.draw.temperature > 0:
                    prob_V = distribution(logits_V, ask.draw._replace(rule=None))
                    probs.append(prob_V)
                    tokens.append(drawn_from(prob_V, self._random[ask.key].random()))
                else:
                    tokens.append(int(logits_V.argmax()))
                new[row] = tokens[-1:]
        return [Guess(tokens, probs) for tokens, probs in found]

    def forget(self, key: int) -> None:
        if self._random.pop(key, None) is None:
            return
        row = self._keys.index(key)
        self._runner.drop(row)
        self._keys[row], self._tokens[row] = self._keys[-1], self._tokens[-1]
        self._keys.pop()
        self._tokens.pop()


def without_layers(model: Any, skipped: Sequence[int]) -> Any:
    """The same model, the same weights, with some of its layers left out; none named: every second one, first and last kept."""
    layers = model.base_model.layers
    skipped = list(skipped) or list(range(1, len(layers) - 1, 2))
    if not all(0 <= layer < len(layers) for layer in skipped) or not 0 < len(set(skipped)) < len(layers):
        raise UserError(
            f"the draft cannot leave out the layers {skipped}",
            f"the model has the layers 0 to {len(layers) - 1}, and one has to go and one to stay",
            "name some of them in `layers`, or none for every second one",
        )
    thin, inner, config = copy.copy(model), copy.copy(model.base_model), copy.copy(model.config)
    config.num_hidden_layers = len(layers) - len(set(skipped))
    kept = [layer for layer in range(len(layers)) if layer not in skipped]
    inner._modules = {**inner._modules, "layers": nn.ModuleList([layers[layer] for layer in kept])}
    thin._modules = {**thin._modules, model.base_model_prefix: inner}
    thin.config = inner.config = config
    return thin


def layer_skip(runner: Runner, skipped: Sequence[int]) -> Draft:
    """A draft of the runner's own model."""
    if not isinstance(runner, Rows):
        raise UserError("this model cannot leave out layers to draft its answers", runner.why, "use `lookup` or a draft model")
    thin = without_layers(runner.model, skipped)
    trunk = None if isinstance(runner.trunk, Modules) else lean_of(thin)
    return Draft(Rows(thin, runner.most_rows, trunk or Modules(thin)))


@torch.inference_mode()
def draft(runner: Runner, tokenizer: Any, folder: Path) -> Draft:
    """A draft of another model, which has to have the same tokens."""
    of = runner.model
    model, theirs = load(folder, of.dtype)
    sizes = [one.get_input_embeddings().weight.shape[0] for one in (of, model)]
    if sizes[0] != sizes[1] or theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{folder.name} cannot draft for this model",
            f"it has other tokens ({sizes[1]}; the model {sizes[0]})",
            "name a smaller model that was trained with the same tokenizer",
        )
    return Draft(open_rows(model.to(of.device), runner.most_rows))
