"""Build the embedded Wan: the real classes at the smallest size that can draw a moving shape.

Everything is what a full checkpoint has: a UMT5 encoder with its tokenizer, the causal video autoencoder,
the transformer and a flow-matching scheduler, in a directory that `WanPipeline` loads. Clips are 9 frames of
32 x 32, latents 6 x 3 x 8 x 8, texts 12 tokens. The weights are random; `video_pretrain` trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unirl_env.models.tiny import VIDEO_TOKENS
from unirl_env.prompts.moving import words

__all__ = ["build_tiny_video", "tiny_video_parts"]


def _tokenizer(vocabulary: Sequence[str]) -> Any:
    """A T5 unigram tokenizer with one piece per word, and letters for all other words."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -2.0) for word in vocabulary]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=VIDEO_TOKENS)


def tiny_video_parts(*, seed: int = 0, width: int = 96, layers: int = 4) -> dict[str, Any]:
    """Make the parts of the pipeline, by the names of `WanPipeline`'s arguments.

    The autoencoder halves sides twice and not three times: of 32 pixels a stride of 8 leaves 4 places, whose
    shapes come out as blobs.

    Args:
        seed: Fixes the initial weights; torch's global stream is left as it was.
        width: Width of the transformer, divisible by 4.
        layers: Its number of blocks.
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer, channels = _tokenizer(words()), 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=channels,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
            scale_factor_spatial=4,
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=width // 4,
            in_channels=channels,
            out_channels=channels,
            text_dim=64,
            freq_dim=64,
            ffn_dim=4 * width,
            num_layers=layers,
            rope_max_seq_len=32,
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=1,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder.eval(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": transformer.eval(),
    }


def build_tiny_video(directory: str | Path, seed: int = 0) -> Path:
    """Write an untrained tiny Wan in the layout of `WanPipeline.save_pretrained`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Fixes the weights.

    Returns:
        The directory.
    """
    from diffusers import WanPipeline

    WanPipeline(**tiny_video_parts(seed=seed)).save_pretrained(directory)
    return Path(directory)
