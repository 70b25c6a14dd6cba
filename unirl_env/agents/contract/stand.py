"""A test stand: an agent, whole and in this process, in a world whose numbers are known.

What is measured is what an ordinary iteration does (`Agent.training_step`): its episodes may be exchanged
on their way from the player, its losses are seen through a lens, and the gradient is what is left in the
weights.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
import torch
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.agents.attributes import defaults, knob_names
from unirl_env.agents.contract.worlds import ExactWorld
from unirl_env.agents.kinds import Losses
from unirl_env.agents.loss import Loss
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError
from unirl_env.rollouts.calls import learner_results
from unirl_env.settings import RolloutSettings
from unirl_env.settings.fields import python_name

Look = Callable[[Any, Any, Any, Any], Any]
"""`(compute, rows, new, context) -> (loss, metrics)`: what is called in the place of a loss."""
OF_SAMPLING = {"sampler", "rollout_weights"}
"""Settings of rollouts that are a part of an algorithm; all others are the stand's own."""
OF_A_RUN = {
    *("lr", "lr_schedule", "lr_final", "lr_iterations", "phase_lrs", "optimizer", "optimizer_options"),
    *("warmup_iterations", "betas", "weight_decay", "adam_epsilon", "grad_clip"),
    *("num_epochs", "num_minibatches", "minibatch_size", "shuffle_batch_per_epoch"),
    *(
        "micro_batch_size",
        "micro_batch_steps",
        "micro_batch_tokens",
        "horizon",
        "mask_truncated",
        "idle_episodes",
    ),
    *("train_phases", "phase_rewards", "phase_weights", "advantage_parts", "advantage_clip"),
    *(
        "reference_kl",
        "reference_kl_every",
        "entropy_bonus",
        "stop_kl",
        "phase_scale",
        "self_check",
        "policy",
        "steps",
        "losses",
    ),
}
"""Settings of agents that belong to a run, its optimizer and its environment: the stand's own, too."""


class Outcome(NamedTuple):
    """What an iteration did.

    Attributes:
        gradient: `[n]` float64, of its last optimizer step in all trained weights, before the step.
        batch: Its episodes.
        weights: `[n]`, after the update.
    """

    gradient: Tensor
    batch: EpisodeBatch
    weights: Tensor


@dataclasses.dataclass
class Lens:
    """What looks at every call of a loss; None lets it be."""

    look: Look | None = None


class _Seen:
    """A loss's function, seen through a lens."""

    def __init__(self, compute: Any, lens: Lens):
        self.func, self.lens = compute, lens  # errors name the loss by `func`

    def __call__(self, rows: Any, new: Any, context: Any) -> Any:
        if self.lens.look is None:
            return self.func(rows, new, context)
        return self.lens.look(self.func, rows, new, context)


class Stand:
    """An agent in an exact world, with policies of known places.

    Args:
        config: The agent's settings; what belongs to a run and not to the algorithm is left out.
        world: Where it stands.
        seed: Of everything that is drawn.
        skips_idle: What is taken for the loss's own word; None takes that.
        **settings: What `training` is told besides.

    Attributes:
        config: The settings in use.
        world: As above.
        agent: The agent.
        learner: Its learner.
        network: Its trained network.
        reference: A copy of the untrained one.
        start: The untrained weights `[n]`.
    """

    def __init__(
        self,
        config: Any,
        world: ExactWorld,
        *,
        seed: int = 0,
        skips_idle: bool | None = None,
        **settings: Any,
    ):
        self.world, self.lens = world, Lens()
        self.config = _prepared(config, world, self.lens, skips_idle)
        self.config.environment(world.env, env_config=world.env_config())
        own = {"num_minibatches": 1, "grad_clip": None, "self_check": False, "keep_samples": False}
        self.config.training(**{**own, "seed": seed, **world.settings(), **settings})
        with _quiet():
            self.agent = self.config.build_algo()
        self.learner = self._learners()[0]
        self.network: nn.Module = self.learner.policy.actor.network
        self.reference = copy.deepcopy(self.network).requires_grad_(False)
        self._state, self._meta = self.agent.run_state()
        self.start = self.weights()

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *error: object) -> None:
        self.agent.stop()

    def weights(self) -> Tensor:
        """All trained weights `[n]`."""
        return torch.cat([weight.detach().flatten().clone() for weight in self.trained])

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained weights themselves."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def move(self, far: float, key: int = 0) -> None:
        """Begin every iteration from here on at keyed noise of std `far` from the untrained weights."""
        generator = torch.Generator().manual_seed(F.derive_seed("test stand", key))
        self.move_to(self.start + far * torch.randn(len(self.start), generator=generator))

    @torch.no_grad()
    def move_to(self, weights: Tensor) -> None:
        """Begin every iteration from here on at `weights` `[n]`."""
        self.agent.load_run_state(self._state, self._meta)
        self._put(weights)
        self._state, self._meta = self.agent.run_state()

    def iterate(
        self,
        iteration: int = 0,
        *,
        batch: EpisodeBatch | None = None,
        look: Look | None = None,
        learners: int = 1,
    ) -> Outcome:
        """One iteration from where the policy is, which stays there.

        Args:
            iteration: Its number: what is drawn follows from it.
            batch: Episodes in the place of those that would be played.
            look: What is called in the place of the losses.
            learners: Among how many the episodes are shared out, one after another in this process.

        Raises:
            ContractError: If no weight has a gradient afterwards.
        """
        self.agent.load_run_state(self._state, {**self._meta, "iteration": iteration})
        for weight in self.trained:
            weight.grad = None
        self.lens.look = look
        try:
            with self._playing(batch) as played, self._learning(learners) as found:
                self.agent.training_step()
            gradient = found[0] if found else self._gradient()
            return Outcome(gradient, played[0], self.weights())
        finally:
            self.lens.look = None

    def train(self, iterations: int, *, tail: int) -> Tensor:
        """Train from where the policy is; the mean of the weights `[n]` after each of the last `tail`."""
        self.agent.load_run_state(self._state, {**self._meta, "iteration": 0})
        total = torch.zeros_like(self.start, dtype=torch.float64)
        for number in range(iterations):
            self.agent.training_step()
            if number >= iterations - tail:
                total += self.weights().double() / tail
        return total.float()

    def at(self, weights: Tensor) -> nn.Module:
        """A copy of the network with other weights `[n]`."""
        network = copy.deepcopy(self.network)
        mine = [weight for weight in network.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, value in zip(mine, weights.split([w.numel() for w in mine]), strict=True):
                weight.copy_(value.view_as(weight))
        return network

    @property
    def begins(self) -> Tensor:
        """The weights `[n]` from which iterations begin."""
        self.agent.load_run_state(self._state, self._meta)
        return self.weights()

    @property
    def moved(self) -> nn.Module:
        """A copy of the network as it is where iterations begin."""
        return self.at(self.begins)

    @contextmanager
    def putting(self, weights: Tensor) -> Iterator[None]:
        """Within it, the network has other weights `[n]`; for use within a look."""
        before = self.weights()
        self._put(weights)
        try:
            yield
        finally:
            self._put(before)

    @torch.no_grad()
    def _put(self, weights: Tensor) -> None:
        for weight, value in zip(self.trained, weights.split([w.numel() for w in self.trained]), strict=True):
            weight.copy_(value.view_as(weight))

    def _gradient(self) -> Tensor:
        if all(weight.grad is None for weight in self.trained):
            raise ContractError("An update must leave gradients in the trained weights, got none at all.")
        return torch.cat(
            [
                (torch.zeros_like(weight) if weight.grad is None else weight.grad).detach().flatten().double()
                for weight in self.trained
            ]
        )

    @contextmanager
    def _playing(self, batch: EpisodeBatch | None) -> Iterator[list[EpisodeBatch]]:
        """Let the player return `batch`; the list has what it returned."""
        runner: Any = self.agent.env_runner_group.local_env_runner
        play, played = runner.collect, []

        def collect(request: Any) -> EpisodeBatch:
            found = play(request) if batch is None else batch
            found = dataclasses.replace(found, weights_version=request.weights_version)
            played.append(found)
            return found

        runner.collect = collect
        try:
            yield played
        finally:
            del runner.collect

    @contextmanager
    def _learning(self, count: int) -> Iterator[list[Tensor]]:
        """Let `count` learners take shares of the update; the list has the sum of their gradients."""
        found: list[Tensor] = []
        if count == 1:
            yield found
            return
        config, group = self.agent.config, self.agent.learner_group
        self.agent.config = copy.copy(config)
        vars(self.agent.config)["num_learners"] = count  # past RLlib's own lock on settings in use
        self.agent.learner_group = _Several(self, found)
        try:
            yield found
        finally:
            self.agent.config, self.agent.learner_group = config, group

    def _learners(self) -> list[Any]:
        return learner_results(self.agent.learner_group.foreach_learner(lambda learner: learner))


class _Several:
    """A group of learners that are one, which takes their shares one after another from the same weights."""

    is_remote = True

    def __init__(self, stand: Stand, found: list[Tensor]):
        self.stand, self.found = stand, found

    def __len__(self) -> int:
        return 1

    def require_all(self) -> None:
        """It lives in this process."""

    def update(self, *, training_data: TrainingData, **options: Any) -> list[Any]:
        state, reports = self.stand.learner.run_state(), []
        for reference in training_data.batch_refs or ():
            self.stand.learner.load_run_state(state)
            share: Any = ray.get(reference)
            reports.append(self.stand.learner.update(training_data=TrainingData(batch=share), **options))
            gradient = self.stand._gradient()
            self.found[:] = [self.found[0] + gradient] if self.found else [gradient]
        return reports

    def foreach_learner(self, function: Any, **options: Any) -> Any:
        return self.stand.agent.sync.learner_group.foreach_learner(function)


def _prepared(config: Any, world: ExactWorld, lens: Lens, skips_idle: bool | None) -> Any:
    """A fresh configuration of the same algorithm, whose losses are seen through `lens`."""
    kind: Any = type(config)
    loss: Loss = config.losses[world.kind]
    skips = loss.skips_idle if skips_idle is None else skips_idle
    seen = dataclasses.replace(loss, compute=_Seen(loss.compute, lens), skips_idle=skips)
    losses = Losses({world.loss_kind: seen})
    # What pickles it by its name would find the original, and so takes it as it is.
    fresh = type(kind.__name__, (kind,), {"losses": losses, "__module__": kind.__module__})()
    if "losses" in vars(fresh):
        fresh.losses = losses
    fresh.algo_class = config.algo_class
    ours = {python_name(field) for field in dataclasses.fields(RolloutSettings)} - OF_SAMPLING
    kept = {*defaults(kind), *knob_names(kind)} - ours - OF_A_RUN
    for name in kept & vars(config).keys():
        setattr(fresh, name, copy.deepcopy(getattr(config, name)))
    if fresh.aggregate == "horizon":
        fresh.aggregate = "token_mean"
    return fresh


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what RLlib says of every algorithm that is built."""
    logger = logging.getLogger("ray.rllib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
