"""Any flow pipeline of diffusers: its leaf where it has one, and what can be read off its calls where not."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError, ContractError, UnirlError
from unirl_env.models.shared.attention_layers import attention_layers
from unirl_env.models.shared.exports import write_adapters
from unirl_env.models.shared.flow_schedule import FlowSchedule
from unirl_env.models.shared.judging import allowed, judge
from unirl_env.models.shared.listening import listening
from unirl_env.models.shared.loading import EMBEDDED, Source
from unirl_env.models.shared.of_diffusers import OfDiffusers, Sizes
from unirl_env.models.shared.reading_off import Way, read_off, refused
from unirl_env.models.shared.recording import ENDS, RecordedPipeline
from unirl_env.models.shared.scales import NOISE

LEAVES: Mapping[str, str] = {
    "Flux2KleinPipeline": "flux2_klein",
    "Flux2Pipeline": "flux2",
    "FluxPipeline": "flux1",
    "PixArtSigmaPipeline": "pixart",
    "QwenImageEditPipeline": "qwen_image_edit",
    "QwenImageEditPlusPipeline": "qwen_image_edit",
    "QwenImagePipeline": "qwen_image",
    "SanaPipeline": "sana",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "z_image",
}
"""By the pipeline's class, the leaf in `DENOISERS`."""
SIDES = ("height", "width")


def any_pipeline(pretrained: str, *, revision: str | None = None, **options: Any) -> Any:
    """The denoiser of a checkpoint, by the pipeline that its `model_index.json` names.

    Args:
        pretrained: A hub id or a directory.
        revision: Branch, tag or commit of the hub repository.
        **options: Those of the pipeline's own leaf, or of `PipelineDenoiser` where it has none.

    Returns:
        An object of the leaf's class.

    Raises:
        ModelNotFound: If there is no such checkpoint.
        ConfigError: If nothing can be read off the pipeline's calls.
    """
    from diffusers import DiffusionPipeline

    from unirl_env.models import DENOISERS

    source = Source(str(pretrained), "a pipeline of diffusers", EMBEDDED["image"], {"revision": revision})
    kind = source.load(DiffusionPipeline.load_config).get("_class_name")
    leaf = DENOISERS.get(LEAVES[kind]) if kind in LEAVES else PipelineDenoiser
    return leaf(str(pretrained), revision=revision, **options)


class PipelineDenoiser(OfDiffusers):
    """A flow pipeline of diffusers by what it does, told by its own `__call__` with a network that listens.

    Contexts are the arguments of the network that belong to a prompt and stay the same from step to step;
    schedule and pictures are the pipeline's own. It is held against the pipeline when it is first used
    (`check_denoiser`), and refused where anything differs.

    A policy, which has no text encoders, loads them once to learn how the network is called, and drops them.

    Args:
        pretrained: A hub id or a directory.
        arguments: Further ones of the pipeline's `__call__`, the same in every call.
        lora_targets: Layers that adapters attach to; None takes every linear layer within attention.
        **options: Those of `OfDiffusers`.

    Attributes:
        way: How the network is called.

    Raises:
        ConfigError: If the pipeline is none of a flow model, or does what cannot be read off; names what.
    """

    family = "a flow pipeline of diffusers"

    def __init__(
        self,
        pretrained: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        lora_targets: Sequence[str] | None = None,
        max_sequence_length: int | None = None,
        **options: Any,
    ):
        self.arguments = dict(arguments or {})
        self._targets = None if lora_targets is None else tuple(lora_targets)
        if max_sequence_length is not None:
            self.arguments["max_sequence_length"] = max_sequence_length
        super().__init__(pretrained, max_sequence_length=max_sequence_length, **options)

    def _measure(self, height: int | None, width: int | None) -> None:
        library, index = import_module("diffusers"), self._index
        # What is the class's own elsewhere, the checkpoint says here.
        self.pipeline, named = index["_class_name"], index.get(self.trained) or [None]
        if not (hasattr(library, self.pipeline) and named[-1] and hasattr(library, named[-1])):
            raise self.source.not_found(
                f"its pipeline is a {self.pipeline} whose `{self.trained}` is {named[-1]}, and diffusers "
                "must have both"
            )
        self.classes = {self.trained: named[-1]}
        entries = {name: entry for name, entry in index.items() if isinstance(entry, list | tuple)}
        self.optional = tuple(name for name, entry in entries.items() if entry[0] is None)
        self.configs = {self.trained: self._load_config(self.trained)}
        self._require_flow()
        self._fit(height, width)
        takes = inspect.signature(self._pipeline_class.__call__).parameters
        if unknown := sorted(set(self.arguments) - set(takes)):
            raise ConfigError(
                f"`arguments` must be of the `__call__` of {self.pipeline}, got {unknown}; it has "
                f"{sorted(set(takes) - {'self'})}."
            )
        self.prompts_at_once = 1
        longest = getattr(takes.get("max_sequence_length"), "default", None)
        self.max_sequence_length = self.arguments.get("max_sequence_length", longest or self.length)

    def _fit(self, height: int | None, width: int | None) -> None:
        self._asked: dict[str, int | None] = dict(zip(SIDES, (height, width), strict=True))
        for name, side in self._asked.items():
            if side is not None:
                whole(name, side, 1)

    def _require_flow(self) -> None:
        """Refuse what is no flow model, or is stepped by more than Euler's steps."""
        config = self._scheduler_config
        predicts = config.get("prediction_type")
        if predicts in NOISE and not config.get("use_flow_sigmas"):
            raise refused(f"the scheduler is of a network that predicts {predicts}, and no velocity")
        self._require_scheduler((self._index.get("scheduler") or [None])[-1])
        self._flow = FlowSchedule(config, num_tokens=1)

    # What the pipeline does.

    def _stand_in(self) -> nn.Module:
        return listening(
            self._network_class, self.configs[self.trained], dtype=self.dtype, device=self.device
        )

    @cached_property
    def recorded(self) -> RecordedPipeline:
        """The pipeline, which tells what it does."""
        try:
            return RecordedPipeline(self.frozen, self.trained, arguments={**self._asked, **self.arguments})
        except (UnirlError, MemoryError):
            raise
        except Exception as error:  # a pipeline can fail in any way
            given = {**self._asked, **self.arguments}
            raise ConfigError(
                f"`height`, `width` and `arguments` must be such as {self.pipeline} takes beside prompts, "
                f"got {given}: {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def way(self) -> Way:
        """How the network is called, read off and judged."""
        held = "frozen" in vars(self)
        way = read_off(self.recorded, allowed(self.dtype), self.makes)
        for name, size in self._asked.items():
            made = getattr(way, name if name in SIDES else "num_frames")
            if size not in (None, made):
                raise ConfigError(
                    f"`{name}` must be a size that {self.pipeline} draws, got {size}, of which it makes "
                    f"{made}; try {made}."
                )
        vars(self)["way"] = way  # which the judge reads
        try:
            judge(self, self.recorded)
        except ContractError as error:
            del vars(self)["way"]
            raise refused(f"what was read off is not what it does: {error}") from error
        if not held:
            del vars(self)["recorded"], vars(self)["frozen"]
            gc.collect()
        return way

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of a latent, as the pipeline's loop holds it."""
        _ = self.frozen  # the world asks, which will need it
        return self.way.latent_shape

    @property
    def height(self) -> int:
        """Of a picture, in pixels."""
        return self.way.height

    @property
    def width(self) -> int:
        """Likewise."""
        return self.way.width

    @property
    def unguided(self) -> str:
        """Why there is no classifier-free guidance, and the remedy; empty where there is."""
        return self.way.unguided

    @cached_property
    def lora_targets(self) -> tuple[str, ...]:
        """Those that were given, or every linear layer within attention."""
        return attention_layers(self.outline()) if self._targets is None else self._targets

    def sized(self, height: int, width: int) -> PipelineDenoiser:
        """The same model of pictures of another size, judged anew, which shares what is frozen.

        Raises:
            ConfigError: If the pipeline does not draw them.
        """
        other: Any = super().sized(height, width)
        _ = other.way  # what it does not draw is refused here
        return other

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]` that the pipeline sets.

        Raises:
            ConfigError: If it does not fall from 1 to 0.
        """
        count = whole("num_steps", num_steps, 1, hint="try 10")
        recording = self.recorded.run([""], num_steps=count, even=self.schedule == "flow", remember=True)
        self._offload_again()
        return self._flow.falling(recording.sigmas, count)

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        return self._in_turn(texts, negative=False)

    def _encode_negative(self, texts: list[str]) -> dict[str, Tensor]:
        return self._in_turn(texts, negative=True)

    def _in_turn(self, texts: list[str], *, negative: bool) -> dict[str, Tensor]:
        # One by one: some pipelines read a text in the light of the others, such as Bria an empty negative.
        read = [self.way.context_of(self.recorded, text, negative=negative) for text in texts]
        return {name: torch.cat([each[name] for each in read]) for name in read[0]}

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        blank = [""] * len(latents)
        drawn = self.recorded.run(blank, num_steps=1, levels=ENDS, final=latents, remember=True)
        return 2.0 * drawn.images - 1.0

    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        return Sizes(1, 1, self.way.height)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return self.way.latent_shape

    # What is trained.

    def _kinds(self, context: Mapping[str, Tensor]) -> Tensor | None:
        # A network may read texts as far as masks count them, and no further than the longest of a batch.
        kinds = self.way.context.items()
        masks = [context[name] for name, kind in kinds if "mask" in name and not kind.dtype.is_floating_point]
        if self.rows_per_forward is None or not masks:
            return None
        return torch.stack([mask.flatten(1).sum(1) for mask in masks], 1)

    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        return self.way.sign * network(**self.way.arguments_of(latent, sigma, context))[0]

    def guided(self, without: Tensor, with_prompt: Tensor, guidance: float, sigma: Tensor) -> Tensor:
        """Classifier-free guidance by the rule that the pipeline was found to follow.

        Raises:
            ConfigError: If none was found.
        """
        if self.way.rule is None:
            raise ConfigError(f"`guidance` must be 1, got {guidance}: {self.unguided}.")
        return self.way.rule(without, with_prompt, guidance)

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write them for the pipeline's `load_lora_weights`.

        Where it has none, for `PeftModel.from_pretrained(pipeline.transformer, directory)`.
        """
        if hasattr(self._pipeline_class, "save_lora_weights"):
            super().save_adapters(network, directory)
        else:
            write_adapters(network, directory, base=self.pretrained, revision=self.revision, task=None)
