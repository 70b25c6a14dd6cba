"""The captions of the shapes world that prompts mean."""

from __future__ import annotations

from unirl_env.prompts.shapes import Caption, parse_caption
from unirl_env.types import Prompt


def caption_of(prompt: Prompt) -> Caption | None:
    """`metadata["caption"]` where a prompt has one, else its text; None outside the grammar."""
    return parse_caption(str(prompt.metadata.get("caption", prompt.text)))


def require_caption(prompt: Prompt) -> None:
    """Refuse a prompt that means no caption.

    Raises:
        ValueError: Naming what it says.
    """
    if caption_of(prompt) is None:
        said = str(prompt.metadata.get("caption", prompt.text))
        raise ValueError(
            "it must be a caption of the shapes world, or have one as `metadata['caption']`, got "
            f"{said[:60]!r}; try 'a red circle left of a blue square'"
        )
