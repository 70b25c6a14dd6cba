"""FLUX.2 and FLUX.2 Klein: several layers of a language model are the encoding of a text.

The dynamic shift of the schedule depends on the number of steps as well as on the picture's size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.shared.flow_schedule import FlowSchedule
from unirl_env.models.shared.of_diffusers import TWO_STREAMS, warn_of_truncation
from unirl_env.models.shared.of_flux import OfFlux


class OfFlux2(OfFlux):
    """What both pipelines of FLUX.2 share; arguments are those of `OfFlux`."""

    classes = {"transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2"}

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        # `attn.to_out` is a list of layers in blocks of two streams, and a layer in those of one.
        singles = range(self.configs["transformer"]["num_single_layers"])
        self.lora_targets = (
            *TWO_STREAMS,
            "attn.to_qkv_mlp_proj",
            *(f"single_transformer_blocks.{i}.attn.to_out" for i in singles),
        )

    def _schedule(self) -> Any:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        shift = partial(compute_empirical_mu, self.num_tokens)
        return FlowSchedule(self._scheduler_config, self.num_tokens, shift)

    @abstractmethod
    def _count(self, text: str) -> int:
        """How many tokens the pipeline makes of a text, words around it included."""

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        for text in texts:
            if self._count(text) > self.max_sequence_length:  # cut by the pipeline without a word
                warn_of_truncation(self.pretrained, text, self.max_sequence_length)
        embeds, _ = self.frozen.encode_prompt(
            prompt=texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds}

    @property
    def _places(self) -> Tensor:
        """Where each token of the picture stands, `[1, tokens, 4]`."""
        empty = torch.empty(1, 1, self.height // self._unit, self.width // self._unit)
        return self._pipeline_class._prepare_latent_ids(empty)

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        text = context["prompt_embeds"].to(self.dtype)
        return network(
            hidden_states=latent,
            encoder_hidden_states=text,
            txt_ids=self._pipeline_class._prepare_text_ids(text[:1]).to(latent.device),
            img_ids=self._places.to(latent.device),
            return_dict=False,
            **self._when(sigma, latent),
        )[0]

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        pipeline, places = self._pipeline_class, self._places.to(latents.device)
        grid = pipeline._unpack_latents_with_ids(latents, places.expand(len(latents), -1, -1))
        mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
        grid = grid * torch.sqrt(variance + vae.config.batch_norm_eps).to(grid) + mean.to(grid)
        return vae.decode(pipeline._unpatchify_latents(grid), return_dict=False)[0]


class Flux2KleinDenoiser(OfFlux2):
    """FLUX.2 Klein, base or distilled: Qwen3 reads the text; distilled checkpoints have no guidance."""

    family, pipeline = "FLUX.2 Klein", "Flux2KleinPipeline"

    def __init__(self, pretrained: str, **options: Any):
        super().__init__(pretrained, **options)
        if self._index.get("is_distilled", False):
            self.unguided = f"{self.pretrained!r} is distilled (`is_distilled`); try a base checkpoint"

    def _count(self, text: str) -> int:
        tokenizer, turn = self.frozen.tokenizer, [{"role": "user", "content": text}]
        said = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(tokenizer(said)["input_ids"])


class Flux2Denoiser(OfFlux2):
    """FLUX.2 dev: Mistral 3 reads the text behind a system message; guidance is an input of the network."""

    family, pipeline, tells = "FLUX.2", "Flux2Pipeline", 4.0
    unguided = "the pipeline of FLUX.2 dev has none; try `embedded_guidance`, its `guidance_scale`"

    def _count(self, text: str) -> int:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        said = self.frozen.tokenizer.apply_chat_template(
            format_input([text]), tokenize=True, return_dict=True
        )
        return len(said["input_ids"][0])
