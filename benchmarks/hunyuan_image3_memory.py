"""The memory of HunyuanImage 3 on paper: weights by part, states, activations, and totals per device.

Parameters are counted on networks of the published sizes, built without memory. All else is arithmetic on
them, for one micro-batch of one episode: a text of 1024 tokens and one denoising step of 1024 x 1024 pixels.
The last tables are of the recipes `rollout=hunyuan_8` and `rollout=hunyuan_16`, with the longest prompt and
text and all steps that are trained. Nothing is measured.

    python benchmarks/hunyuan_image3_memory.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

PUBLISHED = Path(__file__).parents[1] / "tests" / "models" / "hunyuan_image3_names.json"
GB = 1e9
TEXT, PICTURE, RANK = 1024, 64 * 64 + 1, 16
LONGEST, STEPS, RECIPE_RANK = 1280 + 1024, 3, 32
"""Of the recipe: prompt and text, the denoising steps of an episode that are trained, and the adapters."""
RECIPES = {8: 8, 16: 16}
"""Devices, and the episodes that each plays at once."""
SCORERS = 4 * (986_109_441 + 427_616_513)
"""Bytes of CLIP ViT-H-14 and ViT-L-14 in float32."""
FILMS = 6 * 128 * 4 * 1024 * 1024 * 2
"""Bytes of what the decoder holds of one picture of 1024 x 1024 in float16."""
NVLINK = 450 * GB
"""Bytes a second that a device takes in."""
CONTEXT = 5 * GB
"""What CUDA, communication buffers and fragmentation take; a guess from experience, the only one here."""


@dataclass(frozen=True)
class Counts:
    """Parameters of the parts, and the sizes that arithmetic needs."""

    experts: int
    rest: int
    layers: int
    width: int
    parts: dict[str, int]
    adapters: int
    settings: object

    @property
    def trained(self) -> int:
        """All of the network."""
        return self.experts + self.rest

    @property
    def layer(self) -> int:
        """One layer, of which the experts are `layer_experts`."""
        return (self.trained - sum(self.parts[name] for name in ("words", "picture"))) // self.layers

    @property
    def layer_experts(self) -> int:
        """The experts of one layer."""
        return self.experts // self.layers


def count() -> Counts:
    from unirl_env.models.hunyuan_image3.autoencoder import Autoencoder
    from unirl_env.models.hunyuan_image3.model import TARGETS
    from unirl_env.models.hunyuan_image3.network import build
    from unirl_env.models.hunyuan_image3.settings import Settings

    config = json.loads(PUBLISHED.read_text())["config"]
    with torch.device("meta"):
        network, vae = build(config), Autoencoder(config["vae"])
    parts = dict.fromkeys(
        ("experts", "shared experts", "routers", "attention", "norms", "words", "picture"), 0
    )
    kinds = {
        **{".experts.": "experts", ".shared_mlp.": "shared experts", ".gate.": "routers"},
        **{"_proj.": "attention", "norm": "norms", "ln_f": "words", "wte": "words", "lm_head": "words"},
    }
    adapters = 0
    for name, weight in network.named_parameters():
        part = next((kind for mark, kind in kinds.items() if mark in name), "picture")
        parts[part] += weight.numel()
        if name.removesuffix(".weight").endswith(TARGETS):
            adapters += RANK * sum(weight.shape)
    trained = sum(parts.values())
    parts |= {"decoder of pictures": sum(p.numel() for p in vae.decoder.parameters())}
    settings = Settings.read(config, {})
    rest = trained - parts["experts"]
    return Counts(parts["experts"], rest, settings.layers, settings.width, parts, adapters, settings)


def activations(counts: Counts, text: int = TEXT, picture: int = PICTURE) -> dict[str, float]:
    """Bytes of one micro-batch with recomputed layers, in bfloat16."""
    s, tokens = counts.settings, text + picture
    kept = counts.layers * counts.width * 2  # the input of each layer, of each token
    queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = 4 * counts.width + queries + 2 * keys + 2 * queries + 2 * keys
    turned = 2 * (queries + keys)  # float32, counted below
    sent = s.chosen[0] * (2 * counts.width + 3 * s.expert_width[0])
    shared = 3 * s.expert_width[0] + counts.width
    live = 2 * (attention + sent + shared) + 4 * turned
    prefix = 2 * keys * 2 * counts.layers
    return {
        "inputs of layers": kept * tokens,
        "one layer recomputed, and its gradients": 2 * live * tokens,
        "keys and values of the text, and their gradients": 2 * prefix * text,
        "logits, 256 MiB at a time, and their gradients": 2 * (256 << 20),
        "without recomputing, all layers": live * tokens * counts.layers,
    }


def per_device(counts: Counts, devices: int, *, lora: bool, parallel: int) -> float:
    """Bytes on one of `devices`, weights sharded over all; each expert on one of `parallel` of them."""
    gradients = 0.0
    if lora:
        state = 2 * counts.trained / devices + 16 * counts.adapters
    else:
        state = 16 * counts.trained / devices  # float32: weight, gradient, two moments; casts are gathered
    experts = counts.layer_experts / parallel if parallel < devices else 0
    whole = counts.layer - counts.layer_experts + (counts.layer_experts if parallel == 1 else experts)
    gathered = 2 * 2 * whole  # this layer and the next
    if not lora:
        gradients = 2 * whole
    sizes = activations(counts)
    sizes.pop("without recomputing, all layers")
    return state + gathered + gradients + sum(sizes.values()) + CONTEXT


def recipe(counts: Counts, devices: int, rows: int) -> dict[str, float]:
    """Bytes by part on one of `devices` that divide the policy and play `rows` episodes at once on it."""
    s, block = counts.settings, 2 * counts.layer
    keys = s.kv_heads * s.head_dim
    update = activations(counts, LONGEST, STEPS * PICTURE)
    update.pop("without recomputing, all layers")
    sent = 3 * s.chosen[0] * counts.width * 2  # to experts, from them, and in the order of before
    attention = 2 * (5 * counts.width + 4 * keys + 3 * s.heads * s.head_dim)
    caches = 2 * 2 * 2 * keys * counts.layers * LONGEST * rows  # room for twice as much, as they grow
    layer = (sent + attention) * PICTURE * rows
    always = {
        "a part of the network, bf16": 2 * (counts.trained + counts.parts["routers"]) / devices,
        f"a part of adapters of rank {RECIPE_RANK}, gradients, moments": 16
        * counts.adapters * RECIPE_RANK / RANK / devices,
        "two blocks gathered, and one that comes in": 3 * block,
        "what is of no block: words, picture": 2 * (counts.parts["words"] + counts.parts["picture"]),
        "the frozen half: decoder of pictures": 2 * counts.parts["decoder of pictures"],
        "scorers": SCORERS,
        "CUDA, buffers, fragments (a guess)": CONTEXT,
    }  # fmt: skip
    updating, playing = sum(update.values()), max(caches + layer, FILMS)
    return always | {
        "**at all times**": sum(always.values()),
        "update: inputs of layers": update["inputs of layers"],
        "update: one layer recomputed, and gradients": update["one layer recomputed, and its gradients"],
        "update: keys, values and logits": updating - sum(list(update.values())[:2]),
        f"play of {rows} episodes: keys and values of texts": caches,
        f"play of {rows} episodes: a layer of a denoising step": layer,
        "play: decoder at work on a picture": FILMS,
        "**in an update**": sum(always.values()) + updating,
        "**in play**": sum(always.values()) + playing,
    }


def print_recipes(counts: Counts) -> None:
    for devices, rows in RECIPES.items():
        print(f"\n| on each of {devices} devices | GB |\n|---|---:|")
        for part, size in recipe(counts, devices, rows).items():
            print(f"| {part} | {size / GB:.2f} |")
        come = 2 * counts.layer * counts.layers * (1 - 1 / devices)
        print(f"\na pass gathers {come / GB:.0f} GB on each, {come / NVLINK:.2f} s at {NVLINK / GB:.0f} GB/s")
        print(f"1024 tokens of the texts of a lot: at least {1024 * come / NVLINK / 60:.1f} minutes")


def main() -> None:
    counts = count()
    print("| part | parameters | bf16 GB |\n|---|---:|---:|")
    for name, number in counts.parts.items():
        print(f"| {name} | {number:,} | {2 * number / GB:.2f} |")
    print(f"| **the network** | {counts.trained:,} | {2 * counts.trained / GB:.1f} |")
    settings = counts.settings
    active = counts.trained - counts.experts * (1 - settings.chosen[0] / settings.experts[0])
    active -= counts.parts["words"]
    print(f"\na picture's token passes {active / 1e9:.1f} billion weights")
    print(f"a layer: {2 * counts.layer / GB:.2f} GB, without experts "
          f"{2 * (counts.layer - counts.layer_experts) / GB:.2f} GB")  # fmt: skip
    print(f"adapters of rank {RANK}: {counts.adapters:,}, {16 * counts.adapters / GB:.2f} GB with Adam\n")
    for name, size in activations(counts).items():
        print(f"{name}: {size / GB:.2f} GB")
    hidden = counts.width * 2 * settings.chosen[0]
    print(f"\nsent to experts and back, forward: {2 * hidden / 1024:.0f} KiB per token and layer, "
          f"{2 * hidden * (TEXT + PICTURE) / GB:.2f} GB per layer, "
          f"{2 * hidden * (TEXT + PICTURE) * counts.layers / GB:.1f} GB in all\n")  # fmt: skip
    print("| devices | LoRA | LoRA, experts apart | all weights | all weights, experts apart |")
    print("|---:|---:|---:|---:|---:|")
    for devices in (8, 16, 32, 64):
        row = [
            per_device(counts, devices, lora=lora, parallel=parallel) / GB
            for lora in (True, False)
            for parallel in (1, 8)
        ]
        print(f"| {devices} | " + " | ".join(f"{size:.1f}" for size in row) + " |")
    print_recipes(counts)


if __name__ == "__main__":
    main()
