"""The picture view of Janus: a second vocabulary of the same transformer, and the VQ model that paints it."""

from __future__ import annotations

from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.janus.text import JanusText, read_states
from unirl_env.models.shared.fixed_batches import painted
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.unified import PictureTokens, SharedBackbone
from unirl_env.types import Sample

__all__ = ["JanusPictures"]


class JanusPictures(SharedBackbone, PictureTokens):
    """Janus as a language model whose words are the `num_tokens` pieces of a picture, row by row.

    Text and picture share the transformer; pieces have embeddings and an output layer of their own. A token
    below `first_id` is a word, any other a piece. The VQ model, which paints, is frozen: it is loaded on
    first use, and apart from the policy's network.

    Under guidance each sequence is read twice, the second time with its words blanked out, and both readings
    are mixed before the last layer. That layer is linear, so these are the logits
    `w * conditional + (1 - w) * unconditional`, whether a token is drawn or scored.

    Args:
        text: The view of the text.
        guidance: w; 1 reads each sequence once.

    Raises:
        ConfigError: If `guidance` is no number from 1, or the parts of the checkpoint do not fit together.
    """

    eos_ids: tuple[int, ...] = ()

    def __init__(self, text: JanusText, *, guidance: float = 1.0):
        if not 1 <= guidance < float("inf"):
            raise ConfigError(f"`guidance` must be a number from 1, got {guidance}; try 5.0.")
        self.text = self.whole = text
        self.guidance = float(guidance)
        self.streams = 1 if guidance == 1 else 2
        self.pretrained, self.revision = text.pretrained, text.revision
        self.dtype, self.device = text.dtype, text.device
        self.max_context, self.pad_id, self.lora_targets = text.max_context, text.pad_id, text.lora_targets
        vq = text.config.vq_config
        self.first_id, self.vocab_size = text.vocab_size, vq.num_embeddings
        self.num_tokens = text.num_tokens
        width = text.config.text_config.hidden_size
        if not vq.projection_dim == vq.image_token_embed_dim == width:
            raise ConfigError(
                f"The embeddings of picture tokens must be as wide as those of words ({width}), got "
                f"`projection_dim` {vq.projection_dim} and `image_token_embed_dim` "
                f"{vq.image_token_embed_dim} in {self.pretrained!r}; try a published checkpoint."
            )
        self._side = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """What the generation head's last layer reads, `[1, L, D]` packed or `[B, t, D]` with a cache."""
        along = (
            0 if how.get("lengths") is None else 1
        )  # a stream is more rows, or more sequences in the one row
        if self.streams > 1:
            tokens = torch.cat([tokens, self._blanked(tokens)], along)
            positions = torch.cat([positions, positions], along + 1)
            for name in ("lengths", "mask"):
                if how.get(name) is not None:
                    how[name] = torch.cat([how[name], how[name]])
        embedded = self._embedded(network, tokens)
        states = read_states(network, embedded, positions, how)
        head = network.base_model.generation_head
        states = head.activation_fn(head.proj_out(states))
        if self.streams > 1:
            # In float32: in half precision the difference of two near numbers is mostly rounding.
            said, blank = states.float().chunk(2, along)
            states = (blank + self.guidance * (said - blank)).to(states.dtype)
        return output_states(head.vision_head, states)

    def branches(self, network: nn.Module) -> bool:
        """Never: each picture stands behind a text of its own."""
        return False

    def head(self, network: nn.Module) -> Tensor:
        """The generation head's last layer `[V, D]`, its bias as one more column (`models.output_layer`)."""
        return output_weight(network.base_model.generation_head.vision_head)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> list[Sample]:
        """Finished pictures `[B, num_tokens]` int64 (ids from `first_id`) painted, `[3, H, W]` in [0, 1].

        Raises:
            ShapeError: If `tokens` are not whole pictures.
            ContractError: If one of them is no piece of a picture.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ShapeError(
                f"`tokens` must be whole pictures [B, {self.num_tokens}], got {list(tokens.shape)}."
            )
        pieces = tokens - self.first_id
        if bool(((pieces < 0) | (pieces >= self.vocab_size)).any()):
            raise ContractError(
                f"`tokens` must be pieces of a picture, {self.first_id} to "
                f"{self.first_id + self.vocab_size - 1}, got {int(tokens.min())} to {int(tokens.max())}; "
                "try adding `first_id`."
            )

        return painted(
            lambda some: self._painter.decode(some.to(self.device)), pieces, self._side, self._side
        )

    def _blanked(self, tokens: Tensor) -> Tensor:
        """`tokens` without what the words say: padding for all but the marks before text and picture."""
        kept = (tokens == self.text.begin_of_text) | (tokens == self.text.begin_of_image)
        return torch.where(kept | (tokens >= self.first_id), tokens, self.pad_id)

    def _embedded(self, network: nn.Module, tokens: Tensor) -> Tensor:
        """Words and pieces, each by its own embeddings."""
        base, first = network.base_model, self.first_id
        words = network.get_input_embeddings()(tokens.clamp_max(first - 1))
        pieces = base.generation_aligner(base.generation_embeddings((tokens - first).clamp_min(0)))
        return torch.where((tokens < first)[..., None], words, pieces)

    @cached_property
    def _painter(self) -> nn.Module:
        """The checkpoint's VQ model alone."""
        from transformers import JanusVQVAE

        class Painter(JanusVQVAE):
            # The checkpoint's other weights are not wanted here.
            _keys_to_ignore_on_load_unexpected = [r"."]

        painter, found = self.text.source.load(
            Painter.from_pretrained,
            config=self.text.config.vq_config,
            key_mapping={r"^model\.vqmodel\.": ""},
            dtype=self.dtype,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            cause = f"its VQ model lacks {len(missing)} weights, {missing[0]} among them"
            raise self.text.source.not_found(cause)
        return painter.to(self.device).eval().requires_grad_(False)
