"""A network's output as a distribution over the actions of a space. Drawing and scoring are one function.

The space chooses it: a `Categorical` over `Discrete`, a `Gaussian` over `Box`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError, ContractError
from unirl_env.functional import TokenStep

LOG_STD = (-10.0, 5.0)
"""Where a log-std is cut: beyond it, densities overflow float32 or drown in its rounding."""
HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


class ActionStep(NamedTuple):
    """What a `Gaussian` returns.

    Attributes:
        action: `[N, *shape]` float32, drawn or given.
        log_prob: `[N]` float32 in nats of the whole action: the log of a density, which may be positive.
        entropy: `[N]` float32 in nats, with gradient.
    """

    action: Tensor
    log_prob: Tensor
    entropy: Tensor


class Distribution(ABC):
    """A distribution over actions, made of what a network returns.

    Attributes:
        kind: The kind of phase that its actions make, as `Phase.kind` has it.
    """

    kind: ClassVar[str]

    @abstractmethod
    def draws(self, seeds: Tensor, step: int, device: torch.device) -> Tensor:
        """Keyed random numbers `[N, ...]` for one action: a function of `seeds` `[N]` and `step`."""

    @abstractmethod
    def step(self, output: Any, *, action: Tensor | None = None, draws: Tensor | None = None) -> Any:
        """Score the given `action`, or draw one with `draws`, or with neither take the likeliest one.

        Args:
            output: What the network returned for N rows.
            action: `[N, ...]` to score, with gradient.
            draws: What `draws` returned.

        Returns:
            A named tuple, whose first field is the action, with `log_prob` and `entropy`, each `[N]`.
        """


class Categorical(Distribution):
    """One of n actions, from logits `[N, n]`.

    Args:
        space: The actions.
        temperature: What logits are divided by, drawn and scored alike; positive.

    Raises:
        ConfigError: If the temperature is not positive.
    """

    kind = "discrete"

    def __init__(self, space: spaces.Discrete, *, temperature: float = 1.0):
        self.count, self.first = int(space.n), int(space.start)
        self.temperature = number("temperature", temperature)
        if not self.temperature > 0:
            raise ConfigError(f"`temperature` must be positive, got {temperature}; try 1.0.")

    def draws(self, seeds: Tensor, step: int, device: torch.device) -> Tensor:
        """A uniform number `[N]` float64 each."""
        return F.keyed_uniform(seeds, step, device=device)

    def step(self, output: Tensor, *, action: Tensor | None = None, draws: Tensor | None = None) -> TokenStep:
        """As `Distribution.step`: a `TokenStep`, whose entropy has a gradient here.

        Raises:
            ContractError: If the network gives no logits for the n actions.
        """
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != self.count:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ContractError(f"The network must return logits [N, {self.count}], got {got}.")
        greedy = action is None and draws is None
        step = F.token_step(
            output,
            temperature=0.0 if greedy else self.temperature,
            token=None if action is None else action - self.first,
            uniform=draws,
        )
        log_probs = torch.log_softmax(output.float() / self.temperature, -1)
        # Where an action is forbidden its share is 0, and 0 times -inf would be NaN.
        entropy = -(log_probs.exp() * log_probs.clamp_min(torch.finfo(torch.float32).min)).sum(-1)
        return TokenStep(step.token + self.first, step.log_prob, entropy)


class Gaussian(Distribution):
    """Real actions, from a mean `[N, *shape]` and a log-std that broadcasts to it.

    Actions are not bounded: what an environment does with one outside its space is the environment's affair.
    The elements of an action are independent.

    Args:
        space: The actions.
        temperature: What stds are multiplied by the root of, drawn and scored alike; positive.

    Raises:
        ConfigError: If the temperature is not positive.
    """

    kind = "continuous"

    def __init__(self, space: spaces.Box, *, temperature: float = 1.0):
        self.shape = tuple(space.shape)
        temperature = number("temperature", temperature)
        if not temperature > 0:
            raise ConfigError(f"`temperature` must be positive, got {temperature}; try 1.0.")
        self.widened = 0.5 * math.log(temperature)

    def draws(self, seeds: Tensor, step: int, device: torch.device) -> Tensor:
        """Standard normal noise `[N, *shape]`."""
        return F.keyed_noise(seeds, step, self.shape, device=device)

    def step(self, output: Any, *, action: Tensor | None = None, draws: Tensor | None = None) -> ActionStep:
        """As `Distribution.step`; the likeliest action is the mean.

        Raises:
            ContractError: If the network gives no finite mean and log-std.
        """
        mean, log_std = self._parameters(output)
        if action is None:
            action = (mean if draws is None else mean + log_std.exp() * draws.to(mean)).detach()
        apart = (action.to(mean) - mean) / log_std.exp()
        log_prob = -(0.5 * apart.square() + log_std + HALF_LOG_2_PI).flatten(1).sum(1)
        entropy = (log_std + 0.5 + HALF_LOG_2_PI).flatten(1).sum(1)
        return ActionStep(action, log_prob, entropy)

    def _parameters(self, output: Any) -> tuple[Tensor, Tensor]:
        pair = isinstance(output, tuple | list) and len(output) == 2
        if not pair or not all(isinstance(part, Tensor) for part in output):
            raise ContractError(
                f"The network must return a mean and a log-std [N, {', '.join(map(str, self.shape))}], got "
                f"{type(output).__name__}; try (mean, log_std)."
            )
        mean, log_std = output[0].float(), output[1].float()
        try:
            fits = tuple(mean.shape[1:]) == self.shape and log_std.expand_as(mean) is not None
        except RuntimeError:
            fits = False
        if not fits:
            raise ContractError(
                f"The network must return a mean [N, {', '.join(map(str, self.shape))}] and a log-std that "
                f"broadcasts to it, got {list(mean.shape)} and {list(log_std.shape)}."
            )
        if not bool(mean.isfinite().all()):
            raise ContractError(
                "The network must return a finite mean, got NaN or infinity; the policy has diverged: try a "
                "smaller learning rate."
            )
        return mean, log_std.expand_as(mean).clamp(*LOG_STD) + self.widened


def distribution_over(space: Any, **options: Any) -> Distribution:
    """The distribution over a space of actions.

    Args:
        space: Of one episode.
        **options: Its own: `temperature`.

    Raises:
        ConfigError: If there is none over such a space.
    """
    if isinstance(space, spaces.Discrete):
        return Categorical(space, **options)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        return Gaussian(space, **options)
    raise ConfigError(
        f"`action_space` must be Discrete, or a Box of floating point numbers of rank 1 or more, got "
        f"{space}; try one of them, or a `Head` of your own."
    )
