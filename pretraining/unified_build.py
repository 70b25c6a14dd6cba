"""Build the embedded unified model: the classes of `models.unified_network` at the smallest useful size.

The directory holds config, safetensors, a fast tokenizer with a chat template, and generation settings with
two tokens that end a text: one begins the picture, one does not. The autoencoder is the embedded Stable
Diffusion 3's. The weights are random; `unified_pretrain` trains them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pretraining.qwen3_build import save
from pretraining.unified_data import vocabulary

__all__ = ["build_tiny_unified", "tiny_tokenizer", "tiny_unified"]

MAX_CONTEXT = 128
PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
BEGIN_IMAGE = "<|begin_image|>"
SOURCE = ("<|source|>", "<|patch|>", "<|/source|>")
SPECIAL = (PAD, USER, ASSISTANT, SYSTEM, END, BEGIN_IMAGE, *SOURCE)
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}"""


def tiny_tokenizer(texts: Sequence[str] | None = None) -> Any:
    """A byte-level tokenizer for which each word of `texts` is one token; any text can be read.

    Args:
        texts: By default the requests and plans of the embedded model.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    learned.train_from_iterator(list(vocabulary() if texts is None else texts) * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    pieces = [*sorted(alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    return Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        eos_token=END,
        pad_token=PAD,
        unk_token=None,
        extra_special_tokens=list(SPECIAL),
        model_max_length=MAX_CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_unified(tokenizer: Any, *, seed: int = 0, **settings: Any) -> Any:
    """An untrained network.

    Args:
        tokenizer: Its tokenizer.
        seed: Fixes the initial weights; torch's global stream is left as it was.
        **settings: Of `UnifiedFlowConfig`, over those of the embedded model.
    """
    from transformers import GenerationConfig

    from unirl_env.models.unified_flow.network import UnifiedFlowConfig, UnifiedFlowNetwork

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = UnifiedFlowConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": MAX_CONTEXT,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
            "begin_image_token_id": ids[BEGIN_IMAGE],
            "source_start_token_id": ids[SOURCE[0]],
            "source_token_id": ids[SOURCE[1]],
            "source_end_token_id": ids[SOURCE[2]],
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UnifiedFlowNetwork(config).eval()
    network.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, pad_token_id=ids[PAD], eos_token_id=[ids[BEGIN_IMAGE], ids[END]]
    )
    return network


def build_tiny_unified(directory: str | Path, seed: int = 0, **settings: Any) -> Path:
    """Write an untrained tiny unified model in the layout of `save_pretrained`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Fixes the weights.
        **settings: Of `tiny_unified`.

    Returns:
        The directory.
    """
    tokenizer = tiny_tokenizer()
    return save(tiny_unified(tokenizer, seed=seed, **settings), tokenizer, directory)
