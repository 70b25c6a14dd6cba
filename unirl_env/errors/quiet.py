"""What model libraries say while they load and read, kept to what a person can use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the bars of diffusers and transformers while they load or write: half a dozen, over in a second.

    Bars of downloads stay, which may take hours, and whatever was set before is set again afterwards.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    with ExitStack() as after:
        downloads = not are_progress_bars_disabled()
        # Whoever loads by diffusers has imported it.
        libraries: list[Any] = [of_transformers, sys.modules.get("diffusers.utils.logging")]
        for library in libraries:
            if library is not None and library.is_progress_bar_enabled():
                library.disable_progress_bar()
                after.callback(library.enable_progress_bar)
        if downloads and are_progress_bars_disabled():
            enable_progress_bars()  # Transformers counts them among its own.
        yield


@contextmanager
def unheard(loggers: tuple[str, ...], words: tuple[str, ...]) -> Iterator[list[str]]:
    """Keep back what these loggers say in between with one of these words in it.

    Yields:
        A list in which the messages land.
    """
    said: list[str] = []

    def lets_pass(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        kept = any(word in message for word in words)
        if kept:
            said.append(message)
        return not kept

    for name in loggers:
        logging.getLogger(name).addFilter(lets_pass)
    try:
        yield said
    finally:
        for name in loggers:
            logging.getLogger(name).removeFilter(lets_pass)
