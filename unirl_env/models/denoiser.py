"""What a model family must answer to be an environment and a policy.

A `Denoiser` has two halves. The frozen half (text encoders, decoder, noise schedule) serves the
environment, the trained half (the denoising network) serves the policy. Each loads on first use, so an
environment never holds the network and a policy never holds the encoders.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.backbone import Backbone
from unirl_env.models.shared.guidance_rules import plain
from unirl_env.types import Prompt, Sample

NEGATIVE = "negative_"
"""Prefix of what is encoded of negative prompts."""


class Denoiser(Backbone):
    """One family of diffusion or flow models, as `x_sigma = (1 - sigma) x_0 + sigma * noise`.

    Attributes:
        latent_shape: Shape of one latent, without the batch: `(C, H, W)`, `(L, D)` or `(C, F, H, W)`.
        prompts_at_once: How many prompts `encode` is given at a time, the last ones filled up with copies. A
            prompt's context must not depend on the others, and the last bits of a library's do, on how many
            these are.
        unguided: Why the checkpoint has no classifier-free guidance, and the remedy; empty where it has.
        recomputes: Whether layers of transformers in its network may recompute activations in `read` and
            `velocity`.
        known_sigmas: The least and the largest noise level that its network was trained at.
        makes: Which field of a `Sample` it fills, `"image"` or `"video"`; its phase is called so, too.
        fps: Frames that its clips show in a second; None of pictures.
    """

    role = "denoiser"
    latent_shape: tuple[int, ...]
    prompts_at_once: int = 1
    unguided: str = ""
    recomputes: ClassVar[bool] = False
    known_sigmas: tuple[float, float] = (0.0, 1.0)
    makes: ClassVar[str] = "image"
    fps: float | None = None

    # The half of the world.

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """The model's own noise schedule `[T+1]`, falling from at most 1 (pure noise) to 0 (data) or above.

        A schedule of the variance-preserving kind begins below 1 and may end above 0.
        """

    def sized(self, height: int, width: int) -> Denoiser:
        """The same model of pictures of another size, which shares what is frozen and loaded.

        Args:
            height: Pixels.
            width: Pixels.

        Raises:
            ConfigError: If it cannot draw them.
        """
        raise ConfigError(
            f"`policy.eval_size` must be null for {type(self).__name__}, which draws one size alone, got "
            f"{height} x {width}."
        )

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """The latents that an episode begins with, of standard normal `noise` `[B, ...]`.

        Args:
            noise: As it is drawn.
            sigma: The first noise level of the schedule.
        """
        return noise

    def data(self, latents: Tensor) -> Tensor:
        """The data x_0 `[B, ...]` that finished latents stand for: themselves, where a schedule ends at 0."""
        return latents

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt that the family cannot draw, such as one without the picture that it is to change.

        Raises:
            PromptError: Naming the prompt.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """The context of `prompts` (or of their negatives), each tensor `[len(prompts), ...]`."""

    @abstractmethod
    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Finished latents `[B, ...]` as B samples; each must come out the same whatever the others are.

        `in_fixed_batches` of `models.shared` sees to that where a library's last bits change with the size of
        a batch.

        Args:
            latents: As the last step left them.
            context: What `encode` returned of their prompts, each tensor `[B, ...]`. A family that needs
                none has no such argument, or leaves it aside; `in_context` decodes with either.
        """

    def pictures(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """What to show of latents `[B, ...]`: B pictures `[3, H, W]` or clips `[F, 3, H, W]`, decoded.

        Of floats in [0, 1], or uint8.

        Args:
            latents: At any noise level.
            context: As `decode` takes it.

        Raises:
            ContractError: If the family decodes to neither.
        """
        shown = [s.video if s.image is None else s.image for s in in_context(self.decode, latents, context)]
        if any(each is None for each in shown):
            raise ContractError(f"{type(self).__name__} decodes to no picture; it cannot be rendered.")
        return shown

    def require_pictures(self, name: str) -> None:
        """Refuse a family of clips where pictures are drawn.

        Args:
            name: The argument that names the family, for the error.

        Raises:
            ConfigError: Naming what it makes.
        """
        if self.makes != "image":
            raise ConfigError(
                f"`{name}` must make pictures, got {type(self).__name__}, which makes a {self.makes}; try a "
                "model of pictures, such as 'sd3'."
            )

    def check_guidance(self, guidance: float) -> None:
        """Refuse classifier-free guidance that the checkpoint has not, before its network is loaded.

        Raises:
            ConfigError: If `guidance` is not 1, naming the remedy.
        """
        if guidance != 1.0 and self.unguided:
            raise ConfigError(f"`guidance` must be 1, got {guidance:g}: {self.unguided}.")

    # The trained half, beside that of every `Backbone`.

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Any:
        """What all denoising steps of an episode share: the network's reading of the context alone.

        The context itself, unless the family can compute more in advance (a text's keys and values). Where
        prompts have no context, it is not asked.

        Args:
            network: What `network()` returned, adapters included.
            context: What `encode` returned, each tensor `[P, ...]`.

        Returns:
            P contexts, as `velocity` takes them: a mapping of tensors `[P, ...]`, or what has `pick(row)`,
            those at `row` `[N]`; with gradient where gradients are on.
        """
        return context

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

    def guided(self, without: Tensor, with_prompt: Tensor, guidance: float, sigma: Tensor) -> Tensor:
        """Classifier-free guidance, as the family's own pipeline has it: 1 is none.

        Args:
            without: Velocities `[N, ...]` float32 with the negative prompts.
            with_prompt: Likewise with the prompts.
            guidance: How far to go from the one to the other.
            sigma: `[N]`.

        Returns:
            `[N, ...]`; by default `u + guidance (c - u)` (Ho and Salimans, 2022, as diffusers writes it).
        """
        return plain(without, with_prompt, guidance)


def in_context(method: Callable[..., Any], latents: Tensor, context: Mapping[str, Tensor] | None) -> Any:
    """What `decode` or `pictures` of a denoiser gives of latents, in their context if it takes a `context`.

    Args:
        method: Either.
        latents: `[B, ...]`.
        context: Each tensor `[B, ...]`.
    """
    if "context" in inspect.signature(method).parameters:
        return method(latents, context=context)
    return method(latents)
