"""Rollouts in this process: the policy's network and the environment side by side, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.envs.contract import env_attr
from unirl_env.envs.encodings import prompt_key
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.functional import SDEStep
from unirl_env.policies.actor import ANNOUNCED, FlowActor
from unirl_env.rollouts.base import MakeEnv, Rollout, Told, distinct, of_lot
from unirl_env.rollouts.recording import kept_steps, seen_of
from unirl_env.rollouts.requests import EpisodeRequest
from unirl_env.rollouts.verdicts import Verdicts
from unirl_env.types import Prompt

__all__ = ["LocalRollout"]


class LocalRollout(Rollout):
    """Plays whole episodes of a denoising environment with a `FlowActor`.

    Args:
        make_env: `make_env(num_envs, num_steps=None)` returns a scored `DenoiseVectorEnv` with the torch
            backend and autoreset DISABLED; called once for each size that is asked for.
        actor: The policy.
        batch_size: Episodes stepped together; None takes all at once. Bounds memory, and changes no result
            beyond the last bits that a network's own batching changes (none with `rows_per_forward`).
    """

    def __init__(self, make_env: MakeEnv, actor: FlowActor, *, batch_size: int | None = None):
        super().__init__(make_env, batch_size=batch_size)
        self.actor = actor

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
    ) -> EpisodeBatch:
        """Play `group_size` episodes of each prompt.

        Args:
            prompts: P prompts.
            seed: Key of all noise.
            group_size: G.
            sample_offset: `[P]`, the sample id of each group's first episode; None counts occurrences.
            first_group: The number of the first group.
            stochastic_steps: The steps that explore and are recorded; None takes the environment's own, an
                empty sequence plays the deterministic ODE and records nothing but what `keep_final` asks for.
            num_steps: Denoising steps; None takes the environment's own.
            same_noise: One initial noise per group.
            keep_mean: Record the means of the sampling distribution.
            keep_final: Record the finished latents; where no step explores, as what the last step did.
            keep_samples: Keep the finished samples in the batch.
            weights_version: Recorded in the batch.
            base: Play with the untrained model.

        Returns:
            P x G episodes, in the order of the prompts.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
            ContractError: If the environment scores nothing.
        """

        def play(lot: Sequence[EpisodeRequest]) -> dict[str, Any]:
            options = of_lot(lot, same_noise=same_noise, stochastic_steps=stochastic_steps)
            env = self._env(len(lot), num_steps)
            return self._play(env, seed, options, keep_mean, keep_final, keep_samples)

        with self.actor.reference() if base else nullcontext():
            return self._in_lots(prompts, group_size, sample_offset, first_group, weights_version, play)

    def _play(
        self,
        env: gym.vector.VectorEnv,
        seed: int,
        options: dict[str, Any],
        keep_mean: bool,
        keep_final: bool,
        keep_samples: bool,
    ) -> dict[str, Any]:
        obs, info = env.reset(seed=seed, options=options)
        world = Told(env)
        explored = set(world.stochastic_steps)
        kept = kept_steps(explored, world.num_steps, keep_final)
        prompts, seeds = env_attr(env, "playing"), info["episode_seed"]
        first, row = distinct([(prompt_key(prompt, prompt.text), prompt.negative) for prompt in prompts])
        context = {name: tensor[first] for name, tensor in obs.items() if name not in ANNOUNCED}
        shape, device = obs["latent"].shape[1:], obs["latent"].device
        reading = self.actor.read({**context, "context_row": row.to(device)})
        steps: list[tuple[dict[str, Tensor], SDEStep]] = []
        for k in range(world.num_steps):
            # What is stored is what the policy sees: rounding later would score another state.
            obs["latent"] = obs["latent"].to(self.actor.storage_dtype)
            noise = F.keyed_noise(seeds.tolist(), k, shape, device=device) if k in explored else None
            step = self.actor.act(obs, noise, reading=reading)
            if k in kept:
                steps.append(({name: obs[name] for name in seen_of(explored)}, step))
            obs, *_ = env.step(step.latent)
        verdicts = Verdicts(len(prompts))
        verdicts.take(env)
        phases = {}
        if steps:
            phases["image"] = Phase(
                observation={name: torch.stack([o[name] for o, _ in steps], 1) for name in steps[0][0]},
                action=torch.stack([step.latent for _, step in steps], 1),
                log_prob=torch.stack([step.log_prob for _, step in steps], 1),
                mask=torch.ones(len(prompts), len(steps), dtype=torch.bool, device=device),
                context=context,
                context_row=row.to(device),
                mean=torch.stack([step.mean for _, step in steps], 1) if keep_mean else None,
                final=step.latent if keep_final else None,
            )
        return {
            "phases": phases,
            "scores": verdicts.scores(),
            "prompts": prompts,
            "episode_seed": torch.from_numpy(seeds),
            "samples": verdicts.samples() if keep_samples else None,
        }
