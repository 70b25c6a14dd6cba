"""Published model sizes with random weights: built in place, so that nothing has to be loaded."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.tiny import tiny_path

SD3_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
"""`SD3Transformer2DModel` of Stable Diffusion 3.5 medium: 2.5 billion weights."""
SD3_TINY = {
    **SD3_MEDIUM,
    "sample_size": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 32,
    "dual_attention_layers": (0,),
}
SD3_SMALL = {
    **SD3_TINY,
    "sample_size": 32,
    "num_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 64,
    "caption_projection_dim": 192,
    "pooled_projection_dim": 64,
    "dual_attention_layers": (),
}
"""10 million weights, of which a step on two cores takes a second or more."""
SD3_SIZES = {"published": SD3_MEDIUM, "small": SD3_SMALL, "tiny": SD3_TINY}
QWEN3_1B7 = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}
"""`Qwen3ForCausalLM` of Qwen3-1.7B: 1.7 billion weights."""
QWEN3_TINY = {
    **QWEN3_1B7,
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TEXT_TOKENS = 333
"""Of CLIP and T5 together, as the pipeline makes them."""
SEED = 0


class RandomSD3(SD3Denoiser):
    """`SD3Denoiser` with a random transformer and decoder of the published sizes; texts are noise."""

    def __init__(self, size: str = "published", **options: Any):
        self.sizes = SD3_SIZES[size]
        self.text_tokens = TEXT_TOKENS if size == "published" else 7
        super().__init__("random", **options)

    def encode(self, prompts, *, negative: bool = False) -> dict[str, Tensor]:
        """Noise that is a function of the text."""
        texts = [prompt.negative if negative else prompt.text for prompt in prompts]
        seeds = [F.derive_seed("text", text) for text in texts]
        width, pooled = self.sizes["joint_attention_dim"], self.sizes["pooled_projection_dim"]
        noise = {
            "prompt_embeds": F.keyed_noise(seeds, 0, (self.text_tokens, width), device=self.device),
            "pooled_prompt_embeds": F.keyed_noise(seeds, 1, (pooled,), device=self.device),
        }
        return {name: each.to(self.dtype) for name, each in noise.items()}

    def network(self) -> nn.Module:
        """Random weights, with the last layer away from zero: a model that predicts something."""
        from diffusers import SD3Transformer2DModel

        with torch.random.fork_rng(devices=[]), torch.device(self.device):
            torch.manual_seed(SEED)
            network = SD3Transformer2DModel(**self.sizes).to(self.dtype).eval()
            nn.init.normal_(network.proj_out.weight, std=0.02)
        return network

    @cached_property
    def frozen(self) -> Any:
        """The decoder alone."""
        from diffusers import AutoencoderKL

        with torch.random.fork_rng(devices=[]), torch.device(self.device):
            torch.manual_seed(SEED)
            vae = AutoencoderKL(**self._load_config("vae")).to(self.dtype).eval().requires_grad_(False)
        return SimpleNamespace(vae=vae)

    @property
    def _scheduler_config(self) -> dict[str, Any]:
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}

    @property
    def _index(self) -> dict[str, Any]:
        return {"_class_name": self.pipeline, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}

    def _load_config(self, part: str) -> dict[str, Any]:
        if part == "transformer":
            return self.sizes
        widths = (128, 256, 512, 512) if self.sizes is SD3_MEDIUM else (8, 8, 8, 8)
        return {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 16,
            "block_out_channels": widths,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "norm_num_groups": 8,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }


class RandomQwen3(CausalLM):
    """`CausalLM` with the embedded tokenizer and a random network of the published size."""

    def __init__(self, size: str = "published", **options: Any):
        self.sizes = QWEN3_1B7 if size == "published" else QWEN3_TINY
        super().__init__(str(tiny_path("qwen3")), **options)
        self.vocab_size = self.sizes["vocab_size"]
        self.max_context = self.sizes["max_position_embeddings"]

    def network(self) -> nn.Module:
        """Random weights."""
        from transformers import AutoModelForCausalLM, Qwen3Config

        from unirl_env.models.shared import packed

        ends = {"eos_token_id": self.eos_ids[0], "pad_token_id": self.eos_ids[0]}
        with torch.random.fork_rng(devices=[]), torch.device(self.device):
            torch.manual_seed(SEED)
            network = AutoModelForCausalLM.from_config(
                Qwen3Config(**self.sizes, **ends), dtype=self.dtype, attn_implementation=packed.register()
            )
        return network.eval()
