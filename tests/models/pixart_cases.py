"""A tiny PixArt-Sigma in the published layout, with the multistep solver that it carries."""

import torch
from models.family_checks import Family
from models.stable_diffusion_cases import louder, tiny_vae

from pretraining.sd3_build import _t5_tokenizer
from unirl_env.prompts.shapes import words


def t5(tokenizer):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()


def build(folder, seed=1):
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer = _t5_tokenizer(words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=8,
            use_additional_conditions=False,
        ).eval()
        louder(transformer, ("attn2", "proj_out"), 3.0)
        vae, text_encoder = tiny_vae(0.13025), t5(tokenizer)
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),  # the defaults are what is published
    ).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": 10,
        "use_resolution_binning": False,
        "clean_caption": False,
    }


def of_first_order(pipeline, denoiser, num_steps):
    """The checkpoint's own solver, which at its first order takes single steps."""
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, solver_order=1)
    pipeline.scheduler.set_timesteps(num_steps)


def as_noise(pipeline, latents, denoiser=None, prompts=()):
    """Latents in the coordinates of flows as the solver has them."""
    ratio = pipeline.scheduler.sigmas[0]
    return latents * (1 + ratio) / (1 + ratio**2) ** 0.5


def by_peft(pipeline, folder):
    from peft import PeftModel

    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, folder)


PIXART = Family(
    "pixart", "unirl/PixArt-T2I-v0", build, "PixArtSigmaPipeline", call, {"max_sequence_length": 10},
    height=48, width=64, latents=as_noise, prepare=of_first_order, load_adapters=by_peft,
)  # fmt: skip
CASES = {PIXART.id: PIXART}
