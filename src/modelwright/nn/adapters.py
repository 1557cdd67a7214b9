"""LoRA adapters of several rows in one forward pass: every row's tokens get their own adapter's part.

An adapter's part of a layer is x A' B' (Hu et al. 2021, arXiv:2106.09685). Rows with different adapters share one pass as in
Chen et al. 2023, "Punica", arXiv:2310.18547, and Sheng et al. 2023, "S-LoRA", arXiv:2311.03285. The matrices of all adapters in
use lie side by side, and each token keeps only its own adapter's columns in between: two products a layer, however many adapters.

Shapes: T tokens, I and O a layer's inputs and outputs, N ranks of the adapters in use together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelwright.core import lora


class Adapter(NamedTuple):
    """Never changed: rows under way go on with theirs when another takes its name."""

    name: str
    layers: dict[str, tuple[Tensor, Tensor]]
    """By the path of a linear layer: [rank, I], and [O, rank] with the scale in it."""

    def __hash__(self) -> int:
        return id(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and other.layers is self.layers


def read(name: str, folder: Path, model: Any) -> Adapter:
    """An adapter in PEFT's layout; UserError for what is no LoRA of this model's linear layers."""
    linear = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
    layers = {}
    for path, pair in lora.read(folder).items():
        module = linear.get(path)
        if module is None or module is model.get_output_embeddings():
            why = f"{path or 'its first layer'} is no linear layer inside this model"
            raise lora.refused(folder, why, "attach it to the model it was trained on")
        if (len(pair.second_OR), pair.first_RI.shape[1]) != tuple(module.weight.shape):
            why = f"its sizes at {path} are not those of the model"
            raise lora.refused(folder, why, "attach it to the model it was trained on")
        first, second = (torch.from_numpy(part).to(module.weight.device) for part in pair)
        layers[path] = first, second
    return Adapter(name, layers)


class _Stack(NamedTuple):
    first_NI: Tensor
    second_ON: Tensor
    owner_N: Tensor
    """Which adapter in use a column is of."""


class Worn:
    """Adapters in the layers of one model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hooks: dict[str, Any] = {}
        self._used: list[Adapter] = []
        self._which_T: Tensor | None = None
        self._stacks: dict[tuple[str, torch.dtype], _Stack | None] = {}

    @contextmanager
    def on(self, adapters: Sequence[Adapter | None], hooked: bool) -> Iterator[None]:
        """`added` has these adapters, token by token of the stream. hooked: the model's own modules call it."""
        used = sorted({adapter for adapter in adapters if adapter is not None}, key=id)
        if used != self._used:
            self._used, self._stacks = used, {}
        if hooked:
            self._hook({path for adapter in used for path in adapter.layers})
        number = {adapter: at for at, adapter in enumerate(used)}
        which = [-1 if adapter is None else number[adapter] for adapter in adapters]
        self._which_T = torch.tensor(which, device=next(self._model.parameters()).device)
        try:
            yield
        finally:
            self._which_T = None

    def added(self, place: str, input_TI: Tensor, out_TO: Tensor) -> None:
        """Add to the output of a linear layer what each token's adapter adds to it."""
        stack = self._stack(place, input_TI.dtype)
        if stack is not None and self._which_T is not None:
            inner_TN = input_TI @ stack.first_NI.T * (self._which_T[:, None] == stack.owner_N)
            out_TO += inner_TN @ stack.second_ON.T

    def _stack(self, path: str, dtype: torch.dtype) -> _Stack | None:
        if (path, dtype) not in self._stacks:
            pairs = [(at, adapter.layers[path]) for at, adapter in enumerate(self._used) if path in adapter.layers]
            self._stacks[path, dtype] = None
            if pairs:
                owner = [at for at, (first, _) in pairs for _ in range(len(first))]
                first, second = (torch.cat([pair[part] for _, pair in pairs], part).to(dtype) for part in (0, 1))
                self._stacks[path, dtype] = _Stack(first, second, torch.tensor(owner, device=first.device))
        return self._stacks[path, dtype]

    def _hook(self, paths: set[str]) -> None:
        for path in paths - self._hooks.keys():

            def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
                if self._which_T is not None:
                    self.added(path, given[0], out)

            self._hooks[path] = self._model.get_submodule(path).register_forward_hook(hook)

    def close(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks, self._used, self._stacks = {}, [], {}
