"""Processes that really die."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.run.launch import launch
from unirl_env.run.record.logbook import read_rows

BEGIN = """
import os, signal, sys, time
from rich.console import Console
from door_fakes import fake_parts, small_config
from unirl_env.run.launch import launch

def act(iteration):
    if iteration == 4:
        {action}

sys.exit(launch(small_config(sys.argv[1]), Console(), [], fake_parts(act)))
"""


def begin(folder, action):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN.format(action=action), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rewards(folder):
    return [(row["iteration"], row["reward"]) for row in read_rows(folder / "fake" / "metrics.jsonl")]


def test_kill_9_then_resume_is_the_uninterrupted_run(tmp_path):
    process = begin(tmp_path / "cut", "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [i for i, _ in rewards(tmp_path / "cut")] == [1, 2, 3]
    quiet = Console(file=io.StringIO())
    assert launch(small_config(tmp_path / "cut", resume="auto"), quiet, [], fake_parts()) == 0
    launch(small_config(tmp_path / "whole"), quiet, [], fake_parts())
    assert rewards(tmp_path / "cut") == rewards(tmp_path / "whole")


def test_a_second_ctrl_c_quits_at_once(tmp_path):
    process = begin(tmp_path, "time.sleep(100)")
    deadline = time.monotonic() + 60
    while len(rewards(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert "Once more quits at once" in text
