"""The trained half: the decoder with its words and its picture, as a model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.hunyuan_image3.attention import (
    Attend,
    Cached,
    Picture,
    Reading,
    picture_positions,
    word_positions,
)
from unirl_env.models.hunyuan_image3.decoder import Decoder
from unirl_env.models.hunyuan_image3.picture import FromTokens, TimeEmbedding, ToTokens
from unirl_env.models.hunyuan_image3.settings import MODEL_TYPES, Settings
from unirl_env.models.shared.prefix import Prefix

FROZEN = ("vae.", "vision_model.", "vision_aligner.")
"""How the names of the weights begin that lie in the same files and are not the network's."""
PICTURE_PARTS = ("timestep_emb", "time_embed", "time_embed_2", "patch_embed", "final_layer")
"""Modules that only pictures pass through."""
TIME = 1000.0
"""The network's time at sigma 1."""


def build(published: Mapping[str, Any]) -> nn.Module:
    """An untrained network of the sizes in `published`, a config.json."""
    return network_class()(config_class()(published=published))


@cache
def config_class() -> type:
    """The class of the network's configuration; made at the first call, because transformers loads late."""
    from transformers import PreTrainedConfig

    class HunyuanImage3Config(PreTrainedConfig):
        """The published config.json, whole, with what transformers asks of any model."""

        model_type = MODEL_TYPES[0]

        def __init__(self, published: Mapping[str, Any] | None = None, **options: Any):
            super().__init__(**options)
            self.published, self.tie_word_embeddings = dict(published or {}), False
            if published is not None:
                settings = self.settings
                self.vocab_size, self.hidden_size = settings.vocab_size, settings.width
                self.num_hidden_layers, self.num_attention_heads = settings.layers, settings.heads
                self.num_key_value_heads, self.head_dim = settings.kv_heads, settings.head_dim
                self.max_position_embeddings = settings.max_positions
                self.pad_token_id = settings.pad_id

        @property
        def settings(self) -> Settings:
            """The sizes of the network."""
            return Settings.read(self.published, {})

    return HunyuanImage3Config


class Passes:
    """`text` says words, `read` keeps a text's keys and values, `picture` denoises."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.model.wte

    def get_output_embeddings(self) -> nn.Module:
        """The layer that says words."""
        return self.lm_head

    def text(self, tokens: Tensor, places: Tensor, attend: Attend) -> Tensor:
        """The last hidden states `[B, Q, D]`, normed, of words `[B, Q]` at places `[B, Q]`."""
        hidden, _, _ = self.model(self.model.wte(tokens), word_positions(places), attend)
        return self.model.ln_f(hidden)

    def read(self, tokens: Tensor, length: Tensor) -> Prefix:
        """Keys and values of texts `[P, L]`, of which the first `length` `[P]` tokens are no padding."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        _, keys, values = self.model(self.model.wte(tokens), word_positions(places), Reading(), keep=True)
        return Prefix(keys, values, length)

    def picture(self, latent: Tensor, sigma: Tensor, prefix: Prefix) -> Tensor:
        """The velocity `[N, C, H, W]` of latents at noise levels `[N]` behind N texts."""
        time = sigma.float() * TIME
        tokens = self.patch_embed(latent.to(self.lm_head.weight.dtype), self.time_embed(time))
        height, width = tokens.shape[2:]
        embedded = torch.cat([self.timestep_emb(time)[:, None], tokens.flatten(2).transpose(1, 2)], 1)
        start = prefix.length.to(latent.device)
        places = torch.cat([word_positions(start[:, None]), picture_positions(start + 1, height, width)], 1)
        hidden, _, _ = self.model(embedded, places, Picture.behind(prefix, 1 + height * width))
        seen = hidden[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        return self.final_layer(seen, self.time_embed_2(time))


@cache
def network_class() -> type:
    """The network's class; made at the first call, because transformers loads late."""
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class HunyuanImage3Network(Passes, PreTrainedModel, GenerationMixin):
        """The layers of `Passes`, as transformers makes, loads and saves them; `forward` says words."""

        config_class = config_class()
        base_model_prefix = "model"
        supports_gradient_checkpointing = True
        _supports_sdpa = True
        _no_split_modules = ["Layer"]
        _keep_in_fp32_modules_strict = ["gate.wg"]
        _keys_to_ignore_on_load_unexpected = [rf"^{prefix}".replace(".", r"\.") for prefix in FROZEN]

        def __init__(self, config: Any):
            super().__init__(config)
            settings = config.settings
            sides = (settings.vae["latent_channels"], settings.patch_width, settings.width, settings.patch)
            self.timestep_emb = TimeEmbedding(settings.width)
            self.patch_embed, self.time_embed = ToTokens(*sides), TimeEmbedding(settings.width)
            self.final_layer, self.time_embed_2 = FromTokens(*sides), TimeEmbedding(settings.width)
            self.model = Decoder(settings)
            self.lm_head = nn.Linear(settings.width, settings.vocab_size, bias=False)
            self.post_init()

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            past_key_values: Any = None,
            use_cache: bool | None = None,
            logits_to_keep: int = 0,
            **options: Any,
        ) -> CausalLMOutputWithPast:
            """Logits `[B, Q, V]` of words, as any causal language model of transformers gives them."""
            if use_cache and past_key_values is None:
                from transformers import DynamicCache

                past_key_values = DynamicCache()
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            if position_ids is None:
                position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
            mask = None if attention_mask is None else attention_mask.bool()
            hidden = self.text(input_ids, position_ids, Cached(past_key_values, mask))
            logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
            return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    return HunyuanImage3Network
