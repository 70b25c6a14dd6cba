"""What all commands have in common: their parser, their version, and streams that show any text."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from typing import Any, NoReturn

from unirl_env import __version__
from unirl_env.errors import ConfigError

__all__ = ["Answered", "Parser", "positive", "show_any_text"]

VERSION = f"unirl-env {__version__} (Python {'.'.join(map(str, sys.version_info[:3]))})"


class Answered(SystemExit):
    """The command line asked for help or the version, and has been told."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours: one message that says what to do, and exit code 2."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.add_argument("--version", action="version", version=VERSION)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: With argparse's words, and the nearest option.
        """
        raise ConfigError(f"{self._said(message)}; try `{self.prog} --help`.")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after `--help` or `--version`.

        Raises:
            Answered: With the exit code.
        """
        raise Answered(status)

    def _said(self, message: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        strange = message.partition("unrecognized arguments: ")[2].split()
        if not strange:
            return f"The command line must be one that {self.prog} knows, got: {message}"
        name = strange[0].partition("=")[0]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        if not near and name.startswith("-") and any(one.dest == "overrides" for one in self._actions):
            plain = name.lstrip("-").replace("-", "_")
            hint = f": settings are written without dashes, as `{plain}=...`"
        return f"`{name}` must be an option, and is none{hint}"


def show_any_text() -> None:
    """Let no letter that a terminal of an old locale has not end a run: it is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="backslashreplace")


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return value
