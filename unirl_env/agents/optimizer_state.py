"""AdamW's memory as named tensors, so that a run goes on bit for bit and no checkpoint needs a pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unirl_env.errors import CheckpointError

__all__ = ["load_optimizer_state", "optimizer_state"]

logger = logging.getLogger(__name__)

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

    It does so, too, where moments are narrower than what they belong to: a second moment in half precision
    never decays, and would hold every weight back for thousands of steps.

    Raises:
        CheckpointError: If a moment is missing or has another shape than its parameter.
    """
    parameters = optimizer.param_groups[0]["params"]
    present = any(name.startswith("optimizer/") for name in tensors)
    narrow = [
        name for name, parameter in zip(names, parameters, strict=True) if _narrow(name, parameter, tensors)
    ]
    if narrow:
        logger.warning(
            "AdamW starts afresh: the moments of %d weights were saved in half precision, in which they are "
            "wrong. The weights themselves are taken over.",
            len(narrow),
        )
        present = False
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


def _narrow(name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    moment = tensors.get(f"optimizer/exp_avg_sq/{name}")
    return moment is not None and moment.dtype.itemsize < parameter.dtype.itemsize
