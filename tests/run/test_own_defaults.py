"""What somebody's own algorithm sets for itself lies between the defaults of a run and its recipe."""

import dataclasses

import pytest

from unirl_env import train
from unirl_env.agents import AGENTS, GRPOConfig
from unirl_env.run.agent_setup import agent_config, own_settings
from unirl_env.run.compose.yaml import differences, read_yaml, to_yaml

NAME = f"{__name__}:OwnConfig"
RECIPE = "diffusion/gaussian_mixture"


class OwnConfig(GRPOConfig):
    """Another kernel, another optimizer, other groups; and a knob."""

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.policy.dynamics = "cps"
        self.steps.window = 3
        self.weight_decay = 0.05
        self.rollout_batch_size = 4
        self.aggregate = "sequence_mean"
        self.baseline = 0.5


def test_what_ships_has_no_settings_of_its_own():
    assert [own_settings(name) for name in AGENTS] == [{}] * len(AGENTS)


def test_its_choices_hold_where_nobody_says_otherwise(tmp_path):
    cfg = train.settings(RECIPE, [f"agent.name={NAME}", "agent.options.baseline=0.7"])
    config = agent_config(cfg)
    assert (cfg.policy.dynamics, cfg.steps.window, cfg.agent.weight_decay) == ("cps", 3, 0.05)
    assert (config.policy.dynamics, config.rollout_batch_size, config.weighing) == ("cps", 4, "sequence_mean")
    assert config.baseline == 0.7
    plain = train.settings(RECIPE, ["agent=grpo"])
    same = ("lr", "warmup_iterations", "num_minibatches")
    assert [getattr(cfg.agent, name) for name in same] == [getattr(plain.agent, name) for name in same]
    # On record as they are, so that a continued run has the same ones.
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(cfg), encoding="utf-8")
    assert read_yaml(path) == cfg == train.settings(str(path))
    assert (
        differences(
            read_yaml(path), train.settings(RECIPE, [f"agent.name={NAME}", "agent.options.baseline=0.7"])
        )
        == []
    )


@pytest.mark.parametrize(
    "words",
    [["policy.dynamics=flow"], ["policy={dynamics: flow}"], ["policy.dynamics=cps", "policy.dynamics=flow"]],
)
def test_the_command_line_comes_last_though_it_says_the_default(words):
    cfg = train.settings(RECIPE, [f"agent.name={NAME}", *words])
    assert cfg.policy.dynamics == "flow" and cfg.steps.window == 3


def test_so_does_a_recipe_and_a_file_of_settings(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [/run_settings, /model: gaussian_mixture, _self_]\n"
        f"agent: {{name: '{NAME}', weight_decay: 0.0}}\n"
    )
    (tmp_path / "plain.yaml").write_text(f"policy: {{dynamics: flow}}\nagent: {{name: '{NAME}'}}\n")
    cfg = train.settings(str(tmp_path / "mine.yaml"))
    assert (cfg.agent.weight_decay, cfg.policy.dynamics) == (0.0, "cps")
    cfg = train.settings(str(tmp_path / "plain.yaml"))
    assert (cfg.agent.weight_decay, cfg.policy.dynamics) == (0.05, "flow")
    assert dataclasses.replace(cfg.steps, window=4) == type(cfg.steps)()
