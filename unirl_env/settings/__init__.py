"""The settings of a run, as data: defaults, a reason under each field, and checks that cost nothing.

YAML recipes mirror these names one to one, and an `AgentConfig` has those of `AgentSettings` and
`RolloutSettings` as its own attributes. `RunConfig.check()` refuses what cannot work before any model is
loaded. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from unirl_env.settings.agent import AgentSettings, RolloutSettings
from unirl_env.settings.fields import Settings, setting
from unirl_env.settings.learner import LearnerSettings
from unirl_env.settings.policy import NoisingSettings, PolicySettings, StepSettings
from unirl_env.settings.run_config import RunConfig
from unirl_env.settings.watch import AlarmSettings, LoggingSettings
from unirl_env.settings.world import ModelSettings, PromptSettings, RewardSettings

__all__ = [
    "AgentSettings",
    "AlarmSettings",
    "LearnerSettings",
    "LoggingSettings",
    "ModelSettings",
    "NoisingSettings",
    "PolicySettings",
    "PromptSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunConfig",
    "Settings",
    "StepSettings",
    "setting",
]
