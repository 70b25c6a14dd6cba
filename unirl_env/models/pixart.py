"""PixArt-Sigma: a transformer that predicts noise, and variances that nothing here reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unirl_env.arguments.values import truth
from unirl_env.errors import ConfigError
from unirl_env.models.shared.exports import write_adapters
from unirl_env.models.shared.of_diffusers import SELF_AND_CROSS, Sizes, autoencoder_scale
from unirl_env.models.shared.predicts_noise import PredictsNoise
from unirl_env.models.shared.texts_once import TextsOnce


class PixArtDenoiser(TextsOnce, PredictsNoise):
    """PixArt-Sigma: prompts in lower case, through T5.

    Args:
        pretrained: A hub id or a directory.
        clean_caption: Strip prompts of addresses, marks and odd characters, as the pipeline does by default
            where beautifulsoup4 and ftfy are installed.
        **options: Those of `OfDiffusers`.

    Raises:
        ConfigError: If captions are to be cleaned and these are not there.
    """

    family, pipeline = "PixArt-Sigma", "PixArtSigmaPipeline"
    classes = {"transformer": "PixArtTransformer2DModel", "vae": "AutoencoderKL"}
    formerly = {"transformer": "Transformer2DModel"}
    length = 300
    lora_targets = SELF_AND_CROSS

    def __init__(self, pretrained: str, *, clean_caption: bool = False, **options: Any):
        self.clean_caption = truth("clean_caption", clean_caption)
        if clean_caption:
            from diffusers.utils import is_bs4_available, is_ftfy_available

            if not (is_bs4_available() and is_ftfy_available()):
                raise ConfigError(
                    "`clean_caption` must be false where beautifulsoup4 and ftfy are not both installed, got "
                    "True: the pipeline would read prompts as they are; try pip install beautifulsoup4 ftfy."
                )
        super().__init__(pretrained, **options)

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        conditions = config.get("use_additional_conditions")
        if conditions or (conditions is None and config["sample_size"] == 128):
            raise ConfigError(
                "`use_additional_conditions` of the transformer must be false for PixArt-Sigma, got "
                f"{conditions}: PixArt-Alpha reads the picture's size; try a checkpoint of PixArt-Sigma."
            )
        scale = autoencoder_scale(self.configs["vae"])
        return Sizes(scale, config["patch_size"], config["sample_size"] * scale)

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, mask, *_ = self.frozen.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=self.clean_caption,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        predicted = network(
            latent,
            encoder_hidden_states=context["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=context["prompt_attention_mask"],
            timestep=sigma,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return predicted[:, : latent.shape[1]]

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write them for `PeftModel.from_pretrained(pipeline.transformer, directory)`.

        The pipeline has no loader of its own.
        """
        write_adapters(network, directory, base=self.pretrained, revision=self.revision, task=None)
