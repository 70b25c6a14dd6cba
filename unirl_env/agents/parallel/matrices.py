"""Learners that share each matrix of a language model: tensor parallelism, by the network's own plan.

Transformers says of its networks which matrices are cut by columns and which by rows, and what is exchanged
around them (`tp_plan`). What the plan does not name, each learner of a group holds whole, as a tensor that is
the same in all of them. FSDP divides either among the groups.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from unirl_env.errors import ConfigError

# Whole tensors are gathered along one axis after the other, as they were divided; nothing else is possible.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

CUT = frozenset(("colwise", "rowwise", "colwise_gather_output", "colwise_rep", "rowwise_rep"))
"""What of transformers' plans is done here as transformers does it."""
SUMMED = "replicated_with_grad_allreduce"
"""A whole tensor, such as the norm of a head, whose gradient each learner has of its own heads alone.

Transformers sums such a gradient when the backward pass leaves the module, which is once too often where a
network passes it several times in a pass; here the gradient says itself that it is a part of a sum.
"""


def share_matrices(network: nn.Module, mesh: DeviceMesh) -> None:
    """Cut the matrices of a network among the learners of a mesh of one axis; none of it has been divided.

    Args:
        network: Of transformers, with weights or without.
        mesh: The learners that read the same rows.

    Raises:
        ConfigError: If its plan asks for more than is done here, or its sizes cannot be cut evenly.
    """
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    plan = plan_of(network, mesh.size())
    summed = {name for name, style in plan.items() if style == SUMMED}
    apply_tensor_parallelism(network, mesh, {name: style for name, style in plan.items() if style != SUMMED})
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in network.named_modules():
        own = [key for key, p in module.named_parameters(recurse=False) if not isinstance(p, DTensor)]
        if not own:
            continue
        for key in own:
            weight = module._parameters[key]
            assert weight is not None
            if weight not in whole:  # else it is tied to one that has been seen
                spread = distribute_tensor(weight.detach(), mesh, [Replicate()], src_data_rank=None)
                whole[weight] = nn.Parameter(spread, requires_grad=weight.requires_grad)
            module._parameters[key] = whole[weight]
        _read_whole(module, own, Partial() if _generic(name) in summed else Replicate())


def plan_of(network: nn.Module, learners: int) -> dict[str, str]:
    """What is done with each module of a network, by its name without the numbers of layers.

    A matrix that two modules read, such as that of the words which is that of the output, too, stays whole.

    Args:
        network: Any.
        learners: How many share each matrix.

    Raises:
        ConfigError: As `share_matrices`.
    """
    plan: Mapping[str, str] = getattr(network, "tp_plan", None) or {}
    kind = type(network).__name__
    if not plan:
        raise _refused(learners, f"where a network says how its matrices are cut (`tp_plan`), got {kind}")
    modules = dict(network.named_modules())
    tied = _tied(network)
    found: dict[str, str] = {}
    for name, module in modules.items():
        style = plan.get(_generic(name))
        if style is None or any(parameter in tied for parameter in module.parameters(recurse=False)):
            continue
        if style not in CUT and style != SUMMED:
            raise _refused(learners, f"where no module is cut as {style!r}, got {name!r} of {kind}")
        if style in CUT and not isinstance(module, nn.Linear):
            what = type(module).__name__
            raise _refused(learners, f"where linear layers are cut alone, got {name!r}, {what}, of {kind}")
        if style in CUT and module.weight.shape[_axis(style)] % learners:
            size = list(module.weight.shape)
            raise _refused(learners, f"that divides the matrices, got {name!r} of shape {size} in {kind}")
        found[_generic(name)] = style
    if "rowwise" not in {style.removesuffix("_rep") for style in found.values()}:
        raise _refused(learners, f"where the plan of a network cuts its layers, got {dict(plan)} of {kind}")
    if strange := [name for name in plan if name not in found and _exact(name, network)]:
        raise _refused(learners, f"where no parameter is cut by itself, got {strange[0]!r} of {kind}")
    config: Any = getattr(network, "config", None)
    text = config.get_text_config()
    for setting in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, setting, None)
        if heads is not None and heads % learners:
            raise _refused(learners, f"that divides its {setting}, got {heads} in {kind}")
    return found


def _read_whole(module: nn.Module, names: list[str], gradient: Replicate | Partial) -> None:
    """Let a module compute with the plain tensors in its parameters, whose gradients lie as `gradient`."""
    own = module.forward

    @contextmanager
    def plain() -> Iterator[None]:
        kept = {name: module._parameters[name] for name in names}
        try:
            for name, weight in kept.items():
                if isinstance(weight, DTensor):
                    local: Any = weight.to_local(grad_placements=[gradient])
                    module._parameters[name] = local
            yield
        finally:
            module._parameters.update(kept)

    def forward(*arguments: Any, **named: Any) -> Any:
        with plain():
            return own(*arguments, **named)

    module.forward = forward


def _generic(name: str) -> str:
    from transformers.distributed.tensor_parallel import replace_layer_number_by_wildcard

    return str(replace_layer_number_by_wildcard(name))


def _exact(name: str, network: nn.Module) -> bool:
    """Whether a plan's name is that of a parameter and not of a module."""
    return any(_generic(own) == name for own, _ in network.named_parameters())


def _tied(network: nn.Module) -> set[nn.Parameter]:
    seen: set[nn.Parameter] = set()
    tied: set[nn.Parameter] = set()
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            (tied if parameter in seen else seen).add(parameter)
    return tied


def _axis(style: str) -> int:
    return 1 if style.startswith("rowwise") else 0


def _refused(learners: int, remedy: str) -> ConfigError:
    return ConfigError(
        f"`learner.tensor_parallel` must be 1, or {learners} {remedy}; try learner.tensor_parallel=1, and "
        "more learners for learner.parallel=sharded."
    )
