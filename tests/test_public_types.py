"""What a type checker makes of the public names in a user's file: real types, and misspelt names found."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = """
import unirl_env
from unirl_env.agents import AgentConfig, GRPOConfig, Loss, Rows
from unirl_env.envs import check_vector_env
from unirl_env.rewards import WeightedSum
from unirl_env.types import Prompt, Sample, Scores

reveal_type(GRPOConfig)
reveal_type(Rows.mean)
reveal_type(WeightedSum)
reveal_type(unirl_env.envs.check_vector_env)


def nearness(samples: list[Sample], prompts: list[Prompt]) -> Scores:
    unirl_env.rewards.nearness(samples)
    raise NotImplementedError
"""


@pytest.mark.slow
def test_names_are_real_to_a_type_checker(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=550,
    )
    told = done.stdout
    assert 'Revealed type is "def' in told and "grpo.GRPOConfig" in told, told + done.stderr
    assert "rows.Rows" in told and "compose.WeightedSum" in told
    assert told.count("Revealed type") == 4 and 'Revealed type is "Any"' not in told
    assert 'no attribute "nearness"' in told
    assert told.count("error:") == 1, told
