"""From settings to a finished run: find the folder, build the parts, restore, train, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from unirl_env.agents.cluster import processes
from unirl_env.errors import ConfigError, NoAnswer
from unirl_env.errors.masks import hide
from unirl_env.run.compose.yaml import differences, read_yaml, shown, to_yaml
from unirl_env.run.evaluator import Evaluator
from unirl_env.run.failure import explained
from unirl_env.run.interrupt import EXIT_CODE, Interrupt, Watchdog
from unirl_env.run.loop import ENDED_BY_ALARM, Loop
from unirl_env.run.preflight import preflight
from unirl_env.run.progress import RunProgress, waiting
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record import provenance
from unirl_env.run.record.checkpoint import Checkpoint
from unirl_env.run.record.files import replace_text
from unirl_env.run.record.folder import RunFolder, free_name, locate, of_name
from unirl_env.run.record.logbook import Logbook, read_rows
from unirl_env.run.summary import print_summary, resume_command
from unirl_env.run.trust import signed
from unirl_env.run.world_setup import Prompts
from unirl_env.settings import RunConfig

if TYPE_CHECKING:
    from unirl_env.run.agent_setup import Parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a run goes on: its folder, and the checkpoint to start from, if any."""

    folder: RunFolder
    checkpoint: Checkpoint | None
    fresh: bool

    @property
    def start(self) -> int:
        """Iterations that are done."""
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
    if place.fresh:
        # Of a start that was killed before it wrote its settings, which may have been other ones.
        place.folder.provenance.unlink(missing_ok=True)
    try:
        return _run(cfg, place, prompts, console, command, build or _builder(prompts))
    except BaseException as error:
        if place.fresh:
            # If nothing has happened yet: a mistyped model name must not leave an empty run behind.
            place.folder.withdraw()
        cause = explained(error, place.folder.path)
        if cause is error:
            raise
        raise cause from error
    finally:
        lock.close()


def find_place(cfg: RunConfig, console: Console) -> Place:
    """Which folder the run takes and which checkpoint it starts from.

    Raises:
        ConfigError: If the settings are not those of the run that is to be continued.
        CheckpointError: If there is nothing to continue, or the named checkpoint is damaged.
    """
    root = Path(cfg.logging.folder).expanduser()
    if cfg.resume is None:
        name = free_name(root, cfg.name)
        if name != cfg.name:
            console.print(
                f"{root / cfg.name} holds a run already; this one is called {name}. "
                f"(`resume=auto` would continue the other one.)",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        return Place(RunFolder(root / name), None, fresh=True)
    chosen = None
    if cfg.resume == "auto":
        folder = of_name(root, cfg.name)
        if not folder.config.is_file():
            said = f"{folder.path} holds no run yet; beginning one."
            console.print(said, highlight=False, markup=False, soft_wrap=True)
            return Place(folder, None, fresh=True)
    else:
        folder, chosen = locate(cfg.resume)
    _refuse_other_settings(folder, cfg)
    if chosen is not None:
        checkpoints.check(chosen)
        return Place(folder, checkpoints.describe(chosen), fresh=False)
    found, warnings = checkpoints.newest(folder.checkpoints)
    for warning in warnings:
        console.print(f"[yellow]Passed over:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if found is None and (done := read_rows(folder.path / "metrics.jsonl")):
        console.print(
            f"[yellow]No sound checkpoint[/] in {escape(str(folder.checkpoints))}: the run begins again at "
            f"iteration 0. The {len(done)} iterations on record stay in metrics.aside.jsonl.",
            highlight=False,
            soft_wrap=True,
        )
    return Place(folder, found, fresh=False)


def _builder(prompts: Prompts) -> Callable[[RunConfig], Parts]:
    """What makes a run's real parts; it imports RLlib, which takes seconds."""
    from unirl_env.run.agent_setup import build_parts

    return partial(build_parts, prompts=prompts)


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
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    sources = {"seed": cfg.seed, **prompts.fingerprints(), **(parts.sources or {})}
    provenance.record(folder.provenance, sources, provenance.session(command, place.start))
    replace_text(folder.config, signed(to_yaml(replace(cfg, resume=None)), cfg))
    if (storing := getattr(parts.agent, "storing", None)) is not None:
        storing.require_shared(folder.path)
    if place.checkpoint is not None:
        tensors, meta = checkpoints.read(place.checkpoint.path)
        parts.agent.load_run_state(tensors, meta)
        said = f"Continuing {folder.path} after iteration {place.start}."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    # Those from after the one that the run goes on from would be mistaken for its own.
    for later in checkpoints.listing(folder.checkpoints):
        if later.iteration > place.start:
            checkpoints.set_aside(later.path)
    logging = cfg.logging
    evaluator = Evaluator(
        agent=parts.agent,
        sets=prompts.evaluation_sets(logging.eval_prompts),
        samples=logging.eval_samples,
        num_steps=cfg.model.eval_num_steps,
        heldout=parts.heldout,
        drift=logging.eval_drift,
        fps=parts.fps,
    )
    logbook = Logbook(folder.path, cfg, place.start)
    progress = RunProgress(console, cfg.name, cfg.iterations, place.start, logging.progress)
    failed: BaseException | None = None
    try:
        with Interrupt(progress.say) as interrupt, Watchdog(interrupt, cfg.rollout.timeout_s) as watchdog:
            with watchdog.over("the start"):
                watchdog.processes = processes(parts.agent)
            loop = Loop(
                parts.agent, cfg, folder, evaluator, logbook, progress, interrupt, place.start, watchdog.over
            )
            try:
                with progress:
                    loop.run()
                    progress.doing("writing the report")
                    _leave_behind(parts.agent, cfg, folder)
            except BaseException as error:
                # Whoever breaks off what hangs can do so by a `KeyboardInterrupt` only.
                failed = error if interrupt.expired is None else NoAnswer(f"{interrupt.expired}.")
                watchdog.end(still=True)
                _rescue(loop, console, failed)
                if interrupt.expired is not None:
                    watchdog.end()  # One of them hangs, and would not hear that it shall stop.
                if failed is error:
                    raise
                raise failed from error
    except KeyboardInterrupt:
        return EXIT_CODE
    finally:
        _close(logbook.close, partial(stop, parts.agent), failed=failed)
    if interrupt.requested:
        console.print(
            f"Stopped after iteration {loop.finished} of {cfg.iterations}; everything is saved. "
            f"Continue with\n"
            f"  [bold]{escape(resume_command(folder))}[/]",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_CODE
    print_summary(console, folder, loop.alarm.ended_by)
    return ENDED_BY_ALARM if loop.alarm.ended_by else 0


def _rescue(loop: Loop, console: Console, error: BaseException) -> None:
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


def _close(*actions: Callable[[], Any], failed: BaseException | None) -> None:
    """Close what is open; after an error, one that follows from it must not take its place."""
    for action in actions:
        try:
            action()
        except Exception:
            if failed is None:
                raise


def _leave_behind(agent: Any, cfg: RunConfig, folder: RunFolder) -> None:
    from unirl_env.run.report import write_report

    write_report(folder)
    # Some families have no published form; the checkpoint has the weights.
    with suppress(NotImplementedError):
        if cfg.policy.lora_rank is None and getattr(agent, "storing", None) is not None:
            logger.warning(
                "%s is not written: learners hold the weights in parts, and all of them would go into one "
                "memory. The checkpoint has them; where there is room for all, write them in the form of the "
                "model's own library by\n  "
                "python -m unirl_env.evaluate --run %s --checkpoint last --export %s",
                *(folder.weights, folder.path, folder.weights),
            )
        elif cfg.policy.lora_rank is not None:
            agent.export_adapters(str(folder.adapters), weights=cfg.policy.eval_weights)
        else:
            agent.export_weights(str(folder.weights), weights=cfg.policy.eval_weights)


def _refuse_other_settings(folder: RunFolder, cfg: RunConfig) -> None:
    changed = differences(read_yaml(folder.config), cfg)
    if changed:
        raise ConfigError(
            f"A continued run must keep the settings of {folder.config}, got " + "; ".join(changed) + ". Try "
            "these settings as they were, or a fresh run under another `name=`."
        )
