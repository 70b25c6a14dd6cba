"""A checkpoint beside its base: both answer the same prompts under the same seeds.

What comes out: a table, `comparison.json`, the pictures, clips or texts, and a page that shows them side by
side.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.media.frames import makes_mp4
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import require_judgeable
from unirl_env.run.agent_setup import Parts, build_parts
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.evaluator import Evaluator
from unirl_env.run.launch import stop
from unirl_env.run.preflight import check_all
from unirl_env.run.progress import waiting
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.checkpoint import Checkpoint
from unirl_env.run.record.files import replace_text
from unirl_env.run.record.folder import RunFolder, locate
from unirl_env.run.record.logbook import as_json
from unirl_env.run.record.samples import save_samples
from unirl_env.run.report import write_comparison
from unirl_env.run.report.shown import have_clips
from unirl_env.run.summary import SETS, gain, number
from unirl_env.run.trust import require_trust
from unirl_env.run.world_setup import Prompts, read_prompts
from unirl_env.settings import RunConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and on what.

    Attributes:
        checkpoint: `best`, `last`, or a checkpoint's folder.
        prompts: A prompt source in place of the run's own sets.
        limit: Prompts per set; None takes the run's number.
        samples: Samples per prompt; None takes the run's number.
        num_steps: Denoising steps; None takes the run's number.
        seed: Key of the initial noise; 0 is the one that the run itself evaluates with.
        out: Where the results go; None takes `<run>/comparisons/<iteration>`.
        export: A folder for the checkpoint's adapters, or for its weights if all are trained.
    """

    checkpoint: str = "best"
    prompts: str | None = None
    limit: int | None = None
    samples: int | None = None
    num_steps: int | None = None
    seed: int = 0
    out: Path | None = None
    export: Path | None = None


def compare(
    run: str,
    options: Options,
    console: Console,
    build: Callable[[RunConfig], Parts] | None = None,
    device: str | None = None,
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Measure the base and the policy; the rows of `comparison.json`.

    Raises:
        ConfigError: If the run's settings name code or secrets, were not signed by this account, and are not
            to be trusted.
        CheckpointError: If the run has no such checkpoint, or it is damaged.
        PromptError: If the prompts cannot be used.
    """
    folder = _folder(run)
    cfg = read_yaml(folder.config)
    require_trust(folder.config, cfg, trust)
    # One process is enough to draw, and the machine need not be the one that trained.
    cfg.rollout = dataclasses.replace(
        cfg.rollout, num_env_runners=0, num_learners=0, num_gpus_per_env_runner=0, num_gpus_per_learner=0
    )
    cfg.model.device = device or "auto"
    chosen = find(folder, options.checkpoint)
    out = options.out or folder.path / "comparisons" / f"{chosen.iteration:06d}"
    _check_places(out, options.export)
    check_all(cfg)
    prompts = None if options.prompts is not None else read_prompts(cfg)
    sets = _sets(cfg, options, prompts)
    tensors, meta = checkpoints.read(chosen.path)
    with waiting(console, "Loading the model"):
        parts = (build or partial(build_parts, train=prompts and prompts.train))(cfg)
        parts.agent.load_run_state(tensors, meta)
    evaluator = Evaluator(
        agent=parts.agent,
        sets=sets,
        samples=options.samples or cfg.logging.eval_samples,
        num_steps=options.num_steps or cfg.model.eval_num_steps,
        heldout=parts.heldout,
        seed=options.seed,
        fps=parts.fps,
    )
    try:
        rows, folders = _measure(evaluator, chosen, out, console)
        if options.export is not None and cfg.policy.lora_rank is not None:
            parts.agent.export_adapters(str(options.export), weights=cfg.policy.eval_weights)
        elif options.export is not None:
            parts.agent.export_weights(str(options.export), weights=cfg.policy.eval_weights)
    finally:
        stop(parts.agent)
    replace_text(out / "comparison.json", json.dumps(as_json(rows), indent=1))
    facts = [
        f"iteration {chosen.iteration} beside its base",
        cfg.model.env,
        f"{evaluator.samples} samples per prompt",
        f"seed {options.seed}",
    ]
    page = write_comparison(out, cfg.name, facts, rows, folders, cfg.mode)
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        console.print(_table(before, after))
    console.print(f"Samples and intervals: {page}", highlight=False, markup=False, soft_wrap=True)
    return rows


def _folder(run: str) -> RunFolder:
    try:
        return locate(run)[0]
    except CheckpointError as error:
        raise CheckpointError(
            f"`--run` must be the folder of a run, got {run}, which is none; try `--run runs/<name>`."
        ) from error


def find(folder: RunFolder, wanted: str) -> Checkpoint:
    """The checkpoint that `best`, `last` or a path names.

    Raises:
        CheckpointError: If there is none.
    """
    if wanted == "last":
        found, _ = checkpoints.newest(folder.checkpoints)
    elif wanted == "best":
        found = checkpoints.best(folder.checkpoints) or checkpoints.newest(folder.checkpoints)[0]
    else:
        path = Path(wanted) if Path(wanted).exists() else folder.checkpoints / wanted.zfill(6)
        return checkpoints.describe(path)
    if found is None:
        raise CheckpointError(
            f"`--checkpoint {wanted}` must find a sound checkpoint, got none in {folder.checkpoints}; try "
            f"training on with `resume={folder.path}`."
        )
    return found


def _check_places(out: Path, export: Path | None) -> None:
    """Refuse to write over somebody's files."""
    if export is not None and export.exists() and (not export.is_dir() or any(export.iterdir())):
        raise ConfigError(
            f"`--export` must name a folder that is empty or not there yet, got {export}, which holds files; "
            f"try another one."
        )
    page, rows = out / "index.html", out / "comparison.json"
    if (out.exists() and not out.is_dir()) or (page.exists() and not rows.exists()):
        raise ConfigError(
            f"`--out` must name a folder of its own, got {out}, which holds another page or is a file; try "
            f"another one."
        )


def _sets(cfg: RunConfig, options: Options, prompts: Prompts | None) -> dict[str, Any]:
    if prompts is not None:
        return prompts.evaluation_sets(options.limit or cfg.logging.eval_prompts)
    source = PromptSource.of(options.prompts, max_characters=cfg.prompts.max_characters)
    for reward, spec in (("reward.train", cfg.reward.train), ("reward.heldout", cfg.reward.heldout)):
        if spec is not None:
            require_judgeable(spec, source, reward=reward, source="--prompts")
    return {"given": source.take(0, min(options.limit or len(source), len(source)), seed=None)}


def _measure(
    evaluator: Evaluator, chosen: Checkpoint, out: Path, console: Console
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    rows: list[dict[str, Any]] = []
    folders: dict[str, Path] = {}
    for name in evaluator.sets:
        reference = None
        for label, base in (("before", True), ("after", False)):
            with waiting(console, f"Drawing {name} prompts, {'the base' if base else 'the policy'}"):
                row, samples = evaluator.measure(name, 0 if base else chosen.iteration, base, reference)
                folder = folders[f"{name}/{label}"] = out / "pictures" / name / label
                asked = evaluator.sets[name]
                save_samples(folder, samples, evaluator.samples, asked, evaluator.fps, movies=makes_mp4())
            rows.append(row)
            reference = row
    if have_clips([*folders.values()]) and not makes_mp4():
        said = "Clips are written as animated WebP alone; for mp4, too, try `pip install 'unirl-env[video]'`."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    return rows, folders


def _table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    title = f"Iteration {after['iteration']} on {SETS.get(before['set'], before['set'])}"
    table = Table(title=escape(title), title_justify="left")
    parts = {**before["rewards"], **after["rewards"]}
    counts = ["failed", *(["absent"] if any(part.get("absent") for part in parts.values()) else [])]
    for name in ("reward", "base", "policy", "std", "difference, 95 % interval", *counts):
        table.add_column(name, justify="left" if name == "reward" else "right", no_wrap=True)
    nothing = {"mean": None, "std": None}
    for key in parts:
        was, now = (side["rewards"].get(key, nothing) for side in (before, after))
        table.add_row(
            escape(key),
            number(was["mean"]),
            f"[bold]{number(now['mean'])}[/]",
            number(now["std"]),
            gain(after["difference"].get(key)),
            *(str(now.get(name, "-")) for name in counts),
        )
    if "absent" in counts:
        table.caption = "failed: the scorer could not judge; absent: a part that does not apply to the prompt"
    return table
