"""A decoder that writes a plan and then draws by flow matching, both with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.shared.autoencoder import Autoencoder
from unirl_env.models.shared.exports import write_adapters, write_weights
from unirl_env.models.shared.faithful import hold
from unirl_env.models.shared.loading import complete, load
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.unified_flow.views import UnifiedPicture, UnifiedText

__all__ = ["UnifiedFlow"]

MARKS = ("begin_image_token_id", "source_start_token_id", "source_token_id", "source_end_token_id")


class UnifiedFlow(UnifiedModel):
    """A Qwen3 decoder that denoises patches of a latent behind its own text.

    The text ends with the begin-of-image token, which is an action; nothing more stands before the picture.
    A picture that a prompt brings is read as a latent, too, by the frozen autoencoder. The directory holds
    the network (`models.unified_flow.network`) as `save_pretrained` writes it, its tokenizer, and an
    autoencoder of diffusers in `vae`.

    Args:
        pretrained: A hub id or a directory.
        vae: Hub id or directory with the autoencoder in `vae`; None is `pretrained`.
        height: Pixels; None takes the size that the model was trained for.
        width: Pixels; likewise.
        dtype: Of weights and activations.
        device: Where the frozen half lives, and where the network is loaded.
        revision: Branch, tag or commit of the hub repository.
        system: System prompt for chats that bring none.
        max_images: The most pictures of one prompt, 0 or 1.
        max_prompt_tokens: Width of the texts that the image view encodes.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model is of another family, or a setting is out of range.
    """

    KIND = "a unified model of words and latents"
    ALTERNATIVE = "unirl/TinyUnified-T2I-v0"
    lora_targets = (*CausalLM.lora_targets, "picture.patch_in", "picture.patch_out")

    def __init__(
        self,
        pretrained: str,
        *,
        vae: str | None = None,
        height: int | None = None,
        width: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
        max_images: int = 1,
        max_prompt_tokens: int = 256,
    ):
        from unirl_env.models.unified_flow import network  # makes the family known to transformers

        self.pretrained, self.revision = str(pretrained), revision
        self.config = self._config
        if self.config.model_type != network.UnifiedFlowConfig.model_type:
            raise ConfigError(
                f"`pretrained` must be {self.KIND}, got {self.config.model_type!r} in {self.pretrained!r}; "
                f"try `{self.ALTERNATIVE}`."
            )
        if missing := [name for name in MARKS if getattr(self.config, name) is None]:
            raise ConfigError(f"The model's configuration must name `{missing[0]}`, got none.")
        if whole("max_images", max_images) not in (0, 1):
            raise ConfigError(f"`max_images` must be 0 or 1 for {self.KIND}, got {max_images}.")
        self.max_images = max_images
        self.words = CausalLM(self.pretrained, dtype=dtype, device=device, revision=revision, system=system)
        self.opens = (self.config.begin_image_token_id,)
        if not set(self.opens) <= set(self.words.eos_ids):
            raise ConfigError(
                f"The begin-of-image token {self.opens[0]} must end texts, got only {self.words.eos_ids} in "
                f"{self.pretrained!r}; add it to `eos_token_id` in its generation_config.json."
            )
        own = {"revision": revision} if vae is None else {}
        self.autoencoder = Autoencoder(
            str(vae or pretrained),
            dtype=self.words.dtype,
            device=device,
            alternative=self.ALTERNATIVE,
            **own,
        )
        latent_shape = self._latent_shape(height, width)
        self.grid = (1, *(side // self.config.patch_size for side in latent_shape[1:]))
        self.text = UnifiedText(self)
        self.image = UnifiedPicture(self, latent_shape, max_prompt_tokens)
        self.context_keys = ("tokens", "length", *self.text.input_spaces)

    def network(self) -> nn.Module:
        """The network of both views, freshly loaded."""
        from unirl_env.models.unified_flow.network import ATTENTION, UnifiedFlowNetwork

        network = self._load(
            complete(UnifiedFlowNetwork.from_pretrained),
            dtype=self.words.dtype,
            attn_implementation=ATTENTION,
        )
        return hold(self.text, network.to(self.words.device).eval())

    def opening(self, ended_by: int | None) -> list[int]:
        """The begin-of-image token, unless the text itself ended with it.

        Raises:
            ContractError: If no picture follows `ended_by`.
        """
        if ended_by is None:
            return list(self.opens)
        if ended_by not in self.opens:
            raise ContractError(
                f"`ended_by` must be {self.opens[0]}, after which the picture follows, got {ended_by}."
            )
        return []

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Text: nothing, where its head is the embeddings. Picture: the way out.

        Where prompts bring no pictures, only the picture knows patches at all.
        """
        if phase == "text":
            embedded = network.get_input_embeddings().weight
            return tuple(w for w in network.get_output_embeddings().parameters() if w is not embedded)
        picture = network.picture
        own = (picture.modulation, picture.patch_out) if self.max_images else (picture,)
        return tuple(weight for module in own for weight in module.parameters())

    def source_patches(self, picture: Tensor) -> Tensor:
        """A picture `[3, h, w]` in [0, 1] as the patches `[n, D]` float32 of its latent."""
        size = tuple(side * self.autoencoder.scale for side in self.image.latent_shape[1:])
        if picture.shape[1:] != size:
            picture = nnf.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return self.patches(self.autoencoder.latents(picture[None]))[0]

    def patches(self, latents: Tensor) -> Tensor:
        """Latents `[N, C, H, W]` as patches `[N, n, D]`, row by row."""
        from unirl_env.models.unified_flow.network import patches_of

        return patches_of(latents, self.config.patch_size)

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, for peft."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that `UnifiedFlow` loads, adapters merged in: network, tokenizer, autoencoder."""
        write_weights(network, directory)
        self.words._tokenizer.save_pretrained(directory)
        self.autoencoder.save(directory)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        config, scale = self.config, self.autoencoder.scale
        if self.autoencoder.channels != config.latent_channels:
            raise ConfigError(
                f"`vae` must make latents of {config.latent_channels} channels, got one with "
                f"{self.autoencoder.channels} in {self.autoencoder.pretrained!r}."
            )
        unit, sides = scale * config.patch_size, []
        for name, size in (("height", height), ("width", width)):
            size = config.latent_size * scale if size is None else whole(name, size)
            if size % unit or not 0 < size <= config.max_grid * unit:
                raise ConfigError(
                    f"`{name}` must be a positive multiple of {unit} up to {config.max_grid * unit}, got "
                    f"{size}."
                )
            sides.append(size // scale)
        return (config.latent_channels, *sides)

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig.from_pretrained)

    def _load(self, loader: Any, **options: Any) -> Any:
        return load(
            loader,
            self.pretrained,
            kind=self.KIND,
            alternative=self.ALTERNATIVE,
            revision=self.revision,
            **options,
        )
