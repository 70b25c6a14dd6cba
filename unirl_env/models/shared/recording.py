"""A pipeline of diffusers that runs its own `__call__` and tells what it did.

In the place of its network stands one without weights, which notes what it is given and answers with keyed
random numbers. Its scheduler is the checkpoint's own, whose steps are told: exact Euler steps of what reaches
them, and the latents of one's choice at the end. What of a pipeline lies between a text, a network and a
picture can so be read off, at the price of its text encoders and decoder alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import unheard
from unirl_env.functional.noise import derive_seed
from unirl_env.models.shared.flow_schedule import SCHEDULER
from unirl_env.models.shared.listening import Call, as_output, heard
from unirl_env.models.shared.of_diffusers import TOKENIZERS, TRUNCATED
from unirl_env.models.shared.scales import Scale

ENDS = torch.tensor([1.0, 0.0])
"""The noise levels of a single step."""
FRAMES = ("num_frames", "frames")
"""What pipelines call the frames of a clip."""
SIZES = ("height", "width", *FRAMES)
"""Arguments that are the pipeline's own where they are None."""
UNSAID = {"use_resolution_binning": False}
"""Arguments of some pipelines that change what is asked for, and what they are set to."""
GUIDANCE = ("true_cfg_scale", "guidance_scale")
"""What pipelines call classifier-free guidance; where both are there, the second is the network's input."""


class Step(NamedTuple):
    """One step of a pipeline's loop.

    Attributes:
        calls: Those of its network, in order.
        sample: The latents `[B, ...]` float32 that the scheduler is given, in the coordinates of flows.
        output: The guided prediction `[B, ...]` float32 that it is given, as a velocity.
    """

    calls: tuple[Call, ...]
    sample: Tensor
    output: Tensor


@dataclass
class Recording:
    """What a pipeline did in one call.

    Attributes:
        steps: Of its loop.
        sigmas: The noise levels `[T+1]` of the checkpoint's own scheduler, as the pipeline sets it, unless it
            was told others.
        images: What it returned.
    """

    steps: list[Step] = field(default_factory=list)
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))
    images: Any = None


class RecordedPipeline:
    """A pipeline whose network listens.

    Args:
        pipeline: With a network of `listening`.
        trained: What it calls that network.
        arguments: Of its `__call__` in every call, beside those of `run`; sizes that are None are left out.

    Raises:
        ValueError: Whatever the pipeline says of its arguments.
    """

    def __init__(self, pipeline: Any, trained: str, arguments: Mapping[str, Any]):
        self.pipeline, self.trained = pipeline, trained
        self._encoded: dict[str, Any] = {}
        self.network: Any = getattr(pipeline, trained)
        self.takes = inspect.signature(type(pipeline).__call__).parameters
        given = {n: value for n, value in arguments.items() if value is not None or n not in SIZES}
        self.arguments = {**{name: value for name, value in UNSAID.items() if name in self.takes}, **given}
        free = (name for name in GUIDANCE if name in self.takes and name not in given)
        self.guidance = next(free, None)
        """What `__call__` calls classifier-free guidance, if it has any."""
        self.unguided: float = 1.0
        """At which value of it the network is evaluated once for each prompt."""
        self.guides = self._guides()
        """Whether the pipeline has classifier-free guidance."""
        if not self.guides:
            self.guidance = None  # an input of the network, or nothing; it stays as it is

    def _guides(self) -> bool:
        if self.guidance is None:
            return False
        name, without = self.guidance, self._without(["a"])
        for value in (1.0, 0.0):
            if self._rows({name: value}) == 1:
                self.unguided = value
                return self._rows({name: value + 2.5, **without}) > 1
        return False

    def run(
        self,
        texts: Sequence[str],
        *,
        without: Sequence[str] | None = None,
        guidance: float = 1.0,
        num_steps: int = 2,
        levels: Tensor | None = None,
        even: bool = False,
        final: Tensor | None = None,
        seed: int = 0,
        remember: bool = False,
    ) -> Recording:
        """One call of the pipeline.

        Args:
            texts: Prompts, B of them.
            without: Their negatives, where guidance is not 1.
            guidance: 1 is none, whatever the pipeline's own counting.
            num_steps: T.
            levels: The noise levels `[T+1]` to take, of flows; None takes the scheduler's own.
            even: Ask the scheduler for equal steps from 1 to 0 before its shifts.
            final: The latents `[B, ...]` that the last step is told to end with, which are then decoded; None
                decodes nothing.
            seed: Keys the initial noise and the network's answers.
            remember: Encode these texts once and for all, for calls of which they are not the matter.
        """
        arguments: dict[str, Any] = {}
        if self.guidance is not None:
            arguments[self.guidance] = guidance - 1.0 + self.unguided
        if guidance != 1.0:
            arguments |= self._without(list(without or [""] * len(texts)))
        told = _Told(self, derive_seed(seed, "answers"), levels, even, final)
        arguments["num_inference_steps"] = num_steps
        arguments["output_type"] = "latent" if final is None else "pt"
        generator = torch.Generator().manual_seed(seed)
        with self._remembering() if remember else nullcontext():
            return self._call(told, {"prompt": list(texts), "generator": generator, **arguments})

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Within it, `encode_prompt` is not asked twice for the same."""
        own = getattr(self.pipeline, "encode_prompt", None)
        if own is None:
            yield
            return

        def encode_once(*args: Any, **options: Any) -> Any:
            given = [*args, *options.values()]
            key = repr((args, sorted(options.items())))
            if any(isinstance(value, Tensor) for value in given):
                return own(*args, **options)
            if key not in self._encoded:
                self._encoded[key] = own(*args, **options)
            return self._encoded[key]

        self.pipeline.encode_prompt = encode_once
        try:
            yield
        finally:
            del self.pipeline.encode_prompt

    def _without(self, texts: list[str]) -> dict[str, Any]:
        return {"negative_prompt": texts} if "negative_prompt" in self.takes else {}

    def _rows(self, arguments: Mapping[str, Any]) -> int:
        """How many rows of a step the network is given for one prompt, at most."""
        told = _Told(self, 0, None, False, None)
        asked = {"prompt": ["a"], "num_inference_steps": 4, "output_type": "latent", **arguments}
        return max(sum(call.rows for call in step.calls) for step in self._call(told, asked).steps)

    def _call(self, told: _Told, arguments: Mapping[str, Any]) -> Recording:
        loggers = (type(self.pipeline).__module__, TOKENIZERS)
        with told.in_place(), torch.no_grad(), unheard(loggers, TRUNCATED):
            found = self.pipeline(**{**self.arguments, **arguments}, return_dict=False)
        told.recording.images = found[0]
        return told.recording


class _Told:
    """What a pipeline is told within one call, and the recording of it."""

    def __init__(
        self, of: RecordedPipeline, seed: int, levels: Tensor | None, even: bool, final: Tensor | None
    ):
        self.of, self.levels, self.even, self.final = of, levels, even, final
        self.scheduler, self.recording = of.pipeline.scheduler, Recording()
        self.calls: list[Call] = []
        self.common: Tensor | None = None
        self.scale: Any = None
        self.numbers = torch.Generator().manual_seed(seed)
        self.own: dict[str, Any] = {name: getattr(self.scheduler, name) for name in ("set_timesteps", "step")}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the network and the scheduler do as they are told."""
        network = self.of.network
        network.hear = self.hear
        for name, own in self.own.items():
            setattr(self.scheduler, name, _in_the_place_of(own, getattr(self, name)))
        try:
            yield
        finally:
            network.hear = None
            for name in self.own:
                delattr(self.scheduler, name)

    def hear(self, *args: Any, **options: Any) -> Any:
        """Answer with random numbers like the latents."""
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", self.of.network.device.type)):
            raise ConfigError(
                "The network must be called in its own dtype, got a call under autocast of "
                f"{type(self.of.pipeline).__name__}; try a denoiser of your own that does so, too."
            )
        call = heard(self.of.network, args, options)
        latents = next(iter(call.arguments.values()))
        channels = getattr(self.of.network.config, "out_channels", None)
        if isinstance(latents, Tensor):
            answer: Any = self._like(latents, channels if latents.ndim > 3 else None)
        else:
            answer = [self._like(each, None) for each in latents]
        self.calls.append(call._replace(answer=answer))
        return as_output(answer, call.arguments)

    def _like(self, latents: Tensor, channels: int | None) -> Tensor:
        shape = list(latents.shape)
        if channels:
            shape[1] = channels
        # With and without a prompt a network says nearly the same, now a bit more, now a bit less: rules of
        # guidance that compare the two are told apart by nothing else.
        if self.common is None or self.common.shape != torch.Size(shape[1:]):
            self.common = torch.randn(shape[1:], generator=self.numbers)
        more = 1.0 + 0.5 * torch.randn(*shape[:-1], 1, generator=self.numbers)
        answer = more * self.common + 0.3 * torch.randn(shape, generator=self.numbers)
        return answer.to(latents.device, latents.dtype)

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """Let the scheduler do what it is asked, note its noise levels, and go by others where it is told."""
        own, scheduler = self.own["set_timesteps"], self.scheduler
        asked = dict(inspect.signature(own).bind(*args, **options).arguments)
        if self.even:
            count = asked.get("num_inference_steps") or len(asked.get("sigmas", asked.get("timesteps")))
            asked = {**asked, "sigmas": np.linspace(1.0, 1.0 / count, count), "timesteps": None}
        with np.errstate(all="ignore"):  # what divides by zero is seen in what does not fall
            own(**asked)
        if self.levels is not None:
            scheduler.sigmas = self.levels.to(scheduler.sigmas)
        self.scale = Scale(scheduler)
        self.recording.sigmas = self.scale.sigmas
        # Solvers that look back count a step twice, or cut times to whole numbers.
        if self.levels is not None or type(scheduler).__name__ != SCHEDULER:
            scheduler.timesteps = self.scale.times.to(scheduler.timesteps.device)

    def step(self, *args: Any, **options: Any) -> Any:
        """Note what reaches it, and go on as it is told."""
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        asked = inspect.signature(self.own["step"]).bind(*args, **options).arguments
        output, scale, place = asked["model_output"], self.scale, len(self.recording.steps)
        sample = scale.flowing(asked["sample"], place)
        velocity = scale.velocity(output, asked["sample"], place)
        self.recording.steps.append(Step(tuple(self.calls), sample, velocity))
        self.calls, self.common = [], None
        following = sample + float(scale.sigmas[place + 1] - scale.sigmas[place]) * velocity
        if self.final is not None and place + 2 == len(scale.sigmas):
            following = self.final.to(following)
        following = scale.own(following, place + 1).to(output.dtype)
        if getattr(self.scheduler, "_step_index", None) is not None:
            self.scheduler._step_index += 1
        return SchedulerOutput(prev_sample=following) if asked.get("return_dict", True) else (following,)


def _in_the_place_of(own: Any, told: Any) -> Any:
    """A function with the signature of `own`, which pipelines look at."""

    @wraps(own)
    def instead(*args: Any, **options: Any) -> Any:
        return told(*args, **options)

    return instead
