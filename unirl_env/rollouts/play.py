"""The one player: a request becomes batches of episodes, and each phase of these is driven to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch

from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError
from unirl_env.policies.actor import Actor
from unirl_env.prompts.sources import as_prompts
from unirl_env.rewards.scoring import settled
from unirl_env.rollouts.driver import Driver, EpisodeRequest, LiveEpisodes, RolloutRequest
from unirl_env.rollouts.drivers.actions import ActionDriver
from unirl_env.rollouts.drivers.latents import LatentDriver
from unirl_env.rollouts.drivers.tokens import PictureTokenDriver, TextDriver
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.wrappers.reward import leave_invalid

MakeEnv = Callable[..., gym.vector.VectorEnv]


class Rollout:
    """Plays whole episodes of scored environments.

    Args:
        make_env: `make_env(num_envs)`, with `num_steps` or `levels` where these are asked for, returns a
            scored environment with autoreset DISABLED; called once for each size. `ActionDriver` takes
            arrays, the others tensors.
        players: What plays each phase, in the order of an episode; or an `Actor`, which plays all phases in
            this process (`drivers_of`).
        batch_size: Episodes played together; None takes all at once. Bounds memory, and changes no result
            beyond the last bits that a network's own batching changes (none with `rows_per_forward`).

    Raises:
        ConfigError: If `batch_size` is not positive, or an actor has a head that nothing here drives.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        players: Actor | Mapping[str, Driver],
        *,
        batch_size: int | None = None,
    ):
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.make_env, self.batch_size = make_env, batch_size
        self.drivers = drivers_of(players) if isinstance(players, Actor) else dict(players)
        self._envs: dict[tuple[int, int | None, tuple[int, ...] | None], gym.vector.VectorEnv] = {}

    @torch.no_grad()
    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """Play the episodes that are asked for.

        Returns:
            P x G episodes, in the order of the prompts, with a phase for each of which something is recorded.

        Raises:
            ConfigError: If there is nothing to play, or a part of the request does not fit.
            ContractError: If the environment scores nothing, an engine does not answer as it must, or an
                episode has no end.
            EngineLost: If an engine is lost again and again.
            StaleWeights: If an engine holds other weights.
        """
        # Once for a whole group: an environment reads a prompt's pictures once for each object that it sees.
        prompts = as_prompts(request.prompts, max_characters=sys.maxsize)
        request = replace(request, prompts=prompts)
        for driver in self.drivers.values():
            driver.check(request)
        episodes = request.episodes()
        size = min(self.batch_size or len(episodes), len(episodes))
        parts = [episodes[start : start + size] for start in range(0, len(episodes), size)]
        # Scores that are on their way are asked for at the end: one batch is judged while the next is played.
        played = [self._play(part, request) for part in parts]
        batches = [EpisodeBatch(**{**fields, "scores": settled(fields["scores"])}) for fields in played]
        return batches[0] if len(batches) == 1 else EpisodeBatch.cat(batches)

    def load_weights(self, version: int) -> None:
        """Let engines beside the policy take over its present weights under the name `version`.

        Raises:
            ConfigError: If an engine has no actor to take them from.
            EngineLost: If an engine is lost, and lost again after a restart.
        """
        for driver in self.drivers.values():
            driver.load_weights(version)

    def close(self) -> None:
        """Close the environments and the engines."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()
        for driver in self.drivers.values():
            driver.close()

    def _play(self, batch: Sequence[EpisodeRequest], request: RolloutRequest) -> dict[str, Any]:
        """One batch of episodes from reset to their ends, as fields of an `EpisodeBatch`."""
        live = LiveEpisodes(self._env(len(batch), request), batch, request)
        phases = {name: driver.play(live, request) for name, driver in self.drivers.items()}
        return {
            "phases": {name: phase for name, phase in phases.items() if phase is not None},
            "scores": live.scores(),
            "group": torch.tensor([episode.group for episode in batch]),
            "prompts": live.prompts,
            "episode_seed": live.seeds,
            "weights_version": request.weights_version,
            "samples": live.samples() if request.keep_samples else None,
            "truncated": live.truncated if any(d.truncates for d in self.drivers.values()) else None,
        }

    def _env(self, num_envs: int, request: RolloutRequest) -> gym.vector.VectorEnv:
        levels = None if request.levels is None else tuple(request.levels)
        key = (num_envs, request.num_steps, levels, request.size)
        if key not in self._envs:
            if levels is not None:
                # A window that has moved on does not come back for long.
                for old in [old for old in self._envs if old[2] not in (None, levels)]:
                    self._envs.pop(old).close()
            asked = {"num_steps": request.num_steps, "levels": levels, "size": request.size}
            asked = {name: value for name, value in asked.items() if value is not None}
            env = self._envs[key] = self.make_env(num_envs, **asked)
            leave_invalid(env)  # scores are read here, not rewards, and a failed one is data
            if hasattr(env.unwrapped, "info_objects"):
                # Nobody reads plain data here: samples are taken as they are.
                env.unwrapped.info_objects = True
        return self._envs[key]


def drivers_of(actor: Actor, *, rows: int | None = None) -> dict[str, Driver]:
    """What plays each phase of an actor in this process.

    Args:
        actor: The policy.
        rows: The most texts decoded together; None takes all at once.

    Raises:
        ConfigError: If a head is of a kind that nothing here drives.
    """
    found: dict[str, Driver] = {}
    for phase, head in actor.heads.items():
        if head.kind == "latents":
            found[phase] = LatentDriver(actor, phase)
        elif head.kind == "tokens":
            engine = LocalEngine(actor, phase=phase, rows=rows)
            found[phase] = (PictureTokenDriver if phase == "image" else TextDriver)(engine, actor)
        elif head.kind in ("discrete", "continuous"):
            found[phase] = ActionDriver(actor, phase)
        else:
            raise ConfigError(
                f"`players` must say what drives `{phase}`, which is of the kind {head.kind!r}; try "
                f"{{{phase!r}: a `Driver` of your own}}."
            )
    return found
