"""The finding in plain sentences, and what a reader must know before believing a number."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from unirl_env.bench.page.cells import spelled
from unirl_env.bench.page.findings import Findings
from unirl_env.bench.page.numbers import ENOUGH, PERCENT, Estimate
from unirl_env.bench.page.reading import Row

MOST = 6
"""Names in one list of a sentence."""
SHORT = 4
"""Names in a list of which a sentence has several."""
FEW = 5
"""Seeds below which nothing but a large difference shows."""


def sentences(found: Findings) -> list[str]:
    """What is known, the whole before its parts; at least one sentence."""
    first, parts, last = said(found)
    return [*first, *([f"Task by task: {parts[0]}", *parts[1:]] if parts else []), *last]


def said(found: Findings) -> tuple[list[str], list[str], list[str]]:
    """What is known over all tasks, task by task, and not at all; sentences each."""
    reason = nothing(found)
    if reason:
        return [reason], [], []
    whole, parts = _overall(found), _by_task(found)
    pairs = len(found.agents) * (len(found.agents) - 1) // 2
    unknown = [pair for pair in (*found.pairs.values(), *found.within.values()) if not pair.side]
    level = f"at {PERCENT} after Holm's correction"
    if not whole and not parts:
        who = "The two agents" if pairs == 1 else f"Of the {len(found.agents)} agents no two"
        can = "cannot" if pairs == 1 else "can"
        return [f"{who} {can} be told apart {level}, over all tasks or on any."], [], []
    return whole, parts, [f"Nothing else can be told apart {level}."] if unknown else []


def nothing(found: Findings) -> str:
    """Why nothing at all can be said, or an empty text."""
    rows = found.bench.rows
    if not rows:
        return "No run has ended yet: nothing is known."
    if not any(row.done for row in rows):
        return "No run came to its end with a score: nothing is known."
    if len(found.agents) < 2:
        return "Only one agent has runs: nothing is compared."
    if not found.pairs and not found.within:
        return "No two agents have two seeds in common: differences cannot be told from noise."
    return ""


def warnings(found: Findings) -> list[tuple[str, str]]:
    """What a reader must know: a head and a sentence each, the gravest first."""
    return [
        *_tuning(found),
        *_seeds(found),
        *_missing(found),
        *_failed(found),
        *_refused(found),
        *_without_results(found),
        *(("The files", note) for note in found.bench.notes),
    ]


def facts(found: Findings) -> list[str]:
    """What was compared, in a few words each."""
    bench = found.bench
    tuned = sorted({row.configuration for row in bench.rows})
    how: dict[tuple[str, ...], str] = {("default",): "default settings", ("tuned",): "tuned settings"}
    return [
        f"suite {bench.name}",
        _count(len(bench.tasks), "task"),
        _count(len(bench.agents), "agent"),
        _count(len(bench.seeds), "seed"),
        f"{sum(row.done for row in bench.rows)} of {cells(found)} runs done",
        how.get(tuple(tuned), "tuned and default settings" if tuned else "settings unknown"),
    ]


def evaluated(rows: Sequence[Row]) -> str:
    """How the scores of a task were measured, as a sentence; an empty text where nothing says so."""
    every = [dict(row.evaluation) for row in rows if row.evaluation]
    if not every:
        return ""
    known = every[0]
    forms: dict[str, Callable[[float], str]] = {
        "prompts": lambda n: _count(int(n), "prompt"),
        "samples": lambda k: f"{_count(int(k), 'sample')} each (avg@{k:.0f})",
        "steps": lambda n: f"{n:.0f} denoising steps",
        "guidance": lambda value: f"guidance {value:g}",
        "temperature": lambda value: f"temperature {value:g}" if value else "the likeliest tokens",
    }
    parts = ", ".join(form(known[name]) for name, form in forms.items() if name in known)
    less = (
        "" if all(each == known for each in every) else " Not all runs were evaluated so: see results.jsonl."
    )
    return f"Evaluated on {parts}.{less}"


def cells(found: Findings) -> int:
    """How many runs there should be: those that were asked for, and those that came with the results."""
    bench = found.bench
    shipped = bench.shipped
    run = sum(row.agent not in shipped for row in bench.rows)
    asked = len(bench.agents) - len(shipped)
    left_out = sum(label not in shipped for labels in bench.refused.values() for label in labels)
    wanted = (len(bench.tasks) * asked - left_out) * len(bench.seeds)
    return len(bench.rows) - run + max(run, wanted)


def joined(names: Sequence[str], most: int = MOST) -> str:
    """Names as a list in a sentence."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def coverage_of(estimates: Sequence[Estimate]) -> str:
    """How the intervals were made, and how often such intervals hold the truth, as a sentence."""
    known = [e for e in estimates if e.low is not None and e.method]
    if not known:
        return ""
    methods = "; ".join(dict.fromkeys(e.method for e in known))
    shares = [e.coverage for e in known if e.coverage is not None]
    if not shares:
        return f"Intervals: {methods}."
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    span = f"{low} %" if low == high else f"{low} to {high} %"
    rare = [e.rare for e in known if e.rare is not None]
    less = f" ({100 * min(rare):.0f} % where a run in ten fails, or scores are very skewed)" if rare else ""
    return f"Intervals: {methods}. By simulation, {span} of such hold the truth at so many seeds{less}."


def _overall(found: Findings) -> list[str]:
    above: dict[str, list[str]] = {}
    for a in found.agents:
        others = [b for b in found.agents if b != a and found.side(a, b) > 0]
        if others:
            above[a] = others
    over = "On the one task" if len(found.shared) == 1 else f"Over {len(found.shared)} tasks together"
    parts = []
    for a, others in list(above.items())[:MOST]:
        shown = _several(found, others, [b for b in found.agents if b != a])
        if len(others) == 1:
            pair = found.pairs.get((a, others[0]))
            shown += f" ({spelled(pair.corrected, sign=True)})" if pair is not None else ""
        parts.append(f"{_title(found, a)} is above {shown}")
    more = f"; {len(above) - MOST} more stand in the matrix" if len(above) > MOST else ""
    return [f"{over}, {'; '.join(parts)}{more}."] if parts else []


def _by_task(found: Findings) -> list[str]:
    """A sentence for each agent that is above others on some tasks, the tasks of a kind put together."""
    on: dict[str, dict[str, list[str]]] = {}
    for (task, a, b), pair in found.within.items():
        if pair.side:
            better, worse = (a, b) if pair.side > 0 else (b, a)
            on.setdefault(better, {}).setdefault(worse, []).append(task)
    if len(found.bench.tasks) == 1 and any(pair.side for pair in found.pairs.values()):
        return []
    sentences = []
    for better in [a for a in found.agents if a in on][:MOST]:
        alike: dict[str, list[str]] = {}
        for worse, tasks in on[better].items():
            alike.setdefault(_on(found, tasks), []).append(_title(found, worse))
        parts = [f"above {joined(names, SHORT)} {where}" for where, names in alike.items()]
        if len(parts) > SHORT:
            parts = [*parts[:SHORT], f"above {len(parts) - SHORT} more in part"]
        sentences.append(f"{_title(found, better)} is {', and '.join(parts)}.")
    if len(on) > MOST:
        sentences.append(f"{len(on) - MOST} more agents are above others somewhere; see the tables.")
    return sentences


def _several(found: Findings, some: Sequence[str], every: Sequence[str]) -> str:
    """Some agents in words: by name where they are few, else by who is missing."""
    left = [_title(found, agent) for agent in every if agent not in some]
    if not left and len(every) > 2:
        return "every other agent"
    if len(some) <= SHORT:
        return joined([_title(found, agent) for agent in some])
    return f"{len(some)} of the {len(every)} others" + (
        f" (all but {joined(left)})" if len(left) <= 3 else ""
    )


def _on(found: Findings, tasks: Sequence[str]) -> str:
    """Some tasks in words: those that are few, or those that are missing."""
    every = found.bench.tasks
    titles, left = [every[t].title for t in tasks], [every[t].title for t in every if t not in tasks]
    if not left:
        return f"on all {len(every)} tasks"
    if len(tasks) <= 3:
        return f"on {joined(titles)}"
    return f"on {len(tasks)} of {len(every)} tasks" + (f" (all but {joined(left)})" if len(left) <= 3 else "")


def _tuning(found: Findings) -> list[tuple[str, str]]:
    bench = found.bench
    kinds: dict[str, set[str]] = {}
    for row in bench.rows:
        kinds.setdefault(row.agent, set()).add(row.configuration)
    for label, agent in bench.agents.items():
        kinds.setdefault(label, {"tuned" if agent.tuned else "default"})
    tuned = [_title(found, label) for label, kind in kinds.items() if "tuned" in kind]
    plain = [_title(found, label) for label, kind in kinds.items() if kind != {"tuned"}]
    if not tuned or not plain:
        return []
    words = (
        f"{joined(tuned)} had settings searched for, {joined(plain)} had defaults. A difference between them "
        "may be one of the search, not of the algorithms."
    )
    return [("A tuned agent is compared with an untuned one", words)]


def _seeds(found: Findings) -> list[tuple[str, str]]:
    ranked = [a for a in found.agents if a in found.bench.everywhere]
    counts = [len(found.bench.cell(t, a)) for t in found.shared for a in ranked]
    fewest = min(counts, default=0)
    shares = [e.coverage for e in found.cells.values() if e.coverage is not None]
    shares += [e.coverage for part in found.ranking.values() for e in part.values() if e.coverage is not None]
    words = []
    if counts and fewest < FEW:
        width = "there is no interval" if fewest < 2 else "intervals are wide"
        words.append(
            f"{_count(fewest, 'seed')} of some agent on some task: {width}, and what cannot be told apart "
            "may still differ."
        )
    if shares and min(shares) < ENOUGH:
        words.append(
            f"Some intervals that are meant to hold the truth in {PERCENT} of benches do so in "
            f"{100 * min(shares):.0f} % at so few seeds; each says so beside it."
        )
    return [("Few seeds", " ".join(words))] if words else []


def _missing(found: Findings) -> list[tuple[str, str]]:
    wanted, there = cells(found), len(found.bench.rows)
    if there >= wanted:
        return []
    words = f"{there} of {wanted} runs have ended. Numbers will change as the others do."
    absent = [a.title for label, a in found.bench.agents.items() if label not in found.agents]
    if absent and there:
        words += f" Nothing is there yet of {joined(absent)}."
    return [("The bench is not finished", words)]


def _failed(found: Findings) -> list[tuple[str, str]]:
    failed = [row for row in found.bench.rows if not row.done]
    if not failed:
        return []
    who = list(dict.fromkeys(_title(found, row.agent) for row in failed))
    runs = "A run" if len(failed) == 1 else f"{len(failed)} runs"
    words = f"{runs} of {joined(who)} failed; the table of failures says why. Each counts as untrained."
    return [("Failures", words)]


def _refused(found: Findings) -> list[tuple[str, str]]:
    where: dict[str, list[str]] = {}
    for task, labels in found.bench.refused.items():
        for label in labels:
            where.setdefault(label, []).append(found.bench.tasks[task].title)
    if not where:
        return []
    parts = [f"{_title(found, label)} is not defined on {joined(tasks)}" for label, tasks in where.items()]
    words = f"{'; '.join(parts)}. What is not defined on all tasks is compared task by task only."
    return [("Not every agent runs everywhere", words)]


def _without_results(found: Findings) -> list[tuple[str, str]]:
    bench = found.bench
    if not bench.without_results:
        return []
    tasks = joined([bench.tasks[task].title for task in bench.without_results])
    words = f"No results ship for {tasks}: nothing stands there but what was run for this bench."
    if who := [_title(found, label) for label in bench.shipped]:
        part = "is" if len(who) == 1 else "are"
        words += (
            f" {joined(who)} {part} shown from results that ship, on the other tasks alone, and what is said "
            f"over several tasks together leaves {'it' if len(bench.without_results) == 1 else 'them'} out."
        )
    return [("Not every task has stored results", words)]


def _title(found: Findings, label: str) -> str:
    return found.bench.agents[label].title


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def paragraphs(texts: Sequence[str]) -> str:
    """Sentences as HTML."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)
