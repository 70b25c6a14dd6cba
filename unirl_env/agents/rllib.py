"""What RLlib and Tune ask of an algorithm besides training: callbacks, evaluation, checkpoints."""

from __future__ import annotations

import pickle
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.result import TRAINING_ITERATION

from unirl_env.agents.cluster import make_room
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.evaluation import Evaluation
from unirl_env.agents.results import log_episodes
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import CheckpointError, ClusterError
from unirl_env.monitor.score_metrics import score_metrics
from unirl_env.rollouts.callbacks import episode_lengths, has_runner_callbacks
from unirl_env.rollouts.calls import call_runners
from unirl_env.rollouts.request import RolloutRequest
from unirl_env.types import Prompt, Scores

__all__ = ["RLlibAlgorithm"]

EVALUATED = (EVALUATION_RESULTS, ENV_RUNNER_RESULTS)


class RLlibAlgorithm(Algorithm):
    """The seams of RLlib's `Algorithm`, for agents that play and learn in their own way."""

    config: AgentConfig
    iterations_done: int
    weights_version: int
    _begun = False

    # What an agent gives.

    @abstractmethod
    def _begin(self) -> None:
        """Make the parts that need runners and learners, which are there."""

    @abstractmethod
    def _collect(self, prompts: Sequence[Prompt], group_size: int, **options: Any) -> EpisodeBatch:
        """Play P x G episodes."""

    @abstractmethod
    def _publish(self, runners: Sequence[int] | None = None) -> Any:
        """Give runners the present weights."""

    @abstractmethod
    def _resume_at(self, iteration: int, version: int, checked: Sequence[str] | None) -> None:
        """Go on with the present weights as if `iteration` iterations were done."""

    @abstractmethod
    def _checked(self) -> list[str]:
        """The phases whose first update has been checked."""

    # What RLlib asks for.

    @classmethod
    def get_default_config(cls) -> AgentConfig:
        """The settings that belong to this agent."""
        return AgentConfig(algo_class=cls)

    def setup(self, config: AgentConfig) -> None:
        """Build runners and learners.

        Raises:
            ClusterError: If Ray has no room for them, or they lack a module that is named.
        """
        make_room(self.config)
        with _explained():
            super().setup(config)
        self._begin_once()

    def _set_up_metrics(self) -> None:
        # The last thing that RLlib does before `on_algorithm_init`, which is promised a finished algorithm.
        super()._set_up_metrics()
        self._begin_once()

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._begin()

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Bring restarted runners back into service, with the present weights."""
        restored = env_runner_group.probe_unhealthy_env_runners() or []
        if restored:
            self._publish(runners=restored)
        return restored

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Play what `config.evaluation(...)` says; see `agents/evaluation.py`.

        Args:
            parallel_train_future: RLlib's; nothing is evaluated beside training here.

        Returns:
            Under `"env_runners"` what a result of `train()` has there, and the statistics of the scores and
            their parts as `reward...`.
        """
        self._tell("on_evaluate_start")
        own = self.config.custom_evaluation_function
        found = own(self, self.env_runner_group)[0] if own else {}
        if not own:
            self._evaluate()
        found = {**self.metrics.peek(EVALUATION_RESULTS, default={}, latest_merged_only=True), **found}
        self._tell("on_evaluate_end", evaluation_metrics=found)
        return found

    def _evaluate(self) -> None:
        config, plan = self.config, Evaluation.of(self.config)
        began, lengths, scores = time.perf_counter(), [], []
        for prompts, seed in plan.rounds(lengths):
            batch = self._collect(
                RolloutRequest(
                    prompts,
                    seed=seed,
                    group_size=plan.samples,
                    keep_samples=config.keep_samples,
                    occasion="evaluation",
                    **config.mode.evaluation_options(self.evaluation_config, plan.num_steps),
                )
            )
            scores.append(batch.scores)
            lengths += episode_lengths(batch, config, plan.num_steps)
        logger, judged = MetricsLogger(root=False), Scores.cat(scores)
        seconds = time.perf_counter() - began
        log_episodes(logger, judged, lengths, seconds=seconds, version=self.weights_version)
        for name, value in score_metrics("reward", judged).items():
            logger.log_value(name, value, reduce="item")
        self.metrics.aggregate([logger.reduce(), *self._told()], key=EVALUATED)

    def _told(self) -> list[Any]:
        """What callbacks have logged in the runners since they were asked last."""
        if not has_runner_callbacks(self.config):
            return []
        if not self.env_runner_group.num_remote_env_runners():
            return [self.env_runner_group.local_env_runner.get_metrics()]
        calls = {number: {} for number in self.env_runner_group.healthy_env_runner_ids()}
        return list(call_runners(self.env_runner_group, "get_metrics", calls).values())

    def _tell(self, name: str, **options: Any) -> None:
        functions = getattr(self.config, f"callbacks_{name}")
        options |= {"algorithm": self, "metrics_logger": self.metrics}
        make_callback(name, self.callbacks, functions, kwargs=options)

    # Checkpoints.

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """RLlib's state, and the counters that prompts and noise follow from."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        counters = {"iteration": self.iterations_done, "version": self.weights_version}
        return {**state, "counters": {**counters, "checked": self._checked(), "agent": self.algorithm_name}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over RLlib's state and the counters.

        Raises:
            CheckpointError: If another algorithm wrote it.
        """
        counters = state.get("counters")
        if counters is not None:
            self.require_own(counters.get("agent", self.algorithm_name))
        super().set_state(state)
        if counters is not None:
            self._resume_at(counters["iteration"], counters["version"], counters.get("checked"))

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """RLlib's own; afterwards every runner acts with the restored weights.

        Raises:
            CheckpointError: If another algorithm wrote it.
        """
        # RLlib takes over the weights first.
        file = Path(path) / f"{self.STATE_FILE_NAME}.pkl"
        if not kwargs.get("component") and file.is_file():
            counters = pickle.loads(file.read_bytes()).get("counters", {})
            self.require_own(counters.get("agent", self.algorithm_name))
        super().restore_from_path(path, *args, **kwargs)
        self._publish()

    @property
    def algorithm_name(self) -> str:
        """What a state says of who wrote it."""
        from unirl_env.agents.names import algorithm_name

        return algorithm_name(self)

    def require_own(self, written: Any) -> None:
        """Refuse a state that says `written` of who wrote it.

        Raises:
            CheckpointError: If that was another algorithm.
        """
        from unirl_env.agents.names import same_algorithm

        if not same_algorithm(written, self):
            raise CheckpointError(
                f"A state must be of the algorithm that goes on with it, {self.algorithm_name}, got one of "
                f"{written}; try the algorithm that wrote it."
            )

    def _iteration_is(self, iteration: int) -> None:
        super().set_state({TRAINING_ITERATION: iteration})


@contextmanager
def _explained() -> Iterator[None]:
    """A context in which processes that cannot import what the driver can are told as such.

    Raises:
        ClusterError: Naming the module.
    """
    try:
        yield
    except RayError as error:
        lost = re.search(r"No module named '([\w.]+)'", str(error))
        if lost is None:
            raise
        package = lost[1].partition(".")[0]
        raise ClusterError(
            f"Every process of Ray must be able to import `{lost[1]}`, which only this one can; try "
            f"installing `{package}` on every machine of the cluster, its folder in PYTHONPATH before Ray "
            f"starts, or `ray.init(runtime_env={{'py_modules': ['.../{package}']}})`."
        ) from error
