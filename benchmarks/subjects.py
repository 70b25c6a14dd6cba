"""What benchmarks of pictures measure: the embedded Stable Diffusion 3, or a family's tiny checkpoint.

The tiny checkpoints are those of the tests: the real classes in the published layout, with random weights.
Their networks have two or three blocks, which cost no more than the decoder does; `depth` gives them more of
the same, as many as published ones have, whose networks are nearly all of their time.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from unirl_env.models.tiny import TinySD3Denoiser, tiny_path
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

ROOT = Path(__file__).parents[1]
BLOCKS = ("num_layers", "num_single_layers", "n_layers", "layers_per_block")
"""What configurations of networks call the number of their blocks."""
TESTS = (ROOT, ROOT / "tests", ROOT / "tests" / "models")


class Embedded:
    """The embedded Stable Diffusion 3, whose pictures are 32 x 32."""

    id = "unirl/TinySD3-T2I-v0"
    options: dict[str, Any] = {}

    def denoiser(self) -> Any:
        """The adapter."""
        return TinySD3Denoiser()

    def pipeline(self) -> Any:
        """Diffusers' own pipeline."""
        from diffusers import StableDiffusion3Pipeline

        pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_path("sd3"))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def call(self, prompts: Sequence[Prompt], guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline."""
        return {
            "prompt": [prompt.text for prompt in prompts],
            "negative_prompt": [prompt.negative for prompt in prompts],
            "guidance_scale": guidance,
            "max_sequence_length": 10,
        }


class Family:
    """A family of diffusers on the tiny checkpoint of its tests.

    Args:
        id: Of its environment.
        depth: How many times as many blocks the network has as in the tests.
    """

    def __init__(self, id: str, depth: int = 1):
        sys.path[:0] = [str(folder) for folder in TESTS]
        self.id = id
        self.case = import_module(import_module("families").FAMILIES[id]).CASES[id]
        self._folder = tempfile.TemporaryDirectory()
        self.case.build(Path(self._folder.name))
        self.options = self.case.arguments(Path(self._folder.name))
        if depth > 1:
            deepen(self.denoiser(), Path(self._folder.name), depth)

    def denoiser(self) -> Any:
        """The adapter."""
        return self.case.denoiser(Path(self._folder.name))

    def pipeline(self) -> Any:
        """Diffusers' own pipeline."""
        return self.case.load(Path(self._folder.name))

    def call(self, prompts: Sequence[Prompt], guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline."""
        frames = {} if self.case.frames is None else {"num_frames": self.case.frames}
        return {**self.case.call(prompts, guidance), **frames}


def deepen(denoiser: Any, folder: Path, depth: int) -> None:
    """Put a network with `depth` times as many blocks in the place of the checkpoint's own."""
    import torch

    config = dict(denoiser.configs[denoiser.trained])
    known = [name for name in BLOCKS if name in config]
    config |= {name: depth * config[name] for name in known}
    torch.manual_seed(0)
    denoiser._network_class.from_config(config).save_pretrained(folder / denoiser.trained)


def subject(name: str | None, depth: int = 1) -> Embedded | Family:
    """What is measured: the id of a family's environment, or None for the embedded model."""
    return Embedded() if name is None else Family(name, depth)


def read_once(denoiser: Any, prompts: int) -> int:
    """Rows of a pass that ours begins besides, for families whose texts are read once for all steps."""
    from unirl_env.models.shared.texts_once import TextsOnce

    return prompts if isinstance(denoiser, TextsOnce) else 0


def remember_texts(pipeline: Any) -> None:
    """From now on each further call of the pipeline finds its texts encoded, as its first one left them."""
    encode, kept = pipeline.encode_prompt, {}

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items(), key=str)))
        if key not in kept:
            kept[key] = encode(*args, **kwargs)
        return kept[key]

    pipeline.encode_prompt = encode_once


def with_adapters(denoiser: Any) -> Actor:
    """A policy whose adapters do something: new ones add nothing."""
    import torch

    actor = Actor(denoiser, lora=LoRAConfig())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in actor.network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.02, generator=generator)
    return actor
