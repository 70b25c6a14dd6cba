"""The embedded recipes over several seeds, and how two versions of the library compare on the same ones.

    python benchmarks/recipes.py --table before.json [--recipes ar/tiny_qwen3,...] [--seeds 0,1,2]
    python benchmarks/recipes.py --table after.json --against before.json

All runs share one process, in a folder of their own; what a table has on record is not repeated. With
`--against`, each line is a difference of the trained model's rewards on fixed prompts and seeds, paired by
the run's seed, with its 95 % t-interval; "equal" says in how many seeds every reward of the training curve is
the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from learning_curves import rows
from rich.console import Console
from scipy import stats

from unirl_env.run.launch import launch
from unirl_env.train import settings

SEEDS = {
    "diffusion/gaussian_mixture": 10,
    "diffusion/tiny_sd3": 10,
    "ar/tiny_qwen3": 5,
    "ar/tiny_qwen_vl": 5,
    "pe/tiny_prompt_enhancer": 5,
    "unified_model/tiny_unified": 5,
    "unified_model/tiny_writer_and_painter": 5,
}
"""How many seeds a recipe is run with: more for the quick ones."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=",".join(SEEDS))
    parser.add_argument("--seeds", help="such as 0,1,2; by default 0 to 9 for the quick recipes, 0 to 4 else")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="the table of another version")
    parser.add_argument("--extra", nargs="*", default=[], help="settings of all runs, key=value")
    args = parser.parse_args()
    for recipe in filter(None, args.recipes.split(",")):
        seeds = range(SEEDS[recipe]) if args.seeds is None else map(int, args.seeds.split(","))
        for seed in seeds:
            found = on_record(args.table)
            if f"{recipe}/{seed}" not in found:
                cell = play(recipe, seed, args.extra)
                # Read again: another process may have written down runs of its own.
                write(args.table, {**on_record(args.table), f"{recipe}/{seed}": cell})
                print(
                    recipe, seed, {name: each["trained"] for name, each in cell["sets"].items()}, flush=True
                )
    if args.against:
        table = compare(on_record(args.against), on_record(args.table))
        for line in table:
            print(
                f"{line['recipe']:42s} {line['set']:8s} {line['before']:.3f} -> {line['after']:.3f}  "
                f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]  "
                f"equal {line['equal']} of {line['seeds']}"
            )


def play(recipe: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """One run, and what its folder says."""
    with tempfile.TemporaryDirectory() as home:
        quiet = ["logging.progress=false", "logging.tensorboard=false"]
        cfg = settings(recipe, [f"seed={seed}", "name=run", f"logging.folder={home}", *quiet, *extra])
        with open(Path(home) / "log.txt", "w") as log:
            code = launch(cfg, Console(file=log, width=120))
        if code:
            raise SystemExit(f"{recipe} with seed {seed} ended with {code}.")
        folder = Path(home) / "run"
        measured: dict[str, list[float]] = {}
        for row in rows(folder / "evaluation.jsonl"):
            measured.setdefault(row["set"], []).append(row["rewards"]["reward"]["mean"])
        training = rows(folder / "metrics.jsonl")
    return {
        "sets": {name: {"base": each[0], "trained": each[-1]} for name, each in measured.items()},
        "curve": [row["reward"] for row in training],
        "seconds": round(sum(row["seconds"] for row in training), 1),
    }


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line per recipe and set of prompts, over the seeds that both have."""
    table = []
    shared = [key for key in before if key in after]
    for recipe in dict.fromkeys(key.rpartition("/")[0] for key in shared):
        keys = [key for key in shared if key.rpartition("/")[0] == recipe]
        equal = sum(before[key]["curve"] == after[key]["curve"] for key in keys)
        for name in before[keys[0]]["sets"]:
            pairs = np.array(
                [[each[key]["sets"][name]["trained"] for each in (before, after)] for key in keys]
            )
            gains = pairs[:, 1] - pairs[:, 0]
            half = (
                stats.t.ppf(0.975, len(keys) - 1) * gains.std(ddof=1) / len(keys) ** 0.5
                if len(keys) > 1
                else np.nan
            )
            table.append(
                {
                    "recipe": recipe,
                    "set": name,
                    "seeds": len(keys),
                    "equal": equal,
                    "before": float(pairs[:, 0].mean()),
                    "after": float(pairs[:, 1].mean()),
                    "difference": float(gains.mean()),
                    "low": float(gains.mean() - half),
                    "high": float(gains.mean() + half),
                }
            )
    return table


def on_record(table: Path) -> dict[str, Any]:
    return json.loads(table.read_text()) if table.exists() else {}


def write(path: Path, cells: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(dict(sorted(cells.items())), indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    main()
