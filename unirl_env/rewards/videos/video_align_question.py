"""The question that VideoReward answers: a file of the user's, from where the checkpoint is published."""

from __future__ import annotations

import os

from unirl_env.errors import ConfigError
from unirl_env.media.files import read_regular

MARKS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
"""Tokens at which the rewards are read, in this order, which the base model's tokenizer has not."""
PICTURES = ("<|video_pad|>", "<|image_pad|>")
"""Tokens of the base model for which frames stand in."""
PLACE = "{text_prompt}"
"""Where the prompt goes."""
MOST_BYTES = 2**16
SOURCE = (
    "try a file that holds DETAILED_PROMPT_WITH_SPECIAL_TOKEN of prompt_template.py in "
    "https://github.com/KwaiVGI/VideoAlign, to the letter"
)


def read_question(path: str | os.PathLike[str] | None) -> str:
    """The text of a file, with each of `MARKS` and `PLACE` in it once.

    Raises:
        ConfigError: If there is no such file or text; it says where to get them.
    """
    try:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError("there is no default")
        # Python's own sources have these ends of lines whatever the file has.
        text = read_regular(os.path.expanduser(path), MOST_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        got, said = repr(path), getattr(error, "strerror", None) or str(error)
        got = got if len(got) <= 120 else f"{got[:120]}..."
        raise ConfigError(
            f"`question` must be the path of a text file with VideoReward's question, got {got}: {said}; "
            f"{SOURCE}."
        ) from error
    counts = {word: text.count(word) for word in (*MARKS, PLACE, *PICTURES)}
    if wrong := {word: count for word, count in counts.items() if count != (word not in PICTURES)}:
        raise ConfigError(
            f"`question` must hold each of {[*MARKS, PLACE]} once and none of {list(PICTURES)}, got {wrong} "
            f"times in {os.fspath(path)!r}; {SOURCE}."
        )
    return text
