"""The captions of the shapes world and of the moving world that prompts mean."""

from __future__ import annotations

from unirl_env.prompts.moving import DIRECTIONS, MovingCaption, parse
from unirl_env.prompts.shapes import COLOURS, SHAPES, Caption, parse_caption
from unirl_env.types import Prompt

WORDS = ("colour", "shape", "direction")
"""What `metadata` hold of a caption of the moving world."""


def caption_of(prompt: Prompt) -> Caption | None:
    """`metadata["caption"]` where a prompt has one, else its text; None outside the grammar."""
    return parse_caption(_said(prompt))


def require_caption(prompt: Prompt) -> None:
    """Refuse a prompt that means no caption.

    Raises:
        ValueError: Naming what it says.
    """
    if caption_of(prompt) is None:
        raise ValueError(
            "it must be a caption of the shapes world, or have one as `metadata['caption']`, got "
            f"{_said(prompt)[:60]!r}; try 'a red circle left of a blue square'"
        )


def moving_caption_of(prompt: Prompt) -> MovingCaption | None:
    """What its clip must show: of `metadata` where that has all three of it, else of the text.

    The three are `colour`, `shape` and `direction`. None where it is nothing of the moving world.
    """
    said = [prompt.metadata.get(key) for key in WORDS]
    if None in said:
        return parse(_said(prompt))
    colour, shape, direction = (str(word) for word in said)
    if colour not in COLOURS or shape not in SHAPES or direction not in DIRECTIONS:
        return None
    return MovingCaption(colour, shape, direction)


def require_moving_caption(prompt: Prompt) -> None:
    """Refuse a prompt that means no caption of the moving world.

    Raises:
        ValueError: Naming what it says.
    """
    if moving_caption_of(prompt) is None:
        words = {key: prompt.metadata.get(key) for key in WORDS}
        got = repr(_said(prompt)[:60]) if None in words.values() else f"{str(words)[:120]} in `metadata`"
        raise ValueError(
            "it must be a caption of the moving world, or have its `colour`, `shape` and `direction` in "
            f"`metadata`, got {got}; try 'a red circle moves right'"
        )


def _said(prompt: Prompt) -> str:
    caption = prompt.metadata.get("caption")
    return prompt.text if caption is None else str(caption)
