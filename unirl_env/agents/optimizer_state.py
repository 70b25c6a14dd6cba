"""AdamW's memory as named tensors, so that a run goes on bit for bit and no checkpoint needs a pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unirl_env.errors import CheckpointError

__all__ = ["load_optimizer_state", "optimizer_state"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """`optimizer/<moment>/<parameter>` on the CPU; empty before the first step.

    Args:
        optimizer: With one group of parameters.
        names: The parameters' names, in the order of the group.
    """
    tensors = {}
    parameters = optimizer.param_groups[0]["params"]
    for name, parameter in zip(names, parameters, strict=True):
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{moment}/{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer back what `optimizer_state` returned; without any, it starts afresh.

    Raises:
        CheckpointError: If a moment is missing or has another shape than its parameter.
    """
    parameters = optimizer.param_groups[0]["params"]
    present = any(name.startswith("optimizer/") for name in tensors)
    state = {}
    for number, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        if not present:
            break
        state[number] = {}
        for moment in MOMENTS:
            value = tensors.get(f"optimizer/{moment}/{name}")
            if value is None or (moment != "step" and value.shape != parameter.shape):
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise CheckpointError(
                    f"`optimizer/{moment}/{name}` must have shape {list(parameter.shape)}, got {found}; try "
                    "the settings of the run that wrote this state."
                )
            state[number][moment] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
