"""Rollouts of hybrid episodes: an engine writes the texts, and then all pictures are drawn together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import torch

from unirl_env.envs.contract import env_attr
from unirl_env.episode import EpisodeBatch
from unirl_env.policies.hybrid_actor import HybridActor
from unirl_env.prompts.sources import as_prompts
from unirl_env.rollouts.base import MakeEnv, Rollout, Told, of_lot
from unirl_env.rollouts.drawing import draw_latents, draw_tokens
from unirl_env.rollouts.engines.base import Answer, Engine, Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.rollouts.requests import EpisodeRequest
from unirl_env.rollouts.texts import text_phase
from unirl_env.rollouts.tokens import checked_answers
from unirl_env.rollouts.writing import Played, write
from unirl_env.types import Prompt

__all__ = ["HybridRollout"]


class HybridRollout(Rollout):
    """Plays whole episodes of a hybrid environment with a `HybridActor`, in this process.

    Texts end at different steps; their pictures wait for the last one, and then share every forward pass.

    Args:
        make_env: `make_env(num_envs, num_steps=None)` returns a scored `HybridVectorEnv` with the torch
            backend and autoreset DISABLED; called once for each size that is asked for.
        actor: The policy.
        batch_size: Episodes played together; None takes all at once.
        rows: The most texts decoded together; None takes all at once.

    Raises:
        ConfigError: If `batch_size` is not positive.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        actor: HybridActor,
        *,
        batch_size: int | None = None,
        rows: int | None = None,
    ):
        super().__init__(make_env, batch_size=batch_size)
        self.actor = actor
        self.writer = LocalEngine(actor.text, rows=rows)
        self.painter = LocalEngine(actor.image, rows=rows) if actor.unified_model.discrete else None

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        group_size: int = 1,
        sample_offset: Sequence[int] | None = None,
        first_group: int = 0,
        stochastic_steps: Sequence[int] | None = None,
        num_steps: int | None = None,
        same_noise: bool = False,
        keep_mean: bool = False,
        keep_final: bool = False,
        keep_samples: bool = True,
        weights_version: int = 0,
        base: bool = False,
        temperature: float | None = None,
    ) -> EpisodeBatch:
        """Play `group_size` episodes of each prompt.

        Args:
            prompts: P prompts.
            seed: Key of all draws and all noise.
            group_size: G.
            sample_offset: `[P]`, the sample id of each group's first episode; None counts occurrences.
            first_group: The number of the first group.
            stochastic_steps: The denoising steps that explore and are recorded; None takes the
                environment's own, an empty sequence plays the deterministic ODE and records nothing but
                what `keep_final` asks for.
            num_steps: Denoising steps; None takes the environment's own.
            same_noise: One initial noise per group.
            keep_mean: Record the means of the latents' sampling distribution.
            keep_final: Record the finished latents; where no step explores, as what the last step did.
            keep_samples: Keep the finished samples in the batch.
            weights_version: Recorded in the batch.
            base: Play with the untrained model.
            temperature: Of the texts; None takes the policy's own; 0 decodes greedily.

        Returns:
            P x G episodes, in the order of the prompts, with a phase for each that is not empty.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
            ContractError: If the environment scores nothing.
        """
        # Once for a whole group: the environment reads a prompt's pictures once for each object that it sees.
        prompts = as_prompts(prompts, max_characters=sys.maxsize)

        def play(lot: Sequence[EpisodeRequest]) -> dict[str, Any]:
            options = of_lot(lot, same_noise=same_noise, stochastic_steps=stochastic_steps)
            env = self._env(len(lot), num_steps)
            recorded = {"keep_mean": keep_mean, "keep_final": keep_final}
            return self._play(env, seed, options, recorded, keep_samples, temperature)

        with self.actor.reference() if base else nullcontext():
            return self._in_lots(prompts, group_size, sample_offset, first_group, weights_version, play)

    def _play(
        self,
        env: gym.vector.VectorEnv,
        seed: int,
        options: dict[str, Any],
        recorded: dict[str, bool],
        keep_samples: bool,
        temperature: float | None,
    ) -> dict[str, Any]:
        """One batch of episodes from reset to their ends, as fields of an `EpisodeBatch`."""
        obs, info = env.reset(seed=seed, options=options)
        prompts, seeds = env_attr(env, "playing"), torch.as_tensor(info["episode_seed"])
        world, played = Told(env), Played.begun(obs, len(prompts))
        phases = {}
        if world.max_new_tokens:
            ask = _asking(self.writer, temperature=temperature)
            written = write(env, played, ask, prompts, seeds, lambda token: {"token": token})
            spaces = world.unified_model.text.input_spaces
            phases["text"] = text_phase(played.obs, world.encodings, spaces, written)
        if self.painter is not None:
            phases["image"] = draw_tokens(env, played, _asking(self.painter), prompts, seeds)
        elif world.num_steps:
            drawn = draw_latents(env, played, self.actor.image, seeds, **recorded)
            if drawn is not None:
                phases["image"] = drawn
        return {
            "phases": phases,
            "scores": played.verdicts.scores(),
            "prompts": prompts,
            "episode_seed": seeds,
            "samples": played.verdicts.samples() if keep_samples else None,
            "truncated": played.truncated,
        }


def _asking(engine: Engine, **how: Any) -> Callable[[Sequence[Request]], list[Answer]]:
    """Ask `engine`, and look at its answers."""
    return lambda requests: checked_answers(engine.generate(requests, **how), requests)
