"""ImageReward's network out of transformers' BLIP classes, and the published weights under its names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN = (1024, 128, 64, 16, 1)
"""Outputs of the head's layers, all linear."""
PLACES = (0, 2, 4, 6, 7)
"""Where these stand among the head's layers; between them is dropout."""
HEAD_WIDTH = 64
"""Channels of one attention head of the published vision transformer."""
UNUSED = frozenset(
    {
        "blip.vision_proj.weight",
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
        "blip.text_encoder.embeddings.position_ids",
    }
)
"""What a published file may hold and no score depends on: BLIP's contrastive heads, and a list of numbers."""
RENAMED = (
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(\w+)", r"vision.post_layernorm.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12]\.\w+)", r"vision.encoder.layers.\1.layer_norm\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.(qkv\.\w+)", r"vision.encoder.layers.\1.self_attn.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"vision.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.(mlp\.fc[12]\.\w+)", r"vision.encoder.layers.\1.\2"),
    (r"mlp\.layers\.(\d+\.\w+)", r"head.\1"),
)


class ImageRewardNetwork(nn.Module):
    """A picture and a text to one number, before it is standardised.

    Args:
        vision: A `BlipVisionConfig`.
        text: A `BlipTextConfig` with cross attention.
    """

    def __init__(self, vision: Any, text: Any):
        super().__init__()
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *HIDDEN)
        layers = dict(zip(PLACES, map(nn.Linear, widths, widths[1:]), strict=True))
        self.head = nn.Sequential(*(layers.get(place, nn.Identity()) for place in range(PLACES[-1] + 1)))
        self.side = vision.image_size
        """Pixels of a picture's side."""

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[n]` float32 of normalised pictures `[n, 3, side, side]` and padded texts `[n, L]`."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        read = self.text(
            input_ids=tokens, attention_mask=mask, position_ids=places, encoder_hidden_states=seen
        )
        return self.head(read.last_hidden_state[:, 0].float())[:, 0]


def own_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Published name to the name in `ImageRewardNetwork`, of everything that the score depends on.

    Raises:
        ValueError: If a name is of no known kind.
    """
    names, strange = {}, []
    for name in state:
        if name in UNUSED:
            continue
        for pattern, own in RENAMED:
            if match := re.fullmatch(pattern, name):
                names[name] = match.expand(own)
                break
        else:
            strange.append(name)
    if strange:
        raise ValueError(f"{len(strange)} weights are not ImageReward's: {', '.join(sorted(strange)[:5])}")
    return names


def load_network(
    state: Mapping[str, Tensor],
    text: Mapping[str, Any],
    *,
    vision_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImageRewardNetwork:
    """The network with published weights in it, each of them used exactly once.

    Args:
        state: The published state dict, in the names of Salesforce's BLIP.
        text: The published `med_config.json`.
        vision_heads: Of the vision transformer, whose other sizes can be seen from its weights; None is one
            for every 64 channels.
        dtype: Of all weights but the head's, which computes in float32.

    Raises:
        ValueError: If weights are missing, unknown or of other shapes, naming them.
    """
    names = own_names(state)
    try:
        vision, text_config = _vision_config(state, vision_heads), _text_config(text)
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    text_config.encoder_hidden_size = vision.hidden_size
    with torch.device("meta"):
        network = ImageRewardNetwork(vision, text_config)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {own: state[name].shape for name, own in names.items()}
    for wrong, said in (
        (expected.keys() - given.keys(), "are missing"),
        (given.keys() - expected.keys(), "have no place"),
        ({name for name in expected if name in given and expected[name] != given[name]}, "differ in shape"),
    ):
        if wrong:
            raise ValueError(f"{len(wrong)} weights {said}: {', '.join(sorted(wrong)[:5])}")
    weights = {own: state[name].to(_dtype_of(own, dtype)) for name, own in names.items()}
    network.load_state_dict(weights, assign=True)
    # A list of numbers that no file holds, and that is still without memory.
    embeddings: Any = network.text.embeddings
    embeddings.position_ids = torch.arange(text_config.max_position_embeddings)[None]
    return network.eval().requires_grad_(False)


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.startswith("head.") else dtype


def _vision_config(state: Mapping[str, Tensor], heads: int | None) -> Any:
    from transformers import BlipVisionConfig

    patches = state["blip.visual_encoder.patch_embed.proj.weight"].shape
    width, patch = patches[0], patches[-1]
    places = state["blip.visual_encoder.pos_embed"].shape[1] - 1
    blocks = {name.split(".")[3] for name in state if name.startswith("blip.visual_encoder.blocks.")}
    make: Any = BlipVisionConfig  # what all configurations take is missing in its signature
    return make(
        hidden_size=width,
        intermediate_size=state["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=heads or max(width // HEAD_WIDTH, 1),
        image_size=patch * math.isqrt(places),
        patch_size=patch,
        hidden_act="gelu",
        # The published transformer's own, and not that of transformers' BLIP.
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )


def _text_config(text: Mapping[str, Any]) -> Any:
    from transformers import BlipTextConfig

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    others = ("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")
    make: Any = BlipTextConfig  # likewise
    return make(
        **{name: text[name] for name in (*sizes, *others)},
        # The scorer reads the whole text at once; this makes the layers that look at the picture.
        is_decoder=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
