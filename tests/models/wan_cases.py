"""Tiny Wan checkpoints of random weights in the published layout, and how their pipelines are called."""

import torch
from models.family_checks import Family
from models.sana_cases import by_eulers_steps
from transformers import UMT5Config, UMT5EncoderModel

from pretraining.sd3_build import _t5_tokenizer
from unirl_env.prompts.shapes import words

SHIFT = 3.0
LENGTH = 24


def umt5(tokenizer):
    return UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    ).eval()


def causal_vae(**options):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.9, 1.1, 1.3, 0.7],
        **options,
    ).eval()


def transformer(**options):
    from diffusers import WanTransformer3DModel

    made = WanTransformer3DModel(
        **{
            **{"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12},
            **{"in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 48},
            **{"num_layers": 2, "rope_max_seq_len": 64, **options},
        }
    ).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "attn2" in name or "proj_out" in name:
                parameter.mul_(3.0)
    return made


def build(folder, seed=1, scheduler=None):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    tokenizer = _t5_tokenizer(words())
    tokenizer.model_max_length = LENGTH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"text_encoder": umt5(tokenizer), "vae": causal_vae(), "transformer": transformer()}
    WanPipeline(
        tokenizer=tokenizer,
        scheduler=scheduler
        or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT),
        **parts,
    ).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": LENGTH,
    }


WAN = Family(
    "wan", "unirl/Wan-T2V-v0", build, "WanPipeline", call, {"max_sequence_length": LENGTH},
    height=32, width=48, frames=5, prepare=by_eulers_steps,
)  # fmt: skip
CASES = {WAN.id: WAN}
