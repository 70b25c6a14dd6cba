"""The alarm where RLlib and Tune run the loop: `config.callbacks(HackingCallback)`."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from unirl_env.errors import ConfigError
from unirl_env.monitor.alarm import HackingAlarm
from unirl_env.monitor.iteration_metrics import heldout_metrics, is_due
from unirl_env.rewards.spec import build_scorer, needs_of
from unirl_env.settings import AlarmSettings

logger = logging.getLogger(__name__)


class HackingCallback(RLlibCallback):
    """Rings when an agent exploits its reward; see `HackingAlarm`.

    Each result of `train()` then has `reward_hacking` (whether an alarm has rung that `settings.stop` names,
    or, with `stop="none"`, any) and `alarms` (all that have rung, as mappings); a new one is a warning in the
    log. Of a held-out reward, its numbers are in the results, too, from `heldout` on. An alarm begins anew
    with each process: one that is restored from a checkpoint measures from there.

    Example:
        >>> from functools import partial
        >>> from unirl_env.agents import FlowDPPOConfig
        >>> from unirl_env.monitor import HackingCallback
        >>> config = FlowDPPOConfig().environment("unirl/TinySD3-T2I-v0")
        >>> config = config.callbacks(partial(HackingCallback, heldout="template"))

    and in Tune, `tune.RunConfig(stop={"reward_hacking": True})`.

    Args:
        settings: Bounds and patience; `AlarmSettings` or a mapping of them.
        heldout: A scorer, or anything that `build_scorer` understands; it scores the samples of an iteration
            where `settings.heldout_every` says so, which needs the agent's `keep_samples`.

    Raises:
        ConfigError: If a setting or the scorer cannot be used.
    """

    def __init__(self, settings: Any = None, heldout: Any = None):
        super().__init__()
        self.alarm = HackingAlarm(_settings(settings))
        self.heldout = heldout
        if heldout is not None:
            needs_of(heldout)  # an unknown name is told now; the scorer is made where it is first asked

    def on_train_result(
        self, *, algorithm: Any, metrics_logger: Any = None, result: dict[str, Any], **options: Any
    ) -> None:
        """Look at the iteration that has just ended."""
        iteration = algorithm.iterations_done
        row = {"iteration": iteration, **algorithm.iteration_metrics}
        every = self.alarm.settings.heldout_every
        if self.heldout is not None and algorithm.last_batch is not None and is_due(iteration, every):
            self.heldout = build_scorer(self.heldout)
            found = heldout_metrics(self.heldout, algorithm.last_batch)
            row |= found
            result |= found
        for finding in self.alarm.observe(row):
            logger.warning("Alarm (%s) at iteration %d: %s", finding.signal, iteration, finding.sentence)
        warns = self.alarm.settings.stop in ("none", ["none"])
        rung = self.alarm.findings if warns else self.alarm.ended_by
        result["reward_hacking"] = bool(rung)
        result["alarms"] = [finding.row() for finding in self.alarm.findings]


def _settings(settings: Any) -> AlarmSettings:
    if isinstance(settings, AlarmSettings):
        return settings
    try:
        return AlarmSettings(**(settings or {}))
    except TypeError as error:
        known = ", ".join(vars(AlarmSettings()))
        raise ConfigError(
            f"`settings` must hold settings of an alarm ({known}), got {settings!r}."
        ) from error
