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

SMALL: dict[str, Any] = {"num_prompts": 4, "group_size": 6}
"""Episodes of checks that need no averages: 24."""
FAR = {"latents": 0.3, "tokens": 0.6}
"""How far policies under test are from the untrained one: the std of keyed noise on every weight."""


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
        sizes: By the names of checks, how large gradients were found, in units of exact ones.
    """

    def __init__(self, config: Any, kind: str, *, seed: int = 0, quick: bool = False):
        self.config, self.kind, self.seed, self.quick = config, kind, seed, quick
        self.world: ExactWorld = WORLDS[kind]()
        self.sizes: dict[str, float] = {}
        self._stands: dict[str, Stand] = {}

    def stand(
        self,
        *,
        far: float | None = None,
        world: ExactWorld | None = None,
        skips_idle: bool | None = None,
        **settings: Any,
    ) -> Stand:
        """The agent with these settings, kept for other checks.

        Args:
            far: How far from the untrained weights it is; None takes `FAR`.
            world: Where it stands; None takes this ground's own.
            skips_idle: What is taken for its loss's own word; None takes that.
            **settings: What `training` is told.
        """
        world, far = world or self.world, FAR[self.kind] if far is None else far
        place = repr((type(world), vars(world).get("ends"), far, skips_idle, sorted(settings.items())))
        if place not in self._stands:
            made = Stand(self.config, world, seed=self.seed, skips_idle=skips_idle, **settings)
            self._stands[place] = made
            if far:
                made.move(far)
        return self._stands[place]

    def small(self, **settings: Any) -> Stand:
        """The agent with 4 groups of 6 episodes, in one optimizer step, with advantages of its own."""
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
    if config.looks_forward:
        return "finished latents, noised anew, have a bound in the place of a log-probability"
    return "steps count by their noise" if config.weighs_steps != "none" else ""


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
