"""What the checks of an agent found: a `Check` each, and the `Certificate` of all, a table in print."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PASSED, FAILED, DECLARED, IDLE = "passed", "failed", "declared", "does not apply"
STYLES = {PASSED: "green", FAILED: "bold red", DECLARED: "yellow", IDLE: "dim"}
WIDTH = 132


@dataclass(frozen=True)
class Check:
    """One property of an agent, measured.

    Attributes:
        name: What was looked at.
        kind: Where: `latents` or `tokens`.
        verdict: `passed`; `failed`; `declared`, a bias that the agent says it has; or `does not apply`.
        figure: What was measured, in units that `words` name; NaN where nothing could be.
        bound: What the figure was held against, or its interval, in words and numbers.
        words: What it means, and the remedy where it failed.
        interval: The interval of the figure, where it is a mean over keyed batches.
        error: Of a check that broke off, what was raised.
    """

    name: str
    kind: str
    verdict: str
    figure: float = math.nan
    bound: str = ""
    words: str = ""
    interval: tuple[float, float] | None = None
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the agent is refused for it."""
        return self.verdict == FAILED

    def row(self) -> dict[str, Any]:
        """The check as JSON; null stands for a number that is none."""
        figure = self.figure if math.isfinite(self.figure) else None
        interval = None if self.interval is None else list(self.interval)
        return {**vars(self), "figure": figure, "interval": interval}


@dataclass(frozen=True)
class Certificate:
    """The verdict on an agent; `print` shows it as a table.

    Attributes:
        agent: Its name.
        checks: One for each property and kind of phase.
        seconds: What they took.
    """

    agent: str
    checks: tuple[Check, ...]
    seconds: float = math.nan

    @property
    def passed(self) -> bool:
        """Whether something was checked, and nothing failed; what is declared does not fail."""
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.failed)

    def __getitem__(self, name: str) -> tuple[Check, ...]:
        """The checks of one name, one for each kind of phase."""
        return tuple(check for check in self.checks if check.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """All checks as JSON."""
        return [check.row() for check in self.checks]

    def __str__(self) -> str:
        stream = io.StringIO()
        # Whoever prints it may write to a file: no colours in the text itself.
        Console(file=stream, width=WIDTH, color_system=None).print(self.__rich__())
        return stream.getvalue().rstrip()

    def __rich__(self) -> Table:
        count = len(self.failures)
        verdict = "passed" if self.passed else f"refused: {count} of {len(self.checks)} checks failed"
        seconds = "" if math.isnan(self.seconds) else f" ({self.seconds:.0f} s)"
        table = Table(title=f"{self.agent}: {verdict}{seconds}", title_justify="left", show_lines=False)
        for name, options in (
            ("check", {"no_wrap": True}),
            ("of", {"no_wrap": True}),
            ("figure", {"justify": "right", "no_wrap": True}),
            ("bound or interval", {"max_width": 24}),
            ("verdict", {"no_wrap": True}),
            ("", {"ratio": 1}),
        ):
            table.add_column(name, **options)
        for check in self.checks:
            table.add_row(
                *(Text(check.name), Text(check.kind), Text(_number(check.figure)), Text(check.bound)),
                Text(check.verdict, style=STYLES.get(check.verdict, "")),
                Text(check.words),
            )
        return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
