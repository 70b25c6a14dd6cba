"""Small checkpoints of the published classes in the published layout, and a suite of one's own on them.

Nothing is substituted: pictures are drawn by a Stable Diffusion 3 pipeline's folder, texts by Qwen3 and
Qwen2.5-VL, judged by PickScore, HPSv2, two CLIPs, a Mask2Former and RapidOCR, all but the last of random
weights.
"""

import json
import math

import torch
from models import vl_cases
from rewards import detector_cases, tiny_clips

from pretraining.qwen3_build import build_tiny_qwen3
from pretraining.sd3_build import build_tiny_sd3

SUITE = """
extends: full
title: Published models, small
settings: [iterations=2, logging.eval_prompts=2, logging.checkpoint_every=0]
tasks:
  sd3/pickscore:
    settings: [{sd3}, {clips}]
  sd3/geneval:
    settings: [{sd3}, {detectors}, prompts.train={folder}/geneval_train.jsonl,
               prompts.heldout={folder}/geneval_heldout.jsonl]
  sd3/ocr:
    settings: [{sd3}, prompts.train={folder}/ocr_train.txt, prompts.heldout={folder}/ocr_heldout.txt]
  qwen3/math:
    settings: [{texts}, model.pretrained={folder}/qwen3, model.max_new_tokens=6, model.max_prompt_tokens=512]
  qwen_vl/vqa:
    settings: [{texts}, model.pretrained={folder}/qwen_vl, model.max_new_tokens=4,
               model.max_prompt_tokens=200, model.options.max_pixels=1024]
  enhancer/clip:
    settings: [{texts}, model.pretrained={folder}/qwen3, model.max_new_tokens=6, {generator},
               "reward.train.scorer.model=local-dir:{folder}/clip",
               "reward.heldout.scorer.model=local-dir:{folder}/other_clip"]
"""
SD3 = (
    "model.pretrained={folder}/sd3, model.options.max_sequence_length=10, model.height=32, model.width=32, "
    "model.num_steps=6, model.eval_num_steps=8, policy.eval_guidance=2, rollout.num_prompts=2, "
    "rollout.group_size=2"
)
CLIPS = (
    "reward.train.model={folder}/pickscore, reward.train.processor={folder}/pickscore, "
    '"reward.heldout.model=local-dir:{folder}/clip", reward.heldout.checkpoint={folder}/clip/hps.pt'
)
DETECTORS = (
    "reward.train.detector.model={folder}/detector, reward.train.detector.threshold=0.01, "
    "reward.heldout.detector.model={folder}/detector, reward.heldout.detector.threshold=0.01, "
    '"reward.heldout.colours.model=local-dir:{folder}/clip"'
)
TEXTS = "rollout=local, rollout.num_prompts=2, rollout.group_size=2"
GENERATOR = (
    "model.options.generator.pretrained={folder}/sd3, model.options.generator.height=32, "
    "model.options.generator.width=32, model.options.generator.num_steps=2, "
    "model.options.generator.max_sequence_length=10"
)


def write(folder):
    """Checkpoints, prompts and `mine.yaml`, whose path it returns."""
    build_tiny_sd3(folder / "sd3", seed=1)
    build_tiny_qwen3(folder / "qwen3", seed=1, width=64, layers=2)
    vl_cases.build("qwen2_5_vl", folder / "qwen_vl")
    detector_cases.mask2former(folder / "detector")
    pickscore(folder / "pickscore")
    for name, seed in (("clip", 0), ("other_clip", 1)):
        (folder / name).mkdir()
        _, weights = tiny_clips.tiny_open_clip(folder / name, seed)
        torch.save({"state_dict": torch.load(weights)}, folder / name / "hps.pt")
    _prompts(folder)
    parts = {"sd3": SD3, "clips": CLIPS, "detectors": DETECTORS, "texts": TEXTS, "generator": GENERATOR}
    filled = {name: text.format(folder=folder) for name, text in parts.items()}
    path = folder / "mine.yaml"
    path.write_text(SUITE.format(folder=folder, **filled))
    return path


def pickscore(folder):
    """A `CLIPModel` of transformers and its processor in one folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokenizer).save_pretrained(
        folder
    )
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**shared, **text, "max_position_embeddings": 77},
            vision_config={**shared, "image_size": 32, "patch_size": 8},
            projection_dim=16,
            logit_scale_init_value=math.log(100.0),
        )
    )
    model.save_pretrained(folder)


def _prompts(folder):
    """GenEval's own lines, and lettering in quotes."""
    kinds = ("bench", "computer mouse", "cat")
    wishes = [
        *(
            {
                "tag": "single_object",
                "include": [{"class": kind, "count": 1}],
                "prompt": f"a photo of a {kind}",
            }
            for kind in kinds
        ),
        *(
            {
                "tag": "colors",
                "include": [{"class": kind, "count": 1, "color": colour}],
                "prompt": f"a photo of a {colour} {kind}",
            }
            for kind in kinds
            for colour in ("red", "blue")
        ),
    ]
    for name, part in (("train", wishes[::2]), ("heldout", wishes[1::2])):
        text = "".join(json.dumps(wish) + "\n" for wish in part)
        (folder / f"geneval_{name}.jsonl").write_text(text)
    words = ("OPEN", "SALE", "EXIT", "TAXI", "HOTEL", "CAFE")
    for name, some in (("train", words[:3]), ("heldout", words[3:])):
        (folder / f"ocr_{name}.txt").write_text("".join(f'a sign that says "{word}"\n' for word in some))
