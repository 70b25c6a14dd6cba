"""What every command of the door shares: the environment of other libraries, and how a failure is told."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from unirl_env.command_line import Answered, show_any_text
from unirl_env.errors import UnirlError
from unirl_env.errors.masks import hide
from unirl_env.rewards.secrets import remember_environment
from unirl_env.run.interrupt import EXIT_CODE

MISTAKE = 2

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # its threads and forked workers do not mix
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody was asked
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone, and stops its warning
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # its 5 are too few where much runs
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard looks for TensorFlow, which then speaks
}
"""What other libraries read from the environment; a value that is already there stays."""

CHATTY = (
    "ray.rllib.algorithms.algorithm_config",
    "transformers.tokenization_utils_base",  # tells of every text that is longer than an encoder reads
)
"""Loggers whose warnings are notices to everybody and not news about this run."""


class Lasting:
    """A stream that outlives its reader: what nobody can read any more is dropped.

    A closed terminal (SIGHUP) or the end of a pipe (`| head`) must not cost a run that is about to be saved.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop from now on."""
        with self._reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop from now on."""
        with self._reader():
            self._stream.flush()

    @contextmanager
    def _reader(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            return
        except OSError:
            # Other libraries and the interpreter's own end write there, too.
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


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
    remember_environment()
    _hide_in_logs()
    errors = Console(file=Lasting(sys.stderr), stderr=True)
    try:
        return action(Console(file=Lasting(sys.stdout)))
    except UnirlError as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(hide(str(error)), highlight=False, markup=False, soft_wrap=True)
        return MISTAKE
    except KeyboardInterrupt:
        errors.print("Stopped; nothing was under way that had to be saved.")
        return EXIT_CODE
    except Answered:
        raise
    except SystemExit as error:
        errors.print("[bold red]SystemExit:[/] ", end="")
        errors.print(
            f"A reward, an environment or a model must return or raise, got an attempt to end the process "
            f"({error.code!r}); try raising an Exception there.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return MISTAKE
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
