"""What every command of the door shares: the environment of other libraries, and how a failure is told."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console

from unirl_env.errors import UnirlError
from unirl_env.interrupt import EXIT_CODE
from unirl_env.masks import hide
from unirl_env.rewards.secrets import remember_environment

__all__ = ["MISTAKE", "guarded"]

MISTAKE = 2

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # its threads and forked workers do not mix
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody was asked
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone, and stops its warning
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard looks for TensorFlow, which then speaks
}
"""What other libraries read from the environment; a value that is already there stays."""

CHATTY = (
    "ray.rllib.algorithms.algorithm_config",
    "transformers.tokenization_utils_base",  # tells of every text that is longer than an encoder reads
)
"""Loggers whose warnings are notices to everybody and not news about this run."""


def guarded(action: Callable[[Console], int]) -> int:
    """Do `action` and tell its end as an exit code.

    An error of this library is one message and code 2: it says itself what to do. An error that nobody
    foresaw keeps its traceback.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    remember_environment()
    _hide_in_logs()
    errors = Console(stderr=True)
    try:
        return action(Console())
    except UnirlError as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(hide(str(error)), highlight=False, markup=False, soft_wrap=True)
        return MISTAKE
    except KeyboardInterrupt:
        errors.print("Stopped; nothing was under way that had to be saved.")
        return EXIT_CODE
    except Exception:
        sys.stderr.write(hide(traceback.format_exc()))
        return 1


def _hide_in_logs() -> None:
    """Let no record of any library carry a secret: some log the addresses that they call."""
    made = logging.getLogRecordFactory()
    if getattr(made, "hides", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        entry = made(*arguments, **named)
        with suppress(Exception):  # A record that cannot be formatted is told by its handler.
            said = entry.getMessage()
            hidden = hide(said)
            if hidden != said:
                entry.msg, entry.args = hidden, ()
        return entry

    record.hides = True
    logging.setLogRecordFactory(record)
