"""Tiny untrained language models of many families, sharp enough that a wrong mask or a lost factor shows."""

import torch
import transformers

from pretraining.qwen3_build import tiny_tokenizer

SIZES = {
    "vocab_size": 268, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FINE_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "moe_intermediate_size": 16,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
LLAMA4 = {
    "config": "Llama4TextConfig", "intermediate_size_mlp": 48, "attention_chunk_size": 4, **EXPERTS,
    "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0], "floor_scale": 4,
    "interleave_moe_layer_step": 1,
}  # fmt: skip
LONG = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
"""Rotary factors for the 8 numbers of a head."""

PACKED = {
    "Llama": {}, "Mistral": {"sliding_window": 4}, "Mixtral": {"sliding_window": 4, **EXPERTS},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "Qwen3": {},
    "Qwen3Moe": FINE_EXPERTS, "Gemma": {}, "Gemma3": {"config": "Gemma3TextConfig", **WINDOWS},
    "Cohere": {}, "Cohere2": {"sliding_window": 4}, "Olmo2": {}, "Olmo3": WINDOWS, "Exaone4": WINDOWS,
    "Granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
    "HyperCLOVAX": {"logits_scaling": 4.0}, "Phi": {"head_dim": None}, "Phi3": {"head_dim": None},
    "MiniCPM3": {**{k: LATENT[k] for k in list(LATENT)[:7]}, "v_head_dim": 8, "dim_model_base": 16},
    "DeepseekV3": LATENT, "Starcoder2": {"sliding_window": 4, "head_dim": None},
    "GPTNeoX": {"head_dim": None}, "GPT2": {**GPT, "only": True, "model": "GPT2LMHeadModel"},
    "Llama4": {**LLAMA4, "attn_temperature_tuning": False}, "SmolLM3": {"no_rope_layers": [1, 0]},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "head_dim": None},
    "Ministral3": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                   "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}},
}  # fmt: skip
"""Families whose texts are packed."""
ALONE = {
    "Qwen3Next": {"shared_expert_intermediate_size": 16, **FINE_EXPERTS, **LINEAR},
    "Qwen3_5": {"config": "Qwen3_5TextConfig", **LINEAR},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "FalconH1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64,
                 "lm_head_multiplier": 0.25},
    "Mamba2": {"state_size": 8, "num_heads": 4, "n_groups": 1},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8,
              "mamba_dt_rank": 4, "use_mamba_kernels": False, "head_dim": None},
    "GptOss": {"sliding_window": 4, **EXPERTS},
    "Gemma2": {"sliding_window": 4, "final_logit_softcapping": None},
    "Llama4 tuned": {**LLAMA4, "kind": "Llama4", "attn_temperature_tuning": True},
    "Falcon": {"alibi": True, "head_dim": None},
    "Bloom": {"n_layer": 2, "n_head": 4, "only": True},
    "GPTJ": {**GPT, "rotary_dim": 4, "only": True},
    "Nemotron": {},
}  # fmt: skip
"""Families whose texts stand alone."""
REFUSED = {
    "Gemma2 capped": ({"kind": "Gemma2"}, "`final_logit_softcapping` 30.0"),
    "RecurrentGemma": ({"lru_width": 32, "block_types": ["recurrent", "attention"]}, "`logits_soft_cap`"),
    "MiniMax": ({"layer_types": ["linear_attention", "full_attention"], **EXPERTS}, "cache of its own"),
    "Rwkv": ({"attention_hidden_size": 32}, "takes none"),
    "ModernBertDecoder": ({**WINDOWS, "head_dim": None}, r"off when scored.*texts alone"),
}
"""Families that are refused, and what is said of them."""


def write(folder, name, settings, **changes):
    """A checkpoint of the family `name` in `folder`, which it returns."""
    options = {**settings, **changes}
    kind = options.pop("kind", name)
    config = getattr(transformers, options.pop("config", f"{kind}Config"))
    model = getattr(transformers, options.pop("model", f"{kind}ForCausalLM"))
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": SIZES["vocab_size"]} if options.pop("only", False) else SIZES
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    dropped = [name for name in ("head_dim",) if name in options and options.pop(name) is None]
    merged = {k: v for k, v in {**sizes, **ids, **options}.items() if k not in dropped}
    torch.manual_seed(0)
    network = model(config(**merged)).eval()
    with torch.no_grad():
        for label, weight in network.named_parameters():
            if weight.ndim == 1 or "sinks" in label:
                weight.add_(0.5 * torch.randn(weight.shape))
            else:
                weight.mul_(3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
