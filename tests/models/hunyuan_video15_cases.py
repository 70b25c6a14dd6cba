"""Untrained tiny checkpoints of HunyuanVideo 1.5 in the published layout, and how its pipeline is called."""

import inspect

import torch
from models.family_checks import PROMPTS, Family

from pretraining.qwen_vl_build import CHAT_TEMPLATE, SPECIAL, word_tokenizer
from unirl_env.models.shared.exports import LORA_FILE
from unirl_env.types import Prompt

LENGTH, CHANNELS, WIDTH = 40, 4, 32
PROMPT_SET = [
    PROMPTS[0],
    Prompt('two blue squares and "no entry"', negative='a green triangle “at” the very "bottom"'),
    PROMPTS[2],
]
"""One of them with a text in quotes, which another encoder reads as well."""
UNREAD = ("attn.add_q_proj", "attn.to_add_out", "attn.norm_added_q", "ff_context")
"""Of the last block, which makes more of a text than anybody reads."""


def tokenizer(prompts):
    """Qwen's, with a token for each word that the pipeline says: the 108 that it cuts, as published."""
    from diffusers import HunyuanVideo15Pipeline

    said = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    words = [word for prompt in prompts for word in (prompt.text, prompt.negative)]
    made = word_tokenizer([said["system_message"].default, "system\nuser\nassistant", *words])
    made.chat_template = CHAT_TEMPLATE
    return made


def text_encoder(tokens):
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    ids = {token: tokens.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            **{"vocab_size": len(tokens), "hidden_size": WIDTH, "intermediate_size": 48},
            **{"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1},
            **{"max_position_embeddings": 2048, "initializer_range": 0.2, "bos_token_id": None},
            **{"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        )
    ).eval()


def glyph_encoder():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ).eval()


def decoder():
    """Of 4 pixels and 2 frames a place; its middle attends, as published."""
    from diffusers import AutoencoderKLHunyuanVideo15

    return AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
        scaling_factor=1.3,
    ).eval()


def transformer(**options):
    from diffusers import HunyuanVideo15Transformer3DModel

    made = HunyuanVideo15Transformer3DModel(
        **{
            **{"in_channels": 2 * CHANNELS + 1, "out_channels": CHANNELS, "num_attention_heads": 2},
            **{"attention_head_dim": 16, "num_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0},
            **{"text_embed_dim": WIDTH, "text_embed_2_dim": 16, "image_embed_dim": 12},
            **{"rope_axes_dim": (4, 6, 6), "target_size": 32, "task_type": "t2v", **options},
        }
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return made


def parts(prompts, seed=0, **network):
    from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
    from transformers import ByT5Tokenizer

    tokens = tokenizer(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "vae": decoder(),
            "transformer": transformer(**network),
            "text_encoder": text_encoder(tokens),
            "text_encoder_2": glyph_encoder(),
        }
    return {
        **networks,
        "tokenizer": tokens,
        "tokenizer_2": ByT5Tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def build(folder, seed=0, **network):
    from diffusers import HunyuanVideo15Pipeline

    HunyuanVideo15Pipeline(**parts(PROMPT_SET, seed, **network)).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
    }


def by_slices(pipeline, denoiser, num_steps):
    """Its decoder decodes a batch of one alone; lengths are attributes of it."""
    pipeline.vae.enable_slicing()
    pipeline.tokenizer_max_length = LENGTH


def by_its_transformer(pipeline, folder):
    pipeline.transformer.load_lora_adapter(folder, prefix=None, weight_name=LORA_FILE)


class Guided(Family):
    """Whose pipeline has its guidance in a part."""

    def by_pipeline(self, pipeline, denoiser, latents, guidance, *rest, **options):
        from diffusers import ClassifierFreeGuidance

        getattr(pipeline, "pipeline", pipeline).guider = ClassifierFreeGuidance(guidance_scale=guidance)
        return super().by_pipeline(pipeline, denoiser, latents, guidance, *rest, **options)


HUNYUAN_VIDEO15 = Guided(
    "hunyuan_video15", "unirl/HunyuanVideo15-T2V-v0", build, "HunyuanVideo15Pipeline", call,
    {"max_sequence_length": LENGTH}, height=16, width=24, frames=5, prepare=by_slices,
    load_adapters=by_its_transformer, prompts=tuple(PROMPT_SET),
    blind=("image_embedder", *(f"transformer_blocks.1.{name}" for name in UNREAD)),
)  # fmt: skip
CASES = {HUNYUAN_VIDEO15.id: HUNYUAN_VIDEO15}
