"""Tensors without values: a training step of any size runs with its shapes alone, in no time and memory to speak of.

Over torch's `FakeTensorMode`. What is computed of numbers that decide sizes stays real: token ids, places, masks and all other
whole numbers that the data gives. So our own code runs as it is, and finds the same layouts as with a real model. Where it asks
for a value that is not there, it is told:

* of a float 1.0, of a truth value false, of a whole number 0: losses are numbers, and nothing lies out of range;
* of `topk` tokens, heads or experts, those in turn (`even`), so that a mixture of experts sends each of its experts the same
  number of tokens; or always the first ones (`one`), the most uneven routing that there is.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

REAL = frozenset({torch.int64, torch.int32, torch.bool})
"""Types of tensors that are real where no value without numbers enters them."""
_DEVICE = torch.ops.prim.device.default
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
_CPU = torch.device("cpu")
_DIRECT = frozenset(
    {
        *(
            aten.mm.default,
            aten.addmm.default,
            aten.bmm.default,
            aten.add.Tensor,
            aten.sub.Tensor,
            aten.mul.Tensor,
            aten.div.Tensor,
        ),
        *(aten.mul.Scalar, aten.add.Scalar, aten.neg.default, aten.pow.Tensor_Scalar, aten.rsqrt.default),
        *(aten.silu.default, aten.silu_backward.default, aten.gelu.default, aten.gelu_backward.default, aten.exp.default),
        *(aten.log.default, aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.cat.default, aten.clone.default),
        *(aten.t.default, aten.transpose.int, aten.view.default, aten._unsafe_view.default, aten.expand.default),
        *(aten.slice.Tensor, aten.select.int, aten.detach.default, aten.alias.default, aten.unsqueeze.default),
        *(aten.squeeze.dim, aten.permute.default, aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int),
    }
)
"""Operations whose results have the types, sizes and places that their arguments alone decide."""

Routing = Literal["even", "one"]


class Fake(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, new tensors have no values but for whole numbers; real ones that come in may be used beside them."""

    def __init__(self, routing: Routing = "even") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.routing = routing
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and a wrapper that says so would cost as much as an operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return func(*args)
        given = kwargs or {}
        if FakeTensor not in types:
            tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, given)))
            made = None if tensors else self._mode.dispatch(func, types, args, given)
            return made if isinstance(made, Tensor) and made.dtype not in REAL else func(*args, **given)
        if func is aten._local_scalar_dense.default:
            return _said(args[0].dtype)
        if (changed := _changed(func)) is not None:  # what is changed in place is there already
            return args[changed] if isinstance(changed, int) else given[changed] if changed else None
        if func in _DIRECT and not _holds_real(args):
            return self._direct(func, args, given)
        if func in _INDEXES:
            args = (args[0], _places(args[1]), *args[2:])
        if func is aten._grouped_mm.default:
            return _grouped(*args, **given)
        result: Any = self._mode.dispatch(func, types, args, given)
        self._mode.fake_tensor_converter.tensor_memo.clear()  # a weight that is remembered is not moved, even to where it is
        if func is aten.topk.default:
            return type(result)((result[0], self._chosen(result[1], args[0].shape[-1])))
        return result

    def _direct(self, func: Any, args: Any, given: Any) -> Any:
        """What `FakeTensorMode` makes of a plain operation in the end, at a third of the time."""
        with in_kernel_invocation_manager(self._mode):
            result = func(*args, **given)
        if isinstance(result, Tensor):
            return FakeTensor(self._mode, result, _CPU)
        return type(result)([FakeTensor(self._mode, one, _CPU) for one in result])

    def _chosen(self, like: Tensor, among: int) -> Tensor:
        """Real places in the last side of what was asked, which has so many."""
        count = like.shape[-1]
        turn = torch.arange(like.numel()) % among if self.routing == "even" else torch.arange(count).repeat(like.numel() // count)
        return turn.view(like.shape)


def _holds_real(values: Any) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if not isinstance(value, FakeTensor):
                return True
        elif isinstance(value, (list, tuple)) and _holds_real(value):
            return True
    return False


@cache
def _changed(func: Any) -> int | str | None:
    """Which argument an operation changes and returns, by its place or name; '': it returns nothing. None: its result is new."""
    schema = func._schema
    if not schema.returns:
        return "" if schema.is_mutable else None
    if len(schema.returns) > 1 or (alias := schema.returns[0].alias_info) is None or not alias.is_write:
        return None
    for place, one in enumerate(schema.arguments):
        if one.alias_info is not None and one.alias_info.before_set == alias.before_set:
            return one.name if one.kwarg_only else place
    return None


def _said(dtype: torch.dtype) -> float | bool | int:
    return 1.0 if dtype.is_floating_point else False if dtype == torch.bool else 0


def _places(indices: Any) -> list[Any]:
    """Real masks as the places that they choose: how many these are is a size."""
    found: list[Any] = []
    for index in indices:
        real = index is not None and not isinstance(index, FakeTensor)
        found += list(index.nonzero(as_tuple=True)) if real and index.dtype == torch.bool else [index]
    return found


def _grouped(left: Tensor, right: Tensor, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Tensor:
    """The result of a product of each group of rows, or of columns, with its own matrix; torch's own knows bfloat16 alone."""
    if right.ndim == 3:
        sizes = (*left.shape[:-1], right.shape[-1])
    else:
        sizes = (len(offs), left.shape[0], right.shape[-1]) if left.ndim == 2 else (*left.shape[:-1], right.shape[-1])
    return left.new_empty(sizes, dtype=out_dtype)
