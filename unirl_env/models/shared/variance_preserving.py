"""Models that predict noise, in the coordinates of flows.

They know `z = alpha x_0 + beta e` with `alpha^2 + beta^2 = 1`. Divided by `alpha + beta` it is a flow's
`x_s = (1 - s) x_0 + s e`, at `s = beta / (alpha + beta)`: then `e - x_0` is its velocity, and Euler's step is
DDIM's without noise, and that of `EulerDiscreteScheduler`. A schedule begins below 1, and may end above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.models.shared.scales import NOISE
from unirl_env.models.shared.scheduler_settings import (
    FILE,
    SOLVER,
    SPACINGS,
    changed_of,
    honoured,
    made,
    set_timesteps,
)

DDIM, EULER = "DDIMScheduler", "EulerDiscreteScheduler"
SCHEDULERS = (DDIM, "PNDMScheduler", EULER, SOLVER)
REFUSED = {
    "use_flow_sigmas": "that is a flow, which predicts velocities",
    "use_dynamic_shifting": "that is a flow, which predicts velocities",
    "variance_type": "what the network says of variances is left out",
}
CLOSE = 2e-3
"""How far a time may lie from the scheduler's own: float32 knows a noise level near 1 no better."""
FAR = 1e12
"""Of noise over data, where there is no data."""


class VariancePreserving:
    """The schedules of one checkpoint, for any number of steps, and its coordinates.

    Every field of the scheduler's configuration is honoured as diffusers does, or refused by its name. Of
    `PNDMScheduler` and `DPMSolverMultistepScheduler` it takes timesteps and noise levels: their steps look
    back at former ones, those of an episode do not.

    Args:
        config: `scheduler_config.json`.

    Attributes:
        name: The scheduler's class.
        prediction: What the network predicts: `"epsilon"`, `"v_prediction"` or `"sample"`.
        known: The least and the largest noise level that the network was trained at.
        last: The noise level of a finished latent.

    Raises:
        ConfigError: If it is another scheduler, or has a field that is unknown, of a wrong type, or nothing
            that episodes can honour.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.name = str(config.get("_class_name"))
        require_known(self.name)
        self.config = honoured(self.name, config, SCHEDULERS, REFUSED)
        _check_choices(self.config)
        self.prediction = self.config["prediction_type"]
        # Timesteps of PNDM are those of DDIM, but that it counts some twice.
        kind = self.name if self.name in (EULER, SOLVER) else DDIM
        self._scheduler = made(kind, {"clip_sample": False, **self.config})
        a = self._scheduler.alphas_cumprod.double()
        self._table = _level(a)
        self.known = (float(self._table[0]), float(self._table[-1]))
        self.last = 0.0 if self._ends_at_zero() else self.known[0]
        self._even = kind == EULER and not any(self.config[name] for name in SPACINGS)
        """Whether times lie evenly between noise over data, and not between its logarithm."""
        self._knots = self._place(self._table)

    def sigmas(self, num_steps: int, *, even: bool = False) -> Tensor:
        """The noise levels `[T+1]` as the scheduler has them.

        Args:
            num_steps: T.
            even: Nothing: there is no other schedule.

        Raises:
            ConfigError: If T steps of the scheduler do not follow one another, or the network's time cannot
                be told from the noise level.
        """
        F.flow_sigmas(num_steps)  # refuses the number of steps as all schedules do
        set_timesteps(self._scheduler, num_steps)
        times = self._scheduler.timesteps.float()
        sigmas = self._own() if self.name in (EULER, SOLVER) else self._by_times(num_steps)
        falls = bool((sigmas[1:] < sigmas[:-1]).all()) and len(sigmas) == num_steps + 1  # False of NaN, too
        if not falls or abs(float(sigmas[-1]) - self.last) > 1e-6:
            raise self._odd(
                f"the noise levels must fall to {self.last:.3g}, got {sigmas.tolist()[:8]}", num_steps
            )
        if not bool(((self.times(sigmas[:-1]) - times).abs() <= CLOSE).all()):
            raise self._odd(f"times must follow from noise levels, got {times.tolist()[:8]}", num_steps)
        return sigmas

    def times(self, sigma: Tensor) -> Tensor:
        """The network's times `[N]` float32 at noise levels `[N]`: of a schedule's own the scheduler's.

        Whole numbers, the nearest ones, but for `EulerDiscreteScheduler`, whose times lie in between.
        """
        place, knots = self._place(sigma.double()), self._knots.to(sigma.device)
        at = torch.searchsorted(knots, place).clamp(1, len(knots) - 1)
        share = ((place - knots[at - 1]) / (knots[at] - knots[at - 1])).clamp(0, 1)
        times = at - 1 + share
        whole = times.round()
        if self.name == EULER:
            whole = torch.where((times - whole).abs() <= CLOSE, whole, times)
        return whole.float()

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Initial latents `[B, ...]` of standard normal noise, by the scheduler's `init_noise_sigma`."""
        if self.name == EULER and self.config["timestep_spacing"] != "leading":
            return noise * sigma
        return noise * math.hypot(sigma, 1.0 - sigma)

    def finished(self, latents: Tensor) -> Tensor:
        """What the pipeline decodes of finished latents `[B, ...]`: it takes them for data as they are."""
        if not self.last:
            return latents
        width = 1.0 - self.last if self.name == EULER else math.hypot(self.last, 1.0 - self.last)
        return latents.float() / width

    def seen(self, latent: Tensor, sigma: Tensor) -> Tensor:
        """What the network is shown of latents `[N, ...]` at `sigma` `[N]`: z, float32."""
        return latent.float() / _width(_wide(sigma, latent))

    def velocity(self, output: Tensor, latent: Tensor, sigma: Tensor) -> Tensor:
        """The velocity `e - x_0` `[N, ...]` float32 of what the network predicted.

        Args:
            output: Like `latent`.
            latent: `[N, ...]` in the coordinates of flows.
            sigma: `[N]`.
        """
        s, out, x = _wide(sigma, latent), output.float(), latent.float()
        if self.prediction == "epsilon":
            return (out - x) / (1 - s)
        if self.prediction == "sample":
            return (x - out) / s
        width = _width(s)
        return out / width + x * ((2 * s - 1) / width.square())

    def _place(self, s: Tensor) -> Tensor:
        """Where noise levels lie on the line along which times do."""
        ratio = (s / (1 - s)).clamp(0.0, FAR)
        return ratio if self._even else ratio.log()

    def _ends_at_zero(self) -> bool:
        if "set_alpha_to_one" in self.config:
            return bool(self.config["set_alpha_to_one"])
        return bool(self.config["final_sigmas_type"] == "zero")

    def _own(self) -> Tensor:
        """The levels of a scheduler that lists noise over data."""
        ratio = self._scheduler.sigmas.double().cpu()
        return (ratio / (1 + ratio)).float()

    def _by_times(self, num_steps: int) -> Tensor:
        """The levels at a scheduler's times, and where its last step ends."""
        times = self._scheduler.timesteps.cpu()
        span = self.config["num_train_timesteps"] // num_steps
        ends = times - span
        if int(times.max()) >= len(self._table) or not torch.equal(ends[:-1], times[1:]):
            raise self._odd(
                f"each step must end {span} after its time, got times {times.tolist()[:8]}", num_steps
            )
        last = self._table[ends[-1]] if ends[-1] >= 0 else torch.tensor(self.last)
        return torch.cat([self._table[times], last[None].double()]).float()

    def _odd(self, what: str, num_steps: int) -> ConfigError:
        changed = changed_of(self.name, self.config)
        return ConfigError(
            f"Of {num_steps} steps of the checkpoint's {self.name} {what}, with {changed}; try another "
            f"number of steps, or change these settings in {FILE}."
        )


def require_known(name: Any) -> None:
    """Refuse a scheduler that is none of `SCHEDULERS`.

    Raises:
        ConfigError: Naming it.
    """
    if name not in SCHEDULERS:
        raise ConfigError(
            f"The scheduler of a checkpoint that predicts noise must be one of {', '.join(SCHEDULERS)} of "
            f"diffusers, got {name!r}; try a copy of the checkpoint with a {DDIM} in `scheduler`."
        )


def _check_choices(settings: Mapping[str, Any]) -> None:
    prediction, zero = settings["prediction_type"], settings.get("rescale_betas_zero_snr")
    if prediction not in NOISE:
        raise ConfigError(
            f"`prediction_type` of the scheduler must be one of {', '.join(NOISE)}, got {prediction!r}."
        )
    if zero and prediction == "epsilon":
        raise ConfigError(
            "`prediction_type` of the scheduler must be v_prediction with `rescale_betas_zero_snr`, got "
            f"'epsilon': noise says nothing of data where there is none; change it in {FILE}."
        )


def _level(alphas_cumprod: Tensor) -> Tensor:
    """`beta / (alpha + beta)`."""
    beta = (1 - alphas_cumprod).sqrt()
    return beta / (alphas_cumprod.sqrt() + beta)


def _wide(sigma: Tensor, latent: Tensor) -> Tensor:
    return sigma.float().view(-1, *[1] * (latent.ndim - 1))


def _width(s: Tensor) -> Tensor:
    """`1 / (alpha + beta)`: how wide latents of flows are beside those of the network."""
    return (s.square() + (1 - s).square()).sqrt()
