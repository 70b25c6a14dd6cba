"""What RLlib and Tune ask of an algorithm besides training: callbacks, evaluation, checkpoints."""

from __future__ import annotations

import logging
import math
import pickle
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from ray.air.constants import TRAINING_ITERATION
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import ALL_MODULES, DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils import metrics as words
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from unirl_env.agents.catalogue import algorithm_name, same_algorithm
from unirl_env.agents.cluster import make_room
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.evaluation import Evaluation
from unirl_env.agents.parallel.group import AgentLearnerGroup
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import CheckpointError, ClusterError, RunnerLost
from unirl_env.monitor.iteration_metrics import score_metrics
from unirl_env.rollouts.calls import call_runners, learner_results
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.types import Scores

logger = logging.getLogger(__name__)

ASKED_EVERY = 0.2
"""Seconds between two questions to players of which none lives."""
EVALUATED = (words.EVALUATION_RESULTS, words.ENV_RUNNER_RESULTS)
LEARNERS, TIMERS = words.LEARNER_RESULTS, words.TIMERS


class RLlibAlgorithm(Algorithm):
    """The seams of RLlib's `Algorithm`, for agents that play and learn in their own way."""

    config: AgentConfig
    # RLlib's are None before `setup`.
    env_runner_group: EnvRunnerGroup
    learner_group: AgentLearnerGroup
    metrics: MetricsLogger
    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    """The settings that an agent begins with."""
    iterations_done: int
    weights_version: int
    _begun = False

    # What an agent gives.

    @abstractmethod
    def _begin(self) -> None:
        """Make the parts that need runners and learners, which are there."""

    @abstractmethod
    def _collect(self, request: RolloutRequest) -> EpisodeBatch:
        """Play the episodes that are asked for; whole groups go to each runner."""

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
        return cls.config_class(algo_class=cls)

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
        """Bring restarted runners back into service, with the present weights.

        One that has not started again yet is waited for `env_runner_health_probe_timeout_s` seconds, since
        the others can play its share, and asked again before the next iteration.
        """
        restored = env_runner_group.probe_unhealthy_env_runners() or []
        if restored:
            self._publish(runners=restored)
        return restored

    def _await_env_runner(self) -> None:
        """Wait until one of the runners, which are all dead, has started again; it has the present weights.

        Raises:
            RunnerLost: If none does within `env_runner_restore_timeout_s` seconds, or none is restarted.
        """
        config = self.config
        wait = config.env_runner_restore_timeout_s if config.restart_failed_env_runners else 0.0
        logger.warning("All runners have died; waiting up to %.0f s for one to start again.", wait)
        end = time.monotonic() + wait
        while not self.restore_env_runners(self.env_runner_group):
            if time.monotonic() >= end:
                raise RunnerLost(
                    f"A runner must be left, got none: all {config.num_env_runners} have died, and none "
                    f"started again within {wait:g} s. Their logs tell why. Start again from the last "
                    "checkpoint; where nodes are still to come, try `.fault_tolerance("
                    "restart_failed_env_runners=True, env_runner_restore_timeout_s=600)`."
                )
            time.sleep(ASKED_EVERY)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Play what `config.evaluation(...)` says; see `agents/evaluation.py`.

        Args:
            parallel_train_future: RLlib's; nothing is evaluated beside training here.

        Returns:
            Under `"env_runners"` what a result of `train()` has there, and the statistics of the scores and
            their parts as `reward...`.
        """
        self._call_back("on_evaluate_start")
        own = self.config.custom_evaluation_function
        found: dict[str, Any] = own(self, self.env_runner_group)[0] if own else {}
        if not own:
            self._evaluate()
        found = {**self.metrics.peek(words.EVALUATION_RESULTS, default={}, latest_merged_only=True), **found}
        self._call_back("on_evaluate_end", evaluation_metrics=found)
        return found

    def _evaluate(self) -> None:
        config, plan = self.config, Evaluation.of(self.config)
        began = time.perf_counter()
        lengths: list[int] = []
        scores: list[Scores] = []
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
            lengths += config.episode_lengths(batch, plan.num_steps)
        logger, judged = MetricsLogger(root=False), Scores.cat(scores)
        seconds = time.perf_counter() - began
        log_episodes(logger, judged, lengths, seconds=seconds, version=self.weights_version)
        for name, value in score_metrics("reward", judged).items():
            logger.log_value(name, value, reduce="item")
        self.metrics.aggregate([logger.reduce(), *self._callback_metrics()], key=EVALUATED)

    def _callback_metrics(self) -> list[Any]:
        """What callbacks have logged in the runners since they were asked last."""
        runner: Any = self.env_runner_group.local_env_runner
        if not runner.callbacks.wanted:
            return []
        if self.config.learners_play:
            results = self.learner_group.foreach_learner(lambda learner: learner.player.get_metrics())
            return learner_results(results)
        if not self.env_runner_group.num_remote_env_runners():
            return [runner.get_metrics()]
        calls: dict[int, dict[str, Any]] = {
            number: {} for number in self.env_runner_group.healthy_env_runner_ids()
        }
        return list(call_runners(self.env_runner_group, "get_metrics", calls).values())

    def _call_back(self, name: str, **options: Any) -> None:
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

    def set_state(self, state: dict[str, Any]) -> None:
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
        return algorithm_name(self)

    def require_own(self, written: Any) -> None:
        """Refuse a state that says `written` of who wrote it.

        Raises:
            CheckpointError: If that was another algorithm.
        """
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


def log_episodes(
    logger: Any,
    scores: Scores,
    lengths: Sequence[int],
    *,
    seconds: float,
    version: int,
    place: Sequence[str] = (),
) -> None:
    """What RLlib says of sampled episodes.

    Returns are those of valid scores, and NaN where there is none; all statistics are of these very episodes,
    and not smoothed over earlier ones. Episodes are played together: each lasts as long as all of them.

    Args:
        logger: A `MetricsLogger`.
        scores: Of B episodes.
        lengths: Steps of the environment in each.
        seconds: What playing them took.
        version: Of the weights that played.
        place: Where the numbers go.
    """
    returns = scores.value[scores.valid]
    mean = float(returns.mean()) if len(returns) else math.nan
    steps = sum(lengths)
    now = {
        words.EPISODE_RETURN_MEAN: mean,
        words.EPISODE_RETURN_MAX: float(returns.max()) if len(returns) else math.nan,
        words.EPISODE_RETURN_MIN: float(returns.min()) if len(returns) else math.nan,
        words.EPISODE_LEN_MEAN: steps / len(lengths),
        words.EPISODE_LEN_MAX: max(lengths),
        words.EPISODE_LEN_MIN: min(lengths),
        words.EPISODE_DURATION_SEC_MEAN: seconds,
        words.SAMPLE_TIMER: seconds,
        words.WEIGHTS_SEQ_NO: version,
    }
    for name, value in now.items():
        logger.log_value((*place, name), value, reduce="item")
    for name, whose in (("agent", DEFAULT_AGENT_ID), ("module", DEFAULT_MODULE_ID)):
        logger.log_value((*place, f"{name}_episode_return_mean", whose), mean, reduce="item")
    counts = {
        (words.NUM_EPISODES,): len(lengths),
        (words.NUM_ENV_STEPS_SAMPLED,): steps,
        (words.NUM_AGENT_STEPS_SAMPLED, DEFAULT_AGENT_ID): steps,
        (words.NUM_MODULE_STEPS_SAMPLED, DEFAULT_MODULE_ID): steps,
    }
    # Throughput is measured by whoever keeps the whole run's numbers.
    _count(logger, place, counts, measured=(words.NUM_ENV_STEPS_SAMPLED,) if place else ())


def log_update(logger: Any, metrics: Mapping[str, float], parameters: tuple[int, int]) -> None:
    """What RLlib says of an update, beside all numbers of the iteration by their own names.

    Args:
        logger: A `MetricsLogger`.
        metrics: Of the iteration.
        parameters: How many weights are trained, and how many are not.
    """
    trained, frozen = parameters
    rows = int(metrics["trained_rows"])
    now = {
        **metrics,
        "total_loss": metrics["loss"],
        "default_optimizer_learning_rate": metrics["lr"],
        "gradients_default_optimizer_global_norm": metrics["grad_norm"],
        words.WEIGHTS_SEQ_NO: metrics["weights_version"],
        words.NUM_TRAINABLE_PARAMETERS: trained,
        words.NUM_NON_TRAINABLE_PARAMETERS: frozen,
    }
    for name, value in now.items():
        logger.log_value((LEARNERS, DEFAULT_MODULE_ID, name), value, reduce="item")
    everywhere = (LEARNERS, ALL_MODULES)
    for name in (words.NUM_TRAINABLE_PARAMETERS, words.NUM_NON_TRAINABLE_PARAMETERS):
        logger.log_value((*everywhere, name), now[name], reduce="item")
    _count(logger, (LEARNERS, DEFAULT_MODULE_ID), {(words.NUM_MODULE_STEPS_TRAINED,): rows})
    both = {(words.NUM_MODULE_STEPS_TRAINED,): rows, (words.NUM_ENV_STEPS_TRAINED,): rows}
    _count(logger, everywhere, both, measured=(words.NUM_ENV_STEPS_TRAINED,))
    for name, key in (
        (words.ENV_RUNNER_SAMPLING_TIMER, "seconds/rollout"),
        (words.LEARNER_UPDATE_TIMER, "seconds/update"),
        (words.SYNCH_WORKER_WEIGHTS_TIMER, "seconds/sync"),
    ):
        logger.log_value((TIMERS, name), metrics[key], reduce="ema")


def _count(
    logger: Any,
    place: Sequence[str],
    counts: Mapping[Any, int],
    measured: Sequence[str] = (),
) -> None:
    """Log counts, and what they sum up to over the whole run; of some also how many there are in a second."""
    for (name, *whose), value in counts.items():
        logger.log_value((*place, name, *whose), value, reduce="sum")
        speed = {"with_throughput": True} if name in measured else {}
        logger.log_value((*place, f"{name}_lifetime", *whose), value, reduce="lifetime_sum", **speed)
