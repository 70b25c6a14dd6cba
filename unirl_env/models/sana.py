"""SANA: a linear transformer on latents of 32 pixels a place, prompted through a language model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from unirl_env.arguments.values import truth
from unirl_env.errors import ConfigError
from unirl_env.models.shared.flow_schedule import FlowSchedule
from unirl_env.models.shared.of_diffusers import SELF_AND_CROSS, Sizes, warn_of_truncation
from unirl_env.models.shared.scheduler_settings import SOLVER, require_same
from unirl_env.models.shared.solver_schedule import SolverSchedule
from unirl_env.models.shared.texts_once import TextsOnce


class SanaDenoiser(TextsOnce):
    """SANA: prompts are read behind the pipeline's instruction to enhance them, negative ones without.

    Args:
        pretrained: A hub id or a directory.
        instruction: Whether they are (`complex_human_instruction`, as the pipeline has it).
        **options: Those of `OfDiffusers`.
    """

    family, pipeline = "SANA", "SanaPipeline"
    classes = {"transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC"}
    even, length = False, 300
    lora_targets = SELF_AND_CROSS

    def __init__(self, pretrained: str, *, instruction: bool = True, **options: Any):
        self.instruction = truth("instruction", instruction)
        super().__init__(pretrained, **options)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        if config.get("guidance_embeds"):
            raise ConfigError(
                "`guidance_embeds` of the transformer must be false for SANA, got True: that is SANA-Sprint, "
                "which is distilled to steps of its own; try a SANA checkpoint."
            )
        scale = 2 ** (len(self.configs["vae"]["encoder_block_out_channels"]) - 1)
        return Sizes(scale, config["patch_size"], config["sample_size"] * scale)

    def _schedule(self) -> Any:
        config = self._scheduler_config
        if config.get("_class_name") == SOLVER:
            return SolverSchedule(config)
        return FlowSchedule(config, self.num_tokens)

    def _require_scheduler(self, name: Any) -> None:
        require_same(name, self._scheduler_config.get("_class_name"))

    @cached_property
    def _instruction(self) -> list[str] | None:
        told = inspect.signature(self._pipeline_class.__call__).parameters["complex_human_instruction"]
        return told.default if self.instruction else None

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        return self._read(texts, self._instruction)

    def _encode_negative(self, texts: list[str]) -> dict[str, Tensor]:
        return self._read(texts, None)

    def _read(self, texts: list[str], instruction: list[str] | None) -> dict[str, Tensor]:
        for text in texts:
            if len(self.frozen.tokenizer(text.lower())["input_ids"]) > self.max_sequence_length:
                warn_of_truncation(self.pretrained, text, self.max_sequence_length)
        embeds, mask, *_ = self.frozen.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        time = sigma * self._flow.num_train_timesteps
        velocity = network(
            latent,
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=context["prompt_attention_mask"],
            timestep=time * self.configs["transformer"].get("timestep_scale", 1.0),
            return_dict=False,
        )[0]
        return velocity[:, : latent.shape[1]]  # some predict variances behind it
