"""What is watched while a policy learns: scores, the variety of samples, and exploited rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.monitor.alarm import HackingAlarm
    from unirl_env.monitor.callback import HackingCallback

__all__ = ["HackingAlarm", "HackingCallback"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
