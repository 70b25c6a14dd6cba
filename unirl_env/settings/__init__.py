"""The settings of a run, as data: defaults, a reason under each field, and checks that cost nothing.

YAML recipes mirror these names one to one, and an `AgentConfig` has those of `AgentSettings` and
`RolloutSettings` as its own attributes. `RunConfig.check()` refuses what cannot work before any model is
loaded. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from unirl_env.settings.agent import AgentSettings
from unirl_env.settings.fields import Settings, setting
from unirl_env.settings.policy import PolicySettings, StepSettings
from unirl_env.settings.rollout import RolloutSettings
from unirl_env.settings.together import check_run
from unirl_env.settings.watch import AlarmSettings, LoggingSettings
from unirl_env.settings.world import ModelSettings, PromptSettings, RewardSettings

__all__ = [
    "AgentSettings",
    "AlarmSettings",
    "LoggingSettings",
    "ModelSettings",
    "PolicySettings",
    "PromptSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunConfig",
    "Settings",
    "StepSettings",
    "setting",
]


@dataclass
class RunConfig(Settings):
    """One training run."""

    name: str = setting("run", may_change=True)
    """Names the folder of the run."""
    mode: str = setting("diffusion")
    """What kind of environment `model.env` is: `diffusion`, `ar`, `pe`, `unified_model`, `mdp`, or the name
    of a mode of your own."""
    seed: int = setting(0, least=0)
    """Every random number of the run follows from it."""
    iterations: int = setting(100, least=1, may_change=True)
    """Rollouts, each followed by an update."""
    resume: str | None = setting(None, may_change=True)
    """`auto`, or the folder of a run or a checkpoint to continue."""
    model: ModelSettings = field(default_factory=ModelSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    steps: StepSettings = field(default_factory=StepSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    alarm: AlarmSettings = field(default_factory=AlarmSettings)

    def check(self, prefix: str = "") -> None:
        """Refuse what cannot work, before anything is loaded: each group by itself, then all together.

        Raises:
            ConfigError: Naming the field, its value and the remedy.
        """
        super().check(prefix)
        for each in dataclasses.fields(self):
            if isinstance(group := getattr(self, each.name), Settings):
                group.check(f"{each.name}.")
        check_run(self)
