"""Take a bench's results into the package, as what ships for its suite; and its figures, for the README.

python -m unirl_env.bench suite=quick agents=[grpo,flow_dppo,drpo,gspo,pg] seeds=10 baselines=false
python benchmarks/baselines.py runs/bench/quick --shown bench_quick
python benchmarks/baselines.py runs/bench/tuned --shown bench_quick_tuned --only-shown
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from unirl_env.bench.baselines import BASELINES, store

FIGURES = ("all_tasks", "ranking_iqm")
IMAGES, RESULTS = Path("docs/images"), Path("benchmarks/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--shown", help="what the names of its pictures and of its table begin with")
    parser.add_argument("--only-shown", action="store_true", help="leave what ships as it is")
    args = parser.parse_args()
    if not args.only_shown:
        keep(args.bench, BASELINES / f"{suite_of(args.bench)}.jsonl.gz")
    elif args.shown:
        keep(args.bench, RESULTS / f"{args.shown}.jsonl.gz")
    if args.shown:
        for name in FIGURES:
            shutil.copy(args.bench / "figures" / f"{name}.svg", IMAGES / f"{args.shown}_{name}.svg")
        shutil.copy(args.bench / "table.md", RESULTS / f"{args.shown}.md")


def suite_of(folder: Path) -> str:
    """Which suite a bench ran."""
    return str(json.loads((folder / "bench.json").read_text())["suite"]["name"])


def keep(folder: Path, path: Path) -> None:
    """Store the rows of a bench."""
    bench = json.loads((folder / "bench.json").read_text())
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row.get("baseline")]
    path.parent.mkdir(exist_ok=True)
    store(bench, rows, path)
    print(f"{len(rows)} rows, {path.stat().st_size / 1e3:.0f} kB: {path}")


if __name__ == "__main__":
    main()
