"""The numbers of an iteration under the names by which RLlib, its callbacks and Tune know them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.rllib.core import ALL_MODULES, DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.utils import metrics as words

from unirl_env.types import Scores

__all__ = ["log_episodes", "log_update"]

LEARNERS, TIMERS = words.LEARNER_RESULTS, words.TIMERS


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
    counts: Mapping[tuple[str, ...], int],
    measured: Sequence[str] = (),
) -> None:
    """Log counts, and what they sum up to over the whole run; of some also how many there are in a second."""
    for (name, *whose), value in counts.items():
        logger.log_value((*place, name, *whose), value, reduce="sum")
        speed = {"with_throughput": True} if name in measured else {}
        logger.log_value((*place, f"{name}_lifetime", *whose), value, reduce="lifetime_sum", **speed)
