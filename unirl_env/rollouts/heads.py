"""Rollouts of any environment whose actions a head draws: network and environment side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from unirl_env.envs.contract import env_attr
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ContractError
from unirl_env.policies.head_actor import HeadActor
from unirl_env.rollouts.base import MakeEnv, Rollout, of_lot
from unirl_env.rollouts.requests import EpisodeRequest
from unirl_env.rollouts.verdicts import Verdicts
from unirl_env.types import Prompt

__all__ = ["HeadRollout"]

ENDLESS = 100_000
"""Steps after which an episode counts as one without end."""


class HeadRollout(Rollout):
    """Plays whole episodes with a `HeadActor`, however many steps each takes.

    Args:
        make_env: `make_env(num_envs)` returns a scored environment with autoreset DISABLED, of either array
            type, that keeps the contract of `unirl_env.envs.contract`.
        actor: The policy.
        phase: What the phase of its actions is called.
        batch_size: Episodes stepped together; None takes all at once. Bounds memory, and changes no result
            beyond the last bits that a network's own batching changes (none with `rows_per_forward`).
    """

    def __init__(
        self, make_env: MakeEnv, actor: HeadActor, *, phase: str = "actions", batch_size: int | None = None
    ):
        super().__init__(make_env, batch_size=batch_size)
        self.actor, self.phase = actor, phase

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        group_size: int = 1,
        sample_offset: Sequence[int] | None = None,
        first_group: int = 0,
        same_noise: bool = False,
        greedy: bool = False,
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
            same_noise: Let the episodes of a group begin alike.
            greedy: Take the likeliest actions. Log-probs are recorded, and mean nothing to train on.
            keep_samples: Keep the finished samples in the batch.
            weights_version: Recorded in the batch.
            base: Play with the untrained model.

        Returns:
            P x G episodes, in the order of the prompts.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
            ContractError: If the environment scores nothing, or an episode has no end.
        """

        def play(lot: Sequence[EpisodeRequest]) -> dict[str, Any]:
            options = of_lot(lot, same_noise=same_noise)
            return self._play(self._env(len(lot)), seed, options, greedy, keep_samples)

        with self.actor.reference() if base else nullcontext():
            return self._in_lots(prompts, group_size, sample_offset, first_group, weights_version, play)

    def _play(
        self, env: gym.vector.VectorEnv, seed: int, options: dict[str, Any], greedy: bool, keep_samples: bool
    ) -> dict[str, Any]:
        obs, info = env.reset(seed=seed, options=options)
        prompts, seeds = tuple(env_attr(env, "playing")), torch.as_tensor(info["episode_seed"]).cpu()
        device = next(self.actor.parameters()).device
        over, cut = torch.zeros((2, len(prompts)), dtype=torch.bool)
        verdicts, head, steps = Verdicts(len(prompts)), self.actor.head, []
        while not over.all():
            if len(steps) == ENDLESS:
                raise ContractError(
                    f"Episodes must end, got {int((~over).sum())} that did not in {ENDLESS} steps; try a "
                    "limit of steps in the environment."
                )
            # Clones, because tensors may be live buffers; rows that are over come along, and are masked.
            seen = {name: torch.as_tensor(value).to(device, copy=True) for name, value in obs.items()}
            step = self.actor.act(seen, None if greedy else head.draws(seeds, len(steps), device))
            steps.append((seen, step, ~over))
            obs, _, terminated, truncated, _ = env.step(_like(obs, step[0]))
            ended, now_cut = torch.as_tensor(terminated).cpu(), torch.as_tensor(truncated).cpu()
            over, cut = over | ended | now_cut, torch.where(over, cut, now_cut)
            verdicts.take(env)
        return {
            "phases": {self.phase: _phase(steps, head.kind, device)},
            "scores": verdicts.scores(),
            "prompts": prompts,
            "episode_seed": seeds,
            "samples": verdicts.samples() if keep_samples else None,
            "truncated": cut,
        }


def _phase(steps: Sequence[tuple[dict[str, Tensor], Any, Tensor]], kind: str, device: torch.device) -> Phase:
    """All steps as a ragged phase `[B, S, ...]`; what lies beyond an end does not depend on the others."""
    mask = torch.stack([live for *_, live in steps], 1).to(device)

    def kept(values: list[Tensor], fill: float = 0.0) -> Tensor:
        stacked = torch.stack(values, 1)
        wide = mask.view(*mask.shape, *[1] * (stacked.ndim - 2))
        return torch.where(wide, stacked, torch.full_like(stacked, fill))

    return Phase(
        observation={name: kept([seen[name] for seen, *_ in steps]) for name in steps[0][0]},
        action=kept([step[0] for _, step, _ in steps], -1),
        log_prob=kept([step.log_prob for _, step, _ in steps]),
        mask=mask,
        ragged=True,
        kind=kind,
    )


def _like(obs: dict[str, Any], action: Tensor) -> Any:
    """Actions in the array type of the observation."""
    first = next(iter(obs.values()))
    return action.to(first.device) if isinstance(first, Tensor) else action.cpu().numpy()
