"""What a type checker makes of the public names in a user's file: real types, and wrong uses found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = """
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import unirl_env
from unirl_env.agents import AgentConfig, Context, GRPOConfig, Loss, Metric, Rows, SDEStep
from unirl_env.envs import DenoiseVectorEnv, check_vector_env
from unirl_env.rewards import LengthScorer, WeightedSum, build_scorer
from unirl_env.types import Prompt, Sample, Scores
from unirl_env.worlds import make_vector_env
from unirl_env.wrappers import RecordMedia, RewardWrapper

reveal_type(AgentConfig)  # is config.AgentConfig
reveal_type(unirl_env.envs.check_vector_env)  # is VectorEnv[Any, Any, Any]
reveal_type(WeightedSum)  # is compose.WeightedSum
unirl_env.rewards.nearness  # wrong: no attribute "nearness"


class Short(LengthScorer):
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        scores = super().__call__(samples, prompts)
        reveal_type(scores.value)  # is Tensor
        return Scores(scores.value, valid=torch.ones(len(samples), dtype=torch.bool))


def likelihood(rows: Rows, new: SDEStep, context: Context) -> tuple[Tensor, Mapping[str, Metric]]:
    reveal_type(rows.mean(new.log_prob))  # is Tensor
    reveal_type(context.noise(rows, "noise"))  # is Tensor
    return rows.mean(new.log_prob * rows.advantages), {"high": Metric.over(rows, new.log_prob, "max")}


class MyConfig(GRPOConfig):
    losses = {"latents": Loss(likelihood, needs={"final"})}


Loss(likelihood, needed={"final"})  # wrong: Unexpected keyword argument "needed"
config = MyConfig().environment("unirl/TinySD3-T2I-v0").training(lr=3e-4).debugging(seed=1)
reveal_type(config)  # is mine.MyConfig
reveal_type(config.num_prompts)  # is int
reveal_type(config.learning_rate(0))  # is float
config.clip_range("all")  # wrong: expected "int"

reward = WeightedSum({"short": (Short(target=8), 1.0), "long": (build_scorer("length"), 0.1)})
reveal_type(Short(target=8))  # is mine.Short
reveal_type(build_scorer("length"))  # is types.Scorer
reveal_type(reward([Sample(text="a")], [Prompt("b")]))  # is types.Scores
reward(["a"], [Prompt("b")])  # wrong: expected "Sample"
WeightedSum({"short": Short(target=8)})  # wrong: "tuple[Scorer, float]"


def play(bare: DenoiseVectorEnv) -> None:
    env = RewardWrapper(bare, reward, on_invalid="nan")
    reveal_type(env)  # is reward.RewardWrapper
    reveal_type(bare.reset(seed=1))  # is tuple[dict[str, Any], dict[str, Any]]
    reveal_type(bare.snapshot())  # is snapshot.Snapshot
    reveal_type(bare.stochastic_steps)  # is tuple[int, ...]
    reveal_type(RecordMedia(env, "media"))  # is record.RecordMedia
    reveal_type(make_vector_env(4, id="unirl/TinySD3-T2I-v0"))  # is VectorEnv
    check_vector_env(env)
    bare.reset(sead=1)  # wrong: Unexpected keyword argument "sead"
    RewardWrapper(bare, lambda samples: 1.0)  # wrong: expected "Scorer"
    RewardWrapper(bare, reward, on_invalid="ignore")  # wrong: incompatible type
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
    found = re.findall(r"mine\.py:(\d+): (error: |note: Revealed type is )(.*)", done.stdout)
    said = {int(line): words for line, _, words in found}
    wanted = {
        line: words
        for line, text in enumerate(FILE.splitlines(), start=1)
        for words in re.findall(r"  # (?:is|wrong:) (.*)", text)
    }
    assert len(found) == len(said) and said.keys() == wanted.keys(), done.stdout + done.stderr
    assert not [said[line] for line, words in wanted.items() if words not in said[line]]
    assert '"Any"' not in said.values()
