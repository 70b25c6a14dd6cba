"""Tiny Stable Diffusions in the published layout: 1.5 with PNDM, XL with Euler's steps in the VE scale."""

import torch
from models.family_checks import Family

from pretraining.sd3_build import _clip_encoder, _clip_tokenizer
from unirl_env.prompts.shapes import words
from unirl_env.types import Prompt

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPTS = (
    Prompt("a red circle at the top left", negative="blurry"),
    Prompt("two blue squares", negative="a green triangle at the very bottom"),
    Prompt("cat", negative="dog"),
)
"""Whose negatives say something: of XL an empty one is none."""


def tiny_vae(scaling_factor, **options):
    """An autoencoder of 4 channels and 8 pixels a place."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 32),
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=scaling_factor,
        **options,
    ).eval()


def tiny_unet(width, **options):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        **options,
    ).eval()
    louder(unet, ("attn2",), 4.0)
    louder(unet, ("conv_out",), 2.0)
    return unet


def louder(network, parts, factor):
    """Scale the weights of `parts`, so that texts and the network show."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(part in name for part in parts):
                parameter.mul_(factor)


def clip_body(tokenizer):
    from transformers import CLIPTextModel

    return CLIPTextModel(_clip_encoder(tokenizer).config).eval()


def build_sd15(folder, seed=1):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer(words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(0.18215),
            text_encoder=clip_body(tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(32),
            scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


def build_sdxl(folder, seed=1):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = _clip_tokenizer(words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(0.13025),
            text_encoder=clip_body(tokenizer),
            text_encoder_2=_clip_encoder(tokenizer).eval(),
            tokenizer=tokenizer,
            tokenizer_2=_clip_tokenizer(words()),
            unet=tiny_unet(
                64,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                use_linear_projection=True,
            ),
            scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
    }


def of_single_steps(pipeline, denoiser, num_steps):
    """A scheduler that takes single steps: DDIM's in the place of PNDM's, at the same timesteps."""
    from diffusers import DDIMScheduler, PNDMScheduler

    if isinstance(pipeline.scheduler, PNDMScheduler):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.scheduler.set_timesteps(num_steps)


def as_noise(pipeline, latents, denoiser=None, prompts=()):
    """What the pipeline multiplies by `init_noise_sigma`, of latents in the coordinates of flows."""
    scheduler = pipeline.scheduler
    if hasattr(scheduler, "final_alpha_cumprod"):
        a = scheduler.alphas_cumprod[scheduler.timesteps[0]]
        return latents * (a.sqrt() + (1 - a).sqrt())
    return latents * (1 + scheduler.sigmas[0]) / scheduler.init_noise_sigma


SD15 = Family(
    "sd15", "unirl/SD15-T2I-v0", build_sd15, "StableDiffusionPipeline", call, latents=as_noise,
    prepare=of_single_steps,
)  # fmt: skip
SDXL = Family(
    "sdxl", "unirl/SDXL-T2I-v0", build_sdxl, "StableDiffusionXLPipeline", call, latents=as_noise,
    prepare=of_single_steps, prompts=PROMPTS,
)  # fmt: skip
CASES = {family.id: family for family in (SD15, SDXL)}
