"""Tiny random checkpoints of FLUX.2 Klein and FLUX.2 dev in the published layout, and how they are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models.family_checks import Family

from pretraining.qwen3_build import CHAT_TEMPLATE, tiny_qwen3
from pretraining.qwen_vl_build import word_tokenizer
from unirl_env.prompts.shapes import words

LENGTH = 64
READ = 32
"""Width of the language models: several of their layers side by side are the context."""
MISTRAL = (
    "{%- for message in messages %}{{- '[' + message.role + ']' }}"
    "{%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}"
    "{{- '[/' + message.role + ']' }}{%- endfor %}"
)


def visible(network: torch.nn.Module, scale: float) -> torch.nn.Module:
    """The network with matrices `scale` times as large: as they are made, texts hardly matter."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return network.eval()


def tiny_vae() -> Any:
    """An autoencoder whose statistics are not neutral, or their absence would not show."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_(0.0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def tiny_transformer(guidance_embeds: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    network = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * READ,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return visible(network, 2.0)


def scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def build_klein(folder: Path, *, distilled: bool = False, seed: int = 1) -> Path:
    """Write a tiny FLUX.2 Klein."""
    from diffusers import Flux2KleinPipeline

    tokenizer = word_tokenizer(words())
    tokenizer.chat_template = CHAT_TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"vae": tiny_vae(), "transformer": tiny_transformer(False)}
    # The layers 9, 18 and 27 are read.
    reader = visible(tiny_qwen3(tokenizer, seed=seed, width=READ, layers=28, intermediate=64), 5.0)
    pipeline = Flux2KleinPipeline(
        scheduler(), text_encoder=reader, tokenizer=tokenizer, is_distilled=distilled, **parts
    )
    pipeline.save_pretrained(folder)
    return _as_published(Path(folder), tokenizer=["transformers", "Qwen2TokenizerFast"])


def _as_published(folder: Path, **changes: Any) -> Path:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2) + "\n")
    return folder


def build_dev(folder: Path, *, seed: int = 1) -> Path:
    """Write a tiny FLUX.2 dev."""
    from diffusers import Flux2Pipeline
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
    )

    tokenizer = word_tokenizer([*words(), SYSTEM_MESSAGE])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4}),
        tokenizer,
        patch_size=4,
        chat_template=MISTRAL,
    )
    heads = {"num_attention_heads": 2, "head_dim": READ // 2, "hidden_size": READ, "intermediate_size": 64}
    config = Mistral3Config(
        # The layers 10, 20 and 30 are read.
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 31,
            "num_key_value_heads": 1,
            "sliding_window": None,
            **heads,
        },
        vision_config={"num_hidden_layers": 1, "patch_size": 4, "image_size": 32, **heads},
        image_token_index=processor.image_token_id,
        spatial_merge_size=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"vae": tiny_vae(), "transformer": tiny_transformer(True)}
        reader = visible(Mistral3ForConditionalGeneration(config), 5.0)
    pipeline = Flux2Pipeline(scheduler(), text_encoder=reader, tokenizer=processor, **parts)
    pipeline.save_pretrained(folder)
    return Path(folder)


@dataclass(frozen=True)
class Flux2Family(Family):
    """FLUX.2's pipelines pack `latents=` themselves, and Klein's takes negative prompts only as encoded."""

    def by_pipeline(self, pipeline, denoiser, latents, guidance, num_steps, prompts):
        """The pipeline's own pictures from our packed latents `[B, tokens, C]`."""
        unit = pipeline.vae_scale_factor * 2
        rows, columns = denoiser.height // unit, denoiser.width // unit
        arguments = dict(self.call(prompts, guidance))
        if guidance != 1.0:
            with torch.no_grad():
                arguments["negative_prompt_embeds"], _ = pipeline.encode_prompt(
                    [prompt.negative for prompt in prompts], max_sequence_length=LENGTH
                )
        return pipeline(
            **arguments,
            height=denoiser.height,
            width=denoiser.width,
            num_inference_steps=num_steps,
            latents=latents.mT.reshape(len(latents), -1, rows, columns).clone(),
            output_type="pt",
        ).images


def _call(prompts, guidance, length=LENGTH, told=None):
    texts = [prompt.text for prompt in prompts]
    scale = guidance if told is None else told
    return {"prompt": texts, "guidance_scale": scale, "max_sequence_length": length}


KLEIN = Flux2Family(
    "flux2_klein", "unirl/Flux2Klein-T2I-v0", build_klein, "Flux2KleinPipeline", _call,
    {"max_sequence_length": LENGTH},
)  # fmt: skip
DISTILLED = Flux2Family(
    "flux2_klein", "unirl/Flux2Klein-T2I-v0", partial(build_klein, distilled=True), "Flux2KleinPipeline",
    _call, {"max_sequence_length": LENGTH}, guidances=(1.0,),
)  # fmt: skip
DEV_LENGTH = 96
DEV = Flux2Family(
    "flux2", "unirl/Flux2-T2I-v0", build_dev, "Flux2Pipeline",
    partial(_call, length=DEV_LENGTH, told=2.5),
    {"max_sequence_length": DEV_LENGTH, "embedded_guidance": 2.5}, guidances=(1.0,),
)  # fmt: skip
CASES = {family.id: family for family in (KLEIN, DEV)}
