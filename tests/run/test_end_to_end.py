"""The ordinary commands on the embedded Stable Diffusion 3: killed, interrupted, continued, compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster as one_cluster
import pytest

from unirl_env import evaluate, train
from unirl_env.run.record.logbook import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NOT_COMPARED = ("seconds", "episodes_per_second")
"""Clocks. What the first update of a run is checked for stays: a continued run adds nothing to its log."""
ITERATIONS = 24
SMALL = [
    "--config-name=diffusion/tiny_sd3",
    f"iterations={ITERATIONS}",
    "model.num_steps=3",
    "steps.fraction=[0.0,0.7]",
    "rollout.num_prompts=2",
    "rollout.group_size=4",
    "logging.eval_prompts=2",
    "logging.eval_samples=1",
    "logging.checkpoint_every=4",
    "logging.tensorboard=false",
]


def command(folder, *overrides):
    return [*SMALL, f"logging.folder={folder}", *overrides]


def lines(folder):
    return len(read_rows(folder / "tiny_sd3" / "metrics.jsonl"))


def run_until(folder, count, number, *overrides):
    """Start the door in a process of its own and send it a signal after `count` iterations."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unirl_env.train", *command(folder, *overrides)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 400
    while lines(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    text, _ = process.communicate(timeout=200)
    return process.returncode, text


def curve(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith(NOT_COMPARED)}
        for row in read_rows(folder / "tiny_sd3" / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that was killed, interrupted and continued, and one that was left alone."""
    cut, whole = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("whole")
    code, text = run_until(cut, 6, signal.SIGKILL)
    assert code == -signal.SIGKILL, text
    code, text = run_until(cut, 10, signal.SIGINT, "resume=auto")
    assert code == 130, text
    assert f"resume={cut / 'tiny_sd3'}" in " ".join(text.split())
    done = lines(cut)
    assert 10 <= done < ITERATIONS
    one_cluster.start()
    assert train.main([f"resume={cut / 'tiny_sd3'}"]) == 0
    assert train.main(command(whole)) == 0
    return cut, whole


def test_the_continued_run_is_the_uninterrupted_one(folders):
    cut, whole = (curve(folder) for folder in folders)
    assert [row["iteration"] for row in cut] == list(range(1, ITERATIONS + 1))
    assert cut == whole


def test_the_evaluations_are_equal_too(folders):
    values = [
        [
            (row["iteration"], row["set"], row["values"])
            for row in read_rows(folder / "tiny_sd3/evaluation.jsonl")
        ]
        for folder in folders
    ]
    assert values[0] == values[1]
    assert {key.split("/")[0] for key in values[0][0][2]} == {"reward", "heldout"}


def test_the_adapters_are_what_diffusers_loads(folders):
    import torch
    from diffusers import StableDiffusion3Pipeline

    from unirl_env.models.tiny import tiny_path

    def draw(pipeline):
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
        return pipeline("a red circle at the top left", generator=generator, **options).images

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_path("sd3"))
    before = draw(pipeline)
    pipeline.load_lora_weights(folders[0] / "tiny_sd3" / "adapters")
    assert not torch.equal(draw(pipeline), before)


def test_the_comparison_finds_what_the_run_found(folders, tmp_path):
    run = folders[1] / "tiny_sd3"
    assert evaluate.main(["--run", str(run), "--checkpoint", "last", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "comparison.json").read_text())
    recorded = [row for row in read_rows(run / "evaluation.jsonl") if row["iteration"] == ITERATIONS]
    found = {row["set"]: row["values"] for row in rows if row["iteration"] == ITERATIONS}
    assert found == {row["set"]: row["values"] for row in recorded}
    assert Path(tmp_path / "index.html").exists()


def test_a_mistyped_model_leaves_nothing(tmp_path, capsys):
    assert train.main(command(tmp_path, "model.pretrained=/nowhere/at/all")) == 2
    message = capsys.readouterr().err
    assert "/nowhere/at/all" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_knob_of_another_agent_is_refused(tmp_path, capsys):
    assert train.main(command(tmp_path, "agent=grpo", "agent.options.kl_threshold=1")) == 2
    assert "kl_threshold" in capsys.readouterr().err


@pytest.mark.parametrize("agent", ["flow_dppo", "grpo", "drpo"])
def test_the_quickest_example_runs_with_every_agent(tmp_path, agent):
    one_cluster.start()
    options = ["--config-name=diffusion/gaussian_mixture", "iterations=2", "rollout.group_size=16"]
    assert train.main([*options, f"agent={agent}", f"logging.folder={tmp_path}"]) == 0
    report = (tmp_path / "gaussian_mixture" / "report.html").read_text()
    assert 'class="after"' in report, "the samples of a model of points must be shown as points"
