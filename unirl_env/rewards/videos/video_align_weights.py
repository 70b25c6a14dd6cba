"""The published checkpoint of VideoReward: a Qwen2-VL with low-rank updates, and a head that regresses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import ModelNotFound
from unirl_env.errors.quiet import quiet_loading
from unirl_env.rewards.learned.placement import load_tensors
from unirl_env.rewards.videos.video_align_question import MARKS

ASKER = "video_align"
ASPECTS = ("VQ", "MQ", "TA")
SETTINGS, WEIGHTS = "model_config.json", "model.pth"
WRAPPED = "base_model.model."
PAIR = re.compile(r"(.*)\.lora_(A|B)\.\w+\.weight")


@dataclass(frozen=True)
class Published:
    """What stands beside the weights.

    Attributes:
        base: The hub id or directory of the Qwen2-VL whose sizes and processor it has.
        rank_scale: What the product of a pair of low-rank matrices is multiplied by; None where there are
            none.
        fps: Frames per second that are looked at; not used where `frames` is a number.
        frames: How many frames are looked at.
        max_pixels: The most pixels of a frame.
        spread: The mean and the deviation of each aspect, by which it is normalised; None as it is.
    """

    base: str
    rank_scale: float | None
    fps: float
    frames: int | None
    max_pixels: int
    spread: Mapping[str, tuple[float, float]] | None


def read_settings(folder: Path) -> Published:
    """The settings of a checkpoint.

    Raises:
        ModelNotFound: If they are missing, or of a kind that is not read here.
    """
    try:
        said = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data, model, lora = said["data_config"], said["model_config"], said["peft_lora_config"]
        _require(data["prompt_template_type"] == "detailed_special", "prompt_template_type", data)
        _require(data.get("sample_type", "uniform") == "uniform", "sample_type", data)
        _require(bool(model["use_special_tokens"]), "use_special_tokens", model)
        scale = None
        if lora["lora_enable"]:
            rank = lora["lora_r"]
            scale = lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank)
        known = said.get("inference_config")
        frames = data.get("num_frames")
        return Published(
            base=model["model_name_or_path"],
            rank_scale=scale,
            fps=float(data["fps"]),
            frames=None if frames is None else int(frames),
            max_pixels=int(data["max_frame_pixels"]),
            spread=known and {name: (known[f"{name}_mean"], known[f"{name}_std"]) for name in ASPECTS},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise missing(str(folder), f"{SETTINGS}: {type(error).__name__}: {error}") from error


def located(model: str, revision: str | None) -> tuple[Path, Path]:
    """The folder with the settings, and the weights of its last step, downloaded if they are not there yet.

    Raises:
        ModelNotFound: If either is missing.
    """
    folder = Path(model)
    try:
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            wanted = [SETTINGS, f"checkpoint-*/{WEIGHTS}"]
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise missing(model, f"{type(error).__name__}: {error}") from error
    found = {
        int(path.parent.name.rpartition("-")[2]): path
        for path in folder.glob(f"checkpoint-*/{WEIGHTS}")
        if path.parent.name.rpartition("-")[2].isdecimal()
    }
    if not found:
        raise missing(model, f"it has no checkpoint-<step>/{WEIGHTS}")
    return folder, found[max(found)]


def merged(state: Mapping[str, Tensor], rank_scale: float | None) -> tuple[dict[str, Tensor], Tensor]:
    """The weights of a plain Qwen2-VL under the names of today, and the head.

    Each pair of low-rank matrices is multiplied and added to its weight, in float32.

    Args:
        state: As published: names begin with `base_model.model.` and have `base_layer`, `lora_A` and `lora_B`
            where there are updates; or plain names, where these were added before.
        rank_scale: What the products are multiplied by.

    Returns:
        The state dict of a `Qwen2VLModel`, and `[outputs, D]`.

    Raises:
        ValueError: If a pair is not whole, or there is no head.
    """
    plain: dict[str, Tensor] = {}
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        name = (
            name.removeprefix(WRAPPED).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        )
        if ".original_module." in name or name.startswith("lm_head."):
            continue
        if found := PAIR.fullmatch(name):
            pairs.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
        else:
            plain[name] = tensor
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"} or name not in plain or rank_scale is None:
            raise ValueError(f"its update of {name!r} is not whole, or `lora_enable` is false")
        update = rank_scale * (pair["B"].float() @ pair["A"].float())
        plain[name] = (plain[name].float() + update).to(plain[name].dtype)
    head = plain.pop("rm_head.weight", None)
    if head is None or head.ndim != 2 or len(head) not in (1, len(ASPECTS)):
        raise ValueError(f"its 'rm_head.weight' must be [1, D] or [{len(ASPECTS)}, D]")
    return {_today(name): tensor for name, tensor in plain.items()}, head


@quiet_loading()
def load(model: str, revision: str | None, base: str | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """The network, the head, the processor and the settings of a checkpoint.

    Args:
        model: A hub id or directory.
        revision: Branch, tag or commit of the hub repository.
        base: A hub id or directory in place of the settings' base model, of which only the sizes and the
            processor are read.
        dtype: Of the network's weights.

    Raises:
        ModelNotFound: If anything is missing or does not fit.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor, Qwen2VLConfig, Qwen2VLModel

    folder, weights = located(model, revision)
    published = read_settings(folder)
    base = base or published.base
    try:
        state, head = merged(load_tensors(weights, asker=ASKER), published.rank_scale)
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if not isinstance(config, Qwen2VLConfig):
            raise ValueError(f"its base {base!r} is no Qwen2-VL")
        processor = AutoProcessor.from_pretrained(base, trust_remote_code=False)
        processor.tokenizer.add_tokens(list(MARKS), special_tokens=True)
        rows = len(state["language_model.embed_tokens.weight"])
        if rows != len(processor.tokenizer):
            raise ValueError(
                f"it has {rows} tokens, and the tokenizer of {base!r} {len(processor.tokenizer)}"
            )
        # The table of the base may be longer than its tokenizer.
        words: Any = config.text_config
        words.vocab_size = rows
        loaded: Any = Qwen2VLModel.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        network, report = loaded
        wrong = sorted(
            {*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])}
        )
        if wrong:
            raise ValueError(f"its weights do not fit {base!r} at {wrong[:3]}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelNotFound):
            raise
        raise missing(model, f"{type(error).__name__}: {error}") from error
    return network.eval().requires_grad_(False), head.float(), processor, published


def missing(model: str, cause: str) -> ModelNotFound:
    """The error of a checkpoint that cannot be read."""
    said = " ".join(cause.split())
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    return ModelNotFound(
        f"`model` must be a hub id or directory of VideoReward, got {model!r}: {said.rstrip('.')}; try a "
        f"directory with {SETTINGS!r} and 'checkpoint-<step>/{WEIGHTS}', or the reward "
        "`temporal_consistency`, which needs no model."
    )


def _today(name: str) -> str:
    """The name of a weight in a `Qwen2VLModel`; the published ones are of transformers 4.45."""
    name = name.removeprefix("model.")
    return name if name.startswith(("visual.", "language_model.")) else f"language_model.{name}"


def _require(holds: bool, key: str, settings: Mapping[str, Any]) -> None:
    if not holds:
        raise ValueError(f"`{key}` is {settings[key]!r}, which is not read here")
