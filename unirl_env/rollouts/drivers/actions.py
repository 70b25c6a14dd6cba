"""Episodes of an environment whose actions a head draws, however many steps each takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.episode import Phase
from unirl_env.errors import ConfigError, ContractError
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import Driver, LiveEpisodes, RolloutRequest

ENDLESS = 100_000
"""Steps after which an episode counts as one without end."""


class ActionDriver(Driver):
    """The network beside an environment of either array type that keeps `unirl_env.envs.contract`.

    Args:
        actor: The policy.
        phase: Which of its heads draws; None where there is one.
    """

    def __init__(self, actor: Actor, phase: str | None = None):
        self.actor, self.head, self.phase = actor, actor.head(phase), phase

    def check(self, request: RolloutRequest) -> None:
        """Refuse temperatures between the policy's own and 0: nothing is drawn at them."""
        known = (None, 0, self.head.temperature)
        if request.temperature not in known:
            raise ConfigError(
                f"`temperature` of actions must be None, 0 or the policy's {self.head.temperature}, got "
                f"{request.temperature}; 0 takes the likeliest actions."
            )

    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase:
        """Act until all episodes are over.

        Raises:
            ContractError: If an episode has no end.
        """
        device = next(self.actor.parameters()).device
        steps: list[tuple[dict[str, Tensor], Any, Tensor]] = []
        with self.actor.acting(base=request.base):
            while self.actor.anyone(not live.done.all()):
                if len(steps) == ENDLESS:
                    raise ContractError(
                        f"Episodes must end, got {int((~live.done).sum())} that did not in {ENDLESS} steps; "
                        "try a limit of steps in the environment."
                    )
                obs = live.obs
                # Clones, because tensors may be live buffers; rows that are over come along, and are masked.
                seen = {name: torch.as_tensor(value).to(device, copy=True) for name, value in obs.items()}
                draws = None
                if request.temperature != 0:
                    draws = self.head.distribution.draws(live.seeds, len(steps), device)
                step = self.actor.act(seen, draws, phase=self.phase)
                if live.done.all():  # other processes with parts of the network are not so far
                    continue
                steps.append((seen, step, ~live.done))
                live.step(_like(obs, step[0]))
        return _phase(steps, self.head.kind, device)


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
