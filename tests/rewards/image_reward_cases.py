"""A tiny ImageReward: its weights by their names alone, as files of the published kind.

`image_reward_golden.safetensors` holds what the package image-reward 1.5 makes of random inputs with these
very weights: `pixels`, `ids` and `mask`, the picture's states `seen` and the scores `rewards`; its metadata
hold the sizes. `image_reward_names.json` holds the package's names at full size, how many there are of each
and their shape.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

HERE = Path(__file__).parent
WORDS = "a red blue circle square big small dog cat on the left right of two three and with in ##s".split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = "blip.text_encoder.embeddings.position_ids"


def golden():
    """Tensors, sizes of the text encoder, and published names with their shapes."""
    with safe_open(HERE / "image_reward_golden.safetensors", "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return tensors, json.loads(about["text"]), json.loads(about["shapes"])


def weight(name, shape):
    """A weight of the golden model: NumPy's frozen generator, seeded with the name."""
    if name == POSITIONS:
        return torch.arange(shape[1])[None]
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    # Small numbers into the vision transformer, so that the epsilon of its normalisation matters.
    if name.startswith(tuple(f"blip.visual_encoder.{part}" for part in ("cls", "pos", "patch"))):
        return torch.from_numpy(0.01 * draw).float()
    wide = name.startswith("mlp.") and name.endswith("weight") and draw.shape[-1] > 100
    centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
    return torch.from_numpy(centre + (0.02 if wide else 0.3) * draw).float()


def golden_state():
    return {name: weight(name, shape) for name, shape in golden()[2].items()}


def full_size():
    """Published name to a tensor without memory, at full size, and the text encoder's published sizes."""
    state = {}
    for pattern, (count, shape) in json.loads((HERE / "image_reward_names.json").read_text()).items():
        for index in range(count):
            state[pattern.replace("*", str(index))] = torch.empty(shape, device="meta")
    text = golden()[1] | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    return state, text | {"num_attention_heads": 12, "vocab_size": 30524, "max_position_embeddings": 512}


def write_model(folder, *, pictures=1.0):
    """A directory as published, and a tokenizer's; the vision transformer has one head of 24 channels."""
    _, text, shapes = golden()
    vocabulary = [*SPECIAL, *WORDS]
    text = text | {"vocab_size": len(vocabulary) + 2}
    shapes = shapes | {
        "blip.text_encoder.embeddings.word_embeddings.weight": [len(vocabulary) + 2, text["hidden_size"]]
    }
    state = {name: weight(name, shape) for name, shape in shapes.items()}
    patches = "blip.visual_encoder.patch_embed.proj.weight"
    state[patches] = pictures * state[patches]
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(text))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return state, text
