"""RLlib's callbacks where the episodes are played: in each runner's own process.

A runner plays whole batches, step by step for all of them, or lets an engine write them. Of RLlib's callbacks

- `on_episode_created` and `on_episode_start` come before a batch is played, one after the other for each of
  its episodes: nothing is observed yet, and `custom_data` can be laid out;
- `on_episode_end` comes when the batch has its scores;
- `on_sample_end` comes once for each batch, with all of its episodes;
- `on_environment_created` comes when a runner has made its environment;
- `on_episode_step` never comes, and is refused: a step is one of many episodes at once, or an engine's.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils import force_list

from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ConfigError
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.types import Prompt, Sample

OF_RUNNERS = (
    "on_environment_created",
    "on_episode_created",
    "on_episode_start",
    "on_episode_end",
    "on_sample_end",
)


class PlayedEpisode:
    """One episode, as callbacks see it.

    Attributes:
        id_: The same for the same prompt, sample and key of noise, and for no other episode.
        prompt: What it answers.
        group: The number of its group in the iteration.
        evaluating: Whether it belongs to `evaluate()`; then `env_runner.config.in_evaluation`, too.
        custom_data: What callbacks keep of it from one to the next.
        is_reset: Whether it has been played.
        is_terminated: Whether it came to its own end.
        is_truncated: Whether a length limit ended it.
        sample: What it made; None before it is played, and where samples are not kept.
        parts: The parts of its score.
    """

    def __init__(self, id_: str, prompt: Prompt, group: int, evaluating: bool):
        self.id_, self.prompt, self.group, self.evaluating = id_, prompt, group, evaluating
        self.custom_data: dict[str, Any] = {}
        self.is_reset = self.is_terminated = self.is_truncated = False
        self.sample: Sample | None = None
        self.parts: dict[str, float] = {}
        self._return, self._length, self._seconds = 0.0, 0, 0.0
        self._batch: EpisodeBatch | None = None
        self._place = 0

    def __len__(self) -> int:
        return self._length

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A played episode has no `{name}`; it has {', '.join(n for n in dir(self) if n[0] != '_')}."
        )

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.is_terminated or self.is_truncated

    @property
    def is_valid(self) -> bool:
        """Whether its score can be used; otherwise its return is NaN."""
        return self._return == self._return

    @property
    def phases(self) -> Mapping[str, Phase]:
        """Its recorded steps: observations, actions, log-probabilities; latents have none in evaluation."""
        if self._batch is None:
            return {}
        index = torch.tensor([self._place])
        return {name: phase.select(index) for name, phase in self._batch.phases.items()}

    def get_return(self) -> float:
        """The reward that it was paid at its end; NaN where its score is invalid."""
        return self._return

    def get_rewards(self) -> list[float]:
        """`[len]`: all is paid at the end."""
        return [0.0] * (self._length - 1) + [self._return] if self._length else []

    def get_duration_s(self) -> float:
        """Seconds that the batch took in which it was played."""
        return self._seconds

    def env_steps(self) -> int:
        """Denoising steps and tokens."""
        return self._length

    def agent_steps(self) -> int:
        """The same: there is one agent."""
        return self._length

    def end(self, batch: EpisodeBatch, place: int, length: int, seconds: float) -> None:
        """Take over what came of it."""
        self._batch, self._place, self._length, self._seconds = batch, place, length, seconds
        self._return = float(batch.scores.value[place]) if batch.scores.valid[place] else float("nan")
        self.parts = {name: float(part[place]) for name, part in batch.scores.parts.items()}
        self.is_truncated = batch.truncated is not None and bool(batch.truncated[place])
        self.is_reset, self.is_terminated = True, not self.is_truncated
        self.sample = None if batch.samples is None else batch.samples[place]


class RunnerCallbacks:
    """The callbacks of one runner.

    Args:
        config: An `AgentConfig`.

    Attributes:
        wanted: Whether anybody wants to be told of what runners do.
    """

    def __init__(self, config: Any):
        self.wanted = any(_wanted(config, name) for name in OF_RUNNERS)
        self.objects = [make() for make in force_list(config.callbacks_class)] if self.wanted else []

    def made(self, runner: Any) -> None:
        """Tell that `runner` has made its environment."""
        if self.wanted:
            config = runner.config
            context = EnvContext(config.env_config, runner.worker_index or 0, num_workers=runner.num_workers)
            self._call(runner, "on_environment_created", env=runner.env.unwrapped, env_context=context)

    def around(
        self,
        runner: Any,
        play: Callable[[RolloutRequest], EpisodeBatch],
        request: RolloutRequest,
    ) -> EpisodeBatch:
        """Play a batch, and call what is to be called before and after.

        Args:
            runner: Whose batch it is.
            play: Plays it.
            request: What is asked for.
        """
        runner.config.in_evaluation = request.occasion == "evaluation"
        try:
            return self._play(runner, play, request)
        finally:
            runner.config.in_evaluation = False

    def _play(
        self, runner: Any, play: Callable[[RolloutRequest], EpisodeBatch], request: RolloutRequest
    ) -> EpisodeBatch:
        began = time.perf_counter()
        episodes = [
            PlayedEpisode(
                f"{request.seed:016x}-{episode.prompt.id}-{episode.sample}",
                episode.prompt,
                episode.group,
                runner.config.in_evaluation,
            )
            for episode in request.episodes()
        ]
        about = {"env": runner.env.unwrapped, "rl_module": runner.module}
        for name in ("on_episode_created", "on_episode_start"):
            for i, episode in enumerate(episodes):
                self._call(runner, name, episode=episode, env_index=i, **about)
        batch = play(request)
        seconds = time.perf_counter() - began
        lengths = runner.config.episode_lengths(batch, request.steps_taken)
        for i, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
            episode.end(batch, i, length, seconds)
            more = {"episode": episode, "env_index": i, "prev_episode_chunks": []}
            self._call(runner, "on_episode_end", **more, **about)
        self._call(runner, "on_sample_end", samples=episodes)
        return batch

    def _call(self, runner: Any, name: str, **options: Any) -> None:
        make_callback(
            name,
            self.objects,
            getattr(runner.config, f"callbacks_{name}"),
            kwargs={"env_runner": runner, "metrics_logger": runner.metrics, **options},
        )


def check_callbacks(config: Any) -> None:
    """Refuse callbacks that would never be called.

    Raises:
        ConfigError: Naming them.
    """
    if _wanted(config, "on_episode_step"):
        raise ConfigError(
            "`callbacks` must be called by somebody, got `on_episode_step`: a step is one of a whole batch "
            "of episodes, or an engine's; try `on_episode_end`, whose episode has the steps in `phases`."
        )


def _wanted(config: Any, name: str) -> bool:
    if getattr(config, f"callbacks_{name}"):
        return True
    kinds = [getattr(make, "func", make) for make in force_list(config.callbacks_class)]
    # What is made by a function may have any of them.
    known = (getattr(kind, name, None) for kind in kinds if inspect.isclass(kind))
    own = any(method is not getattr(RLlibCallback, name) for method in known)
    return own or (name in OF_RUNNERS and not all(map(inspect.isclass, kinds)))
