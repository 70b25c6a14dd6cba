"""Build the embedded vision-language model: Qwen3-VL's own classes at a size that reads 32 x 32 pictures.

Everything is what a full checkpoint has: a byte-level tokenizer with Qwen's special tokens, the chat
template, the picture processor, the vision tower and the language model, in a directory that transformers'
auto classes load. A picture is 4 x 4 patches and becomes 4 tokens, a quadrant each. The weights are random;
`qwen_vl_pretrain` trains them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pretraining.vqa_data import SIDE, vocabulary

__all__ = ["MAX_CONTEXT", "build_tiny_qwen_vl", "save", "tiny_qwen_vl_parts", "word_tokenizer"]

MAX_CONTEXT = 256
PATCH, MERGE = 8, 2
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def word_tokenizer(texts: Sequence[str]) -> Any:
    """Qwen's byte-level tokenizer for which each word of `texts` is one token; any text can be read."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    learned.train_from_iterator(list(texts) * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    pieces = [*sorted(alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    return Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        extra_special_tokens=list(SPECIAL),
        model_max_length=MAX_CONTEXT,
    )


def _processor() -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    settings = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": SIDE**2 // 2, "longest_edge": SIDE**2},
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=word_tokenizer(vocabulary()),
        video_processor=Qwen3VLVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen_vl_parts(
    *, seed: int = 0, width: int = 128, layers: int = 3, vision_width: int = 64, vision_layers: int = 3
) -> tuple[Any, Any]:
    """Make the model and its processor.

    Args:
        seed: Fixes the initial weights; torch's global stream is left as it was.
        width: Width of the language model, a multiple of 64; heads have 32 dimensions.
        layers: Its number of layers.
        vision_width: Width of the vision tower, divisible by 4 heads.
        vision_layers: Its number of layers.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    processor = _processor()
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 64,
            "max_position_embeddings": MAX_CONTEXT,
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "initializer_range": 0.05,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": 2 * vision_width,
            "num_heads": 4,
            "out_hidden_size": width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": (SIDE // PATCH) ** 2,
            "deepstack_visual_indexes": [vision_layers - 2],
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Qwen3VLForConditionalGeneration(config).eval()
    network.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    network.generation_config.pad_token_id = ids["<|endoftext|>"]
    return network, processor


def save(network: Any, processor: Any, directory: str | Path) -> Path:
    """Write both; weights in float16 that load as float32. `network` is left with weights so rounded."""
    directory = Path(directory)
    network.half().save_pretrained(directory)
    network.float()
    processor.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return directory


def build_tiny_qwen_vl(directory: str | Path, seed: int = 0) -> Path:
    """Write an untrained tiny Qwen3-VL that `AutoModelForImageTextToText` and `AutoProcessor` load."""
    return save(*tiny_qwen_vl_parts(seed=seed), directory)
