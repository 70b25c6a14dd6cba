"""Latents and predictions of a scheduler of diffusers, in the coordinates of flows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NOISE = ("epsilon", "v_prediction", "sample")
"""What networks that are no flow models predict, as schedulers call it."""


class Scale:
    """What a scheduler that was just set takes latents for.

    A flow model's latents are `(1 - s) x_0 + s e`, and its prediction is `e - x_0`. Others hold
    `alpha x_0 + beta e`, or that over alpha, and predict `e`, `x_0` or `alpha e - beta x_0`.

    Args:
        scheduler: After its `set_timesteps`.

    Attributes:
        sigmas: The noise levels `[T+1]` of a flow.
        times: What the loop's timesteps are `[T]`: each step's once, and of flows without rounding.
    """

    def __init__(self, scheduler: Any):
        config = scheduler.config
        self.predicts = config.get("prediction_type")
        self.flow = self.predicts not in NOISE or bool(config.get("use_flow_sigmas"))
        if self.flow:
            self.sigmas = scheduler.sigmas.float().cpu()
            self.times = self.sigmas[:-1] * config.num_train_timesteps
            return
        self.times = scheduler.timesteps.unique_consecutive().cpu()
        self.alpha, self.beta = _parts(scheduler, self.times)
        self.sigmas = (self.beta / (self.alpha + self.beta)).float()
        # Those that scale what the network is shown hold latents in units of data.
        self.over_alpha = hasattr(scheduler, "is_scale_input_called")

    def flowing(self, latents: Tensor, place: int) -> Tensor:
        """The scheduler's latents `[B, ...]` at the level `place` as a flow's, float32."""
        return latents.float() if self.flow else (latents.double() / self._width(place)).float()

    def own(self, latents: Tensor, place: int) -> Tensor:
        """Latents of a flow as the scheduler's."""
        return latents if self.flow else (latents.double() * self._width(place)).to(latents.dtype)

    def velocity(self, output: Tensor, latents: Tensor, place: int) -> Tensor:
        """What a prediction says of the scheduler's `latents`, as a velocity `[B, ...]` float32."""
        if self.flow:
            return output.float()
        alpha, beta, out = float(self.alpha[place]), float(self.beta[place]), output.double()
        x = latents.double() * (alpha if self.over_alpha else 1.0)
        if self.predicts == "epsilon":
            noise, data = out, (x - beta * out) / alpha
        elif self.predicts == "sample":
            noise, data = (x - alpha * out) / beta, out
        else:
            noise, data = alpha * out + beta * x, alpha * x - beta * out
        return (noise - data).float()

    def _width(self, place: int) -> float:
        """The scheduler's latents over a flow's."""
        alpha, beta = float(self.alpha[place]), float(self.beta[place])
        return (alpha + beta) / (alpha if self.over_alpha else 1.0)


def _parts(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of data and of noise `[T+1]` float64 at each level."""
    if getattr(scheduler, "sigmas", None) is not None:
        ratio = scheduler.sigmas.double().cpu()
        alpha = (1.0 + ratio.square()).rsqrt()
        return alpha, ratio * alpha
    table = scheduler.alphas_cumprod.double().cpu()
    end = int(times[-1]) - scheduler.config.num_train_timesteps // len(times)
    last = table[end] if end >= 0 else torch.as_tensor(scheduler.final_alpha_cumprod).double()
    squared = torch.cat([table[times], last.reshape(1)])
    return squared.sqrt(), (1.0 - squared).sqrt()
