"""How a pipeline calls its network, read off what it does.

A flow pipeline gives its network the latents, a time that is a line in sigma, and what it made of the texts,
which does not change from step to step; the scheduler gets the answer, or minus it. What is not so is refused
by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.models.shared.guidance_rules import RULES, Rule
from unirl_env.models.shared.listening import Call
from unirl_env.models.shared.network_inputs import SILENT, gap, words_for
from unirl_env.models.shared.recording import ENDS, RecordedPipeline, Recording

LEVELS = torch.tensor([1.0, 0.5, 0.25, 0.0])
"""Noise levels whose times half precision knows exactly."""
TEXTS = ("a", "two blue squares to the left of a red circle")
OTHERS = ("some other text", "dog")
IDS = {"image": "unirl/Diffusers-T2I-v0", "video": "unirl/Diffusers-T2V-v0"}
"""Environments of any pipeline, by what it makes."""
MADE = {"image": "pictures", "video": "clips"}
TRIED = 2.5
"""At which guidance its rule is looked for."""


class Kind(NamedTuple):
    """What one row of an argument is: its dtype and shape."""

    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True)
class Way:
    """How a pipeline calls its network.

    Attributes:
        latent: The argument that the latents are.
        latent_shape: Theirs, without the batch.
        time: The argument that the time is, and its dtype.
        slope: Time is `slope * sigma + offset`.
        offset: Likewise.
        sign: Of the network's answer, as a velocity: 1 or -1.
        context: By the arguments that prompts give, what a row of each is.
        constants: All other arguments.
        height: Of pictures, in pixels.
        width: Likewise.
        num_frames: Of clips; None of pictures.
        negatives_first: Whether negative prompts come before prompts, in calls or within one.
        rule: The guidance; None where there is none.
        unguided: Why there is none, and the remedy.
    """

    latent: str
    latent_shape: tuple[int, ...]
    time: tuple[str, torch.dtype]
    slope: float
    offset: float
    sign: float
    context: Mapping[str, Kind]
    constants: Mapping[str, Any]
    height: int = 0
    width: int = 0
    num_frames: int | None = None
    negatives_first: bool = False
    rule: Rule | None = None
    unguided: str = ""

    def context_of(
        self, recorded: RecordedPipeline, text: str, *, negative: bool = False
    ) -> dict[str, Tensor]:
        """What the network is given of a text, each `[1, ...]`; whole numbers and truth values as int64.

        Raises:
            ConfigError: If one is of another shape than that of other texts.
        """
        how: dict[str, Any] = {"without": [text], "guidance": TRIED} if negative else {}
        run = recorded.run([""] if negative else [text], num_steps=1, levels=ENDS, **how)
        place = slice(1) if self.negatives_first or not negative else slice(1, None)
        context = {name: value[place] for name, value in _together(run, self.context).items()}
        for name, value in context.items():
            if value.shape[1:] != self.context[name].shape:
                raise refused(_of_another_shape(name, value.shape[1:], self.context[name].shape))
        return {name: v if v.is_floating_point() else v.long() for name, v in context.items()}

    def arguments_of(self, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]) -> dict[str, Any]:
        """The network's arguments for latents `[N, ...]` at `sigma` `[N]` with N contexts."""
        name, dtype = self.time
        place = latent.device
        constants = {
            n: value.to(place) if isinstance(value, Tensor) else copy.copy(value)
            for n, value in self.constants.items()
        }
        texts = {n: context[n].to(kind.dtype) for n, kind in self.context.items()}
        time = (self.slope * sigma + self.offset).to(dtype)
        return {**constants, self.latent: latent, name: time, **texts}


def read_off(recorded: RecordedPipeline, most: float, makes: str = "image") -> Way:
    """How a pipeline calls its network.

    Args:
        recorded: The pipeline.
        most: How far equal numbers may be apart.
        makes: What it must make, `"image"` or `"video"`.

    Raises:
        ConfigError: Naming what it does that no denoiser can be read off.
    """
    steps = len(LEVELS) - 1
    two, one = (recorded.run(texts, num_steps=steps, levels=LEVELS) for texts in (TEXTS, OTHERS[:1]))
    calls = [_only(step.calls, len(step.sample)) for step in two.steps]
    alone = _only(one.steps[0].calls, 1)
    latent = _latent(two, calls)
    changing = [
        name
        for name in calls[0].arguments
        if name != latent and any(gap(c.arguments[name], calls[0].arguments[name]).size > most for c in calls)
    ]
    if len(changing) != 1:
        raise refused(
            f"it gives its network {changing or 'nothing'} beside the latents that changes from step to "
            "step, and one argument must, the time"
        )
    slope, offset = _line(changing[0], calls, most)
    rest = [name for name in calls[0].arguments if name not in (latent, *changing, *SILENT)]
    context = {name: kind for name in rest if (kind := _by_row(name, calls[0], alone)) is not None}
    constants = {name: calls[0].arguments[name] for name in rest if name not in context}
    for name, value in constants.items():
        _require_constant(name, value, alone.arguments[name])
    constants |= {name: False for name in SILENT if name in calls[0].arguments}
    shape = tuple(two.steps[0].sample.shape[1:])
    blank = torch.zeros(1, *shape, device=two.steps[0].sample.device)
    images = recorded.run([""], num_steps=1, levels=ENDS, final=blank).images
    height, width, frames = _sizes(images, makes)
    time = changing[0], calls[0].arguments[changing[0]].dtype
    sign = _sign(two, most)
    way = Way(latent, shape, time, slope, offset, sign, context, constants, height, width, frames)
    return _guidance(recorded, way, most)


def _sizes(made: Any, makes: str) -> tuple[int, int, int | None]:
    """Height and width of pictures `[1, 3, H, W]`, or of clips `[1, F, 3, H, W]`, and F of these."""
    kinds = {4: "image", 5: "video"}
    kind = kinds.get(made.ndim) if isinstance(made, Tensor) else None
    if kind is None or made.shape[-3] != 3:
        raise refused(f"the result is no {makes} of three colours ({words_for(made)})")
    if kind != makes:
        raise ConfigError(
            f"`pretrained` must be of a pipeline that makes {MADE[makes]}, got one that makes {MADE[kind]} "
            f"({words_for(made)}); try {IDS[kind]}."
        )
    return made.shape[-2], made.shape[-1], made.shape[1] if kind == "video" else None


def refused(why: str) -> ConfigError:
    """The error for a pipeline from which no denoiser can be read off."""
    return ConfigError(
        f"`pretrained` must be of a pipeline whose calls can be read off, got one of which {why}; try a "
        "denoiser of your own, as docs/families/any.md describes."
    )


def _only(calls: Sequence[Call], rows: int) -> Call:
    if len(calls) != 1 or calls[0].rows != rows:
        told = " and ".join(str(call.rows) for call in calls) or "no"
        raise refused(f"the network is given {told} rows in a step of {rows} prompts without guidance")
    return calls[0]


def _latent(recording: Recording, calls: Sequence[Call]) -> str:
    for name, value in calls[0].arguments.items():
        if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
            raise refused(f"the network is called with a list of tensors (`{name}`)")
    same = [
        name
        for name in calls[0].arguments
        if all(
            isinstance(call.arguments[name], Tensor)
            and gap(call.arguments[name], step.sample.to(call.arguments[name].dtype)).size == 0
            for call, step in zip(calls, recording.steps, strict=True)
        )
    ]
    if len(same) != 1:
        raise refused(f"{same or 'no argument'} of the network is what the scheduler steps, and one must be")
    return same[0]


def _line(name: str, calls: Sequence[Call], most: float) -> tuple[float, float]:
    times = []
    for call in calls:
        value = call.arguments[name]
        if not isinstance(value, Tensor) or value.numel() not in (1, call.rows):
            raise refused(f"`{name}` changes from step to step and is no time ({words_for(value)})")
        if bool((value != value.flatten()[0]).any()):
            raise refused(f"`{name}` differs between the latents of one step")
        times.append(float(value.flatten()[0]))
    slope = (times[0] - times[1]) / float(LEVELS[0] - LEVELS[1])
    offset = times[0] - slope * float(LEVELS[0])
    for sigma, time in zip(LEVELS.tolist(), times, strict=False):
        if abs(slope * sigma + offset - time) > most * max(1.0, abs(slope)):
            raise refused(f"`{name}` is no line in sigma: {times} at {LEVELS.tolist()[:-1]}")
    return slope, offset


def _by_row(name: str, call: Call, alone: Call) -> Kind | None:
    """What a row of an argument is that has one for each latent; None of what has none."""
    value, other = call.arguments[name], alone.arguments[name]
    if not isinstance(value, Tensor) or not isinstance(other, Tensor) or not value.ndim or not other.ndim:
        return None
    if len(value) != call.rows or len(other) != alone.rows:
        return None
    if value.shape[1:] != other.shape[1:]:
        raise refused(_of_another_shape(name, value.shape[1:], other.shape[1:]))
    return Kind(value.dtype, value.shape[1:])


def _of_another_shape(name: str, one: Sequence[int], other: Sequence[int]) -> str:
    return (
        f"`{name}` has another width for another text ({list(one)} and {list(other)}), and observations "
        "have one"
    )


def _require_constant(name: str, value: Any, other: Any) -> None:
    if isinstance(value, list | tuple) and len(value) != len(other or ()):
        raise refused(f"the network is called with a list (`{name}`) that has an entry for each latent")
    if gap(value, other).size > 0:
        raise refused(
            f"`{name}` depends on the texts and has no row for each ({words_for(value)}, then "
            f"{words_for(other)})"
        )


def _sign(recording: Recording, most: float) -> float:
    for sign in (1.0, -1.0):
        if all(gap(sign * step.calls[0].answer, step.output).size <= most for step in recording.steps):
            return sign
    raise refused(
        "what reaches the scheduler is neither what the network answers nor minus it "
        f"({words_for(recording.steps[0].output)} for {words_for(recording.steps[0].calls[0].answer)})"
    )


def _guidance(recorded: RecordedPipeline, way: Way, most: float) -> Way:
    """The way with its guidance, or with the reason why there is none."""

    def none(why: str) -> Way:
        remedy = "try `guidance` 1, or a denoiser of your own, as docs/families/any.md describes"
        return replace(way, unguided=f"{why}; {remedy}")

    if not recorded.guides:
        return none("the pipeline has no classifier-free guidance")
    if "negative_prompt" not in recorded.takes:
        return none("the pipeline takes no negative prompts")
    runs = [
        recorded.run(TEXTS, without=without, guidance=TRIED, levels=LEVELS, num_steps=len(LEVELS) - 1)
        for without in (OTHERS, OTHERS[::-1])
    ]
    count, steps = len(TEXTS), runs[0].steps
    if any(sum(call.rows for call in step.calls) != 2 * count for step in steps):
        return none("under guidance its network is not given two rows for each prompt")
    one, other = (_together(run, way.context) for run in runs)
    moved = [
        any(gap(one[name][half], other[name][half]).size > most for name in way.context)
        for half in (slice(count), slice(count, None))
    ]
    if moved.count(True) != 1:
        return none("the rows of its negative prompts cannot be told from those of its prompts")
    first = moved[0]
    for rule in RULES.values():
        if all(_follows(step, rule, way, first, most) for step in steps):
            return replace(way, negatives_first=first, rule=rule)
    return none(f"its guidance is none of {', '.join(f'`{name}`' for name in RULES)}")


def _together(recording: Recording, names: Iterable[str]) -> dict[str, Tensor]:
    """Arguments of all calls of the first step, one after another."""
    calls = recording.steps[0].calls
    return {name: torch.cat([call.arguments[name] for call in calls]) for name in names}


def _follows(step: Any, rule: Rule, way: Way, negatives_first: bool, most: float) -> bool:
    """Whether a step's prediction is what a rule makes of the network's answers."""
    answers = torch.cat([call.answer for call in step.calls]).float() * way.sign
    first, second = answers.chunk(2)
    without, with_prompt = (first, second) if negatives_first else (second, first)
    return gap(rule(without, with_prompt, TRIED), step.output.float()).size <= most
