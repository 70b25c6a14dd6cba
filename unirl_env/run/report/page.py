"""The pages: a run's report, and the comparison that `unirl_env.evaluate` writes."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.errors.masks import hide
from unirl_env.run.compose.yaml import flat, read_yaml
from unirl_env.run.progress import clock
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.record.samples import load_texts
from unirl_env.run.report.cards import (
    Columns,
    answers,
    are_drawn,
    drawn,
    drawn_film,
    film,
    gallery,
    scatter,
)
from unirl_env.run.report.charts import short_name
from unirl_env.run.report.curves import HACKING, hacking, process_charts, reward_charts
from unirl_env.run.report.frame import header, section, write_page
from unirl_env.run.report.shown import FRAMES, OF_CLIPS, SIDE, have_clips
from unirl_env.run.summary import SETS, headline, label, number, resume_command, score_rows
from unirl_env.settings import RunConfig
from unirl_env.statistics import coverage_in_words

SCORES = (
    "Every part of every reward: mean and standard deviation over samples, and the difference with its 95 % "
    "interval. Failed are samples that the scorer could not judge; not applicable, those that a part has "
    "nothing to say of, such as the place of an object in a prompt that names none. Neither counts as zero."
)
CLIPS = (
    f"Clips play with at most {FRAMES} frames of at most {SIDE} pixels a side; whole ones, and those "
    "of all prompts, lie in the folder of the samples."
)
HEAD = ("score", "before", "after", "difference", "failed", "not applicable")


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from what lies in the folder; needs neither the agent nor the model."""
    cfg = read_yaml(folder.config)
    metrics = read_rows(folder.path / "metrics.jsonl")
    evaluations = read_rows(folder.path / "evaluation.jsonl")
    sessions = _provenance(folder)
    spent = sum(row.get("seconds") or 0 for row in metrics)
    facts = [
        short_name(cfg.agent.name),
        cfg.model.env,
        f"{len(metrics)} of {cfg.iterations} iterations",
        f"{clock(spent)} of training",
        f"seed {cfg.seed}",
    ]
    body = [
        header(cfg.name, facts),
        _headline(headline(evaluations), evaluations, _noise(_first(folder, evaluations), cfg.mode)),
        section("Reward", _charts(reward_charts(metrics, evaluations))),
        section("Reward hacking", hacking(cfg.alarm, metrics), HACKING),
        section("Scores", scores_table(evaluations), SCORES),
        _samples(folder, evaluations, cfg.mode),
        section("How training went", _charts(process_charts(metrics))),
        section("Settings", _settings(cfg), "Settings that differ from their defaults stand out."),
        section("Go on from here", _commands(folder, cfg, sessions)),
    ]
    return write_page(folder.report, cfg.name, "".join(body))


def write_comparison(
    out: Path,
    title: str,
    facts: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    folders: Mapping[str, Path],
    mode: str = "",
) -> Path:
    """Write `out/index.html`: a policy beside its base.

    Args:
        out: Where the page goes.
        title: Its heading.
        facts: What stands under it.
        rows: For each set a row of the base and one of the policy, as in `evaluation.jsonl`.
        folders: The folders of samples, by `<set>/before` and `<set>/after`.
        mode: The mode of the run, where it is known.
    """
    rows = list(rows)
    noise = _noise(list(folders.values()), mode)
    body = [header(title, facts), _headline(headline(rows), rows, noise)]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        columns = {
            label: (folders[f"{name}/{label}"], row)
            for label, row in zip(("before", "after"), (mine[0], mine[-1]), strict=True)
        }
        lead = CLIPS if have_clips([folder for folder, _ in columns.values()]) else ""
        body.append(section(SETS.get(name, name).capitalize(), _cards(columns, mode, most=64), lead))
    body.append(section("Scores", scores_table(rows), SCORES))
    out.mkdir(parents=True, exist_ok=True)
    return write_page(out / "index.html", title, "".join(body))


def scores_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as HTML, or nothing.

    Args:
        rows: The rows of `evaluation.jsonl`; those of older runs lack standard deviations and some counts.
    """
    scores = score_rows(rows)
    if not scores:
        return ""
    groups = []
    for name in dict.fromkeys(row["set"] for row in scores):
        title = html.escape(SETS.get(name, name).capitalize())
        body = "".join(_row(row) for row in scores if row["set"] == name)
        groups.append(f'<tbody><tr><th colspan="{len(HEAD)}">{title}</th></tr>{body}</tbody>')
    head = "".join(f"<th>{text}</th>" for text in HEAD)
    return (
        f'<div class="scroll"><table class="plain scores"><thead><tr>{head}</tr></thead>'
        f"{''.join(groups)}</table></div>"
    )


def _row(row: Mapping[str, Any]) -> str:
    trained = row["last"] > row["first"]
    before, after = row["before"], row["after"] if trained else None
    cells = [
        _mean(before),
        _mean(after),
        _difference(row["difference"] if trained else None),
        _count(before, after, "failed"),
        _count(before, after, "absent"),
    ]
    kind = "" if "/" in row["key"] else ' class="whole"'
    inner = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr{kind}><td>{html.escape(label(row['key']))}</td>{inner}</tr>"


def _mean(part: Mapping[str, Any] | None) -> str:
    if part is None or part["mean"] is None:
        return "-"
    std = part.get("std")
    return number(part["mean"]) + (f" <small>± {number(std)}</small>" if std is not None else "")


def _difference(part: Mapping[str, Any] | None) -> str:
    if part is None or part["mean"] is None:
        return "-"
    kind, bounds = _clear(part)
    return f'<span class="gain {kind}">{part["mean"]:+.3f}</span><small>{bounds}</small>'


def _clear(part: Mapping[str, Any]) -> tuple[str, str]:
    """Where a difference is known to lead, and its bounds in words; nothing of a single number."""
    if part["low"] is None or part["high"] is None:
        return "flat", ""
    kind = "up" if part["low"] > 0 else "down" if part["high"] < 0 else "flat"
    return kind, f"{part['low']:+.3f} to {part['high']:+.3f}"


def _count(before: Mapping[str, Any], after: Mapping[str, Any] | None, name: str) -> str:
    counts = [part.get(name) for part in (before, after) if part is not None]
    if None in counts:
        return "-"
    return " → ".join(dict.fromkeys(map(str, counts)))


def _charts(figures: str) -> str:
    return f'<div class="charts">{figures}</div>' if figures else ""


def _headline(found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], noise: str) -> str:
    cards = []
    for item in found:
        part = item["difference"]
        known = part and part["mean"] is not None and item["last"] > item["first"]
        kind, bounds = _clear(part) if known else ("flat", "")
        gain = f"{part['mean']:+.3f}" if known else "not trained yet"
        after = item["after"]["mean"] if known else None
        cards.append(
            f'<article class="card number"><h3>{html.escape(item["reward"].capitalize())}<br>'
            f"<small>{html.escape(item['set'])}</small></h3>"
            f'<p class="step"><span>{number(item["before"]["mean"])}</span>'
            f"<i>→</i><b>{number(after)}</b></p>"
            f'<p><span class="gain {kind}">{gain}</span> <span class="bounds">{bounds}</span></p></article>'
        )
    if not cards:
        return ""
    prompts, samples = len(rows[0]["prompts"]), rows[0]["samples"]
    over = f"{prompts} prompts x {samples} samples" if prompts > 1 else f"{samples} samples"
    lead = (
        f"Each number is a mean over {over} on fixed seeds{noise}. Beside each gain its 95 % interval: "
        f"paired by prompt and seed, by Student's t over {'prompts' if prompts > 1 else 'samples'}, widened "
        f"where these are skewed. {coverage_in_words('mean', prompts if prompts > 1 else samples)}"
    ).strip()
    return f'<div class="numbers">{"".join(cards)}</div><p class="lead">{lead}</p>'


def _first(folder: RunFolder, evaluations: Sequence[Mapping[str, Any]]) -> list[Path]:
    return [folder.pictures / f"{row['iteration']:06d}" / row["set"] for row in evaluations[:1]]


def _noise(folders: Sequence[Path], mode: str) -> str:
    """What is to be said of the noise of an evaluation: none is drawn on the way to a picture."""
    if are_drawn(folders, mode):
        return f", {'clips' if have_clips(folders) else 'pictures'} drawn without exploration noise"
    return "" if any(load_texts(folder) for folder in folders) else ", drawn without exploration noise"


def _cards(columns: Columns, mode: str, most: int = 8) -> str:
    folders = [folder for folder, _ in columns.values()]
    most = min(most, OF_CLIPS) if have_clips(folders) else most
    if are_drawn(folders, mode):
        return drawn(columns, most=most)
    return gallery(columns, most=most) + answers(columns, most=most) or scatter(folders[0], folders[-1])


def _samples(folder: RunFolder, evaluations: Sequence[Mapping[str, Any]], mode: str) -> str:
    parts, folders = [], []
    for name in dict.fromkeys(row["set"] for row in evaluations):
        mine = [row for row in evaluations if row["set"] == name]
        first, last = mine[0], mine[-1]
        if first is last:
            continue
        before, after = (folder.pictures / f"{row['iteration']:06d}" / name for row in (first, last))
        cards = _cards({"before": (before, first), "after": (after, last)}, mode)
        folders += [before, after]
        if cards:
            title = SETS.get(name, name)
            parts.append(f"<h3>{html.escape(title.capitalize())}</h3>{cards}")
            show = drawn_film if are_drawn([before, after], mode) else film
            strip = show(folder.pictures, name, mine)
            if strip:
                parts.append(f"<h3>One seed over the run, {html.escape(title)}</h3>{strip}")
    lead = (
        "The same prompts under the same seeds, before and after training: the first prompts of each set, "
        "not picked, with the reward of each sample."
    )
    if have_clips(folders):
        lead = f"{lead} {CLIPS}"
    return section("Before and after", "".join(parts), lead)


def _settings(cfg: RunConfig) -> str:
    defaults, groups = flat(RunConfig()), {}
    for name, value in flat(cfg, public=True).items():
        group, _, short = name.rpartition(".")
        shown = html.escape(json.dumps(value) if not isinstance(value, str) else value)
        shown = shown if len(shown) <= 200 else shown[:199] + "…"
        mark = ' class="changed"' if value != defaults[name] else ""
        groups.setdefault(group or "run", []).append(
            f"<tr{mark}><th>{html.escape(short)}</th><td>{shown}</td></tr>"
        )
    tables = (
        f"<details><summary>{group}</summary><table>{''.join(rows)}</table></details>"
        if not any("changed" in row for row in rows)
        else f"<details open><summary>{group}</summary><table>{''.join(rows)}</table></details>"
        for group, rows in groups.items()
    )
    return f'<div class="settings">{"".join(tables)}</div>'


def _commands(folder: RunFolder, cfg: RunConfig, known: Mapping[str, Any]) -> str:
    sessions = known.get("sessions", [])
    more = f"iterations={2 * cfg.iterations}"
    where = os.path.relpath(folder.path)
    rows = [
        ("Compare with the base again", f"python -m unirl_env.evaluate --run {where}"),
        ("Train on", resume_command(RunFolder(Path(where)), more)),
        ("Do the whole run again", f"python -m unirl_env.train --config-name={where}/config.yaml"),
    ]
    if cfg.logging.tensorboard:
        rows.append(("See all numbers", f"tensorboard --logdir {where}/tb"))
    parts = [f"<dt>{html.escape(t)}</dt><dd><code>{html.escape(c)}</code></dd>" for t, c in rows]
    if sessions:
        last = sessions[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        machine = ", ".join([last["system"], f"{last['cpus']} CPUs", *last["gpus"]])
        parts.append(f"<dt>Made with</dt><dd>Python {html.escape(last['python'] + ', ' + versions)}</dd>")
        parts.append(f"<dt>On</dt><dd>{html.escape(machine)}, {html.escape(last['started'])}</dd>")
        command = hide(" ".join(sessions[0]["command"]))
        parts.append(f"<dt>Begun by</dt><dd><code>{html.escape(command)}</code></dd>")
    for name, value in known.get("sources", {}).items():
        if isinstance(value, str):
            parts.append(
                f"<dt>Fingerprint of {html.escape(name)}</dt><dd><code>{html.escape(value[:16])}</code></dd>"
            )
    return f"<dl>{''.join(parts)}</dl>"


def _provenance(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.provenance.read_text(encoding="utf-8")) if folder.provenance.exists() else {}
