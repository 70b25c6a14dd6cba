"""Wan: clips of one transformer, prompted through a multilingual T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.shared.flow_schedule import FlowSchedule
from unirl_env.models.shared.of_diffusers import SELF_AND_CROSS, Sizes
from unirl_env.models.shared.scheduler_settings import UNIPC, require_same
from unirl_env.models.shared.solver_schedule import SolverSchedule
from unirl_env.models.wan_experts import OfExperts

SIDE = 480
"""Pixels of a side where none are asked for: no configuration of the transformer tells them."""


class WanDenoiser(OfExperts):
    """Wan 2.1 and 2.2 from text, TI2V-5B among them, which is told a time for each token.

    Zeros behind a text are attended to, so that `max_sequence_length` is their 512.

    The published checkpoints carry UniPC, whose steps look back at former ones: episodes take Euler's, at its
    noise levels. Its times are cut to whole numbers in the pipeline (937 for 937.5), and not here.
    """

    family, pipeline = "Wan", "WanPipeline"
    classes = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
    whole = ("vae",)
    even, length = False, 512
    frames, rate = 81, 16.0
    frames_at_once = 4  # of each place of a latent in time, one after another
    lora_targets = SELF_AND_CROSS

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        vae = self.configs["vae"]
        return Sizes(
            vae.get("scale_factor_spatial", 8),
            config["patch_size"][1],
            SIDE,
            stride=vae.get("scale_factor_temporal", 4),
        )

    def _schedule(self) -> Any:
        config = self._scheduler_config
        if config.get("_class_name") == UNIPC:
            return SolverSchedule(config, UNIPC)
        return FlowSchedule(config, self.num_tokens)

    def _require_scheduler(self, name: Any) -> None:
        require_same(name, self._scheduler_config.get("_class_name"))

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, _ = self.frozen.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        image = context.get("image_embeds")
        return network(
            hidden_states=latent,
            # TI2V-5B's pipeline repeats it for every token; from a text alone these have one time.
            timestep=self._times(sigma),
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            encoder_hidden_states_image=None if image is None else image.to(self.dtype),
            return_dict=False,
        )[0]

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents are of mean 0 and deviation 1 in each channel."""
        mean, deviation = (
            torch.tensor(vae.config[name]).view(-1, 1, 1, 1).to(latents)
            for name in ("latents_mean", "latents_std")
        )
        return vae.decode(latents * deviation + mean, return_dict=False)[0]
