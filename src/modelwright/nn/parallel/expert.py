"""The axis `expert`: each process keeps some experts of every layer and sees its own rows; tokens travel to the experts.

Source: Lepikhin et al. 2020, "GShard", arXiv:2006.16668, section 3.2 (two all-to-all exchanges a layer). Differs: nothing is cut
to a capacity; as many tokens go to a process as its experts were chosen for, so that every layout computes what one process
does. An expert's gradient is then already a sum over the tokens of all processes of the axis.
"""

# Shape suffixes: T tokens of this process, J choices of an expert (some a token), E experts, e those of this process, P
# processes, R tokens that have come here, D model width, I width of an expert.

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import linear

from modelwright.core.errors import UserError
from modelwright.nn.experts import FAMILIES
from modelwright.nn.model import core
from modelwright.nn.parallel import messages

WEIGHTS = ("gate_up_proj", "down_proj")
"""Of transformers' modules that hold the experts of a layer: [E, 2 I, D] and [E, D, I]."""


def divide(model: Any, mesh: DeviceMesh) -> None:
    """Keep this process' experts of every layer and let tokens travel; UserError for a model without experts."""
    config = core(model).config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{type(core(model)).__name__} cannot be trained with `parallel: expert`",
            "it has no experts, or how they are called is not known here",
            f"divide by `data` or `shard`, or start from a model of type {', '.join(sorted(FAMILIES))}",
        )
    if config.num_experts % mesh.size():
        raise UserError(
            f"{config.num_experts} experts cannot be divided over {mesh.size()} processes",
            "each process keeps as many as any other",
            "choose a divisor for `parallel: expert`",
        )
    for module in core(model).modules():
        own = dict(module.named_parameters(recurse=False))
        if own.keys() == set(WEIGHTS):
            for name, weight in own.items():
                part = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
                setattr(module, name, nn.Parameter(part, requires_grad=weight.requires_grad))
            module.forward = _Layer(module, mesh.get_group())


class _Layer:
    """The forward pass of the experts of one layer."""

    def __init__(self, module: Any, group: dist.ProcessGroup) -> None:
        self.module, self.group, self.processes = module, group, dist.get_world_size(group)

    def __call__(self, hidden_TD: Tensor, chosen_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """What transformers' own computes: the sum of what its experts make of a token, times their weights."""
        count_E = torch.bincount(chosen_TK.flatten(), minlength=self.module.num_experts)
        kept = len(count_E) // self.processes
        equal = [kept] * self.processes
        count_Pe = messages.send(count_E, equal, equal, self.group).view(self.processes, kept)
        sent, received = count_E.view(self.processes, kept).sum(1).tolist(), count_Pe.sum(1).tolist()
        order_J = chosen_TK.flatten().argsort(stable=True)
        token_J = order_J // chosen_TK.shape[1]
        come_RD = messages.exchanged(hidden_TD.index_select(0, token_J), sent, received, self.group)
        expert_R = torch.arange(kept, device=count_E.device).repeat(self.processes).repeat_interleave(count_Pe.flatten())
        order_R = expert_R.argsort(stable=True)
        made_RD = self._experts(come_RD.index_select(0, order_R), count_Pe.sum(0).tolist())
        home_JD = messages.exchanged(made_RD.index_select(0, order_R.argsort()), received, sent, self.group)
        weighted_JD = home_JD * weight_TK.flatten()[order_J, None]
        return torch.zeros_like(hidden_TD).index_add(0, token_J, weighted_JD.to(hidden_TD.dtype))

    def _experts(self, hidden_RD: Tensor, counts: list[int]) -> Tensor:
        """[R, D] of the tokens that came for the first expert here, then for the second and so on."""
        gate_up_eID, down_eDI = (getattr(self.module, name).to_local().unbind() for name in WEIGHTS)
        made = []
        for part_rD, gate_up_ID, down_DI in zip(torch.split(hidden_RD, counts), gate_up_eID, down_eDI, strict=True):
            gate_rI, up_rI = linear(part_rD, gate_up_ID).chunk(2, -1)
            made.append(linear(self.module.act_fn(gate_rI) * up_rI, down_DI))
        return torch.cat(made)
