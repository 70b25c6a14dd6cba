"""What a checkpoint says of itself: the sizes of its parts, the picture sizes that it knows, and its use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unirl_env.errors import ConfigError

MODEL_TYPES = ("hunyuan_image_3_moe", "Hunyuan")
TEMPLATES = ("pretrain", "instruct")
TASKS = ("auto", "image", "think", "recaption")
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
)
NORMS = ("rms", "hf_rms")
REQUIRED = {
    "hidden_act": ("silu", "the gated feed-forward layers"),
    "img_proj_type": ("unet", "the convolutions around the picture's tokens"),
    "use_qk_norm": (True, "normed queries and keys"),
    "use_cla": (False, "no keys shared between layers"),
    "use_mla": (False, "no compressed keys"),
    "group_limited_greedy": (False, "a router without groups"),
    "add_classification_head": (False, "a head that says tokens"),
    "tie_word_embeddings": (False, "an output layer of its own"),
    "cfg_distilled": (False, "no guidance token; a distilled checkpoint has one"),
    "use_meanflow": (False, "no second time token; a distilled checkpoint has one"),
}
"""Keys of config.json to the only value that is implemented, which is also the default, and what it means."""

STEPS = 16
"""How many times a side changes between a square and the longest picture."""


def _per_layer(value: Any, layers: int) -> tuple[int, ...]:
    """One number for each layer, of a number or of a list."""
    return (int(value),) * layers if isinstance(value, int) else tuple(int(each) for each in value)


@dataclass(frozen=True)
class Settings:
    """The published config.json and generation_config.json, as far as this library reads them.

    Attributes:
        vocab_size: Tokens that the output layer knows.
        width: Of the hidden states.
        layers: Number of decoder layers.
        heads: Of queries.
        kv_heads: Of keys and values; they divide `heads`.
        head_dim: Width of a head, a multiple of 4.
        dense_width: Of the feed-forward layers that have no experts.
        experts: For each layer, how many; 1 is a dense layer.
        chosen: For each layer, how many experts a token goes to.
        expert_width: For each layer.
        shared: For each layer, how many experts' widths every token goes to; 0 is none.
        norm_chosen: Whether the weights of the chosen experts sum to 1.
        routed_scale: What the weights are multiplied with where they do not.
        eps: Of the norms.
        rope_theta: Base of the rotary frequencies.
        max_positions: Tokens that the network reads at once.
        attention_bias: Whether the attention's layers have a bias.
        mlp_bias: Whether the feed-forward layers have one.
        pad_id: Fills what is not text.
        patch: Latent pixels along the side of one token's patch.
        patch_width: Of the convolutions around the decoder.
        pixels: Height and width in pixels of one latent pixel.
        base_size: The side of a square picture.
        vae: The autoencoder's own settings.
        vit: Those of the vision tower, which is not run.
        aligner: Those of the layers behind the tower, which are not run.
        flow_shift: Of the noise schedule.
        template: `"pretrain"` is plain text, `"instruct"` a chat.
        task: What the checkpoint does by default: `auto`, `image`, `think` or `recaption`.
        ends: Tokens that end any text.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dense_width: int
    experts: tuple[int, ...]
    chosen: tuple[int, ...]
    expert_width: tuple[int, ...]
    shared: tuple[int, ...]
    norm_chosen: bool
    routed_scale: float
    eps: float
    rope_theta: float
    max_positions: int
    attention_bias: bool
    mlp_bias: bool
    pad_id: int
    patch: int
    patch_width: int
    pixels: tuple[int, int]
    base_size: int
    vae: Mapping[str, Any]
    vit: Mapping[str, Any] = field(default_factory=dict)
    aligner: Mapping[str, Any] = field(default_factory=dict)
    flow_shift: float = 3.0
    template: str = "pretrain"
    task: str = "auto"
    ends: tuple[int, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any], generation: Mapping[str, Any]) -> Settings:
        """The settings of a checkpoint.

        Args:
            config: config.json.
            generation: generation_config.json; empty where there is none.

        Raises:
            ConfigError: If the checkpoint needs what is not implemented, or says too little.
        """
        _check(config)
        if absent := [key for key in SIZES if not isinstance(config.get(key), int)]:
            raise ConfigError(
                f"`{absent[0]}` of config.json must be a number, got {config.get(absent[0])!r}; try the "
                "config.json that is published with the weights."
            )
        if not isinstance((config.get("vae") or {}).get("latent_channels"), int):
            raise ConfigError("`vae` of config.json must hold the sizes of the autoencoder, got none.")
        return cls._of(config, generation)

    @classmethod
    def _of(cls, config: Mapping[str, Any], generation: Mapping[str, Any]) -> Settings:
        layers, heads, width = (
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["hidden_size"],
        )
        first = config.get("moe_layer_num_skipped", 0)
        experts = _per_layer(config.get("num_experts", 1), layers)
        shared = _per_layer(config.get("num_shared_expert", 1), layers)
        ends = generation.get("eos_token_id", config.get("eos_token_id"))
        return cls(
            vocab_size=config["vocab_size"],
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("attention_head_dim") or width // heads,
            dense_width=config["intermediate_size"],
            experts=tuple(1 if layer < first else count for layer, count in enumerate(experts)),
            chosen=_per_layer(config.get("moe_topk", 1), layers),
            expert_width=_per_layer(
                config.get("moe_intermediate_size") or config["intermediate_size"], layers
            ),
            shared=shared if config.get("use_mixed_mlp_moe", False) else (0,) * layers,
            norm_chosen=config.get("norm_topk_prob", True),
            routed_scale=config.get("routed_scaling_factor", 1.0),
            eps=config.get("rms_norm_eps", 1e-5),
            rope_theta=config.get("rope_theta", 10000.0),
            max_positions=config["max_position_embeddings"],
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            pad_id=config.get("pad_token_id", 0),
            patch=config.get("patch_size", 1),
            patch_width=config.get("patch_embed_hidden_dim", 1024),
            pixels=tuple(config.get("vae_downsample_factor", (16, 16))),
            base_size=config.get("image_base_size", 1024),
            vae=config["vae"],
            vit=config.get("vit") or {},
            aligner=config.get("vit_aligner") or {},
            flow_shift=float(generation.get("flow_shift", 3.0)),
            template=_known("sequence_template", generation.get("sequence_template", "pretrain"), TEMPLATES),
            task=_known("bot_task", _task(generation.get("bot_task") or "auto"), TASKS),
            ends=tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,),
        )


def _check(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another family, and what of this one is not implemented."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(
            f"`pretrained` must be a HunyuanImage 3 checkpoint (`model_type` one of {MODEL_TYPES}), got "
            f"{kind!r}; try tencent/HunyuanImage-3.0."
        )
    rotary = (config.get("rope_scaling") or {"type": "custom"}).get("type")
    if rotary != "custom" or not config.get("use_rotary_pos_emb", True):
        raise ConfigError(f"`rope_scaling` must be of type 'custom' (positions of pictures), got {rotary!r}.")
    if (norm := config.get("norm_type", "rms")) not in NORMS:
        raise ConfigError(f"`norm_type` of config.json must be one of {NORMS}, got {norm!r}.")
    for key, (needed, meaning) in REQUIRED.items():
        got = config.get(key)
        if got is not None and got != needed:
            raise ConfigError(
                f"`{key}` of config.json must be {needed!r} ({meaning}), got {got!r}; try "
                "tencent/HunyuanImage-3.0 or -Instruct."
            )


def _task(said: str) -> str:
    """A description follows every thought; some checkpoints name both."""
    return "think" if said == "think_recaption" else said


def _known(key: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"`{key}` of generation_config.json must be one of {known}, got {value!r}.")
    return value


def buckets(base: int) -> list[tuple[int, int]]:
    """All `(height, width)` in pixels, the widest first; the place in the list is the model's ratio token.

    Args:
        base: The side of a square picture. A side grows by a 16th of it, at most to twice it, while the
            other one shrinks, at least to half of it.
    """
    step = base // STEPS

    def side(steps: int) -> int:
        return min(max(base + steps * step, base // 2), 2 * base)

    sizes = {(side(steps), side(-steps)) for steps in range(-STEPS, STEPS + 1)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def bucket(height: int, width: int, *, base: int, unit: tuple[int, int]) -> int:
    """The place of a size among the buckets.

    Args:
        height: In pixels.
        width: In pixels.
        base: The side of a square picture.
        unit: Height and width in pixels of one token's patch.

    Raises:
        ConfigError: If the size is not one of the buckets; names the nearest ones.
    """
    sizes = buckets(base)
    whole = [size for size in sizes if size[0] % unit[0] == 0 and size[1] % unit[1] == 0]
    if (height, width) not in whole:
        near = sorted(whole, key=lambda size: abs(size[0] - height) + abs(size[1] - width))[:3]
        raise ConfigError(
            f"`height` and `width` must be one of the sizes that the model was trained for, got {height} x "
            f"{width}; the nearest are {', '.join(f'{h} x {w}' for h, w in near)}."
        )
    return sizes.index((height, width))
