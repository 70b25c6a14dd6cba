"""Untrained tiny checkpoints of HunyuanVideo 1.0 in the published layout, and how its pipeline is called."""

import torch
from models.family_checks import PROMPTS, Family

from pretraining.qwen_vl_build import word_tokenizer
from pretraining.sd3_build import _clip_tokenizer
from unirl_env.prompts.shapes import words

LENGTH, CHANNELS, WIDTH = 24, 4, 32


def llama_tokenizer():
    """Every word of the pipeline's template is a token: about the 95 that it cuts, as published."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    said = [word for prompt in PROMPTS for word in (prompt.text, prompt.negative)]
    made = word_tokenizer([DEFAULT_PROMPT_TEMPLATE["template"], *said])
    made.model_max_length = 512
    return made


def llama(tokens):
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    ).eval()


def clip(tokens):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            initializer_factor=5.0,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    ).eval()


def decoder():
    """Of 8 pixels and 4 frames a place, as published; its middle attends."""
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.6,
    ).eval()


def transformer(**options):
    from diffusers import HunyuanVideoTransformer3DModel

    made = HunyuanVideoTransformer3DModel(
        **{
            **{"in_channels": CHANNELS, "out_channels": CHANNELS, "num_attention_heads": 2},
            **{"attention_head_dim": 16, "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1},
            **{"mlp_ratio": 2.0, "text_embed_dim": WIDTH, "pooled_projection_dim": 16},
            **{"rope_axes_dim": (4, 6, 6), **options},
        }
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return made


def build(folder, seed=0, **network):
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    tokens, tokens_2 = llama_tokenizer(), _clip_tokenizer(words())
    tokens_2.model_max_length = 77
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "text_encoder": llama(tokens),
            "text_encoder_2": clip(tokens_2),
            "vae": decoder(),
            "transformer": transformer(**network),
        }
    HunyuanVideoPipeline(
        tokenizer=tokens, tokenizer_2=tokens_2, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), **parts
    ).save_pretrained(folder)


def call(prompts, guidance, told=6.0):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "true_cfg_scale": guidance,
        "guidance_scale": told,
        "max_sequence_length": LENGTH,
    }


HUNYUAN_VIDEO = Family(
    "hunyuan_video", "unirl/HunyuanVideo-T2V-v0", build, "HunyuanVideoPipeline", call,
    {"max_sequence_length": LENGTH}, height=32, width=48, frames=5,
)  # fmt: skip
CASES = {HUNYUAN_VIDEO.id: HUNYUAN_VIDEO}
