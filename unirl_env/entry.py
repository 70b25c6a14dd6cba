"""What every command of the door shares: the environment of other libraries, and how a failure is told."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable

from rich.console import Console

from unirl_env.command_line import show_any_text
from unirl_env.errors import UnirlError
from unirl_env.interrupt import EXIT_CODE

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
    # They tell of every text that is longer than an encoder reads.
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.tokenization_utils_base",
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
    show_any_text()
    errors = Console(stderr=True)
    try:
        return action(Console())
    except UnirlError as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return MISTAKE
    except KeyboardInterrupt:
        errors.print("Stopped; nothing was under way that had to be saved.")
        return EXIT_CODE
    except Exception:
        traceback.print_exc()
        return 1
