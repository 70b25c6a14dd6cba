"""How often the intervals of this library hold the truth: simulations at 3, 5, 10 and 30 seeds.

    python benchmarks/coverage.py [--only mean,paired] [--scale 1.0]

For each statistic, what ships is held against its rivals on several distributions; "worst" is the least
coverage of what ships over the ordinary ones, and that number is what an interval carries. Cases that begin
with "rare" are those where no interval of few seeds can do it: what has not been seen cannot widen it. Of
ten seeds of which one in ten fails, 35 % of all draws show no failure; one in five, 11 %.

Writes benchmarks/results/coverage.json (everything) and unirl_env/statistics/coverage.json (what intervals
carry). Draws are fixed: the same numbers every time.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from unirl_env.bench.statistics import censoring, kendall, seeds_needed
from unirl_env.bench.statistics.aggregates import STATISTICS, resampled
from unirl_env.bench.statistics.improvement import improvement, placements
from unirl_env.bench.statistics.shares import exact_bounds, score_bounds
from unirl_env.statistics import mean_band
from unirl_env.statistics.studentised import bounds, combined, moments_of_mean, p_value

ROOT = Path(__file__).parents[1]
RESULTS, CARRIED = ROOT / "benchmarks/results/coverage.json", ROOT / "unirl_env/statistics/coverage.json"
SEEDS = (3, 5, 10, 30)
LEVEL, LEAST = 0.95, 0.93
PLACES = np.array([0.9, 0.5, 0.7, 0.2, 0.85, 0.4])
"""Where the scores of a task lie."""
Array = np.ndarray
Bounds = tuple[Array, Array]
Draw = Callable[[np.random.Generator, int, tuple[int, ...]], Array]


def failing(chance: float) -> Draw:
    """Two humps: some seeds fail, which leaves them near zero."""

    def draw(rng: np.random.Generator, task: int, shape: tuple[int, ...]) -> Array:
        return np.where(rng.random(shape) < chance, 0.0, PLACES[task]) + 0.05 * rng.normal(size=shape)

    return draw


ORDINARY: dict[str, Draw] = {
    "normal": lambda rng, task, shape: PLACES[task] + 0.1 * rng.normal(size=shape),
    "skewed": lambda rng, task, shape: PLACES[task] - 0.1 * rng.exponential(size=shape),
    "near a ceiling": lambda rng, task, shape: np.minimum(1, rng.normal(0.92 + 0.01 * task, 0.1, shape)),
    "heavy tails": lambda rng, task, shape: PLACES[task] + 0.05 * rng.standard_t(3, size=shape),
    "two humps, 3 of 10 fail": failing(0.3),
    "unequal tasks": lambda rng, task, shape: PLACES[task] + (0.02 + 0.08 * task) * rng.normal(size=shape),
    "equal tasks": lambda rng, task, shape: 0.7 + 0.1 * rng.normal(size=shape),
}
RARE: dict[str, Draw] = {
    "rare: 1 of 5 fails": failing(0.2),
    "rare: 1 of 10 fails": failing(0.1),
    "rare: lognormal": lambda rng, task, shape: PLACES[task] - 0.05 * rng.lognormal(0, 1, size=shape),
}
DISTRIBUTIONS = ORDINARY | RARE


def generator(*names: object) -> np.random.Generator:
    """Draws of their own for every case, whatever else is measured."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def held(truth: float | Array, low: Array, high: Array) -> float:
    return float(np.mean((low <= truth + 1e-12) & (truth - 1e-12 <= high)))


def student(values: Array) -> Bounds:
    half = special.stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


def bootstrapped(values: Array, most: int = 1000, resamples: int = 400) -> dict[str, Bounds]:
    """Percentile, BCa and studentised bootstraps of the mean of columns [n, r]."""
    count, values = len(values), values[:, :most]
    mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(count)
    index = np.random.default_rng(0).integers(count, size=(count, resamples))
    means, scaled = np.empty((2, resamples, values.shape[1]))
    for column, sample in enumerate(values.T):
        drawn = sample[index]
        means[:, column] = drawn.mean(0)
        with np.errstate(all="ignore"):
            scaled[:, column] = (means[:, column] - mean[column]) / (drawn.std(0, ddof=1) / np.sqrt(count))
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=1e9, neginf=-1e9)
    ends = np.quantile(means, [0.025, 0.975], axis=0)
    studentised = np.quantile(scaled, [0.975, 0.025], axis=0)
    below = np.clip((means < mean).mean(0) + (means == mean).mean(0) / 2, 1e-3, 1 - 1e-3)
    bias = special.ndtri(below)
    apart = mean - values
    with np.errstate(all="ignore"):
        bent = np.nan_to_num((-(apart**3)).sum(0) / (6 * (apart**2).sum(0) ** 1.5))
    shares = [special.ndtr(bias + (bias + z) / (1 - bent * (bias + z))) for z in (-1.96, 1.96)]
    ranked = np.sort(means, axis=0)
    place = [np.clip((share * resamples).astype(int), 0, resamples - 1) for share in shares]
    columns = np.arange(values.shape[1])
    return {
        "percentile bootstrap": (ends[0], ends[1]),
        "BCa bootstrap": (ranked[place[0], columns], ranked[place[1], columns]),
        "studentised bootstrap": (mean - studentised[0] * error, mean - studentised[1] * error),
    }


def means(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Of one task: (case, method, seeds, coverage)."""
    for name, draw in DISTRIBUTIONS.items():
        if name in ("unequal tasks", "equal tasks"):
            continue
        truth = truth_of(name)["mean"]
        for count in (2, *SEEDS, 128):
            rng = generator("mean", name, count)
            values = draw(rng, 0, (count, int(20000 * scale)))
            yield name, "shipped", count, held(truth, *mean_band(values)[1:])
            yield name, "Student's t", count, held(truth, *student(values))
            if count in SEEDS:
                for method, found in bootstrapped(values, int(2000 * scale)).items():
                    yield name, method, count, held(truth, *found)


@cache
def truth_of(name: str, tasks: int = 1) -> dict[str, float]:
    """Each statistic of so many seeds that it does not move."""
    rng = generator("truth", name)
    groups = [DISTRIBUTIONS[name](rng, task, (300_000, 1)) for task in range(tasks)]
    return {key: float(compute(groups)[0][0]) for key, compute in STATISTICS.items()}


def aggregates(which: str, scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Over 1, 3 and 6 tasks, and 2 of them, where the middle half lies between two tasks."""
    for tasks in (1, 2, 3, 6):
        for name, draw in DISTRIBUTIONS.items():
            truth = truth_of(name, tasks)[which]
            for count in SEEDS:
                rng = generator(which, name, tasks, count)
                case = f"{name}, {tasks} task{'s' * (tasks > 1)}"
                # Each of these is resampled, one after the other.
                most = 10000 if which != "iqm" else 500 if count == 30 else 1500
                repetitions = int(most * scale)
                groups = [draw(rng, task, (count, repetitions)) for task in range(tasks)]
                low, high = bounds(STATISTICS[which](groups)[1], LEVEL)
                if which != "iqm":
                    yield case, "shipped", count, held(truth, low, high)
                    continue
                ends = [resampled([g[:, r : r + 1] for g in groups], LEVEL) for r in range(repetitions)]
                least, most = np.array(ends).T
                yield case, "shipped", count, held(truth, np.minimum(low, least), np.maximum(high, most))
                yield case, "Student's t, Winsorised", count, held(truth, low, high)
                yield case, "stratified percentile bootstrap", count, held(truth, least, most)


def pairs(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Differences to a steadier agent, with a part that a seed has in common, over 1 and 5 tasks."""
    for tasks in (1, 5):
        for name, draw in DISTRIBUTIONS.items():
            truth = truth_of(name, tasks)["mean"] - 0.5
            for count in SEEDS:
                rng = generator("paired", name, tasks, count)
                shape = (count, int(10000 * scale))
                shared = 0.1 * rng.normal(size=shape)
                x = np.mean([draw(rng, task, shape) for task in range(tasks)], axis=0) + shared
                apart = x - (0.5 + 0.03 * rng.normal(size=shape) / tasks**0.5 + shared)
                case = f"{name}, {tasks} task{'s' * (tasks > 1)}"
                yield case, "shipped", count, held(truth, *mean_band(apart)[1:])
                yield case, "Student's t", count, held(truth, *student(apart))


def improvements(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Two agents that are apart by nothing, one and two deviations."""
    for tasks in (1, 5):
        for name, draw in DISTRIBUTIONS.items():
            for shift in (0.0, 0.1, 0.2):
                truth = float(np.mean([_beats(x + shift, y) for x, y in _many(name)[:tasks]]))
                for count in SEEDS:
                    rng = generator("improvement", name, tasks, shift, count)
                    shape = (count, int((600 if count == 30 else 3000) * scale))
                    both = [(draw(rng, t, shape) + shift, draw(rng, t, shape)) for t in range(tasks)]
                    case = f"{name}, apart {shift}, {tasks} task{'s' * (tasks > 1)}"
                    yield case, "shipped", count, held(truth, *improvement(both, LEVEL)[1:])
                    parts = [moments_of_mean(part) for x, y in both for part in placements(x, y)]
                    yield (
                        case,
                        "Student's t of placements",
                        count,
                        held(truth, *bounds(combined(parts, [1 / tasks] * len(parts)), LEVEL)),
                    )


@cache
def _many(name: str) -> list[tuple[Array, Array]]:
    """Two sorted samples of each of five tasks, so large that seeds do not move what is counted."""
    rng = generator("improvement", name)
    return [tuple(np.sort(DISTRIBUTIONS[name](rng, task, (2, 300_000)))) for task in range(5)]


def _beats(x: Array, y: Array) -> float:
    """P(x > y) + P(x = y) / 2 of sorted samples."""
    return float((np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")).mean() / 2 / len(y))


def profiles(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Shares of runs above a threshold where tasks differ in theirs."""
    for tasks in (1, 5):
        for middle in (0.05, 0.3, 0.5, 0.9):
            chances = np.clip(middle + np.linspace(-0.3, 0.3, tasks) * (tasks > 1), 0, 1)
            for count in SEEDS:
                rng = generator("profile", tasks, middle, count)
                hits = rng.binomial(count, chances[:, None], (tasks, int(20000 * scale)))
                share, worth = hits.mean(0) / count, tasks * count
                case, truth = f"share {middle}, {tasks} task{'s' * (tasks > 1)}", float(chances.mean())
                yield case, "shipped", count, held(truth, *exact_bounds(share, worth, LEVEL))
                normal = np.full_like(share, 1.96)
                yield case, "Wilson", count, held(truth, *score_bounds(share, np.asarray(worth), normal))


def rankings_of(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Agents in steps, in one suite far apart or near, in the other one as well, or in another order."""
    for agents in (2, 3, 5, 8):
        for first, second in ((5.0, 0.02), (5.0, 0.3), (1.0, 1.0), (0.3, 0.3), (5.0, -0.3), (1.0, 0.0)):
            for count in SEEDS:
                rng = generator("kendall", agents, first, second, count)
                steps = np.arange(agents)
                other = second * steps if second else 1.0 * np.roll(steps, 1)
                truth = float(_tau(first * steps, other))
                found: dict[str, list[bool]] = {}
                for _ in range(int(300 * scale)):
                    truths = (first * steps, other)
                    x, y = (place[:, None] + rng.normal(size=(agents, count)) for place in truths)
                    for method, (low, high) in _taus(x, y, rng).items():
                        found.setdefault(method, []).append(low - 1e-9 <= truth <= high + 1e-9)
                case = f"{agents} agents, {first} and {second or 'another order at 1.0'} deviations apart"
                for method, hits in found.items():
                    yield case, method, count, float(np.mean(hits))


def _taus(x: Array, y: Array, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    one, two = ({str(k): {"task": row} for k, row in enumerate(table)} for table in (x, y))
    shipped = kendall(one, two)
    agents, count = x.shape
    drawn = []
    for table in (x, y):
        index = rng.integers(count, size=(300, agents, count))
        drawn.append(np.take_along_axis(table[None], index, 2).mean(2))
    taus = _tau(*drawn)
    low, high = np.quantile(taus, [0.025, 0.975])
    return {"shipped": (shipped.low, shipped.high), "percentile bootstrap": (float(low), float(high))}


def _tau(first: Array, second: Array) -> Array:
    """Kendall's tau along the last axis, where nothing ties."""
    one, two = np.triu_indices(first.shape[-1], 1)
    agree = np.sign(first[..., one] - first[..., two]) * np.sign(second[..., one] - second[..., two])
    return agree.mean(-1)


def costs(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Medians of lognormal costs, cut off early or late, all at once or one by one, exact or in steps."""
    for name, limit, spread, step in (
        ("cut off at the 90 % quantile", 3.6, 0.0, 0.0),
        ("cut off at the 60 % quantile", 1.29, 0.0, 0.0),
        ("each cut off somewhere", 0.7, 4.0, 0.0),
        ("in steps, cut off at 90 %", 3.6, 0.0, 0.2),
    ):
        for count in SEEDS:
            rng = generator("cost", name, count)
            hits: dict[str, list[bool]] = {}
            for _ in range(int(2000 * scale)):
                times = np.exp(rng.normal(size=count))
                ends = limit + spread * rng.random(count)
                times = np.ceil(times / step) * step if step else times
                truth = np.ceil(1.0 / step - 1e-9) * step if step else 1.0
                there, seen = times <= ends, np.minimum(times, ends)
                curve = censoring.survival(seen, there, LEVEL)
                _, low, high = censoring.median_of(curve)
                hits.setdefault("shipped", []).append(low - 1e-9 <= truth <= high + 1e-9)
                low, high = _greenwood(curve, seen, there)
                hits.setdefault("Brookmeyer and Crowley, linear", []).append(low <= truth <= high)
            for method, found in hits.items():
                yield name, method, count, float(np.mean(found))


def _greenwood(curve: Any, seen: Array, there: Array) -> tuple[float, float]:
    steps, left = curve.times[curve.got], curve.left[curve.got]
    risk = np.array([(seen >= step).sum() for step in steps], float)
    got = np.array([((seen == step) & there).sum() for step in steps], float)
    with np.errstate(all="ignore"):
        error = left * np.sqrt(np.cumsum(got / (risk * (risk - got))))
    inside = steps[np.abs(left - 0.5) <= 1.96 * np.nan_to_num(error, nan=0.0, posinf=0.0)]
    past = steps[left < 0.5 - 1.96 * np.nan_to_num(error, nan=0.0, posinf=0.0)]
    low = inside[0] if inside.size else (past[0] if past.size else np.inf)
    return float(low), float(past[0]) if past.size else np.inf


def shares(scale: float) -> Iterator[tuple[str, str, int, float]]:
    """Of runs that get there by a common limit."""
    for chance in (0.1, 0.5, 0.8):
        for count in SEEDS:
            rng = generator("share", chance, count)
            hits = []
            for _ in range(int(2000 * scale)):
                there = rng.random(count) < chance
                seen = np.where(there, rng.random(count), 1.0)
                curve = censoring.survival(seen, there, LEVEL)
                last = np.flatnonzero(curve.got)[-1] if there.any() else 0
                hits.append(1 - curve.high[last] <= chance <= 1 - curve.low[last])
            yield f"share {chance}", "shipped", count, float(np.mean(hits))


def control(scale: float) -> dict[str, dict[str, float]]:
    """How often an agent is called different from itself at 95 %, by `paired` over 1 and 6 tasks."""
    found: dict[str, dict[str, float]] = {}
    for tasks in (1, 6):
        for name, draw in DISTRIBUTIONS.items():
            row = found.setdefault(f"{name}, {tasks} task{'s' * (tasks > 1)}", {})
            for count in SEEDS:
                rng = generator("control", name, tasks, count)
                shape = (count, int(20000 * scale))
                x, y = (np.mean([draw(rng, t, shape) for t in range(tasks)], axis=0) for _ in range(2))
                row[str(count)] = round(float(np.mean(p_value(moments_of_mean(x - y)) < 0.05)), 4)
    return found


def powers(scale: float) -> dict[str, Any]:
    """Whether as many seeds as planned find the effect as often as planned."""
    rng = generator("power")
    found: dict[str, Any] = {}
    # A pilot whose deviation is one.
    spread = np.array([-1.0, 1.0]) / 2**0.5
    for effect in (0.5, 1.0, 1.5):
        seeds = seeds_needed(spread, effect).seeds
        values = effect + rng.normal(size=(seeds, int(20000 * scale)))
        p = p_value(moments_of_mean(values))
        found[f"effect of {effect} deviations"] = {
            "seeds": seeds,
            "power": round(float(np.mean(p < 0.05)), 4),
        }
    enough, right = [], seeds_needed(spread, 1.0).seeds
    for _ in range(int(1000 * scale)):
        plan = seeds_needed(rng.normal(size=5), 1.0)
        enough.append((plan.seeds >= right, plan.seeds_if_noisier >= right))
    named = ("enough by the pilot's variance", "enough by its upper bound")
    found["pilots of 5"] = dict(zip(named, np.mean(enough, axis=0).round(3).tolist(), strict=True))
    return found


MEASURED: dict[str, Callable[[float], Iterator[tuple[str, str, int, float]]]] = {
    "mean": means,
    "paired": pairs,
    "aggregate/mean": lambda scale: aggregates("mean", scale),
    "aggregate/median": lambda scale: aggregates("median", scale),
    "aggregate/iqm": lambda scale: aggregates("iqm", scale),
    "improvement": improvements,
    "profile": profiles,
    "kendall": rankings_of,
    "cost": costs,
    "share": shares,
}


def worst(cases: Mapping[str, Mapping[str, Mapping[str, float]]], rare: bool) -> dict[str, float] | None:
    """The least coverage of what ships at each number of seeds, over ordinary cases or rare ones."""
    chosen = [methods["shipped"] for case, methods in cases.items() if case.startswith("rare") == rare]
    return {str(n): min(row[str(n)] for row in chosen) for n in SEEDS} if chosen else None


def measure(name: str, scale: float) -> dict[str, Any]:
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for case, method, count, coverage in MEASURED[name](scale):
        cases.setdefault(case, {}).setdefault(method, {})[str(count)] = round(coverage, 3)
    return {"worst": worst(cases, False), "rare": worst(cases, True), "cases": cases}


def carried(statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What intervals carry."""
    return {
        name: {"coverage": row["worst"]} | ({"rare": row["rare"]} if row["rare"] else {})
        for name, row in statistics.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join([*MEASURED, "control", "power"]))
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of repetitions")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--carried", type=Path, default=CARRIED)
    args = parser.parse_args()
    known = json.loads(args.results.read_text()) if args.results.exists() else {}
    table = {"level": LEVEL, "scale": args.scale, "statistics": known.get("statistics", {})} | {
        name: known.get(name) for name in ("control", "power")
    }
    for name in args.only.split(","):
        if name in MEASURED:
            table["statistics"][name] = found = measure(name, args.scale)
            print(f"{name:15} worst {found['worst']}  rare {found['rare']}", flush=True)
        else:
            table[name] = {"control": control, "power": powers}[name](args.scale)
            print(name, json.dumps(table[name]), flush=True)
        args.results.write_text(json.dumps(table, indent=1) + "\n")
        args.carried.write_text(json.dumps(carried(table["statistics"]), indent=1) + "\n")
    at_ten = {name: row["worst"]["10"] for name, row in table["statistics"].items()}
    low = {name: share for name, share in at_ten.items() if share < LEAST}
    print(f"Below {LEAST} at 10 seeds: {low or 'none'}")


if __name__ == "__main__":
    main()
