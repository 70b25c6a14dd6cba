"""An untrained tiny BAGEL in the published layout, and prompts for it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretraining.qwen3_build import tiny_tokenizer
from unirl_env.types import Prompt

TEXT = {
    "model_type": "qwen2",
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
"""The published file, too, speaks of tied embeddings that its loader unties."""
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 980,
    "patch_size": 14,
}
PUBLISHED_TEXT = {
    **TEXT,
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}
PUBLISHED_VISION = {
    **VISION,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
PROMPTS = [Prompt("a red circle"), Prompt("two blue squares at the left"), Prompt("x")]
SMALL = {"height": 32, "width": 48}


def bagel_tokenizer():
    """Bytes and the marks of texts and pictures."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]}
    )
    return tokenizer


def random_state(shapes, seed):
    """Weights of the given shapes, large enough that everything matters."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.2 * noise
        elif len(shape) < 2:
            state[name] = 0.1 * noise
        else:
            fan = torch.Size(shape[1:]).numel()
            state[name] = noise * (0.5 if "embed" in name else 1.5 * fan**-0.5)
    return state


def build(directory, seed=0):
    """Write a checkpoint as it is published."""
    from unirl_env.models.bagel.network import BagelNetwork
    from unirl_env.models.bagel.published import Published

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "llm_config.json").write_text(json.dumps(TEXT))
    (directory / "vit_config.json").write_text(json.dumps(VISION))
    bagel_tokenizer().save_pretrained(directory)
    published = Published(str(directory))
    with torch.device("meta"):
        network = BagelNetwork(published.text_config, published.vision)
    state = random_state({name: weight.shape for name, weight in network.state_dict().items()}, seed)
    for name in ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"):
        state[name] = network.table(name)
    save_file(state, directory / "ema.safetensors")
    save_file(random_state(autoencoder_shapes(), seed + 1), directory / "ae.safetensors")
    return str(directory)


def autoencoder_shapes(width=32, channels=16, levels=4):
    """Names and shapes of FLUX's autoencoder with one width and one block a level."""

    def conv(name, into, out, size):
        return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}

    def norm(name):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def block(name):
        parts = [norm(f"{name}.norm1"), conv(f"{name}.conv1", width, width, 3)]
        parts += [norm(f"{name}.norm2"), conv(f"{name}.conv2", width, width, 3)]
        return {k: v for part in parts for k, v in part.items()}

    shapes = {}
    for half, blocks in (("encoder", 1), ("decoder", 2)):
        shapes |= block(f"{half}.mid.block_1") | block(f"{half}.mid.block_2") | norm(f"{half}.norm_out")
        shapes |= norm(f"{half}.mid.attn_1.norm")
        for name in ("q", "k", "v", "proj_out"):
            shapes |= conv(f"{half}.mid.attn_1.{name}", width, width, 1)
        side, change = ("down", "downsample") if half == "encoder" else ("up", "upsample")
        for level in range(levels):
            for i in range(blocks):
                shapes |= block(f"{half}.{side}.{level}.block.{i}")
            if level != (levels - 1 if half == "encoder" else 0):
                shapes |= conv(f"{half}.{side}.{level}.{change}.conv", width, width, 3)
    shapes |= conv("encoder.conv_in", 3, width, 3) | conv("encoder.conv_out", width, 2 * channels, 3)
    return shapes | conv("decoder.conv_in", channels, width, 3) | conv("decoder.conv_out", width, 3, 3)


def picture(seed, height=32, width=48):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def opened(model, **options):
    """Its adapter for small pictures."""
    from unirl_env.models.bagel import Bagel

    return Bagel(model, **{**SMALL, **options})


def packed_row(model, prompts, answers):
    """Prompts with answers as the keywords of a packed call."""
    encoded = [model.encode(prompt) for prompt in prompts]
    tokens, positions = [], []
    for each, answer in zip(encoded, answers, strict=True):
        before = each.inputs.get("positions", torch.arange(len(each.tokens))[None])
        tokens.append(torch.cat([each.tokens, torch.tensor(answer, dtype=torch.int64)]))
        after = before.max() + 1 + torch.arange(len(answer))[None]
        positions.append(torch.cat([before, after], 1))
    names = ("pixel_values", "image_grid_thw")
    seen = {n: torch.cat([e.inputs[n] for e in encoded if n in e.inputs]) for n in names if any(
        n in e.inputs for e in encoded
    )}  # fmt: skip
    return {
        "tokens": torch.cat(tokens)[None],
        "positions": torch.cat(positions, 1)[:, None],
        "lengths": torch.tensor([len(each) for each in tokens]),
        "inputs": seen or None,
    }


def drawn(model, network, prompts, *, negative=False, seed=0, sigma=(0.3, 0.7, 1.0)):
    """Latents, noise levels and the velocity behind each prompt."""
    latent = torch.randn(
        len(prompts), *model.image.latent_shape, generator=torch.Generator().manual_seed(seed)
    )
    sigma = torch.tensor(sigma[: len(prompts)])
    reading = model.image.read(network, model.image.encode(prompts, negative=negative))
    return latent, sigma, model.image.velocity(network, latent, sigma, reading)
