"""The noise schedule that the settings of a scheduler of diffusers describe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.values import like_default, number
from unirl_env.errors import ConfigError

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
REFUSED = {
    "invert_sigmas": "episodes go from noise (1) to data (0)",
    "stochastic_sampling": "noise belongs to the policy, whose `dynamics` and `eta` say how much",
}
CLOSE = 1e-6
"""How far rounding may leave a first noise level from 1."""


class FlowSchedule:
    """The schedules of one checkpoint, for any number of steps.

    Every field of the scheduler's configuration is honoured as diffusers does, or refused by its name. The
    plain shifts are computed in float64, up to a last bit as diffusers has them; all else is its own result.

    Args:
        config: `scheduler_config.json`.
        num_tokens: Tokens that the denoiser sees per picture, on which dynamic shifts depend.
        mu: The dynamic shift of a number of steps, where the family has a rule of its own; None takes the
            scheduler's line through two numbers of tokens.

    Raises:
        ConfigError: If it is another scheduler, or has a field that is unknown, of a wrong type, or nothing
            that episodes can honour.
    """

    def __init__(self, config: Mapping[str, Any], num_tokens: int, mu: Callable[[int], float] | None = None):
        require_scheduler(config.get("_class_name"))
        known = _defaults()
        for name, value in config.items():
            if name in REFUSED and value:
                raise ConfigError(
                    f"`{name}` of the scheduler must be false, got {value!r}: {REFUSED[name]}; change it in "
                    "the checkpoint's scheduler/scheduler_config.json."
                )
            if name not in known and not name.startswith("_") and value not in (None, False):
                raise ConfigError(
                    f"`{name}` must be a setting of diffusers' {SCHEDULER}, got {value!r} for one that it "
                    "does not have; take it out of scheduler/scheduler_config.json, or try a newer diffusers."
                )
        self.config = {**known, **{name: value for name, value in config.items() if name in known}}
        for name, default in known.items():
            like_default(f"scheduler.{name}", self.config[name], default)
        numbers = ["shift", "num_train_timesteps", *(("base_shift", "max_shift") if self._dynamic else ())]
        for name in numbers if self.config["shift_terminal"] is None else [*numbers, "shift_terminal"]:
            number(f"scheduler.{name}", self.config[name])
        self.num_tokens, self._own_mu = num_tokens, mu
        self.num_train_timesteps = float(self.config["num_train_timesteps"])
        """What the network's time is at noise level 1."""

    @property
    def _dynamic(self) -> bool:
        return self.config["use_dynamic_shifting"]

    def sigmas(self, num_steps: int, *, even: bool = True) -> Tensor:
        """The noise levels `[T+1]` from 1 to 0.

        Args:
            num_steps: T.
            even: Begin with equal steps from 1 to 0, where that is left to the caller. False takes the
                scheduler's own, whose last step is nearly empty.

        Raises:
            ConfigError: If the settings do not lead from 1 down to 0.
        """
        config = self.config
        odd = [name for name in (*SPACINGS, "shift_terminal") if config[name]]
        plain = even and not odd
        if plain and not self._dynamic:
            return F.flow_sigmas(num_steps, shift=config["shift"])
        if plain and config["time_shift_type"] == "exponential" and self._own_mu is None:
            return F.dynamic_shift_sigmas(
                num_steps,
                self.num_tokens,
                base_tokens=config["base_image_seq_len"],
                max_tokens=config["max_image_seq_len"],
                base_shift=config["base_shift"],
                max_shift=config["max_shift"],
            )
        # Refuses the number of steps as all schedules do.
        F.flow_sigmas(num_steps)
        return self.falling(self._of_diffusers(num_steps, even), num_steps)

    def _of_diffusers(self, num_steps: int, even: bool) -> Tensor:
        from diffusers import FlowMatchEulerDiscreteScheduler

        asked: dict[str, Any] = {"num_inference_steps": num_steps}
        if even:
            asked["sigmas"] = np.linspace(1.0, 1.0 / num_steps, num_steps)
        if self._dynamic:
            asked["mu"] = self._mu() if self._own_mu is None else self._own_mu(num_steps)
        try:
            scheduler = FlowMatchEulerDiscreteScheduler(**self.config)
            # What divides by zero is refused with the rest of what does not fall.
            with np.errstate(all="ignore"):
                scheduler.set_timesteps(**asked)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"The settings of the scheduler must fit together, got: {error}.") from error
        return scheduler.sigmas.float().cpu()

    def _mu(self) -> float:
        config = self.config
        tokens = config["max_image_seq_len"] - config["base_image_seq_len"]
        if not tokens:
            raise ConfigError("`max_image_seq_len` of the scheduler must differ from `base_image_seq_len`.")
        slope = (config["max_shift"] - config["base_shift"]) / tokens
        return config["base_shift"] + slope * (self.num_tokens - config["base_image_seq_len"])

    def falling(self, sigmas: Tensor, num_steps: int) -> Tensor:
        """Noise levels `[T+1]` that lead from 1 to 0, the first one without rounding.

        Raises:
            ConfigError: If they do not.
        """
        falls = bool((sigmas[1:] < sigmas[:-1]).all())  # False of NaN, too
        if not falls or sigmas[-1] != 0 or not math.isclose(float(sigmas[0]), 1.0, abs_tol=CLOSE):
            known = _defaults()
            changed = {name: value for name, value in self.config.items() if value != known[name]}
            raise ConfigError(
                f"The scheduler's noise levels must fall from 1 to 0, got {sigmas.tolist()[:8]} in "
                f"{num_steps} steps with {changed}; try another number of steps, or change these settings."
            )
        # The kernels know 1 as pure noise; rounding may leave it a last bit below.
        return torch.cat([torch.ones(1), sigmas[1:]])


def require_scheduler(name: Any) -> None:
    """Refuse a scheduler whose steps are others than those of the episodes.

    Raises:
        ConfigError: Naming it.
    """
    if name != SCHEDULER:
        raise ConfigError(
            f"The scheduler of a checkpoint must be diffusers' {SCHEDULER}, whose steps an episode takes, "
            f"got {name!r}; try a copy of the checkpoint with a {SCHEDULER} in `scheduler`."
        )


def _defaults() -> dict[str, Any]:
    """The scheduler's settings, as this version of diffusers has them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    parameters = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}
