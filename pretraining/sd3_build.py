"""Build the embedded Stable Diffusion 3: the real classes at the smallest size that can draw shapes.

Everything is what a full checkpoint has: three text encoders with their tokenizers, an autoencoder, the
MMDiT transformer and the flow-matching scheduler, in a directory that `StableDiffusion3Pipeline` loads.
Pictures are 32 x 32, latents 4 x 8 x 8, texts 10 tokens. The weights are random; `sd3_pretrain` trains
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unirl_env.models.tiny import SD3_TOKENS
from unirl_env.prompts.shapes import words

__all__ = ["build_tiny_sd3", "tiny_sd3_parts"]


def _clip_tokenizer(vocabulary: Sequence[str]) -> Any:
    """A CLIP byte-pair tokenizer for which each word of the vocabulary is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    # Learning pairs until nothing is left to merge leaves whole words; every byte stays as a fallback, so
    # that any text can be read. A lone space never appears: the real pre-tokenizer drops it.
    special = ["<|startoftext|>", "<|endoftext|>"]
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learned.train_from_iterator(
        list(vocabulary) * 2,
        trainers.BpeTrainer(
            vocab_size=10_000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += [piece for pair in merges if (piece := "".join(pair)) not in pieces]
    vocab = {piece: index for index, piece in enumerate([*dict.fromkeys(pieces), *special])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=SD3_TOKENS)


def _t5_tokenizer(vocabulary: Sequence[str]) -> Any:
    """A T5 unigram tokenizer with one piece per word, and letters for all other words."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -2.0) for word in vocabulary]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=SD3_TOKENS)


def _clip_encoder(tokenizer: Any, width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=SD3_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_sd3_parts(*, seed: int = 0, width: int = 96, layers: int = 3) -> dict[str, Any]:
    """Make the parts of the pipeline, by the names of `StableDiffusion3Pipeline`'s arguments.

    Args:
        seed: Fixes the initial weights; torch's global stream is left as it was.
        width: Width of the transformer, divisible by 4.
        layers: Its number of joint attention blocks.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import T5Config, T5EncoderModel

    clip, t5 = _clip_tokenizer(words()), _t5_tokenizer(words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
            scaling_factor=1.0,
            shift_factor=0.0,
            force_upcast=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=layers,
            num_attention_heads=4,
            attention_head_dim=width // 4,
            caption_projection_dim=width,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        text_encoder, text_encoder_2 = _clip_encoder(clip), _clip_encoder(clip)
        text_encoder_3 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=t5.pad_token_id,
                eos_token_id=t5.eos_token_id,
            )
        )
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": clip,
        "text_encoder_2": text_encoder_2.eval(),
        "tokenizer_2": _clip_tokenizer(words()),
        "text_encoder_3": text_encoder_3.eval(),
        "tokenizer_3": t5,
    }


def build_tiny_sd3(directory: str | Path, seed: int = 0) -> Path:
    """Write an untrained tiny SD3 in the layout of `StableDiffusion3Pipeline.save_pretrained`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Fixes the weights.

    Returns:
        The directory.
    """
    from diffusers import StableDiffusion3Pipeline

    StableDiffusion3Pipeline(**tiny_sd3_parts(seed=seed)).save_pretrained(directory)
    return Path(directory)
