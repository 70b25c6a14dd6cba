"""The referee: the same stored batches through any losses, ours or another library's, and where they differ.

A loss is a path `package.module:function`, with options behind a question mark: `...:grpo_loss?clip_low=0.2`.
It is given what its arguments ask for by name, and returns a scalar, alone or first in a tuple. Batches are
`[B, S]`: tokens, and steps of latents, whose log-probs are means over D elements; with the option `flat=true`
they come as their unmasked entries `[N]`, one after another.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from unirl_env.bench.bench_settings import read_value
from unirl_env.errors import ConfigError
from unirl_env.registry import Registry
from unirl_env.settings.fields import Settings, setting

STORED = Path(__file__).parent / "referee.safetensors"
NAMES = {
    "log_prob": ("log_prob", "log_probs", "logprobs", "new_log_prob", "per_token_logps", "logp"),
    "old_log_prob": ("old_log_prob", "old_log_probs", "old_logprobs", "old_per_token_logps", "old_logp"),
    "advantages": ("advantages", "advantage", "adv"),
    "mask": ("mask", "response_mask", "completion_mask", "loss_mask", "eos_mask"),
    "mean": ("mean", "new_mean"),
    "old_mean": ("old_mean",),
    "std": ("std",),
    "episode": ("episode", "episodes", "sequence"),
    "action": ("action", "actions"),
}
"""What a batch holds, and what losses call it. With means and actions, gradients are those of the means."""
LOSSES = Registry("loss")


@dataclass
class RefereeSettings(Settings):
    """What `bench referee` is told."""

    losses: list[str] = setting([])
    """Paths of losses; the first is what the others are held against."""
    batches: str | None = setting(None)
    """A safetensors file with tensors `<batch>/<name>`; null takes the batches that ship."""
    tolerance: float = setting(1e-6, above=0)
    """The relative difference up to which two are the same."""

    def check(self, prefix: str = "") -> None:
        """Refuse to judge nothing, too."""
        super().check(prefix)
        if not self.losses:
            raise ConfigError(
                f"`{prefix}losses` must name a loss at least, got none; try "
                "losses=[unirl_env.functional:grpo_loss?clip_low=0.2]."
            )


@dataclass(frozen=True)
class Verdict:
    """What a loss says of a batch.

    Attributes:
        loss: Its path.
        batch: The batch's name.
        value: The loss.
        gradient: Of the new log-probs `[B, S]`, or of the means `[B, S, D]` where the batch has these.
        lacks: What it needs and the batch has not: the loss is of another kind.
        error: What it raised.
    """

    loss: str
    batch: str
    value: float | None = None
    gradient: Tensor | None = None
    lacks: str = ""
    error: str = ""


def batches(path: str | None = None) -> dict[str, dict[str, Tensor]]:
    """Stored batches by name.

    Raises:
        ConfigError: If the file is none, or a batch lacks log-probs.
    """
    from safetensors.torch import load_file

    place = Path(path).expanduser() if path else STORED
    try:
        held = load_file(str(place))
    except Exception as error:
        raise ConfigError(f"`batches` must be a safetensors file, got {place}: {error}.") from error
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in held.items():
        batch, slash, part = name.rpartition("/")
        if not slash or part not in NAMES:
            raise ConfigError(
                f"`batches` must hold <batch>/<name> with names of {', '.join(NAMES)}, got {name}."
            )
        found.setdefault(batch, {})[part] = tensor.bool() if part == "mask" else tensor
    for batch, parts in found.items():
        if lacks := {"log_prob", "old_log_prob", "advantages"} - parts.keys():
            raise ConfigError(f"The batch {batch} of {place} must have `{sorted(lacks)[0]}`, got none.")
    return found


def judged(loss: str, name: str, batch: Mapping[str, Tensor]) -> Verdict:
    """What a loss says of a batch; what it raises is its answer."""
    path, _, query = loss.partition("?")
    compute = LOSSES.get(path)
    options = {key: read_value(key, text) for key, text in parse_qsl(query)}
    leaf = "mean" if "action" in batch else "log_prob"
    given = {key: tensor.clone() for key, tensor in batch.items()}
    given[leaf].requires_grad_(True)
    try:
        seen = {**given, "log_prob": _log_prob(given)} if leaf == "mean" else given
        seen = _flat(seen) if options.pop("flat", False) else seen
        arguments, lacks = _arguments(compute, seen, options)
        if lacks:
            return Verdict(loss, name, lacks=f"needs {', '.join(lacks)}")
        found = compute(**arguments)
        value = found[0] if isinstance(found, tuple | list) else found
        value.backward()
    except Exception as error:
        return Verdict(loss, name, error=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    gradient = given[leaf].grad
    return Verdict(loss, name, value.item(), torch.zeros_like(given[leaf]) if gradient is None else gradient)


def referee(settings: RefereeSettings, console: Console) -> list[dict[str, Any]]:
    """Judge, print the table, and return its rows."""
    rows = []
    for name, batch in batches(settings.batches).items():
        verdicts = [judged(loss, name, batch) for loss in settings.losses]
        rows += [_row(one, verdicts[0], settings.tolerance) for one in verdicts]
    console.print(_table(rows, settings.losses))
    return rows


def _arguments(
    compute: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What a loss asks for, under the names that it has for it; and what it asks for and is not there."""
    parameters = inspect.signature(compute).parameters
    found = dict(options)
    for part, names in NAMES.items():
        for name in names:
            if name in parameters and name not in found and part in batch:
                found[name] = batch[part]
    lacks = [
        name
        for name, one in parameters.items()
        if name not in found
        and one.default is one.empty
        and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    return found, lacks


def _flat(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch as the `[N]` of its unmasked entries, for losses that take these."""
    mask = batch.get("mask", torch.ones_like(batch["advantages"], dtype=torch.bool))
    return {name: tensor[mask] for name, tensor in batch.items() if name != "mask"}


def _log_prob(batch: Mapping[str, Tensor]) -> Tensor:
    """`[B, S]`: the log-probs of the actions as a function of the means, in the values that are stored."""
    std = batch["std"][..., None]
    found = -0.5 * ((batch["action"] - batch["mean"]) / std).square().mean(-1)
    return found + (batch["log_prob"] - found).detach()


def _row(one: Verdict, first: Verdict, tolerance: float) -> dict[str, Any]:
    row: dict[str, Any] = {"batch": one.batch, "loss": one.loss, "value": one.value, "error": one.error}
    row["verdict"] = one.lacks or one.error or "-"
    if one.gradient is None or first.gradient is None or first.value is None or one.value is None:
        return row
    size = max(abs(first.value), 1e-12)
    row["loss_difference"] = abs(one.value - first.value) / size
    if one.gradient.shape != first.gradient.shape:
        return row | {"verdict": "another gradient"}
    mine, other = one.gradient.double().flatten(), first.gradient.double().flatten()
    norm = float(other.norm())
    row["gradient_difference"] = float((mine - other).norm()) / max(norm, 1e-12)
    row["cosine"] = float(mine @ other) / max(float(mine.norm()) * norm, 1e-30)
    near = max(row["loss_difference"], row["gradient_difference"]) <= tolerance
    alike = row["gradient_difference"] <= tolerance
    row["verdict"] = "the same" if near else "the same gradient" if alike else "different"
    return row


def _table(rows: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> Table:
    short = {loss: loss.partition("?")[0].rpartition(":")[2].rpartition(".")[2] for loss in losses}
    short = {loss: name + loss[len(loss.partition("?")[0]) :] for loss, name in short.items()}
    names = short if len(set(short.values())) == len(short) else {loss: loss for loss in losses}
    table = Table(title=f"Held against {escape(losses[0])}", title_justify="left")
    for name in ("batch", "loss"):
        table.add_column(name, overflow="fold")
    for name in ("value", "loss differs by", "gradient differs by", "cosine", "verdict"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        numbers = [row.get(name) for name in ("value", "loss_difference", "gradient_difference", "cosine")]
        shown = ["-" if number is None else f"{number:.4g}" for number in numbers]
        first = row["loss"] == losses[0]
        batch = escape(row["batch"]) if first else ""
        table.add_row(batch, escape(names[row["loss"]]), *shown, escape(row["verdict"]))
        if row["loss"] == losses[-1]:
            table.add_section()
    return table
