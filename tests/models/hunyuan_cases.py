"""A tiny HunyuanImage 3 checkpoint in the published layout, and what its files hold."""

import json
import shutil

import numpy as np
import torch

from unirl_env.models.hunyuan_image3.autoencoder import Autoencoder
from unirl_env.models.hunyuan_image3.network import build
from unirl_env.models.hunyuan_image3.settings import buckets

BASE = 32
SPECIAL = (
    *("<|endoftext|>", "<|startoftext|>", "<pad>", "<boi>", "<eoi>", "<img>", "<timestep>", "<cfg>"),
    *("<think>", "</think>", "<recaption>", "</recaption>", "<answer>", "</answer>"),
    *("<joint_img_sep>", f"<img_size_{BASE}>"),
    *(f"<img_ratio_{ratio}>" for ratio in range(len(buckets(BASE)))),
)
PROMPTS_FILE = '''t2i_system_prompt_en_vanilla = """
Draw it.
"""

raise RuntimeError("this file is read, not run")
'''


def tokenizer():
    """256 bytes and the published special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def config(**changes):
    """The published keys of config.json at the smallest size."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_patches": 16,
        "patch_size": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "output_attentions": False,
        "output_hidden_states": False,
        "use_return_dict": True,
        "_attn_implementation": "sdpa",
    }
    vae = {
        "block_out_channels": [32, 32, 64, 64],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "layers_per_block": 1,
        "ffactor_spatial": 8,
        "ffactor_temporal": 4,
        "sample_size": 32,
        "sample_tsize": 8,
        "scaling_factor": 0.56,
        "shift_factor": None,
        "downsample_match_channel": True,
        "upsample_match_channel": True,
    }
    marks = {mark: 256 + number for number, mark in enumerate(SPECIAL)}
    return {
        "architectures": ["HunyuanImage3ForCausalMM"],
        "model_type": "hunyuan_image_3_moe",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 48,
        "moe_intermediate_size": [48, 40],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_head_dim": 16,
        "num_experts": 4,
        "moe_topk": [2, 3],
        "num_shared_expert": [1, 2],
        "use_mixed_mlp_moe": True,
        "moe_layer_num_skipped": 0,
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "use_qk_norm": True,
        "use_rotary_pos_emb": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "custom", "factor": 1.0},
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": marks["<|startoftext|>"],
        "eos_token_id": marks["<|endoftext|>"],
        "pad_token_id": marks["<pad>"],
        "pad_id": marks["<pad>"],
        "image_token_id": marks["<img>"],
        "img_proj_type": "unet",
        "patch_size": 1,
        "patch_embed_hidden_dim": 32,
        "image_base_size": BASE,
        "vae_downsample_factor": [8, 8],
        "vae": vae,
        "vit": vision,
        "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 64, "depth": 2},
        "vit_processor": {"patch_size": 4, "max_num_patches": 16},
        **changes,
    }


def generation(**changes):
    """The published keys of generation_config.json."""
    marks = {mark: 256 + number for number, mark in enumerate(SPECIAL)}
    return {
        "eos_token_id": [marks["<|endoftext|>"]],
        "pad_token_id": marks["<pad>"],
        "sequence_template": "pretrain",
        "bot_task": "image",
        "drop_think": False,
        "flow_shift": 3.0,
        "diff_infer_steps": 50,
        "diff_guidance_scale": 5.0,
        "max_length": 512,
        "use_system_prompt": "None",
        **changes,
    }


def vision_tower(settings):
    """Names and shapes of the tower and the layers behind it, from transformers' own Siglip2."""
    from torch import nn
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_patches")
    kept += ("patch_size", "hidden_act", "layer_norm_eps")
    tower = Siglip2VisionModel(Siglip2VisionConfig(**{key: settings["vit"][key] for key in kept}))
    sizes = settings["vit_aligner"]
    layers = [nn.Linear(sizes["input_dim"], sizes["n_embed"])]
    for _ in range(1, sizes["depth"]):
        layers += [nn.GELU(), nn.Linear(sizes["n_embed"], sizes["n_embed"])]
    state = {
        f"vision_model.{name.removeprefix('vision_model.')}": tensor
        for name, tensor in tower.state_dict().items()
    }
    aligner = nn.Sequential(*layers).state_dict().items()
    return state | {f"vision_aligner.layers.{name}": tensor for name, tensor in aligner}


@torch.no_grad()
def write_tiny_checkpoint(directory, *, seed=0, config_changes=None, generation_changes=None, often=()):
    """Write one in three shards; weights are large enough that words, times and pictures matter.

    It often says the marks of `often`, or almost never.
    """
    from safetensors.torch import save_file

    settings = config(**(config_changes or {}))
    state = dict(build(settings).state_dict())
    state |= {f"vae.{name}": tensor for name, tensor in Autoencoder(settings["vae"]).state_dict().items()}
    state |= vision_tower(settings)
    numbers = np.random.RandomState(seed)  # its numbers never change, so that others can be compared with
    for name, tensor in sorted(state.items()):
        drawn = torch.from_numpy(numbers.standard_normal(tensor.shape)).float()
        if name == "model.wte.weight":
            scale, middle = 1.0, 0.0
        elif tensor.ndim > 1:
            scale, middle = (1.5 / tensor[0].numel()) ** 0.5, 0.0
        else:
            scale, middle = 0.1, float(not name.endswith("bias"))
        state[name] = middle + scale * drawn
    for mark in often:
        state["lm_head.weight"][256 + SPECIAL.index(mark)] *= 4
    directory.mkdir(parents=True, exist_ok=True)
    files = [f"model-{number:04d}-of-0003.safetensors" for number in (1, 2, 3)]
    names = sorted(state)
    # The decoder's names come last in the alphabet, so shards hold weights of several parts.
    weight_map = {name: files[3 * place // len(names)] for place, name in enumerate(names)}
    for file in files:
        part = {name: state[name].contiguous() for name in names if weight_map[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    said = generation(**(generation_changes or {}))
    for name, content in (
        ("model.safetensors.index.json", index), ("config.json", settings), ("generation_config.json", said),
    ):  # fmt: skip
        (directory / name).write_text(json.dumps(content))
    (directory / "system_prompt.py").write_text(PROMPTS_FILE)
    tokenizer().save_pretrained(directory)
    return directory


def keep_weights(directory, folder, kept):
    """A copy of the checkpoint whose files hold only the weights whose name `kept` says yes to."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(directory, folder)
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys() if kept(name)}
        save_file(state, shard, metadata={"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if kept(name)}
    path.write_text(json.dumps(index))
    return folder
