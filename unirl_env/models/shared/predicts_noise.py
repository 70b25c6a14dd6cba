"""Pipelines of diffusers whose networks predict noise (or v, or the data), as the flow models of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.of_diffusers import OfDiffusers
from unirl_env.models.shared.scheduler_settings import require_same
from unirl_env.models.shared.variance_preserving import VariancePreserving, require_known


class PredictsNoise(OfDiffusers):
    """A family of variance-preserving models; see `VariancePreserving` for its coordinates.

    A leaf's `_forward` is given latents as the network knows them, and in the place of noise levels the
    network's times `[N]`; it returns what the network predicts.

    Args:
        pretrained: A hub id or a directory.
        schedule: `"pipeline"`, the only one: noise levels are those of the times that the network knows.
        **options: Those of `OfDiffusers`.
    """

    even = False
    _flow: VariancePreserving

    def __init__(self, pretrained: str, *, schedule: str = "pipeline", **options: Any):
        if schedule != "pipeline":
            raise ConfigError(
                f"`schedule` must be 'pipeline' for {self.family}, got {schedule!r}: its noise levels are "
                "those of the times that it was trained at, which do not reach from 1 to 0."
            )
        super().__init__(pretrained, schedule=schedule, **options)
        self.known_sigmas = self._flow.known

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Noise as wide as the pipeline's, in the coordinates of flows."""
        return self._flow.start(noise, sigma)

    def data(self, latents: Tensor) -> Tensor:
        """What the pipeline takes for data: a schedule that ends above 0 leaves its noise in it."""
        return self._flow.finished(latents)

    def _schedule(self) -> VariancePreserving:
        return VariancePreserving(self._scheduler_config)

    def _require_scheduler(self, name: Any) -> None:
        require_known(name)
        require_same(name, self._flow.name)

    def _velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        # In float32 on both sides: near pure noise the velocity is a small difference, many times over.
        seen = self._flow.seen(latent, sigma).to(self.dtype)
        predicted = self._forward(network, seen, self._flow.times(sigma), context)
        return self._flow.velocity(predicted, latent, sigma)
