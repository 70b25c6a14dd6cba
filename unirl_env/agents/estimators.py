"""How the probability of latents is estimated in an update: by what was played, or by what came of it.

`Trajectory` scores the transitions that were played. `ForwardProcess` takes the finished latent alone: it is
noised anew, and the velocity there is held against the one that leads back. Its draws are keyed, and the same
for the new, the old and the untrained policy, and in all epochs of an iteration: differences of policies are
not differences of noise.

Reference:
    "Rethinking the design space of RL for diffusion models" (arXiv 2602.04663): the estimate matters more
    than the loss that is put on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.rows import Rows, Shard, Step
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError, ContractError
from unirl_env.settings import NoisingSettings

if TYPE_CHECKING:
    from unirl_env.agents.loss import Context
    from unirl_env.models.denoiser import Denoiser


class NoisedStep(NamedTuple):
    """What a policy says of N noised latents.

    Attributes:
        velocity: `[N, ...]` float32, guided.
        log_prob: `[N]` float32, the weighted squared error of the velocity, negated: a bound on the log-prob
            of the finished latent up to a constant, as `noising.weight` and `noising.reduction` have it.
    """

    velocity: Tensor
    log_prob: Tensor


class Estimator(ABC):
    """How the rows of a phase are scored."""

    @abstractmethod
    def score(self, rows: Rows, context: Context) -> Any:
        """The step of N rows under the weights that are in force, with gradient to the trained ones."""

    @abstractmethod
    def reference_kl(self, new: Any, reference: Any, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
        """What pulls towards the untrained policy in the loss, and the mean divergence from it."""


class Trajectory(Estimator):
    """The probability of each action that was played: Gaussian transitions, tokens."""

    def score(self, rows: Rows, context: Context) -> Step:
        """The step of `rows.action`."""
        return context.score(rows.observation, rows.action)

    def reference_kl(self, new: Any, reference: Any, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
        """That of the kind of phase."""
        return KINDS[rows.kind].reference_kl(new, reference, rows, config)


class ForwardProcess(Estimator):
    """The velocity at finished latents that are noised anew, K times each (`noising`)."""

    def drawn(self, shard: Shard, name: str, config: Any, denoiser: Denoiser) -> Shard:
        """The shard with K noise levels for each episode of a phase, in the place of the steps it played.

        Observations are `sigma` `[b, K]`, of `noising` what the network knows, and as `latent` the finished
        one K times, which is also the action and takes no memory: `noised` makes of rows what is scored, when
        they are. Old log-probs are zeros until they are taken.

        Args:
            shard: On the learner's device.
            name: Of the phase.
            config: An `AgentConfig`.
            denoiser: Whose latents they are.

        Raises:
            ContractError: If finished latents are not recorded.
            ConfigError: If the network knows no noise level between `noising.low` and `noising.high`.
        """
        phase, how = shard.phases[name], config.noising
        if phase.final is None:
            raise ContractError(
                f"The episodes of `{name}` must hold finished latents with `estimator` "
                f"{config.estimating!r}, got none; try RolloutRequest(keep_final=True)."
            )
        count, draws = len(phase), how.draws
        keys = _keys("sigma", shard, name, shard.iteration, config).repeat_interleave(draws)
        draw = torch.arange(draws, device=keys.device).repeat(count)
        uniform = F.keyed_uniform(keys, draw, device=keys.device).float().view(count, draws)
        low, high = max(how.low, denoiser.known_sigmas[0]), min(how.high, denoiser.known_sigmas[1])
        if not low < high:
            least, most = denoiser.known_sigmas
            raise ConfigError(
                "`noising.low` and `noising.high` must hold noise levels that the model knows, "
                f"{least:.3g} to {most:.3g}, got {how.low:g} and {how.high:g}; try noising.low=0 and "
                "noising.high=1."
            )
        sigma = F.stratified_sigmas(uniform, distribution=how.sigmas, low=low, high=high)
        final = phase.final[:, None].expand(count, draws, *phase.final.shape[1:])
        fresh = Phase(
            observation={"latent": final, "sigma": sigma},
            action=final,
            log_prob=torch.zeros_like(sigma),
            mask=phase.mask.any(1, keepdim=True).expand(count, draws),
            context=phase.context,
            context_row=phase.context_row,
            final=phase.final,
            kind=phase.kind,
        )
        return replace(
            shard,
            phases={**shard.phases, name: fresh},
            denominators=tuple({**each, name: each[name] * draws} for each in shard.denominators),
            noised=shard.noised | {name},
        )

    def noised(self, rows: Rows, name: str, iteration: int, config: Any, denoiser: Denoiser) -> Rows:
        """Rows of a shard that was `drawn`, with `x_s = (1 - s) x_0 + s noise` as their latent.

        The action is what the velocity should be there, `noise - x_0`. Both are functions of a row's own
        keys: made when rows are scored, they need not be there for all at once.

        Args:
            rows: N.
            name: Of the phase.
            iteration: Of the shard.
            config: An `AgentConfig`.
            denoiser: Whose latents they are.
        """
        keys = _keys("noise", rows, name, iteration, config)
        noise = F.keyed_noise(keys, rows.step, rows.action.shape[1:], device=keys.device)
        sigma = rows.observation["sigma"]
        latent, target = F.noised(denoiser.data(rows.action.float()), noise, sigma)
        return replace(rows, observation={**rows.observation, "latent": latent}, action=target)

    def score(self, rows: Rows, context: Context) -> NoisedStep:
        """Velocity and bound at the noised latents."""
        velocity, config = context.velocity(rows.observation), context.config
        error = F.surrogate(
            velocity,
            rows.action,
            rows.observation["sigma"],
            weight=config.noise_weight,
            reduction=config.noising.reduction,
        )
        return NoisedStep(velocity, -error)

    def reference_kl(self, new: Any, reference: Any, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
        """The squared distance of velocities, weighted as the bound is; `adaptive` weighs it by 1."""
        distance = F.velocity_kl(
            new.velocity,
            reference.velocity,
            rows.observation["sigma"],
            weight=config.noise_weight,
            reduction=config.noising.reduction,
        )
        pull = rows.mean(distance)
        return pull, pull.detach()


def _keys(what: str, of: Shard | Rows, name: str, iteration: int, config: Any) -> Tensor:
    """The keys of draws for episodes or rows, `[N]` int64."""
    keys = of.group if config.noising.share == "group" else of.episode_seed
    assert keys is not None
    salt = F.derive_seed("noised", what, config.run_seed, iteration, name)
    return keys ^ torch.tensor(salt, device=keys.device)


TRAJECTORY, FORWARD = Trajectory(), ForwardProcess()


def estimator_of(config: Any, kind: str) -> Estimator:
    """How an agent scores the phases of a kind: latents as its `estimator` says, all others as played."""
    return FORWARD if kind == "latents" and config.looks_forward else TRAJECTORY


def check_estimator(config: Any) -> None:
    """Refuse settings of estimators and samplers that nothing would read.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting and the remedy.
    """
    kinds = config.trained_kinds
    if config.steps.tail < 1 and ("latents" not in kinds or not config.trained_steps(0)):
        raise ConfigError(
            f"`steps.tail` must be 1 where no step of latents explores (`sampler` {config.sampling!r}, "
            f"trained are {', '.join(sorted(kinds))}), got {config.steps.tail:g}: there is nothing for it to "
            "begin behind; try fewer `num_steps`."
        )
    if "latents" not in kinds:
        for name in ("estimator", "sampler"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"`{name}` must be null where no latents are trained, got {getattr(config, name)!r}: "
                    f"{config.env} trains {', '.join(sorted(kinds))}; try null."
                )
    elif not config.looks_forward and config.noising != NoisingSettings():
        raise ConfigError(
            f"`noising` must stay as it is where transitions are scored (`estimator` {config.estimating!r}), "
            f"got {config.noising}: nothing is noised anew; try estimator='elbo'."
        )
