"""The door of the reward service: `python -m unirl_env.service --config my_service.yaml port=9000`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unirl_env.command_line import show_any_text
from unirl_env.errors import MissingExtra, ScorerError, UnirlError
from unirl_env.rewards.spec import build_scorer
from unirl_env.service.service_settings import check_door, command_line, settings_of
from unirl_env.types import Scorer

PROGRAM = "python -m unirl_env.service"
MISTAKE = 2
INTERRUPTED = 130
SAMPLES = {
    "image": '"image_png": "\'"$(base64 -w0 picture.png)"\'"',
    "pictures": '"pictures_png": ["\'"$(base64 -w0 picture.png)"\'"]',
    "video": '"video_png": ["\'"$(base64 -w0 frame.png)"\'"]',
    "text": '"text": "the answer is 4"',
}
"""What a call by curl shows for a field of a sample; the others go as tensors only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; the exit code is 0 after SIGTERM or Ctrl-C, 2 for a mistake that is explained."""
    show_any_text()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    errors = Console(stderr=True)
    try:
        return _serve(command_line(PROGRAM, "Serve rewards over HTTP").parse_intermixed_args(argv), Console())
    except UnirlError as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return MISTAKE
    except KeyboardInterrupt:
        errors.print("Stopped before the service was ready.")
        return INTERRUPTED


def _serve(arguments: argparse.Namespace, console: Console) -> int:
    try:
        from unirl_env.service.app import create_app
        from unirl_env.service.server import Server, bound_socket, serve
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "fastapi", "serve") from error
    settings, token = settings_of(arguments.config, arguments.overrides, arguments.reward)
    check_door(settings, token)
    opened = bound_socket(settings.host, settings.port)
    app = create_app(settings, token=token, scorers=_built(settings.rewards, console))
    described = app.state.service.described()["rewards"]
    host, port = opened.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ready() -> None:
        console.print(_table(described))
        console.print(f"Ready at {address}", highlight=False, markup=False, soft_wrap=True)
        for one in described:
            if set(one["needs"]) <= set(SAMPLES):
                words = _curl(address, one, f"${settings.token_env}" if token else "")
                console.print(words, highlight=False, markup=False, soft_wrap=True)
                break

    server = Server(
        app, settings.drain_seconds, lambda text: console.print(text, highlight=False, markup=False), ready
    )
    return serve(server, opened)


def _built(rewards: Mapping[str, Any], console: Console) -> dict[str, Scorer]:
    built = {}
    for count, (name, spec) in enumerate(rewards.items(), 1):
        console.print(f"[{count}/{len(rewards)}] loading {name} ...", highlight=False, markup=False)
        began = time.monotonic()
        try:
            built[name] = build_scorer(spec)
        except UnirlError:
            raise
        except Exception as error:
            traceback.print_exc()  # of somebody's own scorer, who wants to see the line
            raise ScorerError(
                f"Reward `{name}` must be built, got {type(error).__name__}: {error}; its traceback is above."
            ) from error
        seconds = time.monotonic() - began
        console.print(f"[{count}/{len(rewards)}] {name}: {seconds:.1f} s", highlight=False, markup=False)
    return built


def _table(described: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("reward", "scorer", "looks at", "requests are merged")
    for one in described:
        looks = ", ".join(one["needs"]) or "it does not say"
        table.add_row(one["name"], one["scorer"], looks, "yes" if one["pointwise"] else "no")
    return table


def _curl(address: str, reward: Mapping[str, Any], token: str) -> str:
    fields = [SAMPLES[need] for need in reward["needs"] if need in SAMPLES] or [SAMPLES["text"]]
    item = f'{{"prompt": {{"text": "a red circle"}}, "sample": {{{", ".join(fields)}}}}}'
    bearer = f'-H "Authorization: Bearer {token}" ' if token else ""
    return (
        f"curl {address}/score {bearer}-H 'Content-Type: application/json' "
        f'-d \'{{"reward": "{reward["name"]}", "items": [{item}]}}\''
    )


if __name__ == "__main__":
    sys.exit(main())
