"""Learners that share the tokens of a latent: context parallelism, by the network's own plan.

Diffusers says of its networks where tokens are parted and where they come together again (`_cp_plan`). Each
learner of a group has its part of them; within attention, which needs all, it has all tokens of its part of
the heads (Ulysses). Members of a group read the same rows and have the same velocity. Of a weight's gradient
each finds what its own tokens say, so that the gradient is the sum over them, as it is over other rows.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import pad

from unirl_env.errors import ConfigError
from unirl_env.models.shared.of_diffusers import OfDiffusers

# A plan's entry for times of each token is told to be passed over where rows have one time.
logging.getLogger("diffusers.hooks.context_parallel").setLevel(logging.ERROR)
# Diffusers calls a function of torch by its former name.
warnings.filterwarnings("ignore", message=".*all_gather_tensor. is deprecated", category=FutureWarning)

AXES = ("group", "ring", "ulysses")
"""Of all learners: those of a group follow each other along the last one; there is no ring."""
CROSS = "attn2"
"""What diffusers calls the layers by which tokens of a latent attend to a text alone."""
OF_TEXT = "encoder_"
"""How the inputs of a network begin that are of a text."""
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


def share_tokens(network: nn.Module, learners: DeviceMesh, device: torch.device) -> None:
    """Part the tokens of a network's latents among the learners of a group; its blocks are as they were made.

    Args:
        network: Of diffusers, with weights or without.
        learners: All of them, along `AXES`.
        device: This learner's.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    # What diffusers' `enable_parallelism` does, which asks for an accelerator even where none is used.
    sharers, plan = learners["ulysses"].size(), plan_of(network)
    among = ContextParallelConfig(ulysses_degree=sharers, mesh=learners)
    settings = ParallelConfig(context_parallel_config=among)
    settings.setup(dist.get_rank(), dist.get_world_size(), device, mesh=learners)
    for name, module in network.named_modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config") and not name.endswith(CROSS):
            processor._parallel_config = settings
    apply_context_parallel(network, among, plan)
    if MASK in _parted(plan):
        network.register_forward_pre_hook(partial(_fill_up, sharers), with_kwargs=True)


def plan_of(network: nn.Module) -> dict[str, Any]:
    """Where a network's tokens are parted and put together, by the names of modules; empty if it cannot be.

    Where blocks attend to a text alone, the tokens of each learner attend to all of it. Diffusers' plan says
    so for Wan; that for LTX parts texts, too, whose masks would be of more heads than the queries.
    """
    plan: Mapping[str, Any] = getattr(network, "_cp_plan", None) or {}
    if not any(name.endswith(CROSS) for name, _ in network.named_modules()):
        return dict(plan)
    return {
        name: {key: how for key, how in entry.items() if not str(key).startswith(OF_TEXT)}
        if isinstance(entry, Mapping)
        else entry
        for name, entry in plan.items()
    }


def check_tokens(model: Any, sharers: int) -> None:
    """Refuse a model whose latents so many learners cannot share; nothing of it is loaded but its settings.

    Args:
        model: The environment's.
        sharers: How many.

    Raises:
        ConfigError: Naming what does not fit, and the remedy.
    """
    if not isinstance(model, OfDiffusers) or not hasattr(model, "num_tokens"):
        unknown = "1 for a model whose tokens are not known before it is loaded"
        raise refused(sharers, unknown, type(model).__name__)
    network: Any = model.outline()
    kind, plan = type(network).__name__, plan_of(network)
    if not plan:
        raise refused(sharers, "1 for a network without a plan of its tokens (diffusers' `_cp_plan`)", kind)
    heads, tokens, length = network.config.num_attention_heads, model.num_tokens, model.max_sequence_length
    parted = _parted(plan)
    reads_all = TEXT in parted and MASK not in parted
    numbers = (heads, tokens, length) if reads_all else (heads, tokens)
    less = max(n for n in range(1, sharers + 1) if not any(number % n for number in numbers))
    hint = f"learner.context_parallel={less}"
    if heads % sharers:
        raise refused(sharers, f"a divisor of the {heads} heads of attention", kind, hint)
    if tokens % sharers:
        size = f"{model.height} x {model.width}"
        told = f"a divisor of the {tokens} tokens of a latent"
        raise refused(sharers, told, f"{size} pixels", f"height={_height(model, sharers)}, or {hint}")
    if reads_all and length % sharers:
        fits = f"max_sequence_length={length - length % sharers}, or " if length > sharers else ""
        raise refused(sharers, f"a divisor of the {length} tokens of each text", kind, fits + hint)
    _check_attention(model.acceleration.attention, sharers)


def check_size(model: OfDiffusers, sharers: int, size: tuple[int, int]) -> None:
    """Refuse pictures of another size that learners play, if they cannot share their tokens.

    Args:
        model: The environment's.
        sharers: How many learners share a latent.
        size: Height and width in pixels.

    Raises:
        ConfigError: Naming `policy.eval_size`.
    """
    tokens = model.num_tokens * math.prod(size) // (model.height * model.width)
    if tokens % sharers:
        raise ConfigError(
            f"`policy.eval_size` must have tokens that `learner.context_parallel` {sharers} divides where "
            f"learners play, got {tokens} of {list(size)}; try null, or num_env_runners=1."
        )


def refused(sharers: int, must: str, found: str, hint: str = "learner.context_parallel=1") -> ConfigError:
    """The error of a run in which so many learners cannot share a latent.

    Args:
        sharers: How many.
        must: What the number must be.
        found: What it is asked for.
        hint: What to try.
    """
    return ConfigError(f"`learner.context_parallel` must be {must}, got {sharers} with {found}; try {hint}.")


def _check_attention(named: str | None, sharers: int) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    known: Any = _AttentionBackendRegistry
    backend = known.get_active_backend()[0] if named is None else named
    if backend not in [each.value for each in AttentionBackendName]:
        return  # it is refused by name when the network is loaded
    if not known._is_context_parallel_available(AttentionBackendName(backend)):
        raise ConfigError(
            f"`attention` must be a backend that parts heads with `learner.context_parallel` {sharers}, got "
            f"{AttentionBackendName(backend).value!r}; try one of "
            f"{', '.join(sorted(known._supports_context_parallel))}."
        )


def _parted(plan: Mapping[str, Any]) -> set[Any]:
    """The inputs that a plan parts, whatever module is given them."""
    return {key for entry in plan.values() if isinstance(entry, Mapping) for key in entry}


def _height(model: OfDiffusers, sharers: int) -> int:
    """The next height at which tokens can be parted."""
    unit = math.isqrt(model.height * model.width * model.latent_frames // model.num_tokens)
    in_a_row = model.num_tokens * unit // model.height
    return next(unit * n for n in range(model.height // unit, 10**9) if n * in_a_row % sharers == 0)


def _fill_up(
    sharers: int, network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let texts with a mask have a number of tokens that can be parted; nobody attends to those behind."""
    text: Tensor = named[TEXT]
    lacking = -text.shape[1] % sharers
    filled = {TEXT: pad(text, (0, 0, 0, lacking)), MASK: pad(named[MASK], (0, lacking))}
    return arguments, {**named, **filled}
