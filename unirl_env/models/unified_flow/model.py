"""A decoder that writes a plan and then draws by flow matching, both with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.media.pixels import load_picture
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared import packed
from unirl_env.models.shared.autoencoder import Autoencoder
from unirl_env.models.shared.chat import ChatWords
from unirl_env.models.shared.exports import OfTransformers
from unirl_env.models.shared.faithful import hold
from unirl_env.models.shared.loading import Source, complete
from unirl_env.models.shared.outline import on_device
from unirl_env.models.shared.output_layer import output_states
from unirl_env.models.shared.prefix import Prefix
from unirl_env.models.unified import SharedBackbone, UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel, padded_inputs, padded_prompts
from unirl_env.types import Prompt, Sample

MARKS = ("begin_image_token_id", "source_start_token_id", "source_token_id", "source_end_token_id")


class UnifiedText(SharedBackbone, ChatWords, LanguageModel):
    """The words: a chat, before it the picture that a prompt may bring, each patch of its latent a token.

    Args:
        model: What this is a view of.
        **words: Other arguments of `ChatWords`.
    """

    KIND = "a unified model of words and latents"
    ALTERNATIVE = "unirl/TinyUnified-T2I-v0"

    def __init__(self, model: UnifiedFlow, **words: Any):
        self.whole, self.lora_targets = model, model.lora_targets
        super().__init__(model.pretrained, **words)

    @property
    def input_spaces(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Patches and grid of the picture, where the model takes one."""
        most, (_, height, width) = self.whole.max_images, self.whole.grid
        if not most:
            return {}
        patches = (most * height * width, self.whole.config.patch_values)
        return {"pixel_values": (patches, "float32"), "image_grid_thw": ((most, 3), "int64")}

    def encode(self, prompt: Prompt) -> Encoded:
        """The chat by the model's template, behind the picture of the prompt.

        `inputs` holds `pixel_values` `[n_patches, D]`, the latent's patches, and `image_grid_thw` `[1, 3]`
        where there is one. A picture of another size is resized.

        Raises:
            PromptError: If the prompt brings more pictures than the model takes, or its words cannot be read.
        """
        model, config = self.whole, self.config
        if len(prompt.images) > model.max_images:
            raise PromptError(
                f"Prompts must have at most {model.max_images} pictures, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try a model with a larger `max_images`."
            )
        tokens = super().encode(self._only_words(prompt)).tokens
        if bool((tokens == config.source_token_id).any() | (tokens == config.source_start_token_id).any()):
            raise PromptError(
                f"The words of a prompt must not hold the tokens of the model's own pictures, got some in "
                f"{prompt.id[:60]!r}; bring pictures by `images`."
            )
        if not prompt.images:
            return Encoded(tokens)
        patches = model.source_patches(load_picture(prompt.images[0]))
        marks = [config.source_start_token_id, *[config.source_token_id] * len(patches)]
        before = torch.tensor([*marks, config.source_end_token_id])
        grid = torch.tensor([model.grid])
        return Encoded(torch.cat([before, tokens]), {"pixel_values": patches, "image_grid_thw": grid})

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The decoder's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        inputs = how.get("inputs") or {}
        embedded = network.embed(
            tokens, positions[0], inputs.get("pixel_values"), inputs.get("image_grid_thw")
        )
        options = packed.reading_keywords(how, tokens.device)
        read = network.base_model(inputs_embeds=embedded, position_ids=positions[0], **options)
        return output_states(network.get_output_embeddings(), read.last_hidden_state)

    def _only_words(self, prompt: Prompt) -> Prompt:
        """The prompt without its picture, checked against the places that its chat has for one."""
        turns, marks = [], 0
        for turn in prompt.messages:
            content = turn.get("content")
            if not isinstance(content, str) and content is not None:
                marks += sum(part.get("type") == "image" for part in content)
                content = [part for part in content if part.get("type") != "image"]
            turns.append({**turn, "content": content})
        if marks not in (0, len(prompt.images)):
            raise PromptError(
                f"A chat must have an image part for each of its pictures or none, got {marks} for "
                f"{len(prompt.images)} pictures in {prompt.id[:60]!r}; try none: a picture always stands "
                "before the chat."
            )
        return dataclasses.replace(prompt, messages=tuple(turns), images=())


class UnifiedPicture(SharedBackbone, Denoiser):
    """The picture: a latent behind a text, of which every denoising step reads the keys and values.

    Args:
        model: What this is a view of.
        latent_shape: `(C, H, W)`.
        max_prompt_tokens: W of what `encode` returns.
    """

    def __init__(self, model: UnifiedFlow, latent_shape: tuple[int, int, int], max_prompt_tokens: int):
        self.whole, self.latent_shape, self.max_prompt_tokens = model, latent_shape, max_prompt_tokens
        self.lora_targets = model.lora_targets

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]`, shifted as the model's configuration says."""
        return F.flow_sigmas(num_steps, shift=self.whole.config.shift)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """Prompts with the opening of the picture right behind them.

        A negative is its words alone; it has no picture.

        Returns:
            `tokens` `[P, W]` int64, padded on the right, and `length` `[P]`; where the model takes pictures
            also `pixel_values` `[P, n_patches, D]` and `image_grid_thw` `[P, 1, 3]`, zeros without one.

        Raises:
            PromptError: If a prompt has more than W tokens or cannot be read.
        """
        text, opening = self.whole.text, self.whole.opening(None)
        asked = [Prompt(p.negative, id=p.id) if negative else p for p in prompts]
        encoded = [text.encode(prompt) for prompt in asked]
        rows = [[*each.tokens.tolist(), *opening] for each in encoded]
        what = "A prompt and the opening of its picture"
        context = padded_prompts(prompts, rows, self.max_prompt_tokens, text.pad_id, what=what)
        return {**context, **padded_inputs(encoded, text.input_spaces)}

    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        return self.whole.autoencoder.samples(latents)

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Prefix:
        """One causal pass over the texts `[P, W]`, as far as the longest reaches."""
        length = context["length"]
        tokens = context["tokens"][:, : int(length.max())]
        patches, grid = context.get("pixel_values"), context.get("image_grid_thw")
        if grid is not None:
            # Rows without a picture, and all that is padding, drop out.
            count = grid.prod(-1)
            real = torch.arange(patches.shape[1], device=patches.device) < count.sum(1)[:, None]
            patches, grid = patches[real], grid[count > 0]
        return network.read_text(tokens, length, patches, grid)[1]

    def velocity(self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Prefix) -> Tensor:
        """The network's prediction `[N, C, H, W]`, in its own dtype."""
        return network.velocity(latent, sigma, context)


class UnifiedFlow(OfTransformers, UnifiedModel):
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
        self.source = Source(
            self.pretrained, UnifiedText.KIND, UnifiedText.ALTERNATIVE, {"revision": revision}
        )
        if self.config.model_type != network.UnifiedFlowConfig.model_type:
            raise ConfigError(
                f"`pretrained` must be {UnifiedText.KIND}, got {self.config.model_type!r} in "
                f"{self.pretrained!r}; try `{UnifiedText.ALTERNATIVE}`."
            )
        if missing := [name for name in MARKS if getattr(self.config, name) is None]:
            raise ConfigError(f"The model's configuration must name `{missing[0]}`, got none.")
        if whole("max_images", max_images) not in (0, 1):
            raise ConfigError(f"`max_images` must be 0 or 1 for {UnifiedText.KIND}, got {max_images}.")
        self.max_images = max_images
        self.text = UnifiedText(self, dtype=dtype, device=device, revision=revision, system=system)
        self.opens = (self.config.begin_image_token_id,)
        if not set(self.opens) <= set(self.text.eos_ids):
            raise ConfigError(
                f"The begin-of-image token {self.opens[0]} must end texts, got only {self.text.eos_ids} in "
                f"{self.pretrained!r}; add it to `eos_token_id` in its generation_config.json."
            )
        own = {"revision": revision} if vae is None else {}
        self.autoencoder = Autoencoder(
            str(vae or pretrained),
            dtype=self.text.dtype,
            device=device,
            alternative=UnifiedText.ALTERNATIVE,
            **own,
        )
        latent_shape = self._latent_shape(height, width)
        self.grid = (1, *(side // self.config.patch_size for side in latent_shape[1:]))
        self.image = UnifiedPicture(self, latent_shape, max_prompt_tokens)
        self.context_keys = ("tokens", "length", *self.text.input_spaces)

    def network(self) -> nn.Module:
        """The network of both views, freshly loaded."""
        from unirl_env.models.unified_flow.network import ATTENTION, UnifiedFlowNetwork

        network = self.source.load(
            complete(UnifiedFlowNetwork.from_pretrained),
            dtype=self.text.dtype,
            attn_implementation=ATTENTION,
        )
        return hold(self.text, on_device(network, self.text.device).eval())

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

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that `UnifiedFlow` loads, adapters merged in: network, tokenizer, autoencoder."""
        super().save_weights(network, directory)
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
