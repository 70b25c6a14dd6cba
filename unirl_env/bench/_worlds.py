"""Worlds in which a network's objective is a sum over a grid, or over all words: what `exact` measures by.

A world is made of a run's settings; what does not depend on the network is found once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.functional.paths import (
    PathPolicy,
    any_policy_optimum,
    gaussian_policy,
    path_grid,
    path_value,
)
from unirl_env.functional.sde import transition
from unirl_env.functional.sequences import (
    all_sequences,
    best_table,
    sequence_log_prob,
    sequence_optimum,
    sequence_value,
)
from unirl_env.models.gaussian_mixture import GaussianMixture, GaussianMixtureDenoiser, mixture_log_prob
from unirl_env.models.making import make_model
from unirl_env.models.tabular import TabularTokens
from unirl_env.modes import mode_of
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import build_scorer
from unirl_env.run.world_setup import world_options
from unirl_env.settings import RunConfig
from unirl_env.types import Prompt, Sample
from unirl_env.worlds.registration import spec_of

LINE, PLANE = (8.0, 0.05), (6.0, 0.08)
"""How far a grid goes and how fine it is: it holds all that these models reach."""
FINE = 1.0
"""The smallest std of a step, in steps of the grid on a line, which is refined until it is so much."""


class Value(NamedTuple):
    """What a policy achieves, as scalars: `objective` is `reward - beta * kl`, `kl` in nats of episodes."""

    objective: Tensor
    reward: Tensor
    kl: Tensor


class ExactWorld(ABC):
    """Everything that can happen, with what it pays.

    Attributes:
        beta: Price of a nat.
        reward: What is trained on, at every point or word.
        heldout: The held-out reward there, or None.
        known: Exact objectives by name: `optimum`, `base` and what else is known.
    """

    reward: Tensor
    heldout: Tensor | None = None
    known: dict[str, float]

    def __init__(self, cfg: RunConfig):
        self.cfg, self.beta = cfg, price(cfg)

    @abstractmethod
    def value(self, network: nn.Module, reward: Tensor) -> Value:
        """What a network achieves under a reward."""

    def measure(self, network: nn.Module) -> dict[str, float]:
        """All numbers of `unirl_env.bench.exact`."""
        with torch.no_grad():
            value = self.value(network, self.reward)
            found = {name: float(number) for name, number in value._asdict().items()} | self.known
            if self.heldout is not None:
                found["heldout"] = float(self.value(network, self.heldout).reward)
        return found | {"regret": found["optimum"] - found["objective"]}


class Line(ExactWorld):
    """A grid on a line, and the T steps of a denoiser as kernels on it."""

    def __init__(self, cfg: RunConfig):
        super().__init__(cfg)
        self.model = _points(cfg, (1,), "on a line", "unirl/Line-v0")
        require_price(self.beta, cfg)
        if cfg.steps.kind != "all":
            raise ConfigError(f"`steps.kind` must be all for exact values, got {cfg.steps.kind!r}.")
        self.sigmas = self.model.sigmas(_option(cfg, "num_steps"))
        limit, spacing = LINE
        self.grid = path_grid(limit, min(spacing, self._smallest_std() / FINE))
        with torch.no_grad():
            self.reference = self._path(self.model.network())
        self.reward, self.heldout = _paid(cfg, self.grid[:, None])
        at = (self.reference, self.reward, self.beta)
        best = gaussian_policy(*at)
        resting = best if cfg.agent.kl_in == "return" else gaussian_policy(*at, future_kl=False)
        self.known = {
            "base": float(path_value(self.reference, *at).objective),
            "optimum": float(any_policy_optimum(*at).objective),
            "gaussian_optimum": float(path_value(best, *at).objective),
            "fixed_point": float(path_value(resting, *at).objective),
        }

    def value(self, network: nn.Module, reward: Tensor) -> Value:
        """By dynamic programming, with gradient to the network's weights."""
        return Value(*path_value(self._path(network), self.reference, reward, self.beta)[:3])

    def _path(self, network: nn.Module) -> PathPolicy:
        policy = self.cfg.policy
        return PathPolicy.of(
            lambda x, sigma: self.model.velocity(network, x, sigma, {}),
            self.sigmas,
            grid=self.grid,
            dynamics=policy.dynamics,
            eta=policy.eta,
        )

    def _smallest_std(self) -> float:
        policy, here = self.cfg.policy, torch.zeros(1, 1)
        steps = list(pairwise(self.sigmas))[:-1]
        how: dict[str, Any] = {"dynamics": policy.dynamics, "eta": policy.eta}
        return min(float(transition(here, here, *step, **how)[1]) for step in steps)


class Plane(ExactWorld):
    """A grid in the space of points, whose cells a mixture fills."""

    def __init__(self, cfg: RunConfig):
        super().__init__(cfg)
        self.model = _points(cfg, (1, 2), "in one or two dimensions", "unirl/GaussianMixture-v0")
        require_price(self.beta, cfg)
        axis = path_grid(*PLANE)
        (dimensions,) = self.model.latent_shape
        self.points = torch.stack(torch.meshgrid(*[axis] * dimensions, indexing="ij"), -1).flatten(0, -2)
        self.reference = self._log_prob(self.model.mixture)
        self.reward, self.heldout = _paid(cfg, self.points)
        at = (self.reference, self.reward, self.beta)
        self.known = {
            "base": float(sequence_value(self.reference, *at).objective),
            "optimum": float(sequence_optimum(*at)[1].objective),
        }

    def value(self, network: nn.Module, reward: Tensor) -> Value:
        """Of the mixture that the network's flow leads to, with gradient to its weights."""
        log_prob = self._log_prob(cast(GaussianMixture, network.mixture))
        return Value(*sequence_value(log_prob, self.reference, reward, self.beta)[:3])

    def _log_prob(self, mixture: GaussianMixture) -> Tensor:
        """Of the cells `[N]`."""
        return torch.log_softmax(mixture_log_prob(self.points, mixture.to(torch.float64)), 0)


class Words(ExactWorld):
    """All words that can follow each of the prompts; the prompts count alike."""

    def __init__(self, cfg: RunConfig):
        super().__init__(cfg)
        model = model_of(cfg)
        if not isinstance(model, TabularTokens):
            raise ConfigError(
                f"`model.env` must be of tabular tokens, got {cfg.model.env}; try unirl/TabularTokens-v0."
            )
        self.model, prompts = model, _prompts(cfg)
        self.rows = [model.letters.index(prompt.text) * model.prefixes for prompt in prompts]
        words = [
            Sample(text="".join(model.letters[letter] for letter in word), tokens=torch.tensor(word))
            for word in all_sequences(model.vocabulary, model.length).tolist()
        ]
        judged = [_judged(cfg, words, prompt) for prompt in prompts]
        self.reward = torch.stack([reward for reward, _ in judged])
        if cfg.reward.heldout is not None:
            self.heldout = torch.stack([cast(Tensor, heldout) for _, heldout in judged])
        untrained = model.network()
        tables = [table.detach().double() for table in self._tables(untrained)]
        self.references = [sequence_log_prob(table) for table in tables]
        best = [sequence_optimum(*each, self.beta)[1].objective for each in self._pairs()]
        self.known = {"optimum": _mean(best), "class_optimum": _mean(best)}
        with torch.no_grad():
            self.known["base"] = float(self.value(untrained, self.reward).objective)
        if self.beta > 0:
            sees = cfg.agent.kl_in == "return"
            resting = [
                sequence_value(
                    sequence_log_prob(best_table(table, reward, self.beta, future_kl=sees)),
                    reference,
                    reward,
                    self.beta,
                ).objective
                for table, (reference, reward) in zip(tables, self._pairs(), strict=True)
            ]
            self.known["fixed_point"] = _mean(resting)

    def value(self, network: nn.Module, reward: Tensor) -> Value:
        """The sum over all words, with gradient to the network's weights."""
        found = [
            sequence_value(sequence_log_prob(table.double()), old, paid, self.beta)[:3]
            for table, old, paid in zip(self._tables(network), self.references, reward, strict=True)
        ]
        return Value(*(torch.stack(each).mean() for each in zip(*found, strict=True)))

    def _pairs(self) -> Sequence[tuple[Tensor, Tensor]]:
        return list(zip(self.references, self.reward, strict=True))

    def _tables(self, network: nn.Module) -> list[Tensor]:
        """The part of the table `[R, V]` that each prompt has, as the policy's temperature has it."""
        logits = cast(Tensor, network.logits) / self.cfg.policy.temperature
        return [logits[row : row + self.model.prefixes] for row in self.rows]


Kind = TypeVar("Kind", bound=ExactWorld)
_made: dict[tuple[type[ExactWorld], str], ExactWorld] = {}


def world(kind: type[Kind], cfg: RunConfig) -> Kind:
    """The world of a run's settings, made once for all that share what it depends on."""
    depends = (cfg.model, cfg.prompts, cfg.reward, cfg.steps, cfg.policy, price(cfg), cfg.agent.kl_in)
    key = (kind, repr(depends))
    if key not in _made:
        _made[key] = kind(cfg)
    return cast(Kind, _made[key])


def watched(cfg: RunConfig) -> RunConfig:
    """The same settings with the held-out reward in the place of that of training.

    Raises:
        ConfigError: If there is none.
    """
    if cfg.reward.heldout is None:
        raise ConfigError("`reward.heldout` must be a reward, got null; try one, or another measure.")
    return replace(cfg, reward=replace(cfg.reward, train=cfg.reward.heldout, heldout=None))


def price(cfg: RunConfig) -> float:
    """Beta, what a nat costs: `reference_kl`, corrected for a baseline that holds the judged sample itself.

    Where returns are charged (`kl_in`), that is corrected for already.

    Raises:
        ConfigError: If rewards are divided by what depends on the batch, and nats are not.
    """
    agent, size = cfg.agent, cfg.rollout.group_size
    if not agent.reference_kl:
        return 0.0
    if agent.kl_in == "return" or agent.advantage_scale == "leave_one_out":
        return agent.reference_kl
    if agent.advantage_scale == "none":
        return agent.reference_kl * size / (size - 1)
    raise ConfigError(
        f"`agent.advantage_scale` must be none or leave_one_out where an exact objective has a price of KL, "
        f"got {agent.advantage_scale!r}, under which the price changes with every batch; try none, or "
        "agent.kl_in=return."
    )


def require_price(beta: float, cfg: RunConfig) -> None:
    """Refuse points without a price of KL: their optimum may be infinitely far away.

    Raises:
        ConfigError: Naming the setting.
    """
    if not beta > 0:
        raise ConfigError(
            f"`agent.reference_kl` must be positive for exact values of points, got "
            f"{cfg.agent.reference_kl}: without a price the optimum may be infinite; try 1.0."
        )


def model_of(cfg: RunConfig) -> Any:
    """The model of a run, as its policy has it."""
    arguments = {**spec_of(cfg.model.env, "model.env").kwargs, **world_options(cfg)}
    mode = mode_of(arguments)
    choice = mode.choice(arguments)
    return make_model(mode.models, choice.name, choice.options)


def _option(cfg: RunConfig, name: str) -> Any:
    """An argument of the environment."""
    return {**spec_of(cfg.model.env, "model.env").kwargs, **world_options(cfg)}[name]


def _points(cfg: RunConfig, dimensions: Sequence[int], words: str, remedy: str) -> GaussianMixtureDenoiser:
    model = model_of(cfg)
    if not isinstance(model, GaussianMixtureDenoiser) or model.latent_shape[0] not in dimensions:
        raise ConfigError(f"`model.env` must be of points {words}, got {cfg.model.env}; try {remedy}.")
    return model


def _prompts(cfg: RunConfig) -> list[Prompt]:
    return list(PromptSource.of(cfg.prompts.train, max_characters=cfg.prompts.max_characters))


def _paid(cfg: RunConfig, points: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rewards at points `[N, D]`: of training, and the held-out one."""
    return _judged(cfg, [Sample(latent=point) for point in points.float()], _prompts(cfg)[0])


def _judged(cfg: RunConfig, samples: Sequence[Sample], prompt: Prompt) -> tuple[Tensor, Tensor | None]:
    """The rewards of samples `[N]` float64: of training, and the held-out one."""
    prompts = [prompt] * len(samples)

    def judged(spec: Any) -> Tensor:
        return build_scorer(spec)(samples, prompts).value.double()

    return judged(cfg.reward.train), None if cfg.reward.heldout is None else judged(cfg.reward.heldout)


def _mean(numbers: Sequence[Tensor]) -> float:
    return float(torch.stack(list(numbers)).mean())
