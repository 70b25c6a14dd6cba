"""Flow models of diffusers: what all of its pipelines share, written once.

The frozen half is the checkpoint's own pipeline without its network, whose pieces encode, pack and decode;
the trained half is that network. A family is a leaf: a subclass that names the pipeline's classes and says
how large a latent is, what a text encoder's answer is called, and how the network is called.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unirl_env.arguments.values import truth, whole
from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import unheard
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.acceleration import Acceleration
from unirl_env.models.shared.exports import LORA_FILE, in_order, settle_header
from unirl_env.models.shared.fixed_batches import by_kind, in_fixed_batches, painted, texts_at_once
from unirl_env.models.shared.flow_schedule import FlowSchedule, require_scheduler
from unirl_env.models.shared.loading import EMBEDDED, Source, as_dtype, complete
from unirl_env.models.shared.outline import on_device
from unirl_env.types import Prompt, Sample

logger = logging.getLogger(__name__)

SCHEDULES = ("flow", "pipeline")
LIBRARIES = ("transformers", "diffusers")
TOKENIZERS = "transformers.tokenization_utils_base"
TRUNCATED = ("was truncated", "longer than the specified maximum")
"""What pipelines say of each text that is longer than an encoder reads."""
TWO_STREAMS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""The projections of attention in which picture and text have weights of their own."""
SELF_AND_CROSS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
)
"""Those of attention among the picture's places, and of that to the text."""
_told: set[str] = set()


class Sizes(NamedTuple):
    """What pictures a checkpoint draws.

    Attributes:
        scale: Pixels of a side for each place of the decoder's latent.
        patch: Places of a side that are one token of the network.
        trained: Pixels of a side where none are asked for.
        most: The largest side in pixels; None where any is possible.
        stride: Frames of a clip for each further place of the latent in time.
    """

    scale: int
    patch: int
    trained: int
    most: int | None = None
    stride: int = 1


class OfDiffusers(Denoiser):
    """A family whose checkpoints are pipelines of diffusers.

    Args:
        pretrained: A hub id or a directory.
        height: Pixels; None takes the size that the model was trained for.
        width: Pixels; likewise.
        dtype: Of weights and activations.
        device: Where the frozen half lives, and where the network is loaded.
        offload: Keep text encoders and decoder on the CPU between uses, by accelerate.
        revision: Branch, tag or commit of the hub repository.
        max_sequence_length: Tokens of the text encoder that has a limit to choose; None takes the family's.
        schedule: `"pipeline"` takes the noise levels that the pipeline itself takes, `"flow"` the uniform
            grid from 1 to 0. Both then follow the checkpoint's scheduler, with its shifts and spacings.
        rows_per_forward: Evaluate the network on exactly that many rows at a time, so that an episode comes
            out bitwise the same alone, in any batch, and in the learner. Without it, the batch size shows in
            the last bits. 16 costs next to nothing on a CPU where batches are multiples of it.
        tiling: Decode pictures in tiles, which bounds memory and changes what the tiles' borders show.
        compile: Compile the network; see `Acceleration`, as for the next two.
        attention: A backend of diffusers' attention.
        quantization: Configuration for weights that are not trained.

    Attributes:
        family: What errors call it.
        pipeline: Its class in diffusers.
        also: Other classes of pipelines whose checkpoints have the same parts.
        trained: The folder of the network that is trained.
        classes: By folder, the class of diffusers that must be in it.
        formerly: By folder, what its configuration may call that class, too.
        optional: Parts that a checkpoint may lack.
        dropped: Parts that are never loaded.
        whole: Frozen parts that are loaded in float32, whatever `dtype` says.
        even: Whether the pipeline begins its schedule with equal steps.
        length: `max_sequence_length`, where none is given.
        height: Of a picture, in pixels.
        width: Likewise.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the picture's size does not fit the model, a setting is out of range, or the
            checkpoint's scheduler has a setting that episodes cannot honour.
    """

    family: ClassVar[str]
    pipeline: ClassVar[str]
    also: Sequence[str] = ()
    trained: ClassVar[str] = "transformer"
    classes: ClassVar[Mapping[str, str]]
    formerly: ClassVar[Mapping[str, str]] = {}
    optional: ClassVar[Sequence[str]] = ()
    dropped: ClassVar[Sequence[str]] = ()
    whole: ClassVar[Sequence[str]] = ()
    even: ClassVar[bool] = True
    length: ClassVar[int] = 512

    def __init__(
        self,
        pretrained: str,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        offload: bool = False,
        revision: str | None = None,
        max_sequence_length: int | None = None,
        schedule: str = "pipeline",
        rows_per_forward: int | None = None,
        tiling: bool = False,
        compile: bool = False,
        attention: str | None = None,
        quantization: Mapping[str, Any] | None = None,
    ):
        if schedule not in SCHEDULES:
            raise ConfigError(f"`schedule` must be one of {SCHEDULES}, got {schedule!r}.")
        if rows_per_forward is not None:
            rows_per_forward = whole("rows_per_forward", rows_per_forward, 1, hint="try 16")
        self.rows_per_forward = rows_per_forward
        self.pretrained, self.revision, self.schedule = str(pretrained), revision, schedule
        self.source = Source(self.pretrained, self.family, EMBEDDED[self.makes], {"revision": revision})
        self.dtype = as_dtype("dtype", dtype)
        self.device, self.offload = torch.device(device), truth("offload", offload)
        self.tiling = truth("tiling", tiling)
        self.acceleration = Acceleration(compile, attention, quantization)
        length = self.length if max_sequence_length is None else max_sequence_length
        self.max_sequence_length = whole("max_sequence_length", length, 1)
        self.prompts_at_once = texts_at_once(self.max_sequence_length)
        self._measure(height, width)

    def _measure(self, height: int | None, width: int | None) -> None:
        """Take the sides of pictures, and what follows of them and of the checkpoint's settings."""
        self.configs = {part: self._load_config(part) for part in self.classes}
        self._require_pipeline()
        self._fit(height, width)

    def _fit(self, height: int | None, width: int | None) -> None:
        """Set sizes, and what follows from them."""
        sizes = self._sizes(self.configs[self.trained])
        self.height = _side("height", height, sizes)
        self.width = _side("width", width, sizes)
        unit = sizes.scale * sizes.patch
        self.latent_frames = self._frames(sizes)
        self.num_tokens = self.latent_frames * (self.height // unit) * (self.width // unit)
        self.latent_shape = self._shape(self.height // sizes.scale, self.width // sizes.scale)
        self._flow = self._schedule()

    # What a leaf answers.

    @abstractmethod
    def _sizes(self, config: Mapping[str, Any]) -> Sizes:
        """What pictures a network of this configuration draws."""

    def _frames(self, sizes: Sizes) -> int:
        """Places of a latent in time."""
        return 1

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of a latent of `rows` x `columns` places of the decoder's grid, as the loop holds it."""
        return self.configs[self.trained]["in_channels"], rows, columns

    @abstractmethod
    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        """The context of texts, each tensor `[B, ...]` of a shape that does not depend on the texts."""

    @abstractmethod
    def _forward(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The network's velocity, of latents in its own dtype."""

    def _velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity of latents as they are stored, where a network predicts something else than it."""
        return self._forward(network, latent.to(self.dtype), sigma, context)

    def _finished(self, latents: Tensor, context: Mapping[str, Tensor] | None) -> Tensor:
        """What is decoded of finished latents `[B, ...]`: the data that they stand for."""
        return self.data(latents)

    def _draw(self, vae: Any, latents: Tensor) -> Tensor:
        """Pictures `[n, 3, H, W]` in [-1, 1] of latents `[n, ...]`, on the decoder's device, in its dtype."""
        latents = latents / vae.config.scaling_factor
        shift = vae.config.get("shift_factor")
        return vae.decode(latents if shift is None else latents + shift, return_dict=False)[0]

    def _encode_negative(self, texts: list[str]) -> dict[str, Tensor]:
        """The context of negative prompts, where the pipeline reads them otherwise than prompts."""
        return self._encode(texts)

    def _schedule(self) -> Any:
        """What has `sigmas(num_steps, even=...)`, by the checkpoint's scheduler."""
        return FlowSchedule(self._scheduler_config, self.num_tokens)

    def _require_scheduler(self, name: Any) -> None:
        """Refuse a scheduler of the pipeline's index that `_schedule` does not know."""
        require_scheduler(name)

    def _kinds(self, context: Mapping[str, Tensor]) -> Tensor | None:
        """What tells apart rows that no forward may read together, `[N, ...]`; None if nothing does."""
        return None

    def _require_pipeline(self) -> None:
        """Refuse a checkpoint whose parts are this family's and whose pipeline is another one.

        Raises:
            ModelNotFound: Naming that pipeline.
        """
        named = self._index.get("_class_name")
        if named not in (self.pipeline, *self.also):
            raise self.source.not_found(f"its model_index.json is of {named}, not of {self.pipeline}")

    # What follows of it.

    def sized(self, height: int, width: int) -> OfDiffusers:
        """The same model of pictures of another size, which shares text encoders and decoder.

        Raises:
            ConfigError: If it cannot draw them; names the nearest sizes that it can.
        """
        other = copy(self)
        for name in list(vars(other)):
            if isinstance(getattr(type(self), name, None), cached_property):
                del vars(other)[name]  # it may depend on the size
        other._fit(height, width)
        vars(other)["frozen"], other._hooks = self.frozen, self._hooks
        return other

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]` as the checkpoint's scheduler has it.

        Raises:
            ConfigError: If the pipeline's scheduler is another one, or its settings lead not from 1 to 0.
        """
        # The pipeline takes the class from its index, whatever the scheduler's own file says.
        self._require_scheduler((self._index.get("scheduler") or [None])[-1])
        return self._flow.sigmas(num_steps, even=self.even or self.schedule == "flow")

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """What the text encoders say, by the names of the pipeline, each tensor `[B, ...]`."""
        texts = [prompt.negative if negative else prompt.text for prompt in prompts]
        with unheard((self._pipeline_class.__module__, TOKENIZERS), TRUNCATED) as said:
            context = self._encode_negative(list(texts)) if negative else self._encode(list(texts))
        if said:
            warn_of_truncation(self.pretrained, max(texts, key=len), self.max_sequence_length)
        self._offload_again()
        return context

    def _shown(self, draw: Callable[[Tensor], Tensor], latents: Tensor) -> list[Sample]:
        """Samples of what `draw` makes of latents `[B, ...]`, in lots of one size."""
        return painted(draw, latents, self.height, self.width)

    @torch.no_grad()
    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1], or clips `[F, 3, H, W]` uint8 of a family of those."""
        vae = self.frozen.vae
        dtype = next(vae.parameters()).dtype  # diffusers' own property goes through all layers

        def draw(latents: Tensor) -> Tensor:
            return self._draw(vae, latents.to(self.device, dtype))

        samples = self._shown(draw, self._finished(latents, context))
        self._offload_again()
        return samples

    def network(self) -> nn.Module:
        """Diffusers' network of the family, freshly loaded."""
        network = self.source.load(
            complete(self._network_class.from_pretrained),
            subfolder=self.trained,
            dtype=self.dtype,
            **self.acceleration.loading(),
        )
        return self.acceleration.apply(on_device(network, self.device).eval())

    def velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """The network's velocity `[N, ...]`, in its own dtype."""

        def forward(latent: Tensor, sigma: Tensor, *values: Tensor) -> Tensor:
            return self._velocity(network, latent, sigma, dict(zip(context, values, strict=True)))

        def in_lots(*batches: Tensor) -> Tensor:
            return in_fixed_batches(forward, *batches, rows=self.rows_per_forward)

        return by_kind(in_lots, latent, sigma, *context.values(), kinds=self._kinds(context))

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights` reads."""
        from peft import get_peft_model_state_dict

        self._pipeline_class.save_lora_weights(
            directory,
            **{
                f"{self.trained}_lora_layers": get_peft_model_state_dict(network),
                f"{self.trained}_lora_adapter_metadata": in_order(network.peft_config["default"].to_dict()),
            },
        )
        settle_header(Path(directory) / LORA_FILE)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write the network as its own class's `from_pretrained` reads it."""
        network.save_pretrained(directory)

    @cached_property
    def frozen(self) -> Any:
        """Diffusers' pipeline, which knows how prompts are encoded, without the network's weights."""
        # What a checkpoint leaves out must be said again, or the pipeline misses it.
        absent = {name: None for name in self.optional if not self._has(name)}
        parts = {name: self._load_part(name) for name in self._index if self._is_network(name)}
        pipeline = self.source.load(
            self._pipeline_class.from_pretrained,
            dtype=self.dtype,
            **{self.trained: self._stand_in()},
            **dict.fromkeys(self.dropped),
            **absent,
            **parts,
        )
        pipeline.set_progress_bar_config(disable=True)
        networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        self._hooks = []
        if self.offload:
            from accelerate import cpu_offload_with_hook

            hook = None
            for part in networks:
                _, hook = cpu_offload_with_hook(part, self.device, prev_module_hook=hook)
                self._hooks.append(hook)
        else:
            for part in networks:
                part.to(self.device)
        for part in networks:
            part.eval().requires_grad_(False)
        for layer in pipeline.vae.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)  # small lots are faster so
        if self.tiling:
            pipeline.vae.enable_tiling()
        return pipeline

    def _stand_in(self) -> nn.Module | None:
        """What the pipeline is given in the place of its network."""
        return None

    def outline(self) -> nn.Module:
        """The network without its weights, for pipelines that ask it for its shape."""
        with torch.device("meta"):
            outline: nn.Module = self._network_class.from_config(self.configs[self.trained])
        return outline

    def _has(self, name: str) -> bool:
        """Whether the checkpoint has a part of that name."""
        entry = self._index.get(name)
        return isinstance(entry, list | tuple) and entry[0] is not None

    def _is_network(self, name: str) -> bool:
        """Whether a part is a frozen network, which is loaded by itself."""
        if name in (self.trained, *self.dropped) or not self._has(name):
            return False
        library, kind = self._index[name]
        if library not in LIBRARIES:
            raise self.source.not_found(
                f"its `{name}` is of {library}, and must be of transformers or diffusers"
            )
        found = getattr(import_module(library), kind, None)
        if found is None:
            raise self.source.not_found(f"its `{name}` is a {kind}, which {library} does not have")
        return isinstance(found, type) and issubclass(found, nn.Module)

    def _load_part(self, name: str) -> nn.Module:
        """A frozen network of the pipeline, by itself: the pipeline would not say what its weights lack."""
        library, kind = self._index[name]
        loader = complete(getattr(import_module(library), kind).from_pretrained)
        dtype = torch.float32 if name in self.whole else self.dtype
        return self.source.load(loader, subfolder=name, dtype=dtype)

    def _offload_again(self) -> None:
        if self.offload:
            for hook in self._hooks:
                hook.offload()

    @property
    def _pipeline_class(self) -> Any:
        return getattr(import_module("diffusers"), self.pipeline)

    @property
    def _network_class(self) -> Any:
        return getattr(import_module("diffusers"), self.classes[self.trained])

    @cached_property
    def _index(self) -> dict[str, Any]:
        """The pipeline's own list of its parts."""
        from diffusers import DiffusionPipeline

        return self.source.load(DiffusionPipeline.load_config)

    @cached_property
    def _scheduler_config(self) -> dict[str, Any]:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return self.source.load(FlowMatchEulerDiscreteScheduler.load_config, subfolder="scheduler")

    def _load_config(self, part: str) -> dict[str, Any]:
        kind = getattr(import_module("diffusers"), self.classes[part])
        config = self.source.load(kind.load_config, subfolder=part)
        if config.get("_class_name") not in (kind.__name__, self.formerly.get(part)):
            raise self.source.not_found(f"its {part} is a {config.get('_class_name')}, not a {kind.__name__}")
        return config


def warn_of_truncation(pretrained: str, text: str, length: int) -> None:
    """Say, once for each model, that its encoders do not read prompts to their end."""
    if pretrained not in _told:
        _told.add(pretrained)
        logger.warning(
            "The text encoders of %s do not read every prompt to its end, such as %r: they read at most %d "
            "tokens, and CLIP its own number, 77 as published. Try shorter prompts, or a larger "
            "`max_sequence_length` where the family takes one. (This is said once.)",
            *(pretrained, f"{text[:60]}..." if len(text) > 60 else text, length),
        )


def autoencoder_scale(vae: Mapping[str, Any]) -> int:
    """Pixels of a side for each place of an `AutoencoderKL`'s latent, by its configuration."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def _side(name: str, value: int | None, sizes: Sizes) -> int:
    """A side of the picture in pixels.

    Raises:
        ConfigError: If the model cannot draw it; names the nearest that it can.
    """
    side = sizes.trained if value is None else whole(name, value)
    unit, most = sizes.scale * sizes.patch, sizes.most
    if side % unit or side <= 0 or (most is not None and side > most):
        below = max(unit, side // unit * unit)
        near = [n for n in dict.fromkeys((below, below + unit)) if most is None or n <= most] or [most]
        raise ConfigError(
            f"`{name}` must be a positive multiple of {unit}{'' if most is None else f' up to {most}'}, got "
            f"{side}; try {' or '.join(map(str, near))}."
        )
    return side
