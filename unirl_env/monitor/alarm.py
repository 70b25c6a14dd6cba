"""An alarm for rewards that are exploited: it reads the numbers of a run and says when they turn bad.

A reward is a stand-in for what is wanted. A policy that is trained on it long enough finds what the reward
likes and nobody wants (Skalse et al., arXiv:2209.13085; how the true reward falls while the trained one
rises: Gao et al., arXiv:2210.10760). Nothing here knows samples or models: an alarm is a function of the rows
of `metrics.jsonl`, so that a continued run rings as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from unirl_env.arguments.values import is_number
from unirl_env.monitor.iteration_metrics import nothing_scored
from unirl_env.settings import AlarmSettings
from unirl_env.settings.watch import SIGNALS

NAMES = (
    "iteration",
    "reward",
    "reward_std",
    "reward_max",
    "reward_min",
    "heldout",
    "heldout_std",
    "diversity",
    "saturation",
    "zero_std_groups",
)
"""The numbers of a row that an alarm looks at."""
OF_REWARDS = ("saturation", "zero_std_groups")
SAME = 1e-6
"""Rewards that differ by less, in units of their size or of 1, are the same."""
DOUBT = 8.0
"""Standard errors that count like one standard deviation: half of that is no chance."""

Row = Mapping[str, Any]


class Level(NamedTuple):
    """Where a signal stood at an iteration, and the bound of that time, if it has one."""

    iteration: int
    value: float
    bound: float | None


@dataclass(frozen=True)
class Finding:
    """One alarm.

    Attributes:
        signal: Which number rang, of `SIGNALS`.
        iteration: When.
        value: The number, as `HackingAlarm.levels` has it.
        bound: What it went beyond.
        sentence: What that means, and what to try.
    """

    signal: str
    iteration: int
    value: float
    bound: float
    sentence: str

    def row(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self)


class HackingAlarm:
    """Watches the rows of a run; each signal rings once.

    All numbers are means over the last `settings.smooth` observations, and ring once `settings.patience` of
    these means in a row are beyond their bound:

    - `gap`: since some earlier time, the training reward has risen and the held-out reward of the same
      samples has fallen, each by at least the bound in standard deviations that it had between samples at the
      start of the run (in standard errors, where batches are small). Observed where a row has both.
    - `diversity`: the variety within groups, as a share of what it was at the start, is below the bound. The
      bound is less where episodes earn the highest reward: right answers resemble each other.
    - `saturation`: the share of episodes with the highest reward that the run has seen is above the bound.
    - `zero_std_groups`: the share of groups whose members all earn the same is above the bound.

    Args:
        settings: Bounds, patience, and which alarms end a run.

    Attributes:
        findings: All alarms so far.
        levels: By signal, all that was held against its bound.
        rows: What was observed, as JSON: `HackingAlarm.replay(settings, rows)` is the same alarm.

    Raises:
        ConfigError: If a bound makes no sense.
    """

    def __init__(self, settings: AlarmSettings | None = None):
        self.settings = settings or AlarmSettings()
        self.settings.check("alarm.")
        self.findings: list[Finding] = []
        self.levels: dict[str, list[Level]] = {name: [] for name in SIGNALS}
        self.rows: list[dict[str, Any]] = []
        self._streak = dict.fromkeys(SIGNALS, 0)
        self._pairs: list[Row] = []
        self._means: list[tuple[int, float, float]] = []
        self._recent: dict[str, list[float]] = {name: [] for name in SIGNALS}
        self._first: float | None = None
        self._highest, self._lowest = -math.inf, math.inf

    @classmethod
    def replay(cls, settings: AlarmSettings, rows: Iterable[Row]) -> HackingAlarm:
        """The alarm that has observed `rows`."""
        alarm = cls(settings)
        for row in rows:
            alarm.observe(row)
        return alarm

    @property
    def ended_by(self) -> Finding | None:
        """The first alarm that the settings let end the run."""
        stops = self.settings.stops
        return next((finding for finding in self.findings if finding.signal in stops), None)

    def observe(self, row: Row) -> tuple[Finding, ...]:
        """Take in the numbers of one iteration.

        Args:
            row: `iteration` and the iteration's metrics; what is missing or not finite was not observed.

        Returns:
            What rings now.
        """
        known = {name: row[name] for name in NAMES if is_number(row.get(name))}
        if nothing_scored(row):
            # Rewards that are not there are neither all the same nor the highest.
            known = {name: value for name, value in known.items() if name not in OF_REWARDS}
        self.rows.append(known)
        self._highest = max(self._highest, known.get("reward_max", -math.inf))
        self._lowest = min(self._lowest, known.get("reward_min", math.inf))
        found = [self._gap(known), self._saturation(known), self._diversity(known), self._groups(known)]
        rung = tuple(finding for finding in found if finding is not None)
        self.findings += rung
        return rung

    def compared(self) -> list[tuple[int, float, float]]:
        """How far the means of both rewards have moved since the first ones: iteration, training, held-out.

        In the units of `gap`; nothing where there are none.
        """
        unit, other = self._unit("reward"), self._unit("heldout")
        if not self._means or unit is None or other is None:
            return []
        _, train, heldout = self._means[0]
        return [(at, (now - train) / unit, (held - heldout) / other) for at, now, held in self._means]

    # The signals.

    def _gap(self, row: Row) -> Finding | None:
        if "reward" not in row or "heldout" not in row:
            return None
        self._pairs.append(row)
        train = self._mean("gap/train", row["reward"])
        heldout = self._mean("gap/heldout", row["heldout"])
        unit, other = self._unit("reward"), self._unit("heldout")
        if train is None or heldout is None:
            return None
        self._means.append((row["iteration"], train, heldout))
        if unit is None or other is None:
            return None
        apart = [
            (min((train - was) / unit, (watched - heldout) / other), since, was, watched)
            for since, was, watched in self._means
        ]
        value, since, was, watched = max(apart)
        return self._judge(
            "gap",
            row["iteration"],
            value,
            self.settings.gap,
            f"since iteration {since} the training reward has risen from {was:.3g} to {train:.3g} while the "
            f"held-out reward of the same samples has fallen from {watched:.3g} to {heldout:.3g}: the policy "
            "learns what the reward likes and not what it stands for. Look at the samples; try an earlier "
            "checkpoint, a smaller `agent.lr`, a larger `agent.reference_kl`, or a reward in which the "
            "held-out one has a part.",
        )

    def _diversity(self, row: Row) -> Finding | None:
        mean = self._mean("diversity", row.get("diversity"))
        if mean is None:
            return None
        self._first = mean if self._first is None else self._first
        if self._first == 0:
            return None
        bound, value = self.settings.diversity, mean / self._first
        if bound is not None:
            # Where there is one right answer, all that are right are the same.
            solved = self.levels["saturation"][-1].value if self.levels["saturation"] else 0.0
            bound *= 1.0 - solved
        return self._judge(
            "diversity",
            row["iteration"],
            value,
            bound,
            f"the samples of a group differ by {value:.0%} of what they did at the start: the policy answers "
            "a prompt in one way only. Look at the samples; try a larger `agent.reference_kl`, a smaller "
            "`agent.lr`, or a reward that sees what has become the same.",
            above=False,
        )

    def _saturation(self, row: Row) -> Finding | None:
        share = row.get("saturation")
        if share is not None:
            top = self._highest - SAME * max(1.0, abs(self._highest))
            # What all have earned from the start is no ceiling: nothing says that there is no more.
            share = share if row.get("reward_max", -math.inf) >= top > self._lowest else 0.0
        mean = self._mean("saturation", share)
        if mean is None:
            return None
        return self._judge(
            "saturation",
            row["iteration"],
            mean,
            self.settings.saturation,
            f"{mean:.1%} of the episodes earn the highest reward, {self._highest:.3g}: there is nothing left "
            "to learn from it. The task is solved, or the reward cannot tell what is good from what is "
            "better; the held-out reward and the samples say which. Try ending the run here, harder prompts, "
            "or a reward with finer steps.",
        )

    def _groups(self, row: Row) -> Finding | None:
        mean = self._mean("zero_std_groups", row.get("zero_std_groups"))
        if mean is None:
            return None
        return self._judge(
            "zero_std_groups",
            row["iteration"],
            mean,
            self.settings.zero_std_groups,
            f"in {mean:.0%} of the groups all members earn the same, and such groups teach nothing: the "
            "prompts have become too easy, are too hard, or the reward does not see what differs. Try other "
            "prompts, a larger `rollout.group_size`, or a reward with finer steps.",
        )

    # What they share.

    def _judge(
        self,
        signal: str,
        iteration: int,
        value: float,
        bound: float | None,
        sentence: str,
        above: bool = True,
    ) -> Finding | None:
        self.levels[signal].append(Level(iteration, value, bound))
        if bound is None:
            return None
        beyond = value > bound if above else value < bound
        self._streak[signal] = self._streak[signal] + 1 if beyond else 0
        if self._streak[signal] != self.settings.patience or self._has_rung(signal):
            return None
        return Finding(signal, iteration, value, bound, sentence)

    def _has_rung(self, signal: str) -> bool:
        return any(finding.signal == signal for finding in self.findings)

    def _mean(self, name: str, value: float | None) -> float | None:
        """The mean of the last observations with the new one; None until there are enough."""
        if value is None:
            return None
        recent = self._recent.setdefault(name, [])
        recent.append(value)
        del recent[: -self.settings.smooth]
        return sum(recent) / len(recent) if len(recent) == self.settings.smooth else None

    def _unit(self, name: str) -> float | None:
        """In what a reward's changes are counted: the standard deviation of the first samples that had one.

        Where few samples make an iteration's mean uncertain, it is `DOUBT` standard errors of the difference
        of two smoothed means. The error of one mean is estimated from second differences, which a steady
        rise or fall leaves out: for independent errors, their mean square is six variances.
        """
        known = [row[f"{name}_std"] for row in self._pairs if row.get(f"{name}_std", 0.0) > 0]
        if not known:
            return None
        first, means = known[: self.settings.smooth], [row[name] for row in self._pairs]
        bends = [(a - 2 * b + c) ** 2 / 6 for a, b, c in zip(means, means[1:], means[2:], strict=False)]
        error = math.sqrt(2 / self.settings.smooth * sum(bends) / len(bends)) if bends else 0.0
        return max(sum(first) / len(first), DOUBT * error)
