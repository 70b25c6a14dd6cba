"""Rollouts of texts: an engine proposes whole answers, and the environment is stepped through them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import torch

from unirl_env.envs.contract import env_attr
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError, ContractError, EngineLost, StaleWeights
from unirl_env.policies.token_actor import TokenActor
from unirl_env.prompts.sources import as_prompts
from unirl_env.rollouts.base import MakeEnv, Rollout, Told, of_lot
from unirl_env.rollouts.engines.base import Answer, Engine, Request
from unirl_env.rollouts.requests import EpisodeRequest
from unirl_env.rollouts.texts import text_phase
from unirl_env.rollouts.writing import Played, write
from unirl_env.types import Prompt

__all__ = ["TokenRollout", "checked_answers"]

PATIENCE = 3
"""Times that an engine may be lost over the same requests before it counts as gone for good."""


class TokenRollout(Rollout):
    """Plays whole episodes of a token environment with what an engine answers.

    Every answer is walked through `env.step` token by token, so that termination, tools, wrappers and rewards
    have one code path, whoever generates.

    Args:
        make_env: `make_env(num_envs)` returns a scored `TokenVectorEnv` with the torch backend and autoreset
            DISABLED; called once for each size that is asked for.
        engine: What generates.
        actor: The policy, whose weights a restarted engine is given; None takes the engine's own.
        batch_size: Episodes played together; None takes all at once.

    Raises:
        ConfigError: If `batch_size` is not positive.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        engine: Engine,
        *,
        actor: TokenActor | None = None,
        batch_size: int | None = None,
    ):
        super().__init__(make_env, batch_size=batch_size)
        self.engine = engine
        self.actor = getattr(engine, "actor", None) if actor is None else actor

    def load_weights(self, version: int) -> None:
        """Give the engine the actor's present weights under the name `version`; a lost one is restarted once.

        Raises:
            ConfigError: If there is no actor.
            EngineLost: If it is lost again.
        """
        if self.actor is None:
            raise ConfigError("`actor` must be given to load weights into an engine without one, got None.")
        try:
            self.engine.load_weights(version, self.actor)
        except EngineLost:
            self.engine.restart()
            self.engine.load_weights(version, self.actor)

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        group_size: int = 1,
        sample_offset: Sequence[int] | None = None,
        first_group: int = 0,
        keep_samples: bool = True,
        weights_version: int = 0,
        base: bool = False,
        temperature: float | None = None,
    ) -> EpisodeBatch:
        """Play `group_size` episodes of each prompt.

        An engine that is lost on the way is restarted and given its weights again, and what it was asked is
        asked once more. The environment stands still meanwhile: no token, tool or score counts twice.

        Args:
            prompts: P prompts.
            seed: Key of all draws.
            group_size: G.
            sample_offset: `[P]`, the sample id of each group's first episode; None counts occurrences.
            first_group: The number of the first group.
            keep_samples: Keep the finished samples in the batch.
            weights_version: Recorded in the batch; what the engine must hold, once it has a version.
            base: Play with the untrained model.
            temperature: None takes the policy's own; 0 decodes greedily.

        Returns:
            P x G episodes, in the order of the prompts.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
            ContractError: If the environment scores nothing, or the engine does not answer as it must.
            EngineLost: If the engine is lost again and again.
            StaleWeights: If the engine holds another version.
        """
        # Once for a whole group: the environment reads a prompt's pictures once for each object that it sees.
        prompts = as_prompts(prompts, max_characters=sys.maxsize)
        if not base and self.engine.weights_version not in (None, weights_version):
            raise StaleWeights(
                f"The engine must hold weights of version {weights_version}, got version "
                f"{self.engine.weights_version}; publish the weights before collecting."
            )

        def ask(requests: Sequence[Request]) -> list[Answer]:
            return self._ask(requests, weights_version, base=base, temperature=temperature)

        def play(lot: Sequence[EpisodeRequest]) -> dict[str, Any]:
            return _play(self._env(len(lot)), seed, lot, ask, keep_samples)

        return self._in_lots(prompts, group_size, sample_offset, first_group, weights_version, play)

    def close(self) -> None:
        """Close the environments and the engine."""
        super().close()
        self.engine.close()

    def _ask(self, requests: Sequence[Request], version: int, **how: Any) -> list[Answer]:
        """The engine's answers, if need be after a restart."""
        for losses in range(PATIENCE):
            try:
                if losses:
                    self.engine.restart()
                    self.load_weights(version)
                return checked_answers(self.engine.generate(requests, **how), requests)
            except EngineLost as error:
                cause = error
        raise EngineLost(
            f"The engine must survive its requests, got lost {PATIENCE} times over the same "
            f"{len(requests)}: {cause}"
        ) from cause


def _play(
    env: gym.vector.VectorEnv,
    seed: int,
    lot: Sequence[EpisodeRequest],
    ask: Callable[[Sequence[Request]], list[Answer]],
    keep_samples: bool,
) -> dict[str, Any]:
    """One batch of episodes from reset to their ends, as fields of an `EpisodeBatch`."""
    obs, info = env.reset(seed=seed, options=of_lot(lot))
    prompts, seeds = env_attr(env, "playing"), torch.as_tensor(info["episode_seed"])
    world, played = Told(env), Played.begun(obs, len(lot))
    written = write(env, played, ask, prompts, seeds)
    spaces = world.language_model.input_spaces
    return {
        "phases": {"text": text_phase(played.obs, world.encodings, spaces, written)},
        "scores": played.verdicts.scores(),
        "prompts": prompts,
        "episode_seed": seeds,
        "samples": played.verdicts.samples() if keep_samples else None,
        "truncated": played.truncated,
    }


def checked_answers(answers: list[Answer], requests: Sequence[Request]) -> list[Answer]:
    """The answers of an engine, one for each request and none too long.

    Raises:
        ContractError: If they are not.
    """
    if len(answers) != len(requests):
        raise ContractError(
            f"An engine must answer all {len(requests)} requests, got {len(answers)} answers."
        )
    for answer, request in zip(answers, requests, strict=True):
        if not 1 <= len(answer.tokens) <= request.max_new_tokens:
            raise ContractError(
                f"An engine must answer with 1 to {request.max_new_tokens} tokens, got "
                f"{len(answer.tokens)} for prompt {request.prompt.id[:60]!r}."
            )
    return answers
