"""Build the embedded Qwen3: the real classes at the smallest size that can learn to add.

The directory has what a published checkpoint has: config, safetensors, a fast tokenizer with Qwen's chat
template, generation settings with two end tokens. The weights are random; `qwen3_pretrain` trains them.
Texts are read byte by byte, so that any text can be; only the names of the roles are one token each, as they
are in Qwen's own vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["MAX_CONTEXT", "build_tiny_qwen3", "save", "tiny_qwen3", "tiny_tokenizer"]

MAX_CONTEXT = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<think>", "</think>", "<tool>", "</tool>", "<tool_response>", "</tool_response>")
"""One token each, but part of the text: whoever reads an answer must see them."""
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Qwen3's form of turns, tool answers and the switched-off thinking, without its words about tools."""


def tiny_tokenizer() -> Any:
    """A fast tokenizer of 256 bytes, Qwen's marks and the names of the roles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in (*MARKS, *ROLES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=MAX_CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen3(
    tokenizer: Any, *, seed: int = 0, width: int = 128, layers: int = 3, intermediate: int = 256
) -> Any:
    """An untrained `Qwen3ForCausalLM`.

    Args:
        tokenizer: Its tokenizer.
        seed: Fixes the initial weights; torch's global stream is left as it was.
        width: Width of the hidden states, a multiple of 32; heads are 32 wide, which engines want.
        layers: Number of layers.
        intermediate: Width of the feed-forward layers.
    """
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=max(1, width // 64),
        head_dim=32,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Qwen3ForCausalLM(config).eval()
    network.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, bos_token_id=pad, pad_token_id=pad, eos_token_id=[end, pad]
    )
    return network


def save(network: Any, tokenizer: Any, directory: str | Path) -> Path:
    """Write both; weights in float16 that load as float32. `network` is left with weights so rounded."""
    directory = Path(directory)
    network.half().save_pretrained(directory)
    network.float()
    tokenizer.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")
    return directory


def build_tiny_qwen3(directory: str | Path, seed: int = 0, **sizes: int) -> Path:
    """Write an untrained tiny Qwen3 in the layout of `save_pretrained`.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Fixes the weights.
        **sizes: Of `tiny_qwen3`.

    Returns:
        The directory.
    """
    tokenizer = tiny_tokenizer()
    return save(tiny_qwen3(tokenizer, seed=seed, **sizes), tokenizer, directory)
