"""Tiny random checkpoints of FLUX.1 dev and schnell in the published layout, and how they are called."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from models.family_checks import Family

from pretraining.sd3_build import _clip_tokenizer, _t5_tokenizer
from unirl_env.prompts.shapes import words

READ, LENGTH = 16, 24
"""Tokens that CLIP and T5 read; the longest of the prompts is shorter than both."""


def build(folder: Path, *, guidance_embeds: bool = True, seed: int = 1) -> Path:
    """Write a tiny FLUX.1: dev, or schnell without `guidance_embeds`."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip, t5 = _clip_tokenizer(words()), _t5_tokenizer(words())
    clip.model_max_length, t5.model_max_length = READ, LENGTH
    ends = {name: getattr(clip, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 32),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        with torch.no_grad():
            for parameter in transformer.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(2.0)  # as they are made, texts hardly matter
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip), max_position_embeddings=READ, hidden_act="gelu", **sizes, **ends
            )
        )
        text_encoder_2 = T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        )
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae.eval(),
        text_encoder.eval(),
        clip,
        text_encoder_2.eval(),
        t5,
        transformer.eval(),
    ).save_pretrained(folder)
    return Path(folder)


def call(prompts, guidance, told=2.5):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "true_cfg_scale": guidance,
        "guidance_scale": told,
        "max_sequence_length": LENGTH,
    }


OPTIONS = {"max_sequence_length": LENGTH}
DEV = Family(
    "flux1", "unirl/Flux1-T2I-v0", build, "FluxPipeline", call, {**OPTIONS, "embedded_guidance": 2.5}
)
SCHNELL = Family(
    "flux1", "unirl/Flux1-T2I-v0", partial(build, guidance_embeds=False), "FluxPipeline", call, OPTIONS
)
CASES = {DEV.id: DEV}
