"""Build the embedded prompt enhancer: a tiny Qwen3 for which every word of the shapes world is one token.

The directory has what a published checkpoint has: config, safetensors, a fast tokenizer with Qwen's chat
template, generation settings with two end tokens. The weights are random; `enhancer_pretrain` trains them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretraining.qwen3_build import CHAT_TEMPLATE, ROLES, SPECIAL, save, tiny_qwen3
from pretraining.requests_data import vocabulary

__all__ = ["MAX_CONTEXT", "SIZES", "build_tiny_enhancer", "enhancer_tokenizer"]

MAX_CONTEXT = 1024
SIZES = {"width": 96, "layers": 3, "intermediate": 256}


def enhancer_tokenizer() -> Any:
    """A byte-level tokenizer that has learned the words of requests and captions; any text can be read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    # A pair must occur twice to be learned.
    tokenizer.train_from_iterator(vocabulary() * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    tokenizer.add_tokens([AddedToken(role, special=False, normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=MAX_CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_enhancer(directory: str | Path, seed: int = 0) -> Path:
    """Write an untrained prompt enhancer in the layout of `save_pretrained`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Fixes the weights.

    Returns:
        The directory.
    """
    tokenizer = enhancer_tokenizer()
    return save(tiny_qwen3(tokenizer, seed=seed, **SIZES), tokenizer, directory)
