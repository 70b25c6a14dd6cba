"""Checkpoints of Wan with two networks: one for the high noise levels, and one for the low."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.arguments.values import number
from unirl_env.errors import ConfigError
from unirl_env.models.shared.exports import LORA_FILE
from unirl_env.models.shared.fixed_batches import by_kind
from unirl_env.models.shared.guidance_rules import plain
from unirl_env.models.shared.of_video import OfVideo
from unirl_env.models.shared.two_networks import TwoNetworks

HIGH, LOW = "transformer", "transformer_2"
"""The folders of the networks of high noise and of low."""


class OfExperts(OfVideo):
    """Clips of one network, or of two between which a checkpoint's `boundary_ratio` divides noise levels.

    Rows of a batch go to the network of their noise level, and come back in their places.

    Args:
        pretrained: A hub id or a directory.
        low_guidance: Guidance below the boundary, where `guidance` is not 1; None takes the same as above it.
            The pipeline's `guidance_scale_2`.
        **options: Those of `OfVideo`.

    Attributes:
        boundary: The noise level from which on the first network answers; None of one alone.

    Raises:
        ConfigError: If `low_guidance` is given for one network.
    """

    dropped = (LOW,)
    boundary: float | None = None

    def __init__(self, pretrained: str, *, low_guidance: float | None = None, **options: Any):
        super().__init__(pretrained, **options)
        self.low_guidance = None if low_guidance is None else number("low_guidance", low_guidance)
        if self.low_guidance is not None and self.boundary is None:
            told = f"got {low_guidance}; try `guidance` alone"
            raise ConfigError(f"`low_guidance` must be null for a checkpoint of one network, {told}.")

    def _require_pipeline(self) -> None:
        super()._require_pipeline()
        boundary, there = self._index.get("boundary_ratio"), [p for p in (HIGH, LOW) if self._has(p)]
        if there != ([HIGH] if boundary is None else [HIGH, LOW]):
            raise self.source.not_found(
                f"its model_index.json has boundary_ratio {boundary} and the networks {there}; with a "
                f"boundary there must be {HIGH} and {LOW}, and without one {HIGH} alone"
            )
        if boundary is not None:
            self.boundary = number("boundary_ratio", boundary)
            if not 0 < self.boundary < 1:
                raise self.source.not_found(f"its boundary_ratio is {boundary}, and must lie between 0 and 1")
            self.classes = {**self.classes, LOW: self.classes[HIGH]}  # type: ignore[misc]  # this model's
            self.configs[LOW] = self._load_config(LOW)
            self.uneven = "rows go to one of the checkpoint's two networks by their noise level"

    def network(self) -> nn.Module:
        """The network, or both of them; freshly loaded."""
        if self.boundary is None:
            return super().network()
        return TwoNetworks(*(self._alone(part).network() for part in (HIGH, LOW))).eval()

    def velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity `[N, ...]` by the network of each row's noise level, in its own dtype."""
        of_one = super().velocity
        if self.boundary is None:
            return of_one(network, latent, sigma, context)

        def of_a_kind(latent: Tensor, sigma: Tensor, *values: Tensor) -> Tensor:
            expert = network.get_submodule(HIGH if self._is_high(sigma).all() else LOW)
            return of_one(expert, latent, sigma, dict(zip(context, values, strict=True)))

        return by_kind(of_a_kind, latent, sigma, *context.values(), kinds=self._is_high(sigma).long())

    def guided(self, without: Tensor, with_prompt: Tensor, guidance: float, sigma: Tensor) -> Tensor:
        """`u + g (c - u)`, with the guidance of each row's noise level."""
        if self.low_guidance is None:
            return super().guided(without, with_prompt, guidance, sigma)
        levels = torch.where(self._is_high(sigma), guidance, self.low_guidance)
        return plain(without, with_prompt, levels.view(-1, *(1,) * (without.ndim - 1)))

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write what `pipeline.load_lora_weights` reads; of two networks, a folder for each."""
        if not isinstance(network, TwoNetworks):
            return super().save_adapters(network, directory)
        return network.save_adapters(directory, self._pipeline_class, LORA_FILE)

    def _alone(self, part: str) -> OfExperts:
        """The same model of one of the networks."""
        other = copy(self)
        other.trained, other.boundary = part, None  # type: ignore[misc]  # that model's
        return other

    def _is_high(self, sigma: Tensor) -> Tensor:
        """Which rows `[N]` are of the first network, decided in the network's time as in the pipeline."""
        steps = self._flow.num_train_timesteps
        return sigma * steps >= (self.boundary or 0.0) * steps
