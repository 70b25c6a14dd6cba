"""What a model family must answer to be an environment and a policy.

A `Denoiser` has two halves. The frozen half (text encoders, decoder, noise schedule) serves the
environment, the trained half (the denoising network) serves the policy. Each loads on first use, so an
environment never holds the network and a policy never holds the encoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unirl_env.arguments.copies import FromArguments
from unirl_env.errors import ContractError
from unirl_env.types import Prompt, Sample

__all__ = ["NEGATIVE", "Denoiser", "identity_of"]

NEGATIVE = "negative_"
"""Prefix of what is encoded of negative prompts."""


def identity_of(model: Any, role: str = "model") -> dict[str, Any]:
    """What tells a model from another one, as plain values: its class, and which weights it has.

    Args:
        model: An adapter of any kind.
        role: What its entries are called.
    """
    places = {f"{role}.{name}": getattr(model, name, None) for name in ("pretrained", "revision", "dtype")}
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return {role: kind, **{name: str(value) for name, value in places.items() if value is not None}}


class Denoiser(FromArguments, ABC):
    """One family of diffusion or flow models, as `x_sigma = (1 - sigma) x_0 + sigma * noise`.

    It is pickled as its constructor's arguments, without what it has loaded.

    A constructor takes what it wants, by keyword, and loads nothing large. This library gives it

    - `device` and `dtype` (as texts), always, as far as it takes them. One that does not take them lives on
      the CPU and in float32: asked for anything else, it is an error that names the argument and the class;
    - `pretrained`, `revision`, `height`, `width`, `offload` and the others of `unirl_env.arguments.names`
      (`MODEL_OPTIONS`), where the id or the user says them;
    - whatever stands in the environment's `model_options`.

    The policy's copy is made from the same ones, without `device` and `offload`: where it goes, a network is
    moved to.

    Attributes:
        latent_shape: Shape of one latent, without the batch: `(C, H, W)`, `(L, D)` or `(C, F, H, W)`.
        lora_targets: Names of the network's linear layers that adapters attach to.
    """

    latent_shape: tuple[int, ...]
    lora_targets: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What tells this model from another one, as plain values by name; a state goes on in no other."""
        return identity_of(self, "denoiser")

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """The model's own noise schedule `[T+1]`, from 1 (pure noise) to 0 (data)."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """The context of `prompts` (or of their negatives), each tensor `[len(prompts), ...]`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> list[Sample]:
        """Finished latents `[B, ...]` as B samples; each must come out the same whatever the others are.

        `models.lots.in_lots` sees to that where a library's last bits change with the size of a batch.
        """

    @abstractmethod
    def network(self) -> nn.Module:
        """A fresh copy of the trained half, in evaluation mode."""

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Any:
        """What all denoising steps of an episode share: the network's reading of the context alone.

        The context itself, unless the family can compute more in advance (a text's keys and values).

        Args:
            network: What `network()` returned, adapters included.
            context: What `encode` returned, each tensor `[P, ...]`.

        Returns:
            P contexts, as `pick` and `velocity` take them; with gradient where gradients are on.
        """
        return context

    def pick(self, context: Any, row: Tensor) -> Any:
        """Of what `read` returned, the contexts at `row` `[N]`."""
        return {name: tensor[row] for name, tensor in context.items()}

    @abstractmethod
    def velocity(self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Any) -> Tensor:
        """The velocity `d x / d sigma` that `network` predicts.

        Args:
            network: What `network()` returned, adapters included.
            latent: `[N, ...]`.
            sigma: `[N]` in [0, 1].
            context: What `read` returned, N contexts.

        Returns:
            `[N, ...]` like `latent`.
        """

    def pictures(self, latents: Tensor) -> list[Tensor]:
        """What to show of latents `[B, ...]`: B pictures `[3, H, W]` in [0, 1], the decoded ones.

        Raises:
            ContractError: If the family decodes to no pictures.
        """
        pictures = [sample.image for sample in self.decode(latents)]
        if any(picture is None for picture in pictures):
            raise ContractError(f"{type(self).__name__} decodes to no picture; it cannot be rendered.")
        return pictures

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the network's adapters where the family's own pipeline loads them.

        Raises:
            NotImplementedError: If the family has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published form for adapters.")

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write all weights of the network where the family's own pipeline loads them.

        Raises:
            NotImplementedError: If the family has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published form for whole weights.")
