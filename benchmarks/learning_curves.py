"""Learning curves of every agent over several seeds, with intervals: the README's picture and its table.

Each run is the ordinary command, one after another, in a folder of its own:

    python benchmarks/learning_curves.py [--agents flow_dppo,grpo] [--seeds 0,1,2] [--extra key=value ...]
    python benchmarks/learning_curves.py --config ar/tiny_qwen3 --folder runs/curves_qwen3 \
        --picture docs/images/curves_qwen3.png --table benchmarks/results/curves_qwen3.json

The agents where trust regions matter, many epochs over each rollout, beside the plain policy gradient:

    python benchmarks/learning_curves.py --agents pg,flow_dppo,grpo,drpo --folder runs/curves_epochs \
        --picture docs/images/curves_epochs.png --table benchmarks/results/curves_epochs.json \
        --extra agent.num_epochs=8 agent.shuffle_batch_per_epoch=group

`pg` is the policy gradient with importance weights and no trust region. Of the embedded video model, the
share of clips that move the right way, within 30 degrees, stands in the table, too:

    python benchmarks/learning_curves.py --config diffusion/tiny_video --seeds 0,1,2,3,4 \
        --share reward/direction=0.73 --folder runs/curves_video --picture docs/images/curves_video.png \
        --table benchmarks/results/curves_video.json

A band is the 95 % t-interval of the mean over seeds. Runs that are there already are read, not repeated;
one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from unirl_env.bench.contestants import Contestant
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.run.report.charts import colours, titles

NAMES = ("flow_dppo", "grpo", "drpo")
OWN_TITLES = {"pg": "policy gradient"}
SMOOTH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", default=",".join(NAMES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", default="diffusion/tiny_sd3")
    parser.add_argument("--folder", type=Path, default=Path("runs/curves"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/learning_curves.png"))
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/learning_curves.json"))
    parser.add_argument("--share", help="a score and a bound: also the share of samples that reach it")
    parser.add_argument("--extra", nargs="*", default=[])
    args = parser.parse_args()
    agents, seeds = args.agents.split(","), [int(seed) for seed in args.seeds.split(",")]
    runs = {
        agent: [run(args.config, args.folder, agent, seed, args.extra) for seed in seeds] for agent in agents
    }
    draw(runs, args.picture)
    table = {agent: summary(folders, args.share) for agent, folders in runs.items()}
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(json.dumps({"seeds": seeds, "agents": table}, indent=1) + "\n")
    for agent, row in table.items():
        print(named(agents)[agent], json.dumps(row))


def run(config: str, home: Path, agent: str, seed: int, extra: Sequence[str] = ()) -> Path:
    """Train one agent with one seed, or go on where that was stopped; the run's folder in `home`."""
    name = f"{re.sub(r'[^A-Za-z0-9_]+', '_', agent)}_{seed}"
    folder = home / name
    if not finished(folder):
        command = [sys.executable, "-m", "unirl_env.train", f"--config-name={config}", "resume=auto"]
        settings = [*Contestant(agent, agent).words, f"seed={seed}", f"name={name}"]
        settings.append(f"logging.folder={home}")
        subprocess.run([*command, *settings, *extra], check=True)
    return folder


def named(agents: Sequence[str]) -> dict[str, str]:
    """What each is called in a picture."""
    return titles(agents) | {agent: title for agent, title in OWN_TITLES.items() if agent in agents}


def finished(folder: Path) -> bool:
    """Whether a run has come to its last iteration; one that was interrupted leaves a report, too."""
    if not (folder / "report.html").exists():
        return False
    return len(rows(folder / "metrics.jsonl")) == read_yaml(folder / "config.yaml").iterations


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds (axis 0) and half the width of its 95 % interval."""
    count = values.shape[0]
    if count < 2:
        return values.mean(0), np.zeros_like(values.mean(0))
    width = stats.t.ppf(0.975, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return values.mean(0), width


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over iterations (axis 1), shorter at the start."""
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, values.shape[1] + 1)
    starts = np.maximum(ends - SMOOTH, 0)
    return (sums[:, ends] - sums[:, starts]) / (ends - starts)


def measured(folder: Path, prompts: str, reward: str, bound: float | None = None) -> tuple[float, float]:
    """A reward on fixed prompts and seeds, before and after; or the share of samples that reach `bound`."""
    found = {row["iteration"]: row for row in rows(folder / "evaluation.jsonl") if row["set"] == prompts}
    both = (found[min(found)], found[max(found)])
    if bound is None:
        before, after = (row["rewards"][reward]["mean"] for row in both)
    else:
        before, after = (float(np.mean(np.array(row["values"][reward]) >= bound)) for row in both)
    return before, after


def summary(folders: list[Path], share: str | None = None) -> dict[str, object]:
    """Before and after, and the gain with its interval over seeds."""
    table: dict[str, object] = {}
    first = rows(folders[0] / "evaluation.jsonl")
    wanted: dict[str, tuple[str, float | None]] = {
        name: (name, None) for name in ("reward", "reward/strict", "heldout") if name in first[0]["rewards"]
    }
    if share is not None:
        name, bound = share.split("=")
        wanted[f"share with {name} of {bound} or more"] = name, float(bound)
    for prompts in dict.fromkeys(row["set"] for row in first):
        for title, (reward, bound) in wanted.items():
            pairs = np.array([measured(folder, prompts, reward, bound) for folder in folders])
            gain, width = band(pairs[:, 1:] - pairs[:, :1])
            table[f"{prompts} prompts, {title}"] = {
                "before": round(pairs[:, 0].mean(), 3),
                "after": round(pairs[:, 1].mean(), 3),
                "gain": round(float(gain[0]), 3),
                "gain_95": [round(float(gain[0] - width[0]), 3), round(float(gain[0] + width[0]), 3)],
            }
    seconds = [sum(row["seconds"] for row in rows(folder / "metrics.jsonl")) for folder in folders]
    table["training_seconds"] = [round(value) for value in seconds]
    return table


def draw(runs: dict[str, list[Path]], picture: Path) -> None:
    """Training reward over iterations, and before/after on fixed prompts, for every agent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9), width_ratios=(1.6, 1), layout="constrained")
    colour, title = colours(runs), named(list(runs))
    for agent, folders in runs.items():
        curves = [[row["reward"] for row in rows(folder / "metrics.jsonl")] for folder in folders]
        mean, width = band(smoothed(np.array(curves)))
        x = np.arange(1, len(mean) + 1)
        axes[0].plot(x, mean, color=colour[agent], label=title[agent], lw=2)
        axes[0].fill_between(x, mean - width, mean + width, color=colour[agent], alpha=0.15, lw=0)
    axes[0].set(xlabel="iteration", ylabel="training reward", title="Reward while training")
    axes[0].legend(frameon=False, loc="best")
    axes[0].grid(alpha=0.2)
    sets = list(dict.fromkeys(row["set"] for row in rows(next(iter(runs.values()))[0] / "evaluation.jsonl")))
    first = rows(next(iter(runs.values()))[0] / "evaluation.jsonl")[0]["rewards"]
    bars = [(prompts, reward) for prompts in sets for reward in ("reward", "heldout") if reward in first]
    width_of = 0.78 / len(runs)
    for place, (agent, folders) in enumerate(runs.items()):
        for slot, (prompts, reward) in enumerate(bars):
            pairs = np.array([measured(folder, prompts, reward) for folder in folders])
            gain, width = band(pairs[:, 1] - pairs[:, 0])
            x = slot + (place - (len(runs) - 1) / 2) * width_of
            axes[1].bar(
                x, gain, 0.92 * width_of, color=colour[agent], yerr=width, error_kw={"lw": 1, "capsize": 2}
            )
    labels = [
        f"{prompts}\nprompts,\n{'train' if reward == 'reward' else 'held-out'}\nreward"
        for prompts, reward in bars
    ]
    axes[1].set_xticks(range(len(bars)), labels, fontsize=8)
    axes[1].set(title="Gain over the base, fixed seeds", ylabel="gain")
    axes[1].axhline(0, color="#888", lw=0.8)
    seeds = len(next(iter(runs.values())))
    figure.supxlabel(f"mean of {seeds} seeds with 95 % intervals", fontsize=8, color="#666")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
