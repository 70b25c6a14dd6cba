"""From settings to a finished run: find the folder, build the parts, restore, train, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from unirl_env import checkpoint as checkpoints
from unirl_env import provenance
from unirl_env.checkpoint import Checkpoint
from unirl_env.comparison import Evaluator
from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError
from unirl_env.interrupt import EXIT_CODE, Interrupt
from unirl_env.logbook import Logbook
from unirl_env.loop import ENDED_BY_ALARM, Loop
from unirl_env.preflight import Prompts, preflight
from unirl_env.progress import RunProgress, waiting
from unirl_env.rewards import for_mode
from unirl_env.run_folder import RunFolder, free_name, locate
from unirl_env.settings import differences, read_yaml, shown, to_yaml
from unirl_env.summary import print_summary, resume_command
from unirl_env.trust import signed

__all__ = ["Parts", "build_parts", "launch", "stop"]


@dataclass(frozen=True)
class Parts:
    """What a run is made of, besides its settings; `notes` are said at its start."""

    agent: Any
    heldout: Any = None
    sources: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a run goes on: its folder, and the checkpoint to start from, if any."""

    folder: RunFolder
    checkpoint: Checkpoint | None
    fresh: bool

    @property
    def start(self) -> int:
        return self.checkpoint.iteration if self.checkpoint else 0


def launch(
    cfg: RunConfig,
    console: Console,
    command: Sequence[str] = (),
    build: Callable[[RunConfig], Parts] | None = None,
) -> int:
    """Do one run, fresh or continued.

    Args:
        cfg: The settings; with `resume`, those of the run that is continued.
        console: Where a person reads.
        command: How this process was started, for the record.
        build: What makes the parts; tests put in small ones.

    Returns:
        The exit code: 0, 130 after an interrupt, or 3 where an alarm ended the run.

    Raises:
        UnirlError: If the settings, the machine or the folder do not allow the run.
    """
    shown(cfg)  # From now on, no message and no file repeats its secrets.
    prompts = preflight(cfg)
    place = find_place(cfg, console)
    cfg = replace(cfg, name=place.folder.path.name)
    if place.fresh:
        place.folder.create()
    lock = place.folder.lock()
    try:
        return _run(cfg, place, prompts, console, command, build or partial(build_parts, prompts=prompts))
    except BaseException:
        traces = ("metrics.jsonl", "evaluation.jsonl", "checkpoints")
        if place.fresh and not any((place.folder.path / name).exists() for name in traces):
            # Nothing has happened yet: a mistyped model name must not leave an empty run behind.
            shutil.rmtree(place.folder.path, ignore_errors=True)
        raise
    finally:
        lock.close()


def find_place(cfg: RunConfig, console: Console) -> Place:
    """Which folder the run takes and which checkpoint it starts from.

    Raises:
        ConfigError: If the settings are not those of the run that is to be continued.
        CheckpointError: If there is nothing to continue, or the named checkpoint is damaged.
    """
    root = Path(cfg.logging.folder)
    if cfg.resume is None:
        name = free_name(root, cfg.name)
        if name != cfg.name:
            console.print(
                f"{root / cfg.name} holds a run already; this one is called {name}. "
                f"(`resume=auto` would continue the other one.)",
                highlight=False,
            )
        return Place(RunFolder(root / name), None, fresh=True)
    chosen = None
    if cfg.resume == "auto":
        folder = RunFolder(root / cfg.name)
        if not folder.config.is_file():
            console.print(f"{folder.path} holds no run yet; beginning one.", highlight=False)
            return Place(folder, None, fresh=True)
    else:
        folder, chosen = locate(cfg.resume)
    _refuse_other_settings(folder, cfg)
    if chosen is not None:
        checkpoints.check(chosen)
        return Place(folder, checkpoints.describe(chosen), fresh=False)
    found, warnings = checkpoints.newest(folder.checkpoints)
    for warning in warnings:
        console.print(f"[yellow]Passed over:[/] {warning}", highlight=False)
    return Place(folder, found, fresh=False)


def build_parts(cfg: RunConfig, prompts: Prompts | None = None) -> Parts:
    """The agent and the held-out scorer that the settings describe; `prompts` are read by the model first."""
    from unirl_env import build

    heldout = cfg.reward.heldout
    if heldout is not None:
        heldout = build.build_scorer(for_mode(heldout, cfg.mode, "reward.heldout"))
    # Before anything large is loaded: a branch that has moved ends a continued run.
    known = {name: provenance.model_fingerprint(*each) for name, each in build.model_sources(cfg).items()}
    if prompts is not None:
        build.check_prompts(cfg, chain(prompts.train, prompts.heldout or ()))
    agent = build.build_agent(cfg)
    return Parts(agent, heldout, known, build.chosen(cfg, agent.config))


def stop(agent: Any) -> None:
    """End an agent, and take away the empty folder that RLlib makes for each one in the home directory."""
    agent.stop()
    logdir = getattr(agent, "logdir", None)
    if logdir is not None:
        with suppress(OSError):  # It holds something, and stays.
            Path(logdir).rmdir()
            Path(logdir).parent.rmdir()


def _run(
    cfg: RunConfig,
    place: Place,
    prompts: Prompts,
    console: Console,
    command: Sequence[str],
    build: Callable[[RunConfig], Parts],
) -> int:
    folder = place.folder
    if place.start > cfg.iterations:
        raise ConfigError(
            f"`iterations` must be at least the {place.start} that {folder.path} has finished, got "
            f"{cfg.iterations}."
        )
    with waiting(console, "Loading the model"):
        parts = build(cfg)
    for note in parts.notes:
        console.print(note, highlight=False, soft_wrap=True)
    sources = {"seed": cfg.seed, **prompts.fingerprints(), **(parts.sources or {})}
    provenance.record(folder.provenance, sources, provenance.session(command, place.start))
    folder.config.write_text(signed(to_yaml(replace(cfg, resume=None)), cfg))
    if place.checkpoint is not None:
        tensors, meta = checkpoints.read(place.checkpoint.path)
        parts.agent.load_run_state(tensors, meta)
        console.print(f"Continuing {folder.path} after iteration {place.start}.", highlight=False)
    _set_aside(folder.checkpoints, place.start)
    logging = cfg.logging
    evaluator = Evaluator(
        agent=parts.agent,
        sets=prompts.evaluation_sets(logging.eval_prompts),
        samples=logging.eval_samples,
        num_steps=cfg.model.eval_num_steps,
        heldout=parts.heldout,
    )
    logbook = Logbook(folder.path, cfg, place.start)
    progress = RunProgress(console, cfg.name, cfg.iterations, place.start, logging.progress)
    try:
        with Interrupt(progress.say) as interrupt, progress:
            loop = Loop(parts.agent, cfg, folder, evaluator, logbook, progress, interrupt, place.start)
            finished = loop.run()
            progress.doing("writing the report")
            _leave_behind(parts.agent, cfg, folder)
    finally:
        logbook.close()
        stop(parts.agent)
    if interrupt.requested:
        console.print(
            f"Stopped after iteration {finished} of {cfg.iterations}; everything is saved. Continue with\n"
            f"  [bold]{resume_command(folder)}[/]",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_CODE
    print_summary(console, folder, loop.alarm.ended_by)
    return ENDED_BY_ALARM if loop.alarm.ended_by else 0


def _leave_behind(agent: Any, cfg: RunConfig, folder: RunFolder) -> None:
    from unirl_env.report import write_report

    write_report(folder)
    # Some families have no published form; the checkpoint has the weights.
    with suppress(NotImplementedError):
        if cfg.policy.lora_rank is not None:
            agent.export_adapters(str(folder.adapters))
        else:
            agent.export_weights(str(folder.weights))


def _refuse_other_settings(folder: RunFolder, cfg: RunConfig) -> None:
    changed = differences(read_yaml(folder.config), cfg)
    if changed:
        raise ConfigError(
            f"A continued run must keep the settings of {folder.config}, got " + "; ".join(changed) + ". Try "
            "these settings as they were, or a fresh run under another `name=`."
        )


def _set_aside(folder: Path, start: int) -> None:
    """Checkpoints from after the one that the run goes on from would be mistaken for its own."""
    for checkpoint in folder.glob("[0-9]*"):
        if int(checkpoint.name) > start:
            aside = folder / f"aside-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
