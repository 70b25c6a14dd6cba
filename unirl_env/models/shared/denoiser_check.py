"""A denoiser held against its checkpoint's own pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from unirl_env.errors import ConfigError
from unirl_env.media.pixels import load_picture, to_pil
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.judging import PROMPTS, DenoiserReport, judge
from unirl_env.models.shared.listening import open_listening
from unirl_env.models.shared.recording import RecordedPipeline
from unirl_env.types import Prompt

NEEDED = ("pretrained", "height", "width", "dtype", "device")
"""What a denoiser must say of itself beside its contract."""
PICTURE = torch.linspace(0, 1, 3 * 48 * 32).view(3, 48, 32)
"""What is changed, where pictures are."""


def check_denoiser(
    denoiser: Denoiser | str,
    *,
    num_steps: Sequence[int] = (2, 3),
    guidance: float = 3.5,
    prompts: Sequence[Prompt] = PROMPTS,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> DenoiserReport:
    """Compare a denoiser with the pipeline of its checkpoint, which runs its own `__call__`.

    The pipeline's network is one without weights that answers with random numbers, so that the check costs
    what the text encoders and the decoder cost. Compared are the shape of latents, the initial noise, the
    schedule, every argument of the network at every step, what reaches the scheduler (the guided velocity),
    and the decoded picture.

    Args:
        denoiser: A denoiser of a pipeline of diffusers; or a hub id or a directory, whose denoiser is made as
            `denoiser="pipeline"` makes it, for a picture that is not square unless `height` or `width` is
            given.
        num_steps: The numbers of steps to compare.
        guidance: Compared besides 1, where the pipeline has classifier-free guidance.
        prompts: Two or more, of unequal length; with a picture of our own each, where pictures are changed.
        call: Arguments of the pipeline's `__call__` that say what the denoiser does. Its options of the same
            names, `embedded_guidance` and `arguments` are said anyway.
        **options: Of the denoiser, where it is made here.

    Returns:
        The largest differences; `print` it.

    Raises:
        ModelNotFound: If the model cannot be loaded.
        ConfigError: If it is no denoiser of a pipeline of diffusers.
        ContractError: If they differ; names what, by how much, and where.
    """
    if isinstance(denoiser, str):
        denoiser = _made(denoiser, options)
    elif options:
        raise ConfigError(
            f"`options` are for a denoiser that is made here, got {sorted(options)} beside one."
        )
    subject: Any = denoiser
    missing = [name for name in NEEDED if not hasattr(subject, name)]
    if missing:
        raise ConfigError(
            f"`denoiser` must be of a pipeline of diffusers, got a {type(denoiser).__name__} without "
            f"{missing}; try a subclass of `OfDiffusers`, or `check_vector_env` on its environment."
        )
    if getattr(subject, "leads", False):
        raise ConfigError(
            f"`denoiser` must step all of its pipeline's latent, got a {type(denoiser).__name__}, whose "
            "picture's part of it stands in the context; try comparing its clips with the pipeline's, as the "
            "library's tests do."
        )
    pipeline, trained = open_listening(
        subject.pretrained,
        revision=getattr(subject, "revision", None),
        dtype=subject.dtype,
        device=torch.device(subject.device),
    )
    if getattr(pipeline, "guider", None) is not None:
        raise ConfigError(
            f"`denoiser` must be of a pipeline whose guidance is an argument of its calls, got a "
            f"{type(denoiser).__name__} of a {type(pipeline).__name__}, which has a guider; try comparing "
            "its clips with that guider's scale set, as the library's tests do."
        )
    told = {**as_the_pipeline_has_it(subject, pipeline), **(call or {})}
    if getattr(subject, "tiling", False):
        pipeline.vae.enable_tiling()
    asked = inspect.signature(type(pipeline).__call__).parameters.get("image")
    if hasattr(subject, "max_images") or (asked is not None and asked.default is asked.empty):
        prompts = [replace(prompt, images=(PICTURE,)) for prompt in prompts]
        told["image"] = to_pil(load_picture(PICTURE))
    recorded = RecordedPipeline(pipeline, trained, told)
    return judge(denoiser, recorded, num_steps=num_steps, guidance=guidance, prompts=prompts)


def as_the_pipeline_has_it(denoiser: Any, pipeline: Any) -> dict[str, Any]:
    """The options of a denoiser that its pipeline's `__call__` takes as arguments, by the same names."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    told = {name: getattr(denoiser, name, None) for name in takes}
    told = {name: value for name, value in told.items() if isinstance(value, bool | int | float | str)}
    embedded = getattr(denoiser, "embedded_guidance", None)
    if embedded is not None and "guidance_scale" in takes:
        told["guidance_scale"] = embedded
    return {**told, **getattr(denoiser, "arguments", {})}


def _made(pretrained: str, options: Mapping[str, Any]) -> Any:
    """The denoiser of a checkpoint, for a picture that is not square unless a size is asked for."""
    from unirl_env.models.any_pipeline import any_pipeline

    made: Any = any_pipeline(pretrained, **options)
    if "height" in options or "width" in options or made.height != made.width:
        return made
    for width in (made.width * 3 // 4, made.width // 2, made.width * 3 // 2):
        try:
            return made.sized(made.height, width)
        except ConfigError:  # a size that the model does not draw
            continue
    return made
