"""How learners divide a policy's weights: the one place that knows.

`Replicated` learners each hold all of it. `Sharded` ones hold a part of each weight and gather a block when
it computes (FSDP2); in `hybrid`, weights are divided within groups of learners, and the groups hold the same.
An agent is the same in all of them: denominators are global, gradients are sums, and what is asked of a
learner's state is whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unirl_env.agents.parallel.flat_gradient import FlatGradient
from unirl_env.agents.parallel.gradient import Gradient
from unirl_env.agents.parallel.level import Minibatch
from unirl_env.errors import ConfigError
from unirl_env.models.making import make_model


class Parallel(ABC):
    """What a learner shares with the others.

    Attributes:
        divides: Whether each holds a part of the weights: then all of them take part in every forward pass,
            and whatever gathers weights is asked of all.
        sharers: How many learners, whose ranks follow each other, read the same episodes, because they share
            each matrix, or the tokens of a latent; the first of them reports.
    """

    divides: bool = False
    sharers: int = 1

    @property
    def share(self) -> int:
        """Which share of the episodes is this learner's."""
        return dist.get_rank() // self.sharers if dist.is_initialized() else 0

    @property
    def reports(self) -> bool:
        """Whether no other learner reports the same."""
        return not dist.is_initialized() or dist.get_rank() % self.sharers == 0

    @abstractmethod
    def making(self) -> AbstractContextManager[None]:
        """An actor that is to be placed is made within."""

    @abstractmethod
    def place(self, actor: Any) -> None:
        """Let the actor's networks lie on the learners as they are to; before there is an optimizer."""

    @abstractmethod
    def gradient(self, weights: Sequence[nn.Parameter], *, parts: int, told: int) -> Gradient:
        """What holds the gradient of the trained weights; arguments as those of `FlatGradient`."""

    @abstractmethod
    def level(self, minibatches: Sequence[Minibatch]) -> list[Minibatch]:
        """The micro-batches of every optimizer step, with empty ones where another learner has more."""

    @abstractmethod
    def any(self, found: bool) -> bool:
        """Whether it is found here, or on another learner that would take part in what follows."""

    def require_same(self, tensors: Mapping[str, Tensor], what: str) -> None:  # noqa: B027  # there are none
        """Refuse to go on where learners that read the same episodes as this one have other tensors.

        Args:
            tensors: By name.
            what: They are, for the error.

        Raises:
            ContractError: If they differ.
        """


class Replicated(Parallel):
    """Every learner holds the whole policy; they meet once in an optimizer step.

    Args:
        distributed: Whether there are others.
    """

    def __init__(self, distributed: bool):
        self._distributed = distributed

    def making(self) -> AbstractContextManager[None]:
        """It has all its weights at once."""
        return nullcontext()

    def place(self, actor: Any) -> None:
        """Nothing is to be done."""

    def gradient(self, weights: Sequence[nn.Parameter], *, parts: int, told: int) -> Gradient:
        """One buffer."""
        return FlatGradient(weights, distributed=self._distributed, parts=parts, told=told)

    def level(self, minibatches: Sequence[Minibatch]) -> list[Minibatch]:
        """As they are: forward passes are each learner's own."""
        return list(minibatches)

    def any(self, found: bool) -> bool:
        """Others take no part."""
        return found


def check_parallel(config: Any) -> None:
    """Refuse settings under which learners that hold parts of the weights would not go alike.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    if not config.divides:
        return
    rows = config.env_options().get("rows_per_forward")
    how = f"`learner.parallel` {config.learner.parallel!r}"
    if rows is not None:
        raise ConfigError(
            f"`rows_per_forward` must be null with {how}, got {rows}: learners would pass through the "
            "network a different number of times, and wait for each other; try model.rows_per_forward=null."
        )
    choice = config.mode.choice(config.env_options())
    model = make_model(config.mode.models, choice.name, choice.options)
    uneven = getattr(model, "uneven", "")
    if uneven:
        raise ConfigError(
            f"`learner.parallel` must be replicated for this model, got {config.learner.parallel!r}: "
            f"{uneven}, so that learners would pass through it a different number of times, and wait for "
            "each other; try learner.parallel=replicated."
        )
    if config.learners_play and config.engine != "local":
        raise ConfigError(
            f"`engine` must be 'local' where learners play with their parts of the policy ({how} and "
            f"`num_env_runners` 0), got {config.engine!r}; try num_env_runners=1, and a whole copy for it."
        )
    if config.merge_adapters:
        raise ConfigError(
            f"`merge_adapters` must be null or false with {how}, got true: weights that learners hold in "
            "parts cannot be merged; try null."
        )
    if config.learner.tensor_parallel > 1:
        _check_matrices(config)
    if config.learner.context_parallel > 1:
        _check_tokens(config, model)


def _check_matrices(config: Any) -> None:
    how = f"`learner.tensor_parallel` must be 1 {{}}, got {config.learner.tensor_parallel}"
    kinds = config.mode.phases(config)
    if strange := [name for name, kind in kinds.items() if kind != "tokens"]:
        where = f"where more than texts is acted, as in phase {strange[0]!r}"
        raise ConfigError(
            f"{how.format(where)}: only language models of transformers say how their matrices are shared; "
            "try learner.tensor_parallel=1."
        )
    if config.policy.lora_rank is not None:
        raise ConfigError(
            f"{how.format(f'with `policy.lora_rank` {config.policy.lora_rank}')}: adapters do not know how "
            "the matrices that they are attached to are cut; try policy.lora_rank=null, or "
            "learner.tensor_parallel=1."
        )


def _check_tokens(config: Any, model: Any) -> None:
    from unirl_env.agents.parallel.tokens import check_size, check_tokens, refused

    sharers, kinds = config.learner.context_parallel, config.mode.phases(config)
    if strange := [name for name, kind in kinds.items() if kind != "latents"]:
        raise refused(sharers, "1 where more than latents is acted", f"phase {strange[0]!r}")
    check_tokens(model, sharers)
    if config.learners_play and config.policy.eval_size is not None:
        check_size(model, sharers, tuple(config.policy.eval_size))


def parallel_of(config: Any, *, distributed: bool, device: torch.device) -> Parallel:
    """What the settings of an agent say, for a learner on `device`; one alone has all of the policy."""
    if not config.divides:
        return Replicated(distributed)
    from unirl_env.agents.parallel.sharded import Sharded

    return Sharded(config.learner, device)
