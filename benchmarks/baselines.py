"""Take a bench's results into the package, as what ships for its suite; and its figures, for the README.

python -m unirl_env.bench suite=quick agents=[grpo,flow_dppo,drpo,gspo,pg] seeds=10 baselines=false
python benchmarks/baselines.py runs/bench/quick [--figures docs/images/bench_quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from unirl_env.bench.baselines import BASELINES, store

FIGURES = ("all_tasks", "ranking_iqm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--figures", help="what the pictures' names begin with")
    args = parser.parse_args()
    bench = json.loads((args.bench / "bench.json").read_text())
    rows = [json.loads(line) for line in (args.bench / "results.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row.get("baseline")]
    BASELINES.mkdir(exist_ok=True)
    path = BASELINES / f"{bench['suite']['name']}.jsonl.gz"
    store(bench, rows, path)
    print(f"{len(rows)} rows, {path.stat().st_size / 1e3:.0f} kB: {path}")
    for name in FIGURES if args.figures else ():
        shutil.copy(args.bench / "figures" / f"{name}.svg", f"{args.figures}_{name}.svg")
    if args.figures:
        shutil.copy(
            args.bench / "table.md", Path("benchmarks/results") / f"bench_{bench['suite']['name']}.md"
        )


if __name__ == "__main__":
    main()
