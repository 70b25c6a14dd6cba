"""An untrained tiny checkpoint of Z-Image in the published layout."""

import torch
from models.family_checks import PROMPTS, Family

from pretraining.qwen3_build import CHAT_TEMPLATE, ROLES, tiny_qwen3
from pretraining.qwen_vl_build import word_tokenizer
from unirl_env.types import Prompt

LONG = (
    "a red circle at the top left and two blue squares and a green triangle at the very bottom and a cat " * 2
)
TEXTS = (*PROMPTS[:2], Prompt(LONG, negative="dog"), Prompt("cat", negative=LONG))
"""Captions that fill 32 and 64 tokens."""


def build(folder, seed=0, **network):
    """Write it; weights large enough that words and places matter."""
    import diffusers

    tokenizer = word_tokenizer([*ROLES, "<think>", LONG, *(p.text + p.negative for p in TEXTS)])
    tokenizer.chat_template = CHAT_TEMPLATE
    encoder = tiny_qwen3(tokenizer, seed=seed, width=64, layers=3, intermediate=96).model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
            mid_block_add_attention=False,
        )  # fmt: skip
        transformer = diffusers.ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=64,
            axes_dims=[4, 6, 6], axes_lens=[128, 32, 32], **network,
        )  # fmt: skip
        for name, parameter in transformer.named_parameters():
            if parameter.ndim > 1 and "t_embedder" not in name and "adaLN" not in name:
                parameter.data *= 2.0
            if name.endswith("pad_token"):
                parameter.data.normal_()
    diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    return folder


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance - 1,
        "max_sequence_length": 64,
    }


Z_IMAGE = Family(
    "z_image", "unirl/ZImage-T2I-v0", build, "ZImagePipeline", call, {"max_sequence_length": 64},
    prompts=TEXTS,
)  # fmt: skip
CASES = {Z_IMAGE.id: Z_IMAGE}
