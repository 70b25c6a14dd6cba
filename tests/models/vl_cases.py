"""Untrained checkpoints of the three vision-language families, prompts for them, their own forward call."""

import torch
from PIL import Image

from pretraining.qwen_vl_build import tiny_qwen_vl_parts
from unirl_env.types import Prompt

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MARKS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def build(family, directory, seed=0):
    """Write a checkpoint of `family`; weights large enough that pictures and positions matter."""
    import transformers as t

    network, processor = tiny_qwen_vl_parts(seed=seed, width=64)
    marks = {name: getattr(network.config, name) for name in MARKS}
    known = network.config.text_config
    text = {
        **{name: getattr(known, name) for name in ("vocab_size", "pad_token_id", "eos_token_id")},
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "bos_token_id": None},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256},
        **{"initializer_range": 0.2, "tie_word_embeddings": family != "qwen2_vl"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }
    vision = {"depth": 2, "num_heads": 4, "initializer_range": 0.2}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    wide = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    if family == "qwen2_vl":
        kind, reader, config = t.Qwen2VLForConditionalGeneration, t.Qwen2VLProcessor, t.Qwen2VLConfig
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        kind, reader, config = t.Qwen2_5_VLForConditionalGeneration, t.Qwen2_5_VLProcessor, t.Qwen2_5_VLConfig
        vision |= wide | {"window_size": 16, "fullatt_block_indexes": [1]}
    else:
        kind, reader, config = t.Qwen3VLForConditionalGeneration, t.Qwen3VLProcessor, t.Qwen3VLConfig
        vision |= wide | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        text |= {"head_dim": 32}
        text["rope_parameters"] |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    made = config(
        text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"], **marks
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(made).eval()
    model.generation_config = network.generation_config
    model.save_pretrained(directory)
    video = t.Qwen3VLVideoProcessor if family == "qwen3_vl" else t.Qwen2VLVideoProcessor
    reader(
        image_processor=t.Qwen2VLImageProcessor(
            patch_size=4, merge_size=2, size={"shortest_edge": 128, "longest_edge": 1024}
        ),
        tokenizer=processor.tokenizer,
        video_processor=video(patch_size=4, merge_size=2),
        chat_template=processor.chat_template,
    ).save_pretrained(directory)
    return str(directory)


def picture(seed, height=32, width=32):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def as_file(pixels):
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def chat(*kinds):
    parts = [{"type": "image"} if kind is None else {"type": "text", "text": kind} for kind in kinds]
    return ({"role": "user", "content": parts},)


PROMPTS = [
    Prompt("how many red circles?", images=(picture(0),)),
    Prompt("where is it?", images=(picture(1, 24, 16),)),
    Prompt("what shape?"),
    Prompt(
        "two",
        images=(picture(0), picture(2, 16, 32)),
        messages=chat("the first", None, "and", None, "differ?"),
    ),
    Prompt("how many circles?", images=(picture(0),)),
]
ANSWERS = [[5, 9, 12], [40], [7, 8, 9, 10], [90, 91], [33, 34, 35, 36, 37]]


def sequences(model, prompts=PROMPTS, answers=ANSWERS):
    """Prompt and answer of each, with positions and inputs."""
    for prompt, answer in zip(prompts, answers, strict=True):
        encoded = model.encode(prompt)
        tokens = torch.cat([encoded.tokens, torch.tensor(answer)])
        before = encoded.inputs["positions"]
        after = (before.max() + 1 + torch.arange(len(answer))).repeat(3, 1)
        yield tokens, torch.cat([before, after], 1), encoded.inputs


def joined(rows):
    """Sequences as the keywords of a packed call."""
    tokens, positions, inputs = zip(*rows, strict=True)
    seen = {
        name: torch.cat([each[name] for each in inputs if name in each])
        for name in ("pixel_values", "image_grid_thw")
        if any(name in each for each in inputs)
    }
    return {
        "tokens": torch.cat(tokens)[None],
        "positions": torch.cat(positions, 1)[:, None],
        "lengths": torch.tensor([len(each) for each in tokens]),
        "inputs": seen or None,
    }


def plain(network, model, tokens, inputs):
    """Logits and last hidden states `[L, ...]` of one sequence by transformers' own forward call."""
    seen = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    kinds = (tokens == network.config.image_token_id).int()[None]
    with torch.no_grad():
        out = network(
            input_ids=tokens[None],
            mm_token_type_ids=kinds,
            output_hidden_states=True,
            use_cache=False,
            **seen,
        )
    return out.logits[0], out.hidden_states[-1][0]
