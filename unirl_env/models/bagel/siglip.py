"""BAGEL's vision tower: SigLIP on pictures of any shape, patch by patch, by the published names."""

from __future__ import annotations

import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.models.bagel.published import VisionSizes


class Attention(nn.Module):
    """Attention of all patches of a picture."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.heads = sizes.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(sizes.width, sizes.width))

    def forward(self, states: Tensor) -> Tensor:
        """`[L, D]`."""
        split = [
            project(states).unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        ]
        out = nnf.scaled_dot_product_attention(*split)[0]
        return self.out_proj(out.transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.intermediate)
        self.fc2 = nn.Linear(sizes.intermediate, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """`[L, D]`."""
        return self.fc2(nnf.gelu(self.fc1(states), approximate="tanh"))


class Layer(nn.Module):
    """One layer of the tower."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.self_attn, self.mlp = Attention(sizes), FeedForward(sizes)
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, states: Tensor) -> Tensor:
        """`[L, D]`."""
        states = states + self.self_attn(self.layer_norm1(states))
        return states + self.mlp(self.layer_norm2(states))


class Embeddings(nn.Module):
    """Patches and their places."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.patch_embedding = nn.Linear(3 * sizes.patch**2, sizes.width)
        self.position_embedding = nn.Embedding(sizes.side**2, sizes.width)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """`[L, D]`."""
        return self.patch_embedding(patches) + self.position_embedding(places)


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))


class Transformer(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(sizes), Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.width, eps=sizes.eps)


class VisionTower(nn.Module):
    """What a picture shows, one vector per patch."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.vision_model = Transformer(sizes)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Features `[L, D]` of one picture.

        Args:
            patches: `[L, 3 * patch**2]`, in rows of pixels of three colours, in [-1, 1].
            places: `[L]` int64, row times the tower's side plus column.
        """
        states = self.vision_model.embeddings(patches, places)
        for layer in self.vision_model.encoder.layers:
            states = layer(states)
        return self.vision_model.post_layernorm(states)
