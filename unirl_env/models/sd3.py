"""Stable Diffusion 3 and 3.5: any directory or hub id that diffusers' own pipeline loads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.arguments.values import truth, whole
from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import unheard
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.exports import in_order, settle_header
from unirl_env.models.shared.fixed_batches import in_fixed_batches, painted, texts_at_once
from unirl_env.models.shared.flow_schedule import FlowSchedule, require_scheduler
from unirl_env.models.shared.loading import Source, as_dtype, complete
from unirl_env.models.shared.outline import on_device
from unirl_env.types import Prompt, Sample

logger = logging.getLogger(__name__)

SCHEDULES = ("flow", "pipeline")
OPTIONAL = ("text_encoder_3", "tokenizer_3")
FROZEN = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")
ENCODERS = (
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.tokenization_utils_base",
)
TRUNCATED = ("was truncated", "longer than the specified maximum")
"""What they say of each text that is longer than an encoder reads: two lines for each of three encoders."""
_told: set[str] = set()


def warn_of_truncation(pretrained: str, text: str, length: int) -> None:
    """Say, once for each model, that its encoders do not read prompts to their end."""
    if pretrained not in _told:
        _told.add(pretrained)
        logger.warning(
            "The text encoders of %s do not read every prompt to its end, such as %r: CLIP reads its own "
            "number of tokens, 77 as published, and T5 %d. Try shorter prompts, or a larger "
            "`max_sequence_length`, which is T5's. (This is said once.)",
            *(pretrained, f"{text[:60]}..." if len(text) > 60 else text, length),
        )


class SD3Denoiser(Denoiser):
    """Stable Diffusion 3's frozen half is its pipeline without the transformer; the trained half is that.

    Args:
        pretrained: A hub id or a directory.
        height: Pixels; None takes the size that the model was trained for.
        width: Pixels; likewise.
        dtype: Of weights and activations.
        device: Where the frozen half lives, and where the network is loaded.
        offload: Keep text encoders and decoder on the CPU between uses, by accelerate.
        revision: Branch, tag or commit of the hub repository.
        max_sequence_length: Tokens of the T5 encoder.
        schedule: `"flow"` begins with the uniform grid from 1 to 0, `"pipeline"` with the one that
            `StableDiffusion3Pipeline` uses by default, whose last step is nearly empty. Both then follow the
            checkpoint's scheduler: its shifts, terminal shift, Karras, exponential or beta spacing.
        rows_per_forward: Evaluate the network on exactly that many rows at a time, so that an episode comes
            out bitwise the same alone, in any batch, and in the learner. Without it, the batch size shows in
            the last bits. 16 costs next to nothing on a CPU where batches are multiples of it.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the picture's size does not fit the model, a setting is out of range, or the
            checkpoint's scheduler has a setting that episodes cannot honour.
    """

    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )

    def __init__(
        self,
        pretrained: str,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        offload: bool = False,
        revision: str | None = None,
        max_sequence_length: int = 256,
        schedule: str = "flow",
        rows_per_forward: int | None = None,
    ):
        if schedule not in SCHEDULES:
            raise ConfigError(f"`schedule` must be one of {SCHEDULES}, got {schedule!r}.")
        if rows_per_forward is not None:
            rows_per_forward = whole("rows_per_forward", rows_per_forward, 1, hint="try 16")
        self.rows_per_forward = rows_per_forward
        self.pretrained, self.revision, self.schedule = str(pretrained), revision, schedule
        kind, embedded = "Stable Diffusion 3", "unirl/TinySD3-T2I-v0"
        self.source = Source(self.pretrained, kind, embedded, {"revision": revision})
        self.dtype = as_dtype("dtype", dtype)
        self.device, self.offload = torch.device(device), truth("offload", offload)
        self.max_sequence_length = whole("max_sequence_length", max_sequence_length, 1)
        self.prompts_at_once = texts_at_once(self.max_sequence_length)
        config, vae = self._load_config("transformer"), self._load_config("vae")
        self.patch = config["patch_size"]
        self.scale = 2 ** (len(vae["block_out_channels"]) - 1)
        trained = config["sample_size"] * self.scale
        height = trained if height is None else whole("height", height)
        width = trained if width is None else whole("width", width)
        for name, size in (("height", height), ("width", width)):
            unit = self.scale * self.patch
            if size % unit or not 0 < size <= config["pos_embed_max_size"] * unit:
                raise ConfigError(
                    f"`{name}` must be a positive multiple of {unit} up to "
                    f"{config['pos_embed_max_size'] * unit}, got {size}."
                )
        self.latent_shape = (config["in_channels"], height // self.scale, width // self.scale)
        tokens = (self.latent_shape[1] // self.patch) * (self.latent_shape[2] // self.patch)
        self._flow = FlowSchedule(self._scheduler_config(), tokens)

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]` as the checkpoint's scheduler has it.

        Raises:
            ConfigError: If the pipeline's scheduler is another one, or its settings lead not from 1 to 0.
        """
        # The pipeline takes the class from its index, whatever the scheduler's own file says.
        require_scheduler((self._index.get("scheduler") or [None])[-1])
        return self._flow.sigmas(num_steps, even=self.schedule == "flow")

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """`prompt_embeds` `[B, L, D]` of the joint sequence and `pooled_prompt_embeds` `[B, D]`."""
        texts = [prompt.negative if negative else prompt.text for prompt in prompts]
        with unheard(ENCODERS, TRUNCATED) as said:
            embeds, _, pooled, _ = self._frozen.encode_prompt(
                prompt=texts,
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
        if said:
            warn_of_truncation(self.pretrained, max(texts, key=len), self.max_sequence_length)
        self._offload_again()
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        vae = self._frozen.vae

        def draw(latents: Tensor) -> Tensor:
            latents = latents.to(self.device, vae.dtype)
            latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
            return vae.decode(latents, return_dict=False)[0]

        samples = painted(draw, latents, *(side * self.scale for side in self.latent_shape[1:]))
        self._offload_again()
        return samples

    def network(self) -> nn.Module:
        """Diffusers' `SD3Transformer2DModel`, freshly loaded."""
        from diffusers import SD3Transformer2DModel

        loader = complete(SD3Transformer2DModel.from_pretrained)
        network = self.source.load(loader, subfolder="transformer", dtype=self.dtype)
        return on_device(network, self.device).eval()

    def velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The transformer's prediction `[N, C, H, W]`, in its own dtype."""

        def forward(latent: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
            return network(
                hidden_states=latent.to(self.dtype),
                timestep=sigma * self._flow.num_train_timesteps,
                encoder_hidden_states=embeds.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                return_dict=False,
            )[0]

        embeds, pooled = context["prompt_embeds"], context["pooled_prompt_embeds"]
        return in_fixed_batches(forward, latent, sigma, embeds, pooled, rows=self.rows_per_forward)

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights` reads."""
        from diffusers import StableDiffusion3Pipeline
        from peft import get_peft_model_state_dict

        StableDiffusion3Pipeline.save_lora_weights(
            directory,
            transformer_lora_layers=get_peft_model_state_dict(network),
            transformer_lora_adapter_metadata=in_order(network.peft_config["default"].to_dict()),
        )
        settle_header(Path(directory) / "pytorch_lora_weights.safetensors")

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write the transformer as `SD3Transformer2DModel.from_pretrained` reads it."""
        network.save_pretrained(directory)

    @cached_property
    def _frozen(self) -> Any:
        """Diffusers' pipeline, which knows how prompts are encoded, without the transformer's weights."""
        from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

        # What a checkpoint leaves out must be said again, or the pipeline misses it.
        absent = {name: None for name in OPTIONAL if self._index.get(name, [None])[0] is None}
        frozen = {name: self._load_part(name) for name in FROZEN if name not in absent}
        pipeline = self.source.load(
            StableDiffusion3Pipeline.from_pretrained, transformer=None, dtype=self.dtype, **absent, **frozen
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.to(memory_format=torch.channels_last)  # small lots are faster so
        parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        self._hooks = []
        if self.offload:
            from accelerate import cpu_offload_with_hook

            hook = None
            for part in parts:
                _, hook = cpu_offload_with_hook(part, self.device, prev_module_hook=hook)
                self._hooks.append(hook)
        else:
            for part in parts:
                part.to(self.device)
        for part in parts:
            part.eval().requires_grad_(False)
        if pipeline.text_encoder_3 is None:
            # Without T5 the pipeline asks the transformer how wide its zeros must be: its shape is enough.
            with torch.device("meta"):
                pipeline.transformer = SD3Transformer2DModel.from_config(self._load_config("transformer"))
        return pipeline

    def _load_part(self, name: str) -> nn.Module:
        """A frozen network of the pipeline, by itself: the pipeline would not say what its weights lack."""
        library, kind = self._index.get(name) or (None, None)
        if library not in ("transformers", "diffusers"):
            raise self.source.not_found(
                f"its `{name}` is of {library}, and must be of transformers or diffusers"
            )
        loader = complete(getattr(import_module(library), kind).from_pretrained)
        return self.source.load(loader, subfolder=name, dtype=self.dtype)

    def _offload_again(self) -> None:
        if self.offload:
            for hook in self._hooks:
                hook.offload()

    @cached_property
    def _index(self) -> dict[str, Any]:
        """The pipeline's own list of its parts."""
        from diffusers import DiffusionPipeline

        return self.source.load(DiffusionPipeline.load_config)

    def _scheduler_config(self) -> dict[str, Any]:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return self.source.load(FlowMatchEulerDiscreteScheduler.load_config, subfolder="scheduler")

    def _load_config(self, part: str) -> dict[str, Any]:
        from diffusers import AutoencoderKL, SD3Transformer2DModel

        kind = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}[part]
        config = self.source.load(kind.load_config, subfolder=part)
        if config.get("_class_name") != kind.__name__:
            raise self.source.not_found(f"its {part} is a {config.get('_class_name')}, not a {kind.__name__}")
        return config
