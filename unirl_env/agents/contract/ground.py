"""What the checks of one kind of phase share: the world, the stands in it, and how a verdict is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unirl_env.agents.contract.certificate import FAILED, IDLE, PASSED, Check
from unirl_env.agents.contract.stand import Stand
from unirl_env.agents.contract.worlds import WORLDS, ExactWorld, WordWorld
from unirl_env.episode import EpisodeBatch
from unirl_env.types import Scores

SMALL = {"num_prompts": 4, "group_size": 6}
"""Episodes of checks that need no averages: 24."""


class Ground:
    """One kind of phase of one agent, on trial.

    Args:
        config: The agent's settings.
        kind: `latents` or `tokens`.
        seed: Of everything that is drawn.
        quick: Whether averages are taken of fewer batches, and nothing is trained.

    Attributes:
        config: As above.
        kind: As above.
        world: Where it is judged.
        seed: As above.
        quick: As above.
    """

    def __init__(self, config: Any, kind: str, *, seed: int = 0, quick: bool = False):
        self.config, self.kind, self.seed, self.quick = config, kind, seed, quick
        self.world: ExactWorld = WORLDS[kind]()
        self._stands: dict[str, Stand] = {}

    def stand(self, *, moved: bool = True, world: ExactWorld | None = None, **settings: Any) -> Stand:
        """The agent with these settings, kept for other checks; `moved`, away from the untrained weights."""
        world = world or self.world
        place = f"{type(world).__name__} {vars(world).get('ends')} {moved} {sorted(settings.items())}"
        if place not in self._stands:
            stand = self._stands[place] = Stand(self.config, world, seed=self.seed, **settings)
            if moved:
                stand.move()
        return self._stands[place]

    def small(self, **settings: Any) -> Stand:
        """The agent with 4 groups of 6 episodes, in one optimizer step, its advantages as they are its own."""
        return self.stand(**SMALL, **settings)

    def close(self) -> None:
        """Stop all agents."""
        for stand in self._stands.values():
            stand.agent.stop()
        self._stands.clear()

    @property
    def declared(self) -> str:
        """The bias that the agent says its gradient has here, in words; empty without one."""
        return declared_bias(self.config, self.kind)

    def check(
        self,
        name: str,
        passed: bool,
        figure: float,
        bound: str,
        fine: str,
        wrong: str,
        **more: Any,
    ) -> Check:
        """A check that passed, and what that means, or failed, with what is wrong and the remedy."""
        verdict, words = (PASSED, fine) if passed else (FAILED, wrong)
        return Check(name, self.kind, verdict, float(figure), bound, words, **more)

    def idle(self, name: str, words: str) -> Check:
        """A check that says nothing of this agent."""
        return Check(name, self.kind, IDLE, words=words)

    def even_words(self) -> ExactWorld:
        """The world in which texts have one length: of tokens without any end; of latents the same."""
        return WordWorld(ends=False) if self.kind == "tokens" else self.world


def declared_bias(config: Any, kind: str) -> str:
    """Why the gradient of an agent at ratio one is, by its own words, not that of the expected reward.

    Args:
        config: An `AgentConfig`: its class says so (`declared_bias`), or its settings do.
        kind: `latents` or `tokens`.
    """
    said: Mapping[str, str] = config.declared_bias
    if kind in said:
        return said[kind]
    if kind == "tokens":
        return "texts count alike, and not their tokens" if config.weighing == "sequence_mean" else ""
    if getattr(config, "looks_forward", False):
        return "finished latents, noised anew, have a bound in the place of a log-probability"
    if getattr(config, "step_weights", "none") != "none":
        return "steps count by their noise"
    return ""


def apart(found: Tensor, wanted: Tensor) -> float:
    """The distance of two gradients over the length of the second; infinite where that has none."""
    length = float(wanted.norm())
    distance = float((found - wanted).norm())
    if not math.isfinite(distance):
        return math.inf
    return distance / length if length else (0.0 if distance == 0 else math.inf)


def paid(batch: EpisodeBatch, value: Tensor) -> EpisodeBatch:
    """The episodes with other rewards `[B]`; NaN is an invalid one."""
    return dataclasses.replace(batch, scores=Scores(value))


def by_group(batch: EpisodeBatch) -> EpisodeBatch:
    """The episodes paid alike within each group, and otherwise in each."""
    return paid(batch, 0.7 * batch.group.float() - 1.0)


def direction(a: Tensor, b: Tensor) -> float:
    """The cosine of two gradients; 0 where one is none."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def share(part: Tensor, whole: Tensor) -> float:
    """The length of one gradient over that of another; infinite where that has none."""
    length = float(whole.norm())
    return float(part.norm()) / length if length else math.inf
