"""Benches that nobody has run: files of the right form, with effects that were put in and are known."""

import json
import random

PAPER = {
    "line/many_epochs": (
        "Many epochs",
        "Old batches are used again and again; who does not bound the step, falls.",
    ),
    "line/stale": ("Stale rollouts", "Players lag behind by four versions."),
    "mixture/noise": ("Noisy log-probabilities", "As of another engine: 1 % noise on every log-probability."),
    "words/long": ("Long horizon", "Eighty steps and one reward at the end."),
    "line/sparse": ("Sparse reward", "Most groups earn nothing."),
    "line/conflict": ("Conflicting rewards", "Two rewards that cannot both be had."),
    "line/hackable": (
        "Hackable reward",
        "The reward that is trained on can be had without the one that is meant.",
    ),
}
AGENTS = {"grpo": 0.72, "flow_dppo": 0.84, "drpo": 0.70, "pg": 0.45, "mylab.alg:ReinforceConfig": 0.43}


def row(task, agent, seed, level, rng, *, status="done", evaluations=11, configuration="default"):
    """A line of `results.jsonl` whose normalised score is about `level`."""
    base, reference = 0.2, 1.1
    final = level + rng.gauss(0, 0.05)
    steps = [i / (evaluations - 1) for i in range(evaluations)]
    curve = [base + (reference - base) * (final * (1 - (1 - s) ** 3) + rng.gauss(0, 0.01)) for s in steps]
    speed = 2.0 + 0.4 * len(agent) / 5
    kept = evaluations if status == "done" else max(1, evaluations // 2)
    spent = {
        "iteration": [10 * i for i in range(evaluations)],
        "episodes": [640 * i for i in range(evaluations)],
        "function_evaluations": [6400 * i for i in range(evaluations)],
        "seconds": [round(speed * i * (1 + 0.05 * rng.random()), 4) for i in range(evaluations)],
    }
    score = curve[-1]
    done = status == "done"
    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "configuration": configuration,
        "status": status,
        "error": "" if done else "RuntimeError: the loss is nan at iteration 57 (policy.step)",
        "score": score if done else None,
        "normalised": (score - base) / (reference - base) if done else None,
        "metrics": {
            "base": base,
            "reference": reference,
            "train/reward": score + 0.02,
            "heldout/reward": score,
            "heldout/heldout": 0.8 * score,
            "regret": reference - score,
            "kl": 0.5 * final + 0.05 * rng.random(),
            "diversity": 1 - 0.3 * final,
            "hacking": max(0.0, 0.1 * rng.gauss(0.5, 1)),
            "failed_scores": rng.randrange(3),
            "episodes": spent["episodes"][-1],
            "function_evaluations": spent["function_evaluations"][-1],
            "seconds": spent["seconds"][-1],
            "seconds/rollout": 0.6 * spent["seconds"][-1],
            "seconds/update": 0.4 * spent["seconds"][-1],
            "peak_memory_bytes": 350_000_000 + rng.randrange(10_000_000),
        },
        "prompts": {"heldout/reward": [score] * 4},
        "curve": {name: part[:kept] for name, part in {**spent, "score": curve, "kl": steps}.items()},
        "folder": f"runs/{task}/{agent}/seed_{seed}",
    }


def bench(tasks=PAPER, agents=AGENTS, seeds=10, failing=(), tuned=(), noise=0):
    """`(bench.json, lines of results.jsonl)` as objects.

    Args:
        tasks: Names with title and reason.
        agents: Labels with the level that they reach.
        seeds: How many.
        failing: Triples of task, agent, seed that fail.
        tuned: Labels whose settings were searched for.
        noise: Seed of everything drawn.
    """
    rng = random.Random(noise)
    shift = {task: 0.12 * rng.uniform(-1, 1) for task in tasks}
    rows = [
        row(
            task,
            agent,
            seed,
            level + shift[task],
            rng,
            status="crashed" if (task, agent, seed) in failing else "done",
            configuration="tuned" if agent in tuned else "default",
        )
        for task in tasks
        for agent, level in agents.items()
        for seed in range(seeds)
    ]
    known = {
        "format": 1,
        "suite": {
            "name": "quick",
            "title": "Quick: exact worlds in regimes that part algorithms",
            "tasks": {
                task: {"title": title, "why": why, "score": "objective", "unit": "nats", "threshold": 0.6}
                for task, (title, why) in tasks.items()
            },
        },
        "agents": [
            {
                "label": agent,
                "name": agent,
                "tuned": agent in tuned,
                "settings": {"agent": {"name": agent, "lr": 3e-4 * (1 + i % 2)}, "group_size": 8},
            }
            for i, agent in enumerate(agents)
        ],
        "seeds": list(range(seeds)),
        "tune": {"configurations": 8, "chosen_by": "held-out reward"} if tuned else None,
        "provenance": {
            "command": ["python", "-m", "unirl_env.bench", "suite=quick", f"agents=[{','.join(agents)}]"],
            "versions": {"unirl_env": "0.17.0", "torch": "2.9.0", "python": "3.12.3"},
            "commit": "d4777e5c1b",
            "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 8},
            "hashes": {"suite": "a41f…", "prompts": "09bc…"},
        },
    }
    return known, rows


def write(folder, known, rows):
    """Put a bench on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(known))
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder
