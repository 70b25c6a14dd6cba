"""After an error: what is finished is saved, and a person learns how to go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

from unirl_env.errors.masks import hide
from unirl_env.run.failure import explained
from unirl_env.run.loop import Loop
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.summary import resume_command

__all__ = ["close", "rescue"]


def rescue(loop: Loop, console: Console, error: BaseException) -> None:
    """Save what is finished, and say where the run stands and how it goes on."""
    folder, total = loop.folder, loop.cfg.iterations
    try:
        loop.rescue()
    except BaseException as second:
        cause = explained(second, folder.path)
        said = escape(hide(f"{type(cause).__name__}: {cause}"))
        console.print(f"[yellow]Not saved:[/] {said}", highlight=False, soft_wrap=True)
    if not folder.begun:
        console.print(
            f"[bold red]Stopped[/] ({type(error).__name__}) before anything was finished; when the cause is "
            f"mended, the same command begins again.",
            highlight=False,
            soft_wrap=True,
        )
        return
    if loop.finished == total:
        where = f"All {total} iterations are finished"
    else:
        where = f"Stopped in iteration {loop.finished + 1} of {total}"
    found, _ = checkpoints.newest(folder.checkpoints)
    if found is None:
        saved = "there is no checkpoint yet, and the run will begin again"
    elif found.iteration == loop.finished:
        saved = f"iteration {found.iteration} is saved"
    else:
        saved = (
            f"the newest checkpoint is that of iteration {found.iteration}, and "
            f"{loop.finished - found.iteration} iterations will be done again, to the same numbers"
        )
    console.print(
        f"[bold red]{where}[/] ({type(error).__name__}); {saved}. When the cause is mended, continue with\n"
        f"  [bold]{escape(resume_command(folder))}[/]",
        highlight=False,
        soft_wrap=True,
    )


def close(*actions: Callable[[], Any], failed: BaseException | None) -> None:
    """Close what is open; after an error, one that follows from it must not take its place."""
    for action in actions:
        try:
            action()
        except Exception:
            if failed is None:
                raise
