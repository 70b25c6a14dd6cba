"""The settings of the world: the environment with its model, prompts and rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unirl_env.settings.fields import Settings, setting

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ModelSettings(Settings):
    """Which environment, and the model inside it."""

    env: str = setting("unirl/TinySD3-T2I-v0")
    """The registered id of the environment."""
    pretrained: str | None = setting(None)
    """A hub id or a directory; null takes the id's own default."""
    revision: str | None = setting(None, may_change=True)
    """A branch, tag or commit of the hub repository."""
    num_steps: int | None = setting(None, least=0)
    """T, denoising steps of a training episode; null takes the id's own default. 0 leaves the picture of a
    `unified_model` out."""
    eval_num_steps: int | None = setting(None, least=1)
    """Denoising steps in evaluation; null takes `num_steps`."""
    height: int | None = setting(None, least=1)
    """Picture height in pixels; null takes the model's own size."""
    width: int | None = setting(None, least=1)
    """Picture width in pixels; null takes the model's own size."""
    num_frames: int | None = setting(None, least=1)
    """Frames of a clip, of models of videos; null takes the model's own number."""
    dtype: str = setting("float32", choices=DTYPES)
    """Weights and activations; the mathematics of the steps is float32 throughout."""
    device: str = setting("auto", may_change=True)
    """`auto` is the GPU where there is one."""
    offload: bool = setting(False, may_change=True)
    """Keep the frozen parts on the CPU between uses."""
    rows_per_forward: int | None = setting(None, least=1)
    """Fixes the network's batch size, so that an image episode is bitwise the same in any batch."""
    compile: bool = setting(False, may_change=True)
    """Compile the network of a diffusers pipeline by torch.compile; where that cannot be, a run says so."""
    max_new_tokens: int | None = setting(None, least=0)
    """Where a text is cut off; null takes the id's own default. 0 leaves out the text of a
    `unified_model`."""
    max_prompt_tokens: int | None = setting(None, least=1)
    """The longest prompt in tokens; null takes the id's own default."""
    options: dict[str, Any] = setting({})
    """Further arguments of the environment or its model (system, thinking, tool, max_pixels, attention,
    quantization, tiling, embedded_guidance, ...)."""


@dataclass
class PromptSettings(Settings):
    """Where the prompts come from."""

    train: Any = setting("shapes_train")
    """A shipped set, a .txt or .jsonl file, a dataset directory, or a list of texts."""
    heldout: Any = setting("shapes_heldout")
    """Prompts that training never sees; evaluation reports them apart. Null for none."""
    max_characters: int = setting(4000, least=1)
    """A longer prompt is refused: it is more often a broken file than a wish."""


@dataclass
class RewardSettings(Settings):
    """What is trained on, and what only watches."""

    train: Any = setting("shapes")
    """A scorer's name, a dotted path, or {name: ..., option: ...}."""
    heldout: Any = setting(None)
    """A second scorer, measured in evaluation and never trained on."""
    on_error: str = setting("invalid", choices=("invalid", "raise"))
    """`invalid` counts a scorer's failure and goes on, `raise` stops the run."""
    max_failed_iterations: int = setting(3, least=1, may_change=True)
    """Iterations in a row without any valid score, after which the run is saved and stops: nothing is learnt
    in them. A service that is started anew is back sooner; a scorer that never works never is."""
    overlap: bool = setting(False, may_change=True)
    """Score one lot of episodes while the next is played (`rollout.batch_size` says how many make a lot);
    the results are the same."""
