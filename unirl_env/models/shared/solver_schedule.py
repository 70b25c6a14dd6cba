"""The noise levels of flow models whose checkpoints carry a multistep solver.

Its steps look back at former ones; an episode takes Euler's, at the solver's levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError
from unirl_env.models.shared.scheduler_settings import (
    FILE,
    SOLVER,
    SPACINGS,
    changed_of,
    honoured,
    made,
    set_timesteps,
)

OTHERWISE = (*SPACINGS, "use_lu_lambdas", "use_dynamic_shifting", "shift_terminal")
FIRST = 0.998
"""The least first level that is noise enough: initial latents are pure noise."""


class SolverSchedule:
    """The schedules of one checkpoint whose scheduler is a multistep solver with flow sigmas.

    Args:
        config: `scheduler_config.json`.
        solver: Its class, `DPMSolverMultistepScheduler` or `UniPCMultistepScheduler`.

    Attributes:
        num_train_timesteps: What the network's time is at noise level 1.

    Raises:
        ConfigError: If it has a field that is unknown, of a wrong type, or nothing that episodes can honour.
    """

    def __init__(self, config: Mapping[str, Any], solver: str = SOLVER):
        reason = "it leads to other noise levels than those of a flow"
        self.solver = solver
        self.config = honoured(solver, config, (), dict.fromkeys(OTHERWISE, reason))
        wanted = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
        for name, value in wanted.items():
            if self.config[name] != value:
                raise ConfigError(
                    f"`{name}` of the scheduler must be {value!r}, got {self.config[name]!r}: the model "
                    f"predicts the velocity of a flow that ends in data; change it in {FILE}."
                )
        number("scheduler.flow_shift", self.config["flow_shift"])
        self._scheduler = made(solver, self.config)
        self.num_train_timesteps = float(self.config["num_train_timesteps"])

    def sigmas(self, num_steps: int, *, even: bool = False) -> Tensor:
        """The noise levels `[T+1]`, to 0.

        Args:
            num_steps: T.
            even: From 1 in equal steps, shifted; False takes the solver's own, which begin a little below 1.

        Raises:
            ConfigError: If the settings do not lead down to 0.
        """
        plain = F.flow_sigmas(num_steps, shift=self.config["flow_shift"])
        if even:
            return plain
        set_timesteps(self._scheduler, num_steps)
        sigmas: Tensor = self._scheduler.sigmas.float().cpu()
        falls = bool((sigmas[1:] < sigmas[:-1]).all()) and len(sigmas) == num_steps + 1  # False of NaN, too
        if not falls or sigmas[-1] != 0 or not FIRST <= float(sigmas[0]) <= 1:
            raise ConfigError(
                f"The scheduler's noise levels must fall from nearly 1 to 0, got {sigmas.tolist()[:8]} in "
                f"{num_steps} steps with {changed_of(self.solver, self.config)}; try another number of "
                "steps, or change these settings."
            )
        return sigmas
