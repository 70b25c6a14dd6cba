"""How a request's pictures reach an engine that has a picture processor of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from unirl_env.errors import EngineError
from unirl_env.media.pixels import load_picture, png_uri, to_pil
from unirl_env.rollouts.engines.base import Request


class Pictures:
    """Hands over pictures as they are, and the context with a single mark in the place of each.

    The engine's processor then repeats the marks as often as a picture has tokens; `check` holds what it read
    against the policy's own reading.

    Args:
        pretrained: The hub id or directory of the model.
        revision: Branch, tag or commit of the hub repository.
        max_images: The most pictures of one prompt; 0 for models that read text alone.
        min_pixels: Of a picture after resizing; None is the checkpoint's own.
        max_pixels: Of a picture after resizing; None is the checkpoint's own.
    """

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        *,
        max_images: int = 0,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ):
        self.pretrained, self.revision, self.max_images = pretrained, revision, max_images
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self.limits = {name: value for name, value in limits.items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """What vLLM must know from the start; nothing for models that read text alone."""
        if not self.max_images:
            return {}
        return {
            "limit_mm_per_prompt": {"image": self.max_images, "video": 0},
            **({"mm_processor_kwargs": self.limits} if self.limits else {}),
        }

    def accept(self, request: Request) -> None:
        """Refuse more pictures than the engine has room for.

        Raises:
            EngineError: Naming the setting.
        """
        count = len(request.prompt.images)
        if count > self.max_images:
            raise EngineError(
                f"A prompt must have at most {self.max_images} pictures for this engine, got {count} in "
                f"{request.prompt.id[:60]!r}; try an engine with `max_images={count}`."
            )

    def shrink(self, request: Request) -> list[int]:
        """The context with one mark for each picture.

        Raises:
            EngineError: If the prompt has other marks than pictures.
        """
        if not request.prompt.images:
            return list(request.tokens)
        # Marks that the policy said itself are text like any other.
        prompt, said = _part(request)
        kept = [
            token
            for place, token in enumerate(prompt)
            if token != self._mark or place == 0 or prompt[place - 1] != self._mark
        ]
        found = kept.count(self._mark)
        if found != len(request.prompt.images):
            raise EngineError(
                f"A prompt must have one place for each of its {len(request.prompt.images)} pictures, got "
                f"{found} in {request.prompt.id[:60]!r}; try a chat template that separates pictures."
            )
        return [*kept, *said]

    def check(self, request: Request, read: Sequence[int]) -> None:
        """Hold the context as the engine read it against the policy's.

        Raises:
            EngineError: If they differ.
        """
        if tuple(read) != request.tokens:
            raise EngineError(
                f"The engine must read {len(request.tokens)} tokens for {request.prompt.id[:60]!r}, got "
                f"{len(read)}: its processor resizes pictures otherwise; try `min_pixels` and `max_pixels` "
                "as the policy has them."
            )

    def as_pil(self, request: Request) -> list[Any]:
        """The pictures for a processor in this process."""
        return [to_pil(load_picture(source)) for source in request.prompt.images]

    def as_uris(self, request: Request) -> list[str]:
        """The pictures for a server, as `data:` URIs of PNG, which loses nothing."""
        return [png_uri(load_picture(source)) for source in request.prompt.images]

    @cached_property
    def _mark(self) -> int:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.pretrained, revision=self.revision)
        mark = getattr(config, "image_token_id", None)
        if mark is None:
            raise EngineError(
                f"{self.pretrained!r} must be a model with a token for pictures, got none in its config; try "
                "prompts without pictures."
            )
        return mark


def _part(request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt, and what follows it so far."""
    border = len(request.tokens) - request.position
    return request.tokens[:border], request.tokens[border:]
