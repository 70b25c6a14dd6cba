"""Whole benches as a person runs them: killed, side by side, with runs that fail, tuned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
title: Small
settings: [iterations=4, rollout.group_size=32, logging.eval_samples=4, logging.checkpoint_every=2,
           logging.keep_last=9]
tasks:
  line/plain: {recipe: diffusion/line, score: exact, measure: "unirl_env.bench.exact:line", unit: nats}
  line/epochs:
    recipe: diffusion/line
    score: exact
    measure: "unirl_env.bench.exact:line"
    settings: [agent.num_epochs=3]
"""
ALGORITHMS = """
import os
from unirl_env.agents import AgentConfig, Loss

def fails(rows, new, context):
    if context.iteration == 2:
        raise ValueError("nobody foresaw this")
    return rows.mean(-rows.advantages * new.log_prob), {}

def dies(rows, new, context):
    os._exit(9)

class FailsConfig(AgentConfig):
    losses = {"latents": Loss(fails)}

class DiesConfig(AgentConfig):
    losses = {"latents": Loss(dies)}
"""
CLOCKS = ("seconds", "wall_seconds", "peak_memory_bytes")

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    (tmp_path / "failing.py").write_text(ALGORITHMS)
    return tmp_path


def command(place, *words):
    path = os.pathsep.join([str(ROOT), str(place)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    said = [sys.executable, "-m", "unirl_env.bench", "suite=small.yaml", *words]
    return {"args": said, "cwd": place, "env": environment, "start_new_session": True}


def bench(place, *words, code=0):
    done = subprocess.run(**command(place, *words), capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def rows_of(folder):
    """Rows without what a clock or a machine says."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["metrics"] = {k: v for k, v in row["metrics"].items() if k.split("/")[0] not in CLOCKS}
        row["curve"].pop("seconds", None)
    return rows


def kill(process):
    """As the machine's out-of-memory killer would: the bench and all that it has begun."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)


@pytest.mark.timeout(1200)
def test_a_killed_bench_goes_on_to_the_same_results_and_runs_nothing_twice(place):
    words = ["agents=[grpo,drpo]", "seeds=2"]
    bench(place, *words, "name=whole")
    process = subprocess.Popen(
        **command(place, *words, "name=killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    rows = place / "runs" / "bench" / "killed" / "rows"
    end = time.monotonic() + 400
    while time.monotonic() < end and len(list(rows.rglob("*.json"))) < 3:
        time.sleep(0.05)
    kill(process)
    kept = {path: path.stat().st_mtime_ns for path in rows.rglob("*.json")}
    assert 3 <= len(kept) < 8, "killed in the middle"
    bench(place, *words, "name=killed")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole, killed = (rows_of(place / "runs" / "bench" / name) for name in ("whole", "killed"))
    assert len(whole) == 8 and whole == killed


@pytest.mark.timeout(1200)
def test_benches_side_by_side_keep_apart_and_runs_that_raise_or_die_are_results(place):
    agents = {"one": "agents=[grpo]", "bad": "agents=[grpo,failing:FailsConfig,failing:DiesConfig]"}
    both = [
        subprocess.Popen(
            **command(place, words, "seeds=1", "tasks=[line/plain]", f"name={name}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, words in agents.items()
    ]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, bad = (rows_of(place / "runs" / "bench" / name) for name in agents)
    rows = {row["agent"]: row for row in bad}
    assert one == [rows["grpo"]] and rows["grpo"]["status"] == "done", "neither disturbs the other"
    assert rows["Fails"]["status"] == rows["Dies"]["status"] == "crashed"
    assert "nobody foresaw this" in rows["Fails"]["error"] and "died 2 times" in rows["Dies"]["error"]
    assert (rows["Fails"]["normalised"], rows["Fails"]["metrics"]["iterations"]) == (0.0, 2.0)
    assert "crashed" in said[1]
    assert "nobody foresaw this" in (place / "runs" / "bench" / "bad" / "index.html").read_text()
    log = next((place / "runs" / "bench" / "bad" / "logs").rglob("Fails/*.log")).read_text()
    assert "Traceback" in log
    others = ["agents=[grpo]", "seeds=1", "tasks=[line/plain]", "name=one", 'settings=["agent.lr=0.5"]']
    done = subprocess.run(**command(place, *others), capture_output=True, text=True)
    assert done.returncode == 2 and "try another `name=`" in " ".join(done.stderr.split())


def test_a_tuned_bench_moves_and_is_reported_elsewhere(place):
    bench(place, "agents=[grpo]", "seeds=1", "tasks=[line/plain]", "tune=2", "tune_seeds=1", "name=tuned")
    folder = place / "runs" / "bench" / "tuned"
    plan = json.loads((folder / "bench.json").read_text())
    (agent,) = plan["agents"]
    assert agent["tuned"] and plan["tune"] == {"configurations": 2, "seeds": 1}
    tried = [json.loads(path.read_text()) for path in (folder / "rows" / "tuning").rglob("*.json")]
    assert len(tried) == 2 and {row["seed"] for row in tried} == {1_000_000}
    best = max(tried, key=lambda row: row["normalised"])
    assert agent["configuration"] == best["factors"]
    (row,) = rows_of(folder)
    assert row["configuration"] == "tuned" and row["factors"] == best["factors"]
    moved = place / "elsewhere"
    shutil.move(folder, moved)
    (moved / "index.html").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "unirl_env.bench", "report", str(moved)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (moved / "index.html").is_file()
